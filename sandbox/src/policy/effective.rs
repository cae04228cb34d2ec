//! A policy after inheritance: checked values, each with its origin.

use super::{PolicyDiagnostic, PolicyError, PolicyRef, Sources};
use crate::plan::Access;
use crate::rules::{EgressRules, IpcRules, ModelRules, ToolRules};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Everything that is counted. `None` means that the policy sets no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    /// 100 is one core kept busy.
    pub cpu_percent: Option<u64>,
    pub nofile: u64,
    /// The largest file that may be written.
    pub fsize_bytes: Option<u64>,
    /// Size of each private tmpfs (`/tmp`, HOME, …).
    pub tmp_bytes: u64,
    pub tmp_inodes: u64,
    pub wall_clock: Option<Duration>,
    /// What the agent may write to its terminal or pipes before the daemon stops it.
    pub output_bytes: Option<u64>,
    /// Input and output tokens of the whole launch.
    pub tokens: Option<u64>,
}

/// What agentctl knows when it opens paths for a launch.
#[derive(Debug, Clone, Default)]
pub struct CallerContext {
    /// The caller's own HOME.
    pub home: Option<PathBuf>,
    pub workspace: Option<PathBuf>,
    /// The program as resolved on the caller's side: it is granted read-only if the policy's view would hide it.
    pub exe: Option<PathBuf>,
}

/// A path the caller is asked to open and hand over, because only the caller has the right to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedGrant {
    pub src: PathBuf,
    /// Where it appears inside; the same path unless said otherwise.
    pub dst: PathBuf,
    pub access: Access,
    /// Skip it silently when it does not exist or cannot be opened.
    pub optional: bool,
}

/// A policy that holds: every value is checked.
#[derive(Debug, Clone, Serialize)]
pub struct EffectivePolicy {
    pub name: String,
    pub limits: Limits,
    pub egress: EgressRules,
    pub model: ModelRules,
    pub ipc: IpcRules,
    pub tools: ToolRules,
}

impl EffectivePolicy {
    /// Reads, checks and joins a policy and everything it extends.
    pub fn load(policy: &PolicyRef, sources: &Sources) -> Result<Self, PolicyError> {
        let _ = sources;
        Err(PolicyError::NotFound {
            name: format!("{policy:?}"),
            near: None,
            known: Vec::new(),
        })
    }

    /// The paths that the caller has to open for this policy, the workspace first if there is one.
    pub fn wanted_grants(&self, caller: &CallerContext) -> Vec<WantedGrant> {
        let _ = caller;
        Vec::new()
    }

    /// Warnings: lines that load but may not do what they seem to.
    pub fn lint(&self) -> Vec<PolicyDiagnostic> {
        Vec::new()
    }
}
