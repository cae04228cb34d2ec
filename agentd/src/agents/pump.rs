//! Moves an agent's output into its log, from its start to its end.
//!
//! Nothing is held in this process: bytes go from the agent's pipe to the log file, or from its terminal through a
//! pipe of the daemon's, inside the kernel (`splice(2)`). The descriptors are held by the broker as well
//! ([`Output::kept_fds`]), so when the daemon is killed its successor builds the same pump from them and the log, and
//! goes on after the last byte. Viewers read the log; the pump knows none of them, and waits only where the log says
//! that a reader who may not miss anything is behind ([`OutputLog::room`]).
//!
//! One task per agent. Ends when every process of the sandbox has closed the stream.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use tokio::io::unix::AsyncFd;

use super::log::{OutputLog, Taken};
use super::stdio::{Output, Stream, TerminalOutput};

/// What is asked of a terminal at once; it gives less.
const READ_BYTES: usize = 64 * 1024;

/// The pump of one agent.
#[derive(Debug)]
pub struct Pump {
    pub output: Output,
    /// Where the terminal's bytes, or stdout's, go: the log, or the journal of a driven agent's protocol.
    pub stdout_to: Arc<OutputLog>,
    pub stderr_to: Arc<OutputLog>,
}

impl Pump {
    /// Runs until the output has ended.
    ///
    /// # Errors
    /// When a stream can't be read any more; what was read is in the log.
    pub async fn run(self) -> io::Result<()> {
        match &self.output {
            Output::Nothing => Ok(()),
            Output::Terminal(terminal) => pump_terminal(terminal, &self.stdout_to).await,
            Output::Pipes(pipes) => {
                let (out, err) = tokio::join!(
                    self.pump_stdout(&pipes.stdout),
                    pump_pipe(&pipes.stderr, Stream::Stderr, &self.stderr_to),
                );
                out.and(err)
            }
        }
    }

    async fn pump_stdout(&self, stdout: &AsyncFd<OwnedFd>) -> io::Result<()> {
        let ended = pump_pipe(stdout, Stream::Stdout, &self.stdout_to).await;
        if !Arc::ptr_eq(&self.stdout_to, &self.stderr_to) {
            self.stdout_to.close();
        }
        ended
    }
}

async fn pump_pipe(pipe: &AsyncFd<OwnedFd>, stream: Stream, log: &OutputLog) -> io::Result<()> {
    loop {
        log.room().await;
        let mut ready = pipe.readable().await?;
        match log.take(stream, pipe.get_ref().as_fd())? {
            Taken::Bytes(_) => tokio::task::consume_budget().await,
            Taken::Nothing => ready.clear_ready(),
            Taken::End => return Ok(()),
        }
    }
}

async fn pump_terminal(terminal: &TerminalOutput, log: &OutputLog) -> io::Result<()> {
    // What a daemon that was killed had taken and not yet put into the log.
    drain(terminal, log)?;
    loop {
        log.room().await;
        let mut ready = terminal.master.readable().await?;
        match fill(terminal, log)? {
            Taken::Bytes(_) => {
                drain(terminal, log)?;
                tokio::task::consume_budget().await;
            }
            Taken::Nothing => ready.clear_ready(),
            Taken::End => return Ok(()),
        }
    }
}

/// Moves bytes from the terminal into the held pipe, which is empty.
fn fill(terminal: &TerminalOutput, log: &OutputLog) -> io::Result<Taken> {
    let master = terminal.master.get_ref();
    let moved = rustix::pipe::splice(
        master,
        None,
        &terminal.held_in,
        None,
        READ_BYTES,
        SpliceFlags::NONBLOCK,
    );
    let moved = match moved {
        // Linux 5.10 and 5.11 can't splice from a terminal: a kill between the read and the write loses what was read.
        Err(Errno::INVAL) => {
            let mut buffer = vec![0; READ_BYTES];
            rustix::io::read(master, &mut buffer[..])
                .inspect(|n| log.append(Stream::Stdout, &buffer[..*n]))
        }
        moved => moved,
    };
    match moved {
        // A master says EIO once the last process has closed the terminal.
        Ok(0) | Err(Errno::IO) => Ok(Taken::End),
        Ok(n) => Ok(Taken::Bytes(n)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Taken::Nothing),
        Err(errno) => Err(errno.into()),
    }
}

/// Empties the held pipe into the log.
fn drain(terminal: &TerminalOutput, log: &OutputLog) -> io::Result<()> {
    while let Taken::Bytes(_) = log.take(Stream::Stdout, terminal.held_out.as_fd())? {}
    Ok(())
}
