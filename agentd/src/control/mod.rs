//! The D-Bus tree `org.agentd1`, peer to peer on the control socket, and on the system bus ([`systembus`]).
//!
//! Every connection gets its own object server, so every object carries the uid of its caller, as the kernel attests
//! it (`SO_PEERCRED`), and a caller only ever sees objects it may touch. Connections are limited in number per uid;
//! what a call does is in [`manager`] and [`agent`], what it means in `docs/dbus.md`.

mod agent;
mod approvals;
mod bus;
mod denials;
mod manager;
mod polkit;
mod sched;
mod seen;
mod streams;
pub mod systembus;
mod tasks;
mod units;
mod upkeep;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use agentd_api::MANAGER_PATH;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use zbus::{Connection, Guid};

use crate::agents::{Agent, Caller, Change};
use crate::daemon::Daemon;
use agent::AgentObject;
use approvals::ApprovalsObject;
use bus::BusObject;
use denials::DenialsObject;
use manager::ManagerObject;
use sched::SchedObject;
use tasks::TasksObject;
use units::UnitsObject;
use upkeep::UpkeepObject;

/// Control connections one uid may hold at once. Root may hold four times as many.
const MAX_CONNECTIONS_PER_UID: usize = 64;

/// Method calls that wait to be read on one connection before its socket pushes back.
const MAX_QUEUED: std::num::NonZeroUsize = std::num::NonZeroUsize::new(64).unwrap();

/// Open connections by uid.
#[derive(Debug, Default)]
pub struct Connections(Mutex<BTreeMap<u32, usize>>);

impl Connections {
    fn enter(self: &Arc<Self>, uid: u32) -> Option<Seat> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(uid).or_default();
        let limit = if uid == 0 {
            4 * MAX_CONNECTIONS_PER_UID
        } else {
            MAX_CONNECTIONS_PER_UID
        };
        (*count < limit).then(|| {
            *count += 1;
            Seat {
                connections: Arc::clone(self),
                uid,
            }
        })
    }
}

/// One open connection; gives its place back when dropped.
#[derive(Debug)]
struct Seat {
    connections: Arc<Connections>,
    uid: u32,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

/// Accepts control connections until aborted.
pub async fn accept(listener: UnixListener, daemon: Arc<Daemon>, connections: Arc<Connections>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors or memory: the next event on the listener is worth another try, a spin is not.
                tracing::warn!("cannot accept a control connection: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let caller = match stream.peer_cred() {
            Ok(cred) => Caller {
                uid: cred.uid(),
                gid: cred.gid(),
            },
            Err(error) => {
                tracing::warn!("a control connection without credentials was closed: {error}");
                continue;
            }
        };
        let Some(seat) = connections.enter(caller.uid) else {
            tracing::warn!(
                uid = caller.uid,
                "too many control connections; a new one was closed"
            );
            continue;
        };
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, caller, &daemon).await {
                tracing::debug!(uid = caller.uid, "control connection: {error}");
            }
            drop(seat);
        });
    }
}

/// Serves one connection until the peer leaves.
async fn serve(stream: UnixStream, caller: Caller, daemon: &Arc<Daemon>) -> zbus::Result<()> {
    let builder =
        zbus::connection::Builder::unix_stream(stream.into_std()?).server(Guid::generate());
    Tree::build(builder, caller, daemon).await?.follow().await
}

/// The objects of one caller on one connection: the same tree on the control socket and, for each of its peers, on the
/// system bus.
#[derive(Debug)]
struct Tree {
    connection: Connection,
    caller: Caller,
    daemon: Arc<Daemon>,
    changes: Receiver<Change>,
}

impl Tree {
    /// Puts everything that `caller` may see on a peer-to-peer connection. A plane adds its object here and nowhere else.
    async fn build(
        builder: zbus::connection::Builder<'_>,
        caller: Caller,
        daemon: &Arc<Daemon>,
    ) -> zbus::Result<Self> {
        // Subscribed before the first listing, so that no agent falls between the two.
        let changes = daemon.agents.changes();
        let questions = daemon.approvals.changes();
        let refusals = daemon.store.follow_denials();
        // Before the first call is served: a client asks for an agent as soon as it is connected.
        let agents = daemon.agents.visible(caller);
        let builder = agents.iter().fold(builder, |builder, agent| {
            let object = AgentObject::new(Arc::clone(daemon), Arc::clone(agent), caller);
            builder.serve_at(agent.identity.id.object_path(), object)
        });
        let connection = builder
            .p2p()
            .max_queued(MAX_QUEUED)
            .serve_at(MANAGER_PATH, zbus::fdo::ObjectManager)
            .serve_at(MANAGER_PATH, TasksObject::new(daemon, caller))
            .serve_at(MANAGER_PATH, ManagerObject::new(Arc::clone(daemon), caller))
            .serve_at(MANAGER_PATH, UnitsObject::new(Arc::clone(daemon), caller))
            .serve_at(MANAGER_PATH, UpkeepObject::new(Arc::clone(daemon), caller))
            .serve_at(MANAGER_PATH, SchedObject::new(Arc::clone(daemon), caller))
            .serve_at(MANAGER_PATH, BusObject::new(Arc::clone(daemon), caller))
            .serve_at(
                MANAGER_PATH,
                ApprovalsObject::new(Arc::clone(daemon), caller),
            )
            .serve_at(MANAGER_PATH, DenialsObject::new(Arc::clone(daemon), caller))
            .build()
            .await?;
        for agent in agents.into_iter().filter(|agent| agent.state().is_live()) {
            tokio::spawn(agent::follow(connection.clone(), agent));
        }
        tokio::spawn(approvals::follow(connection.clone(), questions, caller));
        tokio::spawn(denials::follow(
            connection.clone(),
            refusals,
            Arc::clone(daemon),
            caller,
        ));
        let tree = Self {
            connection,
            caller,
            daemon: Arc::clone(daemon),
            changes,
        };
        tree.publish_all().await?;
        tokio::spawn(units::follow(
            tree.connection.clone(),
            Arc::clone(daemon),
            caller,
        ));
        Ok(tree)
    }

    /// Keeps the tree as it should be until the peer leaves.
    async fn follow(mut self) -> zbus::Result<()> {
        loop {
            let change = tokio::select! {
                () = self.connection.closed() => return Ok(()),
                change = self.changes.recv() => change,
            };
            match change {
                Ok(Change::Added(agent)) if self.caller.may_touch(agent.identity.uid) => {
                    publish(&self.connection, &self.daemon, &agent, self.caller).await?;
                }
                Ok(Change::Forgotten(agent)) if self.caller.may_touch(agent.identity.uid) => {
                    let path = agent.identity.id.object_path();
                    self.connection
                        .object_server()
                        .remove::<AgentObject, _>(path)
                        .await?;
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => self.publish_all().await?,
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn publish_all(&self) -> zbus::Result<()> {
        for agent in self.daemon.agents.visible(self.caller) {
            publish(&self.connection, &self.daemon, &agent, self.caller).await?;
        }
        Ok(())
    }
}

/// Puts an agent's object on a connection and lets its signals follow its state. Publishing twice is harmless.
async fn publish(
    connection: &Connection,
    daemon: &Arc<Daemon>,
    agent: &Arc<Agent>,
    caller: Caller,
) -> zbus::Result<()> {
    let path = agent.identity.id.object_path();
    let object = AgentObject::new(Arc::clone(daemon), Arc::clone(agent), caller);
    // `at` leaves an object that is already there, and says so with `Some`.
    if connection
        .object_server()
        .at(path.as_str(), object)
        .await?
        .is_none()
        && agent.state().is_live()
    {
        tokio::spawn(agent::follow(connection.clone(), Arc::clone(agent)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uid_cannot_take_all_connections_and_gives_them_back() {
        let connections = Arc::new(Connections::default());
        let seats: Vec<_> = (0..MAX_CONNECTIONS_PER_UID)
            .map(|_| connections.enter(1000).unwrap())
            .collect();
        assert!(connections.enter(1000).is_none());
        assert!(connections.enter(1001).is_some());
        drop(seats);
        assert!(connections.enter(1000).is_some());
        assert!(connections.0.lock().unwrap().is_empty());
    }
}
