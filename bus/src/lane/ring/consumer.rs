//! The receiving end of a lane. See [`super`] for the protocol.
//!
//! One thread at a time; no privilege. Everything is copied out of the producer's memory once, word by word,
//! and then checked: a producer that writes nonsense ends its own lane.

#![forbid(unsafe_code)]

mod slots;
mod source;

use std::time::Duration;

use zerocopy::IntoBytes;

use self::slots::{Lines, OneLine, Plain, Slot, TwoLines, inline_words};
use super::{
    DATA_MAGIC, EXT, Ext, HEAD, Head, INLINE, Inline, LayoutError, Message, REFERENCE,
    ReceiverOptions, RecvError, SEQUENCE, SPILL, Tag, check_capacity, check_magic, check_setup,
    check_size, committed, cursor_words, data_words, empty, inline_bytes, inline_of, line_of,
    longest, slots_for, spill_bytes,
};
use crate::lane::Credit;
use crate::message::Status;
use crate::shm::atomics::{Ordering, spin_loop};
use crate::shm::clock::Deadline;
use crate::shm::counters::{
    CAPACITY_WORD, CONSUMED_WORD, COUNTERS_WORD, DONE_WORD, LIMIT_WORD, MAGIC_WORD, Received,
    SETUP_WORD, parked,
};
#[cfg(not(loom))]
use crate::shm::histogram;
use crate::shm::park::{Closer, sleep, wake_word};
use crate::shm::patience::{Look, Patience, Slept, Spin, Step};
use crate::shm::region::{LINE_WORDS, Line, Own, Peers, Words, load_pair};
use crate::shm::stamp;
use crate::simd::crc32c;
use crate::wait::{Bell, Park, Ringer, RingerSlot, Source, Watch};

/// The receiving end. Dropping it tells the producer, and whoever else maps the page, how far it read.
#[derive(Debug)]
pub struct Consumer<D: Words, C: Words> {
    data: Peers<D>,
    cursor: Own<C>,
    capacity: usize,
    /// How large the slots are, as the producer said when this end was made.
    inline: Inline,
    /// The next slot number to read.
    next: u64,
    /// What the cursor says: published in steps, to keep its line out of the producer's way.
    published: u64,
    /// Slots of a step.
    step: u64,
    /// Slots of a step when there is nothing else to do.
    idle_step: u64,
    /// Until this slot number a message is nothing but to be copied and counted; there, [`Self::plan`] says why it is more.
    quick_until: u64,
    /// The first slot number that the producer may not write.
    limit: u64,
    credit: Credit,
    closer: Closer,
    /// After a close: the slot number up to which what was committed is still received.
    drain_to: Option<u64>,
    /// The cursor says that nothing more will be taken.
    done: bool,
    look: Look,
    patience: Patience,
    /// Since the last message: the producer may have put a stamp on the next one.
    slept: bool,
    /// What is counted seldom; see [`Self::received`].
    counts: Received,
    /// Where messages of more than one slot are put together; as long as the longest.
    scratch: Box<[u64]>,
    /// What the producer rings while this end waits in an event loop.
    bell: Option<Bell>,
    /// Rung when the producer says that it waits for its bell.
    ringer: RingerSlot,
}

/// A message that has been read out of more than the inline words, into the scratch.
struct Long {
    head: Head,
    slot: u64,
    ext: Option<Ext>,
}

impl<D: Words, C: Words> Consumer<D, C> {
    /// Takes the producer's formatted data memory and its own cursor memory, formatted with the same `options`.
    pub fn new(
        data: D,
        cursor: C,
        closer: Closer,
        options: ReceiverOptions,
    ) -> Result<Self, LayoutError> {
        Self::starting_at(data, cursor, closer, options, 0)
    }

    pub(in crate::lane) fn starting_at(
        data: D,
        cursor: C,
        closer: Closer,
        options: ReceiverOptions,
        first: u64,
    ) -> Result<Self, LayoutError> {
        let (data, cursor) = (Peers(data), Own(cursor));
        check_magic(data.load(MAGIC_WORD, Ordering::Relaxed), DATA_MAGIC)?;
        // Read once: the producer may change the words, but not what we go by.
        let capacity = check_capacity(data.load(CAPACITY_WORD, Ordering::Relaxed))?;
        let peers_setup = data.load(SETUP_WORD, Ordering::Relaxed);
        let inline = inline_of(peers_setup);
        check_size(data.len(), data_words(capacity, inline))?;
        check_size(cursor.len(), cursor_words())?;
        let own_setup = options.setup_flags();
        check_setup(cursor.load(SETUP_WORD, Ordering::Relaxed), own_setup)?;
        let limit = match options.credit {
            Credit::Automatic => first.wrapping_add(capacity as u64),
            Credit::Manual => first,
        };
        cursor.store(CONSUMED_WORD, first, Ordering::Release);
        cursor.store(LIMIT_WORD, limit, Ordering::Release);
        let mut consumer = Self {
            data,
            cursor,
            capacity,
            inline,
            next: first,
            published: first,
            step: (capacity as u64 / 4).max(1),
            idle_step: (capacity as u64 / 8).max(1),
            quick_until: first,
            limit,
            credit: options.credit,
            closer,
            drain_to: None,
            done: false,
            look: Look::after(peers_setup),
            patience: Patience::new(options.waiting, own_setup),
            slept: false,
            counts: Received::default(),
            bell: None,
            ringer: RingerSlot::default(),
            scratch: vec![0; longest(inline, capacity, false).div_ceil(8) + SPILL].into(),
        };
        // A producer that came first found no room, and may be asleep.
        consumer.wake_producer(LIMIT_WORD);
        Ok(consumer)
    }

    /// Takes the bell of which the producer has a copy (or soon will): for waiting in an event loop, or on more
    /// channels than one futex call watches.
    pub fn set_bell(&mut self, bell: Bell) {
        self.bell = Some(bell);
    }

    /// Takes the copy of the producer's bell, and rings it: the producer may be waiting for it already.
    pub fn set_ringer(&mut self, ringer: Ringer) {
        self.ringer.put(ringer);
    }

    /// Where that copy may be put from another thread, while this end sleeps.
    pub fn ringer_slot(&self) -> RingerSlot {
        self.ringer.clone()
    }

    /// Says to this end that the lane is over. What was committed by then can still be received, except after
    /// `DENIED` and `MALFORMED`.
    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// What this end has counted.
    pub fn received(&self) -> Received {
        let line = self.cursor.line(COUNTERS_WORD / LINE_WORDS);
        Received {
            messages: line.load(0),
            bytes: line.load(1),
            ..self.counts
        }
    }

    /// Shows all that is counted in its own page.
    fn publish_counts(&self) {
        self.received().publish(&self.cursor);
    }

    /// How many messages were taken.
    fn messages(&self) -> u64 {
        self.cursor.line(COUNTERS_WORD / LINE_WORDS).load(0)
    }

    /// How large the slots are.
    pub fn inline(&self) -> Inline {
        self.inline
    }

    /// The line that slot number `n` begins with.
    #[inline]
    fn line_of(&self, n: u64) -> usize {
        line_of(n, self.capacity, self.inline)
    }

    /// The number of the slot that the next message begins at.
    pub fn next_slot(&self) -> u64 {
        self.next
    }

    /// Hands the next message, if there is one, to `take`. Never blocks, and needs no heap for a message of one slot.
    #[inline]
    pub fn try_recv_with<R>(
        &mut self,
        take: impl FnOnce(Tag, &[u8]) -> R,
    ) -> Result<Option<R>, RecvError> {
        match self.inline {
            Inline::Small => {
                if let Some(plain) = self.take_plainly::<OneLine>() {
                    return Ok(Some(take(plain.tag, plain.payload())));
                }
            }
            Inline::Wide => {
                if let Some(plain) = self.take_plainly::<TwoLines>() {
                    return Ok(Some(take(plain.tag, plain.payload())));
                }
            }
        }
        if !self.poll()? {
            return Ok(None);
        }
        self.take_closely(take).map(Some)
    }

    /// Takes the next message into `buffer`, which is cleared first. `None`: there is none. Never blocks.
    #[inline]
    pub fn try_recv(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Tag>, RecvError> {
        self.try_recv_with(|tag, payload| fill(buffer, tag, payload))
    }

    /// As [`Self::try_recv_with`], waiting up to `timeout`. After the lane was closed, first gives what had been
    /// committed.
    #[inline]
    pub fn recv_with<R>(
        &mut self,
        timeout: Duration,
        take: impl FnOnce(Tag, &[u8]) -> R,
    ) -> Result<R, RecvError> {
        match self.inline {
            Inline::Small => self.recv_in::<OneLine, R>(timeout, take),
            Inline::Wide => self.recv_in::<TwoLines, R>(timeout, take),
        }
    }

    #[inline(always)]
    fn recv_in<S: Slot, R>(
        &mut self,
        timeout: Duration,
        take: impl FnOnce(Tag, &[u8]) -> R,
    ) -> Result<R, RecvError> {
        match self.glance::<S>() {
            Some(plain) => Ok(take(plain.tag, plain.payload())),
            None => {
                if !self.poll()? {
                    self.wait(timeout)?;
                }
                self.take_closely(take)
            }
        }
    }

    /// The next message, if it is a plain one, waiting for a moment: whoever looks at nothing else takes a message that is
    /// under way already the moment that it comes.
    #[inline(always)]
    fn glance<S: Slot>(&mut self) -> Option<Plain<S>> {
        let next = self.next;
        if next == self.quick_until || self.closer.status().is_some() {
            return None;
        }
        let empty = empty(next, self.capacity);
        let at = line_of(next, self.capacity, S::INLINE);
        // SYNC: commit.
        let mut found = self.data.line(at)[SEQUENCE].load(Ordering::Acquire);
        if found == empty && next.wrapping_sub(self.published) >= self.idle_step {
            self.publish();
            if next == self.quick_until {
                return None;
            }
        }
        let line = self.data.line(at);
        let mut left = self.patience.glances();
        while found == empty && left > 0 {
            left -= 1;
            // Each look takes the line away from the producer, who may be filling it.
            spin_loop();
            // SYNC: commit. Pairs with the release store in `Producer::fill`.
            found = line[SEQUENCE].load(Ordering::Acquire);
        }
        if found != committed(next) {
            return None;
        }
        let plain = self.plain_in(line, at)?;
        self.next = next.wrapping_add(1);
        Some(plain)
    }

    /// The message in slot number `next`, which is committed, whatever it is.
    fn take_closely<R>(&mut self, take: impl FnOnce(Tag, &[u8]) -> R) -> Result<R, RecvError> {
        let slot = self.next;
        let taken = self.take(plainly(take))?;
        self.release();
        taken.ok_or_else(|| self.refuse_reference(slot))
    }

    /// As [`Self::glance`], without waiting.
    #[inline(always)]
    fn take_plainly<S: Slot>(&mut self) -> Option<Plain<S>> {
        let next = self.next;
        let plain = self.plain_at(next)?;
        self.next = next.wrapping_add(1);
        Some(plain)
    }

    /// A copy of the message in slot number `next`, and counts it: if it is there, has nothing but what one slot holds, and
    /// the lane is open.
    #[inline(always)]
    fn plain_at<S: Slot>(&self, next: u64) -> Option<Plain<S>> {
        let at = line_of(next, self.capacity, S::INLINE);
        let line = self.data.line(at);
        // SYNC: commit. Pairs with the release store in `Producer::fill`.
        if self.closer.status().is_some()
            || line[SEQUENCE].load(Ordering::Acquire) != committed(next)
            || next == self.quick_until
        {
            return None;
        }
        self.plain_in(line, at)
    }

    /// A copy of the committed message in `line`, which is number `at`, and counts it, if it has nothing but what one slot
    /// holds.
    #[inline(always)]
    fn plain_in<S: Slot>(&self, line: &Line, at: usize) -> Option<Plain<S>> {
        let head = Head(line[HEAD].load(Ordering::Relaxed));
        let len = head.plain_in(S::INLINE)?;
        let words = S::words(&self.data, line, at, len);
        self.count(len);
        Some(Plain {
            tag: head.tag(),
            len,
            words,
        })
    }

    /// Counts a message where all can see it, and nowhere else.
    #[inline(always)]
    fn count(&self, bytes: usize) {
        let line = self.cursor.line(COUNTERS_WORD / LINE_WORDS);
        let [messages, before] = [line.load(0), line.load(1)];
        line.store(0, messages.wrapping_add(1), Ordering::Relaxed);
        line.store(1, before.wrapping_add(bytes as u64), Ordering::Relaxed);
    }

    /// Finds out up to where nothing is to be done but to copy and to count: the message there carries a stamp, or fills a
    /// step.
    fn plan(&mut self) {
        let to_stamp = if self.slept {
            0
        } else {
            stamp::until_due(self.messages())
        };
        let unpublished = self.next.wrapping_sub(self.published);
        let to_step = self.step.saturating_sub(unpublished.saturating_add(1));
        self.quick_until = self.next.wrapping_add(to_stamp.min(to_step));
    }

    /// As [`Self::recv_with`], into `buffer`, which is cleared first.
    #[inline]
    pub fn recv(&mut self, buffer: &mut Vec<u8>, timeout: Duration) -> Result<Tag, RecvError> {
        self.recv_with(timeout, |tag, payload| fill(buffer, tag, payload))
    }

    /// Hands up to `max` messages to `take`, as many as there are, and says how many. Never blocks. An error
    /// ends the batch; messages before it have been handed over.
    #[inline]
    pub fn for_each(
        &mut self,
        max: usize,
        mut take: impl FnMut(Tag, &[u8]),
    ) -> Result<usize, RecvError> {
        let mut taken = 0;
        while taken < max && self.poll()? {
            let slot = self.next;
            match self.take(plainly(&mut take)) {
                Ok(Some(())) => taken += 1,
                Ok(None) => return Err(self.refuse_reference(slot)),
                Err(error) => {
                    self.release();
                    return Err(error);
                }
            }
            if self.next.wrapping_sub(self.published) >= self.step {
                self.publish();
            }
        }
        self.release();
        Ok(taken)
    }

    /// As [`Self::try_recv_with`], with all that a message says, references included. Its slots count as read
    /// from the next receive, wait or [`Self::release`] on, not before: what it refers to can be copied meanwhile.
    #[inline]
    pub fn try_next<R>(
        &mut self,
        take: impl FnOnce(Message<'_>) -> R,
    ) -> Result<Option<R>, RecvError> {
        if !self.poll()? {
            return Ok(None);
        }
        self.take(take).map(Some)
    }

    /// As [`Self::try_next`], waiting up to `timeout`.
    #[inline]
    pub fn next<R>(
        &mut self,
        timeout: Duration,
        take: impl FnOnce(Message<'_>) -> R,
    ) -> Result<R, RecvError> {
        if !self.poll()? {
            self.wait(timeout)?;
        }
        self.take(take)
    }

    /// All messages taken so far are done with: tells the producer when a step is full.
    #[inline]
    pub fn release(&mut self) {
        if self.next.wrapping_sub(self.published) >= self.step {
            self.publish();
        } else {
            self.plan();
        }
    }

    /// The bytes of the reference that comes next, if it is there already, and asks for the slot behind it. Takes nothing.
    pub(crate) fn peek_reference(&self) -> Option<[u8; 32]> {
        let line = self.data.line(self.line_of(self.next));
        self.data.prefetch(self.line_of(self.next.wrapping_add(1)));
        if line[SEQUENCE].load(Ordering::Acquire) != committed(self.next) {
            return None;
        }
        let head = Head(line[HEAD].load(Ordering::Relaxed));
        if !head.has(REFERENCE) || head.single().is_none() {
            return None;
        }
        let words = [load_pair(line, INLINE), load_pair(line, INLINE + 2)];
        words.as_bytes().try_into().ok()
    }

    /// Counts a message that was taken as one that was refused.
    pub fn refuse(&mut self) {
        self.counts.refused = self.counts.refused.wrapping_add(1);
        self.publish_counts();
    }

    /// Allows the producer `slots` more, as far as there is room; says how many. Nothing is left to grant where
    /// credit is automatic.
    pub fn grant(&mut self, slots: u64) -> u64 {
        if self.credit == Credit::Automatic {
            return 0;
        }
        self.publish();
        let lap = self.capacity as u64;
        let most = self.next.wrapping_add(lap);
        // A producer that took more than it was given has had that.
        let open = most.wrapping_sub(self.limit).min(lap);
        self.limit = most.wrapping_sub(open);
        let granted = slots.min(open);
        if granted > 0 {
            self.limit = self.limit.wrapping_add(granted);
            // SYNC: limit. Pairs with the acquire load in `Producer::look_at_cursor`.
            self.cursor.store(LIMIT_WORD, self.limit, Ordering::Release);
            self.wake_producer(LIMIT_WORD);
        }
        granted
    }

    /// Is there a message? Ends what a close has ended.
    #[inline(always)]
    fn poll(&mut self) -> Result<bool, RecvError> {
        // Before the look at the slot: a message committed before the close must be seen.
        let closed = self.closer.status();
        if closed.is_none() && self.sequence() == committed(self.next) {
            return Ok(true);
        }
        self.poll_closely(closed)
    }

    /// The sequence in slot number `next`.
    #[inline]
    fn sequence(&self) -> u64 {
        let line = self.data.line(self.line_of(self.next));
        // SYNC: commit. Pairs with the release store in `Producer::fill`.
        line[SEQUENCE].load(Ordering::Acquire)
    }

    /// The rest of [`Self::poll`], for a lane that is closed, empty or corrupt.
    #[inline(never)]
    fn poll_closely(&mut self, closed: Option<Status>) -> Result<bool, RecvError> {
        if let Some(status) = closed {
            self.may_drain(status)?;
        }
        let found = self.sequence();
        if found == committed(self.next) {
            return Ok(true);
        }
        if found != empty(self.next, self.capacity) {
            return Err(self.corrupt(RecvError::Sequence {
                slot: self.next,
                found,
            }));
        }
        match closed {
            Some(status) => Err(self.end(status)),
            None => {
                self.publish();
                Ok(false)
            }
        }
    }

    /// Takes nothing more, and says so where the producer can see it: what is committed behind this position is the
    /// producer's to send elsewhere ([`super::Producer::settle`]).
    #[cold]
    fn end(&mut self, status: Status) -> RecvError {
        if !self.done {
            self.done = true;
            self.publish();
            // SYNC: done. Pairs with the acquire load in `Producer::settle`, which then finds the final position.
            self.cursor.store(DONE_WORD, 1, Ordering::Release);
            self.wake_producer(DONE_WORD);
        }
        RecvError::Closed(status)
    }

    /// The lane was closed: what was committed by then is still received, which can't be more than a lap.
    #[cold]
    fn may_drain(&mut self, status: Status) -> Result<(), RecvError> {
        let lap = self.next.wrapping_add(self.capacity as u64);
        let end = *self.drain_to.get_or_insert(lap);
        let left = end.wrapping_sub(self.next);
        let revoked = matches!(status, Status::DENIED | Status::MALFORMED);
        // A message may reach beyond the end, but none begins there.
        if self.done || revoked || left == 0 || left > self.capacity as u64 {
            return Err(self.end(status));
        }
        Ok(())
    }

    #[cold]
    fn corrupt(&self, error: RecvError) -> RecvError {
        self.closer.close(Status::MALFORMED);
        error
    }

    /// Copies the message in slot number `next`, which is committed, and goes on behind it.
    #[inline]
    fn take<R>(&mut self, take: impl FnOnce(Message<'_>) -> R) -> Result<R, RecvError> {
        let slot = self.next;
        let line = self.data.line(self.line_of(slot));
        let head = Head(line[HEAD].load(Ordering::Relaxed));
        let Some(len) = head.single() else {
            if self.inline == Inline::Wide
                && let Some(len) = head.plain_in(Inline::Wide)
            {
                let words = TwoLines::words(&self.data, line, self.line_of(slot), len);
                self.advance(1, len);
                return Ok(take(Message {
                    tag: head.tag(),
                    slot,
                    reference: false,
                    ext: None,
                    payload: &words.as_bytes()[..len],
                }));
            }
            let long = self.take_long(head)?;
            let payload = &self.scratch.as_bytes()[..head.len()];
            return Ok(take(Message {
                tag: long.head.tag(),
                slot: long.slot,
                reference: long.head.has(REFERENCE),
                ext: long.ext,
                payload,
            }));
        };
        let words = inline_words(line);
        self.advance(1, len);
        Ok(take(Message {
            tag: head.tag(),
            slot,
            reference: head.has(REFERENCE),
            ext: None,
            payload: &words.as_bytes()[..len],
        }))
    }

    /// The general form of [`Self::take`]: puts the payload into the scratch.
    #[cold]
    #[inline(never)]
    fn take_long(&mut self, head: Head) -> Result<Long, RecvError> {
        let (slot, len, has_ext) = (self.next, head.len(), head.has(EXT));
        if len > longest(self.inline, self.capacity, has_ext) {
            return Err(self.corrupt(RecvError::Length { slot, len }));
        }
        let line = self.data.line(self.line_of(slot));
        let mut ext = None;
        let mut at = INLINE;
        if has_ext {
            let crc_and_flags = line[INLINE + 1].load(Ordering::Relaxed);
            ext = Some(Ext {
                sent_ns: line[INLINE].load(Ordering::Relaxed),
                crc: crc_and_flags as u32,
                high_flags: (crc_and_flags >> 32) as u32,
            });
            at += 2;
        }
        let slots = slots_for(self.inline, len, has_ext) as u64;
        let inline_words = inline_bytes(self.inline, has_ext) / 8;
        let words = len.div_ceil(8);
        let lines = Lines {
            data: &self.data,
            capacity: self.capacity,
            inline: self.inline,
        };
        let (first, rest) = self.scratch[..words].split_at_mut(inline_words.min(words));
        lines.gather(slot, at, first);
        for (further, to) in (1..).zip(rest.chunks_mut(spill_bytes(self.inline) / 8)) {
            lines.gather(slot.wrapping_add(further), SPILL, to);
        }
        self.advance(slots, len);
        if let Some(Ext { crc: expected, .. }) = ext
            && expected != 0
        {
            let found = crc32c::crc32c(&self.scratch.as_bytes()[..len]);
            if found != expected {
                self.refuse();
                return Err(RecvError::CheckSum {
                    slot,
                    found,
                    expected,
                });
            }
        }
        Ok(Long { head, slot, ext })
    }

    #[inline]
    fn advance(&mut self, slots: u64, bytes: usize) {
        if self.slept || stamp::until_due(self.messages()) == 0 {
            self.slept = false;
            self.sample();
        }
        self.next = self.next.wrapping_add(slots);
        // Until somebody plans.
        self.quick_until = self.next;
        self.count(bytes);
    }

    /// The next message in the count has been taken: how long was it under way, if its stamp is still there?
    #[inline(never)]
    fn sample(&self) {
        // The checker's pages have no room for a histogram.
        #[cfg(not(loom))]
        if let Some(ns) = stamp::latency(&self.data, self.messages()) {
            histogram::record(&self.cursor, ns);
        }
    }

    #[cold]
    fn refuse_reference(&mut self, slot: u64) -> RecvError {
        self.refuse();
        self.release();
        RecvError::Reference { slot }
    }

    /// Waits until there is a message.
    #[cold]
    fn wait(&mut self, timeout: Duration) -> Result<(), RecvError> {
        let mut deadline = Deadline::after(timeout);
        let mut spin = self.patience.begin();
        let mut slept = Slept::No;
        loop {
            if self.poll()? {
                self.patience.learn(slept);
                return Ok(());
            }
            match self.stare(&mut spin) {
                Step::Look => continue,
                _ if deadline.passed() => return Err(RecvError::TimedOut),
                Step::Clock => continue,
                Step::Sleep => {}
            }
            slept = Slept::Yes;
            self.counts.sleeps += 1;
            self.publish_counts();
            self.arm(Park::Futex);
            self.patience.barrier();
            // The kernel looks at the word once more before it sleeps.
            let Watch { word, seen } = self.watch();
            sleep(word, seen, &self.closer, deadline.instant());
            self.disarm();
        }
    }

    /// Looks at nothing but the empty slot and the closer, until one of them has changed (`Look`) or it is time for
    /// something else.
    #[inline]
    fn stare(&self, spin: &mut Spin) -> Step {
        let empty = empty(self.next, self.capacity);
        loop {
            let step = spin.step();
            if step != Step::Look {
                return step;
            }
            // First a pause: each look takes the line away from the producer, who may be filling it.
            spin_loop();
            if self.sequence() != empty || self.closer.status().is_some() {
                return Step::Look;
            }
        }
    }

    /// Tells the producer how far the slots are free again, without waiting for a step to be full.
    pub fn publish(&mut self) {
        if self.published == self.next {
            return;
        }
        self.published = self.next;
        // SYNC: consumed. Pairs with the acquire load in `Producer::look_at_cursor`; before the limit, so that
        // nobody sees a limit without the position that justifies it.
        self.cursor
            .store(CONSUMED_WORD, self.next, Ordering::Release);
        match self.credit {
            Credit::Automatic => {
                self.limit = self.next.wrapping_add(self.capacity as u64);
                // SYNC: limit. Pairs with the acquire load in `Producer::look_at_cursor`.
                self.cursor.store(LIMIT_WORD, self.limit, Ordering::Release);
                self.wake_producer(LIMIT_WORD);
            }
            Credit::Manual => self.wake_producer(CONSUMED_WORD),
        }
        self.plan();
    }

    /// After a store into the word that the producer may be sleeping on.
    fn wake_producer(&mut self, word: usize) {
        let how = self.look.parked(&self.data);
        if how == parked::AWAKE {
            return;
        }
        self.counts.wakes += 1;
        self.publish_counts();
        match how {
            // One that is still on its way is rung when it comes.
            parked::BELL => self.ringer.ring(),
            _ => wake_word(self.cursor.word(word)),
        }
    }
}

/// What the simple receives do with a message: `None` if it is a reference, which they can't follow.
#[inline]
fn plainly<R>(take: impl FnOnce(Tag, &[u8]) -> R) -> impl FnOnce(Message<'_>) -> Option<R> {
    move |message| (!message.reference).then(|| take(message.tag, message.payload))
}

#[inline]
fn fill(buffer: &mut Vec<u8>, tag: Tag, payload: &[u8]) -> Tag {
    buffer.clear();
    buffer.extend_from_slice(payload);
    tag
}

impl<D: Words, C: Words> Drop for Consumer<D, C> {
    fn drop(&mut self) {
        // Whatever the closer says: nobody is left to take anything.
        self.end(Status::OK);
    }
}
