//! Copying a log out to whoever asked for it, through a pipe: `agentctl logs`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentd_api::LogOptions;
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::net::unix::pipe;
use tokio::sync::watch;

use super::{Cursor, LogError, LogState, OutputLog, Piece};

/// How much is read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// How much of a log somebody wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    All,
    /// The last so many lines.
    Tail(u64),
    /// What was written at this Unix time, in milliseconds, or later; to the second.
    Since(u64),
    /// Of that, the last so many lines.
    SinceTail(u64, u64),
    /// From this offset on.
    From(u64),
}

impl Extent {
    /// What the caller asked for.
    pub fn of(options: &LogOptions) -> Self {
        match (options.from_offset, options.tail, options.since_ms) {
            (Some(offset), ..) => Self::From(offset),
            (None, None, None) => Self::All,
            (None, Some(lines), None) => Self::Tail(lines),
            (None, None, Some(since)) => Self::Since(since),
            (None, Some(lines), Some(since)) => Self::SinceTail(since, lines),
        }
    }

    /// Where it begins now.
    pub fn begin(self, log: &Arc<OutputLog>) -> io::Result<u64> {
        let LogState { start, end, .. } = log.state();
        match self {
            Self::All => Ok(start),
            Self::From(offset) => Ok(offset.min(end)),
            Self::Tail(lines) => log.last_lines(lines, end),
            Self::Since(since) => log.since(since),
            Self::SinceTail(since, lines) => Ok(log.since(since)?.max(log.last_lines(lines, end)?)),
        }
    }
}

/// Whether a reader wants what is yet to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    No,
    Yes,
}

/// Opens a log for reading: a pipe that ends where the log ends, for a follower when the agent does.
pub fn read(log: &Arc<OutputLog>, extent: Extent, follow: Follow) -> Result<OwnedFd, LogError> {
    let (sender, receiver) = pipe::pipe().map_err(LogError::Pipe)?;
    let reader = receiver.into_blocking_fd().map_err(LogError::Pipe)?;
    let growth = (follow == Follow::Yes).then(|| log.subscribe());
    let log = Arc::clone(log);
    tokio::spawn(async move {
        if let Err(error) = copy_out(&log, extent, sender, growth).await {
            tracing::debug!("a log was not read to its end: {error}");
        }
    });
    Ok(reader)
}

/// Copies the log into `out` until its end, or for a follower until it is closed. A reader that goes away ends it.
async fn copy_out(
    log: &Arc<OutputLog>,
    extent: Extent,
    mut out: pipe::Sender,
    mut growth: Option<watch::Receiver<LogState>>,
) -> io::Result<()> {
    let mut cursor = Cursor::new(log, extent.begin(log)?);
    let now = log.state().end;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let state = growth.as_mut().map(|growth| *growth.borrow_and_update());
        let until = state.map_or(now, |state| state.end);
        loop {
            match cursor.read(&mut chunk, until)? {
                Piece::Bytes { len, .. } => out.write_all(&chunk[..len]).await?,
                Piece::Gap { bytes } => {
                    let notice = format!("\n[agentd: {bytes} bytes are not kept]\n");
                    out.write_all(notice.as_bytes()).await?;
                }
                Piece::Nothing => break,
            }
        }
        let Some(growth) = growth.as_mut() else {
            return Ok(());
        };
        if state.is_some_and(|state| state.closed) {
            return Ok(());
        }
        tokio::select! {
            changed = growth.changed() => if changed.is_err() { return Ok(()) },
            // A follower that has gone must not keep the task until the agent's next word.
            _ = out.ready(tokio::io::Interest::ERROR) => return Ok(()),
        }
    }
}

/// Everything from offset `from` on, as a stream that ends when the log is closed. The log waits for its reader.
pub fn follow(log: &Arc<OutputLog>, from: u64) -> DuplexStream {
    let (reader, mut out) = tokio::io::duplex(CHUNK_BYTES);
    let mut cursor = Cursor::lossless(log, from);
    let mut growth = log.subscribe();
    tokio::spawn(async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let copied: io::Result<()> = async {
            loop {
                let LogState { end, closed, .. } = *growth.borrow_and_update();
                loop {
                    match cursor.read(&mut chunk, end)? {
                        Piece::Bytes { len, .. } => out.write_all(&chunk[..len]).await?,
                        Piece::Gap { bytes } => {
                            return Err(io::Error::other(format!("{bytes} bytes are not kept")));
                        }
                        Piece::Nothing => break,
                    }
                }
                if closed || growth.changed().await.is_err() {
                    return Ok(());
                }
            }
        }
        .await;
        if let Err(error) = copied {
            tracing::warn!("a journal was not read to its end: {error}");
        }
    });
    reader
}
