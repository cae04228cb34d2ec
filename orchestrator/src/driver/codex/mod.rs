//! Codex, driven over `codex app-server`: JSON-RPC on lines, without the `jsonrpc` member. Written against version
//! 0.169.0; `docs/drivers.md` describes the protocol.
//!
//! One thread per agent, started with the approval policy `untrusted` and Codex's own sandbox off, so that Codex asks
//! before every command, patch and MCP call; a Codex that says it took another policy is not used. A refusal can't
//! carry a reason, so the reason follows it as a steering message of the same turn. Facts that shaped it: the policy
//! `untrusted` is refused in `config.toml` but taken by `thread/start`; a patch is asked about by the id of an item
//! whose files were told before; a command is shown inside its shell, quoted.

mod shell;
mod wire;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::questions::{Questions, Settled};
use super::resume::Wrote;
use super::rpc::{Dialect, Incoming, METHOD_NOT_FOUND, RpcError};
use super::{
    Action, Answer, Line, Machine, RequestId, Session, Turn, TurnId, TurnOutcome, TurnRefused,
    excerpt, prompt, protocol_error, write,
};

const RPC: Dialect = Dialect::Bare;
const INITIALIZE: &str = "initialize";
const THREAD: &str = "thread";
/// The id of a `turn/start` begins with it and ends with the turn's number.
const TURN: &str = "turn-";
const INTERRUPT: &str = "interrupt";
const STEER: &str = "steer";
/// Asks before everything that could change anything.
const APPROVAL_POLICY: &str = "untrusted";
/// Who decides: the client, not a second model.
const REVIEWER: &str = "user";
/// Codex keeps MCP tools behind a search with most models, so the model has to be told that there is something to find.
const INSTRUCTIONS: &str = "Other agents work beside you. The tools of the MCP server agentd (agents, request, send, \
    inbox, publish) reach them; where you don't see these tools, tool_search finds them.";
/// Patches that are remembered until they are asked about.
const MAX_PATCHES: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Initializing,
    Starting,
    Idle,
    Busy(Busy),
    Ended,
}

/// The present turn.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Busy {
    turn: TurnId,
    /// Codex's own name for it, once it is known.
    id: Option<String>,
    /// The last words of the agent in it.
    said: String,
    /// Somebody wants it to end, and its name was not known yet.
    unwanted: bool,
}

/// A question of Codex, with what its answer needs.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    id: Value,
    form: Form,
    /// For the sentence that explains a refusal.
    what: String,
}

/// How the answer is worded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `{"decision": …}`.
    Decision,
    /// `{"action": …}` of an elicitation.
    Elicitation,
}

impl Form {
    fn yes(self) -> Value {
        match self {
            Self::Decision => json!({"decision": "accept"}),
            Self::Elicitation => json!({"action": "accept", "content": {}, "_meta": null}),
        }
    }

    fn no(self) -> Value {
        match self {
            Self::Decision => json!({"decision": "decline"}),
            Self::Elicitation => json!({"action": "decline", "content": null, "_meta": null}),
        }
    }
}

/// The conversation with one Codex.
#[derive(Debug)]
pub struct Codex {
    phase: Phase,
    version: String,
    thread: String,
    model: String,
    questions: Questions<Asked>,
    /// The files of patches that were announced, by item.
    patches: BTreeMap<String, Vec<wire::Change>>,
    /// Tokens of the thread when they were last told.
    told_tokens: u64,
}

impl Default for Codex {
    fn default() -> Self {
        Self::new()
    }
}

impl Codex {
    /// A conversation that has not begun.
    pub fn new() -> Self {
        Self {
            phase: Phase::New,
            version: String::new(),
            thread: String::new(),
            model: String::new(),
            questions: Questions::default(),
            patches: BTreeMap::new(),
            told_tokens: 0,
        }
    }

    fn fail(&mut self, why: String) -> Vec<Action> {
        let ended = match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Busy(busy) => Some(failed(busy.turn, why.clone(), "failed")),
            _ => None,
        };
        self.forget_turn()
            .into_iter()
            .chain(ended)
            .chain([Action::Failed(why)])
            .collect()
    }

    /// Questions and patches of the turn that is over.
    fn forget_turn(&mut self) -> Vec<Action> {
        self.patches.clear();
        let open = self.questions.close_all().into_iter();
        open.flat_map(|(_, ids)| ids)
            .map(Action::Withdrawn)
            .collect()
    }

    fn response(&mut self, id: &str, result: Result<Value, RpcError>, line: &str) -> Vec<Action> {
        match (id, &self.phase) {
            (INITIALIZE, Phase::Initializing) => self.initialized(result),
            (THREAD, Phase::Starting) => self.thread_started(result),
            (id, Phase::Busy(busy)) if id == turn_request(busy.turn) => self.turn_begun(result),
            (INTERRUPT | STEER, _) => match result {
                Ok(_) => Vec::new(),
                // The turn was over before the request arrived.
                Err(error) => vec![Action::Log(format!("codex: {id}: {}", error.message))],
            },
            _ => vec![protocol_error(
                &format!("an answer to {id}, which was not asked"),
                line,
            )],
        }
    }

    fn initialized(&mut self, result: Result<Value, RpcError>) -> Vec<Action> {
        match read::<wire::Initialized>(result) {
            Ok(it) => {
                it.version().clone_into(&mut self.version);
                self.phase = Phase::Starting;
                let start = json!({"approvalPolicy": APPROVAL_POLICY, "approvalsReviewer": REVIEWER,
                    "sandbox": "danger-full-access", "developerInstructions": INSTRUCTIONS});
                vec![
                    write(&RPC.notification("initialized", Value::Null)),
                    write(&RPC.request(THREAD, "thread/start", start)),
                ]
            }
            Err(why) => self.fail(format!("codex could not be initialized: {why}")),
        }
    }

    fn thread_started(&mut self, result: Result<Value, RpcError>) -> Vec<Action> {
        let started = match read::<wire::Started>(result) {
            Ok(started) => started,
            Err(why) => return self.fail(format!("codex could not start a thread: {why}")),
        };
        if started.approval_policy != APPROVAL_POLICY || started.approvals_reviewer != REVIEWER {
            return self.fail(format!(
                "this codex ({}) would not ask agentd before it acts (approval policy {}, reviewer {}); the driver was \
                 written for 0.169.0",
                self.version, started.approval_policy, started.approvals_reviewer
            ));
        }
        self.phase = Phase::Idle;
        self.thread = started.thread.id;
        self.model = started.model;
        vec![
            Action::Session(Session {
                id: self.thread.clone(),
                model: self.model.clone(),
                version: self.version.clone(),
                mcp: Vec::new(),
            }),
            Action::Ready,
        ]
    }

    fn turn_begun(&mut self, result: Result<Value, RpcError>) -> Vec<Action> {
        match read::<wire::OfTurn>(result) {
            Ok(begun) => self.name_turn(begun.turn.id),
            Err(why) => {
                let Phase::Busy(busy) = std::mem::replace(&mut self.phase, Phase::Idle) else {
                    return Vec::new();
                };
                let mut actions = self.forget_turn();
                actions.push(failed(busy.turn, why, "refused"));
                actions
            }
        }
    }

    /// The turn's name is known now; an interrupt that waited for it goes out.
    fn name_turn(&mut self, id: String) -> Vec<Action> {
        let Phase::Busy(busy) = &mut self.phase else {
            return Vec::new();
        };
        busy.id.get_or_insert(id);
        if std::mem::take(&mut busy.unwanted) {
            return self.interrupt();
        }
        Vec::new()
    }

    fn turn_completed(&mut self, of: wire::OfTurn) -> Vec<Action> {
        let ours = of.thread_id.as_deref().is_none_or(|it| it == self.thread);
        let turn = of.turn;
        match &self.phase {
            Phase::Busy(busy) if ours && busy.id.as_ref().is_none_or(|id| *id == turn.id) => {}
            _ => return ignored("turn/completed"),
        }
        let Phase::Busy(busy) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Vec::new();
        };
        let is_error = turn.status != "completed";
        let text = match (&turn.error, is_error) {
            (Some(error), _) => error.text(),
            (None, true) => format!("the turn ended as {}", turn.status),
            (None, false) => busy.said,
        };
        let mut actions = self.forget_turn();
        actions.push(Action::TurnEnded {
            turn: busy.turn,
            outcome: TurnOutcome {
                text,
                is_error,
                kind: turn.status,
            },
        });
        actions
    }

    fn item(&mut self, of: wire::OfItem, is_done: bool) -> Vec<Action> {
        let ours = of.thread_id == self.thread;
        let tool = |tool: String| vec![Action::ToolUse { tool }];
        match (of.item, is_done) {
            (wire::Item::AgentMessage { text }, true) if ours && !text.trim().is_empty() => {
                if let Phase::Busy(busy) = &mut self.phase {
                    busy.said.clone_from(&text);
                }
                vec![Action::Text(text)]
            }
            (wire::Item::FileChange { id, .. }, true) => {
                self.patches.remove(&id);
                Vec::new()
            }
            (wire::Item::FileChange { id, changes }, false) => {
                self.remember_patch(id, changes);
                tool("Edit".to_owned())
            }
            (wire::Item::CommandExecution {}, false) => tool("Bash".to_owned()),
            (wire::Item::McpToolCall { server, tool: name }, false) => {
                tool(mcp_tool(&server, &name))
            }
            (wire::Item::WebSearch {}, false) => tool("WebSearch".to_owned()),
            _ => Vec::new(),
        }
    }

    /// A patch too many is forgotten, and its question will be refused.
    fn remember_patch(&mut self, id: String, changes: Vec<wire::Change>) {
        if self.patches.len() < MAX_PATCHES || self.patches.contains_key(&id) {
            self.patches.insert(id, changes);
        }
    }

    fn notification(&mut self, method: &str, params: Value, line: &str) -> Vec<Action> {
        let actions = match method {
            "turn/started" => parse(params).map(|of: wire::OfTurn| {
                if of.thread_id.as_deref() == Some(&self.thread) {
                    self.name_turn(of.turn.id)
                } else {
                    Vec::new()
                }
            }),
            "turn/completed" => parse(params).map(|of| self.turn_completed(of)),
            "item/started" => parse(params).map(|of| self.item(of, false)),
            "item/completed" => parse(params).map(|of| self.item(of, true)),
            "item/fileChange/patchUpdated" => parse(params).map(|it: wire::PatchUpdated| {
                self.remember_patch(it.item_id, it.changes);
                Vec::new()
            }),
            "thread/tokenUsage/updated" => parse(params).map(|it: wire::TokenUsageUpdated| {
                let total = it.token_usage.total.total_tokens;
                // The same figures may be told again.
                if std::mem::replace(&mut self.told_tokens, total) == total {
                    return Vec::new();
                }
                vec![Action::Usage(it.token_usage.last.usage(&self.model))]
            }),
            "serverRequest/resolved" => {
                parse(params).map(|it: wire::Resolved| self.questions.close(&it.request_id))
            }
            "error" => parse(params).map(|it: wire::Failure| {
                let what = if it.will_retry {
                    "codex asks the model again"
                } else {
                    "codex"
                };
                vec![Action::Log(format!("{what}: {}", it.error.text()))]
            }),
            "warning" | "configWarning" | "guardianWarning" | "deprecationNotice" => parse(params)
                .map(|it: wire::Warning| vec![Action::Log(format!("codex warns: {}", it.message))]),
            "mcpServer/startupStatus/updated" => {
                parse(params).map(|it: wire::McpStartup| match it.status.as_str() {
                    "failed" | "cancelled" => vec![Action::Log(format!(
                        "codex can't use the MCP server {}: {}",
                        it.name,
                        it.error.as_deref().unwrap_or(&it.status)
                    ))],
                    _ => ignored(method),
                })
            }
            "thread/closed" => parse(params).map(|it: wire::Where| {
                if it.thread_id == self.thread {
                    self.fail("codex closed its thread".to_owned())
                } else {
                    Vec::new()
                }
            }),
            _ => Ok(ignored(method)),
        };
        actions.unwrap_or_else(|why| vec![protocol_error(&format!("{method}: {why}"), line)])
    }

    fn request(&mut self, id: &Value, method: &str, params: Value, line: &str) -> Vec<Action> {
        let (form, asked) = match method {
            "item/commandExecution/requestApproval" => (Form::Decision, command(params)),
            "item/fileChange/requestApproval" => (Form::Decision, self.patch(params)),
            "mcpServer/elicitation/request" => (Form::Elicitation, mcp_call(params)),
            // Nobody is there to answer, and Codex takes "nothing" for an answer.
            "item/tool/requestUserInput" => {
                return vec![write(&RPC.result(id, json!({"answers": {}})))];
            }
            "item/permissions/requestApproval" => {
                return vec![write(
                    &RPC.result(id, json!({"permissions": {}, "scope": "turn"})),
                )];
            }
            _ => {
                let what = format!("agentd does not offer {method}");
                return vec![
                    write(&RPC.error(id, METHOD_NOT_FOUND, &what)),
                    protocol_error(&what, line),
                ];
            }
        };
        let questions = asked.and_then(|(what, tools)| {
            let asked = Asked {
                id: id.clone(),
                form,
                what,
            };
            self.questions.ask(id, asked, tools)
        });
        questions.unwrap_or_else(|why| {
            vec![
                write(&RPC.result(id, form.no())),
                protocol_error(&format!("{method}: {why}"), line),
            ]
        })
    }

    fn patch(&self, params: Value) -> Result<(String, Vec<(String, Value)>), String> {
        let approval: wire::PatchApproval = parse(params)?;
        if let Some(root) = approval.grant_root {
            return Err(format!("it asks for all of {root}, not for a patch"));
        }
        let changes = self
            .patches
            .get(&approval.item_id)
            .ok_or_else(|| format!("nobody told what the patch {} is", approval.item_id))?;
        let tools = changes.iter().flat_map(wire::Change::tools).collect();
        Ok(("the patch".to_owned(), tools))
    }

    /// Tells the model why, since the refusal itself can't.
    fn explain(&self, what: &str, why: &str) -> Option<Action> {
        let Phase::Busy(Busy { id: Some(turn), .. }) = &self.phase else {
            return None;
        };
        let params = json!({"threadId": self.thread, "expectedTurnId": turn,
            "input": [{"type": "text", "text": format!("{what} was refused: {why}")}]});
        Some(write(&RPC.request(STEER, "turn/steer", params)))
    }
}

impl Machine for Codex {
    fn start(&mut self) -> Vec<Action> {
        self.phase = Phase::Initializing;
        let params = json!({
            "clientInfo": {"name": "agentd", "title": "agentd", "version": env!("CARGO_PKG_VERSION")},
            "capabilities": {"experimentalApi": false, "requestAttestation": false},
        });
        vec![write(&RPC.request(INITIALIZE, "initialize", params))]
    }

    fn begin_turn(&mut self, turn: &Turn) -> Result<Vec<Action>, TurnRefused> {
        match self.phase {
            Phase::New | Phase::Initializing | Phase::Starting => Err(TurnRefused::NotReady),
            Phase::Busy(_) => Err(TurnRefused::Busy),
            Phase::Ended => Err(TurnRefused::Ended),
            Phase::Idle => {
                self.phase = Phase::Busy(Busy::new(turn.id));
                let params = json!({"threadId": self.thread,
                    "input": [{"type": "text", "text": prompt(turn)}]});
                let id = turn_request(turn.id);
                Ok(vec![write(&RPC.request(&id, "turn/start", params))])
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
        match Incoming::parse(text) {
            Ok(Incoming::Request { id, method, params }) => {
                self.request(&id, &method, params, text)
            }
            Ok(Incoming::Notification { method, params }) => {
                self.notification(&method, params, text)
            }
            Ok(Incoming::Response { id, result }) => {
                self.response(id.as_str().unwrap_or_default(), result, text)
            }
            Err(bad) => RPC.refuse(&bad, text),
        }
    }

    fn answer(&mut self, answer: Answer) -> Vec<Action> {
        let (id, verdict) = answer.into_verdict();
        match self.questions.answer(&id, verdict) {
            Settled::Not => Vec::new(),
            Settled::Allowed(asked) => vec![write(&RPC.result(&asked.id, asked.form.yes()))],
            Settled::Refused {
                asked,
                why,
                withdrawn,
            } => [write(&RPC.result(&asked.id, asked.form.no()))]
                .into_iter()
                .chain(self.explain(&asked.what, &why))
                .chain(withdrawn.into_iter().map(Action::Withdrawn))
                .collect(),
        }
    }

    fn interrupt(&mut self) -> Vec<Action> {
        let Phase::Busy(busy) = &mut self.phase else {
            return Vec::new();
        };
        let Some(id) = &busy.id else {
            busy.unwanted = true;
            return Vec::new();
        };
        let params = json!({"threadId": self.thread, "turnId": id});
        vec![write(&RPC.request(INTERRUPT, "turn/interrupt", params))]
    }

    fn close(&mut self) -> Vec<Action> {
        let mut actions = self.forget_turn();
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Busy(busy) => actions.push(failed(
                busy.turn,
                "codex ended before it answered".to_owned(),
                "closed",
            )),
            Phase::New | Phase::Initializing | Phase::Starting => actions.push(Action::Failed(
                "codex ended before it was ready; its stderr says why (agentctl logs)".to_owned(),
            )),
            Phase::Idle | Phase::Ended => {}
        }
        actions
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn wrote(&mut self, line: &str) -> Wrote {
        match Incoming::parse(line) {
            Ok(Incoming::Request { id, method, .. }) => match (method.as_str(), id.as_str()) {
                ("turn/start", Some(id)) => {
                    let number = id.strip_prefix(TURN).and_then(|number| number.parse().ok());
                    let Some(number) = number else {
                        return Wrote::Unknown;
                    };
                    self.phase = Phase::Busy(Busy::new(TurnId(number)));
                    Wrote::Turn(TurnId(number))
                }
                ("initialize" | "thread/start" | "turn/interrupt" | "turn/steer", _) => {
                    Wrote::Other
                }
                _ => Wrote::Unknown,
            },
            Ok(Incoming::Notification { method, .. }) if method == "initialized" => Wrote::Other,
            Ok(Incoming::Response { id, .. }) => {
                self.questions.close(&id);
                Wrote::Answer(RequestId(id.to_string()))
            }
            _ => Wrote::Unknown,
        }
    }

    fn is_open(&self, id: &RequestId) -> bool {
        self.questions.is_open(id)
    }
}

impl Busy {
    fn new(turn: TurnId) -> Self {
        Self {
            turn,
            id: None,
            said: String::new(),
            unwanted: false,
        }
    }
}

/// A command that Codex wants to run, as the policy knows it.
fn command(params: Value) -> Result<(String, Vec<(String, Value)>), String> {
    let approval: wire::CommandApproval = parse(params)?;
    if approval.kind != "command" {
        return Err(format!(
            "{} is not something agentd can decide",
            approval.kind
        ));
    }
    if !approval.network_approval_context.is_null() {
        return Err("network access is the policy's to give, not a question".to_owned());
    }
    let line = approval.command.ok_or("it names no command")?;
    let script = shell::script(&line)?;
    let what = format!("the command {}", excerpt(&script));
    let mut input = json!({ "command": script });
    if let Some(cwd) = approval.cwd {
        input["cwd"] = json!(cwd);
    }
    Ok((what, vec![("Bash".to_owned(), input)]))
}

/// A call of an MCP tool, which Codex asks about as if its server did.
fn mcp_call(params: Value) -> Result<(String, Vec<(String, Value)>), String> {
    let elicitation: wire::Elicitation = parse(params)?;
    let meta = elicitation.meta.ok_or("a form that nobody can fill in")?;
    match (meta.codex_approval_kind.as_deref(), meta.tool_name) {
        (Some("mcp_tool_call"), Some(tool)) => {
            let tool = mcp_tool(&elicitation.server_name, &tool);
            Ok((
                format!("the call of {tool}"),
                vec![(tool, meta.tool_params)],
            ))
        }
        (kind, _) => Err(format!("an elicitation of kind {kind:?}")),
    }
}

/// As Claude Code names them, and so the policy.
fn mcp_tool(server: &str, tool: &str) -> String {
    format!("mcp__{server}__{tool}")
}

fn turn_request(turn: TurnId) -> String {
    format!("{TURN}{}", turn.0)
}

fn failed(turn: TurnId, text: String, kind: &str) -> Action {
    Action::TurnEnded {
        turn,
        outcome: TurnOutcome {
            text,
            is_error: true,
            kind: kind.to_owned(),
        },
    }
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn read<T: DeserializeOwned>(result: Result<Value, RpcError>) -> Result<T, String> {
    result
        .map_err(|error| error.message)
        .and_then(|value| parse(value))
}

fn ignored(kind: &str) -> Vec<Action> {
    vec![Action::Ignored {
        kind: kind.to_owned(),
    }]
}
