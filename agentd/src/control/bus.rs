//! `org.agentd1.Bus`: what the bus knows, and messages from the user, for one caller.
//!
//! The caller's uid comes from the connection. Agents of others do not exist for it, nor do their channels and messages;
//! root sees all, and acts on an agent's bus as that agent's user. Streams go through pipes that the daemon writes: a
//! reader that is too slow loses lines, and is told how many; one that has gone ends the stream's task at once.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::bus::{
    BusChannel, BusMessage, BusPeer, BusReply, BusRequest, DaemonUsage, IpcRight, MAX_TIMEOUT_MS,
    MAX_TOPIC, Revocation, RightsChange, TapOptions,
};
use agentd_api::queues::{BusQueue, BusQueued, BusTopic, PeekOptions, ReplayOptions};
use agentd_api::{AgentIdentity, Error};
use agentd_bus::access::Right;
use agentd_bus::frame::PeerId;
use agentd_bus::message::{
    DeadAction, EVENT_TYPE_MAX, METHOD_MAX, QueuePart, ReplayFrom, Status, StreamKind,
};
use agentd_bus::topic;
use agentd_storage::{Event, Fact, LaunchId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe;

use super::{seen, streams};
use crate::agents::Caller;
use crate::bus::{BusError, Followed, TapFilter, Tapped, UserPort};
use crate::daemon::Daemon;

/// How long a request waits for its answer when the caller does not say.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The type of a message whose sender names none.
const PLAIN: &str = "message";

/// The object at `/org/agentd1` of one caller's connection.
#[derive(Debug)]
pub struct BusObject {
    daemon: Arc<Daemon>,
    caller: Caller,
}

impl BusObject {
    pub fn new(daemon: Arc<Daemon>, caller: Caller) -> Self {
        Self { daemon, caller }
    }

    /// A living agent that the caller may touch.
    fn agent(&self, name_or_id: &str) -> Result<AgentIdentity, Error> {
        let agent = self.daemon.agents.find(self.caller, name_or_id)?;
        if agent.state().is_live() {
            return Ok(agent.identity.clone());
        }
        Err(Error::NotFound(format!(
            "`{}` has ended; `agentctl bus peers` lists who is on the bus",
            agent.identity.name
        )))
    }

    /// What is taken from an agent now, with nothing closed.
    fn rights(&self, agent: &AgentIdentity) -> RightsChange {
        RightsChange {
            id: agent.id,
            name: agent.name.clone(),
            revoked: seen::revoked(&self.daemon.bus, agent.id),
            lanes: 0,
            logs: 0,
            subscriptions: 0,
            requests: 0,
        }
    }

    /// The user whose queue is meant, which must be there: a look must not make one.
    async fn queue_of(&self, name: &str, uid: Option<u32>) -> Result<UserPort, Error> {
        let uid = self.whose(uid)?;
        let queues = self.daemon.bus.queues(Some(uid)).await;
        if !queues.iter().any(|queue| queue.name == name) {
            return Err(Error::NotFound(format!(
                "there is no queue {name:?} of uid {uid}; `agentctl bus queue list` shows those that are"
            )));
        }
        self.daemon.bus.user(uid).map_err(told)
    }

    fn by(&self) -> String {
        format!("uid {}", self.caller.uid)
    }

    /// Puts a change of rights, which is in force already, on record, so that the next agentd knows of it.
    async fn remember(&self, agent: &AgentIdentity, facts: Vec<Fact>) -> Result<(), Error> {
        let launch = LaunchId::new(agent.id.to_string());
        let events = facts
            .into_iter()
            .map(|fact| Event::now(launch.clone(), fact))
            .collect();
        let kept = self.daemon.store.record_all_durable(events).await;
        kept.map_err(|error| {
            Error::Internal(format!(
                "the rights of {agent} are changed, but a restarted agentd would not know: {error}; say it again once the record can be written"
            ))
        })
    }

    /// Whose bus is meant: the caller's own, or for root anybody's.
    fn whose(&self, uid: Option<u32>) -> Result<u32, Error> {
        match uid {
            None => Ok(self.caller.uid),
            Some(uid) if self.caller.may_touch(uid) => Ok(uid),
            Some(uid) => Err(Error::Denied(format!(
                "you are uid {}; only root talks on the bus of uid {uid}",
                self.caller.uid
            ))),
        }
    }
}

/// The bus's word as an error of the API.
fn told(error: BusError) -> Error {
    let text = error.text;
    match error.status {
        Status::DENIED => Error::Denied(text),
        Status::NO_SUCH_AGENT | Status::NO_SUCH_QUEUE => Error::NotFound(text),
        Status::DEADLINE => Error::TimedOut(text),
        Status::MALFORMED | Status::TOO_LARGE => Error::InvalidArgument(text),
        Status::QUEUE_FULL | Status::PEER_GONE => Error::Unavailable(text),
        status if status.is_bus_only() => Error::Unavailable(format!("{status}: {text}")),
        _ => Error::AgentFailed(text),
    }
}

fn check_type(what: &str, text: &str, limit: usize) -> Result<(), Error> {
    if (1..=limit).contains(&text.len()) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "a {what} has 1 to {limit} bytes, not {}",
        text.len()
    )))
}

fn check_pattern(pattern: &str) -> Result<(), Error> {
    topic::check_pattern(pattern).map_err(|e| {
        Error::InvalidArgument(format!(
            "{pattern:?} is no pattern of topics of at most {MAX_TOPIC} bytes: {e}"
        ))
    })
}

fn broken_pipe(error: std::io::Error) -> Error {
    Error::Internal(format!("cannot make a pipe: {error}"))
}

#[zbus::interface(name = "org.agentd1.Bus")]
impl BusObject {
    async fn peers(&self) -> Result<Vec<BusPeer>, Error> {
        Ok(seen::peers(&self.daemon.bus, self.caller))
    }

    async fn channels(&self) -> Result<Vec<BusChannel>, Error> {
        Ok(seen::channels(&self.daemon.bus, self.caller))
    }

    async fn tap(&self, options: TapOptions) -> Result<zbus::OwnedFd, Error> {
        let agent = options.agent.map(|agent| self.agent(&agent)).transpose()?;
        if let Some(pattern) = &options.topic {
            check_pattern(pattern)?;
        }
        if let Some(queue) = &options.queue {
            topic::check_topic(queue)
                .map_err(|e| Error::InvalidArgument(format!("{queue:?} is no queue: {e}")))?;
            if options.topic.is_some() {
                let why = "a tap is of `topic` or of `queue`, not of both";
                return Err(Error::InvalidArgument(why.to_owned()));
            }
        }
        let filter = TapFilter {
            uid: (self.caller.uid != 0).then_some(self.caller.uid),
            peer: agent.map(|agent| PeerId(*agent.id.0.as_bytes())),
            topic: options.topic,
            queue: options.queue,
        };
        let (sender, reader) = open_pipe()?;
        let mut tap = self.daemon.bus.tap(filter);
        tokio::spawn(async move {
            let mut out = sender;
            loop {
                let tapped = tokio::select! {
                    tapped = tap.next() => tapped,
                    _ = out.ready(tokio::io::Interest::ERROR) => return,
                };
                let line = match tapped {
                    None => return,
                    Some(Tapped::LeftOut(n)) => json!({ "left_out": n }),
                    Some(Tapped::Message(meta)) => seen::message_json(&meta),
                    Some(Tapped::Step(step)) => seen::step_json(&step),
                };
                if put(&mut out, &line).await.is_err() {
                    return;
                }
            }
        });
        Ok(reader.into())
    }

    async fn publish(&self, topic: &str, message: BusMessage) -> Result<u32, Error> {
        let user = self
            .daemon
            .bus
            .user(self.whose(message.uid)?)
            .map_err(told)?;
        let kind = message.kind.as_deref().unwrap_or(PLAIN);
        check_type("type", kind, EVENT_TYPE_MAX)?;
        topic::check_topic(topic)
            .map_err(|e| Error::InvalidArgument(format!("{topic:?} is no topic: {e}")))?;
        let published = user.port().publish(topic, kind, message.data).await;
        published.map_err(told)
    }

    async fn subscribe(&self, pattern: &str, uid: u32) -> Result<zbus::OwnedFd, Error> {
        check_pattern(pattern)?;
        let uid = self.whose(Some(uid))?;
        let mut following = self.daemon.bus.follow(uid, pattern).map_err(told)?;
        let (mut out, reader) = open_pipe()?;
        tokio::spawn(async move {
            loop {
                let followed = tokio::select! {
                    followed = following.next() => followed,
                    _ = out.ready(tokio::io::Interest::ERROR) => return,
                };
                let line = match followed {
                    None => return,
                    Some(Followed::Lost(n)) => json!({ "lost": n }),
                    Some(Followed::Message(message)) => {
                        let mut line = json!({
                            "topic": message.topic,
                            "type": message.event_type,
                            "from": message.from,
                            "from_id": message.from_id,
                            "priority": message.priority,
                            "at_ns": message.sent_ns,
                            "bytes": message.data.len(),
                        });
                        match String::from_utf8(message.data) {
                            Ok(text) => line["text"] = text.into(),
                            Err(other) => {
                                line["base64"] = STANDARD.encode(other.as_bytes()).into();
                            }
                        }
                        line
                    }
                };
                if put(&mut out, &line).await.is_err() {
                    return;
                }
            }
        });
        Ok(reader.into())
    }

    async fn send(&self, agent: &str, message: BusMessage) -> Result<(), Error> {
        let agent = self.agent(agent)?;
        let kind = message.kind.as_deref().unwrap_or(PLAIN);
        check_type("type", kind, EVENT_TYPE_MAX)?;
        let user = self.daemon.bus.user(agent.uid).map_err(told)?;
        let id = agent.id.to_string();
        let sent = user.port().send(&id, kind, message.data).await;
        sent.map_err(told)
    }

    async fn request(&self, agent: &str, request: BusRequest) -> Result<BusReply, Error> {
        let agent = self.agent(agent)?;
        check_type("method", &request.method, METHOD_MAX)?;
        let timeout = match request.timeout_ms {
            None => TIMEOUT,
            Some(ms) if (1..=MAX_TIMEOUT_MS).contains(&ms) => Duration::from_millis(ms.into()),
            Some(ms) => {
                return Err(Error::InvalidArgument(format!(
                    "a time-out of {ms} ms; allowed are 1 to {MAX_TIMEOUT_MS}"
                )));
            }
        };
        let user = self.daemon.bus.user(agent.uid).map_err(told)?;
        let id = agent.id.to_string();
        let asked = user
            .port()
            .request(&id, &request.method, request.data, timeout);
        let reply = asked.await.map_err(told)?;
        Ok(BusReply {
            from: agent.name,
            from_id: reply.from_id.into(),
            data: reply.payload,
        })
    }

    async fn revoke(&self, agent: &str, rights: Vec<Revocation>) -> Result<RightsChange, Error> {
        let agent = self.agent(agent)?;
        let everything = IpcRight::ALL.iter().map(|right| (*right, "#".to_owned()));
        let rights = if rights.is_empty() {
            everything.collect()
        } else {
            rights
        };
        let mut change = self.rights(&agent);
        let mut taken = Vec::new();
        for (word, pattern) in rights {
            let right = match word {
                IpcRight::Send => Right::Send,
                IpcRight::Request => Right::Request,
                IpcRight::Publish => Right::Publish,
                IpcRight::Subscribe => Right::Subscribe,
            };
            let closed = self
                .daemon
                .bus
                .revoke(agent.id, right, &pattern, &self.by());
            let closed = match closed {
                Ok(closed) => closed,
                // What was taken before this one stays taken.
                Err(error) => {
                    self.remember(&agent, taken).await?;
                    return Err(told(error));
                }
            };
            change.lanes += closed.lanes;
            change.logs += closed.logs;
            change.subscriptions += closed.subscriptions;
            change.requests += closed.requests;
            taken.push(Fact::RightRevoked {
                right: right.as_str().to_owned(),
                pattern,
                by: self.by(),
            });
        }
        // In the kernel, too, before anybody hears that it is done.
        self.daemon.paths.settle().await;
        tracing::info!(uid = self.caller.uid, agent = %agent, "rights on the bus were revoked");
        self.remember(&agent, taken).await?;
        change.revoked = seen::revoked(&self.daemon.bus, agent.id);
        Ok(change)
    }

    async fn restore(&self, agent: &str) -> Result<RightsChange, Error> {
        let agent = self.agent(agent)?;
        self.daemon.bus.restore(agent.id).map_err(told)?;
        self.daemon.paths.settle().await;
        tracing::info!(uid = self.caller.uid, agent = %agent, "rights on the bus were restored");
        let restored = Fact::RightsRestored { by: self.by() };
        self.remember(&agent, vec![restored]).await?;
        Ok(self.rights(&agent))
    }

    async fn queues(&self) -> Result<Vec<BusQueue>, Error> {
        let uid = (self.caller.uid != 0).then_some(self.caller.uid);
        let queues = self.daemon.bus.queues(uid).await;
        Ok(queues.into_iter().map(streams::queue).collect())
    }

    async fn topics(&self) -> Result<Vec<BusTopic>, Error> {
        let uid = (self.caller.uid != 0).then_some(self.caller.uid);
        let topics = self.daemon.bus.topics(uid).await;
        Ok(topics.into_iter().map(streams::topic).collect())
    }

    async fn peek_queue(&self, name: &str, options: PeekOptions) -> Result<Vec<BusQueued>, Error> {
        let user = self.queue_of(name, options.uid).await?;
        let dead = options.dead.unwrap_or(false);
        let part = if dead {
            QueuePart::Dead
        } else {
            QueuePart::Live
        };
        let (from, max) = (options.from.unwrap_or(0), options.max.unwrap_or(20));
        let found = user.port().queue_peek(name, part, from, max).await;
        let found = found.map_err(told)?.into_iter();
        Ok(found
            .map(|message| streams::queued(message, part))
            .collect())
    }

    async fn requeue_dead(&self, name: &str, ids: Vec<u64>, uid: u32) -> Result<u32, Error> {
        let user = self.queue_of(name, Some(uid)).await?;
        let done = user.port().queue_dead(name, DeadAction::Requeue, &ids);
        done.await.map_err(told)
    }

    async fn drop_dead(&self, name: &str, ids: Vec<u64>, uid: u32) -> Result<u32, Error> {
        let user = self.queue_of(name, Some(uid)).await?;
        let done = user.port().queue_dead(name, DeadAction::Drop, &ids);
        done.await.map_err(told)
    }

    async fn drop_queue(&self, name: &str, uid: u32) -> Result<(), Error> {
        let user = self.queue_of(name, Some(uid)).await?;
        user.port().queue_drop(name).await.map_err(told)
    }

    async fn replay(
        &self,
        name: &str,
        options: ReplayOptions,
    ) -> Result<(u64, Vec<BusQueued>), Error> {
        let user = self.daemon.bus.user(self.whose(options.uid)?);
        let kind = if options.queue.unwrap_or(false) {
            StreamKind::Queue
        } else {
            StreamKind::Topic
        };
        let from = match (options.offset, options.since_ns) {
            (Some(_), Some(_)) => {
                let text = "a replay begins at an offset or at a time, not both";
                return Err(Error::InvalidArgument(text.to_owned()));
            }
            (_, Some(at)) => ReplayFrom::TimeNs(at),
            (offset, None) => ReplayFrom::Offset(offset.unwrap_or(0)),
        };
        let user = user.map_err(told)?;
        let read = user
            .port()
            .replay(kind, name, from, options.max.unwrap_or(100));
        let (next, messages) = read.await.map_err(told)?;
        let messages = messages.into_iter();
        Ok((next, messages.map(|m| streams::replayed(m, kind)).collect()))
    }

    async fn usage(&self) -> Result<DaemonUsage, Error> {
        Ok(seen::usage(&self.daemon.bus))
    }
}

fn open_pipe() -> Result<(pipe::Sender, OwnedFd), Error> {
    let (sender, receiver) = pipe::pipe().map_err(broken_pipe)?;
    let reader = receiver.into_blocking_fd().map_err(broken_pipe)?;
    Ok((sender, reader))
}

/// Writes one line.
async fn put(out: &mut pipe::Sender, line: &Value) -> std::io::Result<()> {
    let mut text = line.to_string();
    text.push('\n');
    out.write_all(text.as_bytes()).await
}
