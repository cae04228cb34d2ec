//! The ring protocol: how messages get into slots and out again. See the module's parent for the layout.
//!
//! Slots are numbered from 0. Slot `n % capacity` carries sequence `n + 1` once slot number `n` is committed,
//! and before that the sequence of the lap before, `n + 1 - capacity`; fresh memory is formatted as if there
//! had been a lap before. Any other value is the work of a broken or hostile peer. The arithmetic is modulo
//! 2^64, which no machine lives to see.
//!
//! [`producer`] and [`consumer`] have the two ends; here is what both must agree on. No unsafe code; any
//! thread, one at a time per end; nothing blocks but `send` and `recv`.

#![forbid(unsafe_code)]

mod consumer;
mod producer;

pub use consumer::Consumer;
#[cfg(all(test, not(loom)))]
pub(crate) use producer::HEAD_MAX;
pub use producer::{Producer, SettleError};

use super::{
    CURSOR_MAGIC, DATA_MAGIC, EXT_BYTES, INLINE_BYTES, Inline, LayoutError, MESSAGE_MAX,
    ReceiverOptions, SenderOptions, cursor_words, data_words,
};
pub use crate::channel::Tag;
use crate::channel::slot_flags::{EXT, REFERENCE};
use crate::message::Status;
use crate::shm::PAGE_WORDS;
use crate::shm::atomics::Ordering;
use crate::shm::counters::{CAPACITY_WORD, MAGIC_WORD, SETUP_WORD, setup};
use crate::shm::layout::{check_capacity, check_magic, check_setup, check_size};
use crate::shm::region::{LINE_WORDS, Words};

/// Word of a slot that commits it.
const SEQUENCE: usize = 0;
/// Word with length, kind, flags and correlation.
const HEAD: usize = 1;
/// First word of payload in a head slot, and in a further slot.
const INLINE: usize = 2;
const SPILL: usize = 1;

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the lane is full")]
    Full,
    #[error("the lane is full, and its overflow policy drops what finds no room")]
    Dropped,
    #[error(
        "a message of {len} bytes is over this lane's limit of {limit}; send it over the socket"
    )]
    TooLong { len: usize, limit: usize },
    #[error("the lane is closed: {0}")]
    Closed(Status),
    #[error("the consumer's {what} is {found}, not between {low} and {high}")]
    Corrupt {
        what: &'static str,
        found: u64,
        low: u64,
        high: u64,
    },
}

/// Why no message was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    #[error("nothing came in time")]
    TimedOut,
    #[error("the lane is closed: {0}")]
    Closed(Status),
    #[error("slot {slot} holds sequence {found}, which is neither empty nor committed")]
    Sequence { slot: u64, found: u64 },
    #[error("slot {slot} claims {len} bytes, more than the lane can hold")]
    Length { slot: u64, len: usize },
    /// Of a lane that drops its oldest messages.
    #[error("the producer says that it wrote {messages} messages in {slots} slots, which can't be")]
    Position { messages: u64, slots: u64 },
    /// The message is skipped, the lane goes on.
    #[error("the payload in slot {slot} has CRC-32C {found:#010x}, not {expected:#010x}")]
    CheckSum {
        slot: u64,
        found: u32,
        expected: u32,
    },
    /// The message is skipped, the lane goes on.
    #[error(
        "slot {slot} refers to an arena, but this lane is read without one; receive through `arena::BulkReceiver`"
    )]
    Reference { slot: u64 },
}

/// What a message with the EXT flag says besides its tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ext {
    /// When it was sent, CLOCK_MONOTONIC, ns.
    pub sent_ns: u64,
    /// CRC-32C of the payload; 0: none was made. One that is given has been checked.
    pub crc: u32,
    /// The upper flags of a frame.
    pub high_flags: u32,
}

/// A message as the consumer sees it: a copy, which nobody else can change.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    pub tag: Tag,
    /// The number of its first slot.
    pub slot: u64,
    /// The payload is a reference into the sender's arena.
    pub reference: bool,
    pub ext: Option<Ext>,
    pub payload: &'a [u8],
}

/// Slots that a message of `len` bytes takes, with or without EXT.
pub(crate) const fn slots_for(inline: Inline, len: usize, ext: bool) -> usize {
    1 + len
        .saturating_sub(inline_bytes(inline, ext))
        .div_ceil(spill_bytes(inline))
}

/// Payload bytes in a head slot.
pub(crate) const fn inline_bytes(inline: Inline, ext: bool) -> usize {
    if ext {
        inline.bytes() - EXT_BYTES
    } else {
        inline.bytes()
    }
}

/// Payload bytes in each further slot: all but its sequence.
pub(crate) const fn spill_bytes(inline: Inline) -> usize {
    inline.bytes() + 8
}

/// Longest message of a lane with `capacity` slots of that size.
pub const fn message_limit(capacity: usize, inline: Inline) -> usize {
    longest(inline, capacity, false)
}

pub(crate) const fn longest(inline: Inline, capacity: usize, ext: bool) -> usize {
    let ring = inline_bytes(inline, ext) + (capacity - 1) * spill_bytes(inline);
    if ring < MESSAGE_MAX {
        ring
    } else {
        MESSAGE_MAX
    }
}

/// Which cache line of the data memory slot number `n` begins with.
#[inline]
pub(crate) const fn line_of(n: u64, capacity: usize, inline: Inline) -> usize {
    // A shift: the class is known only at run time in most places.
    PAGE_WORDS / LINE_WORDS + ((n as usize & (capacity - 1)) << inline as usize)
}

/// The sequence that commits slot number `n`.
#[inline]
pub(crate) const fn committed(n: u64) -> u64 {
    n.wrapping_add(1)
}

/// The sequence in slot number `n` before it is committed.
#[inline]
pub(crate) const fn empty(n: u64, capacity: usize) -> u64 {
    committed(n).wrapping_sub(capacity as u64)
}

/// The second word of a head slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head(pub u64);

impl Head {
    /// Everything that makes a message other than one slot with nothing but payload in it: a length over the
    /// inline bytes, or one of the channel's own flags, which lie above it.
    const PLAIN_MASK: u32 = 0xFFFF | ((EXT | REFERENCE) as u32) << 24;

    #[inline]
    pub const fn new(tag: Tag, own_flags: u8, len: usize) -> Self {
        let flags = tag.flags & !(EXT | REFERENCE) | own_flags;
        Self(
            len as u64 & 0xFFFF
                | (tag.kind as u64) << 16
                | (flags as u64) << 24
                | (tag.correlation as u64) << 32,
        )
    }

    #[inline]
    pub const fn len(self) -> usize {
        self.0 as u16 as usize
    }

    #[inline]
    pub const fn tag(self) -> Tag {
        Tag {
            kind: (self.0 >> 16) as u8,
            flags: (self.0 >> 24) as u8 & !(EXT | REFERENCE),
            correlation: (self.0 >> 32) as u32,
        }
    }

    pub const fn has(self, own_flag: u8) -> bool {
        (self.0 >> 24) as u8 & own_flag != 0
    }

    /// The length of a message that is up to 48 bytes in one slot, which may be a reference.
    #[inline]
    pub const fn single(self) -> Option<usize> {
        Self(self.0 & !((REFERENCE as u64) << 24)).plain()
    }

    /// The length of a message that is nothing but up to 48 bytes in one slot.
    #[inline]
    pub const fn plain(self) -> Option<usize> {
        self.plain_in(Inline::Small)
    }

    /// The length of a message that is nothing but what one slot of that size holds.
    #[inline]
    pub const fn plain_in(self, inline: Inline) -> Option<usize> {
        let len = self.0 as u32 & Self::PLAIN_MASK;
        if len <= inline.bytes() as u32 {
            Some(len as usize)
        } else {
            None
        }
    }
}

/// The size of slots that a data memory's set-up flags say.
pub(crate) const fn inline_of(setup_flags: u64) -> Inline {
    if setup_flags & setup::WIDE == 0 {
        Inline::Small
    } else {
        Inline::Wide
    }
}

/// The lines that a slot's payload lies in, from word `first` of its first line on: which line, from which word, and how many
/// bytes they hold.
pub(crate) fn parts(inline: Inline, first: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..inline.lines()).map(move |line| {
        let at = if line == 0 { first } else { 0 };
        (line, at, (LINE_WORDS - at) * 8)
    })
}

/// Writes the header of fresh (zeroed) data memory, before it is handed over.
pub fn format_data<D: Words>(
    data: &D,
    capacity: usize,
    options: &SenderOptions,
) -> Result<(), LayoutError> {
    format_data_from(data, capacity, options, 0)
}

/// As [`format_data`], for a lane whose first slot has the number `first`.
pub(in crate::lane) fn format_data_from<D: Words>(
    data: &D,
    capacity: usize,
    options: &SenderOptions,
    first: u64,
) -> Result<(), LayoutError> {
    check_capacity(capacity as u64)?;
    options.check()?;
    let words = data.words();
    check_size(words.len(), data_words(capacity, options.inline))?;
    for n in (first..=u64::MAX).chain(0..).take(capacity) {
        let sequence = line_of(n, capacity, options.inline) * LINE_WORDS + SEQUENCE;
        words[sequence].store(empty(n, capacity), Ordering::Relaxed);
    }
    words[CAPACITY_WORD].store(capacity as u64, Ordering::Relaxed);
    words[SETUP_WORD].store(options.setup_flags(), Ordering::Relaxed);
    words[MAGIC_WORD].store(DATA_MAGIC, Ordering::Relaxed);
    Ok(())
}

/// Writes the header of fresh (zeroed) cursor memory.
pub fn format_cursor<C: Words>(cursor: &C, options: &ReceiverOptions) -> Result<(), LayoutError> {
    let words = cursor.words();
    check_size(words.len(), cursor_words())?;
    words[SETUP_WORD].store(options.setup_flags(), Ordering::Relaxed);
    words[MAGIC_WORD].store(CURSOR_MAGIC, Ordering::Relaxed);
    Ok(())
}
