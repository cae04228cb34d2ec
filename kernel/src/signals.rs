//! Signals as events, for single-threaded programs that wait in `poll`.
//!
//! A [`SignalFd`] blocks a set of signals in the calling thread and makes them readable from a descriptor, so that no
//! handler ever runs. Create it before the first other thread exists: a thread that does not block a signal still takes
//! it. Needs no privilege. Dropping it restores the former mask, and what is pending then takes its course.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor from which the arrivals of some signals can be read.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
    before: libc::sigset_t,
    /// The mask belongs to the thread that made this.
    _not_send: PhantomData<*const ()>,
}

/// One arrival. Signals that come again before they are read count once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub signo: i32,
    /// The sender, as seen from here; 0 when the kernel itself sent it, as for a key on the terminal.
    pub pid: u32,
}

impl SignalFd {
    /// Blocks `signals` in this thread and opens a non-blocking descriptor for them.
    ///
    /// # Errors
    /// If a number is no signal, or the process is out of descriptors.
    pub fn new(signals: &[i32]) -> io::Result<Self> {
        let set = set_of(signals)?;
        // SAFETY: `set` is an initialised signal set; the kernel only reads it. -1 asks for a new descriptor.
        let raw = unsafe { libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: signalfd returned a fresh descriptor that nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let before = change_mask(libc::SIG_BLOCK, &set)?;
        Ok(Self {
            fd,
            before,
            _not_send: PhantomData,
        })
    }

    /// The next arrival, or `None` when there is none. Never blocks.
    pub fn try_next(&self) -> io::Result<Option<Arrival>> {
        let mut bytes = [0u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut bytes) {
            Ok(n) if n == bytes.len() => {}
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        // SAFETY: the structure is plain integers, any bytes are a value of it, and the buffer has its size;
        // read_unaligned asks nothing of the alignment.
        let info = unsafe {
            bytes
                .as_ptr()
                .cast::<libc::signalfd_siginfo>()
                .read_unaligned()
        };
        Ok(Some(Arrival {
            signo: info.ssi_signo as i32,
            pid: info.ssi_pid,
        }))
    }

    /// Stops this process and its process group as Ctrl-Z would, and returns when it was continued. In an orphaned
    /// process group, where nobody could continue it, the kernel ignores the stop and this returns at once.
    pub fn stop_job(&self) -> io::Result<()> {
        let stop = set_of(&[libc::SIGTSTP])?;
        rustix::process::kill_current_process_group(rustix::process::Signal::TSTP)?;
        let before = change_mask(libc::SIG_UNBLOCK, &stop)?;
        // Stopped and continued by now, or never: on return from the call above.
        change_mask(libc::SIG_SETMASK, &before)?;
        Ok(())
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl Drop for SignalFd {
    fn drop(&mut self) {
        // Restoring a mask that the kernel handed out cannot fail.
        drop(change_mask(libc::SIG_SETMASK, &self.before));
    }
}

fn set_of(signals: &[i32]) -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the line above.
    let mut set = unsafe { set.assume_init() };
    for &signo in signals {
        // SAFETY: `set` is an initialised set that lives on this stack; a bad number is reported, not used.
        if unsafe { libc::sigaddset(&mut set, signo) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

/// Returns the mask from before.
fn change_mask(how: i32, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for the call; on success the kernel's old mask is written to `before`.
    let error = unsafe { libc::pthread_sigmask(how, set, before.as_mut_ptr()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: pthread_sigmask succeeded, so it wrote the old mask.
    Ok(unsafe { before.assume_init() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};

    #[test]
    fn a_blocked_signal_can_be_read_with_its_sender() {
        // USR2 by tgkill to this thread alone: other test threads do not block it.
        let signals = SignalFd::new(&[libc::SIGUSR2]).expect("signalfd");
        assert_eq!(signals.try_next().expect("read"), None);
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        // SAFETY: sends a signal that this thread blocks; no memory is involved.
        let sent =
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGUSR2) };
        assert_eq!(sent, 0);
        let arrival = signals.try_next().expect("read").expect("one arrived");
        assert_eq!(arrival.signo, libc::SIGUSR2);
        assert_eq!(arrival.pid, std::process::id());
        assert_eq!(signals.try_next().expect("read"), None);
    }

    #[test]
    fn dropping_restores_the_mask() {
        let blocked = |signo| {
            let empty = set_of(&[]).expect("empty set");
            let now = change_mask(libc::SIG_BLOCK, &empty).expect("mask");
            // SAFETY: `now` is an initialised set.
            unsafe { libc::sigismember(&now, signo) == 1 }
        };
        assert!(!blocked(libc::SIGWINCH));
        let signals = SignalFd::new(&[libc::SIGWINCH]).expect("signalfd");
        assert!(blocked(libc::SIGWINCH));
        drop(signals);
        assert!(!blocked(libc::SIGWINCH));
        // WINCH is ignored by default, so sending it to the whole process proves that nothing blows up.
        kill_process(getpid(), Signal::WINCH).expect("kill");
    }

    #[test]
    fn a_number_that_is_no_signal_is_refused() {
        assert!(SignalFd::new(&[4096]).is_err());
    }
}
