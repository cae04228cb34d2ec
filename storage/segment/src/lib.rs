//! The bytes of a segment of a durable stream: how records are laid out, and what becomes of them
//! when the bytes are not what was written.
//!
//! Pure: no I/O, no time, no threads, no privilege; `agentd-storage` reads and writes the files. A
//! crate of its own so that whoever only reads segments, such as the fuzz target `segment`, links
//! no database (ADR 31). It never panics over bytes, whatever they are, and never makes a record
//! up: what can't be read is named.
#![forbid(unsafe_code)]

mod format;
mod scan;
mod settled;

pub use format::{
    BLOCK, HEADER, Kind, PAYLOAD_MAX, Parsed, RANGES, RecordHeader, SegmentHeader, parse,
    read_ranges, write_ranges,
};
pub use scan::{BadBytes, Index, IndexEntry, Scan, Standing, scan};
pub use settled::{Settled, merged};

/// How a payload was made smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4: little time.
    Lz4,
    /// Zstandard, level 3: more time, less space.
    Zstd,
}

impl Compression {
    /// As it stands in records and in the database.
    pub fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
        }
    }

    /// The reverse of [`Self::number`].
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }
}
