//! The cases, one file per family. Each is a few lines of what an attacker would write, and says nothing of who must stop it.
//!
//! Everything here runs inside, in a process of its own ([`crate::inside`]), and may leave that process in any state. What
//! it leaves elsewhere is in places of its own: each case has its names, its signal, its server log.

pub mod config;
pub mod covert;
pub mod dev;
pub mod exec;
pub mod fds;
pub mod files;
pub mod ipc;
pub mod life;
pub mod mounts;
pub mod namespaces;
pub mod net;
pub mod privileges;
pub mod proc;
pub mod processes;
pub mod ptrace;
pub mod readonly;
pub mod resources;
pub mod signals;
pub mod syscalls;
pub mod time;
pub mod tty;
pub mod writes;

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use crate::case::{Attempt, Case, Try};
use crate::raw::{Refused, call};
use crate::scene::c;

/// Families in the order in which they are tried.
pub const FAMILIES: &[(&str, &[Case])] = &[
    ("fs", files::CASES),
    ("write", writes::CASES),
    ("readonly", readonly::CASES),
    ("covert", covert::CASES),
    ("dev", dev::CASES),
    ("proc", proc::CASES),
    ("ipc", ipc::CASES),
    ("signal", signals::CASES),
    ("process", processes::CASES),
    ("ptrace", ptrace::CASES),
    ("fd", fds::CASES),
    ("priv", privileges::CASES),
    ("exec", exec::CASES),
    ("ns", namespaces::CASES),
    ("mount", mounts::CASES),
    ("syscall", syscalls::CASES),
    ("tty", tty::CASES),
    ("time", time::CASES),
    ("net", net::CASES),
    ("config", config::CASES),
    ("resource", resources::CASES),
    ("life", life::CASES),
];

/// Why what a kernel in user space does with its own objects reaches nothing of the host's.
pub(crate) mod emulated {
    pub(crate) const DEVICES: &str = "the node is one of gVisor's own, which has no driver behind it; no device of the host is in its view";
    pub(crate) const SETTINGS: &str = "the file is one of gVisor's own; it keeps what is written, and makes no call of the host's for it";
    pub(crate) const INIT: &str = "pid 1 is the launcher on gVisor's kernel: it is the agent's own uid, and holds the plan, three streams and sockets to its like";
    pub(crate) const ROOT: &str = "uid 0 of gVisor's kernel, without a capability there; on the host it is the agent's own uid, and so are its files";
    pub(crate) const NICE: &str = "gVisor notes the value and schedules nothing by it; its threads' niceness on the host stays";
    pub(crate) const SOCKETS: &str = "gVisor notes the option; its own socket on the host has none of it, for want of CAP_NET_ADMIN over the sandbox's network";
    pub(crate) const MEMORY: &str = "gVisor's own objects in its own memory, which limits.memory bounds; the host's pipes and terminals stay as they are";
    pub(crate) const CLOCK: &str = "gVisor's clocks count a thread that waits for a processor as running; the cgroup's quota holds all of its threads";
}

pub(crate) fn done(what: impl Into<String>) -> Try {
    Ok(Attempt::Done(what.into()))
}

pub(crate) fn unavailable(why: impl Into<String>) -> Try {
    Ok(Attempt::Unavailable(why.into()))
}

/// The whole file.
pub(crate) fn loot(path: impl AsRef<Path>) -> Try {
    Ok(Attempt::Loot(fs::read(path)?))
}

/// What can be read from an open descriptor.
pub(crate) fn loot_fd(fd: i32) -> Try {
    let mut bytes = vec![0_u8; 65536];
    // SAFETY: a buffer of ours with its length.
    let count = unsafe { libc::pread(fd, bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if count < 0 {
        return Err(Refused::new("pread", crate::raw::errno()));
    }
    bytes.truncate(usize::try_from(count).unwrap_or(0));
    Ok(Attempt::Loot(bytes))
}

/// Opens a path with these flags, by the plain call.
pub(crate) fn opened(path: impl AsRef<Path>, flags: i32) -> Result<i32, Refused> {
    let path = c(path);
    call!(libc::SYS_openat, libc::AT_FDCWD, path.as_c_str(), flags).map(fd)
}

/// A fifo of this name.
pub(crate) fn fifo_at(path: impl AsRef<Path>) -> Try {
    let path = c(path);
    call!(
        libc::SYS_mknodat,
        libc::AT_FDCWD,
        path.as_c_str(),
        libc::S_IFIFO | 0o666,
        0
    )?;
    done("made")
}

/// A second name for what a link of `/proc` leads to.
pub(crate) fn link_followed(from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<(), Refused> {
    let (from, to) = (c(from), c(to));
    call!(
        libc::SYS_linkat,
        libc::AT_FDCWD,
        from.as_c_str(),
        libc::AT_FDCWD,
        to.as_c_str(),
        libc::AT_SYMLINK_FOLLOW
    )
    .map(drop)
}

/// An unnamed file in a folder, then a name for it.
pub(crate) fn named_tmpfile(
    folder: impl AsRef<Path>,
    mode: u32,
    name: impl AsRef<Path>,
) -> Result<(), Refused> {
    let folder = c(folder);
    let file = call!(
        libc::SYS_openat,
        libc::AT_FDCWD,
        folder.as_c_str(),
        libc::O_TMPFILE | libc::O_RDWR,
        mode
    )?;
    link_followed(format!("/proc/self/fd/{}", fd(file)), name)
}

/// A descriptor as the kernel returned it.
pub(crate) fn fd(value: usize) -> i32 {
    i32::try_from(value).unwrap_or(-1)
}

/// Path of an open descriptor.
pub(crate) fn path_of(file: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// The child's side of a fork; the parent gets the exit status as `waitpid` gives it.
pub(crate) fn in_child(child: impl FnOnce() -> i32) -> Result<i32, Refused> {
    // SAFETY: a case has one thread, so its child may go on as if it were the parent.
    match unsafe { libc::fork() } {
        -1 => Err(Refused::new("fork", crate::raw::errno())),
        0 => {
            let code = child();
            // SAFETY: ends the child without running what the parent registered.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: our own child, and room for its status.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            Ok(status)
        }
    }
}
