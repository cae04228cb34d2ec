//! The tiers that are the demo itself: with the stand-in's small agents as root and as an ordinary user, and with real
//! agents: Claude Code, Codex, opencode.
//!
//! Each run is a process of its own, so that what is tested is the verb as a person types it: its last line of output
//! and its exit code.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use super::needs::which;
use super::skips::Skip;
use super::tier::Outcome;
use crate::child::{Child, outcome};
use crate::demo::npm::Agent;
use crate::lab::{Profile, Programs};
use crate::somebody::{Somebody, place, place_self};

const LIMIT: std::time::Duration = std::time::Duration::from_secs(15 * 60);

/// The demo with small agents.
pub fn stand_in(scratch: &Path) -> Result<Outcome> {
    let programs = Programs::build(Profile::Debug)?;
    let mut result = Outcome::default();
    let mut own = Command::new(own_program(scratch)?);
    own.args(["demo", "--json", "--bin-dir"])
        .arg(programs.path("."));
    judge(&mut result, "demo as the caller", &mut own)?;

    if !rustix::process::geteuid().is_root() {
        result.skip(Skip::new(
            "root",
            "the demo in root mode needs root: sudo cargo xtask test demo",
        ));
        return Ok(result);
    }
    let somebody = Somebody::make(&programs)?;
    judge(
        &mut result,
        "demo as an ordinary user",
        &mut demo_of(&somebody),
    )?;
    Ok(result)
}

/// The demo with a real agent, which `flag` of the demo names.
pub fn real(scratch: &Path, flag: &str, agent: &Agent) -> Result<Outcome> {
    let mut result = Outcome::default();
    if which("npm").is_none() {
        result.skip(Skip::new(
            "npm",
            format!(
                "{} comes from npm: sudo apt-get install -y npm",
                agent.title
            ),
        ));
        return Ok(result);
    }
    let programs = Programs::build(Profile::Debug)?;
    result.absorb(real_as_caller(&programs, scratch, flag, agent)?);
    if rustix::process::geteuid().is_root() {
        result.absorb(real_as_somebody(&programs, flag, agent)?);
    }
    Ok(result)
}

/// The same, as the caller alone.
pub fn real_as_caller(
    programs: &Programs,
    scratch: &Path,
    flag: &str,
    agent: &Agent,
) -> Result<Outcome> {
    let mut result = Outcome::default();
    let mut own = Command::new(own_program(scratch)?);
    own.args(["demo", flag, "--json", "--bin-dir"])
        .arg(programs.path("."))
        .arg("--agent-bin")
        .arg(agent.install()?);
    let name = format!("demo with {} as the caller", agent.title);
    judge(&mut result, &name, &mut own)?;
    Ok(result)
}

/// The same, as an ordinary user alone.
pub fn real_as_somebody(programs: &Programs, flag: &str, agent: &Agent) -> Result<Outcome> {
    let mut result = Outcome::default();
    let binary = agent.install()?;
    let somebody = Somebody::make(programs)?;
    // Under its own name, by which agentd knows it.
    let name = binary.file_name().context("a binary has a name")?;
    let reachable = somebody.file(&name.to_string_lossy());
    place(&binary, &reachable)?;
    let mut other = demo_of(&somebody);
    other.arg(flag).arg("--agent-bin").arg(reachable);
    let name = format!("demo with {} as an ordinary user", agent.title);
    judge(&mut result, &name, &mut other)?;
    Ok(result)
}

/// A copy of this program that nobody replaces: the unit tier may have built xtask anew in the meantime, and then the
/// path under which this process was started is gone.
pub fn own_program(scratch: &Path) -> Result<PathBuf> {
    let copy = scratch.join("xtask");
    if !copy.exists() {
        place_self(&copy)?;
    }
    Ok(copy)
}

/// The demo as the ordinary user would start it.
fn demo_of(somebody: &Somebody) -> Command {
    let mut demo = somebody.xtask(&["demo", "--json"]);
    demo.arg("--kit-dir").arg(somebody.file("kit"));
    demo
}

fn judge(result: &mut Outcome, name: &str, command: &mut Command) -> Result<()> {
    eprintln!("-- {name}");
    let mut child = Child::start(name, command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let mut stdout = child
        .take_stdout()
        .context("the demo's standard output is not piped")?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut stdout, &mut text).map(|_| text)
    });
    let Some(status) = child.wait(LIMIT)? else {
        result.fail(format!("{name}: did not end within {LIMIT:?}"));
        return Ok(());
    };
    let text = reader
        .join()
        .expect("the reader does not panic")
        .with_context(|| format!("read the output of {name}"))?;
    let text = String::from_utf8_lossy(&text);
    eprint!("{text}");
    let last = text.lines().next_back().unwrap_or_default();
    let report: Value = serde_json::from_str(last).unwrap_or_default();
    if status.success() && report["ok"] == true && report["task"]["state"] == "succeeded" {
        result.pass();
    } else {
        result.fail(format!(
            "{name}: {}; problems: {}",
            outcome(status),
            report["problems"]
        ));
    }
    Ok(())
}
