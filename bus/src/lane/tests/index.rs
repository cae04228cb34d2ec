//! The arithmetic of slot numbers, tried out in full where that is possible.

use super::*;
use crate::channel::slot_flags;
use crate::lane::ring::{
    Head, committed, empty, inline_bytes, line_of, longest, slots_for, spill_bytes,
};

/// Where slot numbers begin: at all places that an overflow could hide, and around the wrap of the futex's half.
fn beginnings(capacity: usize) -> impl Iterator<Item = u64> {
    let around = 2 * capacity as u64 + 1;
    [0, 1 << 32, 0_u64]
        .into_iter()
        .zip([false, true, true])
        .flat_map(move |(middle, before)| {
            let from = if before { around } else { 0 };
            (0..from + around).map(move |n| middle.wrapping_sub(from).wrapping_add(n))
        })
}

#[test]
fn a_lap_has_every_line_once_and_its_sequences_tell_it_from_the_laps_around_it() {
    for capacity in (1..=16).map(|bits| 1usize << bits) {
        for first in beginnings(capacity.min(16)) {
            let mut seen = vec![false; capacity];
            for n in (0..capacity as u64).map(|n| first.wrapping_add(n)) {
                let small = line_of(n, capacity, Inline::Small) - PAGE_WORDS / 8;
                let wide = line_of(n, capacity, Inline::Wide) - PAGE_WORDS / 8;
                assert_eq!(wide, 2 * small);
                assert!(!std::mem::replace(&mut seen[small], true));
                let next_lap = n.wrapping_add(capacity as u64);
                for inline in CLASSES {
                    let line = line_of(n, capacity, inline);
                    assert_eq!(line_of(next_lap, capacity, inline), line);
                    assert!((line + inline.lines()) * 8 <= data_words(capacity, inline));
                }
                assert_eq!(empty(next_lap, capacity), committed(n));
                assert_ne!(empty(n, capacity), committed(n));
                if capacity > 64 {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_message_takes_the_fewest_slots_that_hold_it() {
    for (ext, inline) in [false, true]
        .into_iter()
        .flat_map(|ext| CLASSES.map(|c| (ext, c)))
    {
        for len in 0..=MESSAGE_MAX {
            let slots = slots_for(inline, len, ext);
            let holds =
                |slots: usize| inline_bytes(inline, ext) + (slots - 1) * spill_bytes(inline);
            assert!(slots >= 1 && holds(slots) >= len);
            assert!(slots == 1 || holds(slots - 1) < len);
        }
        for capacity in (1..=16).map(|bits| 1usize << bits) {
            let longest = longest(inline, capacity, ext);
            assert!(longest <= MESSAGE_MAX && slots_for(inline, longest, ext) <= capacity);
            assert!(longest == MESSAGE_MAX || slots_for(inline, longest + 1, ext) > capacity);
        }
    }
}

#[test]
fn a_head_says_what_was_put_in_and_is_plain_only_if_nothing_else_is_in_the_slot() {
    for len in 0..=MESSAGE_MAX {
        for own in [0, slot_flags::EXT, slot_flags::REFERENCE, 0xC0] {
            let tag = Tag {
                kind: len as u8,
                flags: 0xFF,
                correlation: u32::MAX - len as u32,
            };
            let head = Head::new(tag, own, len);
            assert_eq!(head.len(), len);
            let shown = Tag { flags: 0x3F, ..tag };
            assert_eq!(
                head.tag(),
                shown,
                "the channel's own flags are not the sender's"
            );
            assert_eq!(head.has(slot_flags::EXT), own & slot_flags::EXT != 0);
            let is_plain = own == 0 && len <= INLINE_BYTES;
            assert_eq!(head.plain(), is_plain.then_some(len));
            let is_plain = own == 0 && len <= 112;
            assert_eq!(head.plain_in(Inline::Wide), is_plain.then_some(len));
        }
    }
}

#[test]
fn every_pair_of_lengths_passes_at_every_place_of_small_rings() {
    for (capacity, inline) in [2, 4].into_iter().flat_map(|n| CLASSES.map(|c| (n, c))) {
        for first in beginnings(capacity) {
            let options = Options {
                first,
                ..Options::inline(inline)
            };
            let (mut producer, mut consumer) = heap_with(capacity, options);
            let limit = message_limit(capacity, inline);
            let edges = [0, 1].map(|more| inline.bytes() + more * spill_bytes(inline));
            let around = edges.into_iter().flat_map(|edge| edge - 1..=edge + 1);
            let lens: Vec<usize> = [0, 1, 48, 49, limit].into_iter().chain(around).collect();
            let fitting = || lens.iter().copied().filter(|len| *len <= limit);
            for a in fitting() {
                for b in fitting() {
                    let (one, two) = (pattern(a, 1), pattern(b, 2));
                    producer.try_send(numbered(1), &one).unwrap();
                    let slots = |len| slots_for(inline, len, false);
                    let fits = slots(a) + slots(b) <= capacity;
                    let second = producer.try_send(numbered(2), &two);
                    assert_eq!(second, if fits { Ok(()) } else { Err(SendError::Full) });
                    let mut got = Vec::new();
                    consumer
                        .for_each(3, |tag, payload| got.push((tag, payload.to_vec())))
                        .unwrap();
                    let mut expected = vec![(numbered(1), one), (numbered(2), two)];
                    expected.truncate(1 + usize::from(fits));
                    assert_eq!(got, expected);
                    assert_eq!(consumer.try_recv_with(|_, _| ()), Ok(None));
                    assert_eq!(producer.consumed(), Ok(producer.next_slot()));
                }
            }
        }
    }
}

#[test]
fn every_cursor_is_taken_or_refused_exactly_as_it_must_be() {
    use crate::shm::counters::{CONSUMED_WORD, LIMIT_WORD};
    const CAPACITY: usize = 4;
    for first in beginnings(CAPACITY) {
        for sent in 0..=4u64 {
            for (consumed, limit) in (-6..=12i64).flat_map(|c| (-6..=12i64).map(move |l| (c, l))) {
                let options = Options {
                    first,
                    ..Options::default()
                };
                let memories = memories(CAPACITY, options);
                let (mut producer, _consumer) = ends(memories.clone(), memories.clone(), options);
                for _ in 0..sent {
                    producer.try_send(TAG, b"x").unwrap();
                }
                let at = |offset: i64| first.wrapping_add_signed(offset);
                let cursor = memories.1.words();
                cursor[CONSUMED_WORD].store(at(consumed), Ordering::Relaxed);
                cursor[LIMIT_WORD].store(at(limit), Ordering::Relaxed);
                // What the producer has seen before: the limit of the first lap, if it has sent anything.
                let seen_limit = if sent > 0 { 4 } else { 0 };
                let good = (0..=sent as i64).contains(&consumed)
                    && (seen_limit..=consumed + 4).contains(&limit);
                let found = producer.consumed();
                assert_eq!(found.is_ok(), good, "{first} {sent} {consumed} {limit}");
                if good {
                    let room = (limit - sent as i64) as u64;
                    let fits = |slots: u64| slots == 0 || slots <= room;
                    for slots in 1..=4 {
                        let len = INLINE_BYTES + (slots as usize - 1) * SPILL_BYTES;
                        assert_eq!(producer.room(len).is_ok(), fits(slots));
                    }
                } else {
                    assert!(matches!(found, Err(SendError::Corrupt { .. })));
                    assert_eq!(producer.closer().status(), Some(Status::MALFORMED));
                }
            }
        }
    }
}

#[test]
fn nobody_oversleeps_where_the_futex_half_of_a_number_wraps() {
    let options = Options {
        first: (1 << 32) - 500,
        ..Options::waiting(Waiting::Blocking)
    };
    let (mut producer, mut consumer) = shared_with(64, options);
    let sending = std::thread::spawn(move || {
        for n in 0..1_000 {
            producer.send(numbered(n), b"x", WATCHDOG).unwrap();
        }
    });
    for n in 0..1_000 {
        let tag = consumer.recv_with(WATCHDOG, |tag, _| tag).unwrap();
        assert_eq!(tag, numbered(n));
    }
    sending.join().unwrap();
}
