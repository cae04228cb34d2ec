//! `cargo xtask bench NAME`: promised figures, measured beside their peers where there are any.
//!
//! Release build, alternating runs, warm-up dropped. With `--json` the report is one object on stdout. Exit code 0
//! means that every promised figure was measured and met; a benchmark is never a test, and `cargo xtask test` runs none.

mod adopt;
mod bus;
pub mod crash;
mod gateway;
mod idle;
mod kernel;
mod launch;
mod peers;
pub mod report;
mod sockmap;
mod submit;
mod syscall;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use self::report::{Form, Report};
use crate::lab::{Profile, Programs};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
    #[command(flatten)]
    form: Form,
    /// Fewer rounds: for a first look, not for publishing
    #[arg(long)]
    quick: bool,
    /// First seed of `crash`, to repeat a run
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only these rows of `bus`, `router`, `gateway` or `kernel`, or parts of the names of its further rows
    #[arg(long, value_name = "ROW", value_delimiter = ',')]
    only: Vec<String>,
    /// Use the programs in this directory instead of building them
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// Start a program in a sandbox: the bare launcher and `agentctl run`, beside bubblewrap
    Launch,
    /// What the daemon costs while nothing happens
    Idle,
    /// How long a restarted agentd takes to have thirty living agents again
    Adopt,
    /// Seeded kill -9 of agentd, broker and agents while tasks are worked off: what is lost, doubled or left over
    Crash,
    /// How long a process tree outlives its stop, its time-out, or the daemon
    Tree,
    /// The kernel plane: how soon a revoked agent is refused and a refusal told, what telemetry costs, what a restart loses
    Kernel,
    /// Processor time of git and cargo inside, beside outside
    Syscall,
    /// How many tasks are taken per second, each on the disk, beside the disk's own fsync rate
    Submit,
    /// Durable queues beside a bare append log, SQLite and JetStream, each message on the disk before it is acknowledged
    Durable,
    /// Lanes, logs and arenas beside the machine's own limits and other people's ways between processes
    Bus,
    /// Work queues through the router beside NATS and Redis streams; every pattern of a hundred agents mixed
    Router,
    /// The socket gateway: io_uring beside epoll, 100,000 idle connections, a light sender beside floods
    Gateway,
    /// Request and reply between two sandboxes by the kernel's own path, beside plain TCP and the userspace route
    Sockmap,
}

/// Nothing that a benchmark waits for takes longer unless it hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

/// How much to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    Quick,
    Full,
}

impl Effort {
    /// `full` rounds, or a fifth of them.
    fn rounds(self, full: usize) -> usize {
        match self {
            Self::Quick => full.div_ceil(5),
            Self::Full => full,
        }
    }
}

pub fn bench(args: &Args) -> Result<ExitCode> {
    let effort = if args.quick {
        Effort::Quick
    } else {
        Effort::Full
    };
    let mut report = Report::new();
    let programs = || match &args.bin_dir {
        Some(directory) => Programs::in_directory(directory),
        None => Programs::build(Profile::Release),
    };
    match args.name {
        Name::Launch => launch::measure(&mut report, programs()?, effort)?,
        Name::Idle => idle::measure(&mut report, programs()?, effort)?,
        Name::Adopt => adopt::measure(&mut report, programs()?, effort)?,
        Name::Crash => crash::measure(&mut report, &programs()?, effort, args.seed)?,
        Name::Tree => tree::measure(&mut report, &programs()?, effort)?,
        Name::Kernel => kernel::measure(&mut report, &programs()?, effort, &args.only)?,
        Name::Syscall => syscall::measure(&mut report, programs()?, effort)?,
        Name::Submit => submit::measure(&mut report, programs()?, effort)?,
        Name::Bus => bus::measure(bus::Driver::Bus, &mut report, effort, &args.only)?,
        Name::Durable => bus::measure(bus::Driver::Durable, &mut report, effort, &args.only)?,
        Name::Router => bus::measure(bus::Driver::Router, &mut report, effort, &args.only)?,
        Name::Gateway => gateway::measure(&mut report, effort, &args.only)?,
        Name::Sockmap => sockmap::measure(&mut report, effort)?,
    }
    report.conclude(args.form)
}
