//! A lane: a single-producer single-consumer ring of cache lines between two agents that don't trust
//! each other.
//!
//! Two memories, each writable by one side only, which the kernel enforces by seals ([`crate::shm::memfd`]):
//!
//! * the **data** memory, written by the producer: a header page, then the slots;
//! * the **cursor** memory, written by the consumer: how far it has read, and whether it sleeps.
//!
//! A slot is one cache line, or two ([`Inline`], which the producer chooses and says in its header page):
//!
//! | bytes | head slot of a message | further slots of the same message |
//! | --- | --- | --- |
//! | 0-7 | sequence, commits the message | sequence |
//! | 8-15 | length u16, type u8, flags u8, correlation u32 | payload |
//! | 16-63 (127) | the first 48 (112) bytes of payload | payload |
//!
//! A message of up to 48 (112) bytes takes one slot, a longer one consecutive slots of 56 (120) bytes more each, up
//! to 65,535 bytes or the whole ring. Larger payloads go through an arena ([`crate::arena`]) or the socket. Of the
//! flags, bit 7 (EXT) says that the inline bytes begin with a time stamp u64 (CLOCK_MONOTONIC, ns), a CRC-32C u32
//! of the payload (0: none) and further flags u32; bit 6 that the payload is a reference into the arena. The
//! first page of the data memory, and the cursor memory, are laid out as [`crate::shm::counters`] says.
//!
//! | each end settles, when it is set up | by |
//! | --- | --- |
//! | how it waits: busy, adaptive, blocking | both: [`SenderOptions`], [`ReceiverOptions`] |
//! | what a full lane does to a message: block, drop-newest, disconnect | the sender |
//! | what a message carries besides its tag: [`Extension`] | the sender |
//! | how large a slot is: [`Inline`] | the sender |
//! | who says how far the sender may go: [`Credit`] | the receiver |
//!
//! **Crash rule.** The sequence word of the head slot is written last, with release ordering: a message
//! is whole or not there, wherever its producer was killed. **Hostile peers.** Everything read from the
//! other side's memory is copied once, word by word, and then checked; the worst a peer can do is end its
//! own lane. **Wake-ups.** The consumer publishes its position, says that it sleeps, and looks again; the producer
//! commits, and looks whether somebody sleeps. Who pays for the fence between is in `shm::patience`.
//!
//! The protocol is in [`ring`] and uses no unsafe code; it runs on any [`crate::shm::region::Words`]: heap memory
//! (tests, Miri) or sealed memfds. The sleep is in [`crate::shm::park`]. No allocation, lock or log after set-up,
//! except that a receive into a `Vec` may grow it. One thread at a time per end; no privilege.

#[cfg(all(test, loom))]
mod model;
mod options;
pub mod ring;
#[cfg(all(test, not(loom)))]
mod tests;

pub use options::{Barrier, Credit, Extension, ReceiverOptions, SenderOptions};

pub use crate::channel::Inline;
use crate::shm::PAGE_WORDS;
pub use crate::shm::layout::LayoutError;
use crate::shm::region::LINE_WORDS;

/// Bytes of a slot of one line ([`Inline::Small`]; and of a log's).
pub const SLOT_BYTES: usize = 64;
/// Payload bytes in a head slot of one line.
pub const INLINE_BYTES: usize = 48;
/// Payload bytes in each further slot of one line.
pub const SPILL_BYTES: usize = 56;
/// Bytes of the inline ones that the EXT flag takes.
pub const EXT_BYTES: usize = 16;
/// Fewest and most slots of a lane; always a power of two.
pub const CAPACITY_MIN: usize = 2;
pub const CAPACITY_MAX: usize = 1 << 16;
/// Longest message of any lane, bytes.
pub const MESSAGE_MAX: usize = u16::MAX as usize;

/// `AGLANE`, the version of the layout, and which memory it is.
const DATA_MAGIC: u64 = u64::from_le_bytes(*b"AGLANE\x02D");
const CURSOR_MAGIC: u64 = u64::from_le_bytes(*b"AGLANE\x02C");

const _: () = assert!(LINE_WORDS * 8 == SLOT_BYTES);
const _: () = assert!(INLINE_BYTES == SLOT_BYTES - 16 && SPILL_BYTES == SLOT_BYTES - 8);
const _: () = assert!(INLINE_BYTES == Inline::Small.bytes());

/// Words of the data memory of a lane with `capacity` slots of that size.
pub const fn data_words(capacity: usize, inline: Inline) -> usize {
    PAGE_WORDS + capacity * inline.lines() * LINE_WORDS
}

/// Words of the cursor memory of any lane.
pub const fn cursor_words() -> usize {
    PAGE_WORDS
}
