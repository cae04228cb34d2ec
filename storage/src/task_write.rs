//! How tasks become rows. Runs in the writer's transaction.
//!
//! Many tasks submitted at once go in as few statements: an INSERT of 64 rows costs little more than one of a single
//! row, and a busy queue is mostly INSERTs. A request id is looked up in the same transaction, and there is one
//! writer, so two equal submissions are one task however they race.

use std::fmt::Write as _;

use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};

use crate::{
    row,
    task::{NewTask, TaskBatch, TaskChange, TaskTaken},
};

/// Rows of one INSERT. Few different numbers, so that each statement is prepared once.
const ROWS: [usize; 3] = [64, 8, 1];

/// Writes `batch`, with sequence numbers from `seq` on. Gives what became of the new tasks, and the next number.
pub(crate) async fn write(
    db: &mut SqliteConnection,
    mut seq: i64,
    batch: &TaskBatch,
) -> Result<(Vec<TaskTaken>, i64), sqlx::Error> {
    let mut taken = Vec::with_capacity(batch.new.len());
    let mut fresh: Vec<(i64, &NewTask)> = Vec::with_capacity(batch.new.len());
    for task in &batch.new {
        // Those of this batch first: they are not in the table yet.
        let same_batch = task.request_id.as_ref().and_then(|request| {
            fresh
                .iter()
                .map(|(_, it)| *it)
                .find(|it| it.uid == task.uid && it.request_id.as_ref() == Some(request))
        });
        let outcome = match same_batch {
            Some(earlier) => judge(
                &earlier.id,
                is_same(
                    task,
                    &earlier.text,
                    &earlier.terms,
                    earlier.parent.as_deref(),
                ),
            ),
            None => earlier_request(db, task).await?,
        };
        if outcome == TaskTaken::New {
            // One for the task, one for its first transition.
            fresh.push((seq, task));
            seq += 2;
        }
        taken.push(outcome);
    }
    insert_tasks(db, &fresh).await?;
    insert_transitions(db, &fresh).await?;
    for (_, task) in &fresh {
        for needs in &task.after {
            sqlx::query("INSERT OR IGNORE INTO task_dependencies (task, needs) VALUES (?1, ?2)")
                .bind(&task.id)
                .bind(needs)
                .execute(&mut *db)
                .await?;
        }
    }
    for change in &batch.changes {
        apply(db, seq, change).await?;
        seq += 1;
    }
    for event in &batch.events {
        if is_launch(db, event.launch.as_str()).await? {
            row::insert(db, seq, event).await?;
            seq += 1;
        }
    }
    Ok((taken, seq))
}

/// Whether the request id of `task` was used before.
async fn earlier_request(
    db: &mut SqliteConnection,
    task: &NewTask,
) -> Result<TaskTaken, sqlx::Error> {
    let Some(request) = &task.request_id else {
        return Ok(TaskTaken::New);
    };
    let row =
        sqlx::query("SELECT id, text, terms, parent FROM tasks WHERE uid = ?1 AND request_id = ?2")
            .bind(i64::from(task.uid))
            .bind(request)
            .fetch_optional(db)
            .await?;
    let Some(row) = row else {
        return Ok(TaskTaken::New);
    };
    let parent: Option<&str> = row.try_get("parent")?;
    let same = is_same(task, row.try_get("text")?, row.try_get("terms")?, parent);
    Ok(judge(row.try_get("id")?, same))
}

fn is_same(task: &NewTask, text: &str, terms: &str, parent: Option<&str>) -> bool {
    task.text == text && task.terms == terms && task.parent.as_deref() == parent
}

fn judge(id: &str, same: bool) -> TaskTaken {
    let id = id.to_owned();
    if same {
        TaskTaken::Same { id }
    } else {
        TaskTaken::Conflict { id }
    }
}

/// A launch may have been pruned from the record while its task goes on; that must not stop the task's own record.
async fn is_launch(db: &mut SqliteConnection, id: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM launches WHERE id = ?1)")
        .bind(id)
        .fetch_one(db)
        .await
}

async fn insert_tasks(
    db: &mut SqliteConnection,
    tasks: &[(i64, &NewTask)],
) -> Result<(), sqlx::Error> {
    const COLUMNS: &str = "seq, id, at_ms, uid, submitted_by, request_id, text, terms, parent, retry_of, depth, boot_id, \
                           queued_boot_ms, deadline_boot_ms, deadline_ms, state, cause, changed_at_ms";
    for rows in in_rows(tasks) {
        let sql = insert("tasks", COLUMNS, rows.len());
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (seq, task) in rows {
            let deadline = task.deadline.as_ref();
            query = query
                .bind(*seq)
                .bind(&task.id)
                .bind(task.submitted.wall_ms)
                .bind(i64::from(task.uid))
                .bind(&task.submitted_by)
                .bind(&task.request_id)
                .bind(&task.text)
                .bind(&task.terms)
                .bind(&task.parent)
                .bind(&task.retry_of)
                .bind(i64::from(task.depth))
                .bind(&task.submitted.boot_id)
                .bind(task.submitted.boot_ms.cast_signed())
                .bind(deadline.map(|at| at.boot_ms.cast_signed()))
                .bind(deadline.map(|at| at.wall_ms))
                .bind(&task.state)
                .bind(&task.cause)
                .bind(task.submitted.wall_ms);
        }
        query.execute(&mut *db).await?;
    }
    Ok(())
}

/// The first transition of each new task.
async fn insert_transitions(
    db: &mut SqliteConnection,
    tasks: &[(i64, &NewTask)],
) -> Result<(), sqlx::Error> {
    for rows in in_rows(tasks) {
        let columns = "seq, task, at_ms, from_state, to_state, attempt, cause";
        let sql = insert("task_transitions", columns, rows.len());
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (seq, task) in rows {
            query = query
                .bind(seq + 1)
                .bind(&task.id)
                .bind(task.submitted.wall_ms)
                .bind("submitted")
                .bind(&task.state)
                .bind(0_i64)
                .bind(&task.cause);
        }
        query.execute(&mut *db).await?;
    }
    Ok(())
}

async fn apply(
    db: &mut SqliteConnection,
    seq: i64,
    change: &TaskChange,
) -> Result<(), sqlx::Error> {
    let not_before = change.not_before.as_ref();
    // `not_before` and `turn` say something about the present state only; who had it, and what it said, stays.
    sqlx::query(
        "UPDATE tasks SET state = ?2, cause = ?3, changed_at_ms = ?4, attempt = ?5, launch = coalesce(?6, launch),
             agent = coalesce(?7, agent), turn = ?8, not_before_boot_id = ?9, not_before_boot_ms = ?10,
             not_before_ms = ?11, result = coalesce(?12, result), error = coalesce(?13, error)
         WHERE id = ?1",
    )
    .bind(&change.task)
    .bind(&change.to)
    .bind(&change.cause)
    .bind(change.at_ms)
    .bind(i64::from(change.attempt))
    .bind(&change.launch)
    .bind(&change.agent)
    .bind(change.turn.map(u64::cast_signed))
    .bind(not_before.map(|at| &at.boot_id))
    .bind(not_before.map(|at| at.boot_ms.cast_signed()))
    .bind(not_before.map(|at| at.wall_ms))
    .bind(&change.result)
    .bind(&change.error)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "INSERT INTO task_transitions (seq, task, at_ms, from_state, to_state, attempt, launch, agent, cause)
         SELECT ?1, id, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM tasks WHERE id = ?2",
    )
    .bind(seq)
    .bind(&change.task)
    .bind(change.at_ms)
    .bind(&change.from)
    .bind(&change.to)
    .bind(i64::from(change.attempt))
    .bind(&change.launch)
    .bind(&change.agent)
    .bind(&change.cause)
    .execute(&mut *db)
    .await
    .map(|_done| ())
}

/// Cuts a list into pieces of [`ROWS`].
fn in_rows<T>(mut list: &[T]) -> impl Iterator<Item = &[T]> {
    std::iter::from_fn(move || {
        let size = ROWS.into_iter().find(|size| *size <= list.len())?;
        let (piece, rest) = list.split_at(size);
        list = rest;
        Some(piece)
    })
}

/// `INSERT INTO table (columns) VALUES (?, …), …`.
fn insert(table: &str, columns: &str, rows: usize) -> String {
    let row = vec!["?"; columns.split(',').count()].join(",");
    let mut sql = format!("INSERT INTO {table} ({columns}) VALUES ({row})");
    for _ in 1..rows {
        // Writing to a string can't fail.
        write!(sql, ",({row})").unwrap_or_default();
    }
    sql
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_cut_into_few_sizes_and_nothing_is_lost() {
        let list: Vec<u32> = (0..139).collect();
        let sizes: Vec<usize> = in_rows(&list).map(<[u32]>::len).collect();
        assert_eq!(sizes, [64, 64, 8, 1, 1, 1]);
        assert_eq!(in_rows(&list).flatten().count(), 139);
        assert_eq!(in_rows::<u32>(&[]).count(), 0);
        assert_eq!(
            insert("t", "a, b", 2),
            "INSERT INTO t (a, b) VALUES (?,?),(?,?)"
        );
    }
}
