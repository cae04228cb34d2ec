//! The loop of one shard: posts, lanes, timers; then what follows from them, all at once.
//!
//! A **turn** takes everything that was posted, a bounded share of what each lane and each connection has, and what is
//! due; then tells each connection once, however many messages it got. Connections and lanes with more than their share
//! come again in the next turn, behind the others: nobody's flood keeps anybody else waiting for longer than one share
//! of each. Runs on the shard's own thread, which sleeps only in [`Waiter::wait`].

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::mailbox::{Mailbox, Post};
use super::routes::{RouteEnd, Routes};
use super::{Flow, Frames, Host, Inbound, Outlet, SharedFd, Took};
use crate::channel::Waiting;
use crate::message::Status;
use crate::router::numbers::ByNumber;
use crate::router::{CloseReason, ConnId, Effects, Now, Router};
use crate::shm::park::probe_waitv;
use crate::wait::{Event, Park, Waiter};

/// Frames of one connection that are handled before the others get their turn.
pub(super) const SHARE: usize = 64;

/// By which way frames leave.
enum Via {
    Outlet(Arc<dyn Outlet>),
    Route(u32),
}

/// A connection as its shard knows it.
pub(super) struct Conn {
    via: Via,
    /// Read, and not handled yet: at most one batch.
    inbound: VecDeque<Inbound>,
    /// In `Body::running`.
    runs: bool,
    /// Its reader was told to pause.
    pub paused: bool,
    /// The outlet left something: it says when it has room.
    full: bool,
    /// It sends nothing more, and is closed when it has its answers.
    finished: bool,
    /// In `Body::woken`.
    woken: bool,
    closing: bool,
}

pub(super) struct Body {
    mailbox: Arc<Mailbox>,
    pub(super) router: Router<SharedFd>,
    pub(super) host: Box<dyn Host>,
    pub(super) conns: ByNumber<ConnId, Conn>,
    /// Connections with frames to handle, in turn.
    running: VecDeque<ConnId>,
    /// Connections that have something to be offered.
    woken: Vec<ConnId>,
    pub(super) fx: Effects<SharedFd>,
    pub(super) waiter: Waiter<RouteEnd>,
    pub(super) routes: Routes,
}

impl Body {
    pub fn new(router: Router<SharedFd>, host: Box<dyn Host>) -> (Arc<Mailbox>, Self) {
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
            conns: ByNumber::default(),
            running: VecDeque::new(),
            woken: Vec::new(),
            fx: Effects::default(),
            waiter,
            routes: Routes::default(),
        };
        (mailbox, body)
    }

    /// Until it is told to stop.
    pub fn run(mut self) {
        // What it sleeps on with many routes is there before the first, while there are descriptors. Each route has bells.
        if let Err(error) = self.waiter.poll_fd().map(|_| ()) {
            self.host.cannot_wait(&error);
        }
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
            self.router.clock(now);
            self.mailbox.take(&mut posts);
            for post in posts.drain(..) {
                if matches!(post, Post::Stop) {
                    self.mailbox.stop();
                    return;
                }
                self.handle(post, now);
            }
            for event in events.drain(..) {
                if let Event::Ready(end) = event {
                    self.serve(end, now);
                }
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

    fn handle(&mut self, post: Post, now: Now) {
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
                    self.conns.insert(id, Conn::new(Via::Outlet(outlet)));
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
            Post::Finished(id) => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.finished = true;
                    self.part(id);
                    self.settle(now);
                }
            }
            Post::Closed(id) => {
                self.conns.remove(&id);
                self.guarded(|body| body.router.disconnect(id, now, &mut body.fx));
                self.settle(now);
            }
            Post::Detach(peer) => {
                self.drain_peer(peer, now);
                self.guarded(|body| body.router.detach(peer, now, &mut body.fx));
                self.settle(now);
            }
            Post::Stop => {}
        }
    }

    fn take_frames(&mut self, id: ConnId, frames: Vec<Inbound>) {
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
        if conn.finished && conn.inbound.is_empty() {
            return self.wake(id);
        }
        if congested {
            if !std::mem::replace(&mut conn.paused, true) {
                conn.taken(Flow::Pause);
            }
        } else if conn.inbound.is_empty() {
            conn.paused = false;
            conn.taken(Flow::ReadOn);
        } else {
            conn.runs = true;
            self.running.push_back(id);
        }
    }

    pub(super) fn wake(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id)
            && !std::mem::replace(&mut conn.woken, true)
        {
            self.woken.push(id);
        }
    }

    /// Carries out what followed, until nothing more does.
    fn settle(&mut self, now: Now) {
        loop {
            let mut wake = std::mem::take(&mut self.fx.wake);
            for id in wake.drain(..) {
                self.wake(id);
            }
            // The room of both lists is kept.
            self.fx.wake = wake;
            let mut woken = std::mem::take(&mut self.woken);
            for id in woken.drain(..) {
                self.offer(id);
            }
            if self.woken.is_empty() {
                self.woken = woken;
            }
            for (id, reason) in std::mem::take(&mut self.fx.close) {
                if let Some(conn) = self.conns.get_mut(&id)
                    && !std::mem::replace(&mut conn.closing, true)
                {
                    match &conn.via {
                        Via::Outlet(outlet) => outlet.close(reason),
                        Via::Route(route) => {
                            self.router
                                .end_route(*route, Status::MALFORMED, &mut self.fx);
                        }
                    }
                }
            }
            for event in std::mem::take(&mut self.fx.routes) {
                self.route_event(event, now);
            }
            for id in std::mem::take(&mut self.fx.resume) {
                self.resume(id);
            }
            if !self.fx.persist.is_empty() {
                self.host.persist(std::mem::take(&mut self.fx.persist));
            }
            if !self.fx.record.is_empty()
                || !self.fx.steps.is_empty()
                || !self.fx.channels.is_empty()
            {
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
        match &conn.via {
            Via::Outlet(outlet) => {
                let mut frames = Frames {
                    router: &mut self.router,
                    conn: id,
                    fx: &mut self.fx,
                };
                conn.full = outlet.offer(&mut frames) == Took::Some;
            }
            Via::Route(route) => {
                let route = *route;
                self.pour(route);
            }
        }
        self.resume(id);
        self.part(id);
    }

    /// Closes a connection that has finished, once it has been given all that it is owed.
    fn part(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get(&id)
            && conn.finished
            && !conn.full
            && conn.inbound.is_empty()
            && !self.router.owes(id)
        {
            self.fx.close.push((id, CloseReason::Finished));
        }
    }

    /// A connection whose frames travel in a route's rings.
    pub(super) fn add_routed(&mut self, id: ConnId, route: u32) {
        self.conns.insert(id, Conn::new(Via::Route(route)));
    }

    /// If `id` was paused, and need not be any more: its frames are handled, and it may read on.
    fn resume(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.paused
            && !conn.runs
            && !self.router.is_congested(id)
        {
            conn.paused = false;
            if let Via::Route(route) = conn.via {
                self.unpause(route);
            } else if conn.inbound.is_empty() {
                conn.taken(Flow::ReadOn);
            } else {
                conn.runs = true;
                self.running.push_back(id);
            }
        }
    }
}

impl Conn {
    fn taken(&self, flow: Flow) {
        if let Via::Outlet(outlet) = &self.via {
            outlet.taken(flow);
        }
    }

    fn new(via: Via) -> Self {
        Self {
            via,
            inbound: VecDeque::new(),
            runs: false,
            paused: false,
            full: false,
            finished: false,
            woken: false,
            closing: false,
        }
    }
}
