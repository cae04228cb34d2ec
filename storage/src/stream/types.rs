//! What streams are made of. Plain data, no I/O.

use std::{fmt, ops::Range, time::Duration};

use agentd_segment::{Compression, PAYLOAD_MAX};

use super::{Payload, StreamError};

/// A stream in its store; never used for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

/// Whether records are to be acknowledged one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StreamKind {
    /// Records stay until retention takes them.
    Topic,
    /// Records go when they are settled.
    Queue,
}

impl StreamKind {
    /// As it stands in names of files and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Queue => "queue",
        }
    }

    /// The reverse of [`Self::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "topic" => Some(Self::Topic),
            "queue" => Some(Self::Queue),
            _ => None,
        }
    }
}

/// What identifies a stream to people: whose it is, which kind, and its name on the bus (1 to 128 bytes).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamName {
    /// Whose agents use it.
    pub uid: u32,
    /// Topic or queue.
    pub kind: StreamKind,
    /// The topic or the queue's name.
    pub name: String,
}

impl StreamName {
    /// Longest name, bytes.
    pub const MAX: usize = 128;

    /// # Errors
    /// [`StreamError::BadName`].
    pub(super) fn check(&self) -> Result<(), StreamError> {
        let name = &self.name;
        if name.is_empty() || name.len() > Self::MAX || name.chars().any(char::is_control) {
            return Err(StreamError::BadName { name: name.clone() });
        }
        Ok(())
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?} of uid {}",
            self.kind.as_str(),
            self.name,
            self.uid
        )
    }
}

/// What a stream keeps. The default keeps everything that is not settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Payload bytes as they are stored; the oldest records go first.
    pub max_bytes: Option<u64>,
    /// Since a record was appended.
    pub max_age: Option<Duration>,
}

/// How a stream is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamSpec {
    /// When records are forgotten.
    pub retention: Retention,
    /// For payloads of at least `compress_above` bytes.
    pub compression: Compression,
    /// Smaller payloads are stored as they are.
    pub compress_above: u32,
    /// Whatever else its user wants to find again with the stream; not looked into.
    pub settings: String,
}

impl Default for StreamSpec {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            compression: Compression::None,
            compress_above: 4096,
            settings: String::new(),
        }
    }
}

/// What [`super::StreamStore::declare`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Declared {
    /// For all further calls.
    pub id: StreamId,
    /// It was not there before.
    pub new: bool,
    /// The oldest offset that is kept, and the one that the next record gets.
    pub first: u64,
    /// See `first`.
    pub next: u64,
}

/// A record to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRecord {
    /// When it was sent, nanoseconds since the Unix epoch. Times in a stream never go back: an earlier one than the record
    /// before is stored as that one's.
    pub at_ns: u64,
    /// The bytes; at most [`NewRecord::MAX`].
    pub payload: Payload,
}

impl NewRecord {
    /// Longest payload, bytes.
    pub const MAX: usize = PAYLOAD_MAX;
    /// Payload bytes of one batch.
    pub const MAX_BATCH: usize = 3 << 20;
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// It is done with.
    Done,
    /// It stays, with this mark; 0 takes a mark off again. What marks mean is their maker's business.
    Mark(u8),
}

/// A record as it is read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its place in the stream.
    pub offset: u64,
    /// When it was sent, nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// See [`Settle::Mark`]; 0 without.
    pub mark: u8,
    /// The bytes.
    pub payload: Payload,
}

/// Where reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// At this offset, or the oldest that is kept if it is gone.
    Offset(u64),
    /// At the first record sent at this time (nanoseconds since the Unix epoch) or later.
    Time(u64),
}

/// How much one answer may hold. One record comes even if it is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// Records.
    pub records: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

impl Default for ReadLimit {
    fn default() -> Self {
        Self {
            records: 1024,
            bytes: 1 << 20,
        }
    }
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// In the order of their offsets.
    pub records: Vec<StoredRecord>,
    /// Where to go on; equal to the stream's end when everything was read.
    pub next: u64,
    /// The stream's end: the offset that the next record gets.
    pub end: u64,
    /// Records that are lost, in the stretch that was read.
    pub damaged: Vec<Damage>,
}

/// A stretch of a stream that can't be read any more. Named, never passed over in silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Which records are lost.
    pub offsets: Range<u64>,
    /// The file (or table) and the place in it.
    pub place: String,
    /// What is wrong.
    pub why: String,
}

/// How a stream stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStats {
    /// Its id.
    pub id: StreamId,
    /// Whose, which, what.
    pub name: StreamName,
    /// How it is kept.
    pub spec: StreamSpec,
    /// The oldest offset that is kept.
    pub first: u64,
    /// The offset that the next record gets.
    pub next: u64,
    /// Records not settled yet (of a topic: all that are kept).
    pub unsettled: u64,
    /// Bytes on the disk, preallocated space included.
    pub disk_bytes: u64,
    /// What was found damaged since the start.
    pub damaged: Vec<Damage>,
    /// Why nothing can be appended, if so.
    pub trouble: Option<String>,
}
