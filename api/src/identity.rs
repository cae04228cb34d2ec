//! Who an agent is: one value, minted by the daemon at launch and never taken from the agent.
//!
//! Pure data, used by every plane's wiring; it grants nothing by itself.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The identity of one launch. `id` is never reused; `name` is unique among the *live* agents of one
/// `uid`, so a restarted agent keeps its name and gets a new id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AgentIdentity {
    /// The launch id (version 7, so ids sort by time).
    pub id: Uuid,
    /// The name people and other agents use.
    pub name: String,
    /// The host uid of the person the agent belongs to. Agents of different uids can't see each other.
    pub uid: u32,
    /// A small number, unique among live agents: fits where 16 bytes don't.
    pub short: u32,
}

impl std::fmt::Display for AgentIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.id)
    }
}
