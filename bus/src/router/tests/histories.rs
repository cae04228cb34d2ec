//! Random histories of four peers: each request has one fate, queues stay within bounds, nothing is left.

use super::*;

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
                    let options = SubscribeOptions::default();
                    bus.say(conns[&who], 203, Control::Subscribe { delivery, options, pattern: "#" });
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
                let is_this = |c: ConnId| bus.router.conns.get(&c).is_some_and(|c| std::ptr::eq(c, conn));
                let taken = bus.router.pending.values()
                    .filter(|p| matches!(p.kind, PendingKind::Request))
                    .filter(|p| matches!(p.state, PendingState::With(c) if is_this(c)))
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
