//! An agent that streams over a lane and a log, or reads such streams: what the end-to-end tests run in sandboxes.
//!
//! Every message carries its number. What happens is written to files in the current directory, a line each, so
//! that a test can wait for it from outside: `sent` (how many have been sent for certain), `events` (what began
//! and ended, and why). A reader exits with an error at the first number that is missing, doubled or torn.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use agentd_bus::channel::Tag;
use agentd_bus::client::{
    Client, FollowOptions, LaneError, LaneOptions, LaneReceiver, LogOptions, LogReader,
};
use agentd_bus::lane::ring::{RecvError, SendError};
use agentd_bus::log::{Delivery, RecvError as LogRecvError, SendError as LogSendError, Start};
use agentd_bus::message::Status;
use agentd_testkit::lines::Lines;
use agentd_testkit::peers::until_there;
use anyhow::{Context as _, bail, ensure};
use clap::Parser;

/// Nothing here waits longer for one message.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages between two notes of how many were sent.
const NOTE_EVERY: u64 = 1000;
const TOPIC: &str = "ticks";

/// Streams numbered messages over shared memory, or reads them.
#[derive(Debug, Parser)]
enum Options {
    /// Streams over a lane to an agent, for ever, again after a restart of agentd.
    Lane { to: String },
    /// Streams over a lane that outlives agentd, for ever.
    Lasting { to: String },
    /// Streams over a log, for ever, again after a restart of agentd.
    Log,
    /// Streams over a log that outlives agentd, for ever, once so many read it.
    LastingLog { readers: usize },
    /// Reads every lane and log that there is.
    Read {
        /// What comes on the next lane or log follows on the last one without a gap, and nobody asks where that was.
        #[arg(long)]
        lasting: bool,
    },
    /// Says what of lanes, logs and the socket it is given to an agent, and ends.
    Try { to: String },
}

fn main() -> ExitCode {
    let outcome = match Options::parse() {
        Options::Lane { to } => stream_lane(&to),
        Options::Log => stream_log(),
        Options::LastingLog { readers } => stream_lasting_log(readers),
        Options::Lasting { to } => stream_lasting(&to),
        Options::Read { lasting } => read(lasting),
        Options::Try { to } => attempt(&to),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Ok(events) = Lines::create("events") {
                events.say(&format!("error: {error:#}"));
            }
            eprintln!("channel-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A payload of a size that takes one to a few slots, all of which says which message it is.
fn payload(number: u64, out: &mut Vec<u8>) {
    out.clear();
    for _ in 0..1 + number % 16 {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

fn check(number: u64, bytes: &[u8]) -> anyhow::Result<()> {
    let mut expected = Vec::new();
    payload(number, &mut expected);
    ensure!(
        bytes == expected,
        "message {number} is another or torn: {bytes:?}"
    );
    Ok(())
}

/// Opens a lane, streams, and after a restart of agentd asks the reader from which message on it wants the next one.
fn stream_lane(to: &str) -> anyhow::Result<()> {
    let (sent, events) = (Lines::create("sent")?, Lines::create("events")?);
    let client = Client::connect()?;
    let mut number = 0_u64;
    let mut bytes = Vec::new();
    loop {
        let mut lane = until_there(&client, || {
            match client.open_lane(to, LaneOptions::default()) {
                Err(LaneError::Client(error)) => Err(error),
                other => Ok(other),
            }
        })??;
        events.say("open");
        let closed = loop {
            payload(number, &mut bytes);
            match lane.send(Tag::default(), &bytes, PATIENCE) {
                Ok(()) => number += 1,
                Err(error) => break error,
            }
            if number.is_multiple_of(NOTE_EVERY) {
                sent.say(&number.to_string());
            }
        };
        events.say(&format!("end after {number}: {closed}"));
        if closed != SendError::Closed(Status::REPLACED) {
            return Ok(());
        }
        let reply = until_there(&client, || client.request(to, "next", b"", PATIENCE))?;
        let next = reply.result.as_slice().try_into().context("a number")?;
        number = u64::from_le_bytes(next);
    }
}

/// Streams as if agentd lived for ever.
fn stream_lasting(to: &str) -> anyhow::Result<()> {
    let (sent, events) = (Lines::create("sent")?, Lines::create("events")?);
    let client = Client::connect()?;
    let mut lane = until_there(&client, || {
        match client.open_lasting_lane(to, LaneOptions::default()) {
            Err(LaneError::Client(error)) => Err(error),
            other => Ok(other),
        }
    })??;
    events.say("open");
    let (mut number, mut id) = (0_u64, lane.now().id());
    let mut bytes = Vec::new();
    loop {
        payload(number, &mut bytes);
        lane.send(Tag::default(), &bytes, PATIENCE)
            .with_context(|| format!("after {number}"))?;
        number += 1;
        if number.is_multiple_of(NOTE_EVERY) {
            sent.say(&number.to_string());
        }
        if lane.now().id() != id || lane.now().ended().is_some() {
            id = lane.now().id();
            events.say(&format!("lane {id}, {} repeated so far", lane.repeated()));
        }
    }
}

fn stream_log() -> anyhow::Result<()> {
    let (sent, events) = (Lines::create("sent")?, Lines::create("events")?);
    let client = Client::connect()?;
    let mut number = 0;
    let mut bytes = Vec::new();
    loop {
        let mut log = client.publish_log(TOPIC, LogOptions::default())?;
        events.say("open");
        while log.readers().next().is_none() {
            log.await_readers(PATIENCE);
        }
        loop {
            payload(number, &mut bytes);
            match log.send(Tag::default(), &bytes, PATIENCE) {
                Ok(()) => number += 1,
                Err(error) => {
                    events.say(&format!("end after {number}: {error}"));
                    if error == LogSendError::Closed(Status::REPLACED) {
                        break;
                    }
                    return Ok(());
                }
            }
            if number.is_multiple_of(NOTE_EVERY) {
                sent.say(&number.to_string());
            }
            if log.readers().next().is_none() {
                events.say("nobody reads");
                while log.readers().next().is_none() {
                    log.await_readers(PATIENCE);
                }
            }
        }
    }
}

/// Streams as if agentd lived for ever.
fn stream_lasting_log(readers: usize) -> anyhow::Result<()> {
    let (sent, events) = (Lines::create("sent")?, Lines::create("events")?);
    let client = Client::connect()?;
    // However long a busy machine takes to bring agentd and the readers back.
    let mut log = client
        .publish_lasting_log(TOPIC, LogOptions::default())?
        .returning_within(PATIENCE);
    events.say("open");
    while log.now().readers().count() < readers {
        log.now().await_readers(PATIENCE);
    }
    let mut bytes = Vec::new();
    for number in 0_u64.. {
        payload(number, &mut bytes);
        log.send(Tag::default(), &bytes, PATIENCE)
            .with_context(|| format!("after {number}"))?;
        ensure!(log.given_up() == 0, "a reader did not come back");
        if (number + 1).is_multiple_of(NOTE_EVERY) {
            sent.say(&(number + 1).to_string());
        }
    }
    Ok(())
}

fn read(lasting: bool) -> anyhow::Result<()> {
    let events = Lines::create("events")?;
    let client = Client::connect()?;
    let offers = client.accept_lanes()?;
    let follow = FollowOptions {
        delivery: Delivery::Reliable,
        start: Start::Head,
        ..FollowOptions::default()
    };
    let mut logs = client.follow_log("#", follow)?;
    events.say("reading");
    let of_logs = events.clone();
    std::thread::spawn(move || {
        let mut due = None;
        loop {
            match logs.next(PATIENCE) {
                Ok(Some(log)) if lasting => {
                    fail_with(&of_logs, read_log(log, &mut due, &of_logs));
                }
                Ok(Some(log)) => {
                    let events = of_logs.clone();
                    std::thread::spawn(move || {
                        fail_with(&events, read_log(log, &mut None, &events));
                    });
                }
                Ok(None) => {}
                Err(error) => return of_logs.say(&format!("no further logs: {error}")),
            }
        }
    });
    let mut number = 0;
    loop {
        let Some(offer) = offers.next(PATIENCE)? else {
            continue;
        };
        let status = read_lane(offer.accept()?, &mut number, &events)?;
        if status == Status::REPLACED && lasting {
            continue;
        }
        if status == Status::REPLACED {
            // The sender wants to know how much of what it had sent has come.
            let requests = client.serve(1)?;
            let asked = requests.next(PATIENCE)?.context("nobody asks on")?;
            asked.respond(Ok(&number.to_le_bytes()))?;
        } else {
            number = 0;
        }
    }
}

fn fail_with(events: &Lines, outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        events.say(&format!("error: {error:#}"));
    }
}

/// Reads to the end, from message `number` on; gives the reason for the end.
fn read_lane(mut lane: LaneReceiver, number: &mut u64, events: &Lines) -> anyhow::Result<Status> {
    let mut bytes = Vec::new();
    events.say("lane open");
    loop {
        match lane.recv(&mut bytes, PATIENCE) {
            Ok(_) => {
                check(*number, &bytes).context("lane")?;
                *number += 1;
                if number.is_multiple_of(NOTE_EVERY) {
                    events.say(&format!("lane {number}"));
                }
            }
            Err(RecvError::Closed(status)) => {
                events.say(&format!("lane end after {number}: {status}"));
                return Ok(status);
            }
            Err(error) => bail!("lane after {number}: {error}"),
        }
    }
}

/// Reads to the end, from message `due` on if that is known.
fn read_log(mut log: LogReader, due: &mut Option<u64>, events: &Lines) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    events.say("log open");
    loop {
        match log.recv(&mut bytes, PATIENCE) {
            Ok(message) => {
                ensure!(message.lost == 0, "log lost {} messages", message.lost);
                let first = bytes.first_chunk().context("an empty message")?;
                let number = u64::from_le_bytes(*first);
                ensure!(
                    due.is_none_or(|due| due == number),
                    "log: {number} after {due:?}"
                );
                check(number, &bytes).context("log")?;
                *due = Some(number + 1);
                if (number + 1).is_multiple_of(NOTE_EVERY) {
                    events.say(&format!("log {}", number + 1));
                }
            }
            Err(LogRecvError::Closed(status)) => {
                let end = due.unwrap_or(0);
                events.say(&format!("log end after {end}: {status}"));
                return Ok(());
            }
            Err(error) => bail!("log after {due:?}: {error}"),
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what became of it is this program's data"
)]
fn attempt(to: &str) -> anyhow::Result<()> {
    let client = Client::connect()?;
    println!("tier: {}", client.tier());
    let say = |what: &str, outcome: Result<(), String>| match outcome {
        Ok(()) => println!("{what}: given"),
        Err(why) => println!("{what}: {why}"),
    };
    let lane = client.open_lane(to, LaneOptions::default());
    say("lane", lane.map(drop).map_err(|error| error.to_string()));
    let log = client.publish_log(TOPIC, LogOptions::default());
    say("log", log.map(drop).map_err(|error| error.to_string()));
    let logs = client.follow_log("#", FollowOptions::default());
    say("follow", logs.map(drop).map_err(|error| error.to_string()));
    let sent = client.send(to, "note", b"over the socket");
    say("socket", sent.map_err(|error| error.to_string()));
    Ok(())
}
