//! The receiving end of a log. See the module's parent for the layout and the promises.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::attached::place;
use super::doorbell::{flag, mode};
use super::sequence::{Found, NUMBER_MAX, begins, committed, look};
use super::{
    ATTACHED_WORD, BEGUN_WORD, CURSOR_MAGIC, DATA_MAGIC, Delivery, HEAD, INLINE, INLINE_BYTES,
    KEY_WORD, LayoutError, MESSAGES_WORD, MODE_WORD, PARKED_AT_WORD, PLACES_WORD, READERS_MAX,
    SEQUENCE, SERIES_WORD, SPILL, SPILL_BYTES, check_capacity, check_magic, check_size,
    cursor_words, data_words, line_of, message_limit, slots_for,
};
use crate::channel::slot_flags::REFERENCE;
use crate::channel::{Tag, Waiting};
use crate::lane::ring::Head;
use crate::message::Status;
use crate::shm::atomics::{Ordering, fence, spin_loop};
use crate::shm::barrier;
use crate::shm::bell::Bell;
use crate::shm::clock::Deadline;
use crate::shm::counters::{
    CAPACITY_WORD, CONSUMED_WORD, HEAD_WORD, MAGIC_WORD, PARKED_WORD, Received, SETUP_WORD, parked,
    setup,
};
use crate::shm::park::{Closer, sleep, wake_word};
use crate::shm::patience::{Look, Patience, Slept, Step};
use crate::shm::region::{Line, Own, Peers, Words};
use crate::shm::{histogram, stamp};
use crate::wait::{Park, Parking, Source, Watch};

/// How often a reader looks for a position that belongs together, before it waits for one.
const GLANCES: u32 = if cfg!(loom) { 1 } else { 8 };
/// How often a receive looks for its place anew before it leaves that to the next.
const LEAPS_MAX: u32 = 4;

/// Where a reader begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// With the next message.
    #[default]
    Head,
    /// With the oldest message that is still there.
    Oldest,
}

/// How a reader behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReaderOptions {
    pub start: Start,
    /// What it asks for; the producer must attach it as the same. A reliable one reads nothing before that.
    pub delivery: Delivery,
    pub waiting: Waiting,
}

impl ReaderOptions {
    /// For the receiving end of a lane that drops its oldest messages.
    pub const fn drop_oldest(waiting: Waiting) -> Self {
        Self {
            start: Start::Oldest,
            delivery: Delivery::Lossy,
            waiting,
        }
    }
}

/// What came with a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub tag: Tag,
    /// The payload is a reference into the producer's arena. What it refers to may be overwritten once
    /// [`Reader::still_there`] says no.
    pub reference: bool,
    /// Counted by the producer from 0, without gaps.
    pub number: u64,
    /// Messages that this reader has lost since the one before.
    pub lost: u64,
}

/// Why no message was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    #[error("nothing came in time")]
    TimedOut,
    #[error("the log is closed: {0}")]
    Closed(Status),
    #[error("cut off: this reader held its producer up for too long; follow the log anew")]
    CutOff,
    #[error("slot {slot} claims {len} bytes, more than a message of this log can have")]
    Length { slot: u64, len: usize },
    #[error("the producer says that it wrote {messages} messages in {slots} slots, which can't be")]
    Position { messages: u64, slots: u64 },
}

/// The receiving end. One thread.
#[derive(Debug)]
pub struct Reader<D, C> {
    data: Peers<D>,
    cursor: Own<C>,
    capacity: usize,
    options: ReaderOptions,
    /// The next slot number to read, and the message number that begins there.
    next: u64,
    number: u64,
    /// The message number that this reader began with.
    first: u64,
    /// The message number that a reliable reader is promised all from.
    attached_at: u64,
    /// The word where the producer says what it thinks of this (reliable) reader.
    place_at: usize,
    /// The first slot of the message that was taken last.
    taken: Option<u64>,
    /// What the cursor page says.
    published: u64,
    /// Lost since the last message.
    lost: u64,
    /// Overrun so many times in a row: the next leap leaves more room.
    overruns: u32,
    /// A reliable reader that the producer has attached, or a lossy one.
    joined: bool,
    /// After the log was closed: no message from this number on was committed before.
    drain: Option<u64>,
    /// Which other logs go on with this one's numbers, as its producer said when this reader was made.
    series: u64,
    key: u64,
    parked_at: usize,
    armed: bool,
    /// Value of the head, or of the attachments, before the last look.
    seen: u64,
    bell: Option<Bell>,
    parking: Parking,
    patience: Patience,
    received: Received,
    closer: Closer,
}

/// Writes the header of fresh (zeroed) cursor memory.
pub fn format_cursor<C: Words>(cursor: &C, options: &ReaderOptions) -> Result<(), LayoutError> {
    let words = cursor.words();
    check_size(words.len(), cursor_words())?;
    let key = fresh_key();
    let mut flags = match options.waiting {
        Waiting::Busy => setup::NEVER_PARKS,
        // One reader without the barrier would cost the producer a fence for each message to all of them.
        Waiting::Adaptive | Waiting::Blocking if barrier::register() => setup::MEMBARRIER,
        Waiting::Adaptive | Waiting::Blocking => 0,
    };
    if options.delivery == Delivery::Reliable {
        flags |= setup::RELIABLE;
    }
    words[SETUP_WORD].store(flags, Ordering::Relaxed);
    words[KEY_WORD].store(key, Ordering::Relaxed);
    words[PARKED_AT_WORD].store(flag_place(key) as u64, Ordering::Relaxed);
    words[MAGIC_WORD].store(CURSOR_MAGIC, Ordering::Relaxed);
    Ok(())
}

/// A name that no other reader of the log has. Not a secret: it is shown to all of them.
#[cfg(not(loom))]
fn fresh_key() -> u64 {
    let mut bytes = [0; 8];
    // The kernel refuses only flags that it doesn't know, and 8 bytes are never cut short.
    let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    debug_assert_eq!(drawn, Ok(8));
    u64::from_le_bytes(bytes) & !place::STATE | (place::STATE + 1)
}

/// The checker wants the same names in every run.
#[cfg(loom)]
fn fresh_key() -> u64 {
    static KEYS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    KEYS.fetch_add(1, std::sync::atomic::Ordering::Relaxed) << 2
}

/// One of the lines that may hold a parked flag.
fn flag_place(key: u64) -> usize {
    let places = || (PARKED_WORD..cursor_words()).filter(|at| super::attached::is_flag_place(*at));
    let count = places().count() as u64;
    let chosen = (key >> 2) % count;
    places().nth(chosen as usize).expect("fewer than there are")
}

impl<D: Words, C: Words> Reader<D, C> {
    /// Takes the producer's data memory and its own cursor memory, formatted with the same `options`.
    pub fn new(
        data: D,
        cursor: C,
        closer: Closer,
        options: ReaderOptions,
    ) -> Result<Self, LayoutError> {
        let (data, cursor) = (Peers(data), Own(cursor));
        check_magic(data.load(MAGIC_WORD, Ordering::Relaxed), DATA_MAGIC)?;
        // Read once: the producer may change the word, but not what we go by.
        let capacity = check_capacity(data.load(CAPACITY_WORD, Ordering::Relaxed))?;
        check_size(data.len(), data_words(capacity))?;
        check_size(cursor.len(), cursor_words())?;
        check_magic(cursor.load(MAGIC_WORD, Ordering::Relaxed), CURSOR_MAGIC)?;
        let series = data.load(SERIES_WORD, Ordering::Relaxed);
        let own_setup = cursor.load(SETUP_WORD, Ordering::Relaxed);
        let (key, parked_at) = (
            cursor.load(KEY_WORD, Ordering::Relaxed),
            cursor.load(PARKED_AT_WORD, Ordering::Relaxed) as usize,
        );
        let mut reader = Self {
            data,
            cursor,
            capacity,
            options,
            next: 0,
            number: 0,
            first: 0,
            attached_at: 0,
            place_at: PLACES_WORD,
            taken: None,
            published: 0,
            lost: 0,
            overruns: 0,
            joined: false,
            drain: None,
            series,
            key,
            parked_at,
            armed: false,
            seen: 0,
            bell: None,
            parking: Parking::from_setup(own_setup),
            patience: Patience::new(options.waiting, own_setup),
            received: Received::default(),
            closer,
        };
        if options.delivery == Delivery::Lossy
            && let Err(RecvError::Position { messages, slots }) = reader.join()
        {
            return Err(LayoutError::Position { messages, slots });
        }
        Ok(reader)
    }

    /// Says to this end that the log is over; what is committed can still be received.
    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// What this log and those that go on with its message numbers have in common, if its producer makes such
    /// ([`super::Place`]).
    pub fn series(&self) -> Option<u64> {
        (self.series != 0).then_some(self.series)
    }

    /// What the producer rings while this side waits in an event loop; a copy goes to it
    /// ([`super::Writer::set_ringer`]).
    pub fn set_bell(&mut self, bell: Bell) {
        self.bell = Some(bell);
    }

    /// What this end has counted.
    pub fn counters(&self) -> Received {
        self.received
    }

    /// The number of the next message that it will read, unless it is overrun. Less [`Self::first`] it is always
    /// what was received and what was lost.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The number of the message that this reader began with.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Takes the next message into `buffer`, which is cleared first. `None`: there is none. Never blocks. After the
    /// log was closed, first gives what had been committed; not if it was closed because this reader may no
    /// longer read it.
    pub fn try_recv(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Message>, RecvError> {
        // Before the look at the slot: a message committed before the close must be seen.
        let closed = self.closer.status();
        if let Some(status) = closed
            && !self.may_drain(status)
        {
            return Err(RecvError::Closed(status));
        }
        let taken = self.take(buffer)?;
        if taken.is_none() {
            self.publish();
            if let Some(status) = closed {
                return Err(RecvError::Closed(status));
            }
        }
        Ok(taken)
    }

    /// Is there anything left that was committed before the log was closed, and may it be read?
    #[cold]
    fn may_drain(&mut self, status: Status) -> bool {
        // One more than the producer said: it may have been killed between committing and counting.
        let limit = *self.drain.get_or_insert_with(|| {
            let messages = self.data.load(MESSAGES_WORD, Ordering::Acquire);
            messages.saturating_add(1)
        });
        status != Status::DENIED && self.number < limit
    }

    /// Was the message that was taken last still in the log after everything this side has read until now? If so,
    /// what it referred to has been read whole.
    pub fn still_there(&self) -> bool {
        let Some(slot) = self.taken else { return false };
        // SYNC: overwrite.
        fence(Ordering::Acquire);
        let line = self.data.line(line_of(slot, self.capacity));
        line[SEQUENCE].load(Ordering::Relaxed) == committed(self.number - 1)
    }

    /// Takes up to `most` messages, giving each to `each`; returns how many those were. The position is published
    /// once for all.
    pub fn try_recv_batch(
        &mut self,
        most: usize,
        buffer: &mut Vec<u8>,
        mut each: impl FnMut(Message, &[u8]),
    ) -> Result<usize, RecvError> {
        let mut done = 0;
        while done < most {
            match self.try_recv(buffer) {
                Ok(Some(message)) => each(message, buffer),
                Ok(None) => break,
                Err(error) if done == 0 => return Err(error),
                // It comes again at the next call.
                Err(_) => break,
            }
            done += 1;
        }
        self.publish();
        Ok(done)
    }

    /// As [`Self::try_recv`], waiting up to `timeout`.
    pub fn recv(&mut self, buffer: &mut Vec<u8>, timeout: Duration) -> Result<Message, RecvError> {
        match self.try_recv(buffer)? {
            Some(message) => Ok(message),
            None => self.recv_later(buffer, timeout),
        }
    }

    #[cold]
    fn recv_later(
        &mut self,
        buffer: &mut Vec<u8>,
        timeout: Duration,
    ) -> Result<Message, RecvError> {
        let mut deadline = Deadline::after(timeout);
        let mut spin = self.patience.begin();
        let mut slept = Slept::No;
        loop {
            if let Some(message) = self.try_recv(buffer)? {
                self.patience.learn(slept);
                return Ok(message);
            }
            let step = spin.step();
            if step != Step::Look && deadline.passed() {
                return Err(RecvError::TimedOut);
            }
            if step != Step::Sleep {
                spin_loop();
                continue;
            }
            slept = Slept::Yes;
            self.arm(Park::Futex);
            // SYNC: reader-parks. See `Writer::wake_readers`.
            self.patience.barrier();
            if !self.is_ready() {
                self.received.sleeps += 1;
                let Watch { word, seen } = self.watch();
                sleep(word, seen, &self.closer, deadline.instant());
            }
            self.disarm();
        }
    }

    fn looks_ready(&self) -> bool {
        if self.closer.status().is_some() {
            return true;
        }
        match (self.options.delivery, self.joined) {
            // It could not find its place in a log that was being written: it has missed nothing by sleeping.
            (Delivery::Lossy, false) => self.data.load(HEAD_WORD, Ordering::Acquire) != self.seen,
            (Delivery::Reliable, false) => {
                self.data.load(ATTACHED_WORD, Ordering::Acquire) != self.seen
            }
            (Delivery::Reliable, true) if !self.is_held() => true,
            _ => {
                // SYNC: commit.
                let line = self.data.line(line_of(self.next, self.capacity));
                let sequence = line[SEQUENCE].load(Ordering::Acquire);
                match look(sequence, self.number) {
                    Found::Ready => true,
                    Found::NotYet => false,
                    // It can leap once the message that is being written is there, which changes the head.
                    Found::Overrun => {
                        self.data.load(HEAD_WORD, Ordering::Acquire) != self.seen
                            || matches!(self.newest(), Ok(Some((_, messages))) if messages > self.number)
                    }
                }
            }
        }
    }

    /// The protocol: copies the next message, and finds out whether it was overwritten meanwhile.
    fn take(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Message>, RecvError> {
        if !self.joined && !self.join()? {
            return Ok(None);
        }
        // Bounded: a hostile producer could send its reader from place to place for ever.
        for _ in 0..LEAPS_MAX {
            let line = self.data.line(line_of(self.next, self.capacity));
            // SYNC: commit.
            let sequence = line[SEQUENCE].load(Ordering::Acquire);
            match look(sequence, self.number) {
                Found::Ready => {}
                Found::NotYet => {
                    self.overruns = 0;
                    if self.options.delivery == Delivery::Reliable && !self.is_held() {
                        return Err(self.end(RecvError::CutOff, Status::QUEUE_FULL));
                    }
                    return Ok(None);
                }
                Found::Overrun => {
                    if !self.leap()? {
                        return Ok(None);
                    }
                    continue;
                }
            }
            let head = Head(line[HEAD].load(Ordering::Relaxed));
            let len = head.len();
            let fits = len <= message_limit(self.capacity);
            if fits {
                self.copy(line, len, buffer);
            }
            // SYNC: overwrite. Whoever has copied a word of a later message sees its mark on the first slot.
            fence(Ordering::Acquire);
            if line[SEQUENCE].load(Ordering::Relaxed) != sequence {
                if !self.leap()? {
                    return Ok(None);
                }
                continue;
            }
            if !fits {
                return Err(self.corrupt(RecvError::Length {
                    slot: self.next,
                    len,
                }));
            }
            self.overruns = 0;
            if stamp::is_due(self.number)
                && let Some(ns) = stamp::latency(&self.data, self.number)
            {
                histogram::record(&self.cursor, ns);
            }
            let message = Message {
                tag: head.tag(),
                reference: head.has(REFERENCE),
                number: self.number,
                lost: std::mem::take(&mut self.lost),
            };
            self.taken = Some(self.next);
            self.next = self.next.wrapping_add(slots_for(len) as u64);
            self.number += 1;
            self.received.messages += 1;
            self.received.bytes += len as u64;
            if self.next.wrapping_sub(self.published) >= (self.capacity as u64 / 4).max(1) {
                self.publish();
            }
            return Ok(Some(message));
        }
        Ok(None)
    }

    #[inline]
    fn copy(&self, head: &Line, len: usize, buffer: &mut Vec<u8>) {
        buffer.clear();
        read(head, INLINE, len.min(INLINE_BYTES), buffer);
        for further in 1..slots_for(len) as u64 {
            let slot = self.next.wrapping_add(further);
            let line = self.data.line(line_of(slot, self.capacity));
            read(line, SPILL, (len - buffer.len()).min(SPILL_BYTES), buffer);
        }
    }

    /// Finds the place to begin at; `false`: not yet.
    fn join(&mut self) -> Result<bool, RecvError> {
        let (slots, messages) = match self.options.delivery {
            Delivery::Lossy => match self.newest()? {
                None => return Ok(false),
                Some(newest) => newest,
            },
            Delivery::Reliable => {
                // SYNC: attached. Before the look at the places: what is slept on if it finds nothing.
                self.seen = self.data.load(ATTACHED_WORD, Ordering::Acquire);
                let places = || (0..READERS_MAX).map(|place| PLACES_WORD + 3 * place);
                let Some(at) = places().find(|at| self.state_at(*at).is_some()) else {
                    return Ok(false);
                };
                self.place_at = at;
                if !self.is_held() {
                    return Err(self.end(RecvError::CutOff, Status::QUEUE_FULL));
                }
                let slots = self.data.load(at + 1, Ordering::Relaxed);
                let messages = self.data.load(at + 2, Ordering::Relaxed);
                self.attached_at = messages;
                self.position(slots, messages)?
            }
        };
        (self.next, self.number) = (slots, messages);
        if self.options.start == Start::Oldest {
            (self.next, self.number) = self.oldest(slots, messages, 0, 0);
        }
        self.first = self.number;
        self.joined = true;
        self.publish();
        Ok(true)
    }

    /// What the producer says of this reader in the place that begins at this word.
    fn state_at(&self, place: usize) -> Option<u64> {
        // SYNC: attached.
        let key = self.data.load(place, Ordering::Acquire);
        (key & !place::STATE == self.key).then_some(key & place::STATE)
    }

    fn is_held(&self) -> bool {
        self.state_at(self.place_at) == Some(place::HELD)
    }

    /// How many slots and messages the producer has written, as a pair that belongs together; `None`: it was
    /// writing just then.
    fn newest(&self) -> Result<Option<(u64, u64)>, RecvError> {
        let mut newest = None;
        for _ in 0..GLANCES {
            // SYNC: position. See `Writer::begin` and `Writer::advance`.
            let slots = self.data.load(HEAD_WORD, Ordering::Acquire);
            let messages = self.data.load(MESSAGES_WORD, Ordering::Acquire);
            if self.data.load(BEGUN_WORD, Ordering::Relaxed) == slots {
                newest = Some((slots, messages));
                break;
            }
        }
        if newest.is_none() && self.closer.status().is_some() {
            newest = Some(self.newest_of_the_dead());
        }
        newest
            .map(|(slots, messages)| self.position(slots, messages))
            .transpose()
    }

    /// A place to begin at that the producer gave, if an honest one could have.
    fn position(&self, slots: u64, messages: u64) -> Result<(u64, u64), RecvError> {
        if messages > slots || messages > NUMBER_MAX {
            return Err(self.corrupt(RecvError::Position { messages, slots }));
        }
        Ok((slots, messages))
    }

    /// As [`Self::newest`], of a producer that was killed while it wrote: nothing changes any more. It had either
    /// counted the message that begins at the head, or not.
    fn newest_of_the_dead(&self) -> (u64, u64) {
        let word = |at| self.data.load(at, Ordering::Relaxed);
        let (slots, messages) = (word(HEAD_WORD), word(MESSAGES_WORD));
        let sequence = &self.data.line(line_of(slots, self.capacity))[SEQUENCE];
        match begins(sequence.load(Ordering::Relaxed)) {
            Some(number) if number.checked_add(1) == Some(messages) => (word(BEGUN_WORD), messages),
            _ => (slots, messages),
        }
    }

    /// The oldest message that is still there, or the head, leaving out the `spare` oldest slots. Everything in
    /// the ring that was written before the head has a message number below `messages`; those below `from` are of
    /// no use.
    fn oldest(&self, slots: u64, messages: u64, from: u64, spare: u64) -> (u64, u64) {
        let first = slots
            .saturating_sub(self.capacity as u64)
            .saturating_add(spare);
        for slot in first.min(slots)..slots {
            // SYNC: commit.
            let line = self.data.line(line_of(slot, self.capacity));
            let sequence = line[SEQUENCE].load(Ordering::Acquire);
            match begins(sequence) {
                Some(number) if (from..messages).contains(&number) => {
                    return (slot, number);
                }
                _ => {}
            }
        }
        (slots, messages)
    }

    /// This reader was overrun: goes on at the oldest message, and counts those in between as lost. `false`: it
    /// could not find its place just then.
    fn leap(&mut self) -> Result<bool, RecvError> {
        // What was written before its attachment is promised to nobody.
        if self.options.delivery == Delivery::Reliable && self.number >= self.attached_at {
            // The producer waits for an attached reader, or says that it doesn't any more.
            let status = if self.is_held() {
                Status::MALFORMED
            } else {
                Status::QUEUE_FULL
            };
            return Err(self.end(RecvError::CutOff, status));
        }
        let Some((slots, messages)) = self.newest()? else {
            return Ok(false);
        };
        // It commits before it counts; the rest is on its way.
        if messages <= self.number {
            return Ok(false);
        }
        // Who is overrun again and again leaves more room each time, up to the whole ring.
        let spare = ((self.capacity as u64) << self.overruns.min(3)) / 8;
        self.overruns = self.overruns.saturating_add(1);
        let (slot, number) = self.oldest(slots, messages, self.number, spare);
        let lost = number - self.number;
        self.lost += lost;
        self.received.lost += lost;
        (self.next, self.number) = (slot, number);
        self.taken = None;
        Ok(true)
    }

    /// Ends the log for this reader.
    fn end(&self, error: RecvError, status: Status) -> RecvError {
        self.closer.close(status);
        error
    }

    fn corrupt(&self, error: RecvError) -> RecvError {
        self.end(error, Status::MALFORMED)
    }

    /// Tells the producer how far this reader is; a reliable one may be waited for.
    fn publish(&mut self) {
        if self.published == self.next || !self.joined {
            return;
        }
        // Figures are no part of the protocol: the checker would only take longer.
        if !cfg!(loom) {
            self.received.publish(&self.cursor);
        }
        self.published = self.next;
        // SYNC: consumed. Pairs with the acquire load in `Attached::look`.
        self.cursor
            .store(CONSUMED_WORD, self.next, Ordering::Release);
        if self.options.delivery == Delivery::Lossy {
            return;
        }
        // SYNC: producer-parks. See `Writer::sleep_for_room`; the fence is in `parked`.
        let look = Look::after(self.data.load(SETUP_WORD, Ordering::Relaxed));
        if look.parked(&self.data) != parked::AWAKE {
            self.received.wakes += 1;
            wake_word(self.cursor.word(CONSUMED_WORD));
        }
    }
}

impl<D: Words, C: Words> Source for Reader<D, C> {
    fn watch(&self) -> Watch<'_> {
        let word = if self.joined || self.options.delivery == Delivery::Lossy {
            HEAD_WORD
        } else {
            ATTACHED_WORD
        };
        Watch {
            word: self.data.word(word),
            seen: self.seen,
        }
    }

    fn arm(&mut self, how: Park) {
        self.publish();
        let joined = self.joined || self.options.delivery == Delivery::Lossy;
        // Before the look at the slot: whatever is committed after that look changes the head after this.
        let head = self.data.load(HEAD_WORD, Ordering::Acquire);
        if joined {
            self.seen = head;
        }
        // SYNC: parked. Who sees the flag sees the position published above.
        self.cursor
            .store(self.parked_at, flag(how.flag(), head), Ordering::Release);
        self.armed = true;
    }

    fn disarm(&mut self) {
        self.cursor
            .store(self.parked_at, parked::AWAKE, Ordering::Relaxed);
        self.armed = false;
    }

    /// While armed this also rings for a producer that does not look at flags: after the look, which says that
    /// there is nothing, before the sleep.
    fn is_ready(&self) -> bool {
        let ready = self.looks_ready();
        if !ready && self.armed && self.data.load(MODE_WORD, Ordering::Relaxed) == mode::RINGING {
            // SYNC: ring, to-ringing. The flag, the caller's barrier, then the mode above.
            wake_word(self.cursor.word(self.parked_at));
        }
        ready
    }

    fn closer(&self) -> &Closer {
        &self.closer
    }

    fn parking(&self) -> Parking {
        self.parking
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }
}

#[inline]
fn read(line: &Line, at: usize, len: usize, buffer: &mut Vec<u8>) {
    let mut bytes = [0; SPILL_BYTES];
    let words = len.div_ceil(8);
    for (to, word) in bytes
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .zip(&line[at..at + words])
    {
        *to = word.load(Ordering::Relaxed).to_le_bytes();
    }
    buffer.extend_from_slice(&bytes[..len]);
}
