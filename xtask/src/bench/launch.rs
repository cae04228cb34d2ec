//! `bench launch`: starting `true` in a sandbox, beside bubblewrap with the same namespaces.
//!
//! `launch.bare` is the launcher without any daemon (measured by `launch/benches/launch.rs`, which prints its
//! samples), `launch.run` is a whole `agentctl run -- true` against a running daemon: connect, policy, plan, broker,
//! launcher, record, exit code. Both alternate with bubblewrap, one sample each in turn, so that a busy moment hits
//! both. The promised figures are ratios of medians per round.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Effort;
use super::report::{Report, median};
use crate::child::{capture, line};
use crate::lab::{Lab, Programs, Setup};
use crate::test::needs::which;
use crate::workspace::cargo;

const SAMPLES_PER_ROUND: usize = 10;

pub fn measure(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    if which("bwrap").is_none() {
        for id in ["launch.bare", "launch.run"] {
            report.skip(
                id,
                "bubblewrap is not installed: apt-get install bubblewrap",
            );
        }
        return Ok(());
    }
    bare(report, effort)?;
    run(report, programs, effort)
}

/// `launch.bare`: the launcher's own benchmark prints one JSON object of samples in ms.
fn bare(report: &mut Report, effort: Effort) -> Result<()> {
    let rounds = effort.rounds(20);
    let text = capture(
        cargo()
            .args([
                "bench",
                "--quiet",
                "-p",
                "agentd-launch",
                "--bench",
                "launch",
                "--",
                "--json",
                "--rounds",
            ])
            .arg(rounds.to_string()),
    )?;
    let last = text.lines().next_back().unwrap_or_default();
    let samples: Value =
        serde_json::from_str(last).with_context(|| format!("the launch bench printed {last:?}"))?;
    let ours = numbers(&samples["launcher_ms"])?;
    let peers = numbers(&samples["bwrap_ms"])?;
    compare(report, "launch.bare", &ours, &peers, 0.6)
}

/// `launch.run`: `agentctl run -- true` against a daemon, beside bwrap.
fn run(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    let lab = Lab::start(programs, &Setup::default())?;
    let (mut ours, mut peers) = (Vec::new(), Vec::new());
    for sample in 0..=effort.rounds(20) * SAMPLES_PER_ROUND {
        let own =
            time(
                lab.agentctl()
                    .args(["run", "--policy", "base", "--no-workspace", "--", "true"]),
            )?;
        let peer = time(&mut bwrap())?;
        // The first of each warms caches.
        if sample > 0 {
            ours.push(own);
            peers.push(peer);
        }
    }
    compare(report, "launch.run", &ours, &peers, 2.0)
}

/// Bubblewrap with every namespace that it knows, a read-only system and private /proc, /dev and /tmp.
fn bwrap() -> Command {
    let mut command = Command::new("bwrap");
    command.args([
        "--unshare-user",
        "--unshare-all",
        "--die-with-parent",
        "--new-session",
        "--ro-bind",
        "/usr",
        "/usr",
    ]);
    for link in ["bin", "sbin", "lib", "lib32", "lib64"] {
        command.args(["--symlink", &format!("usr/{link}"), &format!("/{link}")]);
    }
    command.args([
        "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--", "true",
    ]);
    command
}

/// Wall-clock time of one run, in ms.
fn time(command: &mut Command) -> Result<f64> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let begun = Instant::now();
    let output = command
        .output()
        .with_context(|| format!("start {}", line(command)))?;
    let taken = begun.elapsed();
    crate::stop::check()?;
    if !output.status.success() {
        bail!(
            "{} failed: {}",
            line(command),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(taken.as_secs_f64() * 1000.0)
}

/// The ratio of medians round by round, and both sides' own figures.
fn compare(report: &mut Report, id: &str, ours: &[f64], peers: &[f64], limit: f64) -> Result<()> {
    let ratios: Vec<f64> = ours
        .chunks(SAMPLES_PER_ROUND)
        .zip(peers.chunks(SAMPLES_PER_ROUND))
        .filter_map(|(ours, peers)| Some(median(ours)?.0 / median(peers)?.0))
        .collect();
    report.row(id, "×", &ratios, Some(limit));
    report.row(&format!("{id}.agentd"), "ms", ours, None);
    report.row(&format!("{id}.bwrap"), "ms", peers, None);
    Ok(())
}

fn numbers(value: &Value) -> Result<Vec<f64>> {
    let list = value
        .as_array()
        .with_context(|| format!("expected a list of numbers, found {value}"))?;
    list.iter()
        .map(|number| {
            number
                .as_f64()
                .with_context(|| format!("{number} is no number"))
        })
        .collect()
}
