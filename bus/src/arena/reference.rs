//! A reference: 32 bytes in a slot that say where a payload is. The receiver believes none of it unchecked.
//!
//! Pure data, any thread. [`Reference::parse`] fails on what no owner writes; whether the rest is true is
//! asked of the segment by [`super::Reader`].

#![forbid(unsafe_code)]

use super::{ALIGNMENT, HEADER_BYTES};

/// Bytes of a reference in a slot. They fit behind an extended slot's fields too.
pub const REFERENCE_BYTES: usize = 32;

/// Where a payload is. All little-endian in a slot: segment u32, generation u32, offset u64, length u64,
/// reserved u64 (zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Which of the owner's segments. Numbers are never used again.
    pub segment: u32,
    /// The low half of what the block's header must say; never 0.
    pub generation: u32,
    /// Of the block's header in the segment, bytes; a multiple of 64.
    pub offset: u64,
    /// Of the payload, bytes; at least 1.
    pub length: u64,
}

/// Why a reference was not followed, or what it led to was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("a reference has {REFERENCE_BYTES} bytes, this one {found}")]
    Size { found: usize },
    #[error("the reserved bytes of the reference are {found:#x}, not zero")]
    Reserved { found: u64 },
    #[error("generation 0 marks free blocks")]
    Free,
    #[error("offset {offset} is not a multiple of {ALIGNMENT}")]
    Misaligned { offset: u64 },
    #[error("a payload of {length} bytes; 1 to {limit} are taken")]
    Length { length: u64, limit: u64 },
    #[error(
        "{length} bytes behind the header at {offset} end outside the segment of {bytes} bytes"
    )]
    Bounds {
        offset: u64,
        length: u64,
        bytes: u64,
    },
    /// A condition, not a fault: its descriptor is still on its way over the bus. Add it and ask again.
    #[error("segment {segment} has not arrived")]
    NoSegment { segment: u32 },
    #[error(
        "the block at {offset} holds generation {found}, not {expected}: it was reused, or never written"
    )]
    Stale {
        offset: u64,
        expected: u32,
        found: u64,
    },
    #[error("the block's header says {found} bytes, the reference {expected}")]
    Disagrees { expected: u64, found: u64 },
}

impl Reference {
    /// As it is in a slot.
    pub fn to_bytes(self) -> [u8; REFERENCE_BYTES] {
        let mut bytes = [0; REFERENCE_BYTES];
        bytes[0..4].copy_from_slice(&self.segment.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.generation.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// Takes apart what a peer put into a slot.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReferenceError> {
        let whole: &[u8; REFERENCE_BYTES] = bytes
            .try_into()
            .map_err(|_| ReferenceError::Size { found: bytes.len() })?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| whole[at + n]));
        let (names, offset, length, reserved) = (word(0), word(8), word(16), word(24));
        let generation = (names >> 32) as u32;
        if reserved != 0 {
            return Err(ReferenceError::Reserved { found: reserved });
        }
        if generation == 0 {
            return Err(ReferenceError::Free);
        }
        if !offset.is_multiple_of(ALIGNMENT) {
            return Err(ReferenceError::Misaligned { offset });
        }
        Ok(Self {
            segment: names as u32,
            generation,
            offset,
            length,
        })
    }

    /// Says that the owner has let go of a segment, and that the receivers may: no block begins at the offset of
    /// this one and is empty.
    pub(super) fn gone(segment: u32) -> Self {
        Self {
            segment,
            generation: u32::MAX,
            offset: 0,
            length: 0,
        }
    }

    pub(super) fn is_gone(&self) -> bool {
        *self == Self::gone(self.segment)
    }

    /// Segments from this number on are sealed payloads, each a memory of its own; those of arenas are counted from 0.
    pub const SEALED_FROM: u32 = 1 << 31;

    /// Leads to the whole of a sealed payload.
    pub fn sealed(segment: u32, length: u64) -> Self {
        Self {
            segment,
            generation: 1,
            offset: 0,
            length,
        }
    }

    /// Whether it is one that [`Self::sealed`] makes.
    pub fn is_sealed(&self) -> bool {
        self.segment >= Self::SEALED_FROM
            && *self == Self::sealed(self.segment, self.length)
            && self.length > 0
    }

    /// Whether block and payload lie in a segment of `bytes` bytes.
    pub(super) fn check_bounds(&self, bytes: u64) -> Result<(), ReferenceError> {
        let end = self
            .offset
            .checked_add(HEADER_BYTES)
            .and_then(|payload| payload.checked_add(self.length));
        if end.is_some_and(|end| end <= bytes) {
            Ok(())
        } else {
            Err(ReferenceError::Bounds {
                offset: self.offset,
                length: self.length,
                bytes,
            })
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const EXAMPLE: Reference = Reference {
        segment: 0x0102_0304,
        generation: 0x0506_0708,
        offset: 0x1122_3344_5566_7740,
        length: 0x0A0B,
    };

    #[test]
    fn the_bytes_are_the_documented_ones() {
        let golden = [
            4, 3, 2, 1, 8, 7, 6, 5, 0x40, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x0B, 0x0A, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(EXAMPLE.to_bytes(), golden);
        assert_eq!(Reference::parse(&golden), Ok(EXAMPLE));
    }

    #[test]
    fn what_no_owner_writes_is_refused() {
        let with = |at: usize, value: u8| {
            let mut bytes = EXAMPLE.to_bytes();
            bytes[at] = value;
            Reference::parse(&bytes)
        };
        assert_eq!(
            with(31, 1),
            Err(ReferenceError::Reserved { found: 1 << 56 })
        );
        assert!(matches!(
            with(8, 0x41),
            Err(ReferenceError::Misaligned { .. })
        ));
        let freed = Reference {
            generation: 0,
            ..EXAMPLE
        };
        assert_eq!(
            Reference::parse(&freed.to_bytes()),
            Err(ReferenceError::Free)
        );
        assert_eq!(
            Reference::parse(&[0; 31]),
            Err(ReferenceError::Size { found: 31 })
        );
    }

    #[test]
    fn a_sealed_payload_is_no_block_of_an_arena() {
        let sealed = Reference::sealed(Reference::SEALED_FROM + 3, 4097);
        assert!(sealed.is_sealed());
        assert_eq!(Reference::parse(&sealed.to_bytes()), Ok(sealed));
        assert!(!EXAMPLE.is_sealed() && !Reference::sealed(3, 1).is_sealed());
        assert!(!Reference::sealed(Reference::SEALED_FROM, 0).is_sealed());
        assert!(!Reference::gone(Reference::SEALED_FROM).is_sealed());
        let odd = Reference {
            offset: 64,
            ..sealed
        };
        assert!(!odd.is_sealed());
    }

    #[test]
    fn bounds_hold_at_the_edges_and_nothing_overflows() {
        let at = |offset, length| Reference {
            offset,
            length,
            ..EXAMPLE
        };
        assert_eq!(at(0, 4096 - 64).check_bounds(4096), Ok(()));
        assert_eq!(at(4096 - 128, 64).check_bounds(4096), Ok(()));
        for (offset, length) in [
            (0, 4096 - 63),
            (4096 - 64, 1),
            (4096, 1),
            (u64::MAX - 63, 1),
            (64, u64::MAX),
            (u64::MAX - 63, u64::MAX),
        ] {
            assert!(matches!(
                at(offset, length).check_bounds(4096),
                Err(ReferenceError::Bounds { .. })
            ));
        }
    }
}
