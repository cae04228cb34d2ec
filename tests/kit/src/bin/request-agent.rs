//! An agent that asks another, or answers: what the end-to-end tests of the direct path run in
//! sandboxes.
//!
//! Every request carries a number that is used once. Whoever answers says so in `events` if it gets
//! one twice; whoever asks does what is written to the FIFO `ask`, and writes into the FIFO
//! `answer` what came of it, a line each.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agentd_bus::client::{Client, ClientError, DirectUse, Incoming};
use anyhow::{Context as _, bail, ensure};
use clap::Parser;

/// Nothing here waits longer for one answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of the answer that no frame of the direct path takes.
const LARGE: usize = 100_000;
/// Threads that ask at a time.
const ASKERS: usize = 4;

/// Asks another agent, or answers.
#[derive(Debug, Parser)]
enum Options {
    /// Answers whatever is asked, until it is killed.
    Serve,
    /// Does what the FIFO says.
    Ask { to: String },
}

fn main() -> ExitCode {
    let outcome = match Options::parse() {
        Options::Serve => serve(),
        Options::Ask { to } => obey(&to),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("request-agent: {error:#}");
            note(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn note(line: &str) {
    let events = File::options().create(true).append(true).open("events");
    if let Err(error) = events.and_then(|mut events| writeln!(events, "{line}")) {
        eprintln!("{line}: {error}");
    }
}

/// The number of a request is its first eight bytes.
fn number(payload: &[u8]) -> anyhow::Result<u64> {
    let (number, _) = payload.split_first_chunk().context("a number")?;
    Ok(u64::from_le_bytes(*number))
}

fn serve() -> anyhow::Result<()> {
    let bus = Client::connect()?;
    let requests = bus.serve(64)?;
    note("serving");
    let mut seen = HashSet::new();
    let mut held = Vec::new();
    loop {
        let Some(incoming) = requests.next(Duration::MAX)? else {
            continue;
        };
        if !seen.insert((incoming.from, number(&incoming.params)?)) {
            note("error: a request came twice");
        }
        answer(incoming, &mut held)?;
    }
}

fn answer(incoming: Incoming, held: &mut Vec<Incoming>) -> anyhow::Result<()> {
    let answered = match incoming.method.as_str() {
        "echo" => {
            let params = incoming.params.clone();
            incoming.respond(Ok(&params))
        }
        "large" => incoming.respond(Ok(&[7; LARGE])),
        "fail" => incoming.respond(Err("as it was asked to")),
        "hold" => {
            note("holding");
            held.push(incoming);
            return Ok(());
        }
        other => bail!("what is {other}?"),
    };
    match answered {
        // Whoever asked was told when the connection went.
        Ok(()) | Err(ClientError::Closed { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Asks under a new number.
struct Asker {
    bus: Client,
    to: String,
    last: AtomicU64,
}

impl Asker {
    fn ask(&self, method: &str, bytes: usize, patience: Duration) -> Result<Vec<u8>, ClientError> {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let mut payload = number.to_le_bytes().to_vec();
        payload.resize(bytes.max(8), number as u8);
        let reply = self.bus.request(&self.to, method, &payload, patience)?;
        if method == "echo" {
            assert!(reply.result == payload, "the answer to another request");
        }
        Ok(reply.result)
    }
}

fn obey(to: &str) -> anyhow::Result<()> {
    let asker = Asker {
        bus: Client::connect()?,
        to: to.to_owned(),
        last: AtomicU64::new(0),
    };
    let ask = BufReader::new(File::open("ask")?);
    let mut answer = File::options().write(true).open("answer")?;
    for line in ask.lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let said = match words[..] {
            ["use", "always"] => {
                asker.bus.use_direct(DirectUse::Always);
                "ok".to_owned()
            }
            ["echo", count, bytes] => {
                let (count, bytes) = (count.parse()?, bytes.parse()?);
                let answers = (0..count).map(|_| asker.ask("echo", bytes, PATIENCE));
                told(answers.collect::<Result<Vec<_>, _>>(), |all| all.len())
            }
            ["large"] => told(asker.ask("large", 8, PATIENCE), |answer| {
                usize::from(answer.iter().all(|byte| *byte == 7)) * answer.len()
            }),
            ["fail"] => told(asker.ask("fail", 8, PATIENCE), |answer| answer.len()),
            ["hold", ms] => {
                let patience = Duration::from_millis(ms.parse()?);
                told(asker.ask("hold", 8, patience), |answer| answer.len())
            }
            ["flood"] => {
                writeln!(answer, "flooding")?;
                flood(&asker)?
            }
            _ => bail!("what is {line:?}?"),
        };
        writeln!(answer, "{said}")?;
    }
    Ok(())
}

fn told<T>(outcome: Result<T, ClientError>, shown: impl Fn(&T) -> usize) -> String {
    match outcome {
        Ok(value) => format!("ok {}", shown(&value)),
        Err(error) => error.to_string(),
    }
}

/// Asks without a rest until somebody opens the FIFO `enough`; what became of all the requests.
fn flood(asker: &Asker) -> anyhow::Result<String> {
    let enough = AtomicBool::new(false);
    let [asked, answered, reported] = [const { AtomicU64::new(0) }; 3];
    let reasons = Mutex::new(HashSet::new());
    std::thread::scope(|scope| {
        for _ in 0..ASKERS {
            scope.spawn(|| {
                while !enough.load(Ordering::Relaxed) {
                    asked.fetch_add(1, Ordering::Relaxed);
                    match asker.ask("echo", 64, Duration::from_secs(5)) {
                        Ok(_) => answered.fetch_add(1, Ordering::Relaxed),
                        Err(error) => {
                            let mut reasons =
                                reasons.lock().unwrap_or_else(PoisonError::into_inner);
                            reasons.insert(error.to_string());
                            reported.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                }
            });
        }
        let opened = File::open("enough");
        enough.store(true, Ordering::Relaxed);
        opened.map(drop)
    })?;
    let [asked, answered, reported] = [asked, answered, reported].map(AtomicU64::into_inner);
    ensure!(
        asked == answered + reported,
        "{asked} {answered} {reported}"
    );
    let reasons = reasons.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(format!(
        "{answered} answered, {reported} reported: {reasons:?}"
    ))
}
