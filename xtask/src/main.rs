//! Every repeatable action of the project: `cargo xtask VERB`.
//!
//! CI calls `cargo xtask test` and nothing else, so what is green here is green there. Verbs run with the caller's
//! own rights, print data on stdout and everything else on stderr, and leave nothing behind: what a verb started or
//! mounted is gone when it ends, also on Ctrl-C or failure. Where to start reading: `demo` for the main job, `test`
//! for the tiers, `checks` for what needs no test program, `bench` for figures.

#![forbid(unsafe_code)]

mod attack;
mod bench;
mod checks;
mod child;
mod demo;
mod ebpf;
mod lab;
mod somebody;
mod stop;
mod systemd;
mod test;
mod vm;
mod workloads;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Every repeatable action of the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show the main job: two confined agents repair a failing test together, on record
    Demo(demo::Args),
    /// Run every tier of tests that this machine can run
    Test(test::Args),
    /// Measure a promised figure beside its peer
    Bench(bench::Args),
    /// Run real programs in real sandboxes: what must work under `coding`, and what the other policies are for
    Workloads(workloads::Args),
    /// Try to break out of the sandbox, in every way that the escape suite knows, and out of other people's
    Attack(attack::Args),
    /// Boot systemd in namespaces over this machine's root, install agentd there, and test it as a service
    Systemd(systemd::Args),
    /// Install the built programs, units, D-Bus and polkit files below a root directory
    Install(systemd::install::Args),
    /// Remove exactly what `install` put there
    Uninstall(systemd::install::UninstallArgs),
    /// A stage of `systemd`, run by itself
    #[command(hide = true)]
    SystemdStage(systemd::boot::Args),
    /// Boot other kernels in QEMU and test the sandbox on each of them
    Vm(vm::Args),
    /// The part of `vm` that runs in the guest
    #[command(hide = true)]
    VmGuest(vm::guest::Args),
    /// Build the eBPF programs from source, and compare them with the committed object
    Ebpf(ebpf::Args),
    /// Check which crate uses which against the table of arrows
    CheckDeps,
    /// Renew the generated files (man pages)
    Gen {
        /// Change nothing; fail where a committed file differs from what would be generated
        #[arg(long)]
        check: bool,
    },
    /// What CI runs: the same as `test` without arguments, with CI's expectations
    Ci,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Verb::SystemdStage(stage) = &cli.verb {
        // Becomes another program, which must find the signals as they were.
        return match systemd::boot::run(stage) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    match stop::catch_signals().and_then(|()| run(cli.verb)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Demo(args) => demo::demo(&args),
        Verb::Test(args) => test::test(&args, test::Expect::FromEnvironment),
        Verb::Bench(args) => bench::bench(&args),
        Verb::Attack(args) => attack::attack(&args),
        Verb::Workloads(args) => workloads::workloads(&args),
        Verb::Systemd(args) => systemd::systemd(&args),
        Verb::Install(args) => systemd::install::install(&args).map(|()| ExitCode::SUCCESS),
        Verb::Uninstall(args) => systemd::install::uninstall(&args).map(|()| ExitCode::SUCCESS),
        Verb::SystemdStage(args) => systemd::boot::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Vm(args) => vm::vm(&args),
        Verb::VmGuest(args) => vm::guest::run(&args).map(|()| ExitCode::SUCCESS),
        Verb::Ebpf(args) => ebpf::ebpf(&args),
        Verb::CheckDeps => checks::deps::check().map(|()| ExitCode::SUCCESS),
        Verb::Gen { check } => {
            let mode = if check {
                checks::generated::Mode::Check
            } else {
                checks::generated::Mode::Write
            };
            checks::generated::generate(mode).map(|()| ExitCode::SUCCESS)
        }
        Verb::Ci => test::test(&test::Args::default(), test::Expect::AsInCi),
    }
}
