//! Sealed payloads: read in place, in order with what is copied, skipped by who does not read in place.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sealed_payloads_go_in_order_with_what_an_arena_copies() {
    const EACH: u32 = 20;
    let (_bus, [a, b]) = Fixture::of(["a", "b"]);
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
    let (bus, [a, b]) = Fixture::of(["a", "b"]);
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
        server.revoke(agent, Right::Send, "b", "uid 0").unwrap();
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
    let (_bus, [a, b]) = Fixture::of(["a", "b"]);
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
    let (_bus, [a, b, c]) = Fixture::of(["a", "b", "c"]);
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
