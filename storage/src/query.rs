//! What can be asked. Each SQL statement carries the viewer's uid next to the id, so that a launch which is not the
//! viewer's looks exactly like one that doesn't exist.

use serde::de::DeserializeOwned;
use sqlx::{Row, Sqlite, SqliteConnection, Transaction, sqlite::SqliteRow};

use crate::{
    error::{StoreError, classify},
    event::{
        Approval, Denial, Direction, Exit, LaunchFailure, LaunchId, Message, Ready, Usage,
        UsageSource,
    },
    record::{
        At, DriverLine, LaunchSummary, Launched, Record, TimelineEntry, TokenTotals, Unended,
        Viewer,
    },
    store::Store,
};

/// Shape of [`Record`].
const RECORD_SCHEMA: u32 = 1;

impl Viewer {
    /// What the statements compare with: NULL sees all.
    pub(crate) fn uid(self) -> Option<i64> {
        match self {
            Self::Uid(uid) => Some(i64::from(uid)),
            Self::Root => None,
        }
    }
}

impl Store {
    /// The newest `limit` launches, newest first.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn launches(
        &self,
        viewer: Viewer,
        limit: u32,
    ) -> Result<Vec<LaunchSummary>, StoreError> {
        let db = &mut self.snapshot().await?;
        async {
            let rows = sqlx::query(
                "SELECT l.*, e.at_ms AS exit_at_ms, e.kind AS exit_kind, e.code, e.signal, e.cause, e.resources,
                        (SELECT max(at_ms) FROM events f WHERE f.launch = l.id AND f.kind = 'launch-failed') AS failed_at_ms,
                        (SELECT count(*) FROM usage u WHERE u.launch = l.id AND u.source = 'gateway') AS requests,
                        (SELECT total(input) FROM usage u WHERE u.launch = l.id AND u.source = 'gateway') AS input,
                        (SELECT total(output) FROM usage u WHERE u.launch = l.id AND u.source = 'gateway') AS output,
                        (SELECT total(cache_read) FROM usage u WHERE u.launch = l.id AND u.source = 'gateway') AS cache_read,
                        (SELECT total(cache_write) FROM usage u WHERE u.launch = l.id AND u.source = 'gateway') AS cache_write,
                        (SELECT total(aborted) FROM usage u WHERE u.launch = l.id AND u.source = 'gateway') AS aborted,
                        (SELECT sum(cost_nano_usd) FROM usage u WHERE u.launch = l.id AND u.source = 'gateway') AS cost_nano_usd
                 FROM launches l LEFT JOIN exits e ON e.launch = l.id
                 WHERE (?1 IS NULL OR l.uid = ?1) ORDER BY l.seq DESC LIMIT ?2",
            )
            .bind(viewer.uid())
            .bind(limit)
            .fetch_all(&mut **db)
            .await?;
            rows.iter().map(summary).collect::<Result<Vec<_>, _>>()
        }
        .await
        .map_err(|error: sqlx::Error| self.public(error))
    }

    /// The launches that were accepted and neither failed nor ended, as far as the record knows: oldest first.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn unended(&self, viewer: Viewer) -> Result<Vec<Unended>, StoreError> {
        let db = &mut self.snapshot().await?;
        let rows: Result<Vec<(String, bool)>, sqlx::Error> = sqlx::query_as(
            "SELECT l.id, l.ready_at_ms IS NOT NULL FROM launches l LEFT JOIN exits e ON e.launch = l.id
             WHERE e.launch IS NULL AND l.state <> 'failed' AND (?1 IS NULL OR l.uid = ?1) ORDER BY l.seq",
        )
        .bind(viewer.uid())
        .fetch_all(&mut **db)
        .await;
        Ok(rows
            .map_err(|error| self.public(error))?
            .into_iter()
            .map(|(id, ready)| Unended {
                id: LaunchId::new(id),
                ready,
            })
            .collect())
    }

    /// Finds a launch by its id, an unambiguous beginning of its id (8 characters or more), or its name, in this
    /// order; of several with the same name the newest.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn find(
        &self,
        viewer: Viewer,
        id_or_name: &str,
    ) -> Result<Option<LaunchId>, StoreError> {
        const SHORTEST_PREFIX: usize = 8;
        let db = &mut self.snapshot().await?;
        async {
            let uid = viewer.uid();
            let exact: Option<String> =
                sqlx::query_scalar("SELECT id FROM launches WHERE id = ?1 AND (?2 IS NULL OR uid = ?2)")
                    .bind(id_or_name)
                    .bind(uid)
                    .fetch_optional(&mut **db)
                    .await?;
            if let Some(id) = exact {
                return Ok(Some(LaunchId::new(id)));
            }
            if id_or_name.len() >= SHORTEST_PREFIX {
                let mut alike: Vec<String> = sqlx::query_scalar(
                    "SELECT id FROM launches
                     WHERE substr(id, 1, length(?1)) = ?1 AND (?2 IS NULL OR uid = ?2) LIMIT 2",
                )
                .bind(id_or_name)
                .bind(uid)
                .fetch_all(&mut **db)
                .await?;
                if alike.len() == 1 {
                    return Ok(alike.pop().map(LaunchId::new));
                }
            }
            let named: Option<String> = sqlx::query_scalar(
                "SELECT id FROM launches WHERE name = ?1 AND (?2 IS NULL OR uid = ?2) ORDER BY seq DESC LIMIT 1",
            )
            .bind(id_or_name)
            .bind(uid)
            .fetch_optional(&mut **db)
            .await?;
            Ok(named.map(LaunchId::new))
        }
        .await
        .map_err(|error: sqlx::Error| self.public(error))
    }

    /// Everything about one launch, from one consistent snapshot; `None` if the viewer has no such launch.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn inspect(
        &self,
        viewer: Viewer,
        id: &LaunchId,
    ) -> Result<Option<Record>, StoreError> {
        let db = &mut self.snapshot().await?;
        record(db, viewer, id)
            .await
            .map_err(|error| self.public(error))
    }

    /// Each metered model request of a launch, in order. Empty if the viewer has no such launch.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn usage(&self, viewer: Viewer, id: &LaunchId) -> Result<Vec<At<Usage>>, StoreError> {
        let db = &mut self.snapshot().await?;
        usage(db, viewer, id)
            .await
            .map_err(|error| self.public(error))
    }

    /// Tokens of a launch as the gateway counted them.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn token_totals(
        &self,
        viewer: Viewer,
        id: &LaunchId,
    ) -> Result<TokenTotals, StoreError> {
        Ok(totals(&self.usage(viewer, id).await?))
    }

    /// Each bus message that a launch sent or got, in order.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn messages(
        &self,
        viewer: Viewer,
        id: &LaunchId,
    ) -> Result<Vec<At<Message>>, StoreError> {
        let db = &mut self.snapshot().await?;
        messages(db, viewer, id)
            .await
            .map_err(|error| self.public(error))
    }

    /// Each refusal of a launch, in order.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn denials(
        &self,
        viewer: Viewer,
        id: &LaunchId,
    ) -> Result<Vec<At<Denial>>, StoreError> {
        let db = &mut self.snapshot().await?;
        denials(db, viewer, id)
            .await
            .map_err(|error| self.public(error))
    }

    /// The last refusals of one launch, or of all that the viewer may see, oldest first; each with its launch.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn last_denials(
        &self,
        viewer: Viewer,
        id: Option<&LaunchId>,
        limit: u32,
    ) -> Result<Vec<(Launched, At<Denial>)>, StoreError> {
        let db = &mut self.snapshot().await?;
        let read = async {
            let rows = sqlx::query(
                "SELECT t.*, l.name AS name, l.uid AS uid FROM denials t JOIN launches l ON l.id = t.launch
                 WHERE (?1 IS NULL OR l.id = ?1) AND (?2 IS NULL OR l.uid = ?2) ORDER BY t.seq DESC LIMIT ?3",
            )
            .bind(id.map(LaunchId::as_str))
            .bind(viewer.uid())
            .bind(limit)
            .fetch_all(&mut **db)
            .await?;
            rows.iter()
                .rev()
                .map(|row| {
                    let launched = Launched {
                        id: LaunchId::new(row.try_get::<String, _>("launch")?),
                        name: row.try_get("name")?,
                        uid: row.try_get("uid")?,
                    };
                    Ok((launched, at(row, denial(row)?)?))
                })
                .collect::<Result<Vec<_>, sqlx::Error>>()
        };
        read.await.map_err(|error: sqlx::Error| self.public(error))
    }

    /// The protocol lines of a driven launch after `after_seq`, in order, at most `limit`.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn driver_lines(
        &self,
        viewer: Viewer,
        id: &LaunchId,
        after_seq: i64,
        limit: u32,
    ) -> Result<Vec<DriverLine>, StoreError> {
        let db = &mut self.snapshot().await?;
        async {
            let rows = sqlx::query(
                "SELECT t.seq, t.at_ms, t.direction, t.line, t.end_offset
                 FROM driver_lines t JOIN launches l ON l.id = t.launch
                 WHERE l.id = ?1 AND (?2 IS NULL OR l.uid = ?2) AND t.seq > ?3 ORDER BY t.seq LIMIT ?4",
            )
            .bind(id.as_str())
            .bind(viewer.uid())
            .bind(after_seq)
            .bind(limit)
            .fetch_all(&mut **db)
            .await?;
            rows.iter()
                .map(|row| {
                    Ok(DriverLine {
                        seq: row.try_get("seq")?,
                        at_ms: row.try_get("at_ms")?,
                        direction: match row.try_get("direction")? {
                            "out" => Direction::Out,
                            _ => Direction::In,
                        },
                        line: row.try_get("line")?,
                        end: row
                            .try_get::<Option<i64>, _>("end_offset")?
                            .and_then(|end| u64::try_from(end).ok()),
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        }
        .await
        .map_err(|error: sqlx::Error| self.public(error))
    }

    /// Runs SQLite's own check of the whole file; the answer is "ok" or a list of damages.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn integrity_check(&self) -> Result<String, StoreError> {
        let db = &mut self.snapshot().await?;
        async {
            let lines: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check")
                .fetch_all(&mut **db)
                .await?;
            Ok(lines.join("\n"))
        }
        .await
        .map_err(|error: sqlx::Error| self.public(error))
    }

    /// Begins a read-only transaction, which sees one snapshot.
    pub(crate) async fn snapshot(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.readers()
            .begin()
            .await
            .map_err(|error| self.public(error))
    }

    pub(crate) fn public(&self, error: sqlx::Error) -> StoreError {
        match error {
            sqlx::Error::PoolClosed => StoreError::Closed,
            error => classify(self.path(), &error),
        }
    }
}

async fn record(
    db: &mut SqliteConnection,
    viewer: Viewer,
    id: &LaunchId,
) -> Result<Option<Record>, sqlx::Error> {
    let Some(row) =
        sqlx::query("SELECT * FROM launches l WHERE l.id = ?1 AND (?2 IS NULL OR l.uid = ?2)")
            .bind(id.as_str())
            .bind(viewer.uid())
            .fetch_optional(&mut *db)
            .await?
    else {
        return Ok(None);
    };
    let mut timeline = vec![TimelineEntry {
        seq: row.try_get("seq")?,
        at_ms: row.try_get("at_ms")?,
        kind: "launch".to_owned(),
        text: format!(
            "launch of {} under policy {}",
            from_json::<Vec<String>>(&row, "argv")?.join(" "),
            row.try_get::<&str, _>("policy")?
        ),
    }];

    let exit = sqlx::query("SELECT *, kind AS exit_kind FROM exits WHERE launch = ?1")
        .bind(id.as_str())
        .fetch_optional(&mut *db)
        .await?
        .map(|row| at(&row, exit(&row)?))
        .transpose()?;
    let mut failure = None;
    let mut ended_at_ms = exit.as_ref().map(|exit| exit.at_ms);
    for event in
        sqlx::query("SELECT seq, at_ms, kind, detail FROM events WHERE launch = ?1 ORDER BY seq")
            .bind(id.as_str())
            .fetch_all(&mut *db)
            .await?
    {
        let kind: String = event.try_get("kind")?;
        let at_ms = event.try_get("at_ms")?;
        let text = match kind.as_str() {
            "ready" => {
                let ready: Ready = from_json(&event, "detail")?;
                format!(
                    "ready, pid {}, layers {}",
                    ready.pid,
                    ready.layers.join(" ")
                )
            }
            "launch-failed" => {
                let it: LaunchFailure = from_json(&event, "detail")?;
                let text = format!("launch failed at {}: {}", it.step, it.text);
                failure = Some(it);
                ended_at_ms = ended_at_ms.or(Some(at_ms));
                text
            }
            "state" => {
                let it: serde_json::Value = from_json(&event, "detail")?;
                format!("{}: {}", text_of(&it["state"]), text_of(&it["cause"]))
            }
            _ => from_json::<String>(&event, "detail")?,
        };
        timeline.push(TimelineEntry {
            seq: event.try_get("seq")?,
            at_ms,
            kind,
            text,
        });
    }
    let usage = usage(db, viewer, id).await?;
    let messages = messages(db, viewer, id).await?;
    let denials = denials(db, viewer, id).await?;
    let approvals = approvals(db, viewer, id).await?;
    timeline.extend(exit.iter().map(|it| it.entry("exit", exit_text(&it.what))));
    timeline.extend(
        usage
            .iter()
            .filter(|it| it.what.source == UsageSource::Gateway)
            .map(|it| it.entry("usage", usage_text(&it.what))),
    );
    timeline.extend(
        messages
            .iter()
            .map(|it| it.entry("message", message_text(&it.what))),
    );
    timeline.extend(denials.iter().map(|it| {
        it.entry(
            "denial",
            format!(
                "{} refused {} {} ({})",
                it.what.layer, it.what.what, it.what.target, it.what.rule
            ),
        )
    }));
    timeline.extend(approvals.iter().map(|it| {
        it.entry(
            "approval",
            format!(
                "{} {} by {}: {}",
                it.what.decision, it.what.tool, it.what.by, it.what.reason
            ),
        )
    }));
    timeline.sort_by_key(|entry| entry.seq);

    Ok(Some(Record {
        schema: RECORD_SCHEMA,
        id: id.clone(),
        name: row.try_get("name")?,
        uid: row.try_get("uid")?,
        policy: row.try_get("policy")?,
        policy_hash: row.try_get("policy_hash")?,
        argv: from_json(&row, "argv")?,
        workspace: row.try_get("workspace")?,
        driver: row.try_get("driver")?,
        mode: row.try_get("mode")?,
        kernel: row.try_get("kernel")?,
        details: from_json(&row, "details")?,
        state: row.try_get("state")?,
        started_at_ms: row.try_get("at_ms")?,
        ready_at_ms: row.try_get("ready_at_ms")?,
        ended_at_ms,
        pid: row.try_get("pid")?,
        host_uid: row.try_get("host_uid")?,
        layers: from_json(&row, "layers")?,
        landlock_abi: row.try_get("landlock_abi")?,
        degradations: from_json(&row, "degradations")?,
        failure,
        exit: exit.map(|it| it.what),
        tokens: totals(&usage),
        usage,
        messages,
        denials,
        approvals,
        timeline,
    }))
}

impl<T> At<T> {
    fn entry(&self, kind: &str, text: String) -> TimelineEntry {
        TimelineEntry {
            seq: self.seq,
            at_ms: self.at_ms,
            kind: kind.to_owned(),
            text,
        }
    }
}

fn text_of(value: &serde_json::Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn exit_text(exit: &Exit) -> String {
    match (exit.code, exit.signal) {
        (_, Some(signal)) => format!("ended by signal {signal}: {}", exit.cause),
        (Some(code), None) => format!("exit code {code}: {}", exit.cause),
        (None, None) => exit.cause.clone(),
    }
}

fn usage_text(usage: &Usage) -> String {
    let mut text = format!(
        "{} {}: {} in, {} out, {} cache read, {} cache written",
        usage.provider, usage.model, usage.input, usage.output, usage.cache_read, usage.cache_write
    );
    if let Some(nano) = usage.cost_nano_usd {
        text.push_str(&format!(", {nano} nano-dollars"));
    }
    if usage.aborted {
        text.push_str(", aborted");
    }
    if usage.estimated {
        text.push_str(", estimated");
    }
    text
}

fn message_text(message: &Message) -> String {
    let kind = variant(&message.kind);
    let subject = message
        .subject
        .as_deref()
        .map(|it| format!(" {it}"))
        .unwrap_or_default();
    format!(
        "{kind}{subject} {} -> {}, {} bytes, {}",
        message.from, message.to, message.bytes, message.outcome
    )
}

fn totals(usage: &[At<Usage>]) -> TokenTotals {
    let mut totals = TokenTotals::default();
    for it in usage
        .iter()
        .map(|it| &it.what)
        .filter(|it| it.source == UsageSource::Gateway)
    {
        totals.requests += 1;
        totals.input += it.input;
        totals.output += it.output;
        totals.cache_read += it.cache_read;
        totals.cache_write += it.cache_write;
        totals.aborted += u64::from(it.aborted);
        if let Some(cost) = it.cost_nano_usd {
            totals.cost_nano_usd = Some(totals.cost_nano_usd.unwrap_or(0).saturating_add(cost));
        }
    }
    totals
}

async fn usage(
    db: &mut SqliteConnection,
    viewer: Viewer,
    id: &LaunchId,
) -> Result<Vec<At<Usage>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT t.* FROM usage t JOIN launches l ON l.id = t.launch
         WHERE l.id = ?1 AND (?2 IS NULL OR l.uid = ?2) ORDER BY t.seq",
    )
    .bind(id.as_str())
    .bind(viewer.uid())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            at(
                row,
                Usage {
                    source: from_tag(row, "source")?,
                    provider: row.try_get("provider")?,
                    model: row.try_get("model")?,
                    request_id: row.try_get("request_id")?,
                    input: count(row, "input")?,
                    output: count(row, "output")?,
                    cache_read: count(row, "cache_read")?,
                    cache_write: count(row, "cache_write")?,
                    aborted: row.try_get("aborted")?,
                    estimated: row.try_get("estimated")?,
                    cost_nano_usd: perhaps(row, "cost_nano_usd")?,
                },
            )
        })
        .collect()
}

async fn messages(
    db: &mut SqliteConnection,
    viewer: Viewer,
    id: &LaunchId,
) -> Result<Vec<At<Message>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT t.* FROM messages t JOIN launches l ON l.id = ?1
         WHERE (t.launch = ?1 OR t.to_launch = ?1) AND (?2 IS NULL OR l.uid = ?2) ORDER BY t.seq",
    )
    .bind(id.as_str())
    .bind(viewer.uid())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            at(
                row,
                Message {
                    id: row.try_get("id")?,
                    from: row.try_get("sender")?,
                    to: row.try_get("receiver")?,
                    to_launch: row
                        .try_get::<Option<String>, _>("to_launch")?
                        .map(LaunchId::new),
                    kind: from_tag(row, "kind")?,
                    subject: row.try_get("subject")?,
                    correlation: row.try_get("correlation")?,
                    bytes: count(row, "bytes")?,
                    outcome: row.try_get("outcome")?,
                },
            )
        })
        .collect()
}

fn denial(row: &SqliteRow) -> Result<Denial, sqlx::Error> {
    Ok(Denial {
        layer: row.try_get("layer")?,
        what: row.try_get("what")?,
        target: row.try_get("target")?,
        rule: row.try_get("rule")?,
        origin: row.try_get("origin")?,
    })
}

async fn denials(
    db: &mut SqliteConnection,
    viewer: Viewer,
    id: &LaunchId,
) -> Result<Vec<At<Denial>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT t.* FROM denials t JOIN launches l ON l.id = t.launch
         WHERE l.id = ?1 AND (?2 IS NULL OR l.uid = ?2) ORDER BY t.seq",
    )
    .bind(id.as_str())
    .bind(viewer.uid())
    .fetch_all(db)
    .await?;
    rows.iter().map(|row| at(row, denial(row)?)).collect()
}

async fn approvals(
    db: &mut SqliteConnection,
    viewer: Viewer,
    id: &LaunchId,
) -> Result<Vec<At<Approval>>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT t.* FROM approvals t JOIN launches l ON l.id = t.launch
         WHERE l.id = ?1 AND (?2 IS NULL OR l.uid = ?2) ORDER BY t.seq",
    )
    .bind(id.as_str())
    .bind(viewer.uid())
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            at(
                row,
                Approval {
                    request_id: row.try_get("request_id")?,
                    tool: row.try_get("tool")?,
                    decision: row.try_get("decision")?,
                    by: row.try_get("decided_by")?,
                    reason: row.try_get("reason")?,
                },
            )
        })
        .collect()
}

fn summary(row: &SqliteRow) -> Result<LaunchSummary, sqlx::Error> {
    let exit_at_ms: Option<i64> = row.try_get("exit_at_ms")?;
    Ok(LaunchSummary {
        id: LaunchId::new(row.try_get::<String, _>("id")?),
        name: row.try_get("name")?,
        uid: row.try_get("uid")?,
        policy: row.try_get("policy")?,
        argv: from_json(row, "argv")?,
        workspace: row.try_get("workspace")?,
        driver: row.try_get("driver")?,
        state: row.try_get("state")?,
        started_at_ms: row.try_get("at_ms")?,
        ended_at_ms: exit_at_ms.or(row.try_get("failed_at_ms")?),
        exit: exit_at_ms.map(|_ended| exit(row)).transpose()?,
        tokens: TokenTotals {
            requests: count(row, "requests")?,
            input: whole(row, "input")?,
            output: whole(row, "output")?,
            cache_read: whole(row, "cache_read")?,
            cache_write: whole(row, "cache_write")?,
            aborted: whole(row, "aborted")?,
            cost_nano_usd: perhaps(row, "cost_nano_usd")?,
        },
    })
}

fn exit(row: &SqliteRow) -> Result<Exit, sqlx::Error> {
    Ok(Exit {
        kind: from_tag(row, "exit_kind")?,
        code: row.try_get("code")?,
        signal: row.try_get("signal")?,
        cause: row.try_get("cause")?,
        resources: from_json(row, "resources")?,
    })
}

fn at<T>(row: &SqliteRow, what: T) -> Result<At<T>, sqlx::Error> {
    Ok(At {
        seq: row.try_get("seq")?,
        at_ms: row.try_get("at_ms")?,
        what,
    })
}

fn count(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    Ok(u64::try_from(row.try_get::<i64, _>(column)?).unwrap_or(0))
}

fn perhaps(row: &SqliteRow, column: &str) -> Result<Option<u64>, sqlx::Error> {
    let value: Option<i64> = row.try_get(column)?;
    Ok(value.map(|n| u64::try_from(n).unwrap_or(0)))
}

/// A `total()`, which SQLite gives as a float that can't overflow.
fn whole(row: &SqliteRow, column: &str) -> Result<u64, sqlx::Error> {
    // Counts of tokens are far below 2^53, and never negative.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(row.try_get::<f64, _>(column)? as u64)
}

fn from_json<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error> {
    serde_json::from_str(row.try_get(column)?).map_err(|error| bad_column(column, error))
}

fn from_tag<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error> {
    let tag = serde_json::Value::String(row.try_get(column)?);
    serde_json::from_value(tag).map_err(|error| bad_column(column, error))
}

fn bad_column(column: &str, error: serde_json::Error) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: Box::new(error),
    }
}

fn variant<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}
