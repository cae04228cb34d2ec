//! What every benchmark prints: the host, one row per figure with its spread and its limit, and what was skipped.
//!
//! The JSON form is read by scripts (`docs/testing.md` has its shape) and doesn't change without a changelog entry.
//! Statistics here are medians: one slow sample on a busy machine moves a mean, not a median.

use std::borrow::Cow;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::child::capture;
use crate::workspace::root;

#[derive(Debug, Serialize)]
pub struct Report {
    host: Host,
    pub rows: Vec<Row>,
    pub skipped: Vec<Skipped>,
}

/// What the figures were measured on.
#[derive(Debug, Serialize)]
struct Host {
    cpu: String,
    kernel: String,
    /// The frequency governor of the first CPU; "none" where the host shows no cpufreq.
    governor: String,
    load: String,
    huge_pages: String,
    commit: String,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub id: String,
    pub value: f64,
    pub unit: Cow<'static, str>,
    pub spread: [f64; 2],
    /// The promised bound; null for figures that only explain others.
    pub limit: Option<f64>,
    pub met: Option<bool>,
    /// On which side of the limit the value must be.
    #[serde(skip)]
    side: Side,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    AtMost,
    AtLeast,
}

#[derive(Debug, Serialize)]
pub struct Skipped {
    pub id: String,
    pub why: String,
}

/// How a report is printed.
#[derive(Debug, Default, Clone, Copy, clap::Args)]
pub struct Form {
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
}

impl Form {
    #[expect(clippy::print_stdout, reason = "a report is its verb's data")]
    pub fn print(self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            let line = serde_json::to_string(document).context("write the report")?;
            println!("{line}");
        } else {
            print!("{}", text());
        }
        Ok(())
    }
}

impl Report {
    pub fn new() -> Self {
        Self {
            host: Host::read(),
            rows: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Adds the median of `samples`; `limit` is the value that it must not exceed.
    pub fn row(
        &mut self,
        id: &str,
        unit: impl Into<Cow<'static, str>>,
        samples: &[f64],
        limit: Option<f64>,
    ) {
        self.add(id, unit.into(), samples, limit, Side::AtMost);
    }

    /// Adds the median of `samples`, which must reach `limit`.
    pub fn row_at_least(
        &mut self,
        id: &str,
        unit: impl Into<Cow<'static, str>>,
        samples: &[f64],
        limit: f64,
    ) {
        self.add(id, unit.into(), samples, Some(limit), Side::AtLeast);
    }

    fn add(
        &mut self,
        id: &str,
        unit: Cow<'static, str>,
        samples: &[f64],
        limit: Option<f64>,
        side: Side,
    ) {
        let Some((value, spread)) = median(samples) else {
            self.skip(id, "no sample was taken");
            return;
        };
        self.rows.push(Row {
            id: id.to_owned(),
            value,
            unit,
            spread,
            limit,
            met: limit.map(|limit| match side {
                Side::AtMost => value <= limit,
                Side::AtLeast => value >= limit,
            }),
            side,
        });
    }

    pub fn skip(&mut self, id: &str, why: impl Into<String>) {
        self.skipped.push(Skipped {
            id: id.to_owned(),
            why: why.into(),
        });
    }

    /// Prints the report; the exit code says whether every promise is kept.
    pub fn conclude(&self, form: Form) -> Result<ExitCode> {
        form.print(self, || self.table())?;
        Ok(self.exit_code())
    }

    pub fn exit_code(&self) -> ExitCode {
        if self.all_met() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// Whether every promised figure was measured and met.
    pub fn all_met(&self) -> bool {
        self.skipped.is_empty() && self.rows.iter().all(|row| row.met != Some(false))
    }

    /// The report for a person.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{} · Linux {} · governor {} · load {} · {}\n",
            self.host.cpu, self.host.kernel, self.host.governor, self.host.load, self.host.commit
        );
        for row in &self.rows {
            let sign = match row.side {
                Side::AtMost => '≤',
                Side::AtLeast => '≥',
            };
            let promise = match (row.limit, row.met) {
                (Some(limit), Some(true)) => format!("{sign} {limit} met"),
                (Some(limit), _) => format!("{sign} {limit} NOT MET"),
                (None, _) => String::new(),
            };
            text += &format!(
                "{:<28} {:>10.3} {:<5} [{:.3} … {:.3}]  {promise}\n",
                row.id, row.value, row.unit, row.spread[0], row.spread[1]
            );
        }
        for skipped in &self.skipped {
            text += &format!("{:<28} skipped: {}\n", skipped.id, skipped.why);
        }
        text
    }
}

/// Median and [least, greatest] of the samples; nothing for none.
pub fn median(samples: &[f64]) -> Option<(f64, [f64; 2])> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (&least, &greatest) = (sorted.first()?, sorted.last()?);
    let middle = sorted.len() / 2;
    let value = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    Some((value, [least, greatest]))
}

impl Host {
    fn read() -> Self {
        let file = |path: &str| {
            std::fs::read_to_string(Path::new(path))
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let after = |text: &str, key: &str| {
            text.lines()
                .find(|line| line.starts_with(key))
                .and_then(|line| line.split_once(':'))
                .map_or_else(
                    || "unknown".to_owned(),
                    |(_, value)| value.trim().to_owned(),
                )
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let governor = file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            cpu: format!(
                "{} ({cpus} CPUs)",
                after(&file("/proc/cpuinfo"), "model name")
            ),
            kernel: file("/proc/sys/kernel/osrelease"),
            governor: if governor.is_empty() {
                "none".to_owned()
            } else {
                governor
            },
            load: file("/proc/loadavg")
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
            huge_pages: after(&file("/proc/meminfo"), "HugePages_Total"),
            commit: commit(),
        }
    }
}

fn commit() -> String {
    let described = capture(
        Command::new("git")
            .args(["describe", "--always", "--dirty", "--abbrev=12"])
            .current_dir(root()),
    );
    described.map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_not_moved_by_one_slow_sample() {
        assert_eq!(median(&[1.0, 900.0, 2.0]), Some((2.0, [1.0, 900.0])));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some((2.5, [1.0, 4.0])));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_missed_limit_and_a_skipped_row_are_not_met() {
        let mut report = Report::new();
        report.row("a", "ms", &[1.0], Some(1.0));
        report.row("b", "ms", &[5.0], None);
        assert!(report.all_met());
        report.row("c", "ms", &[2.0], Some(1.0));
        assert!(!report.all_met());
        assert_eq!(report.rows[2].met, Some(false));

        let mut rate = Report::new();
        rate.row_at_least("e", "×", &[12.0], 10.0);
        assert!(rate.all_met());
        rate.row_at_least("f", "×", &[9.0], 10.0);
        assert!(!rate.all_met());

        let mut nothing = Report::new();
        nothing.row("d", "ms", &[], Some(1.0));
        assert!(!nothing.all_met() && nothing.rows.is_empty());
    }
}
