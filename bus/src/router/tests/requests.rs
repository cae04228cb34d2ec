//! Requests and their answers: whose they are, when they end, how many there may be.

use super::*;

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
