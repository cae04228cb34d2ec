//! The ring protocol: how messages get into slots and out again. See the module's parent for the layout.
//!
//! Message numbers count slots from 0 and never wrap (2^64 slots outlast any machine). Slot `n % capacity`
//! carries sequence `n + 1` once slot number `n` is committed, and before that the value of the lap before
//! (`n + 1 - capacity`, or 0 in the first lap). Any other value is the work of a broken or hostile peer.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::{
    CURSOR_MAGIC, DATA_MAGIC, INLINE_BYTES, LayoutError, MESSAGE_MAX, SLOT_WORDS, SPILL_BYTES,
    check_capacity, cursor_words, data_words,
};
pub use crate::channel::Tag;
use crate::message::Status;
use crate::shm::PAGE_WORDS;
use crate::shm::atomics::{Ordering, fence};
use crate::shm::counters::{CAPACITY_WORD, LIMIT_WORD, MAGIC_WORD, PARKED_WORD, parked};
use crate::shm::park::{Closer, sleep, wake_word};
use crate::shm::region::{Own, Peers, Words};
use crate::wait::{Bell, Park, Parking, Ringer, Source, Watch};

/// Looks before sleeping: about one wake-up's cost.
#[cfg(not(loom))]
const SPINS: u32 = 200;
/// The checker tries every schedule; looking twice only makes more of them.
#[cfg(loom)]
const SPINS: u32 = 0;

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    #[error("the lane is full")]
    Full,
    #[error(
        "a message of {len} bytes is over this lane's limit of {limit}; send it over the socket"
    )]
    TooLong { len: usize, limit: usize },
    #[error("the lane is closed: {0}")]
    Closed(Status),
    #[error("the consumer's cursor is {found}, not between {low} and {high}")]
    Corrupt { found: u64, low: u64, high: u64 },
}

/// Why no message was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    #[error("nothing came in time")]
    TimedOut,
    #[error("the lane is closed: {0}")]
    Closed(Status),
    #[error("slot {slot} holds sequence {found}, which is neither empty nor committed")]
    Sequence { slot: u64, found: u64 },
    #[error("slot {slot} claims {len} bytes, more than the lane can hold")]
    Length { slot: u64, len: usize },
}

/// Slots that a message of `len` bytes takes.
fn slots_for(len: usize) -> usize {
    1 + len.saturating_sub(INLINE_BYTES).div_ceil(SPILL_BYTES)
}

/// Longest message of a lane with `capacity` slots.
pub fn message_limit(capacity: usize) -> usize {
    (INLINE_BYTES + (capacity - 1) * SPILL_BYTES).min(MESSAGE_MAX)
}

/// Where slot number `n` is, in words.
fn slot_at(n: u64, capacity: usize) -> usize {
    PAGE_WORDS + (n as usize & (capacity - 1)) * SLOT_WORDS
}

/// The sending end.
#[derive(Debug)]
pub struct Producer<D, C> {
    data: Own<D>,
    cursor: Peers<C>,
    capacity: usize,
    /// The next slot number to write.
    next: u64,
    /// How far the consumer had read when last looked.
    consumed: u64,
    closer: Closer,
    /// Rung when the consumer says that it waits for its bell.
    ringer: Option<Ringer>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Consumer<D, C> {
    data: Peers<D>,
    cursor: Own<C>,
    capacity: usize,
    /// The next slot number to read.
    next: u64,
    /// What the cursor says: published in steps, to keep its line out of the producer's way.
    published: u64,
    closer: Closer,
    /// What the producer rings while this end waits in an event loop.
    bell: Option<Bell>,
}

/// Writes the header of fresh (zeroed) data memory.
pub fn format_data<D: Words>(data: &D, capacity: usize) -> Result<(), LayoutError> {
    check_capacity(capacity as u64)?;
    let words = data.words();
    check_size(words.len(), data_words(capacity))?;
    words[MAGIC_WORD].store(DATA_MAGIC, Ordering::Relaxed);
    words[CAPACITY_WORD].store(capacity as u64, Ordering::Relaxed);
    Ok(())
}

/// Writes the header of fresh (zeroed) cursor memory.
pub fn format_cursor<C: Words>(cursor: &C) -> Result<(), LayoutError> {
    let words = cursor.words();
    check_size(words.len(), cursor_words())?;
    words[MAGIC_WORD].store(CURSOR_MAGIC, Ordering::Relaxed);
    Ok(())
}

fn check_size(found: usize, expected: usize) -> Result<(), LayoutError> {
    if found == expected {
        Ok(())
    } else {
        Err(LayoutError::Size {
            found: found as u64 * 8,
            expected: expected as u64 * 8,
        })
    }
}

fn check_magic(found: u64, expected: u64) -> Result<(), LayoutError> {
    if found == expected {
        Ok(())
    } else {
        Err(LayoutError::Magic { found, expected })
    }
}

impl<D: Words, C: Words> Producer<D, C> {
    /// Takes its own formatted data memory and the consumer's cursor memory.
    pub fn new(data: D, cursor: C, closer: Closer) -> Result<Self, LayoutError> {
        let (data, cursor) = (Own(data), Peers(cursor));
        let capacity = check_capacity(data.load(CAPACITY_WORD, Ordering::Relaxed))?;
        check_size(data.len(), data_words(capacity))?;
        check_size(cursor.len(), cursor_words())?;
        check_magic(cursor.load(MAGIC_WORD, Ordering::Relaxed), CURSOR_MAGIC)?;
        Ok(Self {
            data,
            cursor,
            capacity,
            next: 0,
            consumed: 0,
            closer,
            ringer: None,
        })
    }

    /// Takes the copy of the consumer's bell.
    pub fn set_ringer(&mut self, ringer: Ringer) {
        self.ringer = Some(ringer);
    }

    /// Longest message that [`Self::try_send`] takes.
    pub fn message_limit(&self) -> usize {
        message_limit(self.capacity)
    }

    /// Says to this end that the lane is over.
    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Puts a message into the lane if there is room. Never blocks.
    pub fn try_send(&mut self, tag: Tag, payload: &[u8]) -> Result<(), SendError> {
        if let Some(status) = self.closer.status() {
            return Err(SendError::Closed(status));
        }
        let (len, limit) = (payload.len(), self.message_limit());
        if len > limit {
            return Err(SendError::TooLong { len, limit });
        }
        let slots = slots_for(len) as u64;
        if self.capacity as u64 - (self.next - self.consumed) < slots {
            self.look_at_cursor()?;
            if self.capacity as u64 - (self.next - self.consumed) < slots {
                return Err(SendError::Full);
            }
        }
        let (inline, mut spill) = payload.split_at(len.min(INLINE_BYTES));
        for further in 1..slots {
            let at = slot_at(self.next + further, self.capacity);
            let (now, later) = spill.split_at(spill.len().min(SPILL_BYTES));
            spill = later;
            self.write(at + 1, now);
            // No reader looks at it before the head is committed; it keeps the lap's values whole.
            self.data
                .store(at, self.next + further + 1, Ordering::Relaxed);
        }
        let at = slot_at(self.next, self.capacity);
        let head = u64::from(len as u16)
            | u64::from(tag.kind) << 16
            | u64::from(tag.flags) << 24
            | u64::from(tag.correlation) << 32;
        self.data.store(at + 1, head, Ordering::Relaxed);
        self.write(at + 2, inline);
        // SYNC: commit. Pairs with the acquire load of the sequence in `try_recv`: whoever sees it sees all
        // of the message. Whoever is killed before it has sent nothing.
        self.data.store(at, self.next + 1, Ordering::Release);
        self.next += slots;
        // SYNC: consumer-parks. The store above, then this fence, then the load; the consumer stores its flag,
        // fences, and loads the sequence. One of the two sees the other.
        fence(Ordering::SeqCst);
        match (
            self.cursor.load(PARKED_WORD, Ordering::Relaxed),
            &self.ringer,
        ) {
            (parked::AWAKE, _) => {}
            (parked::BELL, Some(ringer)) => ringer.ring(),
            _ => wake_word(self.data.word(at)),
        }
        Ok(())
    }

    /// As [`Self::try_send`], waiting up to `timeout` for room.
    pub fn send(&mut self, tag: Tag, payload: &[u8], timeout: Duration) -> Result<(), SendError> {
        let deadline = Instant::now().checked_add(timeout);
        let mut spins = 0;
        loop {
            match self.try_send(tag, payload) {
                Err(SendError::Full) => {}
                other => return other,
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(SendError::Full);
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            self.data.store(PARKED_WORD, 1, Ordering::Relaxed);
            // SYNC: producer-parks. Mirror of consumer-parks, with the cursor in the sequence's place.
            fence(Ordering::SeqCst);
            let seen = self.consumed;
            self.look_at_cursor()?;
            if self.consumed == seen {
                sleep(self.cursor.word(LIMIT_WORD), seen, &self.closer, deadline);
            }
            self.data.store(PARKED_WORD, 0, Ordering::Relaxed);
        }
    }

    fn look_at_cursor(&mut self) -> Result<(), SendError> {
        // SYNC: consumed. Pairs with the release store in `publish`: the consumer's reads of the slots are
        // done before we write them again.
        let found = self.cursor.load(LIMIT_WORD, Ordering::Acquire);
        let (low, high) = (self.consumed, self.next);
        if !(low..=high).contains(&found) {
            self.closer.close(Status::MALFORMED);
            return Err(SendError::Corrupt { found, low, high });
        }
        self.consumed = found;
        Ok(())
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        let mut at = at;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let word = u64::from_le_bytes(chunk.try_into().expect("chunks of 8"));
            self.data.store(at, word, Ordering::Relaxed);
            at += 1;
        }
        let rest = chunks.remainder();
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.data
                .store(at, u64::from_le_bytes(word), Ordering::Relaxed);
        }
    }
}

impl<D: Words, C: Words> Consumer<D, C> {
    /// Takes the producer's data memory and its own formatted cursor memory.
    pub fn new(data: D, cursor: C, closer: Closer) -> Result<Self, LayoutError> {
        let (data, cursor) = (Peers(data), Own(cursor));
        check_magic(data.load(MAGIC_WORD, Ordering::Relaxed), DATA_MAGIC)?;
        // Read once: the producer may change the word, but not what we go by.
        let capacity = check_capacity(data.load(CAPACITY_WORD, Ordering::Relaxed))?;
        check_size(data.len(), data_words(capacity))?;
        check_size(cursor.len(), cursor_words())?;
        Ok(Self {
            data,
            cursor,
            capacity,
            next: 0,
            published: 0,
            closer,
            bell: None,
        })
    }

    /// Takes the bell of which the producer has a copy (or soon will): for waiting in an event loop, or on more
    /// channels than one futex call watches.
    pub fn set_bell(&mut self, bell: Bell) {
        self.bell = Some(bell);
    }

    /// Says to this end that the lane is over; what is committed can still be received.
    pub fn closer(&self) -> &Closer {
        &self.closer
    }

    /// Takes the next message into `buffer`, which is cleared first. `None`: there is none. Never blocks.
    pub fn try_recv(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Tag>, RecvError> {
        let capacity = self.capacity as u64;
        let at = slot_at(self.next, self.capacity);
        // SYNC: commit.
        let sequence = self.data.load(at, Ordering::Acquire);
        if sequence != self.next + 1 {
            let empty = (self.next + 1).saturating_sub(capacity);
            if sequence != empty {
                self.closer.close(Status::MALFORMED);
                return Err(RecvError::Sequence {
                    slot: self.next,
                    found: sequence,
                });
            }
            self.publish();
            return Ok(None);
        }
        let head = self.data.load(at + 1, Ordering::Relaxed);
        let len = usize::from(head as u16);
        if len > message_limit(self.capacity) {
            self.closer.close(Status::MALFORMED);
            return Err(RecvError::Length {
                slot: self.next,
                len,
            });
        }
        buffer.clear();
        buffer.reserve(len);
        self.read(at + 2, len.min(INLINE_BYTES), buffer);
        let slots = slots_for(len) as u64;
        for further in 1..slots {
            let left = len - buffer.len();
            self.read(
                slot_at(self.next + further, self.capacity) + 1,
                left.min(SPILL_BYTES),
                buffer,
            );
        }
        self.next += slots;
        if self.next - self.published >= (capacity / 4).max(1) {
            self.publish();
        }
        Ok(Some(Tag {
            kind: (head >> 16) as u8,
            flags: (head >> 24) as u8,
            correlation: (head >> 32) as u32,
        }))
    }

    /// As [`Self::try_recv`], waiting up to `timeout`. After the lane was closed, first gives what had been
    /// committed.
    pub fn recv(&mut self, buffer: &mut Vec<u8>, timeout: Duration) -> Result<Tag, RecvError> {
        let deadline = Instant::now().checked_add(timeout);
        let mut spins = 0;
        loop {
            // Before the look at the slot: a message committed before the close must be seen.
            let closed = self.closer.status();
            if let Some(tag) = self.try_recv(buffer)? {
                return Ok(tag);
            }
            if let Some(status) = closed {
                return Err(RecvError::Closed(status));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(RecvError::TimedOut);
            }
            if spins < SPINS {
                spins += 1;
                std::hint::spin_loop();
                continue;
            }
            self.cursor.store(PARKED_WORD, 1, Ordering::Relaxed);
            // SYNC: consumer-parks. See `try_send`. The kernel compares the word once more before it sleeps.
            fence(Ordering::SeqCst);
            let word = self.data.word(slot_at(self.next, self.capacity));
            let empty = (self.next + 1).saturating_sub(self.capacity as u64);
            sleep(word, empty, &self.closer, deadline);
            self.cursor.store(PARKED_WORD, 0, Ordering::Relaxed);
        }
    }

    /// Tells the producer how far the slots are free again.
    fn publish(&mut self) {
        if self.published == self.next {
            return;
        }
        self.published = self.next;
        // SYNC: consumed. Pairs with the acquire load in `look_at_cursor`.
        self.cursor.store(LIMIT_WORD, self.next, Ordering::Release);
        // SYNC: producer-parks. See `send`.
        fence(Ordering::SeqCst);
        if self.data.load(PARKED_WORD, Ordering::Relaxed) != 0 {
            wake_word(self.cursor.word(LIMIT_WORD));
        }
    }

    fn read(&self, at: usize, len: usize, buffer: &mut Vec<u8>) {
        let mut left = len;
        let mut at = at;
        while left > 0 {
            let word = self.data.load(at, Ordering::Relaxed).to_le_bytes();
            let now = left.min(8);
            buffer.extend_from_slice(&word[..now]);
            left -= now;
            at += 1;
        }
    }
}

/// Ready while there is a message, or the lane has ended.
impl<D: Words, C: Words> Source for Consumer<D, C> {
    fn watch(&self) -> Watch<'_> {
        Watch {
            word: self.data.word(slot_at(self.next, self.capacity)),
            seen: (self.next + 1).saturating_sub(self.capacity as u64),
        }
    }

    fn arm(&mut self, how: Park) {
        self.publish();
        self.cursor
            .store(PARKED_WORD, how.flag(), Ordering::Relaxed);
    }

    fn disarm(&mut self) {
        self.cursor.store(
            PARKED_WORD,
            crate::shm::counters::parked::AWAKE,
            Ordering::Relaxed,
        );
    }

    fn closer(&self) -> &Closer {
        &self.closer
    }

    fn parking(&self) -> Parking {
        Parking::Light
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }
}
