//! Shows an agent's output to one attached peer, out of the log.
//!
//! A viewer is a cursor in the log and a socket: it begins at the scroll-back, at "now" or at an offset, reads on to the
//! end, and then follows, so between what was and what comes there is neither gap nor overlap, and no viewer knows of
//! another. Notices (stopped, continued) stand at an offset too and keep their place. A lossy viewer that is too far
//! behind skips to the scroll-back and is told how much it missed; a lossless one holds the log, and with it the
//! agent, back.
//!
//! One task per attached peer; ends after the farewell, or when the peer has gone.

use std::io;
use std::sync::Arc;

use agentd_api::attach::{AttachFrame, MAX_PAYLOAD};
use tokio::sync::{mpsc, watch};

use super::attachment::{Attachment, Manner};
use super::log::{Cursor, LogState, OutputLog, Piece};
use super::stdio::Stream;

/// How much of the past a new viewer is shown.
pub const SCROLL_BACK_BYTES: u64 = 64 * 1024;
/// How far a lossy viewer may be behind before it skips.
const LAG_BYTES: u64 = 1024 * 1024;

/// Where a viewer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// With the scroll-back.
    Tail,
    /// With what comes.
    Now,
    /// At an offset of the log: everything since, whether it was seen or not.
    Offset(u64),
}

/// What stands at an offset of the output without being output.
#[derive(Debug)]
pub(super) struct Notice {
    pub at: u64,
    pub frame: AttachFrame<'static>,
}

/// One attached peer's view of the log.
#[derive(Debug)]
pub(super) struct Viewer {
    peer: Attachment,
    cursor: Cursor,
    growth: watch::Receiver<LogState>,
    notices: mpsc::Receiver<Notice>,
    pending: Option<Notice>,
    farewell: watch::Receiver<Option<Arc<[u8]>>>,
}

impl Viewer {
    pub(super) fn new(
        peer: Attachment,
        log: &Arc<OutputLog>,
        from: Begin,
        notices: mpsc::Receiver<Notice>,
        farewell: watch::Receiver<Option<Arc<[u8]>>>,
    ) -> io::Result<Self> {
        let growth = log.subscribe();
        let begin = match from {
            Begin::Tail => log.scroll_back(SCROLL_BACK_BYTES)?,
            Begin::Now => log.state().end,
            Begin::Offset(offset) => offset.min(log.state().end),
        };
        let cursor = match peer.manner() {
            Manner::Lossless => Cursor::lossless(log, begin),
            Manner::Lossy => Cursor::new(log, begin),
        };
        Ok(Self {
            peer,
            cursor,
            growth,
            notices,
            pending: None,
            farewell,
        })
    }

    /// Sends until there is nothing more to send. `Err` means that the peer has gone, or the log can't be read.
    pub(super) async fn run(mut self) -> io::Result<()> {
        let mut buffer = vec![0; MAX_PAYLOAD];
        self.say_where().await?;
        loop {
            let LogState { end, closed, .. } = *self.growth.borrow_and_update();
            if self.pending.is_none() {
                self.pending = self.notices.try_recv().ok();
            }
            let until = self.pending.as_ref().map_or(end, |n| n.at.min(end));
            if self.peer.manner() == Manner::Lossy
                && end - self.cursor.offset().min(end) > LAG_BYTES
            {
                let next = self.cursor.log().scroll_back(SCROLL_BACK_BYTES)?;
                self.skip_to(next).await?;
                continue;
            }
            match self.cursor.read(&mut buffer, until)? {
                Piece::Bytes { stream, len } => {
                    let frame = match stream {
                        Stream::Stdout => AttachFrame::Stdout(&buffer[..len]),
                        Stream::Stderr => AttachFrame::Stderr(&buffer[..len]),
                    };
                    self.peer.send(&frame.to_vec()).await?;
                }
                Piece::Gap { bytes } => {
                    self.peer.send(&AttachFrame::Lost(bytes).to_vec()).await?;
                    self.say_where().await?;
                }
                Piece::Nothing => {
                    if let Some(notice) = self.pending.take() {
                        self.peer.send(&notice.frame.to_vec()).await?;
                        continue;
                    }
                    let farewell = self.farewell.borrow_and_update().clone();
                    if let Some(farewell) = farewell.filter(|_| closed) {
                        return self.peer.send(&farewell).await;
                    }
                    self.wait().await;
                }
            }
        }
    }

    async fn say_where(&self) -> io::Result<()> {
        let at = AttachFrame::At(self.cursor.offset());
        self.peer.send(&at.to_vec()).await
    }

    async fn skip_to(&mut self, offset: u64) -> io::Result<()> {
        let missed = offset - self.cursor.offset();
        self.cursor.seek(offset);
        self.peer.send(&AttachFrame::Lost(missed).to_vec()).await?;
        self.say_where().await
    }

    /// Until there may be something to send.
    async fn wait(&mut self) {
        tokio::select! {
            _ = self.growth.changed() => {}
            Some(notice) = self.notices.recv() => self.pending = Some(notice),
            _ = self.farewell.changed() => {}
        }
    }
}
