//! The router driven by hand: no sockets, no clocks.

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
fn answers_reach_the_asker_under_its_own_correlation_id() {
    let mut bus = Bus::new(Limits::default());
    let (a, b, server) = (bus.join(1, "a"), bus.join(2, "b"), bus.join(3, "server"));
    bus.say(server, 2, Control::Serve { window: 8 });
    bus.take(server);
    // Both use the same id; the server must see two.
    bus.ask(a, 42, id(3), 0);
    bus.ask(b, 42, id(3), 0);
    let (first, second) = (bus.take(server), bus.take(server));
    assert_eq!((first.header.source, second.header.source), (id(1), id(2)));
    assert_ne!(first.correlation(), second.correlation());
    bus.respond(server, second.correlation(), b"for b");
    bus.respond(server, first.correlation(), b"for a");
    for (conn, expected) in [(a, &b"for a"[..]), (b, b"for b")] {
        let answer = bus.take(conn);
        assert_eq!((answer.correlation(), answer.header.source), (42, id(3)));
        assert_eq!(ok_result(&answer), expected);
    }
    assert_eq!(bus.router.open_requests(), 0);
    let kinds: Vec<_> = bus
        .fx
        .record
        .iter()
        .map(|meta| (meta.kind, &*meta.from_name, meta.outcome))
        .collect();
    assert_eq!(
        kinds,
        [
            ("request", "a", Status::OK),
            ("request", "b", Status::OK),
            ("response", "server", Status::OK),
            ("response", "server", Status::OK)
        ]
    );
}

#[test]
fn a_third_party_cannot_answer_for_another() {
    let mut bus = Bus::new(Limits::default());
    let (asker, server, thief) = (
        bus.join(1, "asker"),
        bus.join(2, "server"),
        bus.join(3, "thief"),
    );
    bus.say(server, 2, Control::Serve { window: 1 });
    bus.take(server);
    bus.ask(asker, 5, id(2), 0);
    let request = bus.take(server);
    bus.respond(thief, request.correlation(), b"forged");
    let notice = bus.take(thief);
    assert_eq!(
        (notice.kind(), status(&notice)),
        (kind::ERROR, Status::NO_SUCH_REQUEST)
    );
    assert!(bus.pull(asker).is_none());
    // Nor may a second connection of the server that was not given the request.
    let other = bus.connect(2);
    bus.respond(other, request.correlation(), b"not mine");
    assert_eq!(status(&bus.take(other)), Status::NO_SUCH_REQUEST);
    bus.respond(server, request.correlation(), b"real");
    assert_eq!(ok_result(&bus.take(asker)), b"real");
}

#[test]
fn a_missed_deadline_is_told_to_both_sides_once() {
    let mut bus = Bus::new(Limits::default());
    let (asker, server) = (bus.join(1, "asker"), bus.join(2, "server"));
    bus.say(server, 2, Control::Serve { window: 1 });
    bus.take(server);
    bus.ask(asker, 5, id(2), 100);
    let request = bus.take(server);
    assert_eq!(
        bus.router.next_deadline_ns(),
        Some(bus.now.mono_ns + 100_000_000)
    );
    bus.advance(99);
    assert!(bus.pull(asker).is_none());
    bus.advance(1);
    let answer = bus.take(asker);
    assert_eq!(
        (status(&answer), answer.correlation(), answer.header.source),
        (Status::DEADLINE, 5, PeerId::BUS)
    );
    let cancel = bus.take(server);
    assert_eq!(
        Control::parse(&cancel.payload),
        Ok(Control::Cancel {
            request: request.correlation()
        })
    );
    bus.respond(server, request.correlation(), b"too late");
    assert_eq!(status(&bus.take(server)), Status::NO_SUCH_REQUEST);
    assert!(bus.pull(asker).is_none());
    assert_eq!(bus.router.next_deadline_ns(), None);
}

#[test]
fn the_end_of_a_server_is_told_at_once() {
    let mut bus = Bus::new(Limits::default());
    let (asker, server) = (bus.join(1, "asker"), bus.join(2, "server"));
    bus.say(server, 2, Control::Serve { window: 1 });
    bus.take(server);
    for correlation in [5, 6] {
        bus.ask(asker, correlation, id(2), 0); // one handed out, one waiting
    }
    bus.router.disconnect(server, bus.now, &mut bus.fx);
    let answer = bus.take(asker);
    assert_eq!(
        (status(&answer), answer.correlation()),
        (Status::PEER_GONE, 5)
    );
    assert!(
        bus.pull(asker).is_none(),
        "the other still waits for the agent's next connection"
    );
    bus.router.detach(id(2), bus.now, &mut bus.fx);
    let answer = bus.take(asker);
    assert_eq!(
        (status(&answer), answer.correlation()),
        (Status::PEER_GONE, 6)
    );
    assert!(text(&answer).contains("server has ended"));
    bus.ask(asker, 7, id(2), 0);
    assert_eq!(status(&bus.take(asker)), Status::NO_SUCH_AGENT);
    assert_eq!(bus.router.open_requests(), 0);
}

#[test]
fn the_end_of_an_asker_cancels_what_it_asked() {
    let mut bus = Bus::new(Limits::default());
    let (asker, server) = (bus.join(1, "asker"), bus.join(2, "server"));
    bus.say(server, 2, Control::Serve { window: 1 });
    bus.take(server);
    bus.ask(asker, 5, id(2), 0);
    let request = bus.take(server);
    bus.router.detach(id(1), bus.now, &mut bus.fx);
    let cancel = bus.take(server);
    assert_eq!(
        Control::parse(&cancel.payload),
        Ok(Control::Cancel {
            request: request.correlation()
        })
    );
    assert_eq!(bus.router.open_requests(), 0);
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
fn the_window_and_the_waiting_queue_are_bounds() {
    let mut bus = Bus::new(tight());
    let (asker, server) = (bus.join(1, "asker"), bus.join(2, "server"));
    bus.say(server, 2, Control::Serve { window: 1 });
    bus.take(server);
    for correlation in 1..=4 {
        bus.ask(asker, correlation, id(2), 0);
    }
    let refused = bus.take(asker);
    assert_eq!(
        (status(&refused), refused.correlation()),
        (Status::QUEUE_FULL, 4)
    );
    let first = bus.take(server);
    assert!(bus.pull(server).is_none(), "the window is 1");
    bus.respond(server, first.correlation(), b"");
    assert_eq!(bus.take(server).kind(), kind::REQUEST);
    assert_eq!(bus.take(asker).correlation(), 1);
}

#[test]
fn protocol_violations_close_only_the_connection_that_made_them() {
    let mut bus = Bus::new(Limits::default());
    let good = bus.join(1, "good");
    let bad = bus.join(2, "bad");
    let mut forged = Frame::new(kind::EVENT, id(1), 0, []);
    forged.header.source = id(1);
    bus.feed(bad, forged);
    assert_eq!(
        bus.closed(),
        [CloseReason::ForgedSource {
            claimed: id(1),
            owner: id(2)
        }]
    );
    let fresh = bus
        .router
        .connect(id(2), ConnKind::Socket, bus.now)
        .unwrap();
    bus.feed(fresh, Frame::new(kind::HEARTBEAT, PeerId::BUS, 0, []));
    assert_eq!(
        bus.closed(),
        [CloseReason::NotGreeted {
            kind: kind::HEARTBEAT
        }]
    );
    bus.say(
        fresh,
        1,
        Control::Hello {
            version: 0,
            options: 0,
        },
    );
    assert_eq!(bus.closed(), [CloseReason::Version { asked: 0 }]);
    bus.say(good, 2, Control::Serve { window: 4 });
    bus.take(good);
    bus.ask(bad, 3, id(1), 0);
    bus.ask(bad, 3, id(1), 0);
    assert_eq!(
        bus.closed(),
        [CloseReason::CorrelationInUse { correlation: 3 }]
    );
    bus.router.frame(
        bad,
        Frame::new(kind::HEARTBEAT, PeerId::BUS, 0, []),
        Some(9),
        bus.now,
        &mut bus.fx,
    );
    assert_eq!(bus.closed(), [CloseReason::StrayDescriptor]);
    assert_eq!(bus.take(good).kind(), kind::REQUEST);
}

#[test]
fn the_buss_own_words_are_not_for_agents() {
    let mut bus = Bus::new(Limits::default());
    let (asker, server) = (bus.join(1, "asker"), bus.join(2, "server"));
    bus.say(server, 2, Control::Serve { window: 1 });
    bus.take(server);
    bus.ask(asker, 5, id(2), 0);
    let request = bus.take(server);
    let payload = Response {
        status: Status::PEER_GONE,
        error: "ha",
        result: b"",
    }
    .encode()
    .unwrap();
    bus.feed(
        server,
        Frame::new(kind::RESPONSE, PeerId::BUS, request.correlation(), payload),
    );
    assert_eq!(status(&bus.take(asker)), Status::MALFORMED);
    assert_eq!(status(&bus.take(server)), Status::MALFORMED);
}

#[test]
fn a_reader_that_never_reads_answers_is_cut_off() {
    let mut bus = Bus::new(tight());
    let flood = bus.join(1, "flood");
    for n in 0..8 {
        assert_eq!(bus.router.is_congested(flood), n >= 4);
        bus.say(flood, n, Control::Agents);
    }
    assert_eq!(bus.closed(), []);
    bus.say(flood, 9, Control::Agents);
    assert_eq!(bus.closed(), [CloseReason::SlowReader]);
}

#[test]
fn silence_is_marked_late_and_a_heartbeat_mends_it() {
    let mut bus = Bus::new(Limits::default());
    let (watcher, quiet) = (bus.join(1, "watcher"), bus.join(2, "quiet"));
    let seen = |bus: &mut Bus| bus.router.agents(id(1), bus.now)[0].liveness;
    assert_eq!(seen(&mut bus), Liveness::Alive);
    bus.advance(15_001);
    assert_eq!(seen(&mut bus), Liveness::Late);
    bus.feed(quiet, Frame::new(kind::HEARTBEAT, PeerId::BUS, 0, []));
    assert_eq!(seen(&mut bus), Liveness::Alive);
    bus.router.disconnect(quiet, bus.now, &mut bus.fx);
    assert_eq!(seen(&mut bus), Liveness::Quiet);
    bus.router.disconnect(watcher, bus.now, &mut bus.fx);
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

/// Keeps the daemon's account of channels: each is opened once and ended once.
fn note_channels(
    bus: &mut Bus,
    known: &mut std::collections::HashSet<u32>,
) -> Result<(), TestCaseError> {
    for event in std::mem::take(&mut bus.fx.channels) {
        match event {
            ChannelEvent::Opened(opened) => prop_assert!(known.insert(opened.id)),
            ChannelEvent::Ended { id, .. } => prop_assert!(known.remove(&id)),
        }
    }
    Ok(())
}

/// One step of a random history.
#[derive(Clone, Debug)]
enum Step {
    Ask {
        from: u8,
        to: u8,
        correlation: u32,
    },
    Answer {
        who: u8,
        guess: u32,
    },
    Cancel {
        who: u8,
        correlation: u32,
    },
    Serve {
        who: u8,
        window: u32,
    },
    Inbox {
        who: u8,
        wait_ms: u32,
    },
    Publish {
        who: u8,
    },
    Follow {
        who: u8,
        inbox: bool,
    },
    Read {
        who: u8,
    },
    Reconnect {
        who: u8,
    },
    Restart {
        who: u8,
    },
    Wait {
        ms: u64,
    },
    Garbage {
        who: u8,
        bits: u16,
        bytes: Vec<u8>,
    },
    OfferLane {
        who: u8,
        to: u8,
    },
    OfferLog {
        who: u8,
    },
    FollowLogs {
        who: u8,
        reliable: bool,
    },
    /// Answers the offer that came `back` offers ago.
    TakeOffer {
        who: u8,
        back: usize,
        yes: bool,
    },
    Announce {
        who: u8,
        number: u32,
        index: u32,
    },
    DropSegment {
        who: u8,
        number: u32,
        index: u32,
    },
    Bell {
        who: u8,
        number: u32,
    },
    LetGo {
        who: u8,
        number: u32,
    },
    SetRights {
        who: u8,
        all: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let who = || 1u8..5;
    prop_oneof![
        6 => (who(), who(), 1u32..6).prop_map(|(from, to, correlation)| Step::Ask { from, to, correlation }),
        4 => (who(), 0u32..30).prop_map(|(who, guess)| Step::Answer { who, guess }),
        1 => (who(), 1u32..6).prop_map(|(who, correlation)| Step::Cancel { who, correlation }),
        2 => (who(), 0u32..3).prop_map(|(who, window)| Step::Serve { who, window }),
        2 => (who(), 0u32..50).prop_map(|(who, wait_ms)| Step::Inbox { who, wait_ms }),
        2 => who().prop_map(|who| Step::Publish { who }),
        1 => (who(), any::<bool>()).prop_map(|(who, inbox)| Step::Follow { who, inbox }),
        4 => who().prop_map(|who| Step::Read { who }),
        1 => who().prop_map(|who| Step::Reconnect { who }),
        1 => who().prop_map(|who| Step::Restart { who }),
        1 => (1u64..200).prop_map(|ms| Step::Wait { ms }),
        2 => (who(), 0u16..0x7F, proptest::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(who, bits, bytes)| Step::Garbage { who, bits, bytes }),
        3 => (who(), who()).prop_map(|(who, to)| Step::OfferLane { who, to }),
        3 => who().prop_map(|who| Step::OfferLog { who }),
        3 => (who(), any::<bool>()).prop_map(|(who, reliable)| Step::FollowLogs { who, reliable }),
        8 => (who(), 0usize..3, any::<bool>()).prop_map(|(who, back, yes)| Step::TakeOffer { who, back, yes }),
        3 => (who(), 1u32..30, 0u32..3).prop_map(|(who, number, index)| Step::Announce { who, number, index }),
        1 => (who(), 1u32..30, 0u32..3).prop_map(|(who, number, index)| Step::DropSegment { who, number, index }),
        1 => (who(), 1u32..30).prop_map(|(who, number)| Step::Bell { who, number }),
        2 => (who(), 1u32..30).prop_map(|(who, number)| Step::LetGo { who, number }),
        2 => (who(), any::<bool>()).prop_map(|(who, all)| Step::SetRights { who, all }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever agents do: nothing panics, each open request has exactly one fate, queues stay within
    /// their bounds, and nothing is left behind when all have gone.
    #[test]
    fn every_request_has_exactly_one_fate(steps in proptest::collection::vec(step(), 1..120)) {
        let limits = tight();
        let mut bus = Bus::new(limits);
        let mut conns: HashMap<u8, ConnId> = (1..5).map(|n| (n, bus.join(n, &format!("p{n}")))).collect();
        for conn in conns.values() {
            bus.say(*conn, 210, Control::AcceptLanes);
        }
        // Offers by whom they reached, and what the daemon was told of channels.
        let mut offers: HashMap<ConnId, Vec<u32>> = HashMap::new();
        let mut known = std::collections::HashSet::new();
        // Correlation ids that each connection has open, by its own count.
        let mut open: HashMap<(ConnId, u32), u32> = HashMap::new();
        let settle = |open: &mut HashMap<(ConnId, u32), u32>, conn: ConnId, frame: &Frame| {
            if frame.kind() & kind::RESPONSE != 0 && frame.correlation() < 100 {
                let count = open.get_mut(&(conn, frame.correlation()));
                prop_assert!(count.as_deref().is_some_and(|n| *n > 0), "an answer to nothing: {frame:?}");
                *count.unwrap() -= 1;
            }
            Ok(())
        };
        for step in steps {
            match step {
                Step::Ask { from, to, correlation } => {
                    let conn = conns[&from];
                    if open.get(&(conn, correlation)).copied().unwrap_or(0) == 0 {
                        *open.entry((conn, correlation)).or_default() += 1;
                        bus.ask(conn, correlation, id(to), 20);
                    }
                }
                Step::Answer { who, guess } => bus.respond(conns[&who], guess, b"r"),
                Step::Cancel { who, correlation } => {
                    let inflight = bus.router.conns[&conns[&who]].inflight.contains_key(&correlation);
                    bus.say(conns[&who], 200, Control::Cancel { request: correlation });
                    if inflight {
                        *open.get_mut(&(conns[&who], correlation)).unwrap() -= 1;
                    }
                }
                Step::Serve { who, window } => bus.say(conns[&who], 201, Control::Serve { window }),
                Step::Inbox { who, wait_ms } => bus.say(conns[&who], 202, Control::Inbox { max: 2, wait_ms }),
                Step::Publish { who } => bus.event(conns[&who], kind::EVENT, PeerId::BUS, "t", b"x"),
                Step::Follow { who, inbox } => {
                    let delivery = if inbox { Delivery::Inbox } else { Delivery::Push };
                    bus.say(conns[&who], 203, Control::Subscribe { delivery, options: SubscribeOptions::default(), pattern: "#" });
                }
                Step::Read { who } => {
                    while let Some(out) = bus.pull(conns[&who]) {
                        if let Ok(Control::LaneOffered { lane: number, .. } | Control::LogOffered { channel: number, .. }) =
                            Control::parse(&out.frame.payload)
                        {
                            prop_assert!(out.fd.is_some());
                            offers.entry(conns[&who]).or_default().push(number);
                        }
                        if out.frame.correlation() != 77 {
                            settle(&mut open, conns[&who], &out.frame)?;
                        }
                    }
                }
                Step::Reconnect { who } => {
                    bus.router.disconnect(conns[&who], bus.now, &mut bus.fx);
                    let conn = bus.connect(who);
                    conns.insert(who, conn);
                }
                Step::Restart { who } => {
                    bus.router.detach(id(who), bus.now, &mut bus.fx);
                    let conn = bus.join(who, &format!("p{who}"));
                    conns.insert(who, conn);
                }
                Step::Wait { ms } => bus.advance(ms),
                Step::Garbage { who, bits, bytes } if kind::is_valid(bits) && bits != kind::REQUEST => {
                    // Any control message may come of this, so its answers carry an id of their own.
                    bus.feed(conns[&who], Frame::new(bits, PeerId::BUS, 300, bytes));
                }
                Step::Garbage { .. } => {}
                Step::OfferLane { who, to } => {
                    bus.say_with(conns[&who], 211, Control::LaneOffer { to: id(to), shape: Shape::default() }, 8);
                }
                Step::OfferLog { who } => {
                    bus.say_with(conns[&who], 212, Control::LogOffer { shape: Shape::default(), topic: "t" }, 8);
                }
                Step::FollowLogs { who, reliable } => {
                    bus.say(conns[&who], 213, Control::LogFollow { reliable, pattern: "#" });
                }
                Step::TakeOffer { who, back, yes } => {
                    let held = offers.entry(conns[&who]).or_default();
                    if back < held.len() {
                        let number = held.remove(held.len() - 1 - back);
                        bus.take_offer(conns[&who], number, yes.then_some(4));
                    }
                }
                Step::Announce { who, number, index } => {
                    let control = Control::Segment { channel: number, index, sealed: false };
                    bus.say_with(conns[&who], 214, control, 1000);
                }
                Step::DropSegment { who, number, index } => {
                    bus.say(conns[&who], 215, Control::SegmentDropped { channel: number, index });
                }
                Step::Bell { who, number } => {
                    bus.say_with(conns[&who], 216, Control::Bell { channel: number }, 0);
                }
                Step::LetGo { who, number } => {
                    bus.say(conns[&who], 0, Control::ChannelClosed { channel: number, status: Status::OK });
                }
                Step::SetRights { who, all } => {
                    let access: Arc<dyn Access> = if all { Arc::new(SameUser) } else { Arc::new(Only("t")) };
                    bus.router.set_access(id(who), access, bus.now, &mut bus.fx);
                }
            }
            note_channels(&mut bus, &mut known)?;
            // A connection that the router wants closed is closed, as the daemon would.
            for (id_closed, _) in std::mem::take(&mut bus.fx.close) {
                if let Some((&who, _)) = conns.iter().find(|(_, conn)| **conn == id_closed) {
                    bus.router.disconnect(id_closed, bus.now, &mut bus.fx);
                    let conn = bus.connect(who);
                    conns.insert(who, conn);
                }
            }
            note_channels(&mut bus, &mut known)?;
            bus.check_channels()?;
            for peer in bus.router.peers.values() {
                prop_assert!(peer.inbox.len() <= limits.inbox_messages);
                prop_assert!(peer.waiting.len() <= limits.max_waiting_requests);
            }
            for conn in bus.router.conns.values() {
                prop_assert!(conn.inflight.len() <= limits.max_inflight);
                let taken = bus.router.pending.values()
                    .filter(|p| matches!(p.kind, PendingKind::Request))
                    .filter(|p| matches!(p.state, PendingState::With(c) if bus.router.conns.get(&c).is_some_and(|c| std::ptr::eq(c, conn))))
                    .count();
                prop_assert_eq!(conn.serving as usize, taken);
            }
        }
        // Past every deadline, each request that a living connection made has been answered.
        bus.advance(1_000_000);
        let cut_off: Vec<ConnId> = bus.fx.close.drain(..).map(|(conn, _)| conn).collect();
        for conn in conns.values().filter(|conn| !cut_off.contains(conn)) {
            while let Some(out) = bus.pull(*conn) {
                if out.frame.correlation() != 77 {
                    settle(&mut open, *conn, &out.frame)?;
                }
            }
            for ((owner, correlation), count) in &open {
                prop_assert!(owner != conn || *count == 0, "request {} got no answer", correlation);
            }
        }
        for n in 1..5 {
            bus.router.detach(id(n), bus.now, &mut bus.fx);
        }
        note_channels(&mut bus, &mut known)?;
        prop_assert!(known.is_empty(), "the daemon was never told that {known:?} ended");
        prop_assert!(bus.router.logs.is_empty() && bus.router.follows.is_empty());
        prop_assert_eq!(bus.router.open_requests(), 0);
        prop_assert!(bus.router.timers.is_empty());
        prop_assert!(bus.router.conns.is_empty() && bus.router.names.is_empty() && bus.router.channels.is_empty());
    }
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
