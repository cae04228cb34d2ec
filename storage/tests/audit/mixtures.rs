//! Any mixture of changes at once.

use super::*;

/// What an intruder might do.
#[derive(Debug, Clone)]
enum Mutation {
    Flip {
        table: usize,
        row: u32,
        column: usize,
    },
    Delete {
        table: usize,
        row: u32,
    },
    Copy {
        table: usize,
        from: u32,
        to: u32,
        column: usize,
    },
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let one = prop_oneof![
        (any::<usize>(), any::<u32>(), any::<usize>())
            .prop_map(|(table, row, column)| Mutation::Flip { table, row, column }),
        (any::<usize>(), any::<u32>()).prop_map(|(table, row)| Mutation::Delete { table, row }),
        (any::<usize>(), any::<u32>(), any::<u32>(), any::<usize>()).prop_map(
            |(table, from, to, column)| Mutation::Copy {
                table,
                from,
                to,
                column
            }
        ),
    ];
    proptest::collection::vec(one, 1..4)
}

/// Carries it out; a constraint of the schema may forbid it, then nothing happens.
async fn apply(db: &mut SqliteConnection, mutation: &Mutation) {
    let tables = tables(db).await;
    let (table, row) = match mutation {
        Mutation::Flip { table, row, .. } | Mutation::Delete { table, row } => (table, row),
        Mutation::Copy { table, to, .. } => (table, to),
    };
    let table = &tables[table % tables.len()];
    let keys = keys(db, table).await.join(", ");
    let count = format!("SELECT count(*) FROM {table}");
    let count: u32 = sqlx::query_scalar(AssertSqlSafe(count))
        .fetch_one(&mut *db)
        .await
        .unwrap();
    if count == 0 {
        return;
    }
    let nth = |row: u32| {
        format!(
            "(SELECT {keys} FROM {table} ORDER BY {keys} LIMIT 1 OFFSET {})",
            row % count
        )
    };
    let columns = columns(db, table).await;
    let sql = match mutation {
        Mutation::Flip { column, .. } => {
            let (column, kind) = &columns[column % columns.len()];
            let value = flipped(column, kind);
            format!(
                "UPDATE {table} SET {column} = {value} WHERE ({keys}) = {}",
                nth(*row)
            )
        }
        Mutation::Delete { .. } => format!("DELETE FROM {table} WHERE ({keys}) = {}", nth(*row)),
        Mutation::Copy { from, column, .. } => {
            let (column, _) = &columns[column % columns.len()];
            format!(
                "UPDATE {table} SET {column} = (SELECT {column} FROM {table} WHERE ({keys}) = {}) WHERE ({keys}) = {}",
                nth(*from),
                nth(*row)
            )
        }
    };
    drop(sqlx::query(AssertSqlSafe(sql)).execute(db).await);
}

/// Everything in the tables, to know whether anything was changed at all.
async fn dump(db: &mut SqliteConnection) -> Vec<String> {
    let mut lines = Vec::new();
    for table in tables(db).await {
        let columns: Vec<String> = columns(db, &table)
            .await
            .into_iter()
            .map(|(name, _)| format!("typeof({name}) || hex({name})"))
            .collect();
        let sql = format!(
            "SELECT '{table} ' || {} FROM {table} ORDER BY 1",
            columns.join(" || ' ' || ")
        );
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&mut *db)
            .await
            .unwrap();
        lines.extend(rows);
    }
    lines
}

#[test]
fn no_mixture_of_changes_goes_unseen() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_folder, path) = runtime.block_on(async {
        let (folder, path) = sample().await;
        let store = Store::open(&path).await.unwrap();
        store.forget(vec!["failed".into()]).await.unwrap();
        store.close().await.unwrap();
        (folder, path)
    });
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let ran = runner.run(&mutations(), |mutations| {
        let seen = runtime.block_on(async {
            let (_copied, path) = copy(&path);
            let mut db = intruder(&path).await;
            let before = dump(&mut db).await;
            for mutation in &mutations {
                apply(&mut db, mutation).await;
            }
            let changed = dump(&mut db).await != before;
            db.close().await.unwrap();
            (changed, verified(&path).await.ok)
        });
        // Changed and found, or neither.
        prop_assert_eq!(seen.0, !seen.1);
        Ok(())
    });
    ran.unwrap();
}
