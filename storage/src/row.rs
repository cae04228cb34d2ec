//! How facts become rows: one INSERT per fact, plus an UPDATE of the launch where its state moves.

use sqlx::{Sqlite, SqliteConnection, query::Query, sqlite::SqliteArguments};

use crate::event::{Event, Fact};

/// Integers in SQLite are signed; no count here comes near the limit.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn json<T: serde::Serialize>(value: &T) -> String {
    // Plain structs with string keys: serialising them can't fail.
    serde_json::to_string(value).expect("facts are plain data")
}

/// A unit variant's name as serde writes it ("timed-out").
fn tag<T: serde::Serialize>(value: &T) -> String {
    json(value).trim_matches('"').to_owned()
}

/// The name of a fact's kind, as the timeline shows it.
pub(crate) fn kind_of(fact: &Fact) -> &'static str {
    match fact {
        Fact::Launch(_) => "launch",
        Fact::Ready(_) => "ready",
        Fact::LaunchFailed(_) => "launch-failed",
        Fact::Exit(_) => "exit",
        Fact::State { .. } => "state",
        Fact::Message(_) => "message",
        Fact::Usage(_) => "usage",
        Fact::Denial(_) => "denial",
        Fact::DriverLine { .. } => "driver-line",
        Fact::Approval(_) => "approval",
        Fact::Asked(_) => "asked",
        Fact::Settled(_) => "settled",
        Fact::RuleMade(_) => "rule-made",
        Fact::RuleRevoked { .. } => "rule-revoked",
        Fact::RightRevoked { .. } => "right-revoked",
        Fact::RightsRestored { .. } => "rights-restored",
        Fact::Note { .. } => "note",
    }
}

/// The highest `seq` in any table, or 0.
pub(crate) async fn last_seq(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT coalesce(max(seq), 0) FROM (
             SELECT max(seq) AS seq FROM launches UNION ALL SELECT max(seq) FROM events
             UNION ALL SELECT max(seq) FROM exits UNION ALL SELECT max(seq) FROM messages
             UNION ALL SELECT max(seq) FROM usage UNION ALL SELECT max(seq) FROM denials
             UNION ALL SELECT max(seq) FROM approvals UNION ALL SELECT max(seq) FROM driver_lines
             UNION ALL SELECT max(seq) FROM standing_rules UNION ALL SELECT max(seq) FROM revocations
             UNION ALL SELECT max(seq) FROM tasks UNION ALL SELECT max(seq) FROM task_transitions)",
    )
    .fetch_one(connection)
    .await
}

/// Writes one fact. The caller holds the transaction.
pub(crate) async fn insert(
    connection: &mut SqliteConnection,
    seq: i64,
    event: &Event,
) -> Result<(), sqlx::Error> {
    let launch = event.launch.as_str();
    let at_ms = event.at_ms;
    match &event.fact {
        Fact::Launch(it) => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO launches (id, seq, at_ms, name, uid, policy, policy_hash, argv, workspace, driver,
                         mode, kernel, details)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
                )
                .bind(launch)
                .bind(seq)
                .bind(at_ms)
                .bind(&it.name)
                .bind(i64::from(it.uid))
                .bind(&it.policy)
                .bind(&it.policy_hash)
                .bind(json(&it.argv))
                .bind(&it.workspace)
                .bind(&it.driver)
                .bind(&it.mode)
                .bind(&it.kernel)
                .bind(json(&it.details)),
            )
            .await
        }
        Fact::Ready(it) => {
            timeline(connection, seq, event, json(it)).await?;
            run(
                connection,
                sqlx::query(
                    "UPDATE launches SET state = 'running', ready_at_ms = ?2, pid = ?3, host_uid = ?4, layers = ?5,
                         landlock_abi = ?6, degradations = ?7
                     WHERE id = ?1",
                )
                .bind(launch)
                .bind(at_ms)
                .bind(i64::from(it.pid))
                .bind(i64::from(it.host_uid))
                .bind(json(&it.layers))
                .bind(i64::from(it.landlock_abi))
                .bind(json(&it.degradations)),
            )
            .await
        }
        Fact::LaunchFailed(it) => {
            timeline(connection, seq, event, json(it)).await?;
            set_state(connection, launch, "failed").await
        }
        Fact::State { state, cause } => {
            timeline(
                connection,
                seq,
                event,
                json(&serde_json::json!({ "state": state, "cause": cause })),
            )
            .await?;
            set_state(connection, launch, state).await
        }
        Fact::Note { text } => timeline(connection, seq, event, json(text)).await,
        Fact::Exit(it) => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO exits (launch, seq, at_ms, kind, code, signal, cause, resources)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )
                .bind(launch)
                .bind(seq)
                .bind(at_ms)
                .bind(tag(&it.kind))
                .bind(it.code)
                .bind(it.signal)
                .bind(&it.cause)
                .bind(json(&it.resources)),
            )
            .await?;
            set_state(connection, launch, "exited").await
        }
        Fact::Message(it) => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO messages (seq, launch, to_launch, at_ms, id, sender, receiver, kind, subject,
                         correlation, bytes, outcome)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                )
                .bind(seq)
                .bind(launch)
                .bind(it.to_launch.as_ref().map(|to| to.as_str()))
                .bind(at_ms)
                .bind(&it.id)
                .bind(&it.from)
                .bind(&it.to)
                .bind(tag(&it.kind))
                .bind(&it.subject)
                .bind(&it.correlation)
                .bind(int(it.bytes))
                .bind(&it.outcome),
            )
            .await
        }
        Fact::Usage(it) => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO usage (seq, launch, at_ms, source, provider, model, request_id, input, output,
                         cache_read, cache_write, aborted, estimated)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
                )
                .bind(seq)
                .bind(launch)
                .bind(at_ms)
                .bind(tag(&it.source))
                .bind(&it.provider)
                .bind(&it.model)
                .bind(&it.request_id)
                .bind(int(it.input))
                .bind(int(it.output))
                .bind(int(it.cache_read))
                .bind(int(it.cache_write))
                .bind(it.aborted)
                .bind(it.estimated),
            )
            .await
        }
        Fact::Denial(it) => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO denials (seq, launch, at_ms, layer, what, target, rule, origin)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )
                .bind(seq)
                .bind(launch)
                .bind(at_ms)
                .bind(&it.layer)
                .bind(&it.what)
                .bind(&it.target)
                .bind(&it.rule)
                .bind(&it.origin),
            )
            .await
        }
        Fact::Approval(it) => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO approvals (seq, launch, at_ms, request_id, tool, decision, decided_by, reason)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )
                .bind(seq)
                .bind(launch)
                .bind(at_ms)
                .bind(&it.request_id)
                .bind(&it.tool)
                .bind(&it.decision)
                .bind(&it.by)
                .bind(&it.reason),
            )
            .await
        }
        Fact::Asked(it) => {
            let until = it.expires_at_ms.saturating_sub(it.asked_at_ms) / 1000;
            let text = format!("asked about {} {}, for {until} s", it.kind, it.tool);
            timeline(connection, seq, event, json(&text)).await?;
            run(
                connection,
                sqlx::query(
                    "INSERT INTO questions (id, seq, launch, uid, request_id, kind, tool, input, rule, asked_at_ms,
                         expires_at_ms)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                )
                .bind(&it.id)
                .bind(seq)
                .bind(launch)
                .bind(it.uid)
                .bind(&it.request_id)
                .bind(&it.kind)
                .bind(&it.tool)
                .bind(json(&it.input))
                .bind(&it.rule)
                .bind(it.asked_at_ms)
                .bind(it.expires_at_ms),
            )
            .await
        }
        Fact::Settled(it) => {
            let text = format!("{} by {}: {}", it.decision, it.by, it.reason);
            timeline(connection, seq, event, json(&text)).await?;
            run(
                connection,
                sqlx::query(
                    "UPDATE questions SET decided_at_ms = ?2, decision = ?3, decided_by = ?4, scope = ?5, reason = ?6
                     WHERE id = ?1 AND decided_at_ms IS NULL",
                )
                .bind(&it.id)
                .bind(at_ms)
                .bind(&it.decision)
                .bind(&it.by)
                .bind(&it.scope)
                .bind(&it.reason),
            )
            .await
        }
        Fact::RuleMade(it) => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO standing_rules (id, seq, uid, scope, subject, kind, decision, covers, made_at_ms,
                         made_by, question)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                )
                .bind(&it.id)
                .bind(seq)
                .bind(it.uid)
                .bind(&it.scope)
                .bind(&it.subject)
                .bind(&it.kind)
                .bind(&it.decision)
                .bind(json(&it.covers))
                .bind(it.made_at_ms)
                .bind(&it.made_by)
                .bind(&it.question),
            )
            .await
        }
        Fact::RuleRevoked { id, by } => {
            run(
                connection,
                sqlx::query(
                    "UPDATE standing_rules SET revoked_at_ms = ?2, revoked_by = ?3
                     WHERE id = ?1 AND revoked_at_ms IS NULL",
                )
                .bind(id)
                .bind(at_ms)
                .bind(by),
            )
            .await
        }
        Fact::RightRevoked { right, pattern, by } => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO revocations (seq, launch, at_ms, kind, pattern, taken_by)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )
                .bind(seq)
                .bind(launch)
                .bind(at_ms)
                .bind(right)
                .bind(pattern)
                .bind(by),
            )
            .await
        }
        Fact::RightsRestored { by } => {
            run(
                connection,
                sqlx::query(
                    "UPDATE revocations SET restored_at_ms = ?2, restored_by = ?3
                     WHERE launch = ?1 AND restored_at_ms IS NULL",
                )
                .bind(launch)
                .bind(at_ms)
                .bind(by),
            )
            .await
        }
        Fact::DriverLine {
            direction,
            line,
            end,
        } => {
            run(
                connection,
                sqlx::query(
                    "INSERT INTO driver_lines (seq, launch, at_ms, direction, line, end_offset)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )
                .bind(seq)
                .bind(launch)
                .bind(at_ms)
                .bind(tag(direction))
                .bind(line)
                .bind(end.map(int)),
            )
            .await
        }
    }
}

async fn run(
    connection: &mut SqliteConnection,
    query: Query<'_, Sqlite, SqliteArguments>,
) -> Result<(), sqlx::Error> {
    query.execute(connection).await.map(|_done| ())
}

async fn timeline(
    connection: &mut SqliteConnection,
    seq: i64,
    event: &Event,
    detail: String,
) -> Result<(), sqlx::Error> {
    run(
        connection,
        sqlx::query(
            "INSERT INTO events (seq, launch, at_ms, kind, detail) VALUES (?1, ?2, ?3, ?4, ?5)",
        )
        .bind(seq)
        .bind(event.launch.as_str())
        .bind(event.at_ms)
        .bind(kind_of(&event.fact))
        .bind(detail),
    )
    .await
}

async fn set_state(
    connection: &mut SqliteConnection,
    launch: &str,
    state: &str,
) -> Result<(), sqlx::Error> {
    run(
        connection,
        sqlx::query("UPDATE launches SET state = ?2 WHERE id = ?1")
            .bind(launch)
            .bind(state),
    )
    .await
}
