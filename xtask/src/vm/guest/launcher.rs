//! The launcher's own tests (`launch/tests`), each of them one case: the layers one by one, in both modes.

use std::process::Command;

use anyhow::{Context, Result};

use super::{CaseOutcome, PROGRAMS, Teller};
use crate::child::capture_any;

/// Runs them one after the other, since there is one processor.
pub fn tests(teller: &Teller) -> Result<()> {
    let output = capture_any(
        Command::new(format!("{PROGRAMS}/launch-tests"))
            .args(["--test-threads=1", "--color=never"]),
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut seen = 0;
    for (name, outcome) in results(&text) {
        seen += 1;
        let detail = match outcome {
            CaseOutcome::Passed => String::new(),
            CaseOutcome::Failed => said_by(&text, name),
            CaseOutcome::Skipped => "marked #[ignore]".to_owned(),
        };
        teller.case(&format!("launch.{name}"), outcome, detail)?;
    }
    let closed = text.lines().any(|line| line.starts_with("test result: "));
    teller.run("launch", || {
        if seen > 0 && closed {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(anyhow::anyhow!("{}: {said}", output.status))
            .context("the tests of the launcher did not come to their end")
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
