//! The ring under loom: every schedule and every permitted reordering of two threads on a lane of two slots.
//! Both sides fence, as where membarrier is refused: the checker has no barrier that reaches other threads.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p agentd-bus --lib --release lane::model`

use std::time::Duration;

use loom::thread;

use super::ring::{
    Consumer, Message, Producer, RecvError, SendError, Tag, format_cursor, format_data,
};
use super::*;
use crate::channel::{Overflow, Waiting};
use crate::message::Status;
use crate::shm::atomics::{Ordering, fence};
use crate::shm::park::Closer;
use crate::shm::region::Heap;
use crate::wait::{Park, Source};

const FOREVER: Duration = Duration::from_secs(1_000_000);

fn tag(correlation: u32) -> Tag {
    Tag {
        kind: 4,
        flags: 0,
        correlation,
    }
}

type Ends = (Producer<Heap, Heap>, Consumer<Heap, Heap>);

fn lane_with(sender: SenderOptions, receiver: ReceiverOptions) -> Ends {
    let (data, cursor) = (
        Heap::new(data_words(2, sender.inline)),
        Heap::new(cursor_words()),
    );
    format_data(&data, 2, &sender).unwrap();
    format_cursor(&cursor, &receiver).unwrap();
    let closer = Closer::default;
    let consumer = Consumer::new(data.clone(), cursor.clone(), closer(), receiver);
    let producer = Producer::new(data, cursor, closer(), sender);
    (producer.unwrap(), consumer.unwrap())
}

fn lane() -> Ends {
    lane_with(SenderOptions::default(), ReceiverOptions::default())
}

fn waiting(sends: Waiting, receives: Waiting) -> Ends {
    let sender = SenderOptions {
        waiting: sends,
        ..SenderOptions::default()
    };
    let receiver = ReceiverOptions {
        waiting: receives,
        ..ReceiverOptions::default()
    };
    lane_with(sender, receiver)
}

/// Takes the next message, which must be number `n` with the payload of number `n`.
fn receive(consumer: &mut Consumer<Heap, Heap>, n: u32, len: usize) {
    let whole = |got: Tag, payload: &[u8]| {
        assert_eq!(got, tag(n));
        assert_eq!(payload, vec![n as u8 + 1; len]);
    };
    consumer.recv_with(FOREVER, whole).unwrap();
}

fn all_arrive((mut producer, mut consumer): Ends, count: u32, len: usize) {
    let sending = thread::spawn(move || {
        for n in 0..count {
            producer
                .send(tag(n), &vec![n as u8 + 1; len], FOREVER)
                .unwrap();
        }
    });
    for n in 0..count {
        receive(&mut consumer, n, len);
    }
    sending.join().unwrap();
}

#[test]
fn every_message_arrives_whole_in_order_and_nobody_sleeps_for_ever() {
    loom::model(|| all_arrive(lane(), 3, 9));
}

#[test]
fn who_blocks_is_woken() {
    loom::model(|| all_arrive(waiting(Waiting::Blocking, Waiting::Blocking), 3, 9));
}

#[test]
fn a_busy_producer_wakes_a_consumer_that_blocks() {
    loom::model(|| all_arrive(waiting(Waiting::Busy, Waiting::Blocking), 2, 1));
}

#[test]
fn a_busy_consumer_wakes_a_producer_that_blocks() {
    loom::model(|| all_arrive(waiting(Waiting::Blocking, Waiting::Busy), 3, 1));
}

#[test]
fn two_busy_sides_need_no_wake_up() {
    loom::model(|| all_arrive(waiting(Waiting::Busy, Waiting::Busy), 2, 1));
}

#[test]
fn a_message_over_both_slots_is_seen_whole() {
    loom::model(|| all_arrive(lane(), 2, 50));
}

fn wide() -> Ends {
    let sender = SenderOptions {
        inline: Inline::Wide,
        ..SenderOptions::default()
    };
    lane_with(sender, ReceiverOptions::default())
}

#[test]
fn a_message_over_both_lines_of_a_wide_slot_is_seen_whole() {
    loom::model(|| all_arrive(wide(), 3, 57));
}

#[test]
fn a_message_over_both_wide_slots_is_seen_whole() {
    loom::model(|| all_arrive(wide(), 2, 120));
}

#[test]
fn a_batch_wakes_whoever_sleeps_for_any_of_it() {
    loom::model(|| {
        let (mut producer, mut consumer) = lane();
        let sending = thread::spawn(move || {
            let (one, two, three) = ([1; 9], [2; 9], [3; 9]);
            let batch: [(Tag, &[u8]); 3] = [(tag(0), &one), (tag(1), &two), (tag(2), &three)];
            assert_eq!(producer.send_batch(&batch, FOREVER), Ok(3));
        });
        (0..3).for_each(|n| receive(&mut consumer, n, 9));
        sending.join().unwrap();
    });
}

#[test]
fn a_run_that_is_told_of_once_wakes_whoever_sleeps_for_any_of_it() {
    loom::model(|| {
        let (mut producer, mut consumer) = lane();
        let sending = thread::spawn(move || {
            for n in 0..2 {
                let value = n as u8 + 1;
                assert_eq!(producer.put_parts(tag(n), &[value; 8], &[value]), Ok(()));
            }
            producer.notify();
        });
        (0..2).for_each(|n| receive(&mut consumer, n, 9));
        sending.join().unwrap();
    });
}

#[test]
fn a_grant_wakes_a_producer_that_waits_for_it() {
    loom::model(|| {
        let receiver = ReceiverOptions {
            credit: Credit::Manual,
            ..ReceiverOptions::default()
        };
        let (mut producer, mut consumer) = lane_with(SenderOptions::default(), receiver);
        let sending = thread::spawn(move || {
            for n in 0..2 {
                producer.send(tag(n), &[n as u8 + 1], FOREVER).unwrap();
            }
        });
        for n in 0..2 {
            assert_eq!(consumer.grant(1), 1);
            receive(&mut consumer, n, 1);
        }
        sending.join().unwrap();
    });
}

#[test]
fn whoever_waits_for_what_was_sent_to_be_done_with_is_woken() {
    loom::model(|| {
        let receiver = ReceiverOptions {
            credit: Credit::Manual,
            ..ReceiverOptions::default()
        };
        let (mut producer, mut consumer) = lane_with(SenderOptions::default(), receiver);
        consumer.grant(1);
        producer.try_send(tag(0), &[1]).unwrap();
        let waiting = thread::spawn(move || {
            // The limit stands still: it is the position that is waited for.
            assert_eq!(producer.wait_consumed(0, FOREVER), Ok(1));
        });
        receive(&mut consumer, 0, 1);
        consumer.publish();
        waiting.join().unwrap();
    });
}

#[test]
fn a_sender_that_drops_never_waits_and_what_it_sent_arrives() {
    loom::model(|| {
        let sender = SenderOptions {
            overflow: Overflow::DropNewest,
            ..SenderOptions::default()
        };
        let (mut producer, mut consumer) = lane_with(sender, ReceiverOptions::default());
        let closer = consumer.closer().clone();
        let sending = thread::spawn(move || {
            for n in 0..3 {
                match producer.send(tag(n), &[n as u8 + 1], FOREVER) {
                    Ok(()) | Err(SendError::Dropped) => {}
                    Err(other) => panic!("{other}"),
                }
            }
            closer.close(Status::OK);
            producer.sent()
        });
        let mut last = None;
        let mut got = 0;
        let end = loop {
            match consumer.recv_with(FOREVER, |tag, _| tag.correlation) {
                Ok(n) => {
                    assert!(last < Some(n), "order is kept");
                    last = Some(n);
                    got += 1;
                }
                Err(end) => break end,
            }
        };
        assert_eq!(end, RecvError::Closed(Status::OK));
        let sent = sending.join().unwrap();
        assert_eq!((sent.messages, sent.dropped), (got, 3 - got));
    });
}

#[test]
fn a_consumer_that_waits_for_its_bell_finds_the_message_or_is_rung_for() {
    loom::model(|| {
        let (mut producer, mut consumer) = lane();
        let sending = thread::spawn(move || {
            producer.try_send(tag(0), &[1]).unwrap();
            producer.sent().wakes
        });
        consumer.arm(Park::Bell);
        fence(Ordering::SeqCst);
        let found = consumer.is_ready();
        let rung = sending.join().unwrap();
        assert!(found || rung == 1, "it would wait for ever");
    });
}

#[test]
fn a_producer_that_came_first_is_woken_by_its_consumer() {
    loom::model(|| {
        let (sender, receiver) = (SenderOptions::default(), ReceiverOptions::default());
        let (data, cursor) = (
            Heap::new(data_words(2, sender.inline)),
            Heap::new(cursor_words()),
        );
        format_data(&data, 2, &sender).unwrap();
        format_cursor(&cursor, &receiver).unwrap();
        let closer = Closer::default;
        let mut producer = Producer::new(data.clone(), cursor.clone(), closer(), sender).unwrap();
        let sending = thread::spawn(move || producer.send(tag(0), &[1], FOREVER).unwrap());
        let mut consumer = Consumer::new(data, cursor, closer(), receiver).unwrap();
        receive(&mut consumer, 0, 1);
        sending.join().unwrap();
    });
}

#[test]
fn a_close_ends_every_sleep_after_what_was_committed() {
    loom::model(|| {
        let (mut producer, mut consumer) = lane();
        let closer = consumer.closer().clone();
        let sending = thread::spawn(move || {
            producer.try_send(tag(0), &[1]).unwrap();
            closer.close(Status::PEER_GONE);
        });
        receive(&mut consumer, 0, 1);
        assert_eq!(
            consumer.recv_with(FOREVER, |_, _| ()),
            Err(RecvError::Closed(Status::PEER_GONE))
        );
        sending.join().unwrap();
    });
}

#[test]
fn a_close_ends_the_sleep_of_a_producer_without_room() {
    loom::model(|| {
        let (mut producer, consumer) = lane();
        producer.try_send(tag(0), b"x").unwrap();
        producer.try_send(tag(1), b"x").unwrap();
        let closer = producer.closer().clone();
        let closing = thread::spawn(move || closer.close(Status::PEER_GONE));
        assert_eq!(
            producer.send(tag(2), b"x", FOREVER),
            Err(SendError::Closed(Status::PEER_GONE))
        );
        closing.join().unwrap();
        drop(consumer);
    });
}

#[test]
fn after_the_end_each_message_was_either_received_or_is_its_senders_again() {
    loom::model(|| {
        let (mut producer, mut consumer) = lane();
        // The consumer has heard of the end, the producer has not.
        consumer.closer().close(Status::REPLACED);
        let sending = thread::spawn(move || {
            let sent = (0..2).take_while(|n| producer.try_send(tag(*n), b"x").is_ok());
            let sent = sent.count();
            producer.closer().close(Status::REPLACED);
            let mut back = Vec::new();
            let each = |message: Message<'_>| back.push(message.tag.correlation);
            producer.settle(FOREVER, each).unwrap();
            (sent, back)
        });
        let mut all = Vec::new();
        while let Ok(Some(n)) = consumer.try_recv_with(|tag, _| tag.correlation) {
            all.push(n);
        }
        // Whatever comes now is not taken any more.
        assert_eq!(
            consumer.try_recv_with(|_, _| ()),
            Err(RecvError::Closed(Status::REPLACED))
        );
        let (sent, back) = sending.join().unwrap();
        all.extend(back);
        assert_eq!(all, (0..sent as u32).collect::<Vec<_>>());
    });
}
