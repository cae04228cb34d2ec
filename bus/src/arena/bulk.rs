//! A lane with an arena: payloads of any size through one ordered channel.
//!
//! Up to [`BulkOptions::threshold`] bytes a payload goes into the ring, above that into the arena, with a
//! reference in the ring. Order and guarantees are the lane's. One thread at a time on each side; no privilege.
//!
//! The sender takes blocks back by looking how far the consumer is, not more often than it must: that line is
//! the consumer's. The receiver copies before it says that it has read: the consumer counts a slot as read only
//! after its payload is out of the arena.
//!
//! `try_send` and `try_recv` never block; `send` waits as the lane's policy says, or lets the arena grow.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::pace::Pace;
use super::reader::SegmentError;
use super::{
    Arena, ArenaError, HEADER_BYTES, REFERENCE_BYTES, Reader, Reference, ReferenceError, Usage,
};
use crate::channel::Tag;
use crate::lane::ring::{Consumer, Producer, RecvError, SendError};
use crate::message::Status;
use crate::shm::atomics::spin_loop;
use crate::shm::park::Closer;
use crate::shm::region::Words;

/// Payloads over this many bytes, ten slots' worth, go to the arena. `cargo bench -p agentd-bus --bench arena`, rows
/// `threshold_*`, compares both ways around it.
pub const THRESHOLD_DEFAULT: usize = 512;

/// The sender looks at the consumer's cursor when the arena is full, or when it has stored this much; and when so much is
/// unread, it waits a little rather than spread over more memory. It is what the caches next to two cores hold: more was
/// never quicker (docs/journal, "What a bulk copy goes round in").
const LOOK_BYTES: u64 = 1 << 20;
/// Large payloads: so many of them, lest one side waits for the other at every one.
const LOOK_PAYLOADS: u64 = 8;
/// A sender that waits a little looks so often, and once more for each cache line of its payload: about as long as the
/// receiver takes to copy one of that size.
const LINGER_LOOKS: usize = 256;

/// The receiver says how far it is when it has copied this much, whatever the lane's step: the sender's arena
/// is smaller than its ring is long.
const PUBLISH_BYTES: u64 = 64 << 10;

/// Where an arena's segments come from, and who is told of them.
pub trait Supply: Send {
    type Memory: Words;
    type Error: std::error::Error + Send + 'static;

    /// Makes a segment of which an empty one takes a block of `least` bytes, and lets the receivers have it as
    /// `number`. It need not have arrived when this returns: a receiver that meets the number waits for it.
    fn segment(&mut self, number: u32, least: u64) -> Result<Self::Memory, Self::Error>;

    /// The owner has let go of a segment, and no receiver will read it again.
    fn dropped(&mut self, number: u32);
}

/// Where a receiver gets segments that a reference names.
pub trait Arrivals: Send {
    type Memory: Words;
    type Error: std::error::Error + Send + 'static;

    /// The next segment that the owner announced, waiting until `deadline` (`None`: not at all). `Ok(None)`: none
    /// came in time, or none will come because the channel is over.
    fn next(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<(u32, Self::Memory)>, Self::Error>;
}

/// How a sender uses its arena.
#[derive(Clone, Copy, Debug)]
pub struct BulkOptions {
    /// Largest payload that goes into the ring, bytes.
    pub threshold: usize,
    /// Up to this many bytes of segments the arena grows when it is full; above, the sender waits. A payload
    /// that fits into no segment makes it grow in any case, as far as the budget goes. The last segment may reach
    /// beyond.
    pub grow_to: u64,
    /// Bytes that the first segment, which is made at once, has at least.
    pub first: u64,
}

impl Default for BulkOptions {
    fn default() -> Self {
        Self {
            threshold: THRESHOLD_DEFAULT,
            grow_to: 64 << 20,
            first: 1 << 20,
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum BulkSendError<E: std::error::Error + 'static> {
    #[error(transparent)]
    Lane(#[from] SendError),
    #[error(transparent)]
    Arena(ArenaError),
    #[error("the arena can't grow: {0}")]
    Supply(E),
}

impl<E: std::error::Error> BulkSendError<E> {
    /// Is it only that the receiver has not read enough yet?
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Lane(SendError::Full) | Self::Arena(ArenaError::Full { .. })
        )
    }
}

/// The sending end of a lane with an arena.
#[derive(Debug)]
pub struct BulkSender<D: Words, C: Words, S: Supply> {
    producer: Producer<D, C>,
    arena: Arena<S::Memory>,
    supply: S,
    options: BulkOptions,
    /// Bytes stored since the cursor was looked at last: the next look is after [`LOOK_BYTES`] or [`LOOK_PAYLOADS`].
    stored: u64,
    /// How far the receiver was when it was waited for in vain: not again before it has gone on.
    stuck_at: Option<u64>,
    began: Instant,
    pace: Pace,
}

impl<D: Words, C: Words, S: Supply> BulkSender<D, C, S> {
    /// Makes the first segment and tells the receiver of it.
    pub fn new(
        producer: Producer<D, C>,
        supply: S,
        options: BulkOptions,
    ) -> Result<Self, BulkSendError<S::Error>> {
        let mut sender = Self {
            arena: Arena::new(producer.capacity()),
            producer,
            supply,
            options: BulkOptions {
                threshold: options.threshold,
                ..options
            },
            stored: 0,
            stuck_at: None,
            began: Instant::now(),
            pace: Pace::new(),
        };
        sender.options.threshold = options.threshold.min(sender.producer.message_limit());
        sender.grow(options.first)?;
        Ok(sender)
    }

    /// Says to this end that the channel is over.
    pub fn closer(&self) -> &Closer {
        self.producer.closer()
    }

    /// The lane below.
    pub fn producer(&self) -> &Producer<D, C> {
        &self.producer
    }

    /// For references to memory that is no arena's, in order with all other messages.
    pub(crate) fn producer_mut(&mut self) -> &mut Producer<D, C> {
        &mut self.producer
    }

    /// How full the arena is, as far as the cursor has been looked at.
    pub fn usage(&self) -> Usage {
        self.arena.usage()
    }

    /// Sends if ring and arena have room. Never blocks and never grows the arena.
    pub fn try_send(&mut self, tag: Tag, payload: &[u8]) -> Result<(), BulkSendError<S::Error>> {
        if payload.len() <= self.options.threshold {
            return Ok(self.producer.try_send(tag, payload)?);
        }
        // Before the copy, which may be long.
        self.producer.room(REFERENCE_BYTES)?;
        if self.stored >= window(payload.len()) {
            self.look()?;
        }
        let stored = match self.arena.store(payload) {
            Err(ArenaError::Full { .. }) => {
                self.look()?;
                self.arena.store(payload)
            }
            other => other,
        }
        .map_err(BulkSendError::Arena)?;
        let slot = self.producer.next_slot();
        let reference = stored.reference().to_bytes();
        match self
            .producer
            .try_send_reference(tag, &reference, payload.len() as u64)
        {
            Ok(()) => {
                self.arena.hold(slot, stored);
                self.stored += payload.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.arena.release(stored);
                Err(error.into())
            }
        }
    }

    /// As [`Self::try_send`]; without room the arena grows as far as it may, and then the lane's overflow policy
    /// is followed: wait for up to `timeout`, drop, or disconnect.
    pub fn send(
        &mut self,
        tag: Tag,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), BulkSendError<S::Error>> {
        if payload.len() > self.options.threshold && self.arena.unread() > window(payload.len()) {
            self.linger(payload.len())?;
        }
        let mut deadline = None;
        let least = payload.len() as u64 + HEADER_BYTES;
        loop {
            let error = match self.try_send(tag, payload) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let mut left = || {
                let at: Option<Instant> =
                    *deadline.get_or_insert_with(|| Instant::now().checked_add(timeout));
                at.map_or(timeout, |at| at.saturating_duration_since(Instant::now()))
            };
            match error {
                BulkSendError::Arena(ArenaError::TooLong { .. }) => self.grow(least)?,
                BulkSendError::Arena(ArenaError::Full { .. }) => {
                    let may_grow = self.arena.usage().bytes + least <= self.options.grow_to;
                    // One waits where the budget is spent: a refusal to grow is not worth more than that.
                    if !may_grow || self.grow(least).is_err() {
                        self.producer.make_room(left())?;
                    }
                }
                BulkSendError::Lane(SendError::Full) => {
                    let in_ring = payload
                        .len()
                        .min(self.options.threshold)
                        .max(REFERENCE_BYTES);
                    self.producer.overflow(in_ring, 1, left())?;
                }
                error => return Err(error),
            }
        }
    }

    /// Much is unread: gives a receiver that is reading the time to read one more, so that its block is used again while the
    /// caches have it.
    #[cold]
    fn linger(&mut self, len: usize) -> Result<(), SendError> {
        let mut left = LINGER_LOOKS + len / 64;
        loop {
            let consumed = self.producer.consumed()?;
            self.arena.note_consumed(consumed);
            if self.arena.unread() <= window(len) || self.stuck_at == Some(consumed) {
                return Ok(());
            }
            if left == 0 {
                self.stuck_at = Some(consumed);
                return Ok(());
            }
            left -= 1;
            spin_loop();
        }
    }

    /// Takes back the blocks of all that the receiver has read.
    pub fn reclaim(&mut self) -> Result<usize, SendError> {
        let consumed = self.look()?;
        Ok(self.arena.reclaim(consumed))
    }

    /// Sees how far the receiver is: what it has read may be written over.
    fn look(&mut self) -> Result<u64, SendError> {
        let consumed = self.producer.consumed()?;
        self.arena.note_consumed(consumed);
        // Is the receiver behind, or is it waiting for each message?
        let behind = self.arena.oldest_held().is_some();
        let sent = std::mem::take(&mut self.stored);
        let stores = self.pace.note(self.began.elapsed(), sent, behind);
        self.arena.set_stores(stores);
        Ok(consumed)
    }

    /// Adds a segment that takes a block of `least` bytes. For those who know that much is coming; touches all of
    /// the new memory.
    pub fn grow(&mut self, least: u64) -> Result<(), BulkSendError<S::Error>> {
        let number = self.arena.next_number().map_err(BulkSendError::Arena)?;
        let memory = self
            .supply
            .segment(number, least)
            .map_err(BulkSendError::Supply)?;
        self.arena.add(memory).map_err(BulkSendError::Arena)?;
        Ok(())
    }

    /// Lets go of segments in which nothing is unread, except the first, and tells the receiver, as far as the
    /// ring has room for that. Returns how many.
    pub fn shrink(&mut self) -> Result<usize, SendError> {
        self.reclaim()?;
        let mut count = 0;
        while let Some(number) = self.arena.droppable() {
            let gone = Reference::gone(number).to_bytes();
            match self.producer.try_send_reference(Tag::default(), &gone, 0) {
                Ok(()) => {}
                Err(SendError::Full) => break,
                Err(error) => return Err(error),
            }
            self.arena.remove(number);
            self.supply.dropped(number);
            count += 1;
        }
        Ok(count)
    }
}

/// What the sender goes round in, bytes, with payloads of `len` bytes.
fn window(len: usize) -> u64 {
    LOOK_BYTES.max(LOOK_PAYLOADS * len as u64)
}

/// Why no message was received.
#[derive(Debug, thiserror::Error)]
pub enum BulkRecvError<E: std::error::Error + 'static> {
    #[error(transparent)]
    Lane(#[from] RecvError),
    /// The lane has been closed for it.
    #[error("the sender's reference leads nowhere: {0}")]
    Reference(ReferenceError),
    #[error("a segment of the sender's was not taken: {0}")]
    Segment(SegmentError),
    #[error("a segment of the sender's was not taken: {0}")]
    Arrival(E),
}

/// The receiving end of a lane with an arena.
#[derive(Debug)]
pub struct BulkReceiver<D: Words, C: Words, A: Arrivals> {
    consumer: Consumer<D, C>,
    reader: Reader<A::Memory>,
    arrivals: A,
    /// Taken from the ring, its segment not here yet. The consumer is left alone meanwhile.
    waiting: Option<(Tag, Reference)>,
    /// Copied since the sender was told last how far we are.
    unpublished: u64,
}

enum Taken {
    Whole(Tag),
    Reference(Tag, Result<Reference, ReferenceError>),
}

impl<D: Words, C: Words, A: Arrivals> BulkReceiver<D, C, A> {
    /// Takes at most `limit` bytes of segments of this sender.
    pub fn new(consumer: Consumer<D, C>, arrivals: A, limit: u64) -> Self {
        Self {
            consumer,
            reader: Reader::new(limit),
            arrivals,
            waiting: None,
            unpublished: 0,
        }
    }

    /// Says to this end that the channel is over; what is committed can still be received.
    pub fn closer(&self) -> &Closer {
        self.consumer.closer()
    }

    /// The lane below.
    pub fn consumer(&self) -> &Consumer<D, C> {
        &self.consumer
    }

    /// Bytes of the sender's segments that are mapped here.
    pub fn mapped(&self) -> u64 {
        self.reader.bytes()
    }

    /// Takes the next message into `buffer`, which is cleared first. `None`: there is none, or its segment is
    /// still under way. Never blocks.
    pub fn try_recv(
        &mut self,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Tag>, BulkRecvError<A::Error>> {
        loop {
            let (tag, reference) = match self.waiting.take() {
                Some(waiting) => waiting,
                None => match self.consumer.try_next(|message| take(buffer, &message))? {
                    None => return Ok(None),
                    Some(Taken::Whole(tag)) => {
                        self.consumer.release();
                        return Ok(Some(tag));
                    }
                    Some(Taken::Reference(tag, reference)) => (tag, self.believed(reference)?),
                },
            };
            if reference.is_sealed() {
                return Err(self.refuse_sealed());
            }
            if let Some(tag) = self.follow(tag, reference, buffer, None)? {
                return Ok(Some(tag));
            }
            if self.waiting.is_some() {
                return Ok(None);
            }
        }
    }

    /// As [`Self::try_recv`], waiting up to `timeout`. After the channel was closed, first gives what had been
    /// committed.
    pub fn recv(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<Tag, BulkRecvError<A::Error>> {
        match self.recv_any(buffer, timeout)? {
            (tag, None) => Ok(tag),
            (_, Some(_)) => Err(self.refuse_sealed()),
        }
    }

    /// As [`Self::recv`]; of a sealed payload the reference, whose slot counts as read once the caller has said so
    /// ([`Self::done_with_sealed`]).
    pub(crate) fn recv_any(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<(Tag, Option<Reference>), BulkRecvError<A::Error>> {
        let mut deadline = None;
        loop {
            let (tag, reference) = match self.waiting.take() {
                Some(waiting) => waiting,
                None => {
                    let left = deadline.flatten().map_or(timeout, |at: Instant| {
                        at.saturating_duration_since(Instant::now())
                    });
                    match self.consumer.next(left, |message| take(buffer, &message))? {
                        Taken::Whole(tag) => {
                            self.consumer.release();
                            return Ok((tag, None));
                        }
                        Taken::Reference(tag, reference) => (tag, self.believed(reference)?),
                    }
                }
            };
            if reference.is_sealed() {
                return Ok((tag, Some(reference)));
            }
            if self.reader.has(reference.segment) || reference.is_gone() {
                // The usual case asks for no time.
                if let Some(tag) = self.follow(tag, reference, buffer, None)? {
                    return Ok((tag, None));
                }
                continue;
            }
            let until = *deadline.get_or_insert_with(|| Instant::now().checked_add(timeout));
            if let Some(tag) = self.follow(tag, reference, buffer, until)? {
                return Ok((tag, None));
            }
            if self.waiting.is_some() {
                return Err(match self.closer().status() {
                    Some(status) => RecvError::Closed(status),
                    None => RecvError::TimedOut,
                }
                .into());
            }
        }
    }

    /// Hands up to `max` messages to `take`, as many as there are, and says how many. Never blocks. Each is
    /// copied into `buffer` before. An error ends the batch; messages before it have been handed over.
    pub fn for_each(
        &mut self,
        max: usize,
        buffer: &mut Vec<u8>,
        mut take: impl FnMut(Tag, &[u8]),
    ) -> Result<usize, BulkRecvError<A::Error>> {
        let mut count = 0;
        while count < max {
            let Some(tag) = self.try_recv(buffer)? else {
                break;
            };
            take(tag, buffer);
            count += 1;
        }
        Ok(count)
    }

    /// Copies what was referred to, and then lets the sender have the block. `None`: it was a notice, or its
    /// segment did not come by `deadline`, in which case it waits in `self.waiting`.
    fn follow(
        &mut self,
        tag: Tag,
        reference: Reference,
        buffer: &mut Vec<u8>,
        deadline: Option<Instant>,
    ) -> Result<Option<Tag>, BulkRecvError<A::Error>> {
        if reference.is_gone() {
            self.reader.remove(reference.segment);
            self.consumer.release();
            return Ok(None);
        }
        if let Some(next) = self.consumer.peek_reference() {
            self.reader.prefetch(&next);
        }
        loop {
            match self.reader.read(&reference, buffer) {
                Ok(()) => {
                    self.unpublished += reference.length;
                    if self.unpublished >= PUBLISH_BYTES {
                        self.unpublished = 0;
                        self.consumer.publish();
                    }
                    self.consumer.release();
                    return Ok(Some(tag));
                }
                Err(ReferenceError::NoSegment { .. }) => {}
                Err(error) => return Err(self.broken(BulkRecvError::Reference(error))),
            }
            match self.arrivals.next(deadline) {
                Ok(Some((number, memory))) => {
                    if let Err(error) = self.reader.add(number, memory) {
                        return Err(self.broken(BulkRecvError::Segment(error)));
                    }
                }
                Ok(None) => {
                    self.waiting = Some((tag, reference));
                    return Ok(None);
                }
                Err(error) => return Err(self.broken(BulkRecvError::Arrival(error))),
            }
        }
    }

    /// The sender may let go of the sealed payload that was taken last, and should: it holds much.
    pub(crate) fn done_with_sealed(&mut self) {
        self.consumer.release();
        self.consumer.publish();
    }

    pub(crate) fn arrivals_mut(&mut self) -> &mut A {
        &mut self.arrivals
    }

    /// Skips what this receiver has no way to read.
    #[cold]
    pub(crate) fn refuse_sealed(&mut self) -> BulkRecvError<A::Error> {
        self.consumer.refuse();
        self.done_with_sealed();
        let slot = self.consumer.next_slot().wrapping_sub(1);
        RecvError::Reference { slot }.into()
    }

    fn believed(
        &mut self,
        reference: Result<Reference, ReferenceError>,
    ) -> Result<Reference, BulkRecvError<A::Error>> {
        reference.map_err(|error| self.broken(BulkRecvError::Reference(error)))
    }

    /// A sender whose reference is wrong is broken or hostile: no more is read of it.
    #[cold]
    fn broken(&mut self, error: BulkRecvError<A::Error>) -> BulkRecvError<A::Error> {
        self.consumer.refuse();
        self.consumer.closer().close(Status::MALFORMED);
        error
    }
}

#[inline]
fn take(buffer: &mut Vec<u8>, message: &crate::lane::ring::Message<'_>) -> Taken {
    if message.reference {
        return Taken::Reference(message.tag, Reference::parse(message.payload));
    }
    buffer.clear();
    buffer.extend_from_slice(message.payload);
    Taken::Whole(message.tag)
}
