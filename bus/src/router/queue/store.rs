//! One work queue, by itself: what waits, who holds what until when, what is dead. No access rules, no frames.
//!
//! Every message is in exactly one place: waiting (by class, those that came back in front of those that were never
//! delivered), in a consumer's hands, delayed, or dead. What is waiting, held and delayed together stays within the
//! declared bounds; dead letters have bounds of their own. Takes time as a parameter. `router::queue::model` compares
//! it, step by step, with a few lines that are plainly right.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::ConnId;
use super::super::persist::DeadReason;
use super::slab::{Arriving, List, Slab, Slot, State};
use super::watch::{By, QueueStepKind, Step};
use crate::message::{BATCH_MAX, DELIVERY_HEADER, Full, Outcome, QueueSpec};

/// Times that a class with something ready is passed over before it goes first.
pub(super) const PATIENCE: u8 = 16;

/// What a queue counted. Since it was made; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    pub produced: u64,
    pub produced_bytes: u64,
    /// Every delivery, the first and the later ones of a message.
    pub delivered: u64,
    pub redelivered: u64,
    pub acked: u64,
    pub nacked: u64,
    /// Given back because nobody settled them in time.
    pub expired: u64,
    /// Given back because their consumer's connection closed, or it stopped consuming.
    pub returned: u64,
    /// Became dead letters.
    pub dead: u64,
    /// Not taken: there was no room.
    pub refused: u64,
}

/// Somebody who takes messages.
#[derive(Debug)]
pub(super) struct Consumer {
    pub conn: ConnId,
    pub credit: u32,
    pub held: u32,
    /// It was told that there is something, and has not found nothing since.
    pub woken: bool,
}

/// What a durable queue has to tell its store: ids that are done with, that died, that live again.
#[derive(Debug, Default)]
pub(super) struct Settling {
    pub gone: Vec<u64>,
    pub dead: Vec<(u64, DeadReason)>,
    pub requeued: Vec<u64>,
}

impl Settling {
    /// What died, by why.
    pub fn dead_by_reason(&self) -> BTreeMap<DeadReason, Vec<u64>> {
        let mut reasons: BTreeMap<DeadReason, Vec<u64>> = BTreeMap::new();
        for (id, reason) in &self.dead {
            reasons.entry(*reason).or_default().push(*id);
        }
        reasons
    }

    pub fn clear(&mut self) {
        self.gone.clear();
        self.dead.clear();
        self.requeued.clear();
    }
}

#[derive(Debug)]
pub(super) struct Store {
    spec: QueueSpec,
    slab: Slab,
    ready: [List; 4],
    again: [List; 4],
    passed_over: [u8; 4],
    held: List,
    /// Extended and delayed ones.
    times: BTreeSet<(u64, u32)>,
    dead: List,
    dead_bytes: u64,
    live: u32,
    live_bytes: u64,
    /// On their way to the durable store.
    reserved: u32,
    reserved_bytes: u64,
    next_id: u64,
    pub consumers: Vec<Consumer>,
    /// Room for the slots of one batch.
    taken: Vec<u32>,
    /// Who is offered something first.
    turn: usize,
    pub counters: QueueCounters,
    pub settling: Settling,
    /// Somebody wants to know of each step.
    watched: bool,
    pub steps: Vec<Step>,
}

impl Store {
    pub fn new(spec: QueueSpec) -> Self {
        Self {
            spec,
            slab: Slab::default(),
            ready: Default::default(),
            again: Default::default(),
            passed_over: [0; 4],
            held: List::default(),
            times: BTreeSet::new(),
            dead: List::default(),
            dead_bytes: 0,
            live: 0,
            live_bytes: 0,
            reserved: 0,
            reserved_bytes: 0,
            next_id: 1,
            consumers: Vec::new(),
            taken: Vec::new(),
            turn: 0,
            counters: QueueCounters::default(),
            settling: Settling::default(),
            watched: false,
            steps: Vec::new(),
        }
    }

    /// Whether steps are noted from now on.
    pub fn watch(&mut self, watched: bool) {
        self.watched = watched;
        if !watched {
            self.steps = Vec::new();
        }
    }

    #[inline]
    fn note(&mut self, index: u32, kind: QueueStepKind, by: By) {
        if self.watched {
            self.note_step(index, kind, by);
        }
    }

    #[cold]
    fn note_step(&mut self, index: u32, kind: QueueStepKind, by: By) {
        let slot = self.slab.get(index);
        self.steps.push(Step {
            message: slot.id,
            kind,
            by,
            deliveries: slot.deliveries,
            bytes: slot.data().len() as u32,
        });
    }

    pub fn spec(&self) -> &QueueSpec {
        &self.spec
    }

    /// The id that the next message gets.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Messages that nobody holds and that may be delivered now.
    pub fn waiting(&self) -> u32 {
        let len = |lists: &[List; 4]| lists.iter().map(|list| list.len).sum::<u32>();
        len(&self.ready) + len(&self.again)
    }

    pub fn is_idle(&self) -> bool {
        let empty = |lists: &[List; 4]| lists.iter().all(List::is_empty);
        empty(&self.ready) && empty(&self.again)
    }

    pub fn live(&self) -> (u32, u64) {
        (self.live, self.live_bytes)
    }

    pub fn dead(&self) -> (u32, u64) {
        (self.dead.len, self.dead_bytes)
    }

    /// Messages that are delayed after they were given back.
    pub fn delayed(&self) -> u32 {
        let delayed = |(_, slot): &&(u64, u32)| self.slab.get(*slot).state == State::Delayed;
        self.times.iter().filter(delayed).count() as u32
    }

    pub fn in_hand(&self) -> u32 {
        self.consumers.iter().map(|consumer| consumer.held).sum()
    }

    /// Whether so much finds room, beside what is on its way to the store.
    #[inline]
    pub fn fits(&self, messages: u32, bytes: u64) -> bool {
        self.live + self.reserved + messages <= self.spec.max_messages
            && self.live_bytes + self.reserved_bytes + bytes <= self.spec.max_bytes
    }

    /// At most half full: time to let paused producers go on.
    pub fn has_drained(&self) -> bool {
        self.live + self.reserved <= self.spec.max_messages / 2
            && self.live_bytes + self.reserved_bytes <= self.spec.max_bytes / 2
    }

    /// Holds room for a batch that is being stored.
    pub fn reserve(&mut self, messages: u32, bytes: u64) {
        self.reserved += messages;
        self.reserved_bytes += bytes;
    }

    pub fn unreserve(&mut self, messages: u32, bytes: u64) {
        self.reserved -= messages;
        self.reserved_bytes -= bytes;
    }

    /// Whether so much would find room in the empty queue.
    pub fn could_fit(&self, messages: u32, bytes: u64) -> bool {
        messages <= self.spec.max_messages && bytes <= self.spec.max_bytes
    }

    /// Makes room by the queue's policy; `false`: there is none.
    pub fn make_room(&mut self, messages: u32, bytes: u64) -> bool {
        if !self.could_fit(messages, bytes) {
            return false;
        }
        while !self.fits(messages, bytes) {
            if self.spec.full != Full::DropOldest {
                return false;
            }
            let lists = self.ready.iter().chain(&self.again);
            let oldest = lists
                .filter_map(List::first)
                .min_by_key(|slot| self.slab.get(*slot).id);
            let Some(oldest) = oldest else { return false };
            self.leave(oldest);
            self.bury(oldest, DeadReason::Overflow);
        }
        true
    }

    /// Puts in a message for which there is room; its id.
    #[inline]
    pub fn push(&mut self, sent_ns: u64, from: u32, priority: u8, data: &[u8]) -> u64 {
        let id = self.next_id;
        self.push_as(Arriving {
            id,
            sent_ns,
            from,
            priority,
            restored: false,
            data,
        });
        self.count_produced(1, data.len() as u64);
        id
    }

    #[inline]
    pub fn count_produced(&mut self, messages: u32, bytes: u64) {
        self.counters.produced += u64::from(messages);
        self.counters.produced_bytes += bytes;
    }

    /// The same under an id that the store gave.
    #[inline]
    pub fn push_as(&mut self, message: Arriving<'_>) {
        debug_assert!(message.priority < 4);
        let class = usize::from(message.priority & 3);
        self.next_id = self.next_id.max(message.id + 1);
        self.live += 1;
        self.live_bytes += message.data.len() as u64;
        let from = message.from;
        let slot = self.slab.insert(message);
        self.slab.get_mut(slot).state = State::Ready;
        self.slab.push_back(&mut self.ready[class], slot);
        self.note(slot, QueueStepKind::Produced, By::Producer(from));
    }

    /// A dead letter that was one before a restart.
    pub fn push_dead(&mut self, message: Arriving<'_>, reason: DeadReason) {
        self.next_id = self.next_id.max(message.id + 1);
        let slot = self.slab.insert(message);
        self.settle_dead(slot, reason);
    }

    /// Gives the next message to a consumer, if it takes at most `room` bytes.
    #[inline]
    fn take(&mut self, consumer: usize, room: usize, due_ns: u64) -> Option<u32> {
        let class = self.pick()?;
        let list = if self.again[class].is_empty() {
            &self.ready[class]
        } else {
            &self.again[class]
        };
        let index = list.first()?;
        if self.slab.get(index).data().len() > room {
            return None;
        }
        self.leave(index);
        for other in 0..4 {
            self.passed_over[other] = if other == class
                || (self.ready[other].is_empty() && self.again[other].is_empty())
            {
                0
            } else {
                self.passed_over[other].saturating_add(1)
            };
        }
        let taker = &mut self.consumers[consumer];
        taker.held += 1;
        let holder = taker.conn;
        self.slab.push_back(&mut self.held, index);
        let slot = self.slab.get_mut(index);
        slot.state = State::Held;
        slot.holder = holder;
        slot.due_ns = due_ns;
        slot.deliveries = slot.deliveries.saturating_add(1);
        self.counters.delivered += 1;
        self.counters.redelivered += u64::from(slot.deliveries > 1);
        self.note(index, QueueStepKind::Delivered, By::Consumer(holder));
        Some(index)
    }

    /// Gives a consumer its share of what waits, behind `head`, in at most `room` bytes (one message of any size is
    /// always given). `None`: there is nothing for it.
    pub fn deliver(
        &mut self,
        consumer: usize,
        head: &[u8],
        room: usize,
        now_ns: u64,
    ) -> Option<(Arc<[u8]>, u32)> {
        let share = self.share(consumer).min(BATCH_MAX as u32);
        let due_ns = now_ns.saturating_add(u64::from(self.spec.visibility_ms) * 1_000_000);
        let mut taken = std::mem::take(&mut self.taken);
        taken.clear();
        let mut len = head.len();
        while taken.len() < share as usize {
            let left = if taken.is_empty() {
                usize::MAX
            } else {
                match room.checked_sub(len + DELIVERY_HEADER) {
                    Some(left) => left,
                    None => break,
                }
            };
            let Some(index) = self.take(consumer, left, due_ns) else {
                break;
            };
            len += DELIVERY_HEADER + self.slab.get(index).data().len();
            taken.push(index);
        }
        let count = taken.len() as u32;
        let payload = (count > 0).then(|| {
            // One allocation, and no copy but the one that puts the message into its place.
            let mut payload: Arc<[u8]> = std::iter::repeat_n(0, len).collect();
            let bytes = Arc::get_mut(&mut payload).expect("nobody else has it yet");
            let (start, mut rest) = bytes.split_at_mut(head.len());
            start.copy_from_slice(head);
            for index in &taken {
                let tag = self.slab.tag(*index);
                rest = self.slab.get(*index).delivery(tag).write(rest);
            }
            (payload, count)
        });
        self.taken = taken;
        payload
    }

    fn pick(&self) -> Option<usize> {
        let waits =
            |class: &usize| !self.ready[*class].is_empty() || !self.again[*class].is_empty();
        let overdue = |class: &usize| self.passed_over[*class] >= PATIENCE;
        (0..4)
            .rev()
            .filter(waits)
            .find(overdue)
            .or_else(|| (0..4).rev().find(waits))
    }

    /// Settles one delivery; `false`: the connection does not hold it (any more).
    #[inline]
    pub fn settle(&mut self, consumer: usize, tag: u64, outcome: Outcome, now_ns: u64) -> bool {
        let Some(index) = self.slab.find(tag) else {
            return false;
        };
        let slot = self.slab.get(index);
        if !slot.is_held() || slot.holder != self.consumers[consumer].conn {
            return false;
        }
        let due = |millis: u32| now_ns.saturating_add(u64::from(millis) * 1_000_000);
        let by = By::Consumer(slot.holder);
        self.leave(index);
        match outcome {
            Outcome::Ack => {
                self.note(index, QueueStepKind::Acked, by);
                self.consumers[consumer].held -= 1;
                self.counters.acked += 1;
                self.forget(index);
            }
            Outcome::Extend { visibility_ms } => {
                self.note(index, QueueStepKind::Extended, by);
                let slot = self.slab.get_mut(index);
                slot.state = State::Extended;
                slot.due_ns = due(visibility_ms);
                self.times.insert((slot.due_ns, index));
            }
            Outcome::Nack { delay_ms } => {
                self.note(index, QueueStepKind::Nacked, by);
                self.consumers[consumer].held -= 1;
                self.counters.nacked += 1;
                self.give_back(index, (delay_ms > 0).then(|| due(delay_ms)));
            }
            Outcome::Reject => {
                self.consumers[consumer].held -= 1;
                self.bury(index, DeadReason::Rejected);
            }
        }
        true
    }

    /// Whatever this connection holds goes back at once.
    pub fn release(&mut self, conn: ConnId) {
        let held: Vec<u32> = self
            .slab
            .walk(&self.held)
            .chain(self.times.iter().map(|(_, slot)| *slot))
            .filter(|slot| {
                let slot = self.slab.get(*slot);
                slot.is_held() && slot.holder == conn
            })
            .collect();
        for index in held {
            self.leave(index);
            self.counters.returned += 1;
            self.note(index, QueueStepKind::Returned, By::Consumer(conn));
            self.give_back(index, None);
        }
        if let Some(consumer) = self.consumers.iter_mut().find(|c| c.conn == conn) {
            consumer.held = 0;
        }
    }

    /// When [`Self::expire`] has something to do next.
    pub fn next_due_ns(&self) -> Option<u64> {
        let held = self.held.first().map(|slot| self.slab.get(slot).due_ns);
        let timed = self.times.first().map(|(at, _)| *at);
        held.into_iter().chain(timed).min()
    }

    /// Takes back what was held too long, and lets what was delayed wait no longer.
    pub fn expire(&mut self, now_ns: u64) {
        loop {
            let held = self
                .held
                .first()
                .filter(|slot| self.slab.get(*slot).due_ns <= now_ns);
            let timed = self.times.first().filter(|(at, _)| *at <= now_ns);
            let Some(index) = held.or(timed.map(|(_, slot)| *slot)) else {
                return;
            };
            let slot = self.slab.get(index);
            let (was_held, holder) = (slot.is_held(), slot.holder);
            self.leave(index);
            if was_held {
                self.counters.expired += 1;
                self.note(index, QueueStepKind::Expired, By::Consumer(holder));
                if let Some(consumer) = self.consumers.iter_mut().find(|c| c.conn == holder) {
                    consumer.held -= 1;
                }
                self.give_back(index, None);
            } else {
                self.note(index, QueueStepKind::Due, By::Nobody);
                self.wait_again(index);
            }
        }
    }

    /// Not done: delivered again, at once or later, or dead.
    fn give_back(&mut self, index: u32, due_ns: Option<u64>) {
        let slot = self.slab.get_mut(index);
        if u32::from(slot.deliveries) >= self.spec.max_deliver {
            self.bury(index, DeadReason::MaxDeliver);
            return;
        }
        match due_ns {
            None => self.wait_again(index),
            Some(due_ns) => {
                slot.state = State::Delayed;
                slot.due_ns = due_ns;
                self.times.insert((due_ns, index));
            }
        }
    }

    fn wait_again(&mut self, index: u32) {
        let slot = self.slab.get_mut(index);
        slot.state = State::Again;
        let class = usize::from(slot.priority & 3);
        self.slab.push_back(&mut self.again[class], index);
    }

    /// Takes a slot out of whatever list it is in.
    #[inline]
    fn leave(&mut self, index: u32) {
        let slot = self.slab.get(index);
        let class = usize::from(slot.priority & 3);
        match slot.state {
            State::Ready => self.slab.unlink(&mut self.ready[class], index),
            State::Again => self.slab.unlink(&mut self.again[class], index),
            State::Held => self.slab.unlink(&mut self.held, index),
            State::Extended | State::Delayed => {
                let due_ns = slot.due_ns;
                self.times.remove(&(due_ns, index));
            }
            State::Dead(_) => self.slab.unlink(&mut self.dead, index),
            State::Free => {}
        }
    }

    /// A live message, in no list, is done with.
    fn forget(&mut self, index: u32) {
        let slot = self.slab.get(index);
        self.live -= 1;
        self.live_bytes -= slot.data().len() as u64;
        if self.spec.durable {
            self.settling.gone.push(slot.id);
        }
        self.slab.remove(index);
        if self.live == 0 && self.dead.is_empty() {
            self.slab.shrink();
        }
    }

    /// A live message, in no list, becomes a dead letter.
    fn bury(&mut self, index: u32, reason: DeadReason) {
        let slot = self.slab.get(index);
        self.live -= 1;
        self.live_bytes -= slot.data().len() as u64;
        self.counters.dead += 1;
        // The router puts it on record, durable or not.
        self.settling.dead.push((slot.id, reason));
        self.note(index, QueueStepKind::Dead(reason), By::Nobody);
        self.settle_dead(index, reason);
    }

    fn settle_dead(&mut self, index: u32, reason: DeadReason) {
        let slot = self.slab.get_mut(index);
        slot.state = State::Dead(reason);
        self.dead_bytes += slot.data().len() as u64;
        self.slab.push_back(&mut self.dead, index);
        while self.dead.len > self.spec.dead_messages || self.dead_bytes > self.spec.max_bytes {
            let Some(oldest) = self.dead.first() else {
                return;
            };
            self.drop_dead(oldest);
        }
    }

    fn drop_dead(&mut self, index: u32) {
        self.note(index, QueueStepKind::Dropped, By::Nobody);
        self.leave(index);
        let slot = self.slab.get(index);
        self.dead_bytes -= slot.data().len() as u64;
        if self.spec.durable {
            self.settling.gone.push(slot.id);
        }
        self.slab.remove(index);
    }

    /// The dead letters of these ids; of none: all. Oldest first.
    fn dead_of(&self, ids: &BTreeSet<u64>) -> Vec<u32> {
        self.slab
            .walk(&self.dead)
            .filter(|slot| ids.is_empty() || ids.contains(&self.slab.get(*slot).id))
            .collect()
    }

    /// Dead letters live again, as if never delivered, as far as there is room; how many.
    pub fn requeue(&mut self, ids: &BTreeSet<u64>) -> u32 {
        let mut count = 0;
        for index in self.dead_of(ids) {
            let bytes = self.slab.get(index).data().len() as u64;
            if !self.fits(1, bytes) {
                break;
            }
            self.leave(index);
            self.dead_bytes -= bytes;
            self.live += 1;
            self.live_bytes += bytes;
            let slot = self.slab.get_mut(index);
            slot.state = State::Ready;
            slot.deliveries = 0;
            let (class, id) = (usize::from(slot.priority & 3), slot.id);
            self.slab.push_back(&mut self.ready[class], index);
            self.settling.requeued.push(id);
            self.note(index, QueueStepKind::Requeued, By::Nobody);
            count += 1;
        }
        count
    }

    /// Dead letters go for good; how many.
    pub fn drop_letters(&mut self, ids: &BTreeSet<u64>) -> u32 {
        let letters = self.dead_of(ids);
        for index in &letters {
            self.drop_dead(*index);
        }
        letters.len() as u32
    }

    /// Live messages or dead letters from id `from` on, by id.
    pub fn peek(&self, dead: bool, from: u64, max: usize) -> Vec<&Slot> {
        let mut found: Vec<&Slot> = self
            .slab
            .used()
            .map(|(_, slot)| slot)
            .filter(|slot| matches!(slot.state, State::Dead(_)) == dead && slot.id >= from)
            .collect();
        found.sort_unstable_by_key(|slot| slot.id);
        found.truncate(max);
        found
    }

    /// The consumer on this connection.
    pub fn consumer(&self, conn: ConnId) -> Option<usize> {
        self.consumers.iter().position(|c| c.conn == conn)
    }

    /// How many messages this consumer should take now: what its credit allows, and no more than its share where
    /// others could take some too.
    pub fn share(&self, consumer: usize) -> u32 {
        let able = |c: &&Consumer| c.held < c.credit;
        let others = self.consumers.iter().filter(able).count().max(1) as u32;
        let me = &self.consumers[consumer];
        let share = self.waiting().div_ceil(others);
        share.min(me.credit.saturating_sub(me.held))
    }

    /// Tells consumers that there is something: as many of the idle ones as there are messages, taking turns.
    /// Those that were told and have not found nothing since are busy, perhaps for long: nobody counts on them.
    pub fn wake(&mut self, mut tell: impl FnMut(ConnId)) {
        let mut left = self.waiting();
        let count = self.consumers.len();
        for step in 0..count {
            if left == 0 {
                return;
            }
            let at = (self.turn + step) % count;
            let consumer = &mut self.consumers[at];
            if consumer.woken || consumer.held >= consumer.credit {
                continue;
            }
            consumer.woken = true;
            tell(consumer.conn);
            left -= 1;
            if left == 0 {
                self.turn = (at + 1) % count;
            }
        }
    }

    /// Nothing of it is left behind: for tests, after everything was settled.
    #[cfg(test)]
    pub fn check(&self) {
        let mut bytes = 0;
        let mut counts = [0u32; 2];
        for (_, slot) in self.slab.used() {
            let dead = matches!(slot.state, State::Dead(_));
            counts[usize::from(dead)] += 1;
            if !dead {
                bytes += slot.data().len() as u64;
            }
        }
        assert_eq!((self.live, self.live_bytes), (counts[0], bytes));
        assert_eq!(self.dead.len, counts[1]);
        let held = self.held.len + self.times.len() as u32 - self.delayed();
        assert_eq!(self.in_hand(), held, "what consumers hold");
        assert_eq!(
            self.live,
            self.waiting() + self.held.len + self.times.len() as u32
        );
        assert!(self.live <= self.spec.max_messages && self.live_bytes <= self.spec.max_bytes);
        assert!(self.dead.len <= self.spec.dead_messages);
        assert!(self.slab.len() <= (self.spec.max_messages + self.spec.dead_messages + 1) as usize);
    }
}
