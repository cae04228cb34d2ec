//! `tasks show` and `tasks watch`: the life of tasks, looked up or as it happens.

use std::collections::BTreeSet;

use agentd_api::tasks::{TaskEvent, TasksProxy, is_final};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::Value;

use super::{Row, broken, short, style};
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, shorten, span, visible};
use crate::resolve::Context;
use crate::verbs::inspect::moment;

/// Of a text in a table, this much is shown.
const TEXT_COLUMNS: usize = 60;

/// A document of `Get`.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(flatten)]
    row: Row,
    transitions: Vec<Transition>,
    dependencies: Vec<Row>,
    children: Vec<Row>,
    waits_because: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Transition {
    at_ms: i64,
    to: String,
    attempt: u32,
    agent: Option<String>,
    cause: String,
}

pub async fn show(context: &Context, proxy: &TasksProxy<'_>, id: &str) -> Result<u8, Failure> {
    let text = proxy.get(id).await;
    let text = text.map_err(|e| {
        Failure::api(format!("can't show task {id:?}"), &e).try_next("agentctl tasks list --all")
    })?;
    let document: Value = serde_json::from_str(&text).map_err(broken)?;
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&document)?;
        return Ok(0);
    }
    let it: Document = serde_json::from_value(document).map_err(broken)?;
    facts(&it, &mut out)?;
    block(&mut out, "Task", Some(&it.row.text))?;
    block(&mut out, "Result", it.row.result.as_deref())?;
    if it.row.state != "succeeded" {
        block(&mut out, "Error", it.row.error.as_deref())?;
    }
    related(&mut out, "After", &it.dependencies)?;
    related(&mut out, "Children", &it.children)?;
    heading(&mut out, "Timeline")?;
    let mut table = Table::new(&["  WHEN", "STATE", "TRY", "AGENT", "CAUSE"]);
    table.row(vec![
        format!("  {}", moment(it.row.submitted_at_ms)).into(),
        "submitted".into(),
        "".into(),
        "".into(),
        format!("by {}", it.row.submitted_by).into(),
    ]);
    for step in &it.transitions {
        let attempt = Some(step.attempt).filter(|n| *n > 0);
        table.row(vec![
            format!("  {}", moment(step.at_ms)).into(),
            Cell::styled(style(&step.to), &step.to),
            attempt.map(|n| n.to_string()).unwrap_or_default().into(),
            step.agent.clone().unwrap_or_default().into(),
            step.cause.as_str().into(),
        ]);
    }
    table.print(&mut out)?;
    out.flush()?;
    Ok(0)
}

fn facts(it: &Document, out: &mut Out) -> Result<(), Failure> {
    let row = &it.row;
    let state = out.colour.paint(style(&row.state), &row.state);
    let mut fact = |name: &str, value: Option<&str>| match value {
        Some(value) => out.line(format!("{name:<9} {}", visible(value))),
        None => Ok(()),
    };
    fact("id", Some(&row.id))?;
    fact("for", Some(&row.target()))?;
    fact("priority", Some(&row.terms.priority.to_string()))?;
    fact("request", row.request_id.as_deref())?;
    fact("parent", row.parent.as_deref())?;
    fact("retry of", row.retry_of.as_deref())?;
    fact("agent", row.agent.as_deref())?;
    let attempts = row.attempts();
    fact("attempt", Some(attempts.as_str()).filter(|a| !a.is_empty()))?;
    fact("deadline", row.deadline_ms.map(moment).as_deref())?;
    let took = row.age_ms(super::now_ms());
    let why = it.waits_because.as_ref().unwrap_or(&row.cause);
    out.line(format!(
        "state     {state} ({}), {}",
        span(took),
        visible(why)
    ))?;
    if let Some(at) = row.not_before_ms.filter(|_| !is_final(&row.state)) {
        out.line(format!("again at  {}", moment(at)))?;
    }
    Ok(())
}

fn heading(out: &mut Out, text: &str) -> Result<(), Failure> {
    let text = out.colour.paint(Style::Bold, text);
    out.line("")?;
    out.line(text)
}

/// A text of several lines under a heading; nothing for none.
fn block(out: &mut Out, name: &str, text: Option<&str>) -> Result<(), Failure> {
    let Some(text) = text else {
        return Ok(());
    };
    heading(out, name)?;
    for line in text.lines() {
        out.line(format!("  {}", visible(line)))?;
    }
    Ok(())
}

/// Other tasks with their results.
fn related(out: &mut Out, name: &str, rows: &[Row]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let done = rows.iter().filter(|row| row.state == "succeeded").count();
    heading(out, &format!("{name}: {done} of {} succeeded", rows.len()))?;
    let mut table = Table::new(&["  ID", "STATE", "FOR", "AGENT", "TASK", "RESULT"]);
    for row in rows {
        let said = row.result.as_ref().or(row.error.as_ref());
        let line = |text: &str| {
            let first = text.lines().next().unwrap_or_default();
            shorten(&visible(first), TEXT_COLUMNS)
        };
        table.row(vec![
            format!("  {}", short(&row.id)).into(),
            Cell::styled(style(&row.state), &row.state),
            row.target().into(),
            row.agent.clone().unwrap_or_default().into(),
            line(&row.text).into(),
            said.map(|text| line(text)).unwrap_or_default().into(),
        ]);
    }
    table.print(out)
}

/// Prints changes: of `ids` until each has ended, or of everything until interrupted.
pub async fn watch(
    context: &Context,
    proxy: &TasksProxy<'_>,
    ids: &[String],
) -> Result<u8, Failure> {
    let what = "can't watch tasks";
    // Listening before asking, so that no change falls between the two.
    let changes = proxy.receive_changed().await;
    let mut changes = changes.map_err(|e| Failure::api(what, &e.into()))?;
    let watched = proxy.watch().await;
    watched.map_err(|e| Failure::api(what, &e))?;
    let mut out = Out::stdout();
    let mut open = BTreeSet::new();
    for typed in ids {
        let text = proxy.get(typed).await;
        let text = text.map_err(|e| {
            Failure::api(format!("can't watch task {typed:?}"), &e)
                .try_next("agentctl tasks list --all")
        })?;
        let row: Row = serde_json::from_str(&text).map_err(broken)?;
        let now = TaskEvent {
            id: row.id.clone(),
            uid: 0,
            from: row.state.clone(),
            state: row.state.clone(),
            attempt: row.attempt,
            agent: row.agent.clone(),
            cause: row.cause.clone(),
            at_ms: row.changed_at_ms,
        };
        if !context.is_json() {
            print(&mut out, &now)?;
        }
        if !now.is_end() {
            open.insert(row.id);
        }
    }
    if !ids.is_empty() && open.is_empty() {
        return Ok(0);
    }
    while let Some(signal) = changes.next().await {
        let args = signal.args();
        let args = args.map_err(|e| Failure::api(what, &e.into()))?;
        let event = args.event();
        if !ids.is_empty() && !open.contains(&event.id) {
            continue;
        }
        if context.is_json() {
            out.json(&event.to_json())?;
        } else {
            print(&mut out, event)?;
        }
        if event.is_end() && open.remove(&event.id) && open.is_empty() {
            return Ok(0);
        }
    }
    Err(Failure::of_code(
        agentd_api::ErrorCode::Unreachable,
        what,
        "agentd closed the connection",
    )
    .try_next("agentctl tasks list"))
}

fn print(out: &mut Out, event: &TaskEvent) -> Result<(), Failure> {
    let state = out
        .colour
        .paint(style(&event.state), &format!("{:<9}", event.state));
    out.line(format!(
        "{}  {}  {state}  {}",
        moment(event.at_ms),
        short(&event.id),
        visible(&event.cause)
    ))?;
    out.flush()
}
