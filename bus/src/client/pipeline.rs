//! Many messages under way at a time: sent without waiting for the answer to each.
//!
//! ```no_run
//! use std::time::Duration;
//! # fn main() -> Result<(), agentd_bus::client::PipelineError> {
//! let bus = agentd_bus::client::Client::connect()?;
//! let mut pipeline = bus.pipeline(256)?;
//! for step in 0..10_000u32 {
//!     pipeline.publish("build.steps", "step", &step.to_le_bytes())?; // waits only while 256 are under way
//! }
//! pipeline.flush(Duration::from_secs(10))?;
//! while let Some(done) = pipeline.next(Duration::ZERO)? {
//!     println!("{:?}: {:?}", done.ticket, done.outcome); // those that were refused
//! }
//! println!("{} taken, by {} receivers", pipeline.taken(), pipeline.receivers());
//! # Ok(())
//! # }
//! ```
//!
//! The bus acknowledges events in runs, so what was taken is counted; whatever was refused, and each answer to a request, is
//! told by its [`Ticket`]. At most a window of them is under way or waits to be told: then the next call waits, and reads
//! meanwhile. The order is kept: what one pipeline sends to one receiver arrives in that order. For queues there is
//! [`Producer`](super::Producer), which does the same with batches.
//!
//! One thread at a time. Fails with [`PipelineError`]; when a connection is lost, everything under way is told as
//! [`ClientError::Lost`], and the next call goes over a new one.

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::guard::Asked;
use super::link::{Link, PIPELINE_CALL, PIPELINE_COUNT};
use super::mailbox::{Mailbox, Received, Until};
use super::{Client, ClientError, Reply, ok_result};
use crate::frame::{Frame, PeerId, flags, kind};
use crate::listing::InboxBatch;
use crate::message::{Control, Event, MessageError, Request, Response, Status};
use crate::protect::policy::Addressee;

/// Most messages that one pipeline has under way.
pub const WINDOW_MAX: usize = 65_536;

/// Names one message of a pipeline: its place in what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a message got that asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Reply(Reply),
    Inbox(InboxBatch),
}

/// What became of one message: an answer, or why it was not taken.
#[derive(Debug)]
pub struct Done {
    pub ticket: Ticket,
    pub outcome: Result<Answer, ClientError>,
}

/// Why a message was not sent, or a wait was in vain.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    #[error(
        "{count} answers and refusals of this pipeline wait to be taken, as many as its window; call next"
    )]
    Untold { count: usize },
    #[error("a window of {window} messages: allowed are 1 to {WINDOW_MAX}")]
    Window { window: usize },
    #[error("this connection has its 64 pipelines already; drop one, or share one")]
    TooMany,
    #[error("{open} messages are under way still")]
    Unfinished { open: usize },
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl From<MessageError> for PipelineError {
    fn from(error: MessageError) -> Self {
        Self::Client(error.into())
    }
}

/// This pipeline's place on one connection.
#[derive(Debug)]
struct Seat {
    link: Arc<Link>,
    /// Of its correlation ids.
    bits: u32,
    mailbox: Arc<Mailbox<Frame>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.link.remove_pipeline(self.bits);
    }
}

#[derive(Debug)]
struct Call {
    ticket: Ticket,
    asked: Option<Asked>,
    what: Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Reply,
    Inbox,
}

/// Messages under way. See the module's documentation.
#[derive(Debug)]
pub struct Pipeline {
    client: Client,
    window: usize,
    seat: Seat,
    /// Events in the order in which they were sent; `None`: told.
    events: VecDeque<Option<Ticket>>,
    /// The count in the correlation id of the first of them.
    first: u32,
    /// Events that are not told.
    open: usize,
    calls: HashMap<u32, Call>,
    next_call: u32,
    next_ticket: u64,
    done: VecDeque<Done>,
    taken: u64,
    receivers: u64,
    buffer: Vec<u8>,
}

impl Client {
    /// A pipeline with at most `window` messages under way, over shared memory where there is some.
    pub fn pipeline(&self, window: usize) -> Result<Pipeline, PipelineError> {
        if !(1..=WINDOW_MAX).contains(&window) {
            return Err(PipelineError::Window { window });
        }
        let client = self.routed();
        let seat = sit_down(&client)?;
        Ok(Pipeline {
            client,
            window,
            seat,
            events: VecDeque::new(),
            first: 0,
            open: 0,
            calls: HashMap::new(),
            next_call: 0,
            next_ticket: 0,
            done: VecDeque::new(),
            taken: 0,
            receivers: 0,
            buffer: Vec::new(),
        })
    }
}

fn sit_down(client: &Client) -> Result<Seat, PipelineError> {
    let link = client.link()?;
    // The window bounds what is under way, and each of that is answered once.
    let mailbox = Arc::new(Mailbox::new(usize::MAX));
    let bits = link.add_pipeline(&mailbox).ok_or(PipelineError::TooMany)?;
    Ok(Seat {
        link,
        bits,
        mailbox,
    })
}

impl Pipeline {
    /// Publishes to `topic`.
    pub fn publish(
        &mut self,
        topic: &str,
        event_type: &str,
        data: &[u8],
    ) -> Result<Ticket, PipelineError> {
        let event = Event::normal(event_type, topic, data);
        let to = (PeerId::BUS, Addressee::Topic(topic));
        self.event(kind::EVENT, to, event)
    }

    /// Puts a message into the inbox of the agent called `to`. The first for an agent asks the bus for its id.
    pub fn send(
        &mut self,
        to: &str,
        event_type: &str,
        data: &[u8],
    ) -> Result<Ticket, PipelineError> {
        let event = Event::normal(event_type, "", data);
        let id = self.id_of(to)?;
        self.event(kind::EVENT, (id, Addressee::Agent(to)), event)
    }

    /// A message to the inbox of every agent that this one may send to.
    pub fn broadcast(&mut self, event_type: &str, data: &[u8]) -> Result<Ticket, PipelineError> {
        let event = Event::normal(event_type, "", data);
        let to = (PeerId::BUS, Addressee::All);
        self.event(kind::EVENT | kind::BROADCAST, to, event)
    }

    /// Asks the agent called `to`; its answer is told by [`Self::next`].
    pub fn request(
        &mut self,
        to: &str,
        method: &str,
        params: &[u8],
        timeout: Duration,
    ) -> Result<Ticket, PipelineError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let request = Request {
            method,
            params,
            timeout_ms: timeout_ms.max(1),
        };
        let id = self.id_of(to)?;
        self.make_room()?;
        self.buffer.clear();
        request.encode_into(&mut self.buffer)?;
        self.check_len(self.buffer.len())?;
        let mut frame = Frame::new(kind::REQUEST, id, 0, &*self.buffer);
        frame.header.flags = (1 | flags::ACK).into();
        let guard = &self.client.guard;
        let outgoing = guard.outgoing(frame, self.client.id(), id, Addressee::Agent(to));
        let (frame, asked) = outgoing.map_err(ClientError::from)?;
        self.check_len(frame.payload.len())?;
        self.call(frame, asked, Wanted::Reply)
    }

    /// Takes up to `max` messages out of the inbox, or the first that comes within `wait`; they are told by [`Self::next`].
    pub fn read_inbox(&mut self, max: u32, wait: Duration) -> Result<Ticket, PipelineError> {
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let payload = Control::Inbox { max, wait_ms }.encode()?;
        self.make_room()?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        self.call(frame, None, Wanted::Inbox)
    }

    /// The next answer or refusal; `None`: none came within `timeout`.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Done>, PipelineError> {
        let until = Until::after(timeout);
        loop {
            if let Some(done) = self.done.pop_front() {
                return Ok(Some(done));
            }
            if self.under_way() == 0 || !self.settle(until) {
                return Ok(self.done.pop_front());
            }
        }
    }

    /// Waits until nothing is under way any more.
    pub fn flush(&mut self, timeout: Duration) -> Result<(), PipelineError> {
        let until = Until::after(timeout);
        while self.under_way() > 0 {
            if !self.settle(until) {
                let open = self.under_way();
                return Err(PipelineError::Unfinished { open });
            }
        }
        Ok(())
    }

    /// Messages of which nobody knows yet what became of them.
    pub fn under_way(&self) -> usize {
        self.open + self.calls.len()
    }

    /// Events that the bus has taken, and the queues, inboxes and connections that it put them in.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    pub fn receivers(&self) -> u64 {
        self.receivers
    }

    fn event(
        &mut self,
        bits: u16,
        (id, addressee): (PeerId, Addressee<'_>),
        event: Event<'_>,
    ) -> Result<Ticket, PipelineError> {
        self.make_room()?;
        self.buffer.clear();
        event.encode_into(&mut self.buffer)?;
        self.check_len(self.buffer.len())?;
        let count = (self.first.wrapping_add(self.events.len() as u32)) & PIPELINE_COUNT;
        let head = (bits, EVENT_FLAGS, self.seat.bits | count);
        let guard = &self.client.guard;
        if guard.protects(addressee) {
            let mut frame = Frame::new(bits, id, head.2, &*self.buffer);
            frame.header.flags = EVENT_FLAGS.into();
            let outgoing = guard.outgoing(frame, self.client.id(), id, addressee);
            let (frame, _) = outgoing.map_err(ClientError::from)?;
            self.check_len(frame.payload.len())?;
            self.seat.link.send(frame, None)?;
        } else {
            self.seat.link.send_parts(head, id, &self.buffer)?;
        }
        let ticket = self.ticket();
        self.events.push_back(Some(ticket));
        self.open += 1;
        Ok(ticket)
    }

    fn call(
        &mut self,
        mut frame: Frame,
        asked: Option<Asked>,
        what: Wanted,
    ) -> Result<Ticket, PipelineError> {
        let correlation = loop {
            let count = self.next_call & PIPELINE_COUNT;
            self.next_call = self.next_call.wrapping_add(1);
            let correlation = self.seat.bits | PIPELINE_CALL | count;
            if !self.calls.contains_key(&correlation) {
                break correlation;
            }
        };
        frame.header.correlation = correlation.into();
        self.seat.link.send(frame, None)?;
        let ticket = self.ticket();
        let call = Call {
            ticket,
            asked,
            what,
        };
        self.calls.insert(correlation, call);
        Ok(ticket)
    }

    fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    fn check_len(&self, len: usize) -> Result<(), ClientError> {
        let limit = self.client.max_payload() as usize;
        if len > limit {
            return Err(ClientError::TooLarge { len, limit });
        }
        Ok(())
    }

    fn id_of(&self, name: &str) -> Result<PeerId, ClientError> {
        match self.client.remembered(name) {
            Some(id) => Ok(id),
            None => self.client.look_up(name),
        }
    }

    /// Until another message may be under way, on a connection that lives.
    fn make_room(&mut self) -> Result<(), PipelineError> {
        while self.under_way() + self.done.len() >= self.window
            || self.events.len() >= 2 * self.window
        {
            if self.under_way() == 0 {
                let count = self.done.len();
                return Err(PipelineError::Untold { count });
            }
            self.settle(Until::Ever);
        }
        if self.under_way() == 0 && self.seat.link.lost().is_some() {
            self.seat = sit_down(&self.client)?;
        }
        Ok(())
    }

    /// Takes what has come, waiting for the first. `false`: nothing came.
    fn settle(&mut self, until: Until) -> bool {
        let mut next = self.seat.link.take(&self.seat.mailbox, until.left());
        let mut some = false;
        loop {
            match next {
                Received::Item(frame) => self.hear(frame),
                Received::Closed => self.lose(),
                Received::Lost(_) | Received::Replaced => {}
                Received::TimedOut => return some,
            }
            some = true;
            if self.under_way() == 0 {
                return true;
            }
            next = match self.seat.mailbox.try_take() {
                Some(next) => next,
                None => return true,
            };
        }
    }

    /// What the bus says of messages of this pipeline.
    fn hear(&mut self, frame: Frame) {
        if let Ok(Control::Acknowledged {
            first,
            count,
            receivers,
        }) = Control::parse(&frame.payload)
            && frame.kind() == kind::COMMAND
        {
            self.receivers += receivers;
            let at = self.place(first);
            for at in at..at.saturating_add(count as usize).min(self.events.len()) {
                self.taken += u64::from(self.tell(at).is_some());
            }
            self.forget_told();
        } else if frame.correlation() & PIPELINE_CALL != 0 {
            if let Some(call) = self.calls.remove(&frame.correlation()) {
                let ticket = call.ticket;
                let outcome = self.answer(call, frame);
                self.done.push_back(Done { ticket, outcome });
            }
        } else if let Some(ticket) = self.tell(self.place(frame.correlation())) {
            // Alone: it was refused, or stored.
            match self.checked(&frame) {
                Ok(response) => {
                    self.taken += 1;
                    let receivers = response.result.try_into().map_or(0, u32::from_le_bytes);
                    self.receivers += u64::from(receivers);
                }
                Err(error) => {
                    let outcome = Err(error);
                    self.done.push_back(Done { ticket, outcome });
                }
            }
            self.forget_told();
        }
    }

    /// Where the event with that correlation id is; behind the end: nowhere.
    fn place(&self, correlation: u32) -> usize {
        (correlation.wrapping_sub(self.first) & PIPELINE_COUNT) as usize
    }

    /// An event's fate is known now; its ticket, if it was not before.
    fn tell(&mut self, at: usize) -> Option<Ticket> {
        let ticket = self.events.get_mut(at)?.take()?;
        self.open -= 1;
        Some(ticket)
    }

    fn forget_told(&mut self) {
        while let Some(None) = self.events.front() {
            self.events.pop_front();
            self.first = self.first.wrapping_add(1) & PIPELINE_COUNT;
        }
    }

    fn answer(&mut self, call: Call, frame: Frame) -> Result<Answer, ClientError> {
        let guard = &self.client.guard;
        let frame = guard.answer(frame, self.client.id(), call.asked)?;
        let response = self.checked(&frame)?;
        match call.what {
            Wanted::Reply => Ok(Answer::Reply(Reply {
                from: frame.header.source,
                result: response.result.to_vec(),
            })),
            Wanted::Inbox => {
                let batch = InboxBatch::parse(response.result)?;
                Ok(Answer::Inbox(self.client.verified_inbox(batch)?))
            }
        }
    }

    /// As [`ok_result`]; a name that leads nowhere is looked up again the next time.
    fn checked<'a>(&self, frame: &'a Frame) -> Result<Response<'a>, ClientError> {
        ok_result(frame).inspect_err(|error| {
            if error.status() == Some(Status::NO_SUCH_AGENT) {
                self.client.forget_names();
            }
        })
    }

    /// The connection has gone: nobody knows what became of what was under way.
    fn lose(&mut self) {
        let why = self.seat.link.why_closed();
        let calls = self.calls.drain().map(|(_, call)| call.ticket);
        let mut tickets: Vec<Ticket> = self.events.drain(..).flatten().chain(calls).collect();
        tickets.sort_unstable();
        self.open = 0;
        self.first = 0;
        self.done.extend(tickets.into_iter().map(|ticket| {
            let why = why.clone();
            let outcome = Err(ClientError::Lost { why });
            Done { ticket, outcome }
        }));
    }
}

/// Normal priority, acknowledged in runs.
const EVENT_FLAGS: u32 = 1 | flags::ACK | flags::GATHER;
