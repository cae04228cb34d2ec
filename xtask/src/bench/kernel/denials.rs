//! Rows `denial_LAYER`: from a refused call to the event at a D-Bus follower, and what a flood of
//! refused calls does.
//!
//! An agent under `coding` makes calls that the layer refuses. Each carries the moment before it in
//! an argument that the event tells again, so every event has its own latency; the client is
//! `agentctl/benches/denials.rs`. Three kinds, each an agent's of its own: refusals that are new
//! and go on record, as the signal `Denied`; and 1,000 and 10,000 a second in the pipe of `Watch`.
//! The promised row is the worst of the three 99th percentiles; a refusal that nobody is told of at
//! these rates misses `untold`. In a flood, which is as many calls as the agent can make, every
//! call must be refused and accounted for: told, left out of a slow reader's pipe, or counted as
//! lost.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::Effort;
use super::super::report::Report;
use super::agent::Obedient;
use super::{client, number, numbers, percentile, revoke};
use crate::child;
use crate::lab::{Lab, Programs, Setup};

/// The promise.
const LIMIT_MS: f64 = 5.0;

/// A layer of the kernel that refuses and tells.
#[derive(Debug)]
pub struct Layer {
    pub row: &'static str,
    /// As events name it.
    layer: &'static str,
    /// Perl: what is done once, `refused(NS)`, which is true if the call was refused, and `anew(N)`, after which the next refusal
    /// is another than those before.
    calls: &'static str,
    /// Each refusal is some line's of the policy; else it is live control's, which no line decides.
    by_line: bool,
    /// The policy's text, where it is not `coding`.
    policy: Option<&'static str>,
    /// Lines of the daemon's configuration.
    daemon: &'static str,
    /// What is done to the agent first, or why the layer tells nothing here.
    prepare: fn(&Lab, &str) -> Result<()>,
    why_not: fn(&Lab) -> Result<Option<String>>,
}

pub const LAYERS: &[Layer] = &[BPF, SECCOMP, LANDLOCK];

/// Connects without the network. The address is `10.…` and the port, 39 bits of the moment; so each is another. Ports are of the
/// upper half: agentd's own services, which every agent may reach, are in the lower.
const BPF: Layer = Layer {
    row: "denial_bpf",
    layer: "bpf",
    calls: r#"
socket(my $s, PF_INET, SOCK_STREAM, 0) or die "$!";
sub refused {
  my $to = pack_sockaddr_in(0x8000 | ($_[0] & 0x7fff), pack("N", 0x0a000000 | ($_[0] >> 15 & 0xffffff)));
  return !connect($s, $to) && $! == 1;
}
sub anew { }
"#,
    by_line: false,
    policy: None,
    daemon: "",
    prepare: |lab, agent| child::capture(lab.agentctl().args(["revoke", "net", agent])).map(drop),
    why_not: revoke::why_not,
};

/// `ptrace`, whose first two arguments are the moment: wider ones are taken for addresses, and not
/// told. Refusals of programs of another name are other refusals: `prctl(PR_SET_NAME)`.
const SECCOMP: Layer = Layer {
    row: "denial_seccomp",
    layer: "seccomp",
    calls: r#"
sub refused { return syscall(101, int($_[0] / 4294967296), $_[0] & 0xffffffff, 0) == -1 && $! == 1 }
sub anew { syscall(157, 15, "name$_[0]") == 0 or die "$!" }
"#,
    by_line: true,
    policy: None,
    daemon: "",
    prepare: |_, _| Ok(()),
    why_not: |lab| observable(lab, "seccomp"),
};

/// Connects to ports that no line allows, as under [`BPF`]. Turns the host's audit on, so only
/// where the row is asked for by name.
const LANDLOCK: Layer = Layer {
    row: "denial_landlock",
    layer: "landlock",
    calls: r#"
socket(my $s, PF_INET, SOCK_STREAM, 0) or die "$!";
sub refused {
  my $to = pack_sockaddr_in(0x8000 | ($_[0] & 0x7fff), pack("N", 0x0a000000 | ($_[0] >> 15 & 0xffffff)));
  return !connect($s, $to) && $! == 13;
}
sub anew { }
"#,
    by_line: true,
    policy: Some("extends = \"coding\"\n[net]\nports = []\n"),
    daemon: "kernel_audit = \"on\"\n",
    prepare: |_, _| Ok(()),
    why_not: |lab| observable(lab, "landlock"),
};

/// What the agent does: `KIND CALLS PACE SECONDS`, so many calls or so long, one each PACE ns or without a pause.
const AGENT: &str = r#"
use Socket; use IO::Handle; use Time::HiRes qw(clock_gettime clock_nanosleep CLOCK_MONOTONIC TIMER_ABSTIME);
sub now { return int(1e9 * clock_gettime(CLOCK_MONOTONIC)) }
CALLS
open(my $ask, "<", "ask") or die "$!"; open(my $answer, ">", "answer") or die "$!"; $answer->autoflush(1);
while (<$ask>) {
  my ($kind, $calls, $pace, $seconds) = split;
  my ($made, $refused, $due) = (0, 0, now());
  my $until = $due + $seconds * 1e9;
  until ($calls ? $made == $calls : $made % 64 == 0 && now() > $until) {
    if ($pace) {
      # Never faster, also when it was late.
      my $now = now(); $due += $pace; $due = $now if $due < $now;
      clock_nanosleep(CLOCK_MONOTONIC, $due, TIMER_ABSTIME) if $now < $due;
    }
    anew($made) if $kind eq "new";
    if ($kind eq "allowed") { syscall(110) } else { $refused++ if refused(now()) }
    $made++;
  }
  print $answer "$made $refused\n";
}
"#;

/// What another agent does meanwhile, each 2 ms: looks for a file, opens and reads one, connects to itself. Answers with the
/// microseconds of each.
const OTHER: &str = r#"
use Socket; use IO::Handle; use Time::HiRes qw(clock_gettime clock_nanosleep CLOCK_MONOTONIC TIMER_ABSTIME);
sub now { return 1e9 * clock_gettime(CLOCK_MONOTONIC) }
my ($host, $s, $come);
socket($host, PF_INET, SOCK_STREAM, 0) && bind($host, sockaddr_in(0, inet_aton("127.0.0.1"))) && listen($host, 8) or die "$!";
my $to = getsockname($host);
open(my $ask, "<", "ask") or die "$!"; open(my $answer, ">", "answer") or die "$!"; $answer->autoflush(1);
while (<$ask>) {
  my (undef, undef, undef, $seconds) = split;
  my $due = now(); my $until = $due + $seconds * 1e9; my @took;
  while ($due < $until) {
    $due += 2e6;
    clock_nanosleep(CLOCK_MONOTONIC, $due, TIMER_ABSTIME) if now() < $due;
    my $begun = now();
    -e "/usr/bin/env" or die "$!";
    open(my $file, "<", "/etc/passwd") or die "$!"; my @lines = <$file>; close $file;
    socket($s, PF_INET, SOCK_STREAM, 0) && connect($s, $to) && accept($come, $host) or die "$!";
    close $s; close $come;
    push @took, sprintf("%.1f", (now() - $begun) / 1000);
  }
  print $answer "@took\n";
}
"#;

/// One kind of refusals at a rate.
struct Kind {
    name: &'static str,
    calls: u64,
    pace_ns: u64,
    new: bool,
}

/// New ones are at most a thousand a minute for each agent, and each is on record.
const KINDS: [Kind; 3] = [
    Kind {
        name: "new",
        calls: 500,
        pace_ns: 5_000_000,
        new: true,
    },
    Kind {
        name: "at_1k",
        calls: 2_000,
        pace_ns: 1_000_000,
        new: false,
    },
    Kind {
        name: "at_10k",
        calls: 20_000,
        pace_ns: 100_000,
        new: false,
    },
];
/// In the lab's directory.
const POLICY: &str = "ports.toml";
const FLOOD_SECONDS: u64 = 3;

pub fn measure(
    report: &mut Report,
    layer: &Layer,
    programs: Programs,
    effort: Effort,
) -> Result<()> {
    let setup = Setup {
        daemon: layer.daemon,
        ..Setup::default()
    };
    let lab = Lab::start(programs, &setup)?;
    if let Some(policy) = layer.policy {
        std::fs::write(lab.directory().join(POLICY), policy).context("write the policy")?;
    }
    if let Some(why) = (layer.why_not)(&lab)? {
        report.skip(layer.row, why);
        return Ok(());
    }
    let mut p99: [Vec<f64>; 3] = Default::default();
    let (mut untold, mut floods) = (0.0, Vec::new());
    // Other agents by turns, so that a busy moment of the host hits each kind.
    for round in 0..=effort.rounds(5) {
        for (kind, samples) in KINDS.iter().zip(&mut p99) {
            let (sample, missing) = paced(&lab, layer, kind, round)
                .with_context(|| format!("{}.{}", layer.row, kind.name))?;
            // The first round warms caches.
            if round > 0 {
                samples.push(sample);
                untold += missing;
            }
        }
        if round > 0 {
            floods.push(flood(&lab, layer, round)?);
        }
    }
    rows(report, layer.row, &p99, untold, &floods);
    Ok(())
}

/// Whether the daemon can tell of a layer here; the reason if not.
fn observable(lab: &Lab, layer: &str) -> Result<Option<String>> {
    let answer = lab.ask(&["denials", "--layers"])?;
    let layers = answer["layers"].as_array();
    let found = layers.and_then(|all| all.iter().find(|one| one["layer"] == layer));
    let found = found.with_context(|| format!("agentd knows no layer {layer}: {answer}"))?;
    Ok(found["why_not"].as_str().map(str::to_owned))
}

fn start<'a>(lab: &'a Lab, layer: &Layer, name: &str) -> Result<Obedient<'a>> {
    let script = AGENT.replace("CALLS", layer.calls);
    let agent = match layer.policy {
        None => Obedient::start(lab, name, &script)?,
        Some(_) => {
            let policy = lab.directory().join(POLICY);
            Obedient::start_under(lab, policy.as_os_str(), name, &script)?
        }
    };
    (layer.prepare)(lab, name)?;
    Ok(agent)
}

/// Milliseconds that 99 of 100 events don't exceed, and refusals that were not told.
fn paced(lab: &Lab, layer: &Layer, kind: &Kind, round: usize) -> Result<(f64, f64)> {
    let agent = start(
        lab,
        layer,
        &format!("{}-{round}", kind.name.replace('_', "-")),
    )?;
    let figures = client("agentctl", "denials", |command| {
        command
            .arg("--socket")
            .arg(lab.directory().join("run/control.sock"))
            .args(["--agent", agent.name(), "--layer", layer.layer])
            .args(["--calls", &kind.calls.to_string()])
            .args(["--pace", &kind.pace_ns.to_string()]);
        if kind.new {
            command.arg("--new");
        }
        agent.pass(command, "--ask", "--answer");
    })?;
    agent.end()?;
    let events = sound(layer, kind, &figures)?;
    let p99 = percentile(&events, 0.99).context("no event came")?;
    Ok((p99 / 1000.0, kind.calls as f64 - events.len() as f64))
}

/// Microseconds of each event, if every call was refused and every event says why.
fn sound(layer: &Layer, kind: &Kind, figures: &Value) -> Result<Vec<f64>> {
    let of = |key| number(figures, key);
    let (made, told) = (of("made")?, of("told")?);
    ensure!(
        of("refused")? == made,
        "{} of {made} calls were refused",
        of("refused")?
    );
    ensure!(
        of("without_rule")? == 0.0,
        "{} events have no rule",
        of("without_rule")?
    );
    let with_line = if layer.by_line { told } else { 0.0 };
    ensure!(
        of("with_line")? == with_line,
        "{} of {told} events have a line of the policy",
        of("with_line")?
    );
    numbers(figures, if kind.new { "signal_us" } else { "pipe_us" })
}

/// What became of a flood.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Flood {
    made: f64,
    allowed: f64,
    told: f64,
    left_out: f64,
    lost: f64,
    /// Another agent's work beside the flood, by that beside as many allowed calls: medians, and 99th percentiles.
    others: f64,
    others_p99: f64,
}

impl Flood {
    fn of(figures: &Value) -> Result<Self> {
        let of = |key| number(figures, key);
        let (beside, quiet) = (
            numbers(figures, "beside_flood_us")?,
            numbers(figures, "beside_allowed_us")?,
        );
        let ratio = |share| -> Result<f64> {
            let both = percentile(&beside, share).zip(percentile(&quiet, share));
            both.map(|(beside, quiet)| beside / quiet)
                .context("the other agent did nothing")
        };
        Ok(Self {
            made: of("made")?,
            allowed: of("made")? - of("refused")?,
            told: of("told")?,
            left_out: of("left_out")?,
            lost: of("lost")?,
            others: ratio(0.5)?,
            others_p99: ratio(0.99)?,
        })
    }

    /// Refusals of which neither the follower nor a counter knows, or which are counted twice.
    fn unaccounted(&self) -> f64 {
        (self.made - self.told - self.left_out - self.lost).abs()
    }
}

fn flood(lab: &Lab, layer: &Layer, round: usize) -> Result<Flood> {
    let other = Obedient::start(lab, &format!("other-{round}"), OTHER)?;
    let agent = start(lab, layer, &format!("flood-{round}"))?;
    let figures = client("agentctl", "denials", |command| {
        command
            .arg("--socket")
            .arg(lab.directory().join("run/control.sock"))
            .args(["--agent", agent.name(), "--layer", layer.layer])
            .args(["--flood", &FLOOD_SECONDS.to_string()]);
        agent.pass(command, "--ask", "--answer");
        other.pass(command, "--other-ask", "--other-answer");
    })?;
    agent.end()?;
    other.end()?;
    Flood::of(&figures)
}

fn rows(report: &mut Report, row: &str, p99: &[Vec<f64>; 3], untold: f64, floods: &[Flood]) {
    let middle = |samples: &[f64]| percentile(samples, 0.5).unwrap_or(f64::NAN);
    let worst = p99
        .iter()
        .max_by(|one, other| f64::total_cmp(&middle(one), &middle(other)));
    report.row(row, "ms", worst.map_or(&[], Vec::as_slice), Some(LIMIT_MS));
    for (kind, samples) in KINDS.iter().zip(p99) {
        report.row(&format!("{row}.{}", kind.name), "ms", samples, None);
    }
    report.row(&format!("{row}.untold"), "", &[untold], Some(0.0));
    let of = |field: fn(&Flood) -> f64| floods.iter().map(field).collect::<Vec<_>>();
    let mut figure = |name: &str, unit: &'static str, samples: Vec<f64>, limit| {
        report.row(&format!("{row}.flood.{name}"), unit, &samples, limit);
    };
    let seconds = FLOOD_SECONDS as f64;
    figure(
        "rate",
        "/s",
        floods.iter().map(|one| one.made / seconds).collect(),
        None,
    );
    figure("made", "", of(|one| one.made), None);
    figure("told", "", of(|one| one.told), None);
    figure("left_out", "", of(|one| one.left_out), None);
    figure("lost", "", of(|one| one.lost), None);
    // Of all floods together: a median would pass over the one that failed.
    let all = |field: fn(&Flood) -> f64| vec![floods.iter().map(field).sum()];
    figure("allowed", "", all(|one| one.allowed), Some(0.0));
    figure("unaccounted", "", all(Flood::unaccounted), Some(0.0));
    figure("others", "×", of(|one| one.others), None);
    figure("others_p99", "×", of(|one| one.others_p99), None);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn figures() -> Value {
        json!({
            "made": 10, "refused": 10, "told": 10, "left_out": 0, "lost": 0, "with_line": 10, "without_rule": 0,
            "signal_us": [5.0], "pipe_us": [7.0, 8.0],
            "beside_allowed_us": [1.0, 2.0, 3.0], "beside_flood_us": [2.0, 3.0, 9.0],
        })
    }

    fn with(key: &str, value: u64) -> Value {
        let mut figures = figures();
        figures[key] = value.into();
        figures
    }

    #[test]
    fn an_allowed_call_or_an_event_without_its_line_is_no_figure() {
        let new = &KINDS[0];
        assert_eq!(sound(&SECCOMP, new, &figures()).expect("events"), [5.0]);
        let told = sound(&SECCOMP, &KINDS[1], &figures()).expect("events");
        assert_eq!(told, [7.0, 8.0]);
        for (key, value) in [("refused", 9), ("with_line", 9), ("without_rule", 1)] {
            assert!(sound(&SECCOMP, new, &with(key, value)).is_err(), "{key}");
        }
        // Live control is nobody's line.
        assert!(sound(&BPF, new, &figures()).is_err());
        assert!(sound(&BPF, new, &with("with_line", 0)).is_ok());
    }

    #[test]
    fn a_flood_adds_up_or_says_what_is_missing() {
        let flood = Flood::of(&figures()).expect("figures");
        assert_eq!((flood.unaccounted(), flood.allowed), (0.0, 0.0));
        assert_eq!((flood.others, flood.others_p99), (1.5, 3.0));
        let flood = Flood::of(&with("told", 4)).expect("figures");
        assert_eq!(flood.unaccounted(), 6.0);
        let mut half = with("told", 4);
        half["lost"] = 5.into();
        half["left_out"] = 1.into();
        assert_eq!(Flood::of(&half).expect("figures").unaccounted(), 0.0);
        let doubled = Flood::of(&with("lost", 1)).expect("figures");
        assert_eq!(doubled.unaccounted(), 1.0);
    }

    #[test]
    fn the_promised_row_is_the_worst_kind_and_an_allowed_call_misses_it() {
        let p99 = [
            vec![1.0, 9.0, 1.2],
            vec![4.0, 4.1, 3.9],
            vec![2.0, 2.0, 2.0],
        ];
        let mut report = Report::new();
        rows(&mut report, "denial_x", &p99, 0.0, &[Flood::default()]);
        assert_eq!(report.rows[0].value, 4.0);
        assert!(report.all_met());
        let leaks = Flood {
            allowed: 1.0,
            ..Flood::default()
        };
        rows(
            &mut report,
            "denial_x",
            &p99,
            0.0,
            &[leaks, Flood::default(), Flood::default()],
        );
        assert!(!report.all_met(), "one of three is one too many");
    }
}
