//! From samples to rows: first the promised ratios in their order, then every figure behind them.
//!
//! A ratio is taken round by round, of two samples that were taken close together, and the row is the median of those.

use std::fmt::Write as _;

use serde::Serialize;

use crate::cells::{Cell, Figure, Limit, PROMISES, Promise, Work};
use crate::run::Measured;

/// What `cargo xtask bench bus` reads.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
    pub skipped: Vec<Skipped>,
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub id: String,
    pub unit: &'static str,
    /// One per round.
    pub samples: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_most: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_least: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct Skipped {
    pub id: String,
    pub why: String,
}

impl Report {
    /// Rows of the promises in `ids`, then all figures.
    pub fn new(ids: &[String], measured: &[Measured]) -> Self {
        let mut report = Self::default();
        for promise in PROMISES
            .iter()
            .filter(|row| ids.iter().any(|id| id == row.id))
        {
            match ratio(promise, measured) {
                Ok(samples) => report.rows.push(Row::promised(promise, samples)),
                Err(why) => report.skipped.push(Skipped {
                    id: promise.id.to_owned(),
                    why,
                }),
            }
        }
        for one in measured {
            match &one.failed {
                Some(why) => report.skipped.push(Skipped {
                    id: one.cell.id(),
                    why: why.clone(),
                }),
                None => report.rows.extend(figures(one)),
            }
        }
        report
    }

    /// For a person.
    pub fn table(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let (value, low, high) = spread(&row.samples);
            let met = match (row.at_most, row.at_least) {
                (Some(limit), _) => format!("≤ {limit} {}", met(value <= limit)),
                (_, Some(limit)) => format!("≥ {limit} {}", met(value >= limit)),
                _ => String::new(),
            };
            let Row { id, unit, .. } = row;
            writeln!(
                text,
                "{id:<36} {value:>14.3} {unit:<6} [{low:.3} … {high:.3}] {met}"
            )
            .expect("writing to a string");
        }
        for Skipped { id, why } in &self.skipped {
            writeln!(text, "{id:<36} skipped: {why}").expect("writing to a string");
        }
        text
    }
}

fn met(yes: bool) -> &'static str {
    if yes { "met" } else { "NOT MET" }
}

/// Median, least and greatest.
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

impl Row {
    fn plain(id: String, unit: &'static str, samples: Vec<f64>) -> Self {
        Self {
            id,
            unit,
            samples,
            at_most: None,
            at_least: None,
        }
    }

    fn promised(promise: &Promise, samples: Vec<f64>) -> Self {
        let mut row = Self::plain(promise.id.to_owned(), "×", samples);
        match promise.limit {
            Limit::AtMost(limit) => row.at_most = Some(limit),
            Limit::AtLeast(limit) => row.at_least = Some(limit),
        }
        row
    }
}

/// Ours divided by the peer's, round by round; of several pairs the one that is furthest from its limit's good side.
fn ratio(promise: &Promise, measured: &[Measured]) -> Result<Vec<f64>, String> {
    let of = |cell: &Cell| {
        let found = measured.iter().find(|one| one.cell == *cell);
        let one = found.ok_or_else(|| format!("{} was not measured", cell.id()))?;
        match &one.failed {
            Some(why) => Err(format!("{}: {why}", cell.id())),
            None => Ok(one.figures(promise.figure)),
        }
    };
    let mut worst: Option<Vec<f64>> = None;
    for (ours, peer) in promise.pairs {
        let ratios: Vec<f64> = of(ours)?
            .iter()
            .zip(of(peer)?)
            .map(|(ours, peer)| ours / peer)
            .collect();
        let worse = worst.as_ref().is_none_or(|before| {
            let (before, now) = (spread(before).0, spread(&ratios).0);
            match promise.limit {
                Limit::AtMost(_) => now > before,
                Limit::AtLeast(_) => now < before,
            }
        });
        if worse {
            worst = Some(ratios);
        }
    }
    worst.ok_or_else(|| "nothing to compare".to_owned())
}

/// Every figure of a cell.
fn figures(measured: &Measured) -> Vec<Row> {
    let id = measured.cell.id();
    let row = |name: &str, unit, figure| {
        Row::plain(format!("{id}{name}"), unit, measured.figures(figure))
    };
    match measured.cell.work {
        Work::RoundTrip | Work::OpenLoop(_) => vec![
            row(".p50", "ns", Figure::P50),
            row(".p99", "ns", Figure::P99),
            row(".p999", "ns", Figure::P999),
        ],
        Work::Throughput | Work::Inline => vec![row("", "msg/s", Figure::Rate)],
        Work::FanOut(..) => vec![
            row(".cpu", "ns", Figure::Cpu),
            row(".rate", "msg/s", Figure::Rate),
        ],
        Work::Bulk => {
            let gigabytes = measured.cell.bytes as f64 / 1e9;
            let rates = measured.figures(Figure::Rate);
            let rates = rates.iter().map(|rate| rate * gigabytes).collect();
            vec![Row::plain(id, "GB/s", rates)]
        }
    }
}
