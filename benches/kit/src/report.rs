//! What a benchmark says: one row per figure with its samples, the promised ratios first, and what was skipped.
//!
//! `cargo xtask bench` reads it as JSON and takes the medians; [`Report::table`] is for a person.

use std::fmt::{Display, Write as _};

use anyhow::{Context, Result};
use serde::Serialize;

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
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    limit: Option<Limit>,
}

/// What is promised of a median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Debug, Serialize)]
struct Skipped {
    id: String,
    why: String,
}

impl Limit {
    fn admits(self, median: f64) -> bool {
        match self {
            Self::AtMost(limit) => median <= limit,
            Self::AtLeast(limit) => median >= limit,
        }
    }
}

impl Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
        }
    }
}

impl Report {
    /// A ratio that has to be within a limit.
    pub fn promised(&mut self, id: impl Into<String>, samples: Vec<f64>, limit: Limit) {
        self.row(id, "×", samples, Some(limit));
    }

    /// A figure that is told and not judged.
    pub fn figure(&mut self, id: impl Into<String>, unit: &'static str, samples: Vec<f64>) {
        self.row(id, unit, samples, None);
    }

    /// A figure with a limit of its own unit.
    pub fn row(
        &mut self,
        id: impl Into<String>,
        unit: &'static str,
        samples: Vec<f64>,
        limit: Option<Limit>,
    ) {
        self.rows.push(Row {
            id: id.into(),
            unit,
            samples,
            limit,
        });
    }

    /// What could not be measured; `why` with all its causes.
    pub fn skip(&mut self, id: impl Into<String>, why: impl Display) {
        self.skipped.push(Skipped {
            id: id.into(),
            why: format!("{why:#}"),
        });
    }

    /// As JSON in one line, or as a table.
    pub fn text(&self, json: bool) -> Result<String> {
        if json {
            let mut text = serde_json::to_string(self).context("write the report")?;
            text.push('\n');
            return Ok(text);
        }
        Ok(self.table())
    }

    fn table(&self) -> String {
        let mut text = String::new();
        for row in self.rows.iter().filter(|row| !row.samples.is_empty()) {
            let (median, low, high) = spread(&row.samples);
            let limit = row.limit.map_or_else(String::new, |limit| {
                let met = if limit.admits(median) {
                    "met"
                } else {
                    "NOT MET"
                };
                format!("{limit} {met}")
            });
            let Row { id, unit, .. } = row;
            writeln!(
                text,
                "{id:<36} {median:>14.3} {unit:<6} [{low:.3} … {high:.3}] {limit}"
            )
            .expect("writing to a string");
        }
        for Skipped { id, why } in &self.skipped {
            writeln!(text, "{id:<36} skipped: {why}").expect("writing to a string");
        }
        text
    }
}

/// Median, least and greatest of at least one sample.
pub fn spread(samples: &[f64]) -> (f64, f64, f64) {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    };
    (median, sorted[0], sorted[sorted.len() - 1])
}
