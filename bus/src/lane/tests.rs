//! One conformance suite for both memories; crashes at every store; hostile peers; two processes.

use std::os::fd::AsFd;
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::SealFlags;

use super::ring::{
    Consumer, Producer, RecvError, SendError, Tag, format_cursor, format_data, message_limit,
};
use super::*;
use crate::message::Status;
use crate::shm::atomics::Ordering;
use crate::shm::counters::{CAPACITY_WORD, LIMIT_WORD};
use crate::shm::memfd::{self, Mapping, MemfdError};
use crate::shm::park::Closer;
use crate::shm::region::{Heap, Words, crash};

const WATCHDOG: Duration = Duration::from_secs(30);
const TAG: Tag = Tag {
    kind: 4,
    flags: 0x25,
    correlation: 0xDEAD_BEEF,
};

fn heap(capacity: usize) -> (Producer<Heap, Heap>, Consumer<Heap, Heap>) {
    let (data, cursor) = (Heap::new(data_words(capacity)), Heap::new(cursor_words()));
    format_data(&data, capacity, &SenderOptions::default()).unwrap();
    format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
    let producer = Producer::new(
        data.clone(),
        cursor.clone(),
        Closer::default(),
        SenderOptions::default(),
    )
    .unwrap();
    (
        producer,
        Consumer::new(data, cursor, Closer::default(), ReceiverOptions::default()).unwrap(),
    )
}

fn shared(capacity: usize) -> (Producer<Mapping, Mapping>, Consumer<Mapping, Mapping>) {
    let words = data_words(capacity).next_multiple_of(PAGE_WORDS);
    assert_eq!(
        words,
        data_words(capacity),
        "tests use whole pages of slots"
    );
    let (data, data_fd) = memfd::create("lane-data", words).unwrap();
    let (cursor, cursor_fd) = memfd::create("lane-cursor", cursor_words()).unwrap();
    format_data(&data, capacity, &SenderOptions::default()).unwrap();
    format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
    let data_there = memfd::open(data_fd.as_fd()).unwrap();
    let cursor_there = memfd::open(cursor_fd.as_fd()).unwrap();
    let producer = Producer::new(
        data,
        cursor_there,
        Closer::default(),
        SenderOptions::default(),
    )
    .unwrap();
    (
        producer,
        Consumer::new(
            data_there,
            cursor,
            Closer::default(),
            ReceiverOptions::default(),
        )
        .unwrap(),
    )
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u64).wrapping_mul(31).wrapping_add(seed) as u8)
        .collect()
}

/// What every memory must do. `capacity` is 64 for all.
fn conforms<D: Words + 'static, C: Words + 'static>(
    make: impl Fn() -> (Producer<D, C>, Consumer<D, C>),
) {
    let mut buffer = Vec::new();

    // Empty gives nothing, again and again.
    let (mut producer, mut consumer) = make();
    assert_eq!(consumer.try_recv(&mut buffer), Ok(None));
    assert_eq!(
        consumer.recv(&mut buffer, Duration::from_millis(5)),
        Err(RecvError::TimedOut)
    );

    // Every length, at every place in the ring.
    let limit = producer.message_limit();
    assert_eq!(limit, 48 + 63 * 56);
    for len in (0..=limit).chain([0, 1, limit, limit, 47, 48, 49]) {
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

    // Two threads, sleeping on both sides.
    let (mut producer, mut consumer) = make();
    let count = 20_000u64;
    let sending = std::thread::spawn(move || {
        for n in 0..count {
            let len = (n * 37 % 300) as usize;
            producer
                .send(
                    Tag {
                        correlation: n as u32,
                        ..TAG
                    },
                    &pattern(len, n),
                    WATCHDOG,
                )
                .unwrap();
        }
    });
    for n in 0..count {
        let tag = consumer.recv(&mut buffer, WATCHDOG).unwrap();
        assert_eq!(u64::from(tag.correlation), n);
        assert_eq!(buffer, pattern((n * 37 % 300) as usize, n));
    }
    sending.join().unwrap();

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

#[test]
fn heap_memory_conforms() {
    conforms(|| heap(64));
}

#[test]
fn sealed_memfds_conform() {
    crate::shm::park::probe_waitv().unwrap();
    conforms(|| shared(64));
}

#[test]
fn a_slot_is_the_documented_cache_line() {
    let (data, cursor) = (Heap::new(data_words(2)), Heap::new(cursor_words()));
    format_data(&data, 2, &SenderOptions::default()).unwrap();
    format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
    let _consumer = Consumer::new(
        data.clone(),
        cursor.clone(),
        Closer::default(),
        ReceiverOptions::default(),
    )
    .unwrap();
    let mut producer = Producer::new(
        data.clone(),
        cursor,
        Closer::default(),
        SenderOptions::default(),
    )
    .unwrap();
    let payload: Vec<u8> = (1..=50).collect();
    producer.try_send(TAG, &payload).unwrap();
    let bytes: Vec<u8> = data.words()[PAGE_WORDS..]
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect();
    let mut golden = vec![
        1, 0, 0, 0, 0, 0, 0, 0, 50, 0, 4, 0x25, 0xEF, 0xBE, 0xAD, 0xDE,
    ];
    golden.extend(1..=48);
    golden.extend([2, 0, 0, 0, 0, 0, 0, 0, 49, 50]);
    golden.resize(128, 0);
    assert_eq!(bytes, golden);
}

#[test]
fn a_message_is_whole_or_not_there_wherever_its_producer_dies() {
    for len in [0, 48, 49, 200] {
        for lap in 0..3 {
            for stores in 0.. {
                let (mut producer, mut consumer) = heap(8);
                let mut buffer = Vec::new();
                for n in 0..lap * 5 {
                    producer.try_send(TAG, &[n]).unwrap();
                    consumer.try_recv(&mut buffer).unwrap().unwrap();
                }
                crash::after(Some(stores));
                producer.try_send(TAG, &pattern(len, 3)).unwrap();
                let finished = crash::may_store();
                crash::after(None);
                match consumer.try_recv(&mut buffer).unwrap() {
                    Some(tag) => assert_eq!((tag, &buffer), (TAG, &pattern(len, 3))),
                    None => assert!(!finished, "a finished send is received"),
                }
                assert_eq!(consumer.try_recv(&mut buffer), Ok(None));
                if finished {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_consumer_that_dies_at_any_store_loses_the_producer_nothing() {
    for stores in 0..12 {
        let (mut producer, mut consumer) = heap(4);
        let mut buffer = Vec::new();
        crash::after(Some(stores));
        for n in 0..4u8 {
            crash::after(None);
            producer.try_send(TAG, &[n]).unwrap();
            crash::after(Some(stores));
            consumer.try_recv(&mut buffer).unwrap().unwrap();
        }
        crash::after(None);
        // Whatever it published, the producer sees a cursor that it can trust or a full lane.
        loop {
            match producer.try_send(TAG, b"x") {
                Ok(()) => {}
                Err(SendError::Full) => break,
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn headers_of_other_memory_are_refused() {
    let (data, cursor) = (Heap::new(data_words(4)), Heap::new(cursor_words()));
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_producer_that_writes_anything_anywhere_only_ends_its_own_lane(
        scribbles in proptest::collection::vec((0usize..data_words(8), any::<u64>()), 1..60),
        small in any::<bool>(),
    ) {
        let (data, cursor) = (Heap::new(data_words(8)), Heap::new(cursor_words()));
        format_data(&data, 8, &SenderOptions::default()).unwrap();
        format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
        let mut consumer = Consumer::new(data.clone(), cursor, Closer::default(), ReceiverOptions::default()).unwrap();
        let mut buffer = Vec::new();
        for (at, value) in scribbles {
            // Small values hit plausible sequences and lengths much more often.
            data.words()[at].store(if small { value % 16 } else { value }, Ordering::Relaxed);
            match consumer.try_recv(&mut buffer) {
                Ok(_) => prop_assert!(buffer.len() <= message_limit(8)),
                Err(RecvError::Sequence { .. } | RecvError::Length { .. }) => {
                    prop_assert_eq!(consumer.closer().status(), Some(Status::MALFORMED));
                    break;
                }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }

    #[test]
    fn a_consumer_that_writes_anything_anywhere_only_ends_its_own_lane(
        values in proptest::collection::vec(any::<u64>(), 1..60), small in any::<bool>(),
    ) {
        let (data, cursor) = (Heap::new(data_words(8)), Heap::new(cursor_words()));
        format_data(&data, 8, &SenderOptions::default()).unwrap();
        format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
        let options = ReceiverOptions::default();
        drop(Consumer::new(data.clone(), cursor.clone(), Closer::default(), options).unwrap());
        let mut producer = Producer::new(data, cursor.clone(), Closer::default(), SenderOptions::default()).unwrap();
        for value in values {
            for _ in 0..3 {
                match producer.try_send(TAG, b"0123456789") {
                    Ok(()) | Err(SendError::Full | SendError::Corrupt { .. } | SendError::Closed(Status::MALFORMED)) => {}
                    Err(other) => prop_assert!(false, "{}", other),
                }
            }
            let value = if small { value % 32 } else { value };
            cursor.words()[LIMIT_WORD].store(value, Ordering::Relaxed);
        }
    }
}

#[test]
fn sealed_memory_can_be_written_by_nobody_else() {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let (mine, fd) = memfd::create("lane-data", PAGE_WORDS).unwrap();
    mine.words()[9].store(42, Ordering::Relaxed);
    let theirs = memfd::open(fd.as_fd()).unwrap();
    assert_eq!(theirs.words()[9].load(Ordering::Relaxed), 42);
    // SAFETY: a null hint maps fresh addresses; the call is expected to fail, and a mapping that it made
    // would stay unused.
    let writable = unsafe {
        mmap(
            std::ptr::null_mut(),
            4096,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &fd,
            0,
        )
    };
    assert_eq!(writable.err(), Some(rustix::io::Errno::PERM));
    assert_eq!(
        rustix::io::pwrite(&fd, b"x", 0),
        Err(rustix::io::Errno::PERM)
    );
    assert_eq!(rustix::fs::ftruncate(&fd, 0), Err(rustix::io::Errno::PERM));
    assert_eq!(
        rustix::fs::ftruncate(&fd, 8192),
        Err(rustix::io::Errno::PERM)
    );
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(
        rustix::fs::fallocate(&fd, hole, 0, 4096),
        Err(rustix::io::Errno::PERM)
    );
    assert_eq!(
        rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE),
        Err(rustix::io::Errno::PERM)
    );
}

#[test]
fn a_descriptor_without_its_seals_is_refused() {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(
        memfd::check_sealed(file.as_fd()),
        Err(MemfdError::NotMemory { .. })
    ));
    let fd = memfd_create("bare", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, 4096).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    let Err(MemfdError::Unsealed { missing }) = memfd::check_sealed(fd.as_fd()) else {
        panic!("taken unsealed")
    };
    assert_eq!(missing, SealFlags::FUTURE_WRITE | SealFlags::SEAL);
    let fd = memfd_create("odd", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, 4097).unwrap();
    fcntl_add_seals(&fd, memfd::REQUIRED_SEALS).unwrap();
    assert!(matches!(
        memfd::check_sealed(fd.as_fd()),
        Err(MemfdError::Size { bytes: 4097 })
    ));
    let fd = memfd_create("huge", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, memfd::BYTES_MAX + 4096).unwrap();
    fcntl_add_seals(&fd, memfd::REQUIRED_SEALS).unwrap();
    assert!(matches!(
        memfd::check_sealed(fd.as_fd()),
        Err(MemfdError::Size { .. })
    ));
}

/// Another process that runs `act`, which must neither allocate nor lock, until it is killed.
struct Child(rustix::process::Pid);

impl Child {
    fn run(act: impl FnOnce()) -> Self {
        // SAFETY: the child of a threaded process may only do what is async-signal-safe: `act` uses lanes,
        // whose sends and receives make no allocation, take no lock and call the kernel for futexes only, and
        // it leaves by `_exit` without unwinding or running destructors.
        match unsafe { libc::fork() } {
            0 => {
                act();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(0) }
            }
            pid => Self(rustix::process::Pid::from_raw(pid).expect("fork")),
        }
    }

    fn kill(self) {
        rustix::process::kill_process(self.0, rustix::process::Signal::KILL).unwrap();
        let (_, status) =
            rustix::process::waitpid(Some(self.0), rustix::process::WaitOptions::empty())
                .unwrap()
                .unwrap();
        assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
    }
}

#[test]
fn a_producer_process_killed_at_random_leaves_only_whole_messages() {
    for round in 0..40u64 {
        let (mut producer, mut consumer) = shared(64);
        let payloads: Vec<Vec<u8>> = (0..16).map(|n| pattern(n * 23, n as u64)).collect();
        let child = Child::run(|| {
            for n in 0u32.. {
                let payload = &payloads[n as usize % payloads.len()];
                if producer
                    .send(
                        Tag {
                            correlation: n,
                            ..TAG
                        },
                        payload,
                        WATCHDOG,
                    )
                    .is_err()
                {
                    return;
                }
            }
        });
        let closer = consumer.closer().clone();
        let mut buffer = Vec::new();
        let mut received = 0u32;
        let mut child = Some(child);
        let end = loop {
            match consumer.recv(&mut buffer, WATCHDOG) {
                Ok(tag) => {
                    assert_eq!(tag.correlation, received);
                    assert_eq!(buffer, payloads[received as usize % payloads.len()]);
                    received += 1;
                }
                Err(end) => break end,
            }
            if u64::from(received) == 50 + round * 13
                && let Some(child) = child.take()
            {
                child.kill();
                // As the daemon does when the kernel tells it of the death.
                closer.close(Status::PEER_GONE);
            }
        };
        assert_eq!(end, RecvError::Closed(Status::PEER_GONE));
        assert!(u64::from(received) >= 50 + round * 13);
    }
}

#[test]
fn a_consumer_process_killed_at_random_never_hangs_its_producer() {
    for round in 0..40u32 {
        let (mut producer, mut consumer) = shared(64);
        let mut buffer = Vec::with_capacity(MESSAGE_MAX);
        let child = Child::run(|| while consumer.recv(&mut buffer, WATCHDOG).is_ok() {});
        let closer = producer.closer().clone();
        let mut child = Some(child);
        let mut sent = 0u32;
        let end = loop {
            match producer.send(TAG, &[7; 100], WATCHDOG) {
                Ok(()) => sent += 1,
                Err(end) => break end,
            }
            if sent == 50 + round * 13
                && let Some(child) = child.take()
            {
                child.kill();
                closer.close(Status::PEER_GONE);
            }
        };
        assert_eq!(end, SendError::Closed(Status::PEER_GONE));
    }
}
