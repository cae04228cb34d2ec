//! Lane and arena together: order, every size, growth, shrinking, segments that come late, and two threads.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::super::segment::{Announce, Budget, FdArrivals, MemfdSupply, SegmentOptions};
use super::*;
use crate::channel::{Overflow, Tag};
use crate::lane::ring::{Consumer, Producer, RecvError, SendError, format_cursor, format_data};
use crate::lane::{Inline, ReceiverOptions, SenderOptions, cursor_words, data_words};
use crate::message::Status;
use crate::shm::park::Closer;

pub(super) const WATCHDOG: Duration = Duration::from_secs(30);

pub(super) fn tag(correlation: u64) -> Tag {
    Tag {
        kind: 4,
        flags: 0x21,
        correlation: correlation as u32,
    }
}

pub(super) type Ends = (Producer<Heap, Heap>, Consumer<Heap, Heap>);

pub(super) fn lane(capacity: usize, sender: SenderOptions) -> Ends {
    let receiver = ReceiverOptions::default();
    let (data, cursor) = (
        Heap::new(data_words(capacity, Inline::Small)),
        Heap::new(cursor_words()),
    );
    format_data(&data, capacity, &sender).unwrap();
    format_cursor(&cursor, &receiver).unwrap();
    let closer = Closer::default;
    (
        Producer::new(data.clone(), cursor.clone(), closer(), sender).unwrap(),
        Consumer::new(data, cursor, closer(), receiver).unwrap(),
    )
}

/// What stands in for the bus: segments on their way from owner to receiver.
#[derive(Debug)]
pub(super) struct Road<M>(Arc<(Queue<M>, Condvar)>);

type Queue<M> = Mutex<VecDeque<(u32, M)>>;

impl<M> Clone for Road<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> Default for Road<M> {
    fn default() -> Self {
        Self(Arc::new((Mutex::new(VecDeque::new()), Condvar::new())))
    }
}

impl<M> Road<M> {
    fn put(&self, number: u32, memory: M) {
        self.0.0.lock().unwrap().push_back((number, memory));
        self.0.1.notify_all();
    }

    fn take(&self, deadline: Option<Instant>) -> Option<(u32, M)> {
        let mut queue = self.0.0.lock().unwrap();
        loop {
            if let Some(next) = queue.pop_front() {
                return Some(next);
            }
            let left = deadline?.checked_duration_since(Instant::now())?;
            queue = self.0.1.wait_timeout(queue, left).unwrap().0;
        }
    }
}

impl Supply for Road<Heap> {
    type Memory = Heap;
    type Error = Infallible;

    fn segment(&mut self, number: u32, least: u64) -> Result<Heap, Infallible> {
        let memory = Heap::new(least.next_multiple_of(4096) as usize / 8);
        self.put(number, memory.clone());
        Ok(memory)
    }

    fn dropped(&mut self, _number: u32) {}
}

impl Arrivals for Road<Heap> {
    type Memory = Heap;
    type Error = Infallible;

    fn next(&mut self, deadline: Option<Instant>) -> Result<Option<(u32, Heap)>, Infallible> {
        Ok(self.take(deadline))
    }
}

pub(super) type HeapSender = BulkSender<Heap, Heap, Road<Heap>>;
pub(super) type HeapReceiver = BulkReceiver<Heap, Heap, Road<Heap>>;

pub(super) fn small() -> BulkOptions {
    BulkOptions {
        threshold: 200,
        first: 32 << 10,
        grow_to: 0,
    }
}

pub(super) fn heap_ends(options: BulkOptions, sender: SenderOptions) -> (HeapSender, HeapReceiver) {
    let (producer, consumer) = lane(16, sender);
    let road = Road::default();
    (
        BulkSender::new(producer, road.clone(), options).unwrap(),
        BulkReceiver::new(consumer, road, 16 << 20),
    )
}

impl Announce for Road<OwnedFd> {
    fn segment(&mut self, number: u32, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        self.put(number, fd.try_clone_to_owned()?);
        Ok(())
    }

    fn dropped(&mut self, _number: u32) {}
}

/// What every memory must do: order and bytes over all sizes, alone and with both sides running.
fn carries<D: Words + 'static, C: Words + 'static, S: Supply + 'static, A: Arrivals + 'static>(
    make: impl Fn() -> (BulkSender<D, C, S>, BulkReceiver<D, C, A>),
) where
    S::Memory: 'static,
    A::Memory: 'static,
{
    let mut buffer = Vec::new();
    let (mut sender, mut receiver) = make();
    for len in [0, 1, 48, 199, 200, 201, 4096, 10_000, 20_000, 100_000, 64] {
        sender
            .send(tag(len), &pattern(len as usize, len), WATCHDOG)
            .unwrap();
        assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(len));
        assert_eq!(buffer, pattern(len as usize, len));
        assert!(receiver.try_recv(&mut buffer).unwrap().is_none());
    }
    sender.reclaim().unwrap();
    assert_eq!((sender.usage().taken, sender.usage().held), (0, 0));

    let (mut sender, mut receiver) = make();
    let sizes = |n: u64| (n * 2_477 % 30_000) as usize;
    let count = 3_000;
    let sending = std::thread::spawn(move || {
        for n in 0..count {
            sender
                .send(tag(n), &pattern(sizes(n), n), WATCHDOG)
                .unwrap();
        }
        sender
    });
    for n in 0..count {
        assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(n));
        assert_eq!(buffer, pattern(sizes(n), n), "message {n}");
    }
    assert!(receiver.try_recv(&mut buffer).unwrap().is_none());
    let mut sender = sending.join().unwrap();
    sender.reclaim().unwrap();
    assert_eq!((sender.usage().taken, sender.usage().held), (0, 0));
}

#[test]
fn heap_memory_carries_all_sizes() {
    carries(|| heap_ends(small(), SenderOptions::default()));
    carries(|| {
        heap_ends(
            BulkOptions {
                grow_to: 1 << 20,
                ..small()
            },
            SenderOptions::default(),
        )
    });
}

#[test]
fn sealed_memory_carries_all_sizes() {
    for largest in [PageKind::Small, PageKind::Huge] {
        carries(|| {
            let (producer, consumer) = lane(16, SenderOptions::default());
            let road = Road::default();
            let options = SegmentOptions {
                bytes: 64 << 10,
                largest,
                budget: Budget::new(16 << 20),
                ..SegmentOptions::default()
            };
            let arrivals = road.clone();
            (
                BulkSender::new(producer, MemfdSupply::new(options, road), small()).unwrap(),
                BulkReceiver::new(
                    consumer,
                    FdArrivals::new(move |deadline| arrivals.take(deadline)),
                    16 << 20,
                ),
            )
        });
    }
}

#[test]
fn a_batch_is_what_is_there_in_order() {
    let (mut sender, mut receiver) = heap_ends(small(), SenderOptions::default());
    for n in 0..5 {
        sender
            .try_send(tag(n), &pattern(1000 * n as usize, n))
            .unwrap();
    }
    let mut seen = Vec::new();
    let take = |tag: Tag, payload: &[u8]| seen.push((tag, payload.to_vec()));
    assert_eq!(receiver.for_each(3, &mut Vec::new(), take).unwrap(), 3);
    let take = |tag: Tag, payload: &[u8]| seen.push((tag, payload.to_vec()));
    assert_eq!(receiver.for_each(9, &mut Vec::new(), take).unwrap(), 2);
    let expected: Vec<_> = (0..5)
        .map(|n| (tag(n), pattern(1000 * n as usize, n)))
        .collect();
    assert_eq!(seen, expected);
}

#[test]
fn a_full_arena_does_what_the_policy_says() {
    let payload = pattern(20_000, 1);
    let full = |overflow| {
        let options = SenderOptions {
            overflow,
            ..SenderOptions::default()
        };
        let (mut sender, receiver) = heap_ends(small(), options);
        sender.send(tag(0), &payload, WATCHDOG).unwrap();
        assert!(sender.try_send(tag(1), &payload).unwrap_err().is_full());
        let error = sender
            .send(tag(1), &payload, Duration::from_millis(5))
            .unwrap_err();
        (sender, receiver, error)
    };
    let (mut sender, mut receiver, error) = full(Overflow::Block);
    assert!(error.is_full(), "{error}");
    assert_eq!(receiver.recv(&mut Vec::new(), WATCHDOG).unwrap(), tag(0));
    assert!(receiver.try_recv(&mut Vec::new()).unwrap().is_none());
    sender.send(tag(1), &payload, WATCHDOG).unwrap();

    let (sender, _receiver, error) = full(Overflow::DropNewest);
    assert!(
        matches!(error, BulkSendError::Lane(SendError::Dropped)),
        "{error}"
    );
    assert_eq!(sender.producer().sent().dropped, 1);

    let (_sender, _receiver, error) = full(Overflow::Disconnect);
    assert!(
        matches!(
            error,
            BulkSendError::Lane(SendError::Closed(Status::QUEUE_FULL))
        ),
        "{error}"
    );
}

#[test]
fn the_arena_grows_for_what_fits_nowhere_and_shrinks_when_it_is_read() {
    let (mut sender, mut receiver) = heap_ends(small(), SenderOptions::default());
    let large = pattern(100_000, 5);
    assert!(matches!(
        sender.try_send(tag(0), &large),
        Err(BulkSendError::Arena(ArenaError::TooLong {
            length: 100_000,
            ..
        }))
    ));
    sender.send(tag(0), &large, WATCHDOG).unwrap();
    assert_eq!(sender.usage().segments, 2);
    assert_eq!(sender.shrink().unwrap(), 0, "it is not read yet");
    let mut buffer = Vec::new();
    assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(0));
    assert_eq!(buffer, large);
    assert!(receiver.try_recv(&mut buffer).unwrap().is_none());
    let mapped = receiver.mapped();
    assert_eq!(sender.shrink().unwrap(), 1);
    assert_eq!(sender.usage().segments, 1);
    assert!(
        receiver.try_recv(&mut buffer).unwrap().is_none(),
        "the notice is no message"
    );
    assert!(receiver.mapped() < mapped);
    // The number is not used again.
    sender.send(tag(1), &large, WATCHDOG).unwrap();
    assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(1));
    assert_eq!(buffer, large);
}

#[test]
fn a_message_whose_segment_is_late_waits_and_keeps_its_place_and_its_block() {
    let (producer, consumer) = lane(16, SenderOptions::default());
    let sent: Road<Heap> = Road::default();
    let arrived: Road<Heap> = Road::default();
    let mut sender = BulkSender::new(producer, sent.clone(), small()).unwrap();
    let mut receiver = BulkReceiver::new(consumer, arrived.clone(), 1 << 20);
    let mut buffer = Vec::new();
    sender.try_send(tag(0), b"small").unwrap();
    sender.try_send(tag(1), &pattern(5000, 1)).unwrap();
    sender.try_send(tag(2), b"behind").unwrap();
    assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(0));
    for _ in 0..3 {
        assert!(receiver.try_recv(&mut buffer).unwrap().is_none());
        assert!(matches!(
            receiver.recv(&mut buffer, Duration::from_millis(2)),
            Err(BulkRecvError::Lane(RecvError::TimedOut))
        ));
        sender.reclaim().unwrap();
        assert_eq!(sender.usage().held, 1, "nobody has copied it");
    }
    let (number, memory) = sent.take(None).unwrap();
    let late = std::thread::spawn(move || arrived.put(number, memory));
    assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(1));
    assert_eq!(buffer, pattern(5000, 1));
    late.join().unwrap();
    assert_eq!(receiver.try_recv(&mut buffer).unwrap(), Some(tag(2)));
}

#[test]
fn what_was_committed_before_a_close_is_received_also_from_the_arena() {
    let (mut sender, mut receiver) = heap_ends(small(), SenderOptions::default());
    sender.try_send(tag(7), &pattern(9000, 7)).unwrap();
    receiver.closer().close(Status::PEER_GONE);
    drop(sender);
    let mut buffer = Vec::new();
    assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(7));
    assert_eq!(buffer, pattern(9000, 7));
    assert!(matches!(
        receiver.recv(&mut buffer, WATCHDOG),
        Err(BulkRecvError::Lane(RecvError::Closed(Status::PEER_GONE)))
    ));
}

#[test]
fn a_budget_is_shared_and_given_back() {
    let budget = Budget::new(1 << 20);
    let options = SegmentOptions {
        bytes: 512 << 10,
        largest: PageKind::Small,
        budget: budget.clone(),
        ..SegmentOptions::default()
    };
    let mut supply = MemfdSupply::new(options, Road::<OwnedFd>::default());
    let first = supply.segment(0, 1).unwrap();
    assert_eq!(budget.left(), 512 << 10);
    // Twice as large would be over it; what is needed is not.
    let second = supply.segment(1, 100_000).unwrap();
    assert_eq!(second.words().len() * 8, 102_400);
    let error = supply.segment(2, 600 << 10).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("over what is left of the budget"),
        "{error}"
    );
    drop((first, second));
    assert_eq!(budget.left(), 1 << 20);
}

#[test]
fn a_sender_waits_a_little_for_who_reads_and_not_at_all_for_who_does_not() {
    let (producer, consumer) = lane(256, SenderOptions::default());
    let road = Road::default();
    let options = BulkOptions {
        first: 8 << 20,
        ..BulkOptions::default()
    };
    let mut sender = BulkSender::new(producer, road.clone(), options).unwrap();
    let mut receiver = BulkReceiver::new(consumer, road, 1 << 30);
    // More than the sender likes to have under way, to a receiver that is elsewhere.
    let payload = vec![7; 64 << 10];
    for n in 0..100 {
        sender.send(tag(n), &payload, Duration::ZERO).unwrap();
    }
    let mut buffer = Vec::new();
    for n in 0..100 {
        assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(n));
        assert_eq!(buffer, payload);
    }
    let receiving = std::thread::spawn(move || {
        for n in 0..1000 {
            assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(n));
            assert_eq!(buffer.len(), 64 << 10);
        }
    });
    for n in 0..1000 {
        sender.send(tag(n), &payload, WATCHDOG).unwrap();
    }
    receiving.join().unwrap();
    sender.reclaim().unwrap();
    assert_eq!((sender.usage().taken, sender.usage().held), (0, 0));
}
