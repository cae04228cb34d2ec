//! Messages whose beginning is apart from the rest: the same to a receiver as in one piece, and told of once for a whole run.

use super::*;
use crate::lane::ring::HEAD_MAX;

#[test]
fn a_message_in_two_parts_arrives_as_one() {
    for inline in CLASSES {
        for extension in [Extension::None, Extension::Time, Extension::TimeAndCrc] {
            let (mut producer, mut consumer) =
                heap_with(64, Options::extension(extension).with(inline));
            for head in (0..=HEAD_MAX).step_by(8) {
                for body in [0, 1, 7, 8, 15, 16, 17, 40, 48, 49, 64, 104, 112, 113, 500] {
                    let message: Vec<u8> = (0..head + body).map(|at| at as u8 ^ 0x5A).collect();
                    let (front, rest) = message.split_at(head);
                    producer.put_parts(TAG, front, rest).unwrap();
                    producer.notify();
                    let taken = consumer.try_recv_with(|tag, found| {
                        assert_eq!((tag, found), (TAG, &message[..]), "{head} + {body}");
                    });
                    assert_eq!(taken, Ok(Some(())));
                }
            }
        }
    }
}

#[test]
fn where_there_is_no_room_nothing_is_put() {
    let (mut producer, mut consumer) = heap_with(4, Options::default());
    let long = [7; 120];
    producer.put_parts(TAG, &[1; 8], &long).unwrap();
    assert_eq!(
        producer.put_parts(TAG, &[1; 8], &long),
        Err(SendError::Full)
    );
    producer.put_parts(TAG, &[1; 8], &[2]).unwrap();
    let mut lens = Vec::new();
    while let Ok(Some(len)) = consumer.try_recv_with(|_, message| message.len()) {
        lens.push(len);
    }
    assert_eq!(lens, [128, 9]);
}

#[test]
fn one_word_after_a_run_wakes_a_sleeper_of_either_barrier() {
    for barrier in [Barrier::Sleeper, Barrier::Both] {
        let mut options = Options::default();
        options.receiver.barrier = barrier;
        let (mut producer, mut consumer) = heap_with(64, options);
        let receiving = std::thread::spawn(move || {
            let mut received = 0;
            while received < 300 {
                consumer.recv_with(WATCHDOG, |_, _| ()).unwrap();
                received += 1;
            }
            consumer.received().sleeps
        });
        for _ in 0..100 {
            for _ in 0..3 {
                while producer.put_parts(TAG, &[1; 32], &[2; 30]) == Err(SendError::Full) {
                    producer.notify();
                    std::thread::yield_now();
                }
            }
            producer.notify();
            std::thread::yield_now();
        }
        receiving.join().unwrap();
    }
}
