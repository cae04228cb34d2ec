//! The socket gateway: frames over AF_UNIX and TCP, for peers that are not in a sandbox of this host.
//!
//! Three layers, each of which can be tested without the next:
//!
//! - A [`Transport`] moves bytes: accepted, received (in a borrowed buffer), sent, closed; told to send, pause, resume,
//!   close. There are three: [`epoll`], [`uring`] and [`loopback`] (in memory, in the shape that RDMA has). One conformance
//!   suite and one fuzz target run against all of them.
//! - A [`shard::Shard`] turns bytes into frames: TLS, the dialect (B1 or the interop header v3), time-outs, fairness, bounds.
//! - A [`desk::Desk`] is what is behind the gateway: the daemon's bus, or a benchmark's echo.
//!
//! One shard is one thread with one ring or one epoll instance; shards share nothing. Unprivileged. No tokio.
//! A connection that misbehaves ends with a reason by name; a shard ends only when its transport does.

#[cfg(test)]
mod conformance;
pub mod desk;
pub mod ending;
pub mod epoll;
pub mod interop;
pub mod loopback;
mod orders;
mod outbox;
pub mod select;
pub mod shard;
mod slab;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod transport;
pub mod uring;

pub use desk::{Desk, Door, Identity, Owed, Post, Taken, Turned};
pub use ending::Ending;
pub use shard::{ListenerOptions, Shard, ShardLimits};
pub use stream::Interop;
pub use transport::{
    Command, Commands, ConnKey, Counters, Ended, Event, Handler, ListenerId, Listening, Origin,
    Transport, TransportError, TransportKind, TransportLimits, Waker,
};
