//! Test programs of the project as they are, each of their tests one case: the launcher's
//! (`launch/tests`, the layers one by one, in both modes), those of the eBPF programs
//! (`bpf/load/tests/kernel`), which load here where this machine's kernel may refuse them, and
//! those that turn the kernel's audit on (`agentd/tests/e2e/kernel_audit.rs`), which nobody wants
//! on a machine of one's own.

use std::process::Command;

use anyhow::{Context, Result};

use super::{CaseOutcome, PROGRAMS, Teller};
use crate::child::capture_any;

/// What of the eBPF tests depends on the kernel's version: what it loads and attaches, pins,
/// replaces. The rest takes minutes of an emulated processor.
pub const OF_THE_KERNEL: &[&str] = &["lsm::", "connect::", "pins::"];

/// Of Landlock's refusals in the kernel's audit: all of it from the ABI on that has them, else that their lack is said. No flood: an
/// emulated processor makes fewer calls than the kernel takes records.
pub fn of_audit(landlock_abi: u64) -> &'static [&'static str] {
    match landlock_abi {
        0..7 => &["kernel_audit::a_kernel_that_tells_nothing"],
        7.. => &["kernel_audit::", "--skip=kernel_audit::a_flood"],
    }
}

/// Runs `NAME-tests` in `threads` threads, only those with one of `only` in their names, if any is
/// given. There is one processor, but with a single thread libtest runs tests in its main thread,
/// and a skip would not say whose it is.
pub fn run(teller: &Teller, name: &str, threads: u32, only: &[&str]) -> Result<()> {
    let skips = tempfile::NamedTempFile::new().context("make a file for skips")?;
    let output = capture_any(
        Command::new(format!("{PROGRAMS}/{name}-tests"))
            .arg(format!("--test-threads={threads}"))
            .arg("--color=never")
            .args(only)
            .env("AGENTD_SKIP_LOG", skips.path())
            // For the end-to-end tests: what is turned on here ends with the guest.
            .env("AGENTD_TEST_PROGRAMS", PROGRAMS)
            .env("AGENTD_TEST_AUDIT", "1"),
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    let log = std::fs::read_to_string(skips.path()).context("read the skips")?;
    let mut seen = 0;
    for (test, outcome) in results(&text) {
        seen += 1;
        let skipped = log
            .lines()
            .find(|line| line.ends_with(&format!("[in {test}]")));
        let (outcome, detail) = match (outcome, skipped) {
            (CaseOutcome::Passed, Some(why)) => (CaseOutcome::Skipped, why.to_owned()),
            (CaseOutcome::Passed, None) => (outcome, String::new()),
            (CaseOutcome::Failed, _) => (outcome, said_by(&text, test)),
            (CaseOutcome::Skipped, _) => (outcome, "marked #[ignore]".to_owned()),
        };
        teller.case(&format!("{name}.{test}"), outcome, detail)?;
    }
    let closed = text.lines().any(|line| line.starts_with("test result: "));
    teller.run(name, || {
        if seen > 0 && closed {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(anyhow::anyhow!("{}: {said}", output.status))
            .with_context(|| format!("{name}-tests did not come to their end"))
    })
}

/// Name and outcome of each test, from what libtest prints.
fn results(text: &str) -> Vec<(&str, CaseOutcome)> {
    text.lines()
        .filter_map(|line| {
            let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
            let outcome = match outcome {
                "ok" => CaseOutcome::Passed,
                "FAILED" => CaseOutcome::Failed,
                // The child process of a test is no test.
                other if other.starts_with("ignored, a part of") => return None,
                _ => CaseOutcome::Skipped,
            };
            Some((name, outcome))
        })
        .collect()
}

/// What a failed test printed.
fn said_by(text: &str, name: &str) -> String {
    let head = format!("---- {name} stdout ----");
    text.lines()
        .skip_while(|line| *line != head)
        .skip(1)
        .take_while(|line| !line.starts_with("---- ") && *line != "failures:")
        .filter(|line| !line.trim().is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\
                        test child ... ignored, a part of other tests\n\nfailures:\n\n\
                        ---- a::c stdout ----\n\nthread panicked\nwith words\n\n\nfailures:\n    a::c\n";

    #[test]
    fn each_test_is_a_case_with_what_it_said_where_it_failed() {
        assert_eq!(
            results(TEXT),
            [("a::b", CaseOutcome::Passed), ("a::c", CaseOutcome::Failed)]
        );
        assert_eq!(said_by(TEXT, "a::c"), "thread panicked\nwith words");
    }
}
