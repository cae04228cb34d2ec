//! What an agent wrote: one append-only file per launch, readable while it grows.
//!
//! The file holds the bytes of stdout and stderr (or of the terminal) as they arrived. It is bounded: at the limit
//! the log ends with a line that says so and later output is counted, not kept, so that a chatty agent cannot fill
//! the disk. Writes go to the page cache from the session's task; they are not synced, because losing the last
//! lines of output in a power cut is what every log does.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// How much of the file is read at once when it is copied out.
const CHUNK_BYTES: usize = 64 * 1024;

/// The writing side, owned by the session.
#[derive(Debug)]
pub struct OutputLog {
    path: PathBuf,
    file: Mutex<File>,
    limit_bytes: u64,
    state: watch::Sender<LogState>,
}

/// How long the log is and whether it can still grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LogState {
    pub len_bytes: u64,
    /// Bytes that came after the limit.
    pub dropped_bytes: u64,
    pub closed: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("cannot {verb} {path}")]
    File {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make a pipe")]
    Pipe(#[source] std::io::Error),
}

impl OutputLog {
    /// Creates the log at `path`, which must not exist.
    pub fn create(path: &Path, limit_bytes: u64) -> Result<Self, LogError> {
        let file = File::options()
            .read(true)
            .append(true)
            .create_new(true)
            .open(path)
            .map_err(|source| LogError::File {
                verb: "create",
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            limit_bytes,
            state: watch::Sender::default(),
        })
    }

    /// Goes on with the log that an earlier agentd began at `path`.
    pub fn reopen(path: &Path, limit_bytes: u64) -> Result<Self, LogError> {
        let fault = |source| LogError::File {
            verb: "open",
            path: path.to_owned(),
            source,
        };
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .map_err(fault)?;
        let len_bytes = file.metadata().map_err(fault)?.len();
        Ok(Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            limit_bytes,
            state: watch::Sender::new(LogState {
                len_bytes,
                ..LogState::default()
            }),
        })
    }

    /// Appends `bytes`, as far as the limit allows. A full disk is reported once and ends the log, not the agent.
    pub fn append(&self, bytes: &[u8]) {
        let LogState {
            len_bytes, closed, ..
        } = *self.state.borrow();
        let room = if closed {
            0
        } else {
            self.limit_bytes.saturating_sub(len_bytes)
        };
        let kept = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut written = kept.len() as u64;
        if let Err(error) = file.write_all(kept) {
            tracing::error!(path = %self.path.display(), "the output log ends here: {error}");
            written = 0;
        }
        let dropped = bytes.len() as u64 - written;
        let mut added = written;
        if dropped > 0 && self.state.borrow().dropped_bytes == 0 {
            let notice = format!(
                "\n[agentd: output beyond {} bytes is not kept]\n",
                self.limit_bytes
            );
            if file.write_all(notice.as_bytes()).is_ok() {
                added += notice.len() as u64;
            }
        }
        drop(file);
        self.state.send_modify(|s| {
            s.len_bytes += added;
            s.dropped_bytes += dropped;
        });
    }

    /// No more output will come: followers end.
    pub fn close(&self) {
        self.state.send_modify(|s| s.closed = true);
    }

    pub fn state(&self) -> LogState {
        *self.state.borrow()
    }

    fn subscribe(&self) -> watch::Receiver<LogState> {
        self.state.subscribe()
    }
}

/// How much of a log somebody wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    All,
    /// The last so many lines.
    Tail(u64),
}

/// Opens the finished log at `path` for reading: a pipe that ends where the log ends.
pub fn read_finished(path: &Path, extent: Extent) -> Result<OwnedFd, LogError> {
    let file = File::open(path).map_err(|source| LogError::File {
        verb: "open",
        path: path.to_owned(),
        source,
    })?;
    let (reader, writer) = make_pipe()?;
    tokio::spawn(copy_out(file, extent, writer, None));
    Ok(reader)
}

/// Opens a live log for reading; with `follow` the pipe ends when the agent does.
pub fn read_live(
    log: &Arc<OutputLog>,
    extent: Extent,
    follow: Follow,
) -> Result<OwnedFd, LogError> {
    let file = File::open(&log.path).map_err(|source| LogError::File {
        verb: "open",
        path: log.path.clone(),
        source,
    })?;
    let (reader, writer) = make_pipe()?;
    let growth = (follow == Follow::Yes).then(|| log.subscribe());
    tokio::spawn(copy_out(file, extent, writer, growth));
    Ok(reader)
}

/// Whether a reader wants what is yet to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    No,
    Yes,
}

fn make_pipe() -> Result<(OwnedFd, pipe::Sender), LogError> {
    let (sender, receiver) = pipe::pipe().map_err(LogError::Pipe)?;
    let reader = receiver.into_blocking_fd().map_err(LogError::Pipe)?;
    Ok((reader, sender))
}

/// Copies the log into `out` until its end, or for a follower until it is closed. A reader that goes away ends it.
async fn copy_out(
    mut file: File,
    extent: Extent,
    mut out: pipe::Sender,
    mut growth: Option<watch::Receiver<LogState>>,
) {
    if let Extent::Tail(lines) = extent
        && let Err(error) = seek_to_last_lines(&mut file, lines)
    {
        tracing::warn!("cannot find the last {lines} lines of a log: {error}");
        return;
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let closed = growth.as_mut().is_none_or(|g| g.borrow_and_update().closed);
        loop {
            match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => {
                    if out.write_all(&chunk[..n]).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!("cannot read a log: {error}");
                    return;
                }
            }
        }
        let Some(growth) = growth.as_mut().filter(|_| !closed) else {
            return;
        };
        tokio::select! {
            changed = growth.changed() => if changed.is_err() { return },
            // A follower that has gone must not keep the task until the agent's next word.
            _ = out.ready(tokio::io::Interest::ERROR) => return,
        }
    }
}

/// Places `file` at the start of its last `lines` lines.
fn seek_to_last_lines(file: &mut File, lines: u64) -> std::io::Result<()> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 || end == 0 {
        return Ok(());
    }
    let mut wanted = lines;
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at_end = true;
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let part = &mut chunk[..usize::try_from(end - start).unwrap_or(CHUNK_BYTES)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        // The newline that ends the last line does not begin another.
        let searched = if at_end && part.last() == Some(&b'\n') {
            &part[..part.len() - 1]
        } else {
            &part[..]
        };
        for at in memchr::memrchr_iter(b'\n', searched) {
            wanted -= 1;
            if wanted == 0 {
                file.seek(SeekFrom::Start(start + at as u64 + 1))?;
                return Ok(());
            }
        }
        at_end = false;
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn read_all(fd: OwnedFd) -> String {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        text
    }

    fn temp_log(limit: u64) -> (tempfile::TempDir, Arc<OutputLog>) {
        let dir = tempfile::tempdir().unwrap();
        let log = OutputLog::create(&dir.path().join("a.log"), limit).unwrap();
        (dir, Arc::new(log))
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_follower_gets_what_comes_later_and_ends_with_the_agent() {
        let (_dir, log) = temp_log(1 << 20);
        log.append(b"one\n");
        let fd = read_live(&log, Extent::All, Follow::Yes).unwrap();
        let reader = tokio::task::spawn_blocking(move || read_all(fd));
        log.append(b"two\n");
        log.close();
        assert_eq!(reader.await.unwrap(), "one\ntwo\n");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reader_who_does_not_follow_gets_what_is_there() {
        let (_dir, log) = temp_log(1 << 20);
        log.append(b"one\ntwo\nthree\n");
        let fd = read_live(&log, Extent::Tail(2), Follow::No).unwrap();
        assert_eq!(
            tokio::task::spawn_blocking(move || read_all(fd))
                .await
                .unwrap(),
            "two\nthree\n"
        );
    }

    #[test]
    fn the_log_stops_at_its_limit_says_so_once_and_counts_the_rest() {
        let (dir, log) = temp_log(10);
        log.append(b"0123456789abc");
        log.append(b"more");
        let text = std::fs::read_to_string(dir.path().join("a.log")).unwrap();
        assert_eq!(
            text,
            "0123456789\n[agentd: output beyond 10 bytes is not kept]\n"
        );
        assert_eq!(log.state().dropped_bytes, 7);
    }

    #[test]
    fn the_last_lines_are_found_over_chunk_borders_and_without_a_final_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let long = "x".repeat(CHUNK_BYTES);
        std::fs::write(&path, format!("first\n{long}\nlast")).unwrap();
        let mut file = File::open(&path).unwrap();
        for (lines, expected) in [
            (1, "last".to_owned()),
            (2, format!("{long}\nlast")),
            (9, format!("first\n{long}\nlast")),
        ] {
            seek_to_last_lines(&mut file, lines).unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert!(text == expected, "last {lines} lines");
        }
    }
}
