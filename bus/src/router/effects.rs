//! What the router asks of the daemon around it.

use std::sync::Arc;

use crate::frame::{FrameError, PeerId};
use crate::message::Status;

use super::ConnId;
use super::channels::ChannelEvent;
use super::persist::Persist;
use super::queue::QueueStep;
use super::routes::RouteEvent;

/// What has to be done after a call of the router. Reuse one value and drain it.
#[derive(Debug)]
pub struct Effects<F = ()> {
    /// These connections have something to [`pull`](super::Router::pull).
    pub wake: Vec<ConnId>,
    /// These connections are to be closed; what still waits for them may be written first.
    pub close: Vec<(ConnId, CloseReason)>,
    /// For the record.
    pub record: Vec<MessageMeta>,
    /// For whoever watches a queue; not for the record.
    pub steps: Vec<QueueStep>,
    /// Shared memory that has come into use or out of it.
    pub channels: Vec<ChannelEvent<F>>,
    /// From these connections more may be read again, if [`is_congested`](super::Router::is_congested) agrees.
    pub resume: Vec<ConnId>,
    /// For the durable store, in this order.
    pub persist: Vec<Persist>,
    /// Lanes to the bus itself, for whoever has their memory.
    pub routes: Vec<RouteEvent<F>>,
}

impl<F> Default for Effects<F> {
    fn default() -> Self {
        Self {
            wake: Vec::new(),
            close: Vec::new(),
            record: Vec::new(),
            steps: Vec::new(),
            channels: Vec::new(),
            resume: Vec::new(),
            persist: Vec::new(),
            routes: Vec::new(),
        }
    }
}

impl<F> Effects<F> {
    /// Whether nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.wake.is_empty()
            && self.close.is_empty()
            && self.record.is_empty()
            && self.steps.is_empty()
            && self.channels.is_empty()
            && self.resume.is_empty()
            && self.persist.is_empty()
            && self.routes.is_empty()
    }
}

/// Why the bus ends a connection. The text is sent as an ERROR notice before it closes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error("the agent has ended or was detached from the bus")]
    Detached,
    #[error("the peer has finished and has all its answers")]
    Finished,
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("the first frame must be hello; got type {kind:#06x}")]
    NotGreeted { kind: u16 },
    #[error(
        "bus protocol version {asked} is not spoken here; version {} is",
        crate::frame::VERSION
    )]
    Version { asked: u16 },
    #[error("frame claims to come from {claimed}, but this connection belongs to {owner}")]
    ForgedSource { claimed: PeerId, owner: PeerId },
    #[error("correlation id {correlation} is already open on this connection, or is 0")]
    CorrelationInUse { correlation: u32 },
    #[error("too many answers wait unread on this connection")]
    SlowReader,
    #[error("topic messages wait unread on this connection, whose subscription ends with it then")]
    SlowSubscriber,
    #[error("file descriptors came with a frame that takes none")]
    StrayDescriptor,
    #[error("not the {what} that this message carries: {why}")]
    BadDescriptor { what: &'static str, why: String },
    #[error("the stream ended inside a frame, {bytes} bytes into it")]
    CutOff { bytes: usize },
    #[error("no hello within {seconds} s")]
    GreetingTimeout { seconds: u32 },
    #[error("a frame was begun but not finished within {seconds} s")]
    StalledFrame { seconds: u32 },
    #[error("the bus failed over a frame of this connection: a bug of agentd, which its log names")]
    Fault,
}

/// What the record keeps of one message: never its contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageMeta {
    /// Counts up from 1 over the life of the router.
    pub seq: u64,
    /// Whose agents they are; `None` if both have gone.
    pub uid: Option<u32>,
    pub from: PeerId,
    pub from_name: Arc<str>,
    /// The addressed agent; `None` for a topic. The name is empty if there is no such agent.
    pub to: Option<(PeerId, Arc<str>)>,
    /// The topic; `None` for an agent.
    pub topic: Option<Arc<str>>,
    /// `send`, `publish`, `broadcast`, `multicast`, `produce`, `request`, `response`, `lane`, `log`, `dead-letter`.
    pub kind: &'static str,
    /// The method of a request or response, the type of an event.
    pub what: Arc<str>,
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
