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
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use agentd_kernel::fdpass::{self, ReceiveError, Wait};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::SendFlags;

use super::ClientError;
use super::direct::Direct;
use super::inbox::{Inbox, News, TheirBell};
use super::mailbox::{Mailbox, Received};
use super::route::{Route, RouteOffer};
use super::serve::{Asked, Subscriber};
use crate::frame::{Decoder, Frame, PAYLOAD_CEILING, PeerId, WithFd, kind};
use crate::message::{Control, Delivery, Event, Response, Shape, Status};
use crate::shm::park::Closer;
use crate::topic::matches;

/// Events held for one subscription that is not being read.
pub(super) const EVENTS_HELD: usize = 1024;
/// Requests held; the window that was asked for is smaller.
const REQUESTS_HELD: usize = 4096;

/// Offers held, each with a descriptor.
const OFFERS_HELD: usize = 64;
/// Endings held of channels that were offered and not taken yet.
const ENDINGS_HELD: usize = 512;

/// Correlation ids with this bit belong to pipelines: the six bits below [`PIPELINE_CALL`] say to which.
pub(super) const PIPELINED: u32 = 1 << 31;
/// Of those, the ones whose answers come one by one; the others are events.
pub(super) const PIPELINE_CALL: u32 = 1 << 30;
/// The bits that a pipeline counts in.
pub(super) const PIPELINE_COUNT: u32 = (1 << 24) - 1;
/// Pipelines of one connection.
const PIPELINES: usize = 64;

/// A lane that another agent offers.
#[derive(Debug)]
pub(super) struct OfferedLane {
    pub from: PeerId,
    pub lane: u32,
    pub shape: Shape,
    pub memory: OwnedFd,
}

/// A log that a follow covers.
#[derive(Debug)]
pub(super) struct OfferedLog {
    pub from: PeerId,
    pub channel: u32,
    pub topic: String,
    pub memory: OwnedFd,
}

/// One end of a channel, as the reading thread knows it.
#[derive(Clone, Debug)]
pub(super) struct Registered {
    pub closer: Closer,
    pub inbox: Arc<Inbox>,
}

impl Registered {
    pub fn new(closer: Closer) -> Self {
        Self {
            closer,
            inbox: Arc::default(),
        }
    }

    fn close(&self, status: Status) {
        self.closer.close(status);
        self.inbox.close();
    }
}

/// What the number in an answer will stand for. The reading thread makes it known before it reads on, so that
/// nothing that follows the answer is missed.
#[derive(Clone, Debug)]
pub(super) enum Expected {
    Channel(Registered),
    Follow(Arc<Mailbox<OfferedLog>>),
}

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
    pub requests: Mailbox<Asked>,
    pub offers: Mailbox<OfferedLane>,
    /// The bus's lane back, of a connection that offered it one.
    pub route_offers: Mailbox<RouteOffer>,
    /// Ends the waits for both.
    pub route_closer: Closer,
    /// In place of the socket for all that needs no descriptor. Set before anybody else has this.
    route: OnceLock<Route>,
    /// For small requests to agents that are on the direct path too.
    pub direct: Direct,
    next_correlation: AtomicU32,
    heartbeat_ms: AtomicU64,
}

/// Bytes of a heartbeat that the socket has not taken yet.
#[derive(Debug, Default)]
struct Writer {
    tail: Vec<u8>,
}

#[derive(Debug)]
struct LinkState {
    calls: HashMap<u32, SyncSender<Arrived>>,
    subscribers: Vec<Subscriber>,
    /// Requests that were handed to this client and not answered yet: was it withdrawn?
    in_hand: HashMap<u32, bool>,
    /// Answers that will bring a number, by correlation id.
    expected: HashMap<u32, Expected>,
    channels: HashMap<u32, Registered>,
    follows: HashMap<u32, Arc<Mailbox<OfferedLog>>>,
    /// Queues that this client takes messages from.
    consumers: HashMap<u32, Arc<Mailbox<Frame>>>,
    /// Pipelines of this client, by their numbers.
    pipelines: [Option<Arc<Mailbox<Frame>>>; PIPELINES],
    /// Readers of this client's logs: which log.
    readers: HashMap<u32, u32>,
    /// Channels that ended while their offers waited here.
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
            route_offers: Mailbox::new(1),
            route_closer: Closer::default(),
            route: OnceLock::new(),
            direct: Direct::default(),
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

    /// Sends a command under a fresh correlation id, its payload stays with the caller; [`Self::finish_call`] waits for the
    /// answer.
    pub fn start_command(&self, payload: &[u8]) -> Result<Receiver<Arrived>, ClientError> {
        let (correlation, receiver) = self.begin(None)?;
        if let Err(error) = self.send_parts((kind::COMMAND, 1, correlation), PeerId::BUS, payload) {
            self.abandon(correlation);
            return Err(error);
        }
        Ok(receiver)
    }

    /// Waits for the answer to a call that was started.
    pub fn finish_call(
        &self,
        receiver: &Receiver<Arrived>,
        wait: Duration,
    ) -> Result<Arrived, ClientError> {
        self.await_answer(receiver, Some(wait))
    }

    /// Answers to a pipeline go there from now on; the bits of its correlation ids. `None`: there are too many.
    pub fn add_pipeline(&self, mailbox: &Arc<Mailbox<Frame>>) -> Option<u32> {
        let mut state = self.lock();
        if state.closed.is_some() {
            mailbox.close();
        }
        let free = state.pipelines.iter().position(Option::is_none)?;
        state.pipelines[free] = Some(mailbox.clone());
        Some(PIPELINED | (free as u32) << PIPELINE_COUNT.count_ones())
    }

    pub fn remove_pipeline(&self, bits: u32) {
        self.lock().pipelines[pipeline_of(bits)] = None;
    }

    /// What a pipeline hears about the frames with this correlation id.
    fn piped(&self, correlation: u32, frame: Frame) {
        if let Some(mailbox) = &self.lock().pipelines[pipeline_of(correlation)] {
            mailbox.push(frame);
        }
    }

    /// Deliveries of that queue go there from now on.
    pub fn add_consumer(&self, queue: u32, mailbox: &Arc<Mailbox<Frame>>) {
        let mut state = self.lock();
        if state.closed.is_some() {
            mailbox.close();
        }
        state.consumers.insert(queue, mailbox.clone());
    }

    /// Whether they still went there.
    pub fn remove_consumer(&self, queue: u32, mailbox: &Arc<Mailbox<Frame>>) -> bool {
        let mut state = self.lock();
        let ours = state.consumers.get(&queue);
        if !ours.is_some_and(|held| Arc::ptr_eq(held, mailbox)) {
            return false;
        }
        state.consumers.remove(&queue);
        true
    }

    /// Deliveries of a queue, if that is what the command is.
    fn delivered(&self, frame: &Frame) -> bool {
        let Some((head, _)) = frame.payload.split_first_chunk::<8>() else {
            return false;
        };
        let [27, 0, 0, 0, queue @ ..] = *head else {
            return false;
        };
        // What nobody takes any more goes back when the bus hears that.
        if let Some(mailbox) = self.lock().consumers.get(&u32::from_le_bytes(queue)) {
            mailbox.push(frame.clone());
        }
        true
    }

    /// A notice under a queue's number: the consumer has ended, if it says so.
    fn queue_notice(&self, frame: &Frame) {
        let ended = Response::parse(&frame.payload)
            .is_ok_and(|notice| matches!(notice.status, Status::NO_SUCH_QUEUE | Status::DENIED));
        if ended && let Some(mailbox) = self.lock().consumers.remove(&frame.correlation()) {
            mailbox.close();
        }
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
        frame: Frame,
        fd: Option<&OwnedFd>,
        wait: Option<Duration>,
    ) -> Result<Arrived, ClientError> {
        self.call_expecting(frame, fd, wait, None)
    }

    /// As [`Self::call_with`]; the answer brings the number of something that is registered with it.
    pub fn call_expecting(
        &self,
        mut frame: Frame,
        fd: Option<&OwnedFd>,
        wait: Option<Duration>,
        expected: Option<Expected>,
    ) -> Result<Arrived, ClientError> {
        let (correlation, receiver) = self.begin(expected)?;
        frame.header.correlation = correlation.into();
        let withdraw = frame.kind() == kind::REQUEST;
        let outcome = self
            .send(frame, fd)
            .and_then(|()| self.await_answer(&receiver, wait));
        if outcome.is_err() && self.abandon(correlation) && withdraw {
            let payload = Control::Cancel {
                request: correlation,
            }
            .encode()?;
            self.send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None)?;
        }
        outcome
    }

    /// Nobody waits for that answer any more; says whether it was still to come.
    fn abandon(&self, correlation: u32) -> bool {
        let mut state = self.lock();
        state.expected.remove(&correlation);
        state.calls.remove(&correlation).is_some()
    }

    fn begin(&self, expected: Option<Expected>) -> Result<(u32, Receiver<Arrived>), ClientError> {
        let (sender, receiver) = sync_channel(1);
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err(ClientError::Closed { why: why.clone() });
        }
        loop {
            let id = self.next_correlation.fetch_add(1, Ordering::Relaxed);
            if id != 0 && id & PIPELINED == 0 && !state.calls.contains_key(&id) {
                state.calls.insert(id, sender);
                state
                    .expected
                    .extend(expected.map(|expected| (id, expected)));
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
        if let Some(route) = self.route.get() {
            let answer = route.wait(self, Instant::now().checked_add(wait), || {
                match receiver.try_recv() {
                    Ok(answer) => Some(Ok(answer)),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => Some(Err(ClientError::Lost {
                        why: self.why_closed(),
                    })),
                }
            });
            return answer.unwrap_or(Err(ClientError::NoAnswer {
                seconds: wait.as_secs(),
            }));
        }
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
        if self.is_routed() && self.route_closer.status().is_some() {
            self.close("the bus has taken its shared memory back".to_owned());
        }
        self.lock().closed.clone()
    }

    pub fn why_closed(&self) -> String {
        self.lock()
            .closed
            .clone()
            .unwrap_or_else(|| "closed by this program".to_owned())
    }

    /// From here on all that needs no descriptor goes by shared memory. Before the first subscription and request.
    pub fn set_route(&self, route: Route) {
        let first = self.route.set(route);
        debug_assert!(first.is_ok(), "a link has one route");
    }

    pub fn is_routed(&self) -> bool {
        self.route.get().is_some()
    }

    /// Takes from a mailbox that this connection fills, as [`Mailbox::take`].
    pub fn take<T>(&self, mailbox: &Mailbox<T>, timeout: Option<Duration>) -> Received<T> {
        let Some(route) = self.route.get() else {
            return mailbox.take(timeout);
        };
        let taken = if timeout.is_some_and(|timeout| timeout.is_zero()) {
            route.poll(self, || mailbox.try_take())
        } else {
            let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            route.wait(self, deadline, || mailbox.try_take())
        };
        taken.unwrap_or(Received::TimedOut)
    }

    /// Sends one frame whole; waits while the bus is not reading.
    pub fn send(&self, frame: Frame, fd: Option<&OwnedFd>) -> Result<(), ClientError> {
        match self.route.get() {
            Some(route) if fd.is_none() && !belongs_to_socket(&frame) => route.send(self, frame),
            _ => self.send_on_socket(frame, fd),
        }
    }

    /// As [`Self::send`], of a frame whose parts are there, and that does not [belong to the socket](belongs_to_socket).
    pub fn send_parts(
        &self,
        head: (u16, u32, u32),
        to: PeerId,
        payload: &[u8],
    ) -> Result<(), ClientError> {
        if let Some(route) = self.route.get()
            && route.send_parts(self, head, to, payload)?
        {
            return Ok(());
        }
        let (bits, header_flags, correlation) = head;
        let mut frame = Frame::new(bits, to, correlation, payload);
        frame.header.flags = header_flags.into();
        self.send(frame, None)
    }

    /// As [`Self::send`], over the socket whatever there is besides.
    pub fn send_on_socket(
        &self,
        mut frame: Frame,
        fd: Option<&OwnedFd>,
    ) -> Result<(), ClientError> {
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

    pub fn arrived(&self, arrived: Arrived) {
        let frame = &arrived.frame;
        let bits = frame.kind();
        if bits & kind::RESPONSE != 0 && frame.correlation() & PIPELINED != 0 {
            self.piped(frame.correlation(), arrived.frame);
        } else if bits & kind::RESPONSE != 0 {
            let mut state = self.lock();
            if let Some(expected) = state.expected.remove(&frame.correlation()) {
                state.meet(expected, frame);
            }
            if let Some(waiting) = state.calls.remove(&frame.correlation()) {
                // The caller may have given up in this moment.
                drop(waiting.send(arrived));
            }
        } else if bits == kind::REQUEST {
            self.lock().in_hand.insert(frame.correlation(), false);
            self.requests.push(Asked {
                frame: arrived.frame,
                by: None,
            });
        } else if bits & kind::EVENT != 0 {
            self.event(arrived.frame);
        } else if bits == kind::COMMAND {
            if !self.delivered(&arrived.frame) {
                self.command(arrived);
            }
        } else if bits == kind::ERROR && frame.correlation() != 0 {
            self.queue_notice(&arrived.frame);
        } else if bits == kind::ERROR && frame.correlation() == 0 {
            // Said by the bus before it closes a connection.
            if let Ok(notice) = Response::parse(&frame.payload) {
                self.lock()
                    .closed
                    .get_or_insert_with(|| notice.error.to_owned());
            }
        }
    }

    fn event(&self, frame: Frame) {
        let Ok(event) = Event::parse(&frame.payload) else {
            return;
        };
        let state = self.lock();
        let covers = |subscriber: &&Subscriber| matches(&subscriber.pattern, event.topic);
        let mut subscribers = state.subscribers.iter().filter(covers).peekable();
        while let Some(subscriber) = subscribers.next() {
            if subscribers.peek().is_none() {
                subscriber.mailbox.push(frame);
                return;
            }
            subscriber.mailbox.push(frame.clone());
        }
    }

    fn command(&self, arrived: Arrived) {
        match Control::parse(&arrived.frame.payload) {
            Ok(Control::Lost { count }) => {
                for subscriber in &self.lock().subscribers {
                    subscriber.mailbox.add_lost(count);
                }
            }
            Ok(Control::Acknowledged { first, .. }) if first & PIPELINED != 0 => {
                self.piped(first, arrived.frame);
            }
            Ok(Control::Cancel { request }) => {
                if let Some(withdrawn) = self.lock().in_hand.get_mut(&request) {
                    *withdrawn = true;
                }
            }
            Ok(Control::Unsubscribe {
                delivery: Delivery::Push,
                pattern,
            }) => {
                // The policy no longer allows it.
                for subscriber in &self.lock().subscribers {
                    if subscriber.pattern == pattern {
                        subscriber.mailbox.close();
                    }
                }
            }
            Ok(Control::ChannelClosed { channel, status }) => self.channel_closed(channel, status),
            Ok(Control::Direct(said)) => self.direct.heard(said),
            Ok(Control::SegmentDropped { channel, index }) => {
                self.news(channel, News::SegmentDropped { index });
            }
            Ok(control) => {
                // Without its descriptor it is no offer; the bus never sends one like that.
                if let Some(fd) = arrived.fd {
                    self.carried(control, fd);
                }
            }
            Err(_) => {}
        }
    }

    /// A message that comes with a descriptor.
    fn carried(&self, control: Control<'_>, fd: OwnedFd) {
        match control {
            Control::LaneOffered { from, lane, .. } if from.is_bus() => {
                let registered = Registered::new(self.route_closer.clone());
                // Known before what follows the offer arrives.
                self.register(lane, registered.clone());
                self.route_offers.push(RouteOffer {
                    lane,
                    memory: fd,
                    registered,
                });
            }
            Control::LaneOffered { from, lane, shape } => self.offers.push(OfferedLane {
                from,
                lane,
                shape,
                memory: fd,
            }),
            Control::LogOffered {
                from,
                follow,
                channel,
                topic,
            } => {
                let mailbox = self.lock().follows.get(&follow).cloned();
                if let Some(mailbox) = mailbox {
                    mailbox.push(OfferedLog {
                        from,
                        channel,
                        topic: topic.to_owned(),
                        memory: fd,
                    });
                }
            }
            Control::LogFollower {
                from,
                log,
                channel,
                reliable,
            } => {
                self.lock().readers.insert(channel, log);
                let news = News::Reader {
                    channel,
                    from,
                    reliable,
                    cursor: fd,
                };
                self.news(log, news);
            }
            Control::Segment {
                channel,
                index,
                sealed,
            } => {
                let news = News::Segment {
                    index,
                    sealed,
                    memory: fd,
                };
                self.news(channel, news);
            }
            Control::Bell { channel } => {
                let log = self.lock().readers.get(&channel).copied();
                if let Some(inbox) = self.inbox_of(log.unwrap_or(channel)) {
                    inbox.push_bell(TheirBell { channel, bell: fd });
                }
            }
            _ => {}
        }
    }

    fn news(&self, channel: u32, news: News) {
        if let Some(inbox) = self.inbox_of(channel) {
            inbox.push(news);
        }
    }

    fn inbox_of(&self, channel: u32) -> Option<Arc<Inbox>> {
        let state = self.lock();
        state.channels.get(&channel).map(|end| end.inbox.clone())
    }

    fn channel_closed(&self, channel: u32, status: Status) {
        let mut state = self.lock();
        if let Some(end) = state.channels.remove(&channel) {
            end.close(status);
        } else if let Some(log) = state.readers.remove(&channel) {
            drop(state);
            self.news(log, News::ReaderGone { channel });
        } else if let Some(mailbox) = state.follows.remove(&channel) {
            mailbox.close();
        } else {
            state.ended_early.truncate(ENDINGS_HELD);
            state.ended_early.push_front((channel, status));
        }
    }

    /// Makes an offered channel known, before the offer is answered. It ends when the bus says so, or with the
    /// connection.
    pub fn register(&self, channel: u32, end: Registered) {
        let mut state = self.lock();
        if state.closed.is_some() {
            end.close(Status::REPLACED);
        } else if let Some(at) = state
            .ended_early
            .iter()
            .position(|(ended, _)| *ended == channel)
        {
            if let Some((_, status)) = state.ended_early.remove(at) {
                end.close(status);
            }
        } else {
            state.channels.insert(channel, end);
        }
    }

    pub fn forget_channel(&self, channel: u32) {
        let mut state = self.lock();
        state.channels.remove(&channel);
        state.readers.retain(|_, log| *log != channel);
    }

    pub fn forget_reader(&self, channel: u32) {
        self.lock().readers.remove(&channel);
    }

    pub fn forget_follow(&self, follow: u32) {
        self.lock().follows.remove(&follow);
    }

    /// Tells the bus something to which no answer is due. A lost connection has said it already.
    pub fn tell(&self, control: Control<'_>) {
        if let Ok(payload) = control.encode() {
            drop(self.send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None));
        }
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

    pub fn close(&self, why: String) {
        let mut state = self.lock();
        let why = state.closed.get_or_insert(why).clone();
        state.calls.clear();
        for subscriber in &state.subscribers {
            subscriber.mailbox.close();
        }
        // Not the other side of the lane has gone, but the bus that introduced the two.
        for end in state.channels.values() {
            end.close(Status::REPLACED);
        }
        for mailbox in state.follows.values() {
            mailbox.close();
        }
        for mailbox in state.consumers.values() {
            mailbox.close();
        }
        state.consumers.clear();
        for mailbox in state.pipelines.iter().flatten() {
            mailbox.close();
        }
        state.expected.clear();
        state.channels.clear();
        state.readers.clear();
        state.follows.clear();
        drop(state);
        self.direct.end(&why);
        self.requests.close();
        self.offers.close();
        self.route_offers.close();
        self.route_closer.close(Status::REPLACED);
        if self.is_routed() {
            // The rings may have ended alone; what is left is of no use without them.
            self.stream.shutdown(Shutdown::Both).ok();
        }
    }
}

/// What concerns things that come with descriptors, or the connection itself.
fn belongs_to_socket(frame: &Frame) -> bool {
    let bits = frame.kind();
    if bits & kind::COMMAND == 0 {
        return bits == kind::HEARTBEAT;
    }
    match Control::parse(&frame.payload) {
        Ok(control) => matches!(
            control,
            Control::Hello { .. }
                | Control::ChannelClosed { .. }
                | Control::AcceptLanes
                | Control::LogFollow { .. }
                | Control::LogUnfollow { .. }
                | Control::SegmentDropped { .. }
        ),
        Err(_) => true,
    }
}

/// The number in a pipeline's correlation id.
fn pipeline_of(correlation: u32) -> usize {
    (correlation >> PIPELINE_COUNT.count_ones()) as usize % PIPELINES
}

impl Default for LinkState {
    fn default() -> Self {
        Self {
            calls: HashMap::new(),
            subscribers: Vec::new(),
            in_hand: HashMap::new(),
            expected: HashMap::new(),
            channels: HashMap::new(),
            follows: HashMap::new(),
            consumers: HashMap::new(),
            pipelines: [const { None }; PIPELINES],
            readers: HashMap::new(),
            ended_early: VecDeque::new(),
            closed: None,
        }
    }
}

impl LinkState {
    /// An answer that brings a number has come.
    fn meet(&mut self, expected: Expected, frame: &Frame) {
        let number = Response::parse(&frame.payload)
            .ok()
            .filter(|response| response.status == Status::OK)
            .and_then(|response| response.result.try_into().ok())
            .map(u32::from_le_bytes);
        match (number, expected) {
            (Some(number), Expected::Channel(end)) => {
                self.channels.insert(number, end);
            }
            (Some(number), Expected::Follow(mailbox)) => {
                self.follows.insert(number, mailbox);
            }
            (None, _) => {}
        }
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
