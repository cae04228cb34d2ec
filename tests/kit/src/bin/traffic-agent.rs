//! An agent that sends at a steady rate and accounts for every message, or receives and counts:
//! what runs in sandboxes while agentd and its broker are restarted (`cargo xtask bench kernel`,
//! row `restart`, and the end-to-end tests).
//!
//! Each message carries its number. The sender goes on until there is a file `stop` in its
//! directory, waits for what is under way, and writes `sent.json`: what the bus took, and what it
//! said is lost. The receiver writes `received.json` at the end of the sender's lane. Taken less
//! received less said to be lost is what was lost in silence. Both note in `notes`, a line each,
//! how far they are.

#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentd_bus::channel::Tag;
use agentd_bus::client::{
    Client, DirectUse, LaneError, LaneOptions, LaneReceiver, LastingError, LastingLane, Requests,
};
use agentd_bus::lane::ring::{RecvError, SettleError};
use agentd_bus::message::Status;
use agentd_testkit::lines::Lines;
use agentd_testkit::peers::until_there;
use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use serde_json::{Value, json};

/// Nothing here waits longer for one message.
const PATIENCE: Duration = Duration::from_secs(60);
/// A request that is not answered by then is lost, and its sender knows.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// Messages between two notes.
const NOTE_EVERY: u64 = 500;
/// How often the sender looks at the clock and for `stop`.
const TICK: Duration = Duration::from_millis(1);
const STOP: &str = "stop";
/// A message: its number, again and again.
const WORDS: usize = 6;

/// Sends numbered messages at a rate, or receives and counts them.
#[derive(Debug, Parser)]
enum Options {
    Send {
        to: String,
        /// Messages a second over a lane that outlives agentd.
        #[arg(long, default_value_t = 0)]
        lane: u64,
        /// Requests a second, one at a time.
        #[arg(long, default_value_t = 0)]
        requests: u64,
    },
    Receive {
        /// Answers requests for ever, and takes no lanes: where the policy has no shared memory.
        #[arg(long)]
        no_lanes: bool,
    },
}

/// Notes how far it is, now and then.
fn count(notes: &Lines, what: &str, number: u64) {
    if number.is_multiple_of(NOTE_EVERY) {
        notes.say(&format!("{what} {number}"));
    }
}

fn main() -> ExitCode {
    let notes = match Lines::create("notes") {
        Ok(notes) => notes,
        Err(error) => {
            eprintln!("traffic-agent: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = match Options::parse() {
        Options::Send { to, lane, requests } => send(&to, lane, requests, &notes),
        Options::Receive { no_lanes } => receive(no_lanes, &notes),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            notes.say(&format!("error: {error:#}"));
            eprintln!("traffic-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// There at once and whole, or not there.
fn write(name: &str, report: &Value) -> anyhow::Result<()> {
    let new = format!("{name}.new");
    std::fs::write(&new, report.to_string()).with_context(|| new.clone())?;
    std::fs::rename(&new, name).with_context(|| name.to_owned())
}

fn message(number: u64) -> [u8; 8 * WORDS] {
    let mut bytes = [0; 8 * WORDS];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn number(bytes: &[u8]) -> anyhow::Result<u64> {
    let first = bytes.first_chunk().context("an empty message")?;
    let number = u64::from_le_bytes(*first);
    ensure!(
        bytes == message(number),
        "message {number} is torn: {bytes:?}"
    );
    Ok(number)
}

/// When how many messages are due.
struct Pace {
    begun: Instant,
    rate: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self {
            begun: Instant::now(),
            rate,
        }
    }

    /// Waits until more than `sent` are due, and says how many are; `None` once it is to stop.
    fn due(&mut self, sent: u64) -> Option<u64> {
        loop {
            if Path::new(STOP).exists() {
                return None;
            }
            let due = (self.begun.elapsed().as_secs_f64() * self.rate as f64) as u64;
            if due > sent {
                return Some(due);
            }
            std::thread::sleep(TICK);
        }
    }
}

fn send(to: &str, lane: u64, requests: u64, notes: &Lines) -> anyhow::Result<()> {
    ensure!(lane + requests > 0, "nothing is to be sent");
    let client = Client::connect()?;
    // Where there is a direct path, requests are to be on it.
    client.use_direct(DirectUse::Always);
    let open = || {
        until_there(&client, || {
            match client.open_lasting_lane(to, LaneOptions::default()) {
                Err(LaneError::Client(error)) => Err(error),
                other => Ok(other),
            }
        })
    };
    let mut opened = match lane {
        0 => None,
        _ => Some(open()??),
    };
    let begun = Instant::now();
    let asking = (requests > 0).then(|| {
        let (client, to, notes) = (client.clone(), to.to_owned(), notes.clone());
        std::thread::spawn(move || ask(&client, &to, requests, &notes))
    });
    let mut report = json!({});
    if let Some(opened) = &mut opened {
        report["lane"] = stream(opened, lane, notes)?;
    }
    if let Some(asking) = asking {
        let asked = asking.join();
        report["requests"] = asked.unwrap_or_else(|_| bail!("the asking thread panicked"))?;
    }
    // Which ends the receiver.
    drop(opened);
    report["seconds"] = begun.elapsed().as_secs_f64().into();
    write("sent.json", &report)
}

/// Streams until it is to stop: what the lane took, and what it said is lost.
fn stream(lane: &mut LastingLane, rate: u64, notes: &Lines) -> anyhow::Result<Value> {
    let mut pace = Pace::new(rate);
    let (mut taken, mut longest) = (0, Duration::ZERO);
    while let Some(due) = pace.due(taken) {
        while taken < due {
            let begun = Instant::now();
            carry_on(lane, |lane| {
                lane.send(Tag::default(), &message(taken), PATIENCE)
            })
            .with_context(|| format!("message {taken}"))?;
            longest = longest.max(begun.elapsed());
            taken += 1;
            count(notes, "lane", taken);
        }
    }
    carry_on(lane, |lane| lane.flush(PATIENCE)).context("at the end")?;
    Ok(json!({
        "taken": taken, "said_lost": lane.given_up(), "repeated": lane.repeated(),
        "longest_ms": longest.as_secs_f64() * 1000.0,
    }))
}

/// Until it is done, over lanes that can't say what became of their messages: those are counted as said to be lost.
fn carry_on(
    lane: &mut LastingLane,
    mut call: impl FnMut(&mut LastingLane) -> Result<(), LastingError>,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call(lane) {
            Ok(()) => return Ok(()),
            Err(LastingError::Settle(SettleError::Unknown { .. })) => {
                lane.give_up(PATIENCE)?;
            }
            // The bus is between two agentds.
            Err(LastingError::Open(_)) if Instant::now() < deadline => std::thread::sleep(TICK),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Asks until it is to stop: how many were answered, and of how many it was told that they are lost.
fn ask(client: &Client, to: &str, rate: u64, notes: &Lines) -> anyhow::Result<Value> {
    until_there(client, || {
        client.request(to, "count", &message(0), REQUEST_PATIENCE)
    })?;
    let mut pace = Pace::new(rate);
    let (mut taken, mut answered, mut said_lost) = (0, 0, 0);
    let (mut longest, mut why) = (Duration::ZERO, String::new());
    while pace.due(taken).is_some() {
        let begun = Instant::now();
        match client.request(to, "count", &message(taken), REQUEST_PATIENCE) {
            Ok(reply) => {
                ensure!(
                    number(&reply.result)? == taken,
                    "request {taken} has another's answer"
                );
                answered += 1;
            }
            Err(error) => {
                said_lost += 1;
                why = error.to_string();
            }
        }
        longest = longest.max(begun.elapsed());
        taken += 1;
        count(notes, "requests", taken);
    }
    Ok(json!({
        "taken": taken, "answered": answered, "said_lost": said_lost, "last_loss": why,
        "longest_ms": longest.as_secs_f64() * 1000.0,
    }))
}

#[derive(Default)]
struct Received {
    distinct: u64,
    twice: u64,
    /// The number after the last one.
    next: u64,
}

impl Received {
    fn count(&mut self, number: u64) {
        if number < self.next {
            self.twice += 1;
        } else {
            self.distinct += 1;
            self.next = number + 1;
        }
    }
}

/// Answers each request with what it carries, for ever.
fn answer(requests: &Requests, asked: &AtomicU64, notes: &Lines) -> ! {
    loop {
        let why = requests.answer_all(|incoming| {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok(incoming.params.clone())
        });
        // agentd is between two lives, or the requester did not wait.
        if !why.is_retryable() {
            notes.say(&format!("requests: {why}"));
        }
    }
}

fn receive(no_lanes: bool, notes: &Lines) -> anyhow::Result<()> {
    let client = Client::connect()?;
    let requests = client.serve(64)?;
    let asked = Arc::new(AtomicU64::new(0));
    if no_lanes {
        answer(&requests, &asked, notes);
    }
    let offers = client.accept_lanes()?;
    let (counter, of_requests) = (Arc::clone(&asked), notes.clone());
    std::thread::spawn(move || answer(&requests, &counter, &of_requests));
    notes.say("receiving");
    let mut received = Received::default();
    loop {
        let Some(offer) = offers.next(PATIENCE)? else {
            continue;
        };
        // Where agentd died in between, the sender offers it again.
        let Ok(lane) = offer.accept() else { continue };
        let status = drain(lane, &mut received, notes)?;
        if status == Status::REPLACED {
            notes.say("replaced");
            continue;
        }
        return write(
            "received.json",
            &json!({
                "lane": { "distinct": received.distinct, "twice": received.twice },
                "requests": asked.load(Ordering::Relaxed),
                "end": status.to_string(),
            }),
        );
    }
}

fn drain(mut lane: LaneReceiver, received: &mut Received, notes: &Lines) -> anyhow::Result<Status> {
    let mut bytes = Vec::new();
    notes.say("lane open");
    loop {
        match lane.recv(&mut bytes, PATIENCE) {
            Ok(_) => {
                received.count(number(&bytes)?);
                count(notes, "lane", received.next);
            }
            Err(RecvError::Closed(status)) => return Ok(status),
            Err(error) => bail!("lane after {}: {error}", received.next),
        }
    }
}
