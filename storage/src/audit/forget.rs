//! Forgetting with the chain whole: entries of forgotten rows go, and a signed checkpoint stands in for each stretch
//! of them. Stretches that meet become one, so what stays of long-gone launches is a few rows.
//!
//! Runs in the writer's transaction that removes the rows.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Row as _, SqliteConnection, sqlite::SqliteRow};

use super::{
    Hash,
    chain::{Entry, bytes, entry_of, int},
    content::{LAUNCHES, MESSAGES, TABLES, Written},
    key::{PublicKey, SigningKey},
};
use crate::event::unix_ms;

/// An entry that has been taken out of the chain and waits for its checkpoint.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Folding(Entry);

/// What stands in for entries that were forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) first: u64,
    pub(super) last: u64,
    /// The link of the entry before the first.
    pub(super) before: Hash,
    /// The link of the last.
    pub(super) link: Hash,
    pub(super) at_ms: i64,
    pub(super) why: String,
}

impl Checkpoint {
    fn message(&self) -> Vec<u8> {
        let mut message = b"agentd checkpoint 1\0".to_vec();
        message.extend(self.first.to_be_bytes());
        message.extend(self.last.to_be_bytes());
        message.extend(self.before);
        message.extend(self.link);
        message.extend(self.at_ms.to_be_bytes());
        message.extend(self.why.as_bytes());
        message
    }

    pub(super) fn is_signed_by(&self, key: &PublicKey, signature: &[u8]) -> bool {
        key.verifies(&self.message(), signature)
    }

    pub(super) async fn insert(
        &self,
        db: &mut SqliteConnection,
        key: &SigningKey,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO checkpoints (first, last, before, link, at_ms, why, signature)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(int(self.first))
        .bind(int(self.last))
        .bind(self.before.to_vec())
        .bind(self.link.to_vec())
        .bind(self.at_ms)
        .bind(&self.why)
        .bind(key.sign(&self.message()).to_vec())
        .execute(db)
        .await
        .map(|_done| ())
    }

    pub(super) fn of_row(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        // A negative number is one that nobody signed.
        let number = |n: i64| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(Self {
            first: number(row.try_get("first")?),
            last: number(row.try_get("last")?),
            before: bytes(row, "before")?,
            link: bytes(row, "link")?,
            at_ms: row.try_get("at_ms")?,
            why: row.try_get("why")?,
        })
    }
}

/// Takes the entries of all rows of a launch out of the chain; to be called while the rows are still there.
pub(crate) async fn take_out(
    db: &mut SqliteConnection,
    launch: &str,
) -> Result<Vec<Folding>, sqlx::Error> {
    let mut taken = Vec::new();
    let of_launch = TABLES.iter().filter(|table| table.of_launch);
    for (table, column) in of_launch
        .map(|table| (*table, "launch"))
        .chain([(LAUNCHES, "id")])
    {
        let sql = format!(
            "DELETE FROM chain WHERE tbl = {} AND key IN (SELECT seq FROM {} WHERE {column} = ?1) RETURNING *",
            table.tag, table.name
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(launch)
            .fetch_all(&mut *db)
            .await?;
        for row in &rows {
            taken.push(Folding(entry_of(row)?));
        }
    }
    Ok(taken)
}

/// Messages of other launches to this one: forgetting it changes them.
pub(crate) async fn messages_to(
    db: &mut SqliteConnection,
    launch: &str,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar("SELECT seq FROM messages WHERE to_launch = ?1 AND launch <> ?1")
        .bind(launch)
        .fetch_all(db)
        .await
}

/// Makes entries of those messages as they are now; of those that are still there.
pub(crate) async fn messages_changed(
    db: &mut SqliteConnection,
    written: &mut Written,
    messages: &BTreeSet<i64>,
) -> Result<(), sqlx::Error> {
    for seq in messages {
        written.0.extend(MESSAGES.read_one(db, *seq).await?);
    }
    Ok(())
}

/// Writes the checkpoints of entries that were taken out.
pub(super) async fn fold(
    db: &mut SqliteConnection,
    key: &SigningKey,
    mut entries: Vec<Folding>,
) -> Result<(), sqlx::Error> {
    entries.sort_unstable_by_key(|Folding(entry)| entry.n);
    let at_ms = unix_ms();
    for stretch in entries.chunk_by(|Folding(a), Folding(b)| a.n + 1 == b.n) {
        let (Some(Folding(first)), Some(Folding(last))) = (stretch.first(), stretch.last()) else {
            continue;
        };
        let mut checkpoint = Checkpoint {
            first: first.n,
            last: last.n,
            before: first.prev,
            link: last.link(),
            at_ms,
            why: "forgotten".to_owned(),
        };
        if let Some(earlier) = neighbour(db, "last", checkpoint.first - 1).await? {
            (checkpoint.first, checkpoint.before) = (earlier.first, earlier.before);
        }
        if let Some(later) = neighbour(db, "first", checkpoint.last + 1).await? {
            (checkpoint.last, checkpoint.link) = (later.last, later.link);
        }
        checkpoint.insert(db, key).await?;
    }
    Ok(())
}

/// Removes the checkpoint whose `column` is `n`, to make it part of another.
async fn neighbour(
    db: &mut SqliteConnection,
    column: &str,
    n: u64,
) -> Result<Option<Checkpoint>, sqlx::Error> {
    let sql = format!("DELETE FROM checkpoints WHERE {column} = ?1 RETURNING *");
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(int(n))
        .fetch_optional(db)
        .await?;
    row.as_ref().map(Checkpoint::of_row).transpose()
}
