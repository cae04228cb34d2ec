//! `tasks`: handing work in, and following what becomes of it.
//!
//! Everything is asked of the daemon, which knows who calls; nothing is decided here.

mod show;
mod submit;

use agentd_api::tasks::{TaskListOptions, TasksProxy};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::tasks::LowTasksVerb;
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, print_failure, shorten, span, visible};
use crate::resolve::Context;

pub use submit::SubmitRequest;

/// What was meant.
#[derive(Debug)]
pub enum Task {
    Submit(Box<SubmitRequest>),
    List {
        options: TaskListOptions,
        ids_only: bool,
    },
    Show {
        id: String,
    },
    Watch {
        ids: Vec<String>,
    },
    Cancel {
        ids: Vec<String>,
    },
    Retry {
        ids: Vec<String>,
    },
}

/// From what was typed; a text is read here, as the caller.
pub fn resolve(verb: LowTasksVerb) -> Result<Task, Failure> {
    Ok(match verb {
        LowTasksVerb::Submit(args) => Task::Submit(Box::new(submit::resolve(args)?)),
        LowTasksVerb::List(a) => Task::List {
            options: TaskListOptions {
                all: a.all.then_some(true),
                limit: a.limit,
            },
            ids_only: a.quiet,
        },
        LowTasksVerb::Show(a) => Task::Show { id: a.task },
        LowTasksVerb::Watch(a) => Task::Watch { ids: a.tasks },
        LowTasksVerb::Cancel(a) => Task::Cancel { ids: a.tasks },
        LowTasksVerb::Retry(a) => Task::Retry { ids: a.tasks },
    })
}

pub async fn perform(context: &Context, task: Task) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let proxy = TasksProxy::new(&daemon.connection)
        .await
        .map_err(|e| Failure::api("can't ask agentd for tasks", &e.into()))?;
    match task {
        Task::Submit(request) => submit::submit(context, &proxy, *request).await,
        Task::List { options, ids_only } => list(context, &proxy, &options, ids_only).await,
        Task::Show { id } => show::show(context, &proxy, &id).await,
        Task::Watch { ids } => show::watch(context, &proxy, &ids).await,
        Task::Cancel { ids } => cancel(context, &proxy, &ids).await,
        Task::Retry { ids } => retry(context, &proxy, &ids).await,
    }
}

/// What these verbs show of a task; the document holds more.
#[derive(Debug, Deserialize)]
struct Row {
    id: String,
    submitted_by: String,
    text: String,
    terms: Terms,
    state: String,
    cause: String,
    attempt: u32,
    agent: Option<String>,
    submitted_at_ms: i64,
    changed_at_ms: i64,
    deadline_ms: Option<i64>,
    not_before_ms: Option<i64>,
    parent: Option<String>,
    retry_of: Option<String>,
    request_id: Option<String>,
    result: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Terms {
    /// One key: agent, unit, role or capability.
    target: serde_json::Map<String, Value>,
    priority: u8,
    retry: Retry,
}

#[derive(Debug, Deserialize)]
struct Retry {
    retries: u32,
}

impl Row {
    /// `agent coder`.
    fn target(&self) -> String {
        let parts = self.terms.target.iter();
        let words: Vec<String> = parts
            .map(|(kind, name)| format!("{kind} {}", name.as_str().unwrap_or_default()))
            .collect();
        words.join(" ")
    }

    /// `2/3`, or nothing before the first.
    fn attempts(&self) -> String {
        if self.attempt == 0 {
            return String::new();
        }
        format!("{}/{}", self.attempt, self.terms.retry.retries + 1)
    }

    /// How long it has been, or was, open.
    fn age_ms(&self, now_ms: i64) -> u64 {
        let end = if agentd_api::tasks::is_final(&self.state) {
            self.changed_at_ms
        } else {
            now_ms
        };
        u64::try_from(end - self.submitted_at_ms).unwrap_or(0)
    }
}

/// The end of an id, which differs between tasks of the same moment.
fn short(id: &str) -> &str {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id)
}

fn style(state: &str) -> Style {
    match state {
        "succeeded" | "running" => Style::Good,
        "failed" | "timed-out" => Style::Bad,
        "cancelled" => Style::Dim,
        "assigned" => Style::Warn,
        _ => Style::Plain,
    }
}

fn now_ms() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_millis() as i64)
}

fn broken(error: serde_json::Error) -> Failure {
    Failure::local("can't read agentd's answer", error)
}

async fn list(
    context: &Context,
    proxy: &TasksProxy<'_>,
    options: &TaskListOptions,
    ids_only: bool,
) -> Result<u8, Failure> {
    let text = proxy.list(options).await;
    let text = text.map_err(|e| Failure::api("can't list tasks", &e))?;
    let documents: Vec<Value> = serde_json::from_str(&text).map_err(broken)?;
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({ "tasks": documents }))?;
        return Ok(0);
    }
    let mut table = Table::new(&["ID", "STATE", "PRIO", "FOR", "AGENT", "TRY", "AGE", "TASK"]);
    let now = now_ms();
    for document in documents {
        let row: Row = serde_json::from_value(document).map_err(broken)?;
        if ids_only {
            out.line(&row.id)?;
            continue;
        }
        table.row(vec![
            Cell::styled(Style::Bold, short(&row.id)),
            Cell::styled(style(&row.state), &row.state),
            row.terms.priority.to_string().into(),
            row.target().into(),
            row.agent.clone().unwrap_or_default().into(),
            row.attempts().into(),
            span(row.age_ms(now)).into(),
            shorten(&visible(row.text.lines().next().unwrap_or_default()), 60).into(),
        ]);
    }
    if !ids_only {
        table.print(&mut out)?;
    }
    out.flush()?;
    Ok(0)
}

async fn cancel(context: &Context, proxy: &TasksProxy<'_>, ids: &[String]) -> Result<u8, Failure> {
    let mut done = Vec::new();
    let mut last = None;
    let mut out = Out::stdout();
    for id in ids {
        match proxy.cancel(id).await {
            Ok(()) if context.is_json() => done.push(json!(id)),
            Ok(()) => out.line(id)?,
            Err(e) => failed(context, &mut last, format!("can't cancel {id:?}"), &e),
        }
    }
    finish(context, out, "cancelled", done, last)
}

async fn retry(context: &Context, proxy: &TasksProxy<'_>, ids: &[String]) -> Result<u8, Failure> {
    let mut done = Vec::new();
    let mut last = None;
    let mut out = Out::stdout();
    for id in ids {
        match proxy.retry(id).await {
            Ok(reply) if context.is_json() => done.push(reply.to_json()),
            Ok(reply) => out.line(reply.id)?,
            Err(e) => failed(context, &mut last, format!("can't try {id:?} again"), &e),
        }
    }
    finish(context, out, "retried", done, last)
}

/// Keeps the last failure and prints those before it.
fn failed(context: &Context, last: &mut Option<Failure>, what: String, error: &agentd_api::Error) {
    let failure = Failure::api(what, error).try_next("agentctl tasks list --all");
    if let Some(earlier) = last.replace(failure) {
        print_failure(&earlier, context.is_json());
    }
}

fn finish(
    context: &Context,
    mut out: Out,
    word: &str,
    done: Vec<Value>,
    last: Option<Failure>,
) -> Result<u8, Failure> {
    if context.is_json() && (last.is_none() || !done.is_empty()) {
        out.json(&json!({ (word): done }))?;
    }
    out.flush()?;
    last.map_or(Ok(0), Err)
}
