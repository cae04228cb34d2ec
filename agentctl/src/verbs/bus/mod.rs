//! `bus`: who is on it, what flows, and messages from the user.
//!
//! Everything is asked of the daemon (`org.agentd1.Bus`), which knows who calls; nothing is decided here. Lists are in
//! [`list`], rates in [`top`], streams in [`stream`]. Runs as the caller, on one thread; fails with the daemon's own
//! words and the command to try next.

mod list;
mod queues;
mod stream;
mod talk;
mod top;

use std::time::Duration;

use agentd_api::bus::{BusChannel, BusProxy, IpcRight, Revocation, TapOptions};
use agentd_api::queues::{PeekOptions, ReplayOptions};
use agentd_api::{Error, ErrorCode};

use crate::cli::bus::{LetterArgs, LowBusVerb, LowQueueVerb, PeekArgs, SortKey};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::resolve::{Context, time};

use queues::{Fate, QueueTask};

/// What was meant.
#[derive(Debug)]
pub enum Task {
    Peers,
    Channels {
        agent: Option<String>,
    },
    Top(TopRequest),
    Tap {
        options: TapOptions,
        count: Option<u64>,
    },
    Trace {
        number: Option<u64>,
        /// Of a queue, and then a message; or of an agent, and then a request.
        options: TapOptions,
        timeout: Duration,
    },
    Topics,
    Queue(QueueTask),
    Replay {
        name: String,
        options: ReplayOptions,
    },
    Publish {
        topic: String,
        kind: String,
        data: Vec<u8>,
        uid: Option<u32>,
    },
    Subscribe {
        pattern: String,
        count: Option<u64>,
        timeout: Option<Duration>,
        uid: Option<u32>,
    },
    Request {
        agent: String,
        method: String,
        data: Vec<u8>,
        timeout: Duration,
    },
    Send {
        agent: String,
        kind: String,
        data: Vec<u8>,
    },
    Revoke {
        agent: String,
        rights: Vec<Revocation>,
    },
    Restore {
        agent: String,
    },
}

/// One `top` as it was meant.
#[derive(Debug)]
pub struct TopRequest {
    pub interval: Duration,
    /// Intervals to show; without it, until somebody ends it.
    pub count: Option<u64>,
    pub sort: SortKey,
    pub agent: Option<String>,
    pub idle: Idle,
}

/// What becomes of lines on which nothing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    Hidden,
    Shown,
}

/// From what was typed; contents are read here, as the caller.
pub fn resolve(verb: LowBusVerb) -> Result<Task, Failure> {
    Ok(match verb {
        LowBusVerb::Peers => Task::Peers,
        LowBusVerb::Channels(a) => Task::Channels { agent: a.agent },
        LowBusVerb::Top(a) => Task::Top(TopRequest {
            interval: time("--interval", &a.interval)?,
            count: if a.once { Some(1) } else { a.count },
            sort: a.sort,
            agent: a.agent,
            idle: if a.all { Idle::Shown } else { Idle::Hidden },
        }),
        LowBusVerb::Tap(a) => Task::Tap {
            options: TapOptions {
                agent: a.agent,
                topic: a.topic,
                queue: a.queue,
            },
            count: a.count,
        },
        LowBusVerb::Trace(a) => Task::Trace {
            number: a.number,
            options: TapOptions {
                agent: a.agent,
                topic: None,
                queue: a.queue,
            },
            timeout: time("--timeout", &a.timeout)?,
        },
        LowBusVerb::Topics => Task::Topics,
        LowBusVerb::Queue(a) => Task::Queue(queue_task(a.verb)),
        LowBusVerb::Replay(a) => Task::Replay {
            options: ReplayOptions {
                queue: Some(a.queue),
                offset: a.offset,
                since_ns: a
                    .since
                    .map(|age| queues::since(time("--since", &age)?))
                    .transpose()?,
                max: Some(a.count),
                uid: a.uid,
            },
            name: a.name,
        },
        LowBusVerb::Publish(a) => Task::Publish {
            data: talk::contents(a.data, talk::NoData::IsAnError)?,
            topic: a.topic,
            kind: a.kind,
            uid: a.uid,
        },
        LowBusVerb::Subscribe(a) => Task::Subscribe {
            pattern: a.pattern,
            count: a.count,
            timeout: a.timeout.map(|t| time("--timeout", &t)).transpose()?,
            uid: a.uid,
        },
        LowBusVerb::Request(a) => Task::Request {
            data: talk::contents(a.data, talk::NoData::IsEmpty)?,
            agent: a.agent,
            method: a.method,
            timeout: time("--timeout", &a.timeout)?,
        },
        LowBusVerb::Send(a) => Task::Send {
            data: talk::contents(a.data, talk::NoData::IsAnError)?,
            agent: a.agent,
            kind: a.kind,
        },
        LowBusVerb::Revoke(a) => Task::Revoke {
            rights: a
                .rights
                .iter()
                .map(|t| right(t))
                .collect::<Result<_, _>>()?,
            agent: a.agent,
        },
        LowBusVerb::Restore(a) => Task::Restore { agent: a.agent },
    })
}

fn queue_task(verb: LowQueueVerb) -> QueueTask {
    let look = |dead, a: PeekArgs| QueueTask::Peek {
        name: a.queue,
        options: PeekOptions {
            dead: Some(dead),
            from: a.from,
            max: Some(a.count),
            uid: a.uid,
        },
    };
    let letters = |fate, a: LetterArgs| QueueTask::Dead {
        name: a.queue,
        ids: a.ids,
        fate,
        uid: a.uid,
    };
    match verb {
        LowQueueVerb::List => QueueTask::List,
        LowQueueVerb::Show { queue } => QueueTask::Show { name: queue },
        LowQueueVerb::Peek(a) => look(false, a),
        LowQueueVerb::Dead(a) => look(true, a),
        LowQueueVerb::Requeue(a) => letters(Fate::Requeue, a),
        LowQueueVerb::Drop(a) if a.queue_too => QueueTask::Drop {
            name: a.letters.queue,
            uid: a.letters.uid,
        },
        LowQueueVerb::Drop(a) => letters(Fate::Drop, a.letters),
    }
}

/// `publish`, or `publish=build.#`.
fn right(typed: &str) -> Result<Revocation, Failure> {
    let (right, pattern) = typed.split_once('=').unwrap_or((typed, "#"));
    let right: IpcRight = right
        .parse()
        .map_err(|e| Failure::usage(format!("can't revoke {typed:?}"), e))?;
    if pattern.is_empty() {
        let why = "after the = there is no pattern; `#` stands for everything";
        return Err(Failure::usage(format!("can't revoke {typed:?}"), why));
    }
    Ok((right, pattern.to_owned()))
}

pub async fn perform(context: &Context, task: Task) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let proxy = BusProxy::builder(&daemon.connection)
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .map_err(|e| Failure::api("can't ask agentd about the bus", &e.into()))?;
    match task {
        Task::Peers => list::peers(context, &proxy).await,
        Task::Channels { agent } => list::channels(context, &proxy, agent.as_deref()).await,
        Task::Top(request) => top::top(context, &proxy, &request).await,
        Task::Tap { options, count } => stream::tap(context, &proxy, &options, count).await,
        Task::Trace {
            number,
            options,
            timeout,
        } => stream::trace(context, &proxy, number, &options, timeout).await,
        Task::Topics => queues::topics(context, &proxy).await,
        Task::Queue(task) => {
            let own_uid = rustix::process::getuid().as_raw();
            queues::queue(context, &proxy, task, own_uid).await
        }
        Task::Replay { name, options } => queues::replay(context, &proxy, &name, &options).await,
        Task::Publish {
            topic,
            kind,
            data,
            uid,
        } => talk::publish(context, &proxy, &topic, kind, data, uid).await,
        Task::Subscribe {
            pattern,
            count,
            timeout,
            uid,
        } => stream::subscribe(context, &proxy, &pattern, count, timeout, uid).await,
        Task::Request {
            agent,
            method,
            data,
            timeout,
        } => talk::request(context, &proxy, &agent, method, data, timeout).await,
        Task::Send { agent, kind, data } => talk::send(context, &proxy, &agent, kind, data).await,
        Task::Revoke { agent, rights } => talk::revoke(context, &proxy, &agent, &rights).await,
        Task::Restore { agent } => talk::restore(context, &proxy, &agent).await,
    }
}

/// The daemon's error, with what helps against it.
fn failure(what: impl Into<String>, error: &Error) -> Failure {
    let failure = Failure::api(what, error);
    match error.code() {
        ErrorCode::NotFound => failure.try_next("agentctl bus peers"),
        ErrorCode::TimedOut => {
            failure.try_next("a longer --timeout, or agentctl bus peers to see what it waits for")
        }
        _ => failure,
    }
}

/// Lane 7 or log 3, and between whom.
fn between(channel: &BusChannel) -> (String, String) {
    let to = channel.to.clone().unwrap_or_else(|| "-".to_owned());
    let to = match &channel.topic {
        Some(topic) => format!("{to} {topic}"),
        None => to,
    };
    (channel.from.clone(), to)
}

/// Whether the agent that was named has a part in it.
fn takes_part(channel: &BusChannel, agent: &str) -> bool {
    channel.from == agent
        || channel.to.as_deref() == Some(agent)
        || channel.from_id.is_meant_by(agent)
        || channel.to_id.is_some_and(|id| id.is_meant_by(agent))
}
