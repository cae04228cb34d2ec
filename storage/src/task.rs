//! Tasks on record: what goes in ([`NewTask`], [`TaskChange`]) and what comes out ([`TaskSummary`], [`TaskRecord`]).
//!
//! Plain data. Ids, states and terms are text here: what they mean is `agentd_orchestrator::task`'s business. The two
//! documents that come out *are* the JSON of `agentctl tasks --json` (`docs/tasks.md` describes them).

use serde::{Deserialize, Serialize};

use crate::event::Event;

/// A moment on the boot clock, good for one boot, and the wall clock's word for it, good for longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootMoment {
    /// Which boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// Milliseconds of its `CLOCK_BOOTTIME`.
    pub boot_ms: u64,
    /// Milliseconds since the Unix epoch.
    pub wall_ms: i64,
}

/// A task to be put on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// Its id.
    pub id: String,
    /// The user it belongs to.
    pub uid: u32,
    /// Who handed it in, for people.
    pub submitted_by: String,
    /// With the same one, this user's same task is the same task.
    pub request_id: Option<String>,
    /// What to do.
    pub text: String,
    /// Its terms, as JSON. Two submissions are the same when text, terms and parent are, byte for byte.
    pub terms: String,
    /// The task on whose behalf it was delegated.
    pub parent: Option<String>,
    /// The ended task whose work is done again.
    pub retry_of: Option<String>,
    /// Levels of delegation above it.
    pub depth: u32,
    /// The tasks it depends on.
    pub after: Vec<String>,
    /// When it was submitted.
    pub submitted: BootMoment,
    /// When it is out of time.
    pub deadline: Option<BootMoment>,
    /// Its first state after `submitted`.
    pub state: String,
    /// Why it is in that state.
    pub cause: String,
}

/// What became of a [`NewTask`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskTaken {
    /// It is on record.
    New,
    /// Its request id was used before, for the same content: this is that task.
    Same {
        /// The task of that request.
        id: String,
    },
    /// Its request id was used before, for something else. Nothing was recorded.
    Conflict {
        /// The task of that request.
        id: String,
    },
}

/// A transition to be put on record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskChange {
    /// Whose.
    pub task: String,
    /// When, in Unix milliseconds.
    pub at_ms: i64,
    /// Before.
    pub from: String,
    /// After.
    pub to: String,
    /// The attempt that it is about.
    pub attempt: u32,
    /// The agent's launch.
    pub launch: Option<String>,
    /// The agent's name.
    pub agent: Option<String>,
    /// The turn of that launch which is the attempt.
    pub turn: Option<u64>,
    /// Why.
    pub cause: String,
    /// Not tried again before.
    pub not_before: Option<BootMoment>,
    /// The answer, once there is one.
    pub result: Option<String>,
    /// What a failed attempt said.
    pub error: Option<String>,
}

/// Everything about tasks that is written in one transaction: all of it, or none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaskBatch {
    /// New tasks, in order.
    pub new: Vec<NewTask>,
    /// Transitions, in order.
    pub changes: Vec<TaskChange>,
    /// Facts about the launches concerned, such as which turn is a task's.
    pub events: Vec<Event>,
}

impl TaskBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.new.is_empty() && self.changes.is_empty() && self.events.is_empty()
    }

    /// Bytes this occupies in the writer's queue, roughly.
    pub(crate) fn weight(&self) -> usize {
        const FIXED: usize = 512;
        let of = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let new = self
            .new
            .iter()
            .map(|task| FIXED + task.text.len() + task.terms.len());
        let changes = self
            .changes
            .iter()
            .map(|change| FIXED + of(&change.result) + of(&change.error));
        new.chain(changes).sum::<usize>() + self.events.iter().map(Event::weight).sum::<usize>()
    }
}

/// One line of a list of tasks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSummary {
    /// Its id.
    pub id: String,
    /// The user it belongs to.
    pub uid: u32,
    /// Who handed it in.
    pub submitted_by: String,
    /// The request id it was handed in with.
    pub request_id: Option<String>,
    /// What to do.
    pub text: String,
    /// What was asked for besides: target, priority, deadline, after, on_dependency_failure, retry.
    pub terms: serde_json::Value,
    /// The task on whose behalf it was delegated.
    pub parent: Option<String>,
    /// The ended task whose work is done again.
    pub retry_of: Option<String>,
    /// Its state.
    pub state: String,
    /// Why it is in that state.
    pub cause: String,
    /// The last attempt; 0 before the first.
    pub attempt: u32,
    /// Who has it, or had it last.
    pub agent: Option<String>,
    /// That agent's launch.
    pub launch: Option<String>,
    /// When it was submitted, in Unix milliseconds.
    pub submitted_at_ms: i64,
    /// When its state changed last.
    pub changed_at_ms: i64,
    /// When it is out of time.
    pub deadline_ms: Option<i64>,
    /// When it is tried again, while it pauses.
    pub not_before_ms: Option<i64>,
    /// The answer.
    pub result: Option<String>,
    /// What the last failed attempt said.
    pub error: Option<String>,
}

/// One transition of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskTransition {
    /// Order of recording.
    pub seq: i64,
    /// In Unix milliseconds.
    pub at_ms: i64,
    /// Before.
    pub from: String,
    /// After.
    pub to: String,
    /// The attempt that it is about.
    pub attempt: u32,
    /// The agent's launch.
    pub launch: Option<String>,
    /// The agent's name.
    pub agent: Option<String>,
    /// Why.
    pub cause: String,
}

/// Everything about one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// What a list shows too.
    #[serde(flatten)]
    pub summary: TaskSummary,
    /// Its life so far.
    pub transitions: Vec<TaskTransition>,
    /// The tasks it depends on.
    pub dependencies: Vec<TaskSummary>,
    /// The tasks that its agents delegated on its behalf, with their results.
    pub children: Vec<TaskSummary>,
}

/// An open task as a starting daemon needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenTask {
    /// Its id.
    pub id: String,
    /// The user it belongs to.
    pub uid: u32,
    /// Its terms, as JSON.
    pub terms: String,
    /// The task on whose behalf it was delegated.
    pub parent: Option<String>,
    /// Levels of delegation above it.
    pub depth: u32,
    /// Its last state.
    pub state: String,
    /// The last attempt.
    pub attempt: u32,
    /// Who has it.
    pub launch: Option<String>,
    /// That agent's name.
    pub agent: Option<String>,
    /// The turn of that launch which is the attempt.
    pub turn: Option<u64>,
    /// When it was submitted.
    pub submitted: BootMoment,
    /// When it is out of time.
    pub deadline: Option<BootMoment>,
    /// Not tried again before.
    pub not_before: Option<BootMoment>,
    /// The tasks it depends on, with their states.
    pub dependencies: Vec<(String, String)>,
}
