//! The loop of one shard: posts, lanes, timers; then what follows from them, all at once.
//!
//! A **turn** takes everything that was posted, a bounded share of what each lane and each connection has, and what is
//! due; then tells each connection once, however many messages it got. Connections and lanes with more than their share
//! come again in the next turn, behind the others: nobody's flood keeps anybody else waiting for longer than one share
//! of each. Runs on the shard's own thread, which sleeps only in [`Waiter::wait`].

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::mailbox::{Mailbox, Post};
use super::{Flow, Frames, Host, Inbound, Outlet, Took};
use crate::channel::Waiting;
use crate::lane::ring::Consumer;
use crate::router::{CloseReason, ConnId, Descriptor, Effects, Now, Router};
use crate::shm::memfd::Mapping;
use crate::shm::park::probe_waitv;
use crate::wait::{Park, Waiter};

/// Frames of one connection that are handled before the others get their turn.
const SHARE: usize = 64;

/// A connection as its shard knows it.
struct Conn<F> {
    outlet: Arc<dyn Outlet<F>>,
    /// Read, and not handled yet: at most one batch.
    inbound: VecDeque<Inbound<F>>,
    /// In `Body::running`.
    runs: bool,
    /// Its reader was told to pause.
    paused: bool,
    /// The outlet left something: it says when it has room.
    full: bool,
    /// In `Body::woken`.
    woken: bool,
    closing: bool,
}

pub(super) struct Body<F: Descriptor> {
    mailbox: Arc<Mailbox<F>>,
    router: Router<F>,
    host: Box<dyn Host<F>>,
    conns: HashMap<ConnId, Conn<F>>,
    /// Connections with frames to handle, in turn.
    running: VecDeque<ConnId>,
    /// Connections that have something to be offered.
    woken: Vec<ConnId>,
    fx: Effects<F>,
    waiter: Waiter<Consumer<Mapping, Mapping>>,
}

impl<F: Descriptor + Send + 'static> Body<F> {
    pub fn new(router: Router<F>, host: Box<dyn Host<F>>) -> (Arc<Mailbox<F>>, Self) {
        let mut waiter = Waiter::new(Waiting::Adaptive);
        if probe_waitv().is_err() {
            // No futex_waitv in this kernel or under this filter: sleep in epoll from the start.
            waiter.prefer(Some(Park::Bell));
        }
        let mailbox = Arc::new(Mailbox::new(waiter.waker()));
        let body = Self {
            mailbox: mailbox.clone(),
            router,
            host,
            conns: HashMap::new(),
            running: VecDeque::new(),
            woken: Vec::new(),
            fx: Effects::default(),
            waiter,
        };
        (mailbox, body)
    }

    /// Until it is told to stop.
    pub fn run(mut self) {
        let mut posts = Vec::new();
        let mut events = Vec::new();
        loop {
            let timeout = self.patience();
            if let Err(error) = self.waiter.wait(&mut events, timeout) {
                // No descriptors left to sleep on. The posts still come; nothing else can be waited for.
                self.host.cannot_wait(&error);
                std::thread::sleep(Duration::from_millis(1));
            }
            let now = self.host.now();
            self.mailbox.take(&mut posts);
            for post in posts.drain(..) {
                if matches!(post, Post::Stop) {
                    self.mailbox.stop();
                    return;
                }
                self.handle(post, now);
            }
            self.run_connections(now);
            if self
                .router
                .next_deadline_ns()
                .is_some_and(|at| at <= now.mono_ns)
            {
                self.guarded(|body| body.router.tick(now, &mut body.fx));
            }
            self.settle(now);
        }
    }

    /// How long there is nothing to do, if nobody posts.
    fn patience(&self) -> Option<Duration> {
        if !self.running.is_empty() {
            return Some(Duration::ZERO);
        }
        let at = self.router.next_deadline_ns()?;
        Some(Duration::from_nanos(
            at.saturating_sub(self.host.now().mono_ns),
        ))
    }

    /// Runs `act`; a panic in it is a bug of the router that must not end everyone's bus. Whether it returned.
    fn guarded(&mut self, act: impl FnOnce(&mut Self)) -> bool {
        // The router's tables are changed entry by entry; what a panic leaves half done is one connection's.
        let returned = catch_unwind(AssertUnwindSafe(|| act(self))).is_ok();
        if !returned {
            self.host.panicked();
        }
        returned
    }

    fn handle(&mut self, post: Post<F>, now: Now) {
        match post {
            Post::Job(mut job) => {
                self.guarded(|body| job(&mut body.router, now, &mut body.fx));
                // The answer goes with `job`, when what follows is done: whoever asked may look at it.
                self.settle(now);
            }
            Post::Open {
                peer,
                kind,
                outlet,
                opened,
            } => {
                let id = self.router.connect(peer, kind, now);
                if let Ok(id) = id {
                    self.conns.insert(id, Conn::new(outlet));
                }
                opened(id);
                self.settle(now);
            }
            Post::Frames(id, frames) => self.take_frames(id, frames),
            Post::Written(id) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.full = false;
                    self.wake(id);
                }
            }
            Post::Closed(id) => {
                self.conns.remove(&id);
                self.guarded(|body| body.router.disconnect(id, now, &mut body.fx));
                self.settle(now);
            }
            Post::Detach(peer) => {
                self.guarded(|body| body.router.detach(peer, now, &mut body.fx));
                self.settle(now);
            }
            Post::Stop => {}
        }
    }

    fn take_frames(&mut self, id: ConnId, frames: Vec<Inbound<F>>) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.inbound.extend(frames);
            if !std::mem::replace(&mut conn.runs, true) {
                self.running.push_back(id);
            }
        }
    }

    /// One share of each connection that has frames.
    fn run_connections(&mut self, now: Now) {
        for _ in 0..self.running.len() {
            let Some(id) = self.running.pop_front() else {
                return;
            };
            let mut left = SHARE;
            while left > 0 && !self.router.is_congested(id) {
                let Some(conn) = self.conns.get_mut(&id) else {
                    break;
                };
                let Some(Inbound { frame, fd }) = conn.inbound.pop_front() else {
                    break;
                };
                left -= 1;
                if !self.guarded(|body| body.router.frame(id, frame, fd, now, &mut body.fx)) {
                    self.fx.close.push((id, CloseReason::Fault));
                }
            }
            self.settle(now);
            self.go_on(id);
        }
    }

    /// After a share of `id`: the rest in the next turn, or when it has read its answers; or it may read on.
    fn go_on(&mut self, id: ConnId) {
        let congested = self.router.is_congested(id);
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.runs = false;
        if congested {
            if !std::mem::replace(&mut conn.paused, true) {
                conn.outlet.taken(Flow::Pause);
            }
        } else if conn.inbound.is_empty() {
            conn.paused = false;
            conn.outlet.taken(Flow::ReadOn);
        } else {
            conn.runs = true;
            self.running.push_back(id);
        }
    }

    fn wake(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id)
            && !std::mem::replace(&mut conn.woken, true)
        {
            self.woken.push(id);
        }
    }

    /// Carries out what followed, until nothing more does.
    fn settle(&mut self, now: Now) {
        loop {
            for id in std::mem::take(&mut self.fx.wake) {
                self.wake(id);
            }
            let mut woken = std::mem::take(&mut self.woken);
            for id in woken.drain(..) {
                self.offer(id);
            }
            // Its room is kept.
            if self.woken.is_empty() {
                self.woken = woken;
            }
            for (id, reason) in std::mem::take(&mut self.fx.close) {
                if let Some(conn) = self.conns.get_mut(&id)
                    && !std::mem::replace(&mut conn.closing, true)
                {
                    conn.outlet.close(reason);
                }
            }
            if !self.fx.record.is_empty() || !self.fx.channels.is_empty() {
                self.host.act(&mut self.router, now, &mut self.fx);
            }
            if self.fx.is_empty() && self.woken.is_empty() {
                return;
            }
        }
    }

    /// Has the outlet take what it has room for.
    fn offer(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        conn.woken = false;
        if conn.full {
            return;
        }
        let mut frames = Frames {
            router: &mut self.router,
            conn: id,
            fx: &mut self.fx,
        };
        conn.full = conn.outlet.offer(&mut frames) == Took::Some;
        if conn.paused && !conn.runs && !self.router.is_congested(id) {
            conn.paused = false;
            if conn.inbound.is_empty() {
                conn.outlet.taken(Flow::ReadOn);
            } else {
                conn.runs = true;
                self.running.push_back(id);
            }
        }
    }
}

impl<F> Conn<F> {
    fn new(outlet: Arc<dyn Outlet<F>>) -> Self {
        Self {
            outlet,
            inbound: VecDeque::new(),
            runs: false,
            paused: false,
            full: false,
            woken: false,
            closing: false,
        }
    }
}
