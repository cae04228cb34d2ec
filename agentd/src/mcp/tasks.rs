//! The tools with which an agent delegates: `task_submit`, `task_list`, `task_status`, `task_result`, `task_cancel`.
//!
//! As the other tools: arguments are checked strictly, results are JSON objects, an error says what to do next.

use std::time::Duration;

use agentd_api::tasks::TaskSpec;
use agentd_storage::TaskSummary;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::tools::{ToolSpec, check_range, object, parse};
use crate::tasks::Delegation;

/// Longest wait of `task_result`, seconds.
const RESULT_MAX_S: u64 = 3600;
/// Of a task's text, a list shows this much.
const SHOWN_CHARS: usize = 200;

/// The tools, in the order in which they are listed.
pub(super) fn specs() -> Vec<ToolSpec> {
    let id = json!({"type": "string", "description": "Id of the task, as `task_submit` gave it."});
    vec![
        ToolSpec {
            name: "task_submit",
            description: "Delegate work to another agent, as a task that survives restarts and is tried again if the \
                          agent dies. Say who is to do it with exactly one of agent, unit, role and capability. \
                          Returns at once with the task's id; get the outcome with `task_result`. Your open tasks are \
                          cancelled when the task that you work on ends.",
            schema: object(
                json!({
                    "text": {"type": "string", "minLength": 1, "description": "What to do, complete: the other agent knows nothing of your conversation."},
                    "agent": {"type": "string", "description": "The running agent of this name, as listed by `agents`."},
                    "unit": {"type": "string", "description": "An instance of this unit; one is started if needed."},
                    "role": {"type": "string", "description": "Any agent with this role, e.g. frontend."},
                    "capability": {"type": "string", "description": "Any agent with this capability, e.g. review."},
                    "priority": {"type": "string", "description": "0 to 9, or low, normal, high, urgent."},
                    "deadline_seconds": {"type": "integer", "minimum": 1, "description": "Must be done within this time."},
                    "retries": {"type": "integer", "minimum": 0, "maximum": 100, "default": 2, "description": "Attempts after the first."},
                    "after": {"type": "array", "items": {"type": "string"}, "description": "Ids of tasks that must have succeeded before."},
                    "request_id": {"type": "string", "maxLength": 128, "description": "Chosen by you: submitting the same content with it again gives the same task."}
                }),
                &["text"],
            ),
            read_only: false,
        },
        ToolSpec {
            name: "task_list",
            description: "List the tasks that you delegated, with their states and results.",
            schema: object(json!({}), &[]),
            read_only: true,
        },
        ToolSpec {
            name: "task_status",
            description: "The state of one task that you delegated, and why it is in that state.",
            schema: object(json!({"id": id}), &["id"]),
            read_only: true,
        },
        ToolSpec {
            name: "task_result",
            description: "Wait until a task that you delegated has ended, and get its result. If `ended` is false when \
                          the time is over, ask again.",
            schema: object(
                json!({
                    "id": id,
                    "wait_seconds": {"type": "integer", "minimum": 0, "maximum": RESULT_MAX_S, "default": 300}
                }),
                &["id"],
            ),
            read_only: true,
        },
        ToolSpec {
            name: "task_cancel",
            description: "Take back a task that you delegated; an agent that works on it is interrupted.",
            schema: object(json!({"id": id}), &["id"]),
            read_only: false,
        },
    ]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Submit {
    text: String,
    agent: Option<String>,
    unit: Option<String>,
    role: Option<String>,
    capability: Option<String>,
    priority: Option<String>,
    deadline_seconds: Option<u64>,
    retries: Option<u32>,
    after: Option<Vec<String>>,
    request_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Id {
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultOf {
    id: String,
    #[serde(default = "five_minutes")]
    wait_seconds: u64,
}

fn five_minutes() -> u64 {
    300
}

/// What a call gives. `None`: there is no such tool here.
pub(super) async fn call(
    delegation: &Delegation,
    name: &str,
    arguments: Map<String, Value>,
) -> Option<Result<Value, String>> {
    Some(match name {
        "task_submit" => submit(delegation, arguments).await,
        "task_list" => list(delegation, arguments).await,
        "task_status" => status(delegation, arguments).await,
        "task_result" => result(delegation, arguments).await,
        "task_cancel" => cancel(delegation, arguments).await,
        _ => return None,
    })
}

async fn submit(delegation: &Delegation, arguments: Map<String, Value>) -> Result<Value, String> {
    let it: Submit = parse("task_submit", arguments)?;
    let spec = TaskSpec {
        text: it.text,
        agent: it.agent,
        unit: it.unit,
        role: it.role,
        capability: it.capability,
        priority: it.priority,
        deadline_ms: it.deadline_seconds.map(|s| s.saturating_mul(1_000)),
        retries: it.retries,
        after: it.after,
        request_id: it.request_id,
        ..TaskSpec::default()
    };
    let reply = delegation.submit(spec).await.map_err(|e| e.text())?;
    Ok(reply.to_json())
}

async fn list(delegation: &Delegation, arguments: Map<String, Value>) -> Result<Value, String> {
    let NoArguments {} = parse("task_list", arguments)?;
    let tasks = delegation.list().await.map_err(|e| e.text())?;
    let tasks: Vec<Value> = tasks.into_iter().map(shown).collect();
    Ok(json!({ "tasks": tasks }))
}

async fn status(delegation: &Delegation, arguments: Map<String, Value>) -> Result<Value, String> {
    let Id { id } = parse("task_status", arguments)?;
    delegation
        .status(&id)
        .await
        .map(shown)
        .map_err(|e| e.text())
}

async fn result(delegation: &Delegation, arguments: Map<String, Value>) -> Result<Value, String> {
    let ResultOf { id, wait_seconds } = parse("task_result", arguments)?;
    check_range("wait_seconds", wait_seconds, 0, RESULT_MAX_S)?;
    let waited = delegation
        .result(&id, Duration::from_secs(wait_seconds))
        .await;
    waited.map(shown).map_err(|e| e.text())
}

async fn cancel(delegation: &Delegation, arguments: Map<String, Value>) -> Result<Value, String> {
    let Id { id } = parse("task_cancel", arguments)?;
    delegation.cancel(&id).await.map_err(|e| e.text())?;
    Ok(json!({ "cancelled": id }))
}

/// A task for a model: what it needs to go on, and no more.
fn shown(task: TaskSummary) -> Value {
    json!({
        "id": task.id,
        "text": task.text.chars().take(SHOWN_CHARS).collect::<String>(),
        "state": task.state,
        "ended": agentd_api::tasks::is_final(&task.state),
        "cause": task.cause,
        "agent": task.agent,
        "attempt": task.attempt,
        "result": task.result,
        "error": task.error,
    })
}
