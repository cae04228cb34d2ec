//! Transactions of the writer that leave the connection usable whatever happens.
//!
//! When a COMMIT finds the disk full, SQLite has ended the transaction by itself, and a ROLLBACK fails. sqlx's own
//! transactions count that as one still open, and refuse the next BEGIN for ever; here its answer is simply not needed.

use sqlx::SqliteConnection;

/// Begins a transaction that may write.
pub(crate) async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE")
        .execute(connection)
        .await
        .map(|_begun| ())
}

/// Commits if `done` is good, and otherwise, or if that fails, leaves nothing of the transaction.
pub(crate) async fn settle<T, E: From<sqlx::Error>>(
    connection: &mut SqliteConnection,
    done: Result<T, E>,
) -> Result<T, E> {
    let settled = match done {
        Ok(value) => sqlx::query("COMMIT")
            .execute(&mut *connection)
            .await
            .map(|_committed| value)
            .map_err(E::from),
        Err(error) => Err(error),
    };
    if settled.is_err() {
        // Fails where SQLite has rolled back by itself; the next BEGIN tells if the connection is of no more use.
        drop(sqlx::query("ROLLBACK").execute(connection).await);
    }
    settled
}
