//! `bench idle`: what agentd and its broker hold and burn while nothing happens, without agents and
//! with some.
//!
//! Resident memory is `VmRSS`, CPU time what the kernel charged to the process, threads that have
//! ended included, in steps of 10 ms (0.03 % of the full period), while nobody calls the daemon.
//! The per-agent figure is the growth of all three processes (the broker is two) divided by the
//! agents.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Effort;
use super::report::Report;
use crate::child::capture;
use crate::lab::{Lab, Programs, Setup, stat_field};

const AGENTS: usize = 10;
const MB: f64 = 1_000_000.0;

pub fn measure(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    let lab = Lab::start(programs, &Setup::default())?;
    let (agentd, supervisor, broker) = (lab.agentd(), lab.supervisor()?, lab.broker()?);
    let period = match effort {
        Effort::Quick => Duration::from_secs(10),
        Effort::Full => Duration::from_secs(30),
    };

    // One launch first: a daemon that never did anything is not what idles on a real machine.
    capture(
        lab.agentctl()
            .args(["run", "--no-workspace", "--name", "warm-up", "--", "true"]),
    )?;
    let (cpu_agentd, cpu_broker) = idle(period, agentd, broker)?;
    let brokers = || Ok::<_, anyhow::Error>(rss(supervisor)? + rss(broker)?);
    let (empty_agentd, empty_broker) = (rss(agentd)?, brokers()?);
    report.row("idle.agentd_rss", "MB", &[empty_agentd / MB], Some(30.0));
    report.row("idle.agentd_cpu", "%", &[cpu_agentd], Some(0.1));
    report.row("idle.broker_rss", "MB", &[empty_broker / MB], Some(5.0));

    for nth in 0..AGENTS {
        let name = format!("idle-{nth}");
        capture(lab.agentctl().args([
            "run",
            "--no-workspace",
            "--detach",
            "--name",
            &name,
            "--",
            "sleep",
            "100000",
        ]))?;
    }
    let (cpu_agentd_busy, _) = idle(period, agentd, broker)?;
    let (full_agentd, full_broker) = (rss(agentd)?, brokers()?);
    let agents = AGENTS as f64;
    let growth = (full_agentd + full_broker - empty_agentd - empty_broker).max(0.0);
    report.row("idle.per_agent", "MB", &[growth / agents / MB], Some(1.0));
    report.row("idle.broker_cpu", "%", &[cpu_broker], None);
    report.row("idle.agentd_cpu_with_agents", "%", &[cpu_agentd_busy], None);
    report.row(
        "idle.agentd_rss_with_agents",
        "MB",
        &[full_agentd / MB],
        None,
    );
    report.row(
        "idle.broker_rss_with_agents",
        "MB",
        &[full_broker / MB],
        None,
    );
    Ok(())
}

/// CPU use of the two processes over `period`, in percent of one CPU.
fn idle(period: Duration, agentd: u32, broker: u32) -> Result<(f64, f64)> {
    let before = (cpu_ns(agentd)?, cpu_ns(broker)?);
    // Idling is what is measured here, so this is a sleep, not a wait for anything.
    std::thread::sleep(period);
    crate::stop::check()?;
    let percent = |now: f64, then: f64| (now - then) / period.as_nanos() as f64 * 100.0;
    Ok((
        percent(cpu_ns(agentd)?, before.0),
        percent(cpu_ns(broker)?, before.1),
    ))
}

/// CPU time of a process in ns: user and system time of proc(5), in the kernel's ticks of 10 ms.
fn cpu_ns(pid: u32) -> Result<f64> {
    let ticks = stat_field(pid, 14)? + stat_field(pid, 15)?;
    Ok(ticks as f64 * 1e9 / 100.0)
}

/// Resident memory in bytes.
fn rss(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("read the status of {pid}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|kib| kib.trim().parse::<f64>().ok())
        .map(|kib| kib * 1024.0)
        .with_context(|| format!("the status of {pid} has no VmRSS"))
}
