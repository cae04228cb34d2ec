//! Any agent that speaks the Agent Client Protocol, version 1: JSON-RPC 2.0 on lines. Written against opencode 1.18.33;
//! `docs/drivers.md` describes the protocol.
//!
//! One session per agent, with agentd's MCP server over HTTP. agentd offers the agent neither files nor terminals: it
//! has its own, inside its sandbox. A permission is given once, never for always: the policy is asked each time. Facts
//! that shaped it: an agent may call `fs/write_text_file` although it was not offered, and goes on when it is refused;
//! a refused permission carries no reason; a cancelled turn must have its open permissions answered with `cancelled`.

mod tools;
mod wire;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::tools::Calls;
use super::questions::{Questions, Settled};
use super::resume::Wrote;
use super::rpc::{Dialect, Incoming, METHOD_NOT_FOUND, RpcError};
use super::{
    Action, Answer, Line, Machine, RequestId, Session, Turn, TurnId, TurnOutcome, TurnRefused,
    prompt, protocol_error, write,
};

const RPC: Dialect = Dialect::Strict;
/// The protocol's version that this driver speaks.
const VERSION: u64 = 1;
const INITIALIZE: &str = "initialize";
const SESSION: &str = "session";
/// The id of a `session/prompt` begins with it and ends with the turn's number.
const TURN: &str = "turn-";
/// What an agent answers when it wants its user to log in first.
const AUTH_REQUIRED: i64 = -32000;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Initializing,
    Starting,
    Idle,
    Busy(TurnId),
    Ended,
}

/// A permission that was asked for, with the options for its answer.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    id: Value,
    once: Option<String>,
    reject: Option<String>,
}

impl Asked {
    fn yes(&self) -> Value {
        match &self.once {
            Some(option) => selected(option),
            // Checked when it was asked.
            None => self.no(),
        }
    }

    fn no(&self) -> Value {
        self.reject.as_deref().map_or_else(cancelled, selected)
    }
}

fn selected(option: &str) -> Value {
    json!({"outcome": {"outcome": "selected", "optionId": option}})
}

fn cancelled() -> Value {
    json!({"outcome": {"outcome": "cancelled"}})
}

/// Where an agent works and how it reaches the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its working directory, absolute.
    pub cwd: String,
    /// The address of agentd's MCP server, as the agent sees it.
    pub mcp_url: String,
}

/// The conversation with one such agent.
#[derive(Debug)]
pub struct Acp {
    setting: Setting,
    phase: Phase,
    /// Its name and version.
    agent: String,
    version: String,
    /// How it would log in, for the message when it must.
    logins: Vec<String>,
    session: String,
    model: String,
    questions: Questions<Asked>,
    calls: Calls,
    /// Words of the present message that were not said yet.
    saying: String,
    /// The last whole message of the present turn.
    said: String,
}

impl Acp {
    /// A conversation that has not begun.
    pub fn new(setting: Setting) -> Self {
        Self {
            phase: Phase::New,
            agent: "the agent".to_owned(),
            version: String::new(),
            logins: Vec::new(),
            session: String::new(),
            model: String::new(),
            questions: Questions::default(),
            calls: Calls::new(&setting.cwd),
            setting,
            saying: String::new(),
            said: String::new(),
        }
    }

    fn fail(&mut self, why: String) -> Vec<Action> {
        self.phase = Phase::Ended;
        vec![Action::Failed(why)]
    }

    fn initialized(&mut self, result: Result<Value, RpcError>) -> Vec<Action> {
        let it: wire::Initialized = match result.map_err(|e| e.message).and_then(parse) {
            Ok(it) => it,
            Err(why) => return self.fail(format!("the agent could not be initialized: {why}")),
        };
        if let Some(info) = it.agent_info {
            self.agent = info.name;
            self.version = info.version;
        }
        if it.protocol_version != VERSION {
            return self.fail(format!(
                "{} speaks version {} of the Agent Client Protocol; this driver speaks version {VERSION}",
                self.agent, it.protocol_version
            ));
        }
        self.logins = it.auth_methods.into_iter().map(|it| it.id).collect();
        let mut servers = Vec::new();
        let mut actions = Vec::new();
        if it.agent_capabilities.mcp_capabilities.http {
            servers.push(json!({"type": "http", "name": tools::MCP_SERVER,
                "url": self.setting.mcp_url, "headers": []}));
        } else {
            actions.push(Action::Log(format!(
                "{} takes no MCP server over HTTP, so it has no bus",
                self.agent
            )));
        }
        self.phase = Phase::Starting;
        let params = json!({"cwd": self.setting.cwd, "mcpServers": servers});
        actions.push(write(&RPC.request(SESSION, "session/new", params)));
        actions
    }

    fn session_started(&mut self, result: Result<Value, RpcError>) -> Vec<Action> {
        let it: wire::NewSession = match result {
            Ok(value) => match parse(value) {
                Ok(it) => it,
                Err(why) => {
                    return self.fail(format!("{} could not start a session: {why}", self.agent));
                }
            },
            Err(error) if error.code == AUTH_REQUIRED => {
                return self.fail(format!(
                    "{} wants to log in first ({}), which it can't in a sandbox: configure it to use the model gateway",
                    self.agent,
                    self.logins.join(", ")
                ));
            }
            Err(error) => {
                return self.fail(format!(
                    "{} could not start a session: {}",
                    self.agent, error.message
                ));
            }
        };
        self.phase = Phase::Idle;
        it.model().clone_into(&mut self.model);
        self.session = it.session_id;
        vec![
            Action::Session(Session {
                id: self.session.clone(),
                model: self.model.clone(),
                version: format!("{} {}", self.agent, self.version),
                mcp: Vec::new(),
            }),
            Action::Ready,
        ]
    }

    fn turn_ended(&mut self, turn: TurnId, result: Result<Value, RpcError>) -> Vec<Action> {
        self.phase = Phase::Idle;
        let mut actions = self.finish_message();
        actions.extend(self.cancel_questions());
        self.calls.forget();
        let said = std::mem::take(&mut self.said);
        let outcome = match result.map_err(|e| e.message).and_then(parse) {
            Ok(wire::Prompted { stop_reason, usage }) => {
                actions.extend(usage.map(|usage| Action::Usage(usage.of(&self.model))));
                let is_error = stop_reason != "end_turn";
                TurnOutcome {
                    text: if is_error {
                        format!("the turn ended as {stop_reason}")
                    } else {
                        said
                    },
                    is_error,
                    kind: stop_reason,
                }
            }
            Err(why) => TurnOutcome {
                text: why,
                is_error: true,
                kind: "error".to_owned(),
            },
        };
        actions.push(Action::TurnEnded { turn, outcome });
        actions
    }

    /// Says the message that has come in pieces.
    fn finish_message(&mut self) -> Vec<Action> {
        if self.saying.trim().is_empty() {
            self.saying.clear();
            return Vec::new();
        }
        self.said = std::mem::take(&mut self.saying);
        vec![Action::Text(self.said.clone())]
    }

    /// Answers every open permission with `cancelled`, and takes the questions back.
    fn cancel_questions(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (asked, ids) in self.questions.close_all() {
            actions.push(write(&RPC.result(&asked.id, cancelled())));
            actions.extend(ids.into_iter().map(Action::Withdrawn));
        }
        actions
    }

    fn update(&mut self, update: wire::Update) -> Vec<Action> {
        match update {
            wire::Update::Words {
                content: wire::Content::Text { text },
            } => {
                if matches!(self.phase, Phase::Busy(_)) {
                    self.saying.push_str(&text);
                }
                Vec::new()
            }
            wire::Update::ToolCall(call) => {
                self.calls.learn(&call);
                let mut actions = self.finish_message();
                actions.push(Action::ToolUse {
                    tool: call.kind.or(call.title).unwrap_or_default(),
                });
                actions
            }
            wire::Update::MoreOfToolCall(call) => {
                self.calls.learn(&call);
                Vec::new()
            }
            wire::Update::Words { .. } | wire::Update::Other => {
                vec![Action::Ignored {
                    kind: "session/update".to_owned(),
                }]
            }
        }
    }

    fn permission(&mut self, id: &Value, params: Value, line: &str) -> Vec<Action> {
        let request: wire::PermissionRequest = match parse(params) {
            Ok(request) => request,
            Err(why) => {
                return vec![
                    write(&RPC.result(id, cancelled())),
                    protocol_error(&format!("session/request_permission: {why}"), line),
                ];
            }
        };
        let option = |kind: &str| {
            let found = request.options.iter().find(|option| option.kind == kind);
            found.map(|option| option.option_id.clone())
        };
        let asked = Asked {
            id: id.clone(),
            once: option("allow_once"),
            reject: option("reject_once").or_else(|| option("reject_always")),
        };
        let no = asked.no();
        let tools = if request.session_id != self.session {
            Err(format!("there is no session {}", request.session_id))
        } else if asked.once.is_none() {
            Err("it can't be allowed just once".to_owned())
        } else {
            self.calls.tools(&request.tool_call)
        };
        tools
            .and_then(|tools| self.questions.ask(id, asked, tools))
            .unwrap_or_else(|why| {
                vec![
                    write(&RPC.result(id, no)),
                    protocol_error(&format!("a permission that can't be decided: {why}"), line),
                ]
            })
    }

    fn request(&mut self, id: &Value, method: &str, params: Value, line: &str) -> Vec<Action> {
        if method == "session/request_permission" {
            return self.permission(id, params, line);
        }
        let what = format!("agentd does not offer {method}");
        let refusal = write(&RPC.error(id, METHOD_NOT_FOUND, &what));
        // Agents ask for these without having been offered them, and do without.
        let is_usual = method.starts_with("fs/") || method.starts_with("terminal/");
        let told = if is_usual {
            Action::Ignored {
                kind: method.to_owned(),
            }
        } else {
            protocol_error(&what, line)
        };
        vec![refusal, told]
    }

    fn response(&mut self, id: &str, result: Result<Value, RpcError>, line: &str) -> Vec<Action> {
        match (id, &self.phase) {
            (INITIALIZE, Phase::Initializing) => self.initialized(result),
            (SESSION, Phase::Starting) => self.session_started(result),
            (id, &Phase::Busy(turn)) if id == turn_request(turn) => self.turn_ended(turn, result),
            _ => vec![protocol_error(
                &format!("an answer to {id}, which was not asked"),
                line,
            )],
        }
    }
}

impl Machine for Acp {
    fn start(&mut self) -> Vec<Action> {
        self.phase = Phase::Initializing;
        let params = json!({
            "protocolVersion": VERSION,
            "clientCapabilities": {"fs": {"readTextFile": false, "writeTextFile": false}, "terminal": false},
            "clientInfo": {"name": "agentd", "title": "agentd", "version": env!("CARGO_PKG_VERSION")},
        });
        vec![write(&RPC.request(INITIALIZE, "initialize", params))]
    }

    fn begin_turn(&mut self, turn: &Turn) -> Result<Vec<Action>, TurnRefused> {
        match self.phase {
            Phase::New | Phase::Initializing | Phase::Starting => Err(TurnRefused::NotReady),
            Phase::Busy(_) => Err(TurnRefused::Busy),
            Phase::Ended => Err(TurnRefused::Ended),
            Phase::Idle => {
                self.phase = Phase::Busy(turn.id);
                let params = json!({"sessionId": self.session,
                    "prompt": [{"type": "text", "text": prompt(turn)}]});
                let id = turn_request(turn.id);
                Ok(vec![write(&RPC.request(&id, "session/prompt", params))])
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
            Ok(Incoming::Notification { method, params }) if method == "session/update" => {
                match parse::<wire::OfSession>(params) {
                    Ok(it) if it.session_id == self.session => self.update(it.update),
                    // A session of the agent's own, beside the one it was asked for.
                    Ok(_) => vec![Action::Ignored { kind: method }],
                    Err(why) => vec![protocol_error(&format!("{method}: {why}"), text)],
                }
            }
            Ok(Incoming::Notification { method, .. }) => vec![Action::Ignored { kind: method }],
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
            Settled::Allowed(asked) => vec![write(&RPC.result(&asked.id, asked.yes()))],
            Settled::Refused {
                asked, withdrawn, ..
            } => [write(&RPC.result(&asked.id, asked.no()))]
                .into_iter()
                .chain(withdrawn.into_iter().map(Action::Withdrawn))
                .collect(),
        }
    }

    fn interrupt(&mut self) -> Vec<Action> {
        if !matches!(self.phase, Phase::Busy(_)) {
            return Vec::new();
        }
        let params = json!({ "sessionId": self.session });
        let mut actions = vec![write(&RPC.notification("session/cancel", params))];
        actions.extend(self.cancel_questions());
        actions
    }

    fn close(&mut self) -> Vec<Action> {
        let mut actions = self.finish_message();
        let open = self.questions.close_all().into_iter();
        actions.extend(open.flat_map(|(_, ids)| ids).map(Action::Withdrawn));
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Busy(turn) => actions.push(Action::TurnEnded {
                turn,
                outcome: TurnOutcome {
                    text: format!("{} ended before it answered", self.agent),
                    is_error: true,
                    kind: "closed".to_owned(),
                },
            }),
            Phase::New | Phase::Initializing | Phase::Starting => {
                actions.push(Action::Failed(format!(
                    "{} ended before it was ready; its stderr says why (agentctl logs)",
                    self.agent
                )));
            }
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
                ("session/prompt", Some(id)) => {
                    let number = id.strip_prefix(TURN).and_then(|number| number.parse().ok());
                    let Some(number) = number else {
                        return Wrote::Unknown;
                    };
                    self.phase = Phase::Busy(TurnId(number));
                    Wrote::Turn(TurnId(number))
                }
                ("initialize" | "session/new", _) => Wrote::Other,
                _ => Wrote::Unknown,
            },
            Ok(Incoming::Notification { method, .. }) if method == "session/cancel" => Wrote::Other,
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

fn turn_request(turn: TurnId) -> String {
    format!("{TURN}{}", turn.0)
}

fn parse<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}
