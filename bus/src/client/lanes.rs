//! Lanes of a client: the bus introduces the two sides, then messages go from one to the other through
//! memory and the bus sees none of them.
//!
//! The producer makes the data memory and offers it; the bus asks the kernel for its seals, asks the
//! policy, and hands it on; the consumer answers with its cursor memory, which goes the same way back.
//! When either side ends, or the policy no longer allows it, the bus tells both; the consumer still receives
//! what was committed, except where the right to it was taken back.
//!
//! Where there can be no shared memory (a policy without it, a kernel without `futex_waitv`, a receiver that
//! takes no lanes), [`LaneError::is_socket_only`] says so: [`Client::send`] does what the lane would have done.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ends::{BellRefused, End, SegmentAnnouncer, SegmentArrivals};
use super::inbox::News;
use super::link::{Expected, Link, OfferedLane, Registered};
use super::mailbox::Received;
use super::{Client, ClientError, command, ok_result};
use crate::channel::{Class, Overflow, Tag, Waiting};
use crate::frame::{Frame, PeerId, kind};
use crate::lane::ring::{self, Consumer, Producer, RecvError, SendError};
use crate::lane::{
    Credit, Extension, LayoutError, ReceiverOptions, SenderOptions, cursor_words, data_words,
};
use crate::message::{Control, MessageError, Response, Shape, Status};
use crate::shm::bell::Ringer;
use crate::shm::memfd::{self, Mapping, MemfdError};
use crate::shm::park::{Closer, probe_waitv};
use crate::topic::PEERS_TOPIC;
use crate::wait::{Park, Parking, Source, Watch};

/// Slots of a lane whose opener has no wish: 64 KiB of data, messages up to 57,336 bytes.
pub const DEFAULT_SLOTS: usize = 1024;
/// Fewest slots of a shared lane: a page of them.
pub const SLOTS_MIN: usize = 64;

/// Why there is no lane. Messages can always go over the socket.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Memory(#[from] MemfdError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("this kernel or sandbox has no futex_waitv (Linux 5.16), which lanes sleep on: {0}")]
    NoWaitv(std::io::Error),
    #[error("the other side gave no memory with its answer")]
    NoMemory,
    #[error("a shared lane has {SLOTS_MIN} slots or more, not {0}")]
    TooFewSlots(usize),
}

impl LaneError {
    /// There can be no shared memory here, now or later: send over the socket.
    pub fn is_socket_only(&self) -> bool {
        match self {
            Self::NoWaitv(_) => true,
            Self::Client(error) => error.status() == Some(Status::UNSUPPORTED),
            _ => false,
        }
    }
}

impl From<MessageError> for LaneError {
    fn from(error: MessageError) -> Self {
        Self::Client(error.into())
    }
}

/// How a lane is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneOptions {
    /// A power of two from [`SLOTS_MIN`].
    pub slots: usize,
    /// Which of several lanes its receiver reads first.
    pub class: Class,
    /// What happens to a message for which there is no room. [`Overflow::DropOldest`] is a log's.
    pub overflow: Overflow,
    /// How the sender waits for room.
    pub waiting: Waiting,
    /// What goes with each message.
    pub extension: Extension,
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self {
            slots: DEFAULT_SLOTS,
            class: Class::default(),
            overflow: Overflow::default(),
            waiting: Waiting::default(),
            extension: Extension::default(),
        }
    }
}

impl LaneOptions {
    /// The usual lane with that many slots.
    pub fn with_slots(slots: usize) -> Self {
        Self {
            slots,
            ..Self::default()
        }
    }

    fn sender(self) -> SenderOptions {
        SenderOptions {
            waiting: self.waiting,
            overflow: self.overflow,
            extension: self.extension,
        }
    }
}

/// The sending end. Dropping it closes the lane; what was sent is still received.
#[derive(Debug)]
pub struct LaneSender {
    producer: Producer<Mapping, Mapping>,
    end: End,
}

/// The receiving end. Dropping it closes the lane.
#[derive(Debug)]
pub struct LaneReceiver {
    consumer: Consumer<Mapping, Mapping>,
    /// Who sends.
    pub from: PeerId,
    /// What the sender declared.
    pub class: Class,
    end: End,
}

impl LaneSender {
    /// Puts a message into the lane if there is room.
    pub fn try_send(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        self.attend();
        self.producer.try_send(tag, payload)
    }

    /// As [`Self::try_send`], waiting up to `timeout` for room, or what else the lane's overflow policy says.
    pub fn send(&mut self, tag: Tag, payload: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.attend();
        self.producer.send(tag, payload, timeout)
    }

    /// Longest message that fits.
    pub fn message_limit(&self) -> usize {
        self.producer.message_limit()
    }

    /// The bus's number for this lane.
    pub fn id(&self) -> u32 {
        self.end.channel
    }

    /// The ring itself: batches, references, counters.
    pub fn ring_mut(&mut self) -> &mut Producer<Mapping, Mapping> {
        self.attend();
        &mut self.producer
    }

    pub(super) fn into_parts(self) -> (Producer<Mapping, Mapping>, End) {
        (self.producer, self.end)
    }

    /// Carries the segments of an arena to the other side.
    pub fn announcer(&self) -> SegmentAnnouncer {
        SegmentAnnouncer::new(&self.end)
    }

    /// Takes the receiver's bell, should it have come.
    #[inline]
    fn attend(&mut self) {
        if self.end.inbox.has_news() {
            self.take_news();
        }
    }

    #[cold]
    fn take_news(&mut self) {
        for news in self.end.inbox.take() {
            if let News::Bell { bell, .. } = news
                // The bus has made sure that it is a bell; if it is not, nobody waits for it.
                && let Ok(ringer) = Ringer::from_fd(bell)
            {
                self.producer.set_ringer(ringer);
            }
        }
    }
}

impl LaneReceiver {
    /// Takes the next message into `buffer`; `None`: there is none.
    pub fn try_recv(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Tag>, RecvError> {
        self.consumer.try_recv(buffer)
    }

    /// As [`Self::try_recv`], waiting up to `timeout`.
    pub fn recv(&mut self, buffer: &mut Vec<u8>, timeout: Duration) -> Result<Tag, RecvError> {
        self.consumer.recv(buffer, timeout)
    }

    /// The bus's number for this lane.
    pub fn id(&self) -> u32 {
        self.end.channel
    }

    /// The ring itself: batches, references, credits, counters.
    pub fn ring_mut(&mut self) -> &mut Consumer<Mapping, Mapping> {
        &mut self.consumer
    }

    pub(super) fn into_parts(self) -> (Consumer<Mapping, Mapping>, PeerId, End) {
        (self.consumer, self.from, self.end)
    }

    /// The segments to which messages may refer.
    pub fn segments(&self) -> SegmentArrivals {
        SegmentArrivals::new(&self.end)
    }

    /// Gives this end a bell, so that it can be waited for in an event loop, or among more than 128.
    pub fn make_bell(&mut self) -> Result<(), BellRefused> {
        let bell = self.end.make_bell()?;
        self.consumer.set_bell(bell);
        Ok(())
    }
}

/// Ready while there is a message, or the lane has ended.
impl Source for LaneReceiver {
    fn watch(&self) -> Watch<'_> {
        self.consumer.watch()
    }
    fn arm(&mut self, how: Park) {
        self.consumer.arm(how);
    }
    fn disarm(&mut self) {
        self.consumer.disarm();
    }
    fn closer(&self) -> &Closer {
        Source::closer(&self.consumer)
    }
    fn parking(&self) -> Parking {
        self.consumer.parking()
    }
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.consumer.bell()
    }
}

/// A lane that outlives agentd: when the bus was restarted, the next message opens another one.
///
/// Nothing is sent twice: a message that the old lane did not take goes into the new one. The receiver gets all of
/// the old lane, then [`Status::REPLACED`], then an offer. It ends like any lane when the other side does.
#[derive(Debug)]
pub struct LastingLane {
    client: Client,
    to: String,
    options: LaneOptions,
    now: LaneSender,
}

/// Why a lasting lane did not take a message.
#[derive(Debug, thiserror::Error)]
pub enum LastingError {
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("the lane was replaced and could not be opened anew: {0}")]
    Open(#[from] LaneError),
}

impl LastingLane {
    /// As [`LaneSender::send`]; `timeout` counts for the opening too, but for the time that the bus itself takes.
    pub fn send(
        &mut self,
        tag: Tag,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), LastingError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let left = deadline.map_or(Duration::MAX, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            match self.now.send(tag, payload, left) {
                Err(SendError::Closed(Status::REPLACED)) => self.reopen(deadline)?,
                other => return Ok(other?),
            }
        }
    }

    /// The lane that serves now.
    pub fn now(&mut self) -> &mut LaneSender {
        &mut self.now
    }

    /// The receiver may need a moment longer than we to find the bus again: until then it is not there, or takes
    /// no lanes yet. [`PEERS_TOPIC`] tells when that changes.
    fn reopen(&mut self, deadline: Option<Instant>) -> Result<(), LaneError> {
        // Before the first try, so that no change falls between.
        let peers = self.client.subscribe(PEERS_TOPIC)?;
        loop {
            match self.client.open_lane(&self.to, self.options) {
                Ok(lane) => {
                    self.now = lane;
                    return Ok(());
                }
                Err(LaneError::Client(error)) if may_come_yet(&error) => {
                    let left = deadline.map_or(Duration::MAX, |deadline| {
                        deadline.saturating_duration_since(Instant::now())
                    });
                    match peers.next(left) {
                        Received::TimedOut | Received::Closed => return Err(error.into()),
                        Received::Item(_) | Received::Lost(_) | Received::Replaced => {}
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn may_come_yet(error: &ClientError) -> bool {
    error.is_retryable()
        || matches!(
            error.status(),
            Some(Status::NO_SUCH_AGENT | Status::UNSUPPORTED | Status::PEER_GONE)
        )
}

/// Lanes that others offer to this agent.
#[derive(Debug)]
pub struct LaneOffers {
    client: Client,
    /// The connection over which they come.
    link: Mutex<Arc<Link>>,
}

/// One offered lane. Dropping it refuses it.
#[derive(Debug)]
pub struct LaneOffer {
    link: Arc<Link>,
    /// Who offers it.
    pub from: PeerId,
    /// What they declare.
    pub shape: Shape,
    lane: u32,
    memory: OwnedFd,
    answered: bool,
}

impl LaneOffers {
    /// Waits for the next offer; `None` after `timeout`.
    pub fn next(&self, timeout: Duration) -> Result<Option<LaneOffer>, ClientError> {
        loop {
            let link = self.link().clone();
            match link.offers.take(Some(timeout)) {
                Received::Item(OfferedLane {
                    from,
                    lane,
                    shape,
                    memory,
                }) => {
                    return Ok(Some(LaneOffer {
                        link: link.clone(),
                        from,
                        shape,
                        lane,
                        memory,
                        answered: false,
                    }));
                }
                // Offers that were dropped run into their deadline at the other side.
                Received::Lost(_) | Received::Replaced => {}
                Received::TimedOut => return Ok(None),
                Received::Closed => {
                    let anew = accept_lanes(&self.client)?;
                    *self.link() = anew;
                }
            }
        }
    }

    fn link(&self) -> MutexGuard<'_, Arc<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the bus send offers over the connection that is returned.
fn accept_lanes(client: &Client) -> Result<Arc<Link>, ClientError> {
    let link = client.link()?;
    ok_result(&command(&link, Control::AcceptLanes)?)?;
    Ok(link)
}

impl LaneOffer {
    /// Takes the lane.
    pub fn accept(self) -> Result<LaneReceiver, LaneError> {
        self.accept_with(ReceiverOptions {
            waiting: Waiting::default(),
            credit: Credit::default(),
        })
    }

    /// Takes the lane, and says how this end behaves.
    pub fn accept_with(mut self, options: ReceiverOptions) -> Result<LaneReceiver, LaneError> {
        probe_waitv().map_err(LaneError::NoWaitv)?;
        // The bus asked for the seals too; but what this process maps, it asks about itself.
        let data = memfd::open(self.memory.as_fd())?;
        let (cursor, cursor_fd) = memfd::create("agentd-lane-cursor", cursor_words())?;
        ring::format_cursor(&cursor, &options)?;
        let registered = Registered::new(Closer::default());
        let consumer = Consumer::new(data, cursor, registered.closer.clone(), options)?;
        let end = End {
            link: self.link.clone(),
            channel: self.lane,
            inbox: registered.inbox.clone(),
        };
        self.link.register(self.lane, registered);
        self.answered = true;
        let payload = Response::ok(b"").encode()?;
        self.link.send(
            Frame::new(kind::RESPONSE, PeerId::BUS, self.lane, payload),
            Some(&cursor_fd),
        )?;
        Ok(LaneReceiver {
            consumer,
            from: self.from,
            class: self.shape.class,
            end,
        })
    }

    /// Refuses the lane with a reason of at most 256 bytes for the offerer.
    pub fn refuse(mut self, why: &str) -> Result<(), ClientError> {
        self.answered = true;
        refuse(&self.link, self.lane, why)
    }
}

impl Drop for LaneOffer {
    fn drop(&mut self) {
        if !self.answered {
            // If the connection is lost, so is the offer.
            drop(refuse(&self.link, self.lane, "the lane was not taken"));
        }
    }
}

/// Answers an offer with a no.
pub(super) fn refuse(link: &Link, channel: u32, why: &str) -> Result<(), ClientError> {
    let payload = Response {
        status: Status::FAILED,
        error: why,
        result: &[],
    }
    .encode()?;
    link.send(
        Frame::new(kind::RESPONSE | kind::ERROR, PeerId::BUS, channel, payload),
        None,
    )
}

impl Client {
    /// Opens a lane to the agent called `to`, which must take lanes.
    pub fn open_lane(&self, to: &str, options: LaneOptions) -> Result<LaneSender, LaneError> {
        probe_waitv().map_err(LaneError::NoWaitv)?;
        let slots = options.slots;
        if slots < SLOTS_MIN {
            return Err(LaneError::TooFewSlots(slots));
        }
        let (data, data_fd) = memfd::create("agentd-lane-data", data_words(slots))?;
        ring::format_data(&data, slots, &options.sender())?;
        let shape = Shape {
            class: options.class,
            overflow: options.overflow,
            slots: slots as u32,
        };
        let registered = Registered::new(Closer::default());
        let mut cursor_fd = None;
        let link = self.link()?;
        let answer = self.addressed(to, |id| {
            let payload = Control::LaneOffer { to: id, shape }.encode()?;
            let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
            let expected = Expected::Channel(registered.clone());
            let arrived = link.call_expecting(frame, Some(&data_fd), None, Some(expected))?;
            ok_result(&arrived.frame)?;
            cursor_fd = arrived.fd;
            Ok(arrived.frame)
        })?;
        // From here on, an early return closes the lane.
        let closer = registered.closer.clone();
        let end = End::numbered(link, &answer, registered)?;
        let cursor = memfd::open(cursor_fd.ok_or(LaneError::NoMemory)?.as_fd())?;
        let producer = Producer::new(data, cursor, closer, options.sender())?;
        Ok(LaneSender { producer, end })
    }

    /// As [`Self::open_lane`], for a lane that is opened anew after a restart of agentd.
    pub fn open_lasting_lane(
        &self,
        to: &str,
        options: LaneOptions,
    ) -> Result<LastingLane, LaneError> {
        let now = self.open_lane(to, options)?;
        Ok(LastingLane {
            client: self.clone(),
            to: to.to_owned(),
            options,
            now,
        })
    }

    /// From now on this connection takes lanes that others offer to the agent.
    pub fn accept_lanes(&self) -> Result<LaneOffers, ClientError> {
        let link = Mutex::new(accept_lanes(self)?);
        Ok(LaneOffers {
            client: self.clone(),
            link,
        })
    }
}
