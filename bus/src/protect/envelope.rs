//! The bytes of a protected message: the envelope's fixed part, and the transcript of what is covered beside it.
//!
//! The transcript is never sent: both ends build it from what they know. Each of its parts is of fixed size or comes after its
//! length, so two different messages never have the same transcript. Pure; parses untrusted bytes.

#![forbid(unsafe_code)]

use super::ProtectError;
use super::key::{KeyId, Scheme};
use crate::frame::PeerId;

/// The version of the envelope and of the transcript.
pub const VERSION: u8 = 1;
/// Bytes before the body.
pub const FIXED_LEN: usize = 40;

/// Keeps this use of a key apart from any other.
const DOMAIN: &[u8; 24] = b"agentd-bus protect v1\0\0\0";

/// Names one protected message among all under its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// Random; see the module's parent.
    pub session: [u8; 16],
    /// Counts up from 0 in the session.
    pub counter: u64,
}

/// The fixed part of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    pub scheme: Scheme,
    pub key: KeyId,
    pub id: MessageId,
    pub sealed_at_ns: u64,
}

impl Fixed {
    /// Its bytes.
    pub fn encode(&self) -> [u8; FIXED_LEN] {
        let mut out = [0; FIXED_LEN];
        out[0] = VERSION;
        out[1] = self.scheme.code();
        out[4..8].copy_from_slice(&self.key.0.to_le_bytes());
        out[8..24].copy_from_slice(&self.id.session);
        out[24..32].copy_from_slice(&self.id.counter.to_le_bytes());
        out[32..40].copy_from_slice(&self.sealed_at_ns.to_le_bytes());
        out
    }

    /// Cuts untrusted bytes into the fixed part, the body and the tag.
    pub fn parse(bytes: &[u8]) -> Result<(Self, &[u8], &[u8]), ProtectError> {
        let short = |need| ProtectError::Short {
            len: bytes.len(),
            need,
        };
        let (fixed, rest) = bytes
            .split_first_chunk::<FIXED_LEN>()
            .ok_or(short(FIXED_LEN))?;
        if fixed[0] != VERSION {
            return Err(ProtectError::Version { found: fixed[0] });
        }
        let scheme = Scheme::from_code(fixed[1]).ok_or(ProtectError::Scheme { found: fixed[1] })?;
        if fixed[2..4] != [0, 0] {
            return Err(ProtectError::Reserved);
        }
        let body = rest
            .len()
            .checked_sub(scheme.tag_len())
            .ok_or(short(FIXED_LEN + scheme.tag_len()))?;
        let (body, tag) = rest.split_at(body);
        let mut session = [0; 16];
        session.copy_from_slice(&fixed[8..24]);
        let parsed = Self {
            scheme,
            key: KeyId(u32_at(fixed, 4)),
            id: MessageId {
                session,
                counter: u64_at(fixed, 24),
            },
            sealed_at_ns: u64_at(fixed, 32),
        };
        Ok((parsed, body, tag))
    }
}

fn u32_at(bytes: &[u8; FIXED_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; FIXED_LEN], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// What kind of message is protected. Part of the transcript, so that one can't be passed off as another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum What {
    Request = 1,
    Response = 2,
    /// An event to one agent.
    Send = 3,
    Broadcast = 4,
    /// An event to a topic.
    Publish = 5,
    /// A message of a lane or log: no frame.
    Payload = 6,
}

/// Everything that is covered beside the envelope.
#[derive(Clone, Copy, Debug)]
pub struct Transcript<'a> {
    pub what: What,
    /// The header flags that the bus leaves as they are.
    pub flags: u32,
    pub source: PeerId,
    /// Nil for broadcasts and topics.
    pub destination: PeerId,
    /// The request that this answers; all zero for the others.
    pub in_reply_to: MessageId,
    /// What stays readable of the payload; the caller's context for lanes and logs.
    pub visible: &'a [u8],
}

impl Transcript<'_> {
    /// The covered bytes up to the body.
    pub fn encode(&self, fixed: &[u8; FIXED_LEN], body_len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + 5 + 56 + 16 + FIXED_LEN + self.visible.len());
        out.extend_from_slice(DOMAIN);
        out.push(self.what as u8);
        out.extend_from_slice(&self.flags.to_le_bytes());
        out.extend_from_slice(&self.source.0);
        out.extend_from_slice(&self.destination.0);
        out.extend_from_slice(&self.in_reply_to.session);
        out.extend_from_slice(&self.in_reply_to.counter.to_le_bytes());
        out.extend_from_slice(&(self.visible.len() as u64).to_le_bytes());
        out.extend_from_slice(self.visible);
        out.extend_from_slice(&(body_len as u64).to_le_bytes());
        out.extend_from_slice(fixed);
        out
    }
}
