//! Processes by descriptor: signal, watch and reap without pid-reuse races.
//!
//! Never looks a process up by number after [`PidFd::open`]. Callable from any thread; signalling needs the usual rights,
//! reaping needs to be the parent. A readable descriptor means the process has exited.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

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

/// What [`PidFd::exit_status`] knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    Known(i32),
    /// It lives, or its parent has not reaped it yet.
    NotYet,
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

    /// The process's number, as the procfs at `/proc` has it; `None` once it was reaped, or if it can't be seen from here.
    pub fn pid(&self) -> io::Result<Option<i32>> {
        // The table of descriptors is a thread's, if seldom another than that of its process.
        let path = format!("/proc/thread-self/fdinfo/{}", self.0.as_raw_fd());
        let pid = std::fs::read_to_string(path)?.lines().find_map(|line| {
            let pid = line.strip_prefix("Pid:")?.trim().parse::<i32>();
            pid.ok().filter(|pid| *pid > 0)
        });
        Ok(pid)
    }

    /// How a process that is not our child ended, as `wait(2)` encodes it.
    ///
    /// # Errors
    /// Where the kernel can't say (before Linux 6.15), or the descriptor is no pidfd.
    #[doc(alias = "PIDFD_GET_INFO")]
    pub fn exit_status(&self) -> io::Result<ExitStatus> {
        /// `struct pidfd_info`, of which only three fields are read.
        #[repr(C)]
        #[derive(Default)]
        struct Info {
            mask: u64,
            cgroup_id: u64,
            ids: [u32; 11],
            exit_code: i32,
        }
        const PIDFD_GET_INFO: libc::Ioctl = 0xc040_ff0b;
        const PIDFD_INFO_EXIT: u64 = 1 << 3;
        const _: () = assert!(size_of::<Info>() == 64);
        let mut info = Info {
            mask: PIDFD_INFO_EXIT,
            ..Info::default()
        };
        // SAFETY: the request's number says that the kernel reads and writes 64 bytes, the size of `info`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        if info.mask & PIDFD_INFO_EXIT != 0 {
            return Ok(ExitStatus::Known(info.exit_code));
        }
        Ok(ExitStatus::NotYet)
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
    fn a_strangers_exit_status_is_known_once_it_is_reaped() {
        let mut child = Command::new("sh")
            .args(["-c", "read x; exit 3"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("spawn sh");
        let pidfd = PidFd::open(child.id() as i32).expect("pidfd");
        assert_eq!(pidfd.pid().expect("fdinfo"), Some(child.id() as i32));
        let before = pidfd.exit_status();
        child.wait().expect("wait");
        assert_eq!(pidfd.pid().expect("fdinfo"), None);
        match before {
            Ok(before) => {
                assert_eq!(before, ExitStatus::NotYet);
                let after = pidfd.exit_status().expect("as before");
                assert_eq!(after, ExitStatus::Known(3 << 8));
            }
            Err(error) => eprintln!("this kernel does not tell: {error}"),
        }
    }

    #[test]
    fn endings_encode_as_wait_does() {
        assert_eq!(Ending::Exited(3).to_wait_status(), 0x300);
        assert_eq!(Ending::Signalled(9).to_wait_status(), 9);
    }
}
