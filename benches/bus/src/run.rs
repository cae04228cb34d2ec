//! Takes the samples: each group's cells in turn, round after round, in reversed order every other round.
//!
//! How many messages a sample has follows from a pilot run, so that a slow contender takes no longer than a fast one.
//! A cell that fails is out, and says why in the report.

use std::time::Duration;

use anyhow::{Result, bail};
use bench_kit::extra;
use bench_kit::measure::{Sample, Shape, Task, sample};

use crate::cells::{Cell, Figure, Who, Work};
use crate::floor::{inline, memcpy, pingpong, ring};
use crate::ours::{arena, lane, log};
use crate::peers::{nats, redis, unix};

/// How much to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: usize,
    /// Of one sample.
    pub length: Duration,
}

/// A cell and what was found.
#[derive(Debug)]
pub struct Measured {
    pub cell: Cell,
    messages: u64,
    pub samples: Vec<Sample>,
    pub failed: Option<String>,
}

/// A first sample has this many messages, the next eight times as many, until it takes a part of the whole.
const PILOT: u64 = 1000;

/// The servers that some of the cells need.
#[derive(Debug)]
struct Servers {
    nats: Option<Result<nats::Server>>,
    redis: Option<Result<redis::Server>>,
}

impl Servers {
    fn start(cells: &[Cell]) -> Self {
        let needed = |who| cells.iter().any(|cell| cell.who == who);
        Self {
            nats: needed(Who::Nats).then(nats::Server::start),
            redis: needed(Who::Redis).then(redis::Server::start),
        }
    }

    /// Why a server that `cell` needs is not there.
    fn missing(&self, cell: &Cell) -> Option<String> {
        match (cell.who, &self.nats, &self.redis) {
            (Who::Nats, Some(Err(error)), _) | (Who::Redis, _, Some(Err(error))) => {
                Some(format!("{error:#}"))
            }
            _ => None,
        }
    }
}

/// Measures the cells of one group.
pub fn group(cells: &[Cell], effort: Effort) -> Vec<Measured> {
    let servers = Servers::start(cells);
    let mut all: Vec<Measured> = cells
        .iter()
        .map(|cell| match servers.missing(cell) {
            None => pilot(*cell, effort),
            Some(why) => Measured::failed(*cell, why),
        })
        .collect();
    for round in 0..effort.rounds {
        let mut order: Vec<&mut Measured> = all.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for measured in order {
            if measured.failed.is_some() {
                continue;
            }
            match take(&measured.cell, measured.messages) {
                Ok(sample) => measured.samples.push(sample),
                Err(error) => measured.failed = Some(format!("{error:#}")),
            }
        }
    }
    all
}

/// Finds out how many messages a sample of this cell has.
fn pilot(cell: Cell, effort: Effort) -> Measured {
    let seconds = effort.length.as_secs_f64();
    let mut measured = Measured {
        cell,
        messages: PILOT,
        samples: Vec::new(),
        failed: None,
    };
    if let Work::OpenLoop(rate) = cell.work {
        measured.messages = (rate as f64 * seconds) as u64;
        return measured;
    }
    loop {
        match take(&cell, measured.messages) {
            Ok(sample) => {
                let wanted = (sample.rate * seconds) as u64;
                if measured.messages >= wanted / 8 {
                    measured.messages = wanted.max(PILOT / 10);
                    return measured;
                }
                measured.messages *= 8;
            }
            Err(error) => {
                measured.failed = Some(format!("{error:#}"));
                return measured;
            }
        }
    }
}

fn take(cell: &Cell, messages: u64) -> Result<Sample> {
    let task = Task {
        shape: match cell.work {
            Work::RoundTrip => Shape::RoundTrip,
            Work::Throughput | Work::Inline => Shape::Throughput,
            Work::Bulk => Shape::Bulk,
            Work::OpenLoop(rate) => Shape::OpenLoop(rate),
            Work::FanOut(readers, delivery) => return log::fan_out(readers, delivery, messages),
        },
        waiting: cell.waiting,
        bytes: cell.bytes,
        messages,
    };
    match cell.who {
        Who::PingPong | Who::Futex => sample::<pingpong::Line>(&task),
        Who::Bare => sample::<ring::Ring>(&task),
        Who::Spilled => sample::<inline::Ring<inline::Spilled>>(&task),
        Who::Wide => sample::<inline::Ring<inline::Wide>>(&task),
        Who::Lane => sample::<lane::Lane>(&task),
        Who::LaneWide => sample::<lane::WideLane>(&task),
        Who::Seqpacket => sample::<unix::Seqpacket>(&task),
        Who::Stream => sample::<unix::Stream>(&task),
        Who::Pipe => sample::<unix::Pipe>(&task),
        Who::Iceoryx2 | Who::Aeron | Who::Zmq => {
            let program = extra::find(&format!("bus-{}", cell.who.name()))?;
            extra::ask(&program, &task)
        }
        Who::Nats => sample::<nats::Nats>(&task),
        Who::Redis => sample::<redis::Redis>(&task),
        Who::Memcpy => sample::<memcpy::Memcpy>(&task),
        Who::Arena => sample::<arena::Arena>(&task),
        Who::Log => bail!("there is no such measurement"),
    }
}

impl Measured {
    fn failed(cell: Cell, why: String) -> Self {
        Self {
            cell,
            messages: 0,
            samples: Vec::new(),
            failed: Some(why),
        }
    }

    /// One figure of each round.
    pub fn figures(&self, figure: Figure) -> Vec<f64> {
        self.samples
            .iter()
            .map(|sample| match figure {
                Figure::P50 => sample.p50,
                Figure::P99 => sample.p99,
                Figure::P999 => sample.p999,
                Figure::Rate => sample.rate,
                Figure::Cpu => sample.cpu,
            })
            .collect()
    }
}
