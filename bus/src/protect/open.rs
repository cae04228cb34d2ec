//! The receiving side: verifies under the keyring, then asks the replay memory of this receiver.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::ProtectError;
use super::envelope::{Fixed, MessageId, Transcript};
use super::key::{KeyId, Scheme};
use super::keyring::Keyring;
use super::replay::Replay;
use super::seal::{now_ns, payload_transcript};

/// What is known of a message that was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Whoever holds this key (its private half, for Ed25519) made the message.
    pub key: KeyId,
    pub scheme: Scheme,
    pub id: MessageId,
    /// When, by the maker's clock.
    pub sealed_at_ns: u64,
}

impl From<Fixed> for Verified {
    fn from(fixed: Fixed) -> Self {
        Self {
            key: fixed.key,
            scheme: fixed.scheme,
            id: fixed.id,
            sealed_at_ns: fixed.sealed_at_ns,
        }
    }
}

/// One receiver of protected messages: takes each at most once.
#[derive(Debug)]
pub struct Opener {
    keyring: Arc<Keyring>,
    replay: Mutex<Replay>,
}

impl Opener {
    /// A receiver that begins now, and takes messages that were sealed up to `allowance` earlier.
    pub fn new(keyring: Arc<Keyring>, allowance: Duration) -> Self {
        let allowance = u64::try_from(allowance.as_nanos()).unwrap_or(u64::MAX);
        Self {
            keyring,
            replay: Mutex::new(Replay::new(now_ns().saturating_sub(allowance))),
        }
    }

    /// Verifies, refuses replays, appends the plain body to `out`; on an error `out` is as it was.
    pub(super) fn open(
        &self,
        transcript: &Transcript<'_>,
        envelope: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Verified, ProtectError> {
        let at = out.len();
        let fixed = self.keyring.open(transcript, envelope, out)?;
        let admitted = self
            .replay
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(&fixed, transcript.what);
        if let Err(error) = admitted {
            out.truncate(at);
            return Err(error);
        }
        Ok(fixed.into())
    }

    /// The reverse of [`super::Sealer::seal_payload`], with the same `context`.
    pub fn open_payload(
        &self,
        context: &[u8],
        envelope: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Verified, ProtectError> {
        let (fixed, ..) = Fixed::parse(envelope)?;
        self.open(&payload_transcript(fixed.scheme, context), envelope, out)
    }
}
