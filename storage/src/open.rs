//! Opening the database file: the lock, the file mode, the migrations, and the checks that refuse a file this
//! agentd must not write to. Called once at start-up, before anything is put on record.

use std::{
    fs::{File, OpenOptions, TryLockError},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection as _, SqlSafeStr, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use crate::error::{StoreError, classify};

/// Numbered, embedded, never edited once merged.
fn migrations() -> Vec<Migration> {
    // Numbers are dealt out to parts of the project, so there may be gaps for a while; the order is that of numbers.
    [
        (
            1,
            "record",
            include_str!("../../migrations/sqlite/0001_record.sql"),
        ),
        (
            2,
            "tasks",
            include_str!("../../migrations/sqlite/0002_tasks.sql"),
        ),
        (
            3,
            "approvals",
            include_str!("../../migrations/sqlite/0003_approvals.sql"),
        ),
        (
            4,
            "units",
            include_str!("../../migrations/sqlite/0004_units.sql"),
        ),
        (
            5,
            "driver offsets",
            include_str!("../../migrations/sqlite/0005_driver_offsets.sql"),
        ),
        (
            6,
            "retention",
            include_str!("../../migrations/sqlite/0006_retention.sql"),
        ),
        (
            7,
            "revocations",
            include_str!("../../migrations/sqlite/0007_revocations.sql"),
        ),
        (
            8,
            "audit chain",
            include_str!("../../migrations/sqlite/0008_audit_chain.sql"),
        ),
        (
            9,
            "streams",
            include_str!("../../migrations/sqlite/0009_streams.sql"),
        ),
        (
            10,
            "usage cost",
            include_str!("../../migrations/sqlite/0010_usage_cost.sql"),
        ),
    ]
    .into_iter()
    .map(|(version, name, sql)| {
        Migration::new(
            version,
            name.into(),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    })
    .collect()
}

/// "agnd": marks the file as ours (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x6167_6e64;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 4;
const READER_IDLE: Duration = Duration::from_secs(30);

/// An opened database: the writing connection, the readers, and the lock that makes the writer the only one.
pub(crate) struct Opened {
    pub(crate) writer: SqliteConnection,
    pub(crate) readers: SqlitePool,
    pub(crate) lock: File,
}

pub(crate) async fn open(path: &Path) -> Result<Opened, StoreError> {
    let lock = lock(path)?;
    // SQLite gives -wal and -shm the mode of the database file, so making it first settles all three.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| io_error(path, &error))?;

    let options = SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // Journals of large statements would go to a file in /tmp, which the daemon's own confinement does not let it
        // make.
        .pragma("temp_store", "MEMORY")
        .optimize_on_close(false, None);
    begin(path, &options).await?;
    let mut writer = options
        .clone()
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .connect()
        .await
        .map_err(|error| classify(path, &error))?;
    check_owner(path, &mut writer).await?;
    migrate(path, &mut writer).await?;

    let readers = SqlitePoolOptions::new()
        .min_connections(0)
        .max_connections(READERS)
        .idle_timeout(READER_IDLE)
        .test_before_acquire(false)
        .connect_lazy_with(options.read_only(true));
    Ok(Opened {
        writer,
        readers,
        lock,
    })
}

/// Settles, in a file that is still empty, what can't be settled later without rewriting it: that it can give back what
/// pruning frees (see `prune`).
async fn begin(path: &Path, options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let fault = |error: sqlx::Error| classify(path, &error);
    let empty = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
    if !empty {
        return Ok(());
    }
    // Before the journal mode, which makes the first page.
    let mut connection = options.clone().connect().await.map_err(fault)?;
    for pragma in [
        "PRAGMA auto_vacuum = INCREMENTAL".to_owned(),
        format!("PRAGMA application_id = {APPLICATION_ID}"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(pragma))
            .execute(&mut connection)
            .await
            .map_err(fault)?;
    }
    connection.close().await.map_err(fault)
}

/// Takes the advisory lock that keeps a second writer out for as long as the returned file is open.
pub(crate) fn lock(path: &Path) -> Result<File, StoreError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(|error| io_error(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse {
            path: path.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(io_error(path, &error)),
    }
}

pub(crate) fn io_error(path: &Path, error: &std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::Full {
            path: path.to_owned(),
        },
        std::io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly {
            path: path.to_owned(),
            why: error.to_string(),
        },
        _ => StoreError::Open {
            path: path.to_owned(),
            why: error.to_string(),
        },
    }
}

/// Refuses a database of some other program before anything is changed in it.
async fn check_owner(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let fault = |error: sqlx::Error| classify(path, &error);
    let id: i32 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await
        .map_err(fault)?;
    if id == APPLICATION_ID {
        return Ok(());
    }
    let tables: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *connection)
        .await
        .map_err(fault)?;
    if id != 0 || tables != 0 {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            why: "it belongs to another program".to_owned(),
        });
    }
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "PRAGMA application_id = {APPLICATION_ID}"
    )))
    .execute(connection)
    .await
    .map_err(fault)?;
    Ok(())
}

async fn migrate(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let migrations = migrations();
    let known = migrations
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0);
    let path_owned = path.to_owned();
    match Migrator::with_migrations(migrations)
        .run_direct(None, connection, false)
        .await
    {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) => Err(StoreError::NewerSchema {
            path: path_owned,
            found,
            known,
        }),
        Err(MigrateError::VersionMismatch(version) | MigrateError::Dirty(version)) => {
            Err(StoreError::ForeignSchema {
                path: path_owned,
                version,
            })
        }
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            Err(classify(path, &error))
        }
        Err(other) => Err(StoreError::Database {
            path: path_owned,
            why: other.to_string(),
        }),
    }
}
