//! Child processes of xtask: started, watched by pidfd, ended with everything they started.
//!
//! Every long-lived child gets its own process group, so that a Ctrl-C reaches xtask alone and the order of the
//! teardown is ours; dropping a [`Child`] ends the group (SIGTERM, a while, SIGKILL) and reaps it. Short commands
//! go through [`run`] and [`capture`]. Any thread, with the caller's own rights; failures name the
//! whole command line.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::stop::{Woken, wait_readable};

/// How long a child has after SIGTERM before SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(10);

/// A child in its own process group, ended and reaped on drop.
#[derive(Debug)]
pub struct Child {
    what: String,
    inner: std::process::Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts `command`; `what` names it in messages ("agentd").
    pub fn start(what: &str, command: &mut Command) -> Result<Self> {
        let inner = command
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", line(command)))?;
        let pid = Pid::from_child(&inner);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())
            .with_context(|| format!("open a pidfd of {what}"))?;
        Ok(Self {
            what: what.to_owned(),
            inner,
            pidfd,
            status: None,
        })
    }

    /// The same with a piped standard input, which is the caller's to write to and to close.
    pub fn start_fed(
        what: &str,
        command: &mut Command,
    ) -> Result<(Self, std::process::ChildStdin)> {
        let mut child = Self::start(what, command.stdin(Stdio::piped()))?;
        let stdin = child.inner.stdin.take();
        Ok((child, stdin.context("its standard input is piped")?))
    }

    pub fn id(&self) -> u32 {
        self.inner.id()
    }

    /// The child's standard output, where it was piped and not taken before.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.inner.stdout.take()
    }

    /// The child's standard error, where it was piped and not taken before.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.inner.stderr.take()
    }

    /// Waits until the child has ended; `None` when `timeout` passed first.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            if wait_readable(self.pidfd.as_fd(), timeout)? == Woken::TimedOut {
                return Ok(None);
            }
            self.reap()?;
        }
        Ok(self.status)
    }

    /// The exit status, if the child has ended already.
    pub fn try_status(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self
                .inner
                .try_wait()
                .with_context(|| format!("wait for {}", self.what))?;
        }
        Ok(self.status)
    }

    /// Ends the child and its process group: SIGTERM, up to ten seconds, SIGKILL.
    pub fn end(&mut self) -> Result<()> {
        if self.try_status()?.is_some() {
            return Ok(());
        }
        self.signal_group(Signal::TERM)?;
        // Not `wait`: after Ctrl-C that returns at once, and the teardown must still be patient.
        if !exits_within(&self.pidfd, TERM_GRACE)? {
            eprintln!(
                "  {} did not end on SIGTERM within {TERM_GRACE:?}: SIGKILL",
                self.what
            );
            self.signal_group(Signal::KILL)?;
        }
        self.reap()
    }

    /// Sends `signal` to the whole process group.
    pub fn signal_group(&self, signal: Signal) -> Result<()> {
        match kill_process_group(Pid::from_child(&self.inner), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("signal the process group of {}", self.what))
            }
        }
    }

    fn reap(&mut self) -> Result<()> {
        self.status = Some(
            self.inner
                .wait()
                .with_context(|| format!("reap {}", self.what))?,
        );
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("  {error:#}");
        }
    }
}

/// Whether the process of `pidfd` is gone within `timeout`; not ended early by Ctrl-C, since teardown must be patient.
pub fn exits_within(pidfd: &OwnedFd, timeout: Duration) -> Result<bool> {
    event_within(pidfd.as_fd(), rustix::event::PollFlags::IN, timeout)
}

/// Whether a file of the kernel's that tells changes by `POLLPRI` (cgroup.events) changes within `timeout`.
pub fn changes_within(file: &std::fs::File, timeout: Duration) -> Result<bool> {
    event_within(file.as_fd(), rustix::event::PollFlags::PRI, timeout)
}

fn event_within(
    fd: std::os::fd::BorrowedFd<'_>,
    flags: rustix::event::PollFlags,
    timeout: Duration,
) -> Result<bool> {
    use rustix::event::{PollFd, Timespec, poll};
    let deadline = std::time::Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let limit = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&limit)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for a child"),
        }
    }
}

/// Runs `command` to its end with inherited standard streams; an error unless it exits with 0.
pub fn run(command: &mut Command) -> Result<()> {
    let what = command.get_program().to_string_lossy().into_owned();
    let mut child = Child::start(&what, command)?;
    let status = loop {
        if let Some(status) = child.wait(Duration::from_secs(3600))? {
            break status;
        }
    };
    if !status.success() {
        bail!("{} failed: {}", line(command), outcome(status));
    }
    Ok(())
}

/// Runs `command` to its end and returns its output; an error, with what it said, unless it exits with 0.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = capture_any(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{} failed: {}\n{}",
            line(command),
            outcome(output.status),
            said.trim_end()
        );
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("{} printed bytes that are not UTF-8", line(command)))
}

/// Runs `command` to its end and returns output and status, whatever they are.
pub fn capture_any(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", line(command)))?;
    crate::stop::check()?;
    Ok(output)
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .map(|word| {
            if word.contains(' ') {
                format!("'{word}'")
            } else {
                word.into_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// "exit code 3" or "killed by signal 9".
pub fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_dropped_child_takes_its_process_group_with_it() {
        let mut child = Child::start(
            "sh",
            Command::new("sh")
                .args(["-c", "sleep 1000 & echo $!; wait"])
                .stdout(Stdio::piped()),
        )
        .expect("start sh");
        let mut first = String::new();
        let mut stdout = std::io::BufReader::new(child.take_stdout().expect("piped"));
        std::io::BufRead::read_line(&mut stdout, &mut first).expect("read the grandchild's pid");
        let grandchild = Pid::from_raw(first.trim().parse().expect("a pid")).expect("a pid");
        let pidfd = pidfd_open(grandchild, PidfdFlags::empty()).expect("the grandchild lives");
        drop(child);
        assert!(
            exits_within(&pidfd, Duration::from_secs(60)).expect("poll"),
            "the grandchild is still alive"
        );
    }

    #[test]
    fn a_wait_that_times_out_says_so_and_leaves_the_child_running() {
        let mut child =
            Child::start("sleep", Command::new("sleep").arg("1000")).expect("start sleep");
        let before = Instant::now();
        assert!(
            child
                .wait(Duration::from_millis(20))
                .expect("wait")
                .is_none()
        );
        assert!(before.elapsed() >= Duration::from_millis(20));
        assert!(child.try_status().expect("look").is_none());
    }

    #[test]
    fn a_failed_command_names_its_line_its_code_and_what_it_said() {
        let error = capture(Command::new("sh").args(["-c", "echo why >&2; exit 3"]))
            .expect_err("it failed");
        let text = format!("{error:#}");
        assert!(
            text.contains("sh -c 'echo why >&2; exit 3' failed: exit code 3"),
            "{text}"
        );
        assert!(text.contains("why"), "{text}");
    }
}
