//! `records`: past launches, newest first.

use serde::Deserialize;
use serde_json::{Value, json};

use super::inspect::{Exit, Tokens, exit_text, moment};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, command_line, grouped, shorten, span};
use crate::resolve::Context;

/// What this verb shows of a launch; the document holds more.
#[derive(Debug, Deserialize)]
struct Row {
    id: agentd_api::AgentId,
    name: String,
    policy: String,
    argv: Vec<String>,
    state: String,
    started_at_ms: i64,
    ended_at_ms: Option<i64>,
    exit: Option<Exit>,
    tokens: Tokens,
}

pub async fn records(context: &Context, limit: Option<usize>) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let text = daemon.manager().await?.records().await;
    let text = text.map_err(|e| Failure::api("can't read the records", &e))?;
    let broken = |e: serde_json::Error| Failure::local("can't read the records", e);
    let mut documents: Vec<Value> = serde_json::from_str(&text).map_err(broken)?;
    documents.truncate(limit.unwrap_or(usize::MAX));
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({ "records": documents }))?;
        return Ok(0);
    }
    let mut table = Table::new(&[
        "STARTED", "NAME", "ID", "STATE", "POLICY", "TOOK", "TOKENS", "COMMAND",
    ]);
    for document in documents {
        let row: Row = serde_json::from_value(document).map_err(broken)?;
        let took = row
            .ended_at_ms
            .map(|end| span((end - row.started_at_ms).max(0) as u64));
        let state = match &row.exit {
            Some(exit) => exit_text(exit),
            None => row.state,
        };
        table.row(vec![
            moment(row.started_at_ms).into(),
            Cell::styled(Style::Bold, row.name),
            format!("{:08x}", row.id.short()).into(),
            state.into(),
            row.policy.into(),
            took.unwrap_or_default().into(),
            grouped(row.tokens.input.saturating_add(row.tokens.output)).into(),
            shorten(&command_line(&row.argv), 60).into(),
        ]);
    }
    table.print(&mut out)?;
    out.flush()?;
    Ok(0)
}
