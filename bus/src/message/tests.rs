//! Bytes as they are documented, limits, round trips.

use super::*;
use crate::channel::{Class, Inline, Overflow};
use crate::frame::PeerId;
use proptest::prelude::*;

#[test]
fn a_method_of_65_bytes_is_an_error_not_a_truncation() {
    let method = "m".repeat(65);
    let request = Request {
        method: &method,
        params: b"",
        timeout_ms: 1,
    };
    let expected = MessageError::TooLong {
        what: "method",
        len: 65,
        limit: 64,
    };
    assert_eq!(request.encode(), Err(expected));
    let mut bytes = Request {
        method: &method[..64],
        params: b"m",
        timeout_ms: 1,
    }
    .encode()
    .unwrap();
    bytes[4] = 65;
    assert_eq!(Request::parse(&bytes), Err(expected));
}

#[test]
fn limits_of_events_and_responses_hold() {
    let long = "x".repeat(300);
    let event = |event_type, topic| Event {
        priority: 1,
        event_type,
        topic,
        data: b"",
    };
    assert!(event(&long[..64], &long[..128]).encode().is_ok());
    assert!(event(&long[..65], "").encode().is_err());
    assert!(event("", &long[..129]).encode().is_err());
    let response = |error| Response {
        status: Status::FAILED,
        error,
        result: b"",
    };
    assert!(response(&long[..256]).encode().is_ok());
    assert!(response(&long[..257]).encode().is_err());
}

#[test]
fn request_bytes_are_the_documented_ones() {
    let bytes = Request {
        method: "fix",
        params: b"{}",
        timeout_ms: 0x0102,
    }
    .encode()
    .unwrap();
    assert_eq!(
        bytes,
        [2, 1, 0, 0, 3, 0, 0, 0, b'f', b'i', b'x', b'{', b'}']
    );
}

#[test]
fn an_unknown_verb_names_the_known_ones() {
    let error = Control::parse(&[99, 0, 0, 0]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("control verb 99 is unknown; known are 1 hello")
    );
}

/// One delivery as it is documented: tag 1, id 2, sent at 3, 1 byte from 4, delivery 5, priority 1.
const DELIVERY: [u8; DELIVERY_HEADER + 1] = {
    let mut bytes = [0; DELIVERY_HEADER + 1];
    bytes[0] = 1;
    bytes[8] = 2;
    bytes[16] = 3;
    bytes[24] = 1;
    bytes[28] = 4;
    bytes[32] = 5;
    bytes[34] = 1;
    bytes[40] = b'x';
    bytes
};

#[test]
fn a_delivery_has_the_documented_bytes() {
    let delivery = QueueDelivery {
        tag: 1,
        id: 2,
        sent_ns: 3,
        from: 4,
        deliveries: 5,
        priority: 1,
        restored: false,
        data: b"x",
    };
    let mut out = [0xFF; DELIVERY_HEADER + 1];
    assert!(delivery.write(&mut out).is_empty());
    assert_eq!(out, DELIVERY);
    let parsed = Deliveries::parse(&out).unwrap();
    assert_eq!(parsed.iter().collect::<Vec<_>>(), [delivery]);
}

#[test]
fn batches_are_checked_whole() {
    let mut batch = BatchBuilder::new();
    assert!(batch.push(0, b"one") && batch.push(3, b""));
    assert!(!batch.push(4, b"no such priority"));
    let parsed = Messages::parse(batch.messages().as_bytes()).unwrap();
    assert_eq!((parsed.len(), parsed.data_bytes()), (2, 3));
    let data: Vec<_> = parsed.iter().map(|m| (m.priority, m.data)).collect();
    assert_eq!(data, [(0, &b"one"[..]), (3, b"")]);
    let mut cut = batch.messages().as_bytes().to_vec();
    cut.pop();
    assert!(Messages::parse(&cut).is_err());
    let mut many = BatchBuilder::new();
    while many.push(1, b"") {}
    assert_eq!(many.len(), BATCH_MAX);
    let mut over = many.messages().as_bytes().to_vec();
    over.extend_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
    let error = Messages::parse(&over).unwrap_err().to_string();
    assert_eq!(
        error,
        "4097 messages in one batch are over the limit of 4096"
    );
}

#[test]
fn zeroes_in_a_declaration_are_the_defaults() {
    let zeroes = QueueSpec {
        max_messages: 0,
        max_bytes: 0,
        visibility_ms: 0,
        max_deliver: 0,
        dead_messages: 0,
        ..QueueSpec::default()
    };
    assert_eq!(zeroes.filled(), QueueSpec::default());
}

fn controls() -> Vec<Control<'static>> {
    vec![
        Control::Hello {
            version: 1,
            options: HELLO_WANT_CRC,
        },
        Control::Agents,
        Control::QueueDeclare {
            spec: QueueSpec {
                durable: true,
                full: Full::Block,
                class: Class::High,
                ..QueueSpec::default()
            },
            name: "builds",
        },
        Control::QueueOpen { name: "builds" },
        Control::QueueDrop { queue: 3 },
        Control::Produce {
            queue: 3,
            messages: Messages::parse(&[1, 0, 0, 0, 2, 0, 0, 0, b'x']).unwrap(),
        },
        Control::Consume {
            queue: 3,
            credit: 64,
        },
        Control::Delivered {
            queue: 3,
            deliveries: Deliveries::parse(&DELIVERY).unwrap(),
        },
        Control::Settle {
            queue: 3,
            outcome: Outcome::Nack { delay_ms: 100 },
            tags: Numbers::parse(&[9; 16]).unwrap(),
        },
        Control::QueuePeek {
            queue: 3,
            part: QueuePart::Dead,
            max: 10,
            from: 0,
        },
        Control::QueueDead {
            queue: 3,
            action: DeadAction::Requeue,
            ids: Numbers::parse(&[]).unwrap(),
        },
        Control::QueueTake { queue: 3, max: 2 },
        Control::GroupJoin {
            delivery: Delivery::Inbox,
            name: "builders",
        },
        Control::GroupLeave {
            delivery: Delivery::Push,
            name: "builders",
        },
        Control::TopicDeclare {
            spec: TopicSpec {
                retain: 8,
                durable: true,
                max_age_s: 3600,
                max_bytes: 1 << 20,
            },
            topic: "build.done",
        },
        Control::Replay {
            kind: StreamKind::Topic,
            from: ReplayFrom::TimeNs(1_700_000_000_000_000_000),
            max: 100,
            name: "build.done",
        },
        Control::Lookup { name: "fixer" },
        Control::Serve { window: 4 },
        Control::Subscribe {
            delivery: Delivery::Push,
            options: SubscribeOptions::default(),
            pattern: "build.*",
        },
        Control::Unsubscribe {
            delivery: Delivery::Inbox,
            pattern: "#",
        },
        Control::Inbox {
            max: 7,
            wait_ms: 1000,
        },
        Control::Cancel { request: 9 },
        Control::Lost { count: 1 << 40 },
        Control::LaneOffer {
            to: PeerId([3; 16]),
            shape: SHAPE,
        },
        Control::LaneOffered {
            from: PeerId([4; 16]),
            lane: 5,
            shape: Shape::default(),
        },
        Control::ChannelClosed {
            channel: 5,
            status: Status::PEER_GONE,
        },
        Control::AcceptLanes,
        Control::LogOffer {
            shape: SHAPE,
            topic: "ticks",
        },
        Control::LogFollow {
            reliable: true,
            pattern: "ticks.#",
        },
        Control::LogUnfollow { follow: 9 },
        Control::LogOffered {
            from: PeerId([5; 16]),
            follow: 9,
            channel: 10,
            topic: "ticks",
        },
        Control::LogFollower {
            from: PeerId([6; 16]),
            log: 8,
            channel: 10,
            reliable: false,
        },
        Control::Segment {
            channel: 10,
            index: 3,
            sealed: true,
        },
        Control::SegmentDropped {
            channel: 10,
            index: 3,
        },
        Control::Bell { channel: 10 },
    ]
}

const SHAPE: Shape = Shape {
    class: Class::High,
    overflow: Overflow::Disconnect,
    inline: Inline::Wide,
    slots: 0x0102_0304,
};

#[test]
fn the_bytes_about_channels_are_the_documented_ones() {
    let id = |byte: u8| vec![byte; 16];
    let shape = vec![2, 3, 1, 0, 4, 3, 2, 1];
    let tail = |head: Vec<u8>, more: &[u8]| [head.as_slice(), more].concat();
    let golden: Vec<(Control<'_>, Vec<u8>)> = vec![
        (
            Control::LaneOffer {
                to: PeerId([3; 16]),
                shape: SHAPE,
            },
            [vec![10, 0, 0, 0], id(3), shape.clone()].concat(),
        ),
        (
            Control::LaneOffered {
                from: PeerId([4; 16]),
                lane: 5,
                shape: SHAPE,
            },
            [vec![11, 0, 0, 0], id(4), vec![5, 0, 0, 0], shape.clone()].concat(),
        ),
        (
            Control::ChannelClosed {
                channel: 5,
                status: Status::PEER_GONE,
            },
            vec![12, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0],
        ),
        (
            Control::LogOffer {
                shape: SHAPE,
                topic: "t.a",
            },
            tail([vec![14, 0, 0, 0], shape].concat(), b"t.a"),
        ),
        (
            Control::LogFollow {
                reliable: true,
                pattern: "t.#",
            },
            tail(vec![15, 0, 0, 0, 1, 0], b"t.#"),
        ),
        (
            Control::LogUnfollow { follow: 9 },
            vec![16, 0, 0, 0, 9, 0, 0, 0],
        ),
        (
            Control::LogOffered {
                from: PeerId([5; 16]),
                follow: 9,
                channel: 10,
                topic: "t.a",
            },
            tail(
                [vec![17, 0, 0, 0], id(5), vec![9, 0, 0, 0, 10, 0, 0, 0]].concat(),
                b"t.a",
            ),
        ),
        (
            Control::LogFollower {
                from: PeerId([6; 16]),
                log: 8,
                channel: 10,
                reliable: true,
            },
            [
                vec![18, 0, 0, 0],
                id(6),
                vec![8, 0, 0, 0, 10, 0, 0, 0, 1, 0],
            ]
            .concat(),
        ),
        (
            Control::Segment {
                channel: 10,
                index: 3,
                sealed: true,
            },
            vec![19, 0, 0, 0, 10, 0, 0, 0, 3, 0, 0, 0, 1, 0],
        ),
        (
            Control::SegmentDropped {
                channel: 10,
                index: 3,
            },
            vec![20, 0, 0, 0, 10, 0, 0, 0, 3, 0, 0, 0],
        ),
        (
            Control::Bell { channel: 10 },
            vec![21, 0, 0, 0, 10, 0, 0, 0],
        ),
    ];
    for (control, bytes) in golden {
        assert_eq!(control.encode().unwrap(), bytes, "{control:?}");
        assert_eq!(Control::parse(&bytes), Ok(control));
    }
}

#[test]
fn what_a_channel_message_may_not_say_is_named() {
    let mut offer = Control::LaneOffer {
        to: PeerId([3; 16]),
        shape: SHAPE,
    }
    .encode()
    .unwrap();
    offer[20] = 4;
    let error = Control::parse(&offer).unwrap_err().to_string();
    assert!(
        error.contains("class 4 is unknown; known are 0 bulk"),
        "{error}"
    );
    offer[20] = 0;
    offer[21] = 9;
    let error = Control::parse(&offer).unwrap_err().to_string();
    assert!(error.contains("overflow 9 is unknown"), "{error}");
    let error = Control::parse(&[15, 0, 0, 0, 2, 0]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "reliable 2 is unknown; known are 0 no, 1 yes"
    );
    let long = "t".repeat(TOPIC_MAX + 1);
    let control = Control::LogFollow {
        reliable: false,
        pattern: &long,
    };
    assert!(control.encode().is_err());
}

#[test]
fn every_control_survives_a_round_trip_and_refuses_a_cut() {
    for control in controls() {
        let bytes = control.encode().unwrap();
        assert_eq!(Control::parse(&bytes), Ok(control));
        if !matches!(
            control,
            Control::Lookup { .. }
                | Control::Subscribe { .. }
                | Control::Unsubscribe { .. }
                | Control::LogOffer { .. }
                | Control::LogFollow { .. }
                | Control::LogOffered { .. }
                | Control::QueueDeclare { .. }
                | Control::QueueOpen { .. }
                | Control::GroupJoin { .. }
                | Control::GroupLeave { .. }
                | Control::TopicDeclare { .. }
                | Control::Replay { .. }
        ) {
            assert!(
                Control::parse(&bytes[..bytes.len() - 1]).is_err(),
                "{control:?}"
            );
        }
    }
}

#[test]
fn a_replay_survives_a_round_trip() {
    let one = Replayed {
        offset: 7,
        at_ns: 8,
        from: PeerId([9; 16]),
        priority: 2,
        data: b"data".to_vec(),
    };
    let mut bytes = 8u64.to_le_bytes().to_vec();
    one.encode_into(&mut bytes);
    one.encode_into(&mut bytes);
    assert_eq!(
        Replayed::parse_list(&bytes),
        Ok((8, vec![one.clone(), one]))
    );
    assert!(Replayed::parse_list(&bytes[..bytes.len() - 1]).is_err());
}

proptest! {
    #[test]
    fn messages_survive_a_round_trip(
        method in "[a-z]{1,64}", text in "\\PC{0,60}", data: Vec<u8>, timeout_ms: u32, priority in 0u8..4,
    ) {
        let request = Request { method: &method, params: &data, timeout_ms };
        let bytes = request.encode().unwrap();
        prop_assert_eq!(Request::parse(&bytes), Ok(request));
        let response = Response { status: Status(timeout_ms), error: &text, result: &data };
        let bytes = response.encode().unwrap();
        prop_assert_eq!(Response::parse(&bytes), Ok(response));
        let event = Event { priority, event_type: &method, topic: &method, data: &data };
        let bytes = event.encode().unwrap();
        prop_assert_eq!(Event::parse(&bytes), Ok(event));
    }

    #[test]
    fn arbitrary_payloads_never_panic(bytes: Vec<u8>) {
        // What parses must encode to the same bytes: nothing is silently dropped.
        if let Ok(request) = Request::parse(&bytes) {
            prop_assert_eq!(request.encode().unwrap(), bytes.clone());
        }
        if let Ok(response) = Response::parse(&bytes) {
            prop_assert_eq!(response.encode().unwrap(), bytes.clone());
        }
        if let Ok(event) = Event::parse(&bytes) {
            prop_assert_eq!(event.encode().unwrap(), bytes.clone());
        }
        if let Ok(control) = Control::parse(&bytes) {
            prop_assert_eq!(control.encode().unwrap(), bytes);
        }
    }
}
