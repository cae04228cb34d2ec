//! `org.agentd1.Denials`: what was refused to the caller's agents, on its own connection.
//!
//! The caller's uid comes from the connection, never from an argument; refusals of somebody else's agents do not exist for it.
//! Nobody waits for a reader: who is too slow is told how much it missed.

use std::sync::Arc;

use agentd_api::denials::{ANYBODY, DenialEvent, DenialLayer, DenialLoss};
use agentd_api::{Error, MANAGER_PATH};
use agentd_storage::{Denial, Event, Fact, LaunchId, Told, Viewer};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use zbus::Connection;
use zbus::object_server::SignalEmitter;

use crate::agents::{Agent, Caller};
use crate::daemon::Daemon;

/// Refusals that one call lists.
const MOST_LISTED: u32 = 10_000;

/// The object at `/org/agentd1` of one caller's connection.
#[derive(Debug)]
pub struct DenialsObject {
    daemon: Arc<Daemon>,
    caller: Caller,
}

impl DenialsObject {
    pub fn new(daemon: Arc<Daemon>, caller: Caller) -> Self {
        Self { daemon, caller }
    }

    /// The launch that is meant: a live agent's, or one on record. `None` for all of them.
    async fn launch(&self, name_or_id: &str) -> Result<Option<LaunchId>, Error> {
        if name_or_id.is_empty() {
            return Ok(None);
        }
        if let Ok(agent) = self.daemon.agents.find(self.caller, name_or_id) {
            return Ok(Some(LaunchId::new(agent.identity.id.to_string())));
        }
        let viewer = Viewer::from_uid(self.caller.uid);
        let found = self.daemon.store.find(viewer, name_or_id).await;
        let found = found.map_err(unreadable)?.ok_or_else(|| {
            Error::NotFound(format!(
                "no launch on record is called `{name_or_id}`; `agentctl records` lists them"
            ))
        })?;
        Ok(Some(found))
    }

    /// The agents that are meant, of those that are known of.
    fn agents(&self, name_or_id: &str) -> Result<Vec<Arc<Agent>>, Error> {
        match name_or_id {
            "" => Ok(self.daemon.agents.visible(self.caller)),
            one => Ok(vec![self.daemon.agents.find(self.caller, one)?]),
        }
    }
}

#[zbus::interface(name = "org.agentd1.Denials")]
impl DenialsObject {
    async fn list(&self, name_or_id: &str, limit: u32) -> Result<Vec<DenialEvent>, Error> {
        let launch = self.launch(name_or_id).await?;
        self.daemon.store.flush().await.map_err(unreadable)?;
        let viewer = Viewer::from_uid(self.caller.uid);
        let listed =
            self.daemon
                .store
                .last_denials(viewer, launch.as_ref(), limit.min(MOST_LISTED));
        let listed = listed.await.map_err(unreadable)?;
        Ok(listed
            .into_iter()
            .map(|(of, at)| {
                let launch = of.id.as_str().to_owned();
                shown((of.name, launch, of.uid), at.at_ms, at.what)
            })
            .collect())
    }

    async fn losses(&self, name_or_id: &str) -> Result<Vec<DenialLoss>, Error> {
        let agents = self.agents(name_or_id)?;
        let losses = agents.iter().flat_map(|agent| {
            let lost = self.daemon.denials.lost(agent.identity.id);
            lost.into_iter().map(|(layer, lost)| DenialLoss {
                agent: agent.identity.name.clone(),
                layer: layer.as_str().to_owned(),
                lost,
            })
        });
        let denials = &self.daemon.denials;
        let in_kernel = match denials.hears_landlock() {
            true => self.daemon.broker.audit_lost().await,
            false => Ok(0),
        };
        let in_kernel = in_kernel.map_err(|e| Error::Internal(e.to_string()))?;
        let anybodys = denials.lost_of_anybody(in_kernel);
        let anybodys = anybodys.into_iter().map(|(layer, lost)| DenialLoss {
            agent: ANYBODY.to_owned(),
            layer: layer.as_str().to_owned(),
            lost,
        });
        Ok(losses.chain(anybodys).collect())
    }

    async fn layers(&self) -> Result<Vec<DenialLayer>, Error> {
        let layers = self.daemon.denials.observable(&self.daemon.host);
        Ok(layers
            .into_iter()
            .map(|(layer, why_not)| DenialLayer {
                layer: layer.to_owned(),
                why_not: why_not
                    .map_or_else(String::new, |why| format!("not observable here: {why}")),
            })
            .collect())
    }

    async fn watch(&self, name_or_id: &str) -> Result<zbus::OwnedFd, Error> {
        let only = match name_or_id {
            "" => None,
            one => {
                let agent = self.daemon.agents.find(self.caller, one)?;
                Some(LaunchId::new(agent.identity.id.to_string()))
            }
        };
        let broken = |e: std::io::Error| Error::Internal(format!("cannot make a pipe: {e}"));
        let (mut out, receiver) = pipe::pipe().map_err(broken)?;
        let reader = receiver.into_blocking_fd().map_err(broken)?;
        let mut refusals = self.daemon.store.follow_denials();
        let (daemon, caller) = (Arc::clone(&self.daemon), self.caller);
        tokio::spawn(async move {
            loop {
                let refusal = tokio::select! {
                    refusal = refusals.recv() => refusal,
                    _ = out.ready(tokio::io::Interest::ERROR) => return,
                };
                let line = match refusal {
                    Err(RecvError::Closed) => return,
                    Err(RecvError::Lagged(missed)) => json!({ "left_out": missed }),
                    Ok(told) if only.as_ref().is_some_and(|only| told.event.launch != *only) => {
                        continue;
                    }
                    Ok(told) => match seen(&daemon, caller, &told.event) {
                        Some(event) => event.to_json(),
                        None => continue,
                    },
                };
                let line = format!("{line}\n");
                if out.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        Ok(reader.into())
    }

    #[zbus(signal)]
    async fn denied(emitter: &SignalEmitter<'_>, denial: DenialEvent) -> zbus::Result<()>;
}

fn unreadable(error: agentd_storage::StoreError) -> Error {
    Error::Internal(format!("the record can't be read: {error}"))
}

/// A refusal for `caller`, if it may know of it.
fn seen(daemon: &Daemon, caller: Caller, event: &Event) -> Option<DenialEvent> {
    let Fact::Denial(denial) = &event.fact else {
        return None;
    };
    let agent = daemon.agents.of_launch(event.launch.as_str())?;
    let identity = &agent.identity;
    caller.may_touch(identity.uid).then(|| {
        let of = (identity.name.clone(), identity.id.to_string(), identity.uid);
        shown(of, event.at_ms, denial.clone())
    })
}

fn shown((agent, launch, uid): (String, String, u32), at_ms: i64, denial: Denial) -> DenialEvent {
    DenialEvent {
        agent,
        launch,
        uid,
        at_ms: at_ms.try_into().unwrap_or(0),
        layer: denial.layer,
        what: denial.what,
        target: denial.target,
        rule: denial.rule,
        origin: denial.origin.unwrap_or_default(),
    }
}

/// Turns refusals that went on record into signals on one connection until it ends.
pub async fn follow(
    connection: Connection,
    mut refusals: Receiver<Told>,
    daemon: Arc<Daemon>,
    caller: Caller,
) {
    let Ok(emitter) = SignalEmitter::new(&connection, MANAGER_PATH) else {
        unreachable!("the manager's path is a valid one")
    };
    loop {
        let refusal = tokio::select! {
            () = connection.closed() => return,
            refusal = refusals.recv() => refusal,
        };
        let event = match refusal {
            Ok(told) if told.repeated => continue,
            Ok(told) => seen(&daemon, caller, &told.event),
            // What is on record can be listed.
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return,
        };
        if let Some(event) = event
            && let Err(error) = DenialsObject::denied(&emitter, event).await
        {
            tracing::debug!(uid = caller.uid, "signals: {error}");
            return;
        }
    }
}
