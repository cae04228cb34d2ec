//! What protection promises: round trips, and every way to break one refused.

use std::sync::Arc;
use std::time::Duration;

use super::envelope::{FIXED_LEN, Fixed};
use super::*;
use crate::frame::{Decoder, Frame, PeerId, flags, kind};
use crate::message::{Event, Request, Response, Status};

const ALICE: PeerId = PeerId([0xA1; 16]);
const BOB: PeerId = PeerId([0xB0; 16]);
const EVE: PeerId = PeerId([0xE0; 16]);
const SCHEMES: [Scheme; 3] = [Scheme::HmacSha256, Scheme::Ed25519, Scheme::Aes256Gcm];

fn secret(seed: u8) -> [u8; 32] {
    std::array::from_fn(|at| seed.wrapping_add(at as u8))
}

fn key(scheme: Scheme, id: u32, seed: u8) -> Key {
    Key::from_secret(scheme, KeyId(id), &secret(seed)).unwrap()
}

fn opener(keys: &[Key]) -> Opener {
    let ring = Keyring::default();
    for key in keys {
        ring.add(key.clone()).unwrap();
    }
    Opener::new(Arc::new(ring), Duration::from_secs(10))
}

fn request() -> Frame {
    let payload = Request {
        method: "fix",
        params: b"the parameters",
        timeout_ms: 5_000,
    };
    Frame::new(kind::REQUEST, BOB, 7, payload.encode().unwrap())
}

fn event(topic: &str, bits: u16, to: PeerId) -> Frame {
    let payload = Event {
        priority: 1,
        event_type: "done",
        topic,
        data: b"the data",
    };
    Frame::new(bits, to, 0, payload.encode().unwrap())
}

fn response(status: Status, error: &str, result: &[u8]) -> Frame {
    let payload = Response {
        status,
        error,
        result,
    };
    Frame::new(kind::RESPONSE, PeerId::BUS, 7, payload.encode().unwrap())
}

/// What the bus does to a frame on its way.
fn carried(mut frame: Frame, from: PeerId, correlation: u32) -> Frame {
    frame.clear_crc();
    frame.header.source = from;
    frame.header.timestamp_ns = 1_234_567.into();
    frame.header.correlation = correlation.into();
    frame.seal_crc();
    let mut bytes = Vec::new();
    frame.encode_into(&mut bytes);
    let mut decoder = Decoder::new(1 << 20);
    decoder.feed(&bytes);
    decoder.next_frame().unwrap().unwrap()
}

fn open(opener: &Opener, frame: Frame) -> Result<Opened, ProtectError> {
    open_frame(opener, Demand::Nothing, frame, BOB)
}

#[test]
fn protected_frames_survive_the_bus() {
    for scheme in SCHEMES {
        let key = key(scheme, 9, 1);
        let (sealer, opener) = (Sealer::new(key.clone()).unwrap(), opener(&[key]));
        for plain in [
            request(),
            event("", kind::EVENT, BOB),
            event("build.done", kind::EVENT, PeerId::BUS),
            event("", kind::EVENT | kind::BROADCAST, PeerId::BUS),
        ] {
            let (sent, id) = protect_frame(&sealer, plain.clone(), ALICE, BOB, None).unwrap();
            let got = open(&opener, carried(sent.clone(), ALICE, 99)).unwrap();
            assert_eq!(got.frame.payload, plain.payload);
            let verified = got.verified.unwrap();
            assert_eq!((verified.key, verified.scheme), (KeyId(9), scheme));
            assert_eq!(verified.id, id);
            let hidden = !contains(&sent.payload, b"the data")
                && !contains(&sent.payload, b"the parameters");
            assert_eq!(hidden, scheme.seals());
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

#[test]
fn an_answer_belongs_to_its_request_and_its_error_text_is_hidden() {
    for scheme in SCHEMES {
        let key = key(scheme, 9, 1);
        let sealer = Sealer::new(key.clone()).unwrap();
        let ring = Keyring::default();
        ring.add(key).unwrap();
        let (_, asked) = protect_frame(&sealer, request(), ALICE, BOB, None).unwrap();
        let (_, other) = protect_frame(&sealer, request(), ALICE, BOB, None).unwrap();
        let plain = response(Status::FAILED, "no such test", b"");
        let (sent, _) = protect_frame(&sealer, plain, BOB, ALICE, Some(asked)).unwrap();
        assert_eq!(contains(&sent.payload, b"no such test"), !scheme.seals());
        let mut sent = carried(sent, BOB, 7);
        // The bus makes it a failed response by its status.
        sent.header.kind = (kind::RESPONSE | kind::ERROR).into();
        let opened = open_answer(&ring, sent.clone(), (BOB, ALICE), asked, scheme).unwrap();
        let parsed = Response::parse(&opened.payload).unwrap();
        assert_eq!(
            (parsed.status, parsed.result),
            (Status::FAILED, &b"no such test"[..])
        );
        let forged = Err(ProtectError::Forged { key: KeyId(9) });
        for (ends, id) in [
            ((BOB, ALICE), other),
            ((EVE, ALICE), asked),
            ((BOB, EVE), asked),
        ] {
            assert_eq!(open_answer(&ring, sent.clone(), ends, id, scheme), forged);
        }
        let says = |text: &str| ProtectError::PlainAnswer {
            scheme,
            says: text.to_owned(),
        };
        for (plain, text) in [
            (response(Status::OK, "", b"trust me"), "trust me"),
            (response(Status::FAILED, "went wrong", b""), "went wrong"),
        ] {
            let opened = open_answer(&ring, plain, (BOB, ALICE), asked, scheme);
            assert_eq!(opened, Err(says(text)));
        }
        let bus = response(Status::PEER_GONE, "bob has ended", b"");
        let opened = open_answer(&ring, bus.clone(), (BOB, ALICE), asked, scheme);
        assert_eq!(opened, Ok(bus));
    }
}

/// The bits that the bus writes, or that say how the frame is cut.
fn is_uncovered(bit: usize) -> bool {
    let byte = bit / 8;
    // CRC, time stamp, destination (the receiver knows itself), durable, CRC, descriptor and retain flags, correlation.
    (12..24).contains(&byte)
        || (40..56).contains(&byte)
        || (60..64).contains(&byte)
        || bit == 56 * 8 + 5
        || bit == 56 * 8 + 7
        || bit == 57 * 8
        || bit == 57 * 8 + 2
}

#[test]
fn every_flipped_bit_of_a_protected_frame_is_refused() {
    for scheme in SCHEMES {
        for plain in [
            request(),
            event("", kind::EVENT, BOB),
            event("a.b", kind::EVENT, PeerId::BUS),
        ] {
            let key = key(scheme, 9, 1);
            let (sealer, opener) = (Sealer::new(key.clone()).unwrap(), opener(&[key]));
            let (mut sent, _) = protect_frame(&sealer, plain, ALICE, BOB, None).unwrap();
            sent.header.source = ALICE;
            let mut bytes = Vec::new();
            sent.encode_into(&mut bytes);
            for bit in 0..bytes.len() * 8 {
                if is_uncovered(bit) {
                    continue;
                }
                bytes[bit / 8] ^= 1 << (bit % 8);
                let mut decoder = Decoder::new(1 << 16);
                decoder.feed(&bytes);
                if let Ok(Some(frame)) = decoder.next_frame() {
                    let opened = open_frame(&opener, Demand::Signed, frame, BOB);
                    assert!(
                        opened.is_err(),
                        "{scheme}: bit {bit} of {}",
                        bytes.len() * 8
                    );
                }
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            assert!(
                open(&opener, sent).is_ok(),
                "what was not touched still verifies"
            );
        }
    }
}

#[test]
fn a_message_for_another_from_another_or_of_another_kind_is_refused() {
    for scheme in SCHEMES {
        let key = key(scheme, 9, 1);
        let (sealer, opener) = (Sealer::new(key.clone()).unwrap(), opener(&[key]));
        let forged = Err(ProtectError::Forged { key: KeyId(9) });
        let (sent, _) =
            protect_frame(&sealer, event("", kind::EVENT, BOB), ALICE, BOB, None).unwrap();
        let sent = carried(sent, ALICE, 1);
        assert_eq!(
            open_frame(&opener, Demand::Nothing, sent.clone(), EVE),
            forged
        );
        assert_eq!(open(&opener, carried(sent.clone(), EVE, 1)), forged);
        // Reflected to its sender, as if it came from the other.
        let reflected = carried(sent.clone(), BOB, 1);
        assert_eq!(
            open_frame(&opener, Demand::Nothing, reflected, ALICE),
            forged
        );
        let mut broadcast = sent.clone();
        broadcast.header.kind = (kind::EVENT | kind::BROADCAST).into();
        assert_eq!(open(&opener, broadcast), forged);
        assert!(open(&opener, sent).is_ok());
    }
}

#[test]
fn a_message_is_taken_once() {
    for scheme in SCHEMES {
        let key = key(scheme, 9, 1);
        let sealer = Sealer::new(key.clone()).unwrap();
        let receiver = opener(std::slice::from_ref(&key));
        let (first, _) = protect_frame(&sealer, request(), ALICE, BOB, None).unwrap();
        let (second, _) = protect_frame(&sealer, request(), ALICE, BOB, None).unwrap();
        let (first, second) = (carried(first, ALICE, 1), carried(second, ALICE, 2));
        assert!(open(&receiver, second.clone()).is_ok());
        assert!(
            open(&receiver, first.clone()).is_ok(),
            "overtaken is not replayed"
        );
        for again in [first, second] {
            assert!(matches!(
                open(&receiver, again),
                Err(ProtectError::Replayed { key: KeyId(9), .. })
            ));
        }
    }
}

#[test]
fn what_was_sealed_before_a_receiver_began_is_refused_beyond_the_allowance() {
    let key = key(Scheme::Aes256Gcm, 9, 1);
    let sealer = Sealer::new(key.clone()).unwrap();
    let mut envelope = Vec::new();
    sealer.seal_payload(b"", b"old", &mut envelope).unwrap();
    let ring = Arc::new(Keyring::default());
    ring.add(key).unwrap();
    let mut out = Vec::new();
    let strict = Opener::new(ring.clone(), Duration::ZERO);
    assert!(matches!(
        strict.open_payload(b"", &envelope, &mut out),
        Err(ProtectError::TooEarly { key: KeyId(9), .. })
    ));
    assert!(out.is_empty(), "what is refused is not handed out");
    let lenient = Opener::new(ring, Duration::from_secs(3_600));
    assert!(lenient.open_payload(b"", &envelope, &mut out).is_ok());
}

#[test]
fn wrong_unknown_and_retired_keys_are_named() {
    for scheme in SCHEMES {
        let (old, new) = (key(scheme, 1, 1), key(scheme, 2, 2));
        let protection = Protection::new(Demand::Signed);
        protection.accept(old.clone()).unwrap();
        protection.accept(new.clone()).unwrap();
        let receiver = protection.opener();
        let send = |key: &Key| {
            let sealer = Sealer::new(key.clone()).unwrap();
            let (frame, _) = protect_frame(&sealer, request(), ALICE, BOB, None).unwrap();
            carried(frame, ALICE, 3)
        };
        assert!(open(&receiver, send(&old)).is_ok());
        assert!(open(&receiver, send(&new)).is_ok());
        protection.retire(KeyId(1));
        assert_eq!(
            open(&receiver, send(&old)),
            Err(ProtectError::UnknownKey {
                key: KeyId(1),
                known: "2".into()
            })
        );
        assert!(open(&receiver, send(&new)).is_ok());
        let same_id = key(scheme, 2, 3);
        assert_eq!(
            open(&receiver, send(&same_id)),
            Err(ProtectError::Forged { key: KeyId(2) })
        );
        assert_eq!(
            protection.accept(same_id),
            Err(ProtectError::IdTaken { key: KeyId(2) })
        );
        let other = SCHEMES[(scheme.code() as usize) % 3];
        assert!(matches!(
            open(&receiver, send(&key(other, 2, 2))),
            Err(ProtectError::WrongScheme { key: KeyId(2), .. })
        ));
    }
}

#[test]
fn a_receiver_that_demands_protection_refuses_less() {
    let (mac, aead) = (key(Scheme::HmacSha256, 1, 1), key(Scheme::Aes256Gcm, 2, 2));
    let receiver = opener(&[mac.clone(), aead.clone()]);
    let plain = carried(request(), ALICE, 1);
    let bus = carried(event("agentd.peers", kind::EVENT, BOB), PeerId::BUS, 0);
    let not_the_bus = carried(event("agentd.peers", kind::EVENT, BOB), EVE, 0);
    let elsewhere = carried(event("build", kind::EVENT, BOB), PeerId::BUS, 0);
    for demand in [Demand::Signed, Demand::Sealed] {
        for frame in [&plain, &not_the_bus, &elsewhere] {
            let opened = open_frame(&receiver, demand, frame.clone(), BOB);
            assert_eq!(opened, Err(ProtectError::Plain { demand }));
        }
        assert!(open_frame(&receiver, demand, bus.clone(), BOB).is_ok());
    }
    let send = |key: &Key| {
        let sealer = Sealer::new(key.clone()).unwrap();
        carried(
            protect_frame(&sealer, request(), ALICE, BOB, None)
                .unwrap()
                .0,
            ALICE,
            1,
        )
    };
    let demand = Demand::Sealed;
    let signed_only = open_frame(&receiver, demand, send(&mac), BOB);
    assert_eq!(signed_only, Err(ProtectError::OnlySigned { demand }));
    assert!(open_frame(&receiver, demand, send(&aead), BOB).is_ok());
    // A sealed frame that claims to be only signed, and the reverse.
    for (key, claim) in [(&aead, flags::SIGNED), (&mac, flags::SEALED)] {
        let mut frame = send(key);
        frame.header.flags = (1 | claim).into();
        frame.header.crc = 0.into();
        assert_eq!(open(&receiver, frame), Err(ProtectError::FlagsDisagree));
    }
    // With the flag taken away it is a plain frame with odd parameters: refused where protection is demanded.
    let mut stripped = send(&aead);
    stripped.header.flags = 1.into();
    stripped.header.crc = 0.into();
    let opened = open_frame(&receiver, Demand::Signed, stripped, BOB);
    assert!(matches!(opened, Err(ProtectError::Plain { .. })));
}

#[test]
fn every_cut_of_an_envelope_is_refused() {
    for scheme in SCHEMES {
        let key = key(scheme, 9, 1);
        let (sealer, receiver) = (Sealer::new(key.clone()).unwrap(), opener(&[key]));
        let mut envelope = Vec::new();
        sealer
            .seal_payload(b"lane 1", b"payload", &mut envelope)
            .unwrap();
        assert_eq!(envelope.len(), FIXED_LEN + 7 + scheme.tag_len());
        let mut out = b"before".to_vec();
        for len in 0..envelope.len() {
            assert!(
                receiver
                    .open_payload(b"lane 1", &envelope[..len], &mut out)
                    .is_err()
            );
            assert!(
                receiver
                    .open_payload(b"lane 1", &envelope[envelope.len() - len..], &mut out)
                    .is_err()
            );
        }
        let mut longer = envelope.clone();
        longer.push(0);
        assert!(receiver.open_payload(b"lane 1", &longer, &mut out).is_err());
        assert!(
            receiver
                .open_payload(b"lane 2", &envelope, &mut out)
                .is_err()
        );
        assert_eq!(out, b"before");
        receiver
            .open_payload(b"lane 1", &envelope, &mut out)
            .unwrap();
        assert_eq!(out, b"beforepayload");
    }
}

#[test]
fn nonces_never_repeat_across_limits_forks_and_sealers() {
    let key = key(Scheme::Aes256Gcm, 9, 1);
    let mut seen = std::collections::HashSet::new();
    let mut take = |sealer: &Sealer| {
        let mut out = Vec::new();
        let id = sealer.seal_payload(b"", b"x", &mut out).unwrap();
        assert_eq!(Fixed::parse(&out).unwrap().0.id, id);
        assert!(seen.insert((id.session, id.counter)));
        id
    };
    let sealer = Sealer::new(key.clone()).unwrap();
    let first = take(&sealer);
    let second = take(&sealer);
    assert_eq!((second.session, second.counter), (first.session, 1));
    sealer.skip_to(seal::MESSAGES_MAX - 1, 0);
    assert_eq!(take(&sealer).session, first.session);
    let after_messages = take(&sealer);
    assert_ne!(after_messages.session, first.session);
    assert_eq!(after_messages.counter, 0);
    sealer.skip_to(1, seal::BLOCKS_MAX - 1);
    let after_blocks = take(&sealer);
    assert_ne!(after_blocks.session, after_messages.session);
    sealer.pretend_forked();
    assert_ne!(take(&sealer).session, after_blocks.session);
    let other = Sealer::new(key).unwrap();
    assert_ne!(take(&other).session, first.session);
    // The same plaintext twice under one session gives two ciphertexts.
    let (mut a, mut b) = (Vec::new(), Vec::new());
    other.seal_payload(b"", &[0; 64], &mut a).unwrap();
    other.seal_payload(b"", &[0; 64], &mut b).unwrap();
    assert_ne!(a[FIXED_LEN..], b[FIXED_LEN..]);
}

#[test]
fn a_public_key_verifies_and_never_signs() {
    let pair = key(Scheme::Ed25519, 9, 1);
    let public = Key::from_public(KeyId(9), pair.public().unwrap());
    assert_eq!(
        Sealer::new(public.clone()).unwrap_err(),
        ProtectError::VerifyOnly { key: KeyId(9) }
    );
    let receiver = opener(&[public]);
    let sealer = Sealer::new(pair).unwrap();
    let (sent, _) = protect_frame(&sealer, request(), ALICE, BOB, None).unwrap();
    assert!(open(&receiver, carried(sent, ALICE, 1)).is_ok());
}

#[test]
fn debug_output_shows_no_key() {
    let bytes = secret(0x41);
    for scheme in SCHEMES {
        let key = Key::from_secret(scheme, KeyId(77), &bytes).unwrap();
        let sealer = Sealer::new(key.clone()).unwrap();
        let protection = Protection::new(Demand::Sealed);
        protection.send_with(Scope::Everyone, key.clone()).unwrap();
        protection.accept(key.clone()).unwrap();
        let shown = format!(
            "{key:?} {sealer:?} {protection:?} {:?}",
            opener(std::slice::from_ref(&key))
        );
        assert!(shown.contains("77"), "{shown}");
        for leak in ["ABC", "41, 42", "65, 66", "0x41", "414243"] {
            assert!(!shown.contains(leak), "{shown}");
        }
    }
}

#[test]
fn a_key_for_an_agent_or_topic_goes_before_the_one_for_everyone() {
    let protection = Protection::new(Demand::Nothing);
    let scheme = Scheme::HmacSha256;
    for (scope, id) in [
        (Scope::Agent("bob".into()), 1),
        (Scope::Topics("build.#".into()), 2),
        (Scope::Everyone, 3),
    ] {
        protection
            .send_with(scope, key(scheme, id, id as u8))
            .unwrap();
    }
    let chosen = |to| protection.sealer(to).map(|sealer| sealer.key_id().0);
    use policy::Addressee;
    assert_eq!(chosen(Addressee::Agent("bob")), Some(1));
    assert_eq!(chosen(Addressee::Agent("eve")), Some(3));
    assert_eq!(chosen(Addressee::Topic("build.done")), Some(2));
    assert_eq!(chosen(Addressee::Topic("bob")), Some(3));
    assert_eq!(chosen(Addressee::All), Some(3));
    protection
        .send_with(Scope::Agent("bob".into()), key(scheme, 4, 4))
        .unwrap();
    assert_eq!(chosen(Addressee::Agent("bob")), Some(4));
    protection.retire(KeyId(3));
    assert_eq!(chosen(Addressee::All), None);
}

#[test]
fn commands_and_heartbeats_are_never_protected() {
    let sealer = Sealer::new(key(Scheme::HmacSha256, 1, 1)).unwrap();
    for bits in [kind::COMMAND, kind::HEARTBEAT, kind::ERROR] {
        let frame = Frame::new(bits, PeerId::BUS, 0, []);
        assert!(matches!(
            protect_frame(&sealer, frame, ALICE, PeerId::BUS, None),
            Err(ProtectError::NotProtectable { .. })
        ));
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_envelopes_are_refused_and_leave_nothing(bytes: Vec<u8>) {
        let keys: Vec<Key> = SCHEMES.iter().map(|scheme| key(*scheme, u32::from(scheme.code()), 1)).collect();
        let receiver = opener(&keys);
        for scheme in SCHEMES {
            let mut envelope = vec![1, scheme.code(), 0, 0, scheme.code(), 0, 0, 0];
            envelope.extend_from_slice(&bytes);
            let mut out = Vec::new();
            proptest::prop_assert!(receiver.open_payload(b"", &envelope, &mut out).is_err());
            proptest::prop_assert!(out.is_empty());
        }
    }

    #[test]
    fn any_payload_survives(payload: Vec<u8>, context: Vec<u8>) {
        for scheme in SCHEMES {
            let key = key(scheme, 5, 1);
            let (sealer, receiver) = (Sealer::new(key.clone()).unwrap(), opener(&[key]));
            let (mut envelope, mut out) = (Vec::new(), Vec::new());
            sealer.seal_payload(&context, &payload, &mut envelope).unwrap();
            receiver.open_payload(&context, &envelope, &mut out).unwrap();
            proptest::prop_assert_eq!(&out, &payload);
        }
    }
}
