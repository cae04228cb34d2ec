//! Keys: what a shared secret or a key pair may be used for, and how it is kept from everything else.
//!
//! A shared secret is turned into an HKDF key at once and forgotten; what encrypts or signs is derived from it for each session.
//! ring's keys are no secrets' friends when they are dropped (it leaves them in memory), so each lies in a [`Wiped`] box. What a
//! compiler may leave behind on the stack while a key is made is beyond this.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use ring::{aead, hkdf, hmac};
use zeroize::Zeroizing;

use super::ProtectError;

/// Names a key to those who hold it. Not secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub u32);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How messages are protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Signed with a shared secret (RFC 2104, FIPS 180-4): whoever can verify could have signed.
    HmacSha256,
    /// Signed with a private key (RFC 8032): only its holder could have.
    Ed25519,
    /// Encrypted and authenticated with a shared secret (NIST SP 800-38D).
    Aes256Gcm,
}

impl Scheme {
    /// The number in an envelope.
    pub fn code(self) -> u8 {
        match self {
            Self::HmacSha256 => 1,
            Self::Ed25519 => 2,
            Self::Aes256Gcm => 3,
        }
    }

    /// The scheme of that number.
    pub fn from_code(code: u8) -> Option<Self> {
        [Self::HmacSha256, Self::Ed25519, Self::Aes256Gcm]
            .into_iter()
            .find(|scheme| scheme.code() == code)
    }

    /// Bytes after the body.
    pub fn tag_len(self) -> usize {
        match self {
            Self::HmacSha256 => 32,
            Self::Ed25519 => 64,
            Self::Aes256Gcm => 16,
        }
    }

    /// True if nobody without the key can read the body.
    pub fn seals(self) -> bool {
        self == Self::Aes256Gcm
    }

    /// The word in key files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha-256",
            Self::Ed25519 => "ed25519",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why bytes are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the kernel gave no random numbers for a key")]
    Random,
    #[error("32 equal bytes are no secret; make one with `Key::generate` or from /dev/urandom")]
    Trivial,
}

/// A value whose memory is overwritten after it has been dropped.
pub(super) struct Wiped<T>(Box<ManuallyDrop<T>>);

impl<T> Wiped<T> {
    fn new(value: T) -> Self {
        Self(Box::new(ManuallyDrop::new(value)))
    }
}

impl<T> std::ops::Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: the value is dropped here only (this is the one place that does, and `drop` runs once), and nobody can
        // reach it afterwards: `Deref` needs a borrow of `self`, which is going away.
        unsafe { ManuallyDrop::drop(&mut self.0) };
        // SAFETY: the pointer is the box's own allocation, valid for writes of the whole `T` and not borrowed; what lies there
        // has been dropped, so overwriting it leaves no broken value: `ManuallyDrop` never looks at it again.
        unsafe { zeroize::zeroize_flat_type(std::ptr::from_mut(&mut *self.0)) };
    }
}

/// A key and what it is for. Clones share it.
#[derive(Clone)]
pub struct Key {
    id: KeyId,
    scheme: Scheme,
    material: Arc<Material>,
}

pub(super) enum Material {
    Shared(Wiped<hkdf::Prk>),
    Pair(Wiped<Ed25519KeyPair>),
    Public([u8; 32]),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} {})", self.scheme, self.id)
    }
}

impl Key {
    /// A key from 32 secret bytes: the shared secret, or the seed of the pair (RFC 8032's private key).
    pub fn from_secret(scheme: Scheme, id: KeyId, secret: &[u8; 32]) -> Result<Self, KeyError> {
        if secret.iter().all(|byte| *byte == secret[0]) {
            return Err(KeyError::Trivial);
        }
        Ok(Self::from_any_secret(scheme, id, secret))
    }

    fn from_any_secret(scheme: Scheme, id: KeyId, secret: &[u8; 32]) -> Self {
        let material = match scheme {
            Scheme::Ed25519 => Material::Pair(Wiped::new(
                Ed25519KeyPair::from_seed_unchecked(secret).expect("a seed has 32 bytes"),
            )),
            Scheme::HmacSha256 | Scheme::Aes256Gcm => {
                let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"agentd-bus protect v1");
                Material::Shared(Wiped::new(salt.extract(secret)))
            }
        };
        Self {
            id,
            scheme,
            material: Arc::new(material),
        }
    }

    /// The public half of an Ed25519 pair: verifies, and can't sign.
    pub fn from_public(id: KeyId, public: [u8; 32]) -> Self {
        Self {
            id,
            scheme: Scheme::Ed25519,
            material: Arc::new(Material::Public(public)),
        }
    }

    /// A new random key, and the secret that makes it again.
    pub fn generate(scheme: Scheme, id: KeyId) -> Result<(Self, Zeroizing<[u8; 32]>), KeyError> {
        let mut secret = Zeroizing::new([0; 32]);
        SystemRandom::new()
            .fill(&mut secret[..])
            .map_err(|_| KeyError::Random)?;
        Ok((Self::from_any_secret(scheme, id, &secret), secret))
    }

    pub fn id(&self) -> KeyId {
        self.id
    }

    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The public half, of an Ed25519 key.
    pub fn public(&self) -> Option<[u8; 32]> {
        match &*self.material {
            Material::Shared(_) => None,
            Material::Pair(pair) => pair.public_key().as_ref().try_into().ok(),
            Material::Public(public) => Some(*public),
        }
    }

    /// True unless it is the public half alone.
    pub fn can_protect(&self) -> bool {
        !matches!(*self.material, Material::Public(_))
    }

    /// True if both have the same material.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.material, &other.material)
    }

    /// What protects the messages of one session.
    pub(super) fn session(&self, session: &[u8; 16]) -> SessionKey {
        let Material::Shared(prk) = &*self.material else {
            return SessionKey::Pair(self.material.clone());
        };
        let id = self.id.0.to_le_bytes();
        let info: [&[u8]; 4] = [b"session", &[self.scheme.code()], &id, session];
        let mut derived = Zeroizing::new([0; 32]);
        prk.expand(&info, hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut derived[..]))
            .expect("32 bytes are one block of HKDF-SHA-256");
        if self.scheme.seals() {
            let unbound = aead::UnboundKey::new(&aead::AES_256_GCM, &derived[..])
                .expect("AES-256 takes 32 bytes");
            SessionKey::Aead(Wiped::new(aead::LessSafeKey::new(unbound)))
        } else {
            SessionKey::Mac(Wiped::new(hmac::Key::new(hmac::HMAC_SHA256, &derived[..])))
        }
    }
}

/// The key of one session.
pub(super) enum SessionKey {
    Mac(Wiped<hmac::Key>),
    Aead(Wiped<aead::LessSafeKey>),
    Pair(Arc<Material>),
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey")
    }
}

/// 96 bits: 32 of zero and the counter. Unique under a session's key because the counter is.
fn nonce(counter: u64) -> aead::Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    aead::Nonce::assume_unique_for_key(bytes)
}

impl SessionKey {
    /// Appends body and tag to `out`.
    pub fn protect(
        &self,
        key: KeyId,
        counter: u64,
        transcript: &[u8],
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ProtectError> {
        let at = out.len();
        out.extend_from_slice(body);
        match self {
            Self::Aead(aead) => {
                let tag = aead
                    .seal_in_place_separate_tag(
                        nonce(counter),
                        aead::Aad::from(transcript),
                        &mut out[at..],
                    )
                    .expect("a frame is far below the cipher's limit of 64 GiB");
                out.extend_from_slice(tag.as_ref());
            }
            Self::Mac(mac) => {
                let mut context = hmac::Context::with_key(mac);
                context.update(transcript);
                context.update(body);
                out.extend_from_slice(context.sign().as_ref());
            }
            Self::Pair(material) => {
                let Material::Pair(pair) = &**material else {
                    return Err(ProtectError::VerifyOnly { key });
                };
                let message = [transcript, body].concat();
                out.extend_from_slice(pair.sign(&message).as_ref());
            }
        }
        Ok(())
    }

    /// Checks the tag and appends the plain body to `out`, which is as it was if the check fails.
    pub fn open(
        &self,
        key: KeyId,
        counter: u64,
        transcript: &[u8],
        body: &[u8],
        tag: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), ProtectError> {
        let forged = ProtectError::Forged { key };
        let at = out.len();
        match self {
            Self::Aead(aead) => {
                out.extend_from_slice(body);
                out.extend_from_slice(tag);
                let opened = aead
                    .open_in_place(nonce(counter), aead::Aad::from(transcript), &mut out[at..])
                    .map(|plain| plain.len());
                out.truncate(at + *opened.as_ref().unwrap_or(&0));
                return opened.map(drop).map_err(|_| forged);
            }
            Self::Mac(mac) => {
                // ring verifies a tag over one slice only; over two, it is computed and then compared, in constant time.
                let mut context = hmac::Context::with_key(mac);
                context.update(transcript);
                context.update(body);
                let computed = context.sign();
                if !is_equal(computed.as_ref(), tag) {
                    return Err(forged);
                }
            }
            Self::Pair(material) => {
                let public = match &**material {
                    Material::Pair(pair) => pair.public_key().as_ref().to_vec(),
                    Material::Public(public) => public.to_vec(),
                    Material::Shared(_) => return Err(forged),
                };
                UnparsedPublicKey::new(&ED25519, public)
                    .verify(&[transcript, body].concat(), tag)
                    .map_err(|_| forged)?;
            }
        }
        out.extend_from_slice(body);
        Ok(())
    }
}

/// Compares in a time that depends on the length alone.
fn is_equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .fold(0, |seen, (a, b)| std::hint::black_box(seen | (a ^ b)))
            == 0
}
