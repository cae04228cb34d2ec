//! Queues and topics that are stored: what is acknowledged, delivered, retained and there after a restart.

use super::*;

#[test]
fn a_durable_queue_acknowledges_and_delivers_only_what_is_stored() {
    let mut bus = Bus::new(Limits::default());
    let conn = bus.join(1, "both");
    let spec = QueueSpec {
        durable: true,
        ..QueueSpec::default()
    };
    bus.say(conn, 5, Control::QueueDeclare { spec, name: "q" });
    assert!(
        bus.pull(conn).is_none(),
        "no answer before the store has it"
    );
    let Persist::Declare { ticket, stream, .. } = bus.fx.persist.remove(0) else {
        panic!()
    };
    assert_eq!(stream.to_string(), "queue q of uid 1000");
    bus.router.persisted(ticket, Ok(0), bus.now, &mut bus.fx);
    let queue = number(ok_result(&bus.take(conn)));
    bus.consume(conn, queue, 9);
    bus.put(conn, 7, queue, &[(1, "a"), (2, "b")]);
    assert!(
        bus.pull(conn).is_none(),
        "neither acknowledged nor delivered"
    );
    let Persist::Append { ticket, batch, .. } = bus.fx.persist.remove(0) else {
        panic!()
    };
    assert_eq!(
        batch.iter().collect::<Vec<_>>(),
        [(1, &b"a"[..]), (2, b"b")]
    );
    bus.router.persisted(ticket, Ok(40), bus.now, &mut bus.fx);
    let answer = bus.take(conn);
    assert_eq!((number(ok_result(&answer)), ok_result(&answer)[8]), (2, 40));
    let got = bus.delivered(conn);
    assert_eq!(data(&got), ["b", "a"]);
    let tags: Vec<u64> = got.iter().map(|(tag, ..)| *tag).collect();
    bus.settle(conn, 9, queue, Outcome::Ack, &tags);
    assert!(
        bus.pull(conn).is_none(),
        "not acknowledged before that is stored"
    );
    let Persist::Settle {
        ticket,
        offsets,
        how,
        ..
    } = bus.fx.persist.remove(0)
    else {
        panic!()
    };
    assert_eq!(
        (offsets, how),
        (
            vec![OffsetRange {
                first: 40,
                count: 2
            }],
            Settled::Gone
        )
    );
    bus.router.persisted(ticket, Ok(0), bus.now, &mut bus.fx);
    assert_eq!(number(ok_result(&bus.take(conn))), 2);
    bus.put(conn, 7, queue, &[(1, "c")]);
    let Persist::Append { ticket, .. } = bus.fx.persist.remove(0) else {
        panic!()
    };
    let failed = Err(PersistError::Full("no space left on device".into()));
    bus.router.persisted(ticket, failed, bus.now, &mut bus.fx);
    let refused = bus.take(conn);
    assert_eq!(status(&refused), Status::NOT_STORED);
    assert!(
        bus.delivered(conn).is_empty(),
        "what was not stored is not delivered"
    );
    assert_eq!(bus.router.open_tickets(), 0);
}

#[test]
fn what_was_not_settled_is_there_after_a_restart() {
    let mut bus = Bus::new(Limits::default());
    let stream = StreamId {
        uid: 1000,
        kind: StreamKind::Queue,
        name: "q".into(),
    };
    let record = |offset, dead, data: &str| Restored {
        offset,
        from: id(9),
        short: 9,
        at_ns: 5,
        priority: 1,
        dead,
        data: data.into(),
    };
    let spec = QueueSpec {
        durable: true,
        ..QueueSpec::default()
    };
    let records = vec![
        record(3, None, "a"),
        record(5, Some(DeadReason::Rejected), "dead"),
        record(8, None, "b"),
    ];
    bus.router.restore(stream, StreamSpec::Queue(spec), records);
    let conn = bus.join(1, "consumer");
    let queue = bus.open(conn, "q");
    bus.consume(conn, queue, 9);
    let out = bus.pull(conn).unwrap();
    let Ok(Control::Delivered { deliveries, .. }) = Control::parse(&out.frame.payload) else {
        panic!()
    };
    let got: Vec<_> = deliveries
        .iter()
        .map(|d| (d.id, d.restored, d.sent_ns))
        .collect();
    assert_eq!(got, [(3, true, 5), (8, true, 5)]);
    assert_eq!(bus.router.queues(None)[0].dead, 1);
    bus.say(
        conn,
        4,
        Control::Replay {
            kind: StreamKind::Queue,
            from: ReplayFrom::Offset(3),
            max: 10,
            name: "q",
        },
    );
    let Some(Persist::Read { ticket, from, .. }) = bus.fx.persist.pop() else {
        panic!()
    };
    assert_eq!(from, ReplayFrom::Offset(3));
    let replayed = Replayed {
        offset: 3,
        at_ns: 5,
        from: id(9),
        priority: 1,
        data: b"a".to_vec(),
    };
    bus.router.records(
        ticket,
        Ok((4, vec![replayed.clone()])),
        bus.now,
        &mut bus.fx,
    );
    let answer = bus.take(conn);
    assert_eq!(
        Replayed::parse_list(ok_result(&answer)),
        Ok((4, vec![replayed]))
    );
}

#[test]
fn a_late_subscriber_gets_what_was_retained() {
    let mut bus = Bus::new(Limits::default());
    let (publisher, late) = (bus.join(1, "publisher"), bus.join(2, "late"));
    bus.say_event(publisher, "state", b"old", flags::RETAIN);
    bus.say_event(publisher, "state", b"new", flags::RETAIN);
    bus.say_event(publisher, "state", b"passing", 0);
    let spec = TopicSpec {
        retain: 2,
        ..TopicSpec::default()
    };
    bus.say(
        publisher,
        3,
        Control::TopicDeclare {
            spec,
            topic: "build",
        },
    );
    ok_result(&bus.take(publisher));
    for n in ["1", "2", "3"] {
        bus.say_event(publisher, "build", n.as_bytes(), 0);
    }
    bus.subscribe(late, "#", Overflow::DropOldest);
    assert_eq!(
        bus.published(late),
        ["2", "3", "new"],
        "by topic, the last of each"
    );
    bus.say_event(publisher, "state", b"", flags::RETAIN);
    let topics = bus.router.topics(Some(1000));
    let state = topics.iter().find(|topic| topic.topic == "state").unwrap();
    assert_eq!(
        (state.retained, state.counters.published, state.subscribers),
        (0, 4, 1)
    );
    assert_eq!(bus.router.topics(Some(1))[..], []);
}

#[test]
fn what_is_retained_stays_within_its_bound() {
    let limits = Limits {
        retained_bytes: 1000,
        max_topics: 3,
        ..Limits::default()
    };
    let mut bus = Bus::new(limits);
    let conn = bus.join(1, "publisher");
    bus.say_event(conn, "a", &[b'x'; 600], flags::RETAIN | flags::ACK);
    assert_eq!(status(&bus.take(conn)), Status::OK);
    bus.say_event(conn, "b", &[b'x'; 600], flags::RETAIN | flags::ACK);
    let refused = bus.take(conn);
    assert_eq!(status(&refused), Status::QUEUE_FULL, "{}", text(&refused));
    bus.say_event(conn, "a", &[b'y'; 700], flags::RETAIN | flags::ACK);
    assert_eq!(
        status(&bus.take(conn)),
        Status::OK,
        "it takes the place of the first"
    );
    for topic in ["c", "d", "e"] {
        bus.say_event(conn, topic, b"", 0);
    }
    let topics = bus.router.topics(None);
    assert_eq!(topics.len(), 4, "three by name, the others in one");
    assert_eq!(topics[0].counters.published, 2);
}

#[test]
fn a_durable_topics_message_is_stored_before_anybody_gets_it() {
    let mut bus = Bus::new(Limits::default());
    let (publisher, reader) = (bus.join(1, "publisher"), bus.join(2, "reader"));
    bus.subscribe(reader, "t", Overflow::DropOldest);
    bus.say_event(publisher, "t", b"x", flags::DURABLE | flags::ACK);
    assert_eq!(
        status(&bus.take(publisher)),
        Status::UNSUPPORTED,
        "it is not durable"
    );
    let spec = TopicSpec {
        durable: true,
        ..TopicSpec::default()
    };
    bus.say(publisher, 3, Control::TopicDeclare { spec, topic: "t" });
    let Some(Persist::Declare { ticket, .. }) = bus.fx.persist.pop() else {
        panic!()
    };
    bus.router.persisted(ticket, Ok(0), bus.now, &mut bus.fx);
    ok_result(&bus.take(publisher));
    bus.say_event(publisher, "t", b"kept", flags::DURABLE | flags::ACK);
    assert!(bus.pull(publisher).is_none() && bus.published(reader).is_empty());
    let Some(Persist::Append { ticket, batch, .. }) = bus.fx.persist.pop() else {
        panic!()
    };
    let stored: Vec<_> = batch.iter().map(|(_, data)| data.to_vec()).collect();
    assert_eq!(Event::parse(&stored[0]).unwrap().data, b"kept");
    bus.router.persisted(ticket, Ok(0), bus.now, &mut bus.fx);
    assert_eq!(number(ok_result(&bus.take(publisher))), 1);
    assert_eq!(bus.published(reader), ["kept"]);
    assert!(Batch::event(id(1), 1, 0, stored[0].clone().into(), 1).len() == 1);
}
