//! Ends that die at any store, hold others up, or write anything anywhere.

use super::*;

#[test]
fn a_message_is_whole_or_not_there_wherever_its_producer_dies() {
    let limit = 48 + 3 * 56;
    for before in [0, 3, 8, 21] {
        for stores in 0.. {
            let mut log = heap(8);
            let mut up_to_date = log.reader(LOSSY);
            let mut behind = log.reader(LOSSY);
            let mut reliable = log.reader(RELIABLE);
            for n in 0..before {
                log.send(n, length(n, limit)).unwrap();
                drain(&mut up_to_date, limit);
                drain(&mut reliable, limit);
            }
            crash::after(Some(stores));
            // Two messages, so that it dies also between them.
            for n in before..before + 2 {
                log.send(n, length(n, limit)).unwrap();
            }
            let finished = crash::may_store();
            crash::after(None);
            let mut late = log.reader(OLDEST);
            let ends = [&mut up_to_date, &mut behind, &mut reliable, &mut late];
            let mut upper = before;
            for reader in ends {
                drain(reader, limit);
                // As the daemon does when the kernel tells it of the death: what is left is drained, and that is the end.
                reader.closer().close(Status::PEER_GONE);
                let mut buffer = Vec::new();
                let end = loop {
                    match reader.recv(&mut buffer, WATCHDOG) {
                        Ok(message) => {
                            let n = message.number;
                            assert_eq!(buffer, pattern(length(n, limit), n));
                        }
                        Err(end) => break end,
                    }
                };
                assert_eq!(end, RecvError::Closed(Status::PEER_GONE));
                let counters = reader.counters();
                assert_eq!(
                    reader.first() + counters.messages + counters.lost,
                    reader.number()
                );
                assert!((before..=before + 2).contains(&reader.number()));
                upper = upper.max(reader.number());
            }
            // What one reader got, committed, every reader that was there got or knows that it lost.
            for reader in [&up_to_date, &behind, &reliable] {
                assert_eq!(reader.number(), upper);
            }
            assert_eq!(reliable.counters().lost, 0);
            if finished {
                assert_eq!(upper, before + 2);
                break;
            }
        }
    }
}

#[test]
fn a_reader_that_dies_at_any_store_costs_the_others_nothing() {
    for stores in 0..40 {
        let hold = Hold {
            lag: None,
            time: Duration::ZERO,
        };
        let mut log = Log::new(OnHeap, 8, hold);
        let mut dying = log.reader(RELIABLE);
        let mut living = log.reader(RELIABLE);
        let mut received = 0;
        for n in 0..30 {
            log.send(n, length(n, 100)).unwrap();
            received += drain(&mut living, 100);
            crash::after(Some(stores));
            let mut buffer = Vec::new();
            let got = dying.recv(&mut buffer, Duration::ZERO);
            use RecvError::{Closed, CutOff, TimedOut};
            assert!(matches!(
                got,
                Ok(_) | Err(TimedOut | CutOff | Closed(Status::QUEUE_FULL))
            ));
            crash::after(None);
        }
        assert_eq!(received, 30);
        assert_eq!(living.counters().lost, 0);
    }
}

#[test]
fn one_who_reads_a_little_whenever_its_time_is_nearly_up_is_cut_off_all_the_same() {
    let hold = Hold {
        lag: None,
        time: Duration::from_millis(20),
    };
    let mut log = Log::new(OnHeap, 64, hold);
    let mut grudging = log.reader(RELIABLE);
    let mut buffer = Vec::new();
    let mut sent = 0;
    while log.writer.next_cut_off().is_none() {
        match log.writer.send(tag(sent), b"", Duration::from_millis(5)) {
            Ok(()) => sent += 1,
            // Never more than a few slots at a time.
            Err(SendError::Full { .. }) => {
                let few = grudging.try_recv_batch(2, &mut buffer, |_, _| ());
                assert!(few.is_ok() || few == Err(RecvError::CutOff));
            }
            Err(other) => panic!("{other}"),
        }
        assert!(sent < 10_000, "it holds its producer up for ever");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_producer_that_writes_anything_anywhere_only_ends_its_own_log(
        scribbles in proptest::collection::vec((0usize..data_words(8), any::<u64>()), 1..60),
        small in any::<bool>(), options in prop_oneof![Just(LOSSY), Just(OLDEST), Just(RELIABLE)],
    ) {
        let (data, cursor) = (Heap::new(data_words(8)), Heap::new(cursor_words()));
        format_data(&data, 8).unwrap();
        format_cursor(&cursor, &options).unwrap();
        let key = cursor.words()[KEY_WORD].load(Ordering::Relaxed);
        data.words()[PLACES_WORD].store(key | 1, Ordering::Relaxed);
        let mut reader = Reader::new(data.clone(), cursor, Closer::default(), options).unwrap();
        let mut buffer = Vec::new();
        for (at, value) in scribbles {
            // Small values hit plausible sequences and lengths much more often; so do the words of the first line.
            let at = if small && at < PAGE_WORDS { HEAD_WORD + at % 4 } else { at };
            data.words()[at].store(if small { value % 64 } else { value }, Ordering::Relaxed);
            match reader.try_recv(&mut buffer) {
                Ok(_) => prop_assert!(buffer.len() <= message_limit(8)),
                Err(_) => {
                    prop_assert!(reader.closer().status().is_some());
                    break;
                }
            }
            let batch = reader.try_recv_batch(20, &mut buffer, |_, _| ());
            prop_assert!(batch.is_ok() || reader.closer().status().is_some());
        }
    }

    #[test]
    fn a_reader_that_writes_anything_anywhere_misleads_nobody_else(
        scribbles in proptest::collection::vec((0usize..cursor_words(), any::<u64>()), 1..60),
        small in any::<bool>(),
    ) {
        let hold = Hold { lag: None, time: Duration::ZERO };
        let mut log = Log::new(OnHeap, 8, hold);
        let cursor = Heap::new(cursor_words());
        format_cursor(&cursor, &RELIABLE).unwrap();
        log.writer.attach_reader(ReaderId(100), cursor.clone(), Delivery::Reliable).unwrap();
        let mut honest = log.reader(RELIABLE);
        let mut n = 0;
        for (at, value) in scribbles {
            let at = if small { [CONSUMED_WORD, at][at % 2] } else { at };
            cursor.words()[at].store(if small { value % 64 } else { value }, Ordering::Relaxed);
            for _ in 0..3 {
                log.send(n, length(n, 100)).unwrap();
                n += 1;
                prop_assert_eq!(drain(&mut honest, 100), 1);
            }
        }
        prop_assert_eq!(honest.counters().lost, 0);
        drop(log.writer.readers().collect::<Vec<_>>());
    }
}
