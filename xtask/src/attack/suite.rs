//! The suite as a program: built static, so that it runs in sandboxes and guests without this machine's libraries, and
//! driven through its `judge`, whose JSON this reads.
//!
//! Runs as the caller. Needs room for some gigabytes beside the state of other programs, since the suite also shows who
//! limits disks; all of it is gone afterwards.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tempfile::TempDir;

use super::Runtime;
use crate::child::{self, capture_any};
use crate::lab::Mode;
use crate::workspace::{Metadata, cargo};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Whom sessions run as when root judges: nobody's uid.
pub const SOMEBODY: u32 = 61234;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Stopped,
    Escaped,
    /// Done by the runtime's own kernel, in user space, and nothing of the host's was reached.
    Contained,
    Unavailable,
}

/// What became of one case.
#[derive(Debug, Clone, Deserialize)]
pub struct Verdict {
    pub id: String,
    pub title: String,
    pub outcome: Outcome,
    pub detail: String,
    pub opened_by: Option<String>,
    pub contained: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Judgement {
    /// The catalogue's digest.
    pub suite: String,
    pub verdicts: Vec<Verdict>,
    /// Whether every case was tried: a session that broke off proves nothing.
    pub whole: bool,
    pub session: String,
}

impl Judgement {
    pub fn count(&self, outcome: Outcome) -> usize {
        self.verdicts
            .iter()
            .filter(|verdict| verdict.outcome == outcome)
            .count()
    }

    pub fn escaped(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts
            .iter()
            .filter(|verdict| verdict.outcome == Outcome::Escaped)
    }

    pub fn contained(&self) -> impl Iterator<Item = &Verdict> {
        self.verdicts
            .iter()
            .filter(|verdict| verdict.outcome == Outcome::Contained)
    }

    /// Adds what another session showed.
    pub fn merge(&mut self, other: Self) {
        self.verdicts.extend(other.verdicts);
        self.whole &= other.whole;
    }

    /// The same, with each case's id followed by what was special about the session.
    pub fn labelled(mut self, label: &str) -> Self {
        for verdict in &mut self.verdicts {
            verdict.id += label;
        }
        self
    }

    /// Escapes that no line of the policy opens.
    pub fn unopened(&self) -> impl Iterator<Item = &Verdict> {
        self.escaped().filter(|verdict| verdict.opened_by.is_none())
    }
}

/// The sandbox under test.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its command line, with the words that `agentd-escape judge` replaces; empty for no sandbox.
    pub command: Vec<String>,
    /// The effective policy as JSON.
    pub policy: Option<PathBuf>,
    pub mode: Mode,
    pub runtime: Runtime,
    pub runtime_dir: Option<PathBuf>,
    /// Where victims are raised; a place of its own without it.
    pub place: Option<PathBuf>,
    pub cases: Vec<String>,
}

impl Subject {
    pub fn none(cases: &[String]) -> Self {
        Self {
            command: Vec::new(),
            policy: None,
            mode: Mode::Root,
            runtime: Runtime::Native,
            runtime_dir: None,
            place: None,
            cases: cases.to_vec(),
        }
    }
}

/// The built program.
#[derive(Debug)]
pub struct Suite {
    program: PathBuf,
}

impl Suite {
    pub fn build() -> Result<Self> {
        let mut command = cargo();
        command
            .args([
                "build",
                "-p",
                "agentd-escape",
                "--bin",
                "agentd-escape",
                "--target",
                TARGET,
            ])
            .env(
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "-C target-feature=+crt-static",
            );
        child::run(&mut command)?;
        let target = Metadata::of_members()?.target_directory;
        Self::at(&target.join(TARGET).join("debug/agentd-escape"))
    }

    pub fn at(program: &Path) -> Result<Self> {
        let program = program
            .canonicalize()
            .with_context(|| format!("find {}", program.display()))?;
        Ok(Self { program })
    }

    /// Where it is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Cases that want a session of their own, by id: under gVisor also those that may end it, and that no other session
    /// tries there.
    fn alone(&self, runtime: Runtime) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Case {
            id: String,
            alone: bool,
            exhausts: bool,
        }
        let list = child::capture(Command::new(&self.program).arg("list"))?;
        let cases: Vec<Case> =
            serde_json::from_str(&list).context("read what agentd-escape list printed")?;
        Ok(cases
            .into_iter()
            .filter(|case| case.alone || (case.exhausts && runtime == Runtime::Gvisor))
            .map(|case| case.id)
            .collect())
    }

    /// Judges every case: one session for most, and one each for those that want one of their own or may end the runtime.
    /// Or only the cases that the subject names, in one session.
    pub fn judge(&self, subject: &Subject) -> Result<Judgement> {
        if !subject.cases.is_empty() {
            return self.judge_session(subject);
        }
        let mut judgement = self.judge_session(subject)?;
        for id in self.alone(subject.runtime)? {
            let alone = Subject {
                cases: vec![id],
                ..subject.clone()
            };
            judgement.merge(self.judge_session(&alone)?);
        }
        Ok(judgement)
    }

    /// Runs one session and judges it.
    fn judge_session(&self, subject: &Subject) -> Result<Judgement> {
        let place = match &subject.place {
            Some(place) => Place::Given(place.clone()),
            None => Place::own()?,
        };
        // Where every sandbox may be shown it and every user may execute it.
        let program = place.path().join("agentd-escape");
        crate::somebody::place(&self.program, &program)?;
        let mut command = Command::new(&program);
        command.arg("judge").arg("--place").arg(place.path());
        command.args(["--mode", subject.mode.name()]);
        if rustix::process::geteuid().is_root() {
            command.args(["--user", &SOMEBODY.to_string()]);
        }
        if let Some(policy) = &subject.policy {
            command.arg("--policy").arg(policy);
        }
        if let Some(directory) = &subject.runtime_dir {
            command.arg("--runtime-dir").arg(directory);
        }
        if !subject.cases.is_empty() {
            command.args(["--only", &subject.cases.join(",")]);
        }
        if !subject.command.is_empty() {
            command.arg("--").args(&subject.command);
        }
        let output = capture_any(command.stdin(Stdio::null()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!(
                "agentd-escape judge: {}\n{}",
                child::outcome(output.status),
                said.trim_end()
            );
        }
        eprint!("{said}");
        serde_json::from_slice(&output.stdout).context("read what agentd-escape judge printed")
    }
}

/// Where victims stand, and peers that an ordinary user must reach.
#[derive(Debug)]
pub enum Place {
    Given(PathBuf),
    /// Not below /tmp, which several sandboxes share with the host by design.
    Own(TempDir),
}

impl Place {
    pub fn own() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let parent = if rustix::process::geteuid().is_root() {
            PathBuf::from("/var/lib")
        } else {
            std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from)
        };
        let directory = tempfile::Builder::new()
            .prefix("agentd-attack-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir_in(&parent)
            .with_context(|| format!("make a directory in {}", parent.display()))?;
        Ok(Self::Own(directory))
    }

    pub fn path(&self) -> &Path {
        match self {
            Self::Given(path) => path,
            Self::Own(directory) => directory.path(),
        }
    }
}
