//! Where the gateway meets what is behind it: the daemon's bus, or the echo of a benchmark.
//!
//! A [`Desk`] belongs to one shard, is called on its thread and never blocks. Whatever is decided elsewhere comes back
//! through the shard's [`Door`], from any thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::frame::{Frame, PeerId};
use crate::router::CloseReason;

use super::ending::Ending;
use super::transport::{ConnKey, ListenerId, Listening, Origin, Waker};

/// Who is at the other end, as far as it is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub listener: ListenerId,
    pub origin: Origin,
    /// Which of the listener's configured names the client certificate is valid for. `None`: there was no handshake.
    pub client: Option<Arc<str>>,
}

/// Whether more frames of a connection may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    More,
    /// Not before [`Post::ReadOn`].
    Wait,
}

/// Why a connection is not taken; sent as a notice before it closes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Turned(pub String);

/// What a desk still has for a peer that says nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// The connection may close.
    Nothing,
    /// It stays until [`Post::Finish`] or [`Post::Close`], or until the peer has gone.
    Answers,
}

/// What is behind the gateway.
pub trait Desk {
    /// A connection is ready for frames: the socket is there, and the handshake is over where there is one.
    fn opened(&mut self, conn: ConnKey, who: &Identity) -> Result<(), Turned>;

    /// Takes whole frames whose check sums hold, in order. What is to be sent back at once goes to `out`.
    fn frames(&mut self, conn: ConnKey, frames: &mut Vec<Frame>, out: &mut Vec<Frame>) -> Taken;

    /// The peer's socket has taken all that was posted to it, or the connection is lost and nobody will: more may follow.
    fn written(&mut self, conn: ConnKey);

    /// The peer has said all that it will say, and still reads.
    fn finished(&mut self, _: ConnKey) -> Owed {
        Owed::Nothing
    }

    /// The connection is gone; called once for each one that was opened.
    fn closed(&mut self, conn: ConnKey, ending: &Ending);

    /// A connection that was never opened has ended for a reason other than the ordinary ones: no handshake, or nobody
    /// known. Anybody who reaches the listener can cause as many of these as it likes.
    fn turned_away(&mut self, _: &Identity, _: &Ending) {}

    /// A listener stopped taking connections, or takes them again.
    fn listening(&mut self, listener: ListenerId, state: Listening);

    /// The long name of a short id, as this connection's peer sees the bus; for the interop header.
    fn id_of(&self, conn: ConnKey, short: u32) -> Option<PeerId>;

    /// The short id of a peer.
    fn short_of(&self, conn: ConnKey, id: PeerId) -> Option<u32>;
}

/// Something for a connection, from another thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Post {
    /// Frames to send, in order.
    Write(Vec<Frame>),
    /// Ends a [`Taken::Wait`].
    ReadOn,
    /// Sends what was posted before, then closes: a peer that has finished has all that it was owed.
    Finish,
    /// Sends what was posted before, then the reason, then closes.
    Close(CloseReason),
}

/// The way into a shard from other threads. Clones are the same door.
#[derive(Clone, Debug)]
pub struct Door {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    posts: Mutex<VecDeque<(ConnKey, Post)>>,
    /// The shard is about to wait or does: a post has to wake it.
    sleeping: AtomicBool,
    stopped: AtomicBool,
    waker: Waker,
}

impl Door {
    pub(super) fn new(waker: Waker) -> Self {
        Self {
            inner: Arc::new(Inner {
                posts: Mutex::default(),
                sleeping: AtomicBool::new(false),
                stopped: AtomicBool::new(false),
                waker,
            }),
        }
    }

    fn posts(&self) -> MutexGuard<'_, VecDeque<(ConnKey, Post)>> {
        self.inner
            .posts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Never waits for the shard. A post for a connection that is gone is dropped. Who posts bounds how much, by
    /// [`Desk::written`].
    pub fn post(&self, conn: ConnKey, post: Post) {
        self.posts().push_back((conn, post));
        self.rouse();
    }

    /// Ends the shard: it closes its connections and returns.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::SeqCst);
        self.rouse();
    }

    fn rouse(&self) {
        // SYNC: shard-sleep. After the post, before the look: either the shard sees the post or we see it sleep.
        if self.inner.sleeping.swap(false, Ordering::SeqCst) {
            self.inner.waker.wake();
        }
    }

    /// Whether somebody asked for the end.
    pub fn is_stopped(&self) -> bool {
        self.inner.stopped.load(Ordering::SeqCst)
    }

    pub(super) fn take(&self) -> VecDeque<(ConnKey, Post)> {
        std::mem::take(&mut *self.posts())
    }

    /// `false`: something was posted meanwhile, so don't.
    pub(super) fn may_sleep(&self) -> bool {
        // SYNC: shard-sleep. Before the look at the posts.
        self.inner.sleeping.store(true, Ordering::SeqCst);
        let idle = self.posts().is_empty() && !self.is_stopped();
        if !idle {
            self.awake();
        }
        idle
    }

    pub(super) fn awake(&self) {
        self.inner.sleeping.store(false, Ordering::SeqCst);
    }
}
