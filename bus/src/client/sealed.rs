//! Payloads that a receiver reads in place: sealed for good by the kernel, passed on by the bus, told in the ring.
//!
//! The sender's descriptor goes over the socket, where the bus asks the kernel for the seals and the policy has allowed the
//! channel; then a reference goes into the ring, in order with all other messages. The receiver asks for the seals
//! itself, and borrows the bytes: nobody, the sender included, can change them any more ([`SealedPayload`]). Each costs a
//! visit to the daemon and a mapping, so this is for payloads so large, or so often read, that a copy costs more.
//!
//! At most [`HELD_MAX`] of one channel are under way. What has been read by everybody who is waited for is let go of with the
//! next one; the receiver's own descriptor and mapping stay as long as it wants them.
//!
//! The end's own thread; blocks on the socket and on the ring.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::ClientError;
use super::ends::{End, SegmentArrival, SegmentArrivals};
use super::mailbox::left;
use crate::arena::{Reference, ReferenceError, SealedPayload};
use crate::channel::Tag;
use crate::lane::ring::{self, Consumer, Producer};
use crate::log::{self, Writer};
use crate::message::Control;
use crate::shm::memfd::{Mapping, MemfdError};

/// Most sealed payloads of one channel that are under way. The bus allows 64 segments; the rest is for an arena's.
pub const HELD_MAX: usize = 32;

/// Why a sealed payload was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SealedSendError<E: std::error::Error + 'static> {
    /// The ring's word, as for any message.
    #[error(transparent)]
    Ring(E),
    /// The bus did not take the descriptor.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Why no message was received.
#[derive(Debug, thiserror::Error)]
pub enum InPlaceError<E: std::error::Error + 'static> {
    /// The ring's word, as for any message.
    #[error(transparent)]
    Ring(E),
    /// The message is skipped, the channel goes on.
    #[error(
        "sealed payload {index} is not there: the bus was restarted before it was passed on, or its sender let go of it"
    )]
    Gone { index: u32 },
    /// The message is skipped, the channel goes on.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// It can be changed by its sender, or can't be mapped. The message is skipped.
    #[error(transparent)]
    Memory(#[from] MemfdError),
    /// Nothing is lost: the next call waits for the same payload.
    #[error(transparent)]
    Client(ClientError),
}

impl<E: std::error::Error> InPlaceError<E> {
    pub(super) fn map_ring<F: std::error::Error>(
        self,
        map: impl FnOnce(E) -> F,
    ) -> InPlaceError<F> {
        match self {
            Self::Ring(error) => InPlaceError::Ring(map(error)),
            Self::Gone { index } => InPlaceError::Gone { index },
            Self::Reference(error) => InPlaceError::Reference(error),
            Self::Memory(error) => InPlaceError::Memory(error),
            Self::Client(error) => InPlaceError::Client(error),
        }
    }
}

/// Where the payload of a message is.
#[derive(Debug)]
pub enum Body {
    /// In the buffer.
    Copied,
    /// In memory that nobody can change.
    InPlace(SealedPayload),
}

/// The sealed payloads that a sender has under way.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    sent: u32,
    /// The slot of each reference, and the payload's number.
    held: VecDeque<(u64, u32)>,
}

impl Outgoing {
    /// Sends over a lane.
    pub fn send_over_lane(
        &mut self,
        producer: &mut Producer<Mapping, Mapping>,
        end: &End,
        tag: Tag,
        payload: &SealedPayload,
        timeout: Duration,
    ) -> Result<(), SealedSendError<ring::SendError>> {
        let failed = SealedSendError::Ring;
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let read = producer.consumed().map_err(failed)?;
            self.let_go(end, read);
            match producer.room(crate::arena::REFERENCE_BYTES) {
                Ok(()) if self.held.len() < HELD_MAX => break,
                Ok(()) | Err(ring::SendError::Full) => {
                    producer.make_room(left(deadline)).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        let (index, reference, bytes) = self.announce(end, payload)?;
        let slot = producer.next_slot();
        let sent = producer.try_send_reference(tag, &reference.to_bytes(), bytes);
        self.sent_or_dropped(end, slot, index, sent.map_err(failed))
    }

    /// Sends over a log, or over a lane that is one.
    pub fn send_over_log(
        &mut self,
        writer: &mut Writer<Mapping, Mapping>,
        end: &End,
        tag: Tag,
        payload: &SealedPayload,
        timeout: Duration,
    ) -> Result<(), SealedSendError<log::SendError>> {
        let failed = SealedSendError::Ring;
        let deadline = Instant::now().checked_add(timeout);
        loop {
            // Lossy readers hold nobody up: what they have not read of so many payloads is lost to them.
            let read = writer.read_by_reliable();
            let overwritten = writer.reclaimable();
            self.let_go(end, overwritten.min(read));
            let oldest = self.held.front().map(|(slot, _)| *slot);
            match oldest {
                Some(oldest) if self.held.len() >= HELD_MAX && oldest < read => {
                    self.let_go(end, oldest + 1);
                }
                Some(_) if self.held.len() >= HELD_MAX => {
                    writer
                        .await_reliable(read, left(deadline))
                        .map_err(failed)?;
                }
                _ => break,
            }
        }
        let (index, reference, bytes) = self.announce(end, payload)?;
        let sent = writer.send_reference(tag, &reference.to_bytes(), bytes, left(deadline));
        let slot = writer.next_slot().saturating_sub(1);
        self.sent_or_dropped(end, slot, index, sent.map_err(failed))
    }

    /// Has the bus pass the payload on: when this returns, it is on its way to every reader in front of the reference.
    fn announce(
        &mut self,
        end: &End,
        payload: &SealedPayload,
    ) -> Result<(u32, Reference, u64), ClientError> {
        let index = Reference::SEALED_FROM + self.sent % Reference::SEALED_FROM;
        let bytes = payload.len() as u64;
        end.pass_sealed(index, payload.fd())?;
        self.sent = self.sent.wrapping_add(1);
        Ok((index, Reference::sealed(index, bytes), bytes))
    }

    fn sent_or_dropped<E: std::error::Error>(
        &mut self,
        end: &End,
        slot: u64,
        index: u32,
        sent: Result<(), SealedSendError<E>>,
    ) -> Result<(), SealedSendError<E>> {
        match &sent {
            Ok(()) => self.held.push_back((slot, index)),
            Err(_) => drop_segment(end, index),
        }
        sent
    }

    /// References in slots below `read` need no payload any more.
    fn let_go(&mut self, end: &End, read: u64) {
        while let Some((slot, index)) = self.held.front().copied()
            && slot < read
        {
            drop_segment(end, index);
            self.held.pop_front();
        }
    }
}

fn drop_segment(end: &End, index: u32) {
    let channel = end.channel;
    end.link.tell(Control::SegmentDropped { channel, index });
}

/// The memories that have come for a receiver: sealed payloads, and those of an arena if it has one.
#[derive(Debug)]
pub(super) struct Memories {
    arrivals: SegmentArrivals,
    sealed: BTreeMap<u32, OwnedFd>,
    /// An arena's, in order; `None` for a receiver without one.
    segments: Option<VecDeque<(u32, OwnedFd)>>,
}

impl Memories {
    /// Of a receiver without an arena.
    pub fn new(arrivals: SegmentArrivals) -> Self {
        Self {
            arrivals,
            sealed: BTreeMap::new(),
            segments: None,
        }
    }

    /// Of a receiver with one.
    pub fn with_segments(arrivals: SegmentArrivals) -> Self {
        Self {
            segments: Some(VecDeque::new()),
            ..Self::new(arrivals)
        }
    }

    /// The arena's next segment, waiting until `deadline`.
    pub fn next_segment(&mut self, deadline: Option<Instant>) -> Option<(u32, OwnedFd)> {
        loop {
            if let Some(segment) = self.segments.as_mut().and_then(VecDeque::pop_front) {
                return Some(segment);
            }
            let arrival = self.arrivals.next_arrival(deadline)?;
            self.sort(arrival, None);
        }
    }

    /// The payload that `reference` leads to.
    pub fn fetch<E: std::error::Error>(
        &mut self,
        end: &End,
        reference: &Reference,
    ) -> Result<SealedPayload, InPlaceError<E>> {
        let index = reference.segment;
        self.take_up(index);
        if !self.sealed.contains_key(&index) {
            // Its sender waited until the bus had it queued for us. So once the bus has answered anything at all, it is
            // here, or it will never be.
            match end.round_trip() {
                Ok(()) | Err(ClientError::Lost { .. } | ClientError::Closed { .. }) => {}
                Err(error) => return Err(InPlaceError::Client(error)),
            }
            self.take_up(index);
        }
        let memory = self
            .sealed
            .remove(&index)
            .ok_or(InPlaceError::Gone { index })?;
        // Those before it belong to messages that this reader has lost.
        self.sealed = self.sealed.split_off(&index);
        let payload = SealedPayload::open(memory)?;
        if payload.len() as u64 != reference.length {
            return Err(InPlaceError::Reference(ReferenceError::Disagrees {
                expected: reference.length,
                found: payload.len() as u64,
            }));
        }
        Ok(payload)
    }

    fn take_up(&mut self, wanted: u32) {
        while let Some(arrival) = self.arrivals.next_arrival(None) {
            self.sort(arrival, Some(wanted));
        }
    }

    /// `wanted` is what the message that is pending refers to: its sender may count it as read already.
    fn sort(&mut self, arrival: SegmentArrival, wanted: Option<u32>) {
        match arrival {
            SegmentArrival::Added {
                index,
                sealed: true,
                memory,
            } => {
                self.sealed.insert(index, memory);
            }
            SegmentArrival::Added { index, memory, .. } => {
                if let Some(segments) = &mut self.segments {
                    segments.push_back((index, memory));
                }
            }
            SegmentArrival::Dropped { index } if Some(index) != wanted => {
                // Of an arena's segments the lane itself says when they are not referred to any more.
                self.sealed.remove(&index);
            }
            SegmentArrival::Dropped { .. } => {}
        }
    }
}

/// The sealed payloads that have come for a receiver.
#[derive(Debug)]
pub(super) struct Incoming<M> {
    memories: Memories,
    /// A message that was taken out of the ring, whose payload has not come yet.
    pending: Option<(M, Reference)>,
}

impl<M: Copy> Incoming<M> {
    pub fn boxed(end: &End) -> Box<Self> {
        Box::new(Self {
            memories: Memories::new(SegmentArrivals::new(end)),
            pending: None,
        })
    }

    /// Whether a message waits for its payload: it comes before all that is in the ring.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// A message with a reference has been taken out of the ring.
    pub fn begin(&mut self, message: M, reference: &[u8]) -> Result<(), ReferenceError> {
        let reference = Reference::parse(reference)?;
        if !reference.is_sealed() {
            return Err(ReferenceError::NoSegment {
                segment: reference.segment,
            });
        }
        self.pending = Some((message, reference));
        Ok(())
    }

    /// The pending message, with its payload.
    pub fn fetch<E: std::error::Error>(&mut self, end: &End) -> Result<(M, Body), InPlaceError<E>> {
        let (message, reference) = self.pending.expect("the caller has begun");
        let fetched = self.memories.fetch(end, &reference);
        if !matches!(fetched, Err(InPlaceError::Client(_))) {
            self.pending = None;
        }
        Ok((message, Body::InPlace(fetched?)))
    }
}

/// Takes the next message of a lane, whose payload goes into `buffer` unless it is sealed.
pub(super) fn recv_over_lane(
    consumer: &mut Consumer<Mapping, Mapping>,
    incoming: &mut Incoming<Tag>,
    end: &End,
    buffer: &mut Vec<u8>,
    timeout: Duration,
) -> Result<(Tag, Body), InPlaceError<ring::RecvError>> {
    if !incoming.is_pending() {
        let (tag, reference, slot) = consumer
            .next(timeout, |message| {
                buffer.clear();
                buffer.extend_from_slice(message.payload);
                (message.tag, message.reference, message.slot)
            })
            .map_err(InPlaceError::Ring)?;
        if !reference {
            consumer.release();
            return Ok((tag, Body::Copied));
        }
        if let Err(error) = incoming.begin(tag, buffer) {
            consumer.refuse();
            consumer.release();
            return Err(match error {
                ReferenceError::NoSegment { .. } => {
                    InPlaceError::Ring(ring::RecvError::Reference { slot })
                }
                other => InPlaceError::Reference(other),
            });
        }
    }
    let fetched = incoming.fetch(end);
    // From here on the sender may let go of it, and should: it holds much.
    consumer.release();
    consumer.publish();
    fetched
}

/// As [`recv_over_lane`], of a log.
pub(super) fn recv_over_log(
    reader: &mut log::Reader<Mapping, Mapping>,
    incoming: &mut Incoming<log::Message>,
    end: &End,
    buffer: &mut Vec<u8>,
    timeout: Duration,
) -> Result<(log::Message, Body), InPlaceError<log::RecvError>> {
    if !incoming.is_pending() {
        let message = reader.recv(buffer, timeout).map_err(InPlaceError::Ring)?;
        if !message.reference {
            return Ok((message, Body::Copied));
        }
        incoming.begin(message, buffer)?;
    }
    incoming.fetch(end)
}
