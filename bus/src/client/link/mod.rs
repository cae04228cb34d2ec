//! The socket of a client: one thread reads it, any thread writes it.
//!
//! The reading thread ([`reader`]) never blocks on anything but the socket: the bus stops reading from a client whose
//! answers wait unread, so a reader that waited for a writer could wait for ever. Heartbeats are
//! therefore written only as far as the socket takes them; the rest goes out with the next frame.
//!
//! What it reads it hands to whoever waits for it ([`arrivals`]), and who that is has been said before
//! ([`registered`]). Everybody else sends frames ([`send`]) and waits for their answers ([`calls`]). Where the connection
//! has lanes of its own to the bus and back, the frames go there ([`Link::set_route`]).

mod arrivals;
mod calls;
mod reader;
mod registered;
mod send;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::direct::Direct;
use super::mailbox::{Mailbox, Received};
use super::route::{Route, RouteOffer};
use super::serve::{Asked, Subscriber};
use crate::frame::Frame;
use crate::message::Status;
use crate::shm::park::Closer;
use send::Writer;

pub(super) use arrivals::{Arrived, OfferedLane, OfferedLog};
pub(super) use registered::{Expected, Registered};

/// Events held for one subscription that is not being read.
pub(super) const EVENTS_HELD: usize = 1024;
/// Requests held; the window that was asked for is smaller.
const REQUESTS_HELD: usize = 4096;
/// Offers held, each with a descriptor.
const OFFERS_HELD: usize = 64;

/// Correlation ids with this bit belong to pipelines: the six bits below [`PIPELINE_CALL`] say to which.
pub(super) const PIPELINED: u32 = 1 << 31;
/// Of those, the ones whose answers come one by one; the others are events.
pub(super) const PIPELINE_CALL: u32 = 1 << 30;
/// The bits that a pipeline counts in.
pub(super) const PIPELINE_COUNT: u32 = (1 << 24) - 1;
/// Pipelines of one connection.
const PIPELINES: usize = 64;

/// The connection, which the threads of a client share.
#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    writer: Mutex<Writer>,
    state: Mutex<LinkState>,
    pub requests: Mailbox<Asked>,
    pub offers: Mailbox<OfferedLane>,
    /// The bus's lane back, of a connection that offered it one.
    pub route_offers: Mailbox<RouteOffer>,
    /// Ends the waits for both.
    pub route_closer: Closer,
    /// In place of the socket for all that needs no descriptor. Set before anybody else has this.
    route: OnceLock<Route>,
    /// For small requests to agents that are on the direct path too.
    pub direct: Direct,
    next_correlation: AtomicU32,
    heartbeat_ms: AtomicU64,
}

/// Who waits for what.
#[derive(Debug)]
struct LinkState {
    calls: HashMap<u32, SyncSender<Arrived>>,
    subscribers: Vec<Subscriber>,
    /// Requests that were handed to this client and not answered yet: was it withdrawn?
    in_hand: HashMap<u32, bool>,
    /// Answers that will bring a number, by correlation id.
    expected: HashMap<u32, Expected>,
    channels: HashMap<u32, Registered>,
    follows: HashMap<u32, Arc<Mailbox<OfferedLog>>>,
    /// Queues that this client takes messages from.
    consumers: HashMap<u32, Arc<Mailbox<Frame>>>,
    /// Pipelines of this client, by their numbers.
    pipelines: [Option<Arc<Mailbox<Frame>>>; PIPELINES],
    /// Readers of this client's logs: which log.
    readers: HashMap<u32, u32>,
    /// Channels that ended while their offers waited here.
    ended_early: VecDeque<(u32, Status)>,
    /// Set once the connection is lost; says why.
    closed: Option<String>,
}

impl Link {
    /// Takes the connected socket and starts the reading thread.
    pub fn start(stream: UnixStream) -> io::Result<Arc<Self>> {
        let link = Arc::new(Self {
            stream,
            writer: Mutex::default(),
            state: Mutex::default(),
            requests: Mailbox::new(REQUESTS_HELD),
            offers: Mailbox::new(OFFERS_HELD),
            route_offers: Mailbox::new(1),
            route_closer: Closer::default(),
            route: OnceLock::new(),
            direct: Direct::default(),
            next_correlation: AtomicU32::new(1),
            heartbeat_ms: AtomicU64::new(5_000),
        });
        let stream = link.stream.try_clone()?;
        let weak = Arc::downgrade(&link);
        std::thread::Builder::new()
            .name("agentd-bus".into())
            .spawn(move || reader::run(stream, &weak))?;
        Ok(link)
    }

    pub fn set_heartbeat(&self, period: Duration) {
        self.heartbeat_ms
            .store(period.as_millis().max(100) as u64, Ordering::Relaxed);
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the connection is over, if it is.
    pub fn lost(&self) -> Option<String> {
        if self.is_routed() && self.route_closer.status().is_some() {
            self.close("the bus has taken its shared memory back".to_owned());
        }
        self.lock().closed.clone()
    }

    pub fn why_closed(&self) -> String {
        self.lock()
            .closed
            .clone()
            .unwrap_or_else(|| "closed by this program".to_owned())
    }

    /// From here on all that needs no descriptor goes by shared memory. Before the first subscription and request.
    pub fn set_route(&self, route: Route) {
        let first = self.route.set(route);
        debug_assert!(first.is_ok(), "a link has one route");
    }

    pub fn is_routed(&self) -> bool {
        self.route.get().is_some()
    }

    /// Takes from a mailbox that this connection fills, as [`Mailbox::take`].
    pub fn take<T>(&self, mailbox: &Mailbox<T>, timeout: Option<Duration>) -> Received<T> {
        let Some(route) = self.route.get() else {
            return mailbox.take(timeout);
        };
        let taken = if timeout.is_some_and(|timeout| timeout.is_zero()) {
            route.poll(self, || mailbox.try_take())
        } else {
            let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            route.wait(self, deadline, || mailbox.try_take())
        };
        taken.unwrap_or(Received::TimedOut)
    }

    pub fn close(&self, why: String) {
        let mut state = self.lock();
        let why = state.closed.get_or_insert(why).clone();
        state.calls.clear();
        for subscriber in &state.subscribers {
            subscriber.mailbox.close();
        }
        // Not the other side of the lane has gone, but the bus that introduced the two.
        for end in state.channels.values() {
            end.close(Status::REPLACED);
        }
        for mailbox in state.follows.values() {
            mailbox.close();
        }
        for mailbox in state.consumers.values() {
            mailbox.close();
        }
        state.consumers.clear();
        for mailbox in state.pipelines.iter().flatten() {
            mailbox.close();
        }
        state.expected.clear();
        state.channels.clear();
        state.readers.clear();
        state.follows.clear();
        drop(state);
        self.direct.end(&why);
        self.requests.close();
        self.offers.close();
        self.route_offers.close();
        self.route_closer.close(Status::REPLACED);
        if self.is_routed() {
            // The rings may have ended alone; what is left is of no use without them.
            self.stream.shutdown(Shutdown::Both).ok();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Wakes the reading thread; an error means that the connection had ended before.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

impl Default for LinkState {
    fn default() -> Self {
        Self {
            calls: HashMap::new(),
            subscribers: Vec::new(),
            in_hand: HashMap::new(),
            expected: HashMap::new(),
            channels: HashMap::new(),
            follows: HashMap::new(),
            consumers: HashMap::new(),
            pipelines: [const { None }; PIPELINES],
            readers: HashMap::new(),
            ended_early: VecDeque::new(),
            closed: None,
        }
    }
}

/// The number in a pipeline's correlation id.
fn pipeline_of(correlation: u32) -> usize {
    (correlation >> PIPELINE_COUNT.count_ones()) as usize % PIPELINES
}
