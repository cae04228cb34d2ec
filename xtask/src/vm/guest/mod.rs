//! The part of `cargo xtask vm` that runs inside the guest: this same program, started by the guest's init.
//!
//! Runs as root (and, for user mode, once more as an ordinary user below it). Prints one [`Line`] of JSON for each fact
//! and each case, in order, and nothing else on stdout: the serial port to the host. A case that fails is a line, not
//! the end. Where to start reading: [`run`].

mod attacks;
mod facts;
mod limits;
mod refusals;
mod suites;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::lab::{Lab, Mode, Programs, Setup};

/// The directory that the host's programs are mounted on.
const PROGRAMS: &str = "/programs";

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What the guest was booted as
    #[arg(long, value_enum, default_value_t = Variant::Whole)]
    variant: Variant,
    /// Who runs the daemon: root starts itself once more as a user
    #[arg(long, value_enum, default_value_t = Mode::Root)]
    mode: Mode,
}

/// What a guest is booted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// Everything that its kernel has.
    Whole,
    /// Without Landlock and the memory controller: policies that want them are to be refused.
    Bare,
    /// As `Whole`, and only the tests of the kernel's audit are run.
    Audit,
}

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Bare => "bare",
            Self::Audit => "audit",
        }
    }

    /// The kernel parameters that make it so.
    pub fn parameters(self) -> &'static str {
        match self {
            Self::Whole | Self::Audit => "",
            Self::Bare => "lsm=lockdown,yama,bpf cgroup_disable=memory",
        }
    }
}

/// What the guest tells the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Fact { fact: String, value: Value },
    Case(CaseLine),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseLine {
    pub id: String,
    pub outcome: CaseOutcome,
    /// Why it failed or was skipped; empty for one that passed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CaseOutcome {
    Passed,
    Failed,
    Skipped,
}

/// Where lines go, and under which mode's name.
#[derive(Debug)]
struct Teller {
    mode: Mode,
}

impl Teller {
    fn fact(&self, fact: &str, value: Value) -> Result<()> {
        self.line(&Line::Fact {
            fact: format!("{}.{fact}", self.mode.name()),
            value,
        })
    }

    fn case(&self, id: &str, outcome: CaseOutcome, detail: impl Into<String>) -> Result<()> {
        self.line(&Line::Case(CaseLine {
            id: format!("{}.{id}", self.mode.name()),
            outcome,
            detail: detail.into(),
        }))
    }

    /// Runs a case, which passes or says why not.
    fn run(&self, id: &str, case: impl FnOnce() -> Result<()>) -> Result<()> {
        match case() {
            Ok(()) => self.case(id, CaseOutcome::Passed, ""),
            Err(error) => self.case(id, CaseOutcome::Failed, format!("{error:#}")),
        }
    }

    fn line(&self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).context("write a line")?;
        text.push('\n');
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .context("tell the host")
    }
}

/// Everything that the guest does.
pub fn run(args: &Args) -> Result<()> {
    let teller = Teller { mode: args.mode };
    if args.mode == Mode::Root {
        teller.fact("kernel", facts::release()?.into())?;
        match args.variant {
            Variant::Whole => {
                suites::run(&teller, "launch", 1, &[])?;
                suites::run(&teller, "kernel", 2, suites::OF_THE_KERNEL)?;
                let tests = suites::of_audit(facts::landlock_abi()?);
                suites::run(&teller, "audit", 2, tests)?;
            }
            Variant::Bare => {}
            Variant::Audit => {
                let abi = facts::landlock_abi()?;
                teller.fact("landlock_abi", abi.into())?;
                return suites::run(&teller, "audit", 2, suites::of_audit(abi));
            }
        }
    }
    let programs = programs(args.mode)?;
    let daemon = match args.variant {
        Variant::Whole | Variant::Audit => "",
        Variant::Bare => {
            refusals::daemon(&teller, &programs)?;
            "confine = \"degrade\"\n"
        }
    };
    let setup = Setup {
        daemon,
        ..Setup::default()
    };
    let bed = Bed {
        lab: Lab::start(programs, &setup)?,
    };
    let told = (|| match args.variant {
        Variant::Whole => {
            facts::tell(&teller, &bed)?;
            limits::cases(&teller, &bed)?;
            refusals::cases(&teller, &bed)?;
            match args.mode {
                Mode::Root => attacks::cases(&teller, &bed),
                // By root, who raises the victims, in both modes.
                Mode::User => Ok(()),
            }
        }
        Variant::Bare => refusals::bare(&teller, &bed),
        Variant::Audit => Ok(()),
    })();
    if let Err(error) = told {
        eprintln!("{}", bed.lab.log_tail());
        return Err(error);
    }
    drop(bed);
    if args.mode == Mode::Root {
        as_user(args)?;
    }
    Ok(())
}

/// Starts this program once more, as the guest's user, in the cgroup that the user was given.
fn as_user(args: &Args) -> Result<()> {
    limits::delegate()?;
    let mut user = std::process::Command::new("setpriv");
    user.args(["--reuid=user", "--regid=user", "--init-groups"])
        .arg(format!("{PROGRAMS}/xtask"))
        .args(["vm-guest", "--mode=user"])
        .arg(format!("--variant={}", args.variant.name()))
        .env("HOME", "/home/user");
    crate::child::run(&mut user)
}

/// The programs; for a user, with a daemon that enters the cgroup delegated to it first, as a service would be.
fn programs(mode: Mode) -> Result<Programs> {
    if mode == Mode::Root {
        return Programs::in_directory(PROGRAMS.as_ref());
    }
    let directory = tempfile::Builder::new()
        .prefix("programs-")
        .tempdir()
        .context("make a directory for the programs")?
        .keep();
    for name in ["agentctl", "agentd-broker"] {
        std::os::unix::fs::symlink(format!("{PROGRAMS}/{name}"), directory.join(name))
            .with_context(|| format!("link {name}"))?;
    }
    let at = directory.join("agentd");
    // A cgroup for each start, as a service has it: one in which controllers are enabled takes no process again.
    let script = format!(
        "#!/bin/sh\nat={}/daemon-$$\nmkdir $at && echo $$ > $at/cgroup.procs && exec {PROGRAMS}/agentd \"$@\"\n",
        limits::DELEGATED
    );
    std::fs::write(&at, script).context("write the daemon's script")?;
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o755))
        .context("make the daemon's script executable")?;
    Programs::in_directory(&directory)
}

/// A running daemon and the means to use it.
#[derive(Debug)]
struct Bed {
    lab: Lab,
}

/// What `agentctl run` came to.
#[derive(Debug)]
struct Finished {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Bed {
    /// A directory of the caller's for an agent to work in.
    fn workspace(&self) -> Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix("work-")
            .tempdir_in(self.lab.directory())
            .context("make a workspace")
    }

    /// Runs a program as an agent to its end.
    fn run(&self, options: &[&str], program: &[&str]) -> Result<Finished> {
        let workspace = self.workspace()?;
        let mut command = self.lab.agentctl();
        command
            .args(["run", "--no-tty", "--workspace"])
            .arg(workspace.path())
            .args(options)
            .arg("--")
            .args(program);
        let output = crate::child::capture_any(&mut command)?;
        Ok(Finished {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts an agent in the background, in a workspace that must outlive it.
    fn start(&self, workspace: &std::path::Path, options: &[&str], script: &str) -> Result<Agent> {
        let workspace = workspace.to_string_lossy();
        let mut words = vec!["run", "--detach", "--workspace", &workspace];
        words.extend(options);
        words.extend(["--", "/bin/sh", "-c", script]);
        let said = self.lab.ask(&words)?;
        let id = said["id"]
            .as_str()
            .with_context(|| format!("agentctl run --detach named no agent: {said}"))?
            .to_owned();
        Ok(Agent { id })
    }

    /// The cgroup2 directory of a running agent.
    fn cgroup(&self, agent: &Agent) -> Result<PathBuf> {
        let shown = self.lab.ask(&["inspect", &agent.id])?;
        let pid = shown["pid"]
            .as_u64()
            .with_context(|| format!("agent {} has no pid: {shown}", agent.id))?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .with_context(|| format!("read the cgroup of {pid}"))?;
        let path = text
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .with_context(|| format!("process {pid} is in no cgroup2: {text}"))?;
        Ok(PathBuf::from("/sys/fs/cgroup").join(path.trim_start_matches('/')))
    }
}

/// An agent in the background.
#[derive(Debug)]
struct Agent {
    id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_the_serial_port() {
        let case = Line::Case(CaseLine {
            id: "root.limits.pids".to_owned(),
            outcome: CaseOutcome::Passed,
            detail: String::new(),
        });
        let fact = Line::Fact {
            fact: "root.kernel".to_owned(),
            value: "6.1".into(),
        };
        for line in [case, fact] {
            let text = serde_json::to_string(&line).expect("written");
            assert_eq!(serde_json::from_str::<Line>(&text).expect("read"), line);
        }
    }
}
