//! Files that are none of ours, newer than we are, or damaged.

use super::*;

#[tokio::test]
async fn a_second_daemon_is_refused() {
    let (_folder, store) = new_store().await;
    let error = Store::open(store.path()).await.unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another agentd"));
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.db");
    let garbage = "not a database at all. ".repeat(300);
    std::fs::write(&path, &garbage).unwrap();
    let error = refusal(&path).await;
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("agentctl db recover"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), garbage);
}

/// Runs SQL on a closed database file, as a person with the sqlite3 program would.
async fn tamper(path: &Path, sql: &'static str) {
    use sqlx::{ConnectOptions as _, Connection as _};
    let mut connection = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .connect()
        .await
        .unwrap();
    sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_database_of_another_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.db");
    tamper(&path, "CREATE TABLE theirs (x)").await;
    let error = refusal(&path).await;
    assert!(error.to_string().contains("another program"), "{error}");
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (folder, store) = new_store().await;
    store.close().await.unwrap();
    let path = folder.path().join("record.db");
    tamper(
        &path,
        "INSERT INTO _sqlx_migrations SELECT 9999, 'future', installed_on, success, checksum, 0
         FROM _sqlx_migrations LIMIT 1",
    )
    .await;
    let error = refusal(&path).await;
    assert!(
        matches!(
            error,
            StoreError::NewerSchema {
                found: 9999,
                known: 1..9999,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn damage_inside_the_file_is_named() {
    let (folder, store) = store_with_launch().await;
    for n in 0..400 {
        store
            .record(note("l", &format!("{n} {}", "x".repeat(200))))
            .await
            .unwrap();
    }
    store.close().await.unwrap();
    let path = folder.path().join("record.db");
    let mut bytes = std::fs::read(&path).unwrap();
    // The schema's first pages stay as they are.
    let from = bytes.len() / 3;
    bytes[from..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let error = match Store::open(&path).await {
        Err(error) => error,
        Ok(store) => store.inspect(ALICE, &id("l")).await.unwrap_err(),
    };
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}
