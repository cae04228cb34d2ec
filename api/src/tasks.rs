//! Tasks: work that is handed to the daemon and can't get lost.
//!
//! `org.agentd1.Tasks` at `/org/agentd1` takes, lists and ends them; `/org/agentd1/task/ID` is one task, put on the
//! connection when it is first asked for ([`TasksProxy::find`]). What the states and terms mean is in `docs/tasks.md`;
//! the JSON documents are those of `agentctl tasks --json`.

use serde_json::{Value, json};
use zbus::{DeserializeDict, OwnedObjectPath, SerializeDict, Type};

use crate::Error;

/// Prefix of the tasks' object paths; the id's 32 hex digits follow.
pub const TASK_PATH_PREFIX: &str = "/org/agentd1/task/";

/// Most tasks of one [`TasksProxy::submit_many`].
pub const MAX_SUBMIT_MANY: usize = 512;

/// Longest text of a task, in bytes.
pub const MAX_TASK_TEXT: usize = 1 << 20;

/// Longest request id, in bytes.
pub const MAX_REQUEST_ID: usize = 128;

/// One submission. Exactly one of `agent`, `unit`, `role` and `capability` says who may do it. A key that the daemon
/// does not know refuses the call: it may have been a limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct TaskSpec {
    /// What to do, in words for the agent.
    pub text: String,
    /// The running agent of this name.
    pub agent: Option<String>,
    /// An instance of this unit.
    pub unit: Option<String>,
    /// An agent whose unit has this role.
    pub role: Option<String>,
    /// An agent whose unit has this capability.
    pub capability: Option<String>,
    /// 0 to 9, or low, normal, high, urgent; normal when absent.
    pub priority: Option<String>,
    /// Must be done within so many milliseconds.
    pub deadline_ms: Option<u64>,
    /// Must be done by then, in Unix milliseconds.
    pub deadline_at_ms: Option<i64>,
    /// Tasks that must have succeeded before: ids, or at least four digits from an end of one.
    pub after: Option<Vec<String>>,
    /// `fail` or `skip`: what if one of them does not; fail when absent.
    pub on_dependency_failure: Option<String>,
    /// Attempts after the first.
    pub retries: Option<u32>,
    /// Longest pause before the first retry, in milliseconds; it doubles with each.
    pub backoff_ms: Option<u64>,
    /// Longest pause before any retry, in milliseconds.
    pub backoff_cap_ms: Option<u64>,
    /// Chosen by the caller: the same one with the same content is the same task.
    pub request_id: Option<String>,
}

/// A task that is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct TaskReply {
    pub id: String,
    /// `false`: the request id was used before, for the same content; this is that task.
    pub new: bool,
}

impl TaskReply {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({ "id": self.id, "new": self.new })
    }
}

/// What became of one of many submissions: an id, or an error with its code.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct TaskOutcome {
    pub id: Option<String>,
    pub new: Option<bool>,
    pub error: Option<String>,
    /// As [`crate::ErrorCode`].
    pub code: Option<String>,
}

/// Which tasks to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct TaskListOptions {
    /// Those that have ended too.
    pub all: Option<bool>,
    /// The newest so many.
    pub limit: Option<u32>,
}

/// One transition, as it happens.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct TaskEvent {
    pub id: String,
    pub uid: u32,
    pub from: String,
    pub state: String,
    pub attempt: u32,
    pub agent: Option<String>,
    pub cause: String,
    /// Unix time in milliseconds.
    pub at_ms: i64,
}

impl TaskEvent {
    /// Whether the task has ended with this.
    pub fn is_end(&self) -> bool {
        is_final(&self.state)
    }

    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "uid": self.uid,
            "from": self.from,
            "state": self.state,
            "attempt": self.attempt,
            "agent": self.agent,
            "cause": self.cause,
            "at_ms": self.at_ms,
        })
    }
}

/// Whether a task in this state has ended.
pub fn is_final(state: &str) -> bool {
    matches!(state, "succeeded" | "failed" | "cancelled" | "timed-out")
}

/// The path of a task's D-Bus object; `None` for what is no id.
pub fn task_path(id: &str) -> Option<OwnedObjectPath> {
    let id = uuid::Uuid::try_parse(id).ok()?;
    OwnedObjectPath::try_from(format!("{TASK_PATH_PREFIX}{}", id.simple())).ok()
}

/// `/org/agentd1`: tasks.
#[zbus::proxy(
    interface = "org.agentd1.Tasks",
    default_service = "org.agentd1",
    default_path = "/org/agentd1"
)]
pub trait Tasks {
    /// Takes one task. Returns when it is on the disk.
    fn submit(&self, spec: &TaskSpec) -> Result<TaskReply, Error>;

    /// Takes many tasks, each by itself, in one commit. Returns when they are on the disk.
    fn submit_many(&self, specs: &[TaskSpec]) -> Result<Vec<TaskOutcome>, Error>;

    /// The caller's tasks, newest first: a JSON array.
    fn list(&self, options: &TaskListOptions) -> Result<String, Error>;

    /// Everything about one task, by its id or at least four digits from an end of it: a JSON document.
    fn get(&self, id: &str) -> Result<String, Error>;

    /// The object of a task.
    fn find(&self, id: &str) -> Result<OwnedObjectPath, Error>;

    /// Ends a task and its children. Returns when that is on the disk; an agent that works on it is interrupted.
    fn cancel(&self, id: &str) -> Result<(), Error>;

    /// Does the work of an ended task again, as a new task; ends the pause of one that waits for its next attempt.
    fn retry(&self, id: &str) -> Result<TaskReply, Error>;

    /// Returns when the task has ended: its last state.
    fn wait(&self, id: &str) -> Result<String, Error>;

    /// From now on `Changed` is sent on this connection.
    fn watch(&self) -> Result<(), Error>;

    /// A task of the caller changed its state.
    #[zbus(signal)]
    fn changed(&self, event: TaskEvent) -> zbus::Result<()>;
}

/// `/org/agentd1/task/ID`: one task.
#[zbus::proxy(
    interface = "org.agentd1.Task",
    default_service = "org.agentd1",
    assume_defaults = false
)]
pub trait Task {
    /// As `Tasks.Cancel`.
    fn cancel(&self) -> Result<(), Error>;

    /// As `Tasks.Wait`.
    fn wait(&self) -> Result<String, Error>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn uid(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn text(&self) -> zbus::Result<String>;
    /// Empty for a task that no agent delegated.
    #[zbus(property(emits_changed_signal = "const"))]
    fn parent(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn state(&self) -> zbus::Result<String>;
    /// Why it is in that state.
    #[zbus(property(emits_changed_signal = "false"))]
    fn cause(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn attempt(&self) -> zbus::Result<u32>;
    /// Who has it, or had it last; empty before the first attempt.
    #[zbus(property(emits_changed_signal = "false"))]
    fn agent(&self) -> zbus::Result<String>;
    /// Empty until it has succeeded.
    #[zbus(property(emits_changed_signal = "false"))]
    fn result(&self) -> zbus::Result<String>;
    /// What the last failed attempt said.
    #[zbus(property(emits_changed_signal = "false"))]
    fn error(&self) -> zbus::Result<String>;

    #[zbus(signal)]
    fn state_changed(&self, state: String, cause: String) -> zbus::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_of_ids_only() {
        let path = task_path("0198c0de-1111-7222-8333-4444feedbeef").expect("an id");
        assert_eq!(
            path.as_str(),
            "/org/agentd1/task/0198c0de1111722283334444feedbeef"
        );
        assert!(task_path("../x").is_none());
    }
}
