//! The tools as an MCP server: what rmcp asks for, answered from `tools`.

use std::sync::Arc;

use rmcp::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, ErrorData,
    Implementation, ListToolsResult, MetaObject, PaginatedRequestParams, ServerCapabilities,
    ServerConfig, Tool, ToolAnnotations,
};
use rmcp::service::{RequestContext, RoleServer};
use serde_json::{Map, Value};

use super::{tasks, tools};
use crate::bus::AgentPort;
use crate::tasks::Delegation;

/// What one agent may do through its tools.
#[derive(Clone, Debug)]
pub struct Rights {
    pub port: AgentPort,
    /// Without, the agent has no tools for tasks.
    pub delegation: Option<Delegation>,
}

impl From<AgentPort> for Rights {
    fn from(port: AgentPort) -> Self {
        Self {
            port,
            delegation: None,
        }
    }
}

/// One MCP server: the rights of one agent.
#[derive(Clone, Debug)]
pub(super) struct Handler {
    pub rights: Rights,
}

impl Handler {
    /// What a call gives; `None` where there is no such tool.
    async fn call(
        &self,
        name: &str,
        arguments: Map<String, Value>,
    ) -> Option<Result<Value, String>> {
        match &self.rights.delegation {
            Some(delegation) if name.starts_with("task_") => {
                tasks::call(delegation, name, arguments).await
            }
            _ => tools::call(&self.rights.port, name, arguments).await,
        }
    }

    fn specs(&self) -> Vec<tools::ToolSpec> {
        let mut specs = tools::specs();
        if self.rights.delegation.is_some() {
            specs.extend(tasks::specs());
        }
        specs
    }

    fn tools(&self) -> Vec<Tool> {
        self.specs()
            .into_iter()
            .map(|spec| {
                let Value::Object(schema) = spec.schema else {
                    unreachable!("schemas are objects")
                };
                let annotations = ToolAnnotations::new()
                    .read_only(spec.read_only)
                    .open_world(false);
                Tool::new(spec.name, spec.description, Arc::new(schema))
                    .with_annotations(annotations)
                    .with_meta(always_load())
            })
            .collect()
    }
}

/// Claude Code keeps the tools of MCP servers out of the prompt until its model searches for them; the other agents
/// are worth a few descriptions from the start.
fn always_load() -> MetaObject {
    let mut meta = MetaObject::new();
    meta.insert("anthropic/alwaysLoad".to_owned(), Value::Bool(true));
    meta
}

impl ServerHandler for Handler {
    fn get_info(&self) -> ServerConfig {
        let mut info = ServerConfig::new(ServerCapabilities::builder().enable_tools().build()).with_instructions(
            format!(
                "You are the agent called {}. These tools let you work with the other agents of the same user: list \
                 them with `agents`, ask one with `request`, and read what others send you with `inbox`.",
                self.rights.port.identity().name
            ),
        );
        info.server_info = Implementation::new("agentd", env!("CARGO_PKG_VERSION"));
        info
    }

    async fn list_tools(
        &self,
        _page: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(self.tools()))
    }

    async fn call_tool(
        &self,
        call: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = call.arguments.unwrap_or_default();
        // A cancelled call drops the future, which withdraws a request that is under way.
        let outcome = tokio::select! {
            outcome = self.call(&call.name, arguments) => outcome,
            () = context.ct.cancelled() => Some(Err("cancelled by the client".to_owned())),
        };
        let result = match outcome {
            None => {
                let known: Vec<&str> = self.specs().iter().map(|spec| spec.name).collect();
                let text = format!(
                    "there is no tool {:?}; there are {}",
                    call.name,
                    known.join(", ")
                );
                return Err(ErrorData::invalid_params(text, None));
            }
            Some(Ok(value)) => CallToolResult::structured(value),
            Some(Err(text)) => CallToolResult::error(vec![ContentBlock::text(text)]),
        };
        Ok(result.into())
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        self.tools().into_iter().find(|tool| tool.name == name)
    }
}
