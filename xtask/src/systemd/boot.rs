//! The two stages between `cargo xtask systemd` and systemd as PID 1, each run by this program again.
//!
//! [`Stage::Enter`] puts itself into the bed's cgroup and becomes `unshare`, which makes the namespaces; in them
//! [`Stage::Guest`] builds the root (overlays of the host's own, changes in memory) and becomes systemd. Both run as
//! root, on one thread, and never touch a mount of the host: everything is mounted in the new mount namespace, which
//! is gone with its last process. A failure ends the process with a line on the bed's console, where
//! [`super::bed::Bed`] finds it.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive,
    mount_change, mount_remount, unmount,
};

/// Where systemd is on every distribution with a merged or unmerged `/usr`.
pub const SYSTEMD: &str = "/lib/systemd/systemd";

/// The directory inside the bed in which [`super::bed::Bed`]'s notification socket is.
const HOST_DIR: &str = "/run/host/bed";

/// Directories of the host's system; what else lies in its root is not the bed's business.
const SYSTEM: [&str; 11] = [
    "bin", "etc", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "srv", "usr", "var",
];

/// Directories of the bed's own.
const OWN: [&str; 7] = ["dev", "home", "proc", "root", "run", "sys", "tmp"];

/// A procfs that hides nothing.
const WHOLE_PROC: &str = "/run/host/proc";

const QUIET: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// The target that the bed boots to: the basic system and the bus, and none of what the host has enabled.
const TARGET: &str = "agentd-bed.target";

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Stage {
    /// Enter the cgroup, make the namespaces
    Enter {
        cgroup: PathBuf,
        scratch: PathBuf,
        parent: i32,
    },
    /// Build the root and become systemd
    Guest { scratch: PathBuf },
}

/// The command that starts the first stage.
pub fn command(cgroup: &Path, scratch: &Path) -> Result<Command> {
    // Building the tests may have put another program where this one was.
    let own = scratch.join("xtask");
    std::fs::copy("/proc/self/exe", &own)
        .with_context(|| format!("copy this program to {}", own.display()))?;
    let mut command = Command::new(own);
    command
        .args(["systemd-stage", "enter"])
        .arg(cgroup)
        .arg(scratch)
        .arg(std::process::id().to_string());
    Ok(command)
}

fn stage(name: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(["systemd-stage", name]);
    Ok(command)
}

/// Runs a stage; returns only when it failed.
pub fn run(args: &Args) -> Result<()> {
    match &args.stage {
        Stage::Enter {
            cgroup,
            scratch,
            parent,
        } => enter(cgroup, scratch, *parent),
        Stage::Guest { scratch } => guest(scratch),
    }
}

fn enter(cgroup: &Path, scratch: &Path, parent: i32) -> Result<()> {
    // However xtask ends, unshare ends with it, and --kill-child ends PID 1 and so everything in the bed.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("ask to die with xtask")?;
    if rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        bail!("xtask has gone already");
    }
    std::fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("enter {}", cgroup.display()))?;
    let guest = stage("guest")?;
    let error = Command::new("unshare")
        .args(["--fork", "--kill-child", "--pid", "--mount", "--cgroup"])
        .args(["--net", "--uts", "--ipc", "--"])
        .arg(guest.get_program())
        .args(guest.get_args())
        .arg(scratch)
        .exec();
    Err(error).context("run unshare")
}

fn guest(scratch: &Path) -> Result<()> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context("make the mounts private")?;
    let root = scratch.join("root");
    overlay(scratch, &root)?;
    virtual_file_systems(&root)?;
    devices(&root, &scratch.join("console"))?;
    let (host_dir, proc) = (inside(&root, HOST_DIR), inside(&root, WHOLE_PROC));
    for directory in [&host_dir, &proc] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
    }
    // A user namespace may mount procfs only where one without masks is in sight; the bed's own has /proc/sys masked.
    mount_of("proc", "proc", &proc, QUIET, "")?;
    std::fs::set_permissions(
        inside(&root, "/run/host"),
        std::fs::Permissions::from_mode(0o700),
    )
    .context("close /run/host")?;
    mount_bind(scratch.join("notify"), &host_dir).context("bind the notification socket")?;
    settle(&root)?;

    std::env::set_current_dir(&root).context("enter the root")?;
    std::fs::create_dir_all(".old").context("make .old")?;
    rustix::process::pivot_root(".", ".old").context("pivot_root")?;
    std::env::set_current_dir("/").context("chdir /")?;
    unmount("/.old", UnmountFlags::DETACH).context("let go of the host's root")?;
    std::fs::remove_dir("/.old").context("remove /.old")?;
    // As a container's manager does it: systemd mounts credentials in a child's namespace and counts on propagation. The
    // host is no peer of these mounts.
    mount_change(
        "/",
        MountPropagationFlags::SHARED | MountPropagationFlags::REC,
    )
    .context("share the mounts within the bed")?;
    let error = Command::new(SYSTEMD)
        .arg(format!("--unit={TARGET}"))
        .args([
            "--log-target=console",
            "--log-level=notice",
            "--show-status=no",
        ])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("container", "agentd-bed")
        .env("NOTIFY_SOCKET", format!("{HOST_DIR}/socket"))
        .exec();
    Err(error).with_context(|| format!("run {SYSTEMD}"))
}

/// A root in memory, in which each directory of the host's system is an overlay that keeps its changes in memory. The root
/// itself is no overlay, and homes are not the host's: an overlay's mount can't be idmapped, as agents' workspaces are.
fn overlay(scratch: &Path, root: &Path) -> Result<()> {
    let layer = scratch.join("layer");
    for directory in [&layer, &root.to_owned()] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
    }
    tmpfs(&layer, "mode=755")?;
    mount_of("tmpfs", "tmpfs", root, MountFlags::empty(), "mode=755")?;
    for name in OWN {
        let at = root.join(name);
        std::fs::create_dir(&at).with_context(|| format!("make {}", at.display()))?;
    }
    for name in SYSTEM {
        let (lower, at) = (Path::new("/").join(name), root.join(name));
        let Ok(there) = std::fs::symlink_metadata(&lower) else {
            continue;
        };
        if there.is_symlink() {
            let target = std::fs::read_link(&lower).with_context(|| format!("read /{name}"))?;
            symlink(target, &at).with_context(|| format!("link /{name}"))?;
            continue;
        }
        let (upper, work) = (
            layer.join(format!("{name}.upper")),
            layer.join(format!("{name}.work")),
        );
        for directory in [&at, &upper, &work] {
            std::fs::create_dir(directory)
                .with_context(|| format!("make {}", directory.display()))?;
            std::fs::set_permissions(directory, there.permissions())
                .with_context(|| format!("set the mode of {}", directory.display()))?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        mount_of("overlay", "overlay", &at, MountFlags::empty(), &options)?;
    }
    Ok(())
}

fn virtual_file_systems(root: &Path) -> Result<()> {
    let quiet = QUIET;
    mount_of("proc", "proc", &root.join("proc"), quiet, "")?;
    // The host's kernel is not the bed's to configure.
    let sys = root.join("proc/sys");
    mount_bind(&sys, &sys).context("bind /proc/sys")?;
    mount_remount(&sys, MountFlags::BIND | MountFlags::RDONLY | quiet, "")
        .context("make /proc/sys read-only")?;
    mount_of(
        "sysfs",
        "sysfs",
        &root.join("sys"),
        quiet | MountFlags::RDONLY,
        "",
    )?;
    mount_of("cgroup2", "cgroup2", &root.join("sys/fs/cgroup"), quiet, "")?;
    tmpfs(&root.join("run"), "mode=755")?;
    tmpfs(&root.join("tmp"), "mode=1777")
}

fn devices(root: &Path, console: &Path) -> Result<()> {
    let dev = root.join("dev");
    tmpfs(&dev, "mode=755")?;
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        let at = dev.join(name);
        std::fs::write(&at, "").with_context(|| format!("make {}", at.display()))?;
        mount_bind(Path::new("/dev").join(name), &at)
            .with_context(|| format!("bind /dev/{name}"))?;
    }
    for name in ["pts", "shm"] {
        let at = dev.join(name);
        std::fs::create_dir(&at).with_context(|| format!("make {}", at.display()))?;
    }
    mount_of(
        "devpts",
        "devpts",
        &dev.join("pts"),
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "newinstance,ptmxmode=666,mode=620,gid=5",
    )?;
    tmpfs(&dev.join("shm"), "mode=1777")?;
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        symlink(target, dev.join(name)).with_context(|| format!("link /dev/{name}"))?;
    }
    let at = dev.join("console");
    std::fs::write(&at, "").context("make /dev/console")?;
    mount_bind_recursive(console, &at).context("bind the console")
}

/// What of the host's configuration must not act in the bed: its mounts, its name, the units that it has enabled.
fn settle(root: &Path) -> Result<()> {
    let etc = root.join("etc");
    let units = etc.join("systemd/system");
    std::fs::create_dir_all(&units).with_context(|| format!("make {}", units.display()))?;
    for entry in std::fs::read_dir(&units).with_context(|| format!("list {}", units.display()))? {
        let path = entry.context("list the host's units")?.path();
        let enabled = path
            .extension()
            .is_some_and(|e| e == "wants" || e == "requires");
        if enabled {
            std::fs::remove_dir_all(&path)
                .with_context(|| format!("disable {}", path.display()))?;
        }
    }
    std::fs::create_dir_all(etc.join("systemd/journald.conf.d")).context("configure journald")?;
    for (path, text) in [
        ("fstab", ""),
        ("hostname", "agentd-bed\n"),
        ("machine-id", ""),
        (
            "systemd/journald.conf.d/bed.conf",
            "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n",
        ),
        (
            "systemd/system/agentd-bed.target",
            "[Unit]\nDescription=Bed for agentd\nRequires=basic.target dbus.socket\nAfter=basic.target dbus.socket\nAllowIsolate=yes\n",
        ),
    ] {
        let at = etc.join(path);
        std::fs::write(&at, text).with_context(|| format!("write {}", at.display()))?;
    }
    Ok(())
}

fn tmpfs(at: &Path, options: &str) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    // Devices are bind mounts, which have flags of their own.
    mount_of("tmpfs", "tmpfs", at, flags, options)
}

fn mount_of(source: &str, kind: &str, at: &Path, flags: MountFlags, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options).context("mount options with a zero byte")?;
    mount(source, at, kind, flags, Some(options.as_c_str()))
        .with_context(|| format!("mount {kind} on {}", at.display()))
}

/// `path`, which is absolute, below `root`.
fn inside(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}
