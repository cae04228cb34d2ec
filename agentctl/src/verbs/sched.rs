//! `sched`: what the kernel's scheduler did with agents.
//!
//! Without `-f` the figures since each launch; with it, what two answers of the daemon differ by, interval after interval.

use std::time::Duration;

use agentd_api::bus::latency_at;
use agentd_api::{AgentSched, Error, ErrorCode, SchedProxy};
use serde_json::json;

use crate::cli::sched::SchedArgs;
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, count, grouped, nanoseconds};
use crate::resolve::{Context, time};

/// What was meant.
#[derive(Debug)]
pub struct Task {
    agent: Option<String>,
    follow: Option<Follow>,
}

#[derive(Debug, Clone, Copy)]
struct Follow {
    interval: Duration,
    count: Option<u64>,
}

pub fn resolve(args: SchedArgs) -> Result<Task, Failure> {
    let follow = Follow {
        interval: time("--interval", &args.interval)?,
        count: args.count,
    };
    Ok(Task {
        agent: args.agent,
        follow: args.follow.then_some(follow),
    })
}

pub async fn run(context: &Context, task: Task) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let proxy = SchedProxy::new(&daemon.connection)
        .await
        .map_err(|e| Failure::api("can't talk with agentd", &e.into()))?;
    let mut out = Out::stdout();
    let first = look(&proxy, task.agent.as_deref()).await;
    let first = first.map_err(|e| failed(task.agent.as_deref(), &e))?;
    match task.follow {
        Some(follow) => go_on(context, &proxy, &task, follow, first, &mut out).await,
        None => {
            show(context, task.agent.is_some(), &first, &mut out)?;
            Ok(0)
        }
    }
}

async fn look(proxy: &SchedProxy<'_>, agent: Option<&str>) -> Result<Vec<AgentSched>, Error> {
    match agent {
        Some(agent) => Ok(vec![proxy.agent(agent).await?]),
        None => proxy.agents().await,
    }
}

fn failed(agent: Option<&str>, error: &Error) -> Failure {
    let whose = agent.map_or_else(String::new, |agent| format!(" of {agent:?}"));
    let failure = Failure::api(format!("can't read the scheduler's figures{whose}"), error);
    match error.code() {
        ErrorCode::NotFound => failure.try_next("agentctl ps"),
        _ => failure.try_next("agentctl doctor"),
    }
}

async fn go_on(
    context: &Context,
    proxy: &SchedProxy<'_>,
    task: &Task,
    follow: Follow,
    mut before: Vec<AgentSched>,
    out: &mut Out,
) -> Result<u8, Failure> {
    let mut shown = 0;
    while follow.count.is_none_or(|count| shown < count) {
        tokio::time::sleep(follow.interval).await;
        let now = match look(proxy, task.agent.as_deref()).await {
            Ok(now) => now,
            // The one agent has ended, and what there was to see with it.
            Err(e) if task.agent.is_some() && e.code() == ErrorCode::Unavailable => return Ok(0),
            Err(e) => return Err(failed(task.agent.as_deref(), &e)),
        };
        let since = |now: &AgentSched| {
            let then = before.iter().find(|then| then.id == now.id);
            then.map_or_else(|| now.clone(), |then| now.since(then))
        };
        let between: Vec<AgentSched> = now.iter().map(since).collect();
        if shown > 0 && !context.is_json() {
            out.line("")?;
        }
        show(context, false, &between, out)?;
        before = now;
        shown += 1;
    }
    Ok(0)
}

fn show(
    context: &Context,
    alone: bool,
    agents: &[AgentSched],
    out: &mut Out,
) -> Result<(), Failure> {
    if context.is_json() {
        let agents: Vec<_> = agents.iter().map(AgentSched::to_json).collect();
        return out.json(&json!({ "agents": agents }));
    }
    match agents {
        [agent] if alone => show_one(agent, out)?,
        agents => table(agents).print(out)?,
    }
    out.flush()
}

fn table(agents: &[AgentSched]) -> Table {
    let mut table = Table::new(&[
        "AGENT", "ON CPU", "RUN", "WAIT", "P50", "P99", "OFF", "DISK", "SWITCHES", "FORCED",
        "WAKES", "MOVES",
    ])
    .right(&[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
    for agent in agents {
        // Waits in a queue for more than a tenth of what it ran: somebody else has its processors.
        let waits = if agent.wait_ns > agent.run_ns / 10 {
            Style::Warn
        } else {
            Style::Plain
        };
        table.row(vec![
            Cell::styled(Style::Bold, &agent.name),
            processors(agent).into(),
            nanoseconds(agent.run_ns).into(),
            Cell::styled(waits, nanoseconds(agent.wait_ns)),
            quantile(agent, 0.5).into(),
            quantile(agent, 0.99).into(),
            nanoseconds(agent.off_ns()).into(),
            nanoseconds(agent.io_ns).into(),
            count(agent.voluntary.saturating_add(agent.involuntary)).into(),
            count(agent.involuntary).into(),
            count(agent.wakeups).into(),
            count(agent.migrations).into(),
        ]);
    }
    table
}

fn quantile(agent: &AgentSched, quantile: f64) -> String {
    latency_at(&agent.waits, quantile).map_or_else(|| "-".to_owned(), nanoseconds)
}

fn processors(agent: &AgentSched) -> String {
    let list: Vec<String> = agent.processors.iter().map(u32::to_string).collect();
    if list.is_empty() {
        "-".to_owned()
    } else {
        list.join(",")
    }
}

fn show_one(agent: &AgentSched, out: &mut Out) -> Result<(), Failure> {
    let mut field = |name: &str, value: String| out.line(format!("{name:<12} {value}"));
    field("agent", agent.name.clone())?;
    field("on CPU", processors(agent))?;
    field("ran", nanoseconds(agent.run_ns))?;
    field(
        "waited",
        format!(
            "{} for a processor; each 50 % ≤ {}, 99 % ≤ {}, at most {}",
            nanoseconds(agent.wait_ns),
            quantile(agent, 0.5),
            quantile(agent, 0.99),
            nanoseconds(agent.wait_max_ns),
        ),
    )?;
    let reasons = [
        ("asleep", agent.sleep_ns),
        ("in the kernel", agent.blocked_ns),
        ("for a disk", agent.io_ns),
        ("stopped", agent.stopped_ns),
        ("frozen", agent.frozen_ns),
        ("otherwise", agent.other_ns),
    ];
    let told: Vec<String> = reasons
        .into_iter()
        .filter(|(_, ns)| *ns > 0)
        .map(|(why, ns)| format!("{} {why}", nanoseconds(ns)))
        .collect();
    let off = if told.is_empty() {
        "never".to_owned()
    } else {
        told.join(", ")
    };
    field("off", off)?;
    field(
        "switches",
        format!(
            "{} by itself, {} forced, {} wake-ups, {} moves",
            grouped(agent.voluntary),
            grouped(agent.involuntary),
            grouped(agent.wakeups),
            grouped(agent.migrations),
        ),
    )?;
    field(
        "tasks",
        format!(
            "{} begun, {} ended",
            grouped(agent.begun),
            grouped(agent.ended)
        ),
    )
}
