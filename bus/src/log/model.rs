//! The log under loom: every schedule and every permitted reordering of a producer, readers and the doorbell's
//! thread on a log of two slots.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 cargo test -p agentd-bus --lib --release log::model`

use std::time::Duration;

use loom::thread;

use super::*;
use crate::channel::{Tag, Waiting};
use crate::message::Status;
use crate::shm::park::Closer;
use crate::shm::region::Heap;

const FOREVER: Duration = Duration::from_secs(1_000_000);
const LOSSY: ReaderOptions = ReaderOptions {
    start: Start::Head,
    delivery: Delivery::Lossy,
    waiting: Waiting::Blocking,
};
const RELIABLE: ReaderOptions = ReaderOptions {
    delivery: Delivery::Reliable,
    ..LOSSY
};

type Ends = (Writer<Heap, Heap>, Vec<Reader<Heap, Heap>>);

/// With at most so many switches of threads that were not waiting: two find most of what can go wrong, and these
/// protocols have many steps. `LOOM_MAX_PREEMPTIONS` asks for fewer.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    let asked = builder.preemption_bound.unwrap_or(preemptions);
    builder.preemption_bound = Some(asked.min(preemptions));
    builder.check(model);
}

fn tag(correlation: u32) -> Tag {
    Tag {
        kind: 4,
        flags: 0,
        correlation,
    }
}

fn log(hold: Duration, attendant: Attendant, readers: &[ReaderOptions]) -> Ends {
    let data = Heap::new(data_words(2));
    format_data(&data, 2).unwrap();
    let options = WriterOptions {
        hold: Hold {
            lag: None,
            time: hold,
        },
        waiting: Waiting::Blocking,
        attendant,
    };
    let mut writer = Writer::new(data.clone(), Closer::default(), options).unwrap();
    let readers = (0..).zip(readers).map(|(id, options)| {
        let cursor = Heap::new(cursor_words());
        format_cursor(&cursor, options).unwrap();
        let reader =
            Reader::new(data.clone(), cursor.clone(), Closer::default(), *options).unwrap();
        writer
            .attach_reader(ReaderId(id), cursor, options.delivery)
            .unwrap();
        reader
    });
    let readers = readers.collect();
    (writer, readers)
}

/// Reads until it has received or lost `count` messages; says how many it lost.
fn account(reader: &mut Reader<Heap, Heap>, count: u64) -> u64 {
    let mut buffer = Vec::new();
    let (mut received, mut lost) = (0, 0);
    while received + lost < count {
        let message = reader.recv(&mut buffer, FOREVER).unwrap();
        assert_eq!(u64::from(message.tag.correlation), message.number);
        assert_eq!(buffer, [message.number as u8], "torn");
        received += 1;
        lost += message.lost;
        assert_eq!(received + lost, message.number + 1);
    }
    lost
}

fn send(writer: &mut Writer<Heap, Heap>, n: u32) {
    writer.send(tag(n), &[n as u8], FOREVER).unwrap();
}

/// The reader may be overrun at any of its steps, and sleep at any.
#[test]
fn a_lossy_reader_never_takes_a_torn_message_and_accounts_for_all() {
    check(2, || {
        let (mut writer, mut readers) = log(FOREVER, Attendant::None, &[LOSSY]);
        let mut reader = readers.remove(0);
        // The first lap is there already: the rest of it races with what overwrites it.
        for n in 0..2 {
            send(&mut writer, n);
        }
        let reading = thread::spawn(move || account(&mut reader, 3));
        send(&mut writer, 2);
        reading.join().unwrap();
    });
}

#[test]
fn two_readers_that_sleep_are_both_woken() {
    check(1, || {
        let (mut writer, readers) = log(FOREVER, Attendant::None, &[LOSSY, LOSSY]);
        let reading: Vec<_> = readers
            .into_iter()
            .map(|mut reader| thread::spawn(move || account(&mut reader, 1)))
            .collect();
        send(&mut writer, 0);
        for reading in reading {
            assert_eq!(reading.join().unwrap(), 0);
        }
    });
}

/// The second message comes while the producer is being rung, or before, or after.
#[test]
fn a_reader_that_rings_is_woken() {
    check(1, || {
        let (mut writer, mut readers) = log(FOREVER, Attendant::Thread, &[LOSSY]);
        let attendant = thread::spawn(writer.attendant());
        let mut reader = readers.remove(0);
        // Nobody sleeps yet: from here on the producer does not look.
        send(&mut writer, 0);
        let reading = thread::spawn(move || account(&mut reader, 2));
        send(&mut writer, 1);
        reading.join().unwrap();
        drop(writer);
        attendant.join().unwrap();
    });
}

#[test]
fn a_reliable_reader_holds_the_producer_and_neither_sleeps_for_ever() {
    check(2, || {
        let (mut writer, mut readers) = log(FOREVER, Attendant::None, &[RELIABLE]);
        let mut reader = readers.remove(0);
        for n in 0..2 {
            send(&mut writer, n);
        }
        let reading = thread::spawn(move || account(&mut reader, 3));
        send(&mut writer, 2);
        assert_eq!(reading.join().unwrap(), 0);
        assert_eq!(writer.next_cut_off(), None);
    });
}

#[test]
fn a_reader_that_is_cut_off_gets_whole_messages_and_then_hears_of_it() {
    check(2, || {
        let (mut writer, mut readers) = log(Duration::ZERO, Attendant::None, &[RELIABLE]);
        let mut reader = readers.remove(0);
        for n in 0..2 {
            send(&mut writer, n);
        }
        let reading = thread::spawn(move || {
            let mut buffer = Vec::new();
            let mut expected = 0;
            while expected < 3 {
                match reader.recv(&mut buffer, FOREVER) {
                    Ok(message) => {
                        assert_eq!((message.number, message.lost), (expected, 0));
                        assert_eq!(buffer, [expected as u8], "torn");
                        expected += 1;
                    }
                    Err(end) => {
                        assert_eq!(end, RecvError::CutOff);
                        return true;
                    }
                }
            }
            false
        });
        send(&mut writer, 2);
        let cut_off = writer.next_cut_off().is_some();
        let heard = reading.join().unwrap();
        assert!(cut_off || !heard);
    });
}

#[test]
fn a_reader_that_attaches_while_messages_are_sent_is_woken_for_those_it_missed() {
    check(2, || {
        let data = Heap::new(data_words(2));
        format_data(&data, 2).unwrap();
        let cursor = Heap::new(cursor_words());
        format_cursor(&cursor, &LOSSY).unwrap();
        let mut reader =
            Reader::new(data.clone(), cursor.clone(), Closer::default(), LOSSY).unwrap();
        let reading = thread::spawn(move || account(&mut reader, 1));
        let options = WriterOptions::default();
        let mut writer = Writer::new(data, Closer::default(), options).unwrap();
        send(&mut writer, 0);
        writer
            .attach_reader(ReaderId(0), cursor, Delivery::Lossy)
            .unwrap();
        reading.join().unwrap();
    });
}

#[test]
fn a_close_ends_every_sleep_after_what_was_committed() {
    check(2, || {
        let (mut writer, mut readers) = log(FOREVER, Attendant::None, &[LOSSY]);
        let mut reader = readers.remove(0);
        let closer = reader.closer().clone();
        let sending = thread::spawn(move || {
            writer.try_send(tag(0), &[0]).unwrap();
            closer.close(Status::PEER_GONE);
            writer
        });
        account(&mut reader, 1);
        let end = reader.recv(&mut Vec::new(), FOREVER);
        assert_eq!(end, Err(RecvError::Closed(Status::PEER_GONE)));
        drop(sending.join().unwrap());
    });
}
