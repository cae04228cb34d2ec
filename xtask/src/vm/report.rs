//! What a run on several kernels came to: as an [`Outcome`] for the tiers, as text for people, as JSON for scripts.
//!
//! Pure. A boot without its end marker, a console that shows trouble, a line that can't be read and a kernel that is not
//! of the series asked for are failures like any other.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};

use super::guest::{CaseLine, CaseOutcome, Line, Variant};
use super::kernel::Series;
use super::qemu::Ran;
use crate::test::{Outcome, Skip};

/// All boots of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// QEMU, as it calls itself.
    pub emulator: String,
    boots: Vec<Entry>,
    skipped: Vec<Skipped>,
}

/// What one boot, or the second after a dead one, came to.
#[derive(Debug)]
pub struct Boots {
    last: Ran,
    attempts: u32,
}

impl Boots {
    pub fn new(last: Ran, attempts: u32) -> Self {
        Self { last, attempts }
    }
}

#[derive(Debug, Serialize)]
struct Entry {
    /// The series: `6.1`.
    kernel: &'static str,
    /// `whole` or `bare`.
    variant: &'static str,
    /// 2 if the first boot died.
    attempts: u32,
    seconds: f32,
    /// What the guest said of itself, by `MODE.NAME`.
    facts: Map<String, Value>,
    cases: Vec<CaseLine>,
}

#[derive(Debug, Serialize)]
struct Skipped {
    id: String,
    why: String,
}

impl Report {
    pub fn skip(&mut self, skip: Skip) {
        self.skipped.push(Skipped {
            id: skip.feature,
            why: skip.why,
        });
    }

    pub fn add(&mut self, series: Series, variant: Variant, boots: Boots) {
        let Boots { last, attempts } = boots;
        let mut entry = Entry {
            kernel: series.name,
            variant: variant.name(),
            attempts,
            seconds: last.took.as_secs_f32(),
            facts: Map::new(),
            cases: Vec::new(),
        };
        for text in &last.lines {
            match serde_json::from_str(text) {
                Ok(Line::Fact { fact, value }) => drop(entry.facts.insert(fact, value)),
                Ok(Line::Case(case)) => entry.cases.push(case),
                Err(error) => entry.fail("lines", format!("{error}: {text}")),
            }
        }
        match last.end {
            Some(0) => {}
            Some(code) => entry.fail(
                "end",
                format!("the guest's tests ended with {code}\n{}", tail(&last)),
            ),
            None => entry.fail("end", format!("no end marker\n{}", tail(&last))),
        }
        for line in last.trouble {
            entry.fail("console", line);
        }
        let release = entry.facts.get("root.kernel").and_then(Value::as_str);
        if !release.is_some_and(|release| series.holds(release)) {
            let why = format!("booted {release:?}, not {}", series.name);
            entry.fail("kernel", why);
        }
        self.boots.push(entry);
    }

    pub fn outcome(&self) -> Outcome {
        let mut outcome = Outcome::default();
        for entry in &self.boots {
            for case in &entry.cases {
                let name = format!("{} {}: {}", entry.kernel, entry.variant, case.id);
                match case.outcome {
                    CaseOutcome::Passed => outcome.pass(),
                    CaseOutcome::Failed => outcome.fail(format!("{name}: {}", case.detail)),
                    CaseOutcome::Skipped => {
                        // A test that skipped by itself named a feature, which this kernel lacks.
                        let said = case.detail.strip_prefix("agentd-skip: ");
                        let feature = match said.and_then(|said| said.split_once(": ")) {
                            Some((feature, _)) => format!("vm-{}-{feature}", entry.kernel),
                            None => "vm-case".to_owned(),
                        };
                        outcome.skip(Skip::new(&feature, format!("{name}: {}", case.detail)));
                    }
                }
            }
        }
        for skip in &self.skipped {
            outcome.skip(Skip::new(&skip.id, skip.why.clone()));
        }
        outcome
    }

    /// One line a boot, then what failed and what was skipped, then the sum.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |words: std::fmt::Arguments<'_>| {
            // Writing to a String can't fail.
            writeln!(text, "{words}").unwrap_or_default();
        };
        for entry in &self.boots {
            let count = |wanted| entry.cases.iter().filter(|c| c.outcome == wanted).count();
            line(format_args!(
                "{} {}: {}, Landlock ABI {}: {} passed, {} failed, {} skipped in {:.0} s",
                entry.kernel,
                entry.variant,
                entry.fact("root.kernel"),
                entry.fact("root.landlock_abi"),
                count(CaseOutcome::Passed),
                count(CaseOutcome::Failed),
                count(CaseOutcome::Skipped),
                entry.seconds
            ));
        }
        let outcome = self.outcome();
        for failure in &outcome.failures {
            line(format_args!("failed: {failure}"));
        }
        for skip in &outcome.skips {
            line(format_args!("skipped: {}: {}", skip.feature, skip.why));
        }
        line(format_args!(
            "{} passed, {} failed, {} skipped",
            outcome.passed,
            outcome.failed,
            outcome.skips.len()
        ));
        text
    }

    pub fn json(&self) -> Result<String> {
        serde_json::to_string(self).context("write the report")
    }
}

impl Entry {
    fn fail(&mut self, id: &str, detail: String) {
        self.cases.push(CaseLine {
            id: id.to_owned(),
            outcome: CaseOutcome::Failed,
            detail,
        });
    }

    fn fact(&self, name: &str) -> String {
        match self.facts.get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => "unknown".to_owned(),
        }
    }
}

/// A line of the guest's for people who wait; facts are for the report alone.
pub fn progress(line: &str) -> Option<String> {
    match serde_json::from_str(line) {
        Ok(Line::Fact { .. }) => None,
        Ok(Line::Case(case)) => Some(match case.outcome {
            CaseOutcome::Passed => format!("passed {}", case.id),
            CaseOutcome::Failed => format!("FAILED {}: {}", case.id, case.detail),
            CaseOutcome::Skipped => format!("skipped {}: {}", case.id, case.detail),
        }),
        Err(_) => Some(line.to_owned()),
    }
}

/// The end of a console.
fn tail(ran: &Ran) -> String {
    let text = std::fs::read(&ran.console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..]
        .iter()
        .map(|line| format!("  console: {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(lines: &[&str], end: Option<i32>) -> Ran {
        Ran {
            lines: lines.iter().map(|line| (*line).to_owned()).collect(),
            end,
            trouble: Vec::new(),
            console: "/nonexistent".into(),
            took: std::time::Duration::from_secs(9),
        }
    }

    fn outcome_of(lines: &[&str], end: Option<i32>) -> Outcome {
        let mut report = Report::default();
        let series = Series::of_name("6.1").expect("known");
        report.add(series, Variant::Whole, Boots::new(ran(lines, end), 1));
        report.outcome()
    }

    const KERNEL: &str = r#"{"fact":"root.kernel","value":"6.1.0-50-amd64"}"#;
    const PASSED: &str = r#"{"id":"root.limits.pids","outcome":"passed"}"#;

    #[test]
    fn a_whole_boot_counts_its_cases() {
        let outcome = outcome_of(&[KERNEL, PASSED], Some(0));
        assert_eq!((outcome.passed, outcome.failed), (1, 0));
    }

    #[test]
    fn a_boot_that_died_or_is_not_the_kernel_asked_for_fails() {
        assert_eq!(outcome_of(&[KERNEL, PASSED], None).failed, 1);
        assert_eq!(outcome_of(&[KERNEL, PASSED], Some(1)).failed, 1);
        assert_eq!(outcome_of(&[PASSED], Some(0)).failed, 1);
        let other = r#"{"fact":"root.kernel","value":"6.12.9"}"#;
        assert_eq!(outcome_of(&[other, PASSED], Some(0)).failed, 1);
        assert_eq!(outcome_of(&[KERNEL, "gibberish"], Some(0)).failed, 1);
    }
}
