//! What a client and the bus say about work queues: how one is declared, and batches of messages, deliveries and tags.
//!
//! A batch is one frame with many messages, so that what a message costs is two copies and no frame of its own. The
//! views here are checked once, when they are parsed, and walked without failing afterwards. Pure; untrusted
//! bytes; fails with [`MessageError`].

#![forbid(unsafe_code)]

use super::{MessageError, QUEUE_NAME_MAX};
use crate::channel::Class;
use crate::wire::Reader;

/// What happens to a message for which a queue has no room. Declared with the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Full {
    /// The producer is told `QUEUE_FULL`, and how many of its batch were taken.
    #[default]
    Reject,
    /// The oldest message that nobody holds makes room; it becomes a dead letter of that reason.
    DropOldest,
    /// Nothing more is read from the producer's connection until there is room.
    Block,
}

impl Full {
    /// The value on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::Reject => 0,
            Self::DropOldest => 1,
            Self::Block => 2,
        }
    }

    /// The policy of that value.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Reject,
            1 => Self::DropOldest,
            2 => Self::Block,
            _ => return None,
        })
    }

    /// The word used in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reject => "reject",
            Self::DropOldest => "drop-oldest",
            Self::Block => "block",
        }
    }
}

/// Bounds and promises of a work queue. In a declaration 0 means the default.
///
/// `flags u8 (1 durable) · full u8 · class u8 · 0 u8 · max_messages u32 · max_bytes u64 · visibility_ms u32 ·
/// max_deliver u32 · dead_messages u32`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    /// A message is stored before it is acknowledged or delivered, and there again after a restart.
    pub durable: bool,
    pub full: Full,
    /// Which of several queues that one connection consumes is served first.
    pub class: Class,
    /// Messages and bytes that the queue holds, those in consumers' hands included, dead letters not.
    pub max_messages: u32,
    pub max_bytes: u64,
    /// How long a consumer may hold a message before another gets it, milliseconds.
    pub visibility_ms: u32,
    /// Deliveries after which a message that was not acknowledged becomes a dead letter.
    pub max_deliver: u32,
    /// Dead letters kept; beyond that the oldest goes.
    pub dead_messages: u32,
}

impl Default for QueueSpec {
    fn default() -> Self {
        Self {
            durable: false,
            full: Full::Reject,
            class: Class::Normal,
            max_messages: 65_536,
            max_bytes: 64 << 20,
            visibility_ms: 30_000,
            max_deliver: 5,
            dead_messages: 1024,
        }
    }
}

impl QueueSpec {
    /// Bytes of a spec on the wire.
    pub const LEN: usize = 28;

    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let flags = reader.u8("queue flags")?;
        if flags & !1 != 0 {
            return Err(MessageError::Unknown {
                what: "queue flags",
                found: flags.into(),
                known: "1 durable",
            });
        }
        let full = reader.u8("full policy")?;
        let class = reader.u8("class")?;
        reader.zero(1, "queue field at 3")?;
        Ok(Self {
            durable: flags & 1 != 0,
            full: Full::from_code(full).ok_or(MessageError::Unknown {
                what: "full policy",
                found: full.into(),
                known: "0 reject, 1 drop-oldest, 2 block",
            })?,
            class: Class::from_code(class).ok_or(MessageError::Unknown {
                what: "class",
                found: class.into(),
                known: "0 bulk, 1 normal, 2 high, 3 control",
            })?,
            max_messages: reader.u32("max messages")?,
            max_bytes: reader.u64("max bytes")?,
            visibility_ms: reader.u32("visibility time-out")?,
            max_deliver: reader.u32("max deliver")?,
            dead_messages: reader.u32("dead messages")?,
        })
    }

    /// With the default in place of each 0.
    #[must_use]
    pub fn filled(self) -> Self {
        let default = Self::default();
        Self {
            max_messages: or(self.max_messages, default.max_messages),
            max_bytes: match self.max_bytes {
                0 => default.max_bytes,
                bytes => bytes,
            },
            visibility_ms: or(self.visibility_ms, default.visibility_ms),
            max_deliver: or(self.max_deliver, default.max_deliver),
            dead_messages: or(self.dead_messages, default.dead_messages),
            ..self
        }
    }

    pub(super) fn encode_into(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[
            u8::from(self.durable),
            self.full.code(),
            self.class as u8,
            0,
        ]);
        out.extend_from_slice(&self.max_messages.to_le_bytes());
        out.extend_from_slice(&self.max_bytes.to_le_bytes());
        for value in [self.visibility_ms, self.max_deliver, self.dead_messages] {
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}

fn or(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

/// The rest, as the name of a queue or group.
pub(super) fn parse_name<'a>(
    reader: &mut Reader<'a>,
    what: &'static str,
) -> Result<&'a str, MessageError> {
    let bytes = reader.rest();
    Reader::new(bytes).text(bytes.len(), QUEUE_NAME_MAX, what)
}

/// Bytes in front of each message of a [`Messages`] batch: `len u32 · priority u8 · 0 u8 · 0 u16`.
pub const MESSAGE_HEADER: usize = 8;
/// Bytes in front of each message of a [`Deliveries`] batch.
pub const DELIVERY_HEADER: usize = 40;
/// Most messages in one batch of any kind.
pub const BATCH_MAX: usize = 4096;

/// Messages for a queue, one after the other. Built by [`BatchBuilder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Messages<'a> {
    bytes: &'a [u8],
    count: u32,
    data_bytes: u64,
}

/// One message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueMessage<'a> {
    pub priority: u8,
    pub data: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Checks a whole batch of untrusted bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let (mut count, mut data_bytes, mut rest) = (0u32, 0u64, bytes);
        while !rest.is_empty() {
            let Some((header, body)) = rest.split_first_chunk::<MESSAGE_HEADER>() else {
                return Err(MessageError::Short {
                    what: "message header",
                    need: MESSAGE_HEADER,
                    have: rest.len(),
                });
            };
            let [a, b, c, d, priority, zero @ ..] = *header;
            check_priority(priority)?;
            if zero != [0; 3] {
                return Err(MessageError::Reserved {
                    what: "message field at 5",
                });
            }
            let len = u32::from_le_bytes([a, b, c, d]) as usize;
            let Some(after) = body.get(len..) else {
                return Err(MessageError::Short {
                    what: "message",
                    need: len,
                    have: body.len(),
                });
            };
            count += 1;
            data_bytes += len as u64;
            rest = after;
        }
        check_count(count as usize, "messages")?;
        Ok(Self {
            bytes,
            count,
            data_bytes,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all messages, their headers left out.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// As on the wire.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The messages, in order.
    pub fn iter(&self) -> MessagesIter<'a> {
        MessagesIter { rest: self.bytes }
    }
}

impl<'a> IntoIterator for Messages<'a> {
    type Item = QueueMessage<'a>;
    type IntoIter = MessagesIter<'a>;

    fn into_iter(self) -> MessagesIter<'a> {
        self.iter()
    }
}

/// See [`Messages::iter`].
#[derive(Clone, Debug)]
pub struct MessagesIter<'a> {
    rest: &'a [u8],
}

impl<'a> MessagesIter<'a> {
    /// What is left, as on the wire.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for MessagesIter<'a> {
    type Item = QueueMessage<'a>;

    #[inline]
    fn next(&mut self) -> Option<QueueMessage<'a>> {
        // The batch was checked as a whole: this only ends at its end.
        let ([a, b, c, d, priority, ..], body) = self.rest.split_first_chunk::<MESSAGE_HEADER>()?;
        let len = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let (data, rest) = body.split_at_checked(len)?;
        self.rest = rest;
        Some(QueueMessage {
            priority: *priority,
            data,
        })
    }
}

/// The verb of [`Control::Produce`](super::Control::Produce).
const PRODUCE: u8 = 25;

/// Puts messages into a batch.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// Of the produce command in front of the messages.
    head: usize,
    bytes: Vec<u8>,
    count: usize,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch that is the produce command for a queue, in the memory of one that is done with.
    pub(crate) fn command_for(queue: u32, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.extend_from_slice(&[PRODUCE, 0, 0, 0]);
        bytes.extend_from_slice(&queue.to_le_bytes());
        Self {
            head: bytes.len(),
            bytes,
            count: 0,
        }
    }

    /// The command, with what was put in so far.
    pub(crate) fn into_command(self) -> Vec<u8> {
        self.bytes
    }

    /// Adds one message. `false`: the batch has [`BATCH_MAX`] already, or the priority is over 3.
    #[must_use]
    pub fn push(&mut self, priority: u8, data: &[u8]) -> bool {
        let Ok(len) = u32::try_from(data.len()) else {
            return false;
        };
        if self.count >= BATCH_MAX || priority > 3 {
            return false;
        }
        self.bytes.reserve(MESSAGE_HEADER + data.len());
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(&[priority, 0, 0, 0]);
        self.bytes.extend_from_slice(data);
        self.count += 1;
        true
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes on the wire so far.
    pub fn wire_len(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// Begins anew with the same memory.
    pub fn clear(&mut self) {
        self.bytes.truncate(self.head);
        self.count = 0;
    }

    /// The batch as it is.
    pub fn messages(&self) -> Messages<'_> {
        Messages {
            bytes: &self.bytes[self.head..],
            count: self.count as u32,
            data_bytes: (self.wire_len() - self.count * MESSAGE_HEADER) as u64,
        }
    }
}

/// One message in a consumer's hands:
/// `tag u64 · id u64 · sent_ns u64 · len u32 · from u32 · deliveries u16 · priority u8 · flags u8 · 0 u32 · data`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDelivery<'a> {
    /// Names this delivery to whoever acknowledges it; means nothing on another connection.
    pub tag: u64,
    /// Names the message in its queue for good; counts up. In a durable queue its offset.
    pub id: u64,
    /// When it was produced, nanoseconds since the Unix epoch.
    pub sent_ns: u64,
    /// The producer's short id.
    pub from: u32,
    /// Which delivery of this message it is, from 1.
    pub deliveries: u16,
    pub priority: u8,
    /// It was there before a restart, so it may have been delivered before.
    pub restored: bool,
    pub data: &'a [u8],
}

impl<'a> QueueDelivery<'a> {
    /// Writes header and data to the start of `out`; the bytes that are left.
    ///
    /// # Panics
    /// If `out` is shorter than [`DELIVERY_HEADER`] and the data.
    pub fn write<'o>(&self, out: &'o mut [u8]) -> &'o mut [u8] {
        let (head, rest) = out
            .split_first_chunk_mut::<DELIVERY_HEADER>()
            .expect("the caller made room");
        head[0..8].copy_from_slice(&self.tag.to_le_bytes());
        head[8..16].copy_from_slice(&self.id.to_le_bytes());
        head[16..24].copy_from_slice(&self.sent_ns.to_le_bytes());
        head[24..28].copy_from_slice(&(self.data.len() as u32).to_le_bytes());
        head[28..32].copy_from_slice(&self.from.to_le_bytes());
        head[32..34].copy_from_slice(&self.deliveries.to_le_bytes());
        head[34] = self.priority;
        head[35] = u8::from(self.restored);
        head[36..40].fill(0);
        let (data, rest) = rest.split_at_mut(self.data.len());
        data.copy_from_slice(self.data);
        rest
    }

    fn read(bytes: &mut &'a [u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(bytes);
        let tag = reader.u64("tag")?;
        let id = reader.u64("message id")?;
        let sent_ns = reader.u64("time of sending")?;
        let len = reader.u32("length")?;
        let from = reader.u32("sender")?;
        let deliveries = reader.u16("deliveries")?;
        let priority = reader.u8("priority")?;
        check_priority(priority)?;
        let flags = reader.u8("delivery flags")?;
        if flags > 1 {
            return Err(MessageError::Reserved {
                what: "delivery flags above bit 0",
            });
        }
        reader.zero(4, "delivery field at 36")?;
        let data = reader.bytes(len as usize, "message")?;
        *bytes = reader.rest();
        Ok(Self {
            tag,
            id,
            sent_ns,
            from,
            deliveries,
            priority,
            restored: flags == 1,
            data,
        })
    }
}

/// Messages in a consumer's hands, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deliveries<'a> {
    bytes: &'a [u8],
}

impl<'a> Deliveries<'a> {
    /// Checks a whole batch of untrusted bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        let (mut count, mut rest) = (0, bytes);
        while !rest.is_empty() {
            QueueDelivery::read(&mut rest)?;
            count += 1;
        }
        check_count(count, "deliveries")?;
        Ok(Self { bytes })
    }

    /// As on the wire.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The messages, in order.
    pub fn iter(&self) -> impl Iterator<Item = QueueDelivery<'a>> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| QueueDelivery::read(&mut rest).ok())?
        })
    }
}

/// What a consumer says became of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done: it is never delivered again.
    Ack,
    /// Not done: it is delivered again, not before this many milliseconds.
    Nack { delay_ms: u32 },
    /// Still at it: this many milliseconds from now until another gets it.
    Extend { visibility_ms: u32 },
    /// Can't be done by anyone: it becomes a dead letter.
    Reject,
}

impl Outcome {
    pub(super) fn parse(reader: &mut Reader<'_>) -> Result<Self, MessageError> {
        let code = reader.u8("outcome")?;
        reader.zero(3, "settle field at 5")?;
        let millis = reader.u32("milliseconds")?;
        let reserved = |outcome| {
            if millis == 0 {
                Ok(outcome)
            } else {
                Err(MessageError::Reserved {
                    what: "milliseconds of this outcome",
                })
            }
        };
        match code {
            0 => reserved(Self::Ack),
            1 => Ok(Self::Nack { delay_ms: millis }),
            2 => Ok(Self::Extend {
                visibility_ms: millis,
            }),
            3 => reserved(Self::Reject),
            found => Err(MessageError::Unknown {
                what: "outcome",
                found: found.into(),
                known: "0 ack, 1 nack, 2 extend, 3 reject",
            }),
        }
    }

    pub(super) fn encode_into(self, out: &mut Vec<u8>) {
        let (code, millis) = match self {
            Self::Ack => (0, 0),
            Self::Nack { delay_ms } => (1, delay_ms),
            Self::Extend { visibility_ms } => (2, visibility_ms),
            Self::Reject => (3, 0),
        };
        out.extend_from_slice(&[code, 0, 0, 0]);
        out.extend_from_slice(&u32::to_le_bytes(millis));
    }
}

/// Eight-byte numbers, one after the other: tags of deliveries, ids of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers<'a> {
    bytes: &'a [u8],
}

impl<'a> Numbers<'a> {
    /// Checks that these are whole numbers, and not too many.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, MessageError> {
        if !bytes.len().is_multiple_of(8) {
            return Err(MessageError::Short {
                what: "last number",
                need: 8,
                have: bytes.len() % 8,
            });
        }
        check_count(bytes.len() / 8, "numbers")?;
        Ok(Self { bytes })
    }

    /// As on the wire.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / 8
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> + use<'a> {
        self.bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|chunk| u64::from_le_bytes(*chunk))
    }
}

/// Which of a queue's messages a peek shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueuePart {
    /// Waiting, delayed or in a consumer's hands.
    Live,
    Dead,
}

/// What becomes of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadAction {
    /// Back into the queue, as if never delivered.
    Requeue,
    /// Gone for good.
    Drop,
}

fn check_priority(priority: u8) -> Result<(), MessageError> {
    if priority > 3 {
        return Err(MessageError::Unknown {
            what: "priority",
            found: priority.into(),
            known: "0 to 3",
        });
    }
    Ok(())
}

fn check_count(count: usize, what: &'static str) -> Result<(), MessageError> {
    if count > BATCH_MAX {
        return Err(MessageError::TooMany {
            what,
            count,
            limit: BATCH_MAX,
        });
    }
    Ok(())
}
