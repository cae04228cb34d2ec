//! One socket connection: bytes in, bytes out, and the ways it can end.
//!
//! Memory per connection is bounded by the router's queues, one partial frame and one write buffer. A
//! peer that reads slowly holds up only itself: its queue fills by the router's policy, and nothing more
//! is read from it while its answers wait. One that stalls inside a frame, or never greets, is closed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentd_bus::frame::{Decoder, Frame, PeerId, kind};
use agentd_bus::message::{Response, Status};
use agentd_bus::router::{CloseReason, ConnId, ConnectRefused};
use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::memory::{SharedFd, admit};
use super::server::{ConnHandle, Shared};

/// How long a new connection may take to say hello.
const GREETING: Duration = Duration::from_secs(10);
/// How long a frame may take from its first byte to its last.
const FRAME: Duration = Duration::from_secs(30);
/// Bytes gathered into one write.
const WRITE_BATCH: usize = 64 * 1024;
/// Descriptors that may be ahead of the frames they belong to.
const FDS_AHEAD: usize = 4;
/// Frames handled before other tasks get a turn.
const FAIR_SHARE: usize = 64;

thread_local! {
    /// Where bytes land before the decoder takes them: per thread, not per connection.
    static SCRATCH: std::cell::RefCell<Box<[u8]>> = std::cell::RefCell::new(vec![0; 64 * 1024].into());
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("closed by the peer")]
    Eof,
    #[error(transparent)]
    Closed(#[from] CloseReason),
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

/// Serves `stream` until it ends, then takes it out of the router.
pub(super) async fn serve(
    shared: Arc<Shared>,
    id: ConnId,
    handle: Arc<ConnHandle>,
    stream: UnixStream,
) {
    let inside_frame = AtomicBool::new(false);
    let end = tokio::select! {
        end = read_loop(&shared, id, &handle, &stream) => end,
        end = write_loop(&shared, id, &handle, &stream, &inside_frame) => end,
        () = handle.closing.notified() => Ok(()),
    };
    shared.disconnect(id);
    let end = match (end, handle.close_reason.get()) {
        (_, Some(reason)) => End::Closed(reason.clone()),
        (Err(end), None) => end,
        (Ok(()), None) => End::Eof,
    };
    match &end {
        End::Closed(CloseReason::Detached) | End::Eof => {}
        End::Closed(reason) => {
            tracing::info!("bus connection closed: {reason}");
            // Half a frame is out: a notice now would only look like the rest of it.
            if !inside_frame.load(Ordering::Relaxed) {
                say_why(&stream, Status::MALFORMED, &reason.to_string());
            }
        }
        End::Io(error) => tracing::debug!("bus connection lost: {error}"),
    }
}

/// Tells a connection that it can't be taken.
pub(super) fn refuse(stream: &UnixStream, refused: &ConnectRefused) {
    let status = match refused {
        ConnectRefused::NoSuchPeer => Status::PEER_GONE,
        ConnectRefused::TooMany { .. } => Status::QUEUE_FULL,
    };
    say_why(stream, status, &refused.to_string());
}

/// One ERROR notice, if the socket takes it at once: nobody waits for a peer that is being closed.
fn say_why(stream: &UnixStream, status: Status, text: &str) {
    let mut end = text.len().min(agentd_bus::message::ERROR_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let Ok(payload) = (Response {
        status,
        error: &text[..end],
        result: &[],
    })
    .encode() else {
        return;
    };
    let mut bytes = Vec::new();
    Frame::new(kind::ERROR, PeerId::BUS, 0, payload).encode_into(&mut bytes);
    if let Err(error) = fdpass::send(stream.as_fd(), &bytes, &[]) {
        tracing::debug!("could not say why the connection closes: {error}");
    }
}

async fn read_loop(
    shared: &Arc<Shared>,
    id: ConnId,
    handle: &ConnHandle,
    stream: &UnixStream,
) -> Result<(), End> {
    let mut decoder = Decoder::new(shared.limits().max_payload);
    let mut fds = VecDeque::new();
    let mut greeted = false;
    let mut deadline = Instant::now() + GREETING;
    let mut handled = 0;
    loop {
        let patience = if greeted && decoder.pending_bytes() == 0 {
            None
        } else {
            Some(deadline)
        };
        wait_readable(stream, patience).await?.ok_or(if greeted {
            CloseReason::StalledFrame {
                seconds: FRAME.as_secs() as u32,
            }
        } else {
            CloseReason::GreetingTimeout {
                seconds: GREETING.as_secs() as u32,
            }
        })?;
        let was_inside = decoder.pending_bytes() > 0;
        match read_some(stream, &mut decoder, &mut fds) {
            Ok(0) if decoder.pending_bytes() > 0 => {
                return Err(CloseReason::CutOff {
                    bytes: decoder.pending_bytes(),
                }
                .into());
            }
            Ok(0) => return Err(End::Eof),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        }
        let mut whole = false;
        while let Some(frame) = decoder.next_frame().map_err(CloseReason::from)? {
            whole = true;
            greeted = true;
            let fd = if frame.has_fd_flag() {
                let fd = fds.pop_front().ok_or(CloseReason::StrayDescriptor)?;
                Some(admit(&frame, fd)?)
            } else {
                None
            };
            shared.with(|router, now, fx| router.frame(id, frame, fd, now, fx));
            shared.throttle().await;
            while shared.is_congested(id) {
                handle.drained.notified().await;
            }
            handled += 1;
            if handled % FAIR_SHARE == 0 {
                tokio::task::yield_now().await;
            }
        }
        if fds.len() > usize::from(decoder.pending_bytes() > 0) {
            return Err(CloseReason::StrayDescriptor.into());
        }
        if whole || !was_inside {
            deadline = if greeted {
                Instant::now() + FRAME
            } else {
                deadline
            };
        }
    }
}

/// `None` when the deadline passed first.
async fn wait_readable(stream: &UnixStream, deadline: Option<Instant>) -> io::Result<Option<()>> {
    let ready = match deadline {
        None => stream.readable().await,
        Some(at) => match tokio::time::timeout_at(at, stream.readable()).await {
            Ok(ready) => ready,
            Err(_) => return Ok(None),
        },
    };
    ready.map(Some)
}

fn read_some(
    stream: &UnixStream,
    decoder: &mut Decoder,
    fds: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    SCRATCH.with_borrow_mut(|scratch| {
        let received = stream.try_io(Interest::READABLE, || {
            fdpass::receive(stream.as_fd(), scratch, FDS_AHEAD, Wait::Never).map_err(|error| {
                match error {
                    ReceiveError::Io(error) => error,
                    other => io::Error::new(io::ErrorKind::InvalidData, other),
                }
            })
        })?;
        decoder.feed(&scratch[..received.len]);
        fds.extend(received.fds);
        Ok(received.len)
    })
}

async fn write_loop(
    shared: &Arc<Shared>,
    id: ConnId,
    handle: &ConnHandle,
    stream: &UnixStream,
    inside_frame: &AtomicBool,
) -> Result<(), End> {
    let mut bytes = Vec::new();
    loop {
        // A frame with a descriptor starts its own write, so that the two arrive together.
        let held = shared.with(|router, _, fx| {
            while bytes.len() < WRITE_BATCH {
                let Some(out) = router.pull(id, fx) else {
                    break;
                };
                if let Some(fd) = out.fd {
                    return Some((out.frame, fd));
                }
                out.frame.encode_into(&mut bytes);
            }
            None
        });
        if bytes.is_empty() && held.is_none() {
            // Nothing to write: give the buffer back and wait.
            bytes = Vec::new();
            handle.wake.notified().await;
            continue;
        }
        inside_frame.store(true, Ordering::Relaxed);
        write_all(stream, &bytes, None).await?;
        bytes.clear();
        if let Some((frame, fd)) = held {
            frame.encode_into(&mut bytes);
            write_all(stream, &bytes, Some(&fd)).await?;
            bytes.clear();
        }
        inside_frame.store(false, Ordering::Relaxed);
        handle.drained.notify_one();
    }
}

async fn write_all(
    stream: &UnixStream,
    mut bytes: &[u8],
    mut fd: Option<&SharedFd>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        let sent = stream.try_io(Interest::WRITABLE, || match fd {
            Some(fd) => fdpass::send(stream.as_fd(), bytes, &[fd.as_fd()]),
            None => fdpass::send(stream.as_fd(), bytes, &[]),
        });
        match sent {
            Ok(sent) => {
                bytes = &bytes[sent..];
                fd = None;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
