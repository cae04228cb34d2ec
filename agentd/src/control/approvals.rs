//! `org.agentd1.Approvals`: questions for the caller, on its own connection.
//!
//! The caller's uid comes from the connection, never from an argument; what it may not touch does not exist for it.

use std::sync::Arc;

use agentd_api::approvals::{Approval, ApprovalRule, Decision};
use agentd_api::{Error, MANAGER_PATH};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use zbus::Connection;
use zbus::object_server::SignalEmitter;

use crate::agents::Caller;
use crate::approvals::Change;
use crate::daemon::Daemon;

/// The object at `/org/agentd1` of one caller's connection.
#[derive(Debug)]
pub struct ApprovalsObject {
    daemon: Arc<Daemon>,
    caller: Caller,
}

impl ApprovalsObject {
    pub fn new(daemon: Arc<Daemon>, caller: Caller) -> Self {
        Self { daemon, caller }
    }
}

#[zbus::interface(name = "org.agentd1.Approvals")]
impl ApprovalsObject {
    async fn list(&self) -> Result<Vec<Approval>, Error> {
        Ok(self.daemon.approvals.list(self.caller))
    }

    async fn find(&self, id: &str) -> Result<Approval, Error> {
        self.daemon.approvals.find(self.caller, id).await
    }

    async fn decide(&self, id: &str, decision: Decision) -> Result<Approval, Error> {
        self.daemon
            .approvals
            .decide(self.caller, id, &decision)
            .await
    }

    async fn rules(&self) -> Result<Vec<ApprovalRule>, Error> {
        Ok(self.daemon.approvals.rules(self.caller))
    }

    async fn revoke(&self, id: &str) -> Result<ApprovalRule, Error> {
        self.daemon.approvals.revoke(self.caller, id).await
    }

    #[zbus(signal)]
    async fn added(emitter: &SignalEmitter<'_>, approval: Approval) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn decided(emitter: &SignalEmitter<'_>, approval: Approval) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn removed(emitter: &SignalEmitter<'_>, approval: Approval) -> zbus::Result<()>;
}

/// Turns changes into signals on one connection until it ends. A client that misses some, because it did not read,
/// finds what is open with `List`.
pub async fn follow(connection: Connection, mut changes: Receiver<Change>, caller: Caller) {
    let Ok(emitter) = SignalEmitter::new(&connection, MANAGER_PATH) else {
        unreachable!("the manager's path is a valid one")
    };
    loop {
        let change = tokio::select! {
            () = connection.closed() => return,
            change = changes.recv() => change,
        };
        let sent = match change {
            Ok(Change::Added(a)) if caller.may_touch(a.uid) => {
                ApprovalsObject::added(&emitter, a).await
            }
            Ok(Change::Decided(a)) if caller.may_touch(a.uid) => {
                ApprovalsObject::decided(&emitter, a).await
            }
            Ok(Change::Removed(a)) if caller.may_touch(a.uid) => {
                ApprovalsObject::removed(&emitter, a).await
            }
            Ok(_) => Ok(()),
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(
                    uid = caller.uid,
                    missed,
                    "a control connection reads too slowly for its signals"
                );
                Ok(())
            }
            Err(RecvError::Closed) => return,
        };
        if let Err(error) = sent {
            tracing::debug!(uid = caller.uid, "signals: {error}");
            return;
        }
    }
}
