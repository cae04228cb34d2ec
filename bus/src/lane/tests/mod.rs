//! One conformance suite for both memories, and what the layout promises. Crashes, hostile peers, index
//! arithmetic, seals and processes have files of their own.

mod crashes;
mod hostile;
mod index;
mod parts;
mod processes;
mod seals;
mod settle;

use std::os::fd::AsFd;
use std::time::Duration;

use super::ring::{
    Consumer, Producer, RecvError, SendError, Tag, format_cursor, format_data, format_data_from,
    message_limit,
};
use super::*;
use crate::channel::{Overflow, Waiting};
use crate::message::Status;
use crate::shm::atomics::Ordering;
use crate::shm::counters::{CAPACITY_WORD, SAMPLE_EVERY, SETUP_WORD, setup};
use crate::shm::memfd::{self, Mapping};
use crate::shm::park::Closer;
use crate::shm::region::{Heap, Words};
use crate::simd::crc32c;
use crate::view::View;

const WATCHDOG: Duration = Duration::from_secs(30);
const TAG: Tag = Tag {
    kind: 4,
    flags: 0x25,
    correlation: 0xDEAD_BEEF,
};

/// Both sizes of slots.
const CLASSES: [Inline; 2] = [Inline::Small, Inline::Wide];

type HeapLane = (Producer<Heap, Heap>, Consumer<Heap, Heap>);
type SharedLane = (Producer<Mapping, Mapping>, Consumer<Mapping, Mapping>);

/// How the two ends of a lane under test are set up.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    sender: SenderOptions,
    receiver: ReceiverOptions,
    /// The number of the first slot.
    first: u64,
}

impl Options {
    fn waiting(waiting: Waiting) -> Self {
        let mut options = Self::default();
        (options.sender.waiting, options.receiver.waiting) = (waiting, waiting);
        options
    }

    fn overflow(overflow: Overflow) -> Self {
        let mut options = Self::default();
        options.sender.overflow = overflow;
        options
    }

    fn extension(extension: Extension) -> Self {
        let mut options = Self::default();
        options.sender.extension = extension;
        options
    }

    fn inline(inline: Inline) -> Self {
        let mut options = Self::default();
        options.sender.inline = inline;
        options
    }

    /// The same in the other class.
    fn with(mut self, inline: Inline) -> Self {
        self.sender.inline = inline;
        self
    }

    fn words(&self, capacity: usize) -> usize {
        data_words(capacity, self.sender.inline)
    }

    fn credit(credit: Credit) -> Self {
        let mut options = Self::default();
        options.receiver.credit = credit;
        options
    }
}

/// The memories of a lane, formatted.
fn memories(capacity: usize, options: Options) -> (Heap, Heap) {
    let (data, cursor) = (
        Heap::new(options.words(capacity)),
        Heap::new(cursor_words()),
    );
    format_data_from(&data, capacity, &options.sender, options.first).unwrap();
    format_cursor(&cursor, &options.receiver).unwrap();
    (data, cursor)
}

fn ends<D: Words, C: Words>(
    (data, cursor): (D, C),
    (data_there, cursor_there): (D, C),
    options: Options,
) -> (Producer<D, C>, Consumer<D, C>) {
    let closer = Closer::default;
    let (sender, receiver, first) = (options.sender, options.receiver, options.first);
    let consumer = Consumer::starting_at(data_there, cursor, closer(), receiver, first);
    let producer = Producer::starting_at(data, cursor_there, closer(), sender, first);
    (producer.unwrap(), consumer.unwrap())
}

fn heap_with(capacity: usize, options: Options) -> HeapLane {
    let memories = memories(capacity, options);
    ends(memories.clone(), memories, options)
}

fn shared_with(capacity: usize, options: Options) -> SharedLane {
    let words = options.words(capacity);
    assert!(words.is_multiple_of(PAGE_WORDS), "whole pages of slots");
    let (data, data_fd) = memfd::create("lane-data", words).unwrap();
    let (cursor, cursor_fd) = memfd::create("lane-cursor", cursor_words()).unwrap();
    format_data_from(&data, capacity, &options.sender, options.first).unwrap();
    format_cursor(&cursor, &options.receiver).unwrap();
    let data_there = memfd::open(data_fd.as_fd()).unwrap();
    let cursor_there = memfd::open(cursor_fd.as_fd()).unwrap();
    ends((data, cursor), (data_there, cursor_there), options)
}

fn shared(capacity: usize) -> SharedLane {
    shared_with(capacity, Options::default())
}

fn numbered(correlation: u32) -> Tag {
    Tag { correlation, ..TAG }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u64).wrapping_mul(31).wrapping_add(seed) as u8)
        .collect()
}

/// What every memory must do, in both classes. `capacity` is 64 for all.
fn conforms<D: Words + 'static, C: Words + 'static>(
    inline: Inline,
    make: impl Fn(Options) -> (Producer<D, C>, Consumer<D, C>),
) {
    let make_with = |options: Options| make(options.with(inline));
    let (head, further) = (inline.bytes(), inline.bytes() + 8);
    let mut buffer = Vec::new();
    let make = || make_with(Options::default());

    // Empty gives nothing, again and again.
    let (mut producer, mut consumer) = make();
    assert_eq!(consumer.try_recv(&mut buffer), Ok(None));
    assert_eq!(
        consumer.recv(&mut buffer, Duration::from_millis(5)),
        Err(RecvError::TimedOut)
    );

    // Every length, at every place in the ring.
    let limit = producer.message_limit();
    assert_eq!(limit, head + 63 * further);
    for len in (0..=limit).chain([0, 1, limit, limit, head - 1, head, head + 1]) {
        let tag = Tag {
            correlation: len as u32,
            ..TAG
        };
        producer.try_send(tag, &pattern(len, 7)).unwrap();
        assert_eq!(consumer.try_recv(&mut buffer), Ok(Some(tag)));
        assert_eq!(buffer, pattern(len, 7), "length {len}");
        // Looking once more is what frees the last few slots: the cursor is published in steps.
        assert_eq!(consumer.try_recv(&mut buffer), Ok(None));
    }
    assert_eq!(
        producer.try_send(TAG, &vec![0; limit + 1]),
        Err(SendError::TooLong {
            len: limit + 1,
            limit
        })
    );

    // Full is full; reading makes room; order is kept.
    let (mut producer, mut consumer) = make();
    for n in 0..64 {
        producer.try_send(TAG, &[n]).unwrap();
    }
    assert_eq!(producer.try_send(TAG, b"x"), Err(SendError::Full));
    assert_eq!(
        producer.send(TAG, b"x", Duration::from_millis(5)),
        Err(SendError::Full)
    );
    for n in 0..64 {
        consumer.try_recv(&mut buffer).unwrap().unwrap();
        assert_eq!(buffer, [n]);
    }
    assert_eq!(consumer.try_recv(&mut buffer), Ok(None));
    producer.try_send(TAG, b"x").unwrap();

    // What was committed before the close is still received.
    consumer.closer().close(Status::PEER_GONE);
    assert!(consumer.recv(&mut buffer, WATCHDOG).is_ok());
    assert_eq!(
        consumer.recv(&mut buffer, WATCHDOG),
        Err(RecvError::Closed(Status::PEER_GONE))
    );
    producer.closer().close(Status::OK);
    assert_eq!(
        producer.try_send(TAG, b"x"),
        Err(SendError::Closed(Status::OK))
    );

    // Two threads, waiting on both sides, in every manner; busy ones last, they need a core each.
    for (waiting, count) in [
        (Waiting::Blocking, 4_000u64),
        (Waiting::Adaptive, 20_000),
        (Waiting::Busy, 2_000),
    ] {
        let (mut producer, mut consumer) = make_with(Options::waiting(waiting));
        let sending = std::thread::spawn(move || {
            for n in 0..count {
                let payload = pattern((n * 37 % 300) as usize, n);
                producer
                    .send(numbered(n as u32), &payload, WATCHDOG)
                    .unwrap();
            }
            producer.sent()
        });
        for n in 0..count {
            let tag = consumer.recv(&mut buffer, WATCHDOG).unwrap();
            assert_eq!(u64::from(tag.correlation), n);
            assert_eq!(buffer, pattern((n * 37 % 300) as usize, n));
        }
        let (sent, received) = (sending.join().unwrap(), consumer.received());
        assert_eq!(sent.messages, count);
        assert_eq!((received.messages, received.bytes), (count, sent.bytes));
        if waiting == Waiting::Busy {
            assert_eq!((sent.sleeps, received.sleeps), (0, 0));
            assert_eq!((sent.wakes, received.wakes), (0, 0));
        }
    }

    // A close ends a sleep on either side.
    let (mut producer, mut consumer) = make();
    let closer = consumer.closer().clone();
    let sleeping = std::thread::spawn(move || consumer.recv(&mut Vec::new(), WATCHDOG));
    closer.close(Status::PEER_GONE);
    assert_eq!(
        sleeping.join().unwrap(),
        Err(RecvError::Closed(Status::PEER_GONE))
    );
    let closer = producer.closer().clone();
    let sleeping = std::thread::spawn(move || {
        loop {
            if let Err(error) = producer.send(TAG, b"x", WATCHDOG) {
                return error;
            }
        }
    });
    closer.close(Status::PEER_GONE);
    assert_eq!(
        sleeping.join().unwrap(),
        SendError::Closed(Status::PEER_GONE)
    );
}

/// The features, on every memory of 64 slots.
fn features_conform<D: Words + 'static, C: Words + 'static>(
    inline: Inline,
    make_with: impl Fn(Options) -> (Producer<D, C>, Consumer<D, C>),
) {
    let make = |options: Options| make_with(options.with(inline));
    let (head, further) = (inline.bytes(), inline.bytes() + 8);
    // A batch goes as far as there is room, and arrives in order, whole and in parts.
    let (mut producer, mut consumer) = make(Options::default());
    let payloads: Vec<Vec<u8>> = (0..100).map(|n| pattern(n * 3, n as u64)).collect();
    let messages: Vec<(Tag, &[u8])> = payloads
        .iter()
        .enumerate()
        .map(|(n, payload)| (numbered(n as u32), &payload[..]))
        .collect();
    let mut received = 0;
    let mut sent = 0;
    while received < messages.len() {
        match producer.try_send_batch(&messages[sent..]) {
            Ok(more) => sent += more,
            Err(error) => assert_eq!(error, SendError::Full),
        }
        let taken = consumer.for_each(7, |tag, payload| {
            assert_eq!((tag, payload), messages[received]);
            received += 1;
        });
        assert!((1..=7).contains(&taken.unwrap()));
    }
    assert_eq!(consumer.for_each(7, |_, _| panic!("no more")), Ok(0));
    assert_eq!(producer.try_send_batch(&[]), Ok(0));

    // Nothing is sent but what is granted, and no more is granted than there is room for.
    let (mut producer, mut consumer) = make(Options::credit(Credit::Manual));
    assert_eq!(producer.try_send(TAG, b"x"), Err(SendError::Full));
    assert_eq!(consumer.grant(2), 2);
    producer.try_send(TAG, b"x").unwrap();
    assert_eq!(producer.room(head + 1), Err(SendError::Full));
    producer.try_send(TAG, b"y").unwrap();
    assert_eq!(producer.try_send(TAG, b"z"), Err(SendError::Full));
    assert_eq!(consumer.grant(u64::MAX), 62);
    assert_eq!(consumer.grant(1), 0);
    consumer.try_recv(&mut buffer()).unwrap().unwrap();
    assert_eq!(consumer.grant(5), 1);
    assert_eq!(producer.consumed(), Ok(1));
    producer.room(head + 61 * further).unwrap();
    let waiting = std::thread::spawn(move || producer.wait_consumed(1, WATCHDOG));
    assert_eq!(
        consumer.try_recv_with(|_, payload| payload[0]),
        Ok(Some(b'y'))
    );
    consumer.publish();
    assert_eq!(waiting.join().unwrap(), Ok(2));

    // Too much: dropped and counted, or the end.
    let (mut producer, mut consumer) = make(Options::overflow(Overflow::DropNewest));
    for n in 0..70u32 {
        match producer.send(numbered(n), b"x", WATCHDOG) {
            Ok(()) => assert!(n < 64),
            Err(error) => assert_eq!((error, n >= 64), (SendError::Dropped, true)),
        }
    }
    assert_eq!(
        producer.send_batch(&[(TAG, &b"x"[..]); 4], WATCHDOG),
        Err(SendError::Dropped)
    );
    assert_eq!(
        (producer.sent().messages, producer.sent().dropped),
        (64, 10)
    );
    assert_eq!(producer.sent().full, 1, "one time that lasts");
    let taken = consumer.for_each(100, |_, _| ());
    assert_eq!(taken, Ok(64));
    producer.send(TAG, b"x", WATCHDOG).unwrap();

    let (mut producer, _consumer) = make(Options::overflow(Overflow::Disconnect));
    let end = (0..65).find_map(|_| producer.send(TAG, b"x", WATCHDOG).err());
    assert_eq!(end, Some(SendError::Closed(Status::QUEUE_FULL)));
    assert_eq!(producer.closer().status(), Some(Status::QUEUE_FULL));

    // What EXT carries; every length; a payload that was changed on the way is refused, and only that.
    for extension in [Extension::Time, Extension::TimeAndCrc] {
        let (mut producer, mut consumer) = make(Options::extension(extension));
        producer.set_high_flags(0xABCD_0000);
        let limit = producer.message_limit();
        assert_eq!(limit, head - 16 + 63 * further);
        for len in (0..400).chain([limit - 1, limit]) {
            let payload = pattern(len, 5);
            producer.try_send(TAG, &payload).unwrap();
            let slot = consumer.next_slot();
            let message = consumer.try_next(|message| {
                assert_eq!((message.tag, message.payload), (TAG, &payload[..]));
                assert_eq!((message.slot, message.reference), (slot, false));
                message.ext.unwrap()
            });
            let ext = message.unwrap().unwrap();
            let crc = crc32c::crc32c(&payload);
            assert_eq!(ext.high_flags, 0xABCD_0000);
            assert_eq!(ext.crc, if extension == Extension::Time { 0 } else { crc });
            assert!(ext.sent_ns > 0);
            consumer.publish();
        }
    }

    // A reference goes to who can follow it, and is an error to who can't.
    for extension in [Extension::None, Extension::Time] {
        let (mut producer, mut consumer) = make(Options::extension(extension));
        for _ in 0..2 {
            producer.try_send_reference(TAG, &[9; 32], 1 << 20).unwrap();
        }
        assert_eq!(producer.next_slot(), 2);
        assert_eq!(producer.sent().bytes, 2 << 20);
        let got = consumer.try_next(|m| (m.reference, m.tag, m.payload == [9; 32]));
        assert_eq!(got, Ok(Some((true, TAG, true))));
        // It is held until it is released.
        assert_eq!(
            producer.wait_consumed(0, Duration::ZERO),
            Err(SendError::Full)
        );
        consumer.publish();
        assert_eq!(producer.consumed(), Ok(1));
        assert_eq!(
            consumer.try_recv(&mut buffer()),
            Err(RecvError::Reference { slot: 1 })
        );
        assert_eq!(consumer.received().refused, 1);
        producer.try_send(TAG, b"x").unwrap();
        assert_eq!(consumer.try_recv(&mut buffer()), Ok(Some(TAG)));
    }

    // A lane that was closed gives what it had, at most a lap; one that was revoked, nothing.
    let (mut producer, mut consumer) = make(Options::default());
    producer.try_send(TAG, b"x").unwrap();
    consumer.closer().close(Status::DENIED);
    assert_eq!(
        consumer.try_recv(&mut buffer()),
        Err(RecvError::Closed(Status::DENIED))
    );
    let (mut producer, mut consumer) = make(Options::default());
    consumer.closer().close(Status::PEER_GONE);
    let mut drained = 0;
    let end = loop {
        // It is not gone at all, and goes on sending.
        producer.try_send(TAG, b"x").unwrap();
        match consumer.try_recv(&mut buffer()) {
            Ok(taken) => drained += u32::from(taken.is_some()),
            Err(end) => break end,
        }
    };
    assert_eq!((end, drained), (RecvError::Closed(Status::PEER_GONE), 64));
}

fn buffer() -> Vec<u8> {
    Vec::new()
}

#[test]
fn what_is_counted_can_be_read_from_outside_while_it_goes_on() {
    for inline in CLASSES {
        counts_are_seen(Options::inline(inline));
    }
}

fn counts_are_seen(options: Options) {
    let memories = memories(64, options);
    let (mut producer, mut consumer) = ends(memories.clone(), memories.clone(), options);
    let view = View::new(memories.0, Some(memories.1)).unwrap();
    for n in 0..2 * SAMPLE_EVERY {
        producer.try_send(TAG, &[0; 10]).unwrap();
        let snapshot = view.snapshot();
        assert_eq!(
            (snapshot.sent.messages, snapshot.sent.bytes),
            (n + 1, (n + 1) * 10)
        );
        consumer.try_recv_with(|_, _| ()).unwrap().unwrap();
        consumer.publish();
        let snapshot = view.snapshot();
        assert_eq!((snapshot.received.messages, snapshot.depth), (n + 1, 0));
        assert_eq!(snapshot.sent, producer.sent());
        assert_eq!(snapshot.received, consumer.received());
    }
    // One message of so many carried a stamp.
    assert_eq!(view.snapshot().latency.count(), 2);
}

#[test]
fn a_producer_that_sleeps_before_its_consumer_is_there_is_woken_by_it() {
    let options = Options::waiting(Waiting::Blocking);
    let (data, cursor) = memories(4, options);
    let view = View::new(data.clone(), Some(cursor.clone())).unwrap();
    let (there, closer) = ((data.clone(), cursor.clone()), Closer::default);
    let mut producer = Producer::new(there.0, there.1, closer(), options.sender).unwrap();
    let sending = std::thread::spawn(move || producer.send(TAG, b"x", WATCHDOG));
    while !view.snapshot().producer_parked {
        std::thread::yield_now();
    }
    let mut consumer = Consumer::new(data, cursor, closer(), options.receiver).unwrap();
    assert_eq!(consumer.recv_with(WATCHDOG, |tag, _| tag), Ok(TAG));
    assert_eq!(sending.join().unwrap(), Ok(()));
}

#[test]
fn options_that_a_lane_cant_keep_or_does_not_have_are_refused() {
    let oldest = Options::overflow(Overflow::DropOldest);
    let data = Heap::new(data_words(4, Inline::Small));
    assert_eq!(
        format_data(&data, 4, &oldest.sender),
        Err(LayoutError::DropOldest)
    );
    let (data, cursor) = memories(4, Options::waiting(Waiting::Busy));
    let blocking = Options::waiting(Waiting::Blocking);
    let wrong = LayoutError::SetUp {
        found: setup::NEVER_PARKS,
        expected: 0,
    };
    let consumer = Consumer::new(
        data.clone(),
        cursor.clone(),
        Closer::default(),
        blocking.receiver,
    );
    assert_eq!(consumer.map(drop), Err(wrong));
    let producer = Producer::new(data, cursor, Closer::default(), blocking.sender);
    assert_eq!(producer.map(drop), Err(wrong));
}

#[test]
fn heap_memory_conforms() {
    for inline in CLASSES {
        conforms(inline, |options| heap_with(64, options));
        features_conform(inline, |options| heap_with(64, options));
    }
}

#[test]
fn sealed_memfds_conform() {
    crate::shm::park::probe_waitv().unwrap();
    for inline in CLASSES {
        conforms(inline, |options| shared_with(64, options));
        features_conform(inline, |options| shared_with(64, options));
    }
}

#[test]
fn a_slot_is_the_documented_cache_line() {
    let memories = memories(2, Options::default());
    let (mut producer, _consumer) = ends(memories.clone(), memories.clone(), Options::default());
    let payload: Vec<u8> = (1..=50).collect();
    producer.try_send(TAG, &payload).unwrap();
    let bytes = slots_of(&memories.0);
    let mut golden = vec![
        1, 0, 0, 0, 0, 0, 0, 0, 50, 0, 4, 0x25, 0xEF, 0xBE, 0xAD, 0xDE,
    ];
    golden.extend(1..=48);
    golden.extend([2, 0, 0, 0, 0, 0, 0, 0, 49, 50]);
    golden.resize(128, 0);
    assert_eq!(bytes, golden);
}

#[test]
fn a_wide_slot_is_the_documented_two_lines() {
    let options = Options::inline(Inline::Wide);
    let memories = memories(2, options);
    let (mut producer, _consumer) = ends(memories.clone(), memories.clone(), options);
    let payload: Vec<u8> = (1..=114).collect();
    producer.try_send(TAG, &payload).unwrap();
    let mut golden = vec![
        1, 0, 0, 0, 0, 0, 0, 0, 114, 0, 4, 0x25, 0xEF, 0xBE, 0xAD, 0xDE,
    ];
    golden.extend(1..=112);
    golden.extend([2, 0, 0, 0, 0, 0, 0, 0, 113, 114]);
    golden.resize(256, 0);
    assert_eq!(slots_of(&memories.0), golden);
}

/// All that is behind the header page.
fn slots_of(data: &Heap) -> Vec<u8> {
    let words = data.words()[PAGE_WORDS..].iter();
    words
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect()
}

#[test]
fn a_class_that_the_memory_is_not_of_is_refused_by_both_sides() {
    for (made, said) in [(Inline::Small, setup::WIDE), (Inline::Wide, 0)] {
        let options = Options::inline(made);
        let (data, cursor) = memories(8, options);
        // The other class in its own page: the size is wrong.
        let honest = data.words()[SETUP_WORD].swap(said, Ordering::Relaxed);
        let receiver = options.receiver;
        let consumer = Consumer::new(data.clone(), cursor.clone(), Closer::default(), receiver);
        assert!(matches!(consumer.map(drop), Err(LayoutError::Size { .. })));
        data.words()[SETUP_WORD].store(honest, Ordering::Relaxed);
        let consumer = Consumer::new(data.clone(), cursor.clone(), Closer::default(), receiver);
        assert_eq!(consumer.unwrap().inline(), made);
        // Other options than it was formatted with.
        let other = options.with(if said == 0 {
            Inline::Small
        } else {
            Inline::Wide
        });
        let producer = Producer::new(data, cursor, Closer::default(), other.sender);
        assert!(matches!(producer.map(drop), Err(LayoutError::Size { .. })));
    }
}

#[test]
fn headers_of_other_memory_are_refused() {
    let (data, cursor) = (
        Heap::new(data_words(4, Inline::Small)),
        Heap::new(cursor_words()),
    );
    format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
    let consumer = |data: &Heap| {
        Consumer::new(
            data.clone(),
            cursor.clone(),
            Closer::default(),
            ReceiverOptions::default(),
        )
        .map(drop)
    };
    assert!(matches!(
        consumer(&data),
        Err(LayoutError::Magic { found: 0, .. })
    ));
    assert_eq!(
        format_data(&data, 3, &SenderOptions::default()),
        Err(LayoutError::Capacity { found: 3 })
    );
    format_data(&data, 4, &SenderOptions::default()).unwrap();
    consumer(&data).unwrap();
    data.words()[CAPACITY_WORD].store(8, Ordering::Relaxed);
    assert!(matches!(consumer(&data), Err(LayoutError::Size { .. })));
    data.words()[CAPACITY_WORD].store(1 << 40, Ordering::Relaxed);
    assert_eq!(
        consumer(&data),
        Err(LayoutError::Capacity { found: 1 << 40 })
    );
}
