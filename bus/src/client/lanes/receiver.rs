//! The receiving end of a lane, whichever ring is below: one that keeps what is not read, or one that overwrites it.
//!
//! One thread at a time.

#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::super::ends::{BellRefused, End, SegmentArrivals};
use super::super::sealed::{Body, InPlaceError, Incoming, recv_over_lane, recv_over_log};
use crate::channel::{Class, Tag};
use crate::frame::PeerId;
use crate::lane::ring::{Consumer, RecvError};
use crate::log;
use crate::message::Status;
use crate::shm::counters::Received;
use crate::shm::memfd::Mapping;
use crate::shm::park::Closer;
use crate::wait::{Park, Parking, Source, Watch};

/// What is below a lane.
#[derive(Debug)]
pub(in crate::client) enum ReceivingRing {
    Lane(Consumer<Mapping, Mapping>),
    /// [`crate::channel::Overflow::DropOldest`]: a log with one lossy reader.
    DropOldest(Box<log::Reader<Mapping, Mapping>>),
}

/// The receiving end. Dropping it closes the lane.
#[derive(Debug)]
pub struct LaneReceiver {
    ring: ReceivingRing,
    /// Made when the first message is taken in place.
    sealed: Option<Box<Incoming<Tag>>>,
    sealed_lossy: Option<Box<Incoming<log::Message>>>,
    /// Lost in front of the message that was taken last.
    lost_before: u64,
    /// Who sends.
    pub from: PeerId,
    /// What the sender declared.
    pub class: Class,
    end: End,
}

impl LaneReceiver {
    pub(super) fn new(ring: ReceivingRing, from: PeerId, class: Class, end: End) -> Self {
        if let ReceivingRing::Lane(consumer) = &ring {
            end.inbox.put_ringers_into(consumer.ringer_slot());
        }
        Self {
            ring,
            sealed: None,
            sealed_lossy: None,
            lost_before: 0,
            from,
            class,
            end,
        }
    }

    /// Takes the next message into `buffer`; `None`: there is none.
    #[inline]
    pub fn try_recv(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Tag>, RecvError> {
        match &mut self.ring {
            ReceivingRing::Lane(consumer) => consumer.try_recv(buffer),
            ReceivingRing::DropOldest(reader) => {
                let taken = reader.try_recv(buffer).map_err(of_a_lane)?;
                taken.map(|message| self.took(&message)).transpose()
            }
        }
    }

    /// As [`Self::try_recv`], waiting up to `timeout`.
    #[inline]
    pub fn recv(&mut self, buffer: &mut Vec<u8>, timeout: Duration) -> Result<Tag, RecvError> {
        match &mut self.ring {
            ReceivingRing::Lane(consumer) => consumer.recv(buffer, timeout),
            ReceivingRing::DropOldest(reader) => {
                let message = reader.recv(buffer, timeout).map_err(of_a_lane)?;
                self.took(&message)
            }
        }
    }

    /// As [`Self::recv`]; what was sent sealed ([`super::LaneSender::send_sealed`]) is not copied but lent, for as long as the
    /// receiver likes. Whoever may get sealed payloads takes every message in this way.
    pub fn recv_in_place(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<(Tag, Body), InPlaceError<RecvError>> {
        match &mut self.ring {
            ReceivingRing::Lane(consumer) => {
                let incoming = self
                    .sealed
                    .get_or_insert_with(|| Incoming::boxed(&self.end));
                recv_over_lane(consumer, incoming, &self.end, buffer, timeout)
            }
            ReceivingRing::DropOldest(reader) => {
                let incoming = self
                    .sealed_lossy
                    .get_or_insert_with(|| Incoming::boxed(&self.end));
                let taken = recv_over_log(reader, incoming, &self.end, buffer, timeout);
                let (message, body) = taken.map_err(|error| error.map_ring(of_a_lane))?;
                self.lost_before = message.lost;
                Ok((message.tag, body))
            }
        }
    }

    fn took(&mut self, message: &log::Message) -> Result<Tag, RecvError> {
        self.lost_before = message.lost;
        if message.reference {
            return Err(RecvError::Reference {
                slot: message.number,
            });
        }
        Ok(message.tag)
    }

    /// How many messages were overwritten between the last one taken and the one before it: more than 0 only where the
    /// oldest is dropped. What was received and what was lost together are all that was sent.
    pub fn lost_before(&self) -> u64 {
        self.lost_before
    }

    /// What this end has counted, lost messages included.
    pub fn received(&self) -> Received {
        match &self.ring {
            ReceivingRing::Lane(consumer) => consumer.received(),
            ReceivingRing::DropOldest(reader) => reader.counters(),
        }
    }

    /// The bus's number for this lane.
    pub fn id(&self) -> u32 {
        self.end.channel
    }

    /// Why the lane is over; `None` while it is not. What was committed before may still be there.
    pub fn ended(&self) -> Option<Status> {
        Source::closer(self).status()
    }

    /// The ring itself: batches, references, credits, counters. `None` for a lane that drops its oldest messages.
    pub fn ring_mut(&mut self) -> Option<&mut Consumer<Mapping, Mapping>> {
        match &mut self.ring {
            ReceivingRing::Lane(consumer) => Some(consumer),
            ReceivingRing::DropOldest(_) => None,
        }
    }

    pub(in crate::client) fn into_parts(self) -> (ReceivingRing, PeerId, End) {
        (self.ring, self.from, self.end)
    }

    /// The segments to which messages may refer.
    pub fn segments(&self) -> SegmentArrivals {
        SegmentArrivals::new(&self.end)
    }

    /// Gives this end a bell, so that it can be waited for in an event loop, or among more than 128.
    pub fn make_bell(&mut self) -> Result<(), BellRefused> {
        let bell = self.end.make_bell()?;
        match &mut self.ring {
            ReceivingRing::Lane(consumer) => consumer.set_bell(bell),
            ReceivingRing::DropOldest(reader) => reader.set_bell(bell),
        }
        Ok(())
    }
}

/// A log's word in a lane's.
fn of_a_lane(error: log::RecvError) -> RecvError {
    match error {
        log::RecvError::TimedOut => RecvError::TimedOut,
        log::RecvError::Closed(status) => RecvError::Closed(status),
        log::RecvError::Length { slot, len } => RecvError::Length { slot, len },
        log::RecvError::Position { messages, slots } => RecvError::Position { messages, slots },
        // Said to reliable readers only; by a hostile sender to this one, whose lane that ends.
        log::RecvError::CutOff => RecvError::Closed(Status::MALFORMED),
    }
}

/// Ready while there is a message, or the lane has ended.
impl Source for LaneReceiver {
    fn watch(&self) -> Watch<'_> {
        match &self.ring {
            ReceivingRing::Lane(consumer) => consumer.watch(),
            ReceivingRing::DropOldest(reader) => reader.watch(),
        }
    }
    fn arm(&mut self, how: Park) {
        match &mut self.ring {
            ReceivingRing::Lane(consumer) => consumer.arm(how),
            ReceivingRing::DropOldest(reader) => reader.arm(how),
        }
    }
    fn disarm(&mut self) {
        match &mut self.ring {
            ReceivingRing::Lane(consumer) => consumer.disarm(),
            ReceivingRing::DropOldest(reader) => reader.disarm(),
        }
    }
    fn is_ready(&self) -> bool {
        match &self.ring {
            ReceivingRing::Lane(consumer) => consumer.is_ready(),
            ReceivingRing::DropOldest(reader) => reader.is_ready(),
        }
    }
    fn closer(&self) -> &Closer {
        match &self.ring {
            ReceivingRing::Lane(consumer) => Source::closer(consumer),
            ReceivingRing::DropOldest(reader) => Source::closer(&**reader),
        }
    }
    fn parking(&self) -> Parking {
        match &self.ring {
            ReceivingRing::Lane(consumer) => consumer.parking(),
            ReceivingRing::DropOldest(reader) => reader.parking(),
        }
    }
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        match &self.ring {
            ReceivingRing::Lane(consumer) => consumer.bell(),
            ReceivingRing::DropOldest(reader) => reader.bell(),
        }
    }
}
