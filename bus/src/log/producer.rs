//! The sending end of a log. See the module's parent for the layout and the promises.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attached::{Attached, Stall};
use super::doorbell::Doorbell;
use super::sequence::{committed, further, writing};
use super::{
    ATTACHED_WORD, BEGUN_WORD, Delivery, HEAD, Hold, INLINE, INLINE_BYTES, LayoutError,
    MESSAGES_WORD, READERS_MAX, ReaderId, ReaderSnapshot, SEQUENCE, SERIES_WORD, SPILL,
    SPILL_BYTES, check_capacity, check_size, data_words, line_of, message_limit, slots_for,
};
use crate::channel::slot_flags::REFERENCE;
use crate::channel::{Tag, Waiting};
use crate::lane::ring::Head;
use crate::message::Status;
use crate::shm::atomics::{Ordering, fence, spin_loop};
use crate::shm::bell::Ringer;
use crate::shm::clock::Deadline;
use crate::shm::counters::{
    CAPACITY_WORD, COUNTERS_WORD, HEAD_WORD, PARKED_WORD, SETUP_WORD, Sent, parked,
};
use crate::shm::park::{Closer, sleep, wake_word};
use crate::shm::patience::{Patience, Slept, Step, setup_flags};
use crate::shm::region::{LINE_WORDS, Own, Words};
use crate::shm::stamp;
use crate::wait::{Parking, Watch};

mod left;

pub use left::{Left, Place};

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the log is full: a reliable reader is {behind} slots behind")]
    Full { behind: u64 },
    #[error(
        "a message of {len} bytes is over this log's limit of {limit}; send it over the socket"
    )]
    TooLong { len: usize, limit: usize },
    #[error("the log is closed: {0}")]
    Closed(Status),
}

/// Why a reader was not attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Layout(LayoutError),
    #[error("the log has {READERS_MAX} readers, the most it can have; detach one first")]
    TooMany,
    #[error("reader {0:?} is attached already")]
    Twice(ReaderId),
    #[error("the reader calls itself as another does, or not at all; format its cursor page anew")]
    Key,
}

/// No reader of this log is called so; it may have been cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no reader {} is attached to this log", .0.0)]
pub struct NoSuchReader(pub ReaderId);

/// Whether a producer with many readers that sleep may start a thread that they ring, or looks at each of them
/// after every message ([`super::doorbell`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attendant {
    #[default]
    Thread,
    /// For processes that may have no threads.
    None,
}

/// How a producer behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriterOptions {
    /// How it waits for room (reliable readers only).
    pub waiting: Waiting,
    /// How long it waits for each reliable reader.
    pub hold: Hold,
    pub attendant: Attendant,
}

/// The sending end. One thread.
#[derive(Debug)]
pub struct Writer<D: Words, C: Words> {
    data: Own<Arc<D>>,
    capacity: usize,
    /// The next slot number to write.
    next: u64,
    /// The next message number.
    number: u64,
    /// Which other logs this one continues, or they it.
    series: u64,
    /// Slots that may be written before the reliable readers must be looked at.
    room: u64,
    /// How many slots a reliable reader may be behind.
    lag: u64,
    hold: Duration,
    patience: Patience,
    stall: Stall,
    readers: Vec<Attached<C>>,
    doorbell: Doorbell<D, C>,
    /// Somebody who has just been cut off may be asleep.
    wake_anyway: bool,
    cut_off: VecDeque<ReaderId>,
    attached: u64,
    sent: Sent,
    closer: Closer,
}

impl<D: Words + 'static, C: Words + 'static> Writer<D, C> {
    /// Takes its own formatted data memory. Readers are attached later, at any time.
    pub fn new(data: D, closer: Closer, options: WriterOptions) -> Result<Self, LayoutError> {
        Self::starting_at(data, closer, options, Place::default())
    }

    /// As [`Self::new`], for a log that goes on where another has ended ([`Self::left`]). Before the memory is handed over.
    pub fn starting_at(
        data: D,
        closer: Closer,
        options: WriterOptions,
        place: Place,
    ) -> Result<Self, LayoutError> {
        let data = Own(Arc::new(data));
        let capacity = check_capacity(data.load(CAPACITY_WORD, Ordering::Relaxed))?;
        check_size(data.len(), data_words(capacity))?;
        let (low, high) = (capacity as u64 / 2, capacity as u64);
        let lag = options.hold.lag.unwrap_or(high);
        if !(low..=high).contains(&lag) {
            return Err(LayoutError::Lag {
                found: lag,
                low,
                high,
            });
        }
        let own_setup = setup_flags(options.waiting);
        data.store(SETUP_WORD, own_setup, Ordering::Relaxed);
        data.store(SERIES_WORD, place.series, Ordering::Relaxed);
        data.store(BEGUN_WORD, place.slot, Ordering::Relaxed);
        data.store(MESSAGES_WORD, place.number, Ordering::Relaxed);
        data.store(HEAD_WORD, place.slot, Ordering::Relaxed);
        Ok(Self {
            doorbell: Doorbell::new(Arc::clone(&data.0), options.attendant),
            data,
            capacity,
            next: place.slot,
            number: place.number,
            series: place.series,
            room: u64::MAX,
            lag,
            hold: options.hold.time,
            patience: Patience::new(options.waiting, own_setup),
            stall: Stall::default(),
            readers: Vec::with_capacity(READERS_MAX),
            wake_anyway: false,
            cut_off: VecDeque::with_capacity(READERS_MAX),
            attached: 0,
            sent: Sent::default(),
            closer,
        })
    }

    /// A lane whose overflow policy is [`crate::channel::Overflow::DropOldest`]: a log with one lossy reader, whose
    /// cursor memory this is ([`super::ReaderOptions::drop_oldest`]).
    pub fn drop_oldest(data: D, cursor: C, closer: Closer) -> Result<Self, AttachError> {
        let options = WriterOptions::default();
        let mut writer = Self::new(data, closer, options).map_err(AttachError::Layout)?;
        writer.attach_reader(ReaderId(0), cursor, Delivery::Lossy)?;
        Ok(writer)
    }

    /// Longest message that [`Self::try_send`] takes.
    pub fn message_limit(&self) -> usize {
        message_limit(self.capacity)
    }

    /// Says to this end that the log is over.
    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// What this end has counted.
    pub fn counters(&self) -> Sent {
        self.sent
    }

    /// From now on `cursor`'s reader is woken and, if reliable, waited for. `id` is the caller's choice.
    /// A lossy reader may read before this; it is not woken.
    pub fn attach_reader(
        &mut self,
        id: ReaderId,
        cursor: C,
        delivery: Delivery,
    ) -> Result<(), AttachError> {
        if self.readers.iter().any(|reader| reader.id == id) {
            return Err(AttachError::Twice(id));
        }
        let place = (0..READERS_MAX)
            .find(|place| self.readers.iter().all(|reader| reader.place() != *place))
            .ok_or(AttachError::TooMany)?;
        let reader =
            Attached::new(id, cursor, delivery, place, self.next).map_err(AttachError::Layout)?;
        let taken = |other: &Attached<C>| other.key() == reader.key();
        if reader.key() == 0 || self.readers.iter().any(taken) {
            return Err(AttachError::Key);
        }
        reader.show(&self.data, self.next, self.number);
        self.readers.push(reader);
        self.settle();
        self.attached += 1;
        // SYNC: attached.
        self.data
            .store(ATTACHED_WORD, self.attached, Ordering::Release);
        // Whoever slept before this moment was woken by nobody. Kernel calls are allowed here.
        wake_word(self.data.word(ATTACHED_WORD));
        self.doorbell.wake_missed(self.next);
        Ok(())
    }

    /// What to ring for a reader that sleeps in an event loop.
    pub fn set_ringer(&mut self, id: ReaderId, ringer: Ringer) -> Result<(), NoSuchReader> {
        let reader = self.readers.iter_mut().find(|reader| reader.id == id);
        reader.ok_or(NoSuchReader(id))?.set_ringer(ringer);
        self.settle();
        self.doorbell.wake_missed(self.next);
        Ok(())
    }

    /// Forgets a reader. It hears of it from whoever decided that.
    pub fn detach_reader(&mut self, id: ReaderId) -> Result<(), NoSuchReader> {
        let reader = self.readers.iter().position(|reader| reader.id == id);
        let reader = self.readers.swap_remove(reader.ok_or(NoSuchReader(id))?);
        reader.hide(&self.data);
        self.settle();
        Ok(())
    }

    /// The readers that were cut off, oldest first, each once; they are no longer attached. Their owner should
    /// hear of it ([`Status::QUEUE_FULL`]).
    pub fn next_cut_off(&mut self) -> Option<ReaderId> {
        self.cut_off.pop_front()
    }

    /// What each reader says of itself.
    pub fn readers(&self) -> impl Iterator<Item = ReaderSnapshot> {
        self.readers.iter().map(|reader| reader.snapshot(self.next))
    }

    /// Puts a message into the log unless a reliable reader is too far behind. Never blocks.
    pub fn try_send(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        self.put(tag, payload)?;
        self.wake_readers();
        Ok(())
    }

    /// Sends a reference into this sender's arena. `bytes` is what it refers to, for the counters.
    pub fn try_send_reference(
        &mut self,
        tag: Tag,
        reference: &[u8; 32],
        bytes: u64,
    ) -> Result<(), SendError> {
        self.find_room(1)?;
        self.write_one(Head::new(tag, REFERENCE, reference.len()), reference);
        self.advance(1, bytes);
        self.wake_readers();
        Ok(())
    }

    /// The number of the slot that the next message begins in.
    pub fn next_slot(&self) -> u64 {
        self.next
    }

    /// No reader will read slots below this number: all have, or they are overwritten. What such slots refer to
    /// can be used again.
    pub fn reclaimable(&mut self) -> u64 {
        let overwritten = self.next.saturating_sub(self.capacity as u64);
        let mut slowest = None;
        for reader in &mut self.readers {
            if reader.delivery == Delivery::Lossy {
                return overwritten;
            }
            let consumed = reader.look(self.next).unwrap_or(reader.consumed());
            slowest = Some(slowest.map_or(consumed, |least: u64| least.min(consumed)));
        }
        slowest.unwrap_or(overwritten)
    }

    /// Puts as many messages into the log as there is room for, all with one look at who sleeps; returns how
    /// many those are. An error is that of the first message.
    pub fn try_send_batch<'a>(
        &mut self,
        messages: impl IntoIterator<Item = (Tag, &'a [u8])>,
    ) -> Result<usize, SendError> {
        let mut done = 0;
        for (tag, payload) in messages {
            match self.put(tag, payload) {
                Ok(()) => done += 1,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        self.wake_readers();
        Ok(done)
    }

    /// As [`Self::try_send`], waiting up to `timeout` for reliable readers. One that has used up its
    /// [`Hold::time`] is cut off instead, so with a `timeout` above that this fails by closing only.
    pub fn send(&mut self, tag: Tag, payload: &[u8], timeout: Duration) -> Result<(), SendError> {
        match self.try_send(tag, payload) {
            Err(SendError::Full { .. }) => {
                let slots = slots_for(payload.len()) as u64;
                self.send_later(slots, timeout, |this| this.try_send(tag, payload))
            }
            other => other,
        }
    }

    /// As [`Self::try_send_reference`], waiting as [`Self::send`].
    pub fn send_reference(
        &mut self,
        tag: Tag,
        reference: &[u8; 32],
        bytes: u64,
        timeout: Duration,
    ) -> Result<(), SendError> {
        self.send_later(1, timeout, |this| {
            this.try_send_reference(tag, reference, bytes)
        })
    }

    #[cold]
    fn send_later(
        &mut self,
        slots: u64,
        timeout: Duration,
        mut send: impl FnMut(&mut Self) -> Result<(), SendError>,
    ) -> Result<(), SendError> {
        let mut deadline = Deadline::after(timeout);
        let mut spin = self.patience.begin();
        let mut slept = Slept::No;
        loop {
            let full = match send(self) {
                Err(full @ SendError::Full { .. }) => full,
                other => {
                    self.patience.learn(slept);
                    return other;
                }
            };
            let step = spin.step();
            if step != Step::Look && deadline.passed() {
                return Err(full);
            }
            if step != Step::Sleep {
                spin_loop();
                continue;
            }
            slept = Slept::Yes;
            self.sleep_for_room(slots, deadline.instant());
        }
    }

    /// Slots below this number have been read by every reliable reader; with none, that is all there are.
    pub fn read_by_reliable(&mut self) -> u64 {
        let next = self.next;
        let reliable = self
            .readers
            .iter_mut()
            .filter(|reader| reader.delivery == Delivery::Reliable);
        reliable
            .map(|reader| reader.look(next).unwrap_or(reader.consumed()))
            .min()
            .unwrap_or(next)
    }

    /// Waits up to `timeout` until [`Self::read_by_reliable`] is another than `seen`.
    pub fn await_reliable(&mut self, seen: u64, timeout: Duration) -> Result<u64, SendError> {
        let mut deadline = Deadline::after(timeout);
        loop {
            if let Some(status) = self.closer.status() {
                return Err(SendError::Closed(status));
            }
            let read = self.read_by_reliable();
            if read != seen {
                return Ok(read);
            }
            if deadline.passed() {
                return Err(SendError::Full {
                    behind: self.next - read,
                });
            }
            self.data
                .store(PARKED_WORD, parked::FUTEX, Ordering::Relaxed);
            // SYNC: producer-parks. As in `sleep_for_room`.
            self.patience.barrier();
            if self.read_by_reliable() == seen
                && let Some(slowest) = self.slowest_reliable()
            {
                let (word, said) = slowest.position();
                sleep(word, said, &self.closer, deadline.instant());
                self.sent.sleeps += 1;
            }
            self.data
                .store(PARKED_WORD, parked::AWAKE, Ordering::Relaxed);
        }
    }

    fn slowest_reliable(&self) -> Option<&Attached<C>> {
        let reliable = self
            .readers
            .iter()
            .filter(|reader| reader.delivery == Delivery::Reliable);
        reliable.min_by_key(|reader| reader.consumed())
    }

    /// For who waits for room where there always is some: a word that never is what was seen.
    pub(crate) fn always(&self) -> Watch<'_> {
        Watch {
            word: self.data.word(HEAD_WORD),
            seen: !self.next,
        }
    }

    /// The doorbell's thread, for the checker to run.
    #[cfg(all(test, loom))]
    pub(super) fn attendant(&self) -> impl FnOnce() + use<D, C> {
        self.doorbell.attendant()
    }

    #[inline]
    fn put(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        let len = payload.len();
        let slots = if len <= INLINE_BYTES {
            1
        } else {
            self.slots_of(len)?
        };
        self.find_room(slots)?;
        if slots == 1 {
            self.write_one(Head::new(tag, 0, len), payload);
        } else {
            self.write_many(Head::new(tag, 0, len), payload, slots);
        }
        self.advance(slots, len as u64);
        Ok(())
    }

    #[inline]
    fn find_room(&mut self, slots: u64) -> Result<(), SendError> {
        if let Some(status) = self.closer.status() {
            return Err(SendError::Closed(status));
        }
        if self.next + slots > self.room {
            self.make_room(slots)?;
        }
        Ok(())
    }

    fn slots_of(&self, len: usize) -> Result<u64, SendError> {
        let limit = self.message_limit();
        if len > limit {
            return Err(SendError::TooLong { len, limit });
        }
        Ok(slots_for(len) as u64)
    }

    /// Begins a message of so many slots.
    #[inline]
    fn begin(&self, slots: u64) {
        if stamp::is_due(self.number) {
            stamp::put(&self.data, self.number);
        }
        // SYNC: position. Begun, messages, head: a reader that finds the first and the last alike, reading them
        // in the opposite order, has the number that belongs to them (`Reader::newest`).
        let line = self.data.line(HEAD_WORD / LINE_WORDS);
        line.store(
            BEGUN_WORD % LINE_WORDS,
            self.next + slots,
            Ordering::Relaxed,
        );
    }

    /// The commonest message: all of it in one slot.
    #[inline]
    fn write_one(&self, head: Head, payload: &[u8]) {
        self.begin(1);
        let line = self.data.line(line_of(self.next, self.capacity));
        line.store(SEQUENCE, writing(self.number), Ordering::Relaxed);
        // SYNC: overwrite. The mark above comes before the payload below, for whoever sees any of the payload: pairs
        // with the acquire fence in `Reader::take`.
        fence(Ordering::Release);
        line.store(HEAD, head.0, Ordering::Relaxed);
        line.store_bytes(INLINE, payload);
        // SYNC: commit. Pairs with the acquire load of the sequence in `Reader::take`: whoever sees it sees all
        // of the message. Whoever is killed before it has sent nothing.
        line.store(SEQUENCE, committed(self.number), Ordering::Release);
    }

    #[cold]
    fn write_many(&self, head: Head, payload: &[u8], slots: u64) {
        self.begin(slots);
        let line = |slot| self.data.line(line_of(self.next + slot, self.capacity));
        for slot in 0..slots {
            line(slot).store(SEQUENCE, writing(self.number), Ordering::Relaxed);
        }
        // SYNC: overwrite.
        fence(Ordering::Release);
        let (inline, mut spill) = payload.split_at(payload.len().min(INLINE_BYTES));
        for slot in 1..slots {
            let (now, later) = spill.split_at(spill.len().min(SPILL_BYTES));
            spill = later;
            line(slot).store_bytes(SPILL, now);
            line(slot).store(SEQUENCE, further(self.number), Ordering::Relaxed);
        }
        line(0).store(HEAD, head.0, Ordering::Relaxed);
        line(0).store_bytes(INLINE, inline);
        // SYNC: commit.
        line(0).store(SEQUENCE, committed(self.number), Ordering::Release);
    }

    /// A message is committed: says so to whoever does not look at its slot.
    #[inline]
    fn advance(&mut self, slots: u64, bytes: u64) {
        self.next += slots;
        self.number += 1;
        self.sent.messages += 1;
        self.sent.bytes = self.sent.bytes.wrapping_add(bytes);
        let line = self.data.line(HEAD_WORD / LINE_WORDS);
        // SYNC: position.
        line.store(MESSAGES_WORD % LINE_WORDS, self.number, Ordering::Release);
        line.store(HEAD_WORD % LINE_WORDS, self.next, Ordering::Release);
        // Figures are no part of the protocol: the checker would only take longer.
        if cfg!(loom) {
            return;
        }
        let counters = self.data.line(COUNTERS_WORD / LINE_WORDS);
        counters.store(0, self.sent.messages, Ordering::Relaxed);
        counters.store(1, self.sent.bytes, Ordering::Relaxed);
    }

    /// Wakes whoever sleeps and has missed something.
    #[inline]
    fn wake_readers(&mut self) {
        if self.doorbell.after(self.next) {
            self.woken();
        }
        if self.wake_anyway {
            self.wake_anyway = false;
            wake_word(self.data.word(HEAD_WORD));
        }
    }

    #[cold]
    fn woken(&mut self) {
        self.sent.wakes += 1;
        self.sent.publish(&self.data);
    }

    /// What follows from who is attached.
    fn settle(&mut self) {
        let sleepers = self.readers.iter().filter_map(Attached::sleeper).collect();
        let light = |reader: &Attached<C>| reader.parking == Parking::Light;
        self.doorbell
            .watch(sleepers, self.readers.iter().any(light));
        self.room = self.reliable_room();
    }

    fn reliable_room(&self) -> u64 {
        let reliable = self
            .readers
            .iter()
            .filter(|reader| reader.delivery == Delivery::Reliable);
        reliable
            .map(|reader| reader.consumed() + self.lag)
            .min()
            .unwrap_or(u64::MAX)
    }

    /// Looks how far the reliable readers are, and cuts off those that have held the producer up for too long.
    fn make_room(&mut self, slots: u64) -> Result<(), SendError> {
        let (next, lag, hold) = (self.next, self.lag, self.hold);
        let mut elapsed = None;
        let mut at = 0;
        while let Some(reader) = self.readers.get_mut(at) {
            if reader.delivery == Delivery::Lossy {
                at += 1;
                continue;
            }
            match reader.look(next) {
                Some(consumed) if next + slots <= consumed + lag => {
                    if next - consumed <= lag / 2 {
                        reader.forgive();
                    }
                    at += 1;
                }
                Some(_) => {
                    reader.charge(*elapsed.get_or_insert_with(|| self.stall.continues()));
                    if reader.held() >= hold {
                        self.cut_off(at);
                    } else {
                        at += 1;
                    }
                }
                None => self.cut_off(at),
            }
        }
        self.room = self.reliable_room();
        if next + slots <= self.room {
            self.stall.ends();
            return Ok(());
        }
        self.sent.full += 1;
        Err(SendError::Full {
            behind: next - (self.room - lag),
        })
    }

    fn cut_off(&mut self, at: usize) {
        let reader = self.readers.swap_remove(at);
        reader.show_cut_off(&self.data);
        self.sent.cut_off += 1;
        // Never more than there are places before the owner asks: the oldest is forgotten otherwise.
        if self.cut_off.len() == READERS_MAX {
            self.cut_off.pop_front();
        }
        self.cut_off.push_back(reader.id);
        // It may have published its position and gone to sleep after we looked. It can't be woken for sure before the
        // head changes.
        self.wake_anyway = true;
        self.settle();
    }

    fn sleep_for_room(&mut self, slots: u64, deadline: Option<Instant>) {
        self.data
            .store(PARKED_WORD, parked::FUTEX, Ordering::Relaxed);
        // SYNC: producer-parks. Flag, fence, look; a reader stores its position, fences, and looks at the flag.
        self.patience.barrier();
        if self.make_room(slots).is_err() {
            let reliable = self
                .readers
                .iter()
                .filter(|reader| reader.delivery == Delivery::Reliable);
            let behind = |reader: &&Attached<C>| self.next + slots > reader.consumed() + self.lag;
            // All that are too far behind must move, so the slowest is as good as any to sleep on; the first to have
            // used up its time ends the sleep.
            let patience = reliable
                .filter(behind)
                .map(|reader| self.hold - reader.held())
                .min();
            if let Some(slowest) = self.slowest_reliable() {
                let patience = patience.and_then(|left| Instant::now().checked_add(left));
                let until = [deadline, patience].into_iter().flatten().min();
                let (word, said) = slowest.position();
                sleep(word, said, &self.closer, until);
                self.sent.sleeps += 1;
            }
        }
        self.data
            .store(PARKED_WORD, parked::AWAKE, Ordering::Relaxed);
    }
}
