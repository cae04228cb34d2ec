//! The sending end of a lane. See [`super`] for the protocol.
//!
//! One thread at a time; no privilege. What it reads of the consumer's page is checked before it is used: a
//! consumer that writes nonsense ends its own lane ([`SendError::Corrupt`]).

#![forbid(unsafe_code)]

mod settle;

pub use settle::SettleError;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::{
    CURSOR_MAGIC, EXT, Head, INLINE, INLINE_BYTES, Inline, LayoutError, REFERENCE, SEQUENCE, SPILL,
    SendError, SenderOptions, Tag, check_capacity, check_magic, check_setup, check_size, committed,
    cursor_words, data_words, inline_bytes, line_of, longest, parts, slots_for, spill_bytes,
};
use crate::channel::Overflow;
use crate::lane::Extension;
use crate::message::Status;
use crate::shm::atomics::{Ordering, spin_loop};
use crate::shm::clock::{Deadline, now_ns};
use crate::shm::counters::{
    CAPACITY_WORD, CONSUMED_WORD, COUNTERS_WORD, LIMIT_WORD, MAGIC_WORD, PARKED_WORD, SETUP_WORD,
    Sent, parked, setup,
};
use crate::shm::park::{Closer, sleep, wake_word};
use crate::shm::patience::{Look, Patience, Slept, Step};
use crate::shm::region::{LINE_WORDS, Own, Pairs, Peers, Words};
use crate::shm::stamp;
use crate::simd::crc32c;
use crate::wait::{Bell, Park, Parking, Ringer, RingerSlot, Source, Watch};

/// Longest first part of a message: with an extension it fills the first line.
pub(crate) const HEAD_MAX: usize = INLINE_BYTES - 16;

/// The sending end.
#[derive(Debug)]
pub struct Producer<D, C> {
    data: Own<D>,
    cursor: Peers<C>,
    capacity: usize,
    inline: Inline,
    /// Messages shorter than this go the quickest way: 0 in a lane whose slots have two lines, which has a way of its own.
    quick_below: usize,
    /// The next slot number to write, less the messages sent so far, which stand in its own page.
    base: u64,
    /// The first slot number that may not be written, when last looked.
    limit: u64,
    /// How far the consumer had read when last looked.
    consumed: u64,
    /// Until this slot number a message is nothing but to be written; there, [`Self::plan`] says why it is more.
    quick_until: u64,
    /// Two words can be stored at once ([`OwnLine::commit`]).
    pairs: Pairs,
    closer: Closer,
    look: Look,
    patience: Patience,
    /// What is counted seldom; see [`Self::sent`].
    counts: Sent,
    overflow: Overflow,
    extension: Extension,
    high_flags: u32,
    /// The slot for which the consumer was last woken: it never sleeps there again.
    woken: Option<u64>,
    /// There was no room last time, and that has been counted.
    starved: bool,
    /// The consumer raises its limit by grants only.
    manual: bool,
    /// Rung when the consumer says that it waits for its bell.
    ringer: RingerSlot,
    /// What the consumer rings while this end waits for room in an event loop.
    bell: Option<Bell>,
}

impl<D: Words, C: Words> Producer<D, C> {
    /// Takes its own data memory, formatted with the same `options`, and the consumer's cursor memory.
    pub fn new(
        data: D,
        cursor: C,
        closer: Closer,
        options: SenderOptions,
    ) -> Result<Self, LayoutError> {
        Self::starting_at(data, cursor, closer, options, 0)
    }

    pub(in crate::lane) fn starting_at(
        data: D,
        cursor: C,
        closer: Closer,
        options: SenderOptions,
        first: u64,
    ) -> Result<Self, LayoutError> {
        options.check()?;
        let (data, cursor) = (Own(data), Peers(cursor));
        let capacity = check_capacity(data.load(CAPACITY_WORD, Ordering::Relaxed))?;
        check_size(data.len(), data_words(capacity, options.inline))?;
        check_size(cursor.len(), cursor_words())?;
        check_magic(cursor.load(MAGIC_WORD, Ordering::Relaxed), CURSOR_MAGIC)?;
        let own_setup = options.setup_flags();
        check_setup(data.load(SETUP_WORD, Ordering::Relaxed), own_setup)?;
        // Read once: the consumer may change the word, but not what we go by.
        let peers_setup = cursor.load(SETUP_WORD, Ordering::Relaxed);
        Ok(Self {
            capacity,
            inline: options.inline,
            quick_below: match options.inline {
                Inline::Small => INLINE_BYTES + 1,
                Inline::Wide => 0,
            },
            base: first,
            // What the consumer allows is found out with the first message.
            limit: first,
            consumed: first,
            quick_until: first,
            pairs: data.pairs(),
            data,
            cursor,
            closer,
            look: Look::after(peers_setup),
            patience: Patience::new(options.waiting, own_setup),
            counts: Sent::default(),
            overflow: options.overflow,
            extension: options.extension,
            high_flags: 0,
            woken: None,
            starved: false,
            manual: peers_setup & setup::MANUAL_CREDIT != 0,
            ringer: RingerSlot::default(),
            bell: None,
        })
    }

    /// Takes the copy of the consumer's bell, and rings it: the consumer may be waiting for it already.
    pub fn set_ringer(&mut self, ringer: Ringer) {
        self.ringer.put(ringer);
    }

    /// Where that copy may be put from another thread, while this end sleeps.
    pub fn ringer_slot(&self) -> RingerSlot {
        self.ringer.clone()
    }

    /// Takes the bell of which the consumer has a copy (or soon will): for waiting for room in an event loop, or on more
    /// channels than one futex call watches.
    pub fn set_bell(&mut self, bell: Bell) {
        self.bell = Some(bell);
    }

    /// Slots of the lane.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Longest message that [`Self::try_send`] takes, bytes.
    pub fn message_limit(&self) -> usize {
        let ext = self.extension != Extension::None;
        longest(self.inline, self.capacity, ext)
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

    /// Says to this end that the lane is over.
    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// What this end has counted.
    pub fn sent(&self) -> Sent {
        let line = self.data.line(COUNTERS_WORD / LINE_WORDS);
        Sent {
            messages: line.load(0),
            bytes: line.load(1),
            ..self.counts
        }
    }

    /// Shows all that is counted in its own page.
    fn publish_counts(&self) {
        self.sent().publish(&self.data);
    }

    /// How many messages were sent.
    #[inline(always)]
    fn messages(&self) -> u64 {
        self.data.line(COUNTERS_WORD / LINE_WORDS).load(0)
    }

    /// The next slot number to write.
    #[inline(always)]
    fn next(&self) -> u64 {
        self.messages().wrapping_add(self.base)
    }

    /// The number of the slot that the next message begins at.
    pub fn next_slot(&self) -> u64 {
        self.next()
    }

    /// The upper flags of a frame that go with every message from now on, if this lane has an [`Extension`].
    pub fn set_high_flags(&mut self, flags: u32) {
        self.high_flags = flags;
    }

    /// Slots that the consumer has done with: what was sent before may be reused.
    pub fn consumed(&mut self) -> Result<u64, SendError> {
        self.look_at_cursor()?;
        Ok(self.consumed)
    }

    /// Would [`Self::try_send`] find room for `len` bytes now?
    pub fn room(&mut self, len: usize) -> Result<(), SendError> {
        self.check_open()?;
        let slots = self.slots_of(len)?;
        if self.limit.wrapping_sub(self.next()) < slots {
            self.find_room(slots)?;
        }
        Ok(())
    }

    /// Puts a message into the lane if there is room. Never blocks, and leaves the overflow policy to
    /// [`Self::send`].
    #[inline(always)]
    pub fn try_send(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        if self.closer.status().is_none() && self.put_plainly(tag, payload) {
            self.wake_if_parked();
            return Ok(());
        }
        self.try_send_closely(tag, payload)
    }

    /// [`Self::try_send`] where more is to be done than to fill one slot.
    #[inline(never)]
    fn try_send_closely(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        self.check_open()?;
        if self.put_widely(tag, payload) {
            self.wake_if_parked();
            return Ok(());
        }
        self.put(tag, payload)?;
        self.wake_if_parked();
        self.look_ahead();
        Ok(())
    }

    /// Puts a message of which the beginning is apart from the rest into the lane, and tells nobody: after the last of a
    /// run of them, whether or not there was room for it, [`Self::notify`] does. `head` is whole words, [`HEAD_MAX`] bytes at
    /// most. Never blocks.
    pub(crate) fn put_parts(
        &mut self,
        tag: Tag,
        head: &[u8],
        body: &[u8],
    ) -> Result<(), SendError> {
        debug_assert!(head.len() <= HEAD_MAX && head.len().is_multiple_of(8));
        self.check_open()?;
        let len = head.len() + body.len();
        if len <= INLINE_BYTES && self.extension == Extension::None {
            let mut whole = [0; INLINE_BYTES];
            whole[..head.len()].copy_from_slice(head);
            whole[head.len()..len].copy_from_slice(body);
            self.put(tag, &whole[..len])?;
        } else {
            self.put_long(tag, 0, head, body, len as u64)?;
        }
        self.look_ahead();
        Ok(())
    }

    /// Wakes the consumer if it sleeps: after [`Self::put_parts`].
    pub(crate) fn notify(&mut self) {
        self.wake_if_parked();
    }

    /// Puts as many of `messages` into the lane as there is room for, in order, and says how many. An error
    /// means that the first one was not sent. Never blocks.
    #[inline]
    pub fn try_send_batch(&mut self, messages: &[(Tag, &[u8])]) -> Result<usize, SendError> {
        self.check_open()?;
        let mut sent = 0;
        for (tag, payload) in messages {
            match self.put(*tag, payload) {
                Ok(()) => sent += 1,
                Err(error) if sent == 0 => return Err(error),
                Err(_) => break,
            }
        }
        self.wake_if_parked();
        Ok(sent)
    }

    /// As [`Self::try_send`]; if there is no room, does what the overflow policy says: waits for up to
    /// `timeout` (and then says `Full`), drops the message (`Dropped`), or closes the lane.
    #[inline(always)]
    pub fn send(&mut self, tag: Tag, payload: &[u8], timeout: Duration) -> Result<(), SendError> {
        match self.try_send(tag, payload) {
            Err(SendError::Full) => self.send_closely(tag, payload, timeout),
            other => other,
        }
    }

    /// [`Self::send`] when there was no room.
    #[cold]
    fn send_closely(
        &mut self,
        tag: Tag,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<(), SendError> {
        self.overflow(payload.len(), 1, timeout)?;
        self.try_send_closely(tag, payload)
    }

    /// Sends `messages` in order, and says how many were. Less than all: the time was up, or the rest was
    /// dropped, or the lane ended, which the next call says. An error means that none was sent.
    pub fn send_batch(
        &mut self,
        messages: &[(Tag, &[u8])],
        timeout: Duration,
    ) -> Result<usize, SendError> {
        let mut sent = 0;
        while let Some((_, payload)) = messages.get(sent) {
            let stopped = match self.try_send_batch(&messages[sent..]) {
                Ok(more) => {
                    sent += more;
                    continue;
                }
                Err(SendError::Full) => {
                    self.overflow(payload.len(), (messages.len() - sent) as u64, timeout)
                }
                Err(error) => Err(error),
            };
            match stopped {
                Ok(()) => {}
                Err(error) if sent == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(sent)
    }

    /// Sends a reference into this sender's arena. `bytes` is what it refers to, for the counters.
    pub fn try_send_reference(
        &mut self,
        tag: Tag,
        reference: &[u8; 32],
        bytes: u64,
    ) -> Result<(), SendError> {
        self.check_open()?;
        let next = self.next();
        if next == self.quick_until {
            self.put_long(tag, REFERENCE, &[], reference, bytes)?;
        } else {
            let line = self.data.line(self.line_of(next));
            line.store_bytes(INLINE, reference);
            // SYNC: commit. See `fill`.
            let head = Head::new(tag, REFERENCE, reference.len());
            line.commit([committed(next), head.0], self.pairs);
            self.advance(1, bytes);
        }
        self.wake_if_parked();
        Ok(())
    }

    /// There is no room, in the lane or in what its messages refer to: does what the overflow policy says, as
    /// [`Self::send`]. `Ok`: the consumer has gone on meanwhile, look again.
    pub fn make_room(&mut self, timeout: Duration) -> Result<(), SendError> {
        match self.overflow {
            Overflow::Block | Overflow::DropOldest => {
                self.wait_consumed(self.consumed, timeout).map(drop)
            }
            Overflow::DropNewest | Overflow::Disconnect => self.overflow(0, 1, timeout),
        }
    }

    /// Waits until the consumer has done with more than `seen` slots; says with how many.
    pub fn wait_consumed(&mut self, seen: u64, timeout: Duration) -> Result<u64, SendError> {
        // With manual credit the limit may stand still while the consumer goes on.
        let word = if self.manual {
            CONSUMED_WORD
        } else {
            LIMIT_WORD
        };
        self.wait(word, timeout, |this| {
            this.look_at_cursor()?;
            Ok((this.consumed != seen).then_some(this.consumed))
        })
    }

    #[inline]
    fn check_open(&self) -> Result<(), SendError> {
        match self.closer.status() {
            None => Ok(()),
            Some(status) => Err(SendError::Closed(status)),
        }
    }

    fn slots_of(&self, len: usize) -> Result<u64, SendError> {
        let limit = self.message_limit();
        if len > limit {
            return Err(SendError::TooLong { len, limit });
        }
        let ext = self.extension != Extension::None;
        Ok(slots_for(self.inline, len, ext) as u64)
    }

    /// Commits one message; the caller goes on to [`Self::wake_if_parked`].
    #[inline]
    fn put(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        if self.put_plainly(tag, payload) || self.put_widely(tag, payload) {
            return Ok(());
        }
        if payload.len() > self.inline.bytes() || self.extension != Extension::None {
            return self.put_long(tag, 0, &[], payload, payload.len() as u64);
        }
        if self.limit == self.next() {
            self.find_room(1)?;
        }
        self.stamp_if_due();
        match self.inline {
            Inline::Small => self.fill(tag, payload),
            Inline::Wide => self.fill_wide(tag, payload),
        }
        self.plan();
        Ok(())
    }

    /// As [`Self::put`], if it is nothing but filling one slot; otherwise does nothing.
    #[inline(always)]
    fn put_plainly(&mut self, tag: Tag, payload: &[u8]) -> bool {
        let plain = payload.len() < self.quick_below && self.next() != self.quick_until;
        if plain {
            self.fill(tag, payload);
        }
        plain
    }

    /// As [`Self::put_plainly`], in a lane whose slots have two lines.
    #[inline]
    fn put_widely(&mut self, tag: Tag, payload: &[u8]) -> bool {
        let plain = self.inline == Inline::Wide
            && payload.len() <= Inline::Wide.bytes()
            && self.next() != self.quick_until;
        if plain {
            self.fill_wide(tag, payload);
        }
        plain
    }

    /// Finds out up to where nothing is to be done but to fill a slot: the message there carries a stamp, or more must be
    /// known of how far the consumer is.
    fn plan(&mut self) {
        let next = self.next();
        let room = self.limit.wrapping_sub(next);
        let half = self.capacity as u64 / 2;
        let to_look = room
            .checked_sub(half)
            .unwrap_or_else(|| room.min(half.div_ceil(4)));
        let quick = stamp::until_due(self.messages()).min(to_look);
        self.quick_until = match self.extension {
            Extension::None => next.wrapping_add(quick),
            Extension::Time | Extension::TimeAndCrc => next,
        };
    }

    /// Looks how far the consumer is before there is no more room: after a message, while it is on its way, and not before the
    /// next one, which would wait for that line.
    fn look_ahead(&mut self) {
        if self.limit.wrapping_sub(self.next()) <= self.capacity as u64 / 2 {
            // A consumer that talks nonsense is found out when the room is needed.
            let (limit, consumed) = self.cursor_says();
            let next = self.next();
            let high = consumed.wrapping_add(self.capacity as u64);
            if is_between(self.consumed, consumed, next) && is_between(self.limit, limit, high) {
                (self.limit, self.consumed) = (limit, consumed);
            }
        }
        self.plan();
    }

    /// Fills the next slot, which is free and one line, with a message of up to 48 bytes.
    #[inline(always)]
    fn fill(&mut self, tag: Tag, payload: &[u8]) {
        let next = self.next();
        let line = self.data.line(line_of(next, self.capacity, Inline::Small));
        line.store_inline(payload);
        // SYNC: commit. Pairs with the acquire load in `Consumer::sequence`: whoever sees it sees all
        // of the message. Whoever is killed before it has sent nothing.
        let head = Head::new(tag, 0, payload.len());
        line.commit([committed(next), head.0], self.pairs);
        self.advance(1, payload.len() as u64);
    }

    /// Fills the next slot, which is free and two lines, with a message of up to 112 bytes.
    #[inline]
    fn fill_wide(&mut self, tag: Tag, payload: &[u8]) {
        let next = self.next();
        let at = line_of(next, self.capacity, Inline::Wide);
        let (inline, more) = payload.split_at(payload.len().min(INLINE_BYTES));
        // The line that is looked at comes last, and is touched once.
        if !more.is_empty() {
            self.data.line(at + 1).store_bytes(0, more);
        }
        let line = self.data.line(at);
        line.store_inline(inline);
        // SYNC: commit. See `fill`.
        let head = Head::new(tag, 0, payload.len());
        line.commit([committed(next), head.0], self.pairs);
        self.advance(1, payload.len() as u64);
    }

    /// The general form of [`Self::put`]: a message in two parts, the first of whole words and within the first slot.
    #[cold]
    #[inline(never)]
    fn put_long(
        &mut self,
        tag: Tag,
        own_flags: u8,
        front: &[u8],
        payload: &[u8],
        bytes: u64,
    ) -> Result<(), SendError> {
        let len = front.len() + payload.len();
        let slots = self.slots_of(len)?;
        if self.limit.wrapping_sub(self.next()) < slots {
            self.find_room(slots)?;
        }
        self.stamp_if_due();
        let ext = self.extension != Extension::None;
        let inline = inline_bytes(self.inline, ext) - front.len();
        let (inline, mut spill) = payload.split_at(payload.len().min(inline));
        for further in 1..slots {
            let n = self.next().wrapping_add(further);
            let (now, later) = spill.split_at(spill.len().min(spill_bytes(self.inline)));
            spill = later;
            self.spread(n, SPILL, now);
            // No reader looks at it before the head is committed; it keeps the lap's values whole.
            let line = self.data.line(self.line_of(n));
            line.store(SEQUENCE, committed(n), Ordering::Relaxed);
        }
        let line = self.data.line(self.line_of(self.next()));
        let mut at = INLINE;
        let mut own_flags = own_flags;
        if ext {
            own_flags |= EXT;
            let crc = match self.extension {
                Extension::TimeAndCrc => crc32c::append(crc32c::crc32c(front), payload),
                Extension::Time | Extension::None => 0,
            };
            line.store(at, now_ns(), Ordering::Relaxed);
            let crc_and_flags = u64::from(crc) | u64::from(self.high_flags) << 32;
            line.store(at + 1, crc_and_flags, Ordering::Relaxed);
            at += 2;
        }
        if !front.is_empty() {
            line.store_bytes(at, front);
            at += front.len() / 8;
        }
        self.spread(self.next(), at, inline);
        // SYNC: commit. See `fill`.
        let head = Head::new(tag, own_flags, len);
        line.commit([committed(self.next()), head.0], self.pairs);
        self.advance(slots, bytes);
        self.plan();
        Ok(())
    }

    /// Stores `bytes` in slot number `n`, from word `first` on, over as many of its lines as they take.
    fn spread(&self, n: u64, first: usize, mut bytes: &[u8]) {
        for (line, at, holds) in parts(self.inline, first) {
            let (now, later) = bytes.split_at(bytes.len().min(holds));
            self.data.line(self.line_of(n) + line).store_bytes(at, now);
            bytes = later;
        }
    }

    /// Goes on behind a message. Each store here and in `fill` waits in the store buffer behind the slot's line, which
    /// has to come from the consumer's cache: the fewer there are, the more messages are on their way at once. So
    /// messages and bytes are counted in one store, in the page where all can see them, and nowhere else.
    #[inline(always)]
    fn advance(&mut self, slots: u64, bytes: u64) {
        self.base = self.base.wrapping_add(slots - 1);
        let line = self.data.line(COUNTERS_WORD / LINE_WORDS);
        let [messages, before] = [line.load(0), line.load(1)];
        line.store_two(0, [messages.wrapping_add(1), before.wrapping_add(bytes)]);
    }

    /// Of every so many messages, one says when it was sent; so does one that the consumer is woken for ([`Self::wake`]),
    /// which costs far more.
    fn stamp_if_due(&self) {
        if stamp::is_due(self.messages()) {
            stamp::put(&self.data, self.messages());
        }
    }

    /// After one message or many: wakes the consumer if it sleeps.
    #[inline(always)]
    fn wake_if_parked(&mut self) {
        let parked = self.look.parked(&self.cursor);
        if parked != parked::AWAKE {
            self.wake(parked);
        }
    }

    /// The consumer said that it sleeps, before which it published for which slot.
    #[cold]
    fn wake(&mut self, how: u64) {
        let slot = self.cursor.load(CONSUMED_WORD, Ordering::Relaxed);
        let committed = self.next().wrapping_sub(slot);
        // It has all there is; or is still on its way out of a sleep that has been ended; or talks nonsense.
        if committed == 0 || committed > self.capacity as u64 || self.woken == Some(slot) {
            return;
        }
        self.woken = Some(slot);
        // Late, but the receiver looks for it only when it has been woken, or finds that it is not there.
        stamp::put(&self.data, self.messages().wrapping_sub(1));
        self.counts.wakes += 1;
        self.publish_counts();
        match how {
            // One that is still on its way is rung when it comes.
            parked::BELL => self.ringer.ring(),
            _ => wake_word(self.data.word(self.line_of(slot) * LINE_WORDS + SEQUENCE)),
        }
    }

    /// Looks for room at the consumer's; there was none when last looked.
    #[cold]
    #[inline(never)]
    fn find_room(&mut self, slots: u64) -> Result<(), SendError> {
        self.look_at_cursor()?;
        if self.limit.wrapping_sub(self.next()) >= slots {
            self.starved = false;
            return Ok(());
        }
        if !self.starved {
            self.starved = true;
            self.counts.full += 1;
            self.publish_counts();
        }
        Err(SendError::Full)
    }

    fn look_at_cursor(&mut self) -> Result<(), SendError> {
        let (limit, consumed) = self.cursor_says();
        self.consumed = self.checked("position", consumed, self.consumed, self.next())?;
        let high = consumed.wrapping_add(self.capacity as u64);
        self.limit = self.checked("limit", limit, self.limit, high)?;
        Ok(())
    }

    /// The limit and the position in the consumer's page, unchecked.
    fn cursor_says(&self) -> (u64, u64) {
        // SYNC: limit. Pairs with the release store in `Consumer::publish` and `grant`: the consumer's reads of the
        // slots are done before we write them again.
        let limit = self.cursor.load(LIMIT_WORD, Ordering::Acquire);
        // SYNC: consumed. Likewise, for what the slots refer to. Read after the limit, so never older than it.
        let consumed = self.cursor.load(CONSUMED_WORD, Ordering::Acquire);
        (limit, consumed)
    }

    /// `found`, if it is between `low` and `high` modulo 2^64.
    fn checked(
        &self,
        what: &'static str,
        found: u64,
        low: u64,
        high: u64,
    ) -> Result<u64, SendError> {
        if is_between(low, found, high) {
            return Ok(found);
        }
        self.closer.close(Status::MALFORMED);
        Err(SendError::Corrupt {
            what,
            found,
            low,
            high,
        })
    }

    /// There is no room for a message of `len` bytes, the first of `messages`.
    #[cold]
    pub(crate) fn overflow(
        &mut self,
        len: usize,
        messages: u64,
        timeout: Duration,
    ) -> Result<(), SendError> {
        match self.overflow {
            Overflow::DropNewest => {
                self.counts.dropped = self.counts.dropped.wrapping_add(messages);
                self.publish_counts();
                Err(SendError::Dropped)
            }
            Overflow::Disconnect => {
                self.closer.close(Status::QUEUE_FULL);
                Err(SendError::Closed(Status::QUEUE_FULL))
            }
            Overflow::Block | Overflow::DropOldest => {
                let slots = self.slots_of(len)?;
                self.wait(LIMIT_WORD, timeout, |this| match this.find_room(slots) {
                    Ok(()) => Ok(Some(())),
                    Err(SendError::Full) => Ok(None),
                    Err(error) => Err(error),
                })
            }
        }
    }

    /// Waits until `look` finds what it looks for, sleeping on a word of the cursor's page.
    fn wait<R>(
        &mut self,
        word: usize,
        timeout: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<R>, SendError>,
    ) -> Result<R, SendError> {
        let mut deadline = Deadline::after(timeout);
        let mut spin = self.patience.begin();
        let mut slept = Slept::No;
        loop {
            self.check_open()?;
            // What is compared when going to sleep is what was there before looking.
            let seen = self.cursor.load(word, Ordering::Relaxed);
            if let Some(found) = look(self)? {
                self.patience.learn(slept);
                return Ok(found);
            }
            let step = spin.step();
            if step != Step::Look && deadline.passed() {
                return Err(SendError::Full);
            }
            if step != Step::Sleep {
                spin_loop();
                continue;
            }
            slept = Slept::Yes;
            self.counts.sleeps += 1;
            self.publish_counts();
            self.arm(Park::Futex);
            self.patience.barrier();
            let word = self.cursor.word(word);
            sleep(word, seen, &self.closer, deadline.instant());
            self.disarm();
        }
    }
}

/// Modulo 2^64.
fn is_between(low: u64, found: u64, high: u64) -> bool {
    found.wrapping_sub(low) <= high.wrapping_sub(low)
}

/// Ready when the consumer allows more than it did when last looked, or the lane has ended.
impl<D: Words, C: Words> Source for Producer<D, C> {
    fn watch(&self) -> Watch<'_> {
        Watch {
            word: self.cursor.word(LIMIT_WORD),
            seen: self.limit,
        }
    }

    fn arm(&mut self, how: Park) {
        // SYNC: parked.
        self.data.store(PARKED_WORD, how.flag(), Ordering::Release);
    }

    fn disarm(&mut self) {
        self.data
            .store(PARKED_WORD, parked::AWAKE, Ordering::Relaxed);
    }

    fn closer(&self) -> &Closer {
        &self.closer
    }

    fn parking(&self) -> Parking {
        Parking::from_setup(self.data.load(SETUP_WORD, Ordering::Relaxed))
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }
}
