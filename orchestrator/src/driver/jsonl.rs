//! Any program, driven over JSON lines on its stdio: a small protocol for agents written for agentd
//! (`docs/drivers.md` has it in full). Strict: an unknown type or field is an error, which the
//! agent is told.
//!
//! | from agentd | from the agent |
//! | --- | --- |
//! | `{"type":"turn","id":"1","text":"…"}`, with `"from"` and `"method"` when an agent asks | `{"type":"ready"}`, once, first |
//! | `{"type":"interrupt","id":"1"}` | `{"type":"result","id":"1","text":"…"}`, `"error":true` if it went wrong |
//! | `{"type":"response","id":"r1","payload":"…"}` or `"error":"…"` | `{"type":"request","id":"r1","to":"NAME","method":"ask","payload":"…"}` |
//! | `{"type":"verdict","id":"p1","allow":false,"why":"…"}` | `{"type":"permission","id":"p1","tool":"Bash","input":{…}}` |
//! | `{"type":"error","what":"…","line":"…"}` | `{"type":"log","text":"…"}`, `{"type":"say","text":"…"}`, `{"type":"usage","model":"…","input":1,"output":1}` |

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Action, AgentUsage, Answer, Line, Machine, PeerRequest, RequestId, ToolRequest, Turn, TurnId,
    TurnOutcome, TurnRefused, Verdict, Wrote, excerpt, protocol_error, write,
};

/// Questions that may be open at once.
const MAX_PENDING: usize = 256;

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum Incoming {
    Ready {},
    Result {
        id: String,
        text: String,
        #[serde(default)]
        error: bool,
    },
    Request {
        id: String,
        to: String,
        method: String,
        payload: String,
        #[serde(default)]
        timeout_ms: u64,
    },
    Permission {
        id: String,
        tool: String,
        #[serde(default)]
        input: Value,
    },
    Log {
        text: String,
    },
    Say {
        text: String,
    },
    Usage {
        model: String,
        input: u64,
        output: u64,
        #[serde(default)]
        cache_read: u64,
        #[serde(default)]
        cache_write: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Idle,
    Busy(TurnId),
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pending {
    Tool,
    Peer,
}

/// The conversation with one such program.
#[derive(Debug)]
pub struct Jsonl {
    phase: Phase,
    pending: BTreeMap<RequestId, Pending>,
}

impl Default for Jsonl {
    fn default() -> Self {
        Self::new()
    }
}

impl Jsonl {
    /// A conversation that has not begun.
    pub fn new() -> Self {
        Self {
            phase: Phase::Waiting,
            pending: BTreeMap::new(),
        }
    }

    fn ask(
        &mut self,
        id: String,
        kind: Pending,
        action: impl FnOnce(RequestId) -> Action,
        line: &str,
    ) -> Vec<Action> {
        let id = RequestId(id);
        if self.pending.len() >= MAX_PENDING {
            return complain("too many questions are open", line);
        }
        if self.pending.contains_key(&id) {
            return complain(&format!("question {} is open already", id.0), line);
        }
        self.pending.insert(id.clone(), kind);
        vec![action(id)]
    }
}

impl Machine for Jsonl {
    fn start(&mut self) -> Vec<Action> {
        Vec::new()
    }

    fn begin_turn(&mut self, turn: &Turn) -> Result<Vec<Action>, TurnRefused> {
        match self.phase {
            Phase::Waiting => Err(TurnRefused::NotReady),
            Phase::Busy(_) => Err(TurnRefused::Busy),
            Phase::Ended => Err(TurnRefused::Ended),
            Phase::Idle => {
                self.phase = Phase::Busy(turn.id);
                let mut message =
                    json!({"type": "turn", "id": turn.id.0.to_string(), "text": turn.text});
                if let Some(asker) = &turn.asked_by {
                    message["from"] = json!(asker.name);
                    message["method"] = json!(asker.method);
                }
                Ok(vec![write(&message)])
            }
        }
    }

    fn receive(&mut self, line: &Line) -> Vec<Action> {
        let text = match line {
            Line::Text(text) => text,
            Line::TooLong { start, bytes } => {
                return complain(&format!("a line of {bytes} bytes is too long"), start);
            }
        };
        let incoming = match serde_json::from_str::<Incoming>(text) {
            Ok(incoming) => incoming,
            Err(error) => {
                let mut actions = complain(&error.to_string(), text);
                // A permission question that can't be read is still refused by name, so that it doesn't hang.
                if let Some(id) = broken_permission(text) {
                    actions.insert(
                        0,
                        write(&verdict(
                            &id,
                            &Verdict::Deny {
                                why: error.to_string(),
                            },
                        )),
                    );
                }
                return actions;
            }
        };
        match (incoming, self.phase) {
            (Incoming::Ready {}, Phase::Waiting) => {
                self.phase = Phase::Idle;
                vec![Action::Ready]
            }
            (Incoming::Ready {}, _) => complain("ready was said before", text),
            (
                Incoming::Result {
                    id,
                    text: answer,
                    error,
                },
                Phase::Busy(turn),
            ) if id == turn.0.to_string() => {
                self.phase = Phase::Idle;
                vec![Action::TurnEnded {
                    turn,
                    outcome: TurnOutcome {
                        text: answer,
                        is_error: error,
                        kind: if error { "error" } else { "success" }.to_owned(),
                    },
                }]
            }
            (Incoming::Result { id, .. }, _) => complain(&format!("no turn {id} is open"), text),
            (
                Incoming::Request {
                    id,
                    to,
                    method,
                    payload,
                    timeout_ms,
                },
                _,
            ) => self.ask(
                id,
                Pending::Peer,
                |id| {
                    Action::AskPeer(PeerRequest {
                        id,
                        to,
                        method,
                        payload,
                        timeout_ms,
                    })
                },
                text,
            ),
            (Incoming::Permission { id, tool, input }, _) => self.ask(
                id,
                Pending::Tool,
                |id| Action::AskTool(ToolRequest { id, tool, input }),
                text,
            ),
            (Incoming::Log { text }, _) => vec![Action::Log(text)],
            (Incoming::Say { text }, _) => vec![Action::Text(text)],
            (
                Incoming::Usage {
                    model,
                    input,
                    output,
                    cache_read,
                    cache_write,
                },
                _,
            ) => vec![Action::Usage(AgentUsage {
                model,
                input,
                output,
                cache_read,
                cache_write,
            })],
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
        vec![write(&match (pending, answer) {
            (Pending::Tool, Answer::Tool { verdict: it, .. }) => verdict(&id.0, &it),
            (Pending::Tool, _) => verdict(&id.0, &Verdict::undecided()),
            (
                Pending::Peer,
                Answer::Peer {
                    result: Ok(payload),
                    ..
                },
            ) => {
                json!({"type": "response", "id": id.0, "payload": payload})
            }
            (
                Pending::Peer,
                Answer::Peer {
                    result: Err(error), ..
                },
            ) => {
                json!({"type": "response", "id": id.0, "error": error})
            }
            (Pending::Peer, _) => {
                json!({"type": "response", "id": id.0, "error": "agentd has no answer"})
            }
        })]
    }

    fn interrupt(&mut self) -> Vec<Action> {
        match self.phase {
            Phase::Busy(turn) => vec![write(
                &json!({"type": "interrupt", "id": turn.0.to_string()}),
            )],
            _ => Vec::new(),
        }
    }

    fn close(&mut self) -> Vec<Action> {
        self.pending.clear();
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Busy(turn) => vec![Action::TurnEnded {
                turn,
                outcome: TurnOutcome {
                    text: "the agent ended before it answered".to_owned(),
                    is_error: true,
                    kind: "closed".to_owned(),
                },
            }],
            Phase::Waiting => vec![Action::Failed(
                "the agent ended before it said ready".to_owned(),
            )],
            Phase::Idle | Phase::Ended => Vec::new(),
        }
    }

    fn is_resumable(&self) -> bool {
        true
    }

    fn wrote(&mut self, line: &str) -> Wrote {
        #[derive(Deserialize)]
        #[serde(tag = "type", rename_all = "lowercase")]
        enum Written {
            Turn { id: String },
            Response { id: String },
            Verdict { id: String },
            Interrupt {},
            Error {},
        }
        match serde_json::from_str(line) {
            Ok(Written::Turn { id }) => match id.parse().map(TurnId) {
                Ok(turn) => {
                    self.phase = Phase::Busy(turn);
                    Wrote::Turn(turn)
                }
                Err(_) => Wrote::Unknown,
            },
            Ok(Written::Response { id } | Written::Verdict { id }) => {
                let id = RequestId(id);
                self.pending.remove(&id);
                Wrote::Answer(id)
            }
            Ok(Written::Interrupt {} | Written::Error {}) => Wrote::Other,
            Err(_) => Wrote::Unknown,
        }
    }

    fn is_open(&self, id: &RequestId) -> bool {
        self.pending.contains_key(id)
    }
}

/// The id of a `permission` message that is JSON but not of the right form.
fn broken_permission(line: &str) -> Option<String> {
    let value: Value = serde_json::from_str(line).ok()?;
    (value.get("type")? == "permission").then_some(())?;
    value.get("id")?.as_str().map(str::to_owned)
}

fn verdict(id: &str, verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Allow => json!({"type": "verdict", "id": id, "allow": true}),
        Verdict::Deny { why } => json!({"type": "verdict", "id": id, "allow": false, "why": why}),
    }
}

/// Tells both sides.
fn complain(what: &str, line: &str) -> Vec<Action> {
    vec![
        write(&json!({"type": "error", "what": what, "line": excerpt(line)})),
        protocol_error(what, line),
    ]
}
