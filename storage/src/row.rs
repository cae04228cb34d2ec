//! How facts become rows: one INSERT per fact, plus an UPDATE of the launch where its state moves. What is written is
//! noted for the audit chain as it goes.

use sqlx::SqliteConnection;

use crate::{
    audit::content::{
        APPROVALS, DENIALS, DRIVER_LINES, EVENTS, EXITS, LAUNCHES, MESSAGES, QUESTIONS,
        REVOCATIONS, Row, STANDING_RULES, USAGE, Written, update,
    },
    event::{Event, Fact, LaunchId},
};

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
        Fact::Control { .. } => "control",
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
             UNION ALL SELECT max(seq) FROM tasks UNION ALL SELECT max(seq) FROM task_transitions
             UNION ALL SELECT max(seq) FROM streams UNION ALL SELECT max(seq) FROM chain_notes)",
    )
    .fetch_one(connection)
    .await
}

/// Writes one fact. The caller holds the transaction.
pub(crate) async fn insert(
    db: &mut SqliteConnection,
    written: &mut Written,
    seq: i64,
    event: &Event,
) -> Result<(), sqlx::Error> {
    let launch = event.launch.as_str();
    let at_ms = event.at_ms;
    match &event.fact {
        Fact::Launch(it) => {
            let row = Row::of(LAUNCHES, seq)
                .set("id", launch)
                .set("seq", seq)
                .set("at_ms", at_ms)
                .set("name", &it.name)
                .set("uid", it.uid)
                .set("policy", &it.policy)
                .set("policy_hash", &it.policy_hash)
                .set("argv", json(&it.argv))
                .set("workspace", &it.workspace)
                .set("driver", &it.driver)
                .set("mode", &it.mode)
                .set("kernel", &it.kernel)
                .set("details", json(&it.details))
                .set("state", "starting")
                .set("layers", "[]")
                .set("degradations", "[]");
            row.insert(db, written).await
        }
        Fact::Ready(it) => {
            timeline(db, written, seq, event, json(it)).await?;
            let set = "state = 'running', ready_at_ms = ?2, pid = ?3, host_uid = ?4, layers = ?5, landlock_abi = ?6,
                       degradations = ?7 WHERE id = ?1";
            update(db, written, LAUNCHES, set, |query| {
                query
                    .bind(launch)
                    .bind(at_ms)
                    .bind(i64::from(it.pid))
                    .bind(i64::from(it.host_uid))
                    .bind(json(&it.layers))
                    .bind(i64::from(it.landlock_abi))
                    .bind(json(&it.degradations))
            })
            .await
        }
        Fact::LaunchFailed(it) => {
            timeline(db, written, seq, event, json(it)).await?;
            set_state(db, written, launch, "failed").await
        }
        Fact::State { state, cause } => {
            let detail = json(&serde_json::json!({ "state": state, "cause": cause }));
            timeline(db, written, seq, event, detail).await?;
            set_state(db, written, launch, state).await
        }
        Fact::Note { text } | Fact::Control { text } => {
            timeline(db, written, seq, event, json(text)).await
        }
        Fact::Exit(it) => {
            let row = Row::of(EXITS, seq)
                .set("launch", launch)
                .set("seq", seq)
                .set("at_ms", at_ms)
                .set("kind", tag(&it.kind))
                .set("code", it.code)
                .set("signal", it.signal)
                .set("cause", &it.cause)
                .set("resources", json(&it.resources));
            row.insert(db, written).await?;
            set_state(db, written, launch, "exited").await
        }
        Fact::Message(it) => {
            let row = Row::of(MESSAGES, seq)
                .set("seq", seq)
                .set("launch", launch)
                .set("to_launch", it.to_launch.as_ref().map(LaunchId::as_str))
                .set("at_ms", at_ms)
                .set("id", &it.id)
                .set("sender", &it.from)
                .set("receiver", &it.to)
                .set("kind", tag(&it.kind))
                .set("subject", &it.subject)
                .set("correlation", &it.correlation)
                .set("bytes", int(it.bytes))
                .set("outcome", &it.outcome);
            row.insert(db, written).await
        }
        Fact::Usage(it) => {
            let row = Row::of(USAGE, seq)
                .set("seq", seq)
                .set("launch", launch)
                .set("at_ms", at_ms)
                .set("source", tag(&it.source))
                .set("provider", &it.provider)
                .set("model", &it.model)
                .set("request_id", &it.request_id)
                .set("input", int(it.input))
                .set("output", int(it.output))
                .set("cache_read", int(it.cache_read))
                .set("cache_write", int(it.cache_write))
                .set("aborted", it.aborted)
                .set("estimated", it.estimated)
                .set("cost_nano_usd", it.cost_nano_usd.map(int));
            row.insert(db, written).await
        }
        Fact::Denial(it) => {
            let row = Row::of(DENIALS, seq)
                .set("seq", seq)
                .set("launch", launch)
                .set("at_ms", at_ms)
                .set("layer", &it.layer)
                .set("what", &it.what)
                .set("target", &it.target)
                .set("rule", &it.rule)
                .set("origin", &it.origin);
            row.insert(db, written).await
        }
        Fact::Approval(it) => {
            let row = Row::of(APPROVALS, seq)
                .set("seq", seq)
                .set("launch", launch)
                .set("at_ms", at_ms)
                .set("request_id", &it.request_id)
                .set("tool", &it.tool)
                .set("decision", &it.decision)
                .set("decided_by", &it.by)
                .set("reason", &it.reason);
            row.insert(db, written).await
        }
        Fact::Asked(it) => {
            let until = it.expires_at_ms.saturating_sub(it.asked_at_ms) / 1000;
            let text = format!("asked about {} {}, for {until} s", it.kind, it.tool);
            timeline(db, written, seq, event, json(&text)).await?;
            let row = Row::of(QUESTIONS, seq)
                .set("id", &it.id)
                .set("seq", seq)
                .set("launch", launch)
                .set("uid", it.uid)
                .set("request_id", &it.request_id)
                .set("kind", &it.kind)
                .set("tool", &it.tool)
                .set("input", json(&it.input))
                .set("rule", &it.rule)
                .set("asked_at_ms", it.asked_at_ms)
                .set("expires_at_ms", it.expires_at_ms);
            row.insert(db, written).await
        }
        Fact::Settled(it) => {
            let text = format!("{} by {}: {}", it.decision, it.by, it.reason);
            timeline(db, written, seq, event, json(&text)).await?;
            let set = "decided_at_ms = ?2, decision = ?3, decided_by = ?4, scope = ?5, reason = ?6
                       WHERE id = ?1 AND decided_at_ms IS NULL";
            update(db, written, QUESTIONS, set, |query| {
                query
                    .bind(&it.id)
                    .bind(at_ms)
                    .bind(&it.decision)
                    .bind(&it.by)
                    .bind(&it.scope)
                    .bind(&it.reason)
            })
            .await
        }
        Fact::RuleMade(it) => {
            let row = Row::of(STANDING_RULES, seq)
                .set("id", &it.id)
                .set("seq", seq)
                .set("uid", it.uid)
                .set("scope", &it.scope)
                .set("subject", &it.subject)
                .set("kind", &it.kind)
                .set("decision", &it.decision)
                .set("covers", json(&it.covers))
                .set("made_at_ms", it.made_at_ms)
                .set("made_by", &it.made_by)
                .set("question", &it.question);
            row.insert(db, written).await
        }
        Fact::RuleRevoked { id, by } => {
            let set = "revoked_at_ms = ?2, revoked_by = ?3 WHERE id = ?1 AND revoked_at_ms IS NULL";
            update(db, written, STANDING_RULES, set, |query| {
                query.bind(id).bind(at_ms).bind(by)
            })
            .await
        }
        Fact::RightRevoked { right, pattern, by } => {
            let row = Row::of(REVOCATIONS, seq)
                .set("seq", seq)
                .set("launch", launch)
                .set("at_ms", at_ms)
                .set("kind", right)
                .set("pattern", pattern)
                .set("taken_by", by);
            row.insert(db, written).await
        }
        Fact::RightsRestored { by } => {
            let set = "restored_at_ms = ?2, restored_by = ?3 WHERE launch = ?1 AND restored_at_ms IS NULL";
            update(db, written, REVOCATIONS, set, |query| {
                query.bind(launch).bind(at_ms).bind(by)
            })
            .await
        }
        Fact::DriverLine {
            direction,
            line,
            end,
        } => {
            let row = Row::of(DRIVER_LINES, seq)
                .set("seq", seq)
                .set("launch", launch)
                .set("at_ms", at_ms)
                .set("direction", tag(direction))
                .set("line", line)
                .set("end_offset", end.map(int));
            row.insert(db, written).await
        }
    }
}

async fn timeline(
    db: &mut SqliteConnection,
    written: &mut Written,
    seq: i64,
    event: &Event,
    detail: String,
) -> Result<(), sqlx::Error> {
    let row = Row::of(EVENTS, seq)
        .set("seq", seq)
        .set("launch", event.launch.as_str())
        .set("at_ms", event.at_ms)
        .set("kind", kind_of(&event.fact))
        .set("detail", detail);
    row.insert(db, written).await
}

async fn set_state(
    db: &mut SqliteConnection,
    written: &mut Written,
    launch: &str,
    state: &str,
) -> Result<(), sqlx::Error> {
    let set = "state = ?2 WHERE id = ?1";
    update(db, written, LAUNCHES, set, |query| {
        query.bind(launch).bind(state)
    })
    .await
}
