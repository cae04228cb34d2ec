//! Signed and sealed messages: what two agents that share a key can prove to each other and hide
//! from everyone between them, the bus included.
//!
//! Three schemes: HMAC-SHA-256 and Ed25519 sign, AES-256-GCM seals. What the router needs (method
//! and time-out, status, topic and type) stays readable and is covered; the parameters, result or
//! data become an *envelope*:
//!
//! | at | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version, 1 |
//! | 1 | 1 | scheme: 1 HMAC-SHA-256, 2 Ed25519, 3 AES-256-GCM |
//! | 2 | 2 | 0 |
//! | 4 | 4 | key id |
//! | 8 | 16 | session: random, one for each sealer and each time its limit is reached |
//! | 24 | 8 | counter in the session |
//! | 32 | 8 | time of sealing, ns since the Unix epoch |
//! | 40 | n | the body; encrypted by AES-256-GCM |
//! | 40 + n | 32, 64, 16 | HMAC, signature or tag |
//!
//! **Covered** is all of the envelope and the transcript in front of it ([`envelope`]): what kind
//! of message, the flags that the bus leaves alone, sender and receiver, everything readable in the
//! payload, and for an answer the request that it answers. **Not covered** is what the bus itself
//! writes: time stamp, CRC, correlation id, descriptor flag. Sender and receiver are covered
//! although the bus writes them too, because both ends know them without it.
//!
//! **Nonces can't repeat.** A secret is never a cipher key itself: each session has its own,
//! derived by HKDF-SHA-256 from secret, scheme, key id and the 128 random bits of the session, and
//! the nonce is the counter. Before a session's key has encrypted [`seal::BLOCKS_MAX`] blocks or
//! [`seal::MESSAGES_MAX`] messages a new session begins; so it does in a forked child.
//!
//! **Replays** are refused per receiver: see [`replay`].
//!
//! Pure but for the clock, the kernel's random numbers and key files; any thread, no privilege.
//! Keys are wiped when dropped and never printed. Comparisons of secrets take the same time
//! whatever they find (ring). Fails with [`ProtectError`]. Start with [`Protection`] for a client,
//! [`Sealer`] and [`Opener`] for payloads of lanes and logs.

pub mod envelope;
mod frames;
pub mod key;
pub mod keyfile;
mod keyring;
pub mod open;
pub mod policy;
pub mod replay;
pub mod seal;
#[cfg(all(test, not(miri)))]
mod tests;
#[cfg(all(test, not(miri)))]
mod vectors;

pub use envelope::MessageId;
pub use frames::{Opened, open_answer, open_frame, protect_frame};
pub use key::{Key, KeyError, KeyId, Scheme};
pub use keyfile::KeyFileError;
pub use keyring::Keyring;
pub use open::{Opener, Verified};
pub use policy::{Demand, Protection, Scope};
pub use seal::Sealer;

use crate::message::MessageError;

/// Why a message was not protected, or not believed. Says nothing that a forger could use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtectError {
    #[error("the message is neither signed nor sealed, and {demand} is demanded here")]
    Plain { demand: Demand },
    #[error("the message is only signed, and {demand} is demanded here")]
    OnlySigned { demand: Demand },
    #[error("the answer to a {scheme} request is not protected; it says, unverified: {says}")]
    PlainAnswer { scheme: Scheme, says: String },
    #[error("a protected message of {len} bytes is cut off: its envelope takes {need} or more")]
    Short { len: usize, need: usize },
    #[error(
        "envelope version {found} is not spoken here; version {} is",
        envelope::VERSION
    )]
    Version { found: u8 },
    #[error(
        "protection scheme {found} is unknown; known are 1 HMAC-SHA-256, 2 Ed25519, 3 AES-256-GCM"
    )]
    Scheme { found: u8 },
    #[error("an envelope field that must be 0 is not")]
    Reserved,
    #[error("the frame's flags and its envelope disagree whether it is signed or sealed")]
    FlagsDisagree,
    #[error("key {key} is not known here; known are {known}")]
    UnknownKey { key: KeyId, known: String },
    #[error("key {key} is for {expected}, and the message says {found}")]
    WrongScheme {
        key: KeyId,
        expected: Scheme,
        found: Scheme,
    },
    #[error(
        "the message does not verify under key {key}: it was altered, was meant for another receiver or answers another request, or its maker has a different key of that id"
    )]
    Forged { key: KeyId },
    #[error("message {counter} under key {key} was received before")]
    Replayed { key: KeyId, counter: u64 },
    #[error(
        "message {counter} under key {key} is {behind} behind the latest: more than the {} that are remembered, so whether it was received before is not known",
        replay::WINDOW
    )]
    TooFarBehind {
        key: KeyId,
        counter: u64,
        behind: u64,
    },
    #[error(
        "the message under key {key} was sealed {early_ms} ms before this receiver can tell a replay from a message under way"
    )]
    TooEarly { key: KeyId, early_ms: u64 },
    #[error("key {key} can only verify: signing takes the private half")]
    VerifyOnly { key: KeyId },
    #[error("another key of id {key} is held already; give each key an id of its own")]
    IdTaken { key: KeyId },
    #[error("the kernel gave no random numbers for a session")]
    Random,
    #[error("a {what} frame can't be protected; requests, responses and events can")]
    NotProtectable { what: &'static str },
    #[error(transparent)]
    Message(#[from] MessageError),
}
