//! `bench`: load on the bus of a running daemon, through the public path.
//!
//! Load comes from agents that [`crew`] launches over D-Bus as `agentctl run` does, confined, under a policy of their own;
//! the program in the sandbox is agentctl itself, told by [`orders`] what to do ([`agent`]). What they report is joined
//! here: counts, loss, percentiles. This side never touches the bus's memory. It fails like any verb; what it launched
//! ends with it, also when it is interrupted or killed.

pub mod agent;
mod crew;
mod figures;
mod flow;
mod orders;
mod stress;

use std::time::Duration;

use crate::cli::bench::{LowBenchVerb, LowWaiting};
use crate::failure::Failure;
use crate::resolve::{Context, time};

pub use orders::Mode;

/// What was meant.
#[derive(Debug)]
pub enum Task {
    Throughput(ThroughputRequest),
    Latency(LatencyRequest),
    Stress(StressRequest),
    /// Inside a sandbox: do what another agentctl has ordered.
    Agent(String),
}

#[derive(Debug)]
pub struct ThroughputRequest {
    pub messages: u64,
    pub threads: u32,
    pub size: u32,
    pub mode: Mode,
}

#[derive(Debug)]
pub struct LatencyRequest {
    pub duration: Duration,
    /// Messages per second; closed-loop without.
    pub rate: Option<u64>,
    pub size: u32,
    pub mode: Mode,
}

#[derive(Debug)]
pub struct StressRequest {
    pub agents: u32,
    pub duration: Duration,
    pub kills: Kills,
    pub size: u32,
    pub seed: u64,
    pub mode: Mode,
}

/// Whether agents are killed during the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kills {
    None,
    Random,
}

/// From what was typed.
pub fn resolve(verb: LowBenchVerb) -> Result<Task, Failure> {
    Ok(match verb {
        LowBenchVerb::Throughput(a) => {
            let messages = count("--messages", &a.messages)?;
            if messages < u64::from(a.threads) {
                return Err(Failure::usage(
                    format!(
                        "can't divide {messages} messages between {} threads",
                        a.threads
                    ),
                    "each thread sends at least one",
                ));
            }
            Task::Throughput(ThroughputRequest {
                messages,
                threads: a.threads,
                size: a.size,
                mode: mode(a.waiting),
            })
        }
        LowBenchVerb::Latency(a) => Task::Latency(LatencyRequest {
            duration: time("--duration", &a.duration)?,
            rate: a.rate.map(|rate| count("--rate", &rate)).transpose()?,
            size: a.size,
            mode: mode(a.waiting),
        }),
        LowBenchVerb::Stress(a) => Task::Stress(StressRequest {
            agents: a.agents,
            duration: time("--duration", &a.duration)?,
            kills: if a.kills { Kills::Random } else { Kills::None },
            size: a.size,
            seed: a.seed.unwrap_or_else(made_up),
            mode: mode(a.waiting),
        }),
        LowBenchVerb::Agent(a) => Task::Agent(a.orders),
    })
}

fn mode(typed: LowWaiting) -> Mode {
    match typed {
        LowWaiting::Busy => Mode::Busy,
        LowWaiting::Adaptive => Mode::Adaptive,
        LowWaiting::Blocking => Mode::Blocking,
    }
}

/// A seed that nobody chose.
fn made_up() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| now.as_nanos() as u64) & 0xffff_ffff
}

/// `500000`, `500k`, `10M`, `1G`.
fn count(option: &str, typed: &str) -> Result<u64, Failure> {
    let digits = typed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale: Option<u64> = match &typed[digits.len()..] {
        "" => Some(1),
        "k" | "K" => Some(1_000),
        "M" => Some(1_000_000),
        "G" => Some(1_000_000_000),
        _ => None,
    };
    let number: Option<u64> = digits.parse().ok();
    scale
        .zip(number)
        .and_then(|(scale, number)| number.checked_mul(scale))
        .filter(|n| *n > 0)
        .ok_or_else(|| {
            Failure::usage(
                format!("can't use {option} {typed:?}"),
                "allowed: a number of at least 1, with k, M or G if you like: 500000, 500k, 10M",
            )
        })
}

pub async fn perform(context: &Context, task: Task) -> Result<u8, Failure> {
    match task {
        Task::Throughput(request) => flow::throughput(context, &request).await,
        Task::Latency(request) => flow::latency(context, &request).await,
        Task::Stress(request) => stress::stress(context, &request).await,
        Task::Agent(_) => unreachable!("done without a runtime"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_as_people_write_them() {
        let ok = |typed| count("--messages", typed).ok();
        assert_eq!(ok("500000"), Some(500_000));
        assert_eq!(ok("10M"), Some(10_000_000));
        assert_eq!(ok("3k"), Some(3_000));
        for wrong in [
            "",
            "0",
            "M",
            "1x",
            "-1",
            "1.5M",
            "99999999999999999999",
            "9999999999999G",
        ] {
            assert_eq!(ok(wrong), None, "{wrong}");
        }
    }
}
