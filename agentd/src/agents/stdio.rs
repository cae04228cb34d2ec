//! The daemon's ends of an agent's standard streams, or of its terminal.
//!
//! The launcher makes them inside the sandbox (the PTY from the sandbox's own devpts) and passes them out, so that an
//! agent never holds a descriptor of the caller. Reading ends when the last process of the sandbox is gone.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;
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

/// What the agent writes to.
#[derive(Debug)]
pub enum Output {
    Terminal(Arc<AsyncFd<OwnedFd>>),
    Pipes {
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
    },
    Nothing,
}

/// Wraps a PTY master.
pub fn from_terminal(master: OwnedFd) -> io::Result<(Input, Output)> {
    rustix::io::ioctl_fionbio(&master, true)?;
    let master = Arc::new(super::watch_fd(master)?);
    Ok((
        Input::Terminal(Arc::clone(&master)),
        Output::Terminal(master),
    ))
}

/// Wraps the three pipes; without a feed, stdin has been ended before.
pub fn from_pipes(
    stdin: Option<Feed>,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> io::Result<(Input, Output)> {
    for fd in [&stdout, &stderr] {
        rustix::io::ioctl_fionbio(fd, true)?;
    }
    let input = Input::Pipe(Arc::new(Mutex::new(stdin)));
    let output = Output::Pipes {
        stdout: pipe::Receiver::from_owned_fd(stdout)?,
        stderr: pipe::Receiver::from_owned_fd(stderr)?,
    };
    Ok((input, output))
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

/// Reads from a PTY master. `Ok(0)` at its end, which Linux reports as EIO.
pub async fn read_terminal(master: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    let read = master
        .async_io(Interest::READABLE, |fd| {
            Ok(rustix::io::read(fd, &mut *buffer)?)
        })
        .await;
    match read {
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(0),
        other => other,
    }
}

impl Output {
    /// To be kept by the broker.
    pub fn kept_fds(&self) -> Vec<(&'static str, BorrowedFd<'_>)> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Terminal(master) => vec![("terminal", master.get_ref().as_fd())],
            Self::Pipes { stdout, stderr } => {
                vec![("stdout", stdout.as_fd()), ("stderr", stderr.as_fd())]
            }
        }
    }

    /// Reads the next piece, of whichever stream has one. `None` when every stream has ended.
    pub async fn read(
        &mut self,
        out: &mut [u8],
        err: &mut [u8],
        open: &mut OpenStreams,
    ) -> io::Result<Option<(Stream, usize)>> {
        match self {
            Self::Nothing => Ok(None),
            Self::Terminal(master) => {
                let n = read_terminal(master, out).await?;
                Ok((n > 0).then_some((Stream::Stdout, n)))
            }
            Self::Pipes { stdout, stderr } => {
                while open.stdout || open.stderr {
                    let (stream, n) = tokio::select! {
                        biased;
                        n = stdout.read(out), if open.stdout => (Stream::Stdout, n?),
                        n = stderr.read(err), if open.stderr => (Stream::Stderr, n?),
                    };
                    if n > 0 {
                        return Ok(Some((stream, n)));
                    }
                    match stream {
                        Stream::Stdout => open.stdout = false,
                        Stream::Stderr => open.stderr = false,
                    }
                }
                Ok(None)
            }
        }
    }
}

/// Which pipes have not ended yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenStreams {
    pub stdout: bool,
    pub stderr: bool,
}

impl Default for OpenStreams {
    fn default() -> Self {
        Self {
            stdout: true,
            stderr: true,
        }
    }
}
