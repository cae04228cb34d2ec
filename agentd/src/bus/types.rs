//! What users of the bus inside the daemon see: peers, messages, replies, and why something failed.
//!
//! Plain data; any thread.

use agentd_bus::listing::Liveness;
use agentd_bus::message::Status;
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
    /// When the bus got it, nanoseconds since the Unix epoch.
    pub sent_ns: u64,
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
