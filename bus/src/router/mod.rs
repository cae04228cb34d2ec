//! The router: what each frame means and who gets it. Frames and time in; queues and effects out.
//!
//! It owns every queue of the bus and their bounds, so that what a slow or hostile peer can cost is
//! decided here and can be tested without a socket. It does no I/O, reads no clock and spawns nothing:
//! the daemon feeds it from its connections ([`Router::frame`]), empties their queues
//! ([`Router::pull`]), calls [`Router::tick`] when [`Router::next_deadline_ns`] has come, and acts on
//! [`Effects`]. One thread at a time, no privilege. It can't fail: what is wrong with a frame is
//! answered to its sender or ends that sender's connection.
//!
//! `F` is what stands for a file descriptor: `OwnedFd` in the daemon, a number in tests.
//!
//! Read on: `dispatch` (requests, responses, events), `control` (messages to the bus itself), `conn`
//! and `peer` (the queues), `channels` (shared memory: `lanes`, `logs`, `segments`), `judge` (rights that change).

#![forbid(unsafe_code)]

mod audience;
#[cfg(test)]
mod channel_tests;
mod channels;
mod conn;
mod control;
mod direct;
mod dispatch;
mod effects;
mod events;
mod groups;
mod inboxes;
mod judge;
mod lanes;
mod logs;
pub(crate) mod numbers;
mod peer;
mod persist;
mod queue;
mod requests;
mod routes;
mod segments;
mod status;
#[cfg(test)]
mod tests;
mod tickets;
mod topics;
mod turns;
#[cfg(test)]
mod window_tests;
mod words;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::access::{Access, Party};
use crate::channel::Overflow;
use crate::frame::{Frame, PeerId, kind};
use crate::listing::{Liveness, PeerEntry};
use crate::message::{ERROR_MAX, Event, NAME_MAX, Response, Shape, Status};
use crate::topic::PEERS_TOPIC;

pub use channels::{ChannelEvent, ChannelKind, ChannelOpened, Closed, Descriptor};
pub use conn::{ConnId, Outgoing};
pub use direct::DirectPlace;
pub use effects::{CloseReason, Effects, MessageMeta};
pub use groups::GroupStatus;
pub use persist::{
    Batch, DeadReason, OffsetRange, Persist, PersistError, RECORD_HEAD, Restored, Settled,
    StreamId, StreamSpec,
};
pub use queue::{QueueCounters, QueueStatus, QueueStep, QueueStepKind};
pub use routes::{RouteEvent, RouteMemory};
pub use status::{PeerCounters, PeerStatus};
pub use topics::{TopicCounters, TopicStatus};

use channels::Channel;
use conn::{Conn, Next};
use logs::{Follow, Log};
use numbers::ByNumber;
use peer::Peer;
use queue::Queue;
use tickets::Ticket;
use topics::Space;
use words::Words;

/// Bounds of everything a peer can make the bus hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of one frame, bytes.
    pub max_payload: u32,
    /// Frames and bytes that wait for one connection to read them.
    pub out_frames: usize,
    pub out_bytes: usize,
    /// Messages and bytes in one agent's inbox.
    pub inbox_messages: usize,
    pub inbox_bytes: usize,
    /// Requests that one connection may have open.
    pub max_inflight: usize,
    /// Requests that wait for an agent that is not taking any.
    pub max_waiting_requests: usize,
    /// Subscriptions of one connection, and of one inbox.
    pub max_subscriptions: usize,
    /// Connections of one agent, the daemon's own ports left out.
    pub max_connections: usize,
    /// Lanes in which one connection takes part.
    pub max_lanes: usize,
    /// Logs that one connection writes, and logs that it reads.
    pub max_logs: usize,
    pub max_followed: usize,
    /// Readers of one log.
    pub max_log_readers: usize,
    /// Segments of one channel, and as many wait at most for one connection to take them.
    pub max_segments: usize,
    /// Logs and segments that one connection makes others map, bytes.
    pub max_shared_bytes: u64,
    /// Queues of one user, and that one connection has open.
    pub max_queues: usize,
    /// Bytes that the queues of one user hold together.
    pub queue_bytes: u64,
    /// Connections that take messages from one queue.
    pub max_consumers: usize,
    /// Groups of one user.
    pub max_groups: usize,
    /// Topics of one user that are counted by themselves, retain messages or are durable.
    pub max_topics: usize,
    /// Bytes that the topics of one user retain together.
    pub retained_bytes: usize,
    /// A connection should say something this often.
    pub heartbeat_ms: u32,
    /// For a request that names no time-out, and the most that one may name.
    pub default_timeout_ms: u32,
    pub max_timeout_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload: 1 << 20,
            out_frames: 1024,
            out_bytes: 4 << 20,
            inbox_messages: 1024,
            inbox_bytes: 4 << 20,
            max_inflight: 256,
            max_waiting_requests: 64,
            max_subscriptions: 128,
            max_connections: 32,
            max_lanes: 64,
            max_logs: 64,
            max_followed: 256,
            max_log_readers: crate::log::READERS_MAX,
            max_segments: 64,
            max_shared_bytes: 4 << 30,
            max_queues: 256,
            queue_bytes: 256 << 20,
            max_consumers: 256,
            max_groups: 256,
            max_topics: 4096,
            retained_bytes: 16 << 20,
            heartbeat_ms: 5_000,
            default_timeout_ms: 60_000,
            max_timeout_ms: 24 * 3_600_000,
        }
    }
}

/// The two clocks, read by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: for deadlines.
    pub mono_ns: u64,
    /// Since the Unix epoch: for time stamps.
    pub wall_ns: u64,
}

/// An agent as it is attached.
#[derive(Clone, Debug)]
pub struct PeerSpec {
    pub id: PeerId,
    pub uid: u32,
    pub name: String,
    pub short: u32,
    pub access: Arc<dyn Access>,
}

/// Why an agent can't be attached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachRefused {
    #[error("another live agent of uid {uid} is called {name}")]
    NameTaken { uid: u32, name: String },
    #[error("agent name {name:?}: 1 to {NAME_MAX} bytes without blanks or control characters")]
    BadName { name: String },
    #[error("agent id {id} is nil or already on the bus")]
    BadId { id: PeerId },
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectRefused {
    #[error("this agent has left the bus")]
    NoSuchPeer,
    #[error("this agent has {limit} connections, the most allowed")]
    TooMany { limit: usize },
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnKind {
    /// A process in the sandbox: greets first, is counted, shows life by heartbeats.
    Socket,
    /// A part of the daemon that acts for the agent.
    Port,
    /// The agent's lanes to the bus and back.
    Routed,
}

/// A request (or lane offer) that awaits its answer.
#[derive(Debug)]
struct Pending<F> {
    /// Who asked, on which connection, under which of its correlation ids.
    asker: PeerId,
    asker_conn: ConnId,
    asker_correlation: u32,
    /// Who is to answer.
    server: PeerId,
    state: PendingState,
    deadline_ns: u64,
    /// The method; "lane" for an offer of one, the topic of a log.
    what: Arc<str>,
    kind: PendingKind<F>,
}

#[derive(Debug)]
enum PendingKind<F> {
    Request,
    /// The server is the receiver.
    Lane {
        shape: Shape,
        data: F,
    },
    /// The asker is the log's producer, which asked for nothing and hears only of a reader.
    Reader {
        log: u32,
        follow: u32,
    },
    /// The asker is the bus: its lane back to an agent.
    Route {
        route: u32,
    },
}

impl<F> PendingKind<F> {
    /// The word in the record for its answer.
    fn answer_word(&self) -> &'static str {
        match self {
            Self::Request => "response",
            Self::Lane { .. } | Self::Route { .. } => "lane",
            Self::Reader { .. } => "log",
        }
    }
}

#[derive(Debug)]
enum PendingState {
    /// In the server's queue of requests, not yet handed out.
    Waiting(Frame),
    /// Handed to a connection that serves.
    With(ConnId),
    /// Read out of the inbox: any connection of the server may answer.
    Taken,
}

/// What has to happen at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Request(u32),
    InboxWait(PeerId, ConnId, u32),
    Queue(u32),
}

/// The state of the whole bus. See the module's documentation.
#[derive(Debug)]
pub struct Router<F> {
    limits: Limits,
    peers: ByNumber<PeerId, Peer>,
    names: HashMap<(u32, String), PeerId>,
    conns: ByNumber<ConnId, Conn<F>>,
    /// Open requests by the correlation id that the *server* sees: chosen here, so nobody can guess
    /// or reuse another's.
    pending: ByNumber<u32, Pending<F>>,
    /// Open lanes and readers of logs. Their numbers, those of logs, follows and requests are all different.
    channels: ByNumber<u32, Channel<F>>,
    logs: ByNumber<u32, Log<F>>,
    follows: ByNumber<u32, Follow>,
    queues: ByNumber<u32, Queue>,
    /// Names of queues that are watched, by how many.
    watched: HashMap<String, usize>,
    /// What the agents of each user share.
    spaces: ByNumber<u32, Space>,
    /// What the durable store was asked and has not answered.
    tickets: ByNumber<u64, Ticket>,
    next_ticket: u64,
    /// Subscriptions that pause their publishers.
    blocking: usize,
    /// The time as the router was told last.
    clock: Now,
    /// By the number of the agent's lane.
    routes: ByNumber<u32, routes::Route>,
    /// Topics and types that were named lately.
    words: Words,
    /// Agents with a read of the inbox that waits, for which something came just now.
    roused: Vec<PeerId>,
    /// Room for the copies that a slow reader lost.
    lost: Vec<Frame>,
    timers: BTreeSet<(u64, Timer)>,
    next_conn: u64,
    next_wire: u32,
    next_seq: u64,
    /// From one message on record to the next: routers side by side count in turns.
    seq_step: u64,
}

impl<F: Descriptor> Router<F> {
    /// An empty bus.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            peers: ByNumber::default(),
            names: HashMap::new(),
            conns: ByNumber::default(),
            pending: ByNumber::default(),
            channels: ByNumber::default(),
            logs: ByNumber::default(),
            follows: ByNumber::default(),
            queues: ByNumber::default(),
            watched: HashMap::new(),
            spaces: ByNumber::default(),
            tickets: ByNumber::default(),
            next_ticket: 1,
            blocking: 0,
            clock: Now {
                mono_ns: 0,
                wall_ns: 0,
            },
            routes: ByNumber::default(),
            words: Words::default(),
            roused: Vec::new(),
            lost: Vec::new(),
            timers: BTreeSet::new(),
            next_conn: 1,
            next_wire: 1,
            next_seq: 1,
            seq_step: 1,
        }
    }

    /// As [`Self::new`], for number `nth` of `count` routers of one bus: no two of their messages have the same
    /// [`MessageMeta::seq`].
    pub fn nth_of(limits: Limits, nth: usize, count: usize) -> Self {
        Self {
            next_seq: nth as u64 + 1,
            seq_step: count as u64,
            ..Self::new(limits)
        }
    }

    /// The bounds in force.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Adds an agent; others of its user who follow [`PEERS_TOPIC`] are told.
    pub fn attach(
        &mut self,
        spec: PeerSpec,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Result<(), AttachRefused> {
        let name = spec.name.clone();
        if name.is_empty()
            || name.len() > NAME_MAX
            || name.contains(|c: char| c.is_control() || c.is_whitespace())
        {
            return Err(AttachRefused::BadName { name });
        }
        if spec.id.is_bus() || self.peers.contains_key(&spec.id) {
            return Err(AttachRefused::BadId { id: spec.id });
        }
        let key = (spec.uid, name.clone());
        if self.names.contains_key(&key) {
            return Err(AttachRefused::NameTaken {
                uid: spec.uid,
                name,
            });
        }
        self.names.insert(key, spec.id);
        let (id, uid) = (spec.id, spec.uid);
        self.peers.insert(id, Peer::new(spec));
        self.announce(id, uid, "joined", &name, now, fx);
        Ok(())
    }

    /// Removes an agent because its process has ended. Whoever waits for it gets `PEER_GONE` now.
    pub fn detach(&mut self, id: PeerId, now: Now, fx: &mut Effects<F>) {
        let Some(peer) = self.peers.get(&id) else {
            return;
        };
        let (uid, name) = (peer.uid, peer.name.clone());
        for conn in peer.conns.clone() {
            self.disconnect(conn, now, fx);
            fx.close.push((conn, CloseReason::Detached));
        }
        let orphans: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, open)| open.server == id)
            .map(|(wire, _)| *wire)
            .collect();
        for wire in orphans {
            self.fail_request(
                wire,
                Status::PEER_GONE,
                &format!("{name} has ended"),
                now,
                fx,
            );
        }
        self.peer_leaves_groups(uid, id);
        self.peers.remove(&id);
        self.audiences_changed(uid);
        self.names.remove(&(uid, name.to_string()));
        self.announce(id, uid, "gone", &name, now, fx);
    }

    /// Adds a connection of an attached agent.
    pub fn connect(
        &mut self,
        peer: PeerId,
        kind: ConnKind,
        now: Now,
    ) -> Result<ConnId, ConnectRefused> {
        let limit = self.limits.max_connections;
        let Some(entry) = self.peers.get_mut(&peer) else {
            return Err(ConnectRefused::NoSuchPeer);
        };
        let conns = &self.conns;
        let sockets = entry
            .conns
            .iter()
            .filter(|id| conns[id].kind == ConnKind::Socket)
            .count();
        if kind == ConnKind::Socket && sockets >= limit {
            return Err(ConnectRefused::TooMany { limit });
        }
        let id = ConnId(self.next_conn);
        self.next_conn += 1;
        entry.conns.push(id);
        self.conns.insert(id, Conn::new(peer, kind, now.mono_ns));
        Ok(id)
    }

    /// Removes a connection. What it was asked is answered for it, what it asked is withdrawn.
    pub fn disconnect(&mut self, id: ConnId, now: Now, fx: &mut Effects<F>) {
        let Some(conn) = self.conns.remove(&id) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&conn.peer) {
            peer.conns.retain(|other| *other != id);
            peer.waiters.retain(|waiter| waiter.conn != id);
            let uid = peer.uid;
            if !conn.subscriptions.is_empty() {
                self.audiences_changed(uid);
            }
        }
        self.timers
            .retain(|(_, timer)| !matches!(timer, Timer::InboxWait(_, conn, _) if *conn == id));
        for wire in conn.inflight.values() {
            self.withdraw_request(*wire, Status::PEER_GONE, fx);
        }
        let unanswered: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, open)| matches!(open.state, PendingState::With(with) if with == id))
            .map(|(wire, _)| *wire)
            .collect();
        for wire in unanswered {
            self.fail_request(
                wire,
                Status::PEER_GONE,
                "the connection that had taken the request closed",
                now,
                fx,
            );
        }
        self.drop_ends_of(id, fx);
        let held = conn.subscriptions.iter();
        self.blocking -= held.filter(|held| held.overflow == Overflow::Block).count();
        self.unpause(conn.pauses, fx);
        if conn.paused_by > 0 {
            for other in self.conns.values_mut() {
                other.pauses.retain(|publisher| *publisher != id);
            }
        }
        if let Some(uid) = self.peers.get(&conn.peer).map(|peer| peer.uid) {
            self.conn_leaves_groups(uid, id);
        }
        self.leaves_direct_path(conn.peer, id, fx);
        self.leave_queues(id, conn.consuming, conn.parked, now, fx);
        self.drop_routes_of(id, fx);
        // Requests that waited for this server may now be read from the inbox.
        self.serve_waiters(conn.peer, now, fx);
    }

    /// Handles one frame that came on `conn`; `fd` came with it.
    pub fn frame(
        &mut self,
        conn: ConnId,
        frame: Frame,
        fd: Option<F>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        self.dispatch(conn, frame, fd, now, fx);
    }

    /// The next frame for `conn`. Frames that must arrive come before topic messages.
    pub fn pull(&mut self, conn: ConnId, fx: &mut Effects<F>) -> Option<Outgoing<F>> {
        let entry = self.conns.get_mut(&conn)?;
        let out = match entry.next() {
            Next::Delivery => match self.deliver(conn, fx) {
                Some(out) => Some(out),
                // What there was has gone to another consumer.
                None => self.conns.get_mut(&conn)?.pull(),
            },
            Next::Frame | Next::Nothing => entry.pull(),
        };
        let entry = self.conns.get_mut(&conn)?;
        let (serves, peer) = (entry.window > 0, entry.peer);
        if !entry.pauses.is_empty() && entry.has_drained(&self.limits) {
            let publishers = std::mem::take(&mut entry.pauses);
            self.unpause(publishers, fx);
        }
        if serves
            && self
                .peers
                .get(&peer)
                .is_some_and(|peer| !peer.waiting.is_empty())
        {
            // A large request may have waited for the room that this made.
            self.pump(peer, fx);
        }
        out
    }

    /// Tells the router the time, which it also learns from every frame. What is delivered by [`Self::pull`] may be
    /// held from then on; so whoever pulls long after the last frame says how late it is.
    pub fn clock(&mut self, now: Now) {
        self.clock = now;
    }

    /// True while so much waits for `conn` that nothing more should be read from it.
    pub fn is_congested(&self, conn: ConnId) -> bool {
        self.conns
            .get(&conn)
            .is_some_and(|conn| conn.is_congested(&self.limits))
    }

    /// True while an answer is still to come to `conn`: to a request, to a message that is being stored, to a wait for the
    /// inbox. What is in its queues already does not count.
    pub fn owes(&self, conn: ConnId) -> bool {
        self.conns.get(&conn).is_some_and(|entry| {
            let waits = |peer: &Peer| peer.waiters.iter().any(|waiter| waiter.conn == conn);
            !entry.inflight.is_empty()
                || entry.parked.is_some()
                || self.peers.get(&entry.peer).is_some_and(waits)
                || self
                    .tickets
                    .values()
                    .any(|ticket| ticket.conn() == Some(conn))
        })
    }

    /// When [`Self::tick`] has work next, on the monotonic clock.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Expires what is due.
    pub fn tick(&mut self, now: Now, fx: &mut Effects<F>) {
        self.clock = now;
        while let Some((at, timer)) = self.timers.first().copied() {
            if at > now.mono_ns {
                break;
            }
            self.timers.pop_first();
            match timer {
                Timer::Queue(queue) => self.queue_due(queue, now, fx),
                Timer::Request(wire) => {
                    self.withdraw_from_server(wire, Status::DEADLINE, fx);
                    self.fail_request(
                        wire,
                        Status::DEADLINE,
                        "no answer before the deadline",
                        now,
                        fx,
                    );
                }
                Timer::InboxWait(peer, conn, correlation) => {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.waiters
                            .retain(|w| (w.conn, w.correlation) != (conn, correlation));
                    }
                    self.answer_inbox(conn, correlation, 0, now, fx);
                }
            }
        }
    }

    /// The other agents of the same user, by name.
    pub fn agents(&self, asking: PeerId, now: Now) -> Vec<PeerEntry> {
        let Some(me) = self.peers.get(&asking) else {
            return Vec::new();
        };
        let mut list: Vec<PeerEntry> = self
            .peers
            .iter()
            .filter(|(id, peer)| peer.uid == me.uid && **id != asking)
            .map(|(id, peer)| PeerEntry {
                id: *id,
                short: peer.short,
                queued: (peer.inbox.len() + peer.waiting.len()) as u32,
                liveness: self.liveness(peer, now),
                serving: self.is_serving(peer),
                may_send: me.access.may_send(&peer.name),
                tier: self.tier(*id),
                name: peer.name.to_string(),
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    /// The id of the agent of `uid` that has this name.
    pub fn lookup(&self, uid: u32, name: &str) -> Option<PeerId> {
        self.names.get(&(uid, name.to_owned())).copied()
    }

    /// The name of a live agent.
    pub fn name(&self, id: PeerId) -> Option<&str> {
        self.peers.get(&id).map(|peer| &*peer.name)
    }

    /// Open requests, for tests and counters: nothing may stay behind.
    pub fn open_requests(&self) -> usize {
        self.pending.len()
    }

    fn liveness(&self, peer: &Peer, now: Now) -> Liveness {
        let heard = peer
            .conns
            .iter()
            .map(|id| &self.conns[id])
            .filter(|conn| conn.kind == ConnKind::Socket)
            .map(|conn| conn.heard_ns)
            .max();
        let patience_ns = 3 * u64::from(self.limits.heartbeat_ms) * 1_000_000;
        match heard {
            None => Liveness::Quiet,
            Some(at) if now.mono_ns.saturating_sub(at) <= patience_ns => Liveness::Alive,
            Some(_) => Liveness::Late,
        }
    }

    fn is_serving(&self, peer: &Peer) -> bool {
        peer.conns.iter().any(|id| self.conns[id].window > 0)
    }

    fn party(peer: &Peer) -> Party<'_> {
        Party {
            uid: peer.uid,
            name: &peer.name,
        }
    }

    /// Queues the answer to a control message or an acknowledged event.
    fn answer(
        &mut self,
        conn: ConnId,
        correlation: u32,
        status: Status,
        text: &str,
        result: &[u8],
        fx: &mut Effects<F>,
    ) {
        self.answer_with(conn, correlation, PeerId::BUS, status, text, result, fx);
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the fields of one response frame"
    )]
    fn answer_with(
        &mut self,
        conn: ConnId,
        correlation: u32,
        source: PeerId,
        status: Status,
        text: &str,
        result: &[u8],
        fx: &mut Effects<F>,
    ) {
        let error = clip(text);
        let payload = Response {
            status,
            error,
            result,
        }
        .encode_shared()
        .expect("the text was clipped to the limit");
        let bits = if status == Status::OK {
            kind::RESPONSE
        } else {
            kind::RESPONSE | kind::ERROR
        };
        let mut frame = Frame::new(bits, PeerId::BUS, correlation, payload);
        frame.header.source = source;
        self.push_must(conn, frame, None, fx);
    }

    /// Queues a frame that may not be dropped. `false`: there was no room, and the frame is lost.
    fn push_must(&mut self, id: ConnId, frame: Frame, fd: Option<F>, fx: &mut Effects<F>) -> bool {
        let Some(conn) = self.conns.get_mut(&id) else {
            return false;
        };
        if conn.push_must(Outgoing { frame, fd }, &self.limits) {
            fx.wake.push(id);
            return true;
        }
        fx.close.push((id, CloseReason::SlowReader));
        false
    }

    fn announce(
        &mut self,
        id: PeerId,
        uid: u32,
        event_type: &str,
        name: &str,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let event = Event {
            priority: 1,
            event_type,
            topic: PEERS_TOPIC,
            data: name.as_bytes(),
        };
        let payload = event
            .encode()
            .expect("names and the topic are within the limits");
        let mut frame = Frame::new(kind::EVENT, PeerId::BUS, 0, payload);
        frame.header.timestamp_ns = now.wall_ns.into();
        let agentd = self.words.get("agentd");
        self.spread(id, uid, PEERS_TOPIC, &frame, &agentd, fx);
        self.serve_roused(now, fx);
    }
}

/// Cuts the bus's own error text to the format's limit, at a character.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(ERROR_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
