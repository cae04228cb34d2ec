//! One conformance suite for every kind of memory; crashes at every store; hostile owners and receivers.

mod bulk;
mod huge;
mod trust;

use std::os::fd::AsFd;

use super::*;
use crate::shm::memfd::{self, Mapping, PageKind};
use crate::shm::region::{Heap, Words};

// The kit itself links this crate's client, which the tests of this crate can't.
#[path = "../../../../tests/kit/src/skip.rs"]
mod skip;

/// A segment as its owner and as a receiver maps it.
type Pair<W> = (W, W);

fn heap(bytes: u64) -> Pair<Heap> {
    let memory = Heap::new(bytes as usize / 8);
    (memory.clone(), memory)
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64)
        .map(|n| (n.wrapping_mul(31) ^ n >> 8).wrapping_add(seed) as u8)
        .collect()
}

/// What every memory must do.
fn conforms<W: Words>(bytes: u64, make: impl Fn(u64) -> Pair<W>) {
    let (mine, theirs) = make(bytes);
    let mut arena = Arena::new(16);
    assert_eq!(
        arena.store(b"x").err(),
        Some(ArenaError::TooLong {
            length: 1,
            limit: 0
        })
    );
    let number = arena.add(mine).unwrap();
    let mut reader = Reader::new(SEGMENT_MAX);
    let mut buffer = Vec::new();

    // A reference that comes before its segment is a condition; the segment makes it good.
    let stored = arena.store(&pattern(100, 1)).unwrap();
    let reference = stored.reference();
    assert_eq!(
        reader.read(&reference, &mut buffer),
        Err(ReferenceError::NoSegment { segment: number })
    );
    reader.add(number, theirs).unwrap();
    reader.read(&reference, &mut buffer).unwrap();
    assert_eq!(buffer, pattern(100, 1));
    arena.release(stored);
    assert!(matches!(
        reader.read(&reference, &mut buffer),
        Err(ReferenceError::Stale { found: 0, .. })
    ));
    assert!(buffer.is_empty());

    // Every length around the edges, and the largest.
    let limit = arena.payload_limit() as usize;
    for len in (1..300)
        .chain([4095, 4096, 4097, limit / 2, limit - 1, limit])
        .filter(|len| *len <= limit)
    {
        let stored = arena.store(&pattern(len, 3)).unwrap();
        reader.read(&stored.reference(), &mut buffer).unwrap();
        assert_eq!(buffer, pattern(len, 3), "length {len}");
        arena.release(stored);
    }
    assert_eq!(
        arena.store(&pattern(limit + 1, 3)).err(),
        Some(ArenaError::TooLong {
            length: limit + 1,
            limit: limit as u64
        })
    );
    assert_eq!(arena.store(&[]).err(), Some(ArenaError::Empty));

    // Full, then reclaimed in the order of the slots, and every block is one's own while it is held.
    for round in 0..3 {
        let mut sent: Vec<(Reference, Vec<u8>)> = Vec::new();
        let full = loop {
            let payload = pattern(900 + sent.len() * 7, sent.len() as u64 + round);
            match arena.store(&payload) {
                Ok(stored) => {
                    sent.push((stored.reference(), payload));
                    arena.hold(sent.len() as u64, stored);
                }
                Err(error) => break error,
            }
        };
        assert!(matches!(full, ArenaError::Full { .. }), "{full:?}");
        for (reference, payload) in &sent {
            reader.read(reference, &mut buffer).unwrap();
            assert_eq!(&buffer, payload);
        }
        assert_eq!(arena.oldest_held(), Some(1));
        assert_eq!(arena.reclaim(2), 1);
        assert!(reader.read(&sent[0].0, &mut buffer).is_err(), "given back");
        reader.read(&sent[1].0, &mut buffer).unwrap();
        assert_eq!(arena.reclaim_all(), sent.len() - 1);
        let usage = arena.usage();
        assert_eq!((usage.taken, usage.held, usage.bytes), (0, 0, bytes));
    }
}

/// Made by its owner on pages of just this kind, and mapped by a receiver. `None`: this host has none.
fn sealed(bytes: u64, kind: PageKind) -> Option<Pair<Mapping>> {
    let (mine, fd) = memfd::create_segment(bytes, kind, None).unwrap();
    let theirs = memfd::open_segment(fd.as_fd()).unwrap();
    let seen = (mine.pages().unwrap(), theirs.pages().unwrap());
    (seen == (kind, kind)).then_some((mine, theirs))
}

#[test]
fn small_pages_conform() {
    for bytes in [SEGMENT_MIN, 3 << 12, 4 << 20] {
        conforms(bytes, |bytes| sealed(bytes, PageKind::Small).unwrap());
    }
}

#[test]
fn collapsed_pages_conform() {
    if sealed(4 << 20, PageKind::Transparent).is_none() {
        skip::skip(
            "transparent-huge-pages",
            "the kernel put no 2 MiB page together (MADV_COLLAPSE, Linux 6.1)",
        );
        return;
    }
    conforms(4 << 20, |bytes| {
        sealed(bytes, PageKind::Transparent).unwrap()
    });
}

#[test]
fn heap_memory_conforms() {
    for bytes in [SEGMENT_MIN, 64 << 10, 1 << 20, 3 << 12] {
        conforms(bytes, heap);
    }
}

#[test]
fn payloads_of_one_size_go_round_in_the_same_blocks_and_others_find_all_the_room() {
    let (mine, theirs) = heap(1 << 20);
    let mut arena = Arena::new(16);
    let mut reader = Reader::new(SEGMENT_MAX);
    reader.add(arena.add(mine).unwrap(), theirs).unwrap();
    let mut buffer = Vec::new();
    let mut references = Vec::new();
    for slot in 0..4 {
        let stored = arena.store(&pattern(5000, slot)).unwrap();
        references.push(stored.reference());
        arena.hold(slot, stored);
    }
    let (taken, unread) = (arena.taken(), arena.unread());
    assert_eq!(unread, 4 * (5000_u64 + 64).next_multiple_of(ALIGNMENT));
    arena.note_consumed(2);
    assert_eq!((arena.taken(), arena.unread()), (taken / 2, unread / 2));
    assert_eq!((arena.usage().held, arena.oldest_held()), (2, Some(2)));

    // The block read first is the one that is written next, and its old reference leads nowhere.
    let stored = arena.store(&pattern(4990, 9)).unwrap();
    let again = stored.reference();
    assert_eq!(again.offset, references[0].offset);
    assert!(matches!(
        reader.read(&references[0], &mut buffer),
        Err(ReferenceError::Stale { .. })
    ));
    reader.read(&again, &mut buffer).unwrap();
    assert_eq!(buffer, pattern(4990, 9));
    arena.hold(4, stored);
    assert_eq!(arena.usage().held, 3);

    // What is of another size gets everything that was read.
    arena.note_consumed(5);
    let limit = arena.payload_limit() as usize;
    let stored = arena.store(&pattern(limit, 5)).unwrap();
    reader.read(&stored.reference(), &mut buffer).unwrap();
    assert_eq!(buffer, pattern(limit, 5));
    arena.release(stored);
    assert_eq!(
        (arena.taken(), arena.unread(), arena.usage().held),
        (0, 0, 0)
    );
}

#[test]
fn after_a_burst_payloads_are_close_together_again() {
    let mut arena = Arena::new(1024);
    arena.add(heap(4 << 20).0).unwrap();
    let mut slot = 0;
    let mut send = |arena: &mut Arena<Heap>| {
        let stored = arena.store(&[1; 4032]).unwrap();
        let end = stored.reference().offset + 4096;
        arena.hold(slot, stored);
        slot += 1;
        (slot, end)
    };
    for _ in 0..900 {
        send(&mut arena);
    }
    let mut reach = 0;
    for n in 0..3000 {
        let (sent, end) = send(&mut arena);
        arena.note_consumed(sent);
        if n > 1000 {
            reach = reach.max(end);
        }
    }
    assert!(reach <= 1 << 20, "{reach}");
}
