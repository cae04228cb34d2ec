//! Where things are in a control page, and what a third party may learn from one.
//!
//! A channel (lane or log) has one **data** memory, whose first page its producer writes, and per reader one
//! **cursor** memory of a page, which that reader writes. Both pages are laid out alike, a cache line for
//! each thing that is written at its own pace:
//!
//! | word | data page (producer) | cursor page (reader) |
//! | --- | --- | --- |
//! | 0 | magic | magic |
//! | 1 | capacity, slots | |
//! | 2 | set-up flags ([`setup`]) | set-up flags |
//! | 8 | head: slots written (logs) | limit: slots that the producer may write in total |
//! | 9 | | consumed: slots read |
//! | 10 | | done: 1 once this reader has stopped for good, where 9 says |
//! | 16 | parked: how the producer sleeps ([`parked`]) | parked: how the reader sleeps |
//! | 24-31 | [`Sent`] | [`Received`] |
//! | 32-33 | stamp: message number, ns | |
//! | 128-511 | | latency ([`super::histogram`]) |
//!
//! Each word has one writer, so counting is a load and a store of one's own memory, and reading is a load:
//! nobody is stopped, and a reader may see one counter a message ahead of another. The writer may be
//! hostile: figures are what a side says of itself, and nothing is decided by them.

#![forbid(unsafe_code)]

use super::atomics::Ordering;
use super::region::{Own, Peers, Words};

pub const MAGIC_WORD: usize = 0;
pub const CAPACITY_WORD: usize = 1;
pub const SETUP_WORD: usize = 2;
/// Data page of a log: slots written so far. A lane's follow from its slots.
pub const HEAD_WORD: usize = 8;
/// Cursor page: slots that the producer may have written in total. What it waits on.
pub const LIMIT_WORD: usize = 8;
/// Cursor page: slots read so far.
pub const CONSUMED_WORD: usize = 9;
/// Cursor page: not 0 once the reader takes nothing more, whatever is committed; [`CONSUMED_WORD`] is final then.
pub const DONE_WORD: usize = 10;
pub const PARKED_WORD: usize = 16;
/// First of eight counters.
pub const COUNTERS_WORD: usize = 24;
/// Data page: the number of a sampled message, then when it was sent (CLOCK_MONOTONIC, ns).
pub const STAMP_WORD: usize = 32;

/// Values of [`PARKED_WORD`].
pub mod parked {
    pub const AWAKE: u64 = 0;
    /// Sleeps on a futex: wake the word that was written.
    pub const FUTEX: u64 = 1;
    /// Waits for its eventfd: ring it.
    pub const BELL: u64 = 2;
}

/// Bits of [`SETUP_WORD`], written before the memory is handed over.
pub mod setup {
    /// This side issues the process-wide barrier before it sleeps: a registered waker needs no fence.
    pub const MEMBARRIER: u64 = 1;
    /// This side never sleeps: nobody needs to look.
    pub const NEVER_PARKS: u64 = 2;
    /// Cursor page of a log: the producer waits for this reader.
    pub const RELIABLE: u64 = 4;
    /// Cursor page: the limit is raised by grants only.
    pub const MANUAL_CREDIT: u64 = 8;
    /// Data page of a lane: its slots have two lines ([`crate::channel::Inline`]).
    pub const WIDE: u64 = 16;
}

/// Every how many messages one carries a stamp; a power of two. A stamp costs its message two looks at the
/// clock and a cache line: so seldom that neither throughput nor the 99.9th percentile feels it. A lane also
/// stamps each message that its consumer has to be woken for, so that slow ones are sampled too.
pub const SAMPLE_EVERY: u64 = 1024;

/// What a producer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub messages: u64,
    /// Of payload.
    pub bytes: u64,
    /// Given up by the overflow policy.
    pub dropped: u64,
    /// Times that there was no room.
    pub full: u64,
    /// Times that it slept for room.
    pub sleeps: u64,
    /// Times that it woke a reader.
    pub wakes: u64,
    /// Readers that it cut off (reliable logs).
    pub cut_off: u64,
}

/// What a reader counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    pub messages: u64,
    /// Of payload.
    pub bytes: u64,
    /// Overwritten before it read them (lossy logs).
    pub lost: u64,
    /// Messages refused because their check sum or shape was wrong.
    pub refused: u64,
    /// Times that it slept for a message.
    pub sleeps: u64,
    /// Times that it woke the producer.
    pub wakes: u64,
}

impl Sent {
    /// Shows these figures in the producer's own page.
    #[cfg_attr(
        any(loom, not(test)),
        allow(dead_code, reason = "the rings begin to count next")
    )]
    pub(crate) fn publish<W: Words>(&self, page: &Own<W>) {
        let words = [
            self.messages,
            self.bytes,
            self.dropped,
            self.full,
            self.sleeps,
            self.wakes,
            self.cut_off,
        ];
        for (at, value) in words.into_iter().enumerate() {
            page.store(COUNTERS_WORD + at, value, Ordering::Relaxed);
        }
    }

    /// What the producer of this data page says.
    pub fn read<W: Words>(page: &Peers<W>) -> Self {
        let word = |at| page.load(COUNTERS_WORD + at, Ordering::Relaxed);
        Self {
            messages: word(0),
            bytes: word(1),
            dropped: word(2),
            full: word(3),
            sleeps: word(4),
            wakes: word(5),
            cut_off: word(6),
        }
    }
}

impl Received {
    /// Shows these figures in the reader's own page.
    #[cfg_attr(
        any(loom, not(test)),
        allow(dead_code, reason = "the rings begin to count next")
    )]
    pub(crate) fn publish<W: Words>(&self, page: &Own<W>) {
        let words = [
            self.messages,
            self.bytes,
            self.lost,
            self.refused,
            self.sleeps,
            self.wakes,
        ];
        for (at, value) in words.into_iter().enumerate() {
            page.store(COUNTERS_WORD + at, value, Ordering::Relaxed);
        }
    }

    /// What the reader of this cursor page says.
    pub fn read<W: Words>(page: &Peers<W>) -> Self {
        let word = |at| page.load(COUNTERS_WORD + at, Ordering::Relaxed);
        Self {
            messages: word(0),
            bytes: word(1),
            lost: word(2),
            refused: word(3),
            sleeps: word(4),
            wakes: word(5),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::PAGE_WORDS;
    use super::super::region::Heap;
    use super::*;

    #[test]
    fn what_is_published_is_read_back() {
        let page = Heap::new(PAGE_WORDS);
        let sent = Sent {
            messages: 1,
            bytes: 2,
            dropped: 3,
            full: 4,
            sleeps: 5,
            wakes: 6,
            cut_off: 7,
        };
        sent.publish(&Own(page.clone()));
        assert_eq!(Sent::read(&Peers(page)), sent);

        let page = Heap::new(PAGE_WORDS);
        let received = Received {
            messages: 1,
            bytes: 2,
            lost: 3,
            refused: 4,
            sleeps: 5,
            wakes: 6,
        };
        received.publish(&Own(page.clone()));
        assert_eq!(Received::read(&Peers(page)), received);
    }
}
