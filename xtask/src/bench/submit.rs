//! `bench submit`: tasks that a daemon takes per second, each on the disk when it is acknowledged, beside the disk itself.
//!
//! The disk's rate is that of appending 4 KiB and `fdatasync`, again and again, in the same directory as the record.
//! `submit.one` is one client, `submit.sixteen` sixteen, all with pipelined `SubmitMany` calls; the promised figures are
//! ratios to the disk's rate of the same round. `….single` rows are the same with one `Submit` per task. Clients
//! are in `agentctl/benches/submit.rs`. No agent takes the tasks: this measures the queue, not the work.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Effort;
use super::report::Report;
use crate::child::capture;
use crate::lab::{Lab, Programs, Setup};
use crate::workspace::cargo;

/// How long the disk is measured in each round.
const DISK: Duration = Duration::from_millis(300);
const BLOCK: [u8; 4096] = [0x5a; 4096];

/// One figure: its row, clients, tasks of each, tasks of a call, and the promised ratio.
type Case = (&'static str, usize, usize, usize, Option<f64>);

const CASES: [Case; 4] = [
    ("submit.one", 1, 2048, 64, Some(1.0)),
    ("submit.sixteen", 16, 768, 128, Some(10.0)),
    ("submit.one.single", 1, 512, 1, None),
    ("submit.sixteen.single", 16, 128, 1, None),
];

pub fn measure(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    let mut ratios = vec![Vec::new(); CASES.len()];
    let mut rates = vec![Vec::new(); CASES.len()];
    let mut disks = Vec::new();
    for round in 0..=effort.rounds(10) {
        // A daemon for each round: an open task counts against its user's limit.
        let lab = Lab::start(programs.clone(), &Setup::default())?;
        for (case, &(_, clients, tasks, batch, _)) in CASES.iter().enumerate() {
            let disk = fsync_rate(&lab.directory().join("state"))?;
            let rate = submit_rate(&lab, clients, tasks, batch)?;
            crate::stop::check()?;
            // The first round warms caches.
            if round > 0 {
                disks.push(disk);
                rates[case].push(rate);
                ratios[case].push(rate / disk);
            }
        }
    }
    for (case, &(id, .., limit)) in CASES.iter().enumerate() {
        match limit {
            Some(limit) => report.row_at_least(id, "×", &ratios[case], limit),
            None => report.row(id, "×", &ratios[case], None),
        }
        report.row(&format!("{id}.rate"), "/s", &rates[case], None);
    }
    report.row("submit.disk", "/s", &disks, None);
    Ok(())
}

/// Appends and syncs per second.
fn fsync_rate(directory: &Path) -> Result<f64> {
    let path = directory.join("fsync.probe");
    let mut file = std::fs::File::create(&path)
        .with_context(|| format!("write in {}", directory.display()))?;
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < DISK {
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        count += 1;
    }
    let taken = begun.elapsed();
    std::fs::remove_file(&path)?;
    Ok(f64::from(count) / taken.as_secs_f64())
}

/// Tasks taken per second.
fn submit_rate(lab: &Lab, clients: usize, tasks: usize, batch: usize) -> Result<f64> {
    let text = capture(
        cargo()
            .args([
                "bench", "--quiet", "-p", "agentctl", "--bench", "submit", "--", "--socket",
            ])
            .arg(lab.directory().join("run/control.sock"))
            .args(["--clients", &clients.to_string()])
            .args(["--tasks", &tasks.to_string()])
            .args(["--batch", &batch.to_string()]),
    )?;
    let last = text.lines().next_back().unwrap_or_default();
    let figures: Value =
        serde_json::from_str(last).with_context(|| format!("the submit bench printed {last:?}"))?;
    let number = |key: &str| {
        figures[key]
            .as_f64()
            .with_context(|| format!("the submit bench printed no {key}: {last}"))
    };
    Ok(number("accepted")? / number("seconds")?)
}
