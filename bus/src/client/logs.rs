//! Logs of a client: one process writes under a topic, any number of others read at their own pace.
//!
//! [`Client::publish_log`] makes the memory and offers it; [`Client::follow_log`] asks for every log of a pattern,
//! now and later, and gives a [`LogReader`] for each. The bus carries the descriptors and asks the policy
//! (`publish`, `subscribe`); the messages go through memory. When agentd is restarted both ends say
//! [`Status::REPLACED`] once all is read: the producer offers its log anew, the follows find it by themselves.

mod lasting;
mod once;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ends::{BellRefused, End, SegmentAnnouncer, SegmentArrivals};
use super::inbox::{News, TheirBell};
use super::lanes::{SLOTS_MIN, refuse};
use super::link::{Expected, Link, OfferedLog, Registered};
use super::mailbox::{Mailbox, Received, left};
use super::sealed::{Body, InPlaceError, Incoming, Outgoing, SealedSendError, recv_over_log};
use super::{Client, ClientError, ok_result};
use crate::arena::SealedPayload;
use crate::channel::{Class, Inline, Overflow, Tag, Waiting};
use crate::frame::{Frame, PeerId, kind};
use crate::log::{
    self, Delivery, Hold, LayoutError, Message, Place, ReaderId, ReaderOptions, ReaderSnapshot,
    RecvError, SendError, Start, Writer, WriterOptions,
};
use crate::message::{Control, MessageError, Response, Shape, Status};
use crate::shm::bell::Ringer;
use crate::shm::memfd::{self, Mapping, MemfdError};
use crate::shm::park::{Closer, probe_waitv};
use crate::wait::{Park, Parking, Source, Watch};

pub use lasting::{LastingLog, LastingLogError};
use once::{Onces, Reached};

/// Offers held for a follow whose owner does not take them.
const OFFERS_HELD: usize = 256;

/// Why there is no log, or no reader of one. Topic messages can always go over the socket.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Memory(#[from] MemfdError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("this kernel or sandbox has no futex_waitv (Linux 5.16), which logs sleep on: {0}")]
    NoWaitv(std::io::Error),
    #[error("a shared log has {SLOTS_MIN} slots or more, not {0}")]
    TooFewSlots(usize),
}

impl LogError {
    /// There can be no shared memory here, now or later: publish over the socket.
    pub fn is_socket_only(&self) -> bool {
        match self {
            Self::NoWaitv(_) => true,
            Self::Client(error) => error.status() == Some(Status::UNSUPPORTED),
            _ => false,
        }
    }
}

impl From<MessageError> for LogError {
    fn from(error: MessageError) -> Self {
        Self::Client(error.into())
    }
}

/// How a log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// A power of two from [`SLOTS_MIN`].
    pub slots: usize,
    pub class: Class,
    /// How the writer waits for reliable readers.
    pub waiting: Waiting,
    /// How far and how long each of them may hold it up.
    pub hold: Hold,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            slots: super::DEFAULT_SLOTS,
            class: Class::default(),
            waiting: Waiting::default(),
            hold: Hold::default(),
        }
    }
}

/// How logs are followed.
#[derive(Clone, Copy, Debug, Default)]
pub struct FollowOptions {
    /// What this reader is promised.
    pub delivery: Delivery,
    /// Where it begins in a log that has been written to before.
    pub start: Start,
    pub waiting: Waiting,
}

/// The writing end. Dropping it ends the log; what was written is still read.
///
/// Readers that join or leave are taken up by the next message, or by [`Self::attend`].
#[derive(Debug)]
pub struct LogWriter {
    writer: Writer<Mapping, Mapping>,
    /// Whose the reliable readers are.
    reliable: Vec<(ReaderId, PeerId)>,
    sealed: Outgoing,
    end: End,
    topic: String,
}

impl LogWriter {
    /// Writes a message if no reliable reader is in its way.
    pub fn try_send(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        self.look();
        let sent = self.writer.try_send(tag, payload);
        self.cut_off();
        sent
    }

    /// As [`Self::try_send`], waiting up to `timeout` for reliable readers.
    pub fn send(&mut self, tag: Tag, payload: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.look();
        let sent = self.writer.send(tag, payload, timeout);
        self.cut_off();
        sent
    }

    /// Writes a payload that readers use in place ([`LogReader::recv_in_place`]), in order with all other messages. Waits up
    /// to `timeout` for reliable readers, and then for the bus to pass it on. Of more than
    /// [`super::SEALED_HELD_MAX`] the oldest is gone for lossy readers that have not read it.
    pub fn send_sealed(
        &mut self,
        tag: Tag,
        payload: &SealedPayload,
        timeout: Duration,
    ) -> Result<(), SealedSendError<SendError>> {
        self.look();
        let sent = self
            .sealed
            .send_over_log(&mut self.writer, &self.end, tag, payload, timeout);
        self.cut_off();
        sent
    }

    /// Takes up the readers that have joined or left: an end that writes seldom calls this in between.
    pub fn attend(&mut self) {
        self.look();
        self.cut_off();
    }

    /// As [`Self::attend`], waiting until `timeout` for something to take up.
    pub fn await_readers(&mut self, timeout: Duration) {
        self.end.inbox.wait(Instant::now().checked_add(timeout));
        self.attend();
    }

    /// What each reader says of itself.
    pub fn readers(&self) -> impl Iterator<Item = ReaderSnapshot> {
        self.writer.readers()
    }

    /// Longest message that fits.
    pub fn message_limit(&self) -> usize {
        self.writer.message_limit()
    }

    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The bus's number for this log.
    pub fn id(&self) -> u32 {
        self.end.channel
    }

    /// The ring itself: batches, counters.
    pub fn ring_mut(&mut self) -> &mut Writer<Mapping, Mapping> {
        self.attend();
        &mut self.writer
    }

    /// Carries the segments of an arena to all readers.
    pub fn announcer(&self) -> SegmentAnnouncer {
        SegmentAnnouncer::new(&self.end)
    }

    /// Whose its reliable readers are, one for each reader.
    fn reliable_readers(&self) -> impl Iterator<Item = PeerId> {
        self.reliable.iter().map(|(_, peer)| *peer)
    }

    /// Why the log is over; `None` while it is not.
    pub fn ended(&self) -> Option<Status> {
        self.writer.closer().status()
    }

    #[inline]
    fn look(&mut self) {
        if self.end.inbox.has_news() || self.end.inbox.has_bells() {
            self.take_news();
        }
    }

    #[cold]
    fn take_news(&mut self) {
        // Before the news: a bell comes after its reader, so the reader of each of these is known or among them.
        let bells = self.end.inbox.take_bells();
        for news in self.end.inbox.take() {
            match news {
                News::Reader {
                    channel,
                    from,
                    reliable,
                    cursor,
                } => {
                    let delivery = if reliable {
                        Delivery::Reliable
                    } else {
                        Delivery::Lossy
                    };
                    let attached = memfd::open(cursor.as_fd()).is_ok_and(|cursor| {
                        self.writer
                            .attach_reader(ReaderId(channel), cursor, delivery)
                            .is_ok()
                    });
                    if attached && reliable {
                        self.reliable.push((ReaderId(channel), from));
                    }
                    if !attached {
                        // Its memory is not a cursor's, or there are too many: it hears that it is over.
                        self.let_go(channel, Status::FAILED);
                    }
                }
                News::ReaderGone { channel } => {
                    self.reliable.retain(|(id, _)| id.0 != channel);
                    // It may have been cut off in the meantime.
                    if self.writer.detach_reader(ReaderId(channel)).is_err() {}
                }
                // Only readers are told of segments.
                News::Segment { .. } | News::SegmentDropped { .. } => {}
            }
        }
        for TheirBell { channel, bell } in bells {
            // The bus has made sure that it is a bell; a reader that has been cut off meanwhile needs none.
            if let Ok(ringer) = Ringer::from_fd(bell) {
                self.writer.set_ringer(ReaderId(channel), ringer).ok();
            }
        }
    }

    /// Tells the bus of readers that held the log up for too long.
    #[inline]
    fn cut_off(&mut self) {
        while let Some(ReaderId(channel)) = self.writer.next_cut_off() {
            self.reliable.retain(|(id, _)| id.0 != channel);
            self.let_go(channel, Status::QUEUE_FULL);
        }
    }

    fn let_go(&self, channel: u32, status: Status) {
        self.end.link.forget_reader(channel);
        self.end
            .link
            .tell(Control::ChannelClosed { channel, status });
    }
}

/// One log, read. Dropping it leaves the log.
#[derive(Debug)]
pub struct LogReader {
    reader: log::Reader<Mapping, Mapping>,
    /// Of a lasting log: what the readers of this follow have had of it.
    reached: Option<Arc<Reached>>,
    /// Made when the first message is taken in place.
    sealed: Option<Box<Incoming<Message>>>,
    /// Who writes.
    pub from: PeerId,
    pub topic: String,
    end: End,
}

impl LogReader {
    /// Takes the next message into `buffer`; `None`: there is none.
    pub fn try_recv(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Message>, RecvError> {
        while let Some(message) = self.reader.try_recv(buffer)? {
            if let Some(message) = once::admit(self.reached.as_deref(), message) {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// As [`Self::try_recv`], waiting up to `timeout`.
    pub fn recv(&mut self, buffer: &mut Vec<u8>, timeout: Duration) -> Result<Message, RecvError> {
        if self.reached.is_none() {
            return self.reader.recv(buffer, timeout);
        }
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let message = self.reader.recv(buffer, left(deadline))?;
            if let Some(message) = once::admit(self.reached.as_deref(), message) {
                return Ok(message);
            }
        }
    }

    /// As [`Self::recv`]; what was sent sealed ([`LogWriter::send_sealed`]) is not copied but lent, for as long as the
    /// reader likes. Whoever may get sealed payloads takes every message in this way.
    pub fn recv_in_place(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<(Message, Body), InPlaceError<RecvError>> {
        let incoming = self
            .sealed
            .get_or_insert_with(|| Incoming::boxed(&self.end));
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let (message, body) = recv_over_log(
                &mut self.reader,
                incoming,
                &self.end,
                buffer,
                left(deadline),
            )?;
            if let Some(message) = once::admit(self.reached.as_deref(), message) {
                return Ok((message, body));
            }
        }
    }

    /// The bus's number for this reader.
    pub fn id(&self) -> u32 {
        self.end.channel
    }

    /// The ring itself: batches, counters. What a lasting log repeats is there again.
    pub fn ring_mut(&mut self) -> &mut log::Reader<Mapping, Mapping> {
        &mut self.reader
    }

    /// Gives this reader a bell, so that it can be waited for in an event loop, or among more than 128.
    pub fn make_bell(&mut self) -> Result<(), BellRefused> {
        let bell = self.end.make_bell()?;
        self.reader.set_bell(bell);
        Ok(())
    }

    /// The segments to which messages may refer.
    pub fn segments(&self) -> SegmentArrivals {
        SegmentArrivals::new(&self.end)
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        // Shows how far it has read, as before a sleep: what is left over is counted by the daemon.
        self.reader.arm(Park::Futex);
        self.reader.disarm();
    }
}

/// Ready while there is a message, or the log has ended.
impl Source for LogReader {
    fn watch(&self) -> Watch<'_> {
        self.reader.watch()
    }
    fn arm(&mut self, how: Park) {
        self.reader.arm(how);
    }
    fn disarm(&mut self) {
        self.reader.disarm();
    }
    fn is_ready(&self) -> bool {
        self.reader.is_ready()
    }
    fn closer(&self) -> &Closer {
        Source::closer(&self.reader)
    }
    fn parking(&self) -> Parking {
        self.reader.parking()
    }
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.reader.bell()
    }
}

/// A reader for each log of a pattern, as they come. Dropping it asks for no more; readers that were taken stay.
#[derive(Debug)]
pub struct LogReaders {
    client: Client,
    pattern: String,
    options: FollowOptions,
    now: Following,
    /// What was had of lasting logs.
    onces: Onces,
}

/// The connection over which the offers come.
#[derive(Debug)]
struct Following {
    link: Arc<Link>,
    number: u32,
    offers: Arc<Mailbox<OfferedLog>>,
}

impl Following {
    fn start(client: &Client, pattern: &str, delivery: Delivery) -> Result<Self, ClientError> {
        let link = client.link()?;
        let offers = Arc::new(Mailbox::new(OFFERS_HELD));
        let payload = Control::LogFollow {
            reliable: delivery == Delivery::Reliable,
            pattern,
        }
        .encode()?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        let expected = Expected::Follow(offers.clone());
        let answer = link.call_expecting(frame, None, None, Some(expected))?;
        let number = ok_result(&answer.frame)?.result;
        let number = number.try_into().map_err(|_| MessageError::Missing {
            what: "follow number",
        })?;
        Ok(Self {
            link,
            number: u32::from_le_bytes(number),
            offers,
        })
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.link.forget_follow(self.number);
        self.link.tell(Control::LogUnfollow {
            follow: self.number,
        });
    }
}

impl LogReaders {
    /// Waits for the next log that the pattern covers, and begins to read it; `None` after `timeout`. A log is
    /// offered for ten seconds: whoever follows takes them as they come.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<LogReader>, LogError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match self.now.offers.take(left) {
                Received::Item(offer) => return self.take(offer).map(Some),
                // Offers that were dropped run into their deadline at the bus.
                Received::Lost(_) | Received::Replaced => {}
                Received::TimedOut => return Ok(None),
                Received::Closed => {
                    let delivery = self.options.delivery;
                    self.now = Following::start(&self.client, &self.pattern, delivery)?;
                }
            }
        }
    }

    fn take(&mut self, offer: OfferedLog) -> Result<LogReader, LogError> {
        match self.open(&offer) {
            Ok(reader) => Ok(reader),
            Err(error) => {
                // If the connection is lost, so is the offer.
                drop(refuse(
                    &self.now.link,
                    offer.channel,
                    "the log could not be read",
                ));
                Err(error)
            }
        }
    }

    fn open(&mut self, offer: &OfferedLog) -> Result<LogReader, LogError> {
        let link = self.now.link.clone();
        let options = ReaderOptions {
            start: self.options.start,
            delivery: self.options.delivery,
            waiting: self.options.waiting,
        };
        let data = memfd::open(offer.memory.as_fd())?;
        let (cursor, cursor_fd) = memfd::create("agentd-log-cursor", log::cursor_words())?;
        log::format_cursor(&cursor, &options)?;
        let registered = Registered::new(Closer::default());
        let closer = registered.closer.clone();
        let reader = log::Reader::new(data, cursor, closer, options)?;
        let reached = reader
            .series()
            .map(|series| self.onces.of(offer.from, &offer.topic, series));
        let end = End {
            link: link.clone(),
            channel: offer.channel,
            inbox: registered.inbox.clone(),
        };
        link.register(offer.channel, registered);
        let payload = Response::ok(b"").encode()?;
        link.send(
            Frame::new(kind::RESPONSE, PeerId::BUS, offer.channel, payload),
            Some(&cursor_fd),
        )?;
        Ok(LogReader {
            reader,
            reached,
            sealed: None,
            from: offer.from,
            topic: offer.topic.clone(),
            end,
        })
    }
}

impl Client {
    /// Begins a log under `topic`.
    pub fn publish_log(&self, topic: &str, options: LogOptions) -> Result<LogWriter, LogError> {
        self.begin_log(topic, options, Place::default())
    }

    /// As [`Self::publish_log`], for a log that is opened anew after a restart of agentd.
    pub fn publish_lasting_log(
        &self,
        topic: &str,
        options: LogOptions,
    ) -> Result<LastingLog, LogError> {
        LastingLog::begin(self.clone(), topic, options)
    }

    fn begin_log(
        &self,
        topic: &str,
        options: LogOptions,
        place: Place,
    ) -> Result<LogWriter, LogError> {
        probe_waitv().map_err(LogError::NoWaitv)?;
        let slots = options.slots;
        if slots < SLOTS_MIN {
            return Err(LogError::TooFewSlots(slots));
        }
        let (data, data_fd) = memfd::create("agentd-log-data", log::data_words(slots))?;
        log::format_data(&data, slots)?;
        let registered = Registered::new(Closer::default());
        let writer_options = WriterOptions {
            waiting: options.waiting,
            hold: options.hold,
            ..WriterOptions::default()
        };
        let closer = registered.closer.clone();
        let writer = Writer::starting_at(data, closer, writer_options, place)?;
        let shape = Shape {
            class: options.class,
            overflow: Overflow::DropOldest,
            inline: Inline::Small,
            slots: slots as u32,
        };
        let payload = Control::LogOffer { shape, topic }.encode()?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        let link = self.link()?;
        let expected = Expected::Channel(registered.clone());
        let answer = link.call_expecting(frame, Some(&data_fd), None, Some(expected))?;
        let end = End::numbered(link, &answer.frame, registered)?;
        Ok(LogWriter {
            writer,
            reliable: Vec::new(),
            sealed: Outgoing::default(),
            end,
            topic: topic.to_owned(),
        })
    }

    /// Readers of every log whose topic `pattern` covers, those that begin later included.
    pub fn follow_log(
        &self,
        pattern: &str,
        options: FollowOptions,
    ) -> Result<LogReaders, LogError> {
        probe_waitv().map_err(LogError::NoWaitv)?;
        let now = Following::start(self, pattern, options.delivery)?;
        Ok(LogReaders {
            client: self.clone(),
            pattern: pattern.to_owned(),
            options,
            now,
            onces: Onces::default(),
        })
    }
}
