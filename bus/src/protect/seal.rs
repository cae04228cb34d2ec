//! The sending side: one key, a session of it, and the counter that makes each nonce the only one of its kind.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ring::rand::{SecureRandom, SystemRandom};

use super::ProtectError;
use super::envelope::{Fixed, MessageId, Transcript, What};
use super::key::{Key, KeyId, Scheme, SessionKey};
use crate::frame::PeerId;

/// Blocks of 16 bytes that one session's key encrypts at most: beyond 2^36 an observer's chance of telling the cipher from a
/// random permutation passes 2^-57 (the bound of RFC 8446, section 5.5).
pub const BLOCKS_MAX: u64 = 1 << 36;
/// Messages of one session at most (NIST SP 800-38D, section 8.3).
pub const MESSAGES_MAX: u64 = 1 << 32;

/// Protects messages under one key. Shared freely between threads.
#[derive(Debug)]
pub struct Sealer {
    key: Key,
    session: Mutex<Session>,
}

#[derive(Debug)]
struct Session {
    id: [u8; 16],
    key: Arc<SessionKey>,
    next: u64,
    blocks: u64,
    /// Whose it is: a forked child would repeat the counters of its parent.
    pid: u32,
}

impl Session {
    fn begin(key: &Key) -> Result<Self, ProtectError> {
        let mut id = [0; 16];
        SystemRandom::new()
            .fill(&mut id)
            .map_err(|_| ProtectError::Random)?;
        Ok(Self {
            id,
            key: Arc::new(key.session(&id)),
            next: 0,
            blocks: 0,
            pid: std::process::id(),
        })
    }
}

pub(super) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        })
}

impl Sealer {
    /// Begins a session. A public key is refused: it can only verify.
    pub fn new(key: Key) -> Result<Self, ProtectError> {
        if !key.can_protect() {
            return Err(ProtectError::VerifyOnly { key: key.id() });
        }
        let session = Mutex::new(Session::begin(&key)?);
        Ok(Self { key, session })
    }

    pub fn key_id(&self) -> KeyId {
        self.key.id()
    }

    pub fn scheme(&self) -> Scheme {
        self.key.scheme()
    }

    /// A counter that nobody else has, in a session whose key has room for `len` bytes more.
    fn claim(&self, len: usize) -> Result<(Arc<SessionKey>, MessageId), ProtectError> {
        // The body, the block that masks the tag, and the covered bytes, which are hashed only.
        let blocks = (len as u64).div_ceil(16) + 1;
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.next >= MESSAGES_MAX
            || session.blocks.saturating_add(blocks) > BLOCKS_MAX
            || session.pid != std::process::id()
        {
            *session = Session::begin(&self.key)?;
        }
        let id = MessageId {
            session: session.id,
            counter: session.next,
        };
        session.next += 1;
        session.blocks += blocks;
        Ok((session.key.clone(), id))
    }

    /// Appends the envelope of `body` to `out`.
    pub(super) fn protect(
        &self,
        transcript: &Transcript<'_>,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<MessageId, ProtectError> {
        let (session, id) = self.claim(body.len())?;
        let fixed = Fixed {
            scheme: self.key.scheme(),
            key: self.key.id(),
            id,
            sealed_at_ns: now_ns(),
        }
        .encode();
        out.reserve(fixed.len() + body.len() + self.key.scheme().tag_len());
        out.extend_from_slice(&fixed);
        let covered = transcript.encode(&fixed, body.len());
        session.protect(self.key.id(), id.counter, &covered, body, out)?;
        Ok(id)
    }

    /// Wraps the payload of a lane or log message and appends it to `out`. `context` is covered and
    /// not sent: whatever both ends know of the message, such as the channel's purpose and the
    /// tag's kind and correlation.
    pub fn seal_payload(
        &self,
        context: &[u8],
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<MessageId, ProtectError> {
        self.protect(&payload_transcript(self.scheme(), context), payload, out)
    }

    #[cfg(test)]
    pub(super) fn skip_to(&self, next: u64, blocks: u64) {
        let mut session = self.session.lock().unwrap();
        (session.next, session.blocks) = (next, blocks);
    }

    #[cfg(test)]
    pub(super) fn pretend_forked(&self) {
        self.session.lock().unwrap().pid ^= 1 << 30;
    }
}

/// The transcript of a message that is no frame.
pub(super) fn payload_transcript(scheme: Scheme, context: &[u8]) -> Transcript<'_> {
    Transcript {
        what: What::Payload,
        flags: super::frames::flag_of(scheme),
        source: PeerId::BUS,
        destination: PeerId::BUS,
        in_reply_to: MessageId::default(),
        visible: context,
    }
}
