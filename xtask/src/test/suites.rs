//! The tiers that are `cargo test`: which packages and targets each one takes, run under a watchdog, with the
//! output passed on as it comes and the results read from it.
//!
//! Runs with the caller's own rights. A compile error, a test program that dies without a result and a tier that
//! doesn't end in time each count as one failure.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::libtest::Counts;
use super::skips::{Skip, read_log};
use super::tier::Outcome;
use crate::child::{Child, line};
use crate::demo::npm::{self, Agent};
use crate::workspace::{Metadata, Package, build_all, cargo};

/// A tier that takes longer hangs: a cold build of everything on two cores stays well below.
const WATCHDOG: Duration = Duration::from_secs(40 * 60);

/// Packages whose `tests/` need the whole daemon; the `tests/` of all others are the integration tier.
const E2E_PACKAGES: [&str; 2] = ["agentd", "agentctl"];

/// Packages whose `tests/` are the kernel tier, which runs them with two objects.
const KERNEL_PACKAGES: [&str; 1] = ["agentd-bpf-load"];

/// Inline tests, then documentation examples.
pub fn unit(scratch: &Path) -> Result<Outcome> {
    let mut outcome = run(
        cargo().args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins"]),
        scratch,
    )?;
    let docs = run(
        cargo().args(["test", "--workspace", "--no-fail-fast", "--doc"]),
        scratch,
    )?;
    outcome.absorb(docs);
    Ok(outcome)
}

/// Every schedule of the bus's lanes, under loom: another build of the crate, so in a target directory of its own.
pub fn model(scratch: &Path) -> Result<Outcome> {
    let target = Metadata::of_members()?.target_directory.join("loom");
    let mut command = cargo();
    command
        .args([
            "test",
            "--release",
            "-p",
            "agentd-bus",
            "--lib",
            "::model::",
        ])
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("RUSTFLAGS", "--cfg loom")
        // With three, some models take many minutes: docs/testing.md.
        .env("LOOM_MAX_PREEMPTIONS", "2");
    run(&mut command, scratch)
}

/// `tests/` of the library crates, then the one that needs a hook in every store to shared memory.
pub fn integration(scratch: &Path) -> Result<Outcome> {
    let elsewhere = |name: &str| E2E_PACKAGES.contains(&name) || KERNEL_PACKAGES.contains(&name);
    let mut outcome = of_packages(scratch, |name| !elsewhere(name))?;
    let killed = run(
        cargo()
            .args(["test", "--workspace", "--test", "killed"])
            .args(["--features", "agentd-bus/crash-points"]),
        scratch,
    )?;
    outcome.absorb(killed);
    Ok(outcome)
}

/// `tests/` of the daemon and its command, with every program built beforehand.
pub fn e2e(scratch: &Path) -> Result<Outcome> {
    build_all()?;
    of_packages(scratch, |name| E2E_PACKAGES.contains(&name))
}

/// By the names of test targets, of the whole workspace: what cargo builds of fewer packages, it builds anew.
fn of_packages(scratch: &Path, wanted: impl Fn(&str) -> bool) -> Result<Outcome> {
    let metadata = Metadata::of_members()?;
    let names_in = |wanted: &dyn Fn(&str) -> bool| -> BTreeSet<&str> {
        metadata
            .members()
            .filter(|package| wanted(&package.name))
            .flat_map(Package::integration_tests)
            .collect()
    };
    let names = names_in(&wanted);
    if let Some(name) = names.intersection(&names_in(&|name| !wanted(name))).next() {
        bail!("a test target `{name}` is in packages of two tiers: rename one of them");
    }
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]);
    for name in names {
        command.args(["--test", name]);
    }
    for (variable, agent) in AGENTS {
        if let Some(program) = program(variable, agent) {
            command.env(variable, program);
        }
    }
    run(&mut command, scratch)
}

/// The variables that name real agents to the tests that use them; without them these are counted skips.
const AGENTS: [(&str, &Agent); 3] = [
    ("AGENTD_TEST_CLAUDE", &npm::CLAUDE),
    ("AGENTD_TEST_CODEX", &npm::CODEX),
    ("AGENTD_TEST_OPENCODE", &npm::OPENCODE),
];

/// What the caller chose, or the pinned version from npm.
fn program(variable: &str, agent: &Agent) -> Option<PathBuf> {
    if let Some(chosen) = std::env::var_os(variable) {
        return Some(chosen.into());
    }
    agent
        .install()
        .inspect_err(|error| eprintln!("no {} for the tests: {error:#}", agent.title))
        .ok()
}

/// So many tests of one `cargo test` may fail and be run again; more of them are no accident.
const AGAIN: usize = 3;
/// So often each of them must pass.
const TIMES: usize = 3;

/// Runs the tests that `command` names. Few that fail are run again, by themselves: those that then
/// pass each time are no failures but [unsteady](Outcome::unsteady), which the run says of each.
pub fn run(command: &mut Command, scratch: &Path) -> Result<Outcome> {
    let first = attempt(command, scratch)?;
    let failed = &first.outcome.failures;
    if !first.whole || failed.is_empty() || failed.len() > AGAIN {
        return Ok(first.outcome);
    }
    for time in 1..=TIMES {
        eprintln!("== again, alone, {time} of {TIMES}: {}", failed.join(", "));
        let next = attempt(&mut again(command, failed), scratch)?.outcome;
        crate::stop::check()?;
        // One that doesn't run any more, or is skipped now, has not passed.
        if next.failed > 0 || !next.skips.is_empty() || (next.passed as usize) < failed.len() {
            return Ok(first.outcome);
        }
    }
    Ok(first.outcome.steadied())
}

/// The same with these tests only, one after the other.
fn again(command: &Command, names: &[String]) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    for (variable, value) in command.get_envs() {
        match value {
            Some(value) => again.env(variable, value),
            None => again.env_remove(variable),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        again.current_dir(directory);
    }
    again
        .args(["--", "--exact", "--test-threads=1"])
        .args(names);
    again
}

/// What came of one run.
struct Attempt {
    outcome: Outcome,
    /// Nothing went wrong but the tests that failed by name.
    whole: bool,
}

fn attempt(command: &mut Command, scratch: &Path) -> Result<Attempt> {
    let log = scratch.join("skips");
    remove_if_there(&log)?;
    command
        .env("AGENTD_SKIP_LOG", &log)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = Child::start("cargo test", command)?;
    let stdout = child
        .take_stdout()
        .context("cargo's standard output is not piped")?;
    let lines = forward(BufReader::new(stdout));
    let ended = child.wait(WATCHDOG)?;
    // Whatever a test left behind in the group would hold the pipe open: then the reader never comes to its end.
    child.signal_group(rustix::process::Signal::KILL)?;
    drop(child);
    let counts = lines
        .recv_timeout(Duration::from_secs(60))
        .unwrap_or_default();

    let skips = read_log(&log)?;
    let ignored = (0..counts.ignored).map(|_| Skip::new("ignored", "marked #[ignore]"));
    let whole = ended.is_some() && counts.are_whole();
    let mut outcome = Outcome {
        passed: counts.passed.saturating_sub(u32::try_from(skips.len())?),
        failed: counts.failed,
        failures: counts.failed_names,
        skips: skips.into_iter().chain(ignored).collect(),
        unsteady: Vec::new(),
    };
    match ended {
        None => outcome.fail(format!("{} did not end within {WATCHDOG:?}", line(command))),
        Some(status) if !status.success() && outcome.failed == 0 => {
            outcome.fail(format!(
                "{}: {} without a failed test: see above",
                line(command),
                crate::child::outcome(status)
            ));
        }
        Some(_) => {}
    }
    Ok(Attempt { outcome, whole })
}

/// Passes each line on to stderr (stdout is for the tier lines) and counts what it says.
fn forward(mut lines: impl BufRead + Send + 'static) -> Receiver<Counts> {
    let (done, counts) = mpsc::channel();
    std::thread::spawn(move || {
        let mut seen = Counts::default();
        let mut line = Vec::new();
        // Bytes, not UTF-8: a test may print anything. A read error is the end of the pipe to us.
        while matches!(lines.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&line);
            eprint!("{text}");
            seen.read_line(&text);
            line.clear();
        }
        // The receiver is gone only when the wait for it was given up.
        drop(done.send(seen));
    });
    counts
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test program that reports as libtest does. `$run` counts its runs; `$@` is what it is called with after the script.
    fn program(scratch: &Path, script: &str) -> Command {
        let mut command = Command::new("sh");
        let script = format!(
            r#"cd {}; run=$(( $(cat runs 2>/dev/null || echo 0) + 1 )); echo $run > runs
            passes() {{ echo "test $1 ... ok"; passed=$((passed + 1)); }}
            fails() {{ echo "test $1 ... FAILED"; failed=$((failed + 1)); }}
            passed=0; failed=0; echo "running 2 tests"
            {script}
            echo "test result: some. $passed passed; $failed failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s"
            exit $((failed > 0))"#,
            scratch.display()
        );
        command.args(["-c", &script]);
        command
    }

    fn runs(scratch: &Path) -> String {
        let runs = std::fs::read_to_string(scratch.join("runs")).expect("a program that ran");
        runs.trim().to_owned()
    }

    fn result(script: &str) -> (Outcome, String) {
        let scratch = tempfile::tempdir().expect("a directory");
        let outcome = run(&mut program(scratch.path(), script), scratch.path()).expect("a run");
        (outcome, runs(scratch.path()))
    }

    #[test]
    fn what_fails_once_and_then_passes_by_itself_is_unsteady() {
        let (outcome, runs) = result(
            r#"if [ $run = 1 ]; then passes a; fails b
            elif [ "$*" = "--exact --test-threads=1 b" ]; then passes b
            else fails "$*"; fi"#,
        );
        assert_eq!((outcome.passed, outcome.failed), (2, 0), "{outcome:?}");
        assert_eq!(
            (outcome.unsteady, runs),
            (vec!["b".to_owned()], "4".to_owned())
        );
    }

    #[test]
    fn what_fails_again_has_failed() {
        let (outcome, runs) = result("passes a; if [ $run = 2 ]; then passes b; else fails b; fi");
        assert_eq!((outcome.passed, outcome.failed), (1, 1), "{outcome:?}");
        assert_eq!(
            (outcome.failures, runs),
            (vec!["b".to_owned()], "3".to_owned())
        );
        assert!(outcome.unsteady.is_empty());
    }

    #[test]
    fn what_is_skipped_or_missing_when_it_is_run_again_has_failed() {
        let skips = r#"echo "agentd-skip: root: run it as root" >> "$AGENTD_SKIP_LOG"; passes b"#;
        let (outcome, runs) = result(&format!("if [ $run = 1 ]; then fails b; else {skips}; fi"));
        assert_eq!((outcome.failed, runs.as_str()), (1, "2"), "{outcome:?}");
        let (outcome, runs) = result("if [ $run = 1 ]; then fails b; fi");
        assert_eq!((outcome.failed, runs.as_str()), (1, "2"), "{outcome:?}");
    }

    #[test]
    fn many_failures_and_programs_that_die_are_not_run_again() {
        let (outcome, runs) = result("fails a; fails b; fails c; fails d");
        assert_eq!((outcome.failed, runs.as_str()), (4, "1"));
        let (outcome, runs) = result("fails a; passes b; echo 'running 9 tests'");
        assert_eq!((outcome.failed, runs.as_str()), (1, "1"));
    }
}
