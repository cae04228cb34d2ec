//! The router: what each frame means and who gets it. Bytes and time in, frames and effects out.

#![forbid(unsafe_code)]

use crate::frame::PeerId;
use crate::message::Status;

/// What the record keeps of one message: never its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageMeta {
    /// Counts up from 1 over the life of the router.
    pub seq: u64,
    pub from: PeerId,
    pub from_name: String,
    /// The addressed agent; `None` for a topic.
    pub to: Option<(PeerId, String)>,
    /// The topic; `None` for an agent.
    pub topic: Option<String>,
    /// `send`, `publish`, `broadcast`, `request`, `response`, `lane`.
    pub kind: &'static str,
    /// The method of a request, the type of an event.
    pub what: String,
    /// Bytes of payload.
    pub bytes: u32,
    /// Ties a response to its request; 0 for the others.
    pub correlation: u32,
    /// Nanoseconds since the Unix epoch.
    pub at_ns: u64,
    /// What became of it.
    pub outcome: Status,
    /// How many queues it was put in.
    pub receivers: u32,
}
