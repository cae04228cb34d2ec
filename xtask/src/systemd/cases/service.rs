//! What systemd sees of the daemon: activation, readiness, rights, watchdog, reload, journal.

use anyhow::{Context, Result, ensure};

use super::{Lab, USERS};

pub fn the_first_call_starts_both(lab: &Lab<'_>) -> Result<()> {
    configure(lab)?;
    lab.systemctl(&["enable", "--quiet", "agentd.service"])?;
    lab.systemctl(&["try-reload-or-restart", "dbus.service"])?;
    lab.systemctl(&["start", "agentd.socket", "agentd-broker.socket"])?;
    for unit in ["agentd.service", "agentd-broker.service"] {
        ensure!(!lab.is_active(unit)?, "{unit} runs although nobody called");
    }
    lab.ask(USERS[0], &["ps"])?;
    for unit in [
        "agentd.service",
        "agentd-broker.service",
        "agentd-agents.service",
    ] {
        ensure!(
            lab.is_active(unit)?,
            "{unit} does not run although somebody called"
        );
    }
    Ok(())
}

/// The key as a credential, a model at an address of the bed, and a watchdog that bites soon: but
/// not so soon that it would take a busy machine's delays for a hang.
fn configure(lab: &Lab<'_>) -> Result<()> {
    let write = |path: &str, text: &str| {
        let at = lab.bed.path(path);
        std::fs::create_dir_all(at.parent().context("a path with a directory")?)?;
        std::fs::write(&at, text).with_context(|| format!("write {path} in the bed"))
    };
    write("/etc/credstore/anthropic", &lab.key)?;
    lab.bed.run(&["chmod", "600", "/etc/credstore/anthropic"])?;
    write(
        "/etc/agentd/agentd.toml",
        &format!(
            "[model.anthropic]\nbase_url = \"http://{}\"\nkey = {{ credential = \"anthropic\" }}\n",
            super::agents::MODEL
        ),
    )?;
    write(
        "/etc/systemd/system/agentd.service.d/bed.conf",
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nWatchdogSec=15\nTimeoutAbortSec=1\n",
    )?;
    lab.systemctl(&["daemon-reload"]).map(drop)
}

pub fn it_says_ready(lab: &Lab<'_>) -> Result<()> {
    let unit = lab.bed.run(&[
        "systemctl",
        "show",
        "agentd.service",
        "-p",
        "Type,ActiveState,SubState,NotifyAccess,NRestarts",
    ])?;
    for line in [
        "Type=notify",
        "ActiveState=active",
        "SubState=running",
        "NotifyAccess=main",
        "NRestarts=0",
    ] {
        ensure!(
            unit.lines().any(|found| found == line),
            "not {line}: {unit}"
        );
    }
    let journal = lab.bed.journal("agentd.service")?;
    ensure!(journal.contains("ready"), "no line `ready`: {journal}");
    Ok(())
}

pub fn it_has_no_rights(lab: &Lab<'_>) -> Result<()> {
    let pid = lab.main_pid("agentd.service")?;
    let status = lab.bed.proc_of(&pid, "status")?;
    let uid = lab.bed.run(&["id", "-u", "agentd"])?;
    let field = |name: &str| -> Vec<&str> {
        let found = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found
            .map(|text| text.split_whitespace().collect())
            .unwrap_or_default()
    };
    ensure!(
        field("Uid") == [uid.as_str(); 4],
        "it runs as {:?}, not as {uid}",
        field("Uid")
    );
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(
            field(set) == ["0000000000000000"],
            "{set} is {:?}",
            field(set)
        );
    }
    ensure!(field("NoNewPrivs") == ["1"], "it may gain privileges");
    ensure!(field("Seccomp") == ["2"], "it is under no seccomp filter");
    // The unit's filter and its own.
    ensure!(
        field("Seccomp_filters")
            .first()
            .and_then(|n| n.parse().ok())
            .is_some_and(|n: u32| n >= 2),
        "it has {:?} filters",
        field("Seccomp_filters")
    );
    Ok(())
}

pub fn the_journal_has_priorities(lab: &Lab<'_>) -> Result<()> {
    let of = |priority: &str| {
        lab.bed.run(&[
            "journalctl",
            "--no-pager",
            "-o",
            "cat",
            "-u",
            "agentd.service",
            "--identifier=agentd",
            &format!("--priority={priority}..{priority}"),
        ])
    };
    let (info, warning) = (of("info")?, of("warning")?);
    ensure!(
        info.contains("serving org.agentd1 on the system bus"),
        "no such line of priority info: {info}"
    );
    ensure!(
        !info.contains("<6>") && !warning.contains("<4>"),
        "a prefix was not taken off"
    );
    Ok(())
}

pub fn reload_keeps_the_daemon(lab: &Lab<'_>) -> Result<()> {
    let before = lab.main_pid("agentd.service")?;
    lab.until_logged("agentd.service", "reloaded", || {
        lab.systemctl(&["reload", "agentd.service"]).map(drop)
    })?;
    ensure!(
        lab.main_pid("agentd.service")? == before,
        "a reload started another daemon"
    );
    lab.ask(USERS[0], &["ps"]).map(drop)
}

pub fn the_watchdog_restarts_a_stopped_daemon(lab: &Lab<'_>) -> Result<()> {
    let restarts =
        || -> Result<u32> { Ok(lab.bed.property("agentd.service", "NRestarts")?.parse()?) };
    let (before, pid) = (restarts()?, lab.main_pid("agentd.service")?);
    lab.until_logged("agentd.service", "ready", || {
        lab.bed.run(&["kill", "-STOP", &pid]).map(drop)
    })?;
    ensure!(restarts()? > before, "systemd did not start it again");
    ensure!(
        lab.main_pid("agentd.service")? != pid,
        "it is the same process"
    );
    lab.ask(USERS[0], &["ps"]).map(drop)
}
