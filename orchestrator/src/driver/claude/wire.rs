//! The messages of Claude Code, as far as this driver reads them. Unknown fields are normal (every version adds
//! some); unknown kinds are kept on record and ignored; a known kind without the fields it needs is an error.

use serde::Deserialize;
use serde_json::Value;

use crate::driver::{AgentUsage, RequestId, TurnOutcome};

/// One line from Claude.
#[derive(Debug)]
pub(super) enum Incoming {
    ControlRequest {
        request_id: String,
        request: ControlRequest,
    },
    ControlResponse {
        response: ControlResponse,
    },
    ControlCancelRequest {
        request_id: String,
    },
    Result(Box<TurnResult>),
    Assistant {
        message: AssistantMessage,
        parent_tool_use_id: Option<String>,
    },
    System(System),
    Ignored {
        kind: String,
    },
}

/// One line of this driver's own, as far as it matters to a later daemon.
#[derive(Debug)]
pub(super) enum Written {
    User,
    ControlRequest { request_id: String },
    ControlResponse { request_id: String },
}

impl Written {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let id = |at: &str| value.pointer(at).and_then(Value::as_str).map(str::to_owned);
        match value.get("type")?.as_str()? {
            "user" => Some(Self::User),
            "control_request" => Some(Self::ControlRequest {
                request_id: id("/request_id")?,
            }),
            "control_response" => Some(Self::ControlResponse {
                request_id: id("/response/request_id")?,
            }),
            _ => None,
        }
    }
}

/// What kind of answer a broken question wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    Hook,
    Permission,
    Other,
}

/// A line that can't be read.
#[derive(Debug)]
pub(super) struct BadLine {
    pub(super) why: String,
    /// The question it was, if that much could be read.
    pub(super) question: Option<(RequestId, Question)>,
}

impl Incoming {
    pub(super) fn parse(line: &str) -> Result<Self, BadLine> {
        let bad = |why: String| BadLine {
            why,
            question: None,
        };
        let value: Value =
            serde_json::from_str(line).map_err(|error| bad(format!("no JSON: {error}")))?;
        let Some(kind) = value.get("type").and_then(Value::as_str).map(str::to_owned) else {
            return Err(bad("a message without a type".to_owned()));
        };
        let what = |error: serde_json::Error| format!("{kind}: {error}");
        match kind.as_str() {
            "control_request" => {
                let Some(request_id) = value
                    .get("request_id")
                    .and_then(Value::as_str)
                    .map(str::to_owned)
                else {
                    return Err(bad("a control_request without a request_id".to_owned()));
                };
                let question = match value.pointer("/request/subtype").and_then(Value::as_str) {
                    Some("hook_callback") => Question::Hook,
                    Some("can_use_tool") => Question::Permission,
                    _ => Question::Other,
                };
                let request = value.get("request").cloned().unwrap_or(Value::Null);
                match serde_json::from_value(request) {
                    Ok(request) => Ok(Self::ControlRequest {
                        request_id,
                        request,
                    }),
                    Err(error) => Err(BadLine {
                        why: what(error),
                        question: Some((RequestId(request_id), question)),
                    }),
                }
            }
            "control_response" => {
                let response = value.get("response").cloned().unwrap_or(Value::Null);
                let response =
                    serde_json::from_value(response).map_err(|error| bad(what(error)))?;
                Ok(Self::ControlResponse { response })
            }
            "control_cancel_request" => match value.get("request_id").and_then(Value::as_str) {
                Some(id) => Ok(Self::ControlCancelRequest {
                    request_id: id.to_owned(),
                }),
                None => Err(bad(
                    "a control_cancel_request without a request_id".to_owned()
                )),
            },
            "result" => serde_json::from_value(value)
                .map(|result| Self::Result(Box::new(result)))
                .map_err(|error| bad(what(error))),
            "assistant" => {
                #[derive(Deserialize)]
                struct Assistant {
                    message: AssistantMessage,
                    parent_tool_use_id: Option<String>,
                }
                let it: Assistant =
                    serde_json::from_value(value).map_err(|error| bad(what(error)))?;
                Ok(Self::Assistant {
                    message: it.message,
                    parent_tool_use_id: it.parent_tool_use_id,
                })
            }
            "system" => {
                let subtype = value
                    .get("subtype")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                if !matches!(subtype, "init" | "informational" | "api_retry") {
                    return Ok(Self::Ignored {
                        kind: format!("system {subtype}"),
                    });
                }
                serde_json::from_value(value)
                    .map(Self::System)
                    .map_err(|error| bad(what(error)))
            }
            _ => Ok(Self::Ignored { kind }),
        }
    }
}

/// A question of Claude.
#[derive(Debug, Deserialize)]
#[serde(from = "RawControlRequest")]
pub(super) enum ControlRequest {
    HookCallback { callback_id: String, input: Value },
    CanUseTool { tool_name: String, input: Value },
    McpMessage { server_name: String, message: Value },
    Other { subtype: String },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawControlRequest {
    Known(KnownControlRequest),
    Other(OtherControlRequest),
}

#[derive(Deserialize)]
#[serde(tag = "subtype", rename_all = "snake_case")]
enum KnownControlRequest {
    HookCallback { callback_id: String, input: Value },
    CanUseTool { tool_name: String, input: Value },
    McpMessage { server_name: String, message: Value },
}

#[derive(Deserialize)]
struct OtherControlRequest {
    subtype: UnknownSubtype,
}

/// A subtype that is none of the known ones: a known one whose fields don't fit must not pass as unknown.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct UnknownSubtype(String);

impl TryFrom<String> for UnknownSubtype {
    type Error = String;

    fn try_from(subtype: String) -> Result<Self, Self::Error> {
        match subtype.as_str() {
            "hook_callback" | "can_use_tool" | "mcp_message" => {
                Err(format!("{subtype} lacks fields"))
            }
            _ => Ok(Self(subtype)),
        }
    }
}

impl From<RawControlRequest> for ControlRequest {
    fn from(raw: RawControlRequest) -> Self {
        match raw {
            RawControlRequest::Known(KnownControlRequest::HookCallback { callback_id, input }) => {
                Self::HookCallback { callback_id, input }
            }
            RawControlRequest::Known(KnownControlRequest::CanUseTool { tool_name, input }) => {
                Self::CanUseTool { tool_name, input }
            }
            RawControlRequest::Known(KnownControlRequest::McpMessage {
                server_name,
                message,
            }) => Self::McpMessage {
                server_name,
                message,
            },
            RawControlRequest::Other(other) => Self::Other {
                subtype: other.subtype.0,
            },
        }
    }
}

/// Claude's answer to one of our requests.
#[derive(Debug, Deserialize)]
#[serde(tag = "subtype", rename_all = "snake_case")]
pub(super) enum ControlResponse {
    Success {
        request_id: String,
        #[serde(default)]
        response: Value,
    },
    Error {
        request_id: String,
        error: String,
    },
}

impl ControlResponse {
    pub(super) fn request_id(&self) -> &str {
        match self {
            Self::Success { request_id, .. } | Self::Error { request_id, .. } => request_id,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct AssistantMessage {
    pub(super) content: Vec<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Content {
    Text {
        text: String,
    },
    ToolUse {
        name: String,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "subtype", rename_all = "snake_case")]
pub(super) enum System {
    Init(Init),
    Informational {
        content: String,
        #[serde(default)]
        tag: String,
    },
    ApiRetry {
        attempt: u32,
        error_status: Option<u16>,
    },
}

#[derive(Debug, Deserialize)]
pub(super) struct Init {
    pub(super) session_id: String,
    pub(super) model: String,
    #[serde(default)]
    pub(super) claude_code_version: String,
    #[serde(default)]
    pub(super) mcp_servers: Vec<McpServer>,
}

#[derive(Debug, Deserialize)]
pub(super) struct McpServer {
    pub(super) name: String,
    pub(super) status: String,
}

/// The end of a turn.
#[derive(Debug, Deserialize)]
pub(super) struct TurnResult {
    subtype: String,
    is_error: bool,
    result: Option<String>,
    #[serde(default)]
    errors: Vec<String>,
    /// Per model, since the last result.
    #[serde(default)]
    model_usage_since_last_result: std::collections::BTreeMap<String, ModelUsage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ModelUsage {
    input_tokens: u64,
    output_tokens: u64,
    cache_read_input_tokens: u64,
    cache_creation_input_tokens: u64,
}

impl TurnResult {
    pub(super) fn usage(&self) -> Vec<AgentUsage> {
        self.model_usage_since_last_result
            .iter()
            .map(|(model, usage)| AgentUsage {
                model: model.clone(),
                input: usage.input_tokens,
                output: usage.output_tokens,
                cache_read: usage.cache_read_input_tokens,
                cache_write: usage.cache_creation_input_tokens,
            })
            .collect()
    }

    pub(super) fn outcome(self) -> TurnOutcome {
        TurnOutcome {
            text: match self.result {
                Some(text) => text,
                None if self.errors.is_empty() => format!("the turn ended as {}", self.subtype),
                None => self.errors.join("; "),
            },
            is_error: self.is_error,
            kind: self.subtype,
        }
    }
}
