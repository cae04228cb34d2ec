//! One conformance suite for both memories.

use std::time::Duration;

use super::*;
use crate::channel::Tag;
use crate::message::Status;
use crate::shm::park::Closer;
use crate::shm::region::Heap;

const WATCHDOG: Duration = Duration::from_secs(30);
const TAG: Tag = Tag {
    kind: 4,
    flags: 0xA5,
    correlation: 0xDEAD_BEEF,
};

#[test]
fn first_steps() {
    let data = Heap::new(data_words(64));
    format_data(&data, 64).unwrap();
    let mut writer =
        Writer::new(data.clone(), Closer::default(), WriterOptions::default()).unwrap();
    let options = ReaderOptions::default();
    let mut readers: Vec<_> = (0..3)
        .map(|n| {
            let cursor = Heap::new(cursor_words());
            format_cursor(&cursor, &options).unwrap();
            let reader =
                Reader::new(data.clone(), cursor.clone(), Closer::default(), options).unwrap();
            writer
                .attach_reader(ReaderId(n), cursor, Delivery::Lossy)
                .unwrap();
            reader
        })
        .collect();
    let mut buffer = Vec::new();
    for n in 0..1000u64 {
        let len = (n * 37 % writer.message_limit() as u64) as usize;
        writer.try_send(TAG, &vec![n as u8; len]).unwrap();
        for reader in &mut readers[..2] {
            let message = reader.recv(&mut buffer, WATCHDOG).unwrap();
            assert_eq!((message.tag, message.number, message.lost), (TAG, n, 0));
            assert_eq!(buffer, vec![n as u8; len]);
        }
    }
    let mut received = 0;
    while let Some(message) = readers[2].try_recv(&mut buffer).unwrap() {
        received += 1;
        assert_eq!(
            buffer,
            vec![
                message.number as u8;
                (message.number * 37 % writer.message_limit() as u64) as usize
            ]
        );
    }
    assert!(received > 1);
    assert_eq!(received + readers[2].counters().lost, 1000);
    readers[2].closer().close(Status::PEER_GONE);
    assert_eq!(
        readers[2].recv(&mut buffer, WATCHDOG),
        Err(RecvError::Closed(Status::PEER_GONE))
    );
}
