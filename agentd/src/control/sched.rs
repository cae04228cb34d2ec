//! `org.agentd1.Sched`: scheduler telemetry of the agents that a caller may see.

use std::sync::Arc;

use agentd_api::{AgentSched, Error};

use crate::agents::Caller;
use crate::daemon::Daemon;

/// The object at `/org/agentd1` of one caller's connection.
#[derive(Debug)]
pub struct SchedObject {
    daemon: Arc<Daemon>,
    caller: Caller,
}

impl SchedObject {
    pub fn new(daemon: Arc<Daemon>, caller: Caller) -> Self {
        Self { daemon, caller }
    }
}

#[zbus::interface(name = "org.agentd1.Sched")]
impl SchedObject {
    async fn agents(&self) -> Result<Vec<AgentSched>, Error> {
        let scheduler = &self.daemon.scheduler;
        scheduler.check()?;
        let visible = self.daemon.agents.visible(self.caller);
        // Who ends meanwhile is left out.
        Ok(visible
            .iter()
            .filter_map(|agent| scheduler.of(agent).ok())
            .collect())
    }

    async fn agent(&self, name_or_id: &str) -> Result<AgentSched, Error> {
        let agent = self.daemon.agents.find(self.caller, name_or_id)?;
        self.daemon.scheduler.of(&agent)
    }
}
