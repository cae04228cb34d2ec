//! What moves bytes, and nothing else: the trait that epoll, io_uring and the loop-back implement.
//!
//! A transport knows connections by [`ConnKey`], never by descriptor: with io_uring there is none. It keeps no timers of
//! its own except the one for a peer that takes no bytes; it parses nothing and decides nothing about a peer. Events go
//! to a [`Handler`], which answers with [`Commands`]: neither can call the other back in the middle of something.
//!
//! Belongs to the thread that calls [`Transport::turn`]; only the [`Waker`] may be used from others. Fails with
//! [`TransportError`] when the kernel takes the ring or epoll instance away; what is wrong with one connection is its
//! [`Ended`] event.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny};

/// Names a connection of one transport. The generation makes a stale key harmless after the slot was reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnKey {
    pub slot: u32,
    /// Of the slot's use; 24 bits, so that a key fits into one word of a ring together with the kind of operation.
    pub generation: u32,
}

impl ConnKey {
    /// Bits of a generation.
    pub const GENERATION_BITS: u32 = 24;

    /// The same slot, one use later.
    pub(super) fn next_generation(generation: u32) -> u32 {
        (generation + 1) & ((1 << Self::GENERATION_BITS) - 1)
    }

    /// As one number, for a [`Door`](super::Door).
    pub fn token(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.slot)
    }

    /// The key that [`Self::token`] made.
    pub fn from_token(token: u64) -> Self {
        Self {
            slot: token as u32,
            generation: (token >> 32) as u32,
        }
    }
}

/// A listening socket of one transport, counted from 0 in the order of [`Transport::listen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(pub u16);

/// Where a connection comes from, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// AF_UNIX: who connected (`SO_PEERCRED`).
    Unix {
        uid: u32,
        gid: u32,
        pid: i32,
    },
    Tcp(SocketAddr),
    /// In this process.
    Memory,
}

impl Origin {
    /// Who made this AF_UNIX connection.
    #[doc(alias = "SO_PEERCRED")]
    pub(super) fn of_unix(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        let who = rustix::net::sockopt::socket_peercred(socket)?;
        Ok(Self::Unix {
            uid: who.uid.as_raw(),
            gid: who.gid.as_raw(),
            pid: who.pid.as_raw_nonzero().get(),
        })
    }

    /// From which address this TCP connection comes.
    pub(super) fn of_tcp(from: Option<SocketAddrAny>) -> Result<Self, Errno> {
        let from = from.and_then(|from| from.try_into().ok());
        from.map(Self::Tcp).ok_or(Errno::NOTCONN)
    }
}

/// Whether a listening socket is AF_UNIX.
pub(super) fn is_unix(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(rustix::net::getsockname(socket)?.address_family() == AddressFamily::UNIX)
}

/// How a connection ended, as far as a transport can know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// It had finished, and takes nothing more either or needs nothing more.
    #[error("closed by the peer")]
    Eof,
    /// [`Command::Close`], or a drain that is complete.
    #[error("closed here")]
    Asked,
    #[error("the peer reset the connection")]
    Reset,
    #[error("half open: the peer's host no longer answers")]
    Unreachable,
    #[error("the peer took no bytes for {seconds} s while some waited for it")]
    Stalled { seconds: u32 },
    #[error("socket: {0}")]
    Io(Errno),
}

impl Ended {
    pub(super) fn from_errno(errno: Errno) -> Self {
        match errno {
            Errno::CONNRESET | Errno::PIPE | Errno::CONNABORTED => Self::Reset,
            Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH => Self::Unreachable,
            other => Self::Io(other),
        }
    }
}

/// Whether a listener takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listening {
    /// No descriptor or no memory for one more. Taken up again when a connection ends.
    Paused {
        errno: Errno,
    },
    /// The transport's own limit is reached.
    Full {
        limit: usize,
    },
    Resumed,
}

/// What a transport tells.
#[derive(Debug)]
pub enum Event<'a> {
    /// Reading is on from the start.
    Accepted {
        conn: ConnKey,
        listener: ListenerId,
        origin: Origin,
    },
    /// Valid during the call only: the buffer goes back to the kernel. Never empty.
    Received { conn: ConnKey, bytes: &'a [u8] },
    /// `waiting` bytes are still to be sent.
    Sent { conn: ConnKey, waiting: usize },
    /// The peer sends nothing more, but may still read: after its last byte, once. Reading is over; the connection stays
    /// until it is drained, closed or lost.
    Finished { conn: ConnKey },
    /// The last event of a connection.
    Closed { conn: ConnKey, how: Ended },
    Listening {
        listener: ListenerId,
        state: Listening,
    },
    /// Somebody used the [`Waker`].
    Woken,
}

/// What a transport is told. One that names a connection which has ended is dropped.
#[derive(Debug)]
pub enum Command {
    /// After what was queued before. The caller bounds how much it queues.
    Send {
        conn: ConnKey,
        bytes: Vec<u8>,
    },
    /// Reads nothing more; bytes that the kernel has handed over already still come.
    Pause {
        conn: ConnKey,
    },
    Resume {
        conn: ConnKey,
    },
    /// Sends what is queued, then closes. Nothing more is read.
    Drain {
        conn: ConnKey,
    },
    /// Closes now; what is queued is dropped.
    Close {
        conn: ConnKey,
    },
}

/// Commands in order. A handler fills it, the transport empties it.
pub type Commands = Vec<Command>;

/// Who gets the events.
pub trait Handler {
    fn event(&mut self, event: Event<'_>, out: &mut Commands);
}

/// Which transport it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportKind {
    Epoll,
    IoUring,
    Loopback,
}

impl std::fmt::Display for TransportKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Epoll => "epoll",
            Self::IoUring => "io_uring",
            Self::Loopback => "loop-back",
        })
    }
}

/// What a transport did since it was made. `syscalls` are those that it made itself, counted where they are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub syscalls: u64,
    pub turns: u64,
    pub accepted: u64,
    pub closed: u64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
    /// Connections that were turned away for want of a descriptor.
    pub shed: u64,
}

/// Why a whole transport ends.
#[derive(Debug, thiserror::Error)]
#[error("{transport}: {call} failed")]
pub struct TransportError {
    pub transport: TransportKind,
    pub call: &'static str,
    #[source]
    pub source: io::Error,
}

/// Ends a [`Transport::turn`] early, from any thread. Never blocks.
#[derive(Clone, Debug)]
pub struct Waker {
    eventfd: Arc<OwnedFd>,
}

impl Waker {
    pub(super) fn new() -> Result<Self, Errno> {
        use rustix::event::{EventfdFlags, eventfd};
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            eventfd: Arc::new(fd),
        })
    }

    /// The transport hands out one [`Event::Woken`] for any number of these.
    pub fn wake(&self) {
        // The only failure is a counter at its maximum, which is a wake-up too.
        rustix::io::write(&self.eventfd, &1u64.to_ne_bytes()).unwrap_or_default();
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.eventfd
    }

    /// Takes note of all wake-ups so far.
    pub(super) fn clear(&self) {
        let mut count = [0; 8];
        // Nothing there: another wake-up came with the last one.
        rustix::io::read(&self.eventfd, &mut count).unwrap_or_default();
    }
}

/// Bounds of one transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransportLimits {
    /// Connections at a time.
    pub connections: usize,
    /// How long a peer may take no bytes while some wait for it.
    pub stall: Duration,
    /// Bytes read from one connection before the others get their turn.
    pub read_budget: usize,
}

impl Default for TransportLimits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            stall: Duration::from_secs(30),
            read_budget: 16 << 10,
        }
    }
}

/// Moves bytes for one shard.
pub trait Transport: std::fmt::Debug {
    fn kind(&self) -> TransportKind;

    /// Takes over a listening socket.
    fn listen(&mut self, socket: OwnedFd) -> Result<ListenerId, TransportError>;

    /// Carries out `commands` and empties them.
    fn command(&mut self, commands: &mut Commands, handler: &mut dyn Handler);

    /// Waits for events for up to `wait` (`None`: without end), hands them over and carries out the answers.
    /// Returns after one batch, so that the caller can look at its own deadlines.
    fn turn(
        &mut self,
        wait: Option<Duration>,
        handler: &mut dyn Handler,
    ) -> Result<(), TransportError>;

    fn waker(&self) -> Waker;

    /// Connections that are open.
    fn connections(&self) -> usize;

    fn counters(&self) -> Counters;
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn kind(&self) -> TransportKind {
        (**self).kind()
    }
    fn listen(&mut self, socket: OwnedFd) -> Result<ListenerId, TransportError> {
        (**self).listen(socket)
    }
    fn command(&mut self, commands: &mut Commands, handler: &mut dyn Handler) {
        (**self).command(commands, handler);
    }
    fn turn(
        &mut self,
        wait: Option<Duration>,
        handler: &mut dyn Handler,
    ) -> Result<(), TransportError> {
        (**self).turn(wait, handler)
    }
    fn waker(&self) -> Waker {
        (**self).waker()
    }
    fn connections(&self) -> usize {
        (**self).connections()
    }
    fn counters(&self) -> Counters {
        (**self).counters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_its_key_again() {
        for key in [(0, 0), (7, 1), (u32::MAX, (1 << 24) - 1)] {
            let key = ConnKey {
                slot: key.0,
                generation: key.1,
            };
            assert_eq!(ConnKey::from_token(key.token()), key);
        }
    }

    #[test]
    fn generations_wrap_at_24_bits() {
        assert_eq!(ConnKey::next_generation((1 << 24) - 1), 0);
    }
}
