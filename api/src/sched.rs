//! What the kernel's scheduler did with agents: the answers of `org.agentd1.Sched`.
//!
//! Every figure is counted in the kernel since the agent's launch and only grows, so rates are what two answers differ by.
//! [`AgentSched::since`] makes that difference.

use serde_json::{Value, json};
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::bus::{latency_json, latency_since};
use crate::{AgentId, Error};

/// One agent, all of its tasks together.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct AgentSched {
    pub id: AgentId,
    pub name: String,
    /// When this was read: `CLOCK_MONOTONIC`, ns.
    pub at_ns: u64,
    /// On a processor, ns; also what runs at this moment.
    pub run_ns: u64,
    /// Runnable, and waiting for a processor, ns. Each wait is added when it ends.
    pub wait_ns: u64,
    /// The longest wait, ns.
    pub wait_max_ns: u64,
    /// Waits by length: the longest of the bucket in ns and how many, ascending; empty buckets are left out.
    pub waits: Vec<(u64, u64)>,
    /// Off a processor by reason, ns. Each spell is added when it ends: asleep in a system call,
    pub sleep_ns: u64,
    /// in an uninterruptible sleep that is not input or output,
    pub blocked_ns: u64,
    /// waiting for a disk,
    pub io_ns: u64,
    /// stopped by a signal or a debugger,
    pub stopped_ns: u64,
    /// frozen,
    pub frozen_ns: u64,
    /// or none of these.
    pub other_ns: u64,
    /// Switches away because a task had nothing to do.
    pub voluntary: u64,
    /// Switches away although it had.
    pub involuntary: u64,
    pub wakeups: u64,
    /// Moves from one processor to another.
    pub migrations: u64,
    /// Processes and threads that began.
    pub begun: u64,
    /// Processes and threads that ended.
    pub ended: u64,
    /// Times on a processor whose wait before was not seen.
    pub unseen: u64,
    /// Processors that it has at this moment.
    pub processors: Vec<u32>,
}

impl AgentSched {
    /// What happened between an earlier answer and this one. What is no sum (the longest wait, the processors) is this one's.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let grown = |of: fn(&Self) -> u64| of(self).saturating_sub(of(before));
        Self {
            run_ns: grown(|it| it.run_ns),
            wait_ns: grown(|it| it.wait_ns),
            waits: latency_since(&self.waits, &before.waits),
            sleep_ns: grown(|it| it.sleep_ns),
            blocked_ns: grown(|it| it.blocked_ns),
            io_ns: grown(|it| it.io_ns),
            stopped_ns: grown(|it| it.stopped_ns),
            frozen_ns: grown(|it| it.frozen_ns),
            other_ns: grown(|it| it.other_ns),
            voluntary: grown(|it| it.voluntary),
            involuntary: grown(|it| it.involuntary),
            wakeups: grown(|it| it.wakeups),
            migrations: grown(|it| it.migrations),
            begun: grown(|it| it.begun),
            ended: grown(|it| it.ended),
            unseen: grown(|it| it.unseen),
            ..self.clone()
        }
    }

    /// Off a processor for any reason, ns.
    pub fn off_ns(&self) -> u64 {
        [
            self.sleep_ns,
            self.blocked_ns,
            self.io_ns,
            self.stopped_ns,
            self.frozen_ns,
            self.other_ns,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "at_ns": self.at_ns,
            "run_ns": self.run_ns,
            "wait_ns": self.wait_ns,
            "wait_max_ns": self.wait_max_ns,
            "wait": latency_json(&self.waits),
            "off_ns": {
                "sleep": self.sleep_ns,
                "blocked": self.blocked_ns,
                "io": self.io_ns,
                "stopped": self.stopped_ns,
                "frozen": self.frozen_ns,
                "other": self.other_ns,
            },
            "switches": { "voluntary": self.voluntary, "involuntary": self.involuntary },
            "wakeups": self.wakeups,
            "migrations": self.migrations,
            "tasks": { "begun": self.begun, "ended": self.ended },
            "unseen": self.unseen,
            "processors": self.processors,
        })
    }
}

/// `org.agentd1.Sched` at `/org/agentd1`.
#[zbus::proxy(
    interface = "org.agentd1.Sched",
    default_service = "org.agentd1",
    default_path = "/org/agentd1"
)]
pub trait Sched {
    /// Every living agent of the caller (of everybody, for root).
    fn agents(&self) -> Result<Vec<AgentSched>, Error>;

    /// One living agent, by name, id, or an end of its id.
    fn agent(&self, name_or_id: &str) -> Result<AgentSched, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(run_ns: u64, waits: &[(u64, u64)]) -> AgentSched {
        AgentSched {
            id: AgentId::new(),
            name: "a".into(),
            at_ns: 0,
            run_ns,
            wait_ns: 0,
            wait_max_ns: 9,
            waits: waits.to_vec(),
            sleep_ns: 1,
            blocked_ns: 2,
            io_ns: 3,
            stopped_ns: 4,
            frozen_ns: 5,
            other_ns: u64::MAX,
            voluntary: 0,
            involuntary: 0,
            wakeups: 0,
            migrations: 0,
            begun: 0,
            ended: 0,
            unseen: 0,
            processors: vec![1],
        }
    }

    #[test]
    fn a_difference_is_of_sums_and_never_below_nothing() {
        let (before, now) = (
            sample(10, &[(255, 1), (511, 2)]),
            sample(25, &[(255, 1), (511, 5)]),
        );
        let between = now.since(&before);
        assert_eq!((between.run_ns, between.wait_max_ns), (15, 9));
        assert_eq!(between.waits, [(511, 3)]);
        assert_eq!(between.processors, [1]);
        assert_eq!(between.off_ns(), 0);
        assert_eq!(before.since(&now).run_ns, 0);
        assert_eq!(now.off_ns(), u64::MAX);
    }
}
