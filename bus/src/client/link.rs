//! The socket of a client: one thread reads it, any thread writes it.
//!
//! The reading thread never blocks on anything but the socket: the bus stops reading from a client whose
//! answers wait unread, so a reader that waited for a writer could wait for ever. Heartbeats are
//! therefore written only as far as the socket takes them; the rest goes out with the next frame.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::SendFlags;

use super::ClientError;
use super::mailbox::Mailbox;
use super::serve::Subscriber;
use crate::frame::{Decoder, Frame, PAYLOAD_CEILING, PeerId, WithFd, kind};
use crate::message::{Control, Event, Response, Status};
use crate::shm::park::Closer;
use crate::topic::matches;

/// Events held for one subscription that is not being read.
pub(super) const EVENTS_HELD: usize = 1024;
/// Requests held; the window that was asked for is smaller.
const REQUESTS_HELD: usize = 4096;

/// Lane offers held, each with a descriptor.
const OFFERS_HELD: usize = 64;

/// A frame and what came with it.
#[derive(Debug)]
pub(super) struct Arrived {
    pub frame: Frame,
    pub fd: Option<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    writer: Mutex<Writer>,
    state: Mutex<LinkState>,
    pub requests: Mailbox<Frame>,
    /// Offered lanes: from whom, which, and the data memory.
    pub offers: Mailbox<(PeerId, u32, OwnedFd)>,
    next_correlation: AtomicU32,
    heartbeat_ms: AtomicU64,
}

/// Bytes of a heartbeat that the socket has not taken yet.
#[derive(Debug, Default)]
struct Writer {
    tail: Vec<u8>,
}

#[derive(Debug, Default)]
struct LinkState {
    calls: HashMap<u32, SyncSender<Arrived>>,
    subscribers: Vec<Subscriber>,
    /// Requests that were handed to this client and not answered yet: was it withdrawn?
    in_hand: HashMap<u32, bool>,
    lanes: HashMap<u32, Closer>,
    /// Lanes that ended before their opener had made them known here.
    ended_early: VecDeque<(u32, Status)>,
    /// Set once the connection is lost; says why.
    closed: Option<String>,
}

impl Link {
    /// Takes the connected socket and starts the reading thread.
    pub fn start(stream: UnixStream) -> io::Result<Arc<Self>> {
        let link = Arc::new(Self {
            stream,
            writer: Mutex::default(),
            state: Mutex::default(),
            requests: Mailbox::new(REQUESTS_HELD),
            offers: Mailbox::new(OFFERS_HELD),
            next_correlation: AtomicU32::new(1),
            heartbeat_ms: AtomicU64::new(5_000),
        });
        let stream = link.stream.try_clone()?;
        let weak = Arc::downgrade(&link);
        std::thread::Builder::new()
            .name("agentd-bus".into())
            .spawn(move || {
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
            })?;
        Ok(link)
    }

    pub fn set_heartbeat(&self, period: Duration) {
        self.heartbeat_ms
            .store(period.as_millis().max(100) as u64, Ordering::Relaxed);
    }

    fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.load(Ordering::Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `frame` under a fresh correlation id and waits for the answer.
    pub fn call(&self, frame: Frame, wait: Option<Duration>) -> Result<Frame, ClientError> {
        self.call_with(frame, None, wait)
            .map(|arrived| arrived.frame)
    }

    /// As [`Self::call`], with a descriptor each way.
    pub fn call_with(
        &self,
        mut frame: Frame,
        fd: Option<&OwnedFd>,
        wait: Option<Duration>,
    ) -> Result<Arrived, ClientError> {
        let (correlation, receiver) = self.begin()?;
        frame.header.correlation = correlation.into();
        let withdraw = frame.kind() == kind::REQUEST;
        let outcome = self
            .send(frame, fd)
            .and_then(|()| self.await_answer(&receiver, wait));
        if outcome.is_err() && self.lock().calls.remove(&correlation).is_some() && withdraw {
            let payload = Control::Cancel {
                request: correlation,
            }
            .encode()?;
            self.send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None)?;
        }
        outcome
    }

    fn begin(&self) -> Result<(u32, Receiver<Arrived>), ClientError> {
        let (sender, receiver) = sync_channel(1);
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err(ClientError::Closed { why: why.clone() });
        }
        loop {
            let id = self.next_correlation.fetch_add(1, Ordering::Relaxed);
            if id != 0 && !state.calls.contains_key(&id) {
                state.calls.insert(id, sender);
                return Ok((id, receiver));
            }
        }
    }

    fn await_answer(
        &self,
        receiver: &Receiver<Arrived>,
        wait: Option<Duration>,
    ) -> Result<Arrived, ClientError> {
        let wait = wait.unwrap_or(Duration::from_secs(30));
        receiver.recv_timeout(wait).map_err(|error| match error {
            RecvTimeoutError::Timeout => ClientError::NoAnswer {
                seconds: wait.as_secs(),
            },
            RecvTimeoutError::Disconnected => ClientError::Lost {
                why: self.why_closed(),
            },
        })
    }

    /// Why the connection is over, if it is.
    pub fn lost(&self) -> Option<String> {
        self.lock().closed.clone()
    }

    pub fn why_closed(&self) -> String {
        self.lock()
            .closed
            .clone()
            .unwrap_or_else(|| "closed by this program".to_owned())
    }

    /// Writes one frame whole; waits while the bus is not reading.
    pub fn send(&self, mut frame: Frame, fd: Option<&OwnedFd>) -> Result<(), ClientError> {
        frame.set_fd_flag(if fd.is_some() {
            WithFd::Yes
        } else {
            WithFd::No
        });
        let mut bytes = Vec::with_capacity(frame.wire_len());
        frame.encode_into(&mut bytes);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = std::mem::take(&mut writer.tail);
        let sent = self
            .write_all(&tail, None)
            .and_then(|()| self.write_all(&bytes, fd));
        sent.map_err(|error| ClientError::Closed {
            why: self.lock().closed.clone().unwrap_or(error.to_string()),
        })
    }

    fn write_all(&self, mut bytes: &[u8], mut fd: Option<&OwnedFd>) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = match fd {
                Some(fd) => fdpass::send(self.stream.as_fd(), bytes, &[fd.as_fd()])?,
                None => fdpass::send(self.stream.as_fd(), bytes, &[])?,
            };
            bytes = &bytes[sent..];
            fd = None;
        }
        Ok(())
    }

    /// Shows life without ever waiting. A thread that is writing shows it already.
    fn beat(&self) {
        let mut writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if writer.tail.is_empty() {
            Frame::new(kind::HEARTBEAT, PeerId::BUS, 0, []).encode_into(&mut writer.tail);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        if let Ok(sent) = rustix::net::send(&self.stream, &writer.tail, flags) {
            writer.tail.drain(..sent);
        }
        // An error is either "would block" (the tail stays) or the end, which the reader sees too.
    }

    fn arrived(&self, arrived: Arrived) {
        let frame = &arrived.frame;
        let bits = frame.kind();
        if bits & kind::RESPONSE != 0 {
            if let Some(waiting) = self.lock().calls.remove(&frame.correlation()) {
                // The caller may have given up in this moment.
                drop(waiting.send(arrived));
            }
        } else if bits == kind::REQUEST {
            self.lock().in_hand.insert(frame.correlation(), false);
            self.requests.push(arrived.frame);
        } else if bits & kind::EVENT != 0 {
            self.event(&arrived.frame);
        } else if bits == kind::COMMAND {
            self.command(arrived);
        } else if bits == kind::ERROR && frame.correlation() == 0 {
            // Said by the bus before it closes a connection.
            if let Ok(notice) = Response::parse(&frame.payload) {
                self.lock()
                    .closed
                    .get_or_insert_with(|| notice.error.to_owned());
            }
        }
    }

    fn event(&self, frame: &Frame) {
        let Ok(event) = Event::parse(&frame.payload) else {
            return;
        };
        for subscriber in &self.lock().subscribers {
            if matches(&subscriber.pattern, event.topic) {
                subscriber.mailbox.push(frame.clone());
            }
        }
    }

    fn command(&self, arrived: Arrived) {
        match Control::parse(&arrived.frame.payload) {
            Ok(Control::Lost { count }) => {
                for subscriber in &self.lock().subscribers {
                    subscriber.mailbox.add_lost(count);
                }
            }
            Ok(Control::Cancel { request }) => {
                if let Some(withdrawn) = self.lock().in_hand.get_mut(&request) {
                    *withdrawn = true;
                }
            }
            Ok(Control::LaneOffered { from, lane, .. }) => {
                // Without its memory it is no offer; the bus never sends one like that.
                if let Some(memory) = arrived.fd {
                    self.offers.push((from, lane, memory));
                }
            }
            Ok(Control::ChannelClosed {
                channel: lane,
                status,
            }) => {
                let mut state = self.lock();
                if let Some(closer) = state.lanes.remove(&lane) {
                    closer.close(status);
                } else {
                    state.ended_early.truncate(OFFERS_HELD);
                    state.ended_early.push_front((lane, status));
                }
            }
            _ => {}
        }
    }

    /// The lane ends when the bus says so, or with the connection.
    pub fn register_lane(&self, lane: u32, closer: Closer) {
        let mut state = self.lock();
        if state.closed.is_some() {
            closer.close(Status::REPLACED);
        } else if let Some(at) = state
            .ended_early
            .iter()
            .position(|(ended, _)| *ended == lane)
        {
            if let Some((_, status)) = state.ended_early.remove(at) {
                closer.close(status);
            }
        } else {
            state.lanes.insert(lane, closer);
        }
    }

    pub fn forget_lane(&self, lane: u32) {
        self.lock().lanes.remove(&lane);
    }

    pub fn is_cancelled(&self, request: u32) -> bool {
        self.lock().in_hand.get(&request).copied().unwrap_or(false)
    }

    pub fn forget_request(&self, request: u32) {
        self.lock().in_hand.remove(&request);
    }

    pub fn add_subscriber(&self, subscriber: Subscriber) {
        let mut state = self.lock();
        if state.closed.is_some() {
            subscriber.mailbox.close();
        }
        state.subscribers.push(subscriber);
    }

    /// Removes one subscriber; says whether another one has the same pattern.
    pub fn remove_subscriber(&self, mailbox: &Arc<Mailbox<Frame>>) -> bool {
        let mut state = self.lock();
        let Some(at) = state
            .subscribers
            .iter()
            .position(|s| Arc::ptr_eq(&s.mailbox, mailbox))
        else {
            return true;
        };
        let removed = state.subscribers.swap_remove(at);
        state
            .subscribers
            .iter()
            .any(|other| other.pattern == removed.pattern)
    }

    fn close(&self, why: String) {
        let mut state = self.lock();
        state.closed.get_or_insert(why);
        state.calls.clear();
        for subscriber in &state.subscribers {
            subscriber.mailbox.close();
        }
        // Not the other side of the lane has gone, but the bus that introduced the two.
        for closer in state.lanes.values() {
            closer.close(Status::REPLACED);
        }
        state.lanes.clear();
        drop(state);
        self.requests.close();
        self.offers.close();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Wakes the reading thread; an error means that the connection had ended before.
        drop(self.stream.shutdown(Shutdown::Both));
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
