//! The owner's side of an arena: takes blocks, fills them, and takes them back when their slot is consumed.
//!
//! One thread at a time; no privilege. Everything that decides lies in private memory; the segments get
//! headers and payloads and are never read. It fails only for want of room.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::space::{BLOCK_MIN, BlockId, Space};
use super::{
    ALIGNMENT, GENERATION_WORD, GRANULE_WORDS, HEADER_BYTES, HEADER_WORDS, LENGTH_WORD, Reference,
    SEGMENT_MAX, SEGMENT_MIN, SEGMENTS_MAX,
};
use crate::shm::atomics::{Ordering, fence};
use crate::shm::copy::Stores;
use crate::shm::region::{Own, Words};

/// Shorter payloads always go through the cache: a streamed one is on its way to memory for longer than that.
const STREAM_MIN: usize = 2048;

/// Blocks that have been read are used again as they are if they are no more than this many granules, or so many.
const REUSE_MAX: u64 = (1 << 20) / ALIGNMENT;
const REUSE_BLOCKS: u64 = 8;

/// Why a segment was not added, or a payload not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArenaError {
    #[error("a segment has {SEGMENT_MIN} to {SEGMENT_MAX} bytes in whole cache lines; not {bytes}")]
    SegmentSize { bytes: u64 },
    #[error("the arena has {SEGMENTS_MAX} segments, the most there can be")]
    Segments,
    /// A condition: room comes back as the receiver reads, or with another segment.
    #[error("no room for {length} bytes among what is not yet read")]
    Full { length: usize },
    #[error(
        "{length} bytes don't fit into any segment of this arena; the largest payload is {limit}"
    )]
    TooLong { length: usize, limit: u64 },
    #[error("an empty payload needs no arena")]
    Empty,
}

/// A payload that is in the arena and in nobody's slot yet: [`Arena::hold`] it or [`Arena::release`] it.
#[derive(Debug)]
#[must_use = "a block that is neither held nor released is lost until the arena ends"]
pub struct Stored {
    reference: Reference,
    block: BlockId,
}

impl Stored {
    /// What goes into the slot.
    pub fn reference(&self) -> Reference {
        self.reference
    }
}

/// How full an arena is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub segments: usize,
    /// Of all segments.
    pub bytes: u64,
    /// In blocks that are taken, headers and rounding included.
    pub taken: u64,
    /// Blocks that wait for their slot to be consumed.
    pub held: usize,
}

#[derive(Debug)]
struct Segment<W> {
    number: u32,
    memory: Own<W>,
    space: Space,
}

#[derive(Debug)]
struct Held {
    slot: u64,
    segment: u32,
    block: BlockId,
    /// That the payload and its header need.
    granules: u64,
}

/// The blocks of one channel's sender.
#[derive(Debug)]
pub struct Arena<W> {
    segments: Vec<Segment<W>>,
    /// The number of the next segment.
    next_number: u32,
    /// The generation given last.
    generation: u64,
    stores: Stores,
    /// In the order of their slots.
    held: VecDeque<Held>,
    /// So many of the oldest have been read: they are used again as they are, or given back when something else is needed or
    /// they are many, so that what comes next stays in little memory.
    read: usize,
    /// Granules of those that have not.
    unread: u64,
}

impl<W: Words> Arena<W> {
    /// Without segments. `in_flight`: how many references there can be between sender and receiver, the
    /// capacity of the channel; more are possible, but cost an allocation.
    pub fn new(in_flight: usize) -> Self {
        Self {
            segments: Vec::with_capacity(SEGMENTS_MAX),
            next_number: 0,
            generation: 0,
            stores: Stores::Cached,
            held: VecDeque::with_capacity(in_flight),
            read: 0,
            unread: 0,
        }
    }

    /// Adds memory that only this process can write and whose receivers will know it by the number returned.
    pub fn add(&mut self, memory: W) -> Result<u32, ArenaError> {
        let bytes = memory.words().len() as u64 * 8;
        let wrong = ArenaError::SegmentSize { bytes };
        if bytes < SEGMENT_MIN || !bytes.is_multiple_of(ALIGNMENT) {
            return Err(wrong);
        }
        let granules = u32::try_from(bytes / ALIGNMENT).map_err(|_| wrong)?;
        let space = Space::new(granules).ok_or(wrong)?;
        let number = self.next_number()?;
        self.next_number += 1;
        self.segments.push(Segment {
            number,
            memory: Own(memory),
            space,
        });
        Ok(number)
    }

    /// The number that the next segment will have.
    pub fn next_number(&self) -> Result<u32, ArenaError> {
        if self.segments.len() == SEGMENTS_MAX || self.next_number == u32::MAX {
            return Err(ArenaError::Segments);
        }
        Ok(self.next_number)
    }

    /// A segment other than the first in which no block is taken.
    pub fn droppable(&self) -> Option<u32> {
        let later = self.segments.iter().skip(1);
        later
            .rev()
            .find(|segment| segment.space.taken() == 0)
            .map(|segment| segment.number)
    }

    /// Lets go of a segment in which no block is taken; anything else is left as it is.
    pub fn remove(&mut self, number: u32) -> Option<W> {
        let at = self
            .segments
            .iter()
            .position(|segment| segment.number == number && segment.space.taken() == 0)?;
        Some(self.segments.remove(at).memory.0)
    }

    /// Copies a payload into a block. No reader looks at it before its reference is in a slot.
    pub fn store(&mut self, payload: &[u8]) -> Result<Stored, ArenaError> {
        let length = payload.len();
        if length == 0 {
            return Err(ArenaError::Empty);
        }
        let granules = granules_for(length).ok_or_else(|| self.too_long(length))?;
        let found = self.reuse(granules).or_else(|| self.take(granules));
        let Some((at, block)) = found else {
            return Err(if self.segments.iter().any(|s| s.space.fits(granules)) {
                ArenaError::Full { length }
            } else {
                self.too_long(length)
            });
        };
        let segment = &mut self.segments[at];
        self.generation += 1;
        if self.generation as u32 == 0 {
            self.generation += 1;
        }
        let (at, _) = segment.space.extent(block);
        let header = at as usize * GRANULE_WORDS;
        // SYNC: arena-reuse. The header says "free" since the block was given back, or was never used; no byte
        // of the new payload is seen before that is. Pairs with the acquire fence after the copy in
        // `Reader::read`: a reader that copied any new byte then sees the generation gone.
        fence(Ordering::Release);
        let stores = if length >= STREAM_MIN {
            self.stores
        } else {
            Stores::Cached
        };
        segment
            .memory
            .copy_in(header + HEADER_WORDS, payload, stores);
        segment
            .memory
            .store(header + LENGTH_WORD, length as u64, Ordering::Relaxed);
        // SYNC: arena-fill. Pairs with the acquire load of the generation in `Reader::read`.
        segment
            .memory
            .store(header + GENERATION_WORD, self.generation, Ordering::Release);
        Ok(Stored {
            reference: Reference {
                segment: segment.number,
                generation: self.generation as u32,
                offset: u64::from(at) * ALIGNMENT,
                length: length as u64,
            },
            block,
        })
    }

    /// The oldest block, if it has been read and is of about this size: streams of payloads of one size go round in the same
    /// blocks, without a search.
    fn reuse(&mut self, granules: u32) -> Option<(usize, BlockId)> {
        let oldest = self.held.front().filter(|_| self.read > 0)?;
        let number = oldest.segment;
        let at = self.segments.iter().position(|s| s.number == number)?;
        let segment = &self.segments[at];
        let (begin, size) = segment.space.extent(oldest.block);
        let same = (granules..=granules + granules / 16 + BLOCK_MIN).contains(&size);
        if !same
            || self.read as u64 * u64::from(size) > REUSE_MAX.max(REUSE_BLOCKS * u64::from(size))
        {
            self.reclaim_read();
            return None;
        }
        self.read -= 1;
        // SYNC: arena-reuse. As in `free`.
        let generation = begin as usize * GRANULE_WORDS + GENERATION_WORD;
        segment.memory.store(generation, 0, Ordering::Relaxed);
        self.held.pop_front().map(|oldest| (at, oldest.block))
    }

    fn take(&mut self, granules: u32) -> Option<(usize, BlockId)> {
        let segments = self.segments.iter_mut().enumerate();
        segments
            .filter_map(|(at, segment)| Some((at, segment.space.take(granules)?)))
            .next()
    }

    /// Says how payloads are written from now on: past the cache pays while the receivers are behind, and costs
    /// them time when they wait.
    pub(crate) fn set_stores(&mut self, stores: Stores) {
        self.stores = stores;
    }

    /// Ties a block to the slot that carries its reference. Slots come in rising order.
    pub fn hold(&mut self, slot: u64, stored: Stored) {
        debug_assert!(
            self.held
                .back()
                .is_none_or(|last| !is_before(slot, last.slot))
        );
        self.unread += granules_of(stored.reference.length);
        self.held.push_back(Held {
            slot,
            segment: stored.reference.segment,
            block: stored.block,
            granules: granules_of(stored.reference.length),
        });
    }

    /// Bytes of the payloads that have not been read, headers included, as far as the cursor has been looked at.
    pub(crate) fn unread(&self) -> u64 {
        self.unread * ALIGNMENT
    }

    /// Takes back a block whose reference did not get into a slot.
    pub fn release(&mut self, stored: Stored) {
        self.free(stored.reference.segment, stored.block);
    }

    /// Takes back every block whose slot is before slot number `consumed`. Returns how many.
    pub fn reclaim(&mut self, consumed: u64) -> usize {
        self.note_consumed(consumed);
        self.reclaim_read()
    }

    /// The slots before slot number `consumed` have been read: their blocks may be used again.
    pub(crate) fn note_consumed(&mut self, consumed: u64) {
        while let Some(held) = self.held.get(self.read)
            && is_before(held.slot, consumed)
        {
            self.unread -= held.granules;
            self.read += 1;
        }
    }

    fn reclaim_read(&mut self) -> usize {
        let count = std::mem::take(&mut self.read);
        for _ in 0..count {
            let held = self.held.pop_front().expect("those read are held");
            self.free(held.segment, held.block);
        }
        count
    }

    /// Takes back every block: nobody will read them.
    pub fn reclaim_all(&mut self) -> usize {
        (self.read, self.unread) = (self.held.len(), 0);
        self.reclaim_read()
    }

    /// Bytes in blocks that are taken.
    pub fn taken(&self) -> u64 {
        let granules = self
            .segments
            .iter()
            .map(|segment| u64::from(segment.space.taken()));
        let read = self.held.range(..self.read).map(|held| {
            let segment = self.segments.iter().find(|s| s.number == held.segment);
            segment.map_or(0, |segment| u64::from(segment.space.extent(held.block).1))
        });
        (granules.sum::<u64>() - read.sum::<u64>()) * ALIGNMENT
    }

    /// The slot of the oldest block that is still held.
    pub fn oldest_held(&self) -> Option<u64> {
        self.held.get(self.read).map(|held| held.slot)
    }

    pub fn usage(&self) -> Usage {
        Usage {
            segments: self.segments.len(),
            bytes: self
                .segments
                .iter()
                .map(|segment| segment.memory.len() as u64 * 8)
                .sum(),
            taken: self.taken(),
            held: self.held.len() - self.read,
        }
    }

    /// Longest payload that an empty segment takes.
    pub fn payload_limit(&self) -> u64 {
        let largest = self.segments.iter().map(|segment| segment.space.largest());
        (u64::from(largest.max().unwrap_or(0)) * ALIGNMENT).saturating_sub(HEADER_BYTES)
    }

    fn too_long(&self, length: usize) -> ArenaError {
        ArenaError::TooLong {
            length,
            limit: self.payload_limit(),
        }
    }

    fn free(&mut self, number: u32, block: BlockId) {
        let segment = self
            .segments
            .iter_mut()
            .find(|segment| segment.number == number)
            .expect("a segment stays while one of its blocks is taken");
        let (at, _) = segment.space.extent(block);
        // SYNC: arena-reuse. Ordered before the next payload by the fence in `store`.
        segment.memory.store(
            at as usize * GRANULE_WORDS + GENERATION_WORD,
            0,
            Ordering::Relaxed,
        );
        segment.space.give(block);
    }
}

/// Slot numbers wrap; those that are compared are less than a ring apart.
fn is_before(slot: u64, other: u64) -> bool {
    slot.wrapping_sub(other).cast_signed() < 0
}

/// Cache lines of the block for a payload.
fn granules_for(length: usize) -> Option<u32> {
    (length as u64).checked_add(HEADER_BYTES)?;
    u32::try_from(granules_of(length as u64)).ok()
}

fn granules_of(length: u64) -> u64 {
    (length + HEADER_BYTES).div_ceil(ALIGNMENT)
}
