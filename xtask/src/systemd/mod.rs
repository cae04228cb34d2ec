//! `cargo xtask systemd`: agentd as a service of a real systemd, from install to uninstall.
//!
//! [`bed`] boots systemd in namespaces ([`boot`] is what runs in them), [`install`] puts the product there as a package
//! would, and [`cases`] are the tests, in order, each printed as it ends. Needs root and a cgroup2 mount; the host's own
//! systemd, if it has one, is never spoken to. Leaves nothing behind, also on Ctrl-C.

pub mod bed;
pub mod boot;
mod cases;
pub mod install;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use self::bed::Bed;
use crate::lab::{Profile, Programs};
use crate::test::Outcome;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take the programs from this directory instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<std::path::PathBuf>,
    /// Run a shell in the bed after the tests, with standard input and output
    #[arg(long)]
    shell: bool,
}

pub fn systemd(args: &Args) -> Result<ExitCode> {
    let programs = match &args.programs {
        Some(directory) => Programs::in_directory(directory)?,
        None => Programs::build(Profile::Debug)?,
    };
    let after = if args.shell { After::Shell } else { After::End };
    let outcome = run(&programs, after)?;
    for failure in &outcome.failures {
        eprintln!("failed: {failure}");
    }
    for skip in &outcome.skips {
        eprintln!("skipped: {}: {}", skip.feature, skip.why);
    }
    eprintln!(
        "{} passed, {} failed, {} skipped",
        outcome.passed,
        outcome.failed,
        outcome.skips.len()
    );
    Ok(if outcome.failed == 0 && outcome.skips.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What happens to the bed when the tests are through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    End,
    Shell,
}

/// The tier: builds, boots, tests.
pub fn tier() -> Result<Outcome> {
    if bed::missing().is_some() {
        return run(
            &Programs::in_directory(crate::workspace::root())?,
            After::End,
        );
    }
    run(&Programs::build(Profile::Debug)?, After::End)
}

fn run(programs: &Programs, after: After) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    if let Some(skip) = bed::missing() {
        outcome.skip(skip);
        return Ok(outcome);
    }
    let begun = Instant::now();
    let bed = Bed::boot()?;
    eprintln!("systemd is up after {:.1} s", begun.elapsed().as_secs_f32());
    cases::all(&bed, programs, &mut outcome)?;
    eprintln!("{:.1} s in all", begun.elapsed().as_secs_f32());
    if after == After::Shell {
        let mut shell = bed.command("/bin/bash");
        shell
            .stdin(std::process::Stdio::inherit())
            .env("TERM", "xterm");
        shell.status().context("run a shell in the bed")?;
    }
    Ok(outcome)
}
