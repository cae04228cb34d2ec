//! Denials: what was refused to agents, by every layer that can tell of it.
//!
//! Refusals of agentd (proxy, gateway, tools, ssh) and of the kernel in one stream; `docs/denials.md` says which layer tells in
//! which mode. The same refusal is recorded, and signalled, once a minute; [`DenialsProxy::watch`] tells of each.

use serde_json::{Value, json};
use zbus::OwnedFd;
use zbus::zvariant::{DeserializeDict, SerializeDict, Type};

use crate::Error;

/// In the place of an agent's name: nobody knows whose.
pub const ANYBODY: &str = "*";

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct DenialEvent {
    /// Name of the agent.
    pub agent: String,
    /// Its launch, as on record.
    pub launch: String,
    /// Whose agent it is.
    pub uid: u32,
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// `egress`, `gateway`, `driver`, `ssh`, `bus`, `seccomp`, `landlock` or `bpf`.
    pub layer: String,
    /// What was tried.
    pub what: String,
    /// At what, or by whom.
    pub target: String,
    /// The rule that refused.
    pub rule: String,
    /// Where it was written, `file:line`; empty for what no line decides.
    pub origin: String,
}

impl DenialEvent {
    /// The form that `--json` prints and that [`DenialsProxy::watch`] writes.
    pub fn to_json(&self) -> Value {
        let origin = (!self.origin.is_empty()).then_some(&self.origin);
        json!({
            "agent": self.agent,
            "launch": self.launch,
            "uid": self.uid,
            "at_ms": self.at_ms,
            "layer": self.layer,
            "what": self.what,
            "target": self.target,
            "rule": self.rule,
            "origin": origin,
        })
    }
}

/// Refusals of one layer for one running agent that nobody could be told of.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct DenialLoss {
    /// Name of the agent, or [`ANYBODY`].
    pub agent: String,
    /// As in [`DenialEvent::layer`].
    pub layer: String,
    /// How many, since the launch; of anybody's since agentd's start.
    pub lost: u64,
}

/// Whether refusals of a layer can be seen here.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct DenialLayer {
    /// As in [`DenialEvent::layer`].
    pub layer: String,
    /// Empty where they can; else `not observable here: …`.
    pub why_not: String,
}

/// `org.agentd1.Denials` at `/org/agentd1`.
#[zbus::proxy(
    interface = "org.agentd1.Denials",
    default_service = "org.agentd1",
    default_path = "/org/agentd1"
)]
pub trait Denials {
    /// The last refusals on record, oldest first: of one agent, or, for an empty name, of all that the caller may see.
    fn list(&self, name_or_id: &str, limit: u32) -> Result<Vec<DenialEvent>, Error>;

    /// What could not be told, for running agents.
    fn losses(&self, name_or_id: &str) -> Result<Vec<DenialLoss>, Error>;

    /// Every layer, and whether its refusals can be seen on this host.
    fn layers(&self) -> Result<Vec<DenialLayer>, Error>;

    /// A pipe of lines, each a refusal from now on in the form of [`DenialEvent::to_json`], repeated ones too, or
    /// `{"left_out": n}` where the reader was too slow.
    fn watch(&self, name_or_id: &str) -> Result<OwnedFd, Error>;

    /// Something was refused, and is on record.
    #[zbus(signal)]
    fn denied(&self, denial: DenialEvent) -> zbus::Result<()>;
}
