//! The sampled time stamp of a channel: of every [`SAMPLE_EVERY`] messages, one says when it was sent.
//!
//! One line of the data page: the number of a message, and CLOCK_MONOTONIC in ns. The number is taken away before
//! the time changes and given after, so a reader that finds its own number before and after has its own time.
//! A hostile producer makes its own readers count nonsense. Nothing blocks, allocates or fails.

#![forbid(unsafe_code)]

use super::atomics::{Ordering, fence};
use super::clock::now_ns;
use super::counters::{SAMPLE_EVERY, STAMP_WORD};
use super::region::{LINE_WORDS, Own, Peers, Words};

/// Is this message one of those?
#[inline]
pub(crate) const fn is_due(number: u64) -> bool {
    // The checker knows no time.
    !cfg!(loom) && number.is_multiple_of(SAMPLE_EVERY)
}

/// How many messages come before the next one of those, from message `number` on.
#[inline]
pub(crate) const fn until_due(number: u64) -> u64 {
    if cfg!(loom) {
        u64::MAX
    } else {
        number.wrapping_neg() % SAMPLE_EVERY
    }
}

/// To be called before message `number` is committed.
#[inline(never)]
pub(crate) fn put<W: Words>(data: &Own<W>, number: u64) {
    let line = data.line(STAMP_WORD / LINE_WORDS);
    line.store(0, u64::MAX, Ordering::Relaxed);
    // SYNC: stamp. Pairs with the acquire fence in `latency`.
    fence(Ordering::Release);
    line.store(1, now_ns(), Ordering::Relaxed);
    line.store(0, number, Ordering::Release);
}

/// How long message `number`, taken just now, was under way, ns; `None` if its stamp is gone.
#[inline(never)]
pub(crate) fn latency<W: Words>(data: &Peers<W>, number: u64) -> Option<u64> {
    let now = now_ns();
    let line = data.line(STAMP_WORD / LINE_WORDS);
    // SYNC: stamp.
    let before = line[0].load(Ordering::Acquire);
    let sent = line[1].load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    let after = line[0].load(Ordering::Relaxed);
    (before == number && after == number).then(|| now.saturating_sub(sent))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::PAGE_WORDS;
    use super::super::region::Heap;
    use super::*;

    #[test]
    fn only_the_message_that_was_stamped_last_finds_its_stamp() {
        let page = Heap::new(PAGE_WORDS);
        put(&Own(page.clone()), 64);
        let reader = Peers(page.clone());
        assert!(latency(&reader, 64).is_some());
        assert_eq!(latency(&reader, 0), None);
        put(&Own(page), 128);
        assert_eq!(latency(&reader, 64), None);
        assert!(is_due(SAMPLE_EVERY) && !is_due(SAMPLE_EVERY + 1));
        for number in [0, 1, 5, SAMPLE_EVERY - 1, SAMPLE_EVERY, SAMPLE_EVERY + 1] {
            assert!(is_due(number + until_due(number)), "{number}");
            assert!(until_due(number) < SAMPLE_EVERY, "{number}");
        }
    }
}
