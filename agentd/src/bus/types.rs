//! What users of the bus inside the daemon see: peers, messages, replies, and why something failed.
//!
//! Plain data; any thread.

use agentd_bus::frame::{Frame, flags, kind};
use agentd_bus::listing::{Liveness, PeerEntry};
use agentd_bus::message::{Event, Request, Status};
use serde::Serialize;
use uuid::Uuid;

/// An agent as another agent of the same user sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerInfo {
    pub id: Uuid,
    pub name: String,
    /// Unique among live agents.
    pub short: u32,
    /// Messages that wait in its inbox.
    pub queued: u32,
    /// `alive`, `late` (connected, silent for three heartbeats) or `quiet` (no connection of its own).
    #[serde(serialize_with = "liveness_word")]
    pub liveness: Liveness,
    /// Something of it answers requests as they come.
    pub serving: bool,
    /// The asking agent may send to it.
    pub may_send: bool,
}

fn liveness_word<S: serde::Serializer>(
    liveness: &Liveness,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(liveness.as_str())
}

impl From<PeerEntry> for PeerInfo {
    fn from(entry: PeerEntry) -> Self {
        Self {
            id: Uuid::from_bytes(entry.id.0),
            name: entry.name,
            short: entry.short,
            queued: entry.queued,
            liveness: entry.liveness,
            serving: entry.serving,
            may_send: entry.may_send,
        }
    }
}

/// What a message in an inbox is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Sent to this agent.
    Direct { event_type: String },
    /// Published to a topic that this agent follows.
    Topic { topic: String, event_type: String },
    /// A request that waits for an answer: give `request_id` to [`super::AgentPort::respond`].
    Request { method: String, request_id: u32 },
}

/// One message out of an inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The sender's name at the time of sending.
    pub from: String,
    pub from_id: Uuid,
    pub kind: MessageKind,
    pub payload: Vec<u8>,
    /// `signed` or `sealed` between two agents: the payload is an envelope that takes their key to read.
    pub protection: Option<&'static str>,
    /// When the bus got it, nanoseconds since the Unix epoch.
    pub sent_ns: u64,
}

/// How a frame's body is protected, if it is.
pub(super) fn protection(frame: &Frame) -> Option<&'static str> {
    let bits = frame.header.flags.get();
    if bits & flags::SEALED != 0 {
        Some("sealed")
    } else if bits & flags::SIGNED != 0 {
        Some("signed")
    } else {
        None
    }
}

impl Message {
    /// Reads a message of an inbox; `None` for one that no inbox holds.
    pub(super) fn from_frame(from: String, frame: &Frame) -> Option<Self> {
        let (kind, payload) = if frame.kind() == kind::REQUEST {
            let request = Request::parse(&frame.payload).ok()?;
            let kind = MessageKind::Request {
                method: request.method.to_owned(),
                request_id: frame.correlation(),
            };
            (kind, request.params.to_vec())
        } else {
            let event = Event::parse(&frame.payload).ok()?;
            let event_type = event.event_type.to_owned();
            let kind = if event.topic.is_empty() {
                MessageKind::Direct { event_type }
            } else {
                MessageKind::Topic {
                    topic: event.topic.to_owned(),
                    event_type,
                }
            };
            (kind, event.data.to_vec())
        };
        let header = &frame.header;
        Some(Self {
            from,
            from_id: Uuid::from_bytes(header.source.0),
            kind,
            payload,
            protection: protection(frame),
            sent_ns: header.timestamp_ns.get(),
        })
    }
}

/// What a read of the inbox gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inbox {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// Topic messages dropped since the last read because the inbox was full.
    pub lost: u64,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Who answered.
    pub from_id: Uuid,
    pub payload: Vec<u8>,
}

/// Why the bus, or the agent at the other end, did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {text}")]
pub struct BusError {
    pub status: Status,
    /// For the person or model that has to act on it.
    pub text: String,
}

impl BusError {
    /// An error with its text.
    pub fn new(status: Status, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }
}
