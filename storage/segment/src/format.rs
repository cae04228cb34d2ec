//! The bytes of a segment: a header block, then records, then zeros.
//!
//! Pure. Little-endian throughout. `docs/operations.md` has the layout for whoever writes another reader. A record's check
//! sum begins with the segment's random `nonce`, so that nothing which only looks like a record (a payload that holds one,
//! a block of a deleted file) is ever taken for one.

use std::ops::Range;

use crate::Compression;

/// The unit of direct I/O, and the size of a segment's header.
pub const BLOCK: usize = 4096;
/// Bytes in front of each payload.
pub const HEADER: usize = 32;
/// Records begin at multiples of this.
const ALIGN: usize = 8;
/// Settled ranges in one record.
pub const RANGES: usize = 4096;
/// Longest payload of a record of data, bytes: the bus's own bound and room for what goes with it.
pub const PAYLOAD_MAX: usize = (1 << 20) + 4096;
/// Longest payload as stored: compressed ones are kept only if smaller.
const STORED_MAX: usize = if PAYLOAD_MAX > RANGES * 16 {
    PAYLOAD_MAX
} else {
    RANGES * 16
};

const MAGIC: [u8; 8] = *b"AGDSEG1\n";

/// What the first block of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    pub stream: u32,
    /// Seeds the check sums of this segment's records.
    pub nonce: u32,
    /// Of the first record of data.
    pub base: u64,
    /// No record in it is older.
    pub at_ns: u64,
}

impl SegmentHeader {
    /// Fills the first block of a segment.
    pub fn write(&self, block: &mut [u8; BLOCK]) {
        block.fill(0);
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&self.stream.to_le_bytes());
        block[12..16].copy_from_slice(&self.nonce.to_le_bytes());
        block[16..24].copy_from_slice(&self.base.to_le_bytes());
        block[24..32].copy_from_slice(&self.at_ns.to_le_bytes());
        let crc = crc32c::crc32c(&block[..32]);
        block[32..36].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads it back; the error is for people.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let head = bytes.get(..36).ok_or("it is shorter than a header")?;
        if head[..8] != MAGIC {
            return Err("it does not begin as a segment does");
        }
        if crc32c::crc32c(&head[..32]) != u32_at(head, 32) {
            return Err("the check sum of its header is wrong");
        }
        Ok(Self {
            stream: u32_at(head, 8),
            nonce: u32_at(head, 12),
            base: u64_at(head, 16),
            at_ns: u64_at(head, 24),
        })
    }
}

/// What a record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A payload of the stream.
    Data,
    /// Offsets that were settled: pairs of start and end.
    Settled,
    /// Offsets that got a mark, which stands where others have the length before compression; else as [`Kind::Settled`].
    Marked,
    /// Everything below one offset is settled: first in a segment, so that older ones need not be read for it.
    Checkpoint,
}

/// A record of which only the payload is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub kind: Kind,
    /// Its own for data; of the next data for the others.
    pub offset: u64,
    pub at_ns: u64,
    pub compression: Compression,
    /// Bytes of the payload before it was compressed.
    pub raw_len: u32,
    /// Counts commits: all records between two syncs have the same one. Wraps.
    pub group: u16,
    /// The last one of its commit.
    pub last: bool,
}

impl RecordHeader {
    /// Bytes that a record with a payload of `len` takes.
    pub fn space(len: usize) -> usize {
        (HEADER + len).next_multiple_of(ALIGN)
    }

    /// Writes header and payload to the beginning of `out`, which has [`Self::space`] for them; how many bytes that were.
    pub fn write(&self, nonce: u32, payload: &[u8], out: &mut [u8]) -> usize {
        let space = Self::space(payload.len());
        let kind = match self.kind {
            Kind::Data => 1,
            Kind::Settled => 2,
            Kind::Checkpoint => 3,
            Kind::Marked => 4,
        };
        // Callers keep payloads below STORED_MAX.
        let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        out[..4].copy_from_slice(&len.to_le_bytes());
        out[8..16].copy_from_slice(&self.offset.to_le_bytes());
        out[16..24].copy_from_slice(&self.at_ns.to_le_bytes());
        out[24..28].copy_from_slice(&self.raw_len.to_le_bytes());
        out[28..30].copy_from_slice(&self.group.to_le_bytes());
        out[30] = kind | (self.compression.number() << 4);
        out[31] = u8::from(self.last);
        out[HEADER..HEADER + payload.len()].copy_from_slice(payload);
        out[HEADER + payload.len()..space].fill(0);
        let crc = check_sum(nonce, &out[..HEADER + payload.len()]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        space
    }

    /// Marks a record that was written already as the last of its commit.
    pub fn mark_last(nonce: u32, record: &mut [u8]) {
        record[31] |= 1;
        let len = u32_at(record, 0) as usize;
        let crc = check_sum(nonce, &record[..HEADER + len]);
        record[4..8].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Of a header and its payload, but for the place of the check sum itself.
fn check_sum(nonce: u32, record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(nonce, &record[..4]), &record[8..])
}

/// What stands at one place of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A whole record, and the bytes to the next one.
    Record(RecordHeader, &'a [u8], usize),
    /// Zeros: nothing was written here.
    Blank,
    /// It goes on behind the bytes that were given; it needs so many.
    Short(usize),
    /// No record, or not a whole one.
    Bad(&'static str),
}

/// Reads the record at the beginning of `bytes`.
pub fn parse(nonce: u32, bytes: &[u8]) -> Parsed<'_> {
    let Some(head) = bytes.get(..HEADER) else {
        return if bytes.iter().all(|byte| *byte == 0) {
            Parsed::Blank
        } else {
            Parsed::Short(HEADER)
        };
    };
    if head.iter().all(|byte| *byte == 0) {
        return Parsed::Blank;
    }
    let len = u32_at(head, 0) as usize;
    let kind = match head[30] & 0xf {
        1 => Kind::Data,
        2 => Kind::Settled,
        3 => Kind::Checkpoint,
        4 => Kind::Marked,
        _ => return Parsed::Bad("no kind of record"),
    };
    let Some(compression) = Compression::from_number(head[30] >> 4) else {
        return Parsed::Bad("an unknown compression");
    };
    let raw_len = u32_at(head, 24);
    if len > STORED_MAX || raw_len as usize > STORED_MAX || head[31] > 1 {
        return Parsed::Bad("a header that says what can't be");
    }
    let Some(record) = bytes.get(..HEADER + len) else {
        return Parsed::Short(HEADER + len);
    };
    let payload = &record[HEADER..];
    if check_sum(nonce, record) != u32_at(head, 4) {
        return Parsed::Bad("the check sum is wrong");
    }
    let header = RecordHeader {
        kind,
        offset: u64_at(head, 8),
        at_ns: u64_at(head, 16),
        compression,
        raw_len,
        group: u16::from_le_bytes([head[28], head[29]]),
        last: head[31] == 1,
    };
    Parsed::Record(header, payload, RecordHeader::space(len))
}

/// The payload of records that hold no data.
pub fn write_ranges(ranges: &[Range<u64>], out: &mut Vec<u8>) {
    out.clear();
    for range in ranges {
        out.extend(range.start.to_le_bytes());
        out.extend(range.end.to_le_bytes());
    }
}

/// The reverse of [`write_ranges`].
pub fn read_ranges(payload: &[u8]) -> impl Iterator<Item = Range<u64>> + '_ {
    payload
        .chunks_exact(16)
        .map(|pair| u64_at(pair, 0)..u64_at(pair, 8))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u32 = 0x1234_5678;

    fn record() -> RecordHeader {
        RecordHeader {
            kind: Kind::Data,
            offset: 7,
            at_ns: 9,
            compression: Compression::None,
            raw_len: 5,
            group: 3,
            last: false,
        }
    }

    #[test]
    fn the_layout_is_as_documented() {
        let mut out = [0xee; 48];
        let space = record().write(NONCE, b"hello", &mut out);
        assert_eq!(space, 40);
        assert_eq!(out[..4], 5_u32.to_le_bytes());
        assert_eq!(out[8..16], 7_u64.to_le_bytes());
        assert_eq!(out[16..24], 9_u64.to_le_bytes());
        assert_eq!(out[24..28], 5_u32.to_le_bytes());
        assert_eq!(out[28..30], 3_u16.to_le_bytes());
        assert_eq!((out[30], out[31]), (1, 0));
        assert_eq!(&out[32..40], b"hello\0\0\0");
        let mut covered = out[..4].to_vec();
        covered.extend(&out[8..37]);
        assert_eq!(
            out[4..8],
            crc32c::crc32c_append(NONCE, &covered).to_le_bytes()
        );
    }

    #[test]
    fn what_is_written_is_read_back_and_no_bit_of_it_can_change_unseen() {
        let mut out = vec![0; 64];
        let space = record().write(NONCE, b"hello", &mut out);
        assert_eq!(
            parse(NONCE, &out),
            Parsed::Record(record(), b"hello", space)
        );
        for bit in 0..37 * 8 {
            out[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse(NONCE, &out), Parsed::Record(..)), "{bit}");
            out[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(
            parse(NONCE ^ 1, &out),
            Parsed::Bad("the check sum is wrong")
        );
        RecordHeader::mark_last(NONCE, &mut out);
        let last = RecordHeader {
            last: true,
            ..record()
        };
        assert_eq!(parse(NONCE, &out), Parsed::Record(last, b"hello", space));
        assert_eq!(parse(NONCE, &out[..33]), Parsed::Short(37));
        assert_eq!(parse(NONCE, &[0; 16]), Parsed::Blank);
    }

    #[test]
    fn a_segments_header_is_read_back_and_no_bit_of_it_can_change_unseen() {
        let header = SegmentHeader {
            stream: 1,
            nonce: 2,
            base: 3,
            at_ns: 4,
        };
        let mut block = [0; BLOCK];
        header.write(&mut block);
        assert_eq!(SegmentHeader::parse(&block), Ok(header));
        for bit in 0..36 * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::parse(&block).is_err(), "{bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
