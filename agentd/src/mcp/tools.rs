//! The tools themselves, apart from any transport: what a model sees and what happens.
//!
//! Arguments are checked strictly (an unknown key is an error that names the known ones), results are
//! JSON objects, and an error says what to do next. Never blocks longer than the caller asked.

use std::time::Duration;

use agentd_bus::message::Status;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::bus::{AgentPort, BusError, Message, MessageKind};

/// One tool as it is listed.
pub(super) struct ToolSpec {
    pub name: &'static str,
    pub description: &'static str,
    pub schema: Value,
    pub read_only: bool,
}

/// Longest wait of `request`, seconds.
const REQUEST_MAX_S: u64 = 3600;
/// Longest wait of `inbox`, seconds: clients give up on a silent tool after a minute.
const INBOX_WAIT_MAX_S: u64 = 50;

/// All tools, in the order in which they are listed.
pub(super) fn specs() -> Vec<ToolSpec> {
    let message = json!({"description": "The content: text, or any JSON value."});
    let to = json!({"type": "string", "description": "Name of the agent, as listed by `agents`."});
    let mut specs = vec![
        ToolSpec {
            name: "agents",
            description: "List the other agents you can work with: their names, whether they answer requests at \
                          once (`serving`), whether you may send to them, and how many messages wait for them.",
            schema: object(json!({}), &[]),
            read_only: true,
        },
        ToolSpec {
            name: "send",
            description: "Send a message to another agent without waiting for an answer. To answer a request that \
                          you read from your inbox, give its `request_id` as `in_reply_to` (then `to` is not needed).",
            schema: object(
                json!({
                    "to": to,
                    "message": message,
                    "type": {"type": "string", "maxLength": 64, "description": "What kind of message it is, for the reader."},
                    "in_reply_to": {"type": "integer", "minimum": 1, "description": "`request_id` of the request that this answers."}
                }),
                &["message"],
            ),
            read_only: false,
        },
        ToolSpec {
            name: "request",
            description: "Ask another agent to do something and wait for its answer. The other agent may be a model \
                          that works for minutes: set `timeout_seconds` accordingly.",
            schema: object(
                json!({
                    "to": to,
                    "message": message,
                    "method": {"type": "string", "minLength": 1, "maxLength": 64, "default": "ask",
                               "description": "What is asked for, in one word; most agents ignore it."},
                    "timeout_seconds": {"type": "integer", "minimum": 1, "maximum": REQUEST_MAX_S, "default": 300}
                }),
                &["to", "message"],
            ),
            read_only: false,
        },
        ToolSpec {
            name: "inbox",
            description: "Read and remove the messages sent to you, oldest first. An entry with a `request_id` is a \
                          question whose asker waits: answer it with `send` and `in_reply_to`. `topics` are \
                          followed from now on, and their messages come here.",
            schema: object(
                json!({
                    "max": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
                    "wait_seconds": {"type": "integer", "minimum": 0, "maximum": INBOX_WAIT_MAX_S, "default": 0,
                                     "description": "With no message there, wait so long for the first."},
                    "topics": {"type": "array", "items": {"type": "string", "maxLength": 128},
                               "description": "Topic patterns: words separated by dots, `*` for one word, `#` for the rest."}
                }),
                &[],
            ),
            read_only: false,
        },
        ToolSpec {
            name: "publish",
            description: "Publish a message to a topic, for every agent that follows it. Returns how many got it.",
            schema: object(
                json!({
                    "topic": {"type": "string", "minLength": 1, "maxLength": 128,
                              "description": "Words separated by dots, e.g. build.linux.done."},
                    "message": message,
                    "type": {"type": "string", "maxLength": 64, "description": "What kind of message it is, for the reader."}
                }),
                &["topic", "message"],
            ),
            read_only: false,
        },
    ];
    specs.extend(super::queues::specs());
    specs
}

pub(super) fn object(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Send {
    to: Option<String>,
    message: Value,
    #[serde(default)]
    r#type: String,
    in_reply_to: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    to: String,
    message: Value,
    #[serde(default = "ask")]
    method: String,
    #[serde(default = "five_minutes")]
    timeout_seconds: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Inbox {
    #[serde(default = "twenty")]
    max: usize,
    #[serde(default)]
    wait_seconds: u64,
    #[serde(default)]
    topics: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    topic: String,
    message: Value,
    #[serde(default)]
    r#type: String,
}

fn ask() -> String {
    "ask".to_owned()
}

fn five_minutes() -> u64 {
    300
}

fn twenty() -> usize {
    20
}

/// What a call gives: a JSON object, or a text that a model can act on. `None`: there is no such tool.
pub(super) async fn call(
    port: &AgentPort,
    name: &str,
    arguments: Map<String, Value>,
) -> Option<Result<Value, String>> {
    Some(match name {
        "agents" => agents(port, arguments).await,
        "send" => send(port, arguments).await,
        "request" => request(port, arguments).await,
        "inbox" => inbox(port, arguments).await,
        "publish" => publish(port, arguments).await,
        _ => return super::queues::call(port, name, arguments).await,
    })
}

pub(super) fn parse<T: DeserializeOwned>(
    tool: &str,
    arguments: Map<String, Value>,
) -> Result<T, String> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|error| format!("arguments of {tool}: {error}"))
}

pub(super) fn check_range(what: &str, value: u64, least: u64, most: u64) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!("{what} is {value}; allowed are {least} to {most}"))
    }
}

async fn agents(port: &AgentPort, arguments: Map<String, Value>) -> Result<Value, String> {
    let NoArguments {} = parse("agents", arguments)?;
    let agents = port.agents().await.map_err(|error| explain(&error))?;
    Ok(json!({"you": port.identity().name, "agents": agents}))
}

async fn send(port: &AgentPort, arguments: Map<String, Value>) -> Result<Value, String> {
    let send: Send = parse("send", arguments)?;
    let payload = to_bytes(&send.message);
    if let Some(request) = send.in_reply_to {
        let answered = port.respond(request, Ok(payload)).await;
        answered.map_err(|error| explain(&error))?;
        return Ok(json!({"answered": request}));
    }
    let to = send.to.ok_or("arguments of send: `to` is missing; name the agent, or give `in_reply_to` to answer a request")?;
    match port.send(&to, &send.r#type, payload).await {
        Ok(()) => Ok(json!({"delivered_to_inbox_of": to})),
        Err(error) => Err(explain_peer(port, &error).await),
    }
}

async fn request(port: &AgentPort, arguments: Map<String, Value>) -> Result<Value, String> {
    let request: Request = parse("request", arguments)?;
    check_range("timeout_seconds", request.timeout_seconds, 1, REQUEST_MAX_S)?;
    let timeout = Duration::from_secs(request.timeout_seconds);
    match port
        .request(
            &request.to,
            &request.method,
            to_bytes(&request.message),
            timeout,
        )
        .await
    {
        Ok(reply) => Ok(json!({"from": request.to, "answer": from_bytes(&reply.payload)})),
        Err(error) => Err(explain_peer(port, &error).await),
    }
}

async fn inbox(port: &AgentPort, arguments: Map<String, Value>) -> Result<Value, String> {
    let inbox: Inbox = parse("inbox", arguments)?;
    check_range("max", inbox.max as u64, 1, 100)?;
    check_range("wait_seconds", inbox.wait_seconds, 0, INBOX_WAIT_MAX_S)?;
    for topic in &inbox.topics {
        port.subscribe(topic)
            .await
            .map_err(|error| explain(&error))?;
    }
    let read = port
        .inbox(inbox.max, Duration::from_secs(inbox.wait_seconds))
        .await;
    let read = read.map_err(|error| explain(&error))?;
    let messages: Vec<Value> = read.messages.iter().map(show).collect();
    let mut result = json!({"messages": messages});
    if read.lost > 0 {
        result["lost_topic_messages"] = json!(read.lost);
    }
    Ok(result)
}

async fn publish(port: &AgentPort, arguments: Map<String, Value>) -> Result<Value, String> {
    let publish: Publish = parse("publish", arguments)?;
    let receivers = port
        .publish(&publish.topic, &publish.r#type, to_bytes(&publish.message))
        .await;
    receivers
        .map(|receivers| json!({"receivers": receivers}))
        .map_err(|error| explain(&error))
}

fn show(message: &Message) -> Value {
    let mut shown = json!({
        "from": message.from,
        "message": from_bytes(&message.payload),
        "sent_ms": message.sent_ns / 1_000_000,
    });
    if let Some(protection) = message.protection {
        shown["protected"] = json!(protection);
    }
    match &message.kind {
        MessageKind::Direct { event_type } => shown["type"] = json!(event_type),
        MessageKind::Topic { topic, event_type } => {
            shown["type"] = json!(event_type);
            shown["topic"] = json!(topic);
        }
        MessageKind::Request { method, request_id } => {
            shown["method"] = json!(method);
            shown["request_id"] = json!(request_id);
        }
    }
    shown
}

/// Text travels as it is, anything else as JSON.
pub(super) fn to_bytes(message: &Value) -> Vec<u8> {
    match message {
        Value::String(text) => text.clone().into_bytes(),
        other => other.to_string().into_bytes(),
    }
}

/// The reverse, for whatever another program sent: objects and lists as JSON, other text as text.
pub(super) fn from_bytes(payload: &[u8]) -> Value {
    match std::str::from_utf8(payload) {
        Ok(text) if text.trim_start().starts_with(['{', '[']) => {
            serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
        }
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => {
            let hex = payload
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>();
            json!({"binary_hex": hex})
        }
    }
}

pub(super) fn explain(error: &BusError) -> String {
    let hint = match error.status {
        Status::DENIED => " Ask the person who runs you to widen the policy if this is needed.",
        Status::DEADLINE => {
            " The other agent may still be working: ask again with a longer timeout_seconds, or `send` and look into \
             your `inbox` later."
        }
        Status::QUEUE_FULL => " Wait a little and try again.",
        Status::PEER_GONE => " List the `agents` to see who is there now.",
        _ => "",
    };
    format!("{error}.{hint}")
}

/// As [`explain`], with the names that would have worked.
async fn explain_peer(port: &AgentPort, error: &BusError) -> String {
    let mut text = explain(error);
    if error.status == Status::NO_SUCH_AGENT
        && let Ok(agents) = port.agents().await
    {
        let names: Vec<&str> = agents.iter().map(|agent| agent.name.as_str()).collect();
        text.push_str(&if names.is_empty() {
            " No other agent is there now.".to_owned()
        } else {
            format!(" There are: {}.", names.join(", "))
        });
    }
    text
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn every_schema_is_strict_and_every_required_key_is_described() {
        for spec in specs() {
            assert_eq!(
                spec.schema["additionalProperties"],
                json!(false),
                "{}",
                spec.name
            );
            for key in spec.schema["required"].as_array().unwrap() {
                assert!(
                    spec.schema["properties"]
                        .get(key.as_str().unwrap())
                        .is_some(),
                    "{}: {key}",
                    spec.name
                );
            }
        }
    }

    #[test]
    fn payloads_survive_as_what_they_were() {
        for value in [json!("text"), json!({"a": [1, 2]}), json!([true])] {
            assert_eq!(from_bytes(&to_bytes(&value)), value);
        }
        assert_eq!(from_bytes(b"{not json"), json!("{not json"));
        assert_eq!(from_bytes(&[0xFF, 0x01]), json!({"binary_hex": "ff01"}));
    }
}
