//! Ctrl-C, SIGTERM and SIGHUP as something that can be polled, so that every wait in xtask ends early and every
//! guard on the stack still runs: what a verb started is torn down however it ends.
//!
//! Any thread, without privilege. The signal handlers only write one byte into a socket; nothing is
//! ever read from it, so once a signal has come, every later wait sees it at once.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const SIGNALS: [i32; 3] = [
    signal_hook::consts::SIGINT,
    signal_hook::consts::SIGTERM,
    signal_hook::consts::SIGHUP,
];

static STOPPED: OnceLock<UnixStream> = OnceLock::new();

/// The error of a wait that Ctrl-C, SIGTERM or SIGHUP ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The fd became readable.
    Ready,
    /// The time was up first.
    TimedOut,
}

/// Catches the signals from here on. Called once, at the start of `main`.
pub fn catch_signals() -> Result<()> {
    let (read, write) = UnixStream::pair().context("make the signal socket")?;
    for signal in SIGNALS {
        let end = write.try_clone().context("copy the signal socket")?;
        signal_hook::low_level::pipe::register(signal, end)
            .with_context(|| format!("catch signal {signal}"))?;
    }
    STOPPED.get_or_init(|| read);
    Ok(())
}

/// Waits until `fd` is readable or `timeout` has passed; an error if the person asked to stop.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> Result<Woken> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = vec![PollFd::new(&fd, PollFlags::IN)];
        if let Some(stopped) = STOPPED.get() {
            fds.push(PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN));
        }
        match poll(&mut fds, Some(&timespec(left))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for an event"),
        }
        if fds
            .get(1)
            .is_some_and(|stopped| !stopped.revents().is_empty())
        {
            bail!(Interrupted);
        }
        if !fds[0].revents().is_empty() {
            return Ok(Woken::Ready);
        }
        if left.is_zero() {
            return Ok(Woken::TimedOut);
        }
    }
}

/// An error if the person asked to stop; for loops that don't wait.
pub fn check() -> Result<()> {
    let Some(stopped) = STOPPED.get() else {
        return Ok(());
    };
    let mut fds = [PollFd::from_borrowed_fd(stopped.as_fd(), PollFlags::IN)];
    poll(&mut fds, Some(&timespec(Duration::ZERO))).context("look for a signal")?;
    if fds[0].revents().is_empty() {
        Ok(())
    } else {
        bail!(Interrupted)
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
