//! A receiver's side of an arena: copy, then validate.
//!
//! The segments belong to a peer that may write anything at any time. A reference is checked, the header is
//! looked at, the payload is copied into private memory, and the header is looked at again: only bytes that
//! belong to that reference are handed out. One thread at a time; no privilege; nothing of the peer's can be
//! written.

#![forbid(unsafe_code)]

use super::{
    ALIGNMENT, GENERATION_WORD, HEADER_WORDS, LENGTH_WORD, Reference, ReferenceError, SEGMENT_MAX,
    SEGMENTS_MAX,
};
use crate::shm::atomics::{Ordering, fence};
use crate::shm::region::{LINE_WORDS, Peers, Words};

/// Header and first lines of the payload; the copy asks for those behind them in time.
const PREFETCH_LINES: u64 = 9;

/// Why a segment was not taken from its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    #[error("segment {number} is here already")]
    Known { number: u32 },
    #[error("{SEGMENTS_MAX} segments are the most that are taken of one peer")]
    Count,
    #[error(
        "with {bytes} bytes more this peer's segments would be over the limit of {limit} bytes"
    )]
    Budget { bytes: u64, limit: u64 },
}

/// The segments of one channel, as one of its receivers has them.
#[derive(Debug)]
pub struct Reader<W> {
    segments: Vec<(u32, Peers<W>)>,
    /// Most bytes that this peer may make us map.
    limit: u64,
    payload_limit: u64,
}

impl<W: Words> Reader<W> {
    /// Without segments. `limit`: how many bytes of segments are taken of this peer, at most.
    pub fn new(limit: u64) -> Self {
        Self {
            segments: Vec::with_capacity(SEGMENTS_MAX),
            limit,
            payload_limit: SEGMENT_MAX,
        }
    }

    /// Refuses payloads over `bytes`, whatever the segments hold.
    #[must_use]
    pub fn with_payload_limit(mut self, bytes: u64) -> Self {
        self.payload_limit = bytes;
        self
    }

    /// Takes a segment that the owner announced as `number`.
    pub fn add(&mut self, number: u32, memory: W) -> Result<(), SegmentError> {
        if self.has(number) {
            return Err(SegmentError::Known { number });
        }
        if self.segments.len() == SEGMENTS_MAX {
            return Err(SegmentError::Count);
        }
        let bytes = memory.words().len() as u64 * 8;
        if self.bytes() + bytes > self.limit {
            return Err(SegmentError::Budget {
                bytes,
                limit: self.limit,
            });
        }
        self.segments.push((number, Peers(memory)));
        Ok(())
    }

    /// Gives a segment back to the kernel; references into it are answered by `NoSegment` from now on.
    pub fn remove(&mut self, number: u32) -> Option<W> {
        let at = self
            .segments
            .iter()
            .position(|(known, _)| *known == number)?;
        Some(self.segments.swap_remove(at).1.0)
    }

    pub(super) fn has(&self, number: u32) -> bool {
        self.segments.iter().any(|(known, _)| *known == number)
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments
            .iter()
            .map(|(_, memory)| memory.len() as u64 * 8)
            .sum()
    }

    /// Asks for the beginning of what `reference` says, if it leads anywhere: it comes while something else is copied. Nothing
    /// of it is believed or looked at.
    pub(super) fn prefetch(&self, reference: &[u8]) {
        let Ok(reference) = Reference::parse(reference) else {
            return;
        };
        let segment = reference.segment;
        let Some((_, memory)) = self.segments.iter().find(|(number, _)| *number == segment) else {
            return;
        };
        let lines = (memory.len() / LINE_WORDS) as u64;
        let first = (reference.offset / ALIGNMENT).min(lines);
        for line in first..(first + PREFETCH_LINES).min(lines) {
            memory.prefetch(line as usize);
        }
    }

    /// Copies what `reference` names into `buffer`, which is cleared first and left empty on any error.
    pub fn read(&self, reference: &Reference, buffer: &mut Vec<u8>) -> Result<(), ReferenceError> {
        buffer.clear();
        let Reference {
            segment,
            generation,
            offset,
            length,
        } = *reference;
        if length == 0 || length > self.payload_limit {
            return Err(ReferenceError::Length {
                length,
                limit: self.payload_limit,
            });
        }
        let (_, memory) = self
            .segments
            .iter()
            .find(|(number, _)| *number == segment)
            .ok_or(ReferenceError::NoSegment { segment })?;
        reference.check_bounds(memory.len() as u64 * 8)?;
        // In bounds of memory that is mapped, so it fits a usize.
        let header = (offset / 8) as usize;
        // SYNC: arena-fill. Pairs with the release store in `Arena::store`.
        let before = memory.load(header + GENERATION_WORD, Ordering::Acquire);
        let stale = |found| ReferenceError::Stale {
            offset,
            expected: generation,
            found,
        };
        if before == 0 || before as u32 != generation {
            return Err(stale(before));
        }
        let said = memory.load(header + LENGTH_WORD, Ordering::Relaxed);
        if said != length {
            return Err(ReferenceError::Disagrees {
                expected: length,
                found: said,
            });
        }
        memory.copy_out(header + HEADER_WORDS, length as usize, buffer);
        // SYNC: arena-reuse. Pairs with the release fence in `Arena::store`: had any byte been of a later payload,
        // the generation would be seen gone.
        fence(Ordering::Acquire);
        let after = memory.load(header + GENERATION_WORD, Ordering::Relaxed);
        if after != before {
            buffer.clear();
            return Err(stale(after));
        }
        Ok(())
    }
}
