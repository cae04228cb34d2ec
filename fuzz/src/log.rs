//! Logs: a reader over a producer's memory that changes under its hands, and a producer over a reader's page that does.

use std::time::Duration;

use agentd_bus::channel::Tag;
use agentd_bus::log::{
    Delivery, Hold, Message, Reader, ReaderId, ReaderOptions, Start, Writer, WriterOptions,
    cursor_words, data_words, format_cursor, format_data, message_limit,
};
use agentd_bus::shm::park::Closer;
use agentd_bus::shm::region::Heap;

use crate::hostile::Hostile;
use crate::input::Input;

const CAPACITY: usize = 8;
/// Receives at most, however much the peer claims to have.
const STEPS: usize = 200;

/// An honest producer's messages, then anything: the reader hands out no message longer than can
/// be, and what was committed before is whole.
pub fn reader(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = Heap::new(data_words(CAPACITY));
    let page = Heap::new(cursor_words());
    let options = ReaderOptions {
        delivery: if input.u8().is_multiple_of(2) {
            Delivery::Lossy
        } else {
            Delivery::Reliable
        },
        ..ReaderOptions::default()
    };
    format_data(&memory, CAPACITY).expect("the size is right");
    format_cursor(&page, &options).expect("the size is right");
    let mut writer: Writer<_, Heap> =
        Writer::new(memory.clone(), Closer::default(), WriterOptions::default())
            .expect("formatted");
    let delivery = options.delivery;
    writer
        .attach_reader(ReaderId(1), page.clone(), delivery)
        .expect("the first");
    let hostile = Hostile::new(memory);
    let mut reader =
        Reader::new(hostile.clone(), page, Closer::default(), options).expect("formatted");
    let before = usize::from(input.u8() % 5);
    for n in 0..before {
        let payload = vec![n as u8; n * 20];
        writer
            .try_send(Tag::default(), &payload)
            .expect("there is room");
    }
    let mut buffer = Vec::new();
    let read = usize::from(input.u8()).min(before);
    for n in 0..read {
        let received = reader.try_recv(&mut buffer).expect("all is well yet");
        assert!(received.is_some());
        assert_eq!(buffer, vec![n as u8; n * 20]);
    }
    hostile.follow(&mut input);
    for _ in 0..STEPS {
        match reader.try_recv(&mut buffer) {
            Ok(Some(Message { .. })) => assert!(buffer.len() <= message_limit(CAPACITY)),
            Ok(None) if hostile.is_done() => break,
            Ok(None) => hostile.store_now(),
            Err(_) if hostile.is_done() => break,
            Err(_) => hostile.store_now(),
        }
    }
    std::hint::black_box(reader.counters());
}

/// Takes a log from memory that was hostile from the beginning.
pub fn attach(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = Heap::new(data_words(CAPACITY));
    let page = Heap::new(cursor_words());
    if input.u8().is_multiple_of(2) {
        format_data(&memory, CAPACITY).expect("the size is right");
    }
    let options = ReaderOptions {
        start: match input.u8() % 2 {
            0 => Start::default(),
            _ => Start::Oldest,
        },
        ..ReaderOptions::default()
    };
    format_cursor(&page, &options).expect("the size is right");
    let hostile = Hostile::new(memory);
    hostile.follow(&mut input);
    let Ok(mut reader) = Reader::new(hostile.clone(), page, Closer::default(), options) else {
        return;
    };
    let mut buffer = Vec::new();
    for _ in 0..STEPS {
        match reader.try_recv(&mut buffer) {
            Ok(Some(_)) => assert!(buffer.len() <= message_limit(CAPACITY)),
            _ if hostile.is_done() => break,
            _ => hostile.store_now(),
        }
    }
}

/// One hostile reader and one honest one: the producer never stops, and the honest one gets every message whole and in order.
pub fn writer(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = Heap::new(data_words(CAPACITY));
    format_data(&memory, CAPACITY).expect("the size is right");
    let writing = WriterOptions {
        // Whoever holds the producer up is cut off at once.
        hold: Hold {
            lag: None,
            time: Duration::ZERO,
        },
        ..WriterOptions::default()
    };
    let mut writer: Writer<_, Hostile> =
        Writer::new(memory.clone(), Closer::default(), writing).expect("formatted");
    let options = ReaderOptions {
        delivery: Delivery::Reliable,
        ..ReaderOptions::default()
    };
    let page = || {
        let page = Heap::new(cursor_words());
        format_cursor(&page, &options).expect("the size is right");
        page
    };
    let honest_page = page();
    writer
        .attach_reader(
            ReaderId(1),
            Hostile::new(honest_page.clone()),
            Delivery::Reliable,
        )
        .expect("the first");
    let mut honest =
        Reader::new(memory, honest_page, Closer::default(), options).expect("formatted");
    let delivery = if input.u8().is_multiple_of(2) {
        Delivery::Lossy
    } else {
        Delivery::Reliable
    };
    let hostile = Hostile::new(page());
    let late = input.u8().is_multiple_of(2);
    if late {
        hostile.follow(&mut input);
    }
    let attached = writer.attach_reader(ReaderId(2), hostile.clone(), delivery);
    std::hint::black_box(attached.is_ok());
    if !late {
        hostile.follow(&mut input);
    }
    let mut buffer = Vec::new();
    for n in 0..40_u8 {
        let payload = vec![n; usize::from(n) % 120];
        let mut sent = writer.try_send(Tag::default(), &payload);
        if sent.is_err() {
            // The hostile one is cut off at once: `Hold::time` is nothing.
            sent = writer.try_send(Tag::default(), &payload);
        }
        sent.expect("an honest reader that keeps up never stops the producer");
        let message = honest.try_recv(&mut buffer).expect("it keeps up");
        assert_eq!(message.expect("it was sent").lost, 0);
        assert_eq!(buffer, payload);
        hostile.store_now();
        for snapshot in writer.readers() {
            std::hint::black_box(snapshot.latency.at_quantile(0.99));
        }
        std::hint::black_box(writer.next_cut_off());
    }
}
