//! Lanes, logs, segments and rights that change: the router driven by hand.

use std::sync::Arc;

use super::tests::{Bus, Only, id, ok_result, status, text, tight};
use super::*;
use crate::access::SameUser;
use crate::channel::{SocketOnly, Tier};
use crate::listing::Welcome;
use crate::message::{Control, Delivery, HELLO_SHARED_MEMORY, SubscribeOptions};

/// A policy that allows everything but shared memory.
#[derive(Debug)]
struct Strict;

impl Access for Strict {
    fn may_send(&self, _to: &str) -> bool {
        true
    }
    fn may_request(&self, _to: &str) -> bool {
        true
    }
    fn may_publish(&self, _topic: &str) -> bool {
        true
    }
    fn may_subscribe(&self, _pattern: &str) -> bool {
        true
    }
    fn may_share_memory(&self) -> bool {
        false
    }
}

/// A policy that allows nothing.
fn nothing() -> Arc<dyn Access> {
    Arc::new(Only("nobody"))
}

impl Bus {
    fn lane(&mut self, from: ConnId, to: u8, to_conn: ConnId) -> u32 {
        self.say(to_conn, 90, Control::AcceptLanes);
        self.take(to_conn);
        let shape = Shape::default();
        self.say_with(from, 91, Control::LaneOffer { to: id(to), shape }, 100);
        let offered = self.pull(to_conn).expect("the offer");
        let Ok(Control::LaneOffered { lane, .. }) = Control::parse(&offered.frame.payload) else {
            panic!("no offer")
        };
        self.take_offer(to_conn, lane, Some(200));
        assert_eq!(ok_result(&self.take(from)), lane.to_le_bytes());
        lane
    }

    fn log(&mut self, conn: ConnId, topic: &str) -> u32 {
        let shape = Shape::default();
        self.say_with(conn, 92, Control::LogOffer { shape, topic }, 100);
        let answer = self.take(conn);
        u32::from_le_bytes(ok_result(&answer).try_into().unwrap())
    }

    fn follow(&mut self, conn: ConnId, pattern: &str, reliable: bool) -> u32 {
        self.say(conn, 93, Control::LogFollow { reliable, pattern });
        // An offer of a log that is there may come first: the follow's number is in both.
        let held: Vec<_> = std::iter::from_fn(|| self.pull(conn)).collect();
        let answer = held
            .iter()
            .find(|out| out.frame.correlation() == 93)
            .expect("an answer");
        let number = u32::from_le_bytes(ok_result(&answer.frame).try_into().unwrap());
        self.offers
            .extend(held.into_iter().filter(|out| out.fd.is_some()));
        number
    }

    /// The next offer of a log: follow, channel, topic, and the memory.
    fn offered(&mut self, conn: ConnId) -> Option<(u32, u32, String, u32)> {
        let out = match self.offers.pop() {
            Some(out) => out,
            None => self.pull(conn)?,
        };
        match Control::parse(&out.frame.payload) {
            Ok(Control::LogOffered {
                follow,
                channel,
                topic,
                ..
            }) => Some((follow, channel, topic.to_owned(), out.fd?)),
            other => panic!("no offer of a log: {other:?}"),
        }
    }

    fn command(&mut self, conn: ConnId) -> (Frame, Option<u32>) {
        let out = self.pull(conn).expect("a frame waits");
        (out.frame, out.fd)
    }

    fn events(&mut self) -> Vec<(&'static str, u32)> {
        std::mem::take(&mut self.fx.channels)
            .into_iter()
            .map(|event| match event {
                ChannelEvent::Opened(opened) => (opened.kind.as_str(), opened.id),
                ChannelEvent::Ended { id, .. } => ("ended", id),
            })
            .collect()
    }
}

fn closed_with(frame: &Frame) -> (u32, Status) {
    match Control::parse(&frame.payload) {
        Ok(Control::ChannelClosed { channel, status }) => (channel, status),
        other => panic!("not the end of a channel: {other:?}"),
    }
}

#[test]
fn a_log_reaches_those_who_follow_before_and_after_and_nobody_else() {
    let mut bus = Bus::new(Limits::default());
    let (writer, early, late, other) = (
        bus.join(1, "writer"),
        bus.join(2, "early"),
        bus.join(3, "late"),
        bus.join(4, "other"),
    );
    bus.peer(5, 2000, "stranger", Arc::new(SameUser));
    let stranger = bus.connect(5);
    let wish = bus.follow(early, "ticks.*", false);
    bus.follow(other, "tocks.#", false);
    bus.follow(stranger, "#", false);
    let own = bus.follow(writer, "#", false);
    let log = bus.log(writer, "ticks.a");
    assert_eq!(bus.events(), [("log", log)]);
    let (follow, first, topic, memory) = bus.offered(early).unwrap();
    assert_eq!((follow, topic.as_str(), memory), (wish, "ticks.a", 100));
    bus.take_offer(early, first, Some(201));
    let (frame, cursor) = bus.command(writer);
    assert_eq!(
        Control::parse(&frame.payload),
        Ok(Control::LogFollower {
            from: id(2),
            log,
            channel: first,
            reliable: false
        })
    );
    assert_eq!(cursor, Some(201));
    let wish = bus.follow(late, "#", true);
    let (follow, second, _, _) = bus.offered(late).unwrap();
    assert_eq!(follow, wish);
    bus.take_offer(late, second, Some(202));
    let (frame, _) = bus.command(writer);
    assert!(matches!(
        Control::parse(&frame.payload),
        Ok(Control::LogFollower { reliable: true, channel, .. }) if channel == second
    ));
    for conn in [other, stranger, writer] {
        assert!(bus.pull(conn).is_none(), "another topic, user, or its own");
    }
    let _ = own;
    assert_eq!(
        bus.events(),
        [("followed-log", first), ("followed-log", second)]
    );
    // One reader leaves: the producer is told, the other stays.
    bus.say(
        early,
        0,
        Control::ChannelClosed {
            channel: first,
            status: Status::OK,
        },
    );
    assert_eq!(closed_with(&bus.take(writer)), (first, Status::OK));
    assert_eq!(bus.events(), [("ended", first)]);
    // The log ends with its producer, but is not ended for the reader before that has let go.
    bus.router.disconnect(writer, bus.now, &mut bus.fx);
    assert_eq!(closed_with(&bus.take(late)), (second, Status::PEER_GONE));
    assert_eq!(bus.events(), [("ended", log)]);
    bus.say(
        late,
        0,
        Control::ChannelClosed {
            channel: second,
            status: Status::OK,
        },
    );
    assert_eq!(bus.events(), [("ended", second)]);
}

#[test]
fn a_lane_has_ended_when_both_sides_have_let_go() {
    let mut bus = Bus::new(Limits::default());
    let (a, b) = (bus.join(1, "a"), bus.join(2, "b"));
    let lane = bus.lane(a, 2, b);
    assert_eq!(bus.events(), [("lane", lane)]);
    bus.router.disconnect(a, bus.now, &mut bus.fx);
    assert_eq!(closed_with(&bus.take(b)), (lane, Status::PEER_GONE));
    assert_eq!(bus.events(), [], "b may still be reading");
    bus.router.disconnect(b, bus.now, &mut bus.fx);
    assert_eq!(bus.events(), [("ended", lane)]);
}

#[test]
fn an_offer_whose_time_is_up_is_over_for_whoever_takes_it_then() {
    let mut bus = Bus::new(Limits::default());
    let (a, b) = (bus.join(1, "a"), bus.join(2, "b"));
    bus.say(b, 1, Control::AcceptLanes);
    bus.take(b);
    let shape = Shape::default();
    bus.say_with(a, 2, Control::LaneOffer { to: id(2), shape }, 100);
    let offer = bus.take(b);
    bus.advance(10_000);
    assert_eq!(status(&bus.take(a)), Status::DEADLINE);
    assert_eq!(
        closed_with(&bus.take(b)),
        (offer.correlation(), Status::DEADLINE)
    );
    bus.take_offer(b, offer.correlation(), Some(200));
    assert_eq!(status(&bus.take(b)), Status::NO_SUCH_REQUEST);
    assert_eq!(bus.events(), []);
}

#[test]
fn segments_go_to_every_reader_late_ones_too_within_limits() {
    let limits = Limits {
        max_segments: 2,
        max_shared_bytes: 1000,
        ..Limits::default()
    };
    let mut bus = Bus::new(limits);
    let (writer, early, late) = (
        bus.join(1, "writer"),
        bus.join(2, "early"),
        bus.join(3, "late"),
    );
    let log = bus.log(writer, "bulk");
    let segment = |channel, index| Control::Segment {
        channel,
        index,
        sealed: false,
    };
    bus.follow(early, "#", true);
    let (_, first, _, _) = bus.offered(early).unwrap();
    bus.take_offer(early, first, Some(201));
    bus.take(writer);
    bus.say_with(writer, 0, segment(log, 0), 300);
    assert!(bus.pull(writer).is_none(), "no answer was asked for");
    let (frame, fd) = bus.command(early);
    assert_eq!(
        (Control::parse(&frame.payload), fd),
        (Ok(segment(first, 0)), Some(300))
    );
    bus.follow(late, "#", true);
    let (_, second, _, _) = bus.offered(late).unwrap();
    bus.take_offer(late, second, Some(202));
    let (frame, fd) = bus.command(late);
    assert_eq!(
        (Control::parse(&frame.payload), fd),
        (Ok(segment(second, 0)), Some(300))
    );
    bus.take(writer);
    bus.say_with(writer, 5, segment(log, 0), 1);
    assert!(text(&bus.take(writer)).contains("is there already"));
    bus.say_with(writer, 6, segment(log, 1), 700);
    assert_eq!(status(&bus.take(writer)), Status::QUEUE_FULL);
    bus.say_with(writer, 7, segment(log, 1), 1);
    ok_result(&bus.take(writer));
    bus.say_with(writer, 8, segment(log, 2), 1);
    assert_eq!(status(&bus.take(writer)), Status::QUEUE_FULL);
    assert_eq!(bus.router.bulk_bytes(second), 301);
    // Only its producer speaks for a log; a reader's number is not it.
    for (conn, number) in [(early, log), (writer, first), (early, first)] {
        bus.say_with(conn, 9, segment(number, 3), 1);
        while bus.pull(conn).is_some_and(|out| {
            out.frame.correlation() != 9 || status(&out.frame) != Status::MALFORMED
        }) {}
    }
    bus.say(
        writer,
        10,
        Control::SegmentDropped {
            channel: log,
            index: 0,
        },
    );
    ok_result(&bus.take(writer));
    assert_eq!(bus.router.bulk_bytes(log), 1);
}

#[test]
fn a_bell_goes_from_either_side_of_a_lane_to_the_other_once() {
    let mut bus = Bus::new(Limits::default());
    let (a, b) = (bus.join(1, "a"), bus.join(2, "b"));
    let c = bus.join(3, "c");
    let lane = bus.lane(a, 2, b);
    bus.say_with(c, 3, Control::Bell { channel: lane }, 7);
    assert_eq!(status(&bus.take(c)), Status::MALFORMED);
    bus.say_with(a, 3, Control::Bell { channel: lane }, 6);
    ok_result(&bus.take(a));
    let (frame, fd) = bus.command(b);
    assert_eq!(
        (Control::parse(&frame.payload), fd),
        (Ok(Control::Bell { channel: lane }), Some(6))
    );
    bus.say_with(a, 4, Control::Bell { channel: lane }, 6);
    assert!(text(&bus.take(a)).contains("has its bell already"));
    bus.say_with(b, 3, Control::Bell { channel: lane }, 7);
    ok_result(&bus.take(b));
    let (frame, fd) = bus.command(a);
    assert_eq!(
        (Control::parse(&frame.payload), fd),
        (Ok(Control::Bell { channel: lane }), Some(7))
    );
    bus.say_with(b, 4, Control::Bell { channel: lane }, 8);
    assert!(text(&bus.take(b)).contains("has its bell already"));
    assert!(bus.pull(a).is_none());
}

#[test]
fn what_is_no_longer_allowed_ends_at_once_on_both_sides() {
    let mut bus = Bus::new(Limits::default());
    let (a, b) = (bus.join(1, "a"), bus.join(2, "b"));
    let lane = bus.lane(a, 2, b);
    let back = bus.lane(b, 1, a);
    let log = bus.log(a, "ticks");
    let heard = bus.log(b, "tocks");
    bus.follow(b, "ticks", false);
    let (_, reader, _, _) = bus.offered(b).unwrap();
    bus.take_offer(b, reader, Some(1));
    bus.take(a);
    let wish = bus.follow(a, "tocks", false);
    let (_, own_reader, _, _) = bus.offered(a).unwrap();
    bus.take_offer(a, own_reader, Some(1));
    bus.take(b);
    bus.say(b, 20, Control::Serve { window: 1 });
    bus.take(b);
    bus.ask(a, 30, id(2), 0);
    bus.take(b);
    bus.say(
        a,
        31,
        Control::Subscribe {
            delivery: Delivery::Push,
            options: SubscribeOptions::default(),
            pattern: "t.#",
        },
    );
    bus.take(a);
    bus.events();
    let closed = bus
        .router
        .set_access(id(1), nothing(), bus.now, &mut bus.fx);
    assert_eq!(
        closed,
        Closed {
            lanes: 1,
            logs: 2,
            subscriptions: 2,
            requests: 1
        }
    );
    let mut told_a = Vec::new();
    let mut refused = 0;
    let mut ended = 0;
    while let Some(out) = bus.pull(a) {
        match Control::parse(&out.frame.payload) {
            Ok(Control::ChannelClosed { channel, status }) => told_a.push((channel, status)),
            Ok(Control::Unsubscribe { pattern, .. }) => {
                ended += 1;
                assert_eq!(pattern, "t.#");
            }
            _ => {
                assert_eq!(
                    (out.frame.correlation(), status(&out.frame)),
                    (30, Status::DENIED)
                );
                refused += 1;
            }
        }
    }
    told_a.sort_unstable_by_key(|(number, _)| *number);
    let denied = |mut numbers: Vec<u32>| {
        numbers.sort_unstable();
        numbers
            .into_iter()
            .map(|number| (number, Status::DENIED))
            .collect::<Vec<_>>()
    };
    assert_eq!(told_a, denied(vec![lane, log, own_reader, wish]));
    assert_eq!((refused, ended), (1, 1));
    let mut told_b = Vec::new();
    while let Some(out) = bus.pull(b) {
        if let Ok(Control::ChannelClosed { channel, status }) = Control::parse(&out.frame.payload) {
            told_b.push((channel, status));
        }
    }
    told_b.sort_unstable_by_key(|(number, _)| *number);
    assert_eq!(told_b, denied(vec![lane, reader, own_reader]));
    // What others may do to it stays, and so does what it may not ask for again.
    assert!(bus.router.channels[&back].over.is_none());
    assert!(bus.router.logs.contains_key(&heard));
    let shape = Shape::default();
    bus.say_with(a, 40, Control::LaneOffer { to: id(2), shape }, 1);
    assert_eq!(status(&bus.take(a)), Status::DENIED);
    let topic = "ticks";
    bus.say_with(a, 41, Control::LogOffer { shape, topic }, 1);
    assert_eq!(status(&bus.take(a)), Status::DENIED);
    // Rights that come back bring nothing back, but a new lane may be opened.
    let again = bus
        .router
        .set_access(id(1), Arc::new(SameUser), bus.now, &mut bus.fx);
    assert_eq!(again, Closed::default());
    bus.lane(a, 2, b);
}

#[test]
fn an_offer_under_way_ends_with_the_right_to_it() {
    let mut bus = Bus::new(Limits::default());
    let (a, b) = (bus.join(1, "a"), bus.join(2, "b"));
    bus.say(b, 1, Control::AcceptLanes);
    bus.take(b);
    let shape = Shape::default();
    bus.say_with(a, 2, Control::LaneOffer { to: id(2), shape }, 100);
    let lane = bus.take(b).correlation();
    bus.log(a, "t");
    bus.follow(b, "t", false);
    let (_, reader, _, _) = bus.offered(b).unwrap();
    let closed = bus
        .router
        .set_access(id(1), nothing(), bus.now, &mut bus.fx);
    assert_eq!((closed.lanes, closed.logs), (1, 1));
    let mut over = vec![closed_with(&bus.take(b)), closed_with(&bus.take(b))];
    over.sort_unstable_by_key(|(number, _)| *number);
    assert_eq!(over, [(lane, Status::DENIED), (reader, Status::DENIED)]);
    for number in [lane, reader] {
        bus.take_offer(b, number, Some(200));
        assert_eq!(status(&bus.take(b)), Status::NO_SUCH_REQUEST);
    }
    assert!(bus.router.channels.is_empty() && bus.router.pending.is_empty());
}

#[test]
fn without_shared_memory_there_is_the_socket_and_a_reason() {
    let mut bus = Bus::new(Limits::default());
    let a = bus.join(1, "a");
    bus.peer(2, 1000, "strict", Arc::new(Strict));
    assert_eq!(
        bus.router.tier(id(2)),
        Tier::Socket(SocketOnly::Policy),
        "whether it is connected or not"
    );
    let strict = bus.connect(2);
    assert_eq!(
        bus.router.tier(id(1)),
        Tier::Socket(SocketOnly::Incapable),
        "its client did not say that it can"
    );
    bus.say(strict, 3, Control::AcceptLanes);
    let refused = bus.take(strict);
    assert_eq!(status(&refused), Status::UNSUPPORTED);
    assert!(text(&refused).contains("[ipc] shared_memory = false"));
    let shape = Shape::default();
    bus.say_with(a, 4, Control::LaneOffer { to: id(2), shape }, 1);
    let refused = bus.take(a);
    assert_eq!(status(&refused), Status::UNSUPPORTED);
    assert!(text(&refused).contains("the policy of strict"));
    let topic = "t";
    bus.say_with(strict, 5, Control::LogOffer { shape, topic }, 1);
    assert_eq!(status(&bus.take(strict)), Status::UNSUPPORTED);
    bus.say(
        strict,
        6,
        Control::LogFollow {
            reliable: false,
            pattern: "t",
        },
    );
    assert_eq!(status(&bus.take(strict)), Status::UNSUPPORTED);
    let able = bus
        .router
        .connect(id(1), ConnKind::Socket, bus.now)
        .unwrap();
    bus.say(
        able,
        1,
        Control::Hello {
            version: 1,
            options: HELLO_SHARED_MEMORY,
        },
    );
    let welcome = bus.take(able);
    assert_eq!(
        Welcome::parse(ok_result(&welcome)).unwrap().tier,
        Tier::SharedMemory
    );
    assert_eq!(bus.router.tier(id(1)), Tier::SharedMemory);
    let seen = bus.router.agents(id(2), bus.now);
    assert_eq!(seen[0].tier, Tier::SharedMemory);
}

#[test]
fn logs_and_readers_are_bounded() {
    let mut bus = Bus::new(tight());
    let (a, b, c) = (bus.join(1, "a"), bus.join(2, "b"), bus.join(3, "c"));
    for topic in ["t1", "t2"] {
        bus.log(a, topic);
    }
    let shape = Shape::default();
    let topic = "t3";
    bus.say_with(a, 5, Control::LogOffer { shape, topic }, 1);
    assert_eq!(status(&bus.take(a)), Status::QUEUE_FULL);
    bus.log(c, "t4");
    bus.follow(b, "#", false);
    assert_eq!(bus.offers.len(), 2, "two offers, and a notice of the third");
    assert!(bus.pull(b).is_none());
    bus.follow(b, "t1", false);
    bus.say(
        b,
        9,
        Control::LogFollow {
            reliable: false,
            pattern: "x",
        },
    );
    assert_eq!(status(&bus.take(b)), Status::QUEUE_FULL);
}
