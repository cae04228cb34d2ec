//! Logs that go on where an earlier one ended.

use super::*;

/// A log that ends under its readers, and the one that goes on with its numbers.
struct Ended {
    log: Log<OnHeap>,
    readers: Vec<Reader<Heap, Heap>>,
}

impl Ended {
    fn successor(&mut self, place: Place) -> Log<OnHeap> {
        let capacity = 128;
        let (own, data) = OnHeap.make(data_words(capacity));
        format_data(&own, capacity).unwrap();
        let options = WriterOptions::default();
        let writer = Writer::starting_at(own, Closer::default(), options, place).unwrap();
        Log {
            memory: OnHeap,
            writer,
            data,
            readers: 0,
        }
    }
}

proptest! {
    /// Readers of any position, one of which may lie about it: each honest one has every message once over both logs.
    #[test]
    fn what_a_reliable_reader_has_not_read_is_left_and_numbered_on(
        acts in proptest::collection::vec((0u8..6, 0usize..4), 0..300), lie in proptest::option::of(any::<u64>()),
    ) {
        const LIMIT: usize = 300;
        let mut ended = Ended { log: heap(64), readers: Vec::new() };
        let liars: Vec<Heap> = lie.iter().map(|_| {
            let (own, cursor) = OnHeap.make(cursor_words());
            format_cursor(&own, &RELIABLE).unwrap();
            ended.log.writer.attach_reader(ReaderId(99), cursor(), Delivery::Reliable).unwrap();
            own
        }).collect();
        for _ in 0..3 {
            let reader = ended.log.reader(RELIABLE);
            ended.readers.push(reader);
        }
        let (mut sent, mut had) = (0_u64, [0_u64; 3]);
        let mut buffer = Vec::new();
        for (act, which) in acts {
            match act {
                0..3 => sent += u64::from(ended.log.send(sent, length(sent, LIMIT)).is_ok()),
                _ if which < 3 => {
                    if let Some(message) = ended.readers[which].try_recv(&mut buffer).unwrap() {
                        prop_assert_eq!(message.number, had[which]);
                        had[which] += 1;
                    }
                }
                _ => {
                    // Shows how far it is, as before a sleep.
                    let reader = &mut ended.readers[act as usize % 3];
                    reader.arm(crate::wait::Park::Futex);
                    reader.disarm();
                }
            }
        }
        if let (Some(lie), Some(liar)) = (lie, liars.first()) {
            liar.words()[CONSUMED_WORD].store(lie % 80, Ordering::Relaxed);
        }
        ended.log.writer.closer().close(Status::REPLACED);
        let mut left = Vec::new();
        let place = ended.log.writer.left(|message| {
            left.push((message.number, message.tag, message.payload.to_vec()));
        });
        prop_assert_eq!(place.number + left.len() as u64, sent, "without a gap up to the last");
        let mut successor = ended.successor(place);
        let mut again: Vec<_> = (0..3).map(|_| successor.reader(RELIABLE)).collect();
        for (number, sent_tag, payload) in &left {
            prop_assert_eq!((*sent_tag, payload), (tag(*number), &pattern(length(*number, LIMIT), *number)));
            successor.writer.try_send(*sent_tag, payload).unwrap();
        }
        successor.send(sent, length(sent, LIMIT)).unwrap();
        for (reader, had) in again.iter_mut().zip(&mut had) {
            prop_assert!(reader.first() <= *had, "nothing between the logs is missing");
            while let Some(message) = reader.try_recv(&mut buffer).unwrap() {
                prop_assert_eq!(&buffer, &pattern(length(message.number, LIMIT), message.number));
                if message.number >= *had {
                    prop_assert_eq!(message.number, *had);
                    *had += 1;
                }
            }
            prop_assert_eq!(*had, sent + 1);
        }
    }
}

#[test]
fn logs_of_a_series_say_so_and_others_do_not() {
    let mut log = heap(64);
    assert_eq!(log.reader(LOSSY).series(), None);
    let mut ended = Ended {
        log,
        readers: Vec::new(),
    };
    let place = Place {
        series: 9,
        slot: 1000,
        number: 700,
    };
    let mut log = ended.successor(place);
    let mut reader = log.reader(OLDEST);
    assert_eq!((reader.series(), reader.first()), (Some(9), 700));
    log.send(700, 10).unwrap();
    let message = reader.try_recv(&mut Vec::new()).unwrap().unwrap();
    assert_eq!((message.number, message.lost), (700, 0));
    let mut view = Vec::new();
    let left = log.writer.left(|message| view.push(message.number));
    assert_eq!(
        (left.slot, left.number),
        (1001, 701),
        "nobody reliable reads"
    );
    assert!(view.is_empty());
}
