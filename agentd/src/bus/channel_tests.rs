//! Lanes and logs over real sockets: streams, rights that are taken back, dead letters, descriptors that lie.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use agentd_api::AgentId;
use agentd_bus::access::Right;
use agentd_bus::arena::segment::{Announce as _, SegmentOptions};
use agentd_bus::arena::{BulkOptions, BulkRecvError, SealedPayload};
use agentd_bus::channel::{Class, Inline, Overflow, SocketOnly, Tag, Tier, Waiting};
use agentd_bus::client::{
    BellRefused, Body, Client, FollowOptions, InPlaceError, IntoBulkError, LaneError, LaneOptions,
    LaneReceiver, LaneSender, LastingError, LastingLog, LastingLogError, LogOptions, LogReader,
    LogReaders, SEALED_HELD_MAX, SealedSendError, SegmentArrival,
};
use agentd_bus::frame::{Frame, PeerId, WithFd, kind};
use agentd_bus::lane::ring::{RecvError, SendError, SettleError};
use agentd_bus::lane::{Credit, Extension, ReceiverOptions};
use agentd_bus::log::{Delivery, RecvError as LogRecvError, Start};
use agentd_bus::message::{Control, HELLO_SHARED_MEMORY, Shape, Status};
use agentd_bus::router::ChannelKind;
use agentd_bus::shm::memfd::{self, PageKind};
use agentd_bus::wait::{Event, Park, Source as _, Waiter};
use agentd_sandbox::IpcRules;

use super::tests::{Fixture, Raw, WATCHDOG, a_bus_of_its_own, blocking, open_rules};

/// A tag that carries a number.
fn tag(number: u32) -> Tag {
    Tag {
        kind: 4,
        flags: 0,
        correlation: number,
    }
}

/// A deadline that only a failing test sees.
fn soon() -> Option<Instant> {
    Instant::now().checked_add(WATCHDOG)
}

/// A lane between two agents that are on the bus.
fn lane(from: &Path, to: &Path, name: &str, slots: usize) -> (LaneSender, LaneReceiver) {
    lane_with(from, to, name, LaneOptions::with_slots(slots))
}

fn lane_with(
    from: &Path,
    to: &Path,
    name: &str,
    options: LaneOptions,
) -> (LaneSender, LaneReceiver) {
    let (sender, receiver) = (
        Client::connect_to(from).unwrap(),
        Client::connect_to(to).unwrap(),
    );
    let offers = receiver.accept_lanes().unwrap();
    let name = name.to_owned();
    let opening = std::thread::spawn(move || sender.open_lane(&name, options));
    let incoming = offers.next(WATCHDOG).unwrap().unwrap().accept().unwrap();
    (opening.join().unwrap().unwrap(), incoming)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_reaches_its_readers_and_is_seen_by_the_daemon() {
    const MESSAGES: u32 = 5_000;
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let (_c, c) = bus.attach("c");
    let server = bus.server.clone();
    blocking(move || {
        let mut writer = Client::connect_to(&a)
            .unwrap()
            .publish_log("ticks.a", LogOptions::default())
            .unwrap();
        let alone = server.channels(1000);
        assert_eq!(alone.len(), 1);
        assert_eq!(
            (alone[0].kind, alone[0].topic.as_deref()),
            (ChannelKind::Log, Some("ticks.a"))
        );
        assert!(server.channels(2000).is_empty(), "another user's");
        let readers: Vec<_> = [&b, &c]
            .into_iter()
            .map(|path| {
                let follow = FollowOptions {
                    delivery: Delivery::Reliable,
                    start: Start::Head,
                    ..FollowOptions::default()
                };
                let client = Client::connect_to(path).unwrap();
                let mut readers = client.follow_log("ticks.#", follow).unwrap();
                let mut reader = readers.next(WATCHDOG).unwrap().unwrap();
                assert_eq!(reader.topic, "ticks.a");
                std::thread::spawn(move || {
                    let mut buffer = Vec::new();
                    for number in 0..MESSAGES {
                        let message = reader.recv(&mut buffer, WATCHDOG).unwrap();
                        assert_eq!((message.tag, message.lost), (tag(number), 0));
                        assert_eq!(buffer, number.to_le_bytes());
                    }
                    reader.recv(&mut buffer, WATCHDOG).unwrap_err()
                })
            })
            .collect();
        // Both are reliable: nothing is written before both are there.
        while writer.readers().count() < 2 {
            writer.await_readers(WATCHDOG);
        }
        for number in 0..MESSAGES {
            writer
                .send(tag(number), &number.to_le_bytes(), WATCHDOG)
                .unwrap();
        }
        let seen = server.channels(1000);
        assert_eq!(seen.len(), 2, "one for each reader");
        for channel in &seen {
            assert_eq!(channel.kind, ChannelKind::FollowedLog { log: writer.id() });
            assert!(channel.reliable);
            assert_eq!(channel.sent.messages, u64::from(MESSAGES));
            assert_eq!(channel.sent.bytes, u64::from(MESSAGES) * 4);
        }
        drop(writer);
        for reader in readers {
            assert_eq!(
                reader.join().unwrap(),
                LogRecvError::Closed(Status::OK),
                "after every message, the end"
            );
        }
        while !server.channels(1000).is_empty() {
            std::thread::yield_now();
        }
    })
    .await;
    let unread = bus.record().await;
    assert!(unread.iter().all(|meta| meta.kind != "dead-letter"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_never_read_is_on_record() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let server = bus.server.clone();
    blocking(move || {
        let (mut sender, mut receiver) = lane(&a, &b, "b", 64);
        for number in 0..5 {
            sender.try_send(tag(number), b"1234567").unwrap();
        }
        let mut buffer = Vec::new();
        for number in 0..2 {
            assert_eq!(receiver.recv(&mut buffer, WATCHDOG), Ok(tag(number)));
        }
        let seen = &server.channels(1000)[0];
        assert_eq!((seen.sent.messages, seen.received.messages), (5, 2));
        drop(sender);
        assert_eq!(server.channels(1000).len(), 1, "the receiver may read on");
        drop(receiver);
        while !server.channels(1000).is_empty() {
            std::thread::yield_now();
        }
    })
    .await;
    // It is noted a moment after the channel has left the list.
    let noted = async {
        loop {
            let record = bus.record().await;
            let dead = record.into_iter().filter(|m| m.kind == "dead-letter");
            let dead: Vec<_> = dead.collect();
            if !dead.is_empty() {
                return dead;
            }
            tokio::task::yield_now().await;
        }
    };
    let dead = tokio::time::timeout(WATCHDOG, noted)
        .await
        .expect("on record");
    assert_eq!(dead.len(), 1);
    assert_eq!(&*dead[0].what, "3 messages of a lane were never read");
    assert_eq!((dead[0].bytes, &*dead[0].from_name), (21, "a"));
    assert_eq!(dead[0].to.as_ref().map(|to| &*to.1), Some("b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_right_that_is_taken_back_ends_what_streams() {
    let bus = Fixture::new();
    let (port, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let id = port.identity().id;
    let server = bus.server.clone();
    blocking(move || {
        let (mut sender, mut receiver) = lane(&a, &b, "b", 64);
        let sending = std::thread::spawn(move || {
            let mut sent = 0;
            loop {
                match sender.send(tag(sent), b"stream", WATCHDOG) {
                    Ok(()) => sent += 1,
                    Err(error) => return error,
                }
            }
        });
        let (first, streams) = std::sync::mpsc::channel();
        let receiving = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            loop {
                match receiver.recv(&mut buffer, WATCHDOG) {
                    Ok(_) => drop(first.send(())),
                    Err(error) => return error,
                }
            }
        });
        streams.recv_timeout(WATCHDOG).unwrap();
        let closed = server.revoke(id, Right::Send, "b").unwrap();
        assert_eq!((closed.lanes, closed.logs, closed.requests), (1, 0, 0));
        assert_eq!(sending.join().unwrap(), SendError::Closed(Status::DENIED));
        assert_eq!(receiving.join().unwrap(), RecvError::Closed(Status::DENIED));
        assert_eq!(server.revoked(id), [(Right::Send, "b".to_owned())]);

        let client = Client::connect_to(&a).unwrap();
        let refused = client.open_lane("b", LaneOptions::default()).unwrap_err();
        assert!(refused.to_string().starts_with("denied"), "{refused}");
        assert!(!refused.is_socket_only());
        // No policy lifts it, what it did not name stays, and it can be given back.
        let rules = server.set_rules(id, open_rules()).unwrap();
        assert_eq!(rules, agentd_bus::router::Closed::default());
        assert_eq!(
            client.send("b", "t", b"x").unwrap_err().status(),
            Some(Status::DENIED)
        );
        assert_eq!(client.publish("t", "t", b"x").unwrap(), 0);
        server.restore(id).unwrap();
        client.send("b", "t", b"x").unwrap();
        let (_sender, _receiver) = lane(&a, &b, "b", 64);
    })
    .await;
    let unknown = bus.server.revoke(AgentId::new(), Right::Send, "#");
    assert_eq!(unknown.unwrap_err().status, Status::NO_SUCH_AGENT);
    let mistyped = bus.server.revoke(id, Right::Send, "a..b");
    assert_eq!(mistyped.unwrap_err().status, Status::MALFORMED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_topic_ends_the_log_its_readers_and_subscriptions() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (port, b) = bus.attach("b");
    let id = port.identity().id;
    let server = bus.server.clone();
    blocking(move || {
        let client = Client::connect_to(&a).unwrap();
        let mut writer = client.publish_log("t.a", LogOptions::default()).unwrap();
        let reader = Client::connect_to(&b).unwrap();
        let events = reader.subscribe("t.*").unwrap();
        let mut logs = reader.follow_log("t.a", FollowOptions::default()).unwrap();
        let mut log = logs.next(WATCHDOG).unwrap().unwrap();
        let mut buffer = Vec::new();
        writer.send(tag(1), b"seen", WATCHDOG).unwrap();
        assert_eq!(log.recv(&mut buffer, WATCHDOG).unwrap().tag, tag(1));
        writer.send(tag(2), b"too late", WATCHDOG).unwrap();
        let closed = server.revoke(id, Right::Subscribe, "t.#").unwrap();
        assert_eq!((closed.logs, closed.subscriptions), (1, 2));
        // The link hears of it in a moment; from then on not even what was committed is given.
        loop {
            match log.recv(&mut buffer, WATCHDOG) {
                Ok(message) => assert_eq!(message.tag, tag(2)),
                Err(error) => {
                    assert_eq!(error, LogRecvError::Closed(Status::DENIED));
                    break;
                }
            }
        }
        assert_eq!(
            events.next(WATCHDOG),
            agentd_bus::client::Received::Closed,
            "and may not be made anew"
        );
        let refused = logs.next(WATCHDOG).unwrap_err();
        assert!(refused.to_string().starts_with("denied"), "{refused}");
        // The log itself is the writer's own, and goes on.
        writer.send(tag(3), b"on", WATCHDOG).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_shared_memory_there_is_the_socket_and_the_reason() {
    let bus = Fixture::new();
    let strict = IpcRules {
        shared_memory: false,
        ..open_rules()
    };
    let (port, a) = bus.attach_as("a", 1000, strict);
    let (_b, b) = bus.attach("b");
    assert_eq!(
        bus.server.tier(port.identity().id),
        Tier::Socket(SocketOnly::Policy)
    );
    blocking(move || {
        let (client, other) = (
            Client::connect_to(&a).unwrap(),
            Client::connect_to(&b).unwrap(),
        );
        assert_eq!(client.tier(), Tier::Socket(SocketOnly::Policy));
        assert_eq!(other.tier(), Tier::SharedMemory);
        let refused = client.open_lane("b", LaneOptions::default()).unwrap_err();
        assert!(refused.is_socket_only());
        let text = refused.to_string();
        assert!(text.contains("[ipc] shared_memory = false"), "{text}");
        let refused = other.open_lane("a", LaneOptions::default()).unwrap_err();
        assert!(refused.is_socket_only(), "{refused}");
        let refused = client.publish_log("t", LogOptions::default()).unwrap_err();
        assert!(refused.is_socket_only(), "{refused}");
        let refused = client
            .follow_log("t", FollowOptions::default())
            .unwrap_err();
        assert!(refused.is_socket_only(), "{refused}");
        assert_eq!(
            client.accept_lanes().unwrap_err().status(),
            Some(Status::UNSUPPORTED)
        );
        // The documented way out works.
        client.send("b", "note", b"over the socket").unwrap();
        let inbox = other.inbox(1, WATCHDOG).unwrap();
        assert_eq!(inbox.messages.len(), 1);
        let peers = other.agents().unwrap();
        assert_eq!(peers[0].tier, Tier::Socket(SocketOnly::Policy));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_and_bells_reach_the_other_side() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let server = bus.server.clone();
    blocking(move || {
        let (mut sender, mut receiver) = lane(&a, &b, "b", 64);
        let (_segment, fd) = memfd::create("agentd-test-segment", 4096 / 8).unwrap();
        let mut announcer = sender.announcer();
        announcer.segment(3, fd.as_fd()).unwrap();
        let mut segments = receiver.segments();
        let Some(SegmentArrival::Added {
            index: 3,
            sealed: false,
            memory,
        }) = segments.next_arrival(soon())
        else {
            panic!("no segment")
        };
        assert_eq!(memfd::check_sealed(memory.as_fd()).unwrap(), 4096);
        assert_eq!(server.channels(1000)[0].bulk_bytes, 4096);
        announcer.dropped(3);
        assert!(matches!(
            segments.next_arrival(soon()),
            Some(SegmentArrival::Dropped { index: 3 })
        ));
        receiver.make_bell().unwrap();
        assert!(receiver.bell().is_some());
        sender.send(tag(1), b"rings", WATCHDOG).unwrap();
        drop(sender);
        assert!(segments.next_arrival(soon()).is_none(), "the lane is over");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_go_through_an_arena_whose_segments_the_bus_carries() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let server = bus.server.clone();
    blocking(move || {
        let (sender, receiver) = lane(&a, &b, "b", 64);
        let mut receiver = receiver.into_bulk(64 << 20).unwrap();
        let segments = SegmentOptions {
            bytes: 1 << 20,
            largest: PageKind::Small,
            ..SegmentOptions::default()
        };
        let mut sender = sender.into_bulk(segments, BulkOptions::default()).unwrap();
        let receiving = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            for number in 0_u32..40 {
                let got = receiver.recv(&mut buffer, WATCHDOG).unwrap();
                assert_eq!(got, tag(number));
                // From a few bytes to more than the first segment holds.
                assert_eq!(buffer.len(), 100 + number as usize * 40_000);
                assert!(buffer.iter().all(|byte| *byte == number as u8));
            }
        });
        for number in 0_u32..40 {
            let payload = vec![number as u8; 100 + number as usize * 40_000];
            sender.send(tag(number), &payload, WATCHDOG).unwrap();
        }
        assert!(
            server.channels(1000)[0].bulk_bytes >= 2 << 20,
            "it has grown"
        );
        receiving.join().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_payloads_go_in_order_with_what_an_arena_copies() {
    const EACH: u32 = 20;
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    blocking(move || {
        let (sender, receiver) = lane(&a, &b, "b", 64);
        let mut receiver = receiver.into_bulk(64 << 20).unwrap();
        let segments = SegmentOptions {
            bytes: 1 << 20,
            largest: PageKind::Small,
            ..SegmentOptions::default()
        };
        let mut sender = sender.into_bulk(segments, BulkOptions::default()).unwrap();
        let receiving = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            for number in 0..3 * EACH {
                let (got, body) = receiver.recv_in_place(&mut buffer, WATCHDOG).unwrap();
                assert_eq!(got, tag(number));
                match number % 3 {
                    0 => assert!(matches!(body, Body::Copied) && buffer == b"small"),
                    // The arena grows on the way, so its segments and sealed payloads arrive among each other.
                    1 => assert!(matches!(body, Body::Copied) && buffer.len() == 100_000),
                    _ => assert!(is_in_place(&body, number, 4096), "{number}"),
                }
            }
            // Who receives in the simple way skips a sealed payload and is told.
            let skipped = receiver.recv(&mut buffer, WATCHDOG).unwrap_err();
            assert!(
                matches!(skipped, BulkRecvError::Lane(RecvError::Reference { .. })),
                "{skipped}"
            );
            assert_eq!(receiver.recv(&mut buffer, WATCHDOG).unwrap(), tag(1000));
        });
        for number in 0..3 * EACH {
            match number % 3 {
                0 => sender.send(tag(number), b"small", WATCHDOG).unwrap(),
                1 => sender
                    .send(tag(number), &vec![1; 100_000], WATCHDOG)
                    .unwrap(),
                _ => sender
                    .send_sealed(tag(number), &sealed(number, 4096), WATCHDOG)
                    .unwrap(),
            }
        }
        sender
            .send_sealed(tag(0), &sealed(0, 4096), WATCHDOG)
            .unwrap();
        sender.send(tag(1000), &[1; 5000], WATCHDOG).unwrap();
        receiving.join().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_descriptor_is_what_its_message_says_or_goes_no_further() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    blocking(move || {
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let pipe = || OwnedFd::from(std::io::pipe().unwrap().1);
        let page = || memfd::create("agentd-test-page", 512).unwrap().1;
        let segment = |sealed| Control::Segment {
            channel: 1,
            index: 0,
            sealed,
        };
        for (control, fd, why) in [
            (segment(false), null(), "not the segment"),
            (segment(true), page(), "lacks the seals"),
            (Control::Bell { channel: 1 }, pipe(), "not the bell"),
            (Control::Bell { channel: 1 }, page(), "not the bell"),
            (Control::Agents, page(), "takes none"),
        ] {
            let mut frame = Frame::new(kind::COMMAND, PeerId::BUS, 5, control.encode().unwrap());
            frame.set_fd_flag(WithFd::Yes);
            let mut bytes = Vec::new();
            frame.encode_into(&mut bytes);
            let raw = Raw::greeted(&a);
            agentd_kernel::fdpass::send(raw.stream.as_fd(), &bytes, &[fd.as_fd()]).unwrap();
            let words = raw.last_words();
            assert!(words.contains(why), "{control:?}: {words}");
        }
    })
    .await;
}

#[test]
fn a_lasting_lane_finds_the_successor_of_its_bus() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let listen = |name: &str| UnixListener::bind(path(name)).unwrap();
    let (a, b) = (listen("a"), listen("b"));
    let listeners = [("a", &a), ("b", &b)];
    let (first, server) = a_bus_of_its_own(&listeners);
    let (from, to) = (path("a"), path("b"));
    let receiving = std::thread::spawn(move || {
        let client = Client::connect_to(&to).unwrap();
        let offers = client.accept_lanes().unwrap();
        let (mut numbers, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let mut lane = offers.next(WATCHDOG).unwrap().unwrap().accept().unwrap();
            loop {
                match lane.recv(&mut buffer, WATCHDOG) {
                    Ok(tag) => numbers.push(tag.correlation),
                    Err(RecvError::Closed(Status::REPLACED)) => break,
                    Err(RecvError::Closed(Status::OK)) => return numbers,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let client = Client::connect_to(&from).unwrap();
    // The receiver may not be there yet: the lane is open once it is.
    let peers = client.subscribe(agentd_bus::topic::PEERS_TOPIC).unwrap();
    let mut lane = loop {
        match client.open_lasting_lane("b", LaneOptions::with_slots(64)) {
            Ok(lane) => break lane,
            Err(error) => assert!(error.is_socket_only(), "{error}"),
        }
        peers.next(WATCHDOG);
    };
    for number in 0..10 {
        lane.send(tag(number), b"before", WATCHDOG).unwrap();
    }
    drop(server);
    first.shutdown_timeout(WATCHDOG);
    while lane.now().ended().is_none() {
        std::thread::yield_now(); // until this side, too, has heard that its bus has gone
    }
    let (second, server) = a_bus_of_its_own(&listeners);
    for number in 10..20 {
        lane.send(tag(number), b"after", WATCHDOG).unwrap();
    }
    drop(lane);
    // Nothing lost, nothing twice, in order.
    assert_eq!(receiving.join().unwrap(), (0..20).collect::<Vec<_>>());
    drop((peers, client, server));
    second.shutdown_timeout(Duration::from_secs(30));
}

/// The receiver stops in the middle of the old lane, so the next one begins with the rest.
#[test]
fn a_lasting_lane_repeats_what_its_receiver_left_unread() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let listen = |name: &str| UnixListener::bind(path(name)).unwrap();
    let (a, b) = (listen("a"), listen("b"));
    let listeners = [("a", &a), ("b", &b)];
    let (first, server) = a_bus_of_its_own(&listeners);
    let to = Client::connect_to(&path("b")).unwrap();
    let offers = to.accept_lanes().unwrap();
    let from = Client::connect_to(&path("a")).unwrap();
    let opening =
        std::thread::spawn(move || from.open_lasting_lane("b", LaneOptions::with_slots(64)));
    let mut old = offers.next(WATCHDOG).unwrap().unwrap().accept().unwrap();
    let mut lane = opening.join().unwrap().unwrap();
    for number in 0..10 {
        lane.send(tag(number), &number.to_le_bytes(), WATCHDOG)
            .unwrap();
    }
    let mut buffer = Vec::new();
    for number in 0..4 {
        assert_eq!(old.recv(&mut buffer, WATCHDOG), Ok(tag(number)));
    }
    drop(server);
    first.shutdown_timeout(WATCHDOG);
    while lane.now().ended().is_none() {
        std::thread::yield_now(); // until this side, too, has heard that its bus has gone
    }
    let (second, server) = a_bus_of_its_own(&listeners);
    // The receiver has not stopped yet: nobody knows what it will have read.
    let early = lane.send(tag(10), b"early", Duration::ZERO).unwrap_err();
    let unknown = SettleError::Unknown { messages: 10 };
    assert!(
        matches!(early, LastingError::Settle(why) if why == unknown),
        "{early}"
    );
    assert_eq!(old.recv(&mut buffer, WATCHDOG), Ok(tag(4)));
    drop(old);
    let sending = std::thread::spawn(move || {
        for number in 10..100 {
            lane.send(tag(number), &number.to_le_bytes(), WATCHDOG)
                .unwrap();
        }
        lane.flush(WATCHDOG).unwrap();
        assert_eq!((lane.repeated(), lane.given_up(), lane.owed()), (5, 0, 0));
    });
    let mut next = offers.next(WATCHDOG).unwrap().unwrap().accept().unwrap();
    for number in 5..100_u32 {
        assert_eq!(next.recv(&mut buffer, WATCHDOG), Ok(tag(number)));
        assert_eq!(buffer, number.to_le_bytes());
    }
    assert_eq!(
        next.recv(&mut buffer, Duration::ZERO),
        Err(RecvError::TimedOut)
    );
    sending.join().unwrap();
    drop((next, to, offers, server));
    second.shutdown_timeout(Duration::from_secs(30));
}

/// Readers of a log stop at different places when agentd dies; each has every message once.
#[test]
fn a_lasting_log_is_read_once_by_each_of_its_readers_whatever_they_had_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let listen = |name: &str| UnixListener::bind(path(name)).unwrap();
    let (a, b, c) = (listen("a"), listen("b"), listen("c"));
    let listeners = [("a", &a), ("b", &b), ("c", &c)];
    let (first, server) = a_bus_of_its_own(&listeners);
    let options = FollowOptions {
        delivery: Delivery::Reliable,
        ..FollowOptions::default()
    };
    let follow = |name: &str| {
        let client = Client::connect_to(&path(name)).unwrap();
        client.follow_log("ticks", options).unwrap()
    };
    let (mut quick, mut slow) = (follow("b"), follow("c"));
    let from = Client::connect_to(&path("a")).unwrap();
    let mut log = from
        .publish_lasting_log("ticks", LogOptions::default())
        .unwrap();
    let next = |logs: &mut LogReaders| logs.next(WATCHDOG).unwrap().unwrap();
    let (mut of_quick, mut of_slow) = (next(&mut quick), next(&mut slow));
    while log.now().readers().count() < 2 {
        log.now().await_readers(WATCHDOG);
    }
    let send = |log: &mut LastingLog, numbers: std::ops::Range<u32>| {
        for number in numbers {
            log.send(tag(number), &number.to_le_bytes(), WATCHDOG)
                .unwrap();
        }
    };
    let mut buffer = Vec::new();
    let mut read = |log: &mut LogReader, numbers: std::ops::Range<u32>| {
        for number in numbers {
            let message = log.recv(&mut buffer, WATCHDOG).unwrap();
            assert_eq!((message.tag, message.lost), (tag(number), 0));
            assert_eq!(buffer, number.to_le_bytes());
        }
    };
    send(&mut log, 0..500);
    read(&mut of_quick, 0..500);
    read(&mut of_slow, 0..7);
    drop(server);
    first.shutdown_timeout(WATCHDOG);
    while log.now().ended().is_none() {
        std::thread::yield_now(); // until this side, too, has heard that its bus has gone
    }
    let (second, server) = a_bus_of_its_own(&listeners);
    // Without its readers it writes nothing that would be promised to nobody.
    let early = log.send(tag(500), b"early", Duration::ZERO).unwrap_err();
    let awaited = matches!(early, LastingLogError::Awaited { readers: 2 });
    assert!(awaited, "{early}");
    let sending = std::thread::spawn(move || {
        send(&mut log, 500..3000);
        log.flush(WATCHDOG).unwrap();
        (log.repeated(), log.given_up())
    });
    // One reads the old log to its end, the other leaves it at once and has the rest from the next.
    read(&mut of_slow, 7..300);
    drop(of_slow);
    let end = of_quick.recv(&mut Vec::new(), WATCHDOG);
    assert_eq!(end, Err(LogRecvError::Closed(Status::REPLACED)));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut again = next(&mut slow);
            let mut buffer = Vec::new();
            for number in 300..3000_u32 {
                let message = again.recv(&mut buffer, WATCHDOG).unwrap();
                assert_eq!((message.tag, message.lost), (tag(number), 0));
            }
        });
        let mut again = next(&mut quick);
        read(&mut again, 500..3000);
    });
    let (repeated, given_up) = sending.join().unwrap();
    assert!((493..=500).contains(&repeated), "{repeated}");
    assert_eq!(given_up, 0);
    drop((from, quick, slow, of_quick, server));
    second.shutdown_timeout(Duration::from_secs(30));
}

#[test]
fn a_lasting_log_gives_up_a_reader_that_does_not_come_back_and_tells_one_that_comes_late() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let listen = |name: &str| UnixListener::bind(path(name)).unwrap();
    let (a, b) = (listen("a"), listen("b"));
    let listeners = [("a", &a), ("b", &b)];
    let (first, server) = a_bus_of_its_own(&listeners);
    let options = FollowOptions {
        delivery: Delivery::Reliable,
        ..FollowOptions::default()
    };
    let client = Client::connect_to(&path("b")).unwrap();
    let mut logs = client.follow_log("ticks", options).unwrap();
    let from = Client::connect_to(&path("a")).unwrap();
    let mut log = from
        .publish_lasting_log("ticks", LogOptions::default())
        .unwrap()
        .returning_within(Duration::ZERO);
    let mut reader = logs.next(WATCHDOG).unwrap().unwrap();
    while log.now().readers().next().is_none() {
        log.now().await_readers(WATCHDOG);
    }
    let mut buffer = Vec::new();
    for number in 0..3 {
        log.send(tag(number), b"before", WATCHDOG).unwrap();
        assert_eq!(reader.recv(&mut buffer, WATCHDOG).unwrap().tag, tag(number));
    }
    drop(server);
    first.shutdown_timeout(WATCHDOG);
    while log.now().ended().is_none() {
        std::thread::yield_now(); // until this side, too, has heard that its bus has gone
    }
    let (second, server) = a_bus_of_its_own(&listeners);
    log.send(tag(3), b"nobody is there", WATCHDOG).unwrap();
    assert_eq!(log.given_up(), 1);
    let late = std::thread::spawn(move || {
        let mut again = logs.next(WATCHDOG).unwrap().unwrap();
        let message = again.recv(&mut Vec::new(), WATCHDOG).unwrap();
        (message.tag, message.lost)
    });
    while log.now().readers().next().is_none() {
        log.now().await_readers(WATCHDOG);
    }
    log.send(tag(4), b"to the latecomer", WATCHDOG).unwrap();
    assert_eq!(late.join().unwrap(), (tag(4), 1));
    drop((from, client, reader, server));
    second.shutdown_timeout(Duration::from_secs(30));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_of_wide_slots_is_what_was_offered_or_refused() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let server = bus.server.clone();
    blocking(move || {
        let options = LaneOptions {
            inline: Inline::Wide,
            ..LaneOptions::with_slots(64)
        };
        let (mut sender, mut receiver) = lane_with(&a, &b, "b", options);
        for len in [1_u8, 48, 49, 112, 113, 255] {
            sender
                .send(tag(len.into()), &vec![len; len.into()], WATCHDOG)
                .unwrap();
        }
        let seen = server.channels(1000);
        assert_eq!((seen[0].sent.messages, seen[0].slots), (6, 64));
        let mut buffer = Vec::new();
        for len in [1_u8, 48, 49, 112, 113, 255] {
            assert_eq!(receiver.recv(&mut buffer, WATCHDOG), Ok(tag(len.into())));
            assert_eq!(buffer, vec![len; len.into()]);
        }
        // One that is offered as the other class.
        drop((sender, receiver));
        let taking = Client::connect_to(&b).unwrap();
        let offers = taking.accept_lanes().unwrap();
        let known = Client::connect_to(&a).unwrap().agents().unwrap();
        let to = known.iter().find(|peer| peer.name == "b").unwrap().id;
        let words = agentd_bus::lane::data_words(64, Inline::Wide);
        let (data, fd) = memfd::create("agentd-test-lane", words).unwrap();
        let sending = agentd_bus::lane::SenderOptions {
            inline: Inline::Wide,
            ..Default::default()
        };
        agentd_bus::lane::ring::format_data(&data, 64, &sending).unwrap();
        let shape = Shape {
            slots: 64,
            ..Shape::default()
        };
        let offer = Control::LaneOffer { to, shape }.encode().unwrap();
        let mut frame = Frame::new(kind::COMMAND, PeerId::BUS, 5, offer);
        frame.set_fd_flag(WithFd::Yes);
        let mut bytes = Vec::new();
        frame.encode_into(&mut bytes);
        let raw = Raw::greeted_with(&a, HELLO_SHARED_MEMORY);
        agentd_kernel::fdpass::send(raw.stream.as_fd(), &bytes, &[fd.as_fd()]).unwrap();
        let offer = offers.next(WATCHDOG).unwrap().unwrap();
        let refused = offer.accept().unwrap_err().to_string();
        assert!(refused.contains("slots of 128 bytes"), "{refused}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_drops_its_oldest_never_waits_and_says_what_was_lost() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let server = bus.server.clone();
    blocking(move || {
        let options = LaneOptions {
            overflow: Overflow::DropOldest,
            ..LaneOptions::with_slots(64)
        };
        let (mut sender, mut receiver) = lane_with(&a, &b, "b", options);
        let mut buffer = Vec::new();
        sender.send(tag(0), b"first", Duration::ZERO).unwrap();
        assert_eq!(receiver.recv(&mut buffer, WATCHDOG), Ok(tag(0)));
        assert_eq!(
            (buffer.as_slice(), receiver.lost_before()),
            (&b"first"[..], 0)
        );
        for number in 1..1000 {
            sender.send(tag(number), b"x", Duration::ZERO).unwrap();
        }
        let batch: Vec<(Tag, &[u8])> = (1000..1010).map(|n| (tag(n), &b"y"[..])).collect();
        assert_eq!(sender.send_batch(&batch, Duration::ZERO), Ok(10));
        let (mut received, mut lost, mut due) = (1, 0, 1);
        while let Some(Tag { correlation, .. }) = receiver.try_recv(&mut buffer).unwrap() {
            lost += receiver.lost_before();
            due += receiver.lost_before() as u32;
            assert_eq!(correlation, due, "the newest, in order");
            due += 1;
            received += 1;
        }
        assert!(lost >= 1010 - 1 - 64, "{lost}");
        assert_eq!(received + lost, 1010, "offered is received and lost");
        assert_eq!((receiver.received().lost, due), (lost, 1010));
        // The daemon sees the same.
        receiver.recv(&mut buffer, Duration::ZERO).unwrap_err();
        let seen = server.channels(1000);
        assert_eq!(seen.len(), 1);
        assert_eq!(
            (seen[0].kind, seen[0].overflow),
            (ChannelKind::Lane, Overflow::DropOldest)
        );
        assert!(!seen[0].reliable, "its sender waits for nobody");
        assert_eq!((seen[0].sent.messages, seen[0].received.lost), (1010, lost));
        assert_eq!((seen[0].depth, seen[0].topic.as_deref()), (0, None));
        // It wakes and ends like any lane, in an event loop too.
        receiver.make_bell().unwrap();
        let reading = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            let woken = receiver.recv(&mut buffer, WATCHDOG);
            let end = receiver.recv(&mut buffer, WATCHDOG);
            (woken, end)
        });
        sender.send(tag(7), b"wake up", Duration::ZERO).unwrap();
        let agent = AgentId(uuid::Uuid::from_bytes(seen[0].from.0));
        while server.channels(1000)[0].depth > 0 {
            std::thread::yield_now(); // until it has read
        }
        server.revoke(agent, Right::Send, "b").unwrap();
        let (woken, end) = reading.join().unwrap();
        assert_eq!(woken, Ok(tag(7)));
        assert_eq!(end, Err(RecvError::Closed(Status::DENIED)));
        while sender.ended().is_none() {
            std::thread::yield_now(); // until the sender has heard, too
        }
        let refused = sender.send(tag(8), b"x", Duration::ZERO);
        assert_eq!(refused, Err(SendError::Closed(Status::DENIED)));
        server.restore(agent).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lane_that_drops_its_oldest_cant_have_is_refused_by_name() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    blocking(move || {
        let options = LaneOptions {
            overflow: Overflow::DropOldest,
            ..LaneOptions::with_slots(64)
        };
        let sender = Client::connect_to(&a).unwrap();
        let extended = LaneOptions {
            extension: Extension::Time,
            ..options
        };
        let refused = sender.open_lane("b", extended).unwrap_err();
        assert!(
            matches!(refused, LaneError::DropOldest("extension")),
            "{refused}"
        );
        let receiver = Client::connect_to(&b).unwrap();
        let offers = receiver.accept_lanes().unwrap();
        let opening = std::thread::spawn(move || sender.open_lane("b", options));
        let manual = ReceiverOptions {
            credit: Credit::Manual,
            ..ReceiverOptions::default()
        };
        let offer = offers.next(WATCHDOG).unwrap().unwrap();
        let refused = offer.accept_with(manual).unwrap_err();
        assert!(
            matches!(refused, LaneError::DropOldest("credits")),
            "{refused}"
        );
        assert_eq!(
            opening.join().unwrap().unwrap_err().to_string(),
            "failed: the lane was not taken"
        );
        drop((offers, receiver));
        let (mut sender, mut receiver) = lane_with(&a, &b, "b", options);
        assert!(sender.ring_mut().is_none() && receiver.ring_mut().is_none());
        let bulk = sender.into_bulk(SegmentOptions::default(), BulkOptions::default());
        assert!(matches!(bulk, Err(IntoBulkError::DropOldest)));
        assert!(matches!(
            receiver.into_bulk(1 << 20),
            Err(IntoBulkError::DropOldest)
        ));
    })
    .await;
}

/// A payload whose bytes say which one it is.
fn sealed(number: u32, bytes: u64) -> SealedPayload {
    SealedPayload::build(bytes, |memory| memory.fill(number as u8)).unwrap()
}

fn is_in_place(body: &Body, number: u32, bytes: usize) -> bool {
    match body {
        Body::InPlace(payload) => {
            payload.len() == bytes && payload.iter().all(|byte| *byte == number as u8)
        }
        Body::Copied => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_payloads_are_read_in_place_and_in_order_over_a_lane() {
    const MANY: u32 = 3 * SEALED_HELD_MAX as u32;
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let server = bus.server.clone();
    blocking(move || {
        let (mut sender, mut receiver) = lane(&a, &b, "b", 64);
        let reading = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            let mut kept = None;
            for number in 0..MANY {
                let (got, body) = receiver.recv_in_place(&mut buffer, WATCHDOG).unwrap();
                assert_eq!(got, tag(number));
                if number % 3 == 0 {
                    assert!(matches!(body, Body::Copied) && buffer == b"small");
                } else {
                    assert!(
                        is_in_place(&body, number, 4096 + number as usize),
                        "{number}"
                    );
                    kept = Some((number, body));
                }
            }
            let end = receiver.recv_in_place(&mut buffer, WATCHDOG).unwrap_err();
            drop(receiver);
            // The payload is the receiver's for as long as it likes.
            let (number, body) = kept.unwrap();
            assert!(is_in_place(&body, number, 4096 + number as usize));
            end
        });
        for number in 0..MANY {
            if number % 3 == 0 {
                sender.send(tag(number), b"small", WATCHDOG).unwrap();
            } else {
                let payload = sealed(number, 4096 + u64::from(number));
                sender.send_sealed(tag(number), &payload, WATCHDOG).unwrap();
            }
        }
        let shared = server.channels(1000)[0].bulk_bytes;
        assert!(
            shared <= SEALED_HELD_MAX as u64 * 8192,
            "let go of when read: {shared}"
        );
        let agent = AgentId(uuid::Uuid::from_bytes(server.channels(1000)[0].from.0));
        while server.channels(1000)[0].depth > 0 {
            std::thread::yield_now(); // until it has read
        }
        server.revoke(agent, Right::Send, "b").unwrap();
        let end = reading.join().unwrap();
        assert!(
            matches!(end, InPlaceError::Ring(RecvError::Closed(Status::DENIED))),
            "{end}"
        );
        while sender.ended().is_none() {
            std::thread::yield_now(); // until the sender has heard, too
        }
        let refused = sender
            .send_sealed(tag(0), &sealed(0, 1), WATCHDOG)
            .unwrap_err();
        let denied = SendError::Closed(Status::DENIED);
        assert!(
            matches!(refused, SealedSendError::Ring(why) if why == denied),
            "{refused}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_does_not_read_in_place_skips_sealed_payloads_and_is_told() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    blocking(move || {
        let (mut sender, mut receiver) = lane(&a, &b, "b", 64);
        sender.send_sealed(tag(0), &sealed(0, 5), WATCHDOG).unwrap();
        sender.send(tag(1), b"next", WATCHDOG).unwrap();
        let mut buffer = Vec::new();
        let skipped = receiver.recv(&mut buffer, WATCHDOG).unwrap_err();
        assert_eq!(skipped, RecvError::Reference { slot: 0 });
        assert_eq!(receiver.recv(&mut buffer, WATCHDOG), Ok(tag(1)));
        // It says how far it is when there is nothing more.
        assert_eq!(receiver.try_recv(&mut buffer), Ok(None));
        // Nobody reads: after so many the sender waits, and no more are under way.
        for number in 0..SEALED_HELD_MAX as u32 {
            sender
                .send_sealed(tag(number), &sealed(0, 5), WATCHDOG)
                .unwrap();
        }
        let full = sender
            .send_sealed(tag(0), &sealed(0, 5), Duration::ZERO)
            .unwrap_err();
        assert!(
            matches!(full, SealedSendError::Ring(SendError::Full)),
            "{full}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_payloads_reach_every_reader_of_a_log_and_lossy_ones_are_told_what_is_gone() {
    const MANY: u32 = 2 * SEALED_HELD_MAX as u32;
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    let (_c, c) = bus.attach("c");
    blocking(move || {
        let mut log = Client::connect_to(&a)
            .unwrap()
            .publish_log("big", LogOptions::default())
            .unwrap();
        let follow = |path: &Path, delivery| {
            let client = Client::connect_to(path).unwrap();
            let options = FollowOptions {
                delivery,
                start: Start::Head,
                ..FollowOptions::default()
            };
            let mut readers = client.follow_log("big", options).unwrap();
            readers.next(WATCHDOG).unwrap().unwrap()
        };
        let mut all = follow(&b, Delivery::Reliable);
        let mut some = follow(&c, Delivery::Lossy);
        while log.readers().count() < 2 {
            log.await_readers(WATCHDOG);
        }
        let reading = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            for number in 0..MANY {
                let (message, body) = all.recv_in_place(&mut buffer, WATCHDOG).unwrap();
                assert_eq!((message.tag, message.lost), (tag(number), 0));
                assert!(is_in_place(&body, number, 10_000), "{number}");
            }
        });
        for number in 0..MANY {
            log.send_sealed(tag(number), &sealed(number, 10_000), WATCHDOG)
                .unwrap();
        }
        reading.join().unwrap();
        // The lossy reader begins now: the latest are there, of the others it hears that they are gone.
        let (mut gone, mut there, mut buffer) = (0, 0, Vec::new());
        loop {
            match some.recv_in_place(&mut buffer, Duration::ZERO) {
                Ok((message, body)) => {
                    assert!(is_in_place(&body, message.tag.correlation, 10_000));
                    there += 1;
                }
                Err(InPlaceError::Gone { .. }) => gone += 1,
                Err(InPlaceError::Ring(LogRecvError::TimedOut)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(there + gone, MANY, "each is there or told");
        // One more than are held: what was let go of while its reader asked for it had been passed on before.
        assert!((1..=SEALED_HELD_MAX as u32 + 1).contains(&there), "{there}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_waits_for_room_in_an_event_loop_by_its_own_bell() {
    let bus = Fixture::new();
    let (_a, a) = bus.attach("a");
    let (_b, b) = bus.attach("b");
    blocking(move || {
        let (mut sender, mut receiver) = lane(&a, &b, "b", 64);
        let mut sent = 0;
        while sender.try_send(tag(sent), b"x").is_ok() {
            sent += 1;
        }
        sender.make_bell().unwrap();
        let mut waiter = Waiter::new(Waiting::Blocking);
        waiter.prefer(Some(Park::Bell));
        let token = waiter
            .add(sender, Class::Normal)
            .map_err(|(why, _)| why)
            .unwrap();
        let reading = std::thread::spawn(move || {
            let mut buffer = Vec::new();
            for number in 0..=sent {
                assert_eq!(receiver.recv(&mut buffer, WATCHDOG), Ok(tag(number)));
            }
        });
        assert_eq!(
            waiter.next(Some(WATCHDOG)).unwrap(),
            Some(Event::Ready(token))
        );
        let sender = waiter.get_mut(token).unwrap();
        sender.try_send(tag(sent), b"there is room").unwrap();
        reading.join().unwrap();
        let options = LaneOptions {
            overflow: Overflow::DropOldest,
            ..LaneOptions::with_slots(64)
        };
        let (mut never, _receiver) = lane_with(&a, &b, "b", options);
        assert!(matches!(never.make_bell(), Err(BellRefused::NeverWaits)));
    })
    .await;
}
