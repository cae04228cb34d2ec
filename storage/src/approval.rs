//! Questions to people on record: what was asked, what was decided, and what is to be remembered.
//!
//! [`Question`] goes in before anybody is shown it, [`Settlement`] before the agent is answered, so that a daemon that
//! dies in between finds out which. [`StandingRule`] outlives launches. Plain data and three look-ups; the decisions
//! are made elsewhere.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use crate::{error::StoreError, event::LaunchId, record::Viewer, store::Store};

/// A question as it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Unique for ever (a UUID of version 7).
    pub id: String,
    /// Whose agent asks.
    pub uid: u32,
    /// Id of the question in the agent's own protocol.
    pub request_id: String,
    /// tool, connect, sign.
    pub kind: String,
    /// The tool; for a connection the host and port.
    pub tool: String,
    /// Its arguments.
    pub input: Value,
    /// The line of the policy that asks.
    pub rule: String,
    /// When it was asked, ms since the epoch.
    pub asked_at_ms: i64,
    /// When silence becomes a refusal, ms since the epoch.
    pub expires_at_ms: i64,
}

/// How a question ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// Which question.
    pub id: String,
    /// allow, deny, withdrawn.
    pub decision: String,
    /// Who: "uid 1000", "time-out", "rule ID", "agent".
    pub by: String,
    /// What was remembered of it: launch, agent, user; nothing when it was for this once.
    pub scope: Option<String>,
    /// In words.
    pub reason: String,
}

/// A decision that holds for later questions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandingRule {
    /// Unique for ever (a UUID of version 7).
    pub id: String,
    /// Whose agents it concerns.
    pub uid: u32,
    /// launch, agent, unit, user.
    pub scope: String,
    /// Of the scope: the launch's id, the agent's or unit's name; empty for user.
    pub subject: String,
    /// tool, connect, sign.
    pub kind: String,
    /// allow, deny.
    pub decision: String,
    /// What it covers, in the terms of whoever consults it.
    pub covers: Value,
    /// When, ms since the epoch.
    pub made_at_ms: i64,
    /// By whom.
    pub made_by: String,
    /// The question it came from.
    pub question: String,
}

/// A question with what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Whose agent.
    pub launch: LaunchId,
    /// The agent's name.
    pub agent: String,
    /// The question.
    #[serde(flatten)]
    pub question: Question,
    /// When it ended; `None` while it is open.
    pub decided_at_ms: Option<i64>,
    /// How.
    pub settlement: Option<Settlement>,
}

const SELECT: &str =
    "SELECT q.*, l.name AS agent FROM questions q JOIN launches l ON l.id = q.launch ";

impl Store {
    /// Questions that nobody has answered, and answered ones of which the agent has not heard: the daemon died in
    /// between. Oldest first.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn unfinished_questions(&self) -> Result<Vec<Asked>, StoreError> {
        let db = &mut self.snapshot().await?;
        let sql = format!(
            "{SELECT} WHERE q.decided_at_ms IS NULL
                OR (q.decision <> 'withdrawn' AND NOT EXISTS (
                    SELECT 1 FROM approvals a
                    WHERE a.launch = q.launch AND a.request_id = q.request_id AND a.seq > q.seq))
             ORDER BY q.seq"
        );
        rows(db, &sql, None, "").await.map_err(|e| self.public(e))
    }

    /// One question by its id, or by at least four digits from an end of it.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn questions_meant_by(
        &self,
        viewer: Viewer,
        typed: &str,
    ) -> Result<Vec<Asked>, StoreError> {
        const SHORTEST: usize = 4;
        let hex: String = typed
            .chars()
            .filter(|c| *c != '-')
            .collect::<String>()
            .to_ascii_lowercase();
        if hex.len() < SHORTEST || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Vec::new());
        }
        let db = &mut self.snapshot().await?;
        let sql = format!(
            "{SELECT} WHERE (?1 IS NULL OR q.uid = ?1)
                AND (substr(replace(q.id, '-', ''), 1, length(?2)) = ?2
                  OR substr(replace(q.id, '-', ''), -length(?2)) = ?2)
             ORDER BY q.seq DESC LIMIT 8"
        );
        rows(db, &sql, viewer.uid(), &hex)
            .await
            .map_err(|e| self.public(e))
    }

    /// Every rule in force, oldest first.
    ///
    /// # Errors
    /// The trouble of the database.
    pub async fn standing_rules(&self) -> Result<Vec<StandingRule>, StoreError> {
        let db = &mut self.snapshot().await?;
        let found =
            sqlx::query("SELECT * FROM standing_rules WHERE revoked_at_ms IS NULL ORDER BY seq")
                .fetch_all(&mut **db)
                .await
                .and_then(|rows| rows.iter().map(rule).collect::<Result<Vec<_>, _>>());
        found.map_err(|e| self.public(e))
    }
}

async fn rows(
    db: &mut SqliteConnection,
    sql: &str,
    uid: Option<i64>,
    text: &str,
) -> Result<Vec<Asked>, sqlx::Error> {
    // The statement is one of the three above; what comes from outside is bound.
    let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(uid).bind(text);
    query.fetch_all(db).await?.iter().map(asked).collect()
}

fn asked(row: &SqliteRow) -> Result<Asked, sqlx::Error> {
    let id: String = row.try_get("id")?;
    let decided_at_ms: Option<i64> = row.try_get("decided_at_ms")?;
    let settlement = match decided_at_ms {
        None => None,
        Some(_) => Some(Settlement {
            id: id.clone(),
            decision: row.try_get("decision")?,
            by: row.try_get("decided_by")?,
            scope: row.try_get("scope")?,
            reason: row.try_get("reason")?,
        }),
    };
    Ok(Asked {
        launch: LaunchId::new(row.try_get::<String, _>("launch")?),
        agent: row.try_get("agent")?,
        question: Question {
            id,
            uid: row.try_get("uid")?,
            request_id: row.try_get("request_id")?,
            kind: row.try_get("kind")?,
            tool: row.try_get("tool")?,
            input: json(row, "input")?,
            rule: row.try_get("rule")?,
            asked_at_ms: row.try_get("asked_at_ms")?,
            expires_at_ms: row.try_get("expires_at_ms")?,
        },
        decided_at_ms,
        settlement,
    })
}

fn rule(row: &SqliteRow) -> Result<StandingRule, sqlx::Error> {
    Ok(StandingRule {
        id: row.try_get("id")?,
        uid: row.try_get("uid")?,
        scope: row.try_get("scope")?,
        subject: row.try_get("subject")?,
        kind: row.try_get("kind")?,
        decision: row.try_get("decision")?,
        covers: json(row, "covers")?,
        made_at_ms: row.try_get("made_at_ms")?,
        made_by: row.try_get("made_by")?,
        question: row.try_get("question")?,
    })
}

fn json(row: &SqliteRow, column: &str) -> Result<Value, sqlx::Error> {
    let text: String = row.try_get(column)?;
    serde_json::from_str(&text).map_err(|e| sqlx::Error::Decode(Box::new(e)))
}
