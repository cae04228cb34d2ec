//! How a shard reaches the I/O of a connection, and the daemon around it.
//!
//! All of it is called on the shard's thread, so nothing here may wait.

#![forbid(unsafe_code)]

use super::SharedFd;
use crate::frame::Frame;
use crate::router::{CloseReason, ConnId, Effects, Now, Outgoing, Persist, Router};
use crate::wait::WaitError;

/// A frame as it came in, with what came with it.
#[derive(Debug)]
pub struct Inbound {
    pub frame: Frame,
    pub fd: Option<SharedFd>,
}

/// Whether to go on reading from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    ReadOn,
    /// Half of what may wait for it waits unread; `ReadOn` follows when it has been read.
    Pause,
}

/// Whether an outlet took everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Took {
    /// Offer again when there is more.
    All,
    /// Offer again after [`super::Shard::written`].
    Some,
}

/// The I/O of one connection.
pub trait Outlet: Send + Sync {
    /// There are frames for it. What it leaves stays in the router's queues, under their bounds.
    fn offer(&self, frames: &mut Frames<'_>) -> Took;

    /// The last batch of frames has been handled.
    fn taken(&self, flow: Flow);

    /// It is over; said once.
    fn close(&self, reason: CloseReason);
}

/// What waits for one connection.
#[derive(Debug)]
pub struct Frames<'a> {
    pub(super) router: &'a mut Router<SharedFd>,
    pub(super) conn: ConnId,
    pub(super) fx: &'a mut Effects<SharedFd>,
}

impl Iterator for Frames<'_> {
    type Item = Outgoing<SharedFd>;

    fn next(&mut self) -> Option<Outgoing<SharedFd>> {
        self.router.pull(self.conn, self.fx)
    }
}

/// The daemon around a shard: what becomes of a turn's news that are not for connections.
pub trait Host: Send {
    /// Takes `record`, `steps` and `channels` out of `fx`; may call the router with what follows, and has its further effects
    /// carried out.
    fn act(&mut self, router: &mut Router<SharedFd>, now: Now, fx: &mut Effects<SharedFd>);

    /// What the durable store is asked, in order. Its answers come back through [`super::Shard::ask`].
    fn persist(&mut self, requests: Vec<Persist>);

    /// The two clocks.
    fn now(&self) -> Now;

    /// The router panicked over one frame or call, which ends that alone.
    fn panicked(&mut self);

    /// An agent gave something else than what makes a route.
    fn route_failed(&mut self, why: &str);

    /// The thread has nothing to sleep on, most likely for want of descriptors, and looks each millisecond instead.
    fn cannot_wait(&mut self, error: &WaitError);
}
