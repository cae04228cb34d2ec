//! The ring under loom: every schedule and every permitted reordering of two threads on a lane of two slots.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p agentd-bus --lib --release lane::model`

use std::time::Duration;

use loom::thread;

use super::ring::{Consumer, Producer, RecvError, SendError, Tag, format_cursor, format_data};
use super::*;
use crate::message::Status;
use crate::shm::park::Closer;
use crate::shm::region::Heap;

const FOREVER: Duration = Duration::from_secs(1_000_000);

fn tag(correlation: u32) -> Tag {
    Tag {
        kind: 4,
        flags: 0,
        correlation,
    }
}

fn lane() -> (Producer<Heap, Heap>, Consumer<Heap, Heap>) {
    let (data, cursor) = (Heap::new(data_words(2)), Heap::new(cursor_words()));
    format_data(&data, 2, &SenderOptions::default()).unwrap();
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

#[test]
fn every_message_arrives_whole_in_order_and_nobody_sleeps_for_ever() {
    loom::model(|| {
        let (mut producer, mut consumer) = lane();
        let sending = thread::spawn(move || {
            for n in 0..3 {
                producer.send(tag(n), &[n as u8; 9], FOREVER).unwrap();
            }
        });
        let mut buffer = Vec::new();
        for n in 0..3 {
            assert_eq!(consumer.recv(&mut buffer, FOREVER), Ok(tag(n)));
            assert_eq!(buffer, [n as u8; 9]);
        }
        sending.join().unwrap();
    });
}

#[test]
fn a_message_over_both_slots_is_seen_whole() {
    loom::model(|| {
        let (mut producer, mut consumer) = lane();
        let sending = thread::spawn(move || {
            for n in 0..2 {
                producer.send(tag(n), &[n as u8 + 1; 50], FOREVER).unwrap();
            }
        });
        let mut buffer = Vec::new();
        for n in 0..2 {
            assert_eq!(consumer.recv(&mut buffer, FOREVER), Ok(tag(n)));
            assert_eq!(buffer, [n as u8 + 1; 50]);
        }
        sending.join().unwrap();
    });
}

#[test]
fn a_close_ends_every_sleep_after_what_was_committed() {
    loom::model(|| {
        let (mut producer, mut consumer) = lane();
        let closer = consumer.closer().clone();
        let sending = thread::spawn(move || {
            producer.try_send(tag(1), b"x").unwrap();
            closer.close(Status::PEER_GONE);
        });
        let mut buffer = Vec::new();
        assert_eq!(consumer.recv(&mut buffer, FOREVER), Ok(tag(1)));
        assert_eq!(
            consumer.recv(&mut buffer, FOREVER),
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
