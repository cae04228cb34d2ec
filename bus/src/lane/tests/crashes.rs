//! Death between any two stores to shared memory, in every operation of either side.

use super::*;
use crate::shm::counters::CONSUMED_WORD;
use crate::shm::region::crash;
use crate::wait::{Park, Source};

/// Runs `act` once for each of its stores and dies there, then once to its end. `make` builds what is acted
/// on, `check` looks at what is left; it is told whether `act` came to its end.
fn die_at_every_store<T>(
    make: impl Fn() -> T,
    mut act: impl FnMut(&mut T),
    mut check: impl FnMut(T, bool),
) {
    let mut deaths = 0;
    loop {
        let mut subject = make();
        crash::after(Some(deaths));
        act(&mut subject);
        let finished = crash::may_store();
        crash::after(None);
        check(subject, finished);
        if finished {
            assert!(deaths > 0, "an operation without a store proves nothing");
            return;
        }
        deaths += 1;
    }
}

/// Messages that are sent and received before the interesting one, so that it falls on any place in the ring
/// and on a stamp.
const PLACES: [u32; 6] = [0, 1, 5, 7, 63, 64];

fn used(capacity: usize, options: Options, times: u32) -> HeapLane {
    let (mut producer, mut consumer) = heap_with(capacity, options);
    for n in 0..times {
        producer.try_send(numbered(n), &[n as u8]).unwrap();
        consumer.try_recv_with(|_, _| ()).unwrap().unwrap();
        consumer.publish();
    }
    (producer, consumer)
}

/// Kills the producer at every store of `send`, which sends some first part of `messages` and all if it lives.
fn a_dead_producer_leaves_whole_messages(
    options: Options,
    messages: &[(Tag, &[u8])],
    mut send: impl FnMut(&mut Producer<Heap, Heap>),
) {
    for times in PLACES {
        die_at_every_store(
            || used(8, options, times),
            |(producer, _)| send(producer),
            |(_producer, mut consumer), finished| {
                consumer.closer().close(Status::PEER_GONE);
                let mut got = Vec::new();
                let end = loop {
                    let taken = consumer.next(WATCHDOG, |m| (m.tag, m.payload.to_vec()));
                    match taken {
                        Ok(message) => got.push(message),
                        Err(end) => break end,
                    }
                };
                assert_eq!(end, RecvError::Closed(Status::PEER_GONE));
                let whole = got.iter().zip(messages);
                for ((tag, payload), message) in whole {
                    assert_eq!((*tag, &payload[..]), *message);
                }
                assert!(got.len() <= messages.len());
                assert!(!finished || got.len() == messages.len());
            },
        );
    }
}

#[test]
fn a_message_is_whole_or_not_there_wherever_its_producer_dies() {
    for options in [
        Options::default(),
        Options::waiting(Waiting::Blocking),
        Options::extension(Extension::TimeAndCrc),
        Options::inline(Inline::Wide),
        Options::extension(Extension::TimeAndCrc).with(Inline::Wide),
    ] {
        for len in [0, 1, 32, 33, 48, 49, 96, 97, 112, 113, 200, 400] {
            let payload = pattern(len, 3);
            let message = (TAG, &payload[..]);
            a_dead_producer_leaves_whole_messages(options, &[message], |producer| {
                producer.try_send(TAG, &payload).unwrap();
            });
        }
        a_dead_producer_leaves_whole_messages(options, &[(TAG, &[9; 32])], |producer| {
            producer.try_send_reference(TAG, &[9; 32], 5).unwrap();
        });
    }
}

#[test]
fn a_batch_is_cut_between_messages_wherever_its_producer_dies() {
    let payloads = [pattern(10, 1), pattern(150, 2), pattern(48, 3)];
    let messages: Vec<(Tag, &[u8])> = (0..)
        .map(numbered)
        .zip(payloads.iter().map(|p| &p[..]))
        .collect();
    for inline in CLASSES {
        a_dead_producer_leaves_whole_messages(Options::inline(inline), &messages, |producer| {
            assert_eq!(producer.try_send_batch(&messages), Ok(3));
        });
    }
}

#[test]
fn a_producer_that_dies_going_to_sleep_or_rising_leaves_all_that_it_sent() {
    let payloads: Vec<[u8; 1]> = (0..8).map(|n| [n]).collect();
    let messages: Vec<(Tag, &[u8])> = (0..)
        .map(numbered)
        .zip(payloads.iter().map(|p| &p[..]))
        .collect();
    a_dead_producer_leaves_whole_messages(
        Options::waiting(Waiting::Blocking),
        &messages,
        |producer| {
            for (tag, payload) in &messages {
                producer.try_send(*tag, payload).unwrap();
            }
            // One that is dead already has no counters any more, and may think that there is room.
            let full = producer.send(TAG, b"no room", Duration::from_micros(1));
            assert!(matches!(full, Ok(()) | Err(SendError::Full)), "{full:?}");
            producer.arm(Park::Bell);
            producer.disarm();
        },
    );
}

/// Kills the consumer at every store of `act`, which may receive. Whatever it had published by then, its
/// producer never writes over a message that a successor, beginning at the published place, has yet to read.
fn a_dead_consumer_loses_nobody_anything(
    options: Options,
    payload: impl Fn(u32) -> Vec<u8>,
    mut act: impl FnMut(&mut Consumer<Heap, Heap>),
) {
    const CAPACITY: usize = 8;
    for times in PLACES {
        die_at_every_store(
            || {
                let memories = memories(CAPACITY, options);
                let lane = ends(memories.clone(), memories.clone(), options);
                let (mut producer, mut consumer) = lane;
                let mut at = Vec::new();
                if options.receiver.credit == Credit::Manual {
                    consumer.grant(CAPACITY as u64);
                }
                for n in 0..times {
                    producer.try_send(numbered(n), &payload(n)).unwrap();
                    consumer.try_recv_with(|_, _| ()).unwrap().unwrap();
                    consumer.publish();
                    consumer.grant(CAPACITY as u64);
                }
                let mut n = times;
                while producer.room(payload(n).len()).is_ok() {
                    at.push(producer.next_slot());
                    producer.try_send(numbered(n), &payload(n)).unwrap();
                    n += 1;
                }
                (producer, consumer, memories, at)
            },
            |(_, consumer, ..)| act(consumer),
            |(mut producer, consumer, memories, mut at), _| {
                let first = u32::try_from(at[0]).unwrap();
                let mut n = times + at.len() as u32;
                loop {
                    let slot = producer.next_slot();
                    match producer.try_send(numbered(n), &payload(n)) {
                        Ok(()) => at.push(slot),
                        Err(SendError::Full) => break,
                        Err(other) => panic!("{first}: {other}"),
                    }
                    n += 1;
                }
                // The dead don't publish; neither does what is dropped here, last.
                let consumed = memories.1.words()[CONSUMED_WORD].load(Ordering::Relaxed);
                let fresh = Heap::new(cursor_words());
                format_cursor(&fresh, &ReceiverOptions::default()).unwrap();
                let (closer, plain) = (Closer::default(), ReceiverOptions::default());
                let data = memories.0.clone();
                let mut successor =
                    Consumer::starting_at(data, fresh, closer, plain, consumed).unwrap();
                let skipped = at.iter().position(|slot| *slot == consumed);
                let skipped = skipped.unwrap_or(at.len());
                for n in skipped..at.len() {
                    let n = times + n as u32;
                    let got = successor.try_recv_with(|tag, got| (tag, got.to_vec()));
                    assert_eq!(got, Ok(Some((numbered(n), payload(n)))));
                }
                assert_eq!(successor.try_recv_with(|_, _| ()), Ok(None));
                drop(consumer);
            },
        );
    }
}

#[test]
fn a_consumer_that_dies_at_any_store_loses_the_producer_nothing() {
    for options in [
        Options::default(),
        Options::waiting(Waiting::Blocking),
        Options::credit(Credit::Manual),
        Options::inline(Inline::Wide),
    ] {
        for len in [10, 100, 200] {
            let payload = |n: u32| pattern(len, u64::from(n));
            a_dead_consumer_loses_nobody_anything(options, payload, |consumer| {
                while consumer.try_recv_with(|_, _| ()).unwrap().is_some() {}
            });
            a_dead_consumer_loses_nobody_anything(options, payload, |consumer| {
                consumer.for_each(3, |_, _| ()).unwrap();
                consumer.publish();
            });
            a_dead_consumer_loses_nobody_anything(options, payload, |consumer| {
                consumer.try_next(|_| ()).unwrap().unwrap();
                consumer.refuse();
                consumer.release();
                consumer.grant(2);
                consumer.arm(Park::Futex);
                consumer.disarm();
            });
        }
    }
}

#[test]
fn a_consumer_that_dies_asleep_or_rising_never_hangs_its_producer() {
    die_at_every_store(
        || heap_with(2, Options::waiting(Waiting::Blocking)),
        |(_, consumer)| {
            let nothing = consumer.recv_with(Duration::from_micros(1), |_, _| ());
            assert_eq!(nothing, Err(RecvError::TimedOut));
        },
        |(mut producer, _consumer), _| {
            producer.try_send(TAG, b"x").unwrap();
            producer.try_send(TAG, b"x").unwrap();
            // The daemon tells of the death; a wake-up meant for the dead disturbs nobody.
            producer.closer().close(Status::PEER_GONE);
            assert_eq!(
                producer.send(TAG, b"x", WATCHDOG),
                Err(SendError::Closed(Status::PEER_GONE))
            );
        },
    );
}
