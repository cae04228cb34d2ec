//! `org.agentd1.Upkeep`: forgetting, copying and checking, for whoever may.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::upkeep::{AuditHead, PruneOptions, Pruned};
use agentd_api::{AgentId, Error, LogOptions};
use agentd_storage::Viewer;

use crate::agents::Caller;
use crate::agents::log::{self, Extent, Follow, OutputLog};
use crate::daemon::Daemon;

/// How long pruning waits for ends to be on record.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// The object at `/org/agentd1` of one caller's connection.
#[derive(Debug)]
pub struct UpkeepObject {
    daemon: Arc<Daemon>,
    caller: Caller,
}

impl UpkeepObject {
    pub fn new(daemon: Arc<Daemon>, caller: Caller) -> Self {
        Self { daemon, caller }
    }

    /// The record holds everybody's launches: it is for root, or for the user whose daemon this is.
    fn administrator(&self) -> Result<(), Error> {
        let own = rustix::process::geteuid().as_raw();
        if self.caller.uid == 0 || self.caller.uid == own {
            return Ok(());
        }
        Err(Error::Denied(
            "the record holds every user's launches; ask as root".into(),
        ))
    }
}

#[zbus::interface(name = "org.agentd1.Upkeep")]
impl UpkeepObject {
    async fn prune(&self, options: PruneOptions) -> Result<Pruned, Error> {
        // Whoever has just seen an agent end means that one too, and hears of ends a moment before they are on record.
        // On a full disk they never are until something is pruned: then it goes on without them.
        let settled = async {
            for agent in self.daemon.agents.visible(self.caller) {
                agent.settled().await;
            }
        };
        if tokio::time::timeout(SETTLE_LIMIT, settled).await.is_err() {
            tracing::warn!("pruning without agents whose end is not on record yet");
        }
        let viewer = Viewer::from_uid(self.caller.uid);
        let pruned = self.daemon.prune(viewer, &options).await;
        pruned.map_err(|error| Error::Unavailable(error.to_string()))
    }

    async fn check_record(&self) -> Result<String, Error> {
        self.administrator()?;
        let checked = self.daemon.store.integrity_check().await;
        checked.map_err(|error| Error::Unavailable(error.to_string()))
    }

    async fn backup_record(&self) -> Result<zbus::OwnedFd, Error> {
        self.administrator()?;
        // Its name goes at once: whatever happens to the copy, nothing of it stays in the state directory.
        let name = format!("backup-{}.db", AgentId::new());
        let path = self.daemon.state_dir.join(name);
        let copied = self.daemon.store.backup(&path).await;
        let copy = File::open(&path);
        remove(&path);
        copied.map_err(|error| Error::Unavailable(error.to_string()))?;
        let copy =
            copy.map_err(|error| Error::Internal(format!("cannot open the copy: {error}")))?;
        Ok(OwnedFd::from(copy).into())
    }

    /// For everybody: a hash and a number tell nothing of what is on record.
    async fn audit_head(&self) -> Result<AuditHead, Error> {
        let store = &self.daemon.store;
        let head = store.head().await;
        let head = head.map_err(|error| Error::Unavailable(error.to_string()))?;
        let head = head.ok_or_else(|| Error::Internal("the record has no head".into()))?;
        Ok(AuditHead {
            record: store.path().display().to_string(),
            key: store.public_key().to_string(),
            head: head.noted().to_string(),
            at_ms: head.at_ms(),
        })
    }

    async fn read_log(
        &self,
        name_or_id: &str,
        options: LogOptions,
    ) -> Result<zbus::OwnedFd, Error> {
        let unavailable = |error: &dyn std::fmt::Display| Error::Unavailable(error.to_string());
        let viewer = Viewer::from_uid(self.caller.uid);
        let found = self.daemon.store.find(viewer, name_or_id).await;
        let id = found
            .map_err(|error| unavailable(&error))?
            .and_then(|id| id.as_str().parse::<AgentId>().ok())
            .ok_or_else(|| {
                Error::NotFound(format!(
                    "no launch on record is called `{name_or_id}`; `agentctl records` lists them"
                ))
            })?;
        let log = OutputLog::finished(&self.daemon.log_path(id)).map_err(|_gone| {
            Error::Unavailable(format!(
                "the output of `{name_or_id}` is not kept any more; its record is (`agentctl inspect {name_or_id}`)"
            ))
        })?;
        let read = log::read(&Arc::new(log), Extent::of(&options), Follow::No);
        let pipe = read.map_err(|error| unavailable(&error))?;
        Ok(pipe.into())
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), "a copy of the record stays: {error}");
    }
}
