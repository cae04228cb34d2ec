//! `denials`: what was refused to agents, from the record and, with `--follow`, as it happens.
//!
//! Everything is asked of the daemon, which knows who calls.

use agentd_api::ErrorCode;
use agentd_api::denials::{ANYBODY, DenialEvent, DenialLoss, DenialsProxy};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;

use crate::cli::DenialsArgs;
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, shorten, span, stderr_line, visible};
use crate::resolve::Context;

/// What was meant.
#[derive(Debug)]
pub enum Task {
    List { agent: String, limit: u32 },
    Follow { agent: String, limit: u32 },
    Layers,
}

/// From what was typed.
pub fn resolve(args: DenialsArgs) -> Task {
    let DenialsArgs {
        agent,
        follow,
        limit,
        layers,
    } = args;
    match (layers, follow) {
        (true, _) => Task::Layers,
        (false, true) => Task::Follow { agent, limit },
        (false, false) => Task::List { agent, limit },
    }
}

pub async fn perform(context: &Context, task: Task) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let proxy = DenialsProxy::new(&daemon.connection)
        .await
        .map_err(|e| failed(&e.into()))?;
    match task {
        Task::List { agent, limit } => list(context, &proxy, &agent, limit).await,
        Task::Follow { agent, limit } => follow(context, &proxy, &agent, limit).await,
        Task::Layers => layers(context, &proxy).await,
    }
}

fn failed(error: &agentd_api::Error) -> Failure {
    Failure::api("can't show denials", error)
}

async fn list(
    context: &Context,
    proxy: &DenialsProxy<'_>,
    agent: &str,
    limit: u32,
) -> Result<u8, Failure> {
    let denials = proxy.list(agent, limit).await.map_err(|e| failed(&e))?;
    // Of an agent that only the record knows nobody counts any more.
    let losses = match proxy.losses(agent).await {
        Err(e) if e.code() == ErrorCode::NotFound => Vec::new(),
        losses => losses.map_err(|e| failed(&e))?,
    };
    let mut out = Out::stdout();
    if context.is_json() {
        let denials: Vec<Value> = denials.iter().map(DenialEvent::to_json).collect();
        let losses: Vec<Value> = losses
            .iter()
            .map(|l| json!({ "agent": l.agent, "layer": l.layer, "lost": l.lost }))
            .collect();
        out.json(&json!({ "denials": denials, "lost": losses }))?;
        return Ok(0);
    }
    if denials.is_empty() {
        out.line("nothing was refused")?;
        out.flush()?;
        losses.iter().for_each(say_lost);
        return Ok(0);
    }
    let mut table = Table::new(&["AGE", "AGENT", "LAYER", "WHAT", "TARGET", "RULE", "LINE"]);
    let now = super::agents::now_ms();
    for d in &denials {
        table.row(vec![
            span(now.saturating_sub(d.at_ms)).into(),
            Cell::styled(Style::Bold, visible(&d.agent)),
            d.layer.as_str().into(),
            visible(&d.what).into(),
            shorten(&visible(&d.target), 60).into(),
            visible(&d.rule).into(),
            visible(&d.origin).into(),
        ]);
    }
    table.print(&mut out)?;
    out.flush()?;
    losses.iter().for_each(say_lost);
    Ok(0)
}

fn say_lost(loss: &DenialLoss) {
    let whose = match loss.agent.as_str() {
        ANYBODY => "some agent or other".to_owned(),
        agent => visible(agent),
    };
    stderr_line(&format!(
        "{}: {} more refusals by {} came too fast to be told",
        whose, loss.lost, loss.layer
    ));
}

async fn follow(
    context: &Context,
    proxy: &DenialsProxy<'_>,
    agent: &str,
    limit: u32,
) -> Result<u8, Failure> {
    // First, so that nothing falls between the two; what is on record by then may be shown twice.
    let pipe = proxy.watch(agent).await.map_err(|e| failed(&e))?;
    let before = proxy.list(agent, limit).await.map_err(|e| failed(&e))?;
    let receiver = pipe::Receiver::from_owned_fd(pipe.into())
        .map_err(|e| Failure::local("can't show denials", e))?;
    let mut lines = BufReader::new(receiver).lines();
    let mut out = Out::stdout();
    for denial in &before {
        one(context, &mut out, &denial.to_json())?;
    }
    out.flush()?;
    loop {
        let line = lines.next_line().await;
        let Some(line) = line.map_err(|e| Failure::local("can't follow denials", e))? else {
            return Err(Failure::of_code(
                ErrorCode::Unreachable,
                "can't follow denials",
                "agentd has ended, or closed the stream",
            )
            .try_next("agentctl version"));
        };
        let denial: Value = serde_json::from_str(&line)
            .map_err(|e| Failure::of_code(ErrorCode::Internal, "can't follow denials", e))?;
        one(context, &mut out, &denial)?;
        out.flush()?;
    }
}

/// One line of the stream.
fn one(context: &Context, out: &mut Out, denial: &Value) -> Result<(), Failure> {
    if context.is_json() {
        return out.json(denial);
    }
    if let Some(left_out) = denial["left_out"].as_u64() {
        stderr_line(&format!(
            "{left_out} refusals were left out: this reads too slowly"
        ));
        return Ok(());
    }
    let text = |key: &str| visible(denial[key].as_str().unwrap_or_default());
    let line = match denial["origin"].as_str() {
        Some(origin) => format!(" ({})", visible(origin)),
        None => String::new(),
    };
    out.line(format!(
        "{}: {} refused {}: {}{line}",
        text("agent"),
        text("layer"),
        text("target"),
        text("rule"),
    ))
}

async fn layers(context: &Context, proxy: &DenialsProxy<'_>) -> Result<u8, Failure> {
    let layers = proxy.layers().await.map_err(|e| failed(&e))?;
    let mut out = Out::stdout();
    if context.is_json() {
        let layers: Vec<Value> = layers
            .iter()
            .map(|l| {
                let why_not = (!l.why_not.is_empty()).then_some(&l.why_not);
                json!({ "layer": l.layer, "observable": why_not.is_none(), "why_not": why_not })
            })
            .collect();
        out.json(&json!({ "layers": layers }))?;
        return Ok(0);
    }
    let mut table = Table::new(&["LAYER", "REFUSALS"]);
    for layer in &layers {
        let told = match layer.why_not.as_str() {
            "" => "observable",
            why_not => why_not,
        };
        table.row(vec![layer.layer.as_str().into(), told.into()]);
    }
    table.print(&mut out)?;
    out.flush()?;
    Ok(0)
}
