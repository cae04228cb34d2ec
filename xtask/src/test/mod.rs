//! `cargo xtask test [TIER…]`: every tier that this machine can run, one line each, and one line
//! for all.
//!
//! Tier lines and the closing line go to stdout, everything that the tests print to stderr. A skip
//! is counted with its reason and never as a pass; skipping a feature that is expected here fails
//! the run (see [`skips`]). Exit code 0 means that nothing failed and nothing expected was skipped.
//!
//! Tiers run one after the other but for those that have builds or machines of their own
//! ([`beside`]), and what later ones need from the network is fetched while the first ones compile
//! ([`ahead`]).

mod ahead;
mod beside;
pub mod demos;
mod fuzz;
mod libtest;
pub mod needs;
mod skips;
pub mod suites;
mod tier;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use self::beside::{Beside, Ended};
use self::fuzz::Search;
use self::skips::Expected;
pub use self::skips::Skip;
pub use self::tier::{Outcome, Tier};
use crate::demo::npm;
use crate::vm;
use crate::workspace::root;

#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Run only these tiers [default: all]
    #[arg(value_enum)]
    tiers: Vec<Tier>,
    /// Look for new inputs of each fuzz target for so long, another way each time [default: 2, always the same way]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    fuzz_seconds: Option<u64>,
    /// Report to this file, for the run that this is a part of
    #[arg(long, value_name = "FILE", hide = true)]
    outcome: Option<PathBuf>,
}

/// Which skips fail the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// What `AGENTD_TEST_EXPECT` or `CI` say.
    FromEnvironment,
    /// What `.ci/expect` says.
    AsInCi,
}

pub fn test(args: &Args, expect: Expect) -> Result<ExitCode> {
    let expected = match expect {
        Expect::FromEnvironment => Expected::from_env(root())?,
        Expect::AsInCi => Expected::committed(root())?,
    };
    let scratch = tempfile::Builder::new()
        .prefix("agentd-test-")
        .tempdir()
        .context("make a scratch directory")?;
    let search = args.fuzz_seconds.map_or(Search::SMOKE, Search::afresh);
    if let Some(file) = &args.outcome {
        return part(args, scratch.path(), search, file);
    }
    needs::install_missing()?;
    let wanted = |tier: &Tier| args.tiers.is_empty() || args.tiers.contains(tier);
    let (beside, here): (Vec<Tier>, Vec<Tier>) = Tier::ALL
        .into_iter()
        .filter(wanted)
        .partition(|tier| beside::TIERS.contains(tier));
    // Alone, nobody waits for their output.
    let (beside, here) = match here.is_empty() {
        true => (here, beside),
        false => (beside, here),
    };
    let mut fetching = ahead::Fetching::start(&here);
    let beside = match beside.is_empty() {
        true => None,
        false => Some(Beside::start(
            demos::own_program(scratch.path())?,
            beside,
            scratch.path(),
            search,
        )),
    };
    let mut ended = Vec::new();
    for tier in here {
        fetching.wait_for(tier);
        eprintln!("== tier {}", tier.name());
        let began = Instant::now();
        let outcome = run(tier, scratch.path(), search, vm::ALL)?;
        let took = began.elapsed();
        eprintln!("== {}", outcome.line(tier, took));
        ended.push(Ended {
            tier,
            outcome,
            took,
        });
    }
    ended.extend(beside.map(Beside::wait).into_iter().flatten());
    crate::stop::check()?;
    ended.sort_by_key(|ended| ended.tier);

    let mut total = Outcome::default();
    let mut lines = Vec::new();
    for Ended {
        tier,
        outcome,
        took,
    } in ended
    {
        lines.push(outcome.line(tier, took));
        total.passed += outcome.passed;
        total.failed += outcome.failed;
        total.skips.extend(outcome.skips);
        let named = |what: String| format!("{}: {what}", tier.name());
        total
            .failures
            .extend(outcome.failures.into_iter().map(named));
        total
            .unsteady
            .extend(outcome.unsteady.into_iter().map(named));
    }
    Ok(report(&lines, &total, &expected))
}

/// Runs tiers for another run, which reports them.
fn part(args: &Args, scratch: &Path, search: Search, file: &Path) -> Result<ExitCode> {
    let mut outcome = Outcome::default();
    for tier in &args.tiers {
        outcome.absorb(run(*tier, scratch, search, 1)?);
    }
    let text = serde_json::to_vec(&outcome).context("write down what came of a tier")?;
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// One tier; with so many machines at a time, if it runs any.
fn run(tier: Tier, scratch: &Path, search: Search, machines: usize) -> Result<Outcome> {
    let ran = match tier {
        Tier::Checks => crate::checks::all(),
        Tier::Unit => suites::unit(scratch),
        Tier::Model => suites::model(scratch),
        Tier::Fuzz => fuzz::tier(scratch, search),
        Tier::Integration => suites::integration(scratch),
        Tier::Kernel => crate::ebpf::tier(scratch),
        Tier::E2e => suites::e2e(scratch),
        Tier::Crash => crate::bench::crash::tier(),
        Tier::Attack => crate::attack::tier(),
        Tier::Workloads => crate::workloads::tier(),
        Tier::Systemd => crate::systemd::tier(),
        Tier::Vm => vm::tier(machines),
        Tier::Demo => demos::stand_in(scratch),
        Tier::Claude => demos::real(scratch, "--claude", &npm::CLAUDE),
        Tier::Codex => demos::real(scratch, "--codex", &npm::CODEX),
        Tier::Acp => demos::real(scratch, "--acp", &npm::OPENCODE),
    };
    // Ctrl-C ends the run; anything else that kept a tier from running is that tier's failure.
    crate::stop::check()?;
    Ok(ran.unwrap_or_else(|error| Outcome::failed(format!("{error:#}"))))
}

#[expect(clippy::print_stdout, reason = "the report is this verb's data")]
fn report(lines: &[String], total: &Outcome, expected: &Expected) -> ExitCode {
    for failure in &total.failures {
        println!("failed: {failure}");
    }
    for test in &total.unsteady {
        println!("unsteady: {test}: failed once, then passed each time by itself");
    }
    let forbidden: Vec<&Skip> = total
        .skips
        .iter()
        .filter(|skip| expected.forbids(&skip.feature))
        .collect();
    for skip in &forbidden {
        println!(
            "skipped although expected here: {}: {}",
            skip.feature, skip.why
        );
    }
    for line in lines {
        println!("{line}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed,
        total.failed,
        total.skips.len()
    );
    if total.failed == 0 && forbidden.is_empty() && total.passed > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
