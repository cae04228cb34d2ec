//! The user on the bus: what `agentctl bus` publishes, sends, asks and follows.
//!
//! A user is a peer like an agent, with the right to everything within its uid, and on the bus only while something of
//! it is under way: the first use attaches it, the last one's end detaches it. Who talks is [`USER_PEER`]; who follows is
//! a second peer, [`USER_READER`], because nobody gets what it published itself. Both names are kept from agents.
//!
//! Which uid is the caller's business to check. Any thread of the daemon; waits only in the futures it returns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentd_api::bus::USER_PEER;
use agentd_api::{AgentId, AgentIdentity};
use agentd_bus::access::SameUser;
use agentd_bus::frame::{Frame, PeerId, kind};
use agentd_bus::message::{Control, Delivery, Event, Response, Status, SubscribeOptions};
use agentd_bus::router::{ConnId, PeerSpec};
use agentd_bus::shard::Answer;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::port::{AgentPort, left_the_bus, malformed};
use super::server::{BusServer, ConnHandle, UserBus};
use super::types::BusError;

/// The peer that follows topics for a user.
pub const USER_READER: &str = "user.reader";

/// Whether this name belongs to users, and so to no agent.
pub fn is_users_name(name: &str) -> bool {
    name == USER_PEER || name == USER_READER
}

/// A user's uid, and as which of its peers it is there.
type Key = (u32, &'static str);

/// A port, and how much of that user is under way.
type InUse = (AgentPort, usize);

/// The users that are on the bus.
#[derive(Debug, Default)]
pub(super) struct Users(Mutex<HashMap<Key, InUse>>);

impl Users {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, InUse>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A user's place on the bus; the last one of a user to go takes the user off.
#[derive(Debug)]
pub struct UserPort {
    bus: BusServer,
    key: Key,
    port: AgentPort,
}

impl UserPort {
    /// What the user may do, as an agent that may do everything.
    pub fn port(&self) -> &AgentPort {
        &self.port
    }
}

impl Drop for UserPort {
    fn drop(&mut self) {
        let mut users = self.bus.users().lock();
        if let Some((_, uses)) = users.get_mut(&self.key) {
            *uses -= 1;
            if *uses == 0
                && let Some((port, _)) = users.remove(&self.key)
            {
                // Under the lock: whoever attaches the user anew finds the name free.
                port.detach();
            }
        }
    }
}

impl BusServer {
    /// The user `uid`, to publish, send and ask.
    pub fn user(&self, uid: u32) -> Result<UserPort, BusError> {
        self.user_called(uid, USER_PEER)
    }

    /// Messages to topics that `pattern` covers, on the bus of user `uid`.
    pub fn follow(&self, uid: u32, pattern: &str) -> Result<Following, BusError> {
        Following::start(self.user_called(uid, USER_READER)?, pattern)
    }

    fn user_called(&self, uid: u32, name: &'static str) -> Result<UserPort, BusError> {
        let key = (uid, name);
        let mut users = self.users().lock();
        let port = match users.get_mut(&key) {
            Some((port, uses)) => {
                *uses += 1;
                port.clone()
            }
            None => {
                let identity = AgentIdentity::new(id_of(uid, name), name, uid);
                let spec = PeerSpec {
                    id: PeerId(*identity.id.0.as_bytes()),
                    uid,
                    name: name.to_owned(),
                    short: identity.short,
                    access: Arc::new(SameUser),
                };
                let bus = self.user_bus(uid);
                bus.attach(spec, None)
                    .map_err(|refused| BusError::new(Status::FAILED, refused.to_string()))?;
                let gone = CancellationToken::new();
                let port = AgentPort::start(bus, identity, gone);
                users.insert(key, (port.clone(), 1));
                port
            }
        };
        drop(users);
        Ok(UserPort {
            bus: self.clone(),
            key,
            port,
        })
    }
}

/// The id of a user's peer: always the same, so that a message names its sender also when the user has left.
fn id_of(uid: u32, name: &str) -> AgentId {
    let mut id = [0; 16];
    // Neither nil nor a version 7 UUID, as those of launches are.
    id[..11].copy_from_slice(b"agentd-user");
    id[11] = u8::from(name == USER_READER);
    id[12..].copy_from_slice(&uid.to_be_bytes());
    Uuid::from_bytes(id).into()
}

/// A message to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMessage {
    /// The publisher's name; empty if it has ended meanwhile.
    pub from: String,
    pub from_id: Uuid,
    pub topic: String,
    pub event_type: String,
    pub priority: u8,
    pub data: Vec<u8>,
    /// Nanoseconds since the Unix epoch.
    pub sent_ns: u64,
}

/// What a follower gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Followed {
    Message(TopicMessage),
    /// So many came faster than they were read, before what follows.
    Lost(u64),
}

/// A subscription of a user; ends when dropped. The router bounds what waits for it.
#[derive(Debug)]
pub struct Following {
    user: UserPort,
    bus: UserBus,
    conn: ConnId,
    handle: Arc<ConnHandle>,
    /// A frame that is on its way; kept, so that a `next` that is cancelled loses nothing.
    pulling: Option<Answer<Option<(String, Frame)>>>,
}

impl Following {
    fn start(user: UserPort, pattern: &str) -> Result<Self, BusError> {
        let id = PeerId(*user.port.identity().id.0.as_bytes());
        let bus = user.bus.user_bus(user.key.0);
        let (conn, handle) = bus.connect(id).map_err(|_| left_the_bus())?;
        let shard = bus.shard.clone();
        // From here on an early return disconnects.
        let following = Self {
            user,
            bus,
            conn,
            handle,
            pulling: None,
        };
        let subscribe = Control::Subscribe {
            delivery: Delivery::Push,
            options: SubscribeOptions::default(),
            pattern,
        };
        let payload = subscribe.encode().map_err(malformed)?;
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 1, payload);
        let answer = shard.call(move |router, now, fx| {
            router.frame(conn, frame, None, now, fx);
            // An answer goes before any message.
            router.pull(conn, fx)
        });
        let answer = answer.ok_or_else(left_the_bus)?;
        let response = Response::parse(&answer.frame.payload).map_err(malformed)?;
        if response.status != Status::OK {
            return Err(BusError::new(response.status, response.error));
        }
        Ok(following)
    }

    /// The next message; `None` when the bus has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Followed> {
        loop {
            let conn = self.conn;
            let pulling = self.pulling.get_or_insert_with(|| {
                self.bus.shard.ask(move |router, _, fx| {
                    let frame = router.pull(conn, fx)?.frame;
                    let from = router.name(frame.header.source).unwrap_or_default();
                    Some((from.to_owned(), frame))
                })
            });
            let pulled = pulling.await;
            self.pulling = None;
            let Some((from, frame)) = pulled.flatten() else {
                tokio::select! {
                    () = self.handle.wake.notified() => continue,
                    () = self.handle.closing.notified() => return None,
                }
            };
            match frame.kind() {
                kind::COMMAND => {
                    if let Ok(Control::Lost { count }) = Control::parse(&frame.payload) {
                        return Some(Followed::Lost(count));
                    }
                }
                bits if bits & kind::EVENT != 0 => {
                    // The router let it through, so it parses.
                    let Ok(event) = Event::parse(&frame.payload) else {
                        continue;
                    };
                    let header = &frame.header;
                    let user = PeerId(*id_of(self.user.key.0, USER_PEER).0.as_bytes());
                    let from = match header.source {
                        source if source.is_bus() => "agentd".to_owned(),
                        source if source == user => USER_PEER.to_owned(),
                        _ => from,
                    };
                    return Some(Followed::Message(TopicMessage {
                        from,
                        from_id: Uuid::from_bytes(header.source.0),
                        topic: event.topic.to_owned(),
                        event_type: event.event_type.to_owned(),
                        priority: event.priority,
                        data: event.data.to_vec(),
                        sent_ns: header.timestamp_ns.get(),
                    }));
                }
                _ => {}
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.bus.disconnect(self.conn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_ids_of_their_own() {
        let ids = [
            id_of(0, USER_PEER),
            id_of(0, USER_READER),
            id_of(1000, USER_PEER),
            id_of(1000, USER_READER),
        ];
        for (at, id) in ids.iter().enumerate() {
            assert!(!id.0.is_nil() && id.0.get_version_num() != 7);
            assert!(ids[..at].iter().all(|other| other != id));
        }
    }
}
