//! The end of a lane: each message was received, or is its producer's again, whole; never both, never neither.

use proptest::prelude::*;

use super::*;
use crate::lane::ring::SettleError;

type Back = Vec<(Tag, Vec<u8>, bool)>;

fn settled(producer: &mut Producer<Heap, Heap>, timeout: Duration) -> Result<Back, SettleError> {
    let mut back = Vec::new();
    let each =
        |m: crate::lane::ring::Message<'_>| back.push((m.tag, m.payload.to_vec(), m.reference));
    let count = producer.settle(timeout, each)?;
    assert_eq!(count, back.len() as u64);
    Ok(back)
}

proptest! {
    #[test]
    fn what_was_not_received_comes_back_whole_and_in_order(
        sizes in proptest::collection::vec(0usize..400, 0..40), read in 0usize..40, before in 0u64..150,
        ext in any::<bool>(), late in 0usize..4, wide in any::<bool>(),
    ) {
        let extension = if ext { Extension::TimeAndCrc } else { Extension::None };
        let mut options = Options::extension(extension);
        options.first = before;
        options = options.with(CLASSES[usize::from(wide)]);
        let (mut producer, mut consumer) = heap_with(512, options);
        for (n, size) in sizes.iter().enumerate() {
            producer.try_send(numbered(n as u32), &pattern(*size, n as u64)).unwrap();
        }
        let mut buffer = Vec::new();
        let read = read.min(sizes.len());
        for _ in 0..read {
            consumer.try_recv(&mut buffer).unwrap().unwrap();
        }
        prop_assert_eq!(settled(&mut producer, Duration::ZERO), Err(SettleError::Open));
        // The consumer goes, the producer hears of it some messages later.
        drop(consumer);
        for n in 0..late {
            producer.try_send(numbered((sizes.len() + n) as u32), &pattern(7, n as u64)).unwrap();
        }
        producer.closer().close(Status::REPLACED);
        let mut expected: Back = sizes.iter().enumerate().skip(read)
            .map(|(n, size)| (numbered(n as u32), pattern(*size, n as u64), false)).collect();
        expected.extend((0..late).map(|n| (numbered((sizes.len() + n) as u32), pattern(7, n as u64), false)));
        prop_assert_eq!(settled(&mut producer, Duration::ZERO), Ok(expected.clone()));
        prop_assert_eq!(settled(&mut producer, Duration::ZERO), Ok(expected), "as often as one asks");
    }
}

#[test]
fn a_consumer_that_has_said_closed_takes_nothing_more() {
    let (mut producer, mut consumer) = heap_with(64, Options::default());
    producer.try_send(TAG, b"in time").unwrap();
    consumer.closer().close(Status::REPLACED);
    let mut buffer = buffer();
    assert_eq!(consumer.try_recv(&mut buffer), Ok(Some(TAG)));
    let closed = Err(RecvError::Closed(Status::REPLACED));
    assert_eq!(consumer.try_recv(&mut buffer), closed);
    producer.try_send(TAG, b"too late").unwrap();
    assert_eq!(consumer.try_recv(&mut buffer), closed);
    assert_eq!(consumer.recv(&mut buffer, WATCHDOG).map(Some), closed);
    producer.closer().close(Status::REPLACED);
    let back = settled(&mut producer, Duration::ZERO).unwrap();
    assert_eq!(back, [(TAG, b"too late".to_vec(), false)]);
}

#[test]
fn a_producer_waits_for_a_consumer_that_still_reads_and_is_told_of_one_that_never_stops() {
    let (mut producer, mut consumer) = heap_with(64, Options::default());
    for n in 0..3 {
        producer.try_send(numbered(n), b"x").unwrap();
    }
    producer.closer().close(Status::REPLACED);
    let unknown = Err(SettleError::Unknown { messages: 3 });
    assert_eq!(settled(&mut producer, Duration::ZERO), unknown);
    std::thread::scope(|scope| {
        let settling = scope.spawn(|| settled(&mut producer, WATCHDOG));
        let mut buffer = buffer();
        for _ in 0..3 {
            consumer.recv(&mut buffer, WATCHDOG).unwrap();
        }
        consumer.closer().close(Status::REPLACED);
        consumer.recv(&mut buffer, WATCHDOG).unwrap_err();
        assert_eq!(settling.join().unwrap(), Ok(Vec::new()));
    });
}

#[test]
fn a_consumer_that_lies_about_its_position_makes_nonsense_and_no_harm() {
    for position in 0..=64 {
        let memories = memories(64, Options::default());
        let cursor = memories.1.clone();
        let (mut producer, consumer) = ends(memories.clone(), memories, Options::default());
        while producer.try_send(TAG, &[0xFF; 200]).is_ok() {}
        producer.closer().close(Status::REPLACED);
        drop(consumer);
        cursor.words()[crate::shm::counters::CONSUMED_WORD].store(position, Ordering::Release);
        let back = settled(&mut producer, Duration::ZERO);
        assert!(back.is_ok_and(|back| back.len() <= 64) || position > producer.next_slot());
    }
}
