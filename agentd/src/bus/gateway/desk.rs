//! The bus as one shard of the gateway sees it: who a connection is, its frames to the router's thread, and back.
//!
//! A peer from outside is on the bus while it has a connection, under the name and the rules that the configuration has
//! for it. Runs on the gateway shard's thread; waits only for the router's thread, and only when a connection comes or a
//! v3 peer names a short id for the first time.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::AgentId;
use agentd_bus::frame::{Frame, PeerId};
use agentd_bus::gateway::{
    ConnKey, Desk, Door, Ending, Identity, ListenerId, Listening, Origin, Owed, Post, Taken,
    TransportKind, Turned,
};
use agentd_bus::router::{CloseReason, ConnId, ConnKind, PeerSpec};
use agentd_bus::shard::{Flow, Frames, Inbound, Outlet, Took};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::super::rights::Rights;
use super::super::server::{BusServer, UserBus};
use super::config::PeerConfig;

/// Bytes of frames that are ahead of a socket.
const WRITE_BATCH: usize = 64 << 10;

/// Time between two lines of the log about connections that were turned away.
const QUIET: Duration = Duration::from_secs(1);

/// The peers from outside, shared by all shards.
#[derive(Debug)]
pub(super) struct Outsiders {
    peers: Vec<PeerConfig>,
    /// How many connections each of them has.
    uses: Mutex<Vec<usize>>,
}

impl Outsiders {
    pub fn new(peers: Vec<PeerConfig>) -> Self {
        let uses = Mutex::new(vec![0; peers.len()]);
        Self { peers, uses }
    }

    fn uses(&self) -> MutexGuard<'_, Vec<usize>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, who: &Identity) -> Result<usize, Turned> {
        let known = |peer: &PeerConfig| match (&who.client, who.origin) {
            (Some(name), _) => peer.certificate.as_deref() == Some(&**name),
            (None, Origin::Unix { uid, .. }) => peer.socket_user == Some(uid),
            (None, Origin::Tcp(from)) => peer.anyone_on_loopback && from.ip().is_loopback(),
            (None, Origin::Memory) => false,
        };
        self.peers.iter().position(known).ok_or_else(|| {
            let who = match (&who.client, who.origin) {
                (Some(name), _) => format!("certificate of {name}"),
                (None, Origin::Unix { uid, .. }) => format!("uid {uid}"),
                (None, _) => "this address".to_owned(),
            };
            Turned(format!(
                "no [[bus.gateway.peer]] of agentd's configuration is for {who}"
            ))
        })
    }
}

/// Always the same for a peer, so that a message names its sender also when it has left.
fn id_of(peer: &PeerConfig) -> AgentId {
    let mut hash = Sha256::new();
    hash.update(b"agentd bus gateway peer\0");
    hash.update(peer.user.to_be_bytes());
    hash.update(peer.name.as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    // A version 8 UUID: never that of a launch, which is version 7.
    uuid::Builder::from_custom_bytes(id).into_uuid().into()
}

/// What is written to one connection.
#[derive(Debug, Default)]
struct Ahead {
    /// A batch is on its way to the socket.
    busy: bool,
    /// The router has more.
    more: bool,
}

/// Where the router's thread leaves what is for one connection.
#[derive(Debug)]
struct DoorOutlet {
    door: Door,
    key: ConnKey,
    ahead: Mutex<Ahead>,
    bus: UserBus,
}

impl DoorOutlet {
    fn ahead(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outlet for DoorOutlet {
    fn offer(&self, frames: &mut Frames<'_>) -> Took {
        let mut ahead = self.ahead();
        if ahead.busy {
            ahead.more = true;
            return Took::Some;
        }
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let took = loop {
            if bytes >= WRITE_BATCH {
                ahead.more = true;
                break Took::Some;
            }
            match frames.next() {
                // Nobody who may not share memory is sent a descriptor.
                Some(out) if out.fd.is_some() => {}
                Some(out) => {
                    bytes += out.frame.wire_len();
                    batch.push(out.frame);
                }
                None => break Took::All,
            }
        };
        if !batch.is_empty() {
            ahead.busy = true;
            drop(ahead);
            self.door.post(self.key, Post::Write(batch));
        }
        took
    }

    fn taken(&self, flow: Flow) {
        if flow == Flow::ReadOn {
            // While the record is behind, nobody who feeds it is read from.
            let (bus, door, key) = (self.bus.clone(), self.door.clone(), self.key);
            self.bus.runtime().spawn(async move {
                bus.throttle().await;
                door.post(key, Post::ReadOn);
            });
        }
    }

    fn close(&self, reason: CloseReason) {
        let post = match reason {
            CloseReason::Finished => Post::Finish,
            reason => Post::Close(reason),
        };
        self.door.post(self.key, post);
    }
}

#[derive(Debug)]
struct Conn {
    peer: usize,
    id: ConnId,
    bus: UserBus,
    outlet: Arc<DoorOutlet>,
    /// Short ids that were looked up; an id is never used again.
    shorts: RefCell<HashMap<u32, PeerId>>,
}

/// Keeps the log short when somebody is turned away over and over.
#[derive(Debug, Default)]
struct TurnedAway {
    told: Option<Instant>,
    untold: u64,
}

impl TurnedAway {
    /// Counts one. At most once in [`QUIET`] it is told, with how many were not since the last time.
    fn note(&mut self, now: Instant) -> Option<u64> {
        if self.told.is_some_and(|told| now < told + QUIET) {
            self.untold += 1;
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct BusDesk {
    bus: BusServer,
    outsiders: Arc<Outsiders>,
    transport: TransportKind,
    turned_away: TurnedAway,
    conns: HashMap<ConnKey, Conn>,
    /// Of the shard that this desk belongs to; set before it runs.
    pub door: Arc<OnceLock<Door>>,
}

impl BusDesk {
    pub fn new(bus: BusServer, outsiders: Arc<Outsiders>, transport: TransportKind) -> Self {
        Self {
            bus,
            outsiders,
            transport,
            turned_away: TurnedAway::default(),
            conns: HashMap::new(),
            door: Arc::default(),
        }
    }

    fn leave(&self, peer: usize) {
        let mut uses = self.outsiders.uses();
        uses[peer] -= 1;
        if uses[peer] == 0 {
            // Under the lock: whoever comes next finds the name free.
            let config = &self.outsiders.peers[peer];
            let id = PeerId(*id_of(config).0.as_bytes());
            self.bus.user_bus(config.user).detach(id);
        }
    }
}

impl Desk for BusDesk {
    fn opened(&mut self, key: ConnKey, who: &Identity) -> Result<(), Turned> {
        let peer = self.outsiders.find(who)?;
        let config = &self.outsiders.peers[peer];
        let door = self.door.get().expect("set before the shard runs").clone();
        let bus = self.bus.user_bus(config.user);
        let id = id_of(config);
        {
            let mut uses = self.outsiders.uses();
            if uses[peer] == 0 {
                let rights = Rights::new(config.rules());
                let spec = PeerSpec {
                    id: PeerId(*id.0.as_bytes()),
                    uid: config.user,
                    name: config.name.clone(),
                    short: id.short(),
                    access: Arc::new(rights.clone()),
                };
                bus.attach(spec, Some(rights))
                    .map_err(|refused| Turned(refused.to_string()))?;
            }
            uses[peer] += 1;
        }
        let socket = match (who.origin, &who.client) {
            (Origin::Unix { .. }, _) => "AF_UNIX",
            (_, Some(_)) => "TCP with TLS",
            (_, None) => "TCP",
        };
        let way = format!("socket gateway: {socket}, {}", self.transport);
        bus.came_by(PeerId(*id.0.as_bytes()), way);
        let outlet = Arc::new(DoorOutlet {
            door,
            key,
            ahead: Mutex::default(),
            bus: bus.clone(),
        });
        let connected = bus.shard.connect(
            PeerId(*id.0.as_bytes()),
            ConnKind::Socket,
            Arc::clone(&outlet) as Arc<dyn Outlet>,
        );
        let id = match connected {
            Some(Ok(id)) => id,
            refused => {
                self.leave(peer);
                let why = refused.and_then(Result::err);
                return Err(Turned(
                    why.map_or_else(|| "the bus ends".to_owned(), |why| why.to_string()),
                ));
            }
        };
        let conn = Conn {
            peer,
            id,
            bus,
            outlet,
            shorts: RefCell::default(),
        };
        self.conns.insert(key, conn);
        Ok(())
    }

    fn frames(&mut self, key: ConnKey, frames: &mut Vec<Frame>, _: &mut Vec<Frame>) -> Taken {
        if let Some(conn) = self.conns.get(&key) {
            let batch = frames.drain(..).map(|frame| Inbound { frame, fd: None });
            conn.bus.shard.frames(conn.id, batch.collect());
        }
        Taken::Wait
    }

    fn written(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get(&key) {
            let mut ahead = conn.outlet.ahead();
            ahead.busy = false;
            if std::mem::take(&mut ahead.more) {
                drop(ahead);
                conn.bus.shard.written(conn.id);
            }
        }
    }

    fn finished(&mut self, key: ConnKey) -> Owed {
        match self.conns.get(&key) {
            Some(conn) => {
                conn.bus.shard.finished(conn.id);
                Owed::Answers
            }
            None => Owed::Nothing,
        }
    }

    fn closed(&mut self, key: ConnKey, ending: &Ending) {
        if let Some(conn) = self.conns.remove(&key) {
            if !ending.is_ordinary() {
                let name = &self.outsiders.peers[conn.peer].name;
                tracing::info!(peer = name, "gateway connection closed: {ending}");
            }
            conn.bus.disconnect(conn.id);
            self.leave(conn.peer);
        }
    }

    fn turned_away(&mut self, who: &Identity, why: &Ending) {
        if let Some(others) = self.turned_away.note(Instant::now()) {
            let from = match who.origin {
                Origin::Unix { uid, pid, .. } => format!("uid {uid}, pid {pid}"),
                Origin::Tcp(address) => address.to_string(),
                Origin::Memory => "this process".to_owned(),
            };
            tracing::info!(from, others, "gateway connection turned away: {why}");
        }
    }

    fn listening(&mut self, listener: ListenerId, state: Listening) {
        let listener = listener.0;
        match state {
            Listening::Resumed => tracing::info!(listener, "the gateway takes connections again"),
            Listening::Full { limit } => {
                tracing::warn!(
                    listener,
                    "the gateway has {limit} connections, the most allowed"
                );
            }
            Listening::Paused { errno } => {
                tracing::warn!(listener, "the gateway can take no connection: {errno}");
            }
        }
    }

    fn id_of(&self, key: ConnKey, short: u32) -> Option<PeerId> {
        let conn = self.conns.get(&key)?;
        let own = id_of(&self.outsiders.peers[conn.peer]);
        if own.short() == short {
            return Some(PeerId(*own.0.as_bytes()));
        }
        if let Some(id) = conn.shorts.borrow().get(&short) {
            return Some(*id);
        }
        let asking = PeerId(*own.0.as_bytes());
        let known = conn
            .bus
            .shard
            .call(move |router, now, _| router.agents(asking, now));
        let mut same = known.into_iter().filter(|agent| agent.short == short);
        match (same.next(), same.next()) {
            (Some(agent), None) => {
                conn.shorts.borrow_mut().insert(short, agent.id);
                Some(agent.id)
            }
            // Two with one short id are told apart by nobody.
            _ => None,
        }
    }

    fn short_of(&self, _: ConnKey, id: PeerId) -> Option<u32> {
        Some(AgentId::from(Uuid::from_bytes(id.0)).short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_turned_away_over_and_over_is_told_once_a_second_with_a_count() {
        let (mut turned, start) = (TurnedAway::default(), Instant::now());
        assert_eq!(turned.note(start), Some(0));
        assert_eq!(turned.note(start), None);
        assert_eq!(turned.note(start + QUIET / 2), None);
        assert_eq!(turned.note(start + QUIET), Some(2));
        assert_eq!(turned.note(start + 2 * QUIET), Some(0));
    }
}
