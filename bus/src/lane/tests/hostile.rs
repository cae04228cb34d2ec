//! A peer that writes anything into all that it can write, at any time: only its own lane ends.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;
use crate::shm::counters::{CONSUMED_WORD, LIMIT_WORD, PARKED_WORD, SETUP_WORD};
use crate::wait::{Park, Source};

/// Small values hit plausible sequences, lengths and positions much more often.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0u64..24,
        (0u64..24).prop_map(|n| n.wrapping_neg()),
        (0u64..400, any::<u8>()).prop_map(|(len, flags)| len | u64::from(flags) << 24),
    ]
}

fn credit() -> impl Strategy<Value = Credit> {
    prop_oneof![Just(Credit::Automatic), Just(Credit::Manual)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_producer_that_writes_anything_anywhere_only_ends_its_own_lane(
        scribbles in proptest::collection::vec((0usize..data_words(8, Inline::Wide), word(), 0u8..7), 1..80),
        credit in credit(), wide in any::<bool>(),
    ) {
        let inline = CLASSES[usize::from(wide)];
        let options = Options::credit(credit).with(inline);
        let line_of = |slot| ring::line_of(slot, 8, inline) * 8;
        let (data, cursor) = memories(8, options);
        let lane = ends((data.clone(), cursor.clone()), (data.clone(), cursor), options);
        let (_producer, mut consumer) = lane;
        let mut buffer = Vec::new();
        for (at, value, act) in scribbles {
            data.words()[at % data.words().len()].store(value, Ordering::Relaxed);
            let slot = consumer.next_slot();
            let sequence = data.words()[line_of(slot)].load(Ordering::Relaxed);
            let there = sequence == ring::committed(slot);
            let found = match act {
                0 => consumer.try_recv(&mut buffer).map(|tag| tag.map(|_| buffer.len())),
                1 => consumer.recv(&mut buffer, Duration::ZERO).map(|_| Some(buffer.len())),
                2 => {
                    let mut longest = None;
                    let taken = consumer.for_each(3, |_, payload| longest = longest.max(Some(payload.len())));
                    taken.map(|_| longest)
                }
                3 => consumer.try_next(|message| {
                    assert_eq!(message.slot, slot);
                    message.payload.len()
                }),
                4 => {
                    consumer.arm(Park::Futex);
                    let ready = consumer.is_ready();
                    consumer.disarm();
                    consumer.publish();
                    assert_eq!(ready, consumer.closer().status().is_some() || sequence != ring::empty(slot, 8));
                    continue;
                }
                5 => {
                    prop_assert!(consumer.grant(value) <= 8);
                    continue;
                }
                _ => consumer.next(Duration::ZERO, |message| message.payload.len()).map(Some),
            };
            match found {
                // Nothing is received that is not said to be there by the one who may say so.
                Ok(Some(len)) => prop_assert!(there && len <= message_limit(8, inline)),
                Ok(None) | Err(RecvError::TimedOut) => prop_assert!(!there),
                Err(RecvError::Reference { .. } | RecvError::CheckSum { .. }) => prop_assert!(there),
                Err(RecvError::Sequence { .. } | RecvError::Length { .. } | RecvError::Closed(_)) => {
                    prop_assert_eq!(consumer.closer().status(), Some(Status::MALFORMED));
                    break;
                }
                Err(error @ RecvError::Position { .. }) => prop_assert!(false, "a log's: {error}"),
            }
        }
    }

    #[test]
    fn a_consumer_that_writes_anything_anywhere_only_ends_its_own_lane(
        scribbles in proptest::collection::vec((0usize..cursor_words(), word(), 0u8..6), 1..80),
        near in any::<bool>(), wide in any::<bool>(),
    ) {
        let inline = CLASSES[usize::from(wide)];
        let options = Options::overflow(Overflow::Block).with(inline);
        let (data, cursor) = memories(8, options);
        let (mut producer, _consumer) = ends((data.clone(), cursor.clone()), (data.clone(), cursor.clone()), options);
        let header = |data: &Heap| [CAPACITY_WORD, SETUP_WORD].map(|at| data.words()[at].load(Ordering::Relaxed));
        let before = header(&data);
        for (at, value, act) in scribbles {
            // Half of the cases hit the words that matter.
            let at = if near { [LIMIT_WORD, CONSUMED_WORD, PARKED_WORD][at % 3] } else { at };
            cursor.words()[at].store(value, Ordering::Relaxed);
            let (slot, payload) = (producer.next_slot(), pattern(at, value));
            let sent = match act {
                0 | 1 => producer.try_send(TAG, b"0123456789").map(|()| 1),
                2 => producer.try_send(TAG, &payload).map(|()| 1),
                3 => producer.try_send_batch(&[(TAG, b"x"), (TAG, b"y")]),
                4 => producer.send(TAG, b"x", Duration::ZERO).map(|()| 1),
                _ => producer.wait_consumed(value, Duration::ZERO).map(|_| 0),
            };
            match sent {
                Ok(0) => prop_assert_eq!(producer.next_slot(), slot),
                Ok(_) => {
                    // It is where it belongs, whatever the consumer says.
                    let line = ring::line_of(slot, 8, inline) * 8;
                    prop_assert_eq!(data.words()[line].load(Ordering::Relaxed), ring::committed(slot));
                }
                Err(SendError::Full | SendError::TooLong { .. }) => prop_assert_eq!(producer.next_slot(), slot),
                Err(SendError::Corrupt { .. } | SendError::Closed(_)) => {
                    prop_assert_eq!(producer.closer().status(), Some(Status::MALFORMED));
                    break;
                }
                Err(SendError::Dropped) => prop_assert!(false, "not this lane's policy"),
            }
        }
        prop_assert_eq!(header(&data), before);
    }
}

#[test]
fn a_producer_that_took_more_than_it_was_granted_has_had_it() {
    let options = Options::credit(Credit::Manual);
    let (data, cursor) = memories(8, options);
    let there = (data.clone(), cursor.clone());
    let (_producer, mut consumer) = ends((data.clone(), cursor), there, options);
    // Nothing was granted, and two are committed.
    for slot in 0..2 {
        let sequence = &data.words()[ring::line_of(slot, 8, Inline::Small) * 8];
        sequence.store(ring::committed(slot), Ordering::Relaxed);
    }
    assert_eq!(consumer.for_each(2, |_, _| ()), Ok(2));
    assert_eq!(consumer.grant(u64::MAX), 8);
    assert_eq!(consumer.grant(u64::MAX), 0);
}

/// Writes pseudo-random words into `memory` until told to stop, in another thread.
fn scribbler(memory: Heap, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        while !stop.load(Ordering::Relaxed) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let words = memory.words();
            let at = state as usize % words.len();
            let value = if state >> 63 == 0 {
                state >> 8
            } else {
                state >> 58
            };
            words[at].store(value, Ordering::Relaxed);
        }
    })
}

#[test]
fn either_side_survives_a_peer_that_scribbles_while_it_works() {
    for round in 0..60 {
        let inline = CLASSES[round / 2 % 2];
        let options = Options::waiting(Waiting::Blocking).with(inline);
        let (data, cursor) = memories(4, options);
        let lane = ends(
            (data.clone(), cursor.clone()),
            (data.clone(), cursor.clone()),
            options,
        );
        let (mut producer, mut consumer) = lane;
        let stop = Arc::new(AtomicBool::new(false));
        let memory = if round % 2 == 0 { data } else { cursor };
        let scribbling = scribbler(memory, stop.clone());
        for _ in 0..200 {
            if round % 2 == 0 {
                let taken = consumer.next(Duration::ZERO, |message| message.payload.len());
                if let Ok(len) = taken {
                    assert!(len <= message_limit(4, inline));
                }
            } else if let Err(error) = producer.send(TAG, &[7; 60], Duration::ZERO) {
                assert!(!matches!(
                    error,
                    SendError::TooLong { .. } | SendError::Dropped
                ));
            }
        }
        stop.store(true, Ordering::Relaxed);
        scribbling.join().unwrap();
    }
}
