//! What agents live through, and what they don't.

use anyhow::{Result, ensure};

use super::{Lab, USERS};
use crate::systemd::install::put;

const ALICE: &str = USERS[0];

/// Counts on its terminal, so that a gap would show.
const COUNT: [&str; 3] = [
    "sh",
    "-c",
    "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done",
];

/// An agent before and after something: the same process, its log whole and growing.
struct Witness<'a> {
    lab: &'a Lab<'a>,
    name: &'static str,
    pid: String,
}

impl<'a> Witness<'a> {
    fn start(lab: &'a Lab<'a>, name: &'static str) -> Result<Self> {
        lab.start_agent(ALICE, name, &COUNT)?;
        let pid = lab.field(ALICE, name, "pid")?;
        Ok(Self { lab, name, pid })
    }

    fn lives_on(self) -> Result<()> {
        let (lab, name) = (self.lab, self.name);
        let pid = lab.field(ALICE, name, "pid")?;
        ensure!(
            pid == self.pid,
            "{name} is another process: {pid}, not {}",
            self.pid
        );
        ensure!(
            lab.field(ALICE, name, "state")? == "running",
            "{name} does not run"
        );
        // It can be ended through the daemon that adopted it, and its output has no gap.
        lab.ask(ALICE, &["kill", name])?;
        let log = lab.ask(ALICE, &["logs", name])?;
        let numbers: Vec<usize> = log
            .lines()
            .filter_map(|line| line.trim().strip_prefix("line ")?.parse().ok())
            .collect();
        let whole = numbers.iter().copied().eq(1..=numbers.len());
        ensure!(
            numbers.len() > 1 && whole,
            "the log of {name} has a gap or a repetition: {log}"
        );
        Ok(())
    }
}

pub fn agents_outlive_the_daemon(lab: &Lab<'_>) -> Result<()> {
    let witness = Witness::start(lab, "patient")?;
    let before = lab.main_pid("agentd.service")?;
    lab.systemctl(&["restart", "agentd.service"])?;
    ensure!(
        lab.main_pid("agentd.service")? != before,
        "the daemon was not restarted"
    );
    witness.lives_on()
}

pub fn agents_outlive_the_broker(lab: &Lab<'_>) -> Result<()> {
    let witness = Witness::start(lab, "calm")?;
    let before = lab.main_pid("agentd-broker.service")?;
    lab.systemctl(&["restart", "agentd-broker.service"])?;
    // It greets its new broker before it answers this.
    lab.start_agent(ALICE, "after", &["true"])?;
    ensure!(
        lab.main_pid("agentd-broker.service")? != before,
        "the broker was not restarted"
    );
    witness.lives_on()
}

pub fn agents_outlive_a_killed_daemon(lab: &Lab<'_>) -> Result<()> {
    let witness = Witness::start(lab, "stoic")?;
    lab.until_logged("agentd.service", "ready", || {
        lab.systemctl(&["kill", "--signal=KILL", "agentd.service"])
            .map(drop)
    })?;
    witness.lives_on()
}

pub fn new_binaries_take_over(lab: &Lab<'_>) -> Result<()> {
    let witness = Witness::start(lab, "settled")?;
    put(&lab.items, &lab.bed.root())?;
    lab.systemctl(&["daemon-reload"])?;
    lab.systemctl(&["restart", "agentd-broker.service"])?;
    lab.systemctl(&["restart", "agentd.service"])?;
    for (unit, program) in [
        ("agentd.service", "agentd"),
        ("agentd-broker.service", "agentd-broker"),
    ] {
        let pid = lab.main_pid(unit)?;
        let runs = lab.bed.run(&["readlink", &format!("/proc/{pid}/exe")])?;
        ensure!(runs == format!("/usr/bin/{program}"), "{unit} runs {runs}");
    }
    witness.lives_on()
}

pub fn stopping_the_agents_unit_ends_all(lab: &Lab<'_>) -> Result<()> {
    for (user, name) in [(ALICE, "one"), (USERS[1], "two")] {
        lab.start_agent(user, name, &["sleep", "1000"])?;
    }
    lab.systemctl(&["stop", "agentd-agents.service"])?;
    let left = lab
        .bed
        .run(&["pgrep", "-c", "-f", "^sleep 1000"])
        .unwrap_or_else(|_| "0".to_owned());
    ensure!(left == "0", "{left} agents are left");
    let pinned = super::plane::pins(lab)?;
    ensure!(pinned.is_empty(), "still pinned: {pinned}");
    for user in USERS {
        let alive = lab.ask(user, &["--json", "ps"])?;
        ensure!(super::rows(&alive)?.is_empty(), "{user} still has {alive}");
    }
    // And the next launch starts it all again.
    lab.start_agent(ALICE, "again", &["true"])?;
    ensure!(
        lab.is_active("agentd-agents.service")?,
        "the unit was not started again"
    );
    Ok(())
}
