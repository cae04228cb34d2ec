//! Typed payloads: request, response, event, and the control messages between a client and the bus.
//!
//! Field limits are part of the format: a longer field is an error at both ends, never cut. All
//! integers are little-endian, all text is UTF-8. `docs/bus.md` has the same tables for people.
//!
//! Pure; parses untrusted bytes by copy-free views that never outlive them. Fails with
//! [`MessageError`], which says which field was wrong and what it may be.

#![forbid(unsafe_code)]

mod control;
mod direct;
mod exchange;
mod queue;
mod stream;
#[cfg(test)]
mod tests;

pub use control::{
    Control, Delivery, FdKind, HELLO_SHARED_MEMORY, HELLO_WANT_CRC, Shape, SubscribeOptions,
};
pub use direct::Direct;
pub use exchange::{Event, Request, Response};
pub use queue::{
    BATCH_MAX, BatchBuilder, DELIVERY_HEADER, DeadAction, Deliveries, Full, MESSAGE_HEADER,
    Messages, MessagesIter, Numbers, Outcome, QueueDelivery, QueueMessage, QueuePart, QueueSpec,
};
pub use stream::{ReplayFrom, Replayed, StreamKind, TopicSpec};

/// Longest method name of a request, bytes.
pub const METHOD_MAX: usize = 64;
/// Longest error text of a response, bytes.
pub const ERROR_MAX: usize = 256;
/// Longest event type, bytes.
pub const EVENT_TYPE_MAX: usize = 64;
/// Longest topic or topic pattern, bytes.
pub const TOPIC_MAX: usize = 128;
/// Longest agent name, bytes.
pub const NAME_MAX: usize = 64;
/// Longest name of a queue or group, bytes: with its prefix it is still a topic.
pub const QUEUE_NAME_MAX: usize = 100;
/// The topic that stands for a queue in a policy is this and its name.
pub const QUEUE_PREFIX: &str = "queue.";
/// The name that stands for a group in a policy, and the topic of a message to it, is this and its name.
pub const GROUP_PREFIX: &str = "group:";

/// Why a payload can't be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("{what} of {len} bytes is over its limit of {limit}")]
    TooLong {
        what: &'static str,
        len: usize,
        limit: usize,
    },
    #[error("{count} {what} in one batch are over the limit of {limit}")]
    TooMany {
        what: &'static str,
        count: usize,
        limit: usize,
    },
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what} needs {need} bytes but {have} are left")]
    Short {
        what: &'static str,
        need: usize,
        have: usize,
    },
    #[error("{extra} bytes follow the end of {what}")]
    Trailing { what: &'static str, extra: usize },
    #[error("{what} is not UTF-8")]
    NotUtf8 { what: &'static str },
    #[error("{what} is reserved and must be 0")]
    Reserved { what: &'static str },
    #[error("{what} {found} is unknown; known are {known}")]
    Unknown {
        what: &'static str,
        found: u32,
        known: &'static str,
    },
}

/// What became of a request, a send or a control message.
///
/// 1 to 99 are said by the bus alone: it refuses them from agents, so whoever reads `PeerGone` knows
/// that the kernel said so. 100 and up belong to applications.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u32);

impl Status {
    pub const OK: Self = Self(0);
    /// The policy does not allow it, or the other agent belongs to another user.
    pub const DENIED: Self = Self(1);
    /// No agent of that name or id is there.
    pub const NO_SUCH_AGENT: Self = Self(2);
    /// The agent ended before it answered.
    pub const PEER_GONE: Self = Self(3);
    /// The deadline passed first.
    pub const DEADLINE: Self = Self(4);
    /// A bounded queue is full; try again later.
    pub const QUEUE_FULL: Self = Self(5);
    /// The bus could not make sense of the message.
    pub const MALFORMED: Self = Self(6);
    /// Larger than the receiving connection takes.
    pub const TOO_LARGE: Self = Self(7);
    /// The requester withdrew it.
    pub const CANCELLED: Self = Self(8);
    /// Nothing is open under that correlation id, or it is someone else's.
    pub const NO_SUCH_REQUEST: Self = Self(9);
    /// The other side can't do this, e.g. take lanes.
    pub const UNSUPPORTED: Self = Self(10);
    /// The bus that introduced the two sides of a lane was restarted: open another. Never sent.
    pub const REPLACED: Self = Self(11);
    /// No queue of that name or number is there, or open here.
    pub const NO_SUCH_QUEUE: Self = Self(12);
    /// The durable store did not take it.
    pub const NOT_STORED: Self = Self(13);
    /// The answering agent reports a failure of its own.
    pub const FAILED: Self = Self(100);

    /// True for the range that only the bus may use.
    pub fn is_bus_only(self) -> bool {
        (1..100).contains(&self.0)
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match *self {
            Self::OK => "ok",
            Self::DENIED => "denied",
            Self::NO_SUCH_AGENT => "no such agent",
            Self::PEER_GONE => "peer gone",
            Self::DEADLINE => "deadline passed",
            Self::QUEUE_FULL => "queue full",
            Self::MALFORMED => "malformed",
            Self::TOO_LARGE => "too large",
            Self::CANCELLED => "cancelled",
            Self::NO_SUCH_REQUEST => "no such request",
            Self::UNSUPPORTED => "unsupported",
            Self::REPLACED => "replaced",
            Self::NO_SUCH_QUEUE => "no such queue",
            Self::NOT_STORED => "not stored",
            Self::FAILED => "failed",
            Self(other) => return write!(f, "status {other}"),
        };
        f.write_str(text)
    }
}
