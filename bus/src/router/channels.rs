//! What lanes and logs have in common: numbers, ends, limits, and the news of them for the daemon.
//!
//! The bus carries the descriptors of a channel's memories and tells each side when the other has gone; the
//! messages themselves never come here. A channel is over at once, but *ended* only when both sides have let
//! go of it: until then its reader may still be taking what was committed, and the daemon's count of what was
//! never read would be wrong.
//!
//! Nothing here waits or can fail; every table is bounded by [`super::Limits`].

use std::collections::BTreeMap;

use crate::channel::{SocketOnly, Tier};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Shape, Status};
use crate::view::Unread;

use super::dispatch::Refusal;
use super::{ConnId, ConnKind, Effects, MessageMeta, Now, Router};

/// What stands for a file descriptor: a share of one in the daemon, a number in tests.
pub trait Descriptor: Clone + std::fmt::Debug {
    /// Size of the memory behind it, bytes; 0 for an eventfd. Whoever makes the value has asked the kernel.
    fn bytes(&self) -> u64;
}

/// For a bus that carries none.
impl Descriptor for () {
    fn bytes(&self) -> u64 {
        0
    }
}

/// What kind of channel a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// From one agent to one other.
    Lane,
    /// A log as its producer has it, whoever reads it.
    Log,
    /// One reader of log `log`.
    FollowedLog { log: u32 },
}

impl ChannelKind {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Log => "log",
            Self::FollowedLog { .. } => "followed-log",
        }
    }
}

/// A channel that has come into use, with shares of its memories for the daemon to look at.
#[derive(Clone, Debug)]
pub struct ChannelOpened<F> {
    /// Its number, as both sides know it.
    pub id: u32,
    pub kind: ChannelKind,
    /// Whose agents.
    pub uid: u32,
    pub from: (PeerId, String),
    /// `None` for a log as such.
    pub to: Option<(PeerId, String)>,
    /// `None` for a lane.
    pub topic: Option<String>,
    pub shape: Shape,
    /// Its producer waits for this reader: true of a lane, unless it drops its oldest messages.
    pub reliable: bool,
    pub data: F,
    /// `None` for a log as such.
    pub cursor: Option<F>,
}

/// News of shared memory.
#[derive(Clone, Debug)]
pub enum ChannelEvent<F> {
    Opened(ChannelOpened<F>),
    /// Both sides have let go: what is unread now stays unread.
    Ended {
        id: u32,
        status: Status,
    },
}

/// How many of each were closed because they are no longer allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    pub lanes: u32,
    /// Logs, and readers of logs.
    pub logs: u32,
    /// Subscriptions and follows.
    pub subscriptions: u32,
    pub requests: u32,
}

/// One side of a channel.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub peer: PeerId,
    /// `None` once that side has let go.
    pub conn: Option<ConnId>,
}

/// An open lane, or one reader of a log.
#[derive(Debug)]
pub(super) struct Channel<F> {
    pub kind: ChannelKind,
    pub producer: End,
    pub consumer: End,
    /// Why it is over; `None` while it is not.
    pub over: Option<Status>,
    pub bells: Bells,
    /// A lane's own; a log keeps those of all its readers.
    pub segments: Segments<F>,
}

/// Whose eventfd has gone to the other side.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bells {
    pub reader: bool,
    pub producer: bool,
}

/// The segments of one arena.
#[derive(Debug)]
pub(super) struct Segments<F> {
    pub held: BTreeMap<u32, Segment<F>>,
}

#[derive(Debug)]
pub(super) struct Segment<F> {
    /// For readers that come later; a lane has none.
    pub memory: Option<F>,
    pub bytes: u64,
    pub sealed: bool,
}

impl<F> Default for Segments<F> {
    fn default() -> Self {
        Self {
            held: BTreeMap::new(),
        }
    }
}

impl<F> Segments<F> {
    pub fn bytes(&self) -> u64 {
        self.held.values().map(|segment| segment.bytes).sum()
    }
}

impl<F: Descriptor> Router<F> {
    /// How the messages of `peer` travel, and why.
    pub fn tier(&self, peer: PeerId) -> Tier {
        let Some(entry) = self.peers.get(&peer) else {
            return Tier::Socket(SocketOnly::NotConnected);
        };
        if !entry.access.may_share_memory() {
            return Tier::Socket(SocketOnly::Policy);
        }
        let mut sockets = entry
            .conns
            .iter()
            .map(|id| &self.conns[id])
            .filter(|conn| conn.kind == ConnKind::Socket && conn.greeted)
            .peekable();
        if sockets.peek().is_none() {
            Tier::Socket(SocketOnly::NotConnected)
        } else if sockets.any(|conn| conn.shares_memory) {
            Tier::SharedMemory
        } else {
            Tier::Socket(SocketOnly::Incapable)
        }
    }

    /// Puts on record what the reader of a channel left behind.
    pub fn note_unread<T>(
        &mut self,
        channel: &ChannelOpened<T>,
        unread: Unread,
        status: Status,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let Unread { messages, bytes } = unread;
        let what = match &channel.topic {
            None => format!("{messages} messages of a lane were never read"),
            Some(topic) => format!("{messages} messages of log {topic} were never read"),
        };
        let seq = self.next_seq;
        self.next_seq += self.seq_step;
        fx.record.push(MessageMeta {
            seq,
            uid: Some(channel.uid),
            from: channel.from.0,
            from_name: channel.from.1.as_str().into(),
            to: channel
                .to
                .as_ref()
                .map(|(id, name)| (*id, name.as_str().into())),
            topic: None,
            kind: "dead-letter",
            what: what.into(),
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            correlation: channel.id,
            at_ns: now.wall_ns,
            outcome: status,
            receivers: 0,
        });
    }

    /// Bytes of the segments that go with channel or log `id`.
    pub fn bulk_bytes(&self, id: u32) -> u64 {
        if let Some(log) = self.logs.get(&id) {
            return log.segments.bytes();
        }
        match self.channels.get(&id) {
            Some(channel) => match channel.kind {
                ChannelKind::FollowedLog { log } => self.bulk_bytes(log),
                ChannelKind::Lane | ChannelKind::Log => channel.segments.bytes(),
            },
            None => 0,
        }
    }

    /// Whether `peer` may have anything mapped.
    pub(super) fn may_share(&self, peer: PeerId) -> Result<(), Refusal> {
        let entry = &self.peers[&peer];
        if entry.access.may_share_memory() {
            return Ok(());
        }
        let text = format!(
            "the policy of {} has [ipc] shared_memory = false: its messages go through the socket",
            entry.name
        );
        Err(Refusal::new(Status::UNSUPPORTED, text))
    }

    /// A number that nothing else has.
    pub(super) fn fresh_number(&mut self) -> u32 {
        loop {
            let candidate = self.next_wire;
            self.next_wire = self.next_wire.wrapping_add(1).max(1);
            if !self.pending.contains_key(&candidate)
                && !self.channels.contains_key(&candidate)
                && !self.logs.contains_key(&candidate)
                && !self.follows.contains_key(&candidate)
                && !self.queues.contains_key(&candidate)
                && !self.routes.contains_key(&candidate)
            {
                return candidate;
            }
        }
    }

    /// Bytes of shared memory that a connection has made others map: all of them can be made to hold it.
    pub(super) fn shared_bytes(&self, id: ConnId) -> u64 {
        let lanes = self
            .channels
            .values()
            .filter(|channel| channel.producer.conn == Some(id))
            .map(|channel| channel.segments.bytes());
        let logs = self
            .logs
            .values()
            .filter(|log| log.conn == id)
            .map(|log| log.data.bytes() + log.segments.bytes());
        lanes.sum::<u64>() + logs.sum::<u64>()
    }

    /// A client says that it is done with something of that number.
    pub(super) fn channel_closed_by(
        &mut self,
        id: ConnId,
        number: u32,
        status: Status,
        fx: &mut Effects<F>,
    ) {
        // The bus's own words (gone, denied) are not for agents to say, but for one: a reader that is too slow
        // is cut off by its producer.
        let allowed = !status.is_bus_only() || status == Status::QUEUE_FULL;
        let status = if allowed { status } else { Status::OK };
        if self.logs.get(&number).is_some_and(|log| log.conn == id) {
            self.close_log(number, status, fx);
            return;
        }
        if self.route_closed_by(id, number, fx) {
            return;
        }
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let is_producer = channel.producer.conn == Some(id);
        let is_consumer = channel.consumer.conn == Some(id);
        // One connection may be both; then it says so twice, the producer's end first.
        if is_producer {
            channel.producer.conn = None;
        } else if is_consumer {
            channel.consumer.conn = None;
        } else {
            return;
        }
        self.close_channel(number, status, fx);
    }

    /// Closes a channel whose sides still hold it, or of which one has let go: whoever is left is told, once.
    pub(super) fn close_channel(&mut self, number: u32, status: Status, fx: &mut Effects<F>) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let first = channel.over.is_none();
        let why = *channel.over.get_or_insert(status);
        let (producer, consumer) = (channel.producer.conn, channel.consumer.conn);
        // What a log's producer still writes is no concern of a reader that has left.
        let left = matches!(channel.kind, ChannelKind::FollowedLog { .. }) && consumer.is_none();
        if first {
            for conn in producer.into_iter().chain(consumer) {
                self.tell_closed(conn, number, why, fx);
            }
        }
        if left || (producer.is_none() && consumer.is_none()) {
            self.channels.remove(&number);
            fx.channels.push(ChannelEvent::Ended {
                id: number,
                status: why,
            });
        }
    }

    /// A connection has gone, and its ends of everything with it.
    pub(super) fn drop_ends_of(&mut self, id: ConnId, fx: &mut Effects<F>) {
        self.follows.retain(|_, follow| follow.conn != id);
        let logs: Vec<u32> = self
            .logs
            .iter()
            .filter(|(_, log)| log.conn == id)
            .map(|(number, _)| *number)
            .collect();
        for number in logs {
            self.close_log(number, Status::PEER_GONE, fx);
        }
        let mut touched = Vec::new();
        for (number, channel) in &mut self.channels {
            let mut mine = false;
            for end in [&mut channel.producer, &mut channel.consumer] {
                if end.conn == Some(id) {
                    end.conn = None;
                    mine = true;
                }
            }
            if mine {
                touched.push(*number);
            }
        }
        touched.sort_unstable();
        for number in touched {
            self.close_channel(number, Status::PEER_GONE, fx);
        }
    }

    pub(super) fn tell_closed(
        &mut self,
        to: ConnId,
        channel: u32,
        status: Status,
        fx: &mut Effects<F>,
    ) {
        let payload = Control::ChannelClosed { channel, status }
            .encode()
            .expect("fixed size");
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, channel, payload);
        self.push_must(to, frame, None, fx);
    }

    /// Answers a message about a channel if its sender wants to know; tells it of a refusal in any case.
    pub(super) fn acknowledge(
        &mut self,
        id: ConnId,
        correlation: u32,
        channel: u32,
        outcome: Result<(), Refusal>,
        fx: &mut Effects<F>,
    ) {
        match outcome {
            Ok(()) if correlation == 0 => {}
            Ok(()) => self.answer(id, correlation, Status::OK, "", &[], fx),
            // A notice under 0 would be taken for the bus's last words.
            Err(refusal) if correlation == 0 => {
                self.notice(id, channel.max(1), refusal.status, &refusal.text, fx)
            }
            Err(refusal) => self.answer(id, correlation, refusal.status, &refusal.text, &[], fx),
        }
    }
}
