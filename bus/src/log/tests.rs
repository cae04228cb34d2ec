//! One conformance suite for both memories; exact accounts of loss; crashes at every store; hostile peers.

mod hostile;
mod series;

use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::channel::{Tag, Waiting};
use crate::message::Status;
use crate::shm::atomics::Ordering;
use crate::shm::counters::{CONSUMED_WORD, HEAD_WORD};
use crate::shm::memfd;
use crate::shm::park::Closer;
use crate::shm::region::{Heap, Words, crash};
use crate::wait::{Bell, Source, Waiter};

const WATCHDOG: Duration = Duration::from_secs(60);
const TAG: Tag = Tag {
    kind: 4,
    flags: 0x25,
    correlation: 0xDEAD_BEEF,
};
const LOSSY: ReaderOptions = ReaderOptions {
    start: Start::Head,
    delivery: Delivery::Lossy,
    waiting: Waiting::Adaptive,
};
const RELIABLE: ReaderOptions = ReaderOptions {
    delivery: Delivery::Reliable,
    ..LOSSY
};
const OLDEST: ReaderOptions = ReaderOptions {
    start: Start::Oldest,
    ..LOSSY
};

/// Memory for a log: the writer's own, and as its readers see it.
trait Memory {
    type W: Words + 'static;
    fn make(&self, words: usize) -> (Self::W, Box<dyn Fn() -> Self::W + Send>);
}

struct OnHeap;

impl Memory for OnHeap {
    type W = Heap;
    fn make(&self, words: usize) -> (Heap, Box<dyn Fn() -> Heap + Send>) {
        let heap = Heap::new(words);
        (heap.clone(), Box::new(move || heap.clone()))
    }
}

struct Sealed;

impl Memory for Sealed {
    type W = crate::shm::pages::Mapping;
    fn make(&self, words: usize) -> (Self::W, Box<dyn Fn() -> Self::W + Send>) {
        let (own, fd) = memfd::create("log", words).unwrap();
        (own, Box::new(move || memfd::open(fd.as_fd()).unwrap()))
    }
}

struct Log<M: Memory> {
    memory: M,
    writer: Writer<M::W, M::W>,
    data: Box<dyn Fn() -> M::W + Send>,
    readers: u32,
}

impl<M: Memory> Log<M> {
    fn new(memory: M, capacity: usize, hold: Hold) -> Self {
        let (own, data) = memory.make(data_words(capacity));
        format_data(&own, capacity).unwrap();
        let options = WriterOptions {
            hold,
            ..WriterOptions::default()
        };
        let writer = Writer::new(own, Closer::default(), options).unwrap();
        Self {
            memory,
            writer,
            data,
            readers: 0,
        }
    }

    /// A reader that is attached under the next number.
    fn reader(&mut self, options: ReaderOptions) -> Reader<M::W, M::W> {
        let (own, cursor) = self.memory.make(cursor_words());
        format_cursor(&own, &options).unwrap();
        let reader = Reader::new((self.data)(), own, Closer::default(), options).unwrap();
        let id = ReaderId(self.readers);
        self.readers += 1;
        self.writer
            .attach_reader(id, cursor(), options.delivery)
            .unwrap();
        reader
    }

    fn send(&mut self, n: u64, len: usize) -> Result<(), SendError> {
        self.writer.try_send(tag(n), &pattern(len, n))
    }
}

fn heap(capacity: usize) -> Log<OnHeap> {
    Log::new(OnHeap, capacity, Hold::default())
}

fn tag(n: u64) -> Tag {
    Tag {
        correlation: n as u32,
        ..TAG
    }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u64).wrapping_mul(31).wrapping_add(seed) as u8)
        .collect()
}

/// What message `n` of the tests below is like: its length follows from its number.
fn length(n: u64, limit: usize) -> usize {
    (n.wrapping_mul(2_654_435_761) % (limit as u64 + 1)) as usize
}

/// Takes all there is, checks each message, and says how many those were.
fn drain<W: Words>(reader: &mut Reader<W, W>, limit: usize) -> u64 {
    let mut buffer = Vec::new();
    let mut taken = 0;
    while let Some(message) = reader.try_recv(&mut buffer).unwrap() {
        let n = message.number;
        assert_eq!(message.tag, tag(n));
        assert_eq!(buffer, pattern(length(n, limit), n), "message {n}");
        taken += 1;
    }
    taken
}

/// What every memory must do. `log` makes one of 64 slots.
fn conforms<M: Memory>(log: impl Fn(Hold) -> Log<M>) {
    let mut buffer = Vec::new();
    let at_once = Hold {
        lag: None,
        time: Duration::ZERO,
    };

    // Empty gives nothing, again and again.
    let mut one = log(Hold::default());
    let mut reader = one.reader(LOSSY);
    assert_eq!(reader.try_recv(&mut buffer), Ok(None));
    let nothing = reader.recv(&mut buffer, Duration::from_millis(5));
    assert_eq!(nothing, Err(RecvError::TimedOut));

    // Every length, at every place in the ring, to a lossy and a reliable reader.
    let limit = one.writer.message_limit();
    assert_eq!(limit, 48 + 31 * 56);
    let mut second = one.reader(RELIABLE);
    for (n, len) in (0..=limit)
        .chain([0, 1, limit, limit, 47, 48, 49])
        .enumerate()
    {
        let n = n as u64;
        one.send(n, len).unwrap();
        for reader in [&mut reader, &mut second] {
            let message = reader.try_recv(&mut buffer).unwrap().unwrap();
            let (number, lost) = (n, 0);
            assert_eq!(
                message,
                Message {
                    tag: tag(n),
                    reference: false,
                    number,
                    lost
                }
            );
            assert_eq!(buffer, pattern(len, n), "length {len}");
            assert_eq!(reader.try_recv(&mut buffer), Ok(None));
        }
    }
    let len = limit + 1;
    let too_long = one.writer.try_send(TAG, &vec![0; len]);
    assert_eq!(too_long, Err(SendError::TooLong { len, limit }));

    // A lossy reader that sleeps through a lap is told how much it lost, and goes on with the oldest.
    let mut one = log(Hold::default());
    let mut reader = one.reader(LOSSY);
    for n in 0..100 {
        one.send(n, 8).unwrap();
    }
    let message = reader.try_recv(&mut buffer).unwrap().unwrap();
    assert!((36..100).contains(&message.lost));
    assert_eq!(message.lost, message.number);
    let rest = std::iter::from_fn(|| reader.try_recv(&mut buffer).unwrap());
    assert_eq!(
        1 + rest.inspect(|message| assert_eq!(message.lost, 0)).count() as u64 + message.lost,
        100
    );

    // Late joiners begin where they asked to.
    let mut late = one.reader(LOSSY);
    let later = one.reader(OLDEST);
    assert_eq!((late.first(), later.first()), (100, 36));
    one.send(100, 8).unwrap();
    assert_eq!(late.try_recv(&mut buffer).unwrap().unwrap().number, 100);

    // A reliable reader holds the producer up, until it reads.
    let mut one = log(Hold {
        lag: None,
        time: WATCHDOG,
    });
    let mut slow = one.reader(RELIABLE);
    let mut quick = one.reader(RELIABLE);
    let mut lossy = one.reader(LOSSY);
    for n in 0..64 {
        one.send(n, length(n, 48)).unwrap();
        assert!(quick.try_recv(&mut buffer).unwrap().is_some());
    }
    assert_eq!(one.send(64, 0), Err(SendError::Full { behind: 64 }));
    let waited = one.writer.send(tag(64), b"", Duration::from_millis(5));
    assert_eq!(waited, Err(SendError::Full { behind: 64 }));
    assert_eq!(drain(&mut slow, 48), 64);
    one.send(64, length(64, 48)).unwrap();
    assert_eq!((drain(&mut slow, 48), drain(&mut quick, 48)), (1, 1));
    assert!(drain(&mut lossy, 48) + lossy.counters().lost == 65);
    assert_eq!(one.writer.next_cut_off(), None);

    // One that doesn't is cut off and told so; the others lose nothing.
    let mut one = log(at_once);
    let mut slow = one.reader(RELIABLE);
    let mut quick = one.reader(RELIABLE);
    for n in 0..65 {
        one.send(n, 0).unwrap();
        assert!(quick.try_recv(&mut buffer).unwrap().is_some());
        assert_eq!(quick.try_recv(&mut buffer), Ok(None));
    }
    assert_eq!(one.writer.next_cut_off(), Some(ReaderId(0)));
    assert_eq!(one.writer.next_cut_off(), None);
    assert_eq!(one.writer.counters().cut_off, 1);
    assert_eq!(slow.recv(&mut buffer, WATCHDOG), Err(RecvError::CutOff));
    assert_eq!(slow.closer().status(), Some(Status::QUEUE_FULL));
    assert_eq!(
        one.writer.detach_reader(ReaderId(0)),
        Err(NoSuchReader(ReaderId(0)))
    );

    // A smaller lag holds it up earlier.
    let mut one = log(Hold {
        lag: Some(32),
        time: WATCHDOG,
    });
    let mut slow = one.reader(RELIABLE);
    for n in 0..32 {
        one.send(n, 0).unwrap();
    }
    assert_eq!(one.send(32, 0), Err(SendError::Full { behind: 32 }));
    assert!(slow.try_recv(&mut buffer).unwrap().is_some());

    // Batches on both sides, as many as there is room for.
    let mut one = log(Hold {
        lag: None,
        time: WATCHDOG,
    });
    let mut reader = one.reader(RELIABLE);
    let payloads: Vec<_> = (0..100).map(|n| pattern(20, n)).collect();
    let batch = || {
        (0..)
            .zip(&payloads)
            .map(|(n, payload)| (tag(n), &payload[..]))
    };
    assert_eq!(one.writer.try_send_batch(batch()), Ok(64));
    assert_eq!(
        one.writer.try_send_batch(batch()),
        Err(SendError::Full { behind: 64 })
    );
    let mut seen = Vec::new();
    let taken = reader.try_recv_batch(10, &mut buffer, |message, bytes| {
        seen.push((message.number, bytes.to_vec()))
    });
    assert_eq!(taken, Ok(10));
    assert_eq!(
        seen,
        (0..10).map(|n| (n, pattern(20, n))).collect::<Vec<_>>()
    );
    assert_eq!(one.writer.try_send_batch(batch()), Ok(10));

    // What was committed before the close is still received, except by one who may no longer read it.
    let mut one = log(Hold::default());
    let mut reader = one.reader(LOSSY);
    let mut denied = one.reader(LOSSY);
    one.send(0, 0).unwrap();
    reader.closer().close(Status::PEER_GONE);
    denied.closer().close(Status::DENIED);
    assert!(reader.recv(&mut buffer, WATCHDOG).is_ok());
    let gone = Err(RecvError::Closed(Status::PEER_GONE));
    assert_eq!(reader.recv(&mut buffer, WATCHDOG), gone);
    let denied = denied.recv(&mut buffer, WATCHDOG);
    assert_eq!(denied, Err(RecvError::Closed(Status::DENIED)));
    one.writer.closer().close(Status::OK);
    assert_eq!(one.send(1, 0), Err(SendError::Closed(Status::OK)));

    // Readers come and go while it runs.
    let mut one = log(at_once);
    let mut stays = one.reader(LOSSY);
    for n in 0..500 {
        let mut passing = one.reader(if n % 2 == 0 { LOSSY } else { RELIABLE });
        one.send(n, 0).unwrap();
        assert_eq!(passing.try_recv(&mut buffer).unwrap().unwrap().number, n);
        assert!(stays.try_recv(&mut buffer).unwrap().is_some());
        one.writer.detach_reader(ReaderId(one.readers - 1)).unwrap();
    }
    assert_eq!(one.writer.readers().count(), 1);
    let snapshot = one.writer.readers().next().unwrap();
    assert_eq!(
        (snapshot.id, snapshot.delivery),
        (ReaderId(0), Delivery::Lossy)
    );
    assert!(snapshot.counters.messages >= 500 - 16 && snapshot.behind <= 16);
    assert!(snapshot.latency.count() > 0);
}

#[test]
fn heap_memory_conforms() {
    conforms(|hold| Log::new(OnHeap, 64, hold));
}

#[test]
fn sealed_memfds_conform() {
    conforms(|hold| Log::new(Sealed, 64, hold));
}

/// Threads that read, each in its own way, while the log is written at different paces.
fn readers_of_all_kinds<M: Memory>(memory: M, count: u64, kinds: &[ReaderOptions])
where
    M::W: Send,
{
    let hold = Hold {
        lag: None,
        time: WATCHDOG,
    };
    let mut log = Log::new(memory, 64, hold);
    let limit = 200;
    let threads: Vec<_> = kinds
        .iter()
        .map(|options| {
            let mut reader = log.reader(*options);
            let options = *options;
            thread::spawn(move || {
                let mut buffer = Vec::new();
                let (mut received, mut lost) = (0, 0);
                while received + lost < count {
                    let message = reader.recv(&mut buffer, WATCHDOG).unwrap();
                    let n = message.number;
                    assert_eq!(message.tag, tag(n));
                    assert_eq!(buffer, pattern(length(n, limit), n));
                    received += 1;
                    lost += message.lost;
                    assert_eq!(received + lost, n + 1);
                }
                assert_eq!(
                    (reader.counters().messages, reader.counters().lost),
                    (received, lost)
                );
                if options.delivery == Delivery::Reliable {
                    assert_eq!(lost, 0);
                }
            })
        })
        .collect();
    for n in 0..count {
        // Now and then all readers find the time to fall asleep.
        if n % 4096 == 4095 {
            let asleep = |snapshot: &ReaderSnapshot| snapshot.behind == 0;
            while !log.writer.readers().all(|reader| asleep(&reader)) {
                thread::yield_now();
            }
        }
        let payload = pattern(length(n, limit), n);
        log.writer.send(tag(n), &payload, WATCHDOG).unwrap();
    }
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(log.writer.next_cut_off(), None);
}

fn kinds() -> Vec<ReaderOptions> {
    let mut kinds = Vec::new();
    for delivery in [Delivery::Lossy, Delivery::Reliable] {
        for waiting in [Waiting::Adaptive, Waiting::Blocking, Waiting::Adaptive] {
            kinds.push(ReaderOptions {
                start: Start::Head,
                delivery,
                waiting,
            });
        }
    }
    kinds
}

#[test]
fn readers_of_all_kinds_account_for_every_message() {
    readers_of_all_kinds(Sealed, 30_000, &kinds());
}

#[test]
fn lossy_readers_account_for_every_message_whatever_the_pace() {
    readers_of_all_kinds(OnHeap, 100_000, &[LOSSY; 6]);
}

/// The doorbell's modes: a stream long enough to stop looking, then silence, then one message for all.
#[test]
fn a_reader_that_falls_asleep_after_a_long_stream_is_woken_by_the_next_message() {
    let mut log = Log::new(Sealed, 64, Hold::default());
    let told: Vec<_> = (0..8)
        .map(|_| {
            let mut reader = log.reader(ReaderOptions {
                waiting: Waiting::Blocking,
                ..LOSSY
            });
            let (say, hear) = std::sync::mpsc::channel();
            thread::spawn(move || {
                let mut buffer = Vec::new();
                while let Ok(message) = reader.recv(&mut buffer, WATCHDOG) {
                    if say.send(message.number).is_err() || message.tag.kind == 0 {
                        return;
                    }
                }
            });
            hear
        })
        .collect();
    let mut number = 0;
    for round in 0..20 {
        for _ in 0..5000 {
            log.send(number, 8).unwrap();
            number += 1;
        }
        let last = number - 1;
        for hear in &told {
            // Each reader gets to the last message, then goes to sleep, however far it had fallen behind.
            loop {
                let seen = hear.recv_timeout(WATCHDOG).expect("woken");
                if seen == last {
                    break;
                }
            }
        }
        let kind = if round == 19 { 0 } else { TAG.kind };
        log.writer.try_send(Tag { kind, ..TAG }, b"").unwrap();
        for hear in &told {
            assert_eq!(hear.recv_timeout(WATCHDOG).expect("woken"), number);
        }
        number += 1;
    }
}

#[test]
fn a_reader_waits_among_others_and_in_an_event_loop() {
    let mut log = Log::new(Sealed, 64, Hold::default());
    let mut reader = log.reader(LOSSY);
    let bell = Bell::new().unwrap();
    let ringer = crate::wait::Ringer::from_fd(bell.share().unwrap()).unwrap();
    reader.set_bell(bell);
    log.writer.set_ringer(ReaderId(0), ringer).unwrap();
    assert!(reader.bell().is_some());
    let mut waiter = Waiter::new(Waiting::Blocking);
    waiter.add(reader, crate::channel::Class::Normal).unwrap();
    let sending = thread::spawn(move || {
        log.send(0, 0).unwrap();
        log
    });
    assert!(waiter.next(Some(WATCHDOG)).unwrap().is_some());
    drop(sending.join().unwrap());
}

#[test]
fn a_slot_is_the_documented_cache_line() {
    let data = Heap::new(data_words(4));
    format_data(&data, 4).unwrap();
    let mut writer: Writer<_, Heap> =
        Writer::new(data.clone(), Closer::default(), WriterOptions::default()).unwrap();
    let payload: Vec<u8> = (1..=50).collect();
    writer.try_send(TAG, &payload).unwrap();
    let bytes: Vec<u8> = data.words()[PAGE_WORDS..PAGE_WORDS + 16]
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect();
    let mut golden = vec![
        4, 0, 0, 0, 0, 0, 0, 0, 50, 0, 4, 0x25, 0xEF, 0xBE, 0xAD, 0xDE,
    ];
    golden.extend(1..=48);
    golden.extend([6, 0, 0, 0, 0, 0, 0, 0, 49, 50]);
    golden.resize(128, 0);
    assert_eq!(bytes, golden);
}

#[test]
fn a_lane_that_drops_its_oldest_is_a_log_with_one_reader() {
    let (data, cursor) = (Heap::new(data_words(8)), Heap::new(cursor_words()));
    let options = ReaderOptions::drop_oldest(Waiting::Adaptive);
    format_data(&data, 8).unwrap();
    format_cursor(&cursor, &options).unwrap();
    let mut reader = Reader::new(data.clone(), cursor.clone(), Closer::default(), options).unwrap();
    let mut writer = Writer::drop_oldest(data, cursor, Closer::default()).unwrap();
    for n in 0..20 {
        writer.try_send(tag(n), b"").unwrap();
    }
    let mut buffer = Vec::new();
    let message = reader.try_recv(&mut buffer).unwrap().unwrap();
    assert!(message.lost >= 12 && message.number == message.lost);
    let rest = std::iter::from_fn(|| reader.try_recv(&mut buffer).unwrap()).count() as u64;
    assert_eq!(message.lost + 1 + rest, 20);
}

#[test]
fn references_say_when_what_they_refer_to_may_have_gone() {
    let mut log = heap(8);
    let mut reader = log.reader(LOSSY);
    let mut buffer = Vec::new();
    assert!(!reader.still_there());
    log.writer
        .try_send_reference(TAG, &[9; 32], 1 << 20)
        .unwrap();
    assert_eq!(log.writer.counters().bytes, 1 << 20);
    let message = reader.try_recv(&mut buffer).unwrap().unwrap();
    assert!(message.reference && message.tag == TAG && buffer == [9; 32]);
    assert!(reader.still_there());
    assert_eq!(log.writer.reclaimable(), 0);
    for n in 1..9 {
        log.send(n, 0).unwrap();
    }
    assert!(!reader.still_there());
    assert_eq!(log.writer.reclaimable(), 1);

    let mut log = heap(8);
    let mut reader = log.reader(RELIABLE);
    log.send(0, 0).unwrap();
    assert_eq!(log.writer.reclaimable(), 0);
    assert_eq!(drain(&mut reader, 0), 1);
    assert_eq!(log.writer.reclaimable(), log.writer.next_slot());
}

#[test]
fn headers_of_other_memory_are_refused() {
    let (data, cursor) = (Heap::new(data_words(4)), Heap::new(cursor_words()));
    let reader = |data: &Heap, cursor: &Heap| {
        Reader::new(data.clone(), cursor.clone(), Closer::default(), LOSSY).map(drop)
    };
    let not_a_log = |result| matches!(result, Err(LayoutError::Magic { found: 0, .. }));
    assert!(not_a_log(reader(&data, &cursor)));
    let found = 3;
    assert_eq!(format_data(&data, 3), Err(LayoutError::Capacity { found }));
    format_data(&data, 4).unwrap();
    assert!(not_a_log(reader(&data, &cursor)));
    let hold = Hold {
        lag: Some(1),
        time: WATCHDOG,
    };
    let options = WriterOptions {
        hold,
        ..WriterOptions::default()
    };
    let lag: Result<Writer<_, Heap>, _> = Writer::new(data.clone(), Closer::default(), options);
    let (found, low, high) = (1, 2, 4);
    assert_eq!(lag.map(drop), Err(LayoutError::Lag { found, low, high }));

    let mut writer =
        Writer::new(data.clone(), Closer::default(), WriterOptions::default()).unwrap();
    let mut attach =
        |id, cursor: &Heap| writer.attach_reader(ReaderId(id), cursor.clone(), Delivery::Lossy);
    assert!(matches!(
        attach(0, &cursor),
        Err(AttachError::Layout(LayoutError::Magic { .. }))
    ));
    format_cursor(&cursor, &LOSSY).unwrap();
    reader(&data, &cursor).unwrap();
    cursor.words()[PARKED_AT_WORD].store(3, Ordering::Relaxed);
    let found = 3;
    assert_eq!(
        attach(0, &cursor),
        Err(AttachError::Layout(LayoutError::Flag { found }))
    );
    format_cursor(&cursor, &LOSSY).unwrap();
    attach(0, &cursor).unwrap();
    assert_eq!(attach(0, &cursor), Err(AttachError::Twice(ReaderId(0))));
    assert_eq!(attach(1, &cursor), Err(AttachError::Key));
}

#[test]
fn a_log_has_so_many_readers_and_no_more() {
    let mut log = heap(8);
    let mut readers: Vec<_> = (0..READERS_MAX).map(|_| log.reader(LOSSY)).collect();
    let cursor = Heap::new(cursor_words());
    format_cursor(&cursor, &LOSSY).unwrap();
    let one_more = log
        .writer
        .attach_reader(ReaderId(u32::MAX), cursor.clone(), Delivery::Lossy);
    assert_eq!(one_more, Err(AttachError::TooMany));
    log.writer.detach_reader(ReaderId(5)).unwrap();
    log.writer
        .attach_reader(ReaderId(u32::MAX), cursor, Delivery::Lossy)
        .unwrap();
    for n in 0..3000 {
        log.send(n, 0).unwrap();
    }
    for reader in &mut readers {
        assert_eq!(drain(reader, 0) + reader.counters().lost, 3000);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_message_is_received_or_lost_by_every_reader(
        steps in proptest::collection::vec((0usize..6, 0usize..250), 1..200),
    ) {
        let mut log = heap(8);
        let limit = log.writer.message_limit();
        let mut readers = Vec::new();
        let mut published = 0u64;
        for (who, len) in steps {
            match who {
                0..=2 => {
                    let payload = pattern(len.min(limit), published);
                    log.writer.try_send(tag(published), &payload).unwrap();
                    published += 1;
                }
                3 if readers.len() < 5 => {
                    readers.push(log.reader(if len % 2 == 0 { LOSSY } else { OLDEST }));
                }
                _ => {
                    let many = readers.len();
                    if let Some(reader) = readers.get_mut(len % many.max(1)) {
                        let mut buffer = Vec::new();
                        if let Some(message) = reader.try_recv(&mut buffer).unwrap() {
                            prop_assert_eq!(&buffer, &pattern(buffer.len(), message.number));
                        }
                    }
                }
            }
            for reader in &readers {
                let counters = reader.counters();
                prop_assert_eq!(reader.first() + counters.messages + counters.lost, reader.number());
                prop_assert!(reader.number() <= published);
            }
        }
        for reader in &mut readers {
            let mut buffer = Vec::new();
            while reader.try_recv(&mut buffer).unwrap().is_some() {}
            prop_assert_eq!(reader.number(), published);
        }
    }
}
