//! The daemon's end of an agent's status socket: what the sandbox's init reports, and the signals it is asked to send.
//!
//! The init runs the agent's world and may be lied to by it, so its packets are decoded strictly; one that does not
//! decode ends the link, and the session kills the sandbox.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use agentd_launch::status::{Control, Lifeline, MAX_READY_FDS, MESSAGE_LEN, Status, Target};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("the sandbox's init has gone without a word")]
    Gone,
    #[error("the sandbox's init sent something that is not a status message")]
    Malformed,
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    #[error("the status socket failed")]
    Io(#[from] io::Error),
}

/// What the init wrote into its status file at its end; `None` when it was killed, or has not ended.
pub fn last_report(path: &Path) -> Option<Status> {
    let mut packet = [0; MESSAGE_LEN];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut packet));
    match read {
        Ok(()) => Status::decode(&packet),
        Err(_) => None,
    }
}

#[derive(Debug)]
pub struct StatusLink {
    socket: AsyncFd<OwnedFd>,
}

impl StatusLink {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: super::watch_fd(socket)?,
        })
    }

    /// The next report, with the descriptors that came with it. Cancel-safe.
    pub async fn receive(&self) -> Result<(Status, Vec<OwnedFd>), StatusError> {
        loop {
            let mut guard = self.socket.ready(Interest::READABLE).await?;
            let mut packet = [0; MESSAGE_LEN];
            match fdpass::receive(
                self.socket.get_ref().as_fd(),
                &mut packet,
                MAX_READY_FDS,
                Wait::Never,
            ) {
                Ok(received) if received.len == 0 => return Err(StatusError::Gone),
                Ok(received) => {
                    let status =
                        Status::decode(&packet[..received.len]).ok_or(StatusError::Malformed)?;
                    return Ok((status, received.fds));
                }
                Err(error) if error.is_would_block() => guard.clear_ready(),
                Err(ReceiveError::Io(e)) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(StatusError::Gone);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Asks the init to send `signal`. A full socket means that the init no longer reads; that is an error.
    pub fn signal(&self, signal: u32, target: Target) -> io::Result<()> {
        let packet = Control::Signal { signal, target }.encode();
        fdpass::send(self.socket.get_ref().as_fd(), &packet, &[])?;
        Ok(())
    }

    /// Gives the init another lifeline of agentd: it lives for as long as the other end of `lifeline` is open.
    pub fn renew_lifeline(&self, lifeline: BorrowedFd<'_>) -> io::Result<()> {
        let which = Lifeline::Agentd;
        let packet = Control::Lifeline { which }.encode();
        fdpass::send(self.socket.get_ref().as_fd(), &packet, &[lifeline])?;
        Ok(())
    }
}
