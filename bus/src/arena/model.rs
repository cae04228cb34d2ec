//! The hand-off of references and blocks under loom: a lane of two slots over an arena of one block, so that every
//! message needs the block of the one before.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p agentd-bus --lib --release arena::model`

use std::convert::Infallible;
use std::time::{Duration, Instant};

use loom::thread;

use super::*;
use crate::channel::Tag;
use crate::lane::ring::{Consumer, Producer, format_cursor, format_data};
use crate::lane::{Inline, ReceiverOptions, SenderOptions, cursor_words, data_words};
use crate::shm::park::Closer;
use crate::shm::region::Heap;

const FOREVER: Duration = Duration::from_secs(1_000_000);

/// Memory that both sides have from the start.
#[derive(Debug)]
struct Given(Option<Heap>);

impl Supply for Given {
    type Memory = Heap;
    type Error = Infallible;

    fn segment(&mut self, _number: u32, _least: u64) -> Result<Heap, Infallible> {
        Ok(self.0.take().expect("one segment"))
    }

    fn dropped(&mut self, _number: u32) {}
}

impl Arrivals for Given {
    type Memory = Heap;
    type Error = Infallible;

    fn next(&mut self, _deadline: Option<Instant>) -> Result<Option<(u32, Heap)>, Infallible> {
        Ok(self.0.take().map(|memory| (0, memory)))
    }
}

fn tag(correlation: u32) -> Tag {
    Tag {
        correlation,
        ..Tag::default()
    }
}

#[test]
fn a_block_is_reused_only_after_it_was_copied_and_every_payload_arrives_whole() {
    loom::model(|| {
        let (data, cursor) = (
            Heap::new(data_words(2, Inline::Small)),
            Heap::new(cursor_words()),
        );
        let (sender, receiver) = (SenderOptions::default(), ReceiverOptions::default());
        format_data(&data, 2, &sender).unwrap();
        format_cursor(&cursor, &receiver).unwrap();
        let closer = Closer::default;
        let producer = Producer::new(data.clone(), cursor.clone(), closer(), sender).unwrap();
        let consumer = Consumer::new(data, cursor, closer(), receiver).unwrap();
        let memory = Heap::new(SEGMENT_MIN as usize / 8);
        let options = BulkOptions {
            threshold: 0,
            grow_to: 0,
            first: SEGMENT_MIN,
        };
        let mut sender = BulkSender::new(producer, Given(Some(memory.clone())), options).unwrap();
        let mut receiver = BulkReceiver::new(consumer, Given(Some(memory)), SEGMENT_MIN);
        let sending = thread::spawn(move || {
            for n in 0..2 {
                sender.send(tag(n), &[n as u8 + 1; 9], FOREVER).unwrap();
            }
            assert_eq!(sender.usage().held, 1, "there is but one block");
        });
        let mut buffer = Vec::new();
        for n in 0..2 {
            assert_eq!(receiver.recv(&mut buffer, FOREVER).unwrap(), tag(n));
            assert_eq!(buffer, [n as u8 + 1; 9]);
        }
        sending.join().unwrap();
    });
}

#[test]
fn a_reader_that_is_overtaken_never_takes_new_bytes_for_old() {
    loom::model(|| {
        let memory = Heap::new(SEGMENT_MIN as usize / 8);
        let mut arena = Arena::new(2);
        let mut reader = Reader::new(SEGMENT_MIN);
        let number = arena.add(memory.clone()).unwrap();
        reader.add(number, memory).unwrap();
        let old = arena.store(&[1; 16]).unwrap();
        let reference = old.reference();
        let reusing = thread::spawn(move || {
            arena.release(old);
            let new = arena.store(&[2; 16]).unwrap();
            arena.release(new);
        });
        let mut buffer = Vec::new();
        match reader.read(&reference, &mut buffer) {
            Ok(()) => assert_eq!(buffer, [1; 16]),
            Err(error) => assert!(
                buffer.is_empty()
                    && matches!(
                        error,
                        ReferenceError::Stale { .. } | ReferenceError::Disagrees { .. }
                    )
            ),
        }
        reusing.join().unwrap();
    });
}
