//! Protected messages: nothing verifies but what was really made, for whom it was made, once.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use agentd_bus::frame::{Decoder, Frame, PeerId, kind};
use agentd_bus::message::Event;
use agentd_bus::protect::{
    Demand, Key, KeyId, Keyring, Opener, Scheme, Sealer, open_frame, protect_frame,
};

use crate::input::Input;

const SENDER: PeerId = PeerId([1; 16]);
const RECEIVER: PeerId = PeerId([2; 16]);

static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| {
    [Scheme::HmacSha256, Scheme::Ed25519, Scheme::Aes256Gcm]
        .into_iter()
        .map(|scheme| {
            let id = KeyId(scheme.code().into());
            let secret = std::array::from_fn(|at| at as u8 + scheme.code());
            Key::from_secret(scheme, id, &secret).expect("no trivial key")
        })
        .collect()
});

fn opener() -> Opener {
    let ring = Keyring::default();
    for key in &*KEYS {
        ring.add(key.clone()).expect("ids differ");
    }
    Opener::new(Arc::new(ring), Duration::from_secs(3_600))
}

/// Bytes that a forger made: never believed.
pub fn forged(data: &[u8]) {
    let opener = opener();
    let mut out = Vec::new();
    assert!(opener.open_payload(b"fuzz", data, &mut out).is_err());
    let mut decoder = Decoder::new(1 << 16);
    decoder.feed(data);
    while let Ok(Some(frame)) = decoder.next_frame() {
        assert!(open_frame(&opener, Demand::Signed, frame, RECEIVER).is_err() || is_from_bus(data));
    }
    assert!(out.is_empty());
}

/// The bus's own topics pass plain.
fn is_from_bus(data: &[u8]) -> bool {
    data.windows(7).any(|window| window == b"agentd.")
}

/// A true message that was changed on its way: refused, and the true one is taken still, once.
pub fn altered(data: &[u8]) {
    let mut input = Input::new(data);
    let key = &KEYS[usize::from(input.u8()) % KEYS.len()];
    let sealer = Sealer::new(key.clone()).expect("a whole key");
    let opener = opener();
    let len = usize::from(input.u8());
    let event = Event {
        priority: 1,
        event_type: "fuzz",
        topic: "",
        data: input.bytes(len),
    };
    let frame = Frame::new(
        kind::EVENT,
        RECEIVER,
        0,
        event.encode().expect("it is short"),
    );
    let plain = frame.payload.clone();
    let (mut sent, _) =
        protect_frame(&sealer, frame, SENDER, RECEIVER, None).expect("it can be protected");
    sent.header.source = SENDER;
    let mut payload = sent.payload.to_vec();
    while !input.is_empty() {
        let at = usize::from(input.u16());
        match input.u8() % 4 {
            0 => payload.truncate(at),
            1 => payload.push(at as u8),
            2 if at < payload.len() => drop(payload.remove(at)),
            _ if at / 8 < payload.len() => payload[at / 8] ^= 1 << (at % 8),
            _ => {}
        }
    }
    if payload[..] != sent.payload[..] {
        let mut changed = sent.clone();
        changed.header.payload_len = (payload.len() as u32).into();
        changed.payload = payload.into();
        assert!(open_frame(&opener, Demand::Nothing, changed, RECEIVER).is_err());
    }
    let opened = open_frame(&opener, Demand::Signed, sent.clone(), RECEIVER).expect("it is true");
    assert_eq!(opened.frame.payload, plain);
    assert!(open_frame(&opener, Demand::Signed, sent, RECEIVER).is_err());
}
