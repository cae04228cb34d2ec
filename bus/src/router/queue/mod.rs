//! Work queues: one message to one of those who take from the queue, until somebody has said that
//! it is done.
//!
//! A queue belongs to a user and has a name; who may produce to it and consume from it is asked of
//! the policy as `publish` and `subscribe` on `queue.NAME`. Verbs come in here and in `produce`,
//! `store` decides, `deliver` builds what goes out when a connection is asked for it, `durable` has
//! what waits for a store. A queue outlives those who use it, and ends with the router or when it
//! is dropped. Fails towards whoever spoke, with a status and a text.

#![forbid(unsafe_code)]

mod dead;
mod deliver;
mod durable;
#[cfg(test)]
mod model;
mod produce;
mod slab;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::access::{Right, check_publish, check_subscribe};
use crate::frame::PeerId;
use crate::message::{Numbers, Outcome, QUEUE_PREFIX, QueueSpec, Status, StreamKind};
use crate::topic::check_topic;

use super::dispatch::Refusal;
use super::persist::{DeadReason, StreamId};
use super::{ConnId, Descriptor, Effects, Now, Router, Timer};

pub(super) use durable::Storing;
pub use status::QueueStatus;
pub use store::QueueCounters;
use store::{Consumer, Store};
pub use watch::{QueueStep, QueueStepKind};

/// Bytes in front of the messages of a produce command: verb, reserved, queue.
const PRODUCE_HEAD: usize = 8;
/// A message fits into a delivery with its headers.
const DELIVERY_ROOM: u32 = 64;
/// While something waits and there are several consumers, all of them hear of it this often: one that was told may be
/// stuck in a write.
const NUDGE_NS: u64 = 20_000_000;

#[derive(Debug)]
pub(super) struct Queue {
    pub uid: u32,
    pub name: Arc<str>,
    /// As the record and the policies call it.
    topic: Arc<str>,
    store: Store,
    /// Connections that wait for room, in the order in which they came.
    paused: Vec<ConnId>,
    /// When its timer is set for.
    armed_ns: Option<u64>,
    /// Bytes that its user was charged for.
    charged: u64,
    /// Dead letters that are not on record yet.
    died: Vec<(u64, DeadReason)>,
}

/// What a connection may do with a queue that it has opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    queue: u32,
    produce: bool,
    consume: bool,
}

/// One of the two.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Produce,
    Consume,
}

/// The rest of a batch for which there was no room yet.
#[derive(Debug)]
pub(super) struct Parked {
    queue: u32,
    correlation: u32,
    payload: Arc<[u8]>,
    /// Where in the payload the rest begins.
    at: usize,
    taken: u32,
    first: u64,
}

/// A refusal that comes with how many messages were taken before.
struct Short {
    refusal: Refusal,
    taken: u32,
}

impl Queue {
    fn stream(&self) -> StreamId {
        StreamId {
            uid: self.uid,
            kind: StreamKind::Queue,
            name: self.name.clone(),
        }
    }
}

impl<F: Descriptor> Router<F> {
    /// Makes a queue, or finds it. The answer follows, for a durable queue once it is stored.
    #[allow(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(super) fn queue_declare(
        &mut self,
        id: ConnId,
        correlation: u32,
        name: &str,
        spec: Option<QueueSpec>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let outcome = self.find_or_make(id, name, spec);
        match outcome {
            Ok((number, true)) if self.queues[&number].store.spec().durable => {
                self.store_declaration(number, id, correlation, fx);
            }
            Ok((number, _)) => {
                self.answer(id, correlation, Status::OK, "", &number.to_le_bytes(), fx);
            }
            Err(refusal) => {
                self.answer(id, correlation, refusal.status, &refusal.text, &[], fx);
                let peer = self.conns[&id].peer;
                let topic = Some(format!("{QUEUE_PREFIX}{name}").into());
                let what = self.words.get("queue");
                self.note(
                    peer,
                    None,
                    topic,
                    "produce",
                    what,
                    0,
                    0,
                    refusal.status,
                    0,
                    now,
                    fx,
                );
            }
        }
    }

    /// The queue's number, and whether it is new.
    fn find_or_make(
        &mut self,
        id: ConnId,
        name: &str,
        spec: Option<QueueSpec>,
    ) -> Result<(u32, bool), Refusal> {
        check_topic(name)
            .map_err(|error| Refusal::new(Status::MALFORMED, format!("queue name: {error}")))?;
        let topic = format!("{QUEUE_PREFIX}{name}");
        let (produce, consume) = self.queue_rights(id, &topic)?;
        let uid = self.peers[&self.conns[&id].peer].uid;
        let found = self.space(uid).queues.get(name).copied();
        let (number, new) = match (found, spec) {
            (Some(number), Some(spec)) if *self.queues[&number].store.spec() != spec.filled() => {
                let text = format!(
                    "queue {name} was declared otherwise: {:?}; open it as it is, or drop it first",
                    self.queues[&number].store.spec()
                );
                return Err(Refusal::new(Status::DENIED, text));
            }
            (Some(number), _) => (number, false),
            (None, spec) => (self.make_queue(uid, name, spec.unwrap_or_default())?, true),
        };
        let limit = self.limits.max_queues;
        let conn = self.conns.get_mut(&id).expect("dispatch has it");
        let opened = Opened {
            queue: number,
            produce,
            consume,
        };
        match conn.opened.iter().position(|held| held.queue == number) {
            Some(at) => conn.opened[at] = opened,
            None if conn.opened.len() >= limit => {
                let text = format!("{limit} queues are open on this connection, the most allowed");
                return Err(Refusal::new(Status::QUEUE_FULL, text));
            }
            None => conn.opened.push(opened),
        }
        Ok((number, new))
    }

    fn make_queue(&mut self, uid: u32, name: &str, spec: QueueSpec) -> Result<u32, Refusal> {
        let limit = self.limits.max_queues;
        if self.space(uid).queues.len() >= limit {
            let text = format!("there are {limit} queues already, the most allowed: drop one");
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        Ok(self.insert_queue(uid, name, spec))
    }

    fn insert_queue(&mut self, uid: u32, name: &str, spec: QueueSpec) -> u32 {
        let number = self.fresh_number();
        let watched = self.watched.contains_key(name);
        let name: Arc<str> = name.into();
        let mut store = Store::new(spec.filled());
        store.watch(watched);
        let queue = Queue {
            uid,
            topic: format!("{QUEUE_PREFIX}{name}").into(),
            name: name.clone(),
            store,
            paused: Vec::new(),
            armed_ns: None,
            charged: 0,
            died: Vec::new(),
        };
        self.queues.insert(number, queue);
        self.space(uid).queues.insert(name, number);
        number
    }

    /// May it produce, may it consume? At least one.
    fn queue_rights(&self, id: ConnId, topic: &str) -> Result<(bool, bool), Refusal> {
        let peer = &self.peers[&self.conns[&id].peer];
        let (party, rules) = (Self::party(peer), &*peer.access);
        let produce = check_publish(party, rules, topic);
        let consume = check_subscribe(party, rules, topic);
        match (produce, consume) {
            (Err(_), Err(_)) => {
                // Either would have opened it, so both lines are told.
                rules.refused(Right::Publish, topic);
                rules.refused(Right::Subscribe, topic);
                let text = format!(
                    "the policy of {} allows it neither to produce to {topic} nor to consume from it; its [ipc] publish or subscribe list has to name {topic}",
                    peer.name
                );
                Err(Refusal::new(Status::DENIED, text))
            }
            (produce, consume) => Ok((produce.is_ok(), consume.is_ok())),
        }
    }

    fn opened(&self, id: ConnId, queue: u32) -> Result<Opened, Refusal> {
        self.conns[&id]
            .opened
            .iter()
            .find(|opened| opened.queue == queue)
            .copied()
            .ok_or_else(|| {
                let text = format!("no queue {queue} is open on this connection; open it by name");
                Refusal::new(Status::NO_SUCH_QUEUE, text)
            })
    }

    /// As [`Self::opened`], for those who have that right to it.
    fn opened_to(&self, right: Wish, id: ConnId, queue: u32) -> Result<(), Refusal> {
        let opened = self.opened(id, queue)?;
        let (allowed, verb, right) = match right {
            Wish::Consume => (opened.consume, "consume from", Right::Subscribe),
            Wish::Produce => (opened.produce, "produce to", Right::Publish),
        };
        if allowed {
            return Ok(());
        }
        let (peer, topic) = (
            &self.peers[&self.conns[&id].peer],
            &self.queues[&queue].topic,
        );
        peer.access.refused(right, topic);
        let text = format!(
            "the policy of {} does not allow it to {verb} {topic}; its [ipc] {list} list has to name {topic}",
            peer.name,
            list = right.as_str(),
        );
        Err(Refusal::new(Status::DENIED, text))
    }

    /// Lets a connection take messages, so many at a time, or no more.
    pub(super) fn consume(
        &mut self,
        id: ConnId,
        number: u32,
        credit: u32,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Result<Vec<u8>, Refusal> {
        self.opened_to(Wish::Consume, id, number)?;
        let limit = self.limits.max_consumers;
        let queue = self.queues.get_mut(&number).expect("it is open");
        let store = &mut queue.store;
        match (store.consumer(id), credit) {
            (None, 0) => {}
            (Some(_), 0) => self.stop_consuming(id, number),
            (Some(at), credit) => store.consumers[at].credit = credit,
            (None, _) if store.consumers.len() >= limit => {
                let text = format!(
                    "{limit} connections consume from {}, the most allowed",
                    queue.name
                );
                return Err(Refusal::new(Status::QUEUE_FULL, text));
            }
            (None, credit) => {
                store.consumers.push(Consumer {
                    conn: id,
                    credit,
                    held: 0,
                    woken: false,
                });
                let conn = self.conns.get_mut(&id).expect("dispatch has it");
                conn.consuming.push(number);
            }
        }
        self.after(number, now, fx);
        Ok(Vec::new())
    }

    /// Gives a connection what is there now, whether it consumes or not.
    pub(super) fn queue_take(
        &mut self,
        id: ConnId,
        number: u32,
        max: u32,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Result<Vec<u8>, Refusal> {
        self.opened_to(Wish::Consume, id, number)?;
        let limit = self.limits.max_consumers;
        let room = (self.limits.max_payload - DELIVERY_ROOM) as usize;
        let queue = self.queues.get_mut(&number).expect("it is open");
        let store = &mut queue.store;
        let at = match store.consumer(id) {
            Some(at) => at,
            None if store.consumers.len() >= limit => {
                let text = format!(
                    "{limit} connections take from {}, the most allowed",
                    queue.name
                );
                return Err(Refusal::new(Status::QUEUE_FULL, text));
            }
            None => {
                store.consumers.push(Consumer {
                    conn: id,
                    credit: 0,
                    held: 0,
                    woken: false,
                });
                let conn = self.conns.get_mut(&id).expect("dispatch has it");
                conn.consuming.push(number);
                store.consumers.len() - 1
            }
        };
        let consumer = &mut store.consumers[at];
        let credit = std::mem::replace(&mut consumer.credit, consumer.held.saturating_add(max));
        let given = store.deliver(at, &[], room, now.mono_ns);
        store.consumers[at].credit = credit;
        self.after(number, now, fx);
        Ok(given.map_or_else(Vec::new, |(deliveries, _)| deliveries.to_vec()))
    }

    /// What it holds goes back. The caller sees to what follows.
    fn stop_consuming(&mut self, id: ConnId, number: u32) {
        if let Some(queue) = self.queues.get_mut(&number) {
            queue.store.release(id);
            queue.store.consumers.retain(|consumer| consumer.conn != id);
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.consuming.retain(|other| *other != number);
                conn.order.remove(queue.store.spec().class, number);
            }
        }
    }

    /// The connection has gone: nothing of it stays in a queue.
    pub(super) fn leave_queues(
        &mut self,
        id: ConnId,
        consuming: Vec<u32>,
        parked: Option<Parked>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        if let Some(parked) = parked
            && let Some(queue) = self.queues.get_mut(&parked.queue)
        {
            queue.paused.retain(|conn| *conn != id);
        }
        for number in consuming {
            self.stop_consuming(id, number);
            self.after(number, now, fx);
        }
    }

    /// What became of deliveries; the answer follows, of acknowledgements to a durable queue once they are stored.
    #[allow(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(super) fn settle(
        &mut self,
        id: ConnId,
        correlation: u32,
        number: u32,
        outcome: Outcome,
        tags: Numbers<'_>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let consumer = self.opened(id, number).and_then(|_| {
            let at = self.queues[&number].store.consumer(id);
            at.ok_or_else(|| {
                let text = "this connection takes no messages from that queue";
                Refusal::new(Status::NO_SUCH_QUEUE, text)
            })
        });
        let consumer = match consumer {
            Ok(consumer) => consumer,
            Err(Refusal { status, text }) if correlation == 0 => {
                self.notice(id, number, status, &text, fx);
                return;
            }
            Err(Refusal { status, text }) => {
                self.answer(id, correlation, status, &text, &[], fx);
                return;
            }
        };
        let queue = self.queues.get_mut(&number).expect("it is open");
        let mut settled = 0u32;
        for tag in tags.iter() {
            settled += u32::from(queue.store.settle(consumer, tag, outcome, now.mono_ns));
        }
        let result = settled.to_le_bytes();
        let waits = correlation != 0 && queue.store.spec().durable && outcome == Outcome::Ack;
        let reply = (id, correlation, result);
        if !(waits && self.store_settled(number, Some(reply), fx)) && correlation != 0 {
            self.answer(id, correlation, Status::OK, "", &result, fx);
        }
        self.after(number, now, fx);
    }

    /// The queue goes, with all that it holds.
    pub(super) fn queue_drop(
        &mut self,
        id: ConnId,
        number: u32,
        fx: &mut Effects<F>,
    ) -> Result<Vec<u8>, Refusal> {
        self.opened_to(Wish::Consume, id, number)?;
        self.opened_to(Wish::Produce, id, number)?;
        self.remove_queue(number, "the queue was dropped", fx);
        Ok(Vec::new())
    }

    pub(super) fn remove_queue(&mut self, number: u32, why: &str, fx: &mut Effects<F>) {
        let Some(queue) = self.queues.remove(&number) else {
            return;
        };
        if let Some(at) = queue.armed_ns {
            self.timers.remove(&(at, Timer::Queue(number)));
        }
        let space = self.space(queue.uid);
        space.queues.remove(&queue.name);
        space.queue_bytes -= queue.charged;
        if queue.store.spec().durable {
            self.drop_stream(queue.stream(), fx);
        }
        for id in queue.paused {
            let parked = self.conns.get_mut(&id).and_then(|conn| conn.parked.take());
            if let Some(Parked { correlation, .. }) = parked {
                let text = "the queue was dropped before there was room";
                if correlation != 0 {
                    self.answer(id, correlation, Status::NO_SUCH_QUEUE, text, &[], fx);
                } else {
                    self.notice(id, number, Status::NO_SUCH_QUEUE, text, fx);
                }
                fx.resume.push(id);
            }
        }
        let users: Vec<ConnId> = self
            .conns
            .iter_mut()
            .filter(|(_, conn)| conn.opened.iter().any(|opened| opened.queue == number))
            .map(|(id, conn)| {
                conn.opened.retain(|opened| opened.queue != number);
                conn.consuming.retain(|other| *other != number);
                conn.order.remove(queue.store.spec().class, number);
                *id
            })
            .collect();
        for id in users {
            // Under the queue's number, so that a client knows which of its consumers has ended.
            self.notice(id, number, Status::NO_SUCH_QUEUE, why, fx);
        }
    }

    /// What follows from any change of a queue: the store hears of it, consumers of what waits, producers of room.
    pub(super) fn after(&mut self, number: u32, now: Now, fx: &mut Effects<F>) {
        self.store_settled(number, None, fx);
        self.note_dead(number, now, fx);
        let Some(queue) = self.queues.get_mut(&number) else {
            return;
        };
        if !queue.store.steps.is_empty() {
            self.tell_steps(number, fx);
        }
        let queue = self.queues.get_mut(&number).expect("looked up above");
        let class = queue.store.spec().class;
        if !queue.store.is_idle() {
            let conns = &mut self.conns;
            queue.store.wake(|conn| {
                if let Some(entry) = conns.get_mut(&conn) {
                    entry.order.push(class, number);
                    fx.wake.push(conn);
                }
            });
        }
        let bytes = queue.store.live().1 + queue.store.dead().1;
        let charged = std::mem::replace(&mut queue.charged, bytes);
        let uid = queue.uid;
        let resume = !queue.paused.is_empty() && queue.store.has_drained();
        let space = self.space(uid);
        space.queue_bytes = space.queue_bytes - charged + bytes;
        self.arm(number, now);
        if resume {
            self.resume_producers(number, now, fx);
        }
    }

    /// Sets the queue's timer, if it has to go off earlier than it is set for.
    fn arm(&mut self, number: u32, now: Now) {
        let queue = self.queues.get_mut(&number).expect("the caller has it");
        let store = &queue.store;
        let nudge = (store.consumers.len() > 1 && !store.is_idle()).then(|| now.mono_ns + NUDGE_NS);
        let next = store.next_due_ns().into_iter().chain(nudge).min();
        let Some(next) = next else { return };
        if queue.armed_ns.is_none_or(|armed| next < armed) {
            if let Some(armed) = queue.armed_ns.replace(next) {
                self.timers.remove(&(armed, Timer::Queue(number)));
            }
            self.timers.insert((next, Timer::Queue(number)));
        }
    }

    /// The queue's timer went off.
    pub(super) fn queue_due(&mut self, number: u32, now: Now, fx: &mut Effects<F>) {
        let Some(queue) = self.queues.get_mut(&number) else {
            return;
        };
        queue.armed_ns = None;
        queue.store.expire(now.mono_ns);
        self.after(number, now, fx);
    }

    /// Rights have changed: who may no longer consume does not, who may no longer produce finds out when it tries.
    pub(super) fn judge_queues(&mut self, peer: PeerId, now: Now, fx: &mut Effects<F>) -> u32 {
        let mut ended = 0;
        for id in self.peers[&peer].conns.clone() {
            let opened: Vec<u32> = self.conns[&id].opened.iter().map(|o| o.queue).collect();
            for number in opened {
                let topic = self.queues[&number].topic.clone();
                let (produce, consume) = self.queue_rights(id, &topic).unwrap_or((false, false));
                let conn = self
                    .conns
                    .get_mut(&id)
                    .expect("a peer's connections are there");
                if let Some(opened) = conn.opened.iter_mut().find(|o| o.queue == number) {
                    (opened.produce, opened.consume) = (produce, consume);
                }
                if !consume && conn.consuming.contains(&number) {
                    ended += 1;
                    self.stop_consuming(id, number);
                    let text = format!("the right to consume from {topic} was taken back");
                    self.notice(id, number, Status::DENIED, &text, fx);
                    self.after(number, now, fx);
                }
            }
        }
        ended
    }

    /// Entries for the record of what has just died, one for each reason.
    fn note_dead(&mut self, number: u32, now: Now, fx: &mut Effects<F>) {
        let Some(queue) = self.queues.get_mut(&number) else {
            return;
        };
        if queue.died.is_empty() {
            return;
        }
        let dead = std::mem::take(&mut queue.died);
        let (uid, topic) = (queue.uid, queue.topic.clone());
        for reason in [
            DeadReason::MaxDeliver,
            DeadReason::Rejected,
            DeadReason::Overflow,
        ] {
            let ids: BTreeSet<u64> = dead
                .iter()
                .filter(|(_, why)| *why == reason)
                .map(|(id, _)| *id)
                .collect();
            if let (Some(first), Some(last)) = (ids.first(), ids.last()) {
                let what = format!(
                    "{} messages ({first} to {last}): {}",
                    ids.len(),
                    reason.as_str()
                );
                self.note_of_bus(
                    uid,
                    topic.clone(),
                    "dead-letter",
                    what.into(),
                    ids.len() as u32,
                    now,
                    fx,
                );
            }
        }
    }
}
