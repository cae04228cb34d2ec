//! Where workloads run: a daemon of their own, the host's stand-in, and a fresh workspace for each.
//!
//! Runs as whoever called xtask, which decides the mode. A [`Stage`] is used by several threads at once; a workload leaves
//! nothing behind but its workspace, which goes with the stage.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::MAIN_POLICY;
use super::host;
use super::workload::{Folder, Network, Streams, Workload};
use crate::child::{Child, outcome};
use crate::lab::{Lab, Programs, Setup};

/// A workload that takes longer hangs: each takes seconds.
const LIMIT: Duration = Duration::from_secs(180);
/// For agentctl to say that the time is up before we do.
const LIMIT_OPTION: &str = "170s";
/// How much of what a failed script printed is told.
const TOLD_LINES: usize = 15;

pub struct Stage {
    lab: Lab,
    /// What the stand-in serves.
    served: PathBuf,
    /// The stand-in's address.
    url: String,
}

impl Stage {
    pub fn start(programs: Programs) -> Result<Self> {
        let lab = Lab::start(programs, &Setup::default())?;
        let served = lab.directory().join("host");
        std::fs::create_dir_all(served.join("git")).context("make the stand-in's directory")?;
        let port = host::serve(&served)?;
        let stage = Self {
            lab,
            served,
            url: format!("http://{}:{port}", host::ADDRESS),
        };
        std::fs::create_dir(stage.place("")).context("make a directory for workspaces")?;
        Ok(stage)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.lab.directory().join("work").join(name)
    }

    /// The policy of `workload`, extended by the stand-in where it is to reach that.
    fn policy(&self, workload: &Workload, place: &Path) -> Result<String> {
        match workload.network {
            Network::AsIs => Ok(workload.policy.to_owned()),
            Network::StandIn => {
                let file = place.join("policy.toml");
                let text = format!(
                    "description = \"{policy}, and the stand-in\"\nextends = \"{policy}\"\n\n[net]\nallow = [{{ host = \"{url}\", private = true }}]\n",
                    policy = workload.policy,
                    url = self.url.trim_start_matches("http://"),
                );
                std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
                Ok(file.display().to_string())
            }
        }
    }

    /// Runs one workload; an error says what went wrong with it.
    pub fn run(&self, workload: &Workload) -> Result<()> {
        let place = self.place(workload.name);
        let workspace = place.join("workspace");
        std::fs::create_dir_all(&workspace)
            .with_context(|| format!("make {}", workspace.display()))?;
        let host_script = |what: &str, script: &str| {
            let mut command = bash(script);
            command
                .current_dir(&workspace)
                .env("HOST", &self.served)
                .env("URL", &self.url)
                .env("OUT", place.join("run.out"));
            finish(what, &mut command, &place.join(what))
        };
        if !workload.prepare.is_empty() {
            host_script("prepare", workload.prepare)?;
        }

        let mut command = self.lab.agentctl();
        command
            .args(["run", "--timeout", LIMIT_OPTION, "--name", workload.name])
            .args(["--env", &format!("URL={}", self.url)])
            .arg("--policy")
            .arg(self.policy(workload, &place)?);
        match workload.folder {
            Folder::Workspace => command.arg("--workspace").arg(&workspace),
            Folder::None => command.arg("--no-workspace"),
        };
        for setting in workload.set {
            command.args(["--set", setting]);
        }
        if !rustix::process::geteuid().is_root() && workload.policy != MAIN_POLICY {
            // An ordinary user here may have no delegated cgroup, which not every policy puts up with.
            let concessions = ["degrade.allow=cgroup-limits", "degrade.mechanisms=1"];
            command.args(concessions.iter().flat_map(|one| ["--set", one]));
        }
        if workload.streams == Streams::Terminal {
            command.arg("--tty");
        }
        let script = bash(workload.run);
        command
            .arg("--")
            .arg(script.get_program())
            .args(script.get_args());
        finish("run", &mut command, &place.join("run"))?;
        host_script("check", workload.check)?;
        owned_by_the_caller(&workspace)
    }

    /// The end of the daemon's log, for messages about a failure.
    pub fn log_tail(&self) -> String {
        self.lab.log_tail()
    }
}

fn bash(script: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]);
    command
}

/// Runs `command` to its end, its output in `files.out` and `files.err`; an error tells the end of both.
fn finish(what: &str, command: &mut Command, files: &Path) -> Result<()> {
    let [out, err] = ["out", "err"].map(|extension| files.with_extension(extension));
    let create =
        |path: &Path| File::create(path).with_context(|| format!("make {}", path.display()));
    command
        .stdin(Stdio::null())
        .stdout(create(&out)?)
        .stderr(create(&err)?);
    let mut child = Child::start(what, command)?;
    let ended = child.wait(LIMIT)?;
    if ended.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let how = ended.map_or_else(
        || format!("did not end within {LIMIT:?}"),
        |status: ExitStatus| outcome(status),
    );
    bail!("{what}: {how}{}{}", tail(&out), tail(&err));
}

fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TOLD_LINES)..]
        .iter()
        .map(|line| format!("\n    {line}"))
        .collect()
}

/// Whatever kernel uid an agent has, its files are the caller's.
fn owned_by_the_caller(directory: &Path) -> Result<()> {
    let caller = rustix::process::geteuid().as_raw();
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        found => found.with_context(|| format!("list {}", directory.display()))?,
    };
    for entry in entries {
        let path = entry?.path();
        let metadata = match path.symlink_metadata() {
            // The placeholder of a protected name goes when the broker has seen the sandbox end.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            found => found.with_context(|| format!("look at {}", path.display()))?,
        };
        if metadata.uid() != caller {
            bail!(
                "{} belongs to uid {}, not to the caller's {caller}",
                path.display(),
                metadata.uid()
            );
        }
        if metadata.is_dir() {
            owned_by_the_caller(&path)?;
        }
    }
    Ok(())
}
