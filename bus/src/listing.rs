//! What the bus answers to control messages: the welcome, the list of agents, a batch of the inbox.
//!
//! Pure; same rules as `message`: limits are errors, trailing bytes are errors.

#![forbid(unsafe_code)]

use crate::channel::Tier;
use crate::frame::{Frame, HEADER_LEN, Header, PAYLOAD_CEILING, PeerId, check_header};
use crate::message::{MessageError, NAME_MAX};
use crate::wire::{Reader, check_len};
use zerocopy::FromBytes;

/// Result of `Hello`: what the connection may do and who it speaks for.
///
/// `version u16 · tier u8 · 0 u8 · short u32 · max_payload u32 · max_inflight u32 · heartbeat_ms u32 · id 16 · name`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub version: u16,
    /// What this agent has, and why.
    pub tier: Tier,
    /// The agent's short id.
    pub short: u32,
    /// Largest payload of one frame on this connection, bytes.
    pub max_payload: u32,
    /// Most requests that may be open at a time on this connection.
    pub max_inflight: u32,
    /// Send something at least this often.
    pub heartbeat_ms: u32,
    /// The agent's id: the source of everything sent here.
    pub id: PeerId,
    pub name: String,
}

impl Welcome {
    /// Reads untrusted bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u16("version")?;
        let tier = reader.u8("tier")?;
        let tier = Tier::from_code(tier).ok_or(MessageError::Unknown {
            what: "tier",
            found: tier.into(),
            known: "0 shared memory, 1 to 3 socket",
        })?;
        reader.zero(1, "welcome field at 3")?;
        let short = reader.u32("short id")?;
        let max_payload = reader.u32("max payload")?;
        let max_inflight = reader.u32("max inflight")?;
        let heartbeat_ms = reader.u32("heartbeat interval")?;
        let id = PeerId(reader.id("agent id")?);
        let name = reader.rest();
        let name = Reader::new(name)
            .text(name.len(), NAME_MAX, "agent name")?
            .to_owned();
        Ok(Self {
            version,
            tier,
            short,
            max_payload,
            max_inflight,
            heartbeat_ms,
            id,
            name,
        })
    }

    /// The result's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        check_len(self.name.len(), NAME_MAX, "agent name")?;
        let mut out = Vec::with_capacity(36 + self.name.len());
        out.extend_from_slice(&self.version.to_le_bytes());
        out.extend_from_slice(&[self.tier.code(), 0]);
        for value in [
            self.short,
            self.max_payload,
            self.max_inflight,
            self.heartbeat_ms,
        ] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(self.name.as_bytes());
        Ok(out)
    }
}

/// Whether an agent shows life on the bus. The end of its process is known from the kernel and
/// removes it at once; this is about an agent that runs but does not speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// No connection of its own: it may still read its inbox over MCP.
    Quiet,
    /// A connection spoke within three heartbeat intervals.
    Alive,
    /// Connected, but nothing came for three intervals.
    Late,
}

impl Liveness {
    /// The word used in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Alive => "alive",
            Self::Late => "late",
        }
    }
}

/// One agent in the answer to `Agents`:
/// `id 16 · short u32 · queued u32 · flags u16 · name_len u16 · name`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEntry {
    pub id: PeerId,
    pub short: u32,
    /// Messages that wait in its inbox.
    pub queued: u32,
    pub liveness: Liveness,
    /// Something of it answers requests.
    pub serving: bool,
    /// The asking agent may send to it.
    pub may_send: bool,
    /// How its messages travel.
    pub tier: Tier,
    pub name: String,
}

const SERVING: u16 = 1;
const MAY_SEND: u16 = 2;
/// Bits 2-3 are the liveness, bits 4-5 the tier.
const LIVENESS_SHIFT: u16 = 2;
const TIER_SHIFT: u16 = 4;

impl PeerEntry {
    /// Reads a whole list of untrusted bytes.
    pub fn parse_list(bytes: &[u8]) -> Result<Vec<Self>, MessageError> {
        let mut reader = Reader::new(bytes);
        let mut list = Vec::new();
        while !reader.is_empty() {
            let id = PeerId(reader.id("agent id")?);
            let short = reader.u32("short id")?;
            let queued = reader.u32("queued")?;
            let bits = reader.u16("agent flags")?;
            let name_len = reader.u16("name length")?;
            let name = reader
                .text(usize::from(name_len), NAME_MAX, "agent name")?
                .to_owned();
            let reserved = |what| MessageError::Reserved { what };
            let liveness = match bits >> LIVENESS_SHIFT & 3 {
                0 => Liveness::Quiet,
                1 => Liveness::Alive,
                2 => Liveness::Late,
                _ => return Err(reserved("liveness 3")),
            };
            let tier = u8::try_from(bits >> TIER_SHIFT)
                .ok()
                .and_then(Tier::from_code);
            let tier = tier.ok_or(reserved("agent flags above bit 5"))?;
            let (serving, may_send) = (bits & SERVING != 0, bits & MAY_SEND != 0);
            list.push(Self {
                id,
                short,
                queued,
                liveness,
                serving,
                may_send,
                tier,
                name,
            });
        }
        Ok(list)
    }

    /// Appends this entry.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), MessageError> {
        check_len(self.name.len(), NAME_MAX, "agent name")?;
        let liveness = match self.liveness {
            Liveness::Quiet => 0,
            Liveness::Alive => 1,
            Liveness::Late => 2,
        };
        let bits = u16::from(self.tier.code()) << TIER_SHIFT
            | liveness << LIVENESS_SHIFT
            | if self.serving { SERVING } else { 0 }
            | if self.may_send { MAY_SEND } else { 0 };
        out.extend_from_slice(&self.id.0);
        out.extend_from_slice(&self.short.to_le_bytes());
        out.extend_from_slice(&self.queued.to_le_bytes());
        out.extend_from_slice(&u16::to_le_bytes(bits));
        out.extend_from_slice(&(self.name.len() as u16).to_le_bytes());
        out.extend_from_slice(self.name.as_bytes());
        Ok(())
    }
}

/// Result of `Inbox`: `lost u64`, then per message `name_len u8 · name · frame`. The name is the
/// sender's, so that a message can be read after its sender has gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InboxBatch {
    /// Topic messages dropped since the last batch because the inbox was full.
    pub lost: u64,
    /// Oldest first: the sender's name and the message.
    pub messages: Vec<(String, Frame)>,
}

impl InboxBatch {
    /// Bytes that one message takes in a batch.
    pub fn entry_len(name: &str, frame: &Frame) -> usize {
        1 + name.len() + frame.wire_len()
    }

    /// Reads untrusted bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        let mut reader = Reader::new(bytes);
        let lost = reader.u64("lost")?;
        let mut messages = Vec::new();
        while !reader.is_empty() {
            let name_len = reader.u8("name length")?;
            let name = reader
                .text(usize::from(name_len), NAME_MAX, "agent name")?
                .to_owned();
            let header = reader.bytes(HEADER_LEN, "message header")?;
            let header = Header::read_from_bytes(header).map_err(|_| MessageError::Short {
                what: "message header",
                need: HEADER_LEN,
                have: header.len(),
            })?;
            check_header(&header, PAYLOAD_CEILING).map_err(|_| MessageError::Missing {
                what: "valid message header",
            })?;
            let payload = reader
                .bytes(header.payload_len.get() as usize, "message payload")?
                .into();
            messages.push((name, Frame { header, payload }));
        }
        Ok(Self { lost, messages })
    }

    /// The result's bytes.
    pub fn encode(&self) -> Result<Vec<u8>, MessageError> {
        let mut out = self.lost.to_le_bytes().to_vec();
        for (name, frame) in &self.messages {
            check_len(name.len(), NAME_MAX, "agent name")?;
            Self::encode_entry(name, frame, &mut out);
        }
        Ok(out)
    }

    /// Appends one message to a result, behind the count of what was lost. `name` is an agent's, so it was checked.
    pub(crate) fn encode_entry(name: &str, frame: &Frame, out: &mut Vec<u8>) {
        debug_assert!(name.len() <= NAME_MAX);
        out.push(name.len() as u8);
        out.extend_from_slice(name.as_bytes());
        frame.encode_into(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::SocketOnly;
    use crate::frame::kind;

    #[test]
    fn answers_survive_a_round_trip() {
        let welcome = Welcome {
            version: 1,
            tier: Tier::Socket(SocketOnly::Policy),
            short: 7,
            max_payload: 1 << 20,
            max_inflight: 256,
            heartbeat_ms: 5000,
            id: PeerId([9; 16]),
            name: "fixer".into(),
        };
        assert_eq!(Welcome::parse(&welcome.encode().unwrap()), Ok(welcome));

        let peers: Vec<PeerEntry> = [Liveness::Quiet, Liveness::Alive, Liveness::Late]
            .into_iter()
            .enumerate()
            .map(|(i, liveness)| PeerEntry {
                id: PeerId([i as u8; 16]),
                short: i as u32,
                queued: 3,
                liveness,
                serving: i == 1,
                may_send: i != 1,
                tier: Tier::from_code(i as u8).unwrap(),
                name: format!("agent-{i}"),
            })
            .collect();
        let mut bytes = Vec::new();
        for peer in &peers {
            peer.encode_into(&mut bytes).unwrap();
        }
        assert_eq!(PeerEntry::parse_list(&bytes), Ok(peers));
        assert!(PeerEntry::parse_list(&bytes[..bytes.len() - 1]).is_err());

        let frame = Frame::new(kind::EVENT, PeerId([1; 16]), 4, *b"payload");
        let batch = InboxBatch {
            lost: 2,
            messages: vec![("fixer".into(), frame.clone()), ("b".into(), frame)],
        };
        let bytes = batch.encode().unwrap();
        assert_eq!(InboxBatch::parse(&bytes), Ok(batch));
        assert!(InboxBatch::parse(&bytes[..bytes.len() - 1]).is_err());
    }
}
