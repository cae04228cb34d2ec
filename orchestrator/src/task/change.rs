//! What happens to tasks, and what can't.

use super::{Assignment, State, TaskId};

/// One transition. It goes on record before anything follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub task: TaskId,
    /// The user it belongs to.
    pub uid: u32,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// The attempt that it is about; 0 before the first.
    pub attempt: u32,
    /// Why, in one line.
    pub cause: String,
    /// When, in Unix milliseconds.
    pub at_ms: i64,
    /// The agent that has it, or had it until now.
    pub agent: Option<Assignment>,
    /// Not tried again before this moment of the boot clock.
    pub not_before_boot_ms: Option<u64>,
}

impl Change {
    /// An agent works on it, or is about to, and must be told to stop: nobody wants the result any more.
    pub fn interrupts(&self) -> bool {
        self.from.is_under_way() && matches!(self.to, State::Cancelled | State::TimedOut)
    }
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptEnd {
    /// The agent gave a result.
    Done,
    /// The agent said that it could not do it.
    Failed {
        /// In its words.
        why: String,
    },
    /// The agent is gone, and the attempt with it.
    AgentGone {
        /// How.
        why: String,
    },
}

/// Something that can't happen to this task now. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// It is not open: it has ended, or never was.
    #[error("task {0} is not open")]
    NotOpen(TaskId),
    /// It is in another state.
    #[error("task {task} is {state}")]
    State {
        /// Which.
        task: TaskId,
        /// The state it is in.
        state: State,
    },
}

/// Word of an attempt that is not under way: it ended before, or its task did. The first word counts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("attempt {attempt} of task {task} is not under way")]
pub struct Stale {
    /// Whose.
    pub task: TaskId,
    /// Which.
    pub attempt: u32,
}
