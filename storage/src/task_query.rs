//! What can be asked about tasks. As with launches, every statement for a client carries the viewer's uid: somebody
//! else's task looks exactly like one that doesn't exist.

use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};

use crate::{
    error::StoreError,
    record::Viewer,
    store::Store,
    task::{BootMoment, OpenTask, TaskRecord, TaskSummary, TaskTransition},
};

/// Which tasks a list shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that have not ended.
    Open,
    /// All, the newest first.
    All,
}

impl Store {
    /// The newest `limit` tasks, newest first.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn tasks(
        &self,
        viewer: Viewer,
        which: Which,
        limit: u32,
    ) -> Result<Vec<TaskSummary>, StoreError> {
        let db = &mut self.snapshot().await?;
        let sql = match which {
            Which::All => {
                "SELECT * FROM tasks WHERE (?1 IS NULL OR uid = ?1) ORDER BY seq DESC LIMIT ?2"
            }
            Which::Open => {
                "SELECT * FROM tasks
                 WHERE state IN ('waiting', 'queued', 'assigned', 'running') AND (?1 IS NULL OR uid = ?1)
                 ORDER BY seq DESC LIMIT ?2"
            }
        };
        let rows = sqlx::query(sql)
            .bind(viewer.uid())
            .bind(limit)
            .fetch_all(&mut **db)
            .await;
        rows.and_then(|rows| rows.iter().map(summary).collect())
            .map_err(|error| self.public(error))
    }

    /// The ids that `typed` may mean: a whole id, or an unambiguous beginning or end of at least four characters,
    /// hyphens left out or not.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn find_tasks(&self, viewer: Viewer, typed: &str) -> Result<Vec<String>, StoreError> {
        const SHORTEST: usize = 4;
        let hex: String = typed
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_ascii_lowercase())
            .collect();
        if hex.len() < SHORTEST || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Vec::new());
        }
        let db = &mut self.snapshot().await?;
        sqlx::query_scalar(
            "SELECT id FROM tasks
             WHERE (replace(id, '-', '') LIKE ?1 || '%' OR replace(id, '-', '') LIKE '%' || ?1)
               AND (?2 IS NULL OR uid = ?2)
             ORDER BY seq DESC LIMIT 3",
        )
        .bind(hex)
        .bind(viewer.uid())
        .fetch_all(&mut **db)
        .await
        .map_err(|error| self.public(error))
    }

    /// Everything about one task, from one consistent snapshot; `None` if the viewer has no such task.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn task(&self, viewer: Viewer, id: &str) -> Result<Option<TaskRecord>, StoreError> {
        let db = &mut self.snapshot().await?;
        record(db, viewer, id)
            .await
            .map_err(|error| self.public(error))
    }

    /// One line about one task.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn task_summary(
        &self,
        viewer: Viewer,
        id: &str,
    ) -> Result<Option<TaskSummary>, StoreError> {
        let db = &mut self.snapshot().await?;
        let row = one(db, viewer, id).await;
        row.and_then(|row| row.as_ref().map(summary).transpose())
            .map_err(|error| self.public(error))
    }

    /// The task of a request: its id, and whether it has this content.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn task_of_request(
        &self,
        uid: u32,
        request_id: &str,
        content: (&str, &str, Option<&str>),
    ) -> Result<Option<(String, bool)>, StoreError> {
        let db = &mut self.snapshot().await?;
        let (text, terms, parent) = content;
        sqlx::query_as(
            "SELECT id, text = ?3 AND terms = ?4 AND parent IS ?5 FROM tasks WHERE uid = ?1 AND request_id = ?2",
        )
        .bind(i64::from(uid))
        .bind(request_id)
        .bind(text)
        .bind(terms)
        .bind(parent)
        .fetch_optional(&mut **db)
        .await
        .map_err(|error| self.public(error))
    }

    /// What an agent delegated: on behalf of `parent`, or by itself under the name `submitted_by`. Oldest first.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn delegated_tasks(
        &self,
        uid: u32,
        parent: Option<&str>,
        submitted_by: &str,
        limit: u32,
    ) -> Result<Vec<TaskSummary>, StoreError> {
        let db = &mut self.snapshot().await?;
        let rows = sqlx::query(
            "SELECT * FROM tasks WHERE uid = ?1 AND (parent = ?2 OR submitted_by = ?3) ORDER BY seq DESC LIMIT ?4",
        )
        .bind(i64::from(uid))
        .bind(parent)
        .bind(submitted_by)
        .bind(limit)
        .fetch_all(&mut **db)
        .await;
        rows.and_then(|rows| rows.iter().rev().map(summary).collect())
            .map_err(|error| self.public(error))
    }

    /// The states of those of `ids` that belong to `uid`.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn task_states(
        &self,
        uid: u32,
        ids: &[String],
    ) -> Result<Vec<(String, String)>, StoreError> {
        let db = &mut self.snapshot().await?;
        let mut states = Vec::with_capacity(ids.len());
        for id in ids {
            let state: Result<Option<String>, _> =
                sqlx::query_scalar("SELECT state FROM tasks WHERE id = ?1 AND uid = ?2")
                    .bind(id)
                    .bind(i64::from(uid))
                    .fetch_optional(&mut **db)
                    .await;
            if let Some(state) = state.map_err(|error| self.public(error))? {
                states.push((id.clone(), state));
            }
        }
        Ok(states)
    }

    /// Every open task of every user, oldest first: what a starting daemon goes on with.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn open_tasks(&self) -> Result<Vec<OpenTask>, StoreError> {
        let db = &mut self.snapshot().await?;
        async {
            let rows = sqlx::query(
                "SELECT * FROM tasks WHERE state IN ('waiting', 'queued', 'assigned', 'running') ORDER BY seq",
            )
            .fetch_all(&mut **db)
            .await?;
            let mut tasks = Vec::with_capacity(rows.len());
            for row in &rows {
                let mut task = open_task(row)?;
                if task.state == "waiting" {
                    task.dependencies = dependencies_of(db, &task.id).await?;
                }
                tasks.push(task);
            }
            Ok(tasks)
        }
        .await
        .map_err(|error: sqlx::Error| self.public(error))
    }
}

async fn one(
    db: &mut SqliteConnection,
    viewer: Viewer,
    id: &str,
) -> Result<Option<SqliteRow>, sqlx::Error> {
    sqlx::query("SELECT * FROM tasks WHERE id = ?1 AND (?2 IS NULL OR uid = ?2)")
        .bind(id)
        .bind(viewer.uid())
        .fetch_optional(db)
        .await
}

async fn record(
    db: &mut SqliteConnection,
    viewer: Viewer,
    id: &str,
) -> Result<Option<TaskRecord>, sqlx::Error> {
    let Some(row) = one(db, viewer, id).await? else {
        return Ok(None);
    };
    let rows = sqlx::query("SELECT * FROM task_transitions WHERE task = ?1 ORDER BY seq")
        .bind(id)
        .fetch_all(&mut *db)
        .await?;
    let transitions = rows.iter().map(transition).collect::<Result<_, _>>()?;
    // Dependencies, parents and children are of the same user: submission saw to it.
    let rows = sqlx::query(
        "SELECT t.* FROM tasks t JOIN task_dependencies d ON d.needs = t.id WHERE d.task = ?1 ORDER BY t.seq",
    )
    .bind(id)
    .fetch_all(&mut *db)
    .await?;
    let dependencies = rows.iter().map(summary).collect::<Result<_, _>>()?;
    let rows = sqlx::query("SELECT * FROM tasks WHERE parent = ?1 ORDER BY seq")
        .bind(id)
        .fetch_all(&mut *db)
        .await?;
    let children = rows.iter().map(summary).collect::<Result<_, _>>()?;
    Ok(Some(TaskRecord {
        summary: summary(&row)?,
        transitions,
        dependencies,
        children,
    }))
}

async fn dependencies_of(
    db: &mut SqliteConnection,
    id: &str,
) -> Result<Vec<(String, String)>, sqlx::Error> {
    // One that was pruned meanwhile can't succeed any more.
    sqlx::query_as(
        "SELECT d.needs, coalesce(t.state, 'failed')
         FROM task_dependencies d LEFT JOIN tasks t ON t.id = d.needs WHERE d.task = ?1",
    )
    .bind(id)
    .fetch_all(db)
    .await
}

fn number<T: TryFrom<i64> + Default>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error> {
    Ok(T::try_from(row.try_get::<i64, _>(column)?).unwrap_or_default())
}

fn summary(row: &SqliteRow) -> Result<TaskSummary, sqlx::Error> {
    let terms: &str = row.try_get("terms")?;
    let terms = serde_json::from_str(terms).map_err(|error| sqlx::Error::ColumnDecode {
        index: "terms".to_owned(),
        source: Box::new(error),
    })?;
    Ok(TaskSummary {
        id: row.try_get("id")?,
        uid: number(row, "uid")?,
        submitted_by: row.try_get("submitted_by")?,
        request_id: row.try_get("request_id")?,
        text: row.try_get("text")?,
        terms,
        parent: row.try_get("parent")?,
        retry_of: row.try_get("retry_of")?,
        state: row.try_get("state")?,
        cause: row.try_get("cause")?,
        attempt: number(row, "attempt")?,
        agent: row.try_get("agent")?,
        launch: row.try_get("launch")?,
        submitted_at_ms: row.try_get("at_ms")?,
        changed_at_ms: row.try_get("changed_at_ms")?,
        deadline_ms: row.try_get("deadline_ms")?,
        not_before_ms: row.try_get("not_before_ms")?,
        result: row.try_get("result")?,
        error: row.try_get("error")?,
    })
}

fn transition(row: &SqliteRow) -> Result<TaskTransition, sqlx::Error> {
    Ok(TaskTransition {
        seq: row.try_get("seq")?,
        at_ms: row.try_get("at_ms")?,
        from: row.try_get("from_state")?,
        to: row.try_get("to_state")?,
        attempt: number(row, "attempt")?,
        launch: row.try_get("launch")?,
        agent: row.try_get("agent")?,
        cause: row.try_get("cause")?,
    })
}

fn open_task(row: &SqliteRow) -> Result<OpenTask, sqlx::Error> {
    let moment = |boot_id: Option<String>, boot: &str, wall: &str| -> Result<_, sqlx::Error> {
        let (boot_ms, wall_ms): (Option<i64>, Option<i64>) =
            (row.try_get(boot)?, row.try_get(wall)?);
        Ok(match (boot_id, boot_ms, wall_ms) {
            (Some(boot_id), Some(boot_ms), Some(wall_ms)) => Some(BootMoment {
                boot_id,
                boot_ms: u64::try_from(boot_ms).unwrap_or(0),
                wall_ms,
            }),
            _ => None,
        })
    };
    let boot_id: String = row.try_get("boot_id")?;
    Ok(OpenTask {
        id: row.try_get("id")?,
        uid: number(row, "uid")?,
        terms: row.try_get("terms")?,
        parent: row.try_get("parent")?,
        depth: number(row, "depth")?,
        state: row.try_get("state")?,
        attempt: number(row, "attempt")?,
        launch: row.try_get("launch")?,
        agent: row.try_get("agent")?,
        turn: row
            .try_get::<Option<i64>, _>("turn")?
            .map(i64::cast_unsigned),
        deadline: moment(Some(boot_id.clone()), "deadline_boot_ms", "deadline_ms")?,
        not_before: moment(
            row.try_get("not_before_boot_id")?,
            "not_before_boot_ms",
            "not_before_ms",
        )?,
        submitted: BootMoment {
            boot_id,
            boot_ms: number(row, "queued_boot_ms")?,
            wall_ms: row.try_get("at_ms")?,
        },
        dependencies: Vec::new(),
    })
}
