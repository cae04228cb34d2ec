//! Who an agent is, and what a list of agents says about each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use uuid::Uuid;
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::vocabulary::words;
use crate::{AGENT_PATH_PREFIX, ExitCause};

/// Names one launch for ever. Version 7, so ids sort by start time.
///
/// On D-Bus and in JSON it is the usual hyphenated text; in object paths the 32 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Type)]
#[zbus(signature = "s")]
pub struct AgentId(pub Uuid);

/// The text is not an agent id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an agent id (expected 32 hex digits, with or without hyphens)")]
pub struct AgentIdParseError(pub String);

impl AgentId {
    /// A new id, for a launch that starts now.
    #[expect(clippy::new_without_default, reason = "every call gives another value")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// The id's random tail: what people type and what bus frames carry. Not guaranteed unique;
    /// the daemon draws another id when a live agent already has the same tail.
    pub fn short(&self) -> u32 {
        let b = self.0.as_bytes();
        u32::from_be_bytes([b[12], b[13], b[14], b[15]])
    }

    /// The path of this agent's D-Bus object.
    pub fn object_path(&self) -> String {
        format!("{AGENT_PATH_PREFIX}{}", self.0.simple())
    }

    /// The id in an object path, if that is the path of an agent.
    pub fn from_object_path(path: &str) -> Option<Self> {
        path.strip_prefix(AGENT_PATH_PREFIX)?.parse().ok()
    }

    /// Whether what somebody typed means this id: the whole id, or at least four hex digits from
    /// its beginning or its end (`ps` shows the last eight).
    pub fn is_meant_by(&self, typed: &str) -> bool {
        let hex: String = typed
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect();
        let long_enough = hex.len() >= 4 && hex.bytes().all(|b| b.is_ascii_hexdigit());
        let own = self.0.simple().to_string();
        long_enough && (own.starts_with(&hex) || own.ends_with(&hex))
    }
}

impl From<Uuid> for AgentId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl From<AgentId> for Uuid {
    fn from(id: AgentId) -> Self {
        id.0
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentId({self})")
    }
}

impl FromStr for AgentId {
    type Err = AgentIdParseError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::try_parse(s)
            .map(Self)
            .map_err(|_| AgentIdParseError(s.to_owned()))
    }
}

impl Serialize for AgentId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AgentId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What every plane of the daemon needs to know about the agent it serves: minted by the daemon at
/// launch and never taken from the agent. It grants nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AgentIdentity {
    /// Never reused.
    pub id: AgentId,
    /// Unique among the live agents of its user; a restarted agent keeps it and gets a new id.
    pub name: String,
    /// The user who asked for the launch: the owner, as the kernel attested it.
    pub uid: u32,
    /// [`AgentId::short`], unique among live agents.
    pub short: u32,
}

impl AgentIdentity {
    /// The identity of a launch; `short` follows from the id.
    pub fn new(id: AgentId, name: impl Into<String>, uid: u32) -> Self {
        Self {
            id,
            name: name.into(),
            uid,
            short: id.short(),
        }
    }
}

impl fmt::Display for AgentIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:08x})", self.name, self.short)
    }
}

words! {
    /// Where an agent is in its life, as the kernel and the launcher say.
    pub enum AgentState: "agent state" {
        /// The broker was asked; the program does not run yet.
        Starting = "starting",
        Running = "running",
        /// Stopped by a job-control signal or frozen; `agentctl signal AGENT CONT` goes on.
        Stopped = "stopped",
        /// The program ran and is gone.
        Exited = "exited",
        /// The program never ran.
        Failed = "failed",
    }
}

impl AgentState {
    /// Whether processes of the agent may still exist.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Stopped)
    }
}

/// One row of `agentctl ps`.
#[derive(Debug, Clone, PartialEq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct AgentSummary {
    pub id: AgentId,
    pub name: String,
    pub uid: u32,
    pub state: AgentState,
    pub policy: String,
    pub driver: Option<String>,
    /// Main process, in the daemon's pid namespace; absent before it runs and after it is gone.
    pub pid: Option<u32>,
    pub workspace: Option<String>,
    pub argv: Vec<String>,
    /// Unix time in milliseconds.
    pub started_at_ms: u64,
    /// Unix time in milliseconds.
    pub ended_at_ms: Option<u64>,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// At the configured prices, in billionths of a US dollar; absent without a price.
    pub cost_nano_usd: Option<u64>,
    pub exit_cause: Option<ExitCause>,
    /// What a shell would show in `$?`.
    pub exit_code: Option<u8>,
}

impl AgentSummary {
    /// The form that `--json` prints: one flat object, absent values as null.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "short": format!("{:08x}", self.id.short()),
            "name": self.name,
            "uid": self.uid,
            "state": self.state,
            "policy": self.policy,
            "driver": self.driver,
            "pid": self.pid,
            "workspace": self.workspace,
            "argv": self.argv,
            "started_at_ms": self.started_at_ms,
            "ended_at_ms": self.ended_at_ms,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cost_nano_usd": self.cost_nano_usd,
            "exit_cause": self.exit_cause,
            "exit_code": self.exit_code,
        })
    }
}

words! {
    /// With whose rights the daemon runs.
    pub enum DaemonMode: "mode" {
        /// Started as root: own user for the daemon, one kernel uid per agent.
        Root = "root",
        /// Started by an ordinary user: user namespaces, Landlock, seccomp.
        User = "user",
    }
}

/// The answer to `Ping`.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct DaemonInfo {
    pub version: String,
    pub api_version: u32,
    pub mode: DaemonMode,
    pub pid: u32,
    /// The daemon's own uid after start-up.
    pub uid: u32,
    /// Live agents that the caller may see.
    pub agents: u32,
    pub runtime_dir: Option<String>,
    pub state_dir: Option<String>,
    /// Unix time in milliseconds.
    pub started_at_ms: Option<u64>,
    /// Over what the bus's socket gateway runs and why; nothing when nothing listens.
    pub bus_gateway: Option<String>,
}

impl DaemonInfo {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "version": self.version,
            "api_version": self.api_version,
            "mode": self.mode,
            "pid": self.pid,
            "uid": self.uid,
            "agents": self.agents,
            "runtime_dir": self.runtime_dir,
            "state_dir": self.state_dir,
            "started_at_ms": self.started_at_ms,
            "bus_gateway": self.bus_gateway,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_survives_text_path_and_json() {
        let id = AgentId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(AgentId::from_object_path(&id.object_path()), Some(id));
        let json = serde_json::to_string(&id).expect("ids serialise");
        assert_eq!(
            serde_json::from_str::<AgentId>(&json).expect("and back"),
            id
        );
        assert_eq!(AgentId::from_object_path("/org/agentd1"), None);
    }

    #[test]
    fn id_is_meant_by_its_ends_but_not_by_less_than_four_digits() {
        let id: AgentId = "0198c0de-1111-7222-8333-4444feedbeef"
            .parse()
            .expect("valid");
        assert_eq!(id.short(), 0xfeed_beef);
        for typed in ["feedbeef", "beef", "0198c0de", "0198c0de-1111", "FEEDBEEF"] {
            assert!(id.is_meant_by(typed), "{typed}");
        }
        for typed in ["eef", "", "1111", "xyzw", "feedbee"] {
            assert!(!id.is_meant_by(typed), "{typed}");
        }
    }

    #[test]
    fn unknown_state_names_the_allowed_ones() {
        let err = "sleeping".parse::<AgentState>().expect_err("no such state");
        assert_eq!(
            err.to_string(),
            "agent state is \"sleeping\"; allowed: starting, running, stopped, exited, failed"
        );
    }
}
