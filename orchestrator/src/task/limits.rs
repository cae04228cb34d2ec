//! How much a user, a task and a chain of delegation may hold, and why a submission is refused.

use super::{State, TaskId};

/// Bounds on what [`super::Book`] takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open tasks of one user.
    pub open_per_user: usize,
    /// Tasks one task may depend on.
    pub dependencies: usize,
    /// Open children of one task.
    pub children: usize,
    /// Levels of delegation below a task that a person submitted.
    pub depth: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_per_user: 100_000,
            dependencies: 64,
            children: 64,
            depth: 4,
        }
    }
}

/// Why a task was not taken. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The user has as many open tasks as allowed.
    #[error(
        "you have {limit} open tasks, as many as one user may have; wait for some to end, or cancel some: `agentctl tasks list`"
    )]
    TooManyOpen {
        /// The bound.
        limit: usize,
    },
    /// It depends on too many.
    #[error("it depends on {count} tasks; at most {limit}")]
    TooManyDependencies {
        /// How many.
        count: usize,
        /// The bound.
        limit: usize,
    },
    /// It depends on a task that does not exist, or belongs to somebody else.
    #[error(
        "it depends on task {0}, which is not there; `agentctl tasks list --all` shows those that are"
    )]
    NoSuchDependency(TaskId),
    /// The task on whose behalf it is delegated is not being worked on.
    #[error("task {parent} is {state}; only a task that runs can delegate")]
    ParentNotRunning {
        /// The task that would be its parent.
        parent: TaskId,
        /// What it is instead.
        state: State,
    },
    /// The task on whose behalf it is delegated has ended, or never was.
    #[error("task {0} is not open; only a task that runs can delegate")]
    NoSuchParent(TaskId),
    /// Too many open children.
    #[error(
        "task {parent} has {limit} open children, as many as one task may have; wait for some of them"
    )]
    TooManyChildren {
        /// The task that would be its parent.
        parent: TaskId,
        /// The bound.
        limit: usize,
    },
    /// Delegated too often.
    #[error(
        "this work was delegated {limit} times already, as often as work may be; do it, or hand back what is known"
    )]
    TooDeep {
        /// The bound.
        limit: u32,
    },
    /// The agent that it would wait for waits for it.
    #[error(
        "agent {agent} works on task {ancestor}, which would wait for this one for ever; choose another agent"
    )]
    Cycle {
        /// The agent's name.
        agent: String,
        /// The task that keeps it busy.
        ancestor: TaskId,
    },
    /// The deadline lies in the past.
    #[error("its deadline has passed already")]
    DeadlinePassed,
}
