//! The program's standard streams: a terminal of the sandbox's own devpts, three pipes, or `/dev/null`.
//!
//! Runs in the launcher before the view is entered. The caller's own terminal or files never get in: the other ends are
//! sent out with `Ready`.

use agentd_kernel::sys::fs::{self, O_NOCTTY, O_NONBLOCK, O_RDWR};
use agentd_kernel::sys::{Errno, Fd, FdRef, tty};

use super::view::View;
use super::{During, Outcome};
use crate::plan::Stdio;
use crate::status::{NO_RECORD, Step};

/// Both sides of the program's streams.
pub(super) enum Streams {
    Null {
        null: Fd,
    },
    Pipes {
        inner: [Fd; 3],
        outer: [Option<Fd>; 3],
    },
    Terminal {
        slave: Fd,
        master: Option<Fd>,
        /// Whether the init gets what the terminal sends to its foreground, to pass it on: the program is in a session of
        /// its own on another kernel.
        relayed: bool,
    },
    /// Under gVisor: 0 to 2 are the program's already, a terminal or not.
    Inherited {
        terminal: Option<Fd>,
    },
}

impl Streams {
    pub(super) fn open(stdio: Stdio, view: &View, relayed: bool) -> Outcome<Streams> {
        let open = || match stdio {
            Stdio::Null => Ok(Streams::Null {
                null: fs::openat2(view.root(), c"dev/null", O_RDWR, 0, 0)?,
            }),
            Stdio::Pipes => {
                let (stdin, stdout, stderr) = (fs::pipe()?, fs::pipe()?, fs::pipe()?);
                Ok(Streams::Pipes {
                    inner: [stdin.0, stdout.1, stderr.1],
                    outer: [Some(stdin.1), Some(stdout.0), Some(stderr.0)],
                })
            }
            Stdio::Pty { rows, cols } => {
                let master = fs::openat2(
                    view.root(),
                    c"dev/pts/ptmx",
                    O_RDWR | O_NOCTTY | O_NONBLOCK,
                    0,
                    0,
                )?;
                let slave = tty::open_peer(master.borrow())?;
                tty::set_size(master.borrow(), rows, cols)?;
                Ok(Streams::Terminal {
                    slave,
                    master: Some(master),
                    relayed,
                })
            }
        };
        open().during(Step::Stdio, NO_RECORD)
    }

    /// What gVisor has placed at 0 to 2.
    ///
    /// # Safety
    /// Nobody owns the number 0.
    pub(super) unsafe fn inherited(stdio: Stdio) -> Streams {
        let terminal = matches!(stdio, Stdio::Pty { .. });
        Streams::Inherited {
            // SAFETY: the caller's promise.
            terminal: terminal.then(|| unsafe { Fd::from_raw(0) }),
        }
    }

    /// Makes the terminal, if there is one, the controlling terminal of the caller's new session.
    ///
    /// The init leads the session and the program leads a process group in it, so that group has a parent in the session
    /// and is not orphaned: Ctrl-Z stops it, as it would a shell's child.
    pub(super) fn take_terminal(&self) -> Outcome<()> {
        match self {
            Streams::Terminal { slave, .. } => {
                tty::make_controlling(slave.borrow()).during(Step::Stdio, NO_RECORD)
            }
            Streams::Null { .. } | Streams::Pipes { .. } | Streams::Inherited { .. } => Ok(()),
        }
    }

    /// In the program's process: its descriptors 0 to 2, and its group in the foreground.
    ///
    /// # Safety
    /// The caller is the program's process, where nobody owns the numbers 0 to 2.
    pub(super) unsafe fn install(&self, group: u32) -> Result<(), Errno> {
        let inner = match self {
            Streams::Null { null } => [null.borrow(); 3],
            Streams::Pipes { inner, .. } => inner.each_ref().map(Fd::borrow),
            Streams::Terminal { slave, relayed, .. } => {
                if !relayed {
                    tty::set_foreground(slave.borrow(), group)?;
                }
                [slave.borrow(); 3]
            }
            Streams::Inherited { terminal } => {
                return match terminal {
                    Some(terminal) => tty::set_foreground(terminal.borrow(), group),
                    None => Ok(()),
                };
            }
        };
        for (number, fd) in (0..).zip(inner) {
            // SAFETY: the caller's promise: 0 to 2 are free to be replaced.
            unsafe { fs::dup_to(fd, number) }?;
        }
        Ok(())
    }

    /// What goes out with `Ready`, in order.
    pub(super) fn outer(&self) -> [Option<&Fd>; 3] {
        match self {
            Streams::Null { .. } | Streams::Inherited { .. } => [None; 3],
            Streams::Pipes { outer, .. } => outer.each_ref().map(Option::as_ref),
            Streams::Terminal { master, .. } => [master.as_ref(), None, None],
        }
    }

    /// Keeps the terminal's master, so that the program survives its reader, and to know the foreground group. All other
    /// ends are closed: a pipe kept here would never end.
    pub(super) fn into_terminal(self) -> Option<Fd> {
        match self {
            Streams::Terminal { master, .. } => master,
            Streams::Inherited { terminal } => terminal,
            Streams::Null { .. } | Streams::Pipes { .. } => None,
        }
    }
}

/// The foreground group of the terminal, if there is one.
pub(super) fn foreground(terminal: Option<FdRef<'_>>) -> Option<u32> {
    tty::foreground(terminal?).ok().filter(|group| *group > 1)
}
