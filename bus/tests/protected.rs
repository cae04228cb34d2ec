//! Clients that share keys, over a bus that can't be trusted: what they promise each other holds whatever it does.

#![cfg(not(loom))]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentd_bus::client::{Client, ClientError, Received};
use agentd_bus::frame::{Frame, flags, kind};
use agentd_bus::message::{Event, Request, Status};
use agentd_bus::protect::{Demand, Key, KeyId, ProtectError, Protection, Scheme, Scope};

use support::{Bus, WATCHDOG};

const SCHEMES: [Scheme; 3] = [Scheme::HmacSha256, Scheme::Ed25519, Scheme::Aes256Gcm];

fn secret(seed: u8) -> [u8; 32] {
    std::array::from_fn(|at| seed.wrapping_add(at as u8))
}

/// Two agents' protections that believe each other.
fn pair(scheme: Scheme) -> (Protection, Protection) {
    let demand = if scheme.seals() {
        Demand::Sealed
    } else {
        Demand::Signed
    };
    let (a, b) = (Protection::new(demand), Protection::new(demand));
    if scheme == Scheme::Ed25519 {
        for (n, (mine, other)) in [(&a, &b), (&b, &a)].into_iter().enumerate() {
            let id = KeyId(n as u32);
            let key = Key::from_secret(scheme, id, &secret(n as u8)).unwrap();
            other
                .accept(Key::from_public(id, key.public().unwrap()))
                .unwrap();
            mine.send_with(Scope::Everyone, key).unwrap();
        }
    } else {
        let key = Key::from_secret(scheme, KeyId(7), &secret(7)).unwrap();
        a.send_with(Scope::Agent("bob".into()), key.clone())
            .unwrap();
        a.send_with(Scope::Topics("build.#".into()), key.clone())
            .unwrap();
        b.accept(key).unwrap();
    }
    (a, b)
}

fn data_of(frame: &Frame) -> Vec<u8> {
    Event::parse(&frame.payload).unwrap().data.to_vec()
}

/// Alice's and Bob's clients on one bus.
fn clients(scheme: Scheme) -> (Bus, Client, Client) {
    let bus = Bus::new();
    let (alice, bob) = (bus.agent(1, "alice"), bus.agent(2, "bob"));
    let (a, b) = pair(scheme);
    let alice = Client::connect_to(&alice).unwrap().with_protection(a);
    let bob = Client::connect_to(&bob).unwrap().with_protection(b);
    (bus, alice, bob)
}

#[test]
fn requests_messages_and_topics_are_protected_from_end_to_end() {
    for scheme in SCHEMES {
        let (bus, alice, bob) = clients(scheme);
        let topic = bob.subscribe("build.*").unwrap();
        bob.follow("build.#").unwrap();
        alice
            .publish("build.done", "ok", b"published secret")
            .unwrap();
        alice.send("bob", "note", b"sent secret").unwrap();
        let Received::Item(frame) = topic.next(WATCHDOG) else {
            panic!("{scheme}: the event comes")
        };
        assert_eq!(data_of(&frame), b"published secret");
        let batch = bob.inbox(10, WATCHDOG).unwrap();
        let got: Vec<_> = batch
            .messages
            .iter()
            .map(|(_, frame)| data_of(frame))
            .collect();
        assert_eq!(got, [b"published secret".to_vec(), b"sent secret".to_vec()]);

        let requests = bob.serve(4).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let incoming = requests.next(WATCHDOG).unwrap().unwrap();
                assert_eq!(incoming.params, b"asked secret");
                assert_eq!(incoming.verified.unwrap().scheme, scheme);
                incoming.respond(Ok(b"answered secret")).unwrap();
                let incoming = requests.next(WATCHDOG).unwrap().unwrap();
                incoming.respond(Err("failed secret")).unwrap();
            });
            let ask = || alice.request("bob", "fix", b"asked secret", WATCHDOG);
            assert_eq!(ask().unwrap().result, b"answered secret");
            let error = ask().unwrap_err();
            assert_eq!(error.status(), Some(Status::FAILED));
            assert!(error.to_string().ends_with("failed secret"), "{error}");
        });
        drop(requests);
        // A round trip behind it: nobody serves any more.
        bob.agents().unwrap();

        // Through the inbox, answered by id.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let batch = bob.inbox(1, WATCHDOG).unwrap();
                let (_, frame) = &batch.messages[0];
                assert_eq!(
                    Request::parse(&frame.payload).unwrap().params,
                    b"asked secret"
                );
                bob.respond(frame.correlation(), Ok(b"answered secret"))
                    .unwrap();
            });
            let reply = alice
                .request("bob", "fix", b"asked secret", WATCHDOG)
                .unwrap();
            assert_eq!(reply.result, b"answered secret");
        });
        assert_eq!((alice.refused().count, bob.refused().count), (0, 0));
        let shown = bus
            .seen()
            .iter()
            .any(|frame| frame.payload.windows(6).any(|window| window == b"secret"));
        assert_eq!(shown, !scheme.seals(), "{scheme}: what the bus could read");
    }
}

#[test]
fn a_bus_that_alters_replays_or_strips_is_not_believed() {
    for scheme in SCHEMES {
        let (bus, alice, bob) = clients(scheme);
        let topic = bob.subscribe("build.*").unwrap();
        let is_event = |frame: &Frame| frame.kind() & kind::EVENT != 0;
        // Alters the last byte, then repeats the true one, then sends it without its protection.
        bus.tamper(move |frame| {
            if !is_event(&frame) {
                return vec![frame];
            }
            let mut altered = frame.clone();
            let mut payload = altered.payload.to_vec();
            *payload.last_mut().unwrap() ^= 1;
            altered.payload = payload.into();
            let mut stripped = frame.clone();
            let bits = stripped.header.flags.get() & !(flags::SIGNED | flags::SEALED);
            stripped.header.flags = bits.into();
            vec![altered, frame.clone(), frame, stripped]
        });
        alice.publish("build.done", "ok", b"once").unwrap();
        let Received::Item(frame) = topic.next(WATCHDOG) else {
            panic!("{scheme}: the true one comes")
        };
        assert_eq!(data_of(&frame), b"once");
        bus.be_honest();
        alice.publish("build.done", "ok", b"twice").unwrap();
        let Received::Item(frame) = topic.next(WATCHDOG) else {
            panic!("{scheme}: the next one comes")
        };
        assert_eq!(data_of(&frame), b"twice", "no copy came between");
        let refused = bob.refused();
        assert_eq!(refused.count, 3);
        assert!(
            refused
                .latest
                .iter()
                .all(|refusal| refusal.from == alice.id())
        );
        let why: Vec<_> = refused
            .latest
            .into_iter()
            .map(|refusal| refusal.why)
            .collect();
        assert!(matches!(
            why[..],
            [
                ProtectError::Forged { .. },
                ProtectError::Replayed { .. },
                ProtectError::Plain { .. }
            ]
        ));
    }
}

#[test]
fn an_answer_that_the_bus_made_up_or_kept_from_before_is_not_believed() {
    let (bus, alice, bob) = clients(Scheme::Aes256Gcm);
    let requests = bob.serve(1).unwrap();
    let mut kept: Option<Frame> = None;
    bus.tamper(move |frame| {
        if frame.kind() & kind::RESPONSE == 0 || frame.header.flags.get() & flags::SEALED == 0 {
            return vec![frame];
        }
        let Some(mut old) = kept.clone() else {
            kept = Some(frame.clone());
            return vec![frame];
        };
        old.header.correlation = frame.header.correlation;
        vec![old]
    });
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for answer in [b"yes", b"no!"] {
                let incoming = requests.next(WATCHDOG).unwrap().unwrap();
                incoming.respond(Ok(&answer[..])).unwrap();
            }
        });
        let ask = || alice.request("bob", "may I", b"", WATCHDOG);
        assert_eq!(ask().unwrap().result, b"yes");
        let error = ask().unwrap_err();
        assert!(
            matches!(
                error,
                ClientError::Protect(ProtectError::Forged { key: KeyId(7) })
            ),
            "{error}"
        );
    });
}

#[test]
fn without_the_key_nothing_is_handed_out_and_the_asker_is_told() {
    for scheme in SCHEMES {
        let (bus, alice, _bob) = clients(scheme);
        let keyless = Client::connect_to(&bus.agent(3, "carol")).unwrap();
        let (a, _) = pair(scheme);
        let key = Key::from_secret(Scheme::HmacSha256, KeyId(9), &secret(9)).unwrap();
        a.send_with(Scope::Everyone, key).unwrap();
        let alice = alice.with_protection(a);
        alice.send("carol", "note", b"hello").unwrap();
        assert!(
            keyless
                .inbox(5, Duration::ZERO)
                .unwrap()
                .messages
                .is_empty()
        );
        let requests = keyless.serve(1).unwrap();
        let told = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !told.load(Ordering::Relaxed) {
                    assert!(requests.next(Duration::from_millis(50)).unwrap().is_none());
                }
            });
            let error = alice.request("carol", "fix", b"", WATCHDOG).unwrap_err();
            told.store(true, Ordering::Relaxed);
            let ClientError::Protect(ProtectError::PlainAnswer { says, .. }) = &error else {
                panic!("{error}")
            };
            assert!(says.starts_with("key 9 is not known here"), "{says}");
        });
        let refused = keyless.refused();
        assert_eq!(refused.count, 2);
        assert!(matches!(
            refused.latest[0].why,
            ProtectError::UnknownKey { key: KeyId(9), .. }
        ));
        assert_eq!(keyless.refused().count, 0, "told once");
    }
}

#[test]
fn keys_are_rotated_while_messages_flow() {
    let (_bus, alice, bob) = {
        let bus = Bus::new();
        let (alice, bob) = (bus.agent(1, "alice"), bus.agent(2, "bob"));
        (
            bus,
            Client::connect_to(&alice).unwrap(),
            Client::connect_to(&bob).unwrap(),
        )
    };
    let key = |n: u8| Key::from_secret(Scheme::Aes256Gcm, KeyId(n.into()), &secret(n)).unwrap();
    let (a, b) = (
        Protection::new(Demand::Sealed),
        Protection::new(Demand::Sealed),
    );
    let (alice, bob) = (
        alice.with_protection(a.clone()),
        bob.with_protection(b.clone()),
    );
    let received = || {
        let batch = bob.inbox(10, Duration::ZERO).unwrap();
        batch
            .messages
            .iter()
            .map(|(_, frame)| data_of(frame))
            .collect::<Vec<_>>()
    };
    a.send_with(Scope::Everyone, key(1)).unwrap();
    b.accept(key(1)).unwrap();
    alice.send("bob", "", b"one").unwrap();
    // The new key is known to the receiver before anyone uses it; what is under way stays readable.
    b.accept(key(2)).unwrap();
    a.send_with(Scope::Everyone, key(2)).unwrap();
    alice.send("bob", "", b"two").unwrap();
    assert_eq!(received(), [b"one", b"two"]);
    a.retire(KeyId(1));
    b.retire(KeyId(1));
    alice.send("bob", "", b"three").unwrap();
    assert_eq!(received(), [b"three"]);
    // Somebody who missed the rotation is refused by name.
    let late = Protection::new(Demand::Nothing);
    late.send_with(Scope::Everyone, key(1)).unwrap();
    alice
        .with_protection(late)
        .send("bob", "", b"four")
        .unwrap();
    assert!(received().is_empty());
    let refused = bob.refused();
    assert_eq!(
        refused.latest[0].why,
        ProtectError::UnknownKey {
            key: KeyId(1),
            known: "2".into()
        }
    );
}
