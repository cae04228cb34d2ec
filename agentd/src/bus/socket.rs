//! One socket connection: bytes in, bytes out, and the ways it can end.
//!
//! Each read goes to the router's thread as one batch, and nothing more is read before that has been handled. Memory per
//! connection is bounded by the router's queues, one read, one partial frame and two write batches. A
//! peer that reads slowly holds up only itself: its queue fills by the router's policy, and nothing more
//! is read from it while its answers wait. One that stalls inside a frame, or never greets, is closed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use agentd_bus::frame::{Decoder, Frame, PeerId, kind};
use agentd_bus::message::{Response, Status};
use agentd_bus::router::{CloseReason, ConnId, ConnKind, ConnectRefused, Outgoing};
use agentd_bus::shard::{Flow, Frames, Inbound, Outlet, SharedFd, Took, admit};
use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::server::UserBus;

/// How long a new connection may take to say hello.
const GREETING: Duration = Duration::from_secs(10);
/// How long a frame may take from its first byte to its last.
const FRAME: Duration = Duration::from_secs(30);
/// Bytes gathered into one write.
const WRITE_BATCH: usize = 64 * 1024;
/// Descriptors that may be ahead of the frames they belong to.
const FDS_AHEAD: usize = 4;

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

/// What goes into one write; a descriptor goes with the first byte.
#[derive(Debug)]
struct Chunk {
    bytes: Vec<u8>,
    fd: Option<SharedFd>,
}

/// What is to be written.
#[derive(Debug, Default)]
struct Waiting {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    /// The router has more.
    more: bool,
}

impl Waiting {
    fn push(&mut self, out: Outgoing<SharedFd>) {
        self.bytes += out.frame.wire_len();
        match self.chunks.back_mut() {
            // A frame with a descriptor starts its own write, so that the two arrive together.
            Some(last) if out.fd.is_none() => out.frame.encode_into(&mut last.bytes),
            _ => {
                let mut bytes = Vec::new();
                out.frame.encode_into(&mut bytes);
                self.chunks.push_back(Chunk { bytes, fd: out.fd });
            }
        }
    }
}

/// Where the router's thread leaves what is for one socket.
#[derive(Debug, Default)]
struct SocketOutlet {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    wake: Notify,
    /// The last batch was handled.
    read_on: Notify,
    closing: Notify,
    close_reason: OnceLock<CloseReason>,
}

impl SocketOutlet {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet for SocketOutlet {
    fn offer(&self, frames: &mut Frames<'_>) -> Took {
        let mut waiting = self.waiting();
        let took = loop {
            if waiting.bytes >= WRITE_BATCH {
                waiting.more = true;
                break Took::Some;
            }
            match frames.next() {
                Some(out) => waiting.push(out),
                None => break Took::All,
            }
        };
        drop(waiting);
        self.wake.notify_one();
        took
    }

    fn taken(&self, flow: Flow) {
        if flow == Flow::ReadOn {
            self.read_on.notify_one();
        }
    }

    fn close(&self, reason: CloseReason) {
        // Only the first reason counts.
        self.close_reason.get_or_init(|| reason);
        self.closing.notify_one();
    }
}

/// Makes `stream` a connection of `peer`, serves it until it ends, then takes it out of the router.
pub(super) async fn serve(bus: UserBus, peer: PeerId, stream: UnixStream) {
    let outlet = Arc::new(SocketOutlet::default());
    let (sender, opened) = tokio::sync::oneshot::channel();
    bus.shard
        .open(peer, ConnKind::Socket, outlet.clone(), move |id| {
            // Received for as long as this task runs.
            sender.send(id).ok();
        });
    let id = match opened.await {
        Ok(Ok(id)) => id,
        Ok(Err(refused)) => return refuse(&stream, &refused),
        // The bus is going.
        Err(_) => return,
    };
    let inside_frame = AtomicBool::new(false);
    let end = tokio::select! {
        end = read_loop(&bus, id, &outlet, &stream) => end,
        end = write_loop(&bus, id, &outlet, &stream, &inside_frame) => end,
        () = outlet.closing.notified() => Ok(()),
    };
    bus.disconnect(id);
    let end = match (end, outlet.close_reason.get()) {
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
fn refuse(stream: &UnixStream, refused: &ConnectRefused) {
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
    bus: &UserBus,
    id: ConnId,
    outlet: &SocketOutlet,
    stream: &UnixStream,
) -> Result<(), End> {
    let mut decoder = Decoder::new(bus.limits().max_payload);
    let mut fds = VecDeque::new();
    let mut greeted = false;
    let mut deadline = Instant::now() + GREETING;
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
        let (batch, broken) = frames_of(&mut decoder, &mut fds);
        let whole = !batch.is_empty();
        greeted |= whole;
        if whole {
            bus.shard.frames(id, batch);
            outlet.read_on.notified().await;
            bus.throttle().await;
        }
        if let Some(reason) = broken {
            return Err(reason.into());
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

/// The whole frames that have been read, up to one that is none; why it is none.
fn frames_of(
    decoder: &mut Decoder,
    fds: &mut VecDeque<OwnedFd>,
) -> (Vec<Inbound>, Option<CloseReason>) {
    let mut batch = Vec::new();
    loop {
        let frame = match decoder.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => return (batch, None),
            Err(error) => return (batch, Some(error.into())),
        };
        let fd = if frame.has_fd_flag() {
            let fd = fds.pop_front().ok_or(CloseReason::StrayDescriptor);
            match fd.and_then(|fd| admit(&frame, fd)) {
                Ok(fd) => Some(fd),
                Err(reason) => return (batch, Some(reason)),
            }
        } else {
            None
        };
        batch.push(Inbound { frame, fd });
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
    bus: &UserBus,
    id: ConnId,
    outlet: &SocketOutlet,
    stream: &UnixStream,
    inside_frame: &AtomicBool,
) -> Result<(), End> {
    loop {
        let Waiting { chunks, more, .. } = std::mem::take(&mut *outlet.waiting());
        if more {
            bus.shard.written(id);
        }
        if chunks.is_empty() {
            outlet.wake.notified().await;
            continue;
        }
        inside_frame.store(true, Ordering::Relaxed);
        for Chunk { bytes, fd } in chunks {
            write_all(stream, &bytes, fd.as_ref()).await?;
        }
        inside_frame.store(false, Ordering::Relaxed);
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
