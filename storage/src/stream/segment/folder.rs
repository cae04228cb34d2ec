//! The folder of the store and of each stream: names, the description of a stream, and changes that survive a power cut.
//!
//! ```text
//! streams/lock                  held while the store is open
//! streams/last-id               the highest id that was ever given
//! streams/0000002a/stream.json  whose, which, how it is kept
//! streams/0000002a/0000000007.seg
//! streams/0000002a/spare        the next segment in the making
//! ```
//!
//! Runs on the opening thread and the writer's; each function names the file that it failed on.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::stream::{
    Compression, Retention, StreamError, StreamId, StreamKind, StreamName, StreamSpec,
};

const STREAM: &str = "stream.json";
const LAST_ID: &str = "last-id";
/// The next segment, as the thread that makes spares has finished it, and while it makes it.
pub(super) const SPARE: &str = "spare";
pub(super) const SPARE_PART: &str = "spare.part";
/// A segment that has no name yet: the writer's alone.
pub(super) const NEW: &str = "new";

/// Takes the lock that keeps another agentd out, and makes the folder if need be.
pub(super) fn lock(root: &Path) -> Result<File, StreamError> {
    make(root).map_err(|error| open_error(root, &error))?;
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(root.join("lock"))
        .map_err(|error| open_error(root, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StreamError::Open {
            path: root.to_owned(),
            why: "another agentd uses it; stop that one, or name another folder (`[bus.durable] directory`)".to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(open_error(root, &error)),
    }
}

pub(super) fn open_error(path: &Path, error: &io::Error) -> StreamError {
    StreamError::Open {
        path: path.to_owned(),
        why: format!("{error}; check that agentd's user may write there and that there is room"),
    }
}

pub(super) fn read_error(
    path: &Path,
    call: &'static str,
) -> impl Fn(io::Error) -> StreamError + use<> {
    let path = path.to_owned();
    move |source| StreamError::Read {
        path: path.clone(),
        call,
        source: Arc::new(source),
    }
}

/// Makes a folder for agentd's user alone.
fn make(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Puts what happened to the names in a folder on the disk.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces a small file: after a power cut it is the old one or the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync(path.parent().unwrap_or(Path::new(".")))
}

/// `stream.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    id: u32,
    uid: u32,
    kind: String,
    name: String,
    max_bytes: Option<u64>,
    max_age_ms: Option<u64>,
    compression: u8,
    compress_above: u32,
    settings: String,
}

/// The folder of a stream.
pub(super) fn of_stream(root: &Path, id: StreamId) -> PathBuf {
    root.join(format!("{:08x}", id.0))
}

/// The file of a segment.
pub(super) fn of_segment(stream: &Path, number: u64) -> PathBuf {
    stream.join(format!("{number:010}.seg"))
}

/// Makes the folder of a new stream, whole or not at all.
pub(super) fn make_stream(
    root: &Path,
    id: StreamId,
    name: &StreamName,
    spec: &StreamSpec,
) -> io::Result<PathBuf> {
    replace(&root.join(LAST_ID), id.0.to_string().as_bytes())?;
    let path = of_stream(root, id);
    let new = root.join(format!("new-{:08x}", id.0));
    make(&new)?;
    describe(&new, id, name, spec)?;
    fs::rename(&new, &path)?;
    sync(root)?;
    Ok(path)
}

/// Writes down how a stream is kept.
pub(super) fn describe(
    path: &Path,
    id: StreamId,
    name: &StreamName,
    spec: &StreamSpec,
) -> io::Result<()> {
    let max_age = spec.retention.max_age;
    let description = Description {
        id: id.0,
        uid: name.uid,
        kind: name.kind.as_str().to_owned(),
        name: name.name.clone(),
        max_bytes: spec.retention.max_bytes,
        max_age_ms: max_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        compression: spec.compression.number(),
        compress_above: spec.compress_above,
        settings: spec.settings.clone(),
    };
    replace(&path.join(STREAM), &serde_json::to_vec(&description)?)
}

/// Forgets a stream: after a power cut it is there or it is not.
pub(super) fn remove_stream(root: &Path, id: StreamId) -> io::Result<()> {
    let dropped = root.join(format!("dropped-{:08x}", id.0));
    fs::rename(of_stream(root, id), &dropped)?;
    sync(root)?;
    fs::remove_dir_all(&dropped)
}

/// A stream as its folder describes it.
pub(super) struct Described {
    pub(super) id: StreamId,
    pub(super) path: PathBuf,
    pub(super) name: StreamName,
    pub(super) spec: StreamSpec,
}

/// The streams of a store, and the highest id that was ever given. Removes what was left half made or half dropped.
pub(super) fn list(root: &Path) -> Result<(Vec<Described>, u32), StreamError> {
    let fault = |error: io::Error| open_error(root, &error);
    let mut streams = Vec::new();
    let mut last = match fs::read_to_string(root.join(LAST_ID)) {
        Ok(text) => text.trim().parse().map_err(|_| StreamError::Open {
            path: root.join(LAST_ID),
            why: "it is no number; write the highest name of a folder beside it there, as decimal"
                .to_owned(),
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(fault(error)),
    };
    for entry in fs::read_dir(root).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("new-") || name.starts_with("dropped-") {
            fs::remove_dir_all(entry.path()).map_err(fault)?;
        } else if let Ok(id) = u32::from_str_radix(&name, 16)
            && name.len() == 8
        {
            streams.push(read(entry.path(), StreamId(id))?);
            last = last.max(id);
        }
    }
    streams.sort_by_key(|stream| stream.id);
    Ok((streams, last))
}

fn read(path: PathBuf, id: StreamId) -> Result<Described, StreamError> {
    let file = path.join(STREAM);
    let wrong = |why: String| StreamError::Open {
        path: file.clone(),
        why: format!("{why}; move its folder away to go on without this stream"),
    };
    let text = fs::read(&file).map_err(|error| wrong(error.to_string()))?;
    let it: Description =
        serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    let (Some(kind), Some(compression)) = (
        StreamKind::parse(&it.kind),
        Compression::from_number(it.compression),
    ) else {
        return Err(wrong(
            "a kind or compression that this agentd does not know".to_owned(),
        ));
    };
    if it.id != id.0 {
        return Err(wrong("it is of another stream".to_owned()));
    }
    Ok(Described {
        id,
        path,
        name: StreamName {
            uid: it.uid,
            kind,
            name: it.name,
        },
        spec: StreamSpec {
            retention: Retention {
                max_bytes: it.max_bytes,
                max_age: it.max_age_ms.map(Duration::from_millis),
            },
            compression,
            compress_above: it.compress_above,
            settings: it.settings,
        },
    })
}
