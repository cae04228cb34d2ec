//! Two agents and lanes between them: as fast as it goes, at a rate, or to and fro.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentd_bus::client::LaneReceiver;
use agentd_bus::lane::ring::RecvError;

use super::{
    Checker, Commands, Done, Latencies, PROGRESS, WATCHDOG, connect, join, now_ns, open_lane, say,
    tag, take_lane,
};
use crate::verbs::bench::orders::{GO, HEAD, Mode, Received, Report, fill};

/// A sender at a rate sleeps until so long before a message is due, and looks at the clock from then on.
const WAKE_EARLY_NS: u64 = 60_000;

pub fn receive(lanes: u32, mode: Mode) -> Done {
    let client = connect()?;
    let offers = client
        .accept_lanes()
        .map_err(|e| format!("can't take lanes: {e}"))?;
    say(&Report::Ready);
    let mut taken = Vec::new();
    for _ in 0..lanes {
        taken.push(take_lane(&offers, mode)?);
    }
    let progress = AtomicU64::new(0);
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = taken
            .into_iter()
            .map(|lane| scope.spawn(|| drain(lane, &progress)))
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(PROGRESS);
            say(&Report::Progress(progress.load(Ordering::Relaxed)));
        }
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| "a receiver panicked".to_owned())?
            })
            .collect::<Done<Vec<_>>>()
    })?;
    say(&Report::Received(join(parts)));
    Ok(())
}

type Part = (Received, Option<(u64, u64)>, Latencies);

/// Reads a lane to its end. A word that is not 0 is the time at which the message was due.
fn drain(mut lane: LaneReceiver, progress: &AtomicU64) -> Done<Part> {
    let mut checker = Checker::default();
    let mut latencies = Latencies::new();
    let mut buffer = Vec::new();
    let (mut first, mut last) = (None, 0);
    loop {
        match lane.recv(&mut buffer, WATCHDOG) {
            Ok(_) => {}
            Err(RecvError::TimedOut) => continue,
            Err(RecvError::Closed(_)) => break,
            Err(e) => return Err(format!("a lane broke: {e}")),
        }
        if first.is_none() {
            first = Some(now_ns());
        }
        match checker.take(&buffer) {
            Some(0) | None => {}
            Some(due) => latencies.record(now_ns().saturating_sub(due)),
        }
        if checker.got.messages.is_multiple_of(1024) {
            progress.fetch_add(1024, Ordering::Relaxed);
            last = now_ns();
        }
    }
    // A lane is closed right behind its last message.
    if !checker.got.messages.is_multiple_of(1024) {
        last = now_ns();
    }
    Ok((checker.got, first.map(|first| (first, last)), latencies))
}

pub fn send(
    commands: &Commands,
    to: &str,
    lanes: u32,
    messages: u64,
    size: usize,
    mode: Mode,
) -> Done {
    let client = connect()?;
    let mut open = Vec::new();
    for _ in 0..lanes {
        open.push(open_lane(&client, to, mode)?);
    }
    say(&Report::Ready);
    commands.expect(GO)?;
    let begin = now_ns();
    let (share, rest) = (messages / u64::from(lanes), messages % u64::from(lanes));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0_u64..)
            .zip(open)
            .map(|(at, mut lane)| {
                let count = share + u64::from(at < rest);
                scope.spawn(move || -> Done {
                    let mut message = vec![0; size.max(HEAD)];
                    for number in 0..count {
                        fill(&mut message, number, 0);
                        lane.send(tag(), &message, WATCHDOG)
                            .map_err(|e| format!("message {number} can't be sent: {e}"))?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a sender panicked".to_owned())?)
    })?;
    let elapsed_ns = now_ns() - begin;
    say(&Report::Sent {
        messages,
        elapsed_ns,
    });
    Ok(())
}

pub fn pace(
    commands: &Commands,
    to: &str,
    rate: u64,
    duration_ns: u64,
    size: usize,
    mode: Mode,
) -> Done {
    let client = connect()?;
    let mut lane = open_lane(&client, to, mode)?;
    say(&Report::Ready);
    commands.expect(GO)?;
    let mut message = vec![0; size.max(HEAD)];
    let begin = now_ns();
    let messages = u128::from(duration_ns) * u128::from(rate) / 1_000_000_000;
    let messages = u64::try_from(messages).map_err(|_| "too many messages".to_owned())?;
    for number in 0..messages {
        let after = u128::from(number) * 1_000_000_000 / u128::from(rate);
        let due = begin + after as u64;
        wait_until(due, mode);
        // Sent late, it counts from when it was due all the same.
        fill(&mut message, number, due);
        lane.send(tag(), &message, WATCHDOG)
            .map_err(|e| format!("message {number} can't be sent: {e}"))?;
    }
    let elapsed_ns = now_ns() - begin;
    say(&Report::Sent {
        messages,
        elapsed_ns,
    });
    Ok(())
}

fn wait_until(due: u64, mode: Mode) {
    loop {
        let left = due.saturating_sub(now_ns());
        if left == 0 {
            return;
        }
        match mode {
            Mode::Blocking => std::thread::sleep(Duration::from_nanos(left)),
            Mode::Adaptive if left > WAKE_EARLY_NS => {
                std::thread::sleep(Duration::from_nanos(left - WAKE_EARLY_NS));
            }
            Mode::Adaptive | Mode::Busy => std::hint::spin_loop(),
        }
    }
}

pub fn echo(to: &str, mode: Mode) -> Done {
    let client = connect()?;
    let offers = client
        .accept_lanes()
        .map_err(|e| format!("can't take lanes: {e}"))?;
    say(&Report::Ready);
    let mut from = take_lane(&offers, mode)?;
    let mut back = open_lane(&client, to, mode)?;
    let mut buffer = Vec::new();
    loop {
        match from.recv(&mut buffer, WATCHDOG) {
            Ok(_) => {}
            Err(RecvError::TimedOut) => continue,
            Err(RecvError::Closed(_)) => break,
            Err(e) => return Err(format!("the lane broke: {e}")),
        }
        if back.send(tag(), &buffer, WATCHDOG).is_err() {
            // Whoever bounces has what it wanted.
            break;
        }
    }
    // Its end may be heard of before the report of whoever bounces: they come over two connections.
    say(&Report::Echoed);
    Ok(())
}

pub fn bounce(commands: &Commands, to: &str, duration_ns: u64, size: usize, mode: Mode) -> Done {
    let client = connect()?;
    let offers = client
        .accept_lanes()
        .map_err(|e| format!("can't take lanes: {e}"))?;
    let mut lane = open_lane(&client, to, mode)?;
    let mut back = take_lane(&offers, mode)?;
    say(&Report::Ready);
    commands.expect(GO)?;
    let mut checker = Checker::default();
    let mut latencies = Latencies::new();
    let (mut message, mut buffer) = (vec![0; size.max(HEAD)], Vec::new());
    let begin = now_ns();
    let mut number = 0;
    let mut said = begin;
    loop {
        let sent = now_ns();
        if sent - begin >= duration_ns {
            break;
        }
        if sent - said >= PROGRESS.as_nanos() as u64 {
            said = sent;
            say(&Report::Progress(number));
        }
        fill(&mut message, number, sent);
        lane.send(tag(), &message, WATCHDOG)
            .map_err(|e| format!("message {number} can't be sent: {e}"))?;
        back.recv(&mut buffer, WATCHDOG)
            .map_err(|e| format!("message {number} did not come back: {e}"))?;
        latencies.record(now_ns() - sent);
        checker.take(&buffer);
        number += 1;
    }
    let span = Some((begin, now_ns()));
    say(&Report::Bounced(join(vec![(checker.got, span, latencies)])));
    Ok(())
}
