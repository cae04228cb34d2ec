//! `org.agentd1.Manager`: launching, finding and reading back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentd_api::{AgentSummary, DaemonInfo, Error, LaunchReply, LaunchSpec, PlaneGroup};
use agentd_storage::Viewer;
use zbus::OwnedObjectPath;

use crate::agents::Caller;
use crate::daemon::Daemon;

/// Grants one launch may bring.
const MAX_GRANTS: usize = agentd_broker::protocol::MAX_GRANTS;

/// Launches that one listing of the record shows, the newest.
const MAX_RECORDS: u32 = 1000;

/// The object at `/org/agentd1` of one caller's connection.
#[derive(Debug)]
pub struct ManagerObject {
    daemon: Arc<Daemon>,
    caller: Caller,
}

impl ManagerObject {
    pub fn new(daemon: Arc<Daemon>, caller: Caller) -> Self {
        Self { daemon, caller }
    }

    fn viewer(&self) -> Viewer {
        Viewer::from_uid(self.caller.uid)
    }

    /// The id of a living or recorded launch.
    async fn recorded_id(&self, name_or_id: &str) -> Result<String, Error> {
        if let Ok(agent) = self.daemon.agents.find(self.caller, name_or_id) {
            agent.settled().await;
            return Ok(agent.identity.id.to_string());
        }
        let id = self
            .daemon
            .store
            .find(self.viewer(), name_or_id)
            .await
            .map_err(internal)?;
        id.map(|id| id.to_string()).ok_or_else(|| {
            Error::NotFound(format!(
                "no launch on record is called `{name_or_id}`; `agentctl records` lists them"
            ))
        })
    }
}

fn internal(error: impl std::fmt::Display) -> Error {
    Error::Internal(error.to_string())
}

#[zbus::interface(name = "org.agentd1.Manager")]
impl ManagerObject {
    async fn launch(
        &self,
        spec: LaunchSpec,
        grants: Vec<zbus::OwnedFd>,
    ) -> Result<LaunchReply, Error> {
        if grants.len() > MAX_GRANTS {
            return Err(Error::InvalidArgument(format!(
                "{} paths were handed over; at most {MAX_GRANTS}",
                grants.len()
            )));
        }
        if spec.unit.is_some() {
            return Err(Error::InvalidArgument(
                "only agentd's units launch for a unit; use `agentctl agents start`".into(),
            ));
        }
        let grants = grants.into_iter().map(OwnedFd::from).collect();
        let launched = self.daemon.launch(self.caller, spec, grants).await?;
        let agent = &launched.agent;
        Ok(LaunchReply {
            id: agent.identity.id,
            name: agent.identity.name.clone(),
            path: agent
                .identity
                .id
                .object_path()
                .try_into()
                .map_err(internal)?,
            attach: launched.attachment.map(Into::into),
            layers: Some(agent.facts.layers.iter().map(|l| (*l).to_owned()).collect()),
            degradations: Some(launched.degradations).filter(|d| !d.is_empty()),
        })
    }

    async fn agents(&self) -> Result<Vec<AgentSummary>, Error> {
        Ok(self
            .daemon
            .agents
            .visible(self.caller)
            .iter()
            .map(|a| a.summary())
            .collect())
    }

    async fn find(&self, name_or_id: &str) -> Result<OwnedObjectPath, Error> {
        let agent = self.daemon.agents.find(self.caller, name_or_id)?;
        agent.identity.id.object_path().try_into().map_err(internal)
    }

    async fn record(&self, name_or_id: &str) -> Result<String, Error> {
        let id = self.recorded_id(name_or_id).await?;
        self.daemon.store.flush().await.map_err(internal)?;
        let record = self
            .daemon
            .store
            .inspect(self.viewer(), &id.clone().into())
            .await
            .map_err(internal)?;
        let record = record
            .ok_or_else(|| Error::NotFound(format!("nothing is on record for `{name_or_id}`")))?;
        let mut document = serde_json::to_value(&record).map_err(internal)?;
        // What no exit has on record yet.
        if let Ok(agent) = self.daemon.agents.find(self.caller, &id)
            && let Some(counted) = self.daemon.counters.of(&agent)
        {
            document["counted"] = serde_json::to_value(counted).map_err(internal)?;
        }
        Ok(document.to_string())
    }

    async fn records(&self) -> Result<String, Error> {
        for agent in self.daemon.agents.visible(self.caller) {
            agent.settled().await;
        }
        self.daemon.store.flush().await.map_err(internal)?;
        let launches = self
            .daemon
            .store
            .launches(self.viewer(), MAX_RECORDS)
            .await
            .map_err(internal)?;
        serde_json::to_string(&launches).map_err(internal)
    }

    async fn forward_ssh_agent(
        &self,
        name_or_id: &str,
        connection: zbus::OwnedFd,
    ) -> Result<(), Error> {
        let agent = self.daemon.agents.find(self.caller, name_or_id)?;
        // Root may touch every agent, but nobody signs for an agent of somebody else.
        if agent.identity.uid != self.caller.uid {
            return Err(Error::Denied(format!(
                "`{}` belongs to uid {}, who alone may forward an ssh-agent to it",
                agent.identity.name, agent.identity.uid
            )));
        }
        let handed = self
            .daemon
            .ssh_agents
            .hand_over(agent.identity.id, OwnedFd::from(connection));
        match handed {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::Unavailable(format!(
                "the policy of `{}` forwards no ssh-agent ([ssh] agent = \"forward\")",
                agent.identity.name
            ))),
            Err(error) => Err(Error::InvalidArgument(format!(
                "what was handed over is no ssh-agent: {error}"
            ))),
        }
    }

    async fn ping(&self) -> Result<DaemonInfo, Error> {
        let daemon = &self.daemon;
        let live = daemon
            .agents
            .visible(self.caller)
            .iter()
            .filter(|a| a.state().is_live())
            .count();
        Ok(DaemonInfo {
            version: agentd_api::VERSION.into(),
            api_version: agentd_api::API_VERSION,
            mode: daemon.mode,
            pid: std::process::id(),
            uid: rustix::process::geteuid().as_raw(),
            agents: u32::try_from(live).unwrap_or(u32::MAX),
            runtime_dir: Some(daemon.runtime_dir.display().to_string()),
            state_dir: Some(daemon.state_dir.display().to_string()),
            started_at_ms: u64::try_from(daemon.started_at_ms).ok(),
            bus_gateway: daemon.gateway.clone(),
        })
    }

    async fn kernel_plane(&self) -> Result<Vec<PlaneGroup>, Error> {
        let why_not = |(group, why): (agentd_bpf::Group, &str)| PlaneGroup {
            group: group.name().to_owned(),
            why_not: why.to_owned(),
        };
        Ok(self.daemon.plane.groups().map(why_not).collect())
    }

    async fn shutdown(&self) -> Result<(), Error> {
        let own = rustix::process::geteuid().as_raw();
        if self.caller.uid != 0 && self.caller.uid != own {
            return Err(Error::Denied(format!(
                "only root or the daemon's own user may shut it down, not uid {}",
                self.caller.uid
            )));
        }
        self.daemon.shutdown.notify_one();
        Ok(())
    }
}
