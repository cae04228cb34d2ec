//! The tiers that are the demo itself: with the stand-in's small agents as root and as an ordinary user, and with real
//! agents: Claude Code, Codex, opencode.
//!
//! Each run is a process of its own, so that what is tested is the verb as a person types it: its last line of output
//! and its exit code. As root, the ordinary user is a bare uid without a passwd entry, with copies of the programs in
//! a directory that it can reach.

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
use crate::workspace::root;

/// The uid that plays the ordinary user.
const SOMEBODY: &str = "61234";
const PROGRAMS: [&str; 5] = [
    "agentd",
    "agentctl",
    "agentd-broker",
    "model-standin",
    "small-agent",
];
/// What runs now, whatever became of its path.
const OWN_PROGRAM: &str = "/proc/self/exe";
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
    let copy = Copy::make(&programs)?;
    judge(&mut result, "demo as an ordinary user", &mut copy.demo())?;
    Ok(result)
}

/// The demo with a real agent, which `flag` of the demo names.
pub fn real(scratch: &Path, flag: &str, agent: &Agent) -> Result<Outcome> {
    let mut result = Outcome::default();
    let title = agent.title;
    if which("npm").is_none() {
        result.skip(Skip::new(
            "npm",
            format!("{title} comes from npm: sudo apt-get install -y npm"),
        ));
        return Ok(result);
    }
    let programs = Programs::build(Profile::Debug)?;
    let binary = agent.install()?;
    let mut own = Command::new(own_program(scratch)?);
    own.args(["demo", flag, "--json", "--bin-dir"])
        .arg(programs.path("."));
    let name = format!("demo with {title} as the caller");
    judge(&mut result, &name, &mut own)?;

    if rustix::process::geteuid().is_root() {
        let copy = Copy::make(&programs)?;
        // Under its own name, by which agentd knows it.
        let name = binary.file_name().context("a binary has a name")?;
        let reachable = copy.0.path().join(name);
        place(&binary, &reachable)?;
        let mut other = copy.demo();
        other.arg(flag).arg("--agent-bin").arg(reachable);
        let name = format!("demo with {title} as an ordinary user");
        judge(&mut result, &name, &mut other)?;
    }
    Ok(result)
}

/// A copy of this program that nobody replaces: the unit tier may have built xtask anew in the meantime, and then the
/// path under which this process was started is gone.
fn own_program(scratch: &Path) -> Result<PathBuf> {
    let copy = scratch.join("xtask");
    if !copy.exists() {
        place(Path::new(OWN_PROGRAM), &copy)?;
    }
    Ok(copy)
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

/// Programs and kit in a directory that every user can read.
struct Copy(tempfile::TempDir);

impl Copy {
    fn make(programs: &Programs) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::Builder::new()
            .prefix("agentd-user-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .context("make a directory for the ordinary user")?;
        let copy = Self(directory);
        for name in PROGRAMS {
            place(&programs.path(name), &copy.path(name))?;
        }
        place(Path::new(OWN_PROGRAM), &copy.path("xtask"))?;
        let cp = crate::child::capture(
            Command::new("cp")
                .arg("-r")
                .arg(root().join("tests/kit"))
                .arg(copy.path("kit")),
        );
        cp.context("copy the test kit")?;
        let home = copy.path("home");
        std::fs::create_dir(&home).with_context(|| format!("make {}", home.display()))?;
        let uid = SOMEBODY.parse().context("a uid")?;
        std::os::unix::fs::chown(&home, Some(uid), Some(uid))
            .with_context(|| format!("give away {}", home.display()))?;
        Ok(copy)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The demo as the ordinary user would start it.
    fn demo(&self) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid",
                SOMEBODY,
                "--regid",
                SOMEBODY,
                "--clear-groups",
                "--inh-caps=-all",
                "--",
            ])
            .arg(self.path("xtask"))
            .args(["demo", "--json", "--bin-dir"])
            .arg(self.path("."))
            .arg("--kit-dir")
            .arg(self.path("kit"))
            .current_dir(self.path("home"))
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.path("home"));
        command
    }
}

fn place(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
