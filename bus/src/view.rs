//! What a third party sees of a channel: its counters, and what its reader has left behind.
//!
//! The daemon keeps one [`View`] of every lane and log, over read-only mappings of the two memories. It stops
//! nobody, writes nothing, and believes nothing: both memories may hold anything at any time, so every figure
//! is what a side says of itself, and every walk is bounded by the number of slots. Any thread. Fails only when
//! it is made.

#![forbid(unsafe_code)]

use crate::channel::slot_flags;
use crate::lane::{INLINE_BYTES, SLOT_BYTES, SPILL_BYTES};
use crate::shm::PAGE_WORDS;
use crate::shm::atomics::Ordering;
use crate::shm::counters::{
    CAPACITY_WORD, CONSUMED_WORD, HEAD_WORD, PARKED_WORD, Received, Sent, parked,
};
use crate::shm::histogram::Latency;
use crate::shm::region::{Peers, Words};

const SLOT_WORDS: usize = SLOT_BYTES / 8;
/// Inline bytes that a time stamp and a check sum take.
const EXT_BYTES: usize = 16;

/// The memories are not those of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    #[error("data memory of {words} words holds no {slots} slots, a power of two")]
    Data { words: usize, slots: u64 },
    #[error("cursor memory of {words} words; it has {PAGE_WORDS}")]
    Cursor { words: usize },
}

/// What a channel has to tell of itself at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChannelSnapshot {
    pub slots: usize,
    pub sent: Sent,
    pub received: Received,
    /// Slots that are written and not read.
    pub depth: u64,
    /// The producer sleeps for room.
    pub producer_parked: bool,
    /// The reader sleeps for a message.
    pub reader_parked: bool,
    /// From commit to receipt, sampled by the reader.
    pub latency: Latency,
}

/// Messages that were committed and that the reader never said it had read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    pub messages: u64,
    /// Of payload.
    pub bytes: u64,
}

/// One channel, looked at from outside.
#[derive(Debug)]
pub struct View<D, C> {
    data: Peers<D>,
    /// `None` for a log as such, which has no reader.
    cursor: Option<Peers<C>>,
    slots: usize,
}

impl<D: Words, C: Words> View<D, C> {
    /// Looks at a channel's memories.
    pub fn new(data: D, cursor: Option<C>) -> Result<Self, ViewError> {
        let (data, cursor) = (Peers(data), cursor.map(Peers));
        let words = data.len();
        if words < PAGE_WORDS {
            return Err(ViewError::Data { words, slots: 0 });
        }
        // Read once: what the producer makes of the word later changes nothing here.
        let said = data.load(CAPACITY_WORD, Ordering::Relaxed);
        let slots = usize::try_from(said)
            .ok()
            .filter(|slots| slots.is_power_of_two())
            .filter(|slots| Some(words - PAGE_WORDS) == slots.checked_mul(SLOT_WORDS))
            .ok_or(ViewError::Data { words, slots: said })?;
        if let Some(cursor) = &cursor
            && cursor.len() != PAGE_WORDS
        {
            return Err(ViewError::Cursor {
                words: cursor.len(),
            });
        }
        Ok(Self {
            data,
            cursor,
            slots,
        })
    }

    /// Reads everything without stopping anyone.
    pub fn snapshot(&self) -> ChannelSnapshot {
        let head = self.data.load(HEAD_WORD, Ordering::Relaxed);
        let sleeps = |word: Option<u64>| word.is_some_and(|word| word != parked::AWAKE);
        let cursor = self.cursor.as_ref();
        ChannelSnapshot {
            slots: self.slots,
            sent: Sent::read(&self.data),
            received: cursor.map(Received::read).unwrap_or_default(),
            depth: cursor.map_or(0, |cursor| {
                head.saturating_sub(cursor.load(CONSUMED_WORD, Ordering::Relaxed))
                    .min(self.slots as u64)
            }),
            producer_parked: sleeps(Some(self.data.load(PARKED_WORD, Ordering::Relaxed))),
            reader_parked: sleeps(cursor.map(|c| c.load(PARKED_WORD, Ordering::Relaxed))),
            latency: cursor.map(Latency::read).unwrap_or_default(),
        }
    }

    /// Counts what is committed behind the reader's cursor: exact once both sides have let go in good order.
    /// A reader that was killed may have read a few more than it had published.
    pub fn unread(&self) -> Unread {
        let Some(cursor) = &self.cursor else {
            return Unread::default();
        };
        let consumed = cursor.load(CONSUMED_WORD, Ordering::Acquire);
        let slots = self.slots as u64;
        let mut unread = Unread::default();
        // A lossy log may have gone over the reader's place: what is there still begins a lap before its head.
        let head = self.data.load(HEAD_WORD, Ordering::Acquire);
        let mut next = consumed.max(head.saturating_sub(slots));
        let end = next.saturating_add(slots);
        while next < end {
            let at = PAGE_WORDS + (next as usize & (self.slots - 1)) * SLOT_WORDS;
            // SYNC: commit. As a reader of the lane or log does.
            if self.data.load(at, Ordering::Acquire) != next.wrapping_add(1) {
                break;
            }
            let word = self.data.load(at + 1, Ordering::Relaxed);
            let len = usize::from(word as u16);
            let ext = (word >> 24) as u8 & slot_flags::EXT != 0;
            let inline = INLINE_BYTES - if ext { EXT_BYTES } else { 0 };
            unread.messages += 1;
            unread.bytes += len as u64;
            next += 1 + len.saturating_sub(inline).div_ceil(SPILL_BYTES) as u64;
        }
        unread
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::channel::Tag;
    use crate::lane::ring::{Consumer, Producer, format_cursor, format_data};
    use crate::lane::{ReceiverOptions, SenderOptions, cursor_words, data_words};
    use crate::shm::park::Closer;
    use crate::shm::region::Heap;

    fn memories(slots: usize) -> (Heap, Heap) {
        let (data, cursor) = (Heap::new(data_words(slots)), Heap::new(cursor_words()));
        format_data(&data, slots, &SenderOptions::default()).unwrap();
        format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
        (data, cursor)
    }

    proptest! {
        #[test]
        fn what_is_unread_is_counted_exactly(sizes in proptest::collection::vec(0usize..400, 0..20), read in 0usize..20) {
            let (data, cursor) = memories(256);
            let view = View::new(data.clone(), Some(cursor.clone())).unwrap();
            let (sender, receiver) = (SenderOptions::default(), ReceiverOptions::default());
            // Allows the producer its first lap.
            drop(Consumer::new(data.clone(), cursor.clone(), Closer::default(), receiver).unwrap());
            let mut producer = Producer::new(data, cursor.clone(), Closer::default(), sender).unwrap();
            for size in &sizes {
                producer.try_send(Tag::default(), &vec![7; *size]).unwrap();
            }
            let read = read.min(sizes.len());
            let slots = |len: &usize| 1 + len.saturating_sub(INLINE_BYTES).div_ceil(SPILL_BYTES);
            let consumed: usize = sizes[..read].iter().map(slots).sum();
            cursor.words()[CONSUMED_WORD].store(consumed as u64, Ordering::Relaxed);
            let left = &sizes[read..];
            prop_assert_eq!(view.unread(), Unread {
                messages: left.len() as u64,
                bytes: left.iter().sum::<usize>() as u64,
            });
        }

        #[test]
        fn memory_that_holds_anything_is_looked_at_without_harm(words in proptest::collection::vec(any::<u64>(), 64), at in proptest::collection::vec(0usize..PAGE_WORDS + 16, 64)) {
            let (data, cursor) = memories(2);
            let view = View::new(data.clone(), Some(cursor.clone())).unwrap();
            for (word, at) in words.iter().zip(&at) {
                let memory = if at % 2 == 0 { &data } else { &cursor };
                if let Some(place) = memory.words().get(*at) {
                    place.store(*word, Ordering::Relaxed);
                }
            }
            prop_assert!(view.unread().messages <= 2);
            prop_assert!(view.snapshot().depth <= 2);
        }
    }

    #[test]
    fn memory_of_the_wrong_shape_is_refused() {
        let none: Option<Heap> = None;
        let tiny = View::new(Heap::new(8), none.clone());
        assert_eq!(tiny.unwrap_err(), ViewError::Data { words: 8, slots: 0 });
        let blank = View::new(Heap::new(data_words(4)), none);
        assert!(matches!(
            blank.unwrap_err(),
            ViewError::Data { slots: 0, .. }
        ));
        let (data, _) = memories(4);
        let odd = View::new(data, Some(Heap::new(PAGE_WORDS + 1)));
        assert_eq!(
            odd.unwrap_err(),
            ViewError::Cursor {
                words: PAGE_WORDS + 1
            }
        );
    }
}
