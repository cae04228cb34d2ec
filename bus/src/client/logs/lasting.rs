//! A log that outlives agentd: when the bus was restarted it opens itself anew, waits for its reliable readers, and repeats
//! what some of them may not have read.
//!
//! The next log goes on with the message numbers of the one before ([`Writer::left`](crate::log::Writer::left)), so each
//! reader knows what of that it has had ([`super::once`]): each message is had exactly once, in order, by every reliable
//! reader that comes back. Nobody asks a reader where it stopped, so one that was killed is waited for, once, and given up.
//!
//! The writer's thread; allocates only for what is repeated, at most one lap of the ring.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::Client;
use super::super::mailbox::left;
use super::{LogError, LogOptions, LogWriter};
use crate::channel::Tag;
use crate::frame::PeerId;
use crate::log::{Place, SendError};
use crate::message::Status;

/// How long readers of the log before are waited for. A log is offered for as long.
const RETURN_WITHIN: Duration = Duration::from_secs(10);

/// A log that is opened anew after a restart of agentd, and goes on where it stopped.
///
/// Reliable readers that follow on after [`Status::REPLACED`] get every message exactly once. Lossy ones may miss what
/// was written before they came back, and are told how much. It carries no sealed payloads and no arena: what those
/// refer to ends with the bus that passed it on.
#[derive(Debug)]
pub struct LastingLog {
    client: Client,
    options: LogOptions,
    return_within: Duration,
    now: LogWriter,
    /// Written to logs before, and not to the present one.
    owed: VecDeque<Owed>,
    /// Whose reliable readers the log before had and the present one not yet.
    awaited: Vec<PeerId>,
    /// When those are given up.
    until: Option<Instant>,
    repeated: u64,
    given_up: u64,
}

#[derive(Debug)]
struct Owed {
    tag: Tag,
    payload: Box<[u8]>,
}

/// Why a lasting log did not take a message.
#[derive(Debug, thiserror::Error)]
pub enum LastingLogError {
    #[error(transparent)]
    Send(#[from] SendError),
    /// Nothing is lost: the next call goes on waiting.
    #[error("agentd was restarted, and {readers} reliable readers have not come back yet")]
    Awaited { readers: usize },
    /// Nothing is lost: the next call tries again.
    #[error("the log was replaced and could not be opened anew: {0}")]
    Open(#[from] LogError),
}

impl LastingLog {
    pub(super) fn begin(
        client: Client,
        topic: &str,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let place = Place {
            series: fresh_series(),
            ..Place::default()
        };
        let now = client.begin_log(topic, options, place)?;
        Ok(Self {
            client,
            options,
            return_within: RETURN_WITHIN,
            now,
            owed: VecDeque::new(),
            awaited: Vec::new(),
            until: None,
            repeated: 0,
            given_up: 0,
        })
    }

    /// How long reliable readers are waited for after a restart of agentd, from when the log is open again; ten seconds
    /// unless this says otherwise. One that comes later is told how much it missed.
    pub fn returning_within(mut self, time: Duration) -> Self {
        self.return_within = time;
        self
    }

    /// As [`LogWriter::send`]; `timeout` counts for readers that are to come back too, but not for the time that the bus
    /// itself takes.
    pub fn send(
        &mut self,
        tag: Tag,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), LastingLogError> {
        let deadline = Instant::now().checked_add(timeout);
        self.over_restarts(deadline, |now| now.send(tag, payload, left(deadline)))
    }

    /// Waits until every reliable reader has read everything, over restarts of agentd too: for a writer that is about to go.
    pub fn flush(&mut self, timeout: Duration) -> Result<(), LastingLogError> {
        let deadline = Instant::now().checked_add(timeout);
        self.over_restarts(deadline, |now| {
            let ring = now.ring_mut();
            let mut read = ring.read_by_reliable();
            while read != ring.next_slot() {
                read = ring.await_reliable(read, left(deadline))?;
            }
            Ok(())
        })
    }

    /// The log that serves now: who reads it, and taking up who joins or leaves.
    pub fn now(&mut self) -> &mut LogWriter {
        &mut self.now
    }

    /// Messages that went into a second log because some reliable reader had not said to have read them in the first.
    pub fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Reliable readers that did not come back in time.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Does `act` with everything before it written, in the log that is open by then.
    fn over_restarts(
        &mut self,
        deadline: Option<Instant>,
        mut act: impl FnMut(&mut LogWriter) -> Result<(), SendError>,
    ) -> Result<(), LastingLogError> {
        loop {
            self.gather(deadline)?;
            let done = self.repeat(deadline).and_then(|()| act(&mut self.now));
            match done {
                Err(SendError::Closed(Status::REPLACED)) => self.replace()?,
                other => return Ok(other?),
            }
        }
    }

    /// Waits for the readers of the log before: what is written before they are there is promised to none of them.
    fn gather(&mut self, deadline: Option<Instant>) -> Result<(), LastingLogError> {
        while !self.awaited.is_empty() && self.now.ended().is_none() {
            let until = [deadline, self.until].into_iter().flatten().min();
            self.now.await_readers(left(until));
            let mut here: Vec<PeerId> = self.now.reliable_readers().collect();
            self.awaited.retain(|peer| {
                let found = here.iter().position(|other| other == peer);
                found.map(|at| here.swap_remove(at)).is_none()
            });
            let now = Instant::now();
            if self.until.is_some_and(|until| now >= until) {
                self.given_up += self.awaited.len() as u64;
                self.awaited.clear();
            } else if deadline.is_some_and(|deadline| now >= deadline) && !self.awaited.is_empty() {
                let readers = self.awaited.len();
                return Err(LastingLogError::Awaited { readers });
            }
        }
        Ok(())
    }

    fn repeat(&mut self, deadline: Option<Instant>) -> Result<(), SendError> {
        while let Some(Owed { tag, payload }) = self.owed.front() {
            self.now.send(*tag, payload, left(deadline))?;
            self.owed.pop_front();
            self.repeated += 1;
        }
        Ok(())
    }

    /// The present log ended with its bus: opens the next, which begins with what may not have been read.
    fn replace(&mut self) -> Result<(), LastingLogError> {
        let mut back = Vec::new();
        let place = self.now.writer.left(|message| {
            back.push(Owed {
                tag: message.tag,
                payload: message.payload.into(),
            });
        });
        let readers: Vec<PeerId> = self.now.reliable_readers().collect();
        let topic = self.now.topic().to_owned();
        let next = self.client.begin_log(&topic, self.options, place)?;
        // From here on nothing can fail: what is asked again if the opening fails must not be owed twice.
        self.now = next;
        for owed in back.into_iter().rev() {
            self.owed.push_front(owed);
        }
        // Those that were waited for already have not read anything of this log either.
        self.awaited.extend(readers);
        self.until = Instant::now().checked_add(self.return_within);
        Ok(())
    }
}

/// What this log and its successors call themselves. No secret: their readers see it.
fn fresh_series() -> u64 {
    let mut bytes = [0; 8];
    // The kernel refuses only flags that it doesn't know, and 8 bytes are never cut short.
    let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    debug_assert_eq!(drawn, Ok(8));
    u64::from_le_bytes(bytes) | 1
}
