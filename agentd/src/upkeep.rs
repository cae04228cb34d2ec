//! Keeping the state directory small: forgetting launches that ended long ago, and holding all logs within a limit.
//!
//! [`Daemon::prune`] is what `agentctl prune` asks for; [`run`] does the same on its own, as `[retention]` and `[logs]`
//! say. Only what has ended is touched, the record first and the files after it, so that a crash in between leaves
//! files that the next pass removes, never a record of files that are gone. A wall clock that jumped decides
//! nothing: a pass is left out when the clock and the time since boot disagree on how long ago the last one was.
//!
//! One task. A failure is logged and tried again with the next pass.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use agentd_api::upkeep::{PruneOptions, Pruned};
use agentd_storage::{Expired, SalvagedTable, StoreError, Viewer};
use rustix::time::{ClockId, clock_gettime};

use crate::agents::Caller;
use crate::audit;
use crate::daemon::{Daemon, RECORD};
use crate::options::RecordTask;

/// Between two passes.
const EVERY: Duration = Duration::from_secs(3600);
/// How far the wall clock may have gone away from the time since boot between two passes.
const JUMP: Duration = Duration::from_secs(600);
/// Hex digits and hyphens of an id, with which the names of its files begin.
const ID_CHARS: usize = 36;

/// Why a launch was not forgotten.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    #[error(transparent)]
    Record(#[from] StoreError),
    #[error("cannot remove {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot list {path}: {source}")]
    List { path: PathBuf, source: io::Error },
}

impl Daemon {
    /// Forgets ended launches of `viewer`, or says which it would forget.
    ///
    /// # Errors
    /// [`PruneError`]; what was forgotten before it stays forgotten.
    pub async fn prune(
        &self,
        viewer: Viewer,
        options: &PruneOptions,
    ) -> Result<Pruned, PruneError> {
        let age = i64::try_from(options.older_than_ms.unwrap_or(0)).unwrap_or(i64::MAX);
        let which = Expired {
            ended_before_ms: agentd_storage::unix_ms().saturating_sub(age),
            keep: options.keep.unwrap_or(0),
        };
        let mut expired = self.store.expired(viewer, which).await?;
        // Its exit may be on record a moment before the last of it is gone.
        let live = self.live_ids();
        expired.retain(|launch| !live.contains(&launch.id.to_string()));
        let files = self.files_by_launch()?;
        let of = |id: &str| files.get(id).map(Vec::as_slice).unwrap_or_default();
        let mut pruned = Pruned::default();
        for launch in &expired {
            let id = launch.id.to_string();
            pruned.log_bytes += of(&id).iter().map(|file| file.bytes).sum::<u64>();
            pruned.names.push(launch.name.clone());
            pruned.ids.push(id);
        }
        if options.dry_run == Some(true) || expired.is_empty() {
            return Ok(pruned);
        }
        let ids = expired.into_iter().map(|launch| launch.id).collect();
        self.store.forget(ids).await?;
        for id in &pruned.ids {
            remove(of(id))?;
        }
        Ok(pruned)
    }

    fn live_ids(&self) -> Vec<String> {
        let everything = Caller { uid: 0, gid: 0 };
        let visible = self.agents.visible(everything);
        let live = visible.iter().filter(|agent| agent.exit().is_none());
        live.map(|agent| agent.identity.id.to_string()).collect()
    }

    /// The files of each launch: logs, protocol journals, status files.
    fn files_by_launch(&self) -> Result<BTreeMap<String, Vec<StateFile>>, PruneError> {
        let mut files: BTreeMap<String, Vec<StateFile>> = BTreeMap::new();
        for dir in ["logs", "agents"].map(|name| self.state_dir.join(name)) {
            for file in list(&dir).map_err(|source| PruneError::List { path: dir, source })? {
                files.entry(file.launch.clone()).or_default().push(file);
            }
        }
        Ok(files)
    }

    /// Removes the logs of the launches that wrote last the longest ago, until all logs together are within the limit.
    /// Those of living agents count and stay. Returns the bytes removed.
    fn limit_logs(&self, limit_bytes: u64) -> Result<u64, PruneError> {
        let files = self.files_by_launch()?;
        let size = |files: &[StateFile]| files.iter().map(|file| file.bytes).sum::<u64>();
        let mut total: u64 = files.values().map(|files| size(files)).sum();
        let live = self.live_ids();
        let mut ended: Vec<&Vec<StateFile>> = files
            .iter()
            .filter(|(id, _)| !live.contains(id))
            .map(|(_, files)| files)
            .collect();
        ended.sort_by_key(|files| files.iter().map(|file| file.written).max());
        let before = total;
        for files in ended {
            if total <= limit_bytes {
                break;
            }
            remove(files)?;
            total -= size(files);
        }
        Ok(before - total)
    }
}

/// One file of a launch in the state directory.
#[derive(Debug)]
struct StateFile {
    launch: String,
    path: PathBuf,
    bytes: u64,
    written: SystemTime,
}

fn list(dir: &Path) -> io::Result<Vec<StateFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((launch, rest)) = name.split_at_checked(ID_CHARS) else {
            continue;
        };
        if !rest.starts_with('.') || launch.parse::<agentd_api::AgentId>().is_err() {
            continue;
        }
        // Removed in between by whoever rotates: as good as not there.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        files.push(StateFile {
            launch: launch.to_owned(),
            path: entry.path(),
            bytes: metadata.len(),
            written: metadata.modified()?,
        });
    }
    Ok(files)
}

fn remove(files: &[StateFile]) -> Result<(), PruneError> {
    for StateFile { path, .. } in files {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                let path = path.clone();
                return Err(PruneError::File { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// The two clocks, to be compared later.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    wall_ms: i128,
    boot_ms: i128,
}

impl Clocks {
    fn now() -> Self {
        let ms = |clock| {
            let now = clock_gettime(clock);
            i128::from(now.tv_sec) * 1000 + i128::from(now.tv_nsec) / 1_000_000
        };
        Self {
            wall_ms: ms(ClockId::Realtime),
            boot_ms: ms(ClockId::Boottime),
        }
    }

    /// Whether the wall clock was set since `earlier`.
    fn jumped_since(self, earlier: Self) -> bool {
        let drift = (self.wall_ms - earlier.wall_ms) - (self.boot_ms - earlier.boot_ms);
        drift.unsigned_abs() > JUMP.as_millis()
    }
}

/// Forgets and limits on its own, hour by hour, until aborted.
pub async fn run(daemon: Arc<Daemon>) {
    let mut last = Clocks::now();
    loop {
        let now = Clocks::now();
        if now.jumped_since(last) {
            tracing::warn!("the wall clock was set; nothing is forgotten until the next pass");
        } else {
            pass(&daemon).await;
        }
        last = now;
        tokio::time::sleep(EVERY).await;
    }
}

async fn pass(daemon: &Daemon) {
    let retention = &daemon.config.retention;
    if let Some(age) = retention.older_than {
        let options = PruneOptions {
            older_than_ms: u64::try_from(age.as_millis()).ok(),
            keep: Some(retention.keep),
            dry_run: None,
        };
        match daemon.prune(Viewer::Root, &options).await {
            Ok(pruned) if pruned.ids.is_empty() => {}
            Ok(pruned) => tracing::info!(launches = pruned.ids.len(), "forgot what ended long ago"),
            Err(error) => tracing::warn!("cannot forget old launches: {error}"),
        }
    }
    match daemon.limit_logs(daemon.config.logs.total_bytes) {
        Ok(0) => {}
        Ok(bytes) => tracing::info!(bytes, "removed old logs to stay within [logs] total_bytes"),
        Err(error) => tracing::warn!("cannot remove old logs: {error}"),
    }
}

/// One task on the record in `state_dir`, which no daemon has open; what to tell.
///
/// # Errors
/// In use, not there, or damaged beyond the task.
pub async fn offline(task: &RecordTask, state_dir: &Path) -> anyhow::Result<String> {
    let record = state_dir.join(RECORD);
    match task {
        RecordTask::Check => Ok(agentd_storage::check(&record).await?),
        RecordTask::Backup(to) => {
            agentd_storage::backup(&record, to).await?;
            Ok(to.display().to_string())
        }
        RecordTask::Verify(what) => audit::verify(what, state_dir).await,
        RecordTask::Head => audit::head(state_dir),
        RecordTask::Recover => {
            let salvage = agentd_storage::recover(&record).await?;
            let mut lines: Vec<String> = salvage
                .tables
                .iter()
                .filter(|table| table.rows + table.unreadable > 0)
                .map(|table| {
                    let SalvagedTable {
                        name,
                        rows,
                        unreadable,
                    } = table;
                    format!("{name}: {rows} rows saved, {unreadable} not readable")
                })
                .collect();
            lines.push(format!(
                "{} rows left out, because what they belong to is lost",
                salvage.orphans
            ));
            lines.push(format!("the damaged record: {}", salvage.damaged.display()));
            Ok(lines.join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_seen_and_one_that_slept_is_not() {
        let at = |wall_ms, boot_ms| Clocks { wall_ms, boot_ms };
        let start = at(1_000_000, 5_000);
        let hour = 3_600_000;
        assert!(!at(1_000_000 + hour, 5_000 + hour).jumped_since(start));
        // The time since boot counts sleep as well.
        assert!(!at(1_000_000 + 99 * hour, 5_000 + 99 * hour).jumped_since(start));
        assert!(at(1_000_000 + 24 * hour, 5_000 + hour).jumped_since(start));
        assert!(at(1_000_000 - hour, 5_000 + hour).jumped_since(start));
    }

    #[test]
    fn only_files_of_launches_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let id = agentd_api::AgentId::new().to_string();
        for name in [
            format!("{id}.log"),
            format!("{id}.log.index"),
            format!("{id}log"),
            "notes.txt".to_owned(),
            "x".repeat(40),
        ] {
            std::fs::write(dir.path().join(name), "12345").unwrap();
        }
        let files = list(dir.path()).unwrap();
        assert_eq!(files.len(), 2);
        assert!(files.iter().all(|f| f.launch == id && f.bytes == 5));
    }
}
