//! Policy × launch × host → plan.
//!
//! [`plan`] is a function of its arguments: it opens nothing and asks the host nothing. Whatever the policy
//! demands and the host cannot give either appears in [`SandboxPlan::degradations`], because the policy allows
//! it by name, or refuses the launch with one line ([`PlanRefused`]).

mod inputs;
mod refused;

pub use inputs::{Access, GrantInput, HomeFile, LaunchInputs, Mode, StdioMode};
pub use refused::PlanRefused;

use crate::policy::{EffectivePolicy, Limits};
use crate::rules::{EgressRules, IpcRules, ModelRules, ToolRules};
use agentd_kernel::probe::HostCaps;
use serde::Serialize;

/// Something this launch goes without, with the policy's leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Degradation {
    /// The property, such as `cgroup-limits`.
    pub property: String,
    /// What is missing on this host.
    pub missing: String,
    /// What is lost.
    pub lost: String,
}

/// A listening socket that the launcher makes inside the sandbox and passes out, in the order of `Ready`'s fds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ListenerPlan {
    /// A `ListenerTag` of the wire plan.
    pub tag: u16,
    /// `127.0.0.1:8080` or a path.
    pub address: String,
}

/// The plan for people: what `policy show --plan` prints.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PlanSummary {
    /// One line per record of the wire plan, grouped.
    pub mounts: Vec<String>,
    pub env: Vec<String>,
}

/// What a launch consists of.
#[derive(Debug, Clone, Serialize)]
pub struct SandboxPlan {
    /// For the launcher, by way of the broker.
    #[serde(skip)]
    pub wire: Vec<u8>,
    pub summary: PlanSummary,
    pub degradations: Vec<Degradation>,
    /// `LAYER_*` bits that must be active or the launcher fails.
    pub required_layers: u64,
    pub listeners: Vec<ListenerPlan>,
    pub egress: EgressRules,
    pub model: ModelRules,
    pub ipc: IpcRules,
    pub tools: ToolRules,
    pub limits: Limits,
    pub policy: String,
    /// SHA-256 of the canonical effective policy, in hex.
    pub policy_hash: String,
}

/// Joins policy, launch and host.
pub fn plan(
    policy: &EffectivePolicy,
    inputs: &LaunchInputs,
    host: &HostCaps,
) -> Result<SandboxPlan, PlanRefused> {
    let _ = (policy, inputs);
    Err(PlanRefused::Machine {
        machine: host.machine.clone(),
    })
}
