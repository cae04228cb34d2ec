//! What a third party sees of a channel: its counters, and what its reader has left behind.
//!
//! The daemon keeps one [`View`] of every lane and log, over read-only mappings of the two memories. It stops
//! nobody, writes nothing, and believes nothing: both memories may hold anything at any time, so every figure
//! is what a side says of itself, and every walk is bounded by the number of slots. Any thread. Fails only when
//! it is made.

#![forbid(unsafe_code)]

use crate::channel::slot_flags;
use crate::lane::Inline;
use crate::lane::ring::{inline_of, line_of, slots_for};
use crate::log::{self, sequence};
use crate::shm::PAGE_WORDS;
use crate::shm::atomics::Ordering;
use crate::shm::counters::{
    CAPACITY_WORD, CONSUMED_WORD, HEAD_WORD, MAGIC_WORD, PARKED_WORD, Received, SETUP_WORD, Sent,
    parked,
};
use crate::shm::histogram::Latency;
use crate::shm::region::{LINE_WORDS, Peers, Words};

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
    /// Written and not read: messages of a lane, slots of a log.
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
    inline: Inline,
    is_log: bool,
}

impl<D: Words, C: Words> View<D, C> {
    /// Looks at a channel's memories.
    pub fn new(data: D, cursor: Option<C>) -> Result<Self, ViewError> {
        let (data, cursor) = (Peers(data), cursor.map(Peers));
        let words = data.len();
        if words < PAGE_WORDS {
            return Err(ViewError::Data { words, slots: 0 });
        }
        // Read once: what the producer makes of the words later changes nothing here.
        let said = data.load(CAPACITY_WORD, Ordering::Relaxed);
        let is_log = data.load(MAGIC_WORD, Ordering::Relaxed) == log::DATA_MAGIC;
        let inline = match is_log {
            true => Inline::Small,
            false => inline_of(data.load(SETUP_WORD, Ordering::Relaxed)),
        };
        let slots = usize::try_from(said)
            .ok()
            .filter(|slots| slots.is_power_of_two())
            .filter(|slots| {
                Some(words - PAGE_WORDS) == slots.checked_mul(inline.lines() * LINE_WORDS)
            })
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
            inline,
            is_log,
        })
    }

    /// Reads everything without stopping anyone.
    pub fn snapshot(&self) -> ChannelSnapshot {
        let sleeps = |word: Option<u64>| word.is_some_and(|word| word != parked::AWAKE);
        let cursor = self.cursor.as_ref();
        let sent = Sent::read(&self.data);
        let received = cursor.map(Received::read).unwrap_or_default();
        let depth = match cursor {
            None => 0,
            Some(cursor) if self.is_log => {
                let head = self.data.load(HEAD_WORD, Ordering::Relaxed);
                head.saturating_sub(cursor.load(CONSUMED_WORD, Ordering::Relaxed))
            }
            Some(_) => sent.messages.saturating_sub(received.messages),
        };
        ChannelSnapshot {
            slots: self.slots,
            sent,
            received,
            depth: depth.min(self.slots as u64),
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
        if self.is_log {
            self.unread_in_log(consumed)
        } else {
            self.unread_in_lane(consumed)
        }
    }

    fn unread_in_lane(&self, consumed: u64) -> Unread {
        let mut unread = Unread::default();
        let (mut next, mut walked) = (consumed, 0);
        while walked < self.slots {
            let at = self.slot_at(next);
            // SYNC: commit. As a reader of the lane does.
            if self.data.load(at, Ordering::Acquire) != next.wrapping_add(1) {
                break;
            }
            let slots = self.count(at, &mut unread);
            next = next.wrapping_add(slots as u64);
            walked += slots;
        }
        unread
    }

    fn unread_in_log(&self, consumed: u64) -> Unread {
        let mut unread = Unread::default();
        // A lossy reader's place may have been overwritten: then what is there begins a lap before the head.
        let head = self.data.load(HEAD_WORD, Ordering::Acquire);
        let mut next = consumed.max(head.saturating_sub(self.slots as u64));
        // Beyond the head there may be one message that its producer was killed over; the others there are a lap old.
        let written = self.data.load(log::MESSAGES_WORD, Ordering::Acquire);
        let mut walked = 0;
        let mut expected = (next >= head).then_some(written);
        while walked < self.slots {
            let at = self.slot_at(next);
            // SYNC: commit. As a reader of the log does.
            let begins = sequence::begins(self.data.load(at, Ordering::Acquire));
            let slots = match (begins, expected) {
                // Not the first slot of a message: an overwritten one's rest, as long as none has been found.
                (None, None) if next < head => 1,
                (Some(number), expected) if expected.is_none_or(|due| due == number) => {
                    self.count(at, &mut unread)
                }
                _ => break,
            };
            if let Some(number) = begins {
                expected = number.checked_add(1);
            }
            next = next.wrapping_add(slots as u64);
            walked += slots;
        }
        unread
    }

    fn slot_at(&self, number: u64) -> usize {
        line_of(number, self.slots, self.inline) * LINE_WORDS
    }

    /// Counts the message whose head slot is at word `at`; says how many slots it takes.
    fn count(&self, at: usize, unread: &mut Unread) -> usize {
        let word = self.data.load(at + 1, Ordering::Relaxed);
        let len = usize::from(word as u16);
        let ext = (word >> 24) as u8 & slot_flags::EXT != 0;
        unread.messages += 1;
        unread.bytes += len as u64;
        slots_for(self.inline, len, ext)
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

    fn memories(slots: usize, inline: Inline) -> (Heap, Heap) {
        let (data, cursor) = (
            Heap::new(data_words(slots, inline)),
            Heap::new(cursor_words()),
        );
        format_data(&data, slots, &sending(inline)).unwrap();
        format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
        (data, cursor)
    }

    fn sending(inline: Inline) -> SenderOptions {
        SenderOptions {
            inline,
            ..SenderOptions::default()
        }
    }

    fn class(wide: bool) -> Inline {
        if wide { Inline::Wide } else { Inline::Small }
    }

    fn of(sizes: &[usize]) -> Unread {
        Unread {
            messages: sizes.len() as u64,
            bytes: sizes.iter().sum::<usize>() as u64,
        }
    }

    proptest! {
        #[test]
        fn what_a_lanes_reader_left_is_counted_exactly(
            sizes in proptest::collection::vec(0usize..400, 0..60), read in 0usize..60, before in 0usize..1500,
            wide in any::<bool>(),
        ) {
            let (data, cursor) = memories(1024, class(wide));
            let view = View::new(data.clone(), Some(cursor.clone())).unwrap();
            let closer = Closer::default;
            let mut consumer =
                Consumer::new(data.clone(), cursor.clone(), closer(), ReceiverOptions::default()).unwrap();
            let mut producer = Producer::new(data, cursor, closer(), sending(class(wide))).unwrap();
            let mut buffer = Vec::new();
            for _ in 0..before {
                producer.try_send(Tag::default(), b"an earlier lap").unwrap();
                consumer.try_recv(&mut buffer).unwrap().unwrap();
            }
            for size in &sizes {
                producer.try_send(Tag::default(), &vec![7; *size]).unwrap();
            }
            let read = read.min(sizes.len());
            for _ in 0..read {
                consumer.try_recv(&mut buffer).unwrap().unwrap();
            }
            drop(consumer);
            prop_assert_eq!(view.unread(), of(&sizes[read..]));
            prop_assert_eq!(view.snapshot().depth, (sizes.len() - read) as u64);
        }

        #[test]
        fn what_a_logs_reader_left_is_counted_exactly(
            sizes in proptest::collection::vec(0usize..400, 0..60), read in 0usize..60, before in 0usize..1500,
        ) {
            let (data, cursor) = (Heap::new(log::data_words(1024)), Heap::new(log::cursor_words()));
            log::format_data(&data, 1024).unwrap();
            let options = log::ReaderOptions { delivery: log::Delivery::Reliable, ..Default::default() };
            log::format_cursor(&cursor, &options).unwrap();
            let view = View::new(data.clone(), Some(cursor.clone())).unwrap();
            let mut writer =
                log::Writer::new(data.clone(), Closer::default(), log::WriterOptions::default()).unwrap();
            writer.attach_reader(log::ReaderId(1), cursor.clone(), log::Delivery::Reliable).unwrap();
            let mut reader = log::Reader::new(data, cursor, Closer::default(), options).unwrap();
            let mut buffer = Vec::new();
            for _ in 0..before {
                writer.try_send(Tag::default(), b"an earlier lap").unwrap();
                reader.try_recv(&mut buffer).unwrap().unwrap();
            }
            for size in &sizes {
                writer.try_send(Tag::default(), &vec![7; *size]).unwrap();
            }
            let read = read.min(sizes.len());
            for _ in 0..read {
                reader.try_recv(&mut buffer).unwrap().unwrap();
            }
            crate::wait::Source::arm(&mut reader, crate::wait::Park::Futex); // shows how far it has read
            prop_assert_eq!(view.unread(), of(&sizes[read..]));
        }

        #[test]
        fn memory_that_holds_anything_is_looked_at_without_harm(
            words in proptest::collection::vec(any::<u64>(), 64),
            at in proptest::collection::vec(0usize..PAGE_WORDS + 32, 64),
            wide in any::<bool>(),
        ) {
            let (data, cursor) = memories(2, class(wide));
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
        let blank = View::new(Heap::new(data_words(4, Inline::Small)), none.clone());
        assert!(matches!(
            blank.unwrap_err(),
            ViewError::Data { slots: 0, .. }
        ));
        // A wide lane whose page says that it is not.
        let (data, _) = memories(4, Inline::Wide);
        data.words()[SETUP_WORD].store(0, Ordering::Relaxed);
        let narrow = View::new(data, none);
        assert!(matches!(
            narrow.unwrap_err(),
            ViewError::Data { slots: 4, .. }
        ));
        let (data, _) = memories(4, Inline::Small);
        let odd = View::new(data, Some(Heap::new(PAGE_WORDS + 1)));
        assert_eq!(
            odd.unwrap_err(),
            ViewError::Cursor {
                words: PAGE_WORDS + 1
            }
        );
    }
}
