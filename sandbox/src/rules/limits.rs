//! What the host's cgroup holds an agent to: the limits that can be lowered while it runs.
//!
//! All other limits are the program's own once it runs (rlimits), are sizes of mounts, or are counted by agentd from the start.

use super::tighten::{Tightenings, lower};
use agentd_launch::plan::CgroupLimits;
use serde::{Deserialize, Serialize};

/// The length of a period of `cpu.max`.
const PERIOD_US: u64 = 100_000;

/// Limits of one agent's cgroup; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRules {
    /// `limits.memory`.
    pub memory_bytes: Option<u64>,
    /// `limits.pids`.
    pub pids: Option<u64>,
    /// `limits.cpu`; 100 is one core kept busy.
    pub cpu_percent: Option<u64>,
    /// Processes of the runtime itself, which `pids` does not count.
    #[serde(default)]
    pub own_processes: u64,
}

impl LimitRules {
    /// These limits, with tightenings over them: the lowest that any sets.
    #[must_use]
    pub fn under(&self, tightenings: &Tightenings) -> Self {
        let mut rules = *self;
        for it in tightenings {
            let max = |key: &str, own, other| match it.line(key) {
                Some(_) => lower(own, other),
                None => own,
            };
            let other = &it.limits;
            rules.memory_bytes = max("limits.memory", rules.memory_bytes, other.memory_bytes);
            rules.pids = max("limits.pids", rules.pids, other.pids);
            rules.cpu_percent = max("limits.cpu", rules.cpu_percent, other.cpu_percent);
        }
        rules
    }

    /// As the broker is told, for whom 0 is no limit; required if there are any.
    pub fn cgroup(&self) -> CgroupLimits {
        let mut cgroup = CgroupLimits {
            memory_max_bytes: self.memory_bytes.map_or(0, |bytes| bytes.max(1)),
            pids_max: self
                .pids
                .map_or(0, |pids| pids.saturating_add(self.own_processes).max(1)),
            cpu_quota_us: self
                .cpu_percent
                .map_or(0, |percent| percent.saturating_mul(PERIOD_US) / 100),
            cpu_period_us: self.cpu_percent.map_or(0, |_| PERIOD_US),
            required: false,
        };
        cgroup.required = cgroup != CgroupLimits::default();
        cgroup
    }
}
