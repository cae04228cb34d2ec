//! The messages of Codex's app-server, as far as this driver reads them. Unknown fields are normal (every version adds
//! some); unknown notifications are kept on record and ignored; a question without the fields it needs is an error.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::driver::AgentUsage;

/// The answer to `initialize`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Initialized {
    user_agent: String,
}

impl Initialized {
    /// `agentd/0.169.0 (Debian …)` → `0.169.0`.
    pub fn version(&self) -> &str {
        let product = self.user_agent.split(' ').next().unwrap_or_default();
        product
            .split_once('/')
            .map_or(product, |(_, version)| version)
    }
}

/// The answer to `thread/start`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Started {
    pub thread: Thread,
    pub model: String,
    pub approval_policy: Value,
    pub approvals_reviewer: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Thread {
    pub id: String,
}

/// What a notification about a thread says first.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Where {
    pub thread_id: String,
}

/// The answer to `turn/start`; `turn/started` and `turn/completed`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfTurn {
    #[serde(default)]
    pub thread_id: Option<String>,
    pub turn: Turn,
}

#[derive(Debug, Deserialize)]
pub(super) struct Turn {
    pub id: String,
    pub status: String,
    pub error: Option<TurnError>,
}

/// The `error` notification.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Failure {
    pub error: TurnError,
    pub will_retry: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TurnError {
    message: String,
    additional_details: Option<String>,
}

impl TurnError {
    /// One line for people. A provider's error body, which Codex passes on as text, gives its own message.
    pub fn text(&self) -> String {
        let body: Option<Value> = serde_json::from_str(&self.message).ok();
        let inner = body
            .as_ref()
            .and_then(|body| body.pointer("/error/message"))
            .and_then(Value::as_str);
        let message = inner.unwrap_or(&self.message);
        match &self.additional_details {
            Some(details) => format!("{message}: {details}"),
            None => message.to_owned(),
        }
    }
}

/// `item/started` and `item/completed`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OfItem {
    pub thread_id: String,
    pub item: Item,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(super) enum Item {
    AgentMessage {
        text: String,
    },
    CommandExecution {},
    FileChange {
        id: String,
        changes: Vec<Change>,
    },
    McpToolCall {
        server: String,
        tool: String,
    },
    WebSearch {},
    #[serde(other)]
    Other,
}

/// One file of a patch.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Change {
    path: String,
    kind: ChangeKind,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum ChangeKind {
    Add,
    Delete,
    Update { move_path: Option<String> },
}

impl Change {
    /// The policy's tools that it uses: `Write` where a file appears or goes, `Edit` where one changes.
    pub fn tools(&self) -> Vec<(String, Value)> {
        let tool = |tool: &str, path: &str| (tool.to_owned(), json!({ "file_path": path }));
        match &self.kind {
            ChangeKind::Add | ChangeKind::Delete => vec![tool("Write", &self.path)],
            ChangeKind::Update { move_path: None } => vec![tool("Edit", &self.path)],
            ChangeKind::Update {
                move_path: Some(to),
            } => vec![tool("Edit", &self.path), tool("Write", to)],
        }
    }
}

/// `item/fileChange/patchUpdated`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PatchUpdated {
    pub item_id: String,
    pub changes: Vec<Change>,
}

/// `thread/tokenUsage/updated`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TokenUsageUpdated {
    pub token_usage: TokenUsage,
}

#[derive(Debug, Deserialize)]
pub(super) struct TokenUsage {
    pub total: Breakdown,
    pub last: Breakdown,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Breakdown {
    pub total_tokens: u64,
    input_tokens: u64,
    cached_input_tokens: u64,
    #[serde(default)]
    cache_write_input_tokens: u64,
    output_tokens: u64,
}

impl Breakdown {
    /// Codex counts cached tokens as input; here the kinds stand apart.
    pub fn usage(&self, model: &str) -> AgentUsage {
        AgentUsage {
            model: model.to_owned(),
            input: self
                .input_tokens
                .saturating_sub(self.cached_input_tokens)
                .saturating_sub(self.cache_write_input_tokens),
            output: self.output_tokens,
            cache_read: self.cached_input_tokens,
            cache_write: self.cache_write_input_tokens,
        }
    }
}

/// `mcpServer/startupStatus/updated`.
#[derive(Debug, Deserialize)]
pub(super) struct McpStartup {
    pub name: String,
    pub status: String,
    pub error: Option<String>,
}

/// `serverRequest/resolved`: the question is settled, whoever settled it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Resolved {
    pub request_id: Value,
}

/// `warning`, `configWarning` and their like.
#[derive(Debug, Deserialize)]
pub(super) struct Warning {
    #[serde(alias = "summary")]
    pub message: String,
}

/// `item/commandExecution/requestApproval`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CommandApproval {
    #[serde(default = "command_kind")]
    pub kind: String,
    pub command: Option<String>,
    pub cwd: Option<String>,
    #[serde(default)]
    pub network_approval_context: Value,
}

fn command_kind() -> String {
    "command".to_owned()
}

/// `item/fileChange/requestApproval`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PatchApproval {
    pub item_id: String,
    pub grant_root: Option<String>,
}

/// `mcpServer/elicitation/request`: a call of an MCP tool, or a form that nobody is there to fill in.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Elicitation {
    pub server_name: String,
    #[serde(rename = "_meta")]
    pub meta: Option<ElicitationMeta>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ElicitationMeta {
    pub codex_approval_kind: Option<String>,
    pub tool_name: Option<String>,
    #[serde(default)]
    pub tool_params: Value,
}
