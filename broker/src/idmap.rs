//! Granted objects as mounts: cloned, detached, with the giver's ids mapped to the agent's.
//!
//! The clone of the mount at the granted descriptor belongs to no mount namespace; the launcher
//! attaches it inside. On it the giver's uid and gid are the agent's kernel ids and every other id
//! is nobody's, so the agent can do what the giver could do with the giver's own files, what the
//! world may do with all others, and files it makes are the giver's on disk. Set-id bits are
//! ignored on it, and devices but for one that was itself granted, and changes of the host's mounts
//! don't reach it.
//!
//! Needs `CAP_SYS_ADMIN`, and `CAP_SETUID`/`CAP_SETGID` for the map. Resolves no path. Fails where
//! a filesystem can't map ids, or the object was opened in another mount namespace.

use crate::failure::failed;
use agentd_broker::protocol::{ErrorCode, Failure};
use agentd_kernel::fdpass;
use agentd_kernel::grant::{Access, Grant, Kind};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{WaitId, WaitIdOptions};
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Which disk ids appear as which kernel ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdPair {
    /// On disk: the giver.
    pub uid: u32,
    pub gid: u32,
    /// In the kernel: the agent (its uid and gid are the same number).
    pub kernel_id: u32,
}

/// The last user namespaces that carried a map: making one takes a process.
#[derive(Debug, Default)]
pub struct IdmapCache {
    entries: VecDeque<(IdPair, OwnedFd)>,
}

const CACHED: usize = 32;

impl IdmapCache {
    /// The grant's object as a detached mount with `ids` mapped.
    pub fn mount(&mut self, grant: &Grant, ids: IdPair) -> Result<OwnedFd, Failure> {
        let dst = grant.dst.display();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let mount = open_tree(&grant.object, "", flags).map_err(|errno| {
            let text = format!("the mount granted for {dst} can't be cloned (was it opened in another mount namespace?)");
            failed(ErrorCode::Mount, text, &errno.into())
        })?;
        let userns = self
            .namespace(ids)
            .map_err(|error| failed(ErrorCode::Mount, "making an id map", &error))?;
        let read_only = if grant.access == Access::ReadOnly {
            MOUNT_ATTR_RDONLY
        } else {
            0
        };
        // The file system of devices can't map ids, so an agent opens a device as anybody may.
        let by_kind = match grant.kind {
            Kind::Device => 0,
            Kind::File | Kind::Socket | Kind::Content => MOUNT_ATTR_IDMAP | MOUNT_ATTR_NODEV,
        };
        let attributes = MountAttr {
            attr_set: MOUNT_ATTR_NOSUID | by_kind | read_only,
            attr_clr: 0,
            propagation: libc::MS_PRIVATE,
            userns_fd: userns.as_raw_fd() as u64,
        };
        // SAFETY: the path is a NUL-terminated literal, `attributes` is a live mount_attr whose size is passed with it, and
        // both descriptors stay open for the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
                &raw const attributes,
                size_of::<MountAttr>(),
            )
        };
        if result != 0 {
            let text =
                format!("the filesystem granted for {dst} (or one mounted in it) can't map ids");
            return Err(failed(ErrorCode::Mount, text, &io::Error::last_os_error()));
        }
        Ok(mount)
    }

    fn namespace(&mut self, ids: IdPair) -> io::Result<&OwnedFd> {
        let found = self.entries.iter().position(|(cached, _)| *cached == ids);
        let entry = match found.and_then(|index| self.entries.remove(index)) {
            Some(entry) => entry,
            None => (ids, make_namespace(ids)?),
        };
        self.entries.truncate(CACHED - 1);
        self.entries.push_front(entry);
        Ok(&self.entries[0].1)
    }
}

/// A user namespace with the map and no process in it.
fn make_namespace(ids: IdPair) -> io::Result<OwnedFd> {
    let (parent, child) = fdpass::seqpacket_pair()?;
    let mut pidfd = -1;
    // SAFETY: an all-zero clone_args is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (libc::CLONE_NEWUSER | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of everything and runs only `hold`, which makes
    // raw system calls and never returns.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => return Err(io::Error::last_os_error()),
        0 => hold(parent.as_raw_fd(), child.as_raw_fd()),
        _ => {}
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor owned by nobody else.
    let holder = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(child);
    let namespace = map_and_open(pid, ids, &parent);
    drop(parent);
    rustix::process::waitid(WaitId::PidFd(holder.as_fd()), WaitIdOptions::EXITED)?;
    namespace
}

fn map_and_open(pid: i64, ids: IdPair, ready: &OwnedFd) -> io::Result<OwnedFd> {
    if rustix::io::read(ready, &mut [0u8; 1])? != 1 {
        return Err(io::Error::other("the namespace's process died"));
    }
    let IdPair {
        uid,
        gid,
        kernel_id,
    } = ids;
    let write = |name: &str, id: u32| {
        fs::write(format!("/proc/{pid}/{name}"), format!("{id} {kernel_id} 1"))
    };
    write("uid_map", uid)?;
    write("gid_map", gid)?;
    Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// The namespace's process: becomes visible to its parent (which is not dumpable, and so neither is its copy), says so, and
/// lives until the parent closes its end, or dies. Async-signal-safe.
fn hold(parent: i32, own: i32) -> ! {
    let mut byte = [1u8];
    // SAFETY: calls without pointers but to a live one-byte buffer; `parent` is this process's copy, used by nothing else
    // here.
    unsafe {
        libc::close(parent);
        libc::prctl(libc::PR_SET_DUMPABLE, 1);
        libc::write(own, byte.as_ptr().cast(), 1);
        libc::read(own, byte.as_mut_ptr().cast(), 1);
        libc::_exit(0)
    }
}
