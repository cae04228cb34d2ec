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

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_api::attach::MAX_FRAME;
    use agentd_api::{ExitCause, ExitInfo};
    use std::os::fd::OwnedFd;

    struct Shown {
        dir: tempfile::TempDir,
        log: Arc<OutputLog>,
        farewell: watch::Sender<Option<Arc<[u8]>>>,
    }

    impl Shown {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let log = OutputLog::create(&dir.path().join("a.log"), 64 << 20).unwrap();
            Self {
                dir,
                log: Arc::new(log),
                farewell: watch::Sender::new(None),
            }
        }

        /// Attaches; everything that the peer is sent, until the farewell.
        fn watch(&self, manner: Manner, from: Begin) -> (OwnedFd, mpsc::Sender<Notice>) {
            let (ours, theirs) = Attachment::pair(manner).unwrap();
            let (notices, receiver) = mpsc::channel(8);
            let farewell = self.farewell.subscribe();
            let viewer = Viewer::new(ours, &self.log, from, receiver, farewell).unwrap();
            tokio::spawn(viewer.run());
            (theirs, notices)
        }

        fn end(&self) {
            self.log.close();
            let exit = AttachFrame::Exit(Box::new(ExitInfo::new(ExitCause::Exited)));
            self.farewell.send_replace(Some(exit.to_vec().into()));
        }
    }

    /// What a peer was sent: runs of output as text, everything else as it prints.
    async fn received(socket: OwnedFd) -> Vec<String> {
        tokio::task::spawn_blocking(move || {
            let mut said: Vec<String> = Vec::new();
            let mut output = String::new();
            let mut packet = vec![0; MAX_FRAME];
            loop {
                let flags = rustix::net::RecvFlags::empty();
                let (_, n) = rustix::net::recv(&socket, &mut packet[..], flags).unwrap();
                if n == 0 {
                    said.push(output);
                    return said;
                }
                match AttachFrame::decode(&packet[..n]).unwrap() {
                    AttachFrame::Stdout(bytes) | AttachFrame::Stderr(bytes) => {
                        output.push_str(std::str::from_utf8(bytes).unwrap());
                    }
                    AttachFrame::Exit(_) => {}
                    other => {
                        said.push(std::mem::take(&mut output));
                        said.push(format!("{other:?}"));
                    }
                }
            }
        })
        .await
        .unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_viewer_gets_the_past_and_then_the_present_without_a_seam() {
        let shown = Shown::new();
        let line = |n: u32| format!("{n:07}\n");
        let past: String = (0..20_000).map(line).collect();
        shown.log.append(Stream::Stdout, past.as_bytes());
        let (tail, _a) = shown.watch(Manner::Lossy, Begin::Tail);
        let (all, _b) = shown.watch(Manner::Lossless, Begin::Offset(0));
        let (again, _c) = shown.watch(Manner::Lossy, Begin::Offset(159_992));
        let (now, _d) = shown.watch(Manner::Lossy, Begin::Now);
        let (log, mut present) = (Arc::clone(&shown.log), String::new());
        for n in 20_000..30_000 {
            present.push_str(&line(n));
        }
        let (said_tail, said_all, said_again, said_now, ()) = tokio::join!(
            received(tail),
            received(all),
            received(again),
            received(now),
            async {
                for piece in present.as_bytes().chunks(1000) {
                    log.room().await;
                    log.append(Stream::Stderr, piece);
                }
                shown.end();
            }
        );
        let kept = usize::try_from(SCROLL_BACK_BYTES).unwrap();
        let from = past.len() - kept;
        let whole = format!("{past}{present}");
        let expected = |at: usize| ["".to_owned(), format!("At({at})"), whole[at..].to_owned()];
        assert_eq!(said_tail, expected(from));
        assert_eq!(said_all, expected(0));
        assert_eq!(said_again, expected(159_992));
        assert_eq!(said_now, expected(past.len()));
        drop(shown.dir);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_notice_keeps_its_place_and_a_viewer_far_behind_skips_and_is_told() {
        let shown = Shown::new();
        let (socket, notices) = shown.watch(Manner::Lossy, Begin::Offset(0));
        shown.log.append(Stream::Stdout, b"before\n");
        let notice = Notice {
            at: 7,
            frame: AttachFrame::Stopped(19),
        };
        notices.send(notice).await.unwrap();
        // The socket holds a part of this; the peer reads only after all of it is there.
        let much = "0123456\n".repeat(1 << 20);
        shown.log.append(Stream::Stdout, much.as_bytes());
        shown.end();
        let said = received(socket).await;
        assert_eq!(said[..2], ["".to_owned(), "At(0)".to_owned()]);
        let stopped = said.iter().position(|s| s == "Stopped(19)");
        let lost = said.iter().position(|s| s.starts_with("Lost("));
        let last = said.last().unwrap();
        assert!(lost.is_some(), "{} frames", said.len());
        assert!(stopped.is_none_or(|at| said[at - 1] == "before\n" || at > lost.unwrap()));
        assert!(last.len() as u64 <= SCROLL_BACK_BYTES && last.ends_with("0123456\n"));
    }
}
