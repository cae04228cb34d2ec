//! What the router asks of a durable store, and what it is told back.
//!
//! The router never waits: it puts [`Persist`] into its effects, goes on with everyone else, and acknowledges and
//! delivers a message only when the caller has said [`Router::persisted`](super::Router::persisted) with the same
//! ticket. The caller carries out what one stream was asked in the order in which it was asked; different streams owe
//! each other nothing. Plain data.

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::frame::PeerId;
use crate::message::{MessageError, Messages, QueueSpec, ReplayFrom, StreamKind, TopicSpec};
use crate::wire::Reader;

/// Names a durable topic or queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    pub uid: u32,
    pub kind: StreamKind,
    pub name: Arc<str>,
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {} of uid {}",
            self.kind.as_str(),
            self.name,
            self.uid
        )
    }
}

/// What a stream is for. Whoever keeps the stream keeps this with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamSpec {
    /// Records stay until they are settled.
    Queue(QueueSpec),
    /// Records stay until they are too old or too many.
    Topic(TopicSpec),
}

/// Messages to append in one go: one producer's batch, or one event.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Who sent them, and when the bus took them (nanoseconds since the Unix epoch).
    pub from: PeerId,
    /// The sender's short id.
    pub short: u32,
    pub at_ns: u64,
    records: Records,
}

#[derive(Clone, Debug)]
enum Records {
    /// The payload of a produce command; its messages are from that byte on.
    Queue { payload: Arc<[u8]>, at: usize },
    /// The payload of an event.
    Event { payload: Arc<[u8]>, priority: u8 },
}

impl Batch {
    pub(super) fn queue(
        from: PeerId,
        short: u32,
        at_ns: u64,
        payload: Arc<[u8]>,
        at: usize,
    ) -> Self {
        debug_assert!(Messages::parse(&payload[at..]).is_ok());
        Self {
            from,
            short,
            at_ns,
            records: Records::Queue { payload, at },
        }
    }

    /// One event of a topic, as its payload.
    pub fn event(from: PeerId, short: u32, at_ns: u64, payload: Arc<[u8]>, priority: u8) -> Self {
        Self {
            from,
            short,
            at_ns,
            records: Records::Event { payload, priority },
        }
    }

    /// A batch of these messages, for tests of a store.
    pub fn of_messages(from: PeerId, at_ns: u64, messages: Messages<'_>) -> Self {
        Self::queue(from, 0, at_ns, messages.as_bytes().into(), 0)
    }

    /// What a store keeps in front of a record's data: `from 16 · short u32 · priority u8 · 0 u8 · 0 u16`. With the data
    /// behind it, that is what [`Restored::decode`] and [`Replayed::decode`](crate::message::Replayed::decode) read.
    pub fn head(&self, priority: u8) -> [u8; RECORD_HEAD] {
        let mut head = [0; RECORD_HEAD];
        head[..16].copy_from_slice(&self.from.0);
        head[16..20].copy_from_slice(&self.short.to_le_bytes());
        head[20] = priority;
        head
    }

    /// The records as a store keeps them, in order.
    pub fn encoded(&self) -> impl Iterator<Item = Arc<[u8]>> {
        self.iter().map(|(priority, data)| {
            let head = self.head(priority);
            let mut record: Arc<[u8]> = std::iter::repeat_n(0, head.len() + data.len()).collect();
            let bytes = Arc::get_mut(&mut record).expect("nobody else has it yet");
            bytes[..head.len()].copy_from_slice(&head);
            bytes[head.len()..].copy_from_slice(data);
            record
        })
    }

    /// How many records there are: at least 1, at most [`crate::message::BATCH_MAX`].
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Never: a batch has a record.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The records, in order: priority and data. Offsets are given in this order without a gap.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let (messages, event) = match &self.records {
            Records::Queue { payload, at } => {
                let messages = Messages::parse(&payload[*at..]).expect("checked when it was made");
                (Some(messages), None)
            }
            Records::Event { payload, priority } => (None, Some((*priority, &payload[..]))),
        };
        messages
            .into_iter()
            .flat_map(Messages::into_iter)
            .map(|message| (message.priority, message.data))
            .chain(event)
    }
}

/// Bytes in front of the data of a stored record.
pub const RECORD_HEAD: usize = 24;

/// Offsets that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetRange {
    pub first: u64,
    pub count: u64,
}

/// Why a message is a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeadReason {
    /// It was delivered as often as its queue allows, and never acknowledged.
    MaxDeliver,
    /// A consumer said that it can't be done.
    Rejected,
    /// The queue was full, and its policy is to drop the oldest.
    Overflow,
}

impl DeadReason {
    /// The value in a store and on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::MaxDeliver => 1,
            Self::Rejected => 2,
            Self::Overflow => 3,
        }
    }

    /// The reason of that value.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::MaxDeliver,
            2 => Self::Rejected,
            3 => Self::Overflow,
            _ => return None,
        })
    }

    /// The word used in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MaxDeliver => "max-deliver",
            Self::Rejected => "rejected",
            Self::Overflow => "overflow",
        }
    }
}

/// What became of a record of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Done or dropped: the store may forget it.
    Gone,
    /// It is a dead letter from now on.
    Dead(DeadReason),
    /// A dead letter no more: it is in the queue again.
    Requeued,
}

/// One thing that the durable store is asked to do. Tickets are never 0 and never used twice.
#[derive(Clone, Debug)]
pub enum Persist {
    /// There is such a stream from now on, or it has other settings. Answered by `persisted` with any offset.
    Declare {
        stream: StreamId,
        ticket: u64,
        spec: StreamSpec,
    },
    /// Answered by `persisted` with the offset of the first record.
    Append {
        stream: StreamId,
        ticket: u64,
        batch: Batch,
    },
    /// Ticket 0: nobody waits for it. Otherwise answered by `persisted` with any offset.
    Settle {
        stream: StreamId,
        ticket: u64,
        offsets: Vec<OffsetRange>,
        how: Settled,
    },
    /// The stream and all that it holds go. Not answered.
    Drop { stream: StreamId },
    /// Answered by `records`: at most `max` records and about `max_bytes` of data.
    Read {
        stream: StreamId,
        ticket: u64,
        from: ReplayFrom,
        max: u32,
        max_bytes: u32,
    },
}

impl Persist {
    /// The stream that it is about.
    pub fn stream(&self) -> &StreamId {
        match self {
            Self::Declare { stream, .. }
            | Self::Append { stream, .. }
            | Self::Settle { stream, .. }
            | Self::Drop { stream }
            | Self::Read { stream, .. } => stream,
        }
    }
}

/// Why something was not stored. The text goes to whoever asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PersistError {
    #[error(
        "there is no durable store: set one up in the configuration, or declare it not durable"
    )]
    NoStore,
    #[error("the store is full: {0}")]
    Full(String),
    #[error("the store failed: {0}")]
    Failed(String),
}

/// A record that was not settled when the last daemon ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub offset: u64,
    pub from: PeerId,
    /// The sender's short id.
    pub short: u32,
    /// When the bus took it, nanoseconds since the Unix epoch.
    pub at_ns: u64,
    pub priority: u8,
    /// It is a dead letter.
    pub dead: Option<DeadReason>,
    pub data: Vec<u8>,
}

impl Restored {
    /// A record as [`Batch::encoded`] made it. Checks the store's bytes as it checks anybody's.
    pub fn decode(
        offset: u64,
        at_ns: u64,
        dead: Option<DeadReason>,
        bytes: &[u8],
    ) -> Result<Self, MessageError> {
        let mut reader = Reader::new(bytes);
        let from = PeerId(reader.id("sender")?);
        let short = reader.u32("short id")?;
        let priority = reader.u8("priority")?;
        if priority > 3 {
            return Err(MessageError::Unknown {
                what: "priority",
                found: priority.into(),
                known: "0 to 3",
            });
        }
        reader.zero(3, "record field at 21")?;
        Ok(Self {
            offset,
            from,
            short,
            at_ns,
            priority,
            dead,
            data: reader.rest().to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{BatchBuilder, Replayed};

    #[test]
    fn records_survive_a_store() {
        let mut messages = BatchBuilder::new();
        assert!(messages.push(0, b"first") && messages.push(3, b""));
        let batch = Batch::of_messages(PeerId([7; 16]), 99, messages.messages());
        let stored: Vec<Arc<[u8]>> = batch.encoded().collect();
        assert_eq!((batch.len(), stored.len()), (2, 2));
        let restored = Restored::decode(5, 99, None, &stored[0]).unwrap();
        assert_eq!(restored.data, b"first");
        assert_eq!((restored.from, restored.priority), (PeerId([7; 16]), 0));
        let replayed = Replayed::decode(6, 99, &stored[1]).unwrap();
        assert_eq!((replayed.offset, replayed.priority), (6, 3));
        assert!(Restored::decode(5, 99, None, &stored[0][..RECORD_HEAD - 1]).is_err());
    }
}
