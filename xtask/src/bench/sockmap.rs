//! `bench sockmap`: builds `benches/sockmap` and lets it measure; docs/benchmarks.md says what. Needs root.

use std::process::{Command, Stdio};

use anyhow::Result;

use super::Effort;
use super::bus::tell;
use super::peers::Place;
use super::report::Report;
use crate::child::capture;
use crate::workspace::Metadata;

pub fn measure(report: &mut Report, effort: Effort) -> Result<()> {
    let place = Place::below(&Metadata::of_members()?.target_directory);
    place.build("bench-sockmap")?;
    let mut driver = Command::new(place.program("sockmap"));
    driver.arg("--json");
    if effort == Effort::Quick {
        driver.arg("--quick");
    }
    let text = capture(driver.stderr(Stdio::inherit()))?;
    tell(report, &text, "sockmap")
}
