//! Idmapped mounts: tried on a detached copy of the root file system's mount, which vanishes with its descriptor.

use super::child::{check, last_error};
use super::namespaces::mount_setattr;
use super::{ProbeState, Roots};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(super) fn probe(roots: &Roots) -> ProbeState {
    match attempt(roots) {
        Ok(()) => ProbeState::Supported,
        Err((call, Errno::PERM | Errno::ACCESS)) => ProbeState::Denied {
            capability: "CAP_SYS_ADMIN".into(),
            why: format!("{call} is not permitted"),
        },
        Err((_, Errno::INVAL)) => ProbeState::Unsupported {
            why: "the root file system does not support idmapped mounts".into(),
        },
        Err((call, e)) => ProbeState::Unsupported {
            why: format!("{call}: {e}"),
        },
    }
}

fn attempt(roots: &Roots) -> Result<(), (&'static str, Errno)> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, c"/", flags).map_err(|e| ("open_tree", e))?;
    let holder = Holder::start()?;
    let own = roots.proc.join(holder.pid.to_string());
    for file in ["uid_map", "gid_map"] {
        // 1000 shows as the first reserved id: the kind of map an agent's workspace gets.
        fs::write(own.join(file), "1000 2046820353 1").map_err(|e| {
            (
                "writing an id map",
                Errno::from_io_error(&e).unwrap_or(Errno::IO),
            )
        })?;
    }
    let namespace = rustix::fs::open(
        own.join("ns/user"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| ("opening a user namespace", e))?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).unwrap_or(u64::MAX),
    };
    mount_setattr(tree.as_raw_fd(), &attributes).map_err(|e| ("mount_setattr", e))
}

/// A child that does nothing but keep a user namespace alive.
struct Holder {
    pid: libc::pid_t,
    /// The child ends when this is closed.
    _alive: OwnedFd,
}

impl Holder {
    fn start() -> Result<Self, (&'static str, Errno)> {
        let mut ends = [0; 2];
        // SAFETY: ends has room for two descriptors.
        check(unsafe { libc::syscall(libc::SYS_pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC) })
            .map_err(|e| ("pipe2", e))?;
        // SAFETY: pipe2 succeeded, so both are open descriptors that nothing else owns.
        let (read, write) =
            unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: no CLONE_VM, so a null stack is right; no exit signal.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                libc::c_long::from(libc::CLONE_NEWUSER),
                0,
                0,
                0,
                0,
            )
        };
        if pid == 0 {
            let mut byte = 0u8;
            // SAFETY: raw calls on the child's copies of the descriptors; the child owns its copy of `byte`, and ends
            // here without running anything that belongs to the parent.
            unsafe {
                libc::syscall(libc::SYS_close, write.as_raw_fd());
                libc::syscall(libc::SYS_read, read.as_raw_fd(), &raw mut byte, 1);
                libc::syscall(libc::SYS_exit_group, 0);
            }
            unreachable!("exit_group does not return");
        }
        match libc::pid_t::try_from(pid) {
            Ok(pid) if pid > 0 => Ok(Self { pid, _alive: write }),
            _ => Err(("clone", last_error())),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut status = 0;
        // SAFETY: a child of ours that nobody else reaps (it has no exit signal); status is a valid place.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, &raw mut status, libc::__WALL);
        }
    }
}
