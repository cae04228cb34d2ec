//! From samples to rows: the promised ratios, then every figure behind them.

use std::fmt::Write as _;

use serde::Serialize;

/// What `cargo xtask bench durable` reads.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    rows: Vec<Row>,
    skipped: Vec<Skipped>,
}

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    unit: &'static str,
    /// One per round.
    samples: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_least: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Skipped {
    id: String,
    why: String,
}

impl Report {
    pub fn promised(&mut self, id: &str, samples: Vec<f64>, limit: f64) {
        self.rows.push(Row {
            id: id.to_owned(),
            unit: "ratio",
            samples,
            at_least: Some(limit),
        });
    }

    pub fn figure(&mut self, id: &str, unit: &'static str, samples: Vec<f64>) {
        self.rows.push(Row {
            id: id.to_owned(),
            unit,
            samples,
            at_least: None,
        });
    }

    pub fn skip(&mut self, id: &str, why: &anyhow::Error) {
        self.skipped.push(Skipped {
            id: id.to_owned(),
            why: format!("{why:#}"),
        });
    }

    /// For a person.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let mut samples = row.samples.clone();
            samples.sort_by(f64::total_cmp);
            let (Some(low), Some(high)) = (samples.first(), samples.last()) else {
                continue;
            };
            let median = samples[samples.len() / 2];
            let limit = match row.at_least {
                Some(limit) if median >= limit => format!("≥ {limit}: met"),
                Some(limit) => format!("≥ {limit}: missed"),
                None => String::new(),
            };
            let Row { id, unit, .. } = row;
            writeln!(
                text,
                "{id:<28} {median:>14.3} {unit:<6} [{low:.3} … {high:.3}] {limit}"
            )
            .expect("writing to a string");
        }
        for Skipped { id, why } in &self.skipped {
            writeln!(text, "{id:<28} skipped: {why}").expect("writing to a string");
        }
        text
    }
}
