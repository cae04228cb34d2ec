//! What a client and the bus say about topics that are kept: how one is declared, and what a replay gives.
//!
//! Pure; untrusted bytes; fails with [`MessageError`].

#![forbid(unsafe_code)]

use super::MessageError;
use crate::frame::PeerId;
use crate::wire::Reader;

/// What the bus keeps of a topic.
///
/// `retain u16 · flags u8 (1 durable) · 0 u8 · max_age_s u32 · max_bytes u64`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TopicSpec {
    /// The last so many messages are given to whoever subscribes later; 0: only what publishers flag, the last one.
    pub retain: u16,
    /// Messages are stored before they are acknowledged or delivered, and can be replayed.
    pub durable: bool,
    /// A durable topic keeps a message at most this long (0: for ever), seconds,
    pub max_age_s: u32,
    /// and at most this much of it (0: no bound of its own), bytes.
    pub max_bytes: u64,
}

impl TopicSpec {
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let retain = reader.u16("retain")?;
        let flags = reader.u8("topic flags")?;
        if flags & !1 != 0 {
            return Err(MessageError::Unknown {
                what: "topic flags",
                found: flags.into(),
                known: "1 durable",
            });
        }
        reader.zero(1, "topic field at 3")?;
        Ok(Self {
            retain,
            durable: flags == 1,
            max_age_s: reader.u32("max age")?,
            max_bytes: reader.u64("max bytes")?,
        })
    }

    pub(super) fn encode_into(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.retain.to_le_bytes());
        out.extend_from_slice(&[u8::from(self.durable), 0]);
        out.extend_from_slice(&self.max_age_s.to_le_bytes());
        out.extend_from_slice(&self.max_bytes.to_le_bytes());
    }
}

/// A durable topic, or the messages of a durable queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamKind {
    Queue,
    Topic,
}

impl StreamKind {
    /// The value on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Queue => 1,
            Self::Topic => 2,
        }
    }

    /// The word used in listings and file names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Topic => "topic",
        }
    }
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayFrom {
    Offset(u64),
    /// The first message at or after that time, nanoseconds since the Unix epoch.
    TimeNs(u64),
}

/// `kind u8 · by u8 (1 offset, 2 time) · 0 u16`, then `max u32 · from u64`
pub(super) fn parse_replay(
    reader: &mut Reader<'_>,
) -> Result<(StreamKind, ReplayFrom, u32), MessageError> {
    let kind = match reader.u8("stream kind")? {
        1 => StreamKind::Queue,
        2 => StreamKind::Topic,
        found => {
            return Err(MessageError::Unknown {
                what: "stream kind",
                found: found.into(),
                known: "1 queue, 2 topic",
            });
        }
    };
    let by = reader.u8("replay by")?;
    reader.zero(2, "replay field at 2")?;
    let max = reader.u32("max")?;
    let at = reader.u64("from")?;
    let from = match by {
        1 => ReplayFrom::Offset(at),
        2 => ReplayFrom::TimeNs(at),
        found => {
            return Err(MessageError::Unknown {
                what: "replay by",
                found: found.into(),
                known: "1 offset, 2 time",
            });
        }
    };
    Ok((kind, from, max))
}

pub(super) fn encode_replay(kind: StreamKind, from: ReplayFrom, max: u32, out: &mut Vec<u8>) {
    let (by, at) = match from {
        ReplayFrom::Offset(at) => (1, at),
        ReplayFrom::TimeNs(at) => (2, at),
    };
    out.extend_from_slice(&[kind.code(), by, 0, 0]);
    out.extend_from_slice(&max.to_le_bytes());
    out.extend_from_slice(&at.to_le_bytes());
}

/// One stored message in the answer to a replay:
/// `offset u64 · at_ns u64 · from 16 · len u32 · priority u8 · 0 u8 · 0 u16 · data`
///
/// The data of a topic's message is the payload of its event, that of a queue's the message itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replayed {
    pub offset: u64,
    /// When the bus took it, nanoseconds since the Unix epoch.
    pub at_ns: u64,
    pub from: PeerId,
    pub priority: u8,
    pub data: Vec<u8>,
}

impl Replayed {
    /// Bytes in front of the data.
    pub const HEADER: usize = 40;

    /// Reads the whole answer: the offset to go on from, and the messages.
    pub fn parse_list(bytes: &[u8]) -> Result<(u64, Vec<Self>), MessageError> {
        let mut reader = Reader::new(bytes);
        let next = reader.u64("next offset")?;
        let mut list = Vec::new();
        while !reader.is_empty() {
            let offset = reader.u64("offset")?;
            let at_ns = reader.u64("time")?;
            let from = PeerId(reader.id("sender")?);
            let len = reader.u32("length")?;
            let priority = reader.u8("priority")?;
            reader.zero(3, "replay entry field at 37")?;
            let data = reader.bytes(len as usize, "data")?.to_vec();
            list.push(Self {
                offset,
                at_ns,
                from,
                priority,
                data,
            });
        }
        Ok((next, list))
    }

    /// A record as [`Batch::encoded`](crate::router::Batch::encoded) made it.
    pub fn decode(offset: u64, at_ns: u64, bytes: &[u8]) -> Result<Self, MessageError> {
        let record = crate::router::Restored::decode(offset, at_ns, None, bytes)?;
        Ok(Self {
            offset,
            at_ns,
            from: record.from,
            priority: record.priority,
            data: record.data,
        })
    }

    /// Appends this entry.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.at_ns.to_le_bytes());
        out.extend_from_slice(&self.from.0);
        out.extend_from_slice(&(self.data.len() as u32).to_le_bytes());
        out.extend_from_slice(&[self.priority, 0, 0, 0]);
        out.extend_from_slice(&self.data);
    }
}
