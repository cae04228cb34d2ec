//! Lanes: a consumer over slots that change under its hands, a producer over a cursor page that
//! does, and a third party over both.

use agentd_bus::channel::{Overflow, Tag, Waiting};
use agentd_bus::lane::ring::{
    Consumer, Producer, SendError, format_cursor, format_data, message_limit,
};
use agentd_bus::lane::{
    Credit, Extension, Inline, ReceiverOptions, SenderOptions, cursor_words, data_words,
};
use agentd_bus::shm::park::Closer;
use agentd_bus::shm::region::Heap;
use agentd_bus::view::View;

use crate::hostile::Hostile;
use crate::input::Input;

const CAPACITY: usize = 8;
/// Receives at most, however much the peer claims to have.
const STEPS: usize = 200;

struct Lane {
    data: Heap,
    cursor: Heap,
    sending: SenderOptions,
    receiving: ReceiverOptions,
}

/// Fresh memory, for options that the input chooses.
fn lane(input: &mut Input<'_>) -> Lane {
    let choice = input.u8();
    let sending = SenderOptions {
        waiting: Waiting::Blocking,
        overflow: match choice & 3 {
            0 => Overflow::DropNewest,
            1 => Overflow::Disconnect,
            _ => Overflow::Block,
        },
        extension: match choice >> 2 & 3 {
            0 => Extension::Time,
            1 => Extension::TimeAndCrc,
            _ => Extension::None,
        },
        inline: if choice & 32 == 0 {
            Inline::Small
        } else {
            Inline::Wide
        },
    };
    let receiving = ReceiverOptions {
        waiting: Waiting::Blocking,
        credit: if choice & 16 == 0 {
            Credit::Automatic
        } else {
            Credit::Manual
        },
        ..ReceiverOptions::default()
    };
    let lane = Lane {
        data: Heap::new(data_words(CAPACITY, sending.inline)),
        cursor: Heap::new(cursor_words()),
        sending,
        receiving,
    };
    format_data(&lane.data, CAPACITY, &sending).expect("the size is right");
    format_cursor(&lane.cursor, &receiving).expect("the size is right");
    lane
}

/// An honest producer's messages, then anything: what was committed is received whole, and nothing
/// longer than the lane holds ever is.
pub fn consumer(data: &[u8]) {
    let mut input = Input::new(data);
    let lane = lane(&mut input);
    let hostile = Hostile::new(lane.data.clone());
    let mut consumer = Consumer::new(
        hostile.clone(),
        lane.cursor.clone(),
        Closer::default(),
        lane.receiving,
    )
    .expect("formatted");
    consumer.grant(CAPACITY as u64);
    let mut producer =
        Producer::new(lane.data, lane.cursor, Closer::default(), lane.sending).expect("formatted");
    let limit = message_limit(CAPACITY, consumer.inline());
    let mut buffer = Vec::new();
    for n in 0..input.u8() % 16 {
        let payload = vec![n; usize::from(n) * 15 % 130];
        let tag = Tag {
            kind: n,
            flags: 1,
            correlation: n.into(),
        };
        producer
            .try_send(tag, &payload)
            .expect("each is read at once");
        assert_eq!(consumer.try_recv(&mut buffer), Ok(Some(tag)));
        assert_eq!(buffer, payload);
        consumer.grant(CAPACITY as u64);
        consumer.publish();
    }
    hostile.follow(&mut input);
    for step in 0..STEPS {
        let done = hostile.is_done();
        let ended = match step % 3 {
            0 => match consumer.try_recv(&mut buffer) {
                Ok(Some(_)) => {
                    assert!(buffer.len() <= limit);
                    false
                }
                Ok(None) | Err(_) => true,
            },
            1 => consumer
                .for_each(CAPACITY, |_, payload| assert!(payload.len() <= limit))
                .is_ok_and(|taken| taken == 0),
            _ => match consumer.try_next(|message| message.payload.len()) {
                Ok(Some(len)) => {
                    assert!(len <= limit);
                    consumer.release();
                    false
                }
                Ok(None) | Err(_) => true,
            },
        };
        if ended && done {
            break;
        }
        hostile.store_now();
    }
}

/// Takes a lane from memory that was hostile from the beginning.
pub fn open(data: &[u8]) {
    let mut input = Input::new(data);
    let lane = lane(&mut input);
    let hostile = Hostile::new(lane.data);
    hostile.follow(&mut input);
    let consumer = Consumer::new(
        hostile.clone(),
        lane.cursor,
        Closer::default(),
        lane.receiving,
    );
    let Ok(mut consumer) = consumer else {
        return;
    };
    let limit = message_limit(CAPACITY, consumer.inline());
    let mut buffer = Vec::new();
    for _ in 0..STEPS {
        match consumer.try_recv(&mut buffer) {
            Ok(Some(_)) => assert!(buffer.len() <= limit),
            _ if hostile.is_done() => break,
            _ => hostile.store_now(),
        }
    }
}

/// A consumer that says anything of itself: the producer writes nothing that it was not allowed to, and ends that lane at worst.
pub fn producer(data: &[u8]) {
    let mut input = Input::new(data);
    let lane = lane(&mut input);
    let hostile = Hostile::new(lane.cursor);
    if input.u8().is_multiple_of(2) {
        hostile.follow(&mut input);
    }
    let producer = Producer::new(lane.data, hostile.clone(), Closer::default(), lane.sending);
    let Ok(mut producer) = producer else {
        return;
    };
    hostile.follow(&mut input);
    let mut ended = false;
    for n in 0..60_u8 {
        let payload = vec![n; usize::from(n) * 7 % 200];
        let before = producer.next_slot();
        match producer.try_send(Tag::default(), &payload) {
            Ok(()) => assert!(!ended && producer.next_slot() > before),
            Err(error) => {
                assert_eq!(producer.next_slot(), before);
                // What can't be believed once is never believed again.
                ended |= matches!(error, SendError::Corrupt { .. } | SendError::Closed(_));
            }
        }
        hostile.store_now();
        std::hint::black_box(producer.sent());
    }
}

/// A third party over two memories of which both sides make what they like.
pub fn view(data: &[u8]) {
    let mut input = Input::new(data);
    let lane = lane(&mut input);
    let (slots, page) = (Hostile::new(lane.data), Hostile::new(lane.cursor));
    let len = usize::from(input.u16());
    slots.follow(&mut Input::new(input.bytes(len)));
    page.follow(&mut input);
    let Ok(view) = View::new(slots.clone(), Some(page.clone())) else {
        return;
    };
    for _ in 0..STEPS {
        let snapshot = view.snapshot();
        assert!(snapshot.depth <= CAPACITY as u64);
        std::hint::black_box((snapshot.latency.count(), snapshot.latency.at_quantile(0.5)));
        assert!(view.unread().messages <= CAPACITY as u64);
        if slots.is_done() && page.is_done() {
            break;
        }
        slots.store_now();
        page.store_now();
    }
}
