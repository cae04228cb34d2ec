//! `bench bus` and `bench router`: builds the workspace `benches/` and lets it measure; docs/benchmarks.md says what.
//!
//! It lands in a directory of its own below `target`, with its own lock file: what other people's software needs to be
//! built never reaches the product. The measuring is all in `benches/bus` and `benches/router`; here
//! its samples become a report.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Effort;
use super::peers::{self, Place};
use super::report::Report;
use crate::child::capture;
use crate::workspace::Metadata;

/// What the driver prints.
#[derive(Debug, Deserialize)]
struct Found {
    rows: Vec<Row>,
    skipped: Vec<Skipped>,
}

#[derive(Debug, Deserialize)]
struct Row {
    id: String,
    unit: String,
    samples: Vec<f64>,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Skipped {
    id: String,
    why: String,
}

/// A program of `benches/` that measures.
#[derive(Clone, Copy, Debug)]
pub enum Driver {
    /// Two processes and one way between them.
    Bus,
    /// A router in between.
    Router,
    /// A disk in between.
    Durable,
}

impl Driver {
    fn package(self) -> &'static str {
        match self {
            Self::Bus => "bench-bus",
            Self::Router => "bench-router",
            Self::Durable => "bench-durable",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Self::Bus => "bus",
            Self::Router => "router",
            Self::Durable => "durable",
        }
    }
}

pub fn measure(which: Driver, report: &mut Report, effort: Effort, only: &[String]) -> Result<()> {
    let place = Place::below(&Metadata::of_members()?.target_directory);
    place.build(which.package())?;
    let driver = || {
        let mut driver = Command::new(place.program(which.program()));
        if !only.is_empty() {
            driver.arg("--only").arg(only.join(","));
        }
        driver
    };
    let peers = capture(driver().arg("--peers"))?;
    peers::set_up(&place, &peers.lines().collect::<Vec<&str>>());
    let mut measure = driver();
    measure.arg("--json");
    if effort == Effort::Quick {
        measure.arg("--quick");
    }
    measure.env("BENCH_NATS_SERVER", place.tools.join("bin/nats-server"));
    // Its progress goes to standard error, as it comes.
    let text = capture(measure.stderr(Stdio::inherit()))?;
    tell(report, &text, which.program())
}

/// Puts what a driver of `benches/` printed into the report.
pub fn tell(report: &mut Report, text: &str, driver: &str) -> Result<()> {
    let found: Found = serde_json::from_str(text).with_context(|| {
        format!(
            "the {driver} benchmark printed {} bytes, no report",
            text.len()
        )
    })?;
    for row in found.rows {
        match (row.at_least, row.at_most) {
            (Some(limit), _) => report.row_at_least(&row.id, row.unit, &row.samples, limit),
            (None, limit) => report.row(&row.id, row.unit, &row.samples, limit),
        }
    }
    for Skipped { id, why } in found.skipped {
        report.skip(&id, why);
    }
    Ok(())
}
