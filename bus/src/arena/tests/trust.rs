//! Owners and receivers that die at any store, lie, or write while the other side reads.

use std::sync::atomic::{AtomicBool, AtomicU64 as Plain, Ordering as Order};
use std::time::Duration;

use proptest::prelude::*;

use super::bulk::{HeapReceiver, HeapSender, WATCHDOG, heap_ends, lane, small, tag};
use super::*;
use crate::arena::segment::{Announce, Budget, FdArrivals, MemfdSupply, SegmentOptions};
use crate::lane::SenderOptions;
use crate::lane::ring::{RecvError, SendError};
use crate::message::Status;
use crate::shm::PAGE_WORDS;
use crate::shm::atomics::Ordering;
use crate::shm::counters::{CONSUMED_WORD, LIMIT_WORD};
use crate::shm::region::crash;

#[test]
fn a_payload_is_whole_or_not_there_wherever_its_owner_dies() {
    for (before, len) in [(0u64, 300usize), (3, 1000), (5, 4000)] {
        for stores in 0.. {
            let (mut sender, mut receiver) = heap_ends(small(), SenderOptions::default());
            let mut buffer = Vec::new();
            // So that the block is one that held something else before.
            for n in 0..before {
                sender.try_send(tag(n), &pattern(5000, n)).unwrap();
                receiver.recv(&mut buffer, WATCHDOG).unwrap();
                assert!(receiver.try_recv(&mut buffer).unwrap().is_none());
                sender.reclaim().unwrap();
            }
            crash::after(Some(stores));
            sender.try_send(tag(99), &pattern(len, 99)).unwrap();
            let finished = crash::may_store();
            crash::after(None);
            match receiver.try_recv(&mut buffer).unwrap() {
                Some(found) => assert_eq!((found, &buffer), (tag(99), &pattern(len, 99))),
                None => assert!(!finished, "a finished send is received"),
            }
            if finished {
                assert!(stores > len as u64 / 64);
                break;
            }
        }
    }
}

#[test]
fn an_old_reference_never_yields_a_mixture_wherever_the_owner_dies_reusing_its_block() {
    for stores in 0.. {
        let memory = Heap::new(4096 / 8);
        let mut arena = Arena::new(4);
        let mut reader = Reader::new(4096);
        reader
            .add(arena.add(memory.clone()).unwrap(), memory)
            .unwrap();
        let old = arena.store(&[0xAA; 700]).unwrap();
        let reference = old.reference();
        crash::after(Some(stores));
        arena.release(old);
        let _new = arena.store(&[0xBB; 900]).unwrap();
        let finished = crash::may_store();
        crash::after(None);
        let mut buffer = Vec::new();
        match reader.read(&reference, &mut buffer) {
            Ok(()) => assert!(stores == 0 && buffer == [0xAA; 700]),
            Err(error) => assert!(matches!(error, ReferenceError::Stale { .. }), "{error}"),
        }
        if finished {
            break;
        }
    }
}

/// A lossy reader: it reads whatever was offered last, while the owner reuses the blocks.
#[test]
fn a_reader_that_is_overtaken_gets_an_error_or_the_payload_it_asked_for() {
    let memory = Heap::new((16 << 10) / 8);
    let mut arena = Arena::new(4);
    let mut reader = Reader::new(1 << 20);
    reader
        .add(arena.add(memory.clone()).unwrap(), memory)
        .unwrap();
    // The reference and what its payload is made of, guarded by a sequence as a lossy log's slot is.
    let slot: [Plain; 5] = std::array::from_fn(|_| Plain::new(0));
    let done = AtomicBool::new(false);
    let mut good = 0;
    std::thread::scope(|scope| {
        let finish = Finish(&done);
        scope.spawn(|| {
            let mut n = 0u64;
            while !done.load(Order::Relaxed) {
                n += 1;
                let fill = n as u8;
                let stored = arena
                    .store(&vec![fill; 1000 + (n % 7) as usize * 500])
                    .unwrap();
                let bytes = stored.reference().to_bytes();
                slot[0].store(0, Order::Relaxed);
                std::sync::atomic::fence(Order::Release);
                for (word, at) in slot[1..4].iter().zip((0..24).step_by(8)) {
                    word.store(
                        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()),
                        Order::Relaxed,
                    );
                }
                slot[4].store(u64::from(fill), Order::Relaxed);
                slot[0].store(n, Order::Release);
                arena.hold(n, stored);
                arena.reclaim(n.saturating_sub(1));
            }
        });
        let mut buffer = Vec::new();
        while good < 2_000 {
            let before = slot[0].load(Order::Acquire);
            let words: [u64; 4] = std::array::from_fn(|at| slot[at + 1].load(Order::Relaxed));
            std::sync::atomic::fence(Order::Acquire);
            if before == 0 || slot[0].load(Order::Relaxed) != before {
                continue;
            }
            let mut bytes = [0; REFERENCE_BYTES];
            for (at, word) in words[..3].iter().enumerate() {
                bytes[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
            }
            let reference = Reference::parse(&bytes).unwrap();
            match reader.read(&reference, &mut buffer) {
                Ok(()) => {
                    good += 1;
                    assert_eq!(buffer.len() as u64, reference.length);
                    assert!(
                        buffer.iter().all(|&byte| u64::from(byte) == words[3]),
                        "a mixture"
                    );
                }
                Err(error) => {
                    let expected = matches!(
                        error,
                        ReferenceError::Stale { .. } | ReferenceError::Disagrees { .. }
                    );
                    assert!(expected && buffer.is_empty(), "{error}");
                }
            }
        }
        drop(finish);
    });
}

/// Ends the other thread also when an assertion fails.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Order::Relaxed);
    }
}

#[test]
fn an_owner_that_changes_its_headers_during_the_copy_misleads_nobody_about_the_length() {
    let memory = Heap::new((64 << 10) / 8);
    let mut arena = Arena::new(4);
    let mut reader = Reader::new(1 << 20);
    reader
        .add(arena.add(memory.clone()).unwrap(), memory.clone())
        .unwrap();
    let stored = arena.store(&[7; 30_000]).unwrap();
    let reference = stored.reference();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let finish = Finish(&done);
        scope.spawn(|| {
            let header = (reference.offset / 8) as usize;
            for n in 0u64.. {
                if done.load(Order::Relaxed) {
                    return;
                }
                let length = if n % 3 == 0 {
                    u64::MAX - n
                } else {
                    reference.length
                };
                memory.words()[header + LENGTH_WORD].store(length, Ordering::Relaxed);
                let generation = u64::from(reference.generation) | (n % 2) << 32;
                memory.words()[header + GENERATION_WORD].store(generation, Ordering::Relaxed);
            }
        });
        let mut buffer = Vec::new();
        for _ in 0..3_000 {
            match reader.read(&reference, &mut buffer) {
                Ok(()) => assert!(buffer == [7; 30_000]),
                Err(ReferenceError::Stale { .. } | ReferenceError::Disagrees { .. }) => {
                    assert!(buffer.is_empty())
                }
                Err(other) => panic!("{other}"),
            }
        }
        drop(finish);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_reference_into_any_memory_gives_its_length_of_bytes_or_an_error(
        scribbles in proptest::collection::vec((0usize..512, any::<u64>()), 0..40),
        fields in (0u32..3, any::<u32>(), any::<u64>(), any::<u64>()),
        near in any::<bool>(),
    ) {
        let memory = Heap::new(512);
        let mut reader = Reader::new(1 << 20);
        reader.add(1, memory.clone()).unwrap();
        for (at, value) in scribbles {
            memory.words()[at].store(if near { value % 5000 } else { value }, Ordering::Relaxed);
        }
        let (segment, generation, offset, length) = fields;
        let (offset, length) = if near { ((offset % 5000) & !63, length % 5000) } else { (offset, length) };
        let reference = Reference { segment, generation, offset, length };
        if near && length > 0 && offset + 64 <= 4096 {
            // Make the header agree, so that the bounds decide.
            let header = (offset / 8) as usize;
            memory.words()[header].store(u64::from(generation), Ordering::Relaxed);
            memory.words()[header + 1].store(length, Ordering::Relaxed);
        }
        let mut buffer = vec![1, 2, 3];
        let parsed = Reference::parse(&reference.to_bytes());
        match parsed.and_then(|reference| reader.read(&reference, &mut buffer)) {
            Ok(()) => {
                prop_assert_eq!(segment, 1);
                prop_assert!(generation != 0 && length > 0 && offset + 64 + length <= 4096);
                prop_assert_eq!(buffer.len() as u64, length);
            }
            Err(_) => prop_assert!(buffer.is_empty() || parsed.is_err()),
        }
    }

    #[test]
    fn a_sender_that_puts_anything_into_its_slots_only_ends_its_own_channel(
        references in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 32), 1..8),
        plausible in any::<bool>(),
    ) {
        let (mut producer, consumer) = lane(16, SenderOptions::default());
        let road = super::bulk::Road::<Heap>::default();
        let mut receiver: HeapReceiver = BulkReceiver::new(consumer, road, 1 << 20);
        for mut reference in references {
            if plausible {
                reference[24..].fill(0);
                reference[8] &= 0xC0;
            }
            producer.try_send_reference(tag(0), &reference.try_into().unwrap(), 1).unwrap();
        }
        match receiver.try_recv(&mut Vec::new()) {
            // Its segment may still come.
            Ok(found) => prop_assert!(found.is_none()),
            Err(BulkRecvError::Reference(_)) => {
                prop_assert_eq!(receiver.closer().status(), Some(Status::MALFORMED));
                prop_assert_eq!(receiver.consumer().received().refused, 1);
                let end = receiver.try_recv(&mut Vec::new());
                prop_assert!(matches!(end, Err(BulkRecvError::Lane(RecvError::Closed(Status::MALFORMED)))));
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn a_receiver_that_says_anything_about_its_position_only_ends_its_own_channel(
        values in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..40), small_values in any::<bool>(),
    ) {
        use crate::lane::ring::{Producer, format_cursor, format_data};
        use crate::lane::{Inline, ReceiverOptions, cursor_words, data_words};
        use crate::shm::park::Closer;
        let (data, cursor) = (Heap::new(data_words(16, Inline::Small)), Heap::new(cursor_words()));
        prop_assert_eq!(cursor.words().len(), PAGE_WORDS);
        format_data(&data, 16, &SenderOptions::default()).unwrap();
        format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
        let producer = Producer::new(data, cursor.clone(), Closer::default(), SenderOptions::default()).unwrap();
        let mut sender: HeapSender = BulkSender::new(producer, super::bulk::Road::default(), small()).unwrap();
        for (limit, consumed) in values {
            let (limit, consumed) = if small_values { (limit % 64, consumed % 64) } else { (limit, consumed) };
            for n in 0..4 {
                match sender.try_send(tag(n), &pattern(3000, n)) {
                    Ok(()) => {}
                    Err(error) if error.is_full() => {}
                    Err(BulkSendError::Lane(SendError::Corrupt { .. } | SendError::Closed(Status::MALFORMED))) => {}
                    Err(other) => prop_assert!(false, "{}", other),
                }
                let usage = sender.usage();
                prop_assert!(usage.taken <= usage.bytes && usage.held <= 16);
            }
            cursor.words()[LIMIT_WORD].store(limit, Ordering::Relaxed);
            cursor.words()[CONSUMED_WORD].store(consumed, Ordering::Relaxed);
        }
    }
}

/// Keeps the descriptors of segments, as a receiver would.
#[derive(Debug, Default)]
struct Kept(std::sync::Arc<std::sync::Mutex<Vec<(u32, std::os::fd::OwnedFd)>>>);

impl Announce for Kept {
    fn segment(&mut self, number: u32, fd: std::os::fd::BorrowedFd<'_>) -> std::io::Result<()> {
        let fd = fd.try_clone_to_owned()?;
        self.0.lock().unwrap().push((number, fd));
        Ok(())
    }

    fn dropped(&mut self, _number: u32) {}
}

#[test]
fn the_death_of_a_receiver_gives_everything_back() {
    let budget = Budget::new(8 << 20);
    let (producer, consumer) = lane(16, SenderOptions::default());
    let options = SegmentOptions {
        bytes: 1 << 20,
        largest: PageKind::Small,
        budget: budget.clone(),
        ..SegmentOptions::default()
    };
    let supply = MemfdSupply::new(options, Kept::default());
    let mut sender = BulkSender::new(producer, supply, small()).unwrap();
    for n in 0..5 {
        sender
            .send(tag(n), &pattern(150_000 * (n as usize + 1), n), WATCHDOG)
            .unwrap_or_else(|error| {
                assert!(error.is_full(), "{error}");
            });
        if sender.usage().held < n as usize + 1 {
            break;
        }
    }
    assert!(sender.usage().held > 0 && budget.left() < 8 << 20);
    // It dies with messages unread; the daemon tells us.
    drop(consumer);
    sender.closer().close(Status::PEER_GONE);
    let error = sender
        .send(tag(9), &pattern(1000, 9), Duration::ZERO)
        .unwrap_err();
    assert!(
        matches!(
            error,
            BulkSendError::Lane(SendError::Closed(Status::PEER_GONE))
        ),
        "{error}"
    );
    drop(sender);
    assert_eq!(budget.left(), 8 << 20);
}

#[test]
fn an_owner_process_killed_at_random_leaves_only_whole_payloads() {
    for round in 0..12u64 {
        let (data, data_fd) = memfd::create(
            "lane-data",
            crate::lane::data_words(64, crate::lane::Inline::Small),
        )
        .unwrap();
        let (cursor, cursor_fd) =
            memfd::create("lane-cursor", crate::lane::cursor_words()).unwrap();
        let (sender_options, receiver_options) = (
            SenderOptions::default(),
            crate::lane::ReceiverOptions::default(),
        );
        crate::lane::ring::format_data(&data, 64, &sender_options).unwrap();
        crate::lane::ring::format_cursor(&cursor, &receiver_options).unwrap();
        let data_there = memfd::open(data_fd.as_fd()).unwrap();
        let cursor_there = memfd::open(cursor_fd.as_fd()).unwrap();
        let closer = crate::shm::park::Closer::default;
        let producer =
            crate::lane::ring::Producer::new(data, cursor_there, closer(), sender_options).unwrap();
        let consumer =
            crate::lane::ring::Consumer::new(data_there, cursor, closer(), receiver_options)
                .unwrap();
        let kept = Kept::default();
        let fds = std::sync::Arc::clone(&kept.0);
        let options = SegmentOptions {
            bytes: 1 << 20,
            ..SegmentOptions::default()
        };
        let mut sender = BulkSender::new(
            producer,
            MemfdSupply::new(options, kept),
            BulkOptions {
                grow_to: 0,
                first: 1 << 20,
                ..small()
            },
        )
        .unwrap();
        let arrivals = FdArrivals::new(move |_| fds.lock().unwrap().pop());
        let mut receiver = BulkReceiver::new(consumer, arrivals, 1 << 24);
        let payloads: Vec<Vec<u8>> = (0..16).map(|n| pattern(n * 3001, n as u64)).collect();
        // SAFETY: the child only sends, which allocates nothing, takes no lock and calls the kernel for futexes and
        // the time only; it leaves by SIGKILL or `_exit`, without unwinding or running destructors.
        let child = match unsafe { libc::fork() } {
            0 => {
                for n in 0u64.. {
                    if sender
                        .send(tag(n), &payloads[n as usize % 16], WATCHDOG)
                        .is_err()
                    {
                        break;
                    }
                }
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(0) }
            }
            pid => rustix::process::Pid::from_raw(pid).expect("fork"),
        };
        let (mut received, mut buffer) = (0u64, Vec::new());
        let end = loop {
            match receiver.recv(&mut buffer, WATCHDOG) {
                Ok(found) => {
                    assert_eq!(found, tag(received));
                    assert!(
                        buffer == payloads[received as usize % 16],
                        "message {received}"
                    );
                    received += 1;
                }
                Err(end) => break end,
            }
            if received == 40 + round * 17 {
                rustix::process::kill_process(child, rustix::process::Signal::KILL).unwrap();
                rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())
                    .unwrap();
                // As the daemon does when the kernel tells it of the death.
                receiver.closer().close(Status::PEER_GONE);
            }
        };
        assert!(
            matches!(
                end,
                BulkRecvError::Lane(RecvError::Closed(Status::PEER_GONE))
            ),
            "{end}"
        );
        assert!(received >= 40 + round * 17);
    }
}
