//! Lanes and logs that outlive their bus or an end of theirs.

use super::*;

#[test]
fn a_lasting_lane_finds_the_successor_of_its_bus() {
    let mut bus = MortalBus::of(&["a", "b"]);
    let to = bus.client("b");
    let receiving = std::thread::spawn(move || {
        let offers = to.accept_lanes().unwrap();
        let (mut numbers, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let mut lane = take(&offers);
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
    let client = bus.client("a");
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
    bus.die();
    while lane.now().ended().is_none() {
        std::thread::yield_now(); // until this side, too, has heard that its bus has gone
    }
    bus.succeed();
    for number in 10..20 {
        lane.send(tag(number), b"after", WATCHDOG).unwrap();
    }
    drop(lane);
    // Nothing lost, nothing twice, in order.
    assert_eq!(receiving.join().unwrap(), (0..20).collect::<Vec<_>>());
    drop((peers, client));
}

/// The receiver stops in the middle of the old lane, so the next one begins with the rest.
#[test]
fn a_lasting_lane_repeats_what_its_receiver_left_unread() {
    let mut bus = MortalBus::of(&["a", "b"]);
    let to = bus.client("b");
    let offers = to.accept_lanes().unwrap();
    let from = bus.client("a");
    let opening =
        std::thread::spawn(move || from.open_lasting_lane("b", LaneOptions::with_slots(64)));
    let mut old = take(&offers);
    let mut lane = opening.join().unwrap().unwrap();
    for number in 0..10 {
        lane.send(tag(number), &number.to_le_bytes(), WATCHDOG)
            .unwrap();
    }
    let mut buffer = Vec::new();
    for number in 0..4 {
        assert_eq!(old.recv(&mut buffer, WATCHDOG), Ok(tag(number)));
    }
    bus.die();
    while lane.now().ended().is_none() {
        std::thread::yield_now(); // until this side, too, has heard that its bus has gone
    }
    bus.succeed();
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
    let mut next = take(&offers);
    for number in 5..100_u32 {
        assert_eq!(next.recv(&mut buffer, WATCHDOG), Ok(tag(number)));
        assert_eq!(buffer, number.to_le_bytes());
    }
    assert_eq!(
        next.recv(&mut buffer, Duration::ZERO),
        Err(RecvError::TimedOut)
    );
    sending.join().unwrap();
    drop((next, to, offers));
}

/// Readers of a log stop at different places when agentd dies; each has every message once.
#[test]
fn a_lasting_log_is_read_once_by_each_of_its_readers_whatever_they_had_read() {
    let mut bus = MortalBus::of(&["a", "b", "c"]);
    let options = FollowOptions {
        delivery: Delivery::Reliable,
        ..FollowOptions::default()
    };
    let follow = |name: &str| {
        let client = bus.client(name);
        client.follow_log("ticks", options).unwrap()
    };
    let (mut quick, mut slow) = (follow("b"), follow("c"));
    let from = bus.client("a");
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
    bus.die();
    while log.now().ended().is_none() {
        std::thread::yield_now(); // until this side, too, has heard that its bus has gone
    }
    bus.succeed();
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
    drop((from, quick, slow, of_quick));
}

#[test]
fn a_lasting_log_gives_up_a_reader_that_does_not_come_back_and_tells_one_that_comes_late() {
    let mut bus = MortalBus::of(&["a", "b"]);
    let options = FollowOptions {
        delivery: Delivery::Reliable,
        ..FollowOptions::default()
    };
    let client = bus.client("b");
    let mut logs = client.follow_log("ticks", options).unwrap();
    let from = bus.client("a");
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
    bus.die();
    while log.now().ended().is_none() {
        std::thread::yield_now(); // until this side, too, has heard that its bus has gone
    }
    bus.succeed();
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
    drop((from, client, reader));
}
