//! Events that are sent without waiting for each, and who gets them: by hand.

use std::sync::Arc;

use super::tests::{Bus, Only, id, ok_result, tight};
use super::*;
use crate::frame::flags;
use crate::message::{Control, Delivery, SubscribeOptions};

/// The runs, and the refusals by correlation id, that wait for a connection.
fn acknowledged(bus: &mut Bus, conn: ConnId) -> (Vec<(u32, u32, u64)>, Vec<u32>) {
    let (mut runs, mut refused) = (Vec::new(), Vec::new());
    while let Some(out) = bus.router.pull(conn, &mut bus.fx) {
        if out.frame.kind() & kind::RESPONSE != 0 {
            refused.push(out.frame.correlation());
        } else if let Ok(Control::Acknowledged {
            first,
            count,
            receivers,
        }) = Control::parse(&out.frame.payload)
        {
            runs.push((first, count, receivers));
        }
    }
    (runs, refused)
}

#[test]
fn events_in_a_window_are_acknowledged_in_runs_and_refused_alone() {
    let mut bus = Bus::new(tight());
    let sender = bus.join(1, "a");
    let reader = bus.join(2, "b");
    bus.say(
        reader,
        2,
        Control::Subscribe {
            delivery: Delivery::Push,
            options: SubscribeOptions::default(),
            pattern: "news",
        },
    );
    let send = |bus: &mut Bus, correlation: u32, to: PeerId, topic: &str| {
        let event = Event {
            priority: 1,
            event_type: "",
            topic,
            data: b"x",
        };
        let mut frame = Frame::new(kind::EVENT, to, correlation, event.encode().unwrap());
        frame.header.flags = (1 | flags::ACK | flags::GATHER).into();
        bus.feed(sender, frame);
    };
    for correlation in 10..13 {
        send(&mut bus, correlation, PeerId::BUS, "news");
    }
    // The inbox takes four.
    for correlation in 13..19 {
        send(&mut bus, correlation, id(2), "");
    }
    send(&mut bus, 19, PeerId::BUS, "a..b");
    send(&mut bus, 20, PeerId::BUS, "nobody.listens");
    let (runs, refused) = acknowledged(&mut bus, sender);
    assert_eq!(runs, [(10, 7, 7), (20, 1, 0)]);
    assert_eq!(refused, [17, 18, 19]);
    assert_eq!(
        acknowledged(&mut bus, sender),
        (vec![], vec![]),
        "each once"
    );
    // What the reader gets looks as if it had been acknowledged alone.
    let read = bus.router.pull(reader, &mut bus.fx);
    let answer = bus.router.pull(reader, &mut bus.fx).unwrap().frame;
    drop(read);
    assert_eq!(answer.header.flags.get() & flags::GATHER, 0);
}

#[test]
fn an_audience_is_never_older_than_the_subscriptions() {
    let mut bus = Bus::new(Limits::default());
    let sender = bus.join(1, "a");
    let readers: Vec<ConnId> = (2..5).map(|n| bus.join(n, &format!("r{n}"))).collect();
    let subscribe = |bus: &mut Bus, conn: ConnId, delivery, pattern| {
        let options = SubscribeOptions::default();
        bus.say(
            conn,
            7,
            Control::Subscribe {
                delivery,
                options,
                pattern,
            },
        );
        ok_result(&bus.take(conn));
    };
    let publish = |bus: &mut Bus| {
        let event = Event {
            priority: 1,
            event_type: "",
            topic: "x.y",
            data: b"1",
        };
        let mut frame = Frame::new(kind::EVENT, PeerId::BUS, 9, event.encode().unwrap());
        frame.header.flags = (1 | flags::ACK).into();
        bus.feed(sender, frame);
        let answer = bus.take(sender);
        u32::from_le_bytes(ok_result(&answer).try_into().unwrap())
    };
    assert_eq!(publish(&mut bus), 0);
    subscribe(&mut bus, readers[0], Delivery::Push, "x.*");
    assert_eq!(publish(&mut bus), 1);
    subscribe(&mut bus, readers[1], Delivery::Inbox, "#");
    subscribe(&mut bus, readers[1], Delivery::Push, "#");
    assert_eq!(publish(&mut bus), 3);
    // A connection that goes, a pattern that is given up, a right that is taken back, an agent that ends.
    let second = bus.connect(4);
    subscribe(&mut bus, second, Delivery::Push, "x.y");
    assert_eq!(publish(&mut bus), 4);
    bus.router.disconnect(second, bus.now, &mut bus.fx);
    assert_eq!(publish(&mut bus), 3);
    let (delivery, pattern) = (Delivery::Inbox, "#");
    bus.say(readers[1], 8, Control::Unsubscribe { delivery, pattern });
    assert_eq!(publish(&mut bus), 2);
    bus.router
        .set_access(id(2), Arc::new(Only("nothing")), bus.now, &mut bus.fx);
    assert_eq!(publish(&mut bus), 1);
    bus.router.detach(id(3), bus.now, &mut bus.fx);
    assert_eq!(publish(&mut bus), 0);
}
