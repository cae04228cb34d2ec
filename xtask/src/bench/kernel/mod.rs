//! `bench kernel`: what the kernel plane promises. One file for each row's measurement.
//!
//! Root mode only, since eBPF programs are root's to load. A row that this host can't have is skipped by name, with the daemon's
//! reason.

mod agent;
mod denials;
mod restart;
mod revoke;
mod telemetry;

use std::io::{Read as _, Seek as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Effort;
use super::report::Report;
use crate::child::{self, Child};
use crate::lab::Programs;
use crate::workspace::cargo;

/// `only`: rows, or parts of their names; all of them if there is none.
pub fn measure(
    report: &mut Report,
    programs: &Programs,
    effort: Effort,
    only: &[String],
) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("eBPF programs are loaded by root: run `cargo xtask bench kernel` as root");
    }
    let wanted = |row: &str| only.is_empty() || only.iter().any(|part| row.contains(part.as_str()));
    if wanted("revoke") {
        revoke::measure(report, programs.clone(), effort)?;
    }
    for layer in denials::LAYERS {
        // It changes the host.
        if layer.row == "denial_landlock" && only.is_empty() {
            report.skip(
                layer.row,
                "it turns the kernel's audit on: ask for the row by its name".to_owned(),
            );
            continue;
        }
        if wanted(layer.row) {
            denials::measure(report, layer, programs.clone(), effort)?;
        }
    }
    if wanted("telemetry") {
        telemetry::measure(report, effort)?;
    }
    if wanted("restart") {
        restart::measure(report, programs, effort)?;
    }
    Ok(())
}

/// Nothing that a bench waits for takes longer unless an agent has ended.
const LIMIT: Duration = Duration::from_secs(300);

/// Runs a program of `benches/` of one of the crates, and reads the object that it prints last.
fn client(package: &str, bench: &str, arguments: impl FnOnce(&mut Command)) -> Result<Value> {
    let command = |rest: &[&str]| {
        let mut command = cargo();
        command.args(["bench", "--quiet", "-p", package, "--bench", bench]);
        command.args(rest);
        command
    };
    child::run(&mut command(&["--no-run"]))?;
    let mut printed = tempfile::tempfile().context("make a temporary file")?;
    let mut run = command(&["--"]);
    arguments(&mut run);
    run.stdin(Stdio::null())
        .stdout(printed.try_clone().context("share a temporary file")?);
    match Child::start(bench, &mut run)?.wait(LIMIT)? {
        Some(status) if status.success() => {}
        Some(status) => bail!("{} failed: {status}", child::line(&run)),
        None => bail!("{} did not end within {LIMIT:?}", child::line(&run)),
    }
    let mut text = String::new();
    printed
        .rewind()
        .and_then(|()| printed.read_to_string(&mut text))
        .context("read what the bench printed")?;
    let last = text.lines().next_back().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the bench {bench} printed {last:?}"))
}

/// A list of numbers that a bench printed.
fn numbers(figures: &Value, key: &str) -> Result<Vec<f64>> {
    let row = figures[key]
        .as_array()
        .map(|row| row.iter().filter_map(Value::as_f64).collect());
    row.with_context(|| format!("the bench printed no {key}: {figures}"))
}

/// One number that a bench printed.
fn number(figures: &Value, key: &str) -> Result<f64> {
    figures[key]
        .as_f64()
        .with_context(|| format!("the bench printed no {key}: {figures}"))
}

/// The value that `share` of the samples don't exceed (nearest rank); nothing for none.
fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_sample_that_so_many_do_not_exceed() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.99), Some(99.0));
        assert_eq!(percentile(&hundred, 0.5), Some(50.0));
        assert_eq!(percentile(&hundred, 1.0), Some(100.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.99), None);
    }

    #[test]
    fn a_bench_that_prints_something_else_is_an_error() {
        let figures = serde_json::json!({"a": [1, 2.5], "b": 3});
        assert_eq!(numbers(&figures, "a").expect("a list"), [1.0, 2.5]);
        assert!(numbers(&figures, "b").is_err());
        assert_eq!(number(&figures, "b").expect("a number"), 3.0);
        assert!(number(&figures, "c").is_err());
    }
}
