//! Lanes with an arena: messages of any size, copied once in and once out.
//!
//! What fits goes through the ring, the rest into segments that the sender makes as it needs them and of which the
//! bus carries the descriptors. The policy that allows the lane allows its segments; what a sender may have shared
//! in all is bounded by the bus.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::ends::{End, SegmentAnnouncer};
use super::lanes::{LaneReceiver, LaneSender, ReceivingRing, SendingRing};
use super::sealed::{Body, InPlaceError, Memories, Outgoing, SealedSendError};
use crate::arena::segment::{MemfdSupply, SegmentMakeError, SegmentOptions};
use crate::arena::{
    Arrivals, BulkOptions, BulkReceiver, BulkRecvError, BulkSendError, BulkSender, Reference,
    SealedPayload,
};
use crate::channel::Tag;
use crate::frame::PeerId;
use crate::lane::ring::SendError;
use crate::shm::memfd::{self, Mapping, MemfdError};

/// Why a lane got no arena.
#[derive(Debug, thiserror::Error)]
pub enum IntoBulkError {
    #[error(
        "a lane that drops its oldest messages has no arena: what a reference leads to would be overwritten under its reader; send sealed payloads"
    )]
    DropOldest,
    #[error(transparent)]
    Send(#[from] BulkSendError<SegmentMakeError>),
}

/// The sending end of a lane with an arena. Dropping it closes the lane; what was sent is still received.
#[derive(Debug)]
pub struct BulkLaneSender {
    sender: BulkSender<Mapping, Mapping, MemfdSupply<SegmentAnnouncer>>,
    end: End,
    sealed: Outgoing,
}

/// The receiving end of a lane with an arena. Dropping it closes the lane.
#[derive(Debug)]
pub struct BulkLaneReceiver {
    receiver: BulkReceiver<Mapping, Mapping, Memories>,
    /// Who sends.
    pub from: PeerId,
    end: End,
    /// Taken out of the ring, and the bus could not be asked for its payload.
    pending: Option<(Tag, Reference)>,
}

impl LaneSender {
    /// Gives this lane an arena. Its receiver must do the same ([`LaneReceiver::into_bulk`]).
    pub fn into_bulk(
        self,
        segments: SegmentOptions,
        options: BulkOptions,
    ) -> Result<BulkLaneSender, IntoBulkError> {
        let supply = MemfdSupply::new(segments, self.announcer());
        let (SendingRing::Lane(producer), end) = self.into_parts() else {
            return Err(IntoBulkError::DropOldest);
        };
        Ok(BulkLaneSender {
            sender: BulkSender::new(producer, supply, options)?,
            end,
            sealed: Outgoing::default(),
        })
    }
}

impl LaneReceiver {
    /// Receives through the sender's arena, of which at most `limit` bytes are mapped.
    pub fn into_bulk(self, limit: u64) -> Result<BulkLaneReceiver, IntoBulkError> {
        let arrivals = Memories::with_segments(self.segments());
        let (ReceivingRing::Lane(consumer), from, end) = self.into_parts() else {
            return Err(IntoBulkError::DropOldest);
        };
        Ok(BulkLaneReceiver {
            receiver: BulkReceiver::new(consumer, arrivals, limit),
            from,
            end,
            pending: None,
        })
    }
}

impl BulkLaneSender {
    /// As [`BulkSender::send`].
    pub fn send(
        &mut self,
        tag: Tag,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), BulkSendError<SegmentMakeError>> {
        self.sender.send(tag, payload, timeout)
    }

    /// As [`LaneSender::send_sealed`], in order with all other messages.
    pub fn send_sealed(
        &mut self,
        tag: Tag,
        payload: &SealedPayload,
        timeout: Duration,
    ) -> Result<(), SealedSendError<SendError>> {
        let producer = self.sender.producer_mut();
        self.sealed
            .send_over_lane(producer, &self.end, tag, payload, timeout)
    }

    /// The arena and the ring below.
    pub fn bulk_mut(&mut self) -> &mut BulkSender<Mapping, Mapping, MemfdSupply<SegmentAnnouncer>> {
        &mut self.sender
    }

    /// The bus's number for this lane.
    pub fn id(&self) -> u32 {
        self.end.channel
    }
}

impl BulkLaneReceiver {
    /// As [`BulkReceiver::recv`]. What was sent sealed is skipped with an error: who may get such takes every message by
    /// [`Self::recv_in_place`].
    pub fn recv(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<Tag, BulkRecvError<MemfdError>> {
        if self.pending.take().is_some() {
            return Err(self.receiver.refuse_sealed());
        }
        self.receiver.recv(buffer, timeout)
    }

    /// As [`Self::recv`]; what was sent sealed ([`BulkLaneSender::send_sealed`]) is not copied but lent, for as long as the
    /// receiver likes. A block of the arena, which its owner goes on writing, is always copied.
    pub fn recv_in_place(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<(Tag, Body), InPlaceError<BulkRecvError<MemfdError>>> {
        let (tag, reference) = match self.pending.take() {
            Some(pending) => pending,
            None => match self.receiver.recv_any(buffer, timeout) {
                Ok((tag, None)) => return Ok((tag, Body::Copied)),
                Ok((tag, Some(reference))) => (tag, reference),
                Err(error) => return Err(InPlaceError::Ring(error)),
            },
        };
        let fetched = self.receiver.arrivals_mut().fetch(&self.end, &reference);
        if let Err(InPlaceError::Client(_)) = fetched {
            self.pending = Some((tag, reference));
        } else {
            self.receiver.done_with_sealed();
        }
        Ok((tag, Body::InPlace(fetched?)))
    }

    /// Bytes of the sender's segments that are mapped here.
    pub fn mapped(&self) -> u64 {
        self.receiver.mapped()
    }

    /// The bus's number for this lane.
    pub fn id(&self) -> u32 {
        self.end.channel
    }
}

impl Arrivals for Memories {
    type Memory = Mapping;
    type Error = MemfdError;

    fn next(&mut self, deadline: Option<Instant>) -> Result<Option<(u32, Mapping)>, MemfdError> {
        use std::os::fd::AsFd as _;
        self.next_segment(deadline)
            .map(|(number, memory)| Ok((number, memfd::open_segment(memory.as_fd())?)))
            .transpose()
    }
}
