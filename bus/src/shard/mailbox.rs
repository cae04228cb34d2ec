//! What others want of a shard, in the order in which they said it.
//!
//! Nobody who posts here waits, and the shard takes everything at once: two lists that are exchanged under a lock that
//! is held for one push. Bounded by who may post: a connection has at most one batch of frames, one `written` one
//! `finished` and one `closed` under way, and whoever asks for something waits for the answer.
//!
//! Any thread; can't fail. A post to a shard that has stopped is dropped, and with it the answer it asked for.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Inbound, Outlet, SharedFd};
use crate::frame::PeerId;
use crate::router::{ConnId, ConnKind, ConnectRefused, Effects, Now, Router};
use crate::wait::Waker;

/// Work on the router itself; called once. Its answer goes out when it is dropped.
pub(super) type Job = Box<dyn FnMut(&mut Router<SharedFd>, Now, &mut Effects<SharedFd>) + Send>;

/// Who is told of a connection's number, on the shard's thread.
pub(super) type Opened = Box<dyn FnOnce(Result<ConnId, ConnectRefused>) + Send>;

pub(super) enum Post {
    Job(Job),
    Open {
        peer: PeerId,
        kind: ConnKind,
        outlet: Arc<dyn Outlet>,
        opened: Opened,
    },
    Frames(ConnId, Vec<Inbound>),
    Written(ConnId),
    Finished(ConnId),
    Closed(ConnId),
    /// The agent has ended: what it had committed to its lanes is taken first.
    Detach(PeerId),
    Stop,
}

struct Posts {
    list: Vec<Post>,
    stopped: bool,
}

pub(super) struct Mailbox {
    posts: Mutex<Posts>,
    waker: Waker,
}

impl Mailbox {
    pub fn new(waker: Waker) -> Self {
        Self {
            posts: Mutex::new(Posts {
                list: Vec::new(),
                stopped: false,
            }),
            waker,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Posts> {
        self.posts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn post(&self, post: Post) {
        let first = {
            let mut posts = self.lock();
            if posts.stopped {
                drop(posts);
                // Outside the lock: dropping it may wake whoever waits for its answer.
                drop(post);
                return;
            }
            posts.list.push(post);
            posts.list.len() == 1
        };
        // Whoever found the list empty wakes; the shard empties it before it sleeps.
        if first {
            self.waker.wake();
        }
    }

    /// Exchanges the list for `taken`, which is empty.
    pub fn take(&self, taken: &mut Vec<Post>) {
        debug_assert!(taken.is_empty(), "what was taken before is done");
        std::mem::swap(&mut self.lock().list, taken);
    }

    /// Nothing is taken any more.
    pub fn stop(&self) {
        let left = {
            let mut posts = self.lock();
            posts.stopped = true;
            std::mem::take(&mut posts.list)
        };
        drop(left);
    }
}
