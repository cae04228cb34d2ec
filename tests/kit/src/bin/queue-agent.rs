//! An agent that fills a durable queue, or works it off: what the end-to-end tests of durable queues run in sandboxes.
//!
//! Every message is a number as text. What is known for certain is written to files in the current directory, a line each, before
//! the next step: `tried` and `stored` by the producer, `got`, `acked` and `rejected` by the consumer, `end` by both.
//! Ends when agentd goes, which is no error here.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use agentd_bus::client::{Client, ClientError, ProduceError, Queue};
use agentd_bus::message::QueueSpec;
use anyhow::Context as _;
use clap::Parser;

/// Nothing here waits longer for one message.
const PATIENCE: Duration = Duration::from_secs(120);
/// Messages of one batch.
const BATCH: u64 = 4;
/// Messages in the consumer's hands at a time.
const CREDIT: u32 = 8;

/// Fills a durable queue with numbers, or takes them out.
#[derive(Debug, Parser)]
enum Options {
    /// Counts up from 0, until agentd goes.
    Produce { queue: String },
    /// Acknowledges, until agentd goes.
    Consume {
        queue: String,
        /// Ends behind this number, each settlement confirmed before the next message is looked at.
        #[arg(long)]
        last: Option<u64>,
        /// Makes each multiple of it a dead letter.
        #[arg(long)]
        reject: Option<u64>,
    },
}

/// A file of lines.
struct Lines(File);

impl Lines {
    fn create(name: &str) -> anyhow::Result<Self> {
        let file = File::create(name);
        Ok(Self(file.with_context(|| {
            format!("{name} in the current directory")
        })?))
    }

    fn say(&mut self, line: impl std::fmt::Display) -> anyhow::Result<()> {
        writeln!(self.0, "{line}").context("write a line")
    }
}

fn main() -> ExitCode {
    let outcome = match Options::parse() {
        Options::Produce { queue } => produce(&queue),
        Options::Consume {
            queue,
            last,
            reject,
        } => consume(&queue, last, reject),
    };
    let said = Lines::create("end").and_then(|mut end| match &outcome {
        Ok(why) => end.say(why),
        Err(error) => end.say(format_args!("error: {error:#}")),
    });
    match outcome.and(said) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("queue-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn declare(name: &str) -> Result<Queue, ClientError> {
    let spec = QueueSpec {
        durable: true,
        ..QueueSpec::default()
    };
    Client::connect()?.declare_queue(name, spec)
}

fn produce(name: &str) -> anyhow::Result<&'static str> {
    let (mut tried, mut stored) = (Lines::create("tried")?, Lines::create("stored")?);
    let queue = declare(name)?;
    let mut producer = queue.producer()?;
    for first in (0..).step_by(usize::try_from(BATCH)?) {
        let behind = first + BATCH;
        tried.say(behind)?;
        let mut put = || {
            for number in first..behind {
                producer.push(number.to_string().as_bytes())?;
            }
            producer.flush()
        };
        match put() {
            Ok(()) => stored.say(behind)?,
            Err(ProduceError::Lost { .. }) => return Ok("agentd has gone"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok("there are no more numbers")
}

fn consume(name: &str, last: Option<u64>, reject: Option<u64>) -> anyhow::Result<&'static str> {
    let (mut got, mut acked) = (Lines::create("got")?, Lines::create("acked")?);
    let mut rejected = Lines::create("rejected")?;
    let mut work = declare(name)?.consume(CREDIT)?;
    loop {
        let Some(delivery) = work.next(PATIENCE)? else {
            return Ok("nothing came");
        };
        let number: u64 = std::str::from_utf8(delivery.data())?.parse()?;
        got.say(number)?;
        if reject.is_some_and(|every| number.is_multiple_of(every)) {
            delivery.reject()?;
            rejected.say(number)?;
        } else if last.is_none() {
            delivery.ack()?;
            acked.say(number)?;
        } else {
            // Confirmed behind every rejection before it: a queue's settlements are stored in order.
            let settled = delivery.ack_confirmed()?;
            anyhow::ensure!(settled, "the acknowledgement of {number} came too late");
            acked.say(number)?;
        }
        if last == Some(number) {
            return Ok("that was the last");
        }
    }
}
