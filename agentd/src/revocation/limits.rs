//! The limits of an agent's cgroup while it is tightened: the lowest that its launch or anything laid over its policy sets.
//!
//! The broker writes them, all at once, and remembers none: what the launch set is in the agent's document, so lifting a
//! tightening gives that back and never more.

use agentd_broker::protocol::Limits;
use agentd_kernel::probe::Feature;
use agentd_sandbox::LimitRules;

use super::{Control, Taken};
use crate::agents::broker::BrokerError;
use crate::agents::hold::Hold;

/// The limits that can't change for one agent, each with the reason.
pub fn beyond(
    own: Option<&LimitRules>,
    has: impl Fn(Feature) -> bool,
) -> Vec<(&'static str, &'static str)> {
    let keys = [
        (
            "limits.memory",
            Feature::CgroupMemory,
            "this host gives agents' cgroups no memory controller",
        ),
        (
            "limits.pids",
            Feature::CgroupPids,
            "this host gives agents' cgroups no pids controller",
        ),
        (
            "limits.cpu",
            Feature::CgroupCpu,
            "this host gives agents' cgroups no cpu controller",
        ),
    ];
    const UNKNOWN: &str = "an earlier agentd launched it and kept no word of its limits: start it anew under the policy";
    let why = |(key, feature, none)| match own {
        _ if !has(feature) => Some((key, none)),
        None => Some((key, UNKNOWN)),
        Some(_) => None,
    };
    keys.into_iter().filter_map(why).collect()
}

fn told(rules: &LimitRules) -> Limits {
    let cgroup = rules.cgroup();
    Limits {
        memory_max_bytes: cgroup.memory_max_bytes,
        pids_max: cgroup.pids_max,
        cpu_quota_us: cgroup.cpu_quota_us,
        cpu_period_us: cgroup.cpu_period_us,
    }
}

impl Control {
    fn limits(&self, taken: &Taken) -> Option<LimitRules> {
        let own = self.own.limits.as_ref()?;
        Some(own.under(&taken.tightenings()))
    }

    /// From the limits under `before` to those under `after`.
    ///
    /// # Errors
    /// What the kernel refused; then the limits are those of `before`.
    pub(super) async fn hold_to(
        &self,
        hold: &Hold,
        before: &Taken,
        after: &Taken,
    ) -> Result<(), BrokerError> {
        let (Some(before), Some(after)) = (self.limits(before), self.limits(after)) else {
            return Ok(());
        };
        if before == after {
            return Ok(());
        }
        let held = self.broker.limit(hold.slot(), told(&after)).await;
        if held.is_err() {
            // Some of them may hold already.
            let back = self.broker.limit(hold.slot(), told(&before)).await;
            if let Err(error) = back {
                tracing::error!(
                    agent = self.agent,
                    "its limits are not as they were: {error}"
                );
            }
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_without_its_controller_or_without_its_launch_is_named() {
        let own = LimitRules::default();
        assert_eq!(beyond(Some(&own), |_| true), []);
        let without = beyond(Some(&own), |feature| feature != Feature::CgroupMemory);
        let [("limits.memory", why)] = without[..] else {
            panic!("{without:?}");
        };
        assert!(why.contains("no memory controller"), "{why}");
        let unknown = beyond(None, |_| true);
        assert_eq!(unknown.len(), 3);
        assert!(unknown.iter().all(|(_, why)| why.contains("start it anew")));
    }
}
