//! The process that outlives the broker's worker: holds the listening socket and the cgroups, and starts a worker whenever
//! a client connects and none runs.
//!
//! The worker (`server.rs`) does all the work and may crash; its agents' inits then become children of this process, which
//! reaps those that die and starts a successor as soon as agentd, which has noticed, connects again and hands its agents
//! over. It reads nothing from anybody: its inputs are its children's deaths, four signals, and whether a connection waits.
//! When there is no worker, no agent and nobody who connects, it ends, and the cgroups are removed.
//!
//! Same privileges as the worker, which is forked from it. Single-threaded; waits in `poll` only.

use crate::harden::Holdings;
use crate::log::log;
use crate::start::{AUDIT_OPTION, Arguments, PLANE_OPTION, Prepared, StartError};
use agentd_kernel::signals::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags};
use rustix::process::{Pid, Resource, Signal, WaitIdOptions, WaitOptions, WaitStatus};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a client has to connect: the first one, and the one that lost its worker and has no agents.
const PATIENCE: Duration = Duration::from_secs(5);
/// Workers start no faster than this: one that can't even take its client would be started for it again and again.
const START_INTERVAL: Duration = Duration::from_millis(100);

/// Workers that can't serve, one after the other, before that is final. One that was killed is none of them.
const MOST_FAILURES: u32 = 20;

/// What a process is after [`run`].
#[derive(Debug)]
pub enum Role {
    /// A worker just forked, which is to serve.
    Worker(Prepared),
    /// The supervisor, whose work is over; what it holds is to be removed unless agents are left.
    Supervisor(Option<Holdings>),
}

/// How the supervisor goes on without a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outlook {
    /// Somebody may connect until then.
    Expecting(Instant),
    /// Nobody need come, but somebody may while agents live.
    Winding,
    /// It was told to end.
    Ending,
    /// It was told to replace its own program.
    Replacing,
}

struct Supervisor<'a> {
    prepared: Prepared,
    arguments: &'a Arguments,
    signals: SignalFd,
    worker: Option<Pid>,
    outlook: Outlook,
    /// The earliest time for the next start.
    not_before: Instant,
    /// Workers in a row that ended with an error.
    failures: u32,
}

/// Supervises until the last worker has ended; returns in each worker, too.
pub fn run(prepared: Prepared, arguments: &Arguments) -> Result<Role, StartError> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(StartError::os("PR_SET_CHILD_SUBREAPER"))?;
    let signals = [
        libc::SIGCHLD,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGUSR2,
    ];
    let now = Instant::now();
    let supervisor = Supervisor {
        prepared,
        arguments,
        signals: SignalFd::new(&signals).map_err(StartError::os("signalfd"))?,
        worker: None,
        outlook: Outlook::Expecting(now + PATIENCE),
        not_before: now,
        failures: 0,
    };
    supervisor.supervise()
}

impl Supervisor<'_> {
    fn supervise(mut self) -> Result<Role, StartError> {
        loop {
            let connection_waits = self.wait().map_err(StartError::os("poll"))?;
            self.take_signals()?;
            self.reap()?;
            if self.worker.is_some() {
                continue;
            }
            let now = Instant::now();
            match self.outlook {
                Outlook::Ending => return Ok(self.over()),
                Outlook::Replacing => {
                    let Err(error) = self.replace();
                    log!("the program can't be replaced: {error}; going on");
                    self.outlook = Outlook::Expecting(now + PATIENCE);
                }
                _ if connection_waits => {
                    self.not_before = now + START_INTERVAL;
                    // SAFETY: a fork in a process with a single thread: the child's memory is whole, no lock is held in it.
                    match unsafe { libc::fork() } {
                        // Tried again after the interval, as the connection still waits.
                        -1 => log!("fork: {}", io::Error::last_os_error()),
                        0 => return Ok(Role::Worker(self.prepared)),
                        pid => self.worker = Pid::from_raw(pid),
                    }
                }
                _ if has_children() => {}
                Outlook::Expecting(until) if now < until => {}
                Outlook::Expecting(_) | Outlook::Winding => return Ok(self.over()),
            }
        }
    }

    fn over(self) -> Role {
        let holdings = Holdings {
            subtree: self.prepared.subtree,
            plane: self.prepared.plane,
        };
        Role::Supervisor((!has_children()).then_some(holdings))
    }

    /// Waits for a signal or, without a worker, a connection. Whether one waits.
    fn wait(&self) -> rustix::io::Result<bool> {
        let signals = self.signals.as_fd();
        let mut fds = vec![PollFd::from_borrowed_fd(signals, PollFlags::IN)];
        let now = Instant::now();
        let mut until = None;
        if self.worker.is_none() && now < self.not_before {
            until = Some(self.not_before);
        } else if self.worker.is_none() {
            let listener = self.prepared.socket.as_fd();
            fds.push(PollFd::from_borrowed_fd(listener, PollFlags::IN));
            until = match self.outlook {
                _ if has_children() => None,
                Outlook::Expecting(until) => Some(until),
                Outlook::Winding | Outlook::Ending | Outlook::Replacing => Some(now),
            };
        }
        let timeout = until.map(|until| {
            // Rounded up, so that the loop never spins just before its time.
            let left = until.saturating_duration_since(now) + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(fds.get(1).is_some_and(|fd| !fd.revents().is_empty()))
    }

    /// What this process is told, its worker is told too; it acts when the worker has ended.
    fn take_signals(&mut self) -> Result<(), StartError> {
        loop {
            let arrival = self.signals.try_next();
            let Some(arrival) = arrival.map_err(StartError::os("signalfd"))? else {
                return Ok(());
            };
            let (signal, outlook) = match arrival.signo {
                libc::SIGTERM | libc::SIGINT => (Signal::TERM, Outlook::Ending),
                libc::SIGUSR2 => (Signal::USR2, Outlook::Replacing),
                _ => continue,
            };
            if self.outlook != Outlook::Ending {
                self.outlook = outlook;
            }
            if let Some(worker) = self.worker {
                rustix::process::kill_process(worker, signal).map_err(StartError::os("kill"))?;
            }
        }
    }

    /// Reaps the worker, and agents' inits that a dead worker left.
    fn reap(&mut self) -> Result<(), StartError> {
        loop {
            let (pid, status) = match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => ended,
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(errno) => return Err(StartError::os("wait")(errno)),
            };
            if self.worker == Some(pid) {
                self.worker = None;
                self.worker_ended(status);
            }
        }
    }

    fn worker_ended(&mut self, status: WaitStatus) {
        let done = status.exit_status() == Some(0);
        if !done {
            let (code, signal) = (status.exit_status(), status.terminating_signal());
            let how = match (code, signal) {
                (_, Some(signal)) => format!("signal {signal}"),
                (code, None) => format!("exit code {}", code.unwrap_or_default()),
            };
            log!("the worker ended by {how}; the next one waits for agentd");
        }
        self.failures = match status.exit_status() {
            Some(0) | None => 0,
            Some(_) => self.failures + 1,
        };
        if self.failures == MOST_FAILURES {
            log!("{MOST_FAILURES} workers in a row could not serve; giving up");
            self.outlook = Outlook::Ending;
        }
        if matches!(self.outlook, Outlook::Expecting(_) | Outlook::Winding) {
            self.outlook = match done {
                true => Outlook::Winding,
                false => Outlook::Expecting(Instant::now() + PATIENCE),
            };
        }
    }

    /// Executes the program that is now where this one was started from, with the same arguments, pid, socket and children.
    fn replace(&self) -> Result<std::convert::Infallible, io::Error> {
        let mut path = std::fs::read_link("/proc/self/exe")?
            .into_os_string()
            .into_vec();
        // So the kernel marks a file that was replaced.
        if path.ends_with(b" (deleted)") {
            path.truncate(path.len() - b" (deleted)".len());
        }
        let limits = rustix::process::getrlimit(Resource::Nofile);
        let soft = |current| {
            let limits = rustix::process::Rlimit { current, ..limits };
            rustix::process::setrlimit(Resource::Nofile, limits)
        };
        let socket = self.prepared.socket.as_fd();
        soft(self.prepared.soft_nofile)?;
        rustix::io::fcntl_setfd(socket, FdFlags::empty())?;
        let mut command = Command::new(OsString::from_vec(path));
        command.args(&self.arguments.given).env_clear();
        // Programs and tables stay as they are: the right to load others is gone for good.
        let passed = self.prepared.plane.pass()?;
        if let Some(plane) = &passed {
            rustix::io::fcntl_setfd(plane, FdFlags::empty())?;
            command.arg(format!("{PLANE_OPTION}={}", plane.as_raw_fd()));
        }
        let audit = self.prepared.audit.pass()?;
        if let Some(audit) = &audit {
            rustix::io::fcntl_setfd(audit, FdFlags::empty())?;
            command.arg(format!("{AUDIT_OPTION}={}", audit.as_raw_fd()));
        }
        let error = command.exec();
        rustix::io::fcntl_setfd(socket, FdFlags::CLOEXEC)?;
        soft(limits.current)?;
        Err(error)
    }
}

/// Whether any child is left, dead or alive.
fn has_children() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let child = rustix::process::waitid(rustix::process::WaitId::All, options);
    !matches!(child, Err(Errno::CHILD))
}
