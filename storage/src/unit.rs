//! What is kept of agent units: their UUIDs, whether they are enabled, and the texts that users handed over.
//!
//! Small and seldom written, so each write is a transaction of its own, in order with the facts of the record. For the
//! daemon alone: who may see a unit is decided by `agentd::units`, which holds all of them in memory.

use sqlx::{Row as _, SqliteConnection};

use crate::{
    Store,
    audit::content::{Row, UNIT_FILES, UNITS, Written},
    error::StoreError,
};

/// One unit of one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitRow {
    /// `system` or `uid:N`.
    pub owner: String,
    /// Its name, with its instance.
    pub name: String,
    /// Identifies it for ever.
    pub uuid: String,
    /// What `enable` or `disable` said; `None` when nobody said anything.
    pub enabled: Option<bool>,
    /// When this was written, in milliseconds since the Unix epoch.
    pub changed_at_ms: i64,
}

/// One text that a user handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitText {
    /// Below the directory of units.
    pub place: String,
    /// The whole path, for messages.
    pub origin: String,
    /// What stands in it.
    pub text: String,
}

/// A write that waits for the writer.
pub(crate) enum UnitWrite {
    Keep(UnitRow),
    Texts { owner: String, texts: Vec<UnitText> },
}

impl Store {
    /// Keeps a unit's row, in place of an earlier one. Returns after its COMMIT has reached the disk.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn keep_unit(&self, row: UnitRow) -> Result<(), StoreError> {
        self.write_unit(UnitWrite::Keep(row)).await
    }

    /// Keeps all texts of `owner`, in place of the earlier ones. Returns after the COMMIT has reached the disk.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn keep_unit_texts(
        &self,
        owner: String,
        texts: Vec<UnitText>,
    ) -> Result<(), StoreError> {
        self.write_unit(UnitWrite::Texts { owner, texts }).await
    }

    /// Every unit's row.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn unit_rows(&self) -> Result<Vec<UnitRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM units ORDER BY owner, name")
            .fetch_all(self.readers())
            .await
            .map_err(|error| self.public(error))?;
        rows.iter()
            .map(|row| {
                Ok(UnitRow {
                    owner: row.try_get("owner")?,
                    name: row.try_get("name")?,
                    uuid: row.try_get("uuid")?,
                    enabled: row.try_get("enabled")?,
                    changed_at_ms: row.try_get("changed_at_ms")?,
                })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(|error| self.public(error))
    }

    /// Every text, with its owner.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn unit_texts(&self) -> Result<Vec<(String, UnitText)>, StoreError> {
        let rows = sqlx::query("SELECT * FROM unit_files ORDER BY owner, place")
            .fetch_all(self.readers())
            .await
            .map_err(|error| self.public(error))?;
        rows.iter()
            .map(|row| {
                let text = UnitText {
                    place: row.try_get("place")?,
                    origin: row.try_get("origin")?,
                    text: row.try_get("text")?,
                };
                Ok((row.try_get("owner")?, text))
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(|error| self.public(error))
    }
}

/// What the chain calls an owner; [`UNITS`] says the same in SQL.
fn key_of(owner: &str) -> i64 {
    const SYSTEM: i64 = -1;
    const NOBODY: i64 = -2;
    match owner.strip_prefix("uid:") {
        Some(uid) => uid.parse().unwrap_or(NOBODY),
        None if owner == "system" => SYSTEM,
        None => NOBODY,
    }
}

/// Carries out one write. The caller holds the transaction.
pub(crate) async fn write(
    db: &mut SqliteConnection,
    written: &mut Written,
    write: &UnitWrite,
) -> Result<(), sqlx::Error> {
    match write {
        UnitWrite::Keep(row) => {
            sqlx::query(
                "INSERT INTO units (owner, name, uuid, enabled, changed_at_ms) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (owner, name) DO UPDATE SET uuid = ?3, enabled = ?4, changed_at_ms = ?5",
            )
            .bind(&row.owner)
            .bind(&row.name)
            .bind(&row.uuid)
            .bind(row.enabled)
            .bind(row.changed_at_ms)
            .execute(&mut *db)
            .await?;
            let key = key_of(&row.owner);
            written.0.extend(UNITS.read_one(db, key).await?);
        }
        UnitWrite::Texts { owner, texts } => {
            sqlx::query("DELETE FROM unit_files WHERE owner = ?1")
                .bind(owner)
                .execute(&mut *db)
                .await?;
            let key = key_of(owner);
            let rows = texts.iter().map(|text| {
                Row::of(UNIT_FILES, key)
                    .set("owner", owner)
                    .set("place", &text.place)
                    .set("origin", &text.origin)
                    .set("text", &text.text)
            });
            Row::store(db, rows.collect()).await?;
            let now = UNIT_FILES.read_one(db, key).await?;
            written.0.push(now.unwrap_or(UNIT_FILES.nothing(key)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_have_keys_of_their_own() {
        assert_eq!(key_of("system"), -1);
        assert_eq!(key_of("uid:1000"), 1000);
        assert_eq!(key_of("somebody"), -2);
    }
}
