//! Peers that break the protocol, forge, never read or fall silent.

use super::*;

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
