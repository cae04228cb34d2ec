//! Row `revoke`: from the D-Bus call to the agent's first refused connect and first refused datagram.
//!
//! The agent tries both without a pause in a sandbox under `coding`, so each figure has the time of one of its rounds in it. Each
//! sample is the 99th percentile of a batch of rounds, of whichever of the two came later. The client is
//! `agentctl/benches/revoke.rs`.

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::Value;

use super::super::Effort;
use super::super::report::Report;
use crate::child::{self, capture};
use crate::lab::{Lab, Programs, Setup};
use crate::workspace::cargo;

/// The promise.
const LIMIT_MS: f64 = 10.0;
/// Rounds of one sample.
const BATCH: usize = 200;

/// Tries until it is refused, and says when. Port 1 has no listener; the datagrams go to a socket of its own.
const AGENT: &str = r#"
use Socket; use IO::Handle; use Time::HiRes qw(time);
my $nobody = sockaddr_in(1, inet_aton("127.0.0.1"));
socket(my $own, PF_INET, SOCK_DGRAM, 0) && bind($own, sockaddr_in(0, inet_aton("127.0.0.1"))) or die "$!";
my $to = getsockname($own);
socket(my $from, PF_INET, SOCK_DGRAM, 0) or die "$!";
open(my $ask, "<", "ask") or die "$!"; open(my $answer, ">", "answer") or die "$!"; $answer->autoflush(1);
while (<$ask>) {
  my ($connect, $datagram);
  print $answer "on\n";
  until ($connect && $datagram) {
    socket(my $s, PF_INET, SOCK_STREAM, 0) or die "$!";
    connect($s, $nobody); $connect ||= time if $! == 1;
    $datagram ||= time if !defined send($from, "x", 0, $to) && $! == 1;
  }
  printf $answer "%.6f %.6f\n", $connect, $datagram;
}
"#;

pub fn measure(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    let lab = Lab::start(programs, &Setup::default())?;
    let work = lab.directory().join("work");
    let (mut worst, mut medians) = (Vec::new(), Vec::new());
    for sample in 0..=effort.rounds(5) {
        std::fs::create_dir(&work).context("make the workspace")?;
        let (ask, answer) = (work.join("ask"), work.join("answer"));
        for fifo in [&ask, &answer] {
            mkfifoat(CWD, fifo, Mode::from(0o600)).context("make a fifo")?;
        }
        let name = format!("revoked-{sample}");
        let mut run = lab.agentctl();
        run.args([
            "run",
            "--detach",
            "--no-tty",
            "--name",
            &name,
            "--workspace",
        ])
        .arg(&work)
        .args(["--", "perl", "-e", AGENT]);
        child::run(&mut run)?;
        let text = capture(
            cargo()
                .args([
                    "bench", "--quiet", "-p", "agentctl", "--bench", "revoke", "--", "--socket",
                ])
                .arg(lab.directory().join("run/control.sock"))
                .args(["--agent", &name, "--rounds", &BATCH.to_string(), "--ask"])
                .arg(&ask)
                .arg("--answer")
                .arg(&answer),
        )?;
        child::run(lab.agentctl().args(["kill", &name]))?;
        std::fs::remove_dir_all(&work).context("remove the workspace")?;
        crate::stop::check()?;
        // The first batch warms caches.
        if sample > 0 {
            let mut later = later(&text)?;
            later.sort_by(f64::total_cmp);
            medians.push(later[later.len() / 2]);
            worst.push(later[later.len() * 99 / 100]);
        }
    }
    report.row("revoke", "ms", &worst, Some(LIMIT_MS));
    report.row("revoke.median", "ms", &medians, None);
    Ok(())
}

/// For each round the later of the two moments.
fn later(text: &str) -> Result<Vec<f64>> {
    let last = text.lines().next_back().unwrap_or_default();
    let figures: Value =
        serde_json::from_str(last).with_context(|| format!("the revoke bench printed {last:?}"))?;
    let row = |key: &str| -> Result<Vec<f64>> {
        let row = figures[key]
            .as_array()
            .map(|row| row.iter().filter_map(Value::as_f64).collect());
        row.with_context(|| format!("the revoke bench printed no {key}: {last}"))
    };
    let (connects, datagrams) = (row("connect_ms")?, row("datagram_ms")?);
    Ok(connects
        .into_iter()
        .zip(datagrams)
        .map(|(one, other)| one.max(other))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_counts_as_its_later_moment() {
        let text = "noise\n{\"connect_ms\":[1.0,5.0],\"datagram_ms\":[2.0,4.0]}";
        assert_eq!(later(text).expect("figures"), [2.0, 5.0]);
        assert!(later("{}").is_err());
    }
}
