//! `bench adopt`: how long a restarted agentd takes until it has every living agent again, and whether a terminal shows it.
//!
//! Thirty agents, ten of which count on a terminal without a pause. agentd is killed with SIGKILL and started again; the
//! time runs from its start to its `ready`, which it says only when everything is adopted. At the end each terminal's log
//! must hold every number once.

use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Effort;
use super::report::Report;
use crate::child::capture;
use crate::lab::{Lab, Programs, Setup};

const AGENTS: usize = 30;
const COUNTERS: usize = 10;
const COUNT: usize = 50_000;

pub fn measure(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    let setup = Setup {
        lifeline_grace_ms: Some(60_000),
        ..Setup::default()
    };
    let mut lab = Lab::start(programs, &setup)?;
    for nth in 0..AGENTS {
        let name = format!("agent-{nth}");
        let count = format!(
            "i=0; while [ $i -lt {COUNT} ]; do i=$((i+1)); echo $i; done; exec sleep 100000"
        );
        let (terminal, program) = if nth < COUNTERS {
            ("--tty", count.as_str())
        } else {
            ("--no-tty", "exec sleep 100000")
        };
        let run = [
            "run",
            "--no-workspace",
            "--detach",
            terminal,
            "--name",
            &name,
        ];
        capture(lab.agentctl().args(run).args(["--", "sh", "-c", program]))?;
    }
    let mut seconds = Vec::new();
    let mut missing = 0;
    for _ in 0..effort.rounds(10) {
        lab.kill_agentd()?;
        let start = Instant::now();
        lab.restart()?;
        seconds.push(start.elapsed().as_secs_f64());
        missing += AGENTS - running(&lab)?;
    }
    report.row("adopt.all_30", "s", &seconds, Some(2.0));
    report.row("adopt.lost_agents", "agents", &[missing as f64], Some(0.0));
    let mut wrong = 0;
    for nth in 0..COUNTERS {
        wrong += gaps(&lab, &format!("agent-{nth}"))?;
    }
    report.row("adopt.pty_gap", "lines", &[wrong as f64], Some(0.0));
    Ok(())
}

fn running(lab: &Lab) -> Result<usize> {
    let list = lab.ask(&["ps"])?;
    let agents = list["agents"].as_array().context("ps printed no list")?;
    Ok(agents
        .iter()
        .filter(|agent| agent["state"] == "running")
        .count())
}

/// Lines of a counting agent that are missing, repeated or broken.
fn gaps(lab: &Lab, name: &str) -> Result<usize> {
    let last = format!("{COUNT}\r\n");
    let limit = Instant::now() + super::WATCHDOG;
    let log = loop {
        let log = capture(lab.agentctl().args(["logs", name]))?;
        if log.ends_with(&last) {
            break log;
        }
        if Instant::now() > limit {
            bail!(
                "{name} did not count to {COUNT}; its log has {} bytes",
                log.len()
            );
        }
        crate::stop::check()?;
    };
    let lines: Vec<&str> = log.split_terminator("\r\n").collect();
    let right = (1..=COUNT)
        .zip(&lines)
        .filter(|(n, line)| n.to_string() == **line)
        .count();
    Ok(COUNT.max(lines.len()) - right)
}
