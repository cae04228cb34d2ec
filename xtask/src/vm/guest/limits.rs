//! Limits on cgroup v2 as it is without systemd: memory, processes, CPU time, and the end of everything with the agent.
//!
//! Each case goes through a real `agentctl run`, and looks at what the kernel did (`memory.max`, `cpu.stat`, who is
//! alive), not at a clock.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{PidfdFlags, pidfd_open};

use super::{Bed, Finished, Teller};
use crate::child::exits_within;
use crate::lab::pid_of;

/// Something that doesn't happen within this time counts as not happening: a watchdog, emulation is slow.
const WATCHDOG: Duration = Duration::from_secs(120);

/// What the user was given.
pub const DELEGATED: &str = "/sys/fs/cgroup/user";

/// Makes a cgroup that belongs to the guest's user, as a service manager would delegate it, with a leaf that this process
/// moves into.
pub fn delegate() -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    let own = Path::new(DELEGATED);
    let enable = |at: &Path| -> Result<()> {
        let offered = read(at, "cgroup.controllers")?;
        for name in ["cpu", "memory", "pids"] {
            if offered.split(' ').any(|controller| controller == name) {
                std::fs::write(at.join("cgroup.subtree_control"), format!("+{name}"))
                    .with_context(|| format!("enable {name} in {}", at.display()))?;
            }
        }
        Ok(())
    };
    enable(top)?;
    for part in [own.to_owned(), own.join("tests")] {
        std::fs::create_dir(&part).with_context(|| format!("make {}", part.display()))?;
        for file in [
            "",
            "cgroup.procs",
            "cgroup.threads",
            "cgroup.subtree_control",
        ] {
            let path = part.join(file);
            std::os::unix::fs::chown(&path, Some(1000), Some(1000))
                .with_context(|| format!("give {} to the user", path.display()))?;
        }
    }
    enable(own)?;
    std::fs::write(
        own.join("tests/cgroup.procs"),
        std::process::id().to_string(),
    )
    .context("enter the user's cgroup")
}

pub fn cases(teller: &Teller, bed: &Bed) -> Result<()> {
    teller.run("limits.set", || set(bed))?;
    teller.run("limits.memory", || memory(bed))?;
    teller.run("limits.pids", || pids(bed))?;
    teller.run("limits.cpu", || cpu(bed))?;
    teller.run("limits.kill", || kill(bed))
}

/// What the policy says stands in the agent's cgroup.
fn set(bed: &Bed) -> Result<()> {
    let workspace = bed.workspace()?;
    let agent = bed.start(
        workspace.path(),
        &[
            "--set",
            "limits.memory=96MiB",
            "--set",
            "limits.pids=40",
            "--set",
            "limits.cpu=50%",
        ],
        "sleep 1000",
    )?;
    let cgroup = bed.cgroup(&agent)?;
    let memory: u64 = read(&cgroup, "memory.max")?
        .parse()
        .context("memory.max is no number")?;
    ensure!(
        memory == 96 << 20,
        "memory.max is {memory} in {}",
        cgroup.display()
    );
    // The init, which is not the agent's, counts as well.
    let pids: u64 = read(&cgroup, "pids.max")?
        .parse()
        .context("pids.max is no number")?;
    ensure!((40..=44).contains(&pids), "pids.max is {pids}");
    let cpu = read(&cgroup, "cpu.max")?;
    let (quota, period) = cpu.split_once(' ').context("cpu.max has no period")?;
    let (quota, period): (u64, u64) = (
        quota.parse().context("no quota in cpu.max")?,
        period.parse().context("no period in cpu.max")?,
    );
    ensure!(quota * 2 == period, "cpu.max is {cpu}");
    bed.lab.ask(&["kill", &agent.id])?;
    Ok(())
}

/// Less than the limit can be had, more can't.
fn memory(bed: &Bed) -> Result<()> {
    let take = |mebibytes: u32| {
        let script = format!("b = bytearray({mebibytes} << 20); print(len(b) >> 20)");
        bed.run(
            &["--set", "limits.memory=96MiB"],
            &["python3", "-I", "-c", &script],
        )
    };
    let little = take(16)?;
    ensure!(
        little.code == Some(0) && little.out.trim() == "16",
        "16 of 96 MiB: {little:?}"
    );
    let much = take(200)?;
    ensure!(
        much.code != Some(0) && much.out.is_empty(),
        "200 MiB were had under a limit of 96: {much:?}"
    );
    Ok(())
}

/// The fork beyond the limit fails, and with what it fails for.
fn pids(bed: &Bed) -> Result<()> {
    const SCRIPT: &str = "
import errno, os, signal
alive = []
try:
    while len(alive) < 64:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        alive.append(pid)
    print('no limit')
except OSError as error:
    print(errno.errorcode[error.errno], len(alive))
for pid in alive:
    os.kill(pid, signal.SIGKILL)
";
    let Finished { code, out, err } = bed.run(
        &["--set", "limits.pids=24"],
        &["python3", "-I", "-c", SCRIPT],
    )?;
    ensure!(code == Some(0), "{code:?}: {out}{err}");
    let forks: u32 = out
        .trim()
        .strip_prefix("EAGAIN ")
        .with_context(|| format!("64 forks under a limit of 24: {out}"))?
        .parse()
        .context("no number of forks")?;
    ensure!(
        (8..24).contains(&forks),
        "{forks} forks under a limit of 24"
    );
    Ok(())
}

/// A busy loop is held back by the kernel.
fn cpu(bed: &Bed) -> Result<()> {
    let workspace = bed.workspace()?;
    let agent = bed.start(
        workspace.path(),
        &["--set", "limits.cpu=10%"],
        "while :; do :; done",
    )?;
    let cgroup = bed.cgroup(&agent)?;
    let deadline = Instant::now() + WATCHDOG;
    loop {
        let stat = read(&cgroup, "cpu.stat")?;
        let throttled: u64 = stat
            .lines()
            .find_map(|line| line.strip_prefix("nr_throttled "))
            .context("cpu.stat has no nr_throttled")?
            .parse()
            .context("nr_throttled is no number")?;
        if throttled > 2 {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "never throttled at cpu.max {}",
            read(&cgroup, "cpu.max")?
        );
        // The kernel tells nobody of a throttled period; looked at again as often as there is one.
        std::thread::sleep(Duration::from_millis(100));
    }
    bed.lab.ask(&["kill", &agent.id])?;
    Ok(())
}

/// Daemons that left their session die with the agent, and the cgroup goes.
fn kill(bed: &Bed) -> Result<()> {
    let workspace = bed.workspace()?;
    let agent = bed.start(
        workspace.path(),
        &[],
        "sleep 1000 & (setsid sh -c '(sleep 1000 & sleep 1000 & : > up; wait) & wait' &); wait",
    )?;
    let cgroup = bed.cgroup(&agent)?;
    let (up, deadline) = (workspace.path().join("up"), Instant::now() + WATCHDOG);
    while !up.exists() {
        ensure!(
            Instant::now() < deadline,
            "the agent did not start its tree"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let pids = read(&cgroup, "cgroup.procs")?;
    let tree: Vec<OwnedFd> = pids
        .lines()
        .map(|pid| {
            let pid = pid_of(pid.parse().context("no pid in cgroup.procs")?)?;
            pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd")
        })
        .collect::<Result<_>>()?;
    ensure!(
        tree.len() >= 6,
        "only {} processes in the cgroup",
        tree.len()
    );
    bed.lab.ask(&["kill", &agent.id])?;
    for pidfd in &tree {
        if !exits_within(pidfd, WATCHDOG)? {
            bail!("a process of the killed agent lives on");
        }
    }
    // Its end is on record only when the cgroup is gone.
    let waited = crate::child::capture_any(bed.lab.agentctl().args(["wait", &agent.id]))?;
    ensure!(
        !cgroup.exists(),
        "{} is left after {:?}",
        cgroup.display(),
        waited.status
    );
    Ok(())
}

fn read(cgroup: &Path, file: &str) -> Result<String> {
    let path = cgroup.join(file);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}
