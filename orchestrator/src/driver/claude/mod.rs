//! Claude Code, driven over `-p --input-format stream-json --output-format stream-json --verbose
//! --permission-prompt-tool stdio`. Written against version 2.1.329; `docs/drivers.md` describes the protocol.
//!
//! The machine asks for one hook before every tool use and names an in-band MCP server, `agentd`. A tool is decided
//! in the hook; `can_use_tool` is answered as well, in case a version asks it all the same. Facts that shaped it: a
//! hook answered with an error lets the tool run unless `onFailure` is "block"; a permission question that is never
//! answered hangs for ever; a malformed line on its stdin ends Claude with code 1.

mod wire;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Action, Answer, Line, Machine, RequestId, Session, ToolRequest, Turn, TurnId, TurnOutcome,
    TurnRefused, Verdict, Wrote, excerpt, prompt, protocol_error, write,
};
use wire::{Content, ControlRequest, ControlResponse, Incoming, Written};

/// The name under which Claude knows the in-band MCP server.
pub const MCP_SERVER: &str = "agentd";
const HOOK_ID: &str = "agentd-pre-tool-use";
const PRE_TOOL_USE: &str = "PreToolUse";
/// How long Claude waits for a hook, in seconds, before it counts as failed (and so as a block): longer than any
/// question to a person may wait (24 h), so that it is always agentd that ends one.
const HOOK_TIMEOUT_S: u32 = 25 * 3600;
/// Questions that may be open at once; an agent that asks more is refused at once.
const MAX_PENDING: usize = 256;
const INITIALIZE: &str = "agentd-initialize";
/// What a number makes the id of a control request.
const CONTROL: &str = "agentd-";

/// What an unanswered question of Claude was.
#[derive(Clone, Debug, PartialEq)]
enum Pending {
    Hook,
    /// Keeps the input, which an approval has to repeat.
    Permission(Value),
    Mcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Initializing,
    Idle,
    Busy(TurnId),
    Ended,
}

/// The conversation with one Claude Code.
#[derive(Debug)]
pub struct Claude {
    phase: Phase,
    pending: BTreeMap<RequestId, Pending>,
    /// Control requests after the first.
    sent: u64,
    /// The last turn that was begun: a user message carries no number of its own.
    turns: u64,
}

impl Default for Claude {
    fn default() -> Self {
        Self::new()
    }
}

impl Claude {
    /// A conversation that has not begun.
    pub fn new() -> Self {
        Self {
            phase: Phase::New,
            pending: BTreeMap::new(),
            sent: 0,
            turns: 0,
        }
    }

    /// Changes Claude's permission mode ("default", "acceptEdits", "plan").
    pub fn set_permission_mode(&mut self, mode: &str) -> Vec<Action> {
        self.control(json!({"subtype": "set_permission_mode", "mode": mode}))
    }

    /// Changes the model.
    pub fn set_model(&mut self, model: &str) -> Vec<Action> {
        self.control(json!({"subtype": "set_model", "model": model}))
    }

    fn control(&mut self, request: Value) -> Vec<Action> {
        if matches!(self.phase, Phase::New | Phase::Ended) {
            return Vec::new();
        }
        self.sent += 1;
        let id = format!("{CONTROL}{}", self.sent);
        vec![write(
            &json!({"type": "control_request", "request_id": id, "request": request}),
        )]
    }

    fn control_request(
        &mut self,
        id: RequestId,
        request: ControlRequest,
        line: &str,
    ) -> Vec<Action> {
        if self.pending.len() >= MAX_PENDING || self.pending.contains_key(&id) {
            let what = format!("request {} repeats an open one, or too many are open", id.0);
            return vec![refusal(&id, &request, &what), protocol_error(&what, line)];
        }
        match request {
            ControlRequest::HookCallback { callback_id, input } => {
                self.hook(id, &callback_id, &input, line)
            }
            ControlRequest::CanUseTool { tool_name, input } => {
                self.pending
                    .insert(id.clone(), Pending::Permission(input.clone()));
                vec![Action::AskTool(ToolRequest {
                    id,
                    tool: tool_name,
                    input,
                })]
            }
            ControlRequest::McpMessage {
                server_name,
                message,
            } if server_name == MCP_SERVER => {
                self.pending.insert(id.clone(), Pending::Mcp);
                vec![Action::Mcp { id, message }]
            }
            ControlRequest::McpMessage { server_name, .. } => {
                let what = format!("there is no MCP server {server_name} here");
                vec![write(&failure(&id, &what)), protocol_error(&what, line)]
            }
            ControlRequest::Other { subtype } => {
                let what = format!("agentd does not serve control request {subtype}");
                vec![
                    write(&failure(&id, &what)),
                    Action::Ignored { kind: subtype },
                ]
            }
        }
    }

    fn hook(&mut self, id: RequestId, callback: &str, input: &Value, line: &str) -> Vec<Action> {
        let event = input.get("hook_event_name").and_then(Value::as_str);
        let tool = input.get("tool_name").and_then(Value::as_str);
        match (callback, event, tool) {
            (HOOK_ID, Some(PRE_TOOL_USE), Some(tool)) => {
                self.pending.insert(id.clone(), Pending::Hook);
                vec![Action::AskTool(ToolRequest {
                    id,
                    tool: tool.to_owned(),
                    input: input.get("tool_input").cloned().unwrap_or(Value::Null),
                })]
            }
            _ => {
                let what = format!("hook {callback} does not have the form that was agreed");
                vec![
                    write(&success(
                        &id,
                        hook_answer(&Verdict::Deny { why: what.clone() }),
                    )),
                    protocol_error(&what, line),
                ]
            }
        }
    }

    fn control_response(&mut self, response: ControlResponse) -> Vec<Action> {
        if self.phase != Phase::Initializing || response.request_id() != INITIALIZE {
            return match response {
                ControlResponse::Success { .. } => Vec::new(),
                ControlResponse::Error { request_id, error } => {
                    vec![Action::Log(format!("claude refused {request_id}: {error}"))]
                }
            };
        }
        let why = match response {
            ControlResponse::Error { error, .. } => {
                format!("claude refused to initialize: {error}")
            }
            ControlResponse::Success { response, .. } => {
                let says = |key: &str| response.get(key).and_then(Value::as_bool);
                // Without the hook the policy's tool rules would not hold, and with an old `onFailure` a hook that
                // fails would let the tool run.
                if says("hooks_applied") == Some(true)
                    && says("hook_on_failure_supported") == Some(true)
                {
                    self.phase = Phase::Idle;
                    return vec![Action::Ready];
                }
                "this claude does not apply hooks that block on failure; version 2.1.329 does"
                    .to_owned()
            }
        };
        self.fail(why)
    }

    fn fail(&mut self, why: String) -> Vec<Action> {
        self.phase = Phase::Ended;
        self.pending.clear();
        vec![Action::Failed(why)]
    }

    fn result(&mut self, result: wire::TurnResult) -> Vec<Action> {
        let mut actions: Vec<Action> = result.usage().into_iter().map(Action::Usage).collect();
        let outcome = result.outcome();
        match self.phase {
            Phase::Busy(turn) => {
                self.phase = Phase::Idle;
                actions.push(Action::TurnEnded { turn, outcome });
            }
            _ => actions.push(Action::Log(format!(
                "claude ended a turn of its own: {}",
                excerpt(&outcome.text)
            ))),
        }
        actions
    }
}

impl Machine for Claude {
    fn start(&mut self) -> Vec<Action> {
        if self.phase != Phase::New {
            return Vec::new();
        }
        self.phase = Phase::Initializing;
        vec![write(&json!({
            "type": "control_request",
            "request_id": INITIALIZE,
            "request": {
                "subtype": "initialize",
                "hooks": { PRE_TOOL_USE: [{
                    "matcher": "",
                    "hookCallbackIds": [HOOK_ID],
                    "timeout": HOOK_TIMEOUT_S,
                    "onFailure": "block",
                }]},
                "sdkMcpServers": [MCP_SERVER],
            },
        }))]
    }

    fn begin_turn(&mut self, turn: &Turn) -> Result<Vec<Action>, TurnRefused> {
        match self.phase {
            Phase::New | Phase::Initializing => Err(TurnRefused::NotReady),
            Phase::Busy(_) => Err(TurnRefused::Busy),
            Phase::Ended => Err(TurnRefused::Ended),
            Phase::Idle => {
                self.phase = Phase::Busy(turn.id);
                self.turns = turn.id.0;
                Ok(vec![write(&json!({
                    "type": "user",
                    "message": {"role": "user", "content": prompt(turn)},
                    "parent_tool_use_id": null,
                    "session_id": "",
                }))])
            }
        }
    }

    fn receive(&mut self, line: &Line) -> Vec<Action> {
        let text = match line {
            Line::Text(text) => text,
            Line::TooLong { start, bytes } => {
                return vec![protocol_error(
                    &format!("a line of {bytes} bytes is too long"),
                    start,
                )];
            }
        };
        let incoming = match Incoming::parse(text) {
            Ok(incoming) => incoming,
            Err(bad) => {
                let mut actions = Vec::new();
                // A question whose contents make no sense is still a question: refuse it.
                if let Some((id, kind)) = bad.question {
                    actions.push(Action::Write(match kind {
                        wire::Question::Hook => success(
                            &id,
                            hook_answer(&Verdict::Deny {
                                why: "agentd could not read this hook".to_owned(),
                            }),
                        )
                        .to_string(),
                        wire::Question::Permission => success(
                            &id,
                            permission_answer(
                                &Verdict::Deny {
                                    why: "agentd could not read this permission request".to_owned(),
                                },
                                Value::Null,
                            ),
                        )
                        .to_string(),
                        wire::Question::Other => failure(&id, &bad.why).to_string(),
                    }));
                }
                actions.push(protocol_error(&bad.why, text));
                return actions;
            }
        };
        match incoming {
            Incoming::ControlRequest {
                request_id,
                request,
            } => self.control_request(RequestId(request_id), request, text),
            Incoming::ControlResponse { response } => self.control_response(response),
            Incoming::ControlCancelRequest { request_id } => {
                let id = RequestId(request_id);
                match self.pending.remove(&id) {
                    Some(_) => vec![Action::Withdrawn(id)],
                    None => Vec::new(),
                }
            }
            Incoming::Result(result) => self.result(*result),
            Incoming::Assistant {
                message,
                parent_tool_use_id: None,
            } => message
                .content
                .into_iter()
                .filter_map(|block| match block {
                    Content::Text { text } => Some(Action::Text(text)),
                    Content::ToolUse { name } => Some(Action::ToolUse { tool: name }),
                    Content::Other => None,
                })
                .collect(),
            Incoming::Assistant { .. } => Vec::new(),
            Incoming::System(wire::System::Init(init)) => vec![Action::Session(Session {
                id: init.session_id,
                model: init.model,
                version: init.claude_code_version,
                mcp: init
                    .mcp_servers
                    .into_iter()
                    .map(|it| (it.name, it.status))
                    .collect(),
            })],
            Incoming::System(wire::System::Informational { content, tag }) => {
                vec![Action::Log(format!("claude: {tag} {content}"))]
            }
            Incoming::System(wire::System::ApiRetry {
                attempt,
                error_status,
            }) => {
                let status = error_status
                    .map_or_else(|| "no answer".to_owned(), |status| status.to_string());
                vec![Action::Log(format!(
                    "claude asks the model again (attempt {attempt}: {status})"
                ))]
            }
            Incoming::Ignored { kind } => vec![Action::Ignored { kind }],
        }
    }

    fn answer(&mut self, answer: Answer) -> Vec<Action> {
        let id = match &answer {
            Answer::Tool { id, .. } | Answer::Mcp { id, .. } | Answer::Peer { id, .. } => {
                id.clone()
            }
        };
        let Some(pending) = self.pending.remove(&id) else {
            return Vec::new();
        };
        let line = match (pending, answer) {
            (Pending::Hook, Answer::Tool { verdict, .. }) => success(&id, hook_answer(&verdict)),
            (Pending::Permission(input), Answer::Tool { verdict, .. }) => {
                success(&id, permission_answer(&verdict, input))
            }
            (Pending::Mcp, Answer::Mcp { reply, .. }) => {
                // A notification has no answer of its own, but the control request that carried it wants one.
                let reply =
                    reply.unwrap_or_else(|| json!({"jsonrpc": "2.0", "id": 0, "result": {}}));
                success(&id, json!({ "mcp_response": reply }))
            }
            // An answer of the wrong kind is a fault of the daemon; the agent gets a refusal all the same.
            (Pending::Hook, _) => success(&id, hook_answer(&Verdict::undecided())),
            (Pending::Permission(_), _) => {
                success(&id, permission_answer(&Verdict::undecided(), Value::Null))
            }
            (Pending::Mcp, _) => failure(&id, "agentd has no answer"),
        };
        vec![write(&line)]
    }

    fn interrupt(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Busy(_) => self.control(json!({"subtype": "interrupt"})),
            _ => Vec::new(),
        }
    }

    fn close(&mut self) -> Vec<Action> {
        self.pending.clear();
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Busy(turn) => vec![Action::TurnEnded {
                turn,
                outcome: TurnOutcome {
                    text: "claude ended before it answered".to_owned(),
                    is_error: true,
                    kind: "closed".to_owned(),
                },
            }],
            Phase::New | Phase::Initializing => {
                vec![Action::Failed(
                    "claude ended before it was ready; its stderr says why (agentctl logs)"
                        .to_owned(),
                )]
            }
            Phase::Idle | Phase::Ended => Vec::new(),
        }
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn wrote(&mut self, line: &str) -> Wrote {
        match Written::parse(line) {
            Some(Written::User) => {
                self.turns += 1;
                let turn = TurnId(self.turns);
                self.phase = Phase::Busy(turn);
                Wrote::Turn(turn)
            }
            Some(Written::ControlResponse { request_id }) => {
                let id = RequestId(request_id);
                self.pending.remove(&id);
                Wrote::Answer(id)
            }
            Some(Written::ControlRequest { request_id }) => {
                let number = request_id
                    .strip_prefix(CONTROL)
                    .and_then(|number| number.parse().ok());
                self.sent = self.sent.max(number.unwrap_or(0));
                Wrote::Other
            }
            None => Wrote::Unknown,
        }
    }

    fn is_open(&self, id: &RequestId) -> bool {
        self.pending.contains_key(id)
    }
}

fn success(id: &RequestId, response: Value) -> Value {
    json!({"type": "control_response", "response": {"subtype": "success", "request_id": id.0, "response": response}})
}

fn failure(id: &RequestId, error: &str) -> Value {
    json!({"type": "control_response", "response": {"subtype": "error", "request_id": id.0, "error": error}})
}

/// Refuses a question in the form its kind wants.
fn refusal(id: &RequestId, request: &ControlRequest, why: &str) -> Action {
    let verdict = Verdict::Deny {
        why: why.to_owned(),
    };
    write(&match request {
        ControlRequest::HookCallback { .. } => success(id, hook_answer(&verdict)),
        ControlRequest::CanUseTool { .. } => success(id, permission_answer(&verdict, Value::Null)),
        ControlRequest::McpMessage { .. } | ControlRequest::Other { .. } => failure(id, why),
    })
}

fn hook_answer(verdict: &Verdict) -> Value {
    let (decision, reason) = match verdict {
        Verdict::Allow => ("allow", "allowed by the agent's policy"),
        Verdict::Deny { why } => ("deny", why.as_str()),
    };
    json!({"hookSpecificOutput": {
        "hookEventName": PRE_TOOL_USE,
        "permissionDecision": decision,
        "permissionDecisionReason": reason,
    }})
}

fn permission_answer(verdict: &Verdict, input: Value) -> Value {
    match verdict {
        Verdict::Allow => json!({"behavior": "allow", "updatedInput": input}),
        Verdict::Deny { why } => json!({"behavior": "deny", "message": why}),
    }
}
