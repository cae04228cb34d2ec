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

use std::os::fd::AsFd;
use std::sync::Arc;

use super::ends::End;
use super::link::{Expected, Registered};
use super::{Client, ClientError, ok_result};
use crate::channel::{Class, Inline, Overflow, Waiting};
use crate::frame::{Frame, PeerId, kind};
use crate::lane::ring::{self, Producer};
use crate::lane::{Extension, LayoutError, SenderOptions, data_words};
use crate::log::{self, AttachError, Writer};
use crate::message::{Control, MessageError, Shape, Status};
use crate::shm::memfd::{self, MemfdError};
use crate::shm::park::{Closer, probe_waitv};

mod lasting;
mod offers;
mod receiver;
mod sender;

pub use lasting::{LastingError, LastingLane};
pub use offers::{LaneOffer, LaneOffers};
pub use receiver::LaneReceiver;
pub use sender::LaneSender;

pub(super) use offers::refuse;
pub(super) use receiver::ReceivingRing;
pub(super) use sender::SendingRing;

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
    #[error(transparent)]
    Attach(AttachError),
    #[error(
        "a lane that drops its oldest messages has no {0}: leave them out, or choose block, drop-newest or disconnect"
    )]
    DropOldest(&'static str),
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
    /// What happens to a message for which there is no room. With [`Overflow::DropOldest`] the lane is a log with one
    /// lossy reader: no message waits, none is longer than half of the ring, and the receiver is told what it lost.
    pub overflow: Overflow,
    /// How the sender waits for room.
    pub waiting: Waiting,
    /// What goes with each message.
    pub extension: Extension,
    /// How large its slots are: [`Inline::Wide`] for a lane of which most messages have 49 to 112 bytes.
    pub inline: Inline,
}

impl Default for LaneOptions {
    fn default() -> Self {
        Self {
            slots: DEFAULT_SLOTS,
            class: Class::default(),
            overflow: Overflow::default(),
            waiting: Waiting::default(),
            extension: Extension::default(),
            inline: Inline::default(),
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
            inline: self.inline,
        }
    }
}

impl Client {
    /// Opens a lane to the agent called `to`, which must take lanes.
    pub fn open_lane(&self, to: &str, options: LaneOptions) -> Result<LaneSender, LaneError> {
        probe_waitv().map_err(LaneError::NoWaitv)?;
        let slots = options.slots;
        if slots < SLOTS_MIN {
            return Err(LaneError::TooFewSlots(slots));
        }
        let drops_oldest = options.overflow == Overflow::DropOldest;
        if drops_oldest && options.extension != Extension::None {
            return Err(LaneError::DropOldest("extension"));
        }
        if drops_oldest && options.inline != Inline::Small {
            return Err(LaneError::DropOldest("wide slots"));
        }
        let (data, data_fd) = if drops_oldest {
            let (data, fd) = memfd::create("agentd-lane-data", log::data_words(slots))?;
            log::format_data(&data, slots)?;
            (data, fd)
        } else {
            let (data, fd) = memfd::create("agentd-lane-data", data_words(slots, options.inline))?;
            ring::format_data(&data, slots, &options.sender())?;
            (data, fd)
        };
        let shape = Shape {
            class: options.class,
            overflow: options.overflow,
            inline: options.inline,
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
        let end = End::numbered(Arc::clone(&link), &answer, registered)?;
        let cursor = memfd::open(cursor_fd.ok_or(LaneError::NoMemory)?.as_fd())?;
        let ring = if drops_oldest {
            let writer = Writer::drop_oldest(data, cursor, closer).map_err(LaneError::Attach)?;
            SendingRing::DropOldest(Box::new(writer))
        } else {
            SendingRing::Lane(Producer::new(data, cursor, closer, options.sender())?)
        };
        Ok(LaneSender::new(ring, end))
    }

    /// As [`Self::open_lane`], for a lane that is opened anew after a restart of agentd.
    pub fn open_lasting_lane(
        &self,
        to: &str,
        options: LaneOptions,
    ) -> Result<LastingLane, LaneError> {
        let now = self.open_lane(to, options)?;
        Ok(LastingLane::new(self.clone(), to, options, now))
    }

    /// From now on this connection takes lanes that others offer to the agent.
    pub fn accept_lanes(&self) -> Result<LaneOffers, ClientError> {
        LaneOffers::start(self.clone())
    }
}
