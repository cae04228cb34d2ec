//! Row `telemetry`: what scheduler telemetry adds to a switch and the wake-up before it.
//!
//! Measured by `bpf/load/benches/telemetry.rs` with the committed programs: a byte between two
//! processes on one processor, with the programs and without in turns. A sample is what the two of
//! one round differ by.

use anyhow::{Context, Result};
use serde_json::Value;

use super::super::Effort;
use super::super::report::Report;
use super::{client, numbers};

/// The promise.
const LIMIT_NS: f64 = 250.0;

pub fn measure(report: &mut Report, effort: Effort) -> Result<()> {
    let figures = client("agentd-bpf-load", "telemetry", |command| {
        command.args(["--rounds", &effort.rounds(51).to_string()]);
    })
    .context("telemetry")?;
    rows(report, &figures)
}

fn rows(report: &mut Report, figures: &Value) -> Result<()> {
    if let Some(why) = figures["skipped"].as_str() {
        report.skip("telemetry", why);
        return Ok(());
    }
    let of = |key| numbers(figures, key);
    report.row("telemetry", "ns", &of("agent_ns")?, Some(LIMIT_NS));
    report.row("telemetry.nobody", "ns", &of("nobody_ns")?, None);
    report.row("telemetry.programs", "ns", &of("programs_ns")?, None);
    report.row("telemetry.hand_over", "ns", &of("hand_over_ns")?, None);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_promised_figure_is_an_agents() {
        let mut report = Report::new();
        let figures = json!({
            "agent_ns": [260.0, 210.0, 190.0], "nobody_ns": [20.0], "programs_ns": [180.0], "hand_over_ns": [2000.0],
        });
        rows(&mut report, &figures).expect("rows");
        assert_eq!(
            (report.rows[0].id.as_str(), report.rows[0].value),
            ("telemetry", 210.0)
        );
        assert!(report.all_met());
        assert!(rows(&mut report, &json!({"agent_ns": [1.0]})).is_err());
    }

    #[test]
    fn a_host_without_the_programs_is_a_skip_with_its_reason() {
        let mut report = Report::new();
        rows(&mut report, &json!({"skipped": "no BTF"})).expect("rows");
        assert_eq!(report.skipped[0].why, "no BTF");
        assert!(!report.all_met());
    }
}
