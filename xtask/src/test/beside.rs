//! Tiers that run beside the others: builds and machines of their own, which wait for nothing and
//! touch nothing of the rest.
//!
//! Most tiers keep less than all processors busy: they wait for daemons, compile one large crate,
//! fetch. What is left goes to these, one after the other, each a process of its own
//! (`xtask test TIER --outcome FILE`) that is ended with this one. What one of them prints is kept
//! in a file and shown whole at its end, so that it stands together.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::fuzz::Search;
use super::tier::{Outcome, Tier};
use crate::child::{Child, outcome};

/// In this order: what compiles first, so that machines run when little is compiled.
pub const TIERS: [Tier; 3] = [Tier::Model, Tier::Fuzz, Tier::Vm];

/// A tier that takes longer hangs: its own parts have watchdogs of their own.
const WATCHDOG: Duration = Duration::from_secs(2 * 60 * 60);

/// What came of one of them.
#[derive(Debug)]
pub struct Ended {
    pub tier: Tier,
    pub outcome: Outcome,
    pub took: Duration,
}

/// The tiers that are under way. Dropping it waits for their end, which a signal to this process brings at once.
#[derive(Debug)]
pub struct Beside(Option<JoinHandle<Vec<Ended>>>);

impl Beside {
    /// Starts `tiers`, which are some of [`TIERS`]. `program` is this one, where nobody replaces it.
    pub fn start(program: PathBuf, tiers: Vec<Tier>, scratch: &Path, search: Search) -> Self {
        let scratch = scratch.to_owned();
        let work = move || {
            let mut ended = Vec::new();
            for tier in tiers {
                let began = Instant::now();
                let ran = run(&program, tier, &scratch, search);
                let outcome = ran.unwrap_or_else(|error| Outcome::failed(format!("{error:#}")));
                let took = began.elapsed();
                ended.push(Ended {
                    tier,
                    outcome,
                    took,
                });
            }
            ended
        };
        Self(Some(std::thread::spawn(work)))
    }

    /// Waits for the last of them.
    pub fn wait(mut self) -> Vec<Ended> {
        match self.0.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Vec::new(),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // A panic has said what it was about.
            drop(thread.join());
        }
    }
}

fn run(program: &Path, tier: Tier, scratch: &Path, search: Search) -> Result<Outcome> {
    let directory = scratch.join(format!("beside-{}", tier.name()));
    std::fs::create_dir(&directory).context("make a directory for a tier")?;
    let (said, told) = (directory.join("said"), directory.join("outcome"));
    let output = File::create(&said).context("make a file for a tier's output")?;
    let copy = output.try_clone().context("copy a descriptor")?;
    let mut command = Command::new(program);
    command.args(["test", tier.name(), "--outcome"]).arg(&told);
    if search != Search::SMOKE {
        command.arg(format!("--fuzz-seconds={}", search.seconds));
    }
    command.stdin(Stdio::null()).stdout(output).stderr(copy);
    eprintln!("== tier {} begins beside the others", tier.name());
    let mut child = Child::start(tier.name(), &mut command)?;
    let ended = child.wait(WATCHDOG);
    drop(child);
    let text = std::fs::read(&said).context("read a tier's output")?;
    eprint!(
        "== tier {} (beside the others)\n{}",
        tier.name(),
        String::from_utf8_lossy(&text)
    );
    match ended? {
        None => Ok(Outcome::failed(format!("did not end within {WATCHDOG:?}"))),
        Some(status) => match std::fs::read(&told) {
            Ok(told) => serde_json::from_slice(&told).context("read what a tier came to"),
            Err(_) => Ok(Outcome::failed(format!(
                "ended without a report: {}",
                outcome(status)
            ))),
        },
    }
}
