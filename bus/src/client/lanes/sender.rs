//! The sending end of a lane, whichever ring is below: one that keeps what is not read, or one that overwrites it.
//!
//! One thread at a time. Allocates nothing after set-up but for news from the bus (a bell).

#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::super::ends::{BellRefused, End, SegmentAnnouncer};
use super::super::inbox::TheirBell;
use super::super::sealed::{Outgoing, SealedSendError};
use crate::arena::SealedPayload;
use crate::channel::Tag;
use crate::lane::ring::{Message, Producer, SendError, SettleError};
use crate::log::{self, ReaderId, Writer};
use crate::message::Status;
use crate::shm::bell::Ringer;
use crate::shm::counters::Sent;
use crate::shm::memfd::Mapping;
use crate::shm::park::Closer;
use crate::wait::{Park, Parking, Source, Watch};

/// What is below a lane.
#[derive(Debug)]
pub(in crate::client) enum SendingRing {
    Lane(Producer<Mapping, Mapping>),
    /// [`crate::channel::Overflow::DropOldest`]: a log with one lossy reader.
    DropOldest(Box<Writer<Mapping, Mapping>>),
}

/// The reader of a lane that drops its oldest messages, as its writer calls it.
const ONLY_READER: ReaderId = ReaderId(0);

/// The sending end. Dropping it closes the lane; what was sent is still received.
#[derive(Debug)]
pub struct LaneSender {
    ring: SendingRing,
    sealed: Outgoing,
    end: End,
}

impl LaneSender {
    pub(super) fn new(ring: SendingRing, end: End) -> Self {
        if let SendingRing::Lane(producer) = &ring {
            end.inbox.put_ringers_into(producer.ringer_slot());
        }
        Self {
            ring,
            sealed: Outgoing::default(),
            end,
        }
    }

    /// Puts a message into the lane if there is room. Where the oldest message is dropped there always is.
    #[inline]
    pub fn try_send(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        self.attend();
        match &mut self.ring {
            SendingRing::Lane(producer) => producer.try_send(tag, payload),
            SendingRing::DropOldest(writer) => writer.try_send(tag, payload).map_err(of_a_lane),
        }
    }

    /// As [`Self::try_send`], waiting up to `timeout` for room, or what else the lane's overflow policy says.
    #[inline]
    pub fn send(&mut self, tag: Tag, payload: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.attend();
        match &mut self.ring {
            SendingRing::Lane(producer) => producer.send(tag, payload, timeout),
            SendingRing::DropOldest(writer) => writer.try_send(tag, payload).map_err(of_a_lane),
        }
    }

    /// Sends `messages` in order, checking, counting and waking once for many; says how many were. See
    /// [`Producer::send_batch`].
    pub fn send_batch(
        &mut self,
        messages: &[(Tag, &[u8])],
        timeout: Duration,
    ) -> Result<usize, SendError> {
        self.attend();
        match &mut self.ring {
            SendingRing::Lane(producer) => producer.send_batch(messages, timeout),
            SendingRing::DropOldest(writer) => writer
                .try_send_batch(messages.iter().copied())
                .map_err(of_a_lane),
        }
    }

    /// Sends a payload that the receiver reads in place ([`super::LaneReceiver::recv_in_place`]), in order with all other
    /// messages. Waits up to `timeout` for room, or for the receiver to have read one of
    /// [`crate::client::SEALED_HELD_MAX`], and then for the bus to pass it on.
    pub fn send_sealed(
        &mut self,
        tag: Tag,
        payload: &SealedPayload,
        timeout: Duration,
    ) -> Result<(), SealedSendError<SendError>> {
        self.attend();
        match &mut self.ring {
            SendingRing::Lane(producer) => self
                .sealed
                .send_over_lane(producer, &self.end, tag, payload, timeout),
            SendingRing::DropOldest(writer) => self
                .sealed
                .send_over_log(writer, &self.end, tag, payload, timeout)
                .map_err(|error| match error {
                    SealedSendError::Ring(error) => SealedSendError::Ring(of_a_lane(error)),
                    SealedSendError::Client(error) => SealedSendError::Client(error),
                }),
        }
    }

    /// Longest message that fits.
    pub fn message_limit(&self) -> usize {
        match &self.ring {
            SendingRing::Lane(producer) => producer.message_limit(),
            SendingRing::DropOldest(writer) => writer.message_limit(),
        }
    }

    /// The bus's number for this lane.
    pub fn id(&self) -> u32 {
        self.end.channel
    }

    /// What this end has counted.
    pub fn sent(&self) -> Sent {
        match &self.ring {
            SendingRing::Lane(producer) => producer.sent(),
            SendingRing::DropOldest(writer) => writer.counters(),
        }
    }

    /// Why the lane is over; `None` while it is not.
    pub fn ended(&self) -> Option<Status> {
        match &self.ring {
            SendingRing::Lane(producer) => producer.closer().status(),
            SendingRing::DropOldest(writer) => writer.closer().status(),
        }
    }

    /// Of a lane that is over: waits until the receiver has stopped, then hands each message that it has not received,
    /// and never will, to `each`; says how many those are ([`Producer::settle`]). The two sides hear of the death of
    /// agentd one after the other, so there may be some even where nobody read slowly. Of a lane that drops its oldest
    /// messages nothing is owed.
    pub fn settle(
        &mut self,
        timeout: Duration,
        each: impl FnMut(Message<'_>),
    ) -> Result<u64, SettleError> {
        match &mut self.ring {
            SendingRing::Lane(producer) => producer.settle(timeout, each),
            SendingRing::DropOldest(_) => Ok(0),
        }
    }

    /// The ring itself: references, counters. `None` for a lane that drops its oldest messages.
    pub fn ring_mut(&mut self) -> Option<&mut Producer<Mapping, Mapping>> {
        self.attend();
        match &mut self.ring {
            SendingRing::Lane(producer) => Some(producer),
            SendingRing::DropOldest(_) => None,
        }
    }

    pub(in crate::client) fn into_parts(self) -> (SendingRing, End) {
        (self.ring, self.end)
    }

    /// Carries the segments of an arena to the other side.
    pub fn announcer(&self) -> SegmentAnnouncer {
        SegmentAnnouncer::new(&self.end)
    }

    /// Gives this end a bell, so that room can be waited for in an event loop, or among more than 128 others.
    pub fn make_bell(&mut self) -> Result<(), BellRefused> {
        let SendingRing::Lane(producer) = &mut self.ring else {
            return Err(BellRefused::NeverWaits);
        };
        producer.set_bell(self.end.make_bell()?);
        Ok(())
    }

    /// Takes the receiver's bell, should it have come and not gone where it belongs by itself (a lane's does).
    #[inline]
    fn attend(&mut self) {
        if self.end.inbox.has_bells() {
            self.take_bells();
        }
    }

    #[cold]
    fn take_bells(&mut self) {
        for TheirBell { bell, .. } in self.end.inbox.take_bells() {
            // The bus has made sure that it is a bell; if it is not, nobody waits for it.
            if let SendingRing::DropOldest(writer) = &mut self.ring
                && let Ok(ringer) = Ringer::from_fd(bell)
            {
                // It is attached from the beginning to the end.
                writer.set_ringer(ONLY_READER, ringer).ok();
            }
        }
    }
}

/// Ready when the receiver allows more than it did when last looked, or the lane has ended. One that drops its oldest
/// messages always has room.
impl Source for LaneSender {
    fn watch(&self) -> Watch<'_> {
        match &self.ring {
            SendingRing::Lane(producer) => producer.watch(),
            SendingRing::DropOldest(writer) => writer.always(),
        }
    }
    fn arm(&mut self, how: Park) {
        if let SendingRing::Lane(producer) = &mut self.ring {
            producer.arm(how);
        }
    }
    fn disarm(&mut self) {
        if let SendingRing::Lane(producer) = &mut self.ring {
            producer.disarm();
        }
    }
    fn closer(&self) -> &Closer {
        match &self.ring {
            SendingRing::Lane(producer) => producer.closer(),
            SendingRing::DropOldest(writer) => writer.closer(),
        }
    }
    fn parking(&self) -> Parking {
        match &self.ring {
            SendingRing::Lane(producer) => producer.parking(),
            SendingRing::DropOldest(_) => Parking::NeverParks,
        }
    }
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        match &self.ring {
            SendingRing::Lane(producer) => producer.bell(),
            SendingRing::DropOldest(_) => None,
        }
    }
}

/// A log's word in a lane's: what has one lossy reader is never full.
fn of_a_lane(error: log::SendError) -> SendError {
    match error {
        log::SendError::Full { .. } => SendError::Full,
        log::SendError::TooLong { len, limit } => SendError::TooLong { len, limit },
        log::SendError::Closed(status) => SendError::Closed(status),
    }
}
