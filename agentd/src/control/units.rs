//! `org.agentd1.Units`: the units that the caller may see. What a call does is in [`crate::units`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agentd_api::units::{UnitState, UnitStatus};
use agentd_api::{Error, LaunchSpec, MANAGER_PATH};
use tokio::sync::broadcast::error::RecvError;
use zbus::Connection;
use zbus::object_server::SignalEmitter;

use crate::agents::Caller;
use crate::daemon::Daemon;
use crate::units::UnitChange;

/// Grants one unit may have.
const MAX_GRANTS: usize = agentd_broker::protocol::MAX_GRANTS;

/// The interface at `/org/agentd1` of one caller's connection.
#[derive(Debug)]
pub struct UnitsObject {
    daemon: Arc<Daemon>,
    caller: Caller,
}

impl UnitsObject {
    pub fn new(daemon: Arc<Daemon>, caller: Caller) -> Self {
        Self { daemon, caller }
    }
}

#[zbus::interface(name = "org.agentd1.Units")]
impl UnitsObject {
    async fn list(&self) -> Result<Vec<UnitStatus>, Error> {
        Ok(self.daemon.units.list(self.caller))
    }

    async fn status(&self, name: &str) -> Result<UnitStatus, Error> {
        self.daemon.units.status(self.caller, name)
    }

    async fn show(&self, name: &str) -> Result<String, Error> {
        Ok(self.daemon.units.show(self.caller, name)?.to_string())
    }

    async fn overview(&self) -> Result<String, Error> {
        let units = &self.daemon.units;
        let trouble = units
            .trouble()
            .filter(|_| units.may_manage_system(self.caller));
        let overview =
            serde_json::json!({ "config": self.daemon.config.document, "trouble": trouble });
        Ok(overview.to_string())
    }

    async fn texts(&self, system: bool) -> Result<Vec<(String, String, String)>, Error> {
        self.daemon.units.texts(self.caller, system)
    }

    async fn load(
        &self,
        places: Vec<(String, String)>,
        files: Vec<zbus::OwnedFd>,
    ) -> Result<String, Error> {
        let files = files.into_iter().map(OwnedFd::from).collect();
        let diff = self
            .daemon
            .units
            .load(&self.daemon, self.caller, places, files)
            .await?;
        Ok(diff.to_string())
    }

    async fn reload(&self) -> Result<String, Error> {
        let diff = self.daemon.units.reload(&self.daemon, self.caller).await?;
        Ok(diff.to_string())
    }

    async fn start(
        &self,
        name: &str,
        context: LaunchSpec,
        grants: Vec<zbus::OwnedFd>,
    ) -> Result<UnitStatus, Error> {
        if grants.len() > MAX_GRANTS {
            return Err(Error::InvalidArgument(format!(
                "{} paths were handed over; at most {MAX_GRANTS}",
                grants.len()
            )));
        }
        let grants = grants.into_iter().map(OwnedFd::from).collect();
        let units = &self.daemon.units;
        units
            .start(&self.daemon, self.caller, name, context, grants)
            .await
    }

    async fn stop(&self, name: &str) -> Result<UnitStatus, Error> {
        self.daemon
            .units
            .stop(&self.daemon, self.caller, name)
            .await
    }

    async fn set_enabled(&self, name: &str, enabled: bool) -> Result<UnitStatus, Error> {
        self.daemon
            .units
            .set_enabled(&self.daemon, self.caller, name, enabled)
            .await
    }

    #[zbus(signal)]
    async fn changed(
        emitter: &SignalEmitter<'_>,
        name: &str,
        uid: u32,
        state: UnitState,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn reloaded(emitter: &SignalEmitter<'_>) -> zbus::Result<()>;
}

/// Turns what becomes of the caller's units into signals on its connection, until the connection ends.
pub async fn follow(connection: Connection, daemon: Arc<Daemon>, caller: Caller) {
    let Ok(emitter) = SignalEmitter::new(&connection, MANAGER_PATH) else {
        unreachable!("the manager's path is valid")
    };
    let mut changes = daemon.units.changes();
    let sent = async {
        loop {
            let change = tokio::select! {
                () = connection.closed() => return Ok(()),
                change = changes.recv() => change,
            };
            match change {
                Ok(UnitChange::Changed { name, uid, state }) if caller.may_touch(uid) => {
                    UnitsObject::changed(&emitter, &name, uid, state).await?;
                }
                Ok(UnitChange::Changed { .. }) => {}
                // Whoever missed some looks at the list again.
                Ok(UnitChange::Reloaded) | Err(RecvError::Lagged(_)) => {
                    UnitsObject::reloaded(&emitter).await?;
                }
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    };
    let outcome: zbus::Result<()> = sent.await;
    if let Err(error) = outcome {
        tracing::debug!("signals of units: {error}");
    }
}
