//! `bench gateway`: builds `benches/gateway` and lets it measure; docs/benchmarks.md says what.
//!
//! The measuring is all there; here its samples become a report, and what was skipped is said by name.

use std::process::{Command, Stdio};

use anyhow::Result;

use super::Effort;
use super::bus::tell;
use super::peers::Place;
use super::report::Report;
use crate::child::capture;
use crate::workspace::Metadata;

pub fn measure(report: &mut Report, effort: Effort, only: &[String]) -> Result<()> {
    let place = Place::below(&Metadata::of_members()?.target_directory);
    place.build("bench-gateway")?;
    let mut driver = Command::new(place.program("gateway"));
    driver.arg("--json");
    if effort == Effort::Quick {
        driver.arg("--quick");
    }
    if !only.is_empty() {
        driver.arg("--only").arg(only.join(","));
    }
    // Its progress goes to standard error, as it comes.
    let text = capture(driver.stderr(Stdio::inherit()))?;
    tell(report, &text, "gateway")
}
