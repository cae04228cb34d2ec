//! Opening a stream's segments after whatever happened: a clean end, a crash, a power cut, a damaged disk.
//!
//! Only the last segment is read: the others were on the disk before it was begun, and are checked record by record when they
//! are read. The last one is cut off behind its last good record, never written to again, and a new one is begun with the
//! next append. What was cut or is damaged is put aside in a `.bad` file and told. It never makes records up.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    sync::Arc,
};

use agentd_segment::{BLOCK, HEADER, Scan, SegmentHeader, Standing, scan};

use super::{
    disk::{self, ReadBuffer},
    folder::{self, Described, read_error},
    state::{Live, Segment, State, Stream},
};
use crate::stream::{Damage, Settle, StreamError};

/// A segment as it lies in its folder.
struct Found {
    number: u64,
    size: u64,
    header: SegmentHeader,
}

/// Opens one stream; `notes` gets what somebody should know.
pub(super) fn open(described: Described, notes: &mut Vec<String>) -> Result<Stream, StreamError> {
    let stream = Stream::new(
        described.id,
        described.name,
        described.path,
        State::new(described.spec),
    );
    for left in [folder::SPARE, folder::SPARE_PART, folder::NEW] {
        let left = stream.folder.join(left);
        match fs::remove_file(&left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(folder::open_error(&left, &error));
            }
            _ => {}
        }
    }
    let (found, beyond) = find(&stream, notes)?;
    let Some((tail, sealed)) = found.split_last() else {
        stream.state().next = beyond;
        return Ok(stream);
    };

    let mut buffer = ReadBuffer::default();
    let mut segments = VecDeque::with_capacity(found.len());
    for (at, it) in sealed.iter().enumerate() {
        let live = Live {
            end: it.size,
            size: it.size,
            next: Some(found[at + 1].header.base),
            ..Live::default()
        };
        segments.push_back(segment(&stream, it, live));
    }
    let last = segment(&stream, tail, Live::default());
    let scanned = read_tail(&stream, &last, tail, &mut buffer, notes)?;
    segments.push_back(last);

    let (mut settled, mut older) = (scanned.settled, Vec::new());
    if !scanned.has_checkpoint {
        // The one thing that the last segment knows of the others is lost: they still say it themselves.
        for (it, segment) in sealed.iter().zip(&segments) {
            let standing = Standing::Sealed {
                next: segment.live().next.unwrap_or(it.header.base),
            };
            let bytes = load(segment, it.size, &mut buffer)?;
            let of = scan(&it.header, bytes, standing);
            settled.insert(0..of.settled.cursor());
            of.settled.ranges().for_each(|range| settled.insert(range));
            older.extend(of.marks);
        }
    }
    let mut state = stream.state();
    state.segments = segments;
    state.settled = settled;
    for (range, mark) in older.into_iter().chain(scanned.marks) {
        state.settle(range.start..range.end.min(scanned.next), Settle::Mark(mark));
    }
    state.next = scanned.next.max(beyond);
    state.last_at_ns = scanned.last_at_ns;
    drop(state);
    Ok(stream)
}

fn segment(stream: &Stream, found: &Found, live: Live) -> Arc<Segment> {
    let path = folder::of_segment(&stream.folder, found.number);
    Arc::new(Segment::new(found.number, path, found.header, live))
}

/// The segments of a stream, oldest first, and an offset that is certainly behind all that are lost.
fn find(stream: &Stream, notes: &mut Vec<String>) -> Result<(Vec<Found>, u64), StreamError> {
    let fault = |error: io::Error| folder::open_error(&stream.folder, &error);
    let mut numbers = Vec::new();
    for entry in fs::read_dir(&stream.folder).map_err(fault)? {
        let name = entry.map_err(fault)?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();

    let (mut found, mut lost, mut beyond) = (Vec::<Found>::new(), 0, 0);
    for number in numbers {
        let path = folder::of_segment(&stream.folder, number);
        let (size, header) = read_header(&path)?;
        let header = header.and_then(|header| {
            let follows = found.last().is_none_or(|it| it.header.base <= header.base);
            if header.stream != stream.id.0 {
                Err("it is of another stream")
            } else if !follows {
                Err("it begins before the one that it follows")
            } else {
                Ok(header)
            }
        });
        match header {
            Ok(header) => {
                found.push(Found {
                    number,
                    size,
                    header,
                });
                (lost, beyond) = (0, 0);
            }
            Err(why) => {
                let aside = path.with_extension("seg.bad");
                fs::rename(&path, &aside).map_err(|error| folder::open_error(&path, &error))?;
                // So many records at most were in it; none of their offsets may come again.
                lost += size / HEADER as u64;
                let place = aside.display().to_string();
                notes.push(format!(
                    "{}: {place} is damaged ({why}); its records are lost",
                    stream.name
                ));
                let from = found.last().map_or(0, |it| it.header.base);
                stream.state().damaged.push(Damage {
                    offsets: from..from,
                    place,
                    why: why.to_owned(),
                });
            }
        }
        let behind = found
            .last()
            .map_or(0, |it| it.header.base + it.size / HEADER as u64);
        beyond = if lost > 0 { behind + lost } else { beyond };
    }
    Ok((found, beyond))
}

fn read_header(
    path: &std::path::Path,
) -> Result<(u64, Result<SegmentHeader, &'static str>), StreamError> {
    let file = File::open(path).map_err(read_error(path, "open"))?;
    let size = file.metadata().map_err(read_error(path, "stat"))?.len();
    let mut buffer = ReadBuffer::default();
    let bytes = buffer
        .read(&file, 0, BLOCK)
        .map_err(read_error(path, "read"))?;
    Ok((size, SegmentHeader::parse(bytes)))
}

/// All bytes of a segment.
pub(super) fn load<'a>(
    segment: &Segment,
    size: u64,
    buffer: &'a mut ReadBuffer,
) -> Result<&'a [u8], StreamError> {
    let path = &segment.path;
    let file = disk::open(path, disk::For::Reading).map_err(read_error(path, "open"))?;
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    buffer
        .read(&file, 0, size)
        .map_err(read_error(path, "read"))
}

/// Reads the last segment, and cuts off what is behind its last good record.
fn read_tail(
    stream: &Stream,
    segment: &Segment,
    found: &Found,
    buffer: &mut ReadBuffer,
    notes: &mut Vec<String>,
) -> Result<Scan, StreamError> {
    let bytes = load(segment, found.size, buffer)?;
    let scanned = scan(&found.header, bytes, Standing::Tail);
    for bad in &scanned.damaged {
        stream.damage(segment, bad, &bytes[bad.positions.clone()]);
        notes.push(format!(
            "{}: records {} to {} are lost: {} in {}, bytes {} to {}",
            stream.name,
            bad.offsets.start,
            bad.offsets.end,
            bad.why,
            segment.path.display(),
            bad.positions.start,
            bad.positions.end,
        ));
    }
    if let Some(cut) = &scanned.cut {
        stream.put_aside(segment, cut, &bytes[cut.positions.clone()]);
        notes.push(format!(
            "{}: the last write did not reach the disk whole ({}): cut {} from byte {} on, next is record {}",
            stream.name,
            cut.why,
            segment.path.display(),
            cut.positions.start,
            scanned.next,
        ));
    }
    let end = scanned.end as u64;
    if found.size != end {
        let fault = |error: io::Error| folder::open_error(&segment.path, &error);
        let file = File::options()
            .write(true)
            .open(&segment.path)
            .map_err(fault)?;
        file.set_len(end).map_err(fault)?;
        file.sync_all().map_err(fault)?;
    }
    let mut live = segment.live();
    *live = Live {
        end,
        size: end,
        next: Some(scanned.next),
        index: Some(scanned.index.clone()),
        damaged: scanned.damaged.clone(),
    };
    drop(live);
    Ok(scanned)
}
