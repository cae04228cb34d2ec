//! A short-lived child for probes that would change the process that asks.
//!
//! Made with a bare `clone`, so it shares no descriptor table, memory or signal handler state that it could spoil,
//! and runs one function of raw system calls. It never unwinds, allocates or locks: the parent may have any number of
//! threads, one of which may hold the allocator's lock.

use rustix::io::Errno;
use std::time::{Duration, Instant};

/// How a child's function says what failed: a number that [`Outcome::Failed`] hands back.
pub(super) type Step = u8;

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// The child could not be made.
    NotMade(Errno),
    /// A step failed.
    Failed(Step, Errno),
    /// It did not end by itself.
    Killed,
}

/// Runs `body` in a child made with the namespaces of `flags`, and waits for it.
///
/// `body` must only make raw system calls on what was prepared before: no allocation, no lock, no panic.
pub(super) fn run(flags: libc::c_int, body: impl FnOnce() -> Result<(), (Step, Errno)>) -> Outcome {
    // SAFETY: a clone without CLONE_VM gives the child its own copy of this thread's memory, so a null stack (go on
    // with the copied one) is right. No exit signal: the parent's SIGCHLD handling is not disturbed.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    if pid == 0 {
        let code = match body() {
            Ok(()) => 0,
            // Both halves of an exit status: the step above, the error number (at most 133) below.
            Err((step, errno)) => report(step, errno),
        };
        // SAFETY: ends the child without running destructors or atexit handlers, which belong to the parent.
        unsafe {
            libc::syscall(libc::SYS_exit_group, libc::c_long::from(code));
        }
        unreachable!("exit_group does not return");
    }
    match libc::pid_t::try_from(pid) {
        Ok(pid) if pid > 0 => wait(pid),
        _ => Outcome::NotMade(last_error()),
    }
}

/// The step goes into a signal number above the ordinary ones when there is no room in eight bits of exit code: so the
/// few steps there are, 0 to 1, share the byte with the error number.
fn report(step: Step, errno: Errno) -> i32 {
    let errno = errno.raw_os_error().clamp(1, 127);
    if step == 0 {
        errno
    } else {
        128 + errno.min(126)
    }
}

/// The error of the last raw call of this thread.
pub(super) fn last_error() -> Errno {
    // SAFETY: the address of this thread's errno is always valid.
    Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// A raw call's result as a `Result`.
pub(super) fn check(result: libc::c_long) -> Result<i32, Errno> {
    if result < 0 {
        Err(last_error())
    } else {
        Ok(i32::try_from(result).unwrap_or(i32::MAX))
    }
}

fn wait(pid: libc::pid_t) -> Outcome {
    // A probe takes microseconds; a child that hangs in a broken file system must not hang doctor with it.
    let deadline = Instant::now() + Duration::from_secs(5);
    if !ended_before(pid, deadline) {
        // SAFETY: plain system call on a child of ours that has not been reaped.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let mut status = 0;
    loop {
        // SAFETY: status is a valid place for the result; __WALL finds a child without exit signal.
        let done = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if done == pid {
            break;
        }
        if last_error() != Errno::INTR {
            return Outcome::Killed;
        }
    }
    if !libc::WIFEXITED(status) {
        return Outcome::Killed;
    }
    match libc::WEXITSTATUS(status) {
        0 => Outcome::Done,
        code @ 1..=127 => Outcome::Failed(0, Errno::from_raw_os_error(code)),
        code => Outcome::Failed(1, Errno::from_raw_os_error(code - 128)),
    }
}

/// Waits on a pidfd; without pidfds (reported by a probe of its own) the wait is left to `waitpid`.
fn ended_before(pid: libc::pid_t, deadline: Instant) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some(handle) = rustix::process::Pid::from_raw(pid) else {
        return true;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(handle, rustix::process::PidfdFlags::empty())
    else {
        return true;
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or(Timespec {
            tv_sec: 5,
            tv_nsec: 0,
        });
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(n) => return n > 0,
            Err(Errno::INTR) => {}
            Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_reports_success_and_each_step_that_failed() {
        assert_eq!(run(0, || Ok(())), Outcome::Done);
        assert_eq!(
            run(0, || Err((0, Errno::PERM))),
            Outcome::Failed(0, Errno::PERM)
        );
        assert_eq!(
            run(0, || Err((1, Errno::NOSPC))),
            Outcome::Failed(1, Errno::NOSPC)
        );
    }

    #[test]
    fn a_child_killed_by_a_signal_is_told_apart() {
        let outcome = run(0, || {
            // SAFETY: ends the child; it holds nothing of the parent's.
            unsafe {
                libc::syscall(
                    libc::SYS_kill,
                    libc::syscall(libc::SYS_getpid),
                    libc::SIGKILL,
                )
            };
            Ok(())
        });
        assert_eq!(outcome, Outcome::Killed);
    }
}
