//! `router`: the router beside brokers, and with every pattern mixed. docs/benchmarks.md says what each row is.
//!
//! One thread; every measurement is processes forked from it, beside one process that is the bus (`--serve`) or a broker.
//! `cargo xtask bench router` builds this program and reads its JSON.

mod mix;
mod queue;
mod server;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use bench_kit::measure::{Sample, Shape, Task, sample};
use bench_kit::report::{Limit, Report};
use bench_kit::{Transport, Waiting};
use bench_peers::{nats, redis, streams};
use clap::Parser;

/// Agents of the mixed row.
const AGENTS: usize = 100;
/// A first sample has this many messages, the next eight times as many, until it takes a part of the whole.
const PILOT: u64 = 2000;

/// The router beside brokers, and with every pattern mixed.
#[derive(Debug, Parser)]
struct Args {
    /// Print the samples as one JSON object
    #[arg(long)]
    json: bool,
    /// Measure nothing; name the peers that need a server of their own, one a line
    #[arg(long)]
    peers: bool,
    /// Fewer and shorter rounds: for a first look, not for publishing
    #[arg(long)]
    quick: bool,
    /// Measure only these rows: router_queue, router_mix
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// Rounds of each row
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Length of one sample
    #[arg(long, value_name = "MS")]
    sample_ms: Option<u64>,
    /// Be the bus: agents' sockets below this directory
    #[arg(long, value_name = "DIRECTORY", hide = true)]
    serve: Option<PathBuf>,
    #[arg(long, hide = true, default_value_t = 2)]
    agents: usize,
}

/// One way through a broker.
struct Contender {
    name: &'static str,
    take: fn(&Task) -> Result<Sample>,
    messages: u64,
    rates: Vec<f64>,
    failed: Option<String>,
}

impl Contender {
    fn of<T: Transport>(name: &'static str, server: Option<&anyhow::Error>) -> Self {
        Self {
            name,
            take: sample::<T>,
            messages: PILOT,
            rates: Vec::new(),
            failed: server.map(|error| format!("{error:#}")),
        }
    }

    fn task(&self) -> Task {
        Task {
            shape: Shape::Throughput,
            waiting: Waiting::Blocking,
            bytes: 64,
            messages: self.messages,
        }
    }

    /// Finds out how many messages a sample has.
    fn pilot(&mut self, length: Duration) {
        while self.failed.is_none() {
            match (self.take)(&self.task()) {
                Ok(sample) => {
                    let wanted = (sample.rate * length.as_secs_f64()) as u64;
                    if self.messages >= wanted / 8 {
                        self.messages = wanted.max(PILOT);
                        return;
                    }
                    self.messages *= 8;
                }
                Err(error) => self.failed = Some(format!("{error:#}")),
            }
        }
    }

    fn measure(&mut self) {
        if self.failed.is_none() {
            match (self.take)(&self.task()) {
                Ok(sample) => self.rates.push(sample.rate),
                Err(error) => self.failed = Some(format!("{error:#}")),
            }
        }
    }
}

#[expect(clippy::print_stdout, reason = "the report is this program's data")]
fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(directory) = &args.serve {
        return server::serve(directory, args.agents);
    }
    let wants = |row: &str| args.only.is_empty() || args.only.iter().any(|only| only == row);
    if args.peers {
        if wants("router_queue") {
            println!("nats\nredis");
        }
        return Ok(());
    }
    let (rounds, length) = if args.quick { (5, 100) } else { (11, 300) };
    let rounds = args.rounds.unwrap_or(rounds).max(1);
    let length = Duration::from_millis(args.sample_ms.unwrap_or(length));
    let mut report = Report::default();
    if wants("router_queue") {
        eprintln!("router_queue");
        measure_queue(&mut report, rounds, length)?;
    }
    if wants("router_mix") {
        eprintln!("router_mix");
        mix::measure(&mut report, AGENTS, rounds.div_ceil(2), length * 4);
    }
    print!("{}", report.text(args.json)?);
    Ok(())
}

fn measure_queue(report: &mut Report, rounds: usize, length: Duration) -> Result<()> {
    let bus = server::Server::start(2)?;
    queue::set_sockets([bus.socket(0), bus.socket(1)]);
    let (nats, redis) = (nats::Server::start(), redis::Server::start());
    let mut contenders = [
        Contender::of::<queue::Queue>("router", None),
        Contender::of::<nats::Nats>("nats", nats.as_ref().err()),
        Contender::of::<streams::Streams>("redis_streams", redis.as_ref().err()),
    ];
    for contender in &mut contenders {
        contender.pilot(length);
    }
    for round in 0..rounds {
        if round % 2 == 0 {
            contenders.iter_mut().for_each(Contender::measure);
        } else {
            contenders.iter_mut().rev().for_each(Contender::measure);
        }
    }
    let [ours, peers @ ..] = &contenders;
    for (peer, limit) in peers.iter().zip([5.0, 10.0]) {
        let id = match peer.name {
            "nats" => "router_queue".to_owned(),
            name => format!("router_queue.{name}"),
        };
        match (&ours.failed, &peer.failed) {
            (None, None) => {
                let pairs = ours.rates.iter().zip(&peer.rates);
                let ratios = pairs.map(|(ours, peer)| ours / peer).collect();
                report.promised(id, ratios, Limit::AtLeast(limit));
            }
            (Some(why), _) | (None, Some(why)) => report.skip(id, why),
        }
    }
    for one in contenders {
        let id = format!("queue64.{}", one.name);
        match one.failed {
            None => report.figure(id, "msg/s", one.rates),
            Some(why) => report.skip(id, why),
        }
    }
    Ok(())
}
