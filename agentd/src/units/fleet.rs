//! The agents of units, for tasks: by unit, role and capability, growing a pool where every member is busy.
//!
//! In front of [`RunningAgents`], which knows the rest by name. Never blocks: what has to be started is started in the
//! background, and the scheduler hears of it. A lent member is busy until its lease is dropped; then it is idle, and a
//! pool's member that stays idle for long is stopped by its engine.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use agentd_orchestrator::task::Target;

use super::Key;
use crate::agents::{Agent, Registry};
use crate::daemon::Daemon;
use crate::driver::Taking;
use crate::tasks::fleet::lease_agent;
use crate::tasks::{Fleet, Lease, NotNow, RunningAgents, Wanted};

/// Every agent that tasks may be given to.
pub struct UnitFleet {
    running: RunningAgents,
    daemon: OnceLock<Weak<Daemon>>,
}

impl fmt::Debug for UnitFleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnitFleet").finish_non_exhaustive()
    }
}

impl UnitFleet {
    /// Knows agents by name until [`Self::connect`].
    pub fn new(agents: Arc<Registry>) -> Self {
        Self {
            running: RunningAgents::new(agents),
            daemon: OnceLock::new(),
        }
    }

    /// From here on it knows the units too.
    pub fn connect(&self, daemon: &Arc<Daemon>) {
        // A second call would name the same daemon.
        self.daemon.get_or_init(|| Arc::downgrade(daemon));
    }
}

/// A pool's claim on a member that is lent out.
struct Claim {
    daemon: Weak<Daemon>,
    key: Key,
    member: u32,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(daemon) = self.daemon.upgrade() else {
            return;
        };
        let now = daemon.units.now();
        if let Some(active) = daemon.units.inner().active.get_mut(&self.key) {
            active.engine.idle(self.member, now);
        }
        daemon.units.wake.notify_one();
    }
}

impl Fleet for UnitFleet {
    fn lease(&self, uid: u32, wanted: &Wanted) -> Result<Lease, NotNow> {
        let Some(daemon) = self.daemon.get().and_then(Weak::upgrade) else {
            return self.running.lease(uid, wanted);
        };
        let units = &daemon.units;
        let mut inner = units.inner();
        let mut candidates = Vec::new();
        for (key, active) in &inner.active {
            let fits = match wanted {
                Target::Agent(name) => {
                    (1..=active.unit.pool.max).any(|m| active.unit.agent_name(m) == *name)
                }
                Target::Unit(name) => key.1.as_str() == name,
                Target::Role(role) => active.unit.agent.role.as_ref() == Some(role),
                Target::Capability(word) => active.unit.agent.capabilities.contains(word),
            };
            if fits && active.uid == uid {
                candidates.push(key.clone());
            }
        }
        let mut why = None;
        for key in &candidates {
            let Some(active) = inner.active.get_mut(key) else {
                continue;
            };
            for (member, agent) in &active.agents {
                if matches!(wanted, Target::Agent(name) if agent.identity.name != *name) {
                    continue;
                }
                match lease_agent(agent) {
                    Ok(mut lease) => {
                        active.engine.busy(*member);
                        lease.held = Some(Box::new(Claim {
                            daemon: Arc::downgrade(&daemon),
                            key: key.clone(),
                            member: *member,
                        }));
                        return Ok(lease);
                    }
                    Err(NotNow(reason)) => why = Some(reason),
                }
            }
        }
        if let Target::Agent(_) = wanted {
            drop(inner);
            return self.running.lease(uid, wanted);
        }
        for key in &candidates {
            // A member that is being launched, or has not said that it is ready, will take a task sooner than a new one.
            let coming = inner.active.get(key).is_some_and(|active| {
                let not_ready = |agent: &Arc<Agent>| {
                    agent
                        .work()
                        .is_some_and(|port| port.taking() == Taking::NotYet)
                };
                active.engine.up() as usize > active.agents.len()
                    || active.agents.values().any(not_ready)
            });
            if coming {
                return Err(NotNow(format!("{} is being started", key.1)));
            }
            match units.demand(&daemon, &mut inner, key, "task".to_owned()) {
                Ok(member) => {
                    let name = inner.active.get(key).map(|a| a.unit.agent_name(member));
                    return Err(NotNow(format!("starting {}", name.unwrap_or_default())));
                }
                Err(reason) => {
                    why.get_or_insert(reason);
                }
            }
        }
        Err(NotNow(why.unwrap_or_else(|| {
            format!(
                "no unit that is started has {wanted}; `agentctl agents list` shows what there is"
            )
        })))
    }
}
