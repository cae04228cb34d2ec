//! Lanes of a client: the bus introduces the two sides, then messages go from one to the other through
//! memory and the bus sees none of them.
//!
//! The producer makes the data memory and offers it; the bus asks the kernel for its seals, asks the
//! policy, and hands it on; the consumer answers with its cursor memory, which goes the same way back.
//! When either side ends, the bus tells the other; the consumer still receives what was committed.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::link::Link;
use super::mailbox::Received;
use super::{Client, ClientError, command, ok_result};
use crate::frame::{Frame, PeerId, kind};
use crate::lane::ring::{self, Consumer, Producer, RecvError, SendError, Tag};
use crate::lane::{LayoutError, ReceiverOptions, SenderOptions, cursor_words, data_words};
use crate::message::{Control, MessageError, Response, Shape, Status};
use crate::shm::memfd::{self, Mapping, MemfdError};
use crate::shm::park::{Closer, probe_waitv};

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

impl From<MessageError> for LaneError {
    fn from(error: MessageError) -> Self {
        Self::Client(error.into())
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
    _end: End,
}

/// Tells the bus, once, that this side is done.
#[derive(Debug)]
struct End {
    link: Arc<Link>,
    lane: u32,
}

impl Drop for End {
    fn drop(&mut self) {
        self.link.forget_lane(self.lane);
        let Ok(payload) = (Control::ChannelClosed {
            channel: self.lane,
            status: Status::OK,
        })
        .encode() else {
            return;
        };
        // A lost connection has told the other side already.
        drop(
            self.link
                .send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None),
        );
    }
}

impl LaneSender {
    /// Puts a message into the lane if there is room.
    pub fn try_send(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        self.producer.try_send(tag, payload)
    }

    /// As [`Self::try_send`], waiting up to `timeout` for room.
    pub fn send(&mut self, tag: Tag, payload: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.producer.send(tag, payload, timeout)
    }

    /// Longest message that fits.
    pub fn message_limit(&self) -> usize {
        self.producer.message_limit()
    }

    /// The bus's number for this lane.
    pub fn id(&self) -> u32 {
        self.end.lane
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
                Received::Item((from, lane, memory)) => {
                    return Ok(Some(LaneOffer {
                        link: link.clone(),
                        from,
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
    pub fn accept(mut self) -> Result<LaneReceiver, LaneError> {
        probe_waitv().map_err(LaneError::NoWaitv)?;
        // The bus asked for the seals too; but what this process maps, it asks about itself.
        let data = memfd::open(self.memory.as_fd())?;
        let (cursor, cursor_fd) = memfd::create("agentd-lane-cursor", cursor_words())?;
        ring::format_cursor(&cursor, &ReceiverOptions::default())?;
        let closer = Closer::default();
        let consumer = Consumer::new(data, cursor, closer.clone(), ReceiverOptions::default())?;
        self.link.register_lane(self.lane, closer);
        self.answered = true;
        let end = End {
            link: self.link.clone(),
            lane: self.lane,
        };
        let payload = Response::ok(b"").encode()?;
        self.link.send(
            Frame::new(kind::RESPONSE, PeerId::BUS, self.lane, payload),
            Some(&cursor_fd),
        )?;
        Ok(LaneReceiver {
            consumer,
            from: self.from,
            _end: end,
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

fn refuse(link: &Link, lane: u32, why: &str) -> Result<(), ClientError> {
    let payload = Response {
        status: Status::FAILED,
        error: why,
        result: &[],
    }
    .encode()?;
    link.send(
        Frame::new(kind::RESPONSE | kind::ERROR, PeerId::BUS, lane, payload),
        None,
    )
}

impl Client {
    /// Opens a lane to the agent called `to`, with `slots` (a power of two from [`SLOTS_MIN`]; the usual
    /// number is [`DEFAULT_SLOTS`]). The agent must take lanes.
    pub fn open_lane(&self, to: &str, slots: usize) -> Result<LaneSender, LaneError> {
        probe_waitv().map_err(LaneError::NoWaitv)?;
        if slots < SLOTS_MIN {
            return Err(LaneError::TooFewSlots(slots));
        }
        let (data, data_fd) = memfd::create("agentd-lane-data", data_words(slots))?;
        ring::format_data(&data, slots, &SenderOptions::default())?;
        let shape = Shape {
            slots: slots as u32,
            ..Shape::default()
        };
        let mut cursor_fd = None;
        let link = self.link()?;
        let answer = self.addressed(to, |id| {
            let payload = Control::LaneOffer { to: id, shape }.encode()?;
            let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
            let arrived = link.call_with(frame, Some(&data_fd), None)?;
            ok_result(&arrived.frame)?;
            cursor_fd = arrived.fd;
            Ok(arrived.frame)
        })?;
        let lane = ok_result(&answer)?.result;
        let lane = u32::from_le_bytes(lane.try_into().map_err(|_| MessageError::Missing {
            what: "lane number",
        })?);
        // From here on, an early return closes the lane.
        let end = End {
            link: link.clone(),
            lane,
        };
        let cursor = memfd::open(cursor_fd.ok_or(LaneError::NoMemory)?.as_fd())?;
        let closer = Closer::default();
        let producer = Producer::new(data, cursor, closer.clone(), SenderOptions::default())?;
        link.register_lane(lane, closer);
        Ok(LaneSender { producer, end })
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
