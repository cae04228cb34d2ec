//! The system bus: the same agents, each user's own, and polkit's word.

use anyhow::{Context, Result, ensure};

use super::{Lab, USERS};
use crate::child;

const ALICE: &str = USERS[0];
const BOB: &str = USERS[1];

pub fn the_same_agents_over_the_bus(lab: &Lab<'_>) -> Result<()> {
    lab.ask(
        ALICE,
        &[
            "--bus",
            "run",
            "--detach",
            "--no-workspace",
            "--name",
            "caller",
            "--",
            "sleep",
            "1000",
        ],
    )?;
    let over_socket = lab.field(ALICE, "caller", "id")?;
    let over_bus = lab.ask(ALICE, &["--bus", "--json", "ps"])?;
    ensure!(over_bus.contains(&over_socket), "the bus lists {over_bus}");
    // A workspace goes over the bus as a descriptor, output comes back as one.
    let home = format!("/home/{ALICE}/work");
    let said = lab.ask(
        ALICE,
        &["--bus", "run", "--workspace", &home, "--", "cat", "made"],
    )?;
    ensure!(said == "made", "the agent said {said:?}");
    let owner = lab.bed.run(&["busctl", "status", "org.agentd1"])?;
    let uid = lab.bed.run(&["id", "-u", "agentd"])?;
    ensure!(
        owner.contains(&format!("UID={uid}")),
        "org.agentd1 belongs to {owner}"
    );
    Ok(())
}

/// What `user` is told by a call, and whether it succeeded.
fn busctl(lab: &Lab<'_>, user: &str, words: &[&str]) -> Result<(bool, String)> {
    let mut command = match user {
        "root" => lab.bed.command("busctl"),
        _ => lab.bed.command_as(user, "busctl"),
    };
    let output = child::capture_any(command.arg("--no-pager").args(words))?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

fn object_of(id: &str) -> String {
    format!("/org/agentd1/agent/{}", id.replace('-', ""))
}

pub fn users_are_isolated(lab: &Lab<'_>) -> Result<()> {
    let id = lab.field(ALICE, "caller", "id")?;
    let (ok, own) = busctl(lab, ALICE, &["tree", "org.agentd1"])?;
    let path = object_of(&id);
    ensure!(
        ok && own.contains(&path),
        "alice's own tree has no {path}: {own}"
    );
    for words in [
        &["tree", "org.agentd1"][..],
        &[
            "call",
            "org.agentd1",
            "/org/agentd1",
            "org.freedesktop.DBus.ObjectManager",
            "GetManagedObjects",
        ],
        &[
            "call",
            "org.agentd1",
            "/org/agentd1",
            "org.agentd1.Manager",
            "Agents",
        ],
        &["introspect", "org.agentd1", "/org/agentd1/agent"],
    ] {
        let (_, seen) = busctl(lab, BOB, words)?;
        ensure!(
            !seen.contains("caller") && !same(&seen, &id),
            "bob sees by {words:?}: {seen}"
        );
    }
    // Not there and not his look the same.
    let foreign = busctl(
        lab,
        BOB,
        &["call", "org.agentd1", &path, "org.agentd1.Agent", "Kill"],
    )?;
    let digits = path.rsplit('/').next().unwrap_or_default();
    let nowhere = path.replace(digits, &digits.chars().rev().collect::<String>());
    let absent = busctl(
        lab,
        BOB,
        &["call", "org.agentd1", &nowhere, "org.agentd1.Agent", "Kill"],
    )?;
    ensure!(!foreign.0 && !absent.0, "bob killed something");
    ensure!(
        foreign.1.replace(&path, "") == absent.1.replace(&nowhere, ""),
        "bob can tell: {foreign:?} and {absent:?}"
    );
    let (code, said) = lab.try_ask(BOB, &["--bus", "stop", "caller"])?;
    ensure!(
        code == 1 && said.contains("caller"),
        "bob was told ({code}): {said}"
    );
    lab.field(ALICE, "caller", "pid").map(drop)
}

/// Whether `text` has the id, however it writes the hyphens.
fn same(text: &str, id: &str) -> bool {
    let plain = |text: &str| text.replace(['-', '_'], "");
    plain(text).contains(&plain(id))
}

pub fn the_policy_denies_by_default(lab: &Lab<'_>) -> Result<()> {
    let (ok, said) = busctl(
        lab,
        ALICE,
        &[
            "call",
            "org.agentd1",
            "/org/agentd1",
            "org.freedesktop.DBus.Debug.Stats",
            "GetStats",
        ],
    )?;
    ensure!(
        !ok && said.contains("denied"),
        "an undocumented interface was let through: {said}"
    );
    let taken = child::capture_any(lab.bed.command_as(BOB, "busctl").args([
        "call",
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
        "RequestName",
        "su",
        "org.agentd1",
        "6",
    ]))?;
    ensure!(!taken.status.success(), "bob took the name");
    Ok(())
}

pub fn polkit_decides(lab: &Lab<'_>) -> Result<()> {
    let rules = lab.bed.path("/etc/polkit-1/rules.d/10-bed.rules");
    let id = lab.field(ALICE, "caller", "id")?;
    let (ok, said) = busctl(
        lab,
        BOB,
        &[
            "call",
            "org.agentd1",
            "/org/agentd1",
            "org.agentd1.Manager",
            "Shutdown",
        ],
    )?;
    ensure!(
        !ok && said.contains("only root"),
        "bob shut it down: {said}"
    );
    std::fs::write(
        &rules,
        "polkit.addRule(function(action, subject) {\n\
         if (action.id == 'org.agentd1.launch' && subject.user == 'bob') return polkit.Result.NO;\n\
         if (action.id == 'org.agentd1.manage-agents' && subject.user == 'bob') return polkit.Result.YES;\n});\n",
    )
    .context("write a rule")?;
    // A polkitd started now reads it for certain; one that watches the directory reads it some time.
    lab.systemctl(&["restart", "polkit.service"])?;
    let (code, said) = lab.try_ask(BOB, &["--bus", "run", "--no-workspace", "--", "true"])?;
    ensure!(
        code == 125 && said.contains("org.agentd1.launch"),
        "bob launched ({code}): {said}"
    );
    lab.ask(ALICE, &["--bus", "run", "--no-workspace", "--", "true"])?;
    // What bob's own rights don't cover, the rule does: it is done with root's sight, and said in the journal.
    lab.until_logged("agentd.service", "polkit allows", || {
        lab.ask(BOB, &["--bus", "kill", &id]).map(drop)
    })?;
    let left = lab.ask(ALICE, &["--json", "ps"])?;
    ensure!(!left.contains(&id), "the agent still lives: {left}");
    std::fs::remove_file(&rules).context("remove the rule")?;
    Ok(())
}
