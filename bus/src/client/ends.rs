//! What an end of any channel needs of the connection: to be told of its end, and to tell of its own.
//!
//! Also what bulk data needs of it: [`SegmentAnnouncer`] carries an arena's segments to the readers,
//! [`SegmentArrivals`] takes them there.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::inbox::{Inbox, News};
use super::link::{Link, Registered};
use super::{ClientError, ok_result};
use crate::arena::segment::Announce;
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, MessageError, Status};
use crate::shm::bell::{Bell, BellError};

/// Tells the bus, once, that this side is done.
#[derive(Debug)]
pub(super) struct End {
    pub link: Arc<Link>,
    pub channel: u32,
    pub inbox: Arc<Inbox>,
}

impl End {
    /// The end whose number the bus has given in its answer.
    pub fn numbered(
        link: Arc<Link>,
        answer: &Frame,
        registered: Registered,
    ) -> Result<Self, ClientError> {
        let number = ok_result(answer)?.result;
        let number = number.try_into().map_err(|_| MessageError::Missing {
            what: "channel number",
        })?;
        Ok(Self {
            link,
            channel: u32::from_le_bytes(number),
            inbox: registered.inbox,
        })
    }

    /// Has the bus pass a sealed payload on: queued for every reader when this returns.
    pub fn pass_sealed(&self, index: u32, memory: BorrowedFd<'_>) -> Result<(), ClientError> {
        let payload = Control::Segment {
            channel: self.channel,
            index,
            sealed: true,
        }
        .encode()?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        let copy = memory
            .try_clone_to_owned()
            .map_err(|error| ClientError::Closed {
                why: format!("no descriptor for a sealed payload: {error}"),
            })?;
        let answer = self.link.call_with(frame, Some(&copy), None)?;
        ok_result(&answer.frame).map(drop)
    }

    /// Asks the bus something whose answer does not matter: whatever it had queued for this client before is here then.
    pub fn round_trip(&self) -> Result<(), ClientError> {
        let payload = Control::Lookup { name: "." }.encode()?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        self.link.call(frame, None).map(drop)
    }

    /// A bell for this end; the other side gets a copy.
    pub fn make_bell(&self) -> Result<Bell, BellRefused> {
        let bell = Bell::new()?;
        let copy = bell.share()?;
        let payload = Control::Bell {
            channel: self.channel,
        }
        .encode()
        .map_err(ClientError::from)?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        let answer = self.link.call_with(frame, Some(&copy), None)?;
        ok_result(&answer.frame)?;
        Ok(bell)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.link.forget_channel(self.channel);
        self.link.tell(Control::ChannelClosed {
            channel: self.channel,
            status: Status::OK,
        });
    }
}

/// Why an end has no bell.
#[derive(Debug, thiserror::Error)]
pub enum BellRefused {
    #[error(
        "a sender that never waits for room needs no bell: this lane drops its oldest messages"
    )]
    NeverWaits,
    #[error(transparent)]
    Bell(#[from] BellError),
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Carries the segments of a producer's arena to whoever reads its lane or log.
#[derive(Clone, Debug)]
pub struct SegmentAnnouncer {
    link: Arc<Link>,
    channel: u32,
}

impl SegmentAnnouncer {
    pub(super) fn new(end: &End) -> Self {
        Self {
            link: end.link.clone(),
            channel: end.channel,
        }
    }

    /// As [`Announce::segment`], for memory that nobody can write any more (`F_SEAL_WRITE`): its readers may use
    /// it in place. `index` must be one that this channel's arena does not use.
    pub fn sealed(&self, index: u32, memory: BorrowedFd<'_>) -> io::Result<()> {
        self.announce(index, true, memory)
    }

    fn announce(&self, index: u32, sealed: bool, memory: BorrowedFd<'_>) -> io::Result<()> {
        let payload = Control::Segment {
            channel: self.channel,
            index,
            sealed,
        }
        .encode()
        .map_err(io::Error::other)?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        let copy = memory.try_clone_to_owned()?;
        self.link.send(frame, Some(&copy)).map_err(io::Error::other)
    }
}

impl Announce for SegmentAnnouncer {
    fn segment(&mut self, number: u32, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.announce(number, false, fd)
    }

    fn dropped(&mut self, number: u32) {
        self.link.tell(Control::SegmentDropped {
            channel: self.channel,
            index: number,
        });
    }
}

/// A change in the segments that a reader may be referred to.
#[derive(Debug)]
pub enum SegmentArrival {
    Added {
        index: u32,
        /// Nobody can write to it: it may be read in place.
        sealed: bool,
        memory: OwnedFd,
    },
    Dropped {
        index: u32,
    },
}

/// The segments that arrive for one reader.
#[derive(Debug)]
pub struct SegmentArrivals {
    inbox: Arc<Inbox>,
    taken: std::collections::VecDeque<News>,
}

impl SegmentArrivals {
    pub(super) fn new(end: &End) -> Self {
        Self {
            inbox: end.inbox.clone(),
            taken: std::collections::VecDeque::new(),
        }
    }

    /// The next change; waits for it until `deadline`, without one not at all. `None`: nothing came, or the channel
    /// is over and nothing will.
    pub fn next_arrival(&mut self, deadline: Option<Instant>) -> Option<SegmentArrival> {
        loop {
            match self.taken.pop_front() {
                Some(News::Segment {
                    index,
                    sealed,
                    memory,
                }) => {
                    return Some(SegmentArrival::Added {
                        index,
                        sealed,
                        memory,
                    });
                }
                Some(News::SegmentDropped { index }) => {
                    return Some(SegmentArrival::Dropped { index });
                }
                // A reader hears of nothing else.
                Some(News::Reader { .. } | News::ReaderGone { .. }) => {}
                None if self.inbox.has_news()
                    || (deadline.is_some() && self.inbox.wait(deadline)) =>
                {
                    self.taken = self.inbox.take();
                }
                None => return None,
            }
        }
    }

    /// Whether something has arrived, for the price of a load.
    pub fn is_ready(&self) -> bool {
        !self.taken.is_empty() || self.inbox.has_news()
    }
}
