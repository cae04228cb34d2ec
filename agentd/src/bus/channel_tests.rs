//! Lanes and logs over real sockets: streams, rights that are taken back, dead letters, descriptors that lie.

mod lasting;
mod sealed;

use std::os::fd::{AsFd, OwnedFd};
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
use agentd_bus::frame::{Frame, PeerId, kind};
use agentd_bus::lane::ring::{RecvError, SendError, SettleError};
use agentd_bus::lane::{Credit, Extension, ReceiverOptions};
use agentd_bus::log::{Delivery, RecvError as LogRecvError, Start};
use agentd_bus::message::{Control, HELLO_SHARED_MEMORY, Shape, Status};
use agentd_bus::router::ChannelKind;
use agentd_bus::shm::memfd::{self, PageKind};
use agentd_bus::wait::{Event, Park, Source as _, Waiter};
use agentd_sandbox::IpcRules;

use super::fixture::{Fixture, MortalBus, Raw, WATCHDOG, blocking, open_rules, opening, tag, take};

/// A deadline that only a failing test sees.
fn soon() -> Option<Instant> {
    Instant::now().checked_add(WATCHDOG)
}

/// A lane between two agents that are on the bus.
fn lane(from: &Path, to: &Path, name: &'static str, slots: usize) -> (LaneSender, LaneReceiver) {
    lane_with(from, to, name, LaneOptions::with_slots(slots))
}

fn lane_with(
    from: &Path,
    to: &Path,
    name: &'static str,
    options: LaneOptions,
) -> (LaneSender, LaneReceiver) {
    let (sender, receiver) = (
        Client::connect_to(from).unwrap(),
        Client::connect_to(to).unwrap(),
    );
    let offers = receiver.accept_lanes().unwrap();
    let opening = opening(&sender, name, options);
    let incoming = take(&offers);
    (opening.join().unwrap().unwrap(), incoming)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_reaches_its_readers_and_is_seen_by_the_daemon() {
    const MESSAGES: u32 = 5_000;
    let (bus, [a, b, c]) = Fixture::of(["a", "b", "c"]);
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
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
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
        let closed = server.revoke(id, Right::Send, "b", "uid 0").unwrap();
        assert_eq!((closed.lanes, closed.logs, closed.requests), (1, 0, 0));
        assert_eq!(sending.join().unwrap(), SendError::Closed(Status::DENIED));
        assert_eq!(receiving.join().unwrap(), RecvError::Closed(Status::DENIED));
        assert_eq!(server.revoked(id), [(Right::Send, "b".to_owned())]);

        let client = Client::connect_to(&a).unwrap();
        let refused = client.open_lane("b", LaneOptions::default()).unwrap_err();
        assert!(refused.to_string().starts_with("denied"), "{refused}");
        assert!(!refused.is_socket_only());
        // No policy lifts it, what it did not name stays, and it can be given back.
        let runtime = tokio::runtime::Handle::current();
        let rules = runtime
            .block_on(server.set_rules(id, open_rules()))
            .unwrap();
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
    let unknown = bus.server.revoke(AgentId::new(), Right::Send, "#", "uid 0");
    assert_eq!(unknown.unwrap_err().status, Status::NO_SUCH_AGENT);
    let mistyped = bus.server.revoke(id, Right::Send, "a..b", "uid 0");
    assert_eq!(mistyped.unwrap_err().status, Status::MALFORMED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_topic_ends_the_log_its_readers_and_subscriptions() {
    let (bus, [a]) = Fixture::of(["a"]);
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
        let closed = server.revoke(id, Right::Subscribe, "t.#", "uid 0").unwrap();
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
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
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
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
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
async fn a_descriptor_is_what_its_message_says_or_goes_no_further() {
    let (_bus, [a]) = Fixture::of(["a"]);
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
            let frame = Frame::new(kind::COMMAND, PeerId::BUS, 5, control.encode().unwrap());
            let raw = Raw::greeted(&a);
            raw.say_with(frame, fd.as_fd());
            let words = raw.last_words();
            assert!(words.contains(why), "{control:?}: {words}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_of_wide_slots_is_what_was_offered_or_refused() {
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
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
        let raw = Raw::greeted_with(&a, HELLO_SHARED_MEMORY);
        raw.say_with(Frame::new(kind::COMMAND, PeerId::BUS, 5, offer), fd.as_fd());
        let offer = offers.next(WATCHDOG).unwrap().unwrap();
        let refused = offer.accept().unwrap_err().to_string();
        assert!(refused.contains("slots of 128 bytes"), "{refused}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_drops_its_oldest_never_waits_and_says_what_was_lost() {
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
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
        server.revoke(agent, Right::Send, "b", "uid 0").unwrap();
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
    let (_bus, [a, b]) = Fixture::of(["a", "b"]);
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
        let opening = opening(&sender, "b", options);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_waits_for_room_in_an_event_loop_by_its_own_bell() {
    let (_bus, [a, b]) = Fixture::of(["a", "b"]);
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
