//! `bench launch`: starting `true` in a sandbox, beside other sandboxes.
//!
//! One program takes all samples (`sandbox/benches/launch`), so that a busy moment hits everybody:
//! `launch.bare` is the launcher with all layers and no daemon, `launch.run` a whole
//! `agentctl run -- true` against a running daemon: connect, policy, plan, broker, launcher,
//! record, exit code. Beside them bubblewrap with the same plan as far as it can follow, Codex's
//! sandbox, and Claude Code's (`srt`), the latter two from npm at pinned versions. Rows are ratios
//! of medians, round by round. What can't be had is skipped by name.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Effort;
use super::report::{Report, median};
use crate::child::capture;
use crate::demo::npm;
use crate::lab::{Lab, Programs, Setup};
use crate::test::needs::{apt_install, which};
use crate::workspace::{Metadata, cargo};

const ROUNDS: usize = 20;
/// As many as the benchmark takes of the launcher and of bubblewrap.
const OFTEN: usize = 10;
/// Of what takes a tenth of a second and more.
const SELDOM: usize = 2;

/// How the names of the samples are the names of rows.
const OURS: [(&str, &str); 2] = [("launcher", "launch.bare"), ("run", "launch.run")];
/// Name, least ratio to the bare launcher.
const SLOW_PEERS: [(&str, f64); 2] = [("codex", 20.0), ("srt", 60.0)];

pub fn measure(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    let why = "bubblewrap is not installed: apt-get install bubblewrap";
    if which("bwrap").is_none() {
        for id in ["launch.bare", "launch.run", "launch.codex", "launch.srt"] {
            report.skip(id, why);
        }
        return Ok(());
    }
    let lab = Lab::start(programs, &Setup::default())?;
    // Not below /tmp, where Codex refuses to have its home.
    let home = Metadata::of_members()?
        .target_directory
        .join("tools/peers-home");
    std::fs::create_dir_all(&home).with_context(|| format!("make {}", home.display()))?;

    let mut peers = vec![run_peer(&lab)];
    for (name, _) in SLOW_PEERS {
        match slow_peer(name, &home) {
            Ok(peer) => peers.push(peer),
            Err(error) => report.skip(&format!("launch.{name}"), format!("{error:#}")),
        }
    }
    let list = lab.directory().join("peers.json");
    std::fs::write(&list, Value::from(peers).to_string())
        .with_context(|| format!("write {}", list.display()))?;
    let samples = sample(&list, effort.rounds(ROUNDS))?;
    rows(report, &samples);
    Ok(())
}

/// `agentctl run`, as a person types it.
fn run_peer(lab: &Lab) -> Value {
    let mut command = lab.agentctl();
    command.args(["run", "--policy", "base", "--no-workspace", "--", "true"]);
    let argv: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    json!({"name": "run", "argv": argv, "env": {}, "cwd": lab.directory(), "samples_per_round": OFTEN})
}

fn slow_peer(name: &str, home: &Path) -> Result<Value> {
    /// `(program, package)`
    const OF_SRT: [(&str, &str); 3] = [("node", "nodejs"), ("rg", "ripgrep"), ("socat", "socat")];
    let (agent, needed, arguments): (_, &[_], &[&str]) = match name {
        "codex" => (&npm::CODEX, &[], &["sandbox", "--", "true"]),
        "srt" => (&npm::SANDBOX_RUNTIME, &OF_SRT, &["true"]),
        _ => bail!("{name} is no peer"),
    };
    let missing: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        apt_install(&missing).with_context(|| format!("{} needs more programs", agent.title))?;
    }
    let program = agent.install()?.display().to_string();
    let argv: Vec<&str> = std::iter::once(program.as_str())
        .chain(arguments.iter().copied())
        .collect();
    let env = json!({"HOME": home, "CODEX_HOME": home});
    Ok(json!({"name": name, "argv": argv, "env": env, "cwd": home, "samples_per_round": SELDOM}))
}

/// Name → rounds of samples, in ms.
type Samples = BTreeMap<String, Vec<Vec<f64>>>;

fn sample(peers: &Path, rounds: usize) -> Result<Samples> {
    let mut command = cargo();
    command
        .args([
            "bench",
            "--quiet",
            "-p",
            "agentd-sandbox",
            "--bench",
            "launch",
            "--",
        ])
        .args(["--json", "--rounds", &rounds.to_string(), "--peers"])
        .arg(peers);
    let text = capture(&mut command)?;
    let last = text.lines().next_back().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("the launch bench printed {last:?}"))
}

fn rows(report: &mut Report, samples: &Samples) {
    for ((name, id), limit) in OURS.into_iter().zip([0.6, 2.0]) {
        report.row(id, "×", &ratios(samples, name, "bwrap"), Some(limit));
    }
    let there = |name: &str| samples.contains_key(name);
    for (name, least) in SLOW_PEERS.into_iter().filter(|(name, _)| there(name)) {
        let id = format!("launch.{name}");
        report.row_at_least(&id, "×", &ratios(samples, name, "launcher"), least);
        report.row(
            &format!("{id}.run"),
            "×",
            &ratios(samples, name, "run"),
            None,
        );
    }
    for (name, rounds) in samples {
        report.row(&format!("launch.ms.{name}"), "ms", &rounds.concat(), None);
    }
}

/// The ratio of the medians of both, for each round.
fn ratios(samples: &Samples, name: &str, to: &str) -> Vec<f64> {
    let rounds = |name: &str| samples.get(name).map_or(&[][..], Vec::as_slice);
    rounds(name)
        .iter()
        .zip(rounds(to))
        .filter_map(|(of, to)| Some(median(of)?.0 / median(to)?.0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_medians_of_the_same_round() {
        let samples = Samples::from([
            ("a".to_owned(), vec![vec![2.0, 90.0, 4.0], vec![9.0]]),
            ("b".to_owned(), vec![vec![2.0], vec![3.0]]),
        ]);
        assert_eq!(ratios(&samples, "a", "b"), [2.0, 3.0]);
        assert!(ratios(&samples, "a", "none").is_empty());
    }

    #[test]
    fn a_peer_that_was_not_sampled_makes_no_row() {
        let mut report = Report::new();
        let one = vec![vec![1.0]];
        let samples =
            Samples::from(["launcher", "run", "bwrap"].map(|name| (name.to_owned(), one.clone())));
        rows(&mut report, &samples);
        assert!(report.rows.iter().all(|row| !row.id.contains("codex")));
        assert_eq!(
            (report.rows[0].id.as_str(), report.rows[0].value),
            ("launch.bare", 1.0)
        );
    }
}
