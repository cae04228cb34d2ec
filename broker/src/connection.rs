//! The one client that is served at a time: its socket, its process, what waits to be sent to it.
//!
//! The client is gone when its end of the socket is closed *or* its process has ended: whoever else may hold a duplicate of
//! the socket (the broker itself, if it was told to keep one) doesn't speak for it. Never blocks. Who may connect is decided
//! here, by the uid that the kernel attests.

use crate::log::log;
use crate::start::StartError;
use agentd_broker::protocol::{self, MAX_FDS, Reply};
use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use agentd_kernel::pidfd::PidFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A connected client.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    /// `None` where the peer's process can't be seen from here.
    process: Option<PidFd>,
    /// From Hello: the read end that hangs up when agentd dies; new agents' inits get a duplicate.
    pub lifeline: Option<OwnedFd>,
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// What came of a receive.
#[derive(Debug)]
pub enum Arrival {
    Request {
        len: usize,
        fds: Vec<OwnedFd>,
    },
    /// Not even a message; what came with it is closed.
    Malformed(ReceiveError),
    Nothing,
    /// The client has gone.
    End,
}

/// The client has gone.
#[derive(Debug)]
pub struct Ended;

impl Connection {
    /// Takes the connected socket if its peer runs as one of `uids`.
    pub fn new(socket: OwnedFd, uids: &[u32]) -> Result<Self, StartError> {
        let peer = fdpass::peer_credentials(socket.as_fd());
        let peer = peer.map_err(StartError::os("SO_PEERCRED"))?;
        if !uids.contains(&peer.uid) {
            let (uid, allowed) = (peer.uid, uids.to_vec());
            return Err(StartError::Peer { uid, allowed });
        }
        rustix::io::ioctl_fionbio(&socket, true).map_err(StartError::os("FIONBIO"))?;
        Ok(Self {
            socket,
            process: PidFd::open(peer.pid).ok(),
            lifeline: None,
            outgoing: VecDeque::new(),
        })
    }

    /// What to wait for: while replies wait to be sent, no further request is read.
    pub fn polls(&self) -> impl Iterator<Item = PollFd<'_>> {
        let direction = if self.outgoing.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::OUT
        };
        let process = self.process.as_ref();
        let process = process.map(|process| PollFd::new(process, PollFlags::IN));
        std::iter::once(PollFd::new(&self.socket, direction)).chain(process)
    }

    /// Reads one request into `buffer`.
    pub fn receive(&self, buffer: &mut [u8]) -> Arrival {
        match fdpass::receive(self.socket.as_fd(), buffer, MAX_FDS, Wait::Never) {
            // An empty message reads like the end; only the end hangs up.
            Ok(received)
                if received.len == 0 && received.fds.is_empty() && hung_up(&self.socket) =>
            {
                Arrival::End
            }
            Ok(received) => Arrival::Request {
                len: received.len,
                fds: received.fds,
            },
            Err(error) if error.is_would_block() => Arrival::Nothing,
            Err(ReceiveError::Io(error)) => {
                if error.kind() != io::ErrorKind::ConnectionReset {
                    log!("{error}");
                }
                Arrival::End
            }
            Err(error) => Arrival::Malformed(error),
        }
    }

    /// Whether its process has ended. What it sent before may still be unread, and is void.
    pub fn is_dead(&self) -> bool {
        let process = self.process.as_ref();
        process.is_some_and(|process| process.has_exited().unwrap_or(true))
    }

    /// Queues a message and sends what the socket takes.
    pub fn send(&mut self, id: u64, reply: &Reply, fds: Vec<OwnedFd>) -> Result<(), Ended> {
        let bytes = protocol::encode_reply(id, reply);
        self.outgoing.push_back((bytes, fds));
        self.flush()
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> Result<(), Ended> {
        while let Some((bytes, fds)) = self.outgoing.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match fdpass::send(self.socket.as_fd(), bytes, &borrowed) {
                Ok(_) => drop(self.outgoing.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        log!("sending to agentd: {error}");
                    }
                    return Err(Ended);
                }
            }
        }
        Ok(())
    }
}

fn hung_up(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::RDHUP)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once)).is_err() || !fds[0].revents().is_empty()
}
