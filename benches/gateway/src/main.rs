//! `gateway`: the socket gateway's promises. docs/benchmarks.md says what each row is.
//!
//! The server is a process of its own on one CPU, the load another on the other. `cargo xtask bench gateway` builds this
//! program and reads its JSON.

mod certificates;
mod flood;
mod idle;
mod kernel_memory;
mod rows;
mod server;
mod storm;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// The socket gateway's promises.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    part: Option<Part>,
    /// Print the samples as one JSON object
    #[arg(long)]
    json: bool,
    /// Fewer and shorter rounds: for a first look, not for publishing
    #[arg(long)]
    quick: bool,
    /// Only these rows
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The measured process
    Serve(server::Options),
    /// Holds idle connections
    Hold(idle::Options),
    /// Floods
    Flood(flood::Options),
}

/// Keeps this process on one CPU of those it may use.
fn pin(nth: usize) -> Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|cpu| allowed.is_set(*cpu))
        .collect();
    let mut one = rustix::thread::CpuSet::new();
    one.set(cpus[nth % cpus.len()]);
    rustix::thread::sched_setaffinity(None, &one).context("pin to a CPU")
}

/// As many descriptors as the host lets this process have, up to `wanted`; how many.
fn raise_descriptors(wanted: u64) -> Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(wanted);
    let of = |current, maximum| Rlimit {
        current: Some(current),
        maximum: Some(maximum),
    };
    // Beyond the hard limit only with CAP_SYS_RESOURCE.
    if hard < wanted && setrlimit(Resource::Nofile, of(wanted, wanted)).is_ok() {
        return Ok(wanted);
    }
    let most = wanted.min(hard);
    setrlimit(Resource::Nofile, of(most, hard)).context("raise RLIMIT_NOFILE")?;
    Ok(most)
}

#[expect(clippy::print_stdout, reason = "the report is this program's data")]
fn main() -> Result<()> {
    let args = Args::parse();
    match &args.part {
        Some(Part::Serve(options)) => return server::serve(options),
        Some(Part::Hold(options)) => return idle::hold(options),
        Some(Part::Flood(options)) => return flood::flood(options),
        None => {}
    }
    let descriptors = raise_descriptors(210_000)?;
    let report = rows::measure(&args.only, args.quick, descriptors);
    print!("{}", report.text(args.json)?);
    Ok(())
}
