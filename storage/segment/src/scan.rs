//! Reading a whole segment: what is in it, where it ends, and what of it is lost.
//!
//! Pure: bytes in, [`Scan`] out; the fuzz target `segment` runs it. It decides what a place that can't be read *means*.
//! A commit is written only after the one before is on the disk. So a bad place with a record of a *later* commit behind it
//! was on the disk once: that is damage, and it is named. A bad place in the last commit is a write that the power cut: it
//! was never acknowledged, and the segment ends before it. In a segment that is no longer written to, everything bad is damage.

use std::ops::Range;

use crate::Settled;
use crate::format::{BLOCK, Kind, Parsed, RecordHeader, SegmentHeader, parse, read_ranges};

/// Bytes between two entries of the sparse index.
const INDEX_EVERY: usize = 16 * 1024;

/// Where a record of data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    pub offset: u64,
    pub at_ns: u64,
    pub position: u64,
}

/// Every so often a record of data, in order.
#[derive(Clone, Debug, Default)]
pub struct Index(Vec<IndexEntry>);

impl Index {
    /// Takes note of a record if the last noted one is far enough away.
    pub fn note(&mut self, entry: IndexEntry) {
        let far = |last: &IndexEntry| entry.position - last.position >= INDEX_EVERY as u64;
        if self.0.last().is_none_or(far) {
            self.0.push(entry);
        }
    }

    /// Where to begin to find `offset`; `None`: at the first record.
    pub fn before_offset(&self, offset: u64) -> Option<IndexEntry> {
        let at = self.0.partition_point(|entry| entry.offset <= offset);
        at.checked_sub(1).map(|at| self.0[at])
    }

    /// Where to begin to find the first record of `at_ns` or later.
    pub fn before_time(&self, at_ns: u64) -> Option<IndexEntry> {
        let at = self.0.partition_point(|entry| entry.at_ns < at_ns);
        at.checked_sub(1).map(|at| self.0[at])
    }
}

/// Whether a segment may end in the middle of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It was the one being written when the store was last used.
    Tail,
    /// Another one follows, and begins with this offset.
    Sealed { next: u64 },
}

/// Bytes that are not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBytes {
    pub positions: Range<usize>,
    /// Records of data that are lost with them: maybe none.
    pub offsets: Range<u64>,
    pub why: &'static str,
}

/// What is in a segment.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Behind the last good record.
    pub end: usize,
    /// The offset behind the last record of data.
    pub next: u64,
    /// Records of data.
    pub records: u64,
    /// Time of the last one.
    pub last_at_ns: u64,
    pub settled: Settled,
    /// Marks in the order in which they were given.
    pub marks: Vec<(Range<u64>, u8)>,
    /// What older segments say of settled offsets is in here too.
    pub has_checkpoint: bool,
    pub index: Index,
    pub damaged: Vec<BadBytes>,
    /// The write that was cut, in a [`Standing::Tail`].
    pub cut: Option<BadBytes>,
}

/// Reads everything behind the header block. `bytes` is the file from its beginning.
pub fn scan(header: &SegmentHeader, bytes: &[u8], standing: Standing) -> Scan {
    let mut scan = Scan {
        end: BLOCK,
        next: header.base,
        last_at_ns: header.at_ns,
        ..Scan::default()
    };
    // The commit to which the record at `end` must belong, once there was one.
    let mut commit = Commit::default();
    loop {
        // A segment that is no longer written to holds nothing of the next one's.
        if matches!(standing, Standing::Sealed { next } if scan.next >= next) {
            scan.rest(header.nonce, bytes);
            return scan;
        }
        let here = bytes.get(scan.end..).unwrap_or_default();
        let why = match parse(header.nonce, here) {
            Parsed::Record(record, payload, space) if record.offset == scan.next => {
                scan.take(&record, payload, space, bytes.len());
                commit.follow(&record);
                continue;
            }
            Parsed::Record(..) => "a record that does not follow the one before",
            Parsed::Blank => "nothing where a record was",
            Parsed::Short(_) => "a record that goes on behind the end of the file",
            Parsed::Bad(why) => why,
        };
        let Some(behind) = next_good(header.nonce, bytes, scan.end, scan.next) else {
            scan.finish(bytes, standing, why);
            return scan;
        };
        let later = matches!(standing, Standing::Sealed { .. })
            || commit.is_behind(header.nonce, bytes, behind.position, scan.next);
        if !later {
            scan.cut = Some(BadBytes {
                positions: scan.end..used(bytes),
                offsets: scan.next..scan.next,
                why,
            });
            return scan;
        }
        scan.damaged.push(BadBytes {
            positions: scan.end..behind.position,
            offsets: scan.next..behind.offset,
            why,
        });
        (scan.end, scan.next) = (behind.position, behind.offset);
    }
}

/// Which commit the next record belongs to.
#[derive(Default)]
struct Commit {
    last: Option<RecordHeader>,
}

impl Commit {
    fn follow(&mut self, record: &RecordHeader) {
        self.last = Some(*record);
    }

    /// Whether a good record at or behind `from` belongs to a later commit than what is bad before it.
    fn is_behind(&self, nonce: u32, bytes: &[u8], from: usize, next: u64) -> bool {
        let Some(last) = self.last else {
            // The very first record is bad: it was written before the file got its name.
            return true;
        };
        let bad = last.group.wrapping_add(u16::from(last.last));
        let mut at = from;
        while let Some(good) = next_good(nonce, bytes, at, next) {
            if good.group.wrapping_sub(bad).cast_signed() > 0 {
                return true;
            }
            at = good.position + good.space;
        }
        false
    }
}

/// A record found by searching.
struct Good {
    position: usize,
    offset: u64,
    group: u16,
    space: usize,
}

/// The first whole record at or behind `from` that can follow.
fn next_good(nonce: u32, bytes: &[u8], from: usize, next: u64) -> Option<Good> {
    let mut position = from.next_multiple_of(8);
    while let Some(rest) = bytes.get(position..).filter(|rest| !rest.is_empty()) {
        // Most of what is behind the end is blank. A header's byte 30 never is, so a record begins at most that far before
        // the first byte that is not 0.
        let zeros = rest.iter().position(|byte| *byte != 0)?;
        if zeros > 30 {
            position += (zeros - 30).next_multiple_of(8);
        }
        let rest = bytes.get(position..)?;
        if let Parsed::Record(record, _, space) = parse(nonce, rest)
            && record.offset >= next
        {
            return Some(Good {
                position,
                offset: record.offset,
                group: record.group,
                space,
            });
        }
        position += 8;
    }
    None
}

/// Where the zeros at the end begin.
fn used(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1)
}

impl Scan {
    fn take(&mut self, record: &RecordHeader, payload: &[u8], space: usize, len: usize) {
        match record.kind {
            Kind::Data => {
                self.index.note(IndexEntry {
                    offset: record.offset,
                    at_ns: record.at_ns,
                    position: self.end as u64,
                });
                // Only what the writer never wrote could wrap.
                self.next = self.next.saturating_add(1);
                self.records += 1;
                self.last_at_ns = self.last_at_ns.max(record.at_ns);
            }
            Kind::Checkpoint => {
                self.has_checkpoint = true;
                read_ranges(payload).for_each(|range| self.settled.insert(range));
            }
            Kind::Settled => read_ranges(payload).for_each(|range| self.settled.insert(range)),
            Kind::Marked => {
                let mark = u8::try_from(record.raw_len).unwrap_or(u8::MAX);
                read_ranges(payload).for_each(|range| self.marks.push((range, mark)));
            }
        }
        // The last record may be whole in a file that ends inside its padding.
        self.end = (self.end + space).min(len);
    }

    /// The settled offsets that stand behind the last record of data.
    fn rest(&mut self, nonce: u32, bytes: &[u8]) {
        while let Parsed::Record(record, payload, space) =
            parse(nonce, bytes.get(self.end..).unwrap_or_default())
            && record.kind != Kind::Data
        {
            self.take(&record, payload, space, bytes.len());
        }
    }

    /// Nothing good is behind `end`.
    fn finish(&mut self, bytes: &[u8], standing: Standing, why: &'static str) {
        let used = used(bytes);
        match standing {
            Standing::Tail if used > self.end => {
                self.cut = Some(BadBytes {
                    positions: self.end..used,
                    offsets: self.next..self.next,
                    why,
                });
            }
            Standing::Tail => {}
            Standing::Sealed { next } if self.next < next => {
                self.damaged.push(BadBytes {
                    positions: self.end..used.max(self.end),
                    offsets: self.next..next,
                    why,
                });
                self.next = next;
            }
            Standing::Sealed { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Compression;

    const HEADER: SegmentHeader = SegmentHeader {
        stream: 1,
        nonce: 0xfeed,
        base: 100,
        at_ns: 5,
    };

    /// A segment with these commits, each of so many records; the payload of a record is its offset.
    fn segment(commits: &[u8]) -> (Vec<u8>, u64) {
        let mut bytes = vec![0; BLOCK + 32 * 1024];
        let (mut at, mut offset) = (BLOCK, HEADER.base);
        for (group, count) in commits.iter().enumerate() {
            for nth in 0..*count {
                let record = RecordHeader {
                    kind: Kind::Data,
                    offset,
                    at_ns: offset,
                    compression: Compression::None,
                    raw_len: 8,
                    group: u16::try_from(group).unwrap(),
                    last: nth + 1 == *count,
                };
                at += record.write(HEADER.nonce, &offset.to_le_bytes(), &mut bytes[at..]);
                offset += 1;
            }
        }
        (bytes, offset)
    }

    /// Overwrites `len` bytes from `at` on.
    fn changes() -> impl Strategy<Value = Vec<(usize, Vec<u8>)>> {
        let bytes = prop_oneof![
            proptest::collection::vec(any::<u8>(), 1..60),
            (1_usize..3000).prop_map(|len| vec![0; len]),
        ];
        proptest::collection::vec((BLOCK..BLOCK + 4000, bytes), 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_becomes_of_the_bytes_nothing_is_made_up_or_counted_twice(
            commits in proptest::collection::vec(1_u8..6, 1..20),
            changes in changes(),
            length in BLOCK..BLOCK + 33 * 1024,
            sealed in any::<bool>(),
        ) {
            let (mut bytes, next) = segment(&commits);
            for (at, change) in changes {
                bytes[at..at + change.len()].copy_from_slice(&change);
            }
            bytes.truncate(length);
            let standing = if sealed { Standing::Sealed { next } } else { Standing::Tail };
            let scan = scan(&HEADER, &bytes, standing);
            prop_assert!(scan.end <= bytes.len().max(BLOCK) && scan.next <= next);
            let lost: u64 = scan.damaged.iter().map(|it| it.offsets.end - it.offsets.start).sum();
            prop_assert_eq!(scan.records + lost, scan.next - HEADER.base);
            if sealed {
                // Every record is there or named.
                prop_assert!(scan.next == next && scan.cut.is_none());
            }
            for bad in scan.damaged.iter().chain(&scan.cut) {
                prop_assert!(bad.positions.start <= bad.positions.end && bad.positions.end <= bytes.len());
            }
        }

        #[test]
        fn bytes_that_are_anything_are_read_without_a_record(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            sealed in proptest::option::of(0_u64..200),
        ) {
            let mut all = vec![0; BLOCK];
            all.extend(bytes);
            let standing = sealed.map_or(Standing::Tail, |next| Standing::Sealed { next });
            prop_assert_eq!(scan(&HEADER, &all, standing).records, 0);
        }
    }

    #[test]
    fn a_file_that_ends_inside_the_padding_of_a_record_ends_there() {
        let mut bytes = vec![0; BLOCK + 64];
        let record = RecordHeader {
            kind: Kind::Data,
            offset: HEADER.base,
            at_ns: 5,
            compression: Compression::None,
            raw_len: 3,
            group: 0,
            last: true,
        };
        record.write(HEADER.nonce, b"abc", &mut bytes[BLOCK..]);
        bytes.truncate(BLOCK + 32 + 3);
        let next = HEADER.base + 2;
        let scan = scan(&HEADER, &bytes, Standing::Sealed { next });
        assert_eq!((scan.records, scan.next, scan.end), (1, next, bytes.len()));
        assert_eq!(scan.damaged[0].positions, bytes.len()..bytes.len());
    }

    #[test]
    fn an_untouched_segment_is_read_whole() {
        let (bytes, next) = segment(&[3, 1, 5]);
        let scan = scan(&HEADER, &bytes, Standing::Tail);
        assert_eq!((scan.next, scan.records), (next, 9));
        assert!(scan.damaged.is_empty() && scan.cut.is_none());
    }
}
