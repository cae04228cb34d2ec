//! How tasks become rows. Runs in the writer's transaction.
//!
//! Many tasks submitted at once go in as few statements: an INSERT of 64 rows costs little more than one of a single
//! row, and a busy queue is mostly INSERTs. A request id is looked up in the same transaction, and there is one
//! writer, so two equal submissions are one task however they race.

use std::collections::BTreeSet;

use sqlx::{Row as _, SqliteConnection};

use crate::{
    audit::content::{Row, TASK_DEPENDENCIES, TASK_TRANSITIONS, TASKS, Written, update},
    row,
    task::{NewTask, TaskBatch, TaskChange, TaskTaken},
};

/// Writes `batch`, with sequence numbers from `seq` on. Gives what became of the new tasks, and the next number.
pub(crate) async fn write(
    db: &mut SqliteConnection,
    written: &mut Written,
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
    insert_tasks(db, written, &fresh).await?;
    insert_transitions(db, written, &fresh).await?;
    insert_dependencies(db, written, &fresh).await?;
    for change in &batch.changes {
        apply(db, written, seq, change).await?;
        seq += 1;
    }
    for event in &batch.events {
        if is_launch(db, event.launch.as_str()).await? {
            row::insert(db, written, seq, event).await?;
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
    written: &mut Written,
    tasks: &[(i64, &NewTask)],
) -> Result<(), sqlx::Error> {
    let rows = tasks.iter().map(|(seq, task)| {
        let deadline = task.deadline.as_ref();
        Row::of(TASKS, *seq)
            .set("seq", *seq)
            .set("id", &task.id)
            .set("at_ms", task.submitted.wall_ms)
            .set("uid", task.uid)
            .set("submitted_by", &task.submitted_by)
            .set("request_id", &task.request_id)
            .set("text", &task.text)
            .set("terms", &task.terms)
            .set("parent", &task.parent)
            .set("retry_of", &task.retry_of)
            .set("depth", task.depth)
            .set("boot_id", &task.submitted.boot_id)
            .set("queued_boot_ms", task.submitted.boot_ms.cast_signed())
            .set(
                "deadline_boot_ms",
                deadline.map(|at| at.boot_ms.cast_signed()),
            )
            .set("deadline_ms", deadline.map(|at| at.wall_ms))
            .set("state", &task.state)
            .set("cause", &task.cause)
            .set("changed_at_ms", task.submitted.wall_ms)
            .set("attempt", 0_i64)
    });
    Row::insert_all(db, written, rows.collect()).await
}

/// The first transition of each new task.
async fn insert_transitions(
    db: &mut SqliteConnection,
    written: &mut Written,
    tasks: &[(i64, &NewTask)],
) -> Result<(), sqlx::Error> {
    let rows = tasks.iter().map(|(seq, task)| {
        Row::of(TASK_TRANSITIONS, seq + 1)
            .set("seq", seq + 1)
            .set("task", &task.id)
            .set("at_ms", task.submitted.wall_ms)
            .set("from_state", "submitted")
            .set("to_state", &task.state)
            .set("attempt", 0_i64)
            .set("cause", &task.cause)
    });
    Row::insert_all(db, written, rows.collect()).await
}

/// What each new task needs: sorted and without repetition, as it is read back.
async fn insert_dependencies(
    db: &mut SqliteConnection,
    written: &mut Written,
    tasks: &[(i64, &NewTask)],
) -> Result<(), sqlx::Error> {
    for (seq, task) in tasks.iter().filter(|(_, task)| !task.after.is_empty()) {
        let needs: BTreeSet<&String> = task.after.iter().collect();
        let rows = needs.into_iter().map(|needs| {
            Row::of(TASK_DEPENDENCIES, *seq)
                .set("task", &task.id)
                .set("needs", needs)
        });
        let rows: Vec<_> = rows.collect();
        let content = Row::group_content(TASK_DEPENDENCIES, *seq, &rows);
        written.0.push(content);
        Row::store(db, rows).await?;
    }
    Ok(())
}

async fn apply(
    db: &mut SqliteConnection,
    written: &mut Written,
    seq: i64,
    change: &TaskChange,
) -> Result<(), sqlx::Error> {
    let not_before = change.not_before.as_ref();
    // `not_before` and `turn` say something about the present state only; who had it, and what it said, stays.
    let set = "state = ?2, cause = ?3, changed_at_ms = ?4, attempt = ?5, launch = coalesce(?6, launch),
               agent = coalesce(?7, agent), turn = ?8, not_before_boot_id = ?9, not_before_boot_ms = ?10,
               not_before_ms = ?11, result = coalesce(?12, result), error = coalesce(?13, error)
               WHERE id = ?1";
    let before = written.0.len();
    update(db, written, TASKS, set, |query| {
        query
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
    })
    .await?;
    if written.0.len() == before {
        // No such task: then nothing happened to it.
        return Ok(());
    }
    Row::of(TASK_TRANSITIONS, seq)
        .set("seq", seq)
        .set("task", &change.task)
        .set("at_ms", change.at_ms)
        .set("from_state", &change.from)
        .set("to_state", &change.to)
        .set("attempt", change.attempt)
        .set("launch", &change.launch)
        .set("agent", &change.agent)
        .set("cause", &change.cause)
        .insert(db, written)
        .await
}
