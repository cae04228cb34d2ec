//! The reading thread of a link: whole frames with their descriptors, and a heartbeat when one is due.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Weak;
use std::time::{Duration, Instant};

use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use rustix::event::{PollFd, PollFlags, poll};

use super::{Arrived, Link};
use crate::frame::{Decoder, PAYLOAD_CEILING};

/// Reads until the connection is lost, which the link is told, or the last client is dropped.
pub(super) fn run(stream: UnixStream, weak: &Weak<Link>) {
    let mut reader = Reader::new(stream);
    let why = loop {
        // Between frames the thread holds no share of the link, so that dropping the last client
        // shuts the socket down and ends this loop.
        let Some(period) = weak.upgrade().map(|link| link.heartbeat()) else {
            return;
        };
        match reader.wait(period) {
            Ok(true) => {}
            Ok(false) => {
                let Some(link) = weak.upgrade() else { return };
                link.beat();
                continue;
            }
            Err(error) => break error.to_string(),
        }
        let Some(link) = weak.upgrade() else { return };
        if let Err(why) = reader.read(|arrived| link.arrived(arrived)) {
            break why;
        }
    };
    if let Some(link) = weak.upgrade() {
        link.close(why);
    }
}

/// The reading half: owned by its thread.
struct Reader {
    stream: UnixStream,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
    buffer: Box<[u8]>,
    beat_due: Option<Instant>,
}

impl Reader {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            decoder: Decoder::new(PAYLOAD_CEILING),
            fds: VecDeque::new(),
            buffer: vec![0; 64 * 1024].into(),
            beat_due: None,
        }
    }

    /// `true`: there is something to read. `false`: a heartbeat is due.
    fn wait(&mut self, period: Duration) -> io::Result<bool> {
        let due = *self.beat_due.get_or_insert_with(|| Instant::now() + period);
        let left = due.saturating_duration_since(Instant::now()).min(period);
        let timeout = rustix::event::Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => {
                self.beat_due = None;
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what is there and hands out whole frames. The error is the reason for the end.
    fn read(&mut self, mut each: impl FnMut(Arrived)) -> Result<(), String> {
        let received = match fdpass::receive(self.stream.as_fd(), &mut self.buffer, 4, Wait::Never)
        {
            Ok(received) => received,
            Err(error) if error.is_would_block() => return Ok(()),
            Err(ReceiveError::Io(error)) => return Err(error.to_string()),
            Err(error) => return Err(error.to_string()),
        };
        if received.len == 0 {
            return Err("closed by the bus".to_owned());
        }
        self.decoder.feed(&self.buffer[..received.len]);
        self.fds.extend(received.fds);
        while let Some(frame) = self
            .decoder
            .next_frame()
            .map_err(|error| error.to_string())?
        {
            let fd = if frame.has_fd_flag() {
                self.fds.pop_front()
            } else {
                None
            };
            each(Arrived { frame, fd });
        }
        Ok(())
    }
}
