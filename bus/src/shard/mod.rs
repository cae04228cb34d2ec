//! The router on threads of its own. Each **shard** is one thread with one [`Router`]; all of a user's agents are on
//! the same one ([`Shards::of`]), so a message never crosses threads inside the bus.
//!
//! A shard is fed in two ways. I/O (tokio sockets, the gateway's loops, the daemon's own ports) posts to its mailbox
//! and is told what to write through an [`Outlet`]. Agents that can map memory have **routed lanes**: a ring to the
//! bus and a ring back, on which frames travel in [`compact`] form without a system call per message. The
//! thread sleeps on all of them at once, with its timers, in one [`crate::wait::Waiter`]; asleep it costs nothing.
//!
//! What a shard never does: block on a peer, grow without bound (see `mailbox` and [`crate::router::Limits`]), believe
//! anything that stands in an agent's memory before it has copied and checked it. No tokio, no privilege. A panic in
//! the router is a bug that ends what caused it (its connection, its call) and is handed to the [`Host`]; everyone
//! else's bus goes on.
//!
//! Read on: `thread` (the loop), `routes` (shared memory), `mailbox`, `outlet`.

#![forbid(unsafe_code)]

mod answer;
pub mod compact;
mod mailbox;
mod memory;
mod outlet;
mod routes;
mod thread;

use std::io;
use std::sync::Arc;

use crate::frame::PeerId;
use crate::router::{ConnId, ConnKind, ConnectRefused, Effects, Now, Router};

pub use answer::Answer;
pub use memory::{SharedFd, admit};
pub use outlet::{Flow, Frames, Host, Inbound, Outlet, Took};

use mailbox::{Mailbox, Post};

/// One router thread. Clones are the same one; it ends with the last of them.
pub struct Shard(Arc<Owner>);

struct Owner {
    mailbox: Arc<Mailbox>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.mailbox.post(Post::Stop);
    }
}

impl Clone for Shard {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard").finish_non_exhaustive()
    }
}

impl Shard {
    /// Starts a thread called `name` around `router`.
    pub fn start(name: &str, router: Router<SharedFd>, host: Box<dyn Host>) -> io::Result<Self> {
        let (mailbox, body) = thread::Body::new(router, host);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body.run())?;
        Ok(Self(Arc::new(Owner { mailbox })))
    }

    /// Runs `act` on the router, on its thread. What follows from it has been carried out before the answer comes.
    pub fn ask<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Router<SharedFd>, Now, &mut Effects<SharedFd>) -> R + Send + 'static,
    ) -> Answer<R> {
        let (mut giving, answer) = answer::pair();
        let mut act = Some(act);
        let job = move |router: &mut Router<SharedFd>, now: Now, fx: &mut Effects<SharedFd>| {
            if let Some(act) = act.take() {
                giving.set(act(router, now, fx));
            }
        };
        self.post(Post::Job(Box::new(job)));
        answer
    }

    /// As [`Self::ask`], and waits for the answer. Not from the shard's own thread.
    ///
    /// # Panics
    /// If `act` did.
    pub fn call<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Router<SharedFd>, Now, &mut Effects<SharedFd>) -> R + Send + 'static,
    ) -> R {
        let answer = self.ask(act).wait();
        answer.expect("a shard answers for as long as a handle of it is held, unless what it was asked panics")
    }

    /// Adds a connection of an attached agent; its number goes to `opened` before anything is offered to `outlet`.
    pub fn open(
        &self,
        peer: PeerId,
        kind: ConnKind,
        outlet: Arc<dyn Outlet>,
        opened: impl FnOnce(Result<ConnId, ConnectRefused>) + Send + 'static,
    ) {
        self.post(Post::Open {
            peer,
            kind,
            outlet,
            opened: Box::new(opened),
        });
    }

    /// As [`Self::open`], and waits for the number. `None`: the shard has stopped.
    pub fn connect(
        &self,
        peer: PeerId,
        kind: ConnKind,
        outlet: Arc<dyn Outlet>,
    ) -> Option<Result<ConnId, ConnectRefused>> {
        let (mut giving, answer) = answer::pair();
        self.open(peer, kind, outlet, move |opened| giving.set(opened));
        answer.wait()
    }

    /// What was read of a connection, in order. One batch at a time: the next after [`Outlet::taken`].
    pub fn frames(&self, conn: ConnId, frames: Vec<Inbound>) {
        self.post(Post::Frames(conn, frames));
    }

    /// What [`Outlet::offer`] gave has been written: there is room again.
    pub fn written(&self, conn: ConnId) {
        self.post(Post::Written(conn));
    }

    /// The far end sends nothing more, but still reads: [`Outlet::close`] is called with
    /// [`Finished`](crate::router::CloseReason::Finished) when it has been given all that it is owed.
    pub fn finished(&self, conn: ConnId) {
        self.post(Post::Finished(conn));
    }

    /// The connection has ended, and its outlet goes.
    pub fn closed(&self, conn: ConnId) {
        self.post(Post::Closed(conn));
    }

    /// The agent's process has ended. Done when this returns.
    pub fn detach(&self, peer: PeerId) {
        self.post(Post::Detach(peer));
        // Posts are handled in order.
        self.ask(|_, _, _| ()).wait();
    }

    fn post(&self, post: Post) {
        self.0.mailbox.post(post);
    }
}

/// All shards of a bus. A clone keeps them running.
#[derive(Clone, Debug)]
pub struct Shards {
    all: Vec<Shard>,
}

impl Shards {
    /// `count` shards, at least one. `host` makes each one's surroundings.
    pub fn start(
        count: usize,
        limits: crate::router::Limits,
        mut host: impl FnMut(usize) -> Box<dyn Host>,
    ) -> io::Result<Self> {
        let count = count.max(1);
        let all = (0..count).map(|nth| {
            let router = Router::nth_of(limits, nth, count);
            Shard::start(&format!("agentd-router-{nth}"), router, host(nth))
        });
        Ok(Self {
            all: all.collect::<io::Result<_>>()?,
        })
    }

    /// The shard of all agents of `uid`.
    pub fn of(&self, uid: u32) -> &Shard {
        &self.all[place(uid, self.all.len())]
    }

    pub fn all(&self) -> &[Shard] {
        &self.all
    }
}

/// Which of `count` shards has the agents of `uid`. Uids are often consecutive: the multiplication (Fibonacci hashing,
/// Knuth, TAOCP 3, 6.4) spreads them.
pub fn place(uid: u32, count: usize) -> usize {
    let hash = uid.wrapping_mul(0x9E37_79B9);
    ((u64::from(hash) * count as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn consecutive_users_are_spread_over_all_shards() {
        for count in [1, 2, 3, 4, 8] {
            let mut users = vec![0; count];
            for uid in 1000..1000 + 64 * count as u32 {
                users[place(uid, count)] += 1;
            }
            let (least, most) = (users.iter().min(), users.iter().max());
            assert!(
                least >= Some(&48) && most <= Some(&80),
                "{count}: {users:?}"
            );
        }
    }
}
