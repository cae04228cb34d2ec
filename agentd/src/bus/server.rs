//! The bus server: the shards of the router, who is on the bus and what they may do, and one accept loop per agent.
//!
//! The router runs on threads of its own ([`agentd_bus::shard`]); here are their surroundings. A call to a shard waits
//! for its answer for the few microseconds that the thread takes to come to it; a shard never waits for anything here.
//! Runs on the daemon's tokio runtime, unprivileged.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agentd_api::{AgentId, AgentIdentity};
use agentd_bus::access::Right;
use agentd_bus::channel::{SocketOnly, Tier};
use agentd_bus::frame::{Frame, PeerId};
use agentd_bus::message::Status;
use agentd_bus::router::{
    AttachRefused, CloseReason, Closed, ConnId, ConnKind, ConnectRefused, Effects, Limits, Now,
    PeerSpec, PeerStatus, Persist, Router,
};
use agentd_bus::shard::{Flow, Frames, Host, Outlet, Shard, Shards, SharedFd, Took, place};
use agentd_bus::wait::WaitError;
use agentd_sandbox::IpcRules;
use agentd_sandbox::rules::ipc::NamePattern;
use agentd_storage::stream::StreamError;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::channels::{ChannelInfo, Channels, LeftBehind};
use super::direct::{Came, Paths};
use super::durable::{Durable, Kept};
use super::port::AgentPort;
use super::record::{MessageSink, Recorder};
use super::refusals::{RefusalSink, TakenBack};
use super::rights::{Revoked, Rights};
use super::socket;
use super::tap::{QueueWatch, Tap, TapFilter, Taps};
use super::types::BusError;
use super::user::Users;

/// Why an agent can't be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Refused(#[from] AttachRefused),
    #[error("what was taken from {name} can't be read, so nothing is given to it: {why}")]
    Revoked { name: String, why: String },
    #[error("bus listener of {name}: {source}")]
    Listener {
        name: String,
        source: std::io::Error,
    },
}

/// The bus of one daemon. Clones share it.
#[derive(Clone)]
pub struct BusServer {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for BusServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusServer").finish_non_exhaustive()
    }
}

/// What wakes the task of a daemon's own part that has a connection; it pulls by itself.
#[derive(Debug, Default)]
pub(super) struct ConnHandle {
    /// The router has frames for it.
    pub wake: Notify,
    pub closing: Notify,
}

impl Outlet for ConnHandle {
    fn offer(&self, _frames: &mut Frames<'_>) -> Took {
        self.wake.notify_one();
        Took::All
    }

    fn taken(&self, _flow: Flow) {}

    fn close(&self, _reason: CloseReason) {
        self.closing.notify_one();
    }
}

/// Somebody on the bus.
#[derive(Debug)]
struct Member {
    uid: u32,
    /// `None` for a user, who may do everything.
    rights: Option<Rights>,
    /// Of a peer from outside: by which way through the socket gateway it came last.
    way: Option<String>,
}

/// The shards and all that is around them.
pub(super) struct Shared {
    shards: Shards,
    /// By shard.
    channels: Vec<Arc<Mutex<Channels>>>,
    /// Locked while rights change, so that two changes at a time are both kept. No shard takes it.
    members: Mutex<HashMap<PeerId, Member>>,
    record: Arc<Recorder>,
    taps: Arc<Taps>,
    users: Users,
    durable: Arc<Durable>,
    /// Set once the broker has said what the kernel carries.
    paths: OnceLock<Paths>,
    runtime: Handle,
    limits: Limits,
}

impl Shared {
    /// The router's threads.
    pub(super) fn shards(&self) -> &[Shard] {
        self.shards.all()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // What answers for the store holds the shards too, and each shard the store.
        self.durable.disconnect();
    }
}

/// The bus as the agents of one user reach it.
#[derive(Clone)]
pub(super) struct UserBus {
    shared: Arc<Shared>,
    pub shard: Shard,
}

impl std::fmt::Debug for UserBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserBus").finish_non_exhaustive()
    }
}

/// What is around one shard.
struct Surroundings {
    epoch: Instant,
    channels: Arc<Mutex<Channels>>,
    record: Arc<Recorder>,
    taps: Arc<Taps>,
    durable: Arc<Durable>,
}

impl Host for Surroundings {
    fn act(&mut self, router: &mut Router<SharedFd>, now: Now, fx: &mut Effects<SharedFd>) {
        // One thread does it for all that this router says, so the record and the taps have its order.
        let record = std::mem::take(&mut fx.record);
        self.taps.offer(&record);
        self.taps.offer_steps(std::mem::take(&mut fx.steps));
        self.record.push(record);
        if fx.channels.is_empty() {
            return;
        }
        let news = std::mem::take(&mut fx.channels);
        for LeftBehind {
            channel,
            unread,
            status,
        } in lock(&self.channels).apply(news)
        {
            router.note_unread(&channel, unread, status, now, fx);
        }
    }

    fn persist(&mut self, requests: Vec<Persist>) {
        self.durable.persist(requests);
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        // Starts at 1 s so that 0 stays "before anything".
        let mono = self.epoch.elapsed() + Duration::from_secs(1);
        Now {
            mono_ns: mono.as_nanos() as u64,
            wall_ns: wall.as_nanos() as u64,
        }
    }

    fn panicked(&mut self) {
        tracing::error!(
            "the router panicked over one frame or call, which ends that; this is a bug of agentd"
        );
    }

    fn route_failed(&mut self, why: &str) {
        tracing::info!("an agent's routed shared memory was not taken: {why}");
    }

    fn cannot_wait(&mut self, error: &WaitError) {
        tracing::warn!("a router thread looks each millisecond instead of sleeping: {error}");
    }
}

/// Router threads of a bus unless something else is asked for: one user's agents are all on one of them, so more than a
/// few pay only where many users' agents are busy at once. One that has nothing to do sleeps, and costs nothing.
pub fn default_shards() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (cpus / 4).clamp(1, 8)
}

/// The most that may be asked for.
pub const SHARDS_MAX: usize = 64;

/// A table is whole at any time, also after a panic elsewhere.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BusServer {
    /// Starts the router's threads. Metadata of messages goes to `sink`.
    ///
    /// # Panics
    /// Outside a tokio runtime, or if no thread can be started.
    pub fn start(sink: Arc<dyn MessageSink>) -> Self {
        Self::start_with(sink, Limits::default())
    }

    /// As [`Self::start`], with other bounds.
    pub fn start_with(sink: Arc<dyn MessageSink>, limits: Limits) -> Self {
        Self::start_sharded(sink, limits, default_shards())
    }

    /// As [`Self::start_with`], with that many router threads.
    pub fn start_sharded(sink: Arc<dyn MessageSink>, limits: Limits, shards: usize) -> Self {
        Self::start_over(sink, limits, shards, Durable::without_store())
    }

    /// As [`Self::start`], with that many router threads, and durable topics and queues; what the
    /// store has of them is there before this returns.
    ///
    /// # Errors
    /// The store's.
    pub async fn start_durable(
        sink: Arc<dyn MessageSink>,
        durable: Arc<Durable>,
        shards: usize,
    ) -> Result<Self, StreamError> {
        let kept = durable.restore().await?;
        let bus = Self::start_over(sink, Limits::default(), shards, durable);
        for Kept {
            stream,
            spec,
            records,
        } in kept
        {
            let shard = bus.shared.shards.of(stream.uid);
            // A shard does things in order, so whoever connects comes behind it.
            drop(shard.ask(move |router, _now, _fx| router.restore(stream, spec, records)));
        }
        Ok(bus)
    }

    fn start_over(
        sink: Arc<dyn MessageSink>,
        limits: Limits,
        shards: usize,
        durable: Arc<Durable>,
    ) -> Self {
        let record = Arc::new(Recorder::start(sink));
        let taps: Arc<Taps> = Arc::default();
        let epoch = Instant::now();
        let mut channels = Vec::new();
        let shards = Shards::start(shards, limits, |_| {
            let mapped: Arc<Mutex<Channels>> = Arc::default();
            channels.push(mapped.clone());
            Box::new(Surroundings {
                epoch,
                channels: mapped,
                record: record.clone(),
                taps: taps.clone(),
                durable: durable.clone(),
            })
        });
        let shards = shards.expect("agentd can't be without its router's threads");
        durable.connect(Arc::new(shards.clone()));
        let shared = Arc::new(Shared {
            shards,
            channels,
            members: Mutex::default(),
            record,
            taps,
            users: Users::default(),
            durable,
            paths: OnceLock::new(),
            runtime: Handle::current(),
            limits,
        });
        Self { shared }
    }

    /// Waits until what agents have said so far is on the disk, as far as it is durable.
    ///
    /// # Errors
    /// The store's.
    pub async fn flush_streams(&self) -> Result<(), StreamError> {
        for shard in self.shared.shards.all() {
            // It does things in order: whatever came before has been handed to the store.
            shard.ask(|_router, _now, _fx| ()).await;
        }
        self.shared.durable.flush().await
    }

    /// Puts an agent on the bus: its processes connect through `listener`, and the daemon acts for it
    /// through the port that is returned, until [`AgentPort::detach`].
    pub fn attach(
        &self,
        identity: AgentIdentity,
        rules: IpcRules,
        listener: UnixListener,
    ) -> Result<AgentPort, AttachError> {
        self.attach_less(identity, rules, &[], None, listener)
    }

    /// As [`Self::attach`], for an agent from which rights were [taken](Self::revoke) under an earlier daemon, and of whose
    /// refusals `sink` hears.
    pub fn attach_less(
        &self,
        identity: AgentIdentity,
        rules: IpcRules,
        revoked: &[TakenBack],
        sink: Option<RefusalSink>,
        listener: UnixListener,
    ) -> Result<AgentPort, AttachError> {
        let parse = |taken: &TakenBack| {
            let parsed = NamePattern::parse(&taken.pattern);
            let parsed = parsed.map_err(|why| format!("{:?}: {why}", taken.pattern));
            Ok(Revoked {
                right: taken.right,
                pattern: parsed?,
                by: taken.by.as_str().into(),
            })
        };
        let revoked: Result<Vec<_>, String> = revoked.iter().map(parse).collect();
        let revoked = revoked.map_err(|why| AttachError::Revoked {
            name: identity.name.clone(),
            why,
        })?;
        let failed = |source| AttachError::Listener {
            name: identity.name.clone(),
            source,
        };
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
        let id = PeerId(*identity.id.0.as_bytes());
        let rights = Rights::less(rules, revoked, sink);
        let spec = PeerSpec {
            id,
            uid: identity.uid,
            name: identity.name.clone(),
            short: identity.short,
            access: Arc::new(rights.clone()),
        };
        let bus = self.user_bus(identity.uid);
        bus.attach(spec, Some(rights))?;
        // Before it is listened to: a client that has waited for this asks at once.
        let paths = self.shared.paths.get();
        if let Some((address, came)) = paths.and_then(|paths| paths.take_expected(id)) {
            self.attach_direct(&identity, address, came);
        }
        let gone = CancellationToken::new();
        tokio::spawn(accept_loop(bus.clone(), id, listener, gone.clone()));
        Ok(AgentPort::start(bus, identity, gone))
    }

    /// Largest payload of one frame, bytes.
    pub fn max_payload(&self) -> u32 {
        self.shared.limits.max_payload
    }

    /// The bus of one user's agents.
    pub(super) fn user_bus(&self, uid: u32) -> UserBus {
        UserBus {
            shared: self.shared.clone(),
            shard: self.shared.shards.of(uid).clone(),
        }
    }

    /// Takes a right back from a running agent, for the names or topics that `pattern` covers, until it is
    /// [restored](Self::restore). What it has open under that right ends before this returns; the answer says
    /// how much that was. `by` is whose hand it is, for those who are told of refusals.
    pub fn revoke(
        &self,
        agent: AgentId,
        right: Right,
        pattern: &str,
        by: &str,
    ) -> Result<Closed, BusError> {
        let pattern = NamePattern::parse(pattern)
            .map_err(|why| BusError::new(Status::MALFORMED, format!("{pattern:?}: {why}")))?;
        let by = by.into();
        let revoked = Revoked { right, pattern, by };
        self.change_rights(agent, |rights| rights.without(revoked))
    }

    /// Gives a running agent all back that was [revoked](Self::revoke). What had ended stays ended.
    pub fn restore(&self, agent: AgentId) -> Result<(), BusError> {
        self.change_rights(agent, Rights::restored).map(drop)
    }

    /// Puts other rules of its policy into force for a running agent, on the direct path, too: when this returns, nothing passes
    /// by the old ones. What was revoked stays so.
    pub async fn set_rules(&self, agent: AgentId, rules: IpcRules) -> Result<Closed, BusError> {
        let closed = self.change_rights(agent, |rights| rights.with_rules(rules))?;
        if let Some(paths) = self.shared.paths.get() {
            paths.settle().await;
        }
        Ok(closed)
    }

    /// What was taken back from an agent; nothing for one that is not on the bus.
    pub fn revoked(&self, agent: AgentId) -> Vec<(Right, String)> {
        let members = lock(&self.shared.members);
        let member = members.get(&peer_of(agent));
        let rights = member.and_then(|member| member.rights.as_ref());
        rights.map(Rights::revoked).unwrap_or_default()
    }

    fn change_rights(
        &self,
        agent: AgentId,
        change: impl FnOnce(&Rights) -> Rights,
    ) -> Result<Closed, BusError> {
        let id = peer_of(agent);
        // Under one lock from the old rights to the new: two changes at a time are both kept.
        let mut members = lock(&self.shared.members);
        let rights = members
            .get_mut(&id)
            .and_then(|member| Some((member.uid, member.rights.as_mut()?)));
        let Some((uid, rights)) = rights else {
            let text = format!("no agent with id {id} is on the bus");
            return Err(BusError::new(Status::NO_SUCH_AGENT, text));
        };
        *rights = change(rights);
        let access = Arc::new(rights.clone());
        if let Some(paths) = self.shared.paths.get() {
            paths.change(id, access.clone());
        }
        let shard = self.shared.shards.of(uid);
        Ok(shard.call(move |router, now, fx| router.set_access(id, access, now, fx)))
    }

    /// From here on agents may be put on the direct path.
    pub fn connect_paths(&self, paths: Paths) {
        let first = self.shared.paths.set(paths);
        debug_assert!(first.is_ok(), "there is one");
    }

    /// The direct path, once it is known.
    pub fn paths(&self) -> Option<&Paths> {
        self.shared.paths.get()
    }

    /// Puts an agent that is on the bus on the direct path, too.
    fn attach_direct(&self, agent: &AgentIdentity, address: u64, came: Came) {
        let Some(paths) = self.shared.paths.get() else {
            return;
        };
        let id = peer_of(agent.id);
        // Under the lock, so that no change of its rights falls between.
        let members = lock(&self.shared.members);
        let Some(rights) = members.get(&id).and_then(|member| member.rights.clone()) else {
            return;
        };
        let who = (agent.uid, agent.name.clone());
        paths.begin(id, who, address, Arc::new(rights), came);
        let shard = self.shared.shards.of(agent.uid);
        shard.call(move |router, _, _| router.set_direct(id, address));
    }

    /// The lanes and logs of `uid`'s agents, with the figures that their sides show.
    pub fn channels(&self, uid: u32) -> Vec<ChannelInfo> {
        let nth = place(uid, self.shared.channels.len());
        let channels = Arc::clone(&self.shared.channels[nth]);
        // On the router's thread, which has told of everything that anybody has an answer to.
        self.shared.shards.of(uid).call(move |router, _, _| {
            let mut list = lock(&channels).list(uid);
            for info in &mut list {
                info.bulk_bytes = router.bulk_bytes(info.id);
            }
            list
        })
    }

    /// How an agent's messages travel, and why.
    pub fn tier(&self, agent: AgentId) -> Tier {
        let id = peer_of(agent);
        let uid = lock(&self.shared.members).get(&id).map(|member| member.uid);
        let Some(uid) = uid else {
            return Tier::Socket(SocketOnly::NotConnected);
        };
        let shard = self.shared.shards.of(uid);
        shard.call(move |router, _, _| router.tier(id))
    }

    /// By which way a peer from outside has come.
    pub fn way(&self, id: PeerId) -> Option<String> {
        lock(&self.shared.members).get(&id)?.way.clone()
    }

    /// Listens in on what the router does, from now on.
    pub fn tap(&self, filter: TapFilter) -> Tap {
        let watch = filter.queue.as_deref();
        let watch = watch.map(|name| QueueWatch::new(&self.shared, name));
        let mut tap = self.shared.taps.listen(filter);
        tap.watch = watch;
        tap
    }

    /// The router threads.
    pub(super) fn shards(&self) -> &[Shard] {
        self.shared.shards.all()
    }

    /// Everybody on the bus, by user and name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let shards = self.shared.shards.all().iter();
        let mut peers: Vec<PeerStatus> = shards
            .flat_map(|shard| shard.call(|router, now, _| router.peers(now)))
            .collect();
        peers.sort_by(|a, b| (a.uid, &a.name).cmp(&(b.uid, &b.name)));
        peers
    }

    /// Connections and open requests of everybody.
    pub fn open(&self) -> (usize, usize) {
        let shards = self.shared.shards.all().iter();
        shards
            .map(|shard| shard.call(|router, _, _| (router.connections(), router.open_requests())))
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    pub(super) fn users(&self) -> &Users {
        &self.shared.users
    }

    /// Returns once the record has taken everything that was said so far.
    pub async fn flush(&self) {
        self.shared.record.flush().await;
    }
}

fn peer_of(agent: AgentId) -> PeerId {
    PeerId(*agent.0.as_bytes())
}

impl UserBus {
    /// Puts somebody on the bus; without rights of their own, a user.
    pub fn attach(&self, spec: PeerSpec, rights: Option<Rights>) -> Result<(), AttachRefused> {
        let (id, uid) = (spec.id, spec.uid);
        let mut members = lock(&self.shared.members);
        // A router knows only its own.
        if members.contains_key(&id) {
            return Err(AttachRefused::BadId { id });
        }
        self.shard
            .call(move |router, now, fx| router.attach(spec, now, fx))?;
        let way = None;
        members.insert(id, Member { uid, rights, way });
        Ok(())
    }

    /// A peer has come through the socket gateway.
    pub fn came_by(&self, id: PeerId, way: String) {
        if let Some(member) = lock(&self.shared.members).get_mut(&id) {
            member.way = Some(way);
        }
    }

    /// Somebody has left the bus.
    pub fn detach(&self, id: PeerId) {
        self.shard.detach(id);
        let mut members = lock(&self.shared.members);
        members.remove(&id);
        if let Some(paths) = self.shared.paths.get() {
            paths.end(id);
        }
    }

    /// Adds a connection of the daemon's own.
    pub fn connect(&self, peer: PeerId) -> Result<(ConnId, Arc<ConnHandle>), ConnectRefused> {
        let handle = Arc::new(ConnHandle::default());
        let connected = self.shard.connect(peer, ConnKind::Port, handle.clone());
        let id = connected.unwrap_or(Err(ConnectRefused::NoSuchPeer))?;
        Ok((id, handle))
    }

    /// The next frame for a connection of the daemon's own.
    pub async fn pull(&self, conn: ConnId) -> Option<Frame> {
        let pulled = self.shard.ask(move |router, _, fx| router.pull(conn, fx));
        pulled.await.flatten().map(|out| out.frame)
    }

    /// Says something on a connection of the daemon's own.
    pub fn say(&self, conn: ConnId, frame: Frame) {
        let said = self
            .shard
            .ask(move |router, now, fx| router.frame(conn, frame, None, now, fx));
        // What comes of it comes as frames.
        drop(said);
    }

    /// Removes a connection from the router.
    pub fn disconnect(&self, id: ConnId) {
        self.shard.closed(id);
    }

    /// Waits while the record is behind: how it pushes back on a flooding sender.
    pub async fn throttle(&self) {
        self.shared.record.throttle().await;
    }

    pub fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    pub fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }
}

async fn accept_loop(
    bus: UserBus,
    peer: PeerId,
    listener: tokio::net::UnixListener,
    gone: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = gone.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(socket::serve(bus.clone(), peer, stream));
            }
            Err(error) => {
                // Out of descriptors or memory: the connection stays queued, so look again in a while.
                tracing::warn!(agent = %peer, "bus accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
