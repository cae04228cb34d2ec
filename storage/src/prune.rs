//! Forgetting: which launches ended long enough ago, and removing everything that is on record of them.
//!
//! Choosing is a query for a viewer like any other; removing goes through the writer in transactions of bounded size, so
//! that living agents never wait long for the record. What is freed is given back to the file system bit by bit
//! (`auto_vacuum = INCREMENTAL`); a file from before that setting is rebuilt once, when a quarter of it is free.
//! A launch that has not ended is never chosen.

use std::collections::BTreeSet;

use sqlx::SqliteConnection;
use tokio::sync::oneshot;

use crate::{
    audit::{
        NoteKind,
        chain::{self, Chain},
        content::Written,
        forget,
    },
    error::{StoreError, classify},
    event::LaunchId,
    record::Viewer,
    store::Store,
    writer::Command,
};

/// Launches removed in one transaction.
const BATCH: usize = 16;
/// Pages given back in one go: 8 MiB of the usual 4 KiB.
const VACUUM_PAGES: u32 = 2048;

/// Which launches may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// Ended before this moment, in milliseconds since the epoch.
    pub ended_before_ms: i64,
    /// But never the newest so many of each user.
    pub keep: u32,
}

/// A launch that may be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiredLaunch {
    /// Its id.
    pub id: LaunchId,
    /// Its name.
    pub name: String,
    /// Whose it was.
    pub uid: u32,
    /// When it ended, ms since the epoch.
    pub ended_at_ms: i64,
}

impl Store {
    /// The launches of the viewer that `which` means, oldest end first. Only what has ended.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn expired(
        &self,
        viewer: Viewer,
        which: Expired,
    ) -> Result<Vec<ExpiredLaunch>, StoreError> {
        let uid = match viewer {
            Viewer::Uid(uid) => Some(i64::from(uid)),
            Viewer::Root => None,
        };
        let rows: Result<Vec<(String, String, i64, i64)>, sqlx::Error> = sqlx::query_as(
            "SELECT id, name, uid, ended FROM (
                 SELECT l.id, l.name, l.uid,
                        coalesce(e.at_ms, CASE l.state WHEN 'failed' THEN l.at_ms END) AS ended,
                        row_number() OVER (PARTITION BY l.uid ORDER BY l.seq DESC) AS newest
                 FROM launches l LEFT JOIN exits e ON e.launch = l.id
                 WHERE (?1 IS NULL OR l.uid = ?1))
             WHERE ended < ?2 AND newest > ?3 ORDER BY ended",
        )
        .bind(uid)
        .bind(which.ended_before_ms)
        .bind(which.keep)
        .fetch_all(self.readers())
        .await;
        let rows = rows.map_err(|error| classify(self.path(), &error))?;
        Ok(rows
            .into_iter()
            .map(|(id, name, uid, ended_at_ms)| ExpiredLaunch {
                id: LaunchId::new(id),
                name,
                uid: u32::try_from(uid).unwrap_or(u32::MAX),
                ended_at_ms,
            })
            .collect())
    }

    /// Forgets these launches: every row of each. Returns how many there were; one that has not ended is left.
    ///
    /// # Errors
    /// The trouble of the database; what was removed before it stays removed.
    pub async fn forget(&self, launches: Vec<LaunchId>) -> Result<u64, StoreError> {
        let mut gone = 0;
        for batch in launches.chunks(BATCH) {
            gone += self.maintain(Upkeep::Forget(batch.to_vec())).await?;
        }
        if gone > 0 {
            while self.maintain(Upkeep::GiveBack).await? > 0 {}
        }
        Ok(gone)
    }

    async fn maintain(&self, what: Upkeep) -> Result<u64, StoreError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Upkeep(what, done)).await?;
        answer.await.map_err(|_gone| StoreError::Closed)?
    }
}

/// What the writer does for [`Store::forget`].
pub(crate) enum Upkeep {
    Forget(Vec<LaunchId>),
    /// Shortens the file by what is free in it; answers how many pages more there are to give back.
    GiveBack,
}

/// Removes every row of those of these launches that have ended, with the chain left whole, and notes that under `seq`.
/// The caller holds the transaction; how many there were.
pub(crate) async fn forget(
    db: &mut SqliteConnection,
    chain: &Chain,
    written: &mut Written,
    seq: i64,
    launches: &[LaunchId],
) -> Result<u64, sqlx::Error> {
    let mut gone = 0;
    let (mut folding, mut told) = (Vec::new(), BTreeSet::new());
    for launch in launches {
        let launch = launch.as_str();
        if !has_ended(db, launch).await? {
            continue;
        }
        folding.extend(forget::take_out(db, launch).await?);
        told.extend(forget::messages_to(db, launch).await?);
        // What belongs to a launch goes with it: ON DELETE CASCADE.
        sqlx::query("DELETE FROM launches WHERE id = ?1")
            .bind(launch)
            .execute(&mut *db)
            .await?;
        gone += 1;
    }
    if gone > 0 {
        forget::messages_changed(db, written, &told).await?;
        chain.fold(db, folding).await?;
        let text = format!("{gone} launches that had ended");
        chain::note(db, written, seq, NoteKind::Forgot, &text).await?;
    }
    Ok(gone)
}

async fn has_ended(db: &mut SqliteConnection, launch: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM launches WHERE id = ?1
             AND (state = 'failed' OR EXISTS (SELECT 1 FROM exits WHERE launch = ?1)))",
    )
    .bind(launch)
    .fetch_one(db)
    .await
}

pub(crate) async fn give_back(connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    const INCREMENTAL: i64 = 2;
    let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum")
        .fetch_one(&mut *connection)
        .await?;
    let free: i64 = sqlx::query_scalar("PRAGMA freelist_count")
        .fetch_one(&mut *connection)
        .await?;
    if mode == INCREMENTAL {
        // Returns a row per page.
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "PRAGMA incremental_vacuum({VACUUM_PAGES})"
        )))
        .fetch_all(&mut *connection)
        .await?;
        return Ok(u64::try_from(free - i64::from(VACUUM_PAGES)).unwrap_or(0));
    }
    let pages: i64 = sqlx::query_scalar("PRAGMA page_count")
        .fetch_one(&mut *connection)
        .await?;
    if free * 4 >= pages {
        sqlx::query("PRAGMA auto_vacuum = INCREMENTAL")
            .execute(&mut *connection)
            .await?;
        sqlx::query("VACUUM").execute(&mut *connection).await?;
    }
    Ok(0)
}
