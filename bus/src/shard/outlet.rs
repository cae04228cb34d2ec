//! How a shard reaches the I/O of a connection, and the daemon around it.
//!
//! All of it is called on the shard's thread, so nothing here may wait.

#![forbid(unsafe_code)]

use crate::frame::Frame;
use crate::router::{CloseReason, ConnId, Descriptor, Effects, Now, Outgoing, Router};
use crate::wait::WaitError;

/// A frame as it came in, with what came with it.
#[derive(Debug)]
pub struct Inbound<F> {
    pub frame: Frame,
    pub fd: Option<F>,
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
pub trait Outlet<F>: Send + Sync {
    /// There are frames for it. What it leaves stays in the router's queues, under their bounds.
    fn offer(&self, frames: &mut Frames<'_, F>) -> Took;

    /// The last batch of frames has been handled.
    fn taken(&self, flow: Flow);

    /// It is over; said once.
    fn close(&self, reason: CloseReason);
}

/// What waits for one connection.
#[derive(Debug)]
pub struct Frames<'a, F> {
    pub(super) router: &'a mut Router<F>,
    pub(super) conn: ConnId,
    pub(super) fx: &'a mut Effects<F>,
}

impl<F: Descriptor> Iterator for Frames<'_, F> {
    type Item = Outgoing<F>;

    fn next(&mut self) -> Option<Outgoing<F>> {
        self.router.pull(self.conn, self.fx)
    }
}

/// The daemon around a shard: what becomes of a turn's news that are not for connections.
pub trait Host<F>: Send {
    /// Takes `record` and `channels` out of `fx`; may call the router with what follows, and has its further effects
    /// carried out.
    fn act(&mut self, router: &mut Router<F>, now: Now, fx: &mut Effects<F>);

    /// The two clocks.
    fn now(&self) -> Now;

    /// The router panicked over one frame or call, which ends that alone.
    fn panicked(&mut self);

    /// The thread has nothing to sleep on, most likely for want of descriptors, and looks each millisecond instead.
    fn cannot_wait(&mut self, error: &WaitError);
}
