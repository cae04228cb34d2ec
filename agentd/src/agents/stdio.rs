//! The daemon's ends of an agent's standard streams, or of its terminal.
//!
//! The launcher makes them inside the sandbox (the PTY from the sandbox's own devpts) and passes them out, so that an
//! agent never holds a descriptor of the caller. Reading ends when the last process of the sandbox is gone.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::PipeFlags;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::sync::{Mutex, MutexGuard};

use super::feed::Feed;

/// End-of-file as a terminal in canonical mode understands it (Ctrl-D).
const VEOF: u8 = 4;

/// Which stream a piece of output came from. A terminal has only [`Stream::Stdout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What the agent reads from.
#[derive(Debug, Clone)]
pub enum Input {
    Terminal(Arc<AsyncFd<OwnedFd>>),
    /// `None` once end-of-file was sent.
    Pipe(Arc<Mutex<Option<Feed>>>),
    Nothing,
}

/// What the agent writes to. Cheap to clone; the descriptors are closed with the last clone.
#[derive(Debug, Clone)]
pub enum Output {
    Terminal(Arc<TerminalOutput>),
    Pipes(Arc<PipeOutput>),
    Nothing,
}

/// A PTY master and the pipe through which its bytes go to the log: what was taken from the terminal and is not in the
/// log yet is there, also when this process is killed.
#[derive(Debug)]
pub struct TerminalOutput {
    pub(super) master: Arc<AsyncFd<OwnedFd>>,
    pub(super) held_out: OwnedFd,
    pub(super) held_in: OwnedFd,
}

#[derive(Debug)]
pub struct PipeOutput {
    pub(super) stdout: AsyncFd<OwnedFd>,
    pub(super) stderr: AsyncFd<OwnedFd>,
}

/// Labels of what is kept for a terminal, in their order.
const TERMINAL: [&str; 3] = ["terminal", "held-out", "held-in"];
/// Labels of what is kept for pipes.
const PIPES: [&str; 2] = ["stdout", "stderr"];

/// Wraps a PTY master and the pipe behind it: one that was kept, with what is in it, or a new one.
pub fn from_terminal(
    master: OwnedFd,
    held: Option<(OwnedFd, OwnedFd)>,
) -> io::Result<(Input, Output)> {
    let (held_out, held_in) = match held {
        Some(held) => held,
        None => rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?,
    };
    let output = Output::terminal(master, held_out, held_in)?;
    let Output::Terminal(terminal) = &output else {
        unreachable!("just made")
    };
    Ok((Input::Terminal(Arc::clone(&terminal.master)), output))
}

/// Wraps the three pipes; without a feed, stdin has been ended before.
pub fn from_pipes(
    stdin: Option<Feed>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> io::Result<(Input, Output)> {
    let input = Input::Pipe(Arc::new(Mutex::new(stdin)));
    Ok((input, Output::pipes(stdout, stderr)?))
}

impl Output {
    fn terminal(master: OwnedFd, held_out: OwnedFd, held_in: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        Ok(Self::Terminal(Arc::new(TerminalOutput {
            master: Arc::new(super::watch_fd(master)?),
            held_out,
            held_in,
        })))
    }

    fn pipes(stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        for fd in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        Ok(Self::Pipes(Arc::new(PipeOutput {
            stdout: super::watch_fd(stdout)?,
            stderr: super::watch_fd(stderr)?,
        })))
    }

    /// Every descriptor that a restarted daemon needs to go on reading, with its label.
    pub fn kept_fds(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        match self {
            Self::Terminal(it) => TERMINAL
                .into_iter()
                .zip([
                    it.master.get_ref().as_fd(),
                    it.held_out.as_fd(),
                    it.held_in.as_fd(),
                ])
                .collect(),
            Self::Pipes(it) => PIPES
                .into_iter()
                .zip([it.stdout.get_ref().as_fd(), it.stderr.get_ref().as_fd()])
                .collect(),
            Self::Nothing => Vec::new(),
        }
    }
}

impl Input {
    /// Writes all of `bytes`, waiting for the agent to read. An agent that closed its stdin loses them, as in a shell.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Terminal(master) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let n = master
                        .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?))
                        .await?;
                    rest = &rest[n..];
                }
                Ok(())
            }
            Self::Pipe(pipe) => match pipe.lock().await.as_mut() {
                Some(feed) => {
                    feed.write_all(bytes).await?;
                    feed.flush().await
                }
                None => Ok(()),
            },
            Self::Nothing => Ok(()),
        }
    }

    /// Gives the agent what was accepted for it and has not reached it.
    pub async fn flush(&self) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => match pipe.lock().await.as_mut() {
                Some(feed) => feed.flush().await,
                None => Ok(()),
            },
            Self::Terminal(_) | Self::Nothing => Ok(()),
        }
    }

    /// Tells the agent that no more input comes.
    pub async fn end(&self) -> io::Result<()> {
        match self {
            Self::Terminal(_) => self.write(&[VEOF]).await,
            Self::Pipe(pipe) => match pipe.lock().await.take() {
                Some(mut feed) => feed.shutdown().await,
                None => Ok(()),
            },
            Self::Nothing => Ok(()),
        }
    }

    /// The feed of a pipe, for as long as the result lives.
    pub async fn lock_feed(&self) -> Option<MutexGuard<'_, Option<Feed>>> {
        match self {
            Self::Pipe(pipe) => Some(pipe.lock().await),
            Self::Terminal(_) | Self::Nothing => None,
        }
    }

    /// Has `forget` run before a pipe's stream is ended on purpose. See [`Feed::before_end`].
    pub async fn before_end(&self, forget: impl Future<Output = ()> + Send + 'static) {
        if let Self::Pipe(pipe) = self
            && let Some(feed) = pipe.lock().await.as_mut()
        {
            feed.before_end(forget);
        }
    }

    /// Takes the pipe away from attachments, for a driver that speaks a protocol on it.
    pub async fn take_feed(&self) -> Option<Feed> {
        match self {
            Self::Pipe(pipe) => pipe.lock().await.take(),
            Self::Terminal(_) | Self::Nothing => None,
        }
    }

    /// Changes the window size; without a terminal there is nothing to change.
    pub fn resize(&self, rows: u16, cols: u16) -> io::Result<()> {
        if let Self::Terminal(master) = self {
            let size = Winsize {
                ws_row: rows,
                ws_col: cols,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(master.get_ref().as_fd(), size)?;
        }
        Ok(())
    }
}
