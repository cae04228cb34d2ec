//! The cases, and the list of transports that they run against.

use super::rigs::*;
use super::*;

/// `len` bytes that repeat only after a prime number of them.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

fn accepts_and_says_from_where(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    let (_peer, _) = bed.connected();
    let (_other, _) = bed.connected();
    assert_eq!(bed.transport.connections(), 2);
    let origins = bed.log.origins.clone();
    assert!(
        origins.iter().all(|origin| bed.rig.origin_is(*origin)),
        "{origins:?}"
    );
}

fn a_long_stream_comes_back_whole_and_in_order(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    bed.log.echo = true;
    let (mut peer, _) = bed.connected();
    let bytes = pattern(1 << 20);
    let (mut sent, mut back) = (0, Vec::new());
    let watchdog = Instant::now() + Duration::from_secs(60);
    while back.len() < bytes.len() {
        assert!(
            Instant::now() < watchdog,
            "hangs at {sent} sent, {} back",
            back.len()
        );
        sent += peer.send(&bytes[sent..(sent + 40_000).min(bytes.len())]);
        back.extend(peer.receive().expect("open"));
        let wait = Some(Duration::from_millis(1));
        bed.transport.turn(wait, &mut bed.log).unwrap();
    }
    assert_eq!(back, bytes);
    let counters = bed.transport.counters();
    assert_eq!(
        (counters.received_bytes, counters.sent_bytes),
        (1 << 20, 1 << 20)
    );
}

fn one_byte_at_a_time_is_a_stream_too(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    let (mut peer, conn) = bed.connected();
    let mut sent = 0;
    bed.until(
        |log| {
            if log.of(conn).len() == sent && sent < 50 {
                sent += peer.send(&[sent as u8]);
            }
        },
        |log| log.of(conn).len() == 50,
    );
    assert_eq!(bed.log.of(conn), (0..50).collect::<Vec<u8>>());
}

fn what_was_sent_before_the_end_arrives_before_the_end(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    let (mut peer, conn) = bed.connected();
    let bytes = pattern(10_000);
    assert_eq!(peer.send(&bytes), bytes.len());
    drop(peer);
    bed.until(|_| (), |log| !log.closed.is_empty());
    assert_eq!(bed.log.finished, [conn]);
    assert_eq!(bed.log.of(conn), bytes);
    assert_eq!(bed.transport.connections(), 0);
}

fn a_peer_that_says_nothing_more_still_gets_its_answers(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    bed.log.keep_finished = true;
    let (mut peer, conn) = bed.connected();
    peer.send(b"questions");
    peer.finish();
    bed.until(|_| (), |log| log.finished == [conn]);
    assert_eq!(bed.log.of(conn), b"questions");
    // However long the answers take, and however often it is told to read.
    bed.command(Command::Resume { conn });
    bed.settle();
    assert_eq!(bed.log.closed, []);
    let answers = pattern(600_000);
    let mut back = Vec::new();
    for part in answers.chunks(70_000) {
        let bytes = part.to_vec();
        bed.command(Command::Send { conn, bytes });
    }
    bed.until(
        |_| back.extend(peer.receive().expect("open")),
        |log| log.sent.contains(&(conn, 0)),
    );
    bed.command(Command::Drain { conn });
    let watchdog = Instant::now() + Duration::from_secs(60);
    while let Some(more) = peer.receive() {
        assert!(Instant::now() < watchdog, "hangs");
        back.extend(more);
        bed.settle();
    }
    assert_eq!(back, answers);
    assert_eq!(bed.log.closed, [(conn, Ended::Asked)]);
}

fn a_peer_that_finished_and_is_gone_is_closed_when_it_is_answered(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    bed.log.keep_finished = true;
    let (peer, conn) = bed.connected();
    drop(peer);
    bed.until(|_| (), |log| log.finished == [conn]);
    // Epoll tells of its going on AF_UNIX; otherwise it is learned by sending.
    let bytes = pattern(100);
    for _ in 0..3 {
        let bytes = bytes.clone();
        bed.command(Command::Send { conn, bytes });
        bed.settle();
    }
    bed.until(|_| (), |log| !log.closed.is_empty());
    assert_eq!(bed.transport.connections(), 0);
}

fn a_paused_connection_is_not_read_and_loses_nothing(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    bed.log.pause_on_accept = true;
    let (mut peer, conn) = bed.connected();
    bed.settle();
    let bytes = pattern(400_000);
    let mut sent = 0;
    for _ in 0..50 {
        sent += peer.send(&bytes[sent..]);
        bed.transport
            .turn(Some(Duration::ZERO), &mut bed.log)
            .unwrap();
    }
    assert_eq!(bed.log.of(conn).len(), 0);
    bed.command(Command::Resume { conn });
    bed.until(
        |_| sent += peer.send(&bytes[sent..]),
        |log| log.of(conn).len() == bytes.len(),
    );
    assert_eq!(bed.log.of(conn), bytes);
    // And once more, from the middle of a stream.
    bed.command(Command::Pause { conn });
    bed.settle();
    let before = bed.log.of(conn).len();
    peer.send(b"more");
    bed.settle();
    assert_eq!(bed.log.of(conn).len(), before);
    bed.command(Command::Resume { conn });
    bed.until(|_| (), |log| log.of(conn).ends_with(b"more"));
}

fn the_end_of_a_paused_peer_is_told_after_its_bytes(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    bed.log.pause_on_accept = true;
    let (mut peer, conn) = bed.connected();
    bed.settle();
    peer.send(b"last words");
    drop(peer);
    bed.settle();
    assert_eq!(bed.log.finished, []);
    bed.command(Command::Resume { conn });
    bed.until(|_| (), |log| !log.closed.is_empty());
    assert_eq!(bed.log.of(conn), b"last words");
}

fn a_drain_sends_everything_and_then_closes(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    let (mut peer, conn) = bed.connected();
    let bytes = pattern(600_000);
    for part in bytes.chunks(70_000) {
        let bytes = part.to_vec();
        bed.command(Command::Send { conn, bytes });
    }
    bed.command(Command::Drain { conn });
    let bytes_after = b"too late".to_vec();
    bed.command(Command::Send {
        conn,
        bytes: bytes_after,
    });
    let (mut back, mut ended) = (Vec::new(), false);
    bed.until(
        |_| match peer.receive() {
            Some(more) => back.extend(more),
            None => ended = true,
        },
        |log| !log.closed.is_empty(),
    );
    while !ended {
        match peer.receive() {
            Some(more) => back.extend(more),
            None => ended = true,
        }
    }
    assert_eq!(back, bytes);
    assert_eq!(bed.log.closed, [(conn, Ended::Asked)]);
}

fn a_close_is_at_once_and_told_once(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    let (mut peer, conn) = bed.connected();
    let bytes = pattern(1 << 20);
    bed.command(Command::Send { conn, bytes });
    bed.command(Command::Close { conn });
    bed.command(Command::Close { conn });
    bed.until(|_| (), |log| !log.closed.is_empty());
    assert_eq!(bed.log.closed, [(conn, Ended::Asked)]);
    let watchdog = Instant::now() + Duration::from_secs(60);
    while peer.receive().is_some() {
        assert!(Instant::now() < watchdog, "hangs");
        bed.settle();
    }
}

fn a_key_is_never_good_for_the_next_connection(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    let mut old = Vec::new();
    for round in 0..5 {
        let (peer, conn) = bed.connected();
        for stale in &old {
            let stale: ConnKey = *stale;
            let bytes = b"not for you".to_vec();
            bed.command(Command::Send { conn: stale, bytes });
            bed.command(Command::Pause { conn: stale });
            bed.command(Command::Close { conn: stale });
        }
        let mut peer = peer;
        peer.send(&[round]);
        bed.until(|_| (), |log| log.of(conn) == [round]);
        assert_eq!(peer.receive(), Some(vec![]));
        drop(peer);
        bed.until(|_| (), |log| log.closed.len() == old.len() + 1);
        old.push(conn);
    }
}

fn a_peer_that_takes_nothing_is_given_up(rig: &mut dyn Rig) {
    let limits = TransportLimits {
        stall: Duration::from_millis(100),
        ..TransportLimits::default()
    };
    let mut bed = Bed::new(rig, limits);
    let (_peer, conn) = bed.connected();
    // More than any socket buffer takes.
    for _ in 0..64 {
        let bytes = vec![7; 1 << 20];
        bed.command(Command::Send { conn, bytes });
    }
    bed.until(|_| (), |log| !log.closed.is_empty());
    assert_eq!(bed.log.closed, [(conn, Ended::Stalled { seconds: 0 })]);
}

fn at_the_limit_the_listener_pauses_until_one_ends(rig: &mut dyn Rig) {
    let limits = TransportLimits {
        connections: 2,
        ..TransportLimits::default()
    };
    let mut bed = Bed::new(rig, limits);
    let (first, _) = bed.connected();
    let (_second, _) = bed.connected();
    let _third = bed.rig.dial();
    bed.until(|_| (), |log| !log.listening.is_empty());
    assert_eq!(bed.log.listening, [Listening::Full { limit: 2 }]);
    assert_eq!(bed.log.accepted.len(), 2);
    drop(first);
    bed.until(|_| (), |log| log.accepted.len() == 3);
    assert!(bed.log.listening.contains(&Listening::Resumed));
}

fn a_waker_ends_a_turn_from_another_thread(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    let waker = bed.transport.waker();
    let waking = std::thread::spawn(move || {
        waker.wake();
        waker.wake();
    });
    let watchdog = Instant::now() + Duration::from_secs(60);
    while bed.log.woken == 0 {
        assert!(Instant::now() < watchdog, "hangs");
        bed.transport.turn(None, &mut bed.log).unwrap();
    }
    waking.join().unwrap();
    // And again: a waker is not used up.
    bed.settle();
    let before = bed.log.woken;
    bed.transport.waker().wake();
    bed.until(|_| (), |log| log.woken > before);
}

fn many_connections_do_not_mix(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    bed.log.echo = true;
    let mut peers: Vec<_> = (0..120).map(|_| bed.connected()).collect();
    for (at, (peer, _)) in peers.iter_mut().enumerate() {
        let bytes = vec![at as u8; at + 1];
        assert_eq!(peer.send(&bytes), bytes.len());
    }
    for (at, (peer, conn)) in peers.iter_mut().enumerate() {
        let mut back = Vec::new();
        let watchdog = Instant::now() + Duration::from_secs(60);
        while back.len() < at + 1 {
            assert!(Instant::now() < watchdog, "hangs at {at}");
            bed.transport
                .turn(Some(Duration::from_millis(1)), &mut bed.log)
                .unwrap();
            back.extend(peer.receive().expect("open"));
        }
        assert_eq!(back, vec![at as u8; at + 1]);
        assert_eq!(bed.log.of(*conn), back);
    }
}

fn a_flood_does_not_hold_up_a_light_sender(rig: &mut dyn Rig) {
    let mut bed = Bed::new(rig, TransportLimits::default());
    let (mut flood, flooding) = bed.connected();
    let (mut light, conn) = bed.connected();
    let bytes = pattern(1 << 20);
    let mut at_sending = None;
    bed.until(
        |log| {
            flood.send(&bytes);
            let before = log.of(flooding).len();
            if before > 100_000 && at_sending.is_none() {
                at_sending = Some(before);
                assert_eq!(light.send(b"me too"), 6);
            }
        },
        |log| log.of(conn) == b"me too",
    );
    let meanwhile = bed.log.of(flooding).len() - at_sending.unwrap();
    assert!(
        meanwhile <= 512 << 10,
        "{meanwhile} bytes of the flood went first"
    );
    let largest = bed.log.chunks.iter().map(|(_, len)| *len).max();
    assert!(largest <= Some(TransportLimits::default().read_budget));
}

fn random_commands_keep_every_promise(rig: &mut dyn Rig) {
    // A small generator of its own, so that a failure is repeated by its seed.
    for seed in 1..6u64 {
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut bed = Bed::new(rig, TransportLimits::default());
        let mut peers: Vec<Option<Box<dyn Peer>>> = Vec::new();
        for _ in 0..300 {
            match random(10) {
                0 | 1 if peers.len() < 12 => peers.push(Some(bed.rig.dial())),
                2 => {
                    if let Some(peer) = peers.get_mut(random(12) as usize) {
                        *peer = None;
                    }
                }
                3 | 4 => {
                    let len = 1 + random(5000) as usize;
                    if let Some(Some(peer)) = peers.get_mut(random(12) as usize) {
                        peer.send(&pattern(len));
                    }
                }
                5 => {
                    if let Some(Some(peer)) = peers.get_mut(random(12) as usize) {
                        match random(4) {
                            0 => peer.finish(),
                            _ => drop(peer.receive()),
                        }
                    }
                }
                other => {
                    let Some(&conn) = bed.log.accepted.get(random(12) as usize) else {
                        bed.settle();
                        continue;
                    };
                    let bytes = pattern(random(20_000) as usize);
                    bed.command(match (other, random(6)) {
                        (6 | 7, _) => Command::Send { conn, bytes },
                        (8, 0..4) => Command::Pause { conn },
                        (8, _) | (9, 0..4) => Command::Resume { conn },
                        (_, 4) => Command::Drain { conn },
                        _ => Command::Close { conn },
                    });
                }
            }
            bed.transport
                .turn(Some(Duration::ZERO), &mut bed.log)
                .unwrap();
        }
        // All far ends go: every connection is closed exactly once, which the log checks, and nothing stays.
        bed.log.keep_finished = false;
        peers.clear();
        for conn in bed.log.accepted.clone() {
            bed.command(Command::Resume { conn });
        }
        let transport = &mut bed.transport;
        let watchdog = Instant::now() + Duration::from_secs(60);
        while transport.connections() > 0 || bed.log.closed.len() < bed.log.accepted.len() {
            assert!(
                Instant::now() < watchdog,
                "seed {seed}: connections are left"
            );
            transport
                .turn(Some(Duration::from_millis(1)), &mut bed.log)
                .unwrap();
        }
    }
}

/// Every case against every transport: one test each.
macro_rules! conformance {
    ($($case:ident),* $(,)?) => {
        mod epoll_unix {
            $(#[test] fn $case() { super::$case(&mut super::EpollUnix::default()); })*
        }
        mod loopback {
            $(#[test] fn $case() { super::$case(&mut super::LoopbackRig::default()); })*
        }
        mod uring_unix {
            $(#[test] fn $case() { super::$case(&mut super::UringUnix::default()); })*
        }
        mod uring_tcp {
            $(#[test] fn $case() { super::$case(&mut super::UringTcp::default()); })*
        }
        mod epoll_tcp {
            $(#[test] fn $case() { super::$case(&mut super::EpollTcp::default()); })*
        }
    };
}

conformance!(
    accepts_and_says_from_where,
    a_long_stream_comes_back_whole_and_in_order,
    one_byte_at_a_time_is_a_stream_too,
    what_was_sent_before_the_end_arrives_before_the_end,
    a_peer_that_says_nothing_more_still_gets_its_answers,
    a_peer_that_finished_and_is_gone_is_closed_when_it_is_answered,
    a_paused_connection_is_not_read_and_loses_nothing,
    the_end_of_a_paused_peer_is_told_after_its_bytes,
    a_drain_sends_everything_and_then_closes,
    a_close_is_at_once_and_told_once,
    a_key_is_never_good_for_the_next_connection,
    a_peer_that_takes_nothing_is_given_up,
    at_the_limit_the_listener_pauses_until_one_ends,
    a_waker_ends_a_turn_from_another_thread,
    many_connections_do_not_mix,
    a_flood_does_not_hold_up_a_light_sender,
    random_commands_keep_every_promise,
);
