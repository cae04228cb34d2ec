//! An arena: where payloads are that are too large for a ring.
//!
//! Its owner is the sender of **one** channel (a lane or a log). It consists of **segments**, sealed memory
//! that only the owner can write ([`crate::shm::memfd`]) and that every receiver of the channel can read as a
//! whole: two channels never share an arena, or the receivers of one could read what is meant for the other.
//!
//! A payload is copied into a **block** and sent as a [`Reference`] of 32 bytes in a slot that carries the flag
//! `REFERENCE`. A block begins on a cache line with a header of 64 bytes:
//!
//! | bytes | header |
//! | --- | --- |
//! | 0-7 | generation: counts the owner's payloads from 1; 0 in a free block |
//! | 8-15 | length of the payload, bytes |
//! | 16-63 | unused |
//! | 64- | the payload |
//!
//! * [`Arena`] is the owner's side: which blocks are taken is its private memory. A block belongs to the slot
//!   that carried its reference until the channel says that the slot has been consumed (lane: the cursor;
//!   reliable log: the slowest cursor; lossy log: overwritten), or until the channel ends.
//! * [`Reader`] is a receiver's side: checks the reference, copies, and checks the header *again*: an owner
//!   that lies, or that reused the block meanwhile, yields an error and no bytes.
//! * [`BulkSender`] and [`BulkReceiver`] put both over a lane.
//! * [`SealedPayload`] needs no arena: memory that nobody can change any more, read in place.
//!
//! **Crashes.** An owner may die at any store: a reference is in the ring only after its block is whole. When
//! a receiver dies its channel ends, and the arena with it. **Hostile peers.** A receiver can write nothing of
//! the owner's. An owner can make a receiver's reads fail, which ends that channel.
//!
//! After set-up nothing here allocates, locks or logs, except that a read grows the caller's buffer, and that
//! growing the arena makes a segment.

mod bulk;
#[cfg(all(test, loom))]
mod model;
mod owner;
mod pace;
mod reader;
mod reference;
#[cfg(not(loom))]
mod sealed;
#[cfg(not(loom))]
pub mod segment;
mod space;
#[cfg(all(test, not(loom)))]
mod tests;

pub use bulk::{
    Arrivals, BulkOptions, BulkReceiver, BulkRecvError, BulkSendError, BulkSender, Supply,
    THRESHOLD_DEFAULT,
};
pub use owner::{Arena, ArenaError, Stored, Usage};
pub use reader::{Reader, SegmentError};
pub use reference::{REFERENCE_BYTES, Reference, ReferenceError};
#[cfg(not(loom))]
pub use sealed::SealedPayload;

/// Blocks begin at multiples of this: a cache line.
pub const ALIGNMENT: u64 = 64;
/// Bytes of a block's header.
pub const HEADER_BYTES: u64 = 64;
/// Most segments at a time, on either side.
pub const SEGMENTS_MAX: usize = 64;
/// Smallest and largest segment, bytes; whole pages.
#[cfg(not(loom))]
pub const SEGMENT_MIN: u64 = 4096;
/// Room for one block: the checker follows every word.
#[cfg(loom)]
pub const SEGMENT_MIN: u64 = 1024;
pub const SEGMENT_MAX: u64 = 1 << 30;

/// Words of a header.
const HEADER_WORDS: usize = 8;
/// Words of the header that are used.
const GENERATION_WORD: usize = 0;
const LENGTH_WORD: usize = 1;
/// Words of a granule: space is counted in cache lines.
const GRANULE_WORDS: usize = 8;

const _: () = assert!(HEADER_WORDS * 8 == HEADER_BYTES as usize);
const _: () = assert!(GRANULE_WORDS * 8 == ALIGNMENT as usize);
const _: () = assert!(SEGMENT_MAX / ALIGNMENT == space::GRANULES_MAX as u64);
const _: () = assert!(SEGMENT_MIN / ALIGNMENT >= space::BLOCK_MIN as u64);
