//! Tasks: work that can't get lost.
//!
//! A task is submitted once, waits for its dependencies, queues for an agent, runs in one or more *attempts*, and ends
//! in exactly one final state. [`Book`] holds every open task of the daemon and says what follows from what happened;
//! it reads no clock (time is a [`Now`]), draws no randomness (jitter is an argument), does no I/O, and keeps neither
//! the text of a task nor its result. The daemon (`agentd::tasks`) puts each [`Change`] on record **before** anything
//! else follows from it.
//!
//! ```text
//! submitted ─► waiting ─► queued ─► assigned ─► running ─► succeeded
//!     │                    ▲  ▲        │           │
//!     └────────────────────┘  └────────┴─── retry ─┤
//!                                                  └─► failed | cancelled | timed-out
//! ```
//!
//! Start reading at [`State`], then [`Book::submit`].

mod backoff;
mod book;
mod change;
mod limits;
mod queue;
mod terms;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use backoff::{MAX_RETRIES, Retry};
pub use book::{Assignment, Book, Restored, Submission};
pub use change::{AttemptEnd, Change, Impossible, Stale};
pub use limits::{Limits, Refused};
pub use queue::AGE_STEP_MS;
pub use terms::{
    DEFAULT_PRIORITY, Deadline, OnDependencyFailure, PRIORITY_NAMES, Priority, Target, Terms,
    UnknownTerm,
};

/// Names one task for ever. Version 7, so ids sort by the time of submission.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub Uuid);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TaskId({self})")
    }
}

impl FromStr for TaskId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(text).map(Self)
    }
}

/// One moment on the two clocks that tasks need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since boot, suspend included (`CLOCK_BOOTTIME`). Every decision is made on this clock: it never
    /// jumps, and a night with the lid closed counts.
    pub boot_ms: u64,
    /// Milliseconds since the Unix epoch, for people. May jump.
    pub wall_ms: i64,
}

/// Where a task is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Taken, not yet judged. Only the first transition leaves from here.
    Submitted,
    /// Some task that it depends on has not succeeded yet.
    Waiting,
    /// Waits for an agent, or for the end of a retry's back-off.
    Queued,
    /// An agent was chosen and will be given it.
    Assigned,
    /// An agent works on it.
    Running,
    /// Done; there is a result.
    Succeeded,
    /// Its attempts are used up, or a task that it depends on failed.
    Failed,
    /// Somebody took it back, or it was skipped.
    Cancelled,
    /// Its deadline passed first.
    TimedOut,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 9] = [
        Self::Submitted,
        Self::Waiting,
        Self::Queued,
        Self::Assigned,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::TimedOut,
    ];

    /// No transition leaves from here.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::TimedOut
        )
    }

    /// Whether an attempt is under way.
    pub fn is_under_way(self) -> bool {
        matches!(self, Self::Assigned | Self::Running)
    }

    /// The name in the record, on D-Bus and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Waiting => "waiting",
            Self::Queued => "queued",
            Self::Assigned => "assigned",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::TimedOut => "timed-out",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = UnknownTerm;

    fn from_str(text: &str) -> Result<Self, UnknownTerm> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownTerm {
                what: "task state",
                got: text.to_owned(),
                allowed: Self::ALL.map(Self::as_str).join(", "),
            })
    }
}
