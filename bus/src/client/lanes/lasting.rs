//! A lane that outlives agentd: when the bus was restarted it opens itself anew, and repeats what did not arrive.
//!
//! The sides of a lane hear of the death of agentd one after the other, so a message may be committed that its receiver
//! never takes. The receiver says where it stopped, in its own page, and the messages behind that are still in the
//! sender's: [`LaneSender::settle`] hands them back, and the next lane gets them first. So each message arrives exactly
//! once, in order, as long as both processes live; a receiver that was killed never says where it stopped, and the
//! sender is told so.
//!
//! The sender's thread; allocates only for what is repeated, at most one lap of the ring.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::mailbox::{Received, left};
use super::super::{Client, ClientError};
use super::{LaneError, LaneOptions, LaneSender};
use crate::channel::Tag;
use crate::lane::ring::{Message, SendError, SettleError};
use crate::message::Status;
use crate::topic::PEERS_TOPIC;

/// A lane that outlives agentd: when the bus was restarted, the next message opens another one, which begins with the
/// messages that the old one had taken and not delivered.
///
/// Each message arrives exactly once and in order, whenever agentd dies, if the receiver goes on reading: it gets all
/// of the old lane, then [`Status::REPLACED`], then an offer. Under [`crate::channel::Overflow::DropOldest`] what was
/// not read is not repeated. A lasting lane ends like any lane when the other side does.
#[derive(Debug)]
pub struct LastingLane {
    client: Client,
    to: String,
    options: LaneOptions,
    now: LaneSender,
    /// Not delivered by lanes before, oldest first.
    owed: VecDeque<Owed>,
    given_up: u64,
    repeated: u64,
}

#[derive(Debug)]
struct Owed {
    tag: Tag,
    payload: Box<[u8]>,
}

/// Why a lasting lane did not take a message.
#[derive(Debug, thiserror::Error)]
pub enum LastingError {
    #[error(transparent)]
    Send(#[from] SendError),
    /// Nothing is lost: the next call tries again. Whoever knows that the receiver was killed calls
    /// [`LastingLane::give_up`].
    #[error("agentd was restarted, and {0}")]
    Settle(#[from] SettleError),
    #[error("the lane was replaced and could not be opened anew: {0}")]
    Open(#[from] LaneError),
}

impl LastingLane {
    pub(super) fn new(client: Client, to: &str, options: LaneOptions, now: LaneSender) -> Self {
        Self {
            client,
            to: to.to_owned(),
            options,
            now,
            owed: VecDeque::new(),
            given_up: 0,
            repeated: 0,
        }
    }

    /// As [`LaneSender::send`]; `timeout` counts for the opening too, but for the time that the bus itself takes.
    pub fn send(
        &mut self,
        tag: Tag,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), LastingError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let sent = self
                .repeat(deadline)
                .and_then(|()| self.now.send(tag, payload, left(deadline)));
            match sent {
                Err(SendError::Closed(Status::REPLACED)) => self.replace(deadline)?,
                other => return Ok(other?),
            }
        }
    }

    /// Waits until the receiver has taken everything, over restarts of agentd too: for a sender that is about to go.
    pub fn flush(&mut self, timeout: Duration) -> Result<(), LastingError> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let taken = self.repeat(deadline).and_then(|()| {
                let Some(ring) = self.now.ring_mut() else {
                    return Ok(());
                };
                let end = ring.next_slot();
                let mut seen = ring.consumed()?;
                while seen != end {
                    seen = ring.wait_consumed(seen, left(deadline))?;
                }
                Ok(())
            });
            match taken {
                Err(SendError::Closed(Status::REPLACED)) => self.replace(deadline)?,
                other => return Ok(other?),
            }
        }
    }

    /// The lane that serves now.
    pub fn now(&mut self) -> &mut LaneSender {
        &mut self.now
    }

    /// Messages that a lane before had not delivered and that wait to be repeated.
    pub fn owed(&self) -> usize {
        self.owed.len()
    }

    /// Messages that went into a second lane because the first did not deliver them.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Opens another lane without knowing what the receiver took of the present one, which is over: for when it was
    /// killed. Says how many messages it may have received or not.
    pub fn give_up(&mut self, timeout: Duration) -> Result<u64, LastingError> {
        let messages = match self.now.settle(Duration::ZERO, |_| ()) {
            Err(SettleError::Unknown { messages }) => messages,
            other => {
                other?;
                0
            }
        };
        self.now = self.open(Instant::now().checked_add(timeout))?;
        self.given_up += messages;
        Ok(messages)
    }

    /// Messages of which nobody knows whether they were received: given up, or references into an arena, which are not
    /// repeated.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Sends again what lanes before have not delivered.
    fn repeat(&mut self, deadline: Option<Instant>) -> Result<(), SendError> {
        while let Some(Owed { tag, payload }) = self.owed.front() {
            match self.now.send(*tag, payload, left(deadline)) {
                // Dropped is what this lane does with what finds no room, and has been counted.
                Ok(()) | Err(SendError::Dropped) => {
                    self.owed.pop_front();
                    self.repeated += 1;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The present lane ended with its bus: finds out what it has not delivered, and opens the next.
    fn replace(&mut self, deadline: Option<Instant>) -> Result<(), LastingError> {
        let (mut back, mut references) = (Vec::new(), 0);
        self.now.settle(left(deadline), |message| {
            if message.reference {
                references += 1;
            } else {
                back.push(Owed::new(&message));
            }
        })?;
        // From here on nothing can fail: what is asked again if the opening fails must not be owed twice.
        self.now = self.open(deadline)?;
        self.given_up += references;
        for owed in back.into_iter().rev() {
            self.owed.push_front(owed);
        }
        Ok(())
    }

    /// The receiver may need a moment longer than we to find the bus again: until then it is not there, or takes
    /// no lanes yet. [`PEERS_TOPIC`] tells when that changes.
    fn open(&self, deadline: Option<Instant>) -> Result<LaneSender, LaneError> {
        // Before the first try, so that no change falls between.
        let peers = self.client.subscribe(PEERS_TOPIC)?;
        loop {
            match self.client.open_lane(&self.to, self.options) {
                Err(LaneError::Client(error)) if may_come_yet(&error) => {
                    match peers.next(left(deadline)) {
                        Received::TimedOut | Received::Closed => return Err(error.into()),
                        Received::Item(_) | Received::Lost(_) | Received::Replaced => {}
                    }
                }
                other => return other,
            }
        }
    }
}

impl Owed {
    fn new(message: &Message<'_>) -> Self {
        Self {
            tag: message.tag,
            payload: message.payload.into(),
        }
    }
}

fn may_come_yet(error: &ClientError) -> bool {
    error.is_retryable()
        || matches!(
            error.status(),
            Some(Status::NO_SUCH_AGENT | Status::UNSUPPORTED | Status::PEER_GONE)
        )
}
