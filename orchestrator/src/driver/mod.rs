//! Drivers: how the daemon speaks with an agent's own protocol instead of reading its screen.
//!
//! A [`Machine`] is one conversation, without I/O. The daemon cuts the agent's stdout into lines with [`Lines`],
//! **puts each line on record**, hands it to [`Machine::receive`], and carries out the [`Action`]s. Questions of the
//! agent come out as actions with a [`RequestId`] and must be answered through [`Machine::answer`]; a machine turns
//! whatever it cannot understand about a question into a refusal by itself, so that an agent never waits for an
//! answer that isn't coming and nothing is allowed by mistake.

pub mod acp;
pub mod claude;
pub mod codex;
pub mod jsonl;
mod line;
mod questions;
mod resume;
mod rpc;

use serde_json::Value;

pub use line::{Cut, Line, Lines, MAX_LINE_BYTES, excerpt};
pub use resume::{Recorded, Resumed, Unresumable, Wrote, resume};

/// One piece of work for the agent, numbered by the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TurnId(pub u64);

/// One piece of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Its number.
    pub id: TurnId,
    /// The agent that asks, and by which method; `None` is the person who launched this agent.
    pub asked_by: Option<Asker>,
    /// What to do.
    pub text: String,
}

/// An agent that asks another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asker {
    /// Its name.
    pub name: String,
    /// The method it called.
    pub method: String,
}

/// Id of a question in the agent's own protocol; opaque.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub String);

/// What the daemon has to do, in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Put this line on record, then write it and a newline to the agent's stdin.
    Write(String),
    /// The agent takes turns from now on.
    Ready,
    /// The conversation can't go on; end the agent.
    Failed(String),
    /// The agent described its session.
    Session(Session),
    /// Words of the agent.
    Text(String),
    /// The agent uses a tool (told, not asked).
    ToolUse {
        /// The tool.
        tool: String,
    },
    /// May the agent use this tool? Answer with [`Answer::Tool`].
    AskTool(ToolRequest),
    /// A JSON-RPC message for the in-band MCP server. Answer with [`Answer::Mcp`].
    Mcp {
        /// Of the question.
        id: RequestId,
        /// The message.
        message: Value,
    },
    /// The agent asks another agent. Answer with [`Answer::Peer`].
    AskPeer(PeerRequest),
    /// The agent took the question back: an answer is no longer wanted.
    Withdrawn(RequestId),
    /// The turn is over.
    TurnEnded {
        /// Which.
        turn: TurnId,
        /// How.
        outcome: TurnOutcome,
    },
    /// Tokens by the agent's own account. Advisory: the gateway's counts are the authority.
    Usage(AgentUsage),
    /// A line for the log.
    Log(String),
    /// A well-formed message that this driver has no use for. It is on record; nothing else happens.
    Ignored {
        /// Its type.
        kind: String,
    },
    /// The agent broke the protocol; the conversation goes on.
    ProtocolError {
        /// What is wrong.
        what: String,
        /// The beginning of the line.
        line: String,
    },
}

/// What an agent says about its session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Its own id, with which it could be resumed.
    pub id: String,
    /// The model it means to use.
    pub model: String,
    /// Its version.
    pub version: String,
    /// The MCP servers it could reach, by name, with their state.
    pub mcp: Vec<(String, String)>,
}

/// A question about a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolRequest {
    /// Of the question.
    pub id: RequestId,
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub input: Value,
}

/// A question for another agent.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerRequest {
    /// Of the question.
    pub id: RequestId,
    /// The agent asked.
    pub to: String,
    /// The method.
    pub method: String,
    /// The payload.
    pub payload: String,
    /// How long to wait, in milliseconds; 0 leaves it to the daemon.
    pub timeout_ms: u64,
}

/// The end of a turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TurnOutcome {
    /// The answer, or what went wrong.
    pub text: String,
    /// Whether it went wrong.
    pub is_error: bool,
    /// The agent's word for how it ended ("success", "error_during_execution", …).
    pub kind: String,
}

/// Tokens of one model by the agent's own account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentUsage {
    /// The model.
    pub model: String,
    /// Fresh input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// Input tokens read from the provider's cache.
    pub cache_read: u64,
    /// Input tokens written to the provider's cache.
    pub cache_write: u64,
}

/// A decision about a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go ahead.
    Allow,
    /// Don't; the agent's model is told why.
    Deny {
        /// A sentence.
        why: String,
    },
}

/// The daemon's answer to a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To [`Action::AskTool`].
    Tool {
        /// Of the question.
        id: RequestId,
        /// The decision.
        verdict: Verdict,
    },
    /// To [`Action::Mcp`].
    Mcp {
        /// Of the question.
        id: RequestId,
        /// The JSON-RPC answer; `None` to a notification.
        reply: Option<Value>,
    },
    /// To [`Action::AskPeer`].
    Peer {
        /// Of the question.
        id: RequestId,
        /// The peer's answer, or why there is none.
        result: Result<String, String>,
    },
}

impl Answer {
    /// The decision it brings. An answer of the wrong kind is a fault of the daemon; the agent gets a refusal all the same.
    fn into_verdict(self) -> (RequestId, Verdict) {
        match self {
            Self::Tool { id, verdict } => (id, verdict),
            Self::Mcp { id, .. } | Self::Peer { id, .. } => (id, Verdict::undecided()),
        }
    }
}

impl Verdict {
    /// The refusal where the daemon came to no decision.
    fn undecided() -> Self {
        Self::Deny {
            why: "agentd could not decide".to_owned(),
        }
    }
}

/// Says a JSON message to the agent.
fn write(message: &Value) -> Action {
    Action::Write(message.to_string())
}

/// Says that the agent's `line` breaks its protocol.
fn protocol_error(what: &str, line: &str) -> Action {
    Action::ProtocolError {
        what: what.to_owned(),
        line: excerpt(line),
    }
}

/// Why a turn can't begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnRefused {
    /// [`Action::Ready`] has not come yet.
    #[error("the agent is not ready yet")]
    NotReady,
    /// One turn at a time.
    #[error("the agent is busy with another turn")]
    Busy,
    /// The agent has closed its stdout, or the conversation failed.
    #[error("the agent has ended")]
    Ended,
}

/// One conversation with one agent.
pub trait Machine: Send + Sync + std::fmt::Debug {
    /// The first actions, before any line.
    fn start(&mut self) -> Vec<Action>;

    /// Gives the agent work.
    ///
    /// # Errors
    /// [`TurnRefused`], and nothing has changed.
    fn begin_turn(&mut self, turn: &Turn) -> Result<Vec<Action>, TurnRefused>;

    /// Takes one line of the agent's stdout, which is on record already.
    fn receive(&mut self, line: &Line) -> Vec<Action>;

    /// Answers a question. An answer to a question that was withdrawn is dropped.
    fn answer(&mut self, answer: Answer) -> Vec<Action>;

    /// Asks the agent to give the present turn up; it ends through [`Action::TurnEnded`].
    fn interrupt(&mut self) -> Vec<Action>;

    /// The agent's stdout is closed: an open turn ends as an error.
    fn close(&mut self) -> Vec<Action>;

    /// Whether [`resume`] can bring a new machine of this kind into the state of an old one.
    fn is_resumable(&self) -> bool {
        false
    }

    /// An earlier daemon wrote `line` to the agent, and it was not a consequence of [`Self::start`] or
    /// [`Self::receive`]: the machine gets the state that writing it left. Only for machines that are resumable.
    fn wrote(&mut self, _line: &str) -> Wrote {
        Wrote::Unknown
    }

    /// Whether this question still waits for [`Self::answer`].
    fn is_open(&self, _id: &RequestId) -> bool {
        false
    }
}

/// The user message of a turn. Another agent's words are introduced as such, so that the model knows whose they are
/// and where its answer goes.
fn prompt(turn: &Turn) -> String {
    match &turn.asked_by {
        None => turn.text.clone(),
        Some(Asker { name, method }) => format!(
            "The agent {name} asks you ({method}). Your last message of this turn is sent back as the answer.\n\n{}",
            turn.text
        ),
    }
}
