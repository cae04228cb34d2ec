//! Questions that a person decides: what waits, who may answer, and what is remembered.
//!
//! An agent's question waits in the daemon until its owner (or root) decides or its time is up, which means no. The
//! same types serve the D-Bus interface `org.agentd1.Approvals` at `/org/agentd1` and `agentctl approvals --json`.
//! An agent reaches none of this: there is no D-Bus in its sandbox.

use serde_json::{Value, json};
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::Error;
use crate::vocabulary::words;

words! {
    /// What is asked for.
    pub enum QuestionKind: "kind of question" {
        /// A tool of a driven agent.
        Tool = "tool",
        /// A connection through the egress proxy.
        Connect = "connect",
        /// A signature by the user's ssh-agent.
        Sign = "sign",
    }
}

words! {
    /// An answer.
    pub enum Answer: "answer" {
        Allow = "allow",
        Deny = "deny",
    }
}

words! {
    /// For what a remembered answer holds.
    pub enum Scope: "scope" {
        /// This launch, until it ends.
        Launch = "launch",
        /// Every launch of the same user under the same agent name.
        Agent = "agent",
        /// Every agent of the same unit, instances of a template included.
        Unit = "unit",
        /// Every agent of the same user.
        User = "user",
    }
}

/// One question, open or settled.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Approval {
    /// A UUID; four digits from an end of it are enough to type.
    pub id: String,
    /// Who owns the agent and may decide.
    pub uid: u32,
    /// The agent's name.
    pub agent: String,
    /// The launch's id.
    pub launch: String,
    pub kind: QuestionKind,
    /// The tool, or the host and port.
    pub tool: String,
    /// The arguments, a JSON document.
    pub input: String,
    /// The line of the policy that asks.
    pub rule: String,
    /// Unix time in milliseconds.
    pub asked_at_ms: u64,
    /// Unix time in milliseconds: silence until then means no.
    pub expires_at_ms: u64,
    /// Absent while the question is open.
    pub decided_at_ms: Option<u64>,
    /// allow, deny or withdrawn.
    pub decision: Option<String>,
    /// Who decided: `uid 1000`, `time-out`, `agent`.
    pub by: Option<String>,
    /// For what the decision is remembered.
    pub scope: Option<Scope>,
    pub reason: Option<String>,
}

impl Approval {
    /// The last eight digits of the id, as lists show it.
    pub fn short_id(&self) -> &str {
        self.id
            .get(self.id.len().saturating_sub(8)..)
            .unwrap_or(&self.id)
    }

    /// What it is about in one line: the command, the file, or all arguments.
    pub fn about(&self) -> String {
        let input: Value = serde_json::from_str(&self.input).unwrap_or(Value::Null);
        for key in [
            "command",
            "file_path",
            "notebook_path",
            "path",
            "url",
            "key",
        ] {
            if let Some(text) = input.get(key).and_then(Value::as_str) {
                return text.to_owned();
            }
        }
        match &input {
            Value::Null => String::new(),
            Value::Object(o) if o.is_empty() => String::new(),
            other => other.to_string(),
        }
    }

    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        let input: Value =
            serde_json::from_str(&self.input).unwrap_or_else(|_| Value::String(self.input.clone()));
        json!({
            "id": self.id,
            "uid": self.uid,
            "agent": self.agent,
            "launch": self.launch,
            "kind": self.kind,
            "tool": self.tool,
            "input": input,
            "rule": self.rule,
            "asked_at_ms": self.asked_at_ms,
            "expires_at_ms": self.expires_at_ms,
            "decided_at_ms": self.decided_at_ms,
            "decision": self.decision,
            "by": self.by,
            "scope": self.scope,
            "reason": self.reason,
        })
    }
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct Decision {
    pub answer: Answer,
    /// Remember it, for this scope.
    pub always: Option<Scope>,
    /// With `always`: what to remember, as a rule of `[tools]`; this very use when absent.
    pub rule: Option<String>,
    /// Told to the agent's model with a refusal, and kept on record.
    pub reason: Option<String>,
}

/// A remembered decision.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct ApprovalRule {
    pub id: String,
    pub uid: u32,
    pub scope: Scope,
    /// Of the scope: the launch's id, the agent's or unit's name; empty for all of the user's.
    pub subject: String,
    pub kind: QuestionKind,
    pub answer: Answer,
    /// What it covers, for people.
    pub covers: String,
    pub made_at_ms: u64,
    pub made_by: String,
    /// The question it came from.
    pub question: String,
}

impl ApprovalRule {
    pub fn short_id(&self) -> &str {
        self.id
            .get(self.id.len().saturating_sub(8)..)
            .unwrap_or(&self.id)
    }

    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "uid": self.uid,
            "scope": self.scope,
            "subject": self.subject,
            "kind": self.kind,
            "answer": self.answer,
            "covers": self.covers,
            "made_at_ms": self.made_at_ms,
            "made_by": self.made_by,
            "question": self.question,
        })
    }
}

/// `org.agentd1.Approvals` at `/org/agentd1`.
#[zbus::proxy(
    interface = "org.agentd1.Approvals",
    default_service = "org.agentd1",
    default_path = "/org/agentd1"
)]
pub trait Approvals {
    /// The open questions that the caller may decide, oldest first.
    fn list(&self) -> Result<Vec<Approval>, Error>;

    /// One question, open or settled, by its id or at least four digits from an end of it.
    fn find(&self, id: &str) -> Result<Approval, Error>;

    /// Decides an open question. Returns when the decision is on the disk.
    fn decide(&self, id: &str, decision: &Decision) -> Result<Approval, Error>;

    /// What is remembered for the caller's agents, oldest first.
    fn rules(&self) -> Result<Vec<ApprovalRule>, Error>;

    /// Forgets a remembered decision, by its id or at least four digits from an end of it.
    fn revoke(&self, id: &str) -> Result<ApprovalRule, Error>;

    /// A question waits.
    #[zbus(signal)]
    fn added(&self, approval: Approval) -> zbus::Result<()>;

    /// Somebody decided, or time was up.
    #[zbus(signal)]
    fn decided(&self, approval: Approval) -> zbus::Result<()>;

    /// Nobody wants the answer any more: the agent took the question back, or has ended.
    #[zbus(signal)]
    fn removed(&self, approval: Approval) -> zbus::Result<()>;
}
