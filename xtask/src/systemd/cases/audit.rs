//! The kernel's audit as a system's administrator turns it on, with the drop-in of docs/systemd.md.
//!
//! The bed's processes are in a pid namespace of their own, which the kernel lets nowhere near it: that is said by name, the
//! host's audit stays as it is, and agents run. That it works is shown by `cargo xtask vm`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Lab, USERS};

const PAGE: &str = include_str!("../../../../docs/systemd.md");
const DROP_IN: &str = "/etc/systemd/system/agentd-broker.service.d/kernel-audit.conf";
/// What a broker notes before it turns audit on; empty in one that did not.
const NOTE: &str = "/run/agentd-audit";

pub fn kernel_audit_is_asked_for_and_its_lack_is_named(lab: &Lab<'_>) -> Result<()> {
    ensure!(
        why_not(lab)?.contains("is not listened to: set kernel_audit"),
        "before anybody asked: {}",
        why_not(lab)?
    );
    let at = lab.bed.path(DROP_IN);
    let directory = at.parent().context("a drop-in has a directory")?;
    std::fs::create_dir_all(directory).context("make the drop-in's directory")?;
    std::fs::write(&at, drop_in()?).context("write the drop-in")?;
    let asked = with_it(lab);
    // Those that come after have the unit as it was installed.
    std::fs::remove_dir_all(directory).context("remove the drop-in")?;
    start_again(lab)?;
    asked?;
    ensure!(
        why_not(lab)?.contains("is not listened to"),
        "without the drop-in: {}",
        why_not(lab)?
    );
    Ok(())
}

fn with_it(lab: &Lab<'_>) -> Result<()> {
    start_again(lab)?;
    let pid = lab.main_pid("agentd-broker.service")?;
    let line = lab.bed.proc_of(&pid, "cmdline")?;
    ensure!(line.contains("--kernel-audit"), "the broker runs as {line}");
    let rights = lab
        .bed
        .property("agentd-broker.service", "CapabilityBoundingSet")?;
    for right in ["cap_audit_control", "cap_audit_read", "cap_sys_admin"] {
        ensure!(rights.contains(right), "no {right} among {rights}");
    }
    let why = why_not(lab)?;
    let named = ["outside of containers", "this kernel"];
    ensure!(
        named.iter().any(|words| why.contains(words)),
        "no reason that has to do with this host: {why}"
    );
    let doctor = lab.ask("root", &["doctor"])?;
    ensure!(doctor.contains(&why), "doctor does not say {why}: {doctor}");
    let journal = lab.bed.journal("agentd-broker.service")?;
    ensure!(
        journal.contains("--kernel-audit: "),
        "the broker's journal says nothing of it: {journal}"
    );
    let note = lab
        .bed
        .run(&["sh", "-c", &format!("cat {NOTE} 2>/dev/null || true")])?;
    ensure!(note.is_empty(), "the host's audit was touched: {note}");
    lab.start_agent(USERS[0], "heard", &["true"])
}

/// Why what Landlock refuses is not told here.
fn why_not(lab: &Lab<'_>) -> Result<String> {
    let text = lab.ask("root", &["--json", "denials", "--layers"])?;
    let report: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
    let layers = report["layers"].as_array().context("no list of layers")?;
    let landlock = layers.iter().find(|row| row["layer"] == "landlock");
    let why = landlock.and_then(|row| row["why_not"].as_str());
    let why = why.with_context(|| format!("Landlock is observable in a container: {text}"))?;
    Ok(why.trim_start_matches("not observable here: ").to_owned())
}

/// One after the other, as the page says.
fn start_again(lab: &Lab<'_>) -> Result<()> {
    lab.systemctl(&["daemon-reload"])?;
    lab.systemctl(&["restart", "agentd-broker.service"])?;
    lab.systemctl(&["restart", "agentd.service"]).map(drop)
}

/// The page's block for `systemctl edit`.
fn drop_in() -> Result<&'static str> {
    let blocks = PAGE.split("```ini\n").skip(1);
    let mut blocks = blocks.filter_map(|block| block.split("```").next());
    blocks
        .find(|block| block.contains("--kernel-audit"))
        .context("docs/systemd.md has no drop-in for it")
}
