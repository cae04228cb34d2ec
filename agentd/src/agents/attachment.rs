//! One person (or program) attached to an agent: the daemon's end of a packet socket with [`AttachFrame`]s.
//!
//! Two manners. The launcher of a `run` is *lossless*: while its socket is full, the session stops reading from the
//! agent, as a pipe would. A later viewer is *lossy*: what it is too slow for is counted and told to it, so that a
//! forgotten terminal never stops an agent.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agentd_api::attach::{AttachFrame, MAX_FRAME};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What happens to output that the peer does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Lossless,
    Lossy,
}

/// The daemon's end. Cheap to clone; sends keep their order because one session task makes them all.
#[derive(Debug, Clone)]
pub struct Attachment {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: AsyncFd<OwnedFd>,
    manner: Manner,
    /// Output bytes that a lossy peer missed since it was last told.
    lost_bytes: AtomicU64,
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
            lost_bytes: AtomicU64::new(0),
        };
        Ok((
            Self {
                inner: Arc::new(inner),
            },
            theirs,
        ))
    }

    /// Whether `other` is this same attachment.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Sends a packet of output that carries `output_bytes`. `Err` means that the peer has gone.
    pub async fn send_output(&self, packet: &[u8], output_bytes: u64) -> io::Result<()> {
        if self.inner.manner == Manner::Lossless {
            return self.send(packet).await;
        }
        let lost = self.inner.lost_bytes.load(Ordering::Relaxed);
        if lost > 0 {
            match self.try_send(&AttachFrame::Lost(lost).to_vec()) {
                Ok(()) => self.inner.lost_bytes.store(0, Ordering::Relaxed),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        match self.try_send(packet) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.inner
                    .lost_bytes
                    .fetch_add(output_bytes, Ordering::Relaxed);
                Ok(())
            }
            sent => sent,
        }
    }

    /// Sends a packet that no peer may miss (exit, stopped, continued), waiting for room.
    pub async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.inner
            .socket
            .async_io(Interest::WRITABLE, |fd| {
                rustix::net::send(fd, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
                Ok(())
            })
            .await
    }

    fn try_send(&self, packet: &[u8]) -> io::Result<()> {
        rustix::net::send(
            self.inner.socket.get_ref(),
            packet,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )?;
        Ok(())
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
