//! Who may talk to whom: the one place that the router asks.
//!
//! Two rules. Agents of different users never see each other: no policy can lift that. Within one
//! user, each agent's policy says whom it may address and which topics it may use.
//!
//! Pure; answers are decided from the daemon's own data, never from a frame.

#![forbid(unsafe_code)]

use crate::topic::{PEERS_TOPIC, RESERVED_PREFIX};

/// One agent's policy as the bus needs it.
pub trait Access: Send + Sync + std::fmt::Debug {
    /// May it send one-way messages to the agent called `to`?
    fn may_send(&self, to: &str) -> bool;
    /// May it ask the agent called `to` and await the answer?
    fn may_request(&self, to: &str) -> bool;
    /// May it publish to this exact topic?
    fn may_publish(&self, topic: &str) -> bool;
    /// May it follow all that this pattern covers?
    fn may_subscribe(&self, pattern: &str) -> bool;
    /// Was refused this just now, by one of the answers above. Not asked again when rights change, nor for lists. Must not wait:
    /// it runs on the router's thread, for refused wishes alone.
    fn refused(&self, _right: Right, _what: &str) {}
    /// May its processes share memory with those of others? If not, all its messages go through the socket.
    fn may_share_memory(&self) -> bool {
        true
    }
}

/// What a revocation takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Right {
    Send,
    Request,
    Publish,
    Subscribe,
}

impl Right {
    /// The key of the policy's `[ipc]` section that grants it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Request => "request",
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

impl std::str::FromStr for Right {
    type Err = UnknownRight;

    fn from_str(text: &str) -> Result<Self, UnknownRight> {
        Ok(match text {
            "send" => Self::Send,
            "request" => Self::Request,
            "publish" => Self::Publish,
            "subscribe" => Self::Subscribe,
            _ => return Err(UnknownRight(text.to_owned())),
        })
    }
}

/// Not the name of a right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no right on the bus; there are send, request, publish and subscribe")]
pub struct UnknownRight(String);

/// Everything, to everyone of the same user: what a trusted part of the daemon has, and tests.
#[derive(Clone, Copy, Debug)]
pub struct SameUser;

impl Access for SameUser {
    fn may_send(&self, _to: &str) -> bool {
        true
    }
    fn may_request(&self, _to: &str) -> bool {
        true
    }
    fn may_publish(&self, _topic: &str) -> bool {
        true
    }
    fn may_subscribe(&self, _pattern: &str) -> bool {
        true
    }
}

/// Tells the agent's rules of a refusal, and passes it on.
pub(crate) fn told(
    checked: Result<(), String>,
    rules: &dyn Access,
    right: Right,
    what: &str,
) -> Result<(), String> {
    checked.inspect_err(|_| rules.refused(right, what))
}

/// As [`check_publish`], of an agent that wants to now.
pub(crate) fn ask_publish(from: Party<'_>, rules: &dyn Access, topic: &str) -> Result<(), String> {
    told(
        check_publish(from, rules, topic),
        rules,
        Right::Publish,
        topic,
    )
}

/// As [`check_subscribe`], of an agent that wants to now.
pub(crate) fn ask_subscribe(
    from: Party<'_>,
    rules: &dyn Access,
    pattern: &str,
) -> Result<(), String> {
    let checked = check_subscribe(from, rules, pattern);
    told(checked, rules, Right::Subscribe, pattern)
}

/// What one agent wants of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    Send,
    Request,
}

impl Wish {
    pub const fn right(self) -> Right {
        match self {
            Self::Send => Right::Send,
            Self::Request => Right::Request,
        }
    }
}

/// The asking side, as the daemon knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Party<'a> {
    pub uid: u32,
    pub name: &'a str,
}

/// May `from` address `to`? The error is the text that the asking agent sees.
pub(crate) fn check_address(
    from: Party<'_>,
    rules: &dyn Access,
    to: Party<'_>,
    wish: Wish,
) -> Result<(), String> {
    debug_assert_eq!(from.uid, to.uid, "look-ups are made within one uid");
    let (allowed, key) = match wish {
        Wish::Send => (from.uid == to.uid && rules.may_send(to.name), "send"),
        Wish::Request => (from.uid == to.uid && rules.may_request(to.name), "request"),
    };
    if allowed {
        Ok(())
    } else {
        Err(format!(
            "the policy of {} does not allow it to {key} to {}; its [ipc] {key} list names who it may address",
            from.name, to.name
        ))
    }
}

/// May `from` publish to `topic`?
pub(crate) fn check_publish(
    from: Party<'_>,
    rules: &dyn Access,
    topic: &str,
) -> Result<(), String> {
    if topic.starts_with(RESERVED_PREFIX) {
        return Err(format!(
            "topics under {RESERVED_PREFIX} are published by the bus alone"
        ));
    }
    if rules.may_publish(topic) {
        Ok(())
    } else {
        Err(format!(
            "the policy of {} does not allow it to publish to {topic}; its [ipc] publish list names the topics",
            from.name
        ))
    }
}

/// May `from` follow `pattern`?
pub(crate) fn check_subscribe(
    from: Party<'_>,
    rules: &dyn Access,
    pattern: &str,
) -> Result<(), String> {
    // The comings and goings of one's own user's agents are what `agents` lists anyway.
    if pattern == PEERS_TOPIC || rules.may_subscribe(pattern) {
        Ok(())
    } else {
        Err(format!(
            "the policy of {} does not allow it to follow all of {pattern}; its [ipc] subscribe list names what it may",
            from.name
        ))
    }
}
