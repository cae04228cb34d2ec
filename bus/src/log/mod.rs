//! A log: one producer's messages, read by any number of readers, each at its own place.
//!
//! The **data** memory is the producer's: a control page, then slots of 64 bytes as in a lane
//! ([`crate::lane`]). Each reader has a **cursor** memory of its own, one page. Every side can write only its
//! own, which the kernel enforces by seals ([`crate::shm::memfd`]); readers share no writable memory with
//! anybody.
//!
//! * A **lossy** reader that falls behind is overrun: the producer never waits for it and need not read its
//!   page to send. The reader finds out by itself, goes on at the oldest message still there, and is told
//!   with the next message how many it lost, exactly.
//! * A **reliable** reader holds the producer up when it is [`Hold::lag`] slots behind, for
//!   [`Hold::time`] altogether; then it is cut off, and told so.
//!
//! | bytes of a slot | head slot of a message | further slots of it |
//! | --- | --- | --- |
//! | 0-7 | sequence, commits the message | sequence |
//! | 8-15 | length u16, type u8, flags u8, correlation u32 | payload |
//! | 16-63 | the first 48 bytes of payload | payload |
//!
//! The sequence ([`sequence`]) says which message the slot holds, whether it is that message's first slot,
//! and whether it is being written: a slot is marked before it is overwritten, so that whoever copied it
//! meanwhile sees that the copy is worth nothing. A message takes at most half of the ring.
//!
//! Further words of the control pages (the others are in [`crate::shm::counters`]):
//!
//! | word | data page (producer) | cursor page (reader) |
//! | --- | --- | --- |
//! | 3 | number of attachments so far | key: what this reader calls itself |
//! | 4 | series: which logs continue each other; 0: none | where in this page its parked flag is |
//! | 8-10 | slots written; messages written; slots begun | 9: slots read |
//! | 11 | mode: whether readers that go to sleep must ring ([`doorbell`]) | |
//! | 128- | [`READERS_MAX`] places of 3 words: key and state, first slot, first message | |
//!
//! **Crash rule.** As a lane's: the head slot's sequence is stored last. **Hostile peers.** A producer that
//! writes nonsense ends its own log for each reader; a reader that does is cut off at worst. Neither can make
//! anybody else lose a message, a wake-up or more time than [`Hold::time`].
//!
//! No allocation, lock or log after set-up, except that a receive grows the caller's buffer. Any thread, no
//! privilege. Start reading at [`producer`], then [`reader`].

mod attached;
mod doorbell;
#[cfg(all(test, loom))]
mod model;
pub mod producer;
pub mod reader;
pub mod sequence;
#[cfg(all(test, not(loom)))]
mod tests;

pub use producer::{
    AttachError, Attendant, Left, NoSuchReader, Place, SendError, Writer, WriterOptions,
};
pub use reader::format_cursor;
pub use reader::{Message, Reader, ReaderOptions, RecvError, Start};

use std::time::Duration;

pub use crate::lane::{
    CAPACITY_MAX, CAPACITY_MIN, INLINE_BYTES, MESSAGE_MAX, SLOT_BYTES, SPILL_BYTES,
};
use crate::shm::PAGE_WORDS;
use crate::shm::atomics::Ordering;
use crate::shm::counters::{CAPACITY_WORD, MAGIC_WORD, Received};
use crate::shm::histogram::Latency;
pub use crate::shm::layout::LayoutError;
use crate::shm::layout::{check_capacity, check_magic, check_size};
use crate::shm::region::{LINE_WORDS, Words};

/// Most readers of one log.
#[cfg(not(loom))]
pub const READERS_MAX: usize = 128;
/// The checker follows two.
#[cfg(loom)]
pub const READERS_MAX: usize = 2;

const _: () = assert!(SLOT_BYTES == LINE_WORDS * 8);
/// `AGLOG`, the version of the layout, and which memory it is.
pub(crate) const DATA_MAGIC: u64 = u64::from_le_bytes(*b"AGLOG\0\x02D");
const CURSOR_MAGIC: u64 = u64::from_le_bytes(*b"AGLOG\0\x02C");

/// Data page: how many readers were ever attached. What a reader that waits for its attachment sleeps on.
const ATTACHED_WORD: usize = 3;
/// Data page: messages written, stored between [`BEGUN_WORD`] and the head.
pub(crate) const MESSAGES_WORD: usize = 9;
/// Data page: what the head is about to become.
const BEGUN_WORD: usize = 10;
/// Data page: whether the producer looks at flags or wants to be rung.
const MODE_WORD: usize = 11;
/// Data page: the readers' places.
const PLACES_WORD: usize = PAGE_WORDS - 3 * READERS_MAX;
/// Data page: what all logs say of which one continues the other's numbers ([`Place`]); 0: this one has no other.
const SERIES_WORD: usize = 4;
/// Cursor page: what this reader calls itself.
const KEY_WORD: usize = 3;
/// Cursor page: the index of the word with its parked flag.
const PARKED_AT_WORD: usize = 4;

#[cfg(not(loom))]
const _: () = assert!(PLACES_WORD == 128);
#[cfg(loom)]
const _: () = assert!(PLACES_WORD >= 40);

/// Words of the data memory of a log with `capacity` slots.
pub const fn data_words(capacity: usize) -> usize {
    PAGE_WORDS + capacity * LINE_WORDS
}

/// Words of the cursor memory of any reader.
pub const fn cursor_words() -> usize {
    PAGE_WORDS
}

/// Longest message of a log with `capacity` slots: half of them.
pub const fn message_limit(capacity: usize) -> usize {
    let bytes = INLINE_BYTES + (capacity / 2 - 1) * SPILL_BYTES;
    if bytes < MESSAGE_MAX {
        bytes
    } else {
        MESSAGE_MAX
    }
}

/// Slots that a message of `len` bytes takes.
const fn slots_for(len: usize) -> usize {
    1 + len.saturating_sub(INLINE_BYTES).div_ceil(SPILL_BYTES)
}

/// Which cache line of the data memory slot number `n` is.
#[inline]
const fn line_of(n: u64, capacity: usize) -> usize {
    PAGE_WORDS / LINE_WORDS + (n as usize & (capacity - 1))
}

/// Word of a slot that commits it.
const SEQUENCE: usize = 0;
/// Word with length, kind, flags and correlation.
const HEAD: usize = 1;
/// First word of payload in a head slot, and in a further slot.
const INLINE: usize = 2;
const SPILL: usize = 1;

/// What a reader is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// The newest messages: it is overrun when it falls behind.
    #[default]
    Lossy,
    /// Every message from its attachment on, or to be told that it was cut off.
    Reliable,
}

/// How far and how long one reliable reader may hold the producer up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Slots that it may be behind before the producer waits: half of the ring to all of it (the default).
    pub lag: Option<u64>,
    /// How long the producer waits for it altogether, counted anew once it is less than half its lag behind.
    /// Zero: it is cut off at once.
    pub time: Duration,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            lag: None,
            time: Duration::from_secs(1),
        }
    }
}

/// What the producer calls a reader: any number that its owner finds useful, such as the bus's channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReaderId(pub u32);

/// What a reader says of itself, as its producer sees it. A hostile reader may say anything.
#[derive(Clone, Debug)]
pub struct ReaderSnapshot {
    pub id: ReaderId,
    pub delivery: Delivery,
    /// Slots behind the producer.
    pub behind: u64,
    pub counters: Received,
    pub latency: Latency,
}

/// Writes the header of fresh (zeroed) data memory.
pub fn format_data<D: Words>(data: &D, capacity: usize) -> Result<(), LayoutError> {
    check_capacity(capacity as u64)?;
    let words = data.words();
    check_size(words.len(), data_words(capacity))?;
    words[MAGIC_WORD].store(DATA_MAGIC, Ordering::Relaxed);
    words[CAPACITY_WORD].store(capacity as u64, Ordering::Relaxed);
    Ok(())
}
