//! `org.agentd1.Units`: agent units as a client sees them.
//!
//! A unit belongs to one user; a caller sees and touches its own, root all. Texts of a user's own units arrive as open
//! files, directories as grants: the daemon never opens a path that a user named.

use serde_json::{Value, json};
use zbus::{DeserializeDict, Fd, SerializeDict, Type};

use crate::vocabulary::words;
use crate::{AgentId, Error, LaunchSpec};

words! {
    /// What a unit is doing.
    pub enum UnitState: "unit state" {
        /// Not started, or ended well.
        Inactive = "inactive",
        /// Started; its triggers are watched, and none of its agents runs.
        Waiting = "waiting",
        /// An agent is being launched.
        Starting = "starting",
        Running = "running",
        /// An agent has ended and is started again after its delay.
        Restarting = "restarting",
        Stopping = "stopping",
        /// An agent failed, or the start limit was reached.
        Failed = "failed",
        /// Not a unit, but the template of units.
        Template = "template",
    }
}

/// One line of a list of units.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct UnitStatus {
    pub name: String,
    /// Whose agents they are.
    pub uid: u32,
    /// From the system's directories; otherwise its user handed it over.
    pub system: bool,
    pub state: UnitState,
    pub enabled: bool,
    /// PRODUCTION or DEVELOPMENT.
    pub status: String,
    pub uuid: Option<String>,
    pub description: Option<String>,
    pub role: Option<String>,
    pub capabilities: Option<Vec<String>>,
    pub driver: Option<String>,
    /// Its living agents: number in the pool, name, id.
    pub agents: Vec<(u32, String, String)>,
    /// Most agents at once.
    pub max: u32,
    /// Restarts since it was loaded.
    pub restarts: u64,
    /// Milliseconds until the next restart.
    pub next_restart_ms: Option<u64>,
    /// Why it failed or waits, in one line.
    pub why: Option<String>,
    /// Its file is gone; it runs on until it is stopped.
    pub removed: Option<bool>,
}

impl UnitStatus {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        let agents: Vec<Value> = self
            .agents
            .iter()
            .map(|(member, name, id)| json!({ "member": member, "name": name, "id": id }))
            .collect();
        json!({
            "name": self.name,
            "uid": self.uid,
            "system": self.system,
            "state": self.state,
            "enabled": self.enabled,
            "status": self.status,
            "uuid": self.uuid,
            "description": self.description,
            "role": self.role,
            "capabilities": self.capabilities,
            "driver": self.driver,
            "agents": agents,
            "max": self.max,
            "restarts": self.restarts,
            "next_restart_ms": self.next_restart_ms,
            "why": self.why,
            "removed": self.removed.unwrap_or(false),
        })
    }

    /// The id of its first living agent.
    pub fn first_agent(&self) -> Option<AgentId> {
        self.agents.first().and_then(|(_, _, id)| id.parse().ok())
    }
}

/// `/org/agentd1`: the units that the caller may see.
#[zbus::proxy(
    interface = "org.agentd1.Units",
    default_service = "org.agentd1",
    default_path = "/org/agentd1"
)]
pub trait Units {
    /// Every unit and template.
    fn list(&self) -> Result<Vec<UnitStatus>, Error>;

    /// One unit's line.
    fn status(&self, name: &str) -> Result<UnitStatus, Error>;

    /// Everything about one unit: a JSON document with `status`, `values`, `files`, `launch` and `notes`.
    fn show(&self, name: &str) -> Result<String, Error>;

    /// The daemon's configuration as it was read at its start, and what is wrong with the system's units: a JSON
    /// document with `config` and `trouble`.
    fn overview(&self) -> Result<String, Error>;

    /// The texts of the system's units, or of the caller's own, as they were taken in: place, file, text.
    fn texts(&self, system: bool) -> Result<Vec<(String, String, String)>, Error>;

    /// Replaces the caller's own units by the texts in `files`; `places` names each below its directory and in full.
    /// All or nothing. Returns the difference as a JSON document.
    fn load(&self, places: Vec<(String, String)>, files: Vec<Fd<'_>>) -> Result<String, Error>;

    /// Reads the system's directories again; for root and the daemon's own user. All or nothing. Returns the
    /// difference as a JSON document.
    fn reload(&self) -> Result<String, Error>;

    /// Starts a unit of the caller. `context` is what only the caller knows (HOME, user, environment, program); what to
    /// run is the unit's. `grants` are lasting ones: they serve restarts too. Returns when it runs, waits or failed.
    fn start(
        &self,
        name: &str,
        context: &LaunchSpec,
        grants: Vec<Fd<'_>>,
    ) -> Result<UnitStatus, Error>;

    /// Stops a unit; returns when nothing of its agents is left.
    fn stop(&self, name: &str) -> Result<UnitStatus, Error>;

    /// Whether it is started with the daemon.
    fn set_enabled(&self, name: &str, enabled: bool) -> Result<UnitStatus, Error>;

    /// A unit's state, agents or rules have changed.
    #[zbus(signal)]
    fn changed(&self, name: String, uid: u32, state: UnitState) -> zbus::Result<()>;

    /// A set of units was replaced.
    #[zbus(signal)]
    fn reloaded(&self) -> zbus::Result<()>;
}
