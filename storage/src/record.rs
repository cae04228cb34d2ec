//! What is read back: the [`Record`] of a launch and the parts it is made of.
//!
//! These structs *are* the JSON of `agentctl inspect --json`; `docs/record.md` describes them. Plain data, no I/O.

use serde::{Deserialize, Serialize};

use crate::event::{
    Approval, Degradation, Denial, Direction, Exit, LaunchFailure, LaunchId, Message, Usage,
};

/// On whose behalf a query is made. Every query takes one, so that a filter cannot be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Viewer {
    /// An ordinary user: sees launches of this uid only.
    Uid(u32),
    /// The administrator: sees everything.
    Root,
}

impl Viewer {
    /// The viewer for a peer's uid as the kernel reports it: 0 is the administrator.
    pub fn from_uid(uid: u32) -> Self {
        if uid == 0 { Self::Root } else { Self::Uid(uid) }
    }
}

/// One line of a list of launches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchSummary {
    /// Its id.
    pub id: LaunchId,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub uid: u32,
    /// Name of its policy.
    pub policy: String,
    /// The command.
    pub argv: Vec<String>,
    /// The workspace as the caller named it.
    pub workspace: Option<String>,
    /// none, claude, codex, acp, jsonl.
    pub driver: String,
    /// The last state on record: starting, running, stopped, exited, failed.
    pub state: String,
    /// When it was accepted, ms since the epoch.
    pub started_at_ms: i64,
    /// When it ended.
    pub ended_at_ms: Option<i64>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Tokens as the gateway counted them.
    pub tokens: TokenTotals,
}

/// A launch that neither failed nor ended, as far as the record knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unended {
    /// Its id.
    pub id: LaunchId,
    /// Its sandbox stood.
    pub ready: bool,
}

/// Sums over the gateway's counts (never the agent's own).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenTotals {
    /// Model requests.
    pub requests: u64,
    /// Fresh input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// Input tokens read from the provider's cache.
    pub cache_read: u64,
    /// Input tokens written to the provider's cache.
    pub cache_write: u64,
    /// How many of the requests ended early.
    pub aborted: u64,
    /// What those with a price cost, in billionths of a US dollar; `None` where none has one.
    #[serde(default)]
    pub cost_nano_usd: Option<u64>,
}

impl TokenTotals {
    /// All tokens, of whatever kind.
    pub fn all(&self) -> u64 {
        self.input + self.output + self.cache_read + self.cache_write
    }
}

/// Everything known about one launch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this document's shape: 1.
    pub schema: u32,
    /// Its id.
    pub id: LaunchId,
    /// Its name.
    pub name: String,
    /// Whose it is.
    pub uid: u32,
    /// Name of its policy.
    pub policy: String,
    /// SHA-256 of the effective policy, hex.
    pub policy_hash: String,
    /// The command.
    pub argv: Vec<String>,
    /// The workspace as the caller named it.
    pub workspace: Option<String>,
    /// none, claude, codex, acp, jsonl.
    pub driver: String,
    /// root or user.
    pub mode: String,
    /// `uname -r` of the host.
    pub kernel: String,
    /// Anything else that explains the launch.
    pub details: serde_json::Value,
    /// The last state on record.
    pub state: String,
    /// When it was accepted, ms since the epoch.
    pub started_at_ms: i64,
    /// When the sandbox stood.
    pub ready_at_ms: Option<i64>,
    /// When it ended.
    pub ended_at_ms: Option<i64>,
    /// Host pid of the sandbox's init, once it stood.
    pub pid: Option<u32>,
    /// The kernel uid the agent ran under.
    pub host_uid: Option<u32>,
    /// Layers really active, as the launcher reported them.
    pub layers: Vec<String>,
    /// The Landlock ABI in use.
    pub landlock_abi: Option<u32>,
    /// Properties that were missing with the policy's leave.
    pub degradations: Vec<Degradation>,
    /// Why the launch failed, if it did.
    pub failure: Option<LaunchFailure>,
    /// How the agent ended, if it has.
    pub exit: Option<Exit>,
    /// Tokens as the gateway counted them.
    pub tokens: TokenTotals,
    /// Each metered model request, in order.
    pub usage: Vec<At<Usage>>,
    /// Each bus message sent or received, in order.
    pub messages: Vec<At<Message>>,
    /// Each refusal, in order.
    pub denials: Vec<At<Denial>>,
    /// Each decision about a tool, in order.
    pub approvals: Vec<At<Approval>>,
    /// Everything above as it happened, one line each.
    pub timeline: Vec<TimelineEntry>,
}

/// Whose record something is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The launch.
    pub id: LaunchId,
    /// The agent's name.
    pub name: String,
    /// The user it belongs to.
    pub uid: u32,
}

/// Something with its moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct At<T> {
    /// Order of recording; unique in the database.
    pub seq: i64,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// The thing.
    #[serde(flatten)]
    pub what: T,
}

/// One line of the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineEntry {
    /// Order of recording; the timeline is sorted by it.
    pub seq: i64,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// launch, ready, launch-failed, state, message, usage, denial, approval, note, exit.
    pub kind: String,
    /// One line for people.
    pub text: String,
}

/// One line of a driver's protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverLine {
    /// Order of recording.
    pub seq: i64,
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// Which way.
    pub direction: Direction,
    /// The line.
    pub line: String,
    /// Where it ends in its stream, if that was counted.
    pub end: Option<u64>,
}
