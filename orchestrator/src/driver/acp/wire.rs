//! The messages of the Agent Client Protocol, as far as this driver reads them. Unknown fields are normal; unknown
//! updates are kept on record and ignored; a question without the fields it needs is an error.

use serde::Deserialize;
use serde_json::Value;

use crate::driver::AgentUsage;

/// The answer to `initialize`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Initialized {
    pub protocol_version: Value,
    #[serde(default)]
    pub agent_capabilities: Capabilities,
    pub agent_info: Option<AgentInfo>,
    #[serde(default)]
    pub auth_methods: Vec<AuthMethod>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Capabilities {
    pub mcp_capabilities: McpCapabilities,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct McpCapabilities {
    pub http: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct AgentInfo {
    pub name: String,
    #[serde(default)]
    pub version: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct AuthMethod {
    pub id: String,
}

/// The answer to `session/new`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSession {
    pub session_id: String,
    #[serde(default)]
    config_options: Vec<ConfigOption>,
    models: Option<Models>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigOption {
    category: Option<String>,
    #[serde(default)]
    current_value: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Models {
    current_model_id: String,
}

impl NewSession {
    /// The model it means to use, in whichever of the protocol's two places it stands.
    pub fn model(&self) -> &str {
        let option = self
            .config_options
            .iter()
            .find(|option| option.category.as_deref() == Some("model"));
        option
            .and_then(|option| option.current_value.as_str())
            .or(self.models.as_ref().map(|it| it.current_model_id.as_str()))
            .unwrap_or_default()
    }
}

/// The answer to `session/prompt`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Prompted {
    pub stop_reason: String,
    pub usage: Option<Usage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Usage {
    input_tokens: u64,
    output_tokens: u64,
    cached_read_tokens: Option<u64>,
    cached_write_tokens: Option<u64>,
}

impl Usage {
    pub fn of(&self, model: &str) -> AgentUsage {
        AgentUsage {
            model: model.to_owned(),
            input: self.input_tokens,
            output: self.output_tokens,
            cache_read: self.cached_read_tokens.unwrap_or(0),
            cache_write: self.cached_write_tokens.unwrap_or(0),
        }
    }
}

/// `session/update`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfSession {
    pub session_id: String,
    pub update: Update,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "sessionUpdate")]
pub(super) enum Update {
    #[serde(rename = "agent_message_chunk")]
    Words { content: Content },
    #[serde(rename = "tool_call")]
    ToolCall(ToolCall),
    #[serde(rename = "tool_call_update")]
    MoreOfToolCall(ToolCall),
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Content {
    Text {
        text: String,
    },
    #[serde(other)]
    Other,
}

/// A tool call, or what is new about one.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ToolCall {
    pub tool_call_id: String,
    pub title: Option<String>,
    pub kind: Option<String>,
    pub status: Option<String>,
    pub raw_input: Option<Value>,
    pub locations: Option<Vec<Location>>,
    pub content: Option<Vec<ToolContent>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Location {
    pub path: String,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ToolContent {
    Diff {
        path: String,
        #[serde(rename = "oldText")]
        old_text: Option<String>,
    },
    #[serde(other)]
    Other,
}

/// `session/request_permission`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PermissionRequest {
    pub session_id: String,
    pub tool_call: ToolCall,
    pub options: Vec<PermissionOption>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PermissionOption {
    pub option_id: String,
    pub kind: String,
}
