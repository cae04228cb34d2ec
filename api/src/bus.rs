//! Seeing inside the bus, and taking part in it: who is on it, what flows between whom, and messages from the user.
//!
//! `org.agentd1.Bus` at `/org/agentd1`. A caller sees the agents of its own uid, root those of everybody. Figures are
//! read from counters that the two sides of a channel keep in their own memory, without stopping anyone; two readings
//! make a rate. What goes *through* shared memory is never shown: [`BusProxy::tap`] tells of messages that the daemon
//! routes, and of each only who, to whom, how large and what became of it. The same types serve `agentctl bus --json`.
//!
//! A caller who publishes, asks or sends does so as a peer of its own called [`USER_PEER`], which the agents of the
//! same user see on the bus for as long as a call or a subscription of that user is open.

use std::collections::HashMap;

use serde_json::{Value, json};
use zbus::{DeserializeDict, OwnedFd, SerializeDict, Type};

use crate::queues::{BusQueue, BusQueued, BusTopic, PeekOptions, ReplayOptions};
use crate::vocabulary::words;
use crate::{AgentId, Error};

/// The name under which a user is on the bus.
pub const USER_PEER: &str = "user";

/// Longest topic or pattern, in bytes.
pub const MAX_TOPIC: usize = 128;

/// The longest time-out of a request, in milliseconds: a day.
pub const MAX_TIMEOUT_MS: u32 = 24 * 3_600_000;

words! {
    /// By which way a peer reaches others.
    pub enum Tier: "tier" {
        /// Lanes and logs in shared memory, straight from one agent to another.
        SharedMemory = "shared-memory",
        /// The same, and rings to the router and back for what needs it.
        Routed = "routed-shared-memory",
        /// Frames on its socket, routed by the daemon.
        Socket = "socket",
        /// No connection of its own: the daemon speaks for it (MCP, drivers, the user).
        InDaemon = "in-daemon",
    }
}

words! {
    /// Whether small requests to a peer, and its own, may go from socket to socket in the kernel.
    pub enum DirectState: "state of the direct path" {
        /// A process of it has the agent's direct connection.
        Connected = "connected",
        /// It may open one.
        Offered = "offered",
        /// It can't.
        None = "none",
    }
}

words! {
    /// Whether something was heard of a peer's own connections.
    pub enum PeerLiveness: "liveness" {
        Alive = "alive",
        /// Connected, silent for three heartbeats.
        Late = "late",
        /// No connection of its own.
        Quiet = "quiet",
    }
}

words! {
    /// What a channel is.
    pub enum ChannelKind: "kind of channel" {
        /// One sender, one receiver.
        Lane = "lane",
        /// One sender, one of its readers; or no reader yet.
        Log = "log",
    }
}

words! {
    /// A right of `[ipc]` that can be taken from a running agent.
    pub enum IpcRight: "right" {
        Send = "send",
        Request = "request",
        Publish = "publish",
        Subscribe = "subscribe",
    }
}

/// One peer of the bus.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct BusPeer {
    pub id: AgentId,
    pub name: String,
    pub uid: u32,
    pub tier: Tier,
    /// Why it is that tier, for people.
    pub tier_why: String,
    pub liveness: PeerLiveness,
    /// Something of it answers requests as they come.
    pub serving: bool,
    /// Connections of its own.
    pub connections: u32,
    /// Messages in its inbox.
    pub queued: u32,
    /// Requests that wait until it takes them.
    pub waiting: u32,
    /// Patterns that it follows.
    pub subscriptions: u32,
    /// Lanes and logs that it has a part in.
    pub channels: u32,
    /// Messages that it gave the daemon to route, and their payload.
    pub sent: u64,
    pub sent_bytes: u64,
    /// Messages that the daemon put into its queues, and their payload.
    pub received: u64,
    pub received_bytes: u64,
    /// Messages of its own that were refused: not allowed, no such agent, queue full, malformed.
    pub refused: u64,
    /// Topic messages that it was too slow for.
    pub dropped: u64,
    /// Whether it is on the direct path; absent with an agentd that has none to offer.
    pub direct: Option<DirectState>,
    /// Why it is not, for people; empty while it is.
    pub direct_why: Option<String>,
    /// Requests and answers that it sent and received by the direct path, which no tap and no record shows, their payload, and what came
    /// back to it.
    pub direct_sent: Option<u64>,
    pub direct_sent_bytes: Option<u64>,
    pub direct_received: Option<u64>,
    pub direct_received_bytes: Option<u64>,
    pub direct_refused: Option<u64>,
    /// What was taken from it with [`BusProxy::revoke`]; absent if nothing was.
    pub revoked: Option<Vec<Revocation>>,
}

impl BusPeer {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "uid": self.uid,
            "tier": self.tier,
            "tier_why": self.tier_why,
            "liveness": self.liveness,
            "serving": self.serving,
            "connections": self.connections,
            "queued": self.queued,
            "waiting": self.waiting,
            "subscriptions": self.subscriptions,
            "channels": self.channels,
            "sent": self.sent,
            "sent_bytes": self.sent_bytes,
            "received": self.received,
            "received_bytes": self.received_bytes,
            "refused": self.refused,
            "dropped": self.dropped,
            "direct": self.direct,
            "direct_why": self.direct_why,
            "direct_sent": self.direct_sent,
            "direct_sent_bytes": self.direct_sent_bytes,
            "direct_received": self.direct_received,
            "direct_received_bytes": self.direct_received_bytes,
            "direct_refused": self.direct_refused,
            "revoked": revocations_json(self.revoked.as_deref().unwrap_or_default()),
        })
    }
}

/// One lane, or one log with one of its readers. Figures are what the two sides say of themselves: nothing is decided
/// by them, and one may be a message ahead of another.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct BusChannel {
    /// The bus's number for it; each reader of a log has one of its own.
    pub id: u32,
    pub kind: ChannelKind,
    pub uid: u32,
    /// Names, and ids.
    pub from: String,
    pub from_id: AgentId,
    /// Absent for a log that nobody reads.
    pub to: Option<String>,
    pub to_id: Option<AgentId>,
    /// Of a log.
    pub topic: Option<String>,
    /// `bulk`, `normal`, `high`, `control`.
    pub class: String,
    /// What becomes of a message for which there is no room: `block`, `drop-newest`, `drop-oldest`, `disconnect`; of a
    /// log's reader, `reliable` (the producer waits for it) or `lossy` (it loses the oldest, and is told).
    pub overflow: String,
    /// Slots of 64 bytes.
    pub slots: u32,
    /// Slots that are written and not yet read.
    pub depth: u64,
    pub sent: u64,
    /// Bytes of payload.
    pub sent_bytes: u64,
    /// Given up by the overflow policy.
    pub dropped: u64,
    /// Times that there was no room.
    pub full: u64,
    /// Readers that were cut off.
    pub cut_off: u64,
    pub sender_sleeps: u64,
    /// Times that the sender woke a reader.
    pub sender_wakes: u64,
    pub received: u64,
    /// Bytes of payload.
    pub received_bytes: u64,
    /// Overwritten before they were read.
    pub lost: u64,
    /// Refused by the reader: a wrong check sum or shape.
    pub refused: u64,
    pub receiver_sleeps: u64,
    pub receiver_wakes: u64,
    /// Sampled time from send to receive (one message in 64): for each bucket that counts something, the highest value
    /// in nanoseconds and the number of samples, ascending.
    pub latency: Vec<(u64, u64)>,
}

/// The value that `quantile` (0 to 1) of the samples don't exceed; `None` without samples. `buckets` as in
/// [`BusChannel::latency`].
pub fn latency_at(buckets: &[(u64, u64)], quantile: f64) -> Option<u64> {
    let total = latency_samples(buckets);
    let wanted = (total as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
    let mut seen = 0_u64;
    buckets
        .iter()
        .find(|(_, count)| {
            seen = seen.saturating_add(*count);
            seen >= wanted
        })
        .map(|(highest, _)| *highest)
}

/// How many samples there are. The counting side may say anything, so this doesn't overflow.
pub fn latency_samples(buckets: &[(u64, u64)]) -> u64 {
    buckets.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n))
}

/// The samples that are in `now` and were not yet in `before`.
pub fn latency_since(now: &[(u64, u64)], before: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let before: HashMap<u64, u64> = before.iter().copied().collect();
    let left = now.iter().map(|(highest, count)| {
        let then = before.get(highest).copied().unwrap_or_default();
        (*highest, count.saturating_sub(then))
    });
    left.filter(|(_, count)| *count > 0).collect()
}

impl BusChannel {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "kind": self.kind,
            "uid": self.uid,
            "from": self.from,
            "from_id": self.from_id,
            "to": self.to,
            "to_id": self.to_id,
            "topic": self.topic,
            "class": self.class,
            "overflow": self.overflow,
            "slots": self.slots,
            "depth": self.depth,
            "sent": self.sent,
            "sent_bytes": self.sent_bytes,
            "dropped": self.dropped,
            "full": self.full,
            "cut_off": self.cut_off,
            "sender_sleeps": self.sender_sleeps,
            "sender_wakes": self.sender_wakes,
            "received": self.received,
            "received_bytes": self.received_bytes,
            "lost": self.lost,
            "refused": self.refused,
            "receiver_sleeps": self.receiver_sleeps,
            "receiver_wakes": self.receiver_wakes,
            "latency_ns": latency_json(&self.latency),
        })
    }
}

/// Quantiles for people and programs; `null` without samples.
pub fn latency_json(buckets: &[(u64, u64)]) -> Value {
    if latency_samples(buckets) == 0 {
        return Value::Null;
    }
    json!({
        "samples": latency_samples(buckets),
        "p50": latency_at(buckets, 0.5),
        "p90": latency_at(buckets, 0.9),
        "p99": latency_at(buckets, 0.99),
        "p999": latency_at(buckets, 0.999),
        "max": latency_at(buckets, 1.0),
    })
}

/// Which messages [`BusProxy::tap`] tells of. A key that the daemon does not know refuses the call.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct TapOptions {
    /// Sent or received by the agent of this name or id.
    pub agent: Option<String>,
    /// Published to a topic that this pattern covers.
    pub topic: Option<String>,
    /// Not messages as they are routed, but what happens to those in the work queues of this name.
    pub queue: Option<String>,
}

/// A message from the user. A key that the daemon does not know refuses the call.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct BusMessage {
    /// Of at most 64 bytes: what a receiver tells messages apart by; `message` when absent.
    pub kind: Option<String>,
    pub data: Vec<u8>,
    /// On behalf of this user; the caller itself when absent. For root only.
    pub uid: Option<u32>,
}

/// A question from the user. A key that the daemon does not know refuses the call.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct BusRequest {
    /// Of 1 to 64 bytes.
    pub method: String,
    pub data: Vec<u8>,
    /// How long to wait for the answer, in milliseconds; 60 s when absent, a day at most.
    pub timeout_ms: Option<u32>,
}

/// An agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct BusReply {
    /// Who answered: name and id.
    pub from: String,
    pub from_id: AgentId,
    pub data: Vec<u8>,
}

/// A right, and for which names or topics it is taken: a pattern in which `*` stands for one segment and a last `#` for
/// the rest. `#` alone is everything.
pub type Revocation = (IpcRight, String);

fn revocations_json(revoked: &[Revocation]) -> Value {
    let shown = revoked
        .iter()
        .map(|(right, pattern)| json!({ "right": right, "pattern": pattern }));
    shown.collect()
}

/// What a change of an agent's rights has closed at once.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct RightsChange {
    pub id: AgentId,
    pub name: String,
    /// All that is taken from the agent now.
    pub revoked: Vec<Revocation>,
    pub lanes: u32,
    /// Logs, and readers of logs.
    pub logs: u32,
    pub subscriptions: u32,
    /// Requests that waited for an answer.
    pub requests: u32,
}

impl RightsChange {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "revoked": revocations_json(&self.revoked),
            "closed": {
                "lanes": self.lanes,
                "logs": self.logs,
                "subscriptions": self.subscriptions,
                "requests": self.requests,
            },
        })
    }
}

/// What the daemon itself holds: two readings show what was left behind in between.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct DaemonUsage {
    /// Open file descriptors of agentd; absent if the kernel does not say.
    pub descriptors: Option<u64>,
    /// Resident memory of agentd, in bytes; absent if the kernel does not say.
    pub resident_bytes: Option<u64>,
    /// Of all users: peers and connections on the bus, lanes and logs, requests without an answer yet.
    pub peers: u32,
    pub connections: u32,
    pub channels: u32,
    pub requests: u32,
}

impl DaemonUsage {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "descriptors": self.descriptors,
            "resident_bytes": self.resident_bytes,
            "peers": self.peers,
            "connections": self.connections,
            "channels": self.channels,
            "requests": self.requests,
        })
    }
}

/// `org.agentd1.Bus` at `/org/agentd1`.
#[zbus::proxy(
    interface = "org.agentd1.Bus",
    default_service = "org.agentd1",
    default_path = "/org/agentd1"
)]
pub trait Bus {
    /// The peers that the caller may see, by user and name.
    fn peers(&self) -> Result<Vec<BusPeer>, Error>;

    /// The lanes and logs between them.
    fn channels(&self) -> Result<Vec<BusChannel>, Error>;

    /// A pipe with a line of JSON for each message that the daemon routes from now on: `seq`, `at_ns` (Unix time),
    /// `uid`, `kind` (send, publish, broadcast, request, response, lane, log), `from`, `from_id`, `to`, `to_id`,
    /// `topic`, `what` (method or type), `bytes`, `correlation`, `outcome`, `receivers`. For a reader that is too slow
    /// a line `{"left_out": N}` stands for N messages. Ends when the reader closes it.
    ///
    /// With `queue`, a line for each step of each message in that work queue instead: `at_ns`, `uid`, `queue`, `message` (its
    /// id), `step` (produced, delivered, acked, extended, nacked, expired, returned, due, dead, requeued, dropped), `why`
    /// (of dead), `by`, `by_id` (who produced it, has or had it, while that one is on the bus), `deliveries`, `bytes`.
    ///
    /// Errors: `NotFound` (the agent), `InvalidArgument` (the pattern, the queue's name, both at once).
    fn tap(&self, options: &TapOptions) -> Result<OwnedFd, Error>;

    /// Publishes to `topic`; the number of queues it was put in.
    ///
    /// Errors: `InvalidArgument`, `Denied` (topics under `agentd.`; another user's bus).
    fn publish(&self, topic: &str, message: &BusMessage) -> Result<u32, Error>;

    /// A pipe with a line of JSON for each message to a topic that `pattern` covers: `topic`, `type`, `from`,
    /// `from_id`, `priority`, `at_ns` (Unix time), `bytes`, and `text` if it is UTF-8, else `base64`. For a reader that
    /// is too slow a line `{"lost": N}` stands for N messages. Ends when the reader closes it. Returns when the
    /// subscription stands. `uid` as in [`BusMessage::uid`], the caller's own for others than root.
    ///
    /// Errors: `InvalidArgument` (the pattern), `Denied`.
    fn subscribe(&self, pattern: &str, uid: u32) -> Result<OwnedFd, Error>;

    /// Puts a message into the inbox of an agent. Returns when it is there.
    ///
    /// Errors: `NotFound`, `Unavailable` (the inbox is full), `InvalidArgument`.
    fn send(&self, agent: &str, message: &BusMessage) -> Result<(), Error>;

    /// Asks an agent and returns its answer.
    ///
    /// Errors: `NotFound`, `Unavailable` (too many requests wait for it, or it has ended), `TimedOut`, `AgentFailed` (with
    /// what it said), `InvalidArgument`.
    fn request(&self, agent: &str, request: &BusRequest) -> Result<BusReply, Error>;

    /// Takes rights of `[ipc]` from a running agent, all four for everything if none is named. What it holds by them
    /// closes at once: both sides see `denied`. Holds until [`BusProxy::restore`] or the agent's end, over restarts of agentd.
    ///
    /// Errors: `NotFound`, `InvalidArgument` (a pattern).
    fn revoke(&self, agent: &str, rights: &[Revocation]) -> Result<RightsChange, Error>;

    /// Gives an agent back all that its policy lets it do.
    ///
    /// Errors: `NotFound`.
    fn restore(&self, agent: &str) -> Result<RightsChange, Error>;

    /// The work queues that the caller may see, by user and name.
    fn queues(&self) -> Result<Vec<BusQueue>, Error>;

    /// The topics that the caller may see, by user and name.
    fn topics(&self) -> Result<Vec<BusTopic>, Error>;

    /// Messages of a queue as they lie, contents included, by id.
    ///
    /// Errors: `NotFound` (the queue), `Denied` (another user's).
    fn peek_queue(&self, name: &str, options: &PeekOptions) -> Result<Vec<BusQueued>, Error>;

    /// Dead letters of these ids, of none: all, go back into their queue as far as there is room; how many did. `uid` as in
    /// [`BusProxy::subscribe`].
    ///
    /// Errors: as [`BusProxy::peek_queue`].
    fn requeue_dead(&self, name: &str, ids: &[u64], uid: u32) -> Result<u32, Error>;

    /// Dead letters of these ids, of none: all, go for good; how many did.
    ///
    /// Errors: as [`BusProxy::peek_queue`].
    fn drop_dead(&self, name: &str, ids: &[u64], uid: u32) -> Result<u32, Error>;

    /// The queue and all that it holds go. Whoever uses it is told.
    ///
    /// Errors: as [`BusProxy::peek_queue`].
    fn drop_queue(&self, name: &str, uid: u32) -> Result<(), Error>;

    /// Stored messages of a durable topic or queue, and from which offset on to ask for more.
    ///
    /// Errors: `Unavailable` (nothing of that name is stored, or there is no store), `Denied` (another user's).
    fn replay(&self, name: &str, options: &ReplayOptions) -> Result<(u64, Vec<BusQueued>), Error>;

    /// What agentd holds, for whoever looks for leaks.
    fn usage(&self) -> Result<DaemonUsage, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_the_highest_value_of_their_bucket() {
        let buckets = [(100, 50), (200, 49), (1_000, 1)];
        assert_eq!(latency_at(&buckets, 0.0), Some(100));
        assert_eq!(latency_at(&buckets, 0.5), Some(100));
        assert_eq!(latency_at(&buckets, 0.51), Some(200));
        assert_eq!(latency_at(&buckets, 0.99), Some(200));
        assert_eq!(latency_at(&buckets, 1.0), Some(1_000));
        assert_eq!(latency_at(&[], 0.5), None);
        assert_eq!(latency_json(&[]), Value::Null);
    }

    #[test]
    fn figures_of_a_hostile_side_do_not_overflow() {
        let buckets = [(1, u64::MAX), (2, u64::MAX)];
        assert_eq!(latency_samples(&buckets), u64::MAX);
        assert!(latency_at(&buckets, 1.0).is_some());
    }

    #[test]
    fn a_difference_has_only_what_came_after() {
        let before = [(1, 5), (4, 1)];
        let now = [(1, 5), (2, 3), (4, 2)];
        assert_eq!(latency_since(&now, &before), [(2, 3), (4, 1)]);
        assert_eq!(
            latency_since(&before, &now),
            [],
            "a channel that began anew"
        );
    }
}
