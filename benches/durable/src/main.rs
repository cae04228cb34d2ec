//! `cargo xtask bench durable`: what it costs to put messages on the disk before they are
//! acknowledged.
//!
//! Each contender enqueues batches of 64 messages of 64 bytes and waits for each batch's
//! acknowledgement before it sends the next. They take turns, round by round, on the same file
//! system; the first round is dropped. A promised row is a ratio of two samples of one round. What
//! is compared with what, and why, is in docs/benchmarks.md.

mod bare;
mod jetstream;
mod ours;
mod sqlite;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;

use bench_kit::report::{Limit, Report};

/// Messages of one batch, and bytes of one message.
pub const BATCH: usize = 64;
pub const MESSAGE: usize = 64;
/// Bytes that a batch takes in our log: what the bare log writes too.
pub const BATCH_BYTES: usize = BATCH * (32 + MESSAGE);

#[derive(Debug, Parser)]
struct Args {
    /// Print the samples as one JSON object
    #[arg(long)]
    json: bool,
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
    /// Only these contenders, by name; ours is always one
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Print the peers that would be compared with, one a line
    #[arg(long)]
    peers: bool,
    /// Where to write; a directory on a real disk
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Somebody who makes messages durable.
pub trait Contender {
    /// Enqueues `batches` batches, each acknowledged before the next; messages per second.
    fn enqueue(&mut self, batches: usize) -> Result<f64>;
}

/// How it is called, how many batches of a round it gets, and how it is started on a directory of its own.
struct Entry {
    id: &'static str,
    batches: usize,
    start: fn(&Path) -> Result<Box<dyn Contender>>,
}

static ENTRIES: [Entry; 9] = [
    Entry {
        id: "segment",
        batches: 400,
        start: ours::segment,
    },
    Entry {
        id: "bare_log",
        batches: 400,
        start: bare::preallocated,
    },
    Entry {
        id: "sqlite_full",
        batches: 400,
        start: sqlite::start,
    },
    Entry {
        id: "jetstream_sync_always",
        batches: 10,
        start: jetstream::start,
    },
    Entry {
        id: "segment_without_io_uring",
        batches: 400,
        start: ours::without_ring,
    },
    Entry {
        id: "record",
        batches: 200,
        start: ours::record,
    },
    Entry {
        id: "bare_log_direct",
        batches: 400,
        start: bare::direct,
    },
    Entry {
        id: "bare_log_growing",
        batches: 200,
        start: bare::growing,
    },
    Entry {
        id: "segment_16_producers",
        batches: 800,
        start: ours::sixteen,
    },
];

/// The promised ratios: ours to whom, at least.
const PROMISES: [(&str, &str, f64); 3] = [
    ("durable_bare_log", "bare_log", 0.9),
    ("durable_sqlite_full", "sqlite_full", 1.0),
    ("durable_jetstream", "jetstream_sync_always", 50.0),
];

#[expect(clippy::print_stdout, reason = "the samples are its data")]
fn main() -> Result<()> {
    let args = Args::parse();
    if args.peers {
        println!("nats");
        return Ok(());
    }
    let program = std::env::current_exe().context("find this program")?;
    let above = program.parent().context("a program lies in a directory")?;
    let scratch = args.directory.as_deref().unwrap_or(above);
    let scratch = scratch.join(format!("bench-durable-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
    let measured = measure(&scratch, if args.quick { 3 } else { 15 }, &args.only);
    std::fs::remove_dir_all(&scratch).with_context(|| format!("clear {}", scratch.display()))?;
    print!("{}", measured?.text(args.json)?);
    Ok(())
}

fn measure(scratch: &Path, rounds: usize, only: &[String]) -> Result<Report> {
    let mut report = Report::default();
    let mut running = Vec::new();
    let wanted = |entry: &&Entry| {
        only.is_empty() || entry.id == "segment" || only.iter().any(|it| it == entry.id)
    };
    for entry in ENTRIES.iter().filter(wanted) {
        let directory = scratch.join(entry.id);
        std::fs::create_dir_all(&directory)?;
        match (entry.start)(&directory) {
            Ok(contender) => running.push((entry, contender, Vec::new())),
            Err(why) => report.skip(entry.id, why),
        }
    }
    // One more: the first is dropped.
    for round in 0..=rounds {
        // Every other round backwards: nobody always has the same one before it.
        running.reverse();
        for (entry, contender, samples) in &mut running {
            let rate = contender
                .enqueue(entry.batches)
                .with_context(|| entry.id.to_owned())?;
            if round > 0 {
                samples.push(rate);
            }
        }
    }
    for (id, peer, limit) in PROMISES {
        let of = |id: &str| running.iter().find(|it| it.0.id == id).map(|it| &it.2);
        match (of("segment"), of(peer)) {
            (Some(ours), Some(theirs)) => {
                let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
                report.promised(id, ratios.collect(), Limit::AtLeast(limit));
            }
            _ => report.skip(id, format!("{peer} did not run")),
        }
    }
    running.sort_by_key(|(entry, ..)| ENTRIES.iter().position(|it| it.id == entry.id));
    for (entry, _, samples) in running {
        report.figure(entry.id, "msg/s", samples);
    }
    ours::further(scratch, &mut report, rounds)?;
    Ok(report)
}

/// Messages per second of `messages` in what `work` takes.
pub fn rate(messages: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let began = Instant::now();
    work()?;
    Ok(messages as f64 / began.elapsed().as_secs_f64())
}

/// Bytes that nothing makes smaller, other ones for each `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..len).map(|_| next()).collect()
}
