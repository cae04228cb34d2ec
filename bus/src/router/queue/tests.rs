//! Queues, kept topics and groups through the router, by hand: what is said, what comes back, what the store is asked.

mod durable;
mod watch;

use std::sync::Arc;

use crate::access::{Access, SameUser};
use crate::channel::Overflow;
use crate::frame::{Frame, PeerId, flags, kind};
use crate::message::{
    BatchBuilder, Control, DeadAction, Deliveries, Delivery, Event, Full, GROUP_PREFIX, Numbers,
    Outcome, QueuePart, QueueSpec, ReplayFrom, Replayed, Status, StreamKind, SubscribeOptions,
    TopicSpec,
};
use crate::router::persist::{
    Batch, DeadReason, OffsetRange, Persist, PersistError, Restored, Settled, StreamId, StreamSpec,
};
use crate::router::tests::{Bus, id, ok_result, status, text, tight};
use crate::router::{ConnId, Limits};

fn number(result: &[u8]) -> u32 {
    u32::from_le_bytes(result[..4].try_into().unwrap())
}

impl Bus {
    fn declare(&mut self, conn: ConnId, name: &str, spec: QueueSpec) -> u32 {
        self.say(conn, 5, Control::QueueDeclare { spec, name });
        number(ok_result(&self.take(conn)))
    }

    fn open(&mut self, conn: ConnId, name: &str) -> u32 {
        self.say(conn, 5, Control::QueueOpen { name });
        number(ok_result(&self.take(conn)))
    }

    fn put(&mut self, conn: ConnId, correlation: u32, queue: u32, messages: &[(u8, &str)]) {
        let mut batch = BatchBuilder::new();
        for (priority, data) in messages {
            assert!(batch.push(*priority, data.as_bytes()));
        }
        let messages = batch.messages();
        self.say(conn, correlation, Control::Produce { queue, messages });
    }

    fn consume(&mut self, conn: ConnId, queue: u32, credit: u32) {
        self.say(conn, 6, Control::Consume { queue, credit });
        assert_eq!(status(&self.take(conn)), Status::OK);
    }

    fn settle(
        &mut self,
        conn: ConnId,
        correlation: u32,
        queue: u32,
        outcome: Outcome,
        tags: &[u64],
    ) {
        let bytes: Vec<u8> = tags.iter().flat_map(|tag| tag.to_le_bytes()).collect();
        let tags = Numbers::parse(&bytes).unwrap();
        let control = Control::Settle {
            queue,
            outcome,
            tags,
        };
        self.say(conn, correlation, control);
    }

    /// What one pull delivers: tag, data, deliveries.
    fn delivered(&mut self, conn: ConnId) -> Vec<(u64, String, u16)> {
        let Some(out) = self.pull(conn) else {
            return Vec::new();
        };
        let Ok(Control::Delivered { deliveries, .. }) = Control::parse(&out.frame.payload) else {
            panic!("not deliveries: {:?}", out.frame);
        };
        list(deliveries)
    }

    fn say_event(&mut self, conn: ConnId, topic: &str, data: &[u8], bits: u32) {
        let event = Event {
            priority: 1,
            event_type: "t",
            topic,
            data,
        };
        let mut frame = Frame::new(kind::EVENT, PeerId::BUS, 77, event.encode().unwrap());
        frame.header.flags = (1 | bits).into();
        self.feed(conn, frame);
    }

    fn subscribe(&mut self, conn: ConnId, pattern: &str, overflow: Overflow) {
        let options = SubscribeOptions {
            overflow,
            retained: true,
        };
        let delivery = Delivery::Push;
        self.say(
            conn,
            8,
            Control::Subscribe {
                delivery,
                options,
                pattern,
            },
        );
        assert_eq!(status(&self.take(conn)), Status::OK);
    }

    fn published(&mut self, conn: ConnId) -> Vec<String> {
        let mut data = Vec::new();
        while let Some(out) = self.pull(conn) {
            if out.frame.kind() & kind::EVENT != 0 {
                let event = Event::parse(&out.frame.payload).unwrap();
                data.push(String::from_utf8_lossy(event.data).into_owned());
            }
        }
        data
    }
}

fn list(deliveries: Deliveries<'_>) -> Vec<(u64, String, u16)> {
    deliveries
        .iter()
        .map(|d| {
            (
                d.tag,
                String::from_utf8_lossy(d.data).into_owned(),
                d.deliveries,
            )
        })
        .collect()
}

fn data(delivered: &[(u64, String, u16)]) -> Vec<&str> {
    delivered.iter().map(|(_, data, _)| data.as_str()).collect()
}

#[test]
fn a_message_goes_to_one_consumer_and_is_gone_when_it_is_acknowledged() {
    let mut bus = Bus::new(Limits::default());
    let (producer, consumer) = (bus.join(1, "producer"), bus.join(2, "consumer"));
    let queue = bus.open(producer, "builds");
    assert_eq!(
        bus.open(consumer, "builds"),
        queue,
        "one number for everybody"
    );
    bus.put(producer, 7, queue, &[(1, "a"), (1, "b"), (3, "urgent")]);
    let answer = bus.take(producer);
    let result = ok_result(&answer);
    assert_eq!(
        (number(result), result[8]),
        (3, 1),
        "three taken, the first is number 1"
    );
    bus.consume(consumer, queue, 2);
    let got = bus.delivered(consumer);
    assert_eq!(
        data(&got),
        ["urgent", "a"],
        "the urgent one first, and no more than the credit"
    );
    assert!(bus.delivered(consumer).is_empty());
    bus.settle(consumer, 9, queue, Outcome::Ack, &[got[0].0, got[1].0]);
    assert_eq!(number(ok_result(&bus.take(consumer))), 2);
    let last = bus.delivered(consumer);
    assert_eq!(data(&last), ["b"]);
    bus.settle(consumer, 9, queue, Outcome::Ack, &[got[0].0, last[0].0]);
    assert_eq!(
        number(ok_result(&bus.take(consumer))),
        1,
        "nothing is acknowledged twice"
    );
    let queues = bus.router.queues(Some(1000));
    assert_eq!(
        (queues[0].waiting, queues[0].in_hand, queues[0].bytes),
        (0, 0, 0)
    );
    assert_eq!(queues[0].counters.acked, 3);
}

#[test]
fn the_messages_of_a_consumer_that_dies_go_to_another_at_once() {
    let mut bus = Bus::new(Limits::default());
    let (producer, first) = (bus.join(1, "producer"), bus.join(2, "first"));
    let second = bus.join(3, "second");
    let queue = bus.open(producer, "q");
    bus.open(first, "q");
    bus.open(second, "q");
    bus.consume(first, queue, 10);
    bus.put(producer, 0, queue, &[(1, "a"), (1, "b")]);
    assert_eq!(data(&bus.delivered(first)), ["a", "b"]);
    bus.consume(second, queue, 10);
    assert!(bus.delivered(second).is_empty());
    bus.router.disconnect(first, bus.now, &mut bus.fx);
    let again = bus.delivered(second);
    assert_eq!(data(&again), ["a", "b"], "in their order");
    assert_eq!(again[0].2, 2, "the second delivery says so");
}

#[test]
fn what_is_held_too_long_comes_back_and_dies_after_its_last_delivery() {
    let mut bus = Bus::new(Limits::default());
    let conn = bus.join(1, "both");
    let spec = QueueSpec {
        visibility_ms: 100,
        max_deliver: 2,
        ..QueueSpec::default()
    };
    let queue = bus.declare(conn, "q", spec);
    bus.consume(conn, queue, 1);
    bus.put(conn, 0, queue, &[(1, "poison")]);
    let first = bus.delivered(conn);
    bus.settle(
        conn,
        0,
        queue,
        Outcome::Extend { visibility_ms: 500 },
        &[first[0].0],
    );
    bus.advance(200);
    assert!(
        bus.delivered(conn).is_empty(),
        "it said that it is still at it"
    );
    bus.advance(400);
    assert_eq!(bus.delivered(conn)[0].2, 2);
    bus.fx.record.clear();
    bus.advance(101);
    assert!(bus.delivered(conn).is_empty());
    let entry = bus
        .fx
        .record
        .iter()
        .find(|meta| meta.kind == "dead-letter")
        .unwrap();
    assert_eq!(&*entry.what, "1 messages (1 to 1): max-deliver");
    let peek = Control::QueuePeek {
        queue,
        part: QueuePart::Dead,
        max: 9,
        from: 0,
    };
    bus.say(conn, 3, peek);
    let answer = bus.take(conn);
    let dead = list(Deliveries::parse(ok_result(&answer)).unwrap());
    assert_eq!(
        dead,
        [(DeadReason::MaxDeliver.code().into(), "poison".to_owned(), 2)]
    );
    let ids = Numbers::parse(&[]).unwrap();
    bus.say(
        conn,
        3,
        Control::QueueDead {
            queue,
            action: DeadAction::Requeue,
            ids,
        },
    );
    assert_eq!(number(ok_result(&bus.take(conn))), 1);
    assert_eq!(bus.delivered(conn)[0].2, 1, "as if never delivered");
}

#[test]
fn what_is_taken_at_once_is_held_like_any_delivery() {
    let mut bus = Bus::new(Limits::default());
    let conn = bus.join(1, "both");
    let queue = bus.open(conn, "q");
    bus.put(conn, 0, queue, &[(1, "a"), (1, "b"), (1, "c")]);
    bus.say(conn, 4, Control::QueueTake { queue, max: 2 });
    let answer = bus.take(conn);
    let taken = list(Deliveries::parse(ok_result(&answer)).unwrap());
    assert_eq!(data(&taken), ["a", "b"]);
    assert!(bus.delivered(conn).is_empty(), "nothing comes by itself");
    bus.settle(conn, 5, queue, Outcome::Ack, &[taken[0].0]);
    assert_eq!(number(ok_result(&bus.take(conn))), 1);
    bus.advance(30_001);
    bus.say(conn, 4, Control::QueueTake { queue, max: 9 });
    let answer = bus.take(conn);
    let again = list(Deliveries::parse(ok_result(&answer)).unwrap());
    assert_eq!(data(&again), ["b", "c"], "its time-out has passed");
}

#[test]
fn competing_consumers_share_what_waits() {
    let mut bus = Bus::new(Limits::default());
    let producer = bus.join(1, "producer");
    let queue = bus.open(producer, "q");
    let consumers: Vec<ConnId> = (2..6).map(|n| bus.join(n, &format!("c{n}"))).collect();
    for consumer in &consumers {
        bus.open(*consumer, "q");
        bus.consume(*consumer, queue, 100);
    }
    let messages: Vec<(u8, &str)> = vec![(1, "m"); 40];
    bus.put(producer, 0, queue, &messages);
    let mut shares = [0; 4];
    while shares.iter().sum::<usize>() < 40 {
        for (share, consumer) in shares.iter_mut().zip(&consumers) {
            *share += bus.delivered(*consumer).len();
        }
    }
    assert!(
        shares.iter().all(|share| (5..=15).contains(share)),
        "{shares:?}"
    );
}

#[test]
fn a_consumer_that_never_takes_what_it_was_told_of_does_not_keep_it_from_others() {
    let mut bus = Bus::new(Limits::default());
    let (stuck, able) = (bus.join(1, "stuck"), bus.join(2, "able"));
    let queue = bus.open(stuck, "q");
    bus.open(able, "q");
    bus.consume(stuck, queue, 5);
    bus.consume(able, queue, 5);
    bus.fx.wake.clear();
    bus.put(stuck, 0, queue, &[(1, "a")]);
    assert_eq!(bus.fx.wake, [stuck], "one message, one consumer");
    bus.fx.wake.clear();
    bus.advance(21);
    assert_eq!(bus.fx.wake, [able]);
    assert_eq!(data(&bus.delivered(able)), ["a"]);
    assert!(bus.delivered(stuck).is_empty());
}

#[test]
fn a_full_queue_does_what_it_declared() {
    let mut bus = Bus::new(Limits::default());
    let conn = bus.join(1, "both");
    let bounds = QueueSpec {
        max_messages: 2,
        ..QueueSpec::default()
    };
    let queue = bus.declare(conn, "reject", bounds);
    bus.put(conn, 7, queue, &[(1, "a"), (1, "b"), (1, "c")]);
    let refused = bus.take(conn);
    assert_eq!(status(&refused), Status::QUEUE_FULL);
    assert!(
        text(&refused).contains("queue reject is full: 2 of 2 messages"),
        "{}",
        text(&refused)
    );
    let queue = bus.declare(
        conn,
        "oldest",
        QueueSpec {
            full: Full::DropOldest,
            ..bounds
        },
    );
    bus.put(conn, 7, queue, &[(1, "a"), (1, "b"), (1, "c")]);
    ok_result(&bus.take(conn));
    bus.consume(conn, queue, 9);
    assert_eq!(data(&bus.delivered(conn)), ["b", "c"]);
    assert_eq!(
        bus.router.queues(None)[0].dead,
        1,
        "what made room is a dead letter"
    );
    let mut queues = bus.router.queues(None);
    assert_eq!(
        queues.pop().map(|q| (q.name, q.counters.refused)),
        Some(("reject".into(), 1))
    );
}

#[test]
fn a_blocking_queue_pauses_its_producer_until_there_is_room() {
    let mut bus = Bus::new(Limits::default());
    let (producer, consumer) = (bus.join(1, "producer"), bus.join(2, "consumer"));
    let spec = QueueSpec {
        max_messages: 2,
        full: Full::Block,
        ..QueueSpec::default()
    };
    let queue = bus.declare(producer, "q", spec);
    bus.put(
        producer,
        7,
        queue,
        &[(1, "a"), (1, "b"), (1, "c"), (1, "d"), (1, "e")],
    );
    assert!(bus.router.is_congested(producer) && bus.pull(producer).is_none());
    bus.put(producer, 8, queue, &[(1, "impatient")]);
    assert_eq!(status(&bus.take(producer)), Status::QUEUE_FULL);
    bus.open(consumer, "q");
    bus.consume(consumer, queue, 9);
    let mut got = Vec::new();
    loop {
        let batch = bus.delivered(consumer);
        if batch.is_empty() {
            break;
        }
        assert!(bus.router.queues(None)[0].waiting + bus.router.queues(None)[0].in_hand <= 2);
        let tags: Vec<u64> = batch.iter().map(|(tag, ..)| *tag).collect();
        bus.settle(consumer, 0, queue, Outcome::Ack, &tags);
        got.extend(batch.into_iter().map(|(_, data, _)| data));
    }
    assert_eq!(
        got,
        ["a", "b", "c", "d", "e"],
        "in their order, all of them"
    );
    assert!(bus.fx.resume.contains(&producer) && !bus.router.is_congested(producer));
    assert_eq!(number(ok_result(&bus.take(producer))), 5);
}

#[derive(Debug)]
struct Rules {
    publish: &'static str,
    subscribe: &'static str,
    send: &'static str,
}

impl Access for Rules {
    fn may_send(&self, to: &str) -> bool {
        to == self.send
    }
    fn may_request(&self, _to: &str) -> bool {
        false
    }
    fn may_publish(&self, topic: &str) -> bool {
        topic == self.publish
    }
    fn may_subscribe(&self, pattern: &str) -> bool {
        pattern == self.subscribe
    }
}

#[test]
fn who_may_produce_and_consume_is_what_the_policy_says_of_the_queues_topic() {
    let mut bus = Bus::new(Limits::default());
    let rules = |publish, subscribe| {
        Arc::new(Rules {
            publish,
            subscribe,
            send: "",
        })
    };
    bus.peer(1, 1000, "producer", rules("queue.q", ""));
    bus.peer(2, 1000, "consumer", rules("", "queue.q"));
    bus.peer(3, 1000, "neither", rules("q", "q"));
    bus.peer(4, 2000, "other-user", Arc::new(SameUser));
    let [producer, consumer, neither, other] = [1, 2, 3, 4].map(|n| bus.connect(n));
    let queue = bus.open(producer, "q");
    bus.open(consumer, "q");
    bus.say(neither, 5, Control::QueueOpen { name: "q" });
    assert_eq!(status(&bus.take(neither)), Status::DENIED);
    bus.put(neither, 5, queue, &[(1, "a")]);
    assert_eq!(status(&bus.take(neither)), Status::NO_SUCH_QUEUE);
    bus.put(other, 5, queue, &[(1, "a")]);
    assert_eq!(
        status(&bus.take(other)),
        Status::NO_SUCH_QUEUE,
        "another user's number is none"
    );
    assert_ne!(bus.open(other, "q"), queue, "a queue of its own");
    bus.put(consumer, 5, queue, &[(1, "a")]);
    let denied = bus.take(consumer);
    assert!(
        text(&denied).contains("its [ipc] publish list has to name queue.q"),
        "{}",
        text(&denied)
    );
    bus.say(producer, 5, Control::Consume { queue, credit: 1 });
    assert_eq!(status(&bus.take(producer)), Status::DENIED);
    bus.consume(consumer, queue, 5);
    bus.put(producer, 0, queue, &[(1, "a")]);
    assert_eq!(data(&bus.delivered(consumer)), ["a"]);
    let closed = bus
        .router
        .set_access(id(2), rules("", ""), bus.now, &mut bus.fx);
    assert_eq!(closed.subscriptions, 1);
    assert_eq!(bus.take(consumer).kind(), kind::ERROR);
    assert_eq!(
        bus.router.queues(Some(1000))[0].waiting,
        1,
        "what it held is back"
    );
}

#[test]
fn subscriptions_lose_by_their_own_policies() {
    let mut bus = Bus::new(tight());
    let publisher = bus.join(1, "publisher");
    let [oldest, newest, gone, block] = [2, 3, 4, 5].map(|n| bus.join(n, &format!("r{n}")));
    bus.subscribe(oldest, "t", Overflow::DropOldest);
    bus.subscribe(newest, "t", Overflow::DropNewest);
    bus.subscribe(gone, "t", Overflow::Disconnect);
    let all: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    for n in &all {
        bus.say_event(publisher, "t", n.as_bytes(), 0);
    }
    assert!(
        bus.closed()
            .iter()
            .any(|why| why.to_string().contains("topic messages wait unread"))
    );
    assert_eq!(bus.published(oldest), all[2..]);
    assert_eq!(bus.published(newest), all[..8]);
    bus.router.disconnect(gone, bus.now, &mut bus.fx);
    bus.router.disconnect(newest, bus.now, &mut bus.fx);
    bus.subscribe(block, "t", Overflow::Block);
    for n in &all[..4] {
        assert!(!bus.router.is_congested(publisher));
        bus.say_event(publisher, "t", n.as_bytes(), 0);
    }
    assert!(
        bus.router.is_congested(publisher),
        "half full: nothing more is read from it"
    );
    for n in &all[4..] {
        bus.say_event(publisher, "t", n.as_bytes(), flags::ACK);
    }
    let answers: Vec<Status> = (4..10).map(|_| status(&bus.take(publisher))).collect();
    let (ok, full) = (Status::OK, Status::QUEUE_FULL);
    assert_eq!(
        answers,
        [ok, ok, ok, ok, full, full],
        "who goes on regardless hears"
    );
    bus.fx.resume.clear();
    assert_eq!(
        bus.published(block),
        all[..8],
        "nothing that was accepted is lost"
    );
    assert_eq!(bus.fx.resume, [publisher]);
    assert!(!bus.router.is_congested(publisher));
    let dropped = bus.router.topics(None)[0].counters.dropped;
    assert!(
        dropped >= 6,
        "each lost copy is counted with its topic: {dropped}"
    );
}

#[test]
fn a_group_gets_what_its_senders_may_send() {
    let mut bus = Bus::new(Limits::default());
    let rules = |subscribe, send| {
        Arc::new(Rules {
            publish: "",
            subscribe,
            send,
        })
    };
    bus.peer(1, 1000, "boss", rules("", "group:crew"));
    bus.peer(2, 1000, "worker", rules("group:crew", ""));
    bus.peer(3, 1000, "stranger", rules("", ""));
    bus.peer(4, 1000, "pushed", Arc::new(SameUser));
    let [boss, worker, stranger, pushed] = [1, 2, 3, 4].map(|n| bus.connect(n));
    let join = |delivery| Control::GroupJoin {
        delivery,
        name: "crew",
    };
    bus.say(stranger, 2, join(Delivery::Inbox));
    assert_eq!(status(&bus.take(stranger)), Status::DENIED);
    bus.say(worker, 2, join(Delivery::Inbox));
    bus.say(pushed, 2, join(Delivery::Push));
    ok_result(&bus.take(worker));
    ok_result(&bus.take(pushed));
    let topic = format!("{GROUP_PREFIX}crew");
    let all = |bus: &mut Bus, from| {
        bus.event(
            from,
            kind::EVENT | kind::BROADCAST,
            PeerId::BUS,
            &topic,
            b"go",
        );
    };
    all(&mut bus, boss);
    assert_eq!(number(ok_result(&bus.take(boss))), 2);
    assert_eq!(bus.published(pushed), ["go"]);
    assert_eq!(
        bus.router.peers(bus.now)[3].queued,
        1,
        "in the worker's inbox"
    );
    all(&mut bus, stranger);
    assert_eq!(status(&bus.take(stranger)), Status::DENIED);
    assert_eq!(bus.router.groups(None)[0].members, ["pushed", "worker"]);
    bus.router
        .set_access(id(2), rules("", ""), bus.now, &mut bus.fx);
    bus.router.disconnect(pushed, bus.now, &mut bus.fx);
    assert_eq!(bus.router.groups(None), [], "nobody is left in it");
    all(&mut bus, boss);
    assert_eq!(status(&bus.take(boss)), Status::NO_SUCH_AGENT);
}

#[test]
fn an_urgent_request_overtakes_and_an_answer_is_never_behind_topic_messages() {
    let mut bus = Bus::new(Limits::default());
    let (asker, server) = (bus.join(1, "asker"), bus.join(2, "server"));
    bus.say(server, 2, Control::Serve { window: 9 });
    ok_result(&bus.take(server));
    bus.ask(asker, 11, id(2), 0);
    let request = crate::message::Request {
        method: "m",
        params: b"now",
        timeout_ms: 0,
    };
    let mut urgent = Frame::new(kind::REQUEST, id(2), 12, request.encode().unwrap());
    urgent.header.flags = 3.into();
    bus.feed(asker, urgent);
    let first = bus.take(server);
    assert!(first.payload.ends_with(b"now"));
    bus.subscribe(asker, "t", Overflow::DropOldest);
    for _ in 0..20 {
        bus.say_event(server, "t", b"x", 0);
    }
    bus.respond(server, first.correlation(), b"done");
    assert_eq!(bus.take(asker).kind(), kind::RESPONSE);
}

#[test]
fn a_dropped_queue_tells_those_who_use_it() {
    let mut bus = Bus::new(Limits::default());
    let (a, b) = (bus.join(1, "a"), bus.join(2, "b"));
    let queue = bus.open(a, "q");
    bus.open(b, "q");
    bus.consume(b, queue, 2);
    bus.put(a, 0, queue, &[(1, "x")]);
    bus.say(a, 4, Control::QueueDrop { queue });
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(bus.take(a).kind());
    }
    assert!(seen.contains(&kind::RESPONSE) && seen.contains(&kind::ERROR));
    let notice = bus.take(b);
    assert_eq!(
        (status(&notice), notice.correlation()),
        (Status::NO_SUCH_QUEUE, queue)
    );
    assert!(bus.delivered(b).is_empty() && bus.router.queues(None).is_empty());
    assert_eq!(bus.router.next_deadline_ns(), None);
}
