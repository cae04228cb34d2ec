//! The client's queues, groups and topic options over a socket, with a bus of threads at the other end.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use agentd_bus::channel::Overflow;
use agentd_bus::client::{Client, ProduceError, PublishOptions, Received};
use agentd_bus::message::{Event, Full, Outcome, QueueSpec, Status, SubscribeOptions};

use support::{Bus, WATCHDOG};

#[test]
fn a_message_is_delivered_until_somebody_says_that_it_is_done() {
    let bus = Bus::new();
    let producer = Client::connect_to(&bus.agent(1, "producer")).unwrap();
    let consumer = Client::connect_to(&bus.agent(2, "consumer")).unwrap();
    let queue = producer.queue("builds").unwrap();
    let first = queue.produce(b"linux").unwrap();
    assert_eq!(queue.produce_with(3, b"urgent").unwrap(), first + 1);
    let mut work = consumer.queue("builds").unwrap().consume(4).unwrap();
    let urgent = work.next(WATCHDOG).unwrap().unwrap();
    assert_eq!(
        (urgent.data(), urgent.deliveries, urgent.from),
        (&b"urgent"[..], 1, 1)
    );
    assert!(urgent.ack_confirmed().unwrap());
    let linux = work.next(WATCHDOG).unwrap().unwrap();
    assert_eq!(linux.id, first);
    linux.extend(Duration::from_secs(600)).unwrap();
    linux.nack(Duration::ZERO).unwrap();
    let again = work.next(WATCHDOG).unwrap().unwrap();
    assert_eq!((again.data(), again.deliveries), (&b"linux"[..], 2));
    drop(again);
    let third = work.next(WATCHDOG).unwrap().unwrap();
    assert_eq!(third.deliveries, 3, "dropped unsettled: given back at once");
    third.reject().unwrap();
    assert!(work.next(Duration::from_millis(1)).unwrap().is_none());
}

#[test]
fn many_messages_go_out_in_batches_and_each_arrives_once() {
    const COUNT: u32 = 20_000;
    let bus = Bus::new();
    let producer = Client::connect_to(&bus.agent(1, "producer")).unwrap();
    let spec = QueueSpec {
        full: Full::Block,
        max_messages: 500,
        ..QueueSpec::default()
    };
    let queue = producer.declare_queue("q", spec).unwrap();
    let path = bus.agent(2, "consumers");
    let consumers: Vec<_> = (0..3)
        .map(|_| {
            let client = Client::connect_to(&path).unwrap();
            std::thread::spawn(move || {
                let mut work = client.queue("q").unwrap().consume(64).unwrap();
                let mut seen = Vec::new();
                loop {
                    let mut done = false;
                    let count = work.for_each(WATCHDOG, |message| {
                        // It has seen its end: the rest is for the others, each of which waits for an end of its own.
                        if done {
                            return Outcome::Nack { delay_ms: 0 };
                        }
                        let n = u32::from_le_bytes(message.data.try_into().unwrap());
                        done = n == u32::MAX;
                        seen.push(n);
                        Outcome::Ack
                    });
                    assert!(count.unwrap() > 0, "the watchdog");
                    if done {
                        return seen;
                    }
                }
            })
        })
        .collect();
    let mut many = queue.producer().unwrap();
    for n in 0..COUNT {
        many.push(&n.to_le_bytes()).unwrap();
    }
    many.flush().unwrap();
    assert_eq!(many.confirmed(), u64::from(COUNT));
    // One for each, and no more: nobody would be left to make room for them.
    for _ in &consumers {
        queue.produce(&u32::MAX.to_le_bytes()).unwrap();
    }
    let mut seen: Vec<u32> = consumers
        .into_iter()
        .flat_map(|consumer| consumer.join().unwrap())
        .collect();
    seen.retain(|n| *n != u32::MAX);
    assert_eq!(seen.len(), COUNT as usize, "nothing twice");
    assert_eq!(
        seen.into_iter().collect::<BTreeSet<_>>().len(),
        COUNT as usize,
        "nothing lost"
    );
}

#[test]
fn what_a_full_queue_did_not_take_is_handed_back() {
    let bus = Bus::new();
    let client = Client::connect_to(&bus.agent(1, "producer")).unwrap();
    let spec = QueueSpec {
        max_messages: 3,
        ..QueueSpec::default()
    };
    let queue = client.declare_queue("small", spec).unwrap();
    let mut producer = queue.producer().unwrap();
    for n in 0..5u8 {
        producer.push(&[n]).unwrap();
    }
    let Err(ProduceError::Refused { status, rest, .. }) = producer.flush() else {
        panic!("it is full");
    };
    assert_eq!((status, producer.confirmed()), (Status::QUEUE_FULL, 3));
    assert_eq!(rest, [(1, vec![3]), (1, vec![4])]);
    let other = QueueSpec {
        max_messages: 4,
        ..QueueSpec::default()
    };
    let refused = client.declare_queue("small", other).unwrap_err();
    assert!(
        refused.to_string().contains("was declared otherwise"),
        "{refused}"
    );
    queue.drop_queue().unwrap();
    client.declare_queue("small", other).unwrap();
}

#[test]
fn a_consumer_hears_that_its_queue_was_dropped() {
    let bus = Bus::new();
    let client = Client::connect_to(&bus.agent(1, "a")).unwrap();
    let other = Client::connect_to(&bus.agent(2, "b")).unwrap();
    let mut work = client.queue("q").unwrap().consume(1).unwrap();
    other.queue("q").unwrap().drop_queue().unwrap();
    let error = work.next(WATCHDOG).unwrap_err();
    assert_eq!(error.status(), Some(Status::NO_SUCH_QUEUE));
}

#[test]
fn retained_messages_and_groups_reach_those_who_ask() {
    let bus = Bus::new();
    let a = Client::connect_to(&bus.agent(1, "a")).unwrap();
    let b = Client::connect_to(&bus.agent(2, "b")).unwrap();
    let retain = PublishOptions {
        retain: true,
        ..PublishOptions::default()
    };
    assert_eq!(a.publish_with("state", "s", b"up", retain).unwrap(), 0);
    let options = SubscribeOptions {
        overflow: Overflow::Block,
        retained: true,
    };
    let followed = b.subscribe_with("state", options).unwrap();
    let Received::Item(frame) = followed.next(WATCHDOG) else {
        panic!("retained")
    };
    assert_eq!(Event::parse(&frame.payload).unwrap().data, b"up");
    let durable = PublishOptions {
        durable: true,
        ..PublishOptions::default()
    };
    let refused = a.publish_with("state", "s", b"up", durable).unwrap_err();
    assert_eq!(refused.status(), Some(Status::UNSUPPORTED));
    b.join_group("crew").unwrap();
    assert_eq!(a.send_to_group("crew", "go", b"now").unwrap(), 1);
    let batch = b.inbox(5, WATCHDOG).unwrap();
    let event = Event::parse(&batch.messages[0].1.payload).unwrap();
    assert_eq!((event.topic, event.data), ("group:crew", &b"now"[..]));
    b.leave_group("crew").unwrap();
    assert!(a.send_to_group("crew", "go", b"now").is_err());
}
