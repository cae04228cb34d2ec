//! Keys that can be written and shown, and that nothing in this version holds: a launch whose policy uses one is
//! refused, since a line that silently does nothing is worse than none. A row goes when its mechanism comes.

use super::PlanRefused;
use crate::policy::EffectivePolicy;

struct Row {
    key: &'static str,
    /// Whether the policy asks for what nothing holds.
    uses: fn(&EffectivePolicy) -> bool,
}

const ROWS: &[Row] = &[
    Row {
        key: "limits.disk",
        uses: |p| p.limits.disk_bytes.is_some(),
    },
    Row {
        key: "limits.disk_inodes",
        uses: |p| p.limits.disk_inodes.is_some(),
    },
    Row {
        key: "limits.cost",
        uses: |p| p.limits.cost_micro_usd.is_some(),
    },
];

/// Refuses what would be ignored, by the line that asks for it.
pub(crate) fn check(policy: &EffectivePolicy) -> Result<(), PlanRefused> {
    let Some(row) = ROWS.iter().find(|r| (r.uses)(policy)) else {
        return Ok(());
    };
    let line = policy
        .shown
        .iter()
        .find(|s| s.key.starts_with(row.key))
        .expect("what a policy uses, it says");
    Err(PlanRefused::Unheld {
        origin: line.origin.to_string(),
        key: line.key.clone(),
        value: line.value.clone(),
    })
}
