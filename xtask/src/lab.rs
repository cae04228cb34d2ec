//! A whole agentd on temporary directories, for the demo and the benchmarks: programs, key, stand-in model server,
//! daemon; all of it gone when the [`Lab`] is dropped.
//!
//! Runs as whoever called xtask: as root that gives root mode (agentd drops to its own user by itself), else user
//! mode. Nothing outside the temporary directory and the cgroups that the broker removes itself is touched. A daemon
//! that doesn't come up is an error with the end of its log.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::child::{self, Child};
use crate::stop::{Woken, wait_readable};
use crate::workspace::{Metadata, cargo};

/// How long a daemon may take until it is ready; it normally takes some milliseconds. The machine may be busy with other tiers.
const START_LIMIT: Duration = Duration::from_secs(120);

/// How programs are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    Debug,
    Release,
}

/// The directory that holds the project's programs.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// Compiles everything that a lab runs.
    pub fn build(profile: Profile) -> Result<Self> {
        let mut command = cargo();
        command.args([
            "build",
            "--bins",
            "-p",
            "agentd",
            "-p",
            "agentctl",
            "-p",
            "agentd-broker",
            "-p",
            "agentd-escape",
            "-p",
            "agentd-testkit",
        ]);
        if profile == Profile::Release {
            command.arg("--release");
        }
        child::run(&mut command)?;
        let target = Metadata::of_members()?.target_directory;
        Ok(Self(target.join(match profile {
            Profile::Debug => "debug",
            Profile::Release => "release",
        })))
    }

    /// Programs that somebody built before.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        let directory = directory
            .canonicalize()
            .with_context(|| format!("find {}", directory.display()))?;
        Ok(Self(directory))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Whose daemon it is: the system's, or an ordinary user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Root,
    User,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::User => "user",
        }
    }
}

/// What runs in a lab besides the daemon, and how the daemon is set up.
#[derive(Debug, Default)]
pub struct Setup<'a> {
    /// Script of the stand-in model server; without one there is no model.
    pub model_script: Option<&'a Path>,
    /// How long an agent outlives one lifeline, in milliseconds; the daemon's default without it.
    pub lifeline_grace_ms: Option<u32>,
    /// More lines of the configuration's `[daemon]`.
    pub daemon: &'a str,
    /// Whom the daemon runs as, where root starts it: user mode.
    pub user: Option<u32>,
}

/// A running agentd on temporary directories.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: the daemon ends its agents first, the directory goes last.
    agentd: Child,
    /// The broker's supervisor, once agentd was killed and may have left it behind.
    supervisor: Option<u32>,
    // Held for its life only.
    _model: Option<Child>,
    programs: Programs,
    user: Option<u32>,
    key: String,
    directory: TempDir,
}

impl Lab {
    pub fn start(programs: Programs, setup: &Setup<'_>) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("agentd-lab-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .context("make a temporary directory")?;
        let at = directory.path();

        // A key of this run alone, so that finding it anywhere is proof.
        let key = random_key()?;
        write_private(&at.join("model.key"), key.as_bytes())?;
        // Real agents are large programs, and the machine may be busy with other tests.
        let mut config = String::from("[daemon]\ndriver_start_ms = 240000\n");
        if let Some(grace) = setup.lifeline_grace_ms {
            config += &format!("lifeline_grace_ms = {grace}\n");
        }
        config += setup.daemon;
        config.push('\n');
        let model = match setup.model_script {
            None => None,
            Some(script) => {
                let (model, url) = start_model(
                    &programs,
                    script,
                    &at.join("model.key"),
                    &at.join("model.jsonl"),
                )?;
                config += &model_config(&url, &at.join("model.key"));
                Some(model)
            }
        };
        std::fs::write(at.join("agentd.toml"), config)
            .context("write the daemon's configuration")?;
        if let Some(user) = setup.user {
            std::os::unix::fs::chown(at, Some(user), Some(user))
                .with_context(|| format!("give away {}", at.display()))?;
        }
        let agentd = start_agentd(&programs, at, setup.user)?;
        Ok(Self {
            agentd,
            supervisor: None,
            _model: model,
            programs,
            user: setup.user,
            key,
            directory,
        })
    }

    /// The lab's own directory: world-readable, and gone with the lab.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The model key that only the daemon and the stand-in know.
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.path(name)
    }

    pub fn agentd(&self) -> u32 {
        self.agentd.id()
    }

    /// The broker's supervisor: the only child of the agentd that started it, and a child of nobody's after that.
    pub fn supervisor(&self) -> Result<u32> {
        match self.supervisor {
            Some(supervisor) => Ok(supervisor),
            None => broker_below(self.agentd.id()),
        }
    }

    /// The broker's worker: the supervisor's child, and the parent of agents.
    pub fn broker(&self) -> Result<u32> {
        broker_below(self.supervisor()?)
    }

    /// `agentctl`, aimed at this daemon.
    pub fn agentctl(&self) -> Command {
        let mut command = Command::new(self.program("agentctl"));
        command
            .arg("--runtime-dir")
            .arg(self.directory().join("run"))
            .current_dir(self.directory());
        command.stdin(Stdio::null());
        command
    }

    /// Runs `agentctl --json ARGUMENTS` and reads the one object that it prints.
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.agentctl();
        let text = child::capture(command.arg("--json").args(arguments))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} printed no JSON: {text}", child::line(&command)))
    }

    /// The end of the daemon's log, for messages about a failure.
    pub fn log_tail(&self) -> String {
        log_tail(self.directory())
    }

    /// Kills the daemon alone with SIGKILL, as a crash would.
    pub fn kill_agentd(&mut self) -> Result<()> {
        self.supervisor = Some(self.supervisor()?);
        kill(self.agentd())
    }

    /// Asks the daemon to end, which leaves its agents to the next one where the configuration says so.
    pub fn stop_agentd(&mut self) -> Result<()> {
        self.supervisor = Some(self.supervisor()?);
        signal(self.agentd(), Signal::TERM)
    }

    /// Starts the daemon again after [`Lab::kill_agentd`] or [`Lab::stop_agentd`], in the same
    /// directories; returns when it is ready.
    pub fn restart(&mut self) -> Result<()> {
        // Reaped first: what is left of its process group, the broker, is not to be ended with it.
        if self.agentd.wait(START_LIMIT)?.is_none() {
            bail!("agentd is to be started again, and still runs");
        }
        self.agentd = start_agentd(&self.programs, self.directory.path(), self.user)?;
        // Nobody was left to take over from: there is a new broker.
        if let Ok(supervisor) = broker_below(self.agentd.id()) {
            self.supervisor = Some(supervisor);
        }
        Ok(())
    }

    /// Kills the broker's worker with SIGKILL; its supervisor starts another.
    pub fn kill_broker_worker(&self) -> Result<()> {
        match self.broker().map(kill_if_there) {
            Ok(killed) => killed,
            // It is being replaced this moment.
            Err(_) => Ok(()),
        }
    }

    /// Has the broker's supervisor execute its program anew in place; there is another worker then.
    pub fn replace_broker(&self) -> Result<()> {
        signal(self.supervisor()?, Signal::USR2)
    }

    /// Kills the daemon and its broker with SIGKILL.
    pub fn crash(&mut self) -> Result<()> {
        let (supervisor, broker) = (self.supervisor()?, self.broker()?);
        kill(self.agentd())?;
        // Either may end by itself meanwhile: nobody is left to serve.
        kill_if_there(supervisor)?;
        kill_if_there(broker)
    }
}

fn broker_below(parent: u32) -> Result<u32> {
    children_of(parent)?
        .into_iter()
        .find(|pid| comm(*pid).is_ok_and(|name| name.starts_with("agentd-broker")))
        .with_context(|| format!("process {parent} has no broker among its children"))
}

/// SIGKILL to a process of the lab.
pub fn kill(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL)
}

/// As [`kill`], of one that may have been reaped since it was looked for.
fn kill_if_there(pid: u32) -> Result<()> {
    match rustix::process::kill_process(pid_of(pid)?, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("kill {pid}")),
    }
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    rustix::process::kill_process(pid_of(pid)?, signal)
        .with_context(|| format!("send {signal:?} to {pid}"))
}

/// The part of the daemon's configuration that says where the models are.
fn model_config(url: &str, key: &Path) -> String {
    let provider = |name: &str| {
        format!(
            "[model.{name}]\nbase_url = \"{url}\"\nkey = {{ file = \"{}\" }}\n\n",
            key.display()
        )
    };
    provider("anthropic") + &provider("openai")
}

fn start_model(
    programs: &Programs,
    script: &Path,
    key: &Path,
    log: &Path,
) -> Result<(Child, String)> {
    let mut model = Child::start(
        "model-standin",
        Command::new(programs.path("model-standin"))
            .arg("--script")
            .arg(script)
            .arg("--require-key-file")
            .arg(key)
            .arg("--log")
            .arg(log)
            .stdin(Stdio::null())
            .stdout(Stdio::piped()),
    )?;
    let mut stdout = model
        .take_stdout()
        .context("the stand-in's standard output is not piped")?;
    let url = read_line(&mut stdout, START_LIMIT)
        .context("the stand-in model server did not say its address")?;
    Ok((model, url))
}

fn start_agentd(programs: &Programs, at: &Path, user: Option<u32>) -> Result<Child> {
    let mut command = match user {
        None => Command::new(programs.path("agentd")),
        Some(user) => as_user(user, &programs.path("agentd"), at),
    };
    let mut agentd = Child::start(
        "agentd",
        command
            .arg("--config")
            .arg(at.join("agentd.toml"))
            .arg("--runtime-dir")
            .arg(at.join("run"))
            .arg("--state-dir")
            .arg(at.join("state"))
            .arg("--foreground")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped()),
    )?;
    let mut stderr = agentd
        .take_stderr()
        .context("agentd's standard error is not piped")?;
    let mut log = std::fs::File::create(at.join("agentd.log")).context("make the daemon's log")?;
    let ready = (|| loop {
        let line = read_line(&mut stderr, START_LIMIT)?;
        writeln!(log, "{line}").context("write the daemon's log")?;
        if line.trim() == "ready" {
            return Ok(());
        }
    })();
    ready.map_err(|error: anyhow::Error| {
        error.context(format!("agentd did not start\n{}", log_tail(at)))
    })?;
    // The rest of the log is only kept, so nobody waits for it: the thread ends with the daemon.
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut log));
    Ok(agentd)
}

/// A program as an ordinary user would start it, at home in `home`.
fn as_user(user: u32, program: &Path, home: &Path) -> Command {
    let user = user.to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &user, "--regid", &user])
        .args(["--clear-groups", "--inh-caps=-all", "--"])
        .arg(program)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", home);
    command
}

/// One line from a pipe, waited for with a limit; a closed pipe is an error.
pub fn read_line(pipe: &mut (impl Read + AsFd), limit: Duration) -> Result<String> {
    let deadline = Instant::now() + limit;
    let mut line = Vec::new();
    loop {
        if wait_readable(
            pipe.as_fd(),
            deadline.saturating_duration_since(Instant::now()),
        )? == Woken::TimedOut
        {
            bail!("nothing came within {limit:?}");
        }
        let mut byte = [0];
        if pipe.read(&mut byte).context("read a pipe")? == 0 {
            bail!("it ended: {}", String::from_utf8_lossy(&line));
        }
        if byte[0] == b'\n' {
            return String::from_utf8(line).context("a line that is not UTF-8");
        }
        line.push(byte[0]);
    }
}

fn log_tail(at: &Path) -> String {
    let text = std::fs::read_to_string(at.join("agentd.log")).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..]
        .iter()
        .map(|line| format!("  agentd: {line}\n"))
        .collect()
}

pub fn random_key() -> Result<String> {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut urandom| urandom.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(format!(
        "sk-lab-{}",
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    ))
}

fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content))
        .with_context(|| format!("write {}", path.display()))
}

/// A pid as the kernel's calls want it.
pub fn pid_of(pid: u32) -> Result<rustix::process::Pid> {
    i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .with_context(|| format!("{pid} is no pid"))
}

/// Parent → child pids, from /proc.
pub fn children_of(parent: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        let name = entry.context("list /proc")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process that is gone by now has no parent to ask for.
        if stat_field(pid, 4).is_ok_and(|found| found == u64::from(parent)) {
            children.push(pid);
        }
    }
    Ok(children)
}

/// Everything below `ancestor`, itself included.
pub fn tree_of(ancestor: u32) -> Result<Vec<u32>> {
    let mut tree = vec![ancestor];
    let mut next = 0;
    while next < tree.len() {
        tree.extend(children_of(tree[next])?);
        next += 1;
    }
    Ok(tree)
}

/// A numeric field of `/proc/PID/stat`, counted from 1 as in proc(5); 3 and above only.
pub fn stat_field(pid: u32, field: usize) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("read /proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces and parentheses; the last one closes it.
    let (_, rest) = text
        .rsplit_once(')')
        .context("a stat line without a name")?;
    rest.split_whitespace()
        .nth(field - 3)
        .and_then(|value| value.parse().ok())
        .with_context(|| format!("/proc/{pid}/stat has no number in field {field}"))
}

fn comm(pid: u32) -> Result<String> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .with_context(|| format!("read /proc/{pid}/comm"))?;
    Ok(name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_tree_holds_its_root_and_grandchildren() {
        let mut child = Child::start(
            "sh",
            Command::new("sh")
                .args(["-c", "sh -c 'echo up; sleep 1000; :' & wait"])
                .stdout(Stdio::piped()),
        )
        .expect("start sh");
        let mut stdout = child.take_stdout().expect("piped");
        assert_eq!(read_line(&mut stdout, START_LIMIT).expect("a line"), "up");
        let tree = tree_of(child.id()).expect("a tree");
        assert!(tree.contains(&child.id()) && tree.len() >= 2, "{tree:?}");
    }

    #[test]
    fn the_stat_of_a_process_gives_its_parent() {
        assert_eq!(
            stat_field(std::process::id(), 4).expect("field 4"),
            u64::from(std::os::unix::process::parent_id())
        );
    }

    #[test]
    fn a_key_file_is_private() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        write_private(&path, b"secret").expect("written");
        assert_eq!(
            path.metadata().expect("there").permissions().mode() & 0o777,
            0o600
        );
    }
}
