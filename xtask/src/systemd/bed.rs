//! A whole systemd on this machine, without a virtual machine: PID 1 of its own pid, mount, cgroup, network, UTS and
//! IPC namespaces, over an overlay of the host's root.
//!
//! Runs as root. Of the host only one directory of the cgroup2 mount and one temporary directory are used; both are
//! gone when the [`Bed`] is dropped, and however xtask ends, the kernel ends everything in the bed (see
//! [`super::boot`]). What a run before that was killed left in the cgroup tree is removed by the next. Commands are run
//! inside with `nsenter`. A bed that doesn't come up is an error with the end of its console.

use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use tempfile::TempDir;

use super::boot;
use crate::child::{self, Child};
use crate::lab::children_of;
use crate::stop::{Woken, wait_readable};
use crate::test::Skip;

/// A bed that is not up after this time is reported. A watchdog, never a pace: it takes some seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// How long the kernel may take to end everything in the bed.
const END_LIMIT: Duration = Duration::from_secs(120);

/// Seconds after which a command in the bed counts as hung, as timeout(1) takes them. A watchdog, never a pace.
const COMMAND_LIMIT: &str = "120";

const CGROUP_PREFIX: &str = "agentd-bed-";

/// A running systemd.
#[derive(Debug)]
pub struct Bed {
    unshare: Child,
    /// systemd's pid on the host, and a handle on it.
    init: (Pid, OwnedFd),
    cgroup: PathBuf,
    scratch: TempDir,
}

/// Why this machine can't run a bed.
pub fn missing() -> Option<Skip> {
    if !rustix::process::geteuid().is_root() {
        return Some(Skip::new(
            "systemd",
            "making namespaces and mounts needs root: run it with sudo",
        ));
    }
    if cgroup2().is_none() {
        return Some(Skip::new("systemd", "no cgroup2 hierarchy is mounted"));
    }
    for (path, package) in [
        (boot::SYSTEMD, "systemd"),
        ("/usr/bin/dbus-daemon", "dbus"),
        ("/usr/share/polkit-1/actions", "polkitd"),
        ("/usr/bin/unshare", "util-linux"),
    ] {
        if !Path::new(path).exists() {
            return Some(Skip::new(
                "systemd",
                format!("{path} is missing; with apt: apt-get install -y {package}"),
            ));
        }
    }
    None
}

/// The mount point of cgroup2.
fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(point))
    })
}

impl Bed {
    /// Boots systemd and waits until its basic system is up.
    pub fn boot() -> Result<Self> {
        let top = cgroup2().context("no cgroup2 hierarchy is mounted")?;
        sweep(&top)?;
        let scratch = tempfile::Builder::new()
            .prefix("agentd-bed-")
            .tempdir()
            .context("make a temporary directory")?;
        let at = scratch.path();
        let cgroup = top.join(format!("{CGROUP_PREFIX}{}", std::process::id()));
        std::fs::create_dir(&cgroup).with_context(|| format!("make {}", cgroup.display()))?;
        let guard = CgroupGuard(Some(cgroup));

        std::fs::create_dir(at.join("notify")).context("make the notification directory")?;
        let notify =
            UnixDatagram::bind(at.join("notify/socket")).context("bind the notification socket")?;
        let console = std::fs::File::create(at.join("console")).context("make the console")?;
        let mut command = boot::command(guard.path(), at)?;
        command
            .stdin(Stdio::null())
            .stdout(console.try_clone().context("copy the console")?)
            .stderr(console);
        let mut unshare = Child::start("systemd", &mut command)?;
        let started = await_ready(&notify, &mut unshare)
            .and_then(|()| init_below(unshare.id()))
            .map_err(|error| {
                error.context(format!("systemd did not come up\n{}", console_tail(at)))
            });
        let init = match started {
            Ok(init) => init,
            Err(error) => {
                // Not TERM: that would tell systemd to execute itself again.
                unshare.signal_group(Signal::KILL)?;
                return Err(error);
            }
        };
        Ok(Self {
            unshare,
            init,
            cgroup: guard.keep(),
            scratch,
        })
    }

    /// The bed's root directory as the host sees it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init.0))
    }

    /// `path`, which is absolute in the bed, as the host sees it.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    /// A command that runs in the bed, as root.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.init.0))
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"])
            .args(["--wd=/", "--", "timeout", COMMAND_LIMIT, program])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .stdin(Stdio::null());
        command
    }

    /// A command that runs in the bed as `user`.
    pub fn command_as(&self, user: &str, program: &str) -> Command {
        let mut command = self.command("setpriv");
        command
            .arg(format!("--reuid={user}"))
            .arg(format!("--regid={user}"))
            .args(["--init-groups", "--reset-env", program]);
        command
    }

    /// Runs a command line in the bed; its standard output, or an error with what it said.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let (program, arguments) = words.split_first().context("an empty command line")?;
        let said = child::capture(self.command(program).args(arguments))?;
        Ok(said.trim_end().to_owned())
    }

    /// One property of a unit, as systemd says it.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        self.run(&["systemctl", "show", "--value", "-p", property, unit])
    }

    /// What `pid` in the bed is on the host: its `/proc` as the bed sees it.
    pub fn proc_of(&self, pid: &str, file: &str) -> Result<String> {
        self.run(&["cat", &format!("/proc/{pid}/{file}")])
    }

    /// The journal of a unit.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.run(&["journalctl", "--no-pager", "-o", "short", "-u", unit])
    }

    /// The end of what systemd itself said.
    pub fn console_tail(&self) -> String {
        console_tail(self.scratch.path())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let ended = self.unshare.signal_group(Signal::KILL).and_then(|()| {
            // The pid namespace is empty when its init is gone.
            if !crate::child::exits_within(&self.init.1, END_LIMIT)? {
                bail!("processes of the bed did not end within {END_LIMIT:?}");
            }
            remove_tree(&self.cgroup)
        });
        if let Err(error) = ended {
            eprintln!("  {error:#}");
        }
    }
}

/// Removes the bed's cgroup when booting fails.
#[derive(Debug)]
struct CgroupGuard(Option<PathBuf>);

impl CgroupGuard {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new("/"))
    }

    fn keep(mut self) -> PathBuf {
        self.0.take().unwrap_or_default()
    }
}

impl Drop for CgroupGuard {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = emptied(&path).and_then(|()| remove_tree(&path))
        {
            eprintln!("  {error:#}");
        }
    }
}

/// Ends what is in a cgroup, and waits until it is empty.
fn emptied(cgroup: &Path) -> Result<()> {
    std::fs::write(cgroup.join("cgroup.kill"), "1")
        .with_context(|| format!("kill what is in {}", cgroup.display()))?;
    let mut events = std::fs::File::open(cgroup.join("cgroup.events"))
        .with_context(|| format!("open the events of {}", cgroup.display()))?;
    let deadline = Instant::now() + END_LIMIT;
    // Read and polled through one descriptor: the kernel tells changes since that one's last read.
    while populated(&mut events).with_context(|| format!("watch {}", cgroup.display()))? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || !child::changes_within(&events, left)? {
            bail!("{} is not empty after {END_LIMIT:?}", cgroup.display());
        }
    }
    Ok(())
}

fn populated(events: &mut std::fs::File) -> Result<bool> {
    let mut text = String::new();
    events.rewind()?;
    events.read_to_string(&mut text)?;
    Ok(text.lines().any(|line| line == "populated 1"))
}

/// Removes beds whose xtask was killed.
fn sweep(top: &Path) -> Result<()> {
    for entry in std::fs::read_dir(top).with_context(|| format!("list {}", top.display()))? {
        let path = entry
            .with_context(|| format!("list {}", top.display()))?
            .path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(CGROUP_PREFIX)
            && let Ok(mut events) = std::fs::File::open(path.join("cgroup.events"))
            && !populated(&mut events)?
        {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Removes a cgroup and those below it. The files in them are the kernel's and go with them.
fn remove_tree(cgroup: &Path) -> Result<()> {
    let list = std::fs::read_dir(cgroup).with_context(|| format!("list {}", cgroup.display()))?;
    for entry in list {
        let entry = entry.with_context(|| format!("list {}", cgroup.display()))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    std::fs::remove_dir(cgroup).with_context(|| format!("remove {}", cgroup.display()))
}

/// Waits for systemd's own `READY=1`.
fn await_ready(notify: &UnixDatagram, unshare: &mut Child) -> Result<()> {
    let deadline = Instant::now() + BOOT_LIMIT;
    let mut message = [0; 4096];
    // Short waits only so that a bed that ended early is noticed; readiness itself is the event.
    let step = Duration::from_millis(500);
    loop {
        if let Some(status) = unshare.try_status()? {
            bail!("it ended: {}", child::outcome(status));
        }
        if Instant::now() > deadline {
            bail!("not ready within {BOOT_LIMIT:?}");
        }
        if wait_readable(notify.as_fd(), step)? == Woken::TimedOut {
            continue;
        }
        let length = notify.recv(&mut message).context("read the notification")?;
        if message[..length]
            .split(|byte| *byte == b'\n')
            .any(|line| line == b"READY=1")
        {
            return Ok(());
        }
    }
}

fn init_below(unshare: u32) -> Result<(Pid, OwnedFd)> {
    let pid = children_of(unshare)?
        .first()
        .copied()
        .context("unshare has no child")?;
    let pid = crate::lab::pid_of(pid)?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd of systemd")?;
    Ok((pid, handle))
}

fn console_tail(scratch: &Path) -> String {
    let text = std::fs::read(scratch.join("console")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..]
        .iter()
        .map(|line| format!("  console: {line}\n"))
        .collect()
}
