//! Ordinary users and their agents.

use anyhow::{Context, Result, ensure};

use super::{Lab, USERS};
use crate::child;

/// Where the stand-in model listens in the bed.
pub const MODEL: &str = "127.0.0.1:18080";

/// Says the same to everybody.
const SCRIPT: &str =
    "[[rule]]\nname = \"greet\"\nwhen = {}\nreply = { text = \"hello from the model\" }\n";

/// A request to the model, as a program in a sandbox makes it.
const ASK: &str = r#"import os, urllib.request as u
r = u.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}',
    {"content-type": "application/json", "anthropic-version": "2023-06-01", "x-api-key": "mine"})
print(u.urlopen(r).read().decode())"#;

pub fn an_ordinary_user_runs_an_agent(lab: &Lab<'_>) -> Result<()> {
    let alice = USERS[0];
    let home = format!("/home/{alice}/work");
    lab.bed
        .run(&["install", "-d", "-o", alice, "-g", alice, &home])?;
    let run = [
        "run",
        "--workspace",
        &home,
        "--",
        "sh",
        "-c",
        "id -u; echo made > made; exit 7",
    ];
    let output = child::capture_any(&mut lab.agentctl(alice, &run))?;
    let (code, said) = (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    ensure!(
        code == Some(7),
        "exit code {code:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let uid = lab.bed.run(&["id", "-u", alice])?;
    ensure!(said.trim() == uid, "inside it is uid {said}, not {uid}");
    let owner = lab
        .bed
        .run(&["stat", "-c", "%U", &format!("{home}/made")])?;
    ensure!(owner == alice, "the file belongs to {owner}");
    Ok(())
}

pub fn agents_live_in_their_own_unit(lab: &Lab<'_>) -> Result<()> {
    lab.start_agent(USERS[0], "placed", &["sleep", "1000"])?;
    let pid = lab.field(USERS[0], "placed", "pid")?;
    let agent = lab.bed.proc_of(&pid, "cgroup")?;
    ensure!(
        agent.contains("/agentd.slice/agentd-agents.service/"),
        "the agent is in {agent}"
    );
    for unit in ["agentd.service", "agentd-broker.service"] {
        let own = lab.bed.proc_of(&lab.main_pid(unit)?, "cgroup")?;
        ensure!(
            own.ends_with(&format!("/agentd.slice/{unit}")),
            "{unit} is in {own}"
        );
    }
    lab.ask(USERS[0], &["kill", "placed"]).map(drop)
}

pub fn the_key_reaches_the_gateway_alone(lab: &Lab<'_>) -> Result<()> {
    let bed = lab.bed;
    std::fs::create_dir_all(bed.path("/run/model")).context("make a directory in the bed")?;
    std::fs::copy(
        lab.programs.path("model-standin"),
        bed.path("/run/model/model-standin"),
    )
    .context("copy the stand-in model server")?;
    std::fs::write(bed.path("/run/model/script.toml"), SCRIPT).context("write its script")?;
    lab.until_logged("model.service", "http://", || {
        bed.run(&[
            "systemd-run",
            "--quiet",
            "--unit=model",
            "/run/model/model-standin",
            "--listen",
            MODEL,
            "--script",
            "/run/model/script.toml",
            "--require-key-file",
            "/etc/credstore/anthropic",
        ])
        .map(drop)
    })?;
    // The stand-in answers only to the right key, which the agent has not.
    let run = ["run", "--no-workspace", "--", "python3", "-c", ASK];
    let said = lab.ask(USERS[0], &run)?;
    ensure!(
        said.contains("hello from the model"),
        "the model said {said}"
    );

    let hunt = "env; cat /proc/*/environ /proc/*/cmdline /run/credentials/*/* /etc/credstore/* /var/lib/agentd/*; true";
    let run = ["run", "--no-workspace", "--", "sh", "-c", hunt];
    let output = child::capture_any(&mut lab.agentctl(USERS[0], &run))?;
    for text in [&output.stdout, &output.stderr] {
        ensure!(
            !String::from_utf8_lossy(text).contains(&lab.key),
            "an agent found the key"
        );
    }
    let seen = lab.bed.run(&[
        "sh", "-c",
        &format!(
            "grep -l -a -s -r -e {} /proc/[0-9]*/environ /run/agentd /var/lib/agentd /run/log /etc/agentd; true",
            lab.key
        ),
    ])?;
    ensure!(seen.is_empty(), "the key is in {seen}");
    let credentials = lab.bed.run(&[
        "sh",
        "-c",
        "cat /run/credentials/agentd-broker.service/* 2>&1; true",
    ])?;
    ensure!(
        !credentials.contains(&lab.key),
        "the broker was given the key"
    );
    lab.systemctl(&["stop", "model.service"]).map(drop)
}
