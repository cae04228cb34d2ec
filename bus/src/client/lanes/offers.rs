//! Lanes that others offer: taken, with the memory of this end, or refused.
//!
//! Any thread; waits for offers, and for nothing else.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::ends::End;
use super::super::link::{Link, OfferedLane, Registered};
use super::super::mailbox::Received;
use super::super::{Client, ClientError, command, ok_result};
use super::receiver::ReceivingRing;
use super::{LaneError, LaneReceiver};
use crate::channel::Overflow;
use crate::frame::{Frame, PeerId, kind};
use crate::lane::ring::{self, Consumer};
use crate::lane::{Credit, LayoutError, ReceiverOptions, cursor_words};
use crate::log;
use crate::message::{Control, Response, Shape, Status};
use crate::shm::memfd;
use crate::shm::park::{Closer, probe_waitv};

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
    /// What they declare.
    pub shape: Shape,
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
                Received::Item(OfferedLane {
                    from,
                    lane,
                    shape,
                    memory,
                }) => {
                    return Ok(Some(LaneOffer {
                        link: link.clone(),
                        from,
                        shape,
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
    pub fn accept(self) -> Result<LaneReceiver, LaneError> {
        self.accept_with(ReceiverOptions::default())
    }

    /// Takes the lane, and says how this end behaves.
    pub fn accept_with(mut self, options: ReceiverOptions) -> Result<LaneReceiver, LaneError> {
        probe_waitv().map_err(LaneError::NoWaitv)?;
        let registered = Registered::new(Closer::default());
        let (ring, cursor_fd) = self.open(registered.closer.clone(), options)?;
        let end = End {
            link: self.link.clone(),
            channel: self.lane,
            inbox: registered.inbox.clone(),
        };
        self.link.register(self.lane, registered);
        self.answered = true;
        let payload = Response::ok(b"").encode()?;
        self.link.send(
            Frame::new(kind::RESPONSE, PeerId::BUS, self.lane, payload),
            Some(&cursor_fd),
        )?;
        Ok(LaneReceiver::new(ring, self.from, self.shape.class, end))
    }

    /// This end's ring, and the cursor memory for the other side.
    fn open(
        &self,
        closer: Closer,
        options: ReceiverOptions,
    ) -> Result<(ReceivingRing, OwnedFd), LaneError> {
        // The bus asked for the seals too; but what this process maps, it asks about itself.
        let data = memfd::open(self.memory.as_fd())?;
        if self.shape.overflow != Overflow::DropOldest {
            let (cursor, fd) = memfd::create("agentd-lane-cursor", cursor_words())?;
            ring::format_cursor(&cursor, &options)?;
            let consumer = Consumer::new(data, cursor, closer, options)?;
            let (found, offered) = (consumer.inline(), self.shape.inline);
            if found != offered {
                return Err(LaneError::Layout(LayoutError::Inline {
                    found: found.lines() as u64 * 64,
                    expected: offered.lines() as u64 * 64,
                }));
            }
            return Ok((ReceivingRing::Lane(consumer), fd));
        }
        if options.credit == Credit::Manual {
            return Err(LaneError::DropOldest("credits"));
        }
        let options = log::ReaderOptions::drop_oldest(options.waiting);
        let (cursor, fd) = memfd::create("agentd-lane-cursor", log::cursor_words())?;
        log::format_cursor(&cursor, &options)?;
        let reader = log::Reader::new(data, cursor, closer, options)?;
        Ok((ReceivingRing::DropOldest(Box::new(reader)), fd))
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

/// Answers an offer with a no.
pub(in crate::client) fn refuse(link: &Link, channel: u32, why: &str) -> Result<(), ClientError> {
    let payload = Response {
        status: Status::FAILED,
        error: why,
        result: &[],
    }
    .encode()?;
    link.send_on_socket(
        Frame::new(kind::RESPONSE | kind::ERROR, PeerId::BUS, channel, payload),
        None,
    )
}

impl LaneOffers {
    pub(super) fn start(client: Client) -> Result<Self, ClientError> {
        let link = Mutex::new(accept_lanes(&client)?);
        Ok(Self { client, link })
    }
}
