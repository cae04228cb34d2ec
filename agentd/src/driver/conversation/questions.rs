//! Questions of an agent that take time: each is answered by a task of its own, and has an answer also if that task fails.

use std::collections::HashMap;

use agentd_orchestrator::driver::{Answer, RequestId, Verdict};
use agentd_storage::{Approval, Denial, Fact};
use serde_json::{Value, json};
use tokio::task::{self, JoinSet};

/// A tool's arguments in the denial record.
const TARGET_CHARS: usize = 160;

/// Questions that are being answered by tasks.
#[derive(Debug, Default)]
pub(super) struct Questions {
    tasks: JoinSet<Reply>,
    open: HashMap<task::Id, (RequestId, Fallback, task::AbortHandle)>,
}

/// An answer, and what goes on record with it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) answer: Answer,
    pub(super) facts: Vec<Fact>,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self {
            answer,
            facts: Vec::new(),
        }
    }
}

/// The answer if the task that should find one fails.
#[derive(Clone, Debug)]
pub(super) enum Fallback {
    Mcp(Value),
    Peer,
    /// The tool and its arguments.
    Tool(String, Value),
}

impl Questions {
    pub(super) fn ask(
        &mut self,
        id: RequestId,
        fallback: Fallback,
        answer: impl Future<Output = Reply> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(answer);
        self.open.insert(handle.id(), (id, fallback, handle));
    }

    pub(super) fn withdraw(&mut self, id: &RequestId) {
        if let Some((_, _, handle)) = self.open.values().find(|(open, _, _)| open == id) {
            handle.abort();
        }
    }

    /// The next answer. Never resolves while no question is open.
    pub(super) async fn next(&mut self) -> Reply {
        loop {
            let Some(joined) = self.tasks.join_next_with_id().await else {
                std::future::pending::<()>().await;
                continue;
            };
            let (task, answer) = match joined {
                Ok((task, answer)) => (task, Some(answer)),
                Err(error) => (error.id(), None),
            };
            let Some((id, fallback, _)) = self.open.remove(&task) else {
                continue;
            };
            return answer.unwrap_or_else(|| match fallback {
                Fallback::Mcp(message) => Reply::from(Answer::Mcp {
                    id,
                    reply: mcp_error(&message, "agentd could not answer"),
                }),
                Fallback::Peer => Reply::from(Answer::Peer {
                    id,
                    result: Err("agentd could not ask".to_owned()),
                }),
                Fallback::Tool(tool, input) => {
                    let why = "agentd could not ask anybody".to_owned();
                    refusal(id, tool, &input, "agentd", why, None)
                }
            });
        }
    }
}

/// A JSON-RPC error for `message`; nothing for a notification.
pub(super) fn mcp_error(message: &Value, text: &str) -> Option<Value> {
    const INTERNAL_ERROR: i32 = -32603;
    let id = message.get("id")?;
    Some(json!({"jsonrpc": "2.0", "id": id, "error": {"code": INTERNAL_ERROR, "message": text}}))
}

/// Lets a tool be used, on record.
pub(super) fn allowance(id: RequestId, tool: String, by: &str, reason: String) -> Reply {
    let facts = vec![decided(&id, tool, "allow", by, reason)];
    let verdict = Verdict::Allow;
    Reply {
        answer: Answer::Tool { id, verdict },
        facts,
    }
}

/// Refuses a tool, on record.
pub(super) fn refusal(
    id: RequestId,
    tool: String,
    input: &Value,
    by: &str,
    why: String,
    origin: Option<String>,
) -> Reply {
    let denial = Fact::Denial(Denial {
        layer: "driver".to_owned(),
        what: format!("tool {tool}"),
        target: input.to_string().chars().take(TARGET_CHARS).collect(),
        rule: why.clone(),
        origin,
    });
    let facts = vec![denial, decided(&id, tool, "deny", by, why.clone())];
    let verdict = Verdict::Deny { why };
    Reply {
        answer: Answer::Tool { id, verdict },
        facts,
    }
}

fn decided(id: &RequestId, tool: String, decision: &str, by: &str, reason: String) -> Fact {
    Fact::Approval(Approval {
        request_id: id.0.clone(),
        tool,
        decision: decision.to_owned(),
        by: by.to_owned(),
        reason,
    })
}
