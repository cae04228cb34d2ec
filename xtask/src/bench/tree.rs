//! `bench tree`: how long the processes of an agent outlive its end, however it comes.
//!
//! Inside the agent runs a tree with daemons that left their session and lost their parent, the kind that survives a
//! careless kill. Every process of it is held by a pidfd from outside; the clock stops when the last one reports
//! death, so nobody's word is taken for it.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::process::{PidfdFlags, pidfd_open};

use super::Effort;
use super::report::{Report, median};
use crate::child::{Child, run};
use crate::lab::{Lab, Programs, Setup, pid_of, tree_of};
use crate::stop::{Woken, wait_readable};

const LIMIT_MS: f64 = 100.0;
/// A tree that lives this much longer is reported as an error, not as a figure.
const GIVE_UP: Duration = Duration::from_secs(60);
const DAEMONS: usize = 8;
/// Each daemon leaves the session, loses its parent, has a child of its own, and says so.
const SCRIPT: &str = "for i in 1 2 3 4 5 6 7 8; do (setsid sh -c 'sleep 100000 & echo up; wait' &); done; sleep 100000";
const TIMEOUT: Duration = Duration::from_secs(2);

pub fn measure(report: &mut Report, programs: &Programs, effort: Effort) -> Result<()> {
    let rounds = effort.rounds(10);

    let lab = Lab::start(programs.clone(), &Setup::default())?;
    let stopped = repeat(rounds, || stop(&lab))?;
    let timed_out = repeat(rounds, || time_out(&lab))?;
    drop(lab);

    let crash = |setup: Setup<'_>, which: Which| {
        repeat(rounds, || {
            let mut lab = Lab::start(programs.clone(), &setup)?;
            crash(&mut lab, which)
        })
    };
    let crashed = crash(Setup::default(), Which::Both)?;
    // The promise is about each of them, so the slowest is its figure.
    let middle = |samples: &[f64]| median(samples).map_or(f64::INFINITY, |(value, _)| value);
    let slowest = [&stopped, &timed_out, &crashed]
        .into_iter()
        .max_by(|a, b| f64::total_cmp(&middle(a), &middle(b)));
    report.row(
        "kill",
        "ms",
        slowest.map_or(&[], Vec::as_slice),
        Some(LIMIT_MS),
    );
    for (id, samples) in [
        ("tree.stop", &stopped),
        ("tree.timeout", &timed_out),
        ("tree.crash", &crashed),
    ] {
        report.row(id, "ms", samples, Some(LIMIT_MS));
    }
    let no_grace = Setup {
        lifeline_grace_ms: Some(0),
        ..Setup::default()
    };
    report.row(
        "tree.crash_agentd_no_grace",
        "ms",
        &crash(no_grace, Which::Agentd)?,
        None,
    );
    Ok(())
}

fn repeat(rounds: usize, mut once: impl FnMut() -> Result<Duration>) -> Result<Vec<f64>> {
    (0..rounds)
        .map(|_| Ok(once()?.as_secs_f64() * 1000.0))
        .collect()
}

/// A running agent and a pidfd of everything in it.
struct Tree {
    // Held for its life: the attached client.
    _client: Child,
    pidfds: Vec<OwnedFd>,
}

fn plant(lab: &Lab, name: &str, timeout: Option<Duration>) -> Result<Tree> {
    let mut command = lab.agentctl();
    command.args(["run", "--no-workspace", "--name", name]);
    if let Some(timeout) = timeout {
        command
            .arg("--timeout")
            .arg(format!("{}s", timeout.as_secs()));
    }
    command
        .args(["--", "sh", "-c", SCRIPT])
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut client = Child::start("agentctl run", &mut command)?;
    let mut lines = BufReader::new(
        client
            .take_stdout()
            .context("agentctl's standard output is not piped")?,
    )
    .lines();
    for _ in 0..DAEMONS {
        let line = lines
            .next()
            .context("agentctl run ended before its daemons were up")?;
        line.context("read what the daemons say")?;
    }
    let init = lab.ask(&["inspect", name])?["pid"]
        .as_u64()
        .context("the record has no pid")?;
    let tree = tree_of(u32::try_from(init)?)?;
    // The init, the agent, and per daemon its shell and its child.
    if tree.len() < 2 + 2 * DAEMONS {
        bail!(
            "expected {} processes below {init}, found {}",
            2 + 2 * DAEMONS,
            tree.len()
        );
    }
    let pidfds = tree
        .into_iter()
        .map(|pid| {
            pidfd_open(pid_of(pid)?, PidfdFlags::empty())
                .with_context(|| format!("open a pidfd of {pid}"))
        })
        .collect::<Result<_>>()?;
    Ok(Tree {
        _client: client,
        pidfds,
    })
}

impl Tree {
    fn wait_for_death(&self) -> Result<()> {
        let deadline = Instant::now() + GIVE_UP;
        for pidfd in &self.pidfds {
            let left = deadline.saturating_duration_since(Instant::now());
            if wait_readable(pidfd.as_fd(), left)? == Woken::TimedOut {
                bail!("a process of the agent still lives after {GIVE_UP:?}");
            }
        }
        Ok(())
    }
}

fn stop(lab: &Lab) -> Result<Duration> {
    let tree = plant(lab, "tree-stop", None)?;
    let begun = Instant::now();
    run(lab
        .agentctl()
        .args(["kill", "tree-stop"])
        .stdout(Stdio::null()))?;
    tree.wait_for_death()?;
    Ok(begun.elapsed())
}

fn time_out(lab: &Lab) -> Result<Duration> {
    let tree = plant(lab, "tree-timeout", Some(TIMEOUT))?;
    let ready_ms = lab.ask(&["inspect", "tree-timeout"])?["ready_at_ms"]
        .as_u64()
        .context("the record has no ready_at_ms")?;
    tree.wait_for_death()?;
    let dead = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("read the clock")?;
    Ok(dead.saturating_sub(Duration::from_millis(ready_ms) + TIMEOUT))
}

/// Who is killed with SIGKILL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Agentd,
    Both,
}

fn crash(lab: &mut Lab, which: Which) -> Result<Duration> {
    let tree = plant(lab, "tree-crash", None)?;
    let begun = Instant::now();
    match which {
        Which::Agentd => lab.kill_agentd()?,
        Which::Both => lab.crash()?,
    }
    tree.wait_for_death()?;
    Ok(begun.elapsed())
}
