//! One person (or program) attached to an agent: the daemon's end of a packet socket with [`AttachFrame`]s.
//!
//! Two manners. The launcher of a `run` is *lossless*: while its socket is full, the log takes no more from the agent,
//! as a pipe would. A later viewer is *lossy*: what it is too slow for it skips, and is told how much that was, so that
//! a forgotten terminal never stops an agent.
//!
//! [`AttachFrame`]: agentd_api::attach::AttachFrame

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentd_api::attach::MAX_FRAME;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What happens to output that the peer does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Lossless,
    Lossy,
}

/// The daemon's end. Cheap to clone; its viewer is the only one that sends.
#[derive(Debug, Clone)]
pub struct Attachment {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: AsyncFd<OwnedFd>,
    manner: Manner,
}

impl Attachment {
    /// Makes the pair; the second is the peer's end, to be sent over D-Bus.
    pub fn pair(manner: Manner) -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let inner = Inner {
            socket: super::watch_fd(ours)?,
            manner,
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            theirs,
        ))
    }

    pub fn manner(&self) -> Manner {
        self.inner.manner
    }

    /// Whether `other` is this same attachment.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Sends a packet, waiting for room. `Err` means that the peer has gone.
    pub async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.inner
            .socket
            .async_io(Interest::WRITABLE, |fd| {
                rustix::net::send(fd, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
                Ok(())
            })
            .await
    }

    /// Receives one packet into `buffer`, which holds [`MAX_FRAME`] bytes. `Ok(0)` = the peer has gone.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        debug_assert!(
            buffer.len() >= MAX_FRAME,
            "a shorter buffer would cut packets"
        );
        self.inner
            .socket
            .async_io(Interest::READABLE, |fd| {
                let (_, n) = rustix::net::recv(fd, &mut *buffer, RecvFlags::DONTWAIT)?;
                Ok(n)
            })
            .await
    }
}
