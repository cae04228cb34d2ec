//! `bus topics`, `bus queue …` and `bus replay`: what is kept, by name, and what becomes of dead letters.
//!
//! One call each. A time is typed as an age (`10m`) or as Unix nanoseconds; ids as they are listed.

use std::time::{Duration, SystemTime};

use agentd_api::bus::BusProxy;
use agentd_api::queues::{BusQueue, BusQueued, BusTopic, PeekOptions, ReplayOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::failure;
use super::list::bad;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, count, shorten, size, stderr_line, visible};
use crate::resolve::Context;

/// What becomes of dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Requeue,
    Drop,
}

/// What is asked about queues.
#[derive(Debug)]
pub enum QueueTask {
    List,
    Show {
        name: String,
    },
    Peek {
        name: String,
        options: PeekOptions,
    },
    Dead {
        name: String,
        ids: Vec<u64>,
        fate: Fate,
        uid: Option<u32>,
    },
    Drop {
        name: String,
        uid: Option<u32>,
    },
}

pub async fn topics(context: &Context, proxy: &BusProxy<'_>) -> Result<u8, Failure> {
    let topics = proxy.topics().await;
    let topics = topics.map_err(|e| failure("can't list the topics of the bus", &e))?;
    let mut out = Out::stdout();
    if context.is_json() {
        let topics: Vec<Value> = topics.iter().map(BusTopic::to_json).collect();
        out.json(&json!({ "topics": topics }))?;
    } else if topics.is_empty() {
        out.line("nothing was published yet")?;
    } else {
        let mut table = Table::new(&[
            "TOPIC",
            "PUBLISHED",
            "BYTES",
            "DELIVERED",
            "DROPPED",
            "RETAINED",
            "SUBSCRIBERS",
            "KEPT",
        ])
        .right(&[1, 2, 3, 4, 5, 6]);
        for topic in &topics {
            let name = match topic.topic.as_str() {
                "" => "(others)".to_owned(),
                name => visible(name),
            };
            let kept = match (topic.durable, topic.retain) {
                (true, 0) => "durable".to_owned(),
                (true, n) => format!("durable, last {n}"),
                (false, 0) => "-".to_owned(),
                (false, n) => format!("last {n}"),
            };
            table.row(vec![
                Cell::styled(Style::Bold, name),
                count(topic.published).into(),
                size(topic.bytes).into(),
                count(topic.delivered).into(),
                bad(topic.dropped),
                topic.retained.to_string().into(),
                topic.subscribers.to_string().into(),
                kept.into(),
            ]);
        }
        table.print(&mut out)?;
    }
    out.flush()?;
    Ok(0)
}

pub async fn queue(
    context: &Context,
    proxy: &BusProxy<'_>,
    task: QueueTask,
    own_uid: u32,
) -> Result<u8, Failure> {
    match task {
        QueueTask::List => list(context, proxy).await,
        QueueTask::Show { name } => show(context, proxy, &name).await,
        QueueTask::Peek { name, options } => peek(context, proxy, &name, &options).await,
        QueueTask::Dead {
            name,
            ids,
            fate,
            uid,
        } => dead(context, proxy, &name, &ids, fate, uid.unwrap_or(own_uid)).await,
        QueueTask::Drop { name, uid } => {
            let dropped = proxy.drop_queue(&name, uid.unwrap_or(own_uid)).await;
            dropped.map_err(|e| queue_failure(format!("can't drop queue {name:?}"), &e))?;
            if context.is_json() {
                Out::stdout().json(&json!({ "dropped": name }))?;
            }
            Ok(0)
        }
    }
}

fn queue_failure(what: String, error: &agentd_api::Error) -> Failure {
    Failure::api(what, error).try_next("agentctl bus queue list")
}

async fn all(proxy: &BusProxy<'_>) -> Result<Vec<BusQueue>, Failure> {
    let queues = proxy.queues().await;
    queues.map_err(|e| failure("can't list the queues of the bus", &e))
}

async fn list(context: &Context, proxy: &BusProxy<'_>) -> Result<u8, Failure> {
    let queues = all(proxy).await?;
    let mut out = Out::stdout();
    if context.is_json() {
        let queues: Vec<Value> = queues.iter().map(BusQueue::to_json).collect();
        out.json(&json!({ "queues": queues }))?;
    } else if queues.is_empty() {
        out.line("no work queues")?;
    } else {
        let mut table = Table::new(&[
            "QUEUE",
            "WAITING",
            "IN HAND",
            "DELAYED",
            "DEAD",
            "BYTES",
            "CONSUMERS",
            "PRODUCED",
            "ACKED",
            "REDELIVERED",
            "KEPT",
        ])
        .right(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        for queue in &queues {
            table.row(vec![
                Cell::styled(Style::Bold, visible(&queue.name)),
                count(queue.waiting.into()).into(),
                count(queue.in_hand.into()).into(),
                count(queue.delayed.into()).into(),
                bad(queue.dead.into()),
                size(queue.bytes).into(),
                queue.consumers.len().to_string().into(),
                count(queue.produced).into(),
                count(queue.acked).into(),
                count(queue.redelivered).into(),
                if queue.durable { "durable" } else { "-" }.into(),
            ]);
        }
        table.print(&mut out)?;
    }
    out.flush()?;
    Ok(0)
}

async fn show(context: &Context, proxy: &BusProxy<'_>, name: &str) -> Result<u8, Failure> {
    let queues = all(proxy).await?;
    let Some(queue) = queues.iter().find(|queue| queue.name == name) else {
        let error = agentd_api::Error::NotFound(format!("there is no queue {name:?}"));
        return Err(queue_failure(format!("can't show queue {name:?}"), &error));
    };
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&queue.to_json())?;
        return Ok(0);
    }
    let consumers = match queue.consumers.as_slice() {
        [] => "nobody".to_owned(),
        names => visible(&names.join(", ")),
    };
    for line in [
        format!("{} of uid {}", visible(&queue.name), queue.uid),
        format!(
            "  bounds       {} messages, {}; full: {}{}",
            queue.max_messages,
            size(queue.max_bytes),
            queue.full,
            if queue.durable { "; durable" } else { "" }
        ),
        format!(
            "  delivery     {} ms until another gets it, {} times at most",
            queue.visibility_ms, queue.max_deliver
        ),
        format!(
            "  now          {} waiting, {} in hand, {} delayed, {} dead; {}",
            queue.waiting,
            queue.in_hand,
            queue.delayed,
            queue.dead,
            size(queue.bytes)
        ),
        format!("  consumers    {consumers}"),
        format!(
            "  so far       {} produced, {} delivered ({} again), {} acknowledged, {} given back",
            queue.produced, queue.delivered, queue.redelivered, queue.acked, queue.nacked
        ),
        format!(
            "  trouble      {} timed out, {} came back from consumers that went, {} died, {} batches refused; {} producers wait",
            queue.expired, queue.returned, queue.died, queue.refused, queue.paused
        ),
    ] {
        out.line(line)?;
    }
    out.flush()?;
    Ok(0)
}

async fn peek(
    context: &Context,
    proxy: &BusProxy<'_>,
    name: &str,
    options: &PeekOptions,
) -> Result<u8, Failure> {
    let messages = proxy.peek_queue(name, options).await;
    let messages =
        messages.map_err(|e| queue_failure(format!("can't look into queue {name:?}"), &e))?;
    print(context, &messages, "nothing is there")?;
    Ok(0)
}

fn print(context: &Context, messages: &[BusQueued], nothing: &str) -> Result<(), Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        for message in messages {
            out.json(&message.to_json(|data| STANDARD.encode(data)))?;
        }
    } else if messages.is_empty() {
        stderr_line(nothing);
    } else {
        let mut table = Table::new(&["ID", "PRIORITY", "DELIVERED", "DEAD", "BYTES", "CONTENTS"])
            .right(&[0, 1, 2, 4]);
        for message in messages {
            let contents = String::from_utf8_lossy(&message.data);
            table.row(vec![
                message.id.to_string().into(),
                message.priority.to_string().into(),
                message.deliveries.to_string().into(),
                message
                    .dead
                    .clone()
                    .unwrap_or_else(|| "-".to_owned())
                    .into(),
                size(message.data.len() as u64).into(),
                shorten(&visible(&contents), 60).into(),
            ]);
        }
        table.print(&mut out)?;
    }
    out.flush()?;
    Ok(())
}

async fn dead(
    context: &Context,
    proxy: &BusProxy<'_>,
    name: &str,
    ids: &[u64],
    fate: Fate,
    uid: u32,
) -> Result<u8, Failure> {
    let (done, word) = match fate {
        Fate::Requeue => (proxy.requeue_dead(name, ids, uid).await, "requeued"),
        Fate::Drop => (proxy.drop_dead(name, ids, uid).await, "dropped"),
    };
    let what = format!("the dead letters of queue {name:?} can't be {word}");
    let done = done.map_err(|e| queue_failure(what, &e))?;
    if context.is_json() {
        Out::stdout().json(&json!({ "queue": name, word: done }))?;
    } else {
        stderr_line(&format!("{done} {word}"));
    }
    Ok(0)
}

/// `10m`: what was stored in the last ten minutes.
pub fn since(age: Duration) -> Result<u64, Failure> {
    let begin = SystemTime::now()
        .checked_sub(age)
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .and_then(|at| u64::try_from(at.as_nanos()).ok());
    begin.ok_or_else(|| Failure::usage("can't go back that far", "the time is before 1970"))
}

pub async fn replay(
    context: &Context,
    proxy: &BusProxy<'_>,
    name: &str,
    options: &ReplayOptions,
) -> Result<u8, Failure> {
    let read = proxy.replay(name, options).await;
    let (next, messages) = read.map_err(|e| failure(format!("can't replay {name:?}"), &e))?;
    print(context, &messages, "nothing is stored there")?;
    let asked = options.max.unwrap_or(100) as usize;
    if messages.len() >= asked && !context.is_json() {
        stderr_line(&format!("more: --offset {next}"));
    }
    Ok(0)
}
