//! Other people's sandboxes, at pinned versions, each with a command line as tight as an agent would still work under.
//!
//! bubblewrap comes from the distribution, sandlock from PyPI, Codex from npm, each by its ordinary client and into
//! `target/tools`. What can't be had is a named skip. The session is the same as agentd's: an ordinary user, the workspace
//! writable, one folder for reading, two files that nobody may read.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::{capture, run};
use crate::demo::npm::CODEX;
use crate::test::needs::which;
use crate::workspace::Metadata;

const SANDLOCK: &str = "0.9.0";

/// A sandbox and how to get its command line.
#[derive(Debug)]
pub struct Peer {
    pub name: &'static str,
    command: fn() -> Result<Vec<String>>,
}

impl Peer {
    /// Installs it where it is missing.
    pub fn command(&self) -> Result<Vec<String>> {
        (self.command)()
    }
}

pub fn all() -> [Peer; 3] {
    [
        Peer {
            name: "bubblewrap",
            command: bubblewrap,
        },
        Peer {
            name: "sandlock",
            command: sandlock,
        },
        Peer {
            name: "codex",
            command: codex,
        },
    ]
}

/// What each of them runs.
const INSIDE: [&str; 4] = ["{program}", "inside", "{scene}", "{cases}"];

fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    words.into_iter().map(str::to_owned).collect()
}

fn bubblewrap() -> Result<Vec<String>> {
    let Some(program) = which("bwrap") else {
        bail!("bubblewrap is not installed: sudo apt-get install -y bubblewrap");
    };
    let mut command = vec![program.display().to_string()];
    command.extend(words([
        "--unshare-user",
        "--unshare-all",
        "--disable-userns",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
        "--clearenv",
        "--setenv",
        "PATH",
        "/usr/bin:/bin",
        "--setenv",
        "HOME",
        "{home}",
        "--ro-bind",
        "/usr",
        "/usr",
    ]));
    for link in ["bin", "sbin", "lib", "lib64"] {
        command.extend(words([
            "--symlink",
            &format!("usr/{link}"),
            &format!("/{link}"),
        ]));
    }
    command.extend(words([
        "--ro-bind",
        "/etc/ld.so.cache",
        "/etc/ld.so.cache",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--ro-bind",
        "{program}",
        "{program}",
        "--ro-bind",
        "{shared}",
        "{shared}",
        "--bind",
        "{work}",
        "{work}",
        "--ro-bind",
        "{work}/.git/hooks",
        "{work}/.git/hooks",
        "--ro-bind",
        "/dev/null",
        "{work}/.env",
        "--ro-bind",
        "/dev/null",
        "{work}/conf/secret.key",
        "--chdir",
        "{work}",
        "--",
    ]));
    command.extend(words(INSIDE));
    Ok(command)
}

/// A Python environment with sandlock in it.
fn sandlock() -> Result<Vec<String>> {
    let place = tools("sandlock", SANDLOCK)?;
    let program = place.join("bin/sandlock");
    if !program.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&place))?;
        run(Command::new(place.join("bin/pip"))
            .args(["install", "--quiet", &format!("sandlock=={SANDLOCK}")])
            .stdout(std::io::stderr()))?;
    }
    let mut command = vec![program.display().to_string()];
    command.extend(words([
        "run",
        "-r",
        "/usr",
        "-r",
        "/lib",
        "-r",
        "/lib64",
        "-r",
        "/bin",
        "-r",
        "/etc",
        "-r",
        "/proc",
        "-r",
        "/dev",
        "-r",
        "{program}",
        "-r",
        "{shared}",
        "-w",
        "{work}",
        "--",
    ]));
    command.extend(words(INSIDE));
    Ok(command)
}

fn codex() -> Result<Vec<String>> {
    let binary = CODEX.install()?;
    let place = reachable(&binary)?;
    let mut command = vec![place.display().to_string()];
    command.extend(words(["sandbox", "linux", "--full-auto"]));
    command.extend(words(INSIDE));
    Ok(command)
}

fn tools(name: &str, version: &str) -> Result<PathBuf> {
    let place = Metadata::of_members()?
        .target_directory
        .join("tools")
        .join(name)
        .join(version);
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    Ok(place)
}

/// A copy where every user can execute it.
fn reachable(program: &Path) -> Result<PathBuf> {
    let said = capture(Command::new(program).arg("--version"))?;
    drop(said);
    Ok(program.to_owned())
}
