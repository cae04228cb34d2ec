//! Row `revoke`: from the D-Bus call to the agent's first refused connect and first refused datagram.
//!
//! The agent tries both without a pause in a sandbox under `coding`, so each figure has the time of one of its rounds in it. Each
//! sample is the 99th percentile of a batch of rounds, of whichever of the two came later. The client is
//! `agentctl/benches/revoke.rs`.

use anyhow::Result;
use serde_json::Value;

use super::super::Effort;
use super::super::report::Report;
use super::agent::Obedient;
use super::{client, numbers, percentile};
use crate::child;
use crate::lab::{Lab, Programs, Setup};

/// The promise.
const LIMIT_MS: f64 = 10.0;
/// Rounds of one sample.
const BATCH: usize = 200;

/// Tries until it is refused, and says when. Port 1 has no listener; the datagrams go to a socket of its own.
const AGENT: &str = r#"
use Socket; use IO::Handle; use Time::HiRes qw(time);
my $nobody = sockaddr_in(1, inet_aton("127.0.0.1"));
my ($own, $from);
socket($own, PF_INET, SOCK_DGRAM, 0) && bind($own, sockaddr_in(0, inet_aton("127.0.0.1"))) or die "$!";
my $to = getsockname($own);
socket($from, PF_INET, SOCK_DGRAM, 0) or die "$!";
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
    if let Some(why) = why_not(&lab)? {
        report.skip("revoke", why);
        return Ok(());
    }
    let (mut worst, mut medians) = (Vec::new(), Vec::new());
    for sample in 0..=effort.rounds(5) {
        let agent = Obedient::start(&lab, &format!("revoked-{sample}"), AGENT)?;
        let figures = client("agentctl", "revoke", |command| {
            command
                .arg("--socket")
                .arg(lab.directory().join("run/control.sock"))
                .args(["--agent", agent.name(), "--rounds", &BATCH.to_string()]);
            agent.pass(command, "--ask", "--answer");
        })?;
        agent.end()?;
        // The first batch warms caches.
        if sample > 0 {
            let later = later(&figures)?;
            medians.extend(percentile(&later, 0.5));
            worst.extend(percentile(&later, 0.99));
        }
    }
    report.row("revoke", "ms", &worst, Some(LIMIT_MS));
    report.row("revoke.median", "ms", &medians, None);
    Ok(())
}

/// Why no agent's network can be taken here; nothing where it can.
pub fn why_not(lab: &Lab) -> Result<Option<String>> {
    let agent = Obedient::start(lab, "asked", "open(my $ask, '<', 'ask')")?;
    let revoked = child::capture(lab.agentctl().args(["revoke", "net", agent.name()]));
    agent.end()?;
    Ok(revoked.err().map(|error| format!("{error:#}")))
}

/// For each round the later of the two moments.
fn later(figures: &Value) -> Result<Vec<f64>> {
    let (connects, datagrams) = (
        numbers(figures, "connect_ms")?,
        numbers(figures, "datagram_ms")?,
    );
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
        let figures = serde_json::json!({"connect_ms": [1.0, 5.0], "datagram_ms": [2.0, 4.0]});
        assert_eq!(later(&figures).expect("figures"), [2.0, 5.0]);
        assert!(later(&serde_json::json!({})).is_err());
    }
}
