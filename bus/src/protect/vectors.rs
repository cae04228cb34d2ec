//! The primitives as this module uses them against published vectors, and whole envelopes against bytes that were made with other
//! implementations (Python's `hmac` and `cryptography`) from the description in the module's documentation alone.

use ring::{aead, hkdf, hmac};

use super::envelope::{Fixed, MessageId, Transcript, What};
use super::frames::flag_of;
use super::key::{Key, KeyId, Scheme};
use super::keyring::Keyring;
use crate::frame::PeerId;

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[test]
fn hmac_sha_256_of_rfc_4231_case_2() {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
    let mut context = hmac::Context::with_key(&key);
    context.update(b"what do ya want ");
    context.update(b"for nothing?");
    let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
    assert_eq!(context.sign().as_ref(), hex(expected));
}

#[test]
fn hkdf_sha_256_of_rfc_5869_case_1() {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, &hex("000102030405060708090a0b0c"));
    let prk = salt.extract(&[0x0b; 22]);
    let info = hex("f0f1f2f3f4f5f6f7f8f9");
    let mut out = [0; 42];
    prk.expand(&[&info[..4], &info[4..]], Len(42))
        .unwrap()
        .fill(&mut out)
        .unwrap();
    let expected =
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865";
    assert_eq!(out[..], hex(expected));
}

#[test]
fn aes_256_gcm_of_the_gcm_specification_case_16() {
    let key = hex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
    let nonce: [u8; 12] = hex("cafebabefacedbaddecaf888").try_into().unwrap();
    let mut text = hex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
    );
    let key = aead::LessSafeKey::new(aead::UnboundKey::new(&aead::AES_256_GCM, &key).unwrap());
    let tag = key
        .seal_in_place_separate_tag(
            aead::Nonce::assume_unique_for_key(nonce),
            aead::Aad::from(hex("feedfacedeadbeeffeedfacedeadbeefabaddad2")),
            &mut text,
        )
        .unwrap();
    let expected = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662";
    assert_eq!(text, hex(expected));
    assert_eq!(tag.as_ref(), hex("76fc6ece0f4e1768cddf8853bb2d551b"));
}

#[test]
fn ed25519_of_rfc_8032_test_3() {
    let seed: [u8; 32] = hex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
        .try_into()
        .unwrap();
    let public: [u8; 32] = hex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
        .try_into()
        .unwrap();
    let pair = Key::from_secret(Scheme::Ed25519, KeyId(1), &seed).unwrap();
    assert_eq!(pair.public(), Some(public));
    let expected = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a";
    let mut out = Vec::new();
    // Transcript and body are one message to the signature: `af` and `82`.
    pair.session(&[0; 16])
        .protect(KeyId(1), 0, &[0xaf], &[0x82], &mut out)
        .unwrap();
    assert_eq!(out[1..], hex(expected));
}

fn transcript(scheme: Scheme) -> Transcript<'static> {
    Transcript {
        what: What::Request,
        flags: 1 | flag_of(scheme),
        source: PeerId([0xA1; 16]),
        destination: PeerId([0xB0; 16]),
        in_reply_to: MessageId::default(),
        visible: b"visible",
    }
}

#[test]
fn envelopes_are_the_documented_bytes() {
    let secret: [u8; 32] = std::array::from_fn(|at| at as u8);
    let session: [u8; 16] = std::array::from_fn(|at| 0x80 + at as u8);
    for (scheme, expected) in [
        (
            Scheme::HmacSha256,
            "0101000007000000808182838485868788898a8b8c8d8e8f0500000000000000887766554433221174686520626f6479d2aeab854d621d16bb07ee31570ef520221c509af80d9bf229d5533da247a54d",
        ),
        (
            Scheme::Aes256Gcm,
            "0103000007000000808182838485868788898a8b8c8d8e8f050000000000000088776655443322119dd9ac1a6655fc8da6fbe0a33d5ef03dd539dc4ea167db47",
        ),
    ] {
        let key = Key::from_secret(scheme, KeyId(7), &secret).unwrap();
        let fixed = Fixed {
            scheme,
            key: KeyId(7),
            id: MessageId {
                session,
                counter: 5,
            },
            sealed_at_ns: 0x1122_3344_5566_7788,
        };
        let bytes = fixed.encode();
        let covered = transcript(scheme).encode(&bytes, 8);
        let mut envelope = bytes.to_vec();
        key.session(&session)
            .protect(KeyId(7), 5, &covered, b"the body", &mut envelope)
            .unwrap();
        assert_eq!(envelope, hex(expected), "{scheme}");
        let ring = Keyring::default();
        ring.add(key).unwrap();
        let mut body = Vec::new();
        assert_eq!(
            ring.open(&transcript(scheme), &envelope, &mut body),
            Ok(fixed)
        );
        assert_eq!(body, b"the body");
    }
}
