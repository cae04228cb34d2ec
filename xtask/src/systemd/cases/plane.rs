//! The kernel plane of the service: loaded by the broker in the bed's cgroup namespace, taken over
//! when it is started anew, gone with the agents' unit.

use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Lab, NotHere, USERS, WATCHDOG};
use crate::child::Child;
use crate::lab::read_line;
use crate::test::Skip;

const ALICE: &str = USERS[0];

/// Tries to connect to a port that nobody listens on, and prints the error's number whenever it becomes another.
const KNOCK: &str = r#"import socket, time
last = None
while True:
    with socket.socket() as s:
        now = s.connect_ex(("127.0.0.1", 9))
    if now != last:
        print("errno", now, flush=True)
        last = now
    time.sleep(0.02)"#;

/// Nobody listens, and: it may not.
const REFUSED: [&str; 2] = ["errno 111", "errno 1"];

/// The groups that the running daemon has.
fn loaded(lab: &Lab<'_>) -> Result<Vec<String>> {
    let text = lab.ask("root", &["--json", "doctor"])?;
    let report: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
    let plane = &report["plane"];
    ensure!(
        plane["source"] == "daemon",
        "doctor did not ask the daemon: {plane}"
    );
    let groups = plane["groups"].as_array().context("no list of groups")?;
    if let Some(net) = groups
        .iter()
        .find(|row| row["group"] == "net" && row["ok"] == false)
    {
        let why = net["why"].as_str().unwrap_or("no reason is given");
        bail!(NotHere(Skip::new("systemd-plane", why)));
    }
    let there = groups.iter().filter(|row| row["ok"] == true);
    Ok(there
        .filter_map(|row| row["group"].as_str().map(str::to_owned))
        .collect())
}

/// What of agentd's is pinned, as the bed sees it.
pub fn pins(lab: &Lab<'_>) -> Result<String> {
    let find = "if [ -e /sys/fs/bpf/agentd ]; then find /sys/fs/bpf/agentd -mindepth 1 | sort; fi";
    lab.bed.run(&["sh", "-c", find])
}

pub fn programs_are_loaded_and_taken_over(lab: &Lab<'_>) -> Result<()> {
    let before = loaded(lab)?;
    ensure!(
        before.iter().any(|group| group == "net"),
        "only {before:?} is loaded"
    );
    let pinned = pins(lab)?;
    ensure!(
        pinned.contains("/links/connect4"),
        "nothing is pinned: {pinned:?}"
    );
    lab.start_agent(ALICE, "knocking", &["python3", "-c", KNOCK])?;
    let mut command = lab.agentctl(ALICE, &["logs", "-f", "knocking"]);
    command.stdout(Stdio::piped());
    let mut follow = Child::start("agentctl logs", &mut command)?;
    let mut log = follow.take_stdout().context("not piped")?;
    let mut says = |expected: &str| -> Result<()> {
        let line = read_line(&mut log, WATCHDOG).context("the agent said nothing")?;
        ensure!(
            line.trim() == expected,
            "the agent met {line:?}, not {expected:?}"
        );
        Ok(())
    };
    let [nobody, not_allowed] = REFUSED;
    says(nobody)?;
    lab.ask(ALICE, &["revoke", "net", "knocking"])?;
    says(not_allowed)?;
    // A broker that is started anew takes over what is pinned: the agent, which prints every change, meets none.
    let broker = lab.main_pid("agentd-broker.service")?;
    // One after the other: systemctl asks for each by itself, and on a busy machine agentd is told to end while its broker is down, which
    // systemd then doesn't start before agentd has ended.
    lab.systemctl(&["restart", "agentd-broker.service"])?;
    lab.systemctl(&["restart", "agentd.service"])?;
    let after = loaded(lab)?;
    ensure!(
        lab.main_pid("agentd-broker.service")? != broker,
        "the broker was not restarted"
    );
    ensure!(before == after, "loaded before {before:?}, then {after:?}");
    ensure!(pins(lab)? == pinned, "other pins: {}", pins(lab)?);
    lab.ask(ALICE, &["restore", "net", "knocking"])?;
    says(nobody)?;
    lab.ask(ALICE, &["kill", "knocking"]).map(drop)
}
