//! Lanes with an arena: messages of any size, copied once in and once out.
//!
//! What fits goes through the ring, the rest into segments that the sender makes as it needs them and of which the
//! bus carries the descriptors. The policy that allows the lane allows its segments; what a sender may have shared
//! in all is bounded by the bus.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::ends::{End, SegmentAnnouncer, SegmentArrival, SegmentArrivals};
use super::lanes::{LaneReceiver, LaneSender, ReceivingRing, SendingRing};
use crate::arena::segment::{MemfdSupply, SegmentMakeError, SegmentOptions};
use crate::arena::{Arrivals, BulkOptions, BulkReceiver, BulkRecvError, BulkSendError, BulkSender};
use crate::channel::Tag;
use crate::frame::PeerId;
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
}

/// The receiving end of a lane with an arena. Dropping it closes the lane.
#[derive(Debug)]
pub struct BulkLaneReceiver {
    receiver: BulkReceiver<Mapping, Mapping, SegmentArrivals>,
    /// Who sends.
    pub from: PeerId,
    end: End,
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
        })
    }
}

impl LaneReceiver {
    /// Receives through the sender's arena, of which at most `limit` bytes are mapped.
    pub fn into_bulk(self, limit: u64) -> Result<BulkLaneReceiver, IntoBulkError> {
        let arrivals = self.segments();
        let (ReceivingRing::Lane(consumer), from, end) = self.into_parts() else {
            return Err(IntoBulkError::DropOldest);
        };
        Ok(BulkLaneReceiver {
            receiver: BulkReceiver::new(consumer, arrivals, limit),
            from,
            end,
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
    /// As [`BulkReceiver::recv`].
    pub fn recv(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<Tag, BulkRecvError<MemfdError>> {
        self.receiver.recv(buffer, timeout)
    }

    /// The arena and the ring below.
    pub fn bulk_mut(&mut self) -> &mut BulkReceiver<Mapping, Mapping, SegmentArrivals> {
        &mut self.receiver
    }

    /// The bus's number for this lane.
    pub fn id(&self) -> u32 {
        self.end.channel
    }
}

impl Arrivals for SegmentArrivals {
    type Memory = Mapping;
    type Error = MemfdError;

    fn next(&mut self, deadline: Option<Instant>) -> Result<Option<(u32, Mapping)>, MemfdError> {
        use std::os::fd::AsFd as _;
        loop {
            match self.next_arrival(deadline) {
                Some(SegmentArrival::Added { index, memory, .. }) => {
                    return Ok(Some((index, memfd::open_segment(memory.as_fd())?)));
                }
                // The lane itself says when a segment is not referred to any more.
                Some(SegmentArrival::Dropped { .. }) => {}
                None => return Ok(None),
            }
        }
    }
}
