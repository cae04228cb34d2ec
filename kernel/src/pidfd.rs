//! Processes by descriptor: signal, watch and reap without pid-reuse races.
//!
//! Never looks a process up by number after [`PidFd::open`]. Callable from any thread; signalling needs the usual rights,
//! reaping needs to be the parent. A readable descriptor means the process has exited.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It called exit with this code, 0..=255.
    Exited(i32),
    /// This signal killed it.
    Signalled(i32),
}

impl Ending {
    /// The `wait(2)` encoding: code << 8, or the signal number.
    pub fn to_wait_status(self) -> i32 {
        match self {
            Self::Exited(code) => (code & 0xff) << 8,
            Self::Signalled(signal) => signal & 0x7f,
        }
    }
}

/// A process, held by descriptor.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process `pid`; close-on-exec.
    ///
    /// # Errors
    /// `ESRCH` when there is no such process.
    #[doc(alias = "pidfd_open")]
    pub fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        Ok(Self(pidfd_open(pid, PidfdFlags::empty())?))
    }

    /// Sends SIGKILL. A process that is already gone is not an error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.0, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether the process has exited (reaped or not). Works for any process, not only children.
    pub fn has_exited(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )? > 0)
    }

    /// Reaps the process if it is a child of ours and has exited.
    ///
    /// # Errors
    /// `ECHILD` when it is not our child or was reaped already.
    pub fn try_reap(&self) -> io::Result<Option<Ending>> {
        let status = waitid(
            WaitId::PidFd(self.0.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        )?;
        Ok(status.map(
            |status| match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ending::Exited(code),
                (None, Some(signal)) => Ending::Signalled(signal),
                (None, None) => Ending::Signalled(0),
            },
        ))
    }
}

impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> Self {
        pidfd.0
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    #[expect(clippy::zombie_processes, reason = "the pidfd under test reaps it")]
    fn a_killed_child_is_seen_and_reaped() {
        let child = Command::new("sleep")
            .arg("1000")
            .stdin(Stdio::null())
            .spawn()
            .expect("spawn sleep");
        let pidfd = PidFd::open(child.id() as i32).expect("pidfd");
        assert!(!pidfd.has_exited().expect("poll"));
        assert_eq!(pidfd.try_reap().expect("waitid"), None);
        pidfd.kill().expect("kill");
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        poll(&mut fds, None).expect("poll");
        assert!(pidfd.has_exited().expect("poll"));
        assert_eq!(
            pidfd.try_reap().expect("waitid"),
            Some(Ending::Signalled(9))
        );
        pidfd.kill().expect("killing the dead is no error");
    }

    #[test]
    fn endings_encode_as_wait_does() {
        assert_eq!(Ending::Exited(3).to_wait_status(), 0x300);
        assert_eq!(Ending::Signalled(9).to_wait_status(), 9);
    }
}
