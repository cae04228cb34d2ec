//! `bus publish`, `send`, `request`, `revoke` and `restore`: one call, one answer.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use agentd_api::bus::{BusMessage, BusProxy, BusRequest, MAX_TIMEOUT_MS, Revocation, RightsChange};
use serde_json::json;

use super::failure;
use crate::failure::Failure;
use crate::output::{Out, stderr_line};
use crate::resolve::Context;

/// One byte more than any message may have tells too much from just enough; the daemon says the limit.
const READ_LIMIT: u64 = (1 << 20) + 1;

/// What it means that nothing is typed and stdin is a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoData {
    IsEmpty,
    IsAnError,
}

/// What was typed, or all of stdin.
pub fn contents(typed: Option<String>, none: NoData) -> Result<Vec<u8>, Failure> {
    if let Some(typed) = typed {
        return Ok(typed.into_bytes());
    }
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        return match none {
            NoData::IsEmpty => Ok(Vec::new()),
            NoData::IsAnError => Err(Failure::usage(
                "can't send nothing",
                "there is no DATA, and stdin is a terminal",
            )
            .try_next("type the data as the last argument, or pipe it in")),
        };
    }
    let mut data = Vec::new();
    stdin
        .take(READ_LIMIT)
        .read_to_end(&mut data)
        .map_err(|e| Failure::local("can't read the data from stdin", e))?;
    Ok(data)
}

pub async fn publish(
    context: &Context,
    proxy: &BusProxy<'_>,
    topic: &str,
    kind: String,
    data: Vec<u8>,
    uid: Option<u32>,
) -> Result<u8, Failure> {
    let message = BusMessage {
        kind: Some(kind),
        data,
        uid,
    };
    let queues = proxy.publish(topic, &message).await;
    let queues = queues.map_err(|e| failure(format!("can't publish to {topic:?}"), &e))?;
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({ "topic": topic, "queues": queues }))?;
        return Ok(0);
    }
    // Data on stdout, and nothing of it is for programs: who wants the number asks for --json.
    stderr_line(&match queues {
        0 => format!("nobody follows {topic}"),
        1 => "put into 1 queue".to_owned(),
        n => format!("put into {n} queues"),
    });
    Ok(0)
}

pub async fn send(
    context: &Context,
    proxy: &BusProxy<'_>,
    agent: &str,
    kind: String,
    data: Vec<u8>,
) -> Result<u8, Failure> {
    let message = BusMessage {
        kind: Some(kind),
        data,
        uid: None,
    };
    let sent = proxy.send(agent, &message).await;
    sent.map_err(|e| failure(format!("can't send to {agent:?}"), &e))?;
    if context.is_json() {
        Out::stdout().json(&json!({ "delivered_to_inbox_of": agent }))?;
    }
    Ok(0)
}

pub async fn request(
    context: &Context,
    proxy: &BusProxy<'_>,
    agent: &str,
    method: String,
    data: Vec<u8>,
    timeout: Duration,
) -> Result<u8, Failure> {
    let timeout_ms = u32::try_from(timeout.as_millis())
        .ok()
        .filter(|ms| *ms <= MAX_TIMEOUT_MS);
    let Some(timeout_ms) = timeout_ms else {
        return Err(Failure::usage(
            "can't wait that long",
            "a request has a day at most: --timeout 24h",
        ));
    };
    let request = BusRequest {
        method,
        data,
        timeout_ms: Some(timeout_ms),
    };
    let reply = proxy.request(agent, &request).await;
    let reply = reply.map_err(|e| failure(format!("can't get an answer from {agent:?}"), &e))?;
    let mut out = Out::stdout();
    if context.is_json() {
        let mut answer = json!({ "from": reply.from, "from_id": reply.from_id });
        super::stream::put_data(&mut answer, &reply.data);
        out.json(&answer)?;
        return Ok(0);
    }
    out.bytes(&reply.data)?;
    if out.is_terminal() && reply.data.last().is_some_and(|last| *last != b'\n') {
        out.bytes(b"\n")?;
    }
    out.flush()?;
    Ok(0)
}

pub async fn revoke(
    context: &Context,
    proxy: &BusProxy<'_>,
    agent: &str,
    rights: &[Revocation],
) -> Result<u8, Failure> {
    let change = proxy.revoke(agent, rights).await;
    let change = change.map_err(|e| failure(format!("can't revoke rights of {agent:?}"), &e))?;
    say_change(context, &change)
}

pub async fn restore(context: &Context, proxy: &BusProxy<'_>, agent: &str) -> Result<u8, Failure> {
    let change = proxy.restore(agent).await;
    let change = change.map_err(|e| failure(format!("can't restore rights of {agent:?}"), &e))?;
    say_change(context, &change)
}

fn say_change(context: &Context, change: &RightsChange) -> Result<u8, Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&change.to_json())?;
        return Ok(0);
    }
    let name = &change.name;
    if change.revoked.is_empty() {
        out.line(format!("{name} may do all that its policy allows"))?;
    } else {
        let taken: Vec<String> = change
            .revoked
            .iter()
            .map(
                |(right, pattern)| match (right.as_str(), pattern.as_str()) {
                    (right @ ("publish" | "subscribe"), "#") => format!("{right} to anything"),
                    (right, "#") => format!("{right} to anyone"),
                    (right, pattern) => format!("{right} to {pattern}"),
                },
            )
            .collect();
        out.line(format!("{name} may not {}", taken.join(", ")))?;
        let closed = [
            (change.lanes, "lanes"),
            (change.logs, "logs and their readers"),
            (change.subscriptions, "subscriptions"),
            (change.requests, "requests"),
        ];
        let closed: Vec<String> = closed
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{what} {n}"))
            .collect();
        if !closed.is_empty() {
            out.line(format!("closed: {}", closed.join(", ")))?;
        }
        stderr_line(&format!("give it back with: agentctl bus restore {name}"));
    }
    out.flush()?;
    Ok(0)
}
