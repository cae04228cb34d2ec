//! The reader of durable streams' segments: bytes that a power cut tore, a disk lost or somebody
//! changed.
//!
//! The input is a segment to be written, commit by commit, and what becomes of its bytes. What the
//! reader then says is held against what was written. The segment's nonce comes from the whole
//! input: whoever makes up bytes does not know it.

use std::ops::Range;

use agentd_segment::{
    BLOCK, Compression, HEADER, Kind, Parsed, RecordHeader, Scan, SegmentHeader, Settled, Standing,
    parse, scan, write_ranges,
};

use crate::input::Input;

/// The segment's first offset.
const BASE: u64 = 100;
/// Bytes of reserved space behind the last record.
const RESERVED: usize = 512;

/// A record as it was written.
struct Written {
    position: usize,
    space: usize,
    header: RecordHeader,
    payload: Vec<u8>,
}

impl Written {
    /// The bytes that its check sum is about, and the check sum.
    fn bytes(&self) -> Range<usize> {
        self.position..self.position + HEADER + self.payload.len()
    }
}

/// A segment as it was written, and what it says besides data.
struct Segment {
    header: SegmentHeader,
    bytes: Vec<u8>,
    records: Vec<Written>,
    settled: Settled,
    marks: Vec<(Range<u64>, u8)>,
    next: u64,
}

/// A hash of everything: FNV-1a.
fn nonce(data: &[u8]) -> u32 {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    data.iter().fold(0x811c_9dc5, step)
}

/// Commits of records of every kind, with payloads of any bytes.
fn write(nonce: u32, input: &mut Input<'_>) -> Segment {
    let header = SegmentHeader {
        stream: 1,
        nonce,
        base: BASE,
        at_ns: 5,
    };
    let mut segment = Segment {
        header,
        bytes: vec![0; BLOCK],
        records: Vec::new(),
        settled: Settled::default(),
        marks: Vec::new(),
        next: BASE,
    };
    let mut block = [0; BLOCK];
    header.write(&mut block);
    segment.bytes.copy_from_slice(&block);
    for group in 0..u16::from(input.u8() % 8) {
        let count = 1 + input.u8() % 6;
        for nth in 0..count {
            segment.append(group, nth + 1 == count, input);
        }
    }
    segment.bytes.resize(segment.bytes.len() + RESERVED, 0);
    segment
}

impl Segment {
    fn append(&mut self, group: u16, last: bool, input: &mut Input<'_>) {
        let (what, size) = (input.u8(), input.u8());
        let start = u64::from(input.u8());
        let range = start..start + u64::from(size % 8);
        let mut payload = Vec::new();
        let (kind, raw_len) = match what % 8 {
            0 => {
                self.settled.insert(range.clone());
                write_ranges(&[range], &mut payload);
                (Kind::Settled, 0)
            }
            1 => {
                let mark = what / 8;
                self.marks.push((range.clone(), mark));
                write_ranges(&[range], &mut payload);
                (Kind::Marked, u32::from(mark))
            }
            2 => {
                self.settled.insert(0..start);
                write_ranges(&[0..start], &mut payload);
                (Kind::Checkpoint, 0)
            }
            _ => {
                payload.extend_from_slice(input.bytes(usize::from(size)));
                (Kind::Data, u32::try_from(payload.len()).unwrap_or(u32::MAX))
            }
        };
        let header = RecordHeader {
            kind,
            offset: self.next,
            at_ns: 5 + self.next,
            compression: Compression::None,
            raw_len,
            group,
            last,
        };
        let (position, space) = (self.bytes.len(), RecordHeader::space(payload.len()));
        self.bytes.resize(position + space, 0);
        header.write(self.header.nonce, &payload, &mut self.bytes[position..]);
        self.next += u64::from(kind == Kind::Data);
        self.records.push(Written {
            position,
            space,
            header,
            payload,
        });
    }
}

/// Tears, overwrites, flips and blanks bytes behind the header block.
fn harm(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    for _ in 0..input.u8() % 5 {
        let (how, room) = (input.u8(), bytes.len() - BLOCK);
        if room == 0 {
            return;
        }
        let at = BLOCK + usize::from(input.u16()) % room;
        let len = usize::from(input.u8()).min(bytes.len() - at);
        match how % 4 {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << (how / 32),
            2 => bytes[at..at + len].fill(0),
            _ => {
                let new = input.bytes(len);
                bytes[at..at + new.len()].copy_from_slice(new);
            }
        }
    }
}

/// What was written and is read is the same; nothing else is read; what is not read is named; and everything before the first
/// changed byte is read, and so is what was on the disk before a later commit began.
pub fn segment(data: &[u8]) {
    let mut input = Input::new(data);
    let (anything, is_sealed) = (input.u8() == 0, input.u8() % 2 == 1);
    if anything {
        return arbitrary(input.rest(), is_sealed);
    }
    let written = write(nonce(data), &mut input);
    let mut bytes = written.bytes.clone();
    harm(&mut bytes, &mut input);
    assert_eq!(SegmentHeader::parse(&bytes), Ok(written.header));
    let standing = if is_sealed {
        Standing::Sealed { next: written.next }
    } else {
        Standing::Tail
    };
    let scanned = scan(&written.header, &bytes, standing);
    adds_up(&scanned, &bytes);
    assert!(
        scanned.next <= written.next,
        "an offset that was never given"
    );
    if is_sealed {
        assert!(scanned.next == written.next && scanned.cut.is_none());
    }
    for offset in 0..600 {
        assert!(!scanned.settled.contains(offset) || written.settled.contains(offset));
    }
    assert!(scanned.marks.iter().all(|it| written.marks.contains(it)));

    let read = walk(&written, &bytes, &scanned);
    let whole = |it: &Written| bytes.get(it.bytes()) == written.bytes.get(it.bytes());
    // The commit of the last damaged record so far.
    let mut harmed: Option<u16> = None;
    for record in &written.records {
        if !whole(record) {
            harmed = Some(record.header.group);
            continue;
        }
        let is_data = record.header.kind == Kind::Data;
        let must = match harmed {
            None => true,
            Some(commit) => is_sealed || commit < record.header.group,
        };
        // Behind its last record of data, a segment that is closed needs nothing that comes after damage.
        if must && (is_data || !is_sealed) {
            assert!(read.contains(&record.position), "{:?}", record.header);
        }
    }
    if bytes == written.bytes {
        assert!(scanned.damaged.is_empty() && scanned.cut.is_none());
        let end = written
            .records
            .last()
            .map_or(BLOCK, |it| it.position + it.space);
        assert_eq!((scanned.next, scanned.end), (written.next, end));
    }
}

/// Reads as whoever replays a stream does, past what is damaged; where the records were. Each must be as it was written there.
fn walk(written: &Segment, bytes: &[u8], scanned: &Scan) -> Vec<usize> {
    let (mut at, mut read, mut data) = (BLOCK, Vec::new(), 0);
    while at < scanned.end {
        if let Some(bad) = scanned.damaged.iter().find(|it| it.positions.start == at)
            && !bad.positions.is_empty()
        {
            at = bad.positions.end;
            continue;
        }
        let Parsed::Record(header, payload, space) = parse(written.header.nonce, &bytes[at..])
        else {
            panic!("no record at {at}, before {}", scanned.end);
        };
        let record = written.records.iter().find(|it| it.position == at);
        let record = record.expect("a record was made up");
        assert_eq!((header, payload), (record.header, &record.payload[..]));
        data += u64::from(header.kind == Kind::Data);
        read.push(at);
        at += space;
    }
    assert_eq!(data, scanned.records);
    read
}

/// Whatever the bytes are: every offset is a record or named as lost, and every place is inside.
fn adds_up(scanned: &Scan, bytes: &[u8]) {
    let lost = scanned
        .damaged
        .iter()
        .map(|it| it.offsets.end - it.offsets.start);
    assert_eq!(scanned.records + lost.sum::<u64>(), scanned.next - BASE);
    assert!(scanned.end <= bytes.len().max(BLOCK));
    for bad in scanned.damaged.iter().chain(&scanned.cut) {
        assert!(bad.positions.start <= bad.positions.end && bad.positions.end <= bytes.len());
    }
}

/// Any bytes at all, as a whole file and as what follows a good header.
fn arbitrary(bytes: &[u8], is_sealed: bool) {
    if let Ok(header) = SegmentHeader::parse(bytes) {
        let mut block = [0; BLOCK];
        header.write(&mut block);
        assert_eq!(bytes[..36], block[..36]);
    }
    let header = SegmentHeader {
        stream: 1,
        nonce: nonce(bytes),
        base: BASE,
        at_ns: 5,
    };
    let file = [&[0; BLOCK], bytes].concat();
    let standing = if is_sealed {
        Standing::Sealed { next: BASE + 50 }
    } else {
        Standing::Tail
    };
    let scanned = scan(&header, &file, standing);
    assert_eq!(scanned.records, 0, "a record was made up");
    adds_up(&scanned, &file);
}
