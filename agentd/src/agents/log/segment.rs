//! One stretch of a log: a file on the disk, or, while the disk is full, a file in memory.
//!
//! A segment is named after the log offset of its first byte (`ID.log` begins at 0, `ID.log.00000000000067108864` where
//! it says), so what a directory holds says everything that a restarted daemon has to know: the end of the log is
//! the last segment's name plus its size. Beside a segment may lie its index (`….index`): 16-byte entries that say from
//! which offset on bytes came from which stream, and when. An entry is written *before* the bytes it speaks of, so a
//! daemon that is killed leaves at worst an entry about nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::agents::stdio::Stream;

/// Digits of an offset in a file name: every `u64` fits and names sort like offsets.
const OFFSET_DIGITS: usize = 20;

const INDEX_SUFFIX: &str = ".index";

/// Size of an index entry on the disk.
const MARK_BYTES: usize = 16;

/// The directory and the first file's name of one log.
#[derive(Debug, Clone)]
pub(crate) struct Stem {
    dir: PathBuf,
    name: String,
}

impl Stem {
    /// From the path of the first segment.
    pub(crate) fn of(path: &Path) -> Self {
        Self {
            dir: path.parent().unwrap_or(Path::new("/")).to_owned(),
            name: path
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default(),
        }
    }

    pub(crate) fn segment(&self, base: u64) -> PathBuf {
        match base {
            0 => self.dir.join(&self.name),
            base => self
                .dir
                .join(format!("{}.{base:0OFFSET_DIGITS$}", self.name)),
        }
    }

    /// The offset in a segment's file name; `None` for any other file.
    fn base_of(&self, file_name: &str) -> Option<u64> {
        match file_name.strip_prefix(&self.name)? {
            "" => Some(0),
            rest => rest
                .strip_prefix('.')
                .filter(|digits| digits.len() == OFFSET_DIGITS)?
                .parse()
                .ok(),
        }
    }

    /// The segments on the disk with their sizes, oldest first.
    pub(crate) fn segments(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some(base) = entry.file_name().to_str().and_then(|n| self.base_of(n)) {
                found.push((base, entry.metadata()?.len()));
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// The file beside `segment` with its index.
fn index_of(segment: &Path) -> PathBuf {
    let mut name = segment.as_os_str().to_owned();
    name.push(INDEX_SUFFIX);
    name.into()
}

/// From `offset` on, bytes came from `stream`; the first of them at `at_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub offset: u64,
    pub stream: Stream,
    /// Milliseconds since the Unix epoch, for readers who ask for "since"; nothing is decided by it.
    pub at_ms: u64,
}

impl Mark {
    fn to_bytes(self) -> [u8; MARK_BYTES] {
        let word = self.offset << 1 | u64::from(self.stream == Stream::Stderr);
        let mut bytes = [0; MARK_BYTES];
        bytes[..8].copy_from_slice(&word.to_le_bytes());
        bytes[8..].copy_from_slice(&self.at_ms.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8; MARK_BYTES]) -> Self {
        let word = |at: usize| {
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("two words of 8 bytes"))
        };
        Self {
            offset: word(0) >> 1,
            stream: if word(0) & 1 == 1 {
                Stream::Stderr
            } else {
                Stream::Stdout
            },
            at_ms: word(8),
        }
    }
}

/// The bytes from `offset` on that came from one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub stream: Stream,
    /// Where the run ends, or the segment.
    pub end: u64,
}

/// Which stream the byte at `offset` came from, and up to where that holds.
pub(crate) fn run_at(marks: &[Mark], offset: u64, segment_end: u64) -> Run {
    let next = marks.partition_point(|mark| mark.offset <= offset);
    let stream = match next.checked_sub(1) {
        Some(last) => marks[last].stream,
        None => Stream::Stdout,
    };
    let end = marks[next..]
        .iter()
        .find(|mark| mark.stream != stream)
        .map_or(segment_end, |mark| mark.offset.min(segment_end));
    Run { stream, end }
}

/// Reads the index beside `segment`; a half-written last entry is left out.
pub(crate) fn read_marks(segment: &Path) -> io::Result<Vec<Mark>> {
    let bytes = match std::fs::read(index_of(segment)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let (entries, _half) = bytes.as_chunks::<MARK_BYTES>();
    Ok(entries.iter().map(Mark::parse).collect())
}

/// Removes a segment's files; those that are not there are no error.
pub(crate) fn remove(segment: &Path) -> io::Result<()> {
    for path in [index_of(segment), segment.to_owned()] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// A segment that can be written to, or one in memory.
#[derive(Debug)]
pub(crate) struct Open {
    pub file: Arc<File>,
    /// `None` in memory, and on the disk until there is something to say.
    index: Option<File>,
    pub marks: Vec<Mark>,
}

/// Where a segment's bytes are.
#[derive(Debug)]
pub(crate) enum Place {
    /// On the disk; open while it is the one that grows.
    Disk(PathBuf, Option<Open>),
    Memory(Open),
}

/// One stretch of a log.
#[derive(Debug)]
pub(crate) struct Segment {
    pub base: u64,
    pub len: u64,
    pub place: Place,
}

impl Segment {
    /// Creates the file, which must not exist.
    pub(crate) fn create(stem: &Stem, base: u64) -> io::Result<Self> {
        let path = stem.segment(base);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Self {
            base,
            len: 0,
            place: Place::Disk(
                path,
                Some(Open {
                    file: Arc::new(file),
                    index: None,
                    marks: Vec::new(),
                }),
            ),
        })
    }

    /// Opens what another process of the daemon wrote, to go on.
    pub(crate) fn reopen(stem: &Stem, base: u64) -> io::Result<Self> {
        let path = stem.segment(base);
        let file = File::options().read(true).write(true).open(&path)?;
        let len = file.metadata()?.len();
        let marks = read_marks(&path)?;
        let index = if marks.is_empty() {
            None
        } else {
            Some(File::options().write(true).open(index_of(&path))?)
        };
        Ok(Self {
            base,
            len,
            place: Place::Disk(
                path,
                Some(Open {
                    file: Arc::new(file),
                    index,
                    marks,
                }),
            ),
        })
    }

    /// One that no longer grows.
    pub(crate) fn finished(stem: &Stem, base: u64, len: u64) -> Self {
        Self {
            base,
            len,
            place: Place::Disk(stem.segment(base), None),
        }
    }

    pub(crate) fn in_memory(base: u64) -> io::Result<Self> {
        let memory = rustix::fs::memfd_create("agentd-log", rustix::fs::MemfdFlags::CLOEXEC)?;
        Ok(Self {
            base,
            len: 0,
            place: Place::Memory(Open {
                file: Arc::new(File::from(memory)),
                index: None,
                marks: Vec::new(),
            }),
        })
    }

    pub(crate) fn end(&self) -> u64 {
        self.base + self.len
    }

    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.place, Place::Memory(_))
    }

    /// The open file, of one that grows or lies in memory.
    pub(crate) fn open(&self) -> Option<&Open> {
        match &self.place {
            Place::Disk(_, open) => open.as_ref(),
            Place::Memory(open) => Some(open),
        }
    }

    /// Bytes it takes: its own and its index.
    pub(crate) fn cost(&self) -> u64 {
        let marks = self.open().map_or(0, |open| open.marks.len() * MARK_BYTES);
        self.len + marks as u64
    }

    /// Says where the next bytes come from. Must be called before they are written.
    pub(crate) fn mark(&mut self, mark: Mark) -> io::Result<()> {
        let (path, open) = match &mut self.place {
            Place::Disk(path, Some(open)) => (Some(&*path), open),
            Place::Memory(open) => (None, open),
            Place::Disk(_, None) => unreachable!("only the segment that grows is marked"),
        };
        if let Some(path) = path {
            let index = match &mut open.index {
                Some(index) => index,
                index => index.insert(
                    File::options()
                        .write(true)
                        .create(true)
                        .truncate(true)
                        .open(index_of(path))?,
                ),
            };
            index.write_all_at(&mark.to_bytes(), (open.marks.len() * MARK_BYTES) as u64)?;
        }
        open.marks.push(mark);
        Ok(())
    }

    /// It grows no more: its descriptors are closed, except in memory, where they are all there is.
    pub(crate) fn finish(&mut self) {
        if let Place::Disk(_, open) = &mut self.place {
            *open = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_offsets_and_other_files_are_left_alone() {
        let stem = Stem::of(Path::new("/logs/a.log"));
        assert_eq!(stem.segment(0), Path::new("/logs/a.log"));
        let later = stem.segment(70_000);
        let name = later.file_name().unwrap().to_str().unwrap();
        assert_eq!(stem.base_of(name), Some(70_000));
        for other in ["a.log.index", "b.log", "a.log.1", &format!("{name}.index")] {
            assert_eq!(stem.base_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_index_survives_and_its_half_written_end_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let stem = Stem::of(&dir.path().join("a.log"));
        let mut segment = Segment::create(&stem, 0).unwrap();
        let marks = [(0, Stream::Stderr, 5), (u64::MAX >> 1, Stream::Stdout, 6)].map(
            |(offset, stream, at_ms)| Mark {
                offset,
                stream,
                at_ms,
            },
        );
        for mark in marks {
            segment.mark(mark).unwrap();
        }
        let path = stem.segment(0);
        assert_eq!(read_marks(&path).unwrap(), marks);
        let index = File::options().write(true).open(index_of(&path)).unwrap();
        index.set_len(MARK_BYTES as u64 + 7).unwrap();
        assert_eq!(read_marks(&path).unwrap(), marks[..1]);
    }

    #[test]
    fn a_run_ends_where_the_stream_changes_and_not_where_only_time_is_noted() {
        let mark = |offset, stream| Mark {
            offset,
            stream,
            at_ms: 0,
        };
        let marks = [
            mark(10, Stream::Stderr),
            mark(15, Stream::Stderr),
            mark(20, Stream::Stdout),
        ];
        let run = |offset| run_at(&marks, offset, 30);
        let expected = |stream, end| Run { stream, end };
        assert_eq!(run(0), expected(Stream::Stdout, 10));
        assert_eq!(run(10), expected(Stream::Stderr, 20));
        assert_eq!(run(16), expected(Stream::Stderr, 20));
        assert_eq!(run(20), expected(Stream::Stdout, 30));
    }
}
