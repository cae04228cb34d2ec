//! The router driven by hand: no sockets, no clocks.

mod conduct;
mod direct;
mod histories;
mod requests;

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::access::SameUser;
use crate::frame::flags;
use crate::listing::{InboxBatch, Welcome};
use crate::message::{Control, Delivery, HELLO_WANT_CRC, Request, Shape, SubscribeOptions};

/// A router, its time, and what its effects said.
pub(super) struct Bus {
    pub(super) router: Router<u32>,
    pub(super) now: Now,
    pub(super) fx: Effects<u32>,
    /// Offers of logs that came before an answer.
    pub(super) offers: Vec<Outgoing<u32>>,
}

impl Descriptor for u32 {
    fn bytes(&self) -> u64 {
        u64::from(*self)
    }
}

/// A policy that names exactly whom it may address.
#[derive(Debug)]
pub(super) struct Only(pub(super) &'static str);

impl Access for Only {
    fn may_send(&self, to: &str) -> bool {
        to == self.0
    }
    fn may_request(&self, to: &str) -> bool {
        to == self.0
    }
    fn may_publish(&self, topic: &str) -> bool {
        topic == self.0
    }
    fn may_subscribe(&self, pattern: &str) -> bool {
        pattern == self.0
    }
}

pub(super) fn id(n: u8) -> PeerId {
    PeerId([n; 16])
}

pub(super) fn tight() -> Limits {
    Limits {
        out_frames: 8,
        inbox_messages: 4,
        max_inflight: 4,
        max_waiting_requests: 2,
        max_connections: 2,
        max_lanes: 1,
        max_logs: 2,
        max_followed: 2,
        max_log_readers: 2,
        max_segments: 2,
        max_shared_bytes: 4096,
        max_subscriptions: 2,
        ..Limits::default()
    }
}

impl Bus {
    pub(super) fn new(limits: Limits) -> Self {
        let now = Now {
            mono_ns: 1_000_000_000,
            wall_ns: 1_700_000_000_000_000_000,
        };
        Self {
            router: Router::new(limits),
            now,
            fx: Effects::default(),
            offers: Vec::new(),
        }
    }

    pub(super) fn peer(&mut self, n: u8, uid: u32, name: &str, access: Arc<dyn Access>) {
        let spec = PeerSpec {
            id: id(n),
            uid,
            name: name.into(),
            short: n.into(),
            access,
        };
        self.router.attach(spec, self.now, &mut self.fx).unwrap();
    }

    /// Peer `n` of uid 1000 with one greeted connection.
    pub(super) fn join(&mut self, n: u8, name: &str) -> ConnId {
        self.peer(n, 1000, name, Arc::new(SameUser));
        self.connect(n)
    }

    pub(super) fn connect(&mut self, n: u8) -> ConnId {
        let conn = self
            .router
            .connect(id(n), ConnKind::Socket, self.now)
            .unwrap();
        self.say(
            conn,
            1,
            Control::Hello {
                version: 1,
                options: 0,
            },
        );
        let welcome = self.take(conn);
        assert_eq!(Welcome::parse(ok_result(&welcome)).unwrap().id, id(n));
        conn
    }

    pub(super) fn feed(&mut self, conn: ConnId, frame: Frame) {
        self.router.frame(conn, frame, None, self.now, &mut self.fx);
    }

    pub(super) fn say(&mut self, conn: ConnId, correlation: u32, control: Control<'_>) {
        self.feed(
            conn,
            Frame::new(
                kind::COMMAND,
                PeerId::BUS,
                correlation,
                control.encode().unwrap(),
            ),
        );
    }

    /// As [`Self::say`], with a descriptor of that many bytes.
    pub(super) fn say_with(
        &mut self,
        conn: ConnId,
        correlation: u32,
        control: Control<'_>,
        fd: u32,
    ) {
        let payload = control.encode().unwrap();
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, correlation, payload);
        self.router
            .frame(conn, frame, Some(fd), self.now, &mut self.fx);
    }

    /// Takes an offer with this cursor memory, or refuses it.
    pub(super) fn take_offer(&mut self, conn: ConnId, number: u32, cursor: Option<u32>) {
        let (bits, response) = match cursor {
            Some(_) => (kind::RESPONSE, Response::ok(b"")),
            None => (
                kind::RESPONSE | kind::ERROR,
                Response {
                    status: Status::FAILED,
                    error: "no",
                    result: b"",
                },
            ),
        };
        let frame = Frame::new(bits, PeerId::BUS, number, response.encode().unwrap());
        self.router
            .frame(conn, frame, cursor, self.now, &mut self.fx);
    }

    /// What must be true of channels after every step.
    pub(super) fn check_channels(&self) -> Result<(), TestCaseError> {
        let (router, limits) = (&self.router, &self.router.limits);
        let mut lanes: HashMap<ConnId, usize> = HashMap::new();
        let mut reading: HashMap<ConnId, usize> = HashMap::new();
        for (number, channel) in &router.channels {
            let ends = [channel.producer, channel.consumer];
            for conn in ends.iter().filter_map(|end| end.conn) {
                prop_assert!(
                    router.conns.contains_key(&conn),
                    "channel {number} outlives a connection"
                );
            }
            match channel.kind {
                ChannelKind::Lane => {
                    for conn in ends.iter().filter_map(|end| end.conn) {
                        *lanes.entry(conn).or_default() += 1;
                    }
                    let (from, to) = (channel.producer.peer, channel.consumer.peer);
                    if channel.over.is_none() {
                        let allowed = router.may_address(from, to, crate::access::Wish::Send);
                        prop_assert!(allowed.is_ok(), "an open lane that is not allowed");
                    }
                    prop_assert!(channel.segments.held.len() <= limits.max_segments);
                }
                ChannelKind::FollowedLog { log } => {
                    if let Some(conn) = channel.consumer.conn {
                        *reading.entry(conn).or_default() += 1;
                    }
                    if channel.over.is_none() {
                        prop_assert!(router.logs.contains_key(&log), "a reader of no log");
                        let reader = &router.peers[&channel.consumer.peer];
                        prop_assert!(reader.access.may_subscribe("t"));
                    }
                }
                ChannelKind::Log => prop_assert!(false, "logs have a table of their own"),
            }
        }
        // A lane to oneself has both ends on one connection.
        prop_assert!(lanes.values().all(|n| *n <= 2 * limits.max_lanes));
        prop_assert!(reading.values().all(|n| *n <= limits.max_followed));
        for (number, log) in &router.logs {
            prop_assert!(router.conns.contains_key(&log.conn));
            prop_assert!(router.peers[&log.peer].access.may_publish(&log.topic));
            prop_assert!(router.readers_of(*number).count() <= limits.max_log_readers);
            prop_assert!(log.segments.held.len() <= limits.max_segments);
        }
        for conn in router.conns.keys() {
            prop_assert!(router.shared_bytes(*conn) <= limits.max_shared_bytes);
            let logs = router.logs.values().filter(|log| log.conn == *conn).count();
            prop_assert!(logs <= limits.max_logs);
        }
        Ok(())
    }

    pub(super) fn ask(&mut self, conn: ConnId, correlation: u32, to: PeerId, timeout_ms: u32) {
        let payload = Request {
            method: "fix",
            params: b"{}",
            timeout_ms,
        }
        .encode()
        .unwrap();
        self.feed(conn, Frame::new(kind::REQUEST, to, correlation, payload));
    }

    pub(super) fn respond(&mut self, conn: ConnId, correlation: u32, result: &[u8]) {
        let payload = Response::ok(result).encode().unwrap();
        self.feed(
            conn,
            Frame::new(kind::RESPONSE, PeerId::BUS, correlation, payload),
        );
    }

    pub(super) fn event(&mut self, conn: ConnId, bits: u16, to: PeerId, topic: &str, data: &[u8]) {
        let payload = Event {
            priority: 1,
            event_type: "note",
            topic,
            data,
        }
        .encode()
        .unwrap();
        let mut frame = Frame::new(bits, to, 77, payload);
        frame.header.flags = (1 | flags::ACK).into();
        self.feed(conn, frame);
    }

    pub(super) fn advance(&mut self, ms: u64) {
        self.now.mono_ns += ms * 1_000_000;
        self.router.tick(self.now, &mut self.fx);
    }

    pub(super) fn pull(&mut self, conn: ConnId) -> Option<Outgoing<u32>> {
        self.router.pull(conn, &mut self.fx)
    }

    pub(super) fn take(&mut self, conn: ConnId) -> Frame {
        self.pull(conn).expect("a frame waits").frame
    }

    pub(super) fn closed(&mut self) -> Vec<CloseReason> {
        self.fx.close.drain(..).map(|(_, reason)| reason).collect()
    }
}

pub(super) fn ok_result(frame: &Frame) -> &[u8] {
    let response = Response::parse(&frame.payload).unwrap();
    assert_eq!((response.status, response.error), (Status::OK, ""));
    response.result
}

pub(super) fn status(frame: &Frame) -> Status {
    Response::parse(&frame.payload).unwrap().status
}

pub(super) fn text(frame: &Frame) -> String {
    Response::parse(&frame.payload).unwrap().error.to_owned()
}

#[test]
fn another_users_agents_are_not_there() {
    let mut bus = Bus::new(Limits::default());
    let alice = bus.join(1, "alice-agent");
    bus.peer(2, 2000, "bob-agent", Arc::new(SameUser));
    let bob = bus.connect(2);
    bus.ask(alice, 5, id(2), 0);
    assert_eq!(status(&bus.take(alice)), Status::NO_SUCH_AGENT);
    bus.event(alice, kind::EVENT, id(2), "", b"hello");
    assert_eq!(status(&bus.take(alice)), Status::NO_SUCH_AGENT);
    bus.say(alice, 6, Control::Lookup { name: "bob-agent" });
    assert_eq!(status(&bus.take(alice)), Status::NO_SUCH_AGENT);
    bus.say(alice, 7, Control::Agents);
    assert_eq!(ok_result(&bus.take(alice)), b"");
    bus.say(
        bob,
        8,
        Control::Subscribe {
            delivery: Delivery::Push,
            options: SubscribeOptions::default(),
            pattern: "#",
        },
    );
    bus.take(bob);
    bus.event(alice, kind::EVENT, PeerId::BUS, "news", b"x");
    assert_eq!(ok_result(&bus.take(alice)), 0u32.to_le_bytes());
    bus.event(alice, kind::EVENT | kind::BROADCAST, PeerId::BUS, "", b"x");
    assert_eq!(ok_result(&bus.take(alice)), 0u32.to_le_bytes());
    assert!(bus.pull(bob).is_none());
}

#[test]
fn the_policy_decides_and_says_which_list() {
    let mut bus = Bus::new(Limits::default());
    bus.peer(1, 1000, "a", Arc::new(Only("friend")));
    let a = bus.connect(1);
    bus.join(2, "friend");
    bus.join(3, "stranger");
    bus.event(a, kind::EVENT, id(2), "", b"x");
    ok_result(&bus.take(a));
    bus.event(a, kind::EVENT, id(3), "", b"x");
    let refused = bus.take(a);
    assert_eq!(status(&refused), Status::DENIED);
    assert!(text(&refused).contains("[ipc] send"), "{}", text(&refused));
    bus.ask(a, 9, id(3), 0);
    assert!(text(&bus.take(a)).contains("[ipc] request"));
    bus.event(a, kind::EVENT, PeerId::BUS, "secret", b"x");
    assert!(text(&bus.take(a)).contains("[ipc] publish"));
    bus.event(a, kind::EVENT, PeerId::BUS, "agentd.peers", b"x");
    assert!(text(&bus.take(a)).contains("by the bus alone"));
    bus.say(
        a,
        10,
        Control::Subscribe {
            delivery: Delivery::Push,
            options: SubscribeOptions::default(),
            pattern: "#",
        },
    );
    assert!(text(&bus.take(a)).contains("[ipc] subscribe"));
    bus.say(a, 11, Control::Agents);
    let list = bus.take(a);
    let list: Vec<_> = PeerEntry::parse_list(ok_result(&list))
        .unwrap()
        .into_iter()
        .map(|p| (p.name, p.may_send))
        .collect();
    assert_eq!(
        list,
        [("friend".to_owned(), true), ("stranger".to_owned(), false)]
    );
}

#[test]
fn a_slow_subscriber_loses_the_oldest_and_is_told_how_many() {
    let mut bus = Bus::new(tight());
    let (publisher, slow) = (bus.join(1, "publisher"), bus.join(2, "slow"));
    bus.say(
        slow,
        2,
        Control::Subscribe {
            delivery: Delivery::Push,
            options: SubscribeOptions::default(),
            pattern: "tick.*",
        },
    );
    bus.take(slow);
    for n in 0..20u8 {
        bus.event(publisher, kind::EVENT, PeerId::BUS, "tick.x", &[n]);
        assert_eq!(ok_result(&bus.take(publisher)), 1u32.to_le_bytes());
    }
    let lost = bus.take(slow);
    assert_eq!(
        Control::parse(&lost.payload),
        Ok(Control::Lost { count: 12 })
    );
    let seen: Vec<u8> = std::iter::from_fn(|| bus.pull(slow))
        .map(|out| Event::parse(&out.frame.payload).unwrap().data[0])
        .collect();
    assert_eq!(seen, (12..20).collect::<Vec<u8>>());
}

#[test]
fn a_full_inbox_refuses_direct_messages_and_drops_topic_messages() {
    let mut bus = Bus::new(tight());
    let (sender, reader) = (bus.join(1, "sender"), bus.join(2, "reader"));
    bus.say(
        reader,
        2,
        Control::Subscribe {
            delivery: Delivery::Inbox,
            options: SubscribeOptions::default(),
            pattern: "news",
        },
    );
    bus.take(reader);
    bus.event(sender, kind::EVENT, PeerId::BUS, "news", b"old");
    bus.take(sender);
    for _ in 0..3 {
        bus.event(sender, kind::EVENT, id(2), "", b"direct");
        ok_result(&bus.take(sender));
    }
    bus.event(sender, kind::EVENT, id(2), "", b"one too many");
    let refused = bus.take(sender);
    assert_eq!(status(&refused), Status::QUEUE_FULL);
    assert!(text(&refused).contains("inbox of reader is full"));
    bus.event(sender, kind::EVENT, PeerId::BUS, "news", b"new");
    assert_eq!(ok_result(&bus.take(sender)), 1u32.to_le_bytes());
    bus.say(
        reader,
        3,
        Control::Inbox {
            max: 100,
            wait_ms: 0,
        },
    );
    let answer = bus.take(reader);
    let batch = InboxBatch::parse(ok_result(&answer)).unwrap();
    assert_eq!(batch.lost, 1);
    let data: Vec<_> = batch
        .messages
        .iter()
        .map(|(_, frame)| Event::parse(&frame.payload).unwrap().data.to_vec())
        .collect();
    assert_eq!(data, [&b"direct"[..], b"direct", b"direct", b"new"]);
    assert!(batch.messages.iter().all(|(name, _)| name == "sender"));
}

#[test]
fn a_waiting_read_is_answered_by_the_first_message_or_by_its_time_out() {
    let mut bus = Bus::new(Limits::default());
    let (sender, reader) = (bus.join(1, "sender"), bus.join(2, "reader"));
    bus.say(
        reader,
        3,
        Control::Inbox {
            max: 10,
            wait_ms: 500,
        },
    );
    assert!(bus.pull(reader).is_none());
    bus.event(sender, kind::EVENT, id(2), "", b"hello");
    let answer = bus.take(reader);
    assert_eq!(answer.correlation(), 3);
    assert_eq!(
        InboxBatch::parse(ok_result(&answer))
            .unwrap()
            .messages
            .len(),
        1
    );
    bus.say(
        reader,
        4,
        Control::Inbox {
            max: 10,
            wait_ms: 500,
        },
    );
    bus.advance(500);
    let answer = bus.take(reader);
    assert_eq!(
        InboxBatch::parse(ok_result(&answer)),
        Ok(InboxBatch::default())
    );
    assert_eq!(bus.router.next_deadline_ns(), None);
}

#[test]
fn without_a_server_a_request_is_read_from_the_inbox_and_answered() {
    let mut bus = Bus::new(Limits::default());
    let (asker, reader) = (bus.join(1, "asker"), bus.join(2, "reader"));
    bus.ask(asker, 5, id(2), 0);
    bus.say(
        reader,
        3,
        Control::Inbox {
            max: 10,
            wait_ms: 500,
        },
    );
    let answer = bus.take(reader);
    let batch = InboxBatch::parse(ok_result(&answer)).unwrap();
    let (from, request) = &batch.messages[0];
    assert_eq!((from.as_str(), request.kind()), ("asker", kind::REQUEST));
    // Another connection of the same agent may answer: models don't keep connections.
    let later = bus.connect(2);
    bus.respond(later, request.correlation(), b"done");
    let answer = bus.take(asker);
    assert_eq!(
        (answer.correlation(), ok_result(&answer)),
        (5, &b"done"[..])
    );
}

#[test]
fn comings_and_goings_are_published() {
    let mut bus = Bus::new(Limits::default());
    let watcher = bus.join(1, "watcher");
    bus.say(
        watcher,
        2,
        Control::Subscribe {
            delivery: Delivery::Push,
            options: SubscribeOptions::default(),
            pattern: "agentd.peers",
        },
    );
    bus.take(watcher);
    bus.join(2, "b");
    bus.router.detach(id(2), bus.now, &mut bus.fx);
    bus.peer(3, 2000, "other-user", Arc::new(SameUser));
    for expected in ["joined", "gone"] {
        let frame = bus.take(watcher);
        let event = Event::parse(&frame.payload).unwrap();
        assert_eq!((event.event_type, event.data), (expected, &b"b"[..]));
    }
    assert!(bus.pull(watcher).is_none());
}

#[test]
fn a_lane_is_introduced_once_both_sides_agree_and_ends_with_either() {
    let mut bus = Bus::new(tight());
    let (producer, consumer) = (bus.join(1, "producer"), bus.join(2, "consumer"));
    let offer = |bus: &mut Bus, correlation| {
        let payload = Control::LaneOffer {
            to: id(2),
            shape: Shape::default(),
        }
        .encode()
        .unwrap();
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, correlation, payload);
        bus.router
            .frame(producer, frame, Some(100), bus.now, &mut bus.fx);
    };
    offer(&mut bus, 5);
    assert_eq!(status(&bus.take(producer)), Status::UNSUPPORTED);
    bus.say(consumer, 2, Control::AcceptLanes);
    bus.take(consumer);
    offer(&mut bus, 6);
    let offered = bus.pull(consumer).unwrap();
    assert_eq!(offered.fd, Some(100));
    let Ok(Control::LaneOffered { from, lane, .. }) = Control::parse(&offered.frame.payload) else {
        panic!("no offer")
    };
    assert_eq!(from, id(1));
    offer(&mut bus, 7);
    assert_eq!(
        status(&bus.take(producer)),
        Status::QUEUE_FULL,
        "an open offer counts"
    );
    let answer = Frame::new(
        kind::RESPONSE,
        PeerId::BUS,
        lane,
        Response::ok(b"").encode().unwrap(),
    );
    bus.router
        .frame(consumer, answer, Some(200), bus.now, &mut bus.fx);
    let accepted = bus.pull(producer).unwrap();
    assert_eq!((accepted.fd, accepted.frame.correlation()), (Some(200), 6));
    assert_eq!(ok_result(&accepted.frame), lane.to_le_bytes());
    bus.router.disconnect(producer, bus.now, &mut bus.fx);
    let ended = bus.take(consumer);
    assert_eq!(
        Control::parse(&ended.payload),
        Ok(Control::ChannelClosed {
            channel: lane,
            status: Status::PEER_GONE
        })
    );
}

#[test]
fn a_connection_that_wants_crcs_gets_right_ones() {
    let mut bus = Bus::new(Limits::default());
    bus.peer(1, 1000, "a", Arc::new(SameUser));
    let conn = bus
        .router
        .connect(id(1), ConnKind::Socket, bus.now)
        .unwrap();
    bus.say(
        conn,
        1,
        Control::Hello {
            version: 1,
            options: HELLO_WANT_CRC,
        },
    );
    let frame = bus.take(conn);
    assert_eq!(
        frame.header.crc.get(),
        crate::frame::checksum(&frame.header, &frame.payload)
    );
    assert_ne!(frame.header.flags.get() & flags::CRC, 0);
}

#[test]
fn what_goes_through_the_router_is_counted_for_both_sides() {
    let mut bus = Bus::new(tight());
    let (a, b) = (bus.join(1, "a"), bus.join(2, "b"));
    bus.event(a, kind::EVENT, id(2), "", b"12345");
    let bytes = bus.fx.record.last().unwrap().bytes;
    bus.event(a, kind::EVENT, id(9), "", b"nobody");
    let subscribe = Control::Subscribe {
        delivery: Delivery::Push,
        options: SubscribeOptions::default(),
        pattern: "t.#",
    };
    bus.say(b, 3, subscribe);
    bus.take(b);
    // The connection holds 8; the two oldest go.
    for _ in 0..10 {
        bus.event(a, kind::EVENT, PeerId::BUS, "t.x", b"");
    }
    let peers = bus.router.peers(bus.now);
    let [of_a, of_b] = &peers[..] else {
        panic!("two peers: {peers:?}")
    };
    assert_eq!((of_a.name.as_str(), of_b.name.as_str()), ("a", "b"));
    assert_eq!((of_a.counters.sent, of_a.counters.refused), (11, 1));
    // "b joined" was said to nobody.
    assert_eq!((of_b.counters.received, of_b.counters.dropped), (11, 2));
    assert_eq!((of_b.queued, of_b.subscriptions), (1, 1));
    assert!(of_b.counters.received_bytes > u64::from(bytes));
    assert!(bus.fx.record.iter().all(|meta| meta.uid == Some(1000)));
}
