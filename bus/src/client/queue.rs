//! Work queues: produce, confirmed one by one or in batches under way, and consume with credit.
//!
//! ```no_run
//! use std::time::Duration;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = agentd_bus::client::Client::connect()?;
//! let queue = bus.queue("builds")?;
//! queue.produce(b"linux")?; // the bus has it
//! let mut work = queue.consume(16)?;
//! while let Some(delivery) = work.next(Duration::from_secs(60))? {
//!     match std::str::from_utf8(delivery.data()) {
//!         Ok(_) => delivery.ack()?,
//!         Err(_) => delivery.reject()?, // a dead letter
//!     };
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What is delivered is this consumer's until it says what became of it, its connection closes or the queue's visibility time-out
//! passes. A message is delivered at least once: whoever acknowledges after the work is done may see it again after a crash.
//! Any thread; waits only in the calls that say so. Fails with [`ClientError`] and [`ProduceError`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::link::{Arrived, Link};
use super::mailbox::{Mailbox, Received, Until};
use super::{Client, ClientError, command, ok_result};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{
    BatchBuilder, Control, Deliveries, MESSAGE_HEADER, MessageError, Messages, Numbers, Outcome,
    QueueDelivery, QueueSpec, Response, Status,
};

/// Bytes in front of the deliveries, or the messages, of a frame's payload.
const HEAD: usize = 8;
/// A batch goes out once it has this many bytes.
const BATCH_BYTES: usize = 32 * 1024;
/// Batches that wait for their confirmation.
const UNDER_WAY: usize = 64;

/// A work queue, by name. Cheap to make again; clones share it.
#[derive(Clone, Debug)]
pub struct Queue {
    client: Client,
    name: String,
    /// What was declared; `None`: as it is.
    spec: Option<QueueSpec>,
    /// The connection on which it is open, and its number there.
    open: Arc<Mutex<(Arc<Link>, u32)>>,
}

impl Client {
    /// The queue called `name`, which is made with the defaults if it is not there.
    pub fn queue(&self, name: &str) -> Result<Queue, ClientError> {
        Queue::open(self.routed(), name, None)
    }

    /// The queue called `name`, made as `spec` says. One that is there must have been declared alike.
    pub fn declare_queue(&self, name: &str, spec: QueueSpec) -> Result<Queue, ClientError> {
        Queue::open(self.routed(), name, Some(spec))
    }
}

impl Queue {
    fn open(client: Client, name: &str, spec: Option<QueueSpec>) -> Result<Self, ClientError> {
        // Queues are what shared memory with the bus is for.
        let client = client.routed();
        let link = client.link()?;
        let number = open_on(&link, name, spec)?;
        Ok(Self {
            client,
            name: name.to_owned(),
            spec,
            open: Arc::new(Mutex::new((link, number))),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The connection that serves now, and the queue's number on it.
    fn number(&self) -> Result<(Arc<Link>, u32), ClientError> {
        let link = self.client.link()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&open.0, &link) {
            *open = (link.clone(), open_on(&link, &self.name, self.spec)?);
        }
        Ok((link, open.1))
    }

    /// Puts one message in; its id. Returns when the bus has it, in a durable queue when it is stored. Waits while a
    /// queue that blocks is full.
    pub fn produce(&self, data: &[u8]) -> Result<u64, ClientError> {
        self.produce_with(1, data)
    }

    /// The same with a priority: 0 lowest, 1 normal, 2 high, 3 urgent.
    pub fn produce_with(&self, priority: u8, data: &[u8]) -> Result<u64, ClientError> {
        let mut batch = BatchBuilder::new();
        if !batch.push(priority, data) {
            return Err(unknown_priority(priority).into());
        }
        let (link, number) = self.number()?;
        let answer = link.call(produce_frame(number, batch.messages())?, Some(FOR_EVER))?;
        let result = ok_result(&answer)?.result;
        let first = result.get(8..16).and_then(|bytes| bytes.try_into().ok());
        let missing = MessageError::Missing { what: "message id" };
        Ok(u64::from_le_bytes(first.ok_or(missing)?))
    }

    /// Puts many in: gathered into batches, of which several are under way at a time.
    pub fn producer(&self) -> Result<Producer, ClientError> {
        let (link, number) = self.number()?;
        Ok(Producer {
            link,
            number,
            batch: BatchBuilder::command_for(number, Vec::new()),
            under_way: VecDeque::new(),
            spare: Vec::new(),
            confirmed: 0,
        })
    }

    /// Takes messages from now on, at most `credit` at a time in this consumer's hands. A connection consumes
    /// a queue once: another consumer of the same client takes the place of the first.
    pub fn consume(&self, credit: u32) -> Result<Consumer, ClientError> {
        let (link, number) = self.number()?;
        let hold = Hold::start(&link, number, credit)?;
        Ok(Consumer {
            queue: self.clone(),
            credit,
            hold: Arc::new(hold),
            batch: None,
            at: 0,
            acked: Vec::new(),
        })
    }

    /// The queue and all that it holds go.
    pub fn drop_queue(self) -> Result<(), ClientError> {
        let (link, queue) = self.number()?;
        ok_result(&command(&link, Control::QueueDrop { queue })?).map(drop)
    }
}

/// As long as a blocking queue may take; the end of the connection ends it.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

fn unknown_priority(found: u8) -> MessageError {
    MessageError::Unknown {
        what: "priority",
        found: found.into(),
        known: "0 to 3",
    }
}

fn open_on(link: &Link, name: &str, spec: Option<QueueSpec>) -> Result<u32, ClientError> {
    let control = match spec {
        Some(spec) => Control::QueueDeclare { spec, name },
        None => Control::QueueOpen { name },
    };
    let answer = command(link, control)?;
    let number = ok_result(&answer)?.result.try_into();
    let missing = MessageError::Missing {
        what: "queue number",
    };
    Ok(u32::from_le_bytes(number.map_err(|_| missing)?))
}

fn produce_frame(queue: u32, messages: Messages<'_>) -> Result<Frame, MessageError> {
    let payload = Control::Produce { queue, messages }.encode()?;
    Ok(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload))
}

/// Why messages are not in the queue, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// The bus took none of `rest`, which is what followed the last message that it took.
    #[error("{status}: {text}; {} messages were not taken", rest.len())]
    Refused {
        status: Status,
        text: String,
        /// Priority and data.
        rest: Vec<(u8, Vec<u8>)>,
    },
    /// The connection was lost: nobody can say which of `rest` the queue has.
    #[error("the connection was lost while {} messages were under way", rest.len())]
    Lost {
        why: ClientError,
        rest: Vec<(u8, Vec<u8>)>,
    },
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl From<MessageError> for ProduceError {
    fn from(error: MessageError) -> Self {
        Self::Client(error.into())
    }
}

/// Puts many messages into a queue. What was pushed and not [flushed](Self::flush) may be lost with this.
#[derive(Debug)]
pub struct Producer {
    link: Arc<Link>,
    number: u32,
    batch: BatchBuilder,
    under_way: VecDeque<(Receiver<Arrived>, Vec<u8>)>,
    /// The memory of batches that are confirmed.
    spare: Vec<Vec<u8>>,
    confirmed: u64,
}

impl Producer {
    /// Adds a message of normal priority. Waits only when [`UNDER_WAY`] batches are unconfirmed.
    pub fn push(&mut self, data: &[u8]) -> Result<(), ProduceError> {
        self.push_with(1, data)
    }

    /// The same with a priority of 0 to 3.
    #[inline]
    pub fn push_with(&mut self, priority: u8, data: &[u8]) -> Result<(), ProduceError> {
        let full = self.batch.wire_len() + MESSAGE_HEADER + data.len() > BATCH_BYTES;
        if full && !self.batch.is_empty() {
            self.send()?;
        }
        if !self.batch.push(priority, data) {
            if priority > 3 {
                return Err(unknown_priority(priority).into());
            }
            self.send()?;
            // An empty batch takes any message; one that is too large is refused by the bus.
            let pushed = self.batch.push(priority, data);
            debug_assert!(pushed);
        }
        Ok(())
    }

    /// Sends what was gathered, and waits until everything is confirmed.
    pub fn flush(&mut self) -> Result<(), ProduceError> {
        self.send()?;
        while !self.under_way.is_empty() {
            self.confirm()?;
        }
        Ok(())
    }

    /// Sends what was gathered, and waits for nothing.
    pub fn send(&mut self) -> Result<(), ProduceError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        while self.under_way.len() >= UNDER_WAY {
            self.confirm()?;
        }
        let spare = self.spare.pop().unwrap_or_default();
        let next = BatchBuilder::command_for(self.number, spare);
        let payload = std::mem::replace(&mut self.batch, next).into_command();
        match self.link.start_command(&payload) {
            Ok(receiver) => self.under_way.push_back((receiver, payload)),
            Err(why) => return Err(self.lost(why, payload)),
        }
        Ok(())
    }

    /// How many messages the queue is known to have taken.
    pub fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Waits for the oldest batch.
    fn confirm(&mut self) -> Result<(), ProduceError> {
        let Some((receiver, payload)) = self.under_way.pop_front() else {
            return Ok(());
        };
        let answer = match self.link.finish_call(&receiver, FOR_EVER) {
            Ok(answer) => answer.frame,
            Err(why) => return Err(self.lost(why, payload)),
        };
        let response = Response::parse(&answer.payload)?;
        let taken = response.result.get(..4).and_then(|t| t.try_into().ok());
        let taken = taken.map_or(0, u32::from_le_bytes);
        self.confirmed += u64::from(taken);
        if response.status == Status::OK {
            self.spare.push(payload);
            return Ok(());
        }
        Err(ProduceError::Refused {
            status: response.status,
            text: response.error.to_owned(),
            rest: messages_of(&payload).skip(taken as usize).collect(),
        })
    }

    fn lost(&mut self, why: ClientError, first: Vec<u8>) -> ProduceError {
        let later = self.under_way.drain(..).map(|(_, payload)| payload);
        let rest = std::iter::once(first)
            .chain(later)
            .flat_map(|payload| messages_of(&payload).collect::<Vec<_>>())
            .collect();
        ProduceError::Lost { why, rest }
    }
}

fn messages_of(payload: &[u8]) -> impl Iterator<Item = (u8, Vec<u8>)> + use<'_> {
    let messages = payload.get(HEAD..).and_then(|b| Messages::parse(b).ok());
    messages
        .into_iter()
        .flatten()
        .map(|message| (message.priority, message.data.to_vec()))
}

/// A consumer's place on one connection; given up when the last delivery and the consumer have gone.
#[derive(Debug)]
struct Hold {
    link: Arc<Link>,
    number: u32,
    mailbox: Arc<Mailbox<Frame>>,
    /// The beginning of a command that acknowledges; the tags follow.
    acks: Vec<u8>,
}

impl Hold {
    fn start(link: &Arc<Link>, number: u32, credit: u32) -> Result<Self, ClientError> {
        // No batch is without a message, so there are never more of them than there is credit.
        let mailbox = Arc::new(Mailbox::new(credit.max(1) as usize));
        link.add_consumer(number, &mailbox);
        let acks = Control::Settle {
            queue: number,
            outcome: Outcome::Ack,
            tags: Numbers::parse(&[])?,
        };
        let hold = Self {
            link: link.clone(),
            number,
            mailbox,
            acks: acks.encode()?,
        };
        let consume = Control::Consume {
            queue: number,
            credit,
        };
        ok_result(&command(link, consume)?)?;
        Ok(hold)
    }

    fn frame(&self, outcome: Outcome, tags: &[u8]) -> Result<Frame, MessageError> {
        let control = Control::Settle {
            queue: self.number,
            outcome,
            tags: Numbers::parse(tags)?,
        };
        Ok(Frame::new(kind::COMMAND, PeerId::BUS, 0, control.encode()?))
    }

    /// Says what became of these; waits for nothing.
    fn settle(&self, outcome: Outcome, tags: &[u8]) -> Result<(), ClientError> {
        if tags.is_empty() {
            return Ok(());
        }
        self.link.send(self.frame(outcome, tags)?, None)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.link.remove_consumer(self.number, &self.mailbox) {
            // On a lost connection it has ended too.
            self.link.tell(Control::Consume {
                queue: self.number,
                credit: 0,
            });
        }
    }
}

/// Takes messages from a queue.
#[derive(Debug)]
pub struct Consumer {
    queue: Queue,
    credit: u32,
    hold: Arc<Hold>,
    /// The batch that is being handed out, and how far.
    batch: Option<Arc<[u8]>>,
    at: usize,
    /// Room for the command that says what was done.
    acked: Vec<u8>,
}

impl Consumer {
    /// Waits for the next message; `None` after `timeout`. A lost connection is made anew.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Delivery>, ClientError> {
        let until = Until::after(timeout);
        loop {
            if let Some(batch) = &self.batch {
                let parsed = Deliveries::parse(&batch[self.at..])?;
                if let Some(first) = parsed.iter().next() {
                    let start = self.at + crate::message::DELIVERY_HEADER;
                    let data = start..start + first.data.len();
                    self.at = data.end;
                    return Ok(Some(Delivery {
                        hold: self.hold.clone(),
                        tag: first.tag,
                        id: first.id,
                        from: first.from,
                        sent_ns: first.sent_ns,
                        deliveries: first.deliveries,
                        priority: first.priority,
                        restored: first.restored,
                        payload: batch.clone(),
                        data,
                        settled: false,
                    }));
                }
                self.batch = None;
            }
            if !self.next_batch(until)? {
                return Ok(None);
            }
        }
    }

    /// Hands each message that is there, or comes first within `timeout`, to `work`, and says at
    /// the end of the batch what became of all of them; how many there were. The way for many small
    /// messages: nothing is copied, and a batch is settled by one frame.
    pub fn for_each(
        &mut self,
        timeout: Duration,
        mut work: impl FnMut(&QueueDelivery<'_>) -> Outcome,
    ) -> Result<usize, ClientError> {
        if self.batch.is_none() && !self.next_batch(Until::after(timeout))? {
            return Ok(0);
        }
        let Some(batch) = self.batch.take() else {
            return Ok(0);
        };
        let Self { acked, hold, .. } = self;
        acked.clear();
        acked.extend_from_slice(&hold.acks);
        let mut count = 0;
        for delivery in Deliveries::parse(&batch[self.at..])?.iter() {
            count += 1;
            match work(&delivery) {
                Outcome::Ack => acked.extend_from_slice(&delivery.tag.to_le_bytes()),
                other => hold.settle(other, &delivery.tag.to_le_bytes())?,
            }
        }
        if acked.len() > hold.acks.len() {
            let head = (kind::COMMAND, 1, 0);
            hold.link.send_parts(head, PeerId::BUS, acked)?;
        }
        Ok(count)
    }

    fn next_batch(&mut self, until: Until) -> Result<bool, ClientError> {
        loop {
            match self.hold.link.take(&self.hold.mailbox, until.left()) {
                Received::Item(frame) => {
                    self.batch = Some(frame.payload);
                    self.at = HEAD;
                    return Ok(true);
                }
                // More than the credit was never settled in time: those went to others.
                Received::Lost(_) | Received::Replaced => {}
                Received::TimedOut => return Ok(false),
                Received::Closed => {
                    if self.hold.link.lost().is_none() {
                        let text = format!(
                            "queue {} was dropped, or the right to consume from it taken back",
                            self.queue.name
                        );
                        return Err(ClientError::Refused {
                            status: Status::NO_SUCH_QUEUE,
                            text,
                        });
                    }
                    let (link, number) = self.queue.number()?;
                    self.hold = Arc::new(Hold::start(&link, number, self.credit)?);
                }
            }
        }
    }
}

/// One message in hand. Dropping it unsettled gives it back at once.
#[derive(Debug)]
pub struct Delivery {
    hold: Arc<Hold>,
    tag: u64,
    /// Names the message in its queue for good.
    pub id: u64,
    /// The producer's short id.
    pub from: u32,
    /// When it was produced, nanoseconds since the Unix epoch.
    pub sent_ns: u64,
    /// Which delivery of the message it is, from 1.
    pub deliveries: u16,
    pub priority: u8,
    /// It was there before a restart, so it may have been delivered before.
    pub restored: bool,
    payload: Arc<[u8]>,
    data: Range<usize>,
    settled: bool,
}

impl Delivery {
    /// The message.
    pub fn data(&self) -> &[u8] {
        &self.payload[self.data.clone()]
    }

    /// Done: it is never delivered again. Waits for nothing.
    pub fn ack(mut self) -> Result<(), ClientError> {
        self.settled = true;
        self.say(Outcome::Ack)
    }

    /// As [`Self::ack`], and waits until the bus has that, of a durable queue until it is stored. `false`: it was too late, and
    /// another has the message.
    pub fn ack_confirmed(mut self) -> Result<bool, ClientError> {
        self.settled = true;
        let frame = self.hold.frame(Outcome::Ack, &self.tag.to_le_bytes())?;
        let answer = self.hold.link.call(frame, None)?;
        let settled = ok_result(&answer)?.result;
        Ok(settled.first() == Some(&1))
    }

    /// Not done: it is delivered again, not before `delay` has passed.
    pub fn nack(mut self, delay: Duration) -> Result<(), ClientError> {
        self.settled = true;
        let delay_ms = millis(delay);
        self.say(Outcome::Nack { delay_ms })
    }

    /// Still at it: nobody else gets it for `more`, from now.
    pub fn extend(&self, more: Duration) -> Result<(), ClientError> {
        let visibility_ms = millis(more);
        self.say(Outcome::Extend { visibility_ms })
    }

    /// Can't be done by anyone: it becomes a dead letter.
    pub fn reject(mut self) -> Result<(), ClientError> {
        self.settled = true;
        self.say(Outcome::Reject)
    }

    fn say(&self, outcome: Outcome) -> Result<(), ClientError> {
        self.hold.settle(outcome, &self.tag.to_le_bytes())
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if !self.settled {
            // On a lost connection it has gone back already.
            drop(self.say(Outcome::Nack { delay_ms: 0 }));
        }
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
