//! The owner's side of an arena: takes blocks, fills them, and takes them back when their slot is consumed.
//!
//! One thread at a time; no privilege. Everything that decides lies in private memory; the segments get
//! headers and payloads and are never read. It fails only for want of room.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::space::{BlockId, Space};
use super::{
    ALIGNMENT, GENERATION_WORD, GRANULE_WORDS, HEADER_BYTES, HEADER_WORDS, LENGTH_WORD, Reference,
    SEGMENT_MAX, SEGMENT_MIN, SEGMENTS_MAX,
};
use crate::shm::atomics::{Ordering, fence};
use crate::shm::region::{Own, Words};

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
}

/// The blocks of one channel's sender.
#[derive(Debug)]
pub struct Arena<W> {
    segments: Vec<Segment<W>>,
    /// The number of the next segment.
    next_number: u32,
    /// The generation given last.
    generation: u64,
    /// In the order of their slots.
    held: VecDeque<Held>,
}

impl<W: Words> Arena<W> {
    /// Without segments. `in_flight`: how many references there can be between sender and receiver, the
    /// capacity of the channel; more are possible, but cost an allocation.
    pub fn new(in_flight: usize) -> Self {
        Self {
            segments: Vec::with_capacity(SEGMENTS_MAX),
            next_number: 0,
            generation: 0,
            held: VecDeque::with_capacity(in_flight),
        }
    }

    /// Adds memory that only this process can write and whose receivers will know it by the number returned.
    pub fn add(&mut self, memory: W) -> Result<u32, ArenaError> {
        if self.segments.len() == SEGMENTS_MAX {
            return Err(ArenaError::Segments);
        }
        let bytes = memory.words().len() as u64 * 8;
        let wrong = ArenaError::SegmentSize { bytes };
        if bytes < SEGMENT_MIN || !bytes.is_multiple_of(ALIGNMENT) {
            return Err(wrong);
        }
        let granules = u32::try_from(bytes / ALIGNMENT).map_err(|_| wrong)?;
        let space = Space::new(granules).ok_or(wrong)?;
        let number = self.next_number;
        self.next_number = number.checked_add(1).ok_or(ArenaError::Segments)?;
        self.segments.push(Segment {
            number,
            memory: Own(memory),
            space,
        });
        Ok(number)
    }

    /// Copies a payload into a block. No reader looks at it before its reference is in a slot.
    pub fn store(&mut self, payload: &[u8]) -> Result<Stored, ArenaError> {
        let length = payload.len();
        if length == 0 {
            return Err(ArenaError::Empty);
        }
        let granules = granules_for(length).ok_or_else(|| self.too_long(length))?;
        let mut found = None;
        for segment in &mut self.segments {
            if let Some(block) = segment.space.take(granules) {
                found = Some((segment, block));
                break;
            }
        }
        let Some((segment, block)) = found else {
            return Err(if self.segments.iter().any(|s| s.space.fits(granules)) {
                ArenaError::Full { length }
            } else {
                self.too_long(length)
            });
        };
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
        segment.memory.copy_in(header + HEADER_WORDS, payload);
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

    /// Ties a block to the slot that carries its reference. Slots come in rising order.
    pub fn hold(&mut self, slot: u64, stored: Stored) {
        debug_assert!(self.held.back().is_none_or(|last| last.slot <= slot));
        self.held.push_back(Held {
            slot,
            segment: stored.reference.segment,
            block: stored.block,
        });
    }

    /// Takes back a block whose reference did not get into a slot.
    pub fn release(&mut self, stored: Stored) {
        self.free(stored.reference.segment, stored.block);
    }

    /// Takes back every block whose slot is below `consumed`. Returns how many.
    pub fn reclaim(&mut self, consumed: u64) -> usize {
        let mut count = 0;
        while let Some(held) = self.held.pop_front_if(|held| held.slot < consumed) {
            self.free(held.segment, held.block);
            count += 1;
        }
        count
    }

    /// The slot of the oldest block that is still held.
    pub fn oldest_held(&self) -> Option<u64> {
        self.held.front().map(|held| held.slot)
    }

    pub fn usage(&self) -> Usage {
        let granules =
            |count: &dyn Fn(&Segment<W>) -> u64| self.segments.iter().map(count).sum::<u64>();
        Usage {
            segments: self.segments.len(),
            bytes: granules(&|segment| segment.memory.len() as u64 * 8),
            taken: granules(&|segment| u64::from(segment.space.taken()) * ALIGNMENT),
            held: self.held.len(),
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

/// Cache lines of the block for a payload.
fn granules_for(length: usize) -> Option<u32> {
    let bytes = (length as u64).checked_add(HEADER_BYTES)?;
    u32::try_from(bytes.div_ceil(ALIGNMENT)).ok()
}
