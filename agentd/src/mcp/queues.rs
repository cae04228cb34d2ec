//! The tools for work queues: put a message in, take some, say what became of them.
//!
//! What a model takes is its own until it settles it, the queue's visibility time-out passes or the agent ends: then
//! another gets it. Rights are those of `[ipc]`: `publish` on `queue.NAME` to put, `subscribe` on it to take. Arguments are
//! checked strictly, and an error says what to do next.

use agentd_bus::message::{BATCH_MAX, Outcome, Status};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::tools::{ToolSpec, check_range, explain, from_bytes, object, parse, to_bytes};
use crate::bus::{AgentPort, BusError, Queued};

/// Most messages of one take: a model has to keep them apart.
const TAKE_MAX: u64 = 32;
/// Longest delay of a retry, seconds.
const DELAY_MAX_S: u64 = 86_400;

pub(super) fn specs() -> Vec<ToolSpec> {
    let queue = json!({"type": "string", "minLength": 1, "maxLength": 100,
                       "description": "Name of the queue, e.g. builds. One that is not there is made."});
    vec![
        ToolSpec {
            name: "queue_put",
            description: "Put a message into a work queue: exactly one of those who take from it gets it, and it stays \
                          there until somebody says that it is done.",
            schema: object(
                json!({
                    "queue": queue,
                    "message": {"description": "The content: text, or any JSON value."},
                    "priority": {"type": "integer", "minimum": 0, "maximum": 3, "default": 1,
                                 "description": "0 lowest, 1 normal, 2 high, 3 urgent."}
                }),
                &["queue", "message"],
            ),
            read_only: false,
        },
        ToolSpec {
            name: "queue_take",
            description: "Take messages that wait in a work queue; an empty list means that none does. What you take is \
                          yours for a while only: settle each with `queue_ack`, or another agent gets it.",
            schema: object(
                json!({
                    "queue": queue,
                    "max": {"type": "integer", "minimum": 1, "maximum": TAKE_MAX, "default": 1}
                }),
                &["queue"],
            ),
            read_only: false,
        },
        ToolSpec {
            name: "queue_ack",
            description: "Say what became of messages that you took: `done` (never delivered again), `retry` (somebody gets \
                          them again, after `delay_seconds`), `reject` (nobody can do it: a dead letter), or `extend` (you \
                          need `delay_seconds` more).",
            schema: object(
                json!({
                    "queue": queue,
                    "tags": {"type": "array", "minItems": 1, "items": {"type": "string"},
                             "description": "`tag` of each message, as `queue_take` gave it."},
                    "outcome": {"type": "string", "enum": ["done", "retry", "reject", "extend"], "default": "done"},
                    "delay_seconds": {"type": "integer", "minimum": 0, "maximum": DELAY_MAX_S, "default": 0}
                }),
                &["queue", "tags"],
            ),
            read_only: false,
        },
    ]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    queue: String,
    message: Value,
    #[serde(default = "normal")]
    priority: u8,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Take {
    queue: String,
    #[serde(default = "one")]
    max: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ack {
    queue: String,
    tags: Vec<String>,
    #[serde(default)]
    outcome: Became,
    #[serde(default)]
    delay_seconds: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Became {
    #[default]
    Done,
    Retry,
    Reject,
    Extend,
}

fn normal() -> u8 {
    1
}

fn one() -> u64 {
    1
}

/// As [`super::tools::call`].
pub(super) async fn call(
    port: &AgentPort,
    name: &str,
    arguments: Map<String, Value>,
) -> Option<Result<Value, String>> {
    Some(match name {
        "queue_put" => put(port, arguments).await,
        "queue_take" => take(port, arguments).await,
        "queue_ack" => ack(port, arguments).await,
        _ => return None,
    })
}

async fn put(port: &AgentPort, arguments: Map<String, Value>) -> Result<Value, String> {
    let put: Put = parse("queue_put", arguments)?;
    check_range("priority", put.priority.into(), 0, 3)?;
    let id = port
        .queue_put(&put.queue, put.priority, &to_bytes(&put.message))
        .await;
    let id = id.map_err(|error| explain_queue(&error))?;
    Ok(json!({"queue": put.queue, "id": id}))
}

async fn take(port: &AgentPort, arguments: Map<String, Value>) -> Result<Value, String> {
    let take: Take = parse("queue_take", arguments)?;
    check_range("max", take.max, 1, TAKE_MAX)?;
    let taken = port.queue_take(&take.queue, take.max as u32).await;
    let taken = taken.map_err(|error| explain_queue(&error))?;
    let messages: Vec<Value> = taken.iter().map(show).collect();
    Ok(json!({"queue": take.queue, "messages": messages}))
}

async fn ack(port: &AgentPort, arguments: Map<String, Value>) -> Result<Value, String> {
    let ack: Ack = parse("queue_ack", arguments)?;
    check_range(
        "the number of tags",
        ack.tags.len() as u64,
        1,
        BATCH_MAX as u64,
    )?;
    check_range("delay_seconds", ack.delay_seconds, 0, DELAY_MAX_S)?;
    let delay_ms = (ack.delay_seconds * 1000) as u32;
    let outcome = match ack.outcome {
        Became::Done => Outcome::Ack,
        Became::Retry => Outcome::Nack { delay_ms },
        Became::Reject => Outcome::Reject,
        Became::Extend => Outcome::Extend {
            visibility_ms: delay_ms,
        },
    };
    match ack.outcome {
        Became::Done | Became::Reject if ack.delay_seconds > 0 => {
            return Err("delay_seconds goes with the outcomes retry and extend".to_owned());
        }
        Became::Extend if ack.delay_seconds == 0 => {
            return Err(
                "the outcome extend needs delay_seconds: how much longer you work on it".to_owned(),
            );
        }
        _ => {}
    }
    let tags: Result<Vec<u64>, String> = ack.tags.iter().map(|tag| tag_of(tag)).collect();
    let tags = tags?;
    let settled = port.queue_settle(&ack.queue, outcome, &tags).await;
    let settled = settled.map_err(|error| explain_queue(&error))?;
    Ok(json!({"settled": settled, "too_late": tags.len() - settled as usize}))
}

/// Tags have 64 bits, more than a JSON number keeps.
fn tag_of(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no tag; give the `tag` of a message as `queue_take` gave it")
    })
}

fn show(message: &Queued) -> Value {
    json!({
        "tag": message.tag.to_string(),
        "id": message.id,
        "message": from_bytes(&message.data),
        "priority": message.priority,
        "deliveries": message.deliveries,
        "sent_ms": message.sent_ns / 1_000_000,
    })
}

fn explain_queue(error: &BusError) -> String {
    match error.status {
        Status::NO_SUCH_QUEUE => {
            format!("{error}. Take a message with `queue_take` before you settle it.")
        }
        _ => explain(error),
    }
}
