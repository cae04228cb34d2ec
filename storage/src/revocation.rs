//! Rights on the bus that were taken from running agents: on record, so that they stay taken when agentd is restarted.
//!
//! [`crate::Fact::RightRevoked`] and [`crate::Fact::RightsRestored`] go in; what is in force comes out. Plain data; what a
//! right or a pattern means is known elsewhere.

use sqlx::Row as _;

use crate::{error::StoreError, event::LaunchId, store::Store};

/// One right that an agent does not have any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// send, request, publish, subscribe.
    pub right: String,
    /// The names or topics that it is taken for.
    pub pattern: String,
    /// Whose hand it was, such as `uid 0`.
    pub by: String,
}

impl Store {
    /// What is taken from the agent of a launch, in the order in which it was.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn revocations(&self, launch: &LaunchId) -> Result<Vec<Revocation>, StoreError> {
        let db = &mut self.snapshot().await?;
        let found = sqlx::query(
            "SELECT kind, pattern, taken_by, min(seq) FROM revocations WHERE launch = ?1 AND restored_at_ms IS NULL
             GROUP BY kind, pattern ORDER BY min(seq)",
        )
        .bind(launch.as_str())
        .fetch_all(&mut **db)
        .await
        .and_then(|rows| {
            let read = |row: &sqlx::sqlite::SqliteRow| {
                Ok(Revocation {
                    right: row.try_get("kind")?,
                    pattern: row.try_get("pattern")?,
                    by: row.try_get("taken_by")?,
                })
            };
            rows.iter().map(read).collect::<Result<Vec<_>, _>>()
        });
        found.map_err(|e| self.public(e))
    }
}
