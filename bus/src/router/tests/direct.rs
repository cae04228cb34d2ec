//! The direct path, as far as the router has to do with it.

use super::*;
use crate::message::Direct;

const A: u64 = 100 << 10 | 1;
const B: u64 = 101 << 10 | 2;

fn direct(said: Direct<'_>) -> Control<'_> {
    Control::Direct(said)
}

impl Bus {
    /// Two agents on the path, each with a connection that holds it.
    fn pair(&mut self) -> [ConnId; 2] {
        let conns = [self.join(1, "asker"), self.join(2, "server")];
        for (n, (conn, address)) in conns.into_iter().zip([A, B]).enumerate() {
            self.router.set_direct(id(n as u8 + 1), address);
            self.say(conn, 1, direct(Direct::Own { held: true }));
            assert_eq!(ok_result(&self.take(conn)), address.to_le_bytes());
        }
        conns
    }

    fn answered(&mut self, conn: ConnId) -> (u64, u64, Status) {
        let frame = self.take(conn);
        let Ok(Control::Direct(Direct::Answered {
            from,
            correlation,
            response,
        })) = Control::parse(&frame.payload)
        else {
            panic!("no answer: {frame:?}")
        };
        let status = Response::parse(response).expect("a response").status;
        (from, correlation, status)
    }
}

#[test]
fn an_address_is_told_to_whoever_may_ask_and_a_name_to_agents_of_the_same_user() {
    let mut bus = Bus::new(tight());
    let [asker, server] = bus.pair();
    bus.say(asker, 2, direct(Direct::Peer { id: id(2) }));
    assert_eq!(ok_result(&bus.take(asker)), B.to_le_bytes());
    bus.say(server, 2, direct(Direct::Whose { address: A }));
    assert_eq!(ok_result(&bus.take(server)), id(1).0);

    bus.peer(3, 1000, "shy", Arc::new(Only("nobody")));
    let shy = bus.connect(3);
    bus.say(shy, 2, direct(Direct::Own { held: true }));
    assert_eq!(
        status(&bus.take(shy)),
        Status::UNSUPPORTED,
        "no path of its own"
    );
    bus.say(shy, 3, direct(Direct::Peer { id: id(2) }));
    assert_eq!(status(&bus.take(shy)), Status::DENIED);
    bus.say(asker, 3, direct(Direct::Peer { id: id(3) }));
    assert_eq!(status(&bus.take(asker)), Status::UNSUPPORTED);

    bus.peer(4, 1001, "stranger", Arc::new(SameUser));
    let stranger = bus.connect(4);
    for said in [Direct::Peer { id: id(2) }, Direct::Whose { address: B }] {
        bus.say(stranger, 4, direct(said));
        assert_eq!(status(&bus.take(stranger)), Status::NO_SUCH_AGENT);
    }
    bus.say(asker, 5, direct(Direct::Gone { address: B }));
    assert_eq!(status(&bus.take(asker)), Status::MALFORMED);
}

#[test]
fn an_answer_that_the_path_did_not_take_reaches_whoever_asked_and_may_still_ask() {
    let mut bus = Bus::new(Limits::default());
    let [asker, server] = bus.pair();
    let answer = |response: &Response<'_>| response.encode().expect("short");
    let good = answer(&Response::ok(&[7; 10_000]));
    let forged = answer(&Response {
        status: Status::PEER_GONE,
        error: "",
        result: &[],
    });
    for (response, expected) in [
        (&good[..], Status::OK),
        (&forged, Status::MALFORMED),
        (b"", Status::MALFORMED),
    ] {
        let said = Direct::Answer {
            to: A,
            correlation: 9,
            response,
        };
        bus.say(server, 0, direct(said));
        assert_eq!(bus.answered(asker), (B, 9, expected));
    }
    let said = Direct::Answer {
        to: A,
        correlation: 10,
        response: &good,
    };
    let less = Arc::new(Only("nobody"));
    bus.router.set_access(id(1), less, bus.now, &mut bus.fx);
    bus.say(server, 0, direct(said));
    assert_eq!(bus.answered(asker), (B, 10, Status::DENIED));
    assert!(
        bus.router.pull(server, &mut bus.fx).is_none(),
        "no answer is due"
    );
    // Nobody is there any more.
    bus.router.disconnect(asker, bus.now, &mut bus.fx);
    bus.say(server, 0, direct(said));
    assert!(bus.fx.close.is_empty());
}

#[test]
fn the_end_of_a_process_on_the_path_is_told_to_the_others_on_it() {
    let mut bus = Bus::new(tight());
    let [asker, server] = bus.pair();
    let other = bus.connect(2);
    bus.router.disconnect(other, bus.now, &mut bus.fx);
    assert!(
        bus.router.pull(asker, &mut bus.fx).is_none(),
        "it did not hold it"
    );
    bus.router.disconnect(server, bus.now, &mut bus.fx);
    let frame = bus.take(asker);
    let gone = direct(Direct::Gone { address: B });
    assert_eq!(Control::parse(&frame.payload), Ok(gone));
    bus.say(asker, 2, direct(Direct::Peer { id: id(2) }));
    assert_eq!(status(&bus.take(asker)), Status::UNSUPPORTED);
}
