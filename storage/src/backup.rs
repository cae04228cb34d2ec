//! A copy of the record while it is in use, its check, and a new record from what can be read of a damaged one.
//!
//! Backing up is SQLite's `VACUUM INTO`: one consistent snapshot, compact, taken by a reader while the writer goes on.
//! Recovering copies table by table into a fresh record, and where the damage is, halves the range of rows until
//! only the unreadable ones are left out; rows whose launch is lost go too. The damaged file is never written to and
//! stays beside the new one. It runs only where no daemon has the record open.

use std::path::{Path, PathBuf};

use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, SqliteConnection,
    sqlite::SqliteConnectOptions,
};

use crate::{
    audit::{Head, chain::Chain},
    error::{StoreError, classify},
    event::unix_ms,
    open,
    store::Store,
};

/// Statements tried per table before what is left of it is given up: enough for thousands of damaged places.
const ATTEMPTS: u32 = 20_000;
/// The last rowid that is looked for where no table says how far they go.
const FAR: i64 = 1 << 24;

/// What became of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SalvagedTable {
    /// Its name.
    pub name: String,
    /// Rows in the new record.
    pub rows: u64,
    /// Rows that could not be read, as far as that can be said.
    pub unreadable: u64,
}

/// What [`recover`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salvage {
    /// Each table.
    pub tables: Vec<SalvagedTable>,
    /// Rows that were readable but belong to something that was not.
    pub orphans: u64,
    /// Where the damaged file is now.
    pub damaged: PathBuf,
}

impl Store {
    /// Writes a copy of the record to `to`, which must not exist or be empty.
    ///
    /// # Errors
    /// The trouble of the database, or of the disk of `to`.
    pub async fn backup(&self, to: &Path) -> Result<(), StoreError> {
        let mut connection = SqliteConnectOptions::new()
            .filename(self.path())
            .read_only(true)
            .connect()
            .await
            .map_err(|error| classify(self.path(), &error))?;
        let copied = copy_into(&mut connection, to).await;
        drop(connection.close().await);
        copied.map_err(|error| classify(to, &error))
    }
}

async fn copy_into(connection: &mut SqliteConnection, to: &Path) -> Result<(), sqlx::Error> {
    sqlx::query("VACUUM INTO ?1")
        .bind(to.to_string_lossy().into_owned())
        .execute(connection)
        .await
        .map(|_done| ())
}

/// Checks the whole of a record that no daemon has open; "ok", or a list of damages.
///
/// # Errors
/// In use, not there, or so damaged that SQLite can't even check it.
pub async fn check(path: &Path) -> Result<String, StoreError> {
    let _lock = open::lock(path)?;
    let mut connection = existing(path).await?;
    let lines: Result<Vec<String>, sqlx::Error> = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_all(&mut connection)
        .await;
    drop(connection.close().await);
    Ok(lines.map_err(|error| classify(path, &error))?.join("\n"))
}

/// Copies a record that no daemon has open to `to`, which must not exist or be empty.
///
/// # Errors
/// In use, not there, damaged, or the trouble of the disk of `to`.
pub async fn backup(path: &Path, to: &Path) -> Result<(), StoreError> {
    let _lock = open::lock(path)?;
    let mut connection = existing(path).await?;
    let copied = copy_into(&mut connection, to).await;
    drop(connection.close().await);
    copied.map_err(|error| classify(path, &error))
}

async fn existing(path: &Path) -> Result<SqliteConnection, StoreError> {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .optimize_on_close(false, None)
        .connect()
        .await
        .map_err(|error| classify(path, &error))
}

/// Makes a new record of what can be read of `path`, puts it in its place and keeps the old one beside it.
///
/// # Errors
/// In use, not there, or no room for the new one. The record is then as it was.
pub async fn recover(path: &Path) -> Result<Salvage, StoreError> {
    let _lock = open::lock(path)?;
    let io = |error: std::io::Error| open::io_error(path, &error);
    let metadata = std::fs::metadata(path).map_err(io)?;
    let work = beside(path, "recovering");
    remove_database(&work).map_err(io)?;
    let salvaged = async {
        let fresh = Store::open(&work).await?;
        fresh.close().await?;
        let (tables, orphans) = salvage(path, &work).await?;
        take_in(path, &work, &tables).await?;
        Ok::<_, StoreError>((tables, orphans))
    }
    .await;
    let (tables, orphans) = match salvaged {
        Ok(found) => found,
        Err(error) => {
            remove_database(&work).map_err(io)?;
            return Err(error);
        }
    };
    // The new record belongs to whom the old one belonged, also when root recovers a daemon's.
    let owner = std::os::unix::fs::MetadataExt::uid(&metadata);
    let group = std::os::unix::fs::MetadataExt::gid(&metadata);
    for made in [
        work.clone(),
        with_suffix(&work, ".head"),
        path.with_file_name("audit.key"),
        path.with_file_name("audit.pub"),
    ] {
        std::os::unix::fs::chown(&made, Some(owner), Some(group)).map_err(io)?;
    }
    let damaged = beside(path, &format!("damaged-{}", unix_ms()));
    for suffix in ["-wal", "-shm", ".head", ""] {
        let from = with_suffix(path, suffix);
        if from.exists() {
            std::fs::rename(&from, with_suffix(&damaged, suffix)).map_err(io)?;
        }
    }
    for suffix in [".head", ""] {
        std::fs::rename(with_suffix(&work, suffix), with_suffix(path, suffix)).map_err(io)?;
    }
    remove_database(&work).map_err(io)?;
    Ok(Salvage {
        tables,
        orphans,
        damaged,
    })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn beside(path: &Path, word: &str) -> PathBuf {
    with_suffix(path, &format!(".{word}"))
}

fn remove_database(path: &Path) -> std::io::Result<()> {
    for suffix in ["", "-wal", "-shm", ".lock", ".head"] {
        match std::fs::remove_file(with_suffix(path, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Begins the chain of a recovered record where that of the damaged one ended, as far as its head on file says.
async fn take_in(damaged: &Path, fresh: &Path, tables: &[SalvagedTable]) -> Result<(), StoreError> {
    let before = Head::beside(damaged).map_err(|error| open::io_error(damaged, &error))?;
    let lost = tables.iter().map(|table| table.unreadable).sum();
    let mut db = existing(fresh).await?;
    let taken = Chain::recover(fresh, &mut db, before, lost).await;
    drop(db.close().await);
    taken
}

async fn salvage(damaged: &Path, fresh: &Path) -> Result<(Vec<SalvagedTable>, u64), StoreError> {
    let fault = |error: sqlx::Error| classify(damaged, &error);
    let mut db = SqliteConnectOptions::new()
        .filename(fresh)
        .foreign_keys(false)
        .optimize_on_close(false, None)
        .connect()
        .await
        .map_err(fault)?;
    sqlx::query("ATTACH DATABASE ?1 AS damaged")
        .bind(damaged.to_string_lossy().into_owned())
        .execute(&mut db)
        .await
        .map_err(fault)?;
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM main.sqlite_schema WHERE type = 'table'
         AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '_sqlx_%' AND name NOT IN ('chain', 'checkpoints')
         ORDER BY rowid",
    )
    .fetch_all(&mut db)
    .await
    .map_err(fault)?;
    // What the fresh one says of its own beginning.
    sqlx::query("DELETE FROM main.chain_notes")
        .execute(&mut db)
        .await
        .map_err(fault)?;
    let mut edges = Vec::new();
    for name in &names {
        edges.push((
            edge(&mut db, "min", name).await,
            edge(&mut db, "max", name).await,
        ));
    }
    // Rowids are handed out by one counter or little, so one table's edge serves another whose own is damaged.
    // Those of messages are made of stream and offset, and say nothing of others.
    let counted = names
        .iter()
        .zip(&edges)
        .filter(|(name, _)| *name != "stream_records");
    let furthest = counted.filter_map(|(_, (_, last))| last.ok().flatten());
    let far = furthest.max().unwrap_or(FAR);
    let mut tables = Vec::new();
    for (name, (first, last)) in names.into_iter().zip(edges) {
        let range = (first.unwrap_or(Some(1)), last.unwrap_or(Some(far)));
        tables.push(salvage_table(&mut db, name, range).await.map_err(fault)?);
    }
    let orphans = remove_orphans(&mut db).await.map_err(fault)?;
    sqlx::query("DETACH DATABASE damaged")
        .execute(&mut db)
        .await
        .map_err(fault)?;
    db.close().await.map_err(fault)?;
    Ok((tables, orphans))
}

/// Copies what can be read of one table. Names come from our own schema.
async fn salvage_table(
    db: &mut SqliteConnection,
    name: String,
    range: (Option<i64>, Option<i64>),
) -> Result<SalvagedTable, sqlx::Error> {
    let columns: Vec<String> = sqlx::query_scalar("SELECT name FROM pragma_table_info(?1, 'main')")
        .bind(&name)
        .fetch_all(&mut *db)
        .await?;
    // A record of an earlier version lacks columns; one whose schema can't be read lacks all.
    let there: Vec<String> =
        sqlx::query_scalar("SELECT name FROM pragma_table_info(?1, 'damaged')")
            .bind(&name)
            .fetch_all(&mut *db)
            .await
            .unwrap_or_default();
    let columns: Vec<String> = columns
        .into_iter()
        .filter(|column| there.contains(column))
        .collect();
    let mut table = SalvagedTable {
        name,
        rows: 0,
        unreadable: 0,
    };
    if columns.is_empty() {
        return Ok(table);
    }
    let columns = columns.join(", ");
    if is_without_rowid(db, &table.name).await? {
        let all = format!(
            "INSERT OR IGNORE INTO main.{name} ({columns}) SELECT {columns} FROM damaged.{name}",
            name = table.name
        );
        match sqlx::query(AssertSqlSafe(all)).execute(&mut *db).await {
            Ok(copied) => table.rows = copied.rows_affected(),
            Err(error) if !is_damage(&error) => return Err(error),
            // How many it held can't be said any more.
            Err(_) => table.unreadable = 1,
        }
        return Ok(table);
    }
    let insert = format!(
        "INSERT OR IGNORE INTO main.{name} ({columns}) SELECT {columns} FROM damaged.{name} WHERE rowid BETWEEN ?1 AND ?2",
        name = table.name
    );
    let (Some(first), Some(last)) = range else {
        return Ok(table);
    };
    let mut ranges = vec![(first, last)];
    let mut attempts = 0;
    while let Some((from, to)) = ranges.pop() {
        attempts += 1;
        let copied = sqlx::query(AssertSqlSafe(insert.as_str()))
            .bind(from)
            .bind(to)
            .execute(&mut *db)
            .await;
        match copied {
            Ok(copied) => table.rows += copied.rows_affected(),
            // Not the damage but our own disk: that must end it, or readable rows would be left out.
            Err(error) if !is_damage(&error) => return Err(error),
            Err(_) if from == to || attempts >= ATTEMPTS => {
                table.unreadable += u64::try_from(to - from).unwrap_or(0) + 1;
            }
            Err(_) => {
                let middle = from + (to - from) / 2;
                ranges.push((middle + 1, to));
                ranges.push((from, middle));
            }
        }
    }
    Ok(table)
}

async fn is_without_rowid(db: &mut SqliteConnection, name: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1")
        .bind(name)
        .fetch_one(db)
        .await
}

/// The least or greatest rowid of a table, `None` of an empty one; `Err` where its edge is damaged.
async fn edge(db: &mut SqliteConnection, which: &str, name: &str) -> Result<Option<i64>, Damaged> {
    let query = format!("SELECT {which}(rowid) FROM damaged.{name}");
    let found = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(db).await;
    found.map_err(|_damage: sqlx::Error| Damaged)
}

/// Nothing can be read there.
#[derive(Clone, Copy)]
struct Damaged;

fn is_damage(error: &sqlx::Error) -> bool {
    matches!(
        classify(Path::new(""), error),
        StoreError::Corrupt { .. } | StoreError::Database { .. }
    )
}

/// Removes rows whose parent was not readable, until every reference holds.
async fn remove_orphans(db: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
    let mut removed = 0;
    loop {
        let broken: Vec<(String, i64)> =
            sqlx::query_as("SELECT DISTINCT \"table\", rowid FROM pragma_foreign_key_check")
                .fetch_all(&mut *db)
                .await?;
        if broken.is_empty() {
            return Ok(removed);
        }
        for (table, row) in broken {
            let deleted = sqlx::query(AssertSqlSafe(format!(
                "DELETE FROM main.{table} WHERE rowid = ?1"
            )))
            .bind(row)
            .execute(&mut *db)
            .await?;
            removed += deleted.rows_affected();
        }
    }
}
