//! The meter of an agent with `limits.disk`: a process of its own that looks at what the agent has
//! added to the folders it may write, and ends the agent when that is over the limit.
//!
//! No kernel interface holds such a limit on a file system without project quotas, so this is a
//! watch and no wall: between two looks an agent can be over. It looks before the program starts
//! (the launcher waits at its barrier for that), then as often as a twentieth of a core allows,
//! four times a second at most, and not at all while the file system's own count of free blocks and
//! inodes stands still.
//!
//! Its rights: the agent's own kernel ids, in a user namespace of its own where it holds
//! `CAP_DAC_READ_SEARCH` and nothing else, so that no mode hides a file of the agent's; the grants'
//! descriptors; a pidfd of the init. It is in the agent's cgroup and outside its pid namespace, is
//! not dumpable, and speaks to nobody: its verdict goes into the status file, and then it kills the
//! init. It ends with the init. When it ends first, the broker kills the agent: a limit that nobody
//! holds is none.
//!
//! Runs as a copy of the (single-threaded) broker, and leaves it by `_exit` only.

use crate::failure::failed;
use crate::spawn::{own_maps, write_maps};
use agentd_broker::protocol::{ErrorCode, Failure, Mode};
use agentd_kernel::pidfd::PidFd;
use agentd_launch::plan::DiskLimit;
use agentd_launch::status::{OverDisk, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use walk::{TooDeep, Usage, measure};

mod walk;

/// Between two looks, at least.
const SHORTEST: Duration = Duration::from_millis(250);
/// Between two looks, as a multiple of what one takes: a twentieth of a core.
const REST: u32 = 20;
/// A file system may be late with its own figures: it is looked at this often whatever they say.
const LONGEST: Duration = Duration::from_secs(10);

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What one is started with.
pub struct Meter<'a> {
    pub mode: Mode,
    pub limit: DiskLimit,
    /// The writable grants, none inside another.
    pub places: Vec<BorrowedFd<'a>>,
    pub init: BorrowedFd<'a>,
    pub status_file: BorrowedFd<'a>,
    /// A byte lets the launcher go on.
    pub release: BorrowedFd<'a>,
    /// Inside, and the maps as the launcher has them.
    pub ids: (u32, u32),
    pub maps: (&'a CStr, &'a CStr),
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Version 1 cgroups to enter.
    pub tasks: &'a [OwnedFd],
}

/// Starts it. On failure there is none, and the launcher still waits.
pub fn start(meter: &Meter<'_>) -> Result<PidFd, Failure> {
    let fault = |what: &'static str| move |error: io::Error| failed(ErrorCode::Spawn, what, &error);
    let (barrier, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|errno| failed(ErrorCode::Spawn, "pipe", &errno.into()))?;
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (libc::CLONE_NEWUSER | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(directory) = meter.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = directory.as_raw_fd() as u64;
    }
    // SAFETY: no CLONE_VM, so this is a fork of a process with a single thread: the child has its own copy of everything, no
    // lock is held by anyone, and it leaves by `_exit` without coming back here.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => return Err(fault("clone3 of the disk meter")(io::Error::last_os_error())),
        0 => {
            let code = match meter.run(&barrier, go) {
                Ok(()) => 0,
                Err(error) => {
                    crate::log::log!("the disk meter: {error}");
                    1
                }
            };
            // SAFETY: ends this process, and runs nothing that its parent registered.
            unsafe { libc::_exit(code) }
        }
        _ => {}
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD: a new descriptor that nobody else owns.
    let pidfd = PidFd::from(unsafe { OwnedFd::from_raw_fd(pidfd) });
    let maps = (meter.mode == Mode::Root).then_some(meter.maps);
    write_maps(pid as i32, maps)
        .and_then(|()| {
            rustix::io::write(&go, &[1])
                .map(drop)
                .map_err(|errno| failed(ErrorCode::Spawn, "starting the disk meter", &errno.into()))
        })
        .inspect_err(|_| crate::spawn::discard(&pidfd))?;
    Ok(pidfd)
}

impl Meter<'_> {
    /// The child, to its end.
    fn run(&self, barrier: &OwnedFd, go: OwnedFd) -> io::Result<()> {
        // Ours would keep the barrier from ever closing.
        drop(go);
        if rustix::io::read(barrier, &mut [0u8; 1])? != 1 {
            return Err(io::Error::other("the broker gave the launch up"));
        }
        if self.mode == Mode::User {
            own_maps(self.maps).map_err(io::Error::from_raw_os_error)?;
        }
        for tasks in self.tasks {
            rustix::io::write(tasks, b"0")?;
        }
        let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        let places = self
            .places
            .iter()
            .copied()
            .map(copy)
            .collect::<Result<Vec<_>, _>>()?;
        let status_file = std::fs::File::from(copy(self.status_file)?);
        let (init, release) = (PidFd::from(copy(self.init)?), copy(self.release)?);
        // The client's socket, lifelines, other agents' descriptors: they must end with the broker, not with this.
        let kept = places.iter().map(AsRawFd::as_raw_fd);
        let others = [
            status_file.as_raw_fd(),
            init.as_fd().as_raw_fd(),
            release.as_raw_fd(),
        ];
        close_all_but(kept.chain(others).collect())?;
        become_reader(self.mode, self.ids)?;

        let start = measure(&places).map_err(|TooDeep| {
            io::Error::other(format!(
                "what may be written is more than {} folders deep",
                walk::MAX_DEPTH
            ))
        })?;
        rustix::io::write(&release, &[1])?;
        drop(release);
        let Some(verdict) = self.watch(&places, start, &init)? else {
            return Ok(());
        };
        status_file.write_all_at(&Status::OverDisk(verdict).encode(), 0)?;
        init.kill()
    }

    /// Looks until the agent is over its limit; `None` when it has ended.
    fn watch(
        &self,
        places: &[OwnedFd],
        start: Usage,
        init: &PidFd,
    ) -> io::Result<Option<OverDisk>> {
        let (mut wait, mut free, mut looked) = (SHORTEST, None, Instant::now());
        loop {
            let timeout = Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: wait.subsec_nanos().into(),
            };
            if poll(&mut [PollFd::new(init, PollFlags::IN)], Some(&timeout))? > 0 {
                return Ok(None);
            }
            let now = free_now(places);
            if free.as_ref() == Some(&now) && looked.elapsed() < LONGEST {
                continue;
            }
            free = Some(now);
            looked = Instant::now();
            let found = measure(places).map(|usage| usage.since(start));
            if let Some(verdict) = judge(found, self.limit) {
                return Ok(Some(verdict));
            }
            wait = SHORTEST.max(looked.elapsed().saturating_mul(REST));
        }
    }
}

/// Over which limit, if any. 0 is none.
fn judge(found: Result<Usage, TooDeep>, limit: DiskLimit) -> Option<OverDisk> {
    let over = |found, limit| limit != 0 && found > limit;
    match found {
        Err(TooDeep) => Some(OverDisk::Depth {
            limit: walk::MAX_DEPTH as u64,
        }),
        Ok(Usage { bytes, .. }) if over(bytes, limit.bytes) => Some(OverDisk::Bytes {
            added: bytes,
            limit: limit.bytes,
        }),
        Ok(Usage { inodes, .. }) if over(inodes, limit.inodes) => Some(OverDisk::Inodes {
            added: inodes,
            limit: limit.inodes,
        }),
        Ok(_) => None,
    }
}

/// Free blocks and inodes of each place's file system. One that can't be asked counts as changed.
fn free_now(places: &[OwnedFd]) -> Vec<Option<(u64, u64)>> {
    let free = |place| {
        rustix::fs::fstatvfs(place)
            .ok()
            .map(|s| (s.f_bfree, s.f_ffree))
    };
    places.iter().map(free).collect()
}

/// The agent's ids, and the one capability that reads whatever modes the agent sets.
fn become_reader(mode: Mode, (uid, gid): (u32, u32)) -> io::Result<()> {
    use caps::{CapSet, Capability};
    let check = |result: i64| match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    if mode == Mode::Root {
        // SAFETY: numbers only.
        unsafe {
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
    }
    let only = HashSet::from([Capability::CAP_DAC_READ_SEARCH]);
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &only).map_err(io::Error::other)?;
    }
    // SAFETY: numbers, and a literal that ends in NUL.
    unsafe {
        check(libc::prctl(libc::PR_SET_DUMPABLE, 0).into())?;
        check(libc::prctl(libc::PR_SET_NAME, c"agentd-meter".as_ptr()).into())?;
    }
    // Each folder on the way down is open.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(())
}

/// Closes every descriptor above standard error that is not in the list.
fn close_all_but(mut kept: Vec<RawFd>) -> io::Result<()> {
    kept.sort_unstable();
    let mut from = libc::STDERR_FILENO as u32 + 1;
    for fd in kept.into_iter().map(|fd| fd as u32).chain([u32::MAX]) {
        if from < fd {
            // SAFETY: numbers only. The child is about to use nothing but what it keeps, and drops
            // nothing else: it ends by `_exit`.
            if unsafe { libc::close_range(from, fd - 1, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        from = fd.saturating_add(1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_over_a_limit_that_is_not_there() {
        let usage = |bytes, inodes| Ok(Usage { bytes, inodes });
        let limit = DiskLimit {
            bytes: 100,
            inodes: 0,
        };
        assert_eq!(judge(usage(100, u64::MAX), limit), None);
        let over = OverDisk::Bytes {
            added: 101,
            limit: 100,
        };
        assert_eq!(judge(usage(101, 0), limit), Some(over));
        let limit = DiskLimit {
            bytes: 0,
            inodes: 5,
        };
        let over = OverDisk::Inodes { added: 6, limit: 5 };
        assert_eq!(judge(usage(u64::MAX, 6), limit), Some(over));
        assert_eq!(judge(usage(0, 5), limit), None);
        assert!(matches!(
            judge(Err(TooDeep), limit),
            Some(OverDisk::Depth { .. })
        ));
    }
}
