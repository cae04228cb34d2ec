//! The bus server: one router behind a lock, a timer, and one accept loop per agent.
//!
//! The lock is held for one frame at a time and never across an await; what follows from a frame
//! (waking writers, closing connections, the record) happens after it is released. Runs on the
//! daemon's tokio runtime, unprivileged.

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use agentd_api::{AgentId, AgentIdentity};
use agentd_bus::access::Right;
use agentd_bus::channel::Tier;
use agentd_bus::frame::PeerId;
use agentd_bus::message::Status;
use agentd_bus::router::{
    AttachRefused, CloseReason, Closed, ConnId, ConnKind, ConnectRefused, Effects, Limits, Now,
    PeerSpec, PeerStatus, Router,
};
use agentd_sandbox::IpcRules;
use agentd_sandbox::rules::ipc::NamePattern;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::channels::{ChannelInfo, Channels, LeftBehind};
use super::memory::SharedFd;
use super::port::AgentPort;
use super::record::{MessageSink, Recorder};
use super::rights::Rights;
use super::socket;
use super::tap::{Tap, TapFilter, Taps};
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

/// What wakes the task that owns a connection.
#[derive(Debug, Default)]
pub(super) struct ConnHandle {
    /// The router has frames for it.
    pub wake: Notify,
    /// The writer made room.
    pub drained: Notify,
    /// `close_reason` was set.
    pub closing: Notify,
    pub close_reason: OnceLock<CloseReason>,
}

struct State {
    router: Router<SharedFd>,
    /// What each agent on the bus may do.
    rights: HashMap<PeerId, Rights>,
    handles: HashMap<ConnId, Arc<ConnHandle>>,
    /// The deadline that the timer task sleeps towards.
    armed_ns: Option<u64>,
}

/// The router and all that is around it.
pub(super) struct Shared {
    state: Mutex<State>,
    /// Locked while the state still is, so that news of channels keeps its order.
    channels: Mutex<Channels>,
    record: Recorder,
    taps: Arc<Taps>,
    users: Users,
    epoch: Instant,
    timer: Arc<Notify>,
    _stop_timer: DropGuard,
    runtime: Handle,
    limits: Limits,
}

impl BusServer {
    /// Starts the bus's timer on the current tokio runtime. Metadata of messages goes to `sink`.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(sink: Arc<dyn MessageSink>) -> Self {
        Self::start_with(sink, Limits::default())
    }

    /// As [`Self::start`], with other bounds.
    pub fn start_with(sink: Arc<dyn MessageSink>, limits: Limits) -> Self {
        let (timer, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                router: Router::new(limits),
                rights: HashMap::new(),
                handles: HashMap::new(),
                armed_ns: None,
            }),
            channels: Mutex::default(),
            record: Recorder::start(sink),
            taps: Arc::default(),
            users: Users::default(),
            epoch: Instant::now(),
            timer: timer.clone(),
            _stop_timer: stop.clone().drop_guard(),
            runtime: Handle::current(),
            limits,
        });
        tokio::spawn(run_timer(Arc::downgrade(&shared), timer, stop));
        Self { shared }
    }

    /// Puts an agent on the bus: its processes connect through `listener`, and the daemon acts for it
    /// through the port that is returned, until [`AgentPort::detach`].
    pub fn attach(
        &self,
        identity: AgentIdentity,
        rules: IpcRules,
        listener: UnixListener,
    ) -> Result<AgentPort, AttachError> {
        self.attach_less(identity, rules, &[], listener)
    }

    /// As [`Self::attach`], for an agent from which rights were [taken](Self::revoke) under an earlier daemon.
    pub fn attach_less(
        &self,
        identity: AgentIdentity,
        rules: IpcRules,
        revoked: &[(Right, String)],
        listener: UnixListener,
    ) -> Result<AgentPort, AttachError> {
        let parse = |(right, pattern): &(Right, String)| {
            let parsed = NamePattern::parse(pattern);
            let parsed = parsed.map_err(|why| format!("{pattern:?}: {why}"));
            Ok((*right, parsed?))
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
        let rights = Rights::less(rules, revoked);
        let spec = PeerSpec {
            id,
            uid: identity.uid,
            name: identity.name.clone(),
            short: identity.short,
            access: Arc::new(rights.clone()),
        };
        self.shared
            .with(|router, now, fx| router.attach(spec, now, fx))?;
        self.shared.lock().rights.insert(id, rights);
        let gone = CancellationToken::new();
        tokio::spawn(accept_loop(self.shared.clone(), id, listener, gone.clone()));
        Ok(AgentPort::start(self.shared.clone(), identity, gone))
    }

    /// Takes a right back from a running agent, for the names or topics that `pattern` covers, until it is
    /// [restored](Self::restore). What it has open under that right ends before this returns; the answer says
    /// how much that was.
    pub fn revoke(&self, agent: AgentId, right: Right, pattern: &str) -> Result<Closed, BusError> {
        let pattern = NamePattern::parse(pattern)
            .map_err(|why| BusError::new(Status::MALFORMED, format!("{pattern:?}: {why}")))?;
        self.change_rights(agent, |rights| rights.without(right, pattern))
    }

    /// Gives a running agent all back that was [revoked](Self::revoke). What had ended stays ended.
    pub fn restore(&self, agent: AgentId) -> Result<(), BusError> {
        self.change_rights(agent, Rights::restored).map(drop)
    }

    /// Puts other rules of its policy into force for a running agent. What was revoked stays so.
    pub fn set_rules(&self, agent: AgentId, rules: IpcRules) -> Result<Closed, BusError> {
        self.change_rights(agent, |rights| rights.with_rules(rules))
    }

    /// What was taken back from an agent; nothing for one that is not on the bus.
    pub fn revoked(&self, agent: AgentId) -> Vec<(Right, String)> {
        let state = self.shared.lock();
        let rights = state.rights.get(&peer_of(agent));
        rights.map(Rights::revoked).unwrap_or_default()
    }

    fn change_rights(
        &self,
        agent: AgentId,
        change: impl FnOnce(&Rights) -> Rights,
    ) -> Result<Closed, BusError> {
        let id = peer_of(agent);
        // Under one lock from the old rights to the new: two changes at a time are both kept.
        self.shared
            .with_state(|state, now, fx| {
                let rights = change(state.rights.get(&id)?);
                let access = Arc::new(rights.clone());
                state.rights.insert(id, rights);
                Some(state.router.set_access(id, access, now, fx))
            })
            .ok_or_else(|| {
                let text = format!("no agent with id {id} is on the bus");
                BusError::new(Status::NO_SUCH_AGENT, text)
            })
    }

    /// The lanes and logs of `uid`'s agents, with the figures that their sides show.
    pub fn channels(&self, uid: u32) -> Vec<ChannelInfo> {
        let mut list = self.shared.channels().list(uid);
        let state = self.shared.lock();
        for info in &mut list {
            info.bulk_bytes = state.router.bulk_bytes(info.id);
        }
        list
    }

    /// How an agent's messages travel, and why.
    pub fn tier(&self, agent: AgentId) -> Tier {
        self.shared.lock().router.tier(peer_of(agent))
    }

    /// Listens in on what the router does, from now on.
    pub fn tap(&self, filter: TapFilter) -> Tap {
        self.shared.taps.listen(filter)
    }

    /// Everybody on the bus, by user and name.
    pub fn peers(&self) -> Vec<PeerStatus> {
        self.shared.with(|router, now, _| router.peers(now))
    }

    /// Connections and open requests of everybody.
    pub fn open(&self) -> (usize, usize) {
        self.shared
            .with(|router, _, _| (router.connections(), router.open_requests()))
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Returns once the record has taken everything that was said so far.
    pub async fn flush(&self) {
        self.shared.record.flush().await;
    }
}

fn peer_of(agent: AgentId) -> PeerId {
    PeerId(*agent.0.as_bytes())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic inside the router is a bug that ends that task; the bus of everyone else goes on.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub fn users(&self) -> &Users {
        &self.users
    }

    pub fn now(&self) -> Now {
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

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs `act` on the router and does what follows from it. Who feeds in what agents say awaits
    /// [`Self::throttle`] next.
    pub fn with<R>(
        &self,
        act: impl FnOnce(&mut Router<SharedFd>, Now, &mut Effects<SharedFd>) -> R,
    ) -> R {
        self.with_state(|state, now, fx| act(&mut state.router, now, fx))
    }

    fn with_state<R>(&self, act: impl FnOnce(&mut State, Now, &mut Effects<SharedFd>) -> R) -> R {
        let mut fx = Effects::default();
        let now = self.now();
        let mut state = self.lock();
        let result = act(&mut state, now, &mut fx);
        for id in &fx.wake {
            if let Some(handle) = state.handles.get(id) {
                handle.wake.notify_one();
            }
        }
        for (id, reason) in fx.close {
            if let Some(handle) = state.handles.get(&id) {
                // Only the first reason counts.
                handle.close_reason.get_or_init(|| reason);
                handle.closing.notify_one();
            }
        }
        let next = state.router.next_deadline_ns();
        if next.is_some_and(|next| state.armed_ns.is_none_or(|armed| next < armed)) {
            state.armed_ns = next;
            self.timer.notify_one();
        }
        // Under the lock, so that the record and the taps have the router's order.
        self.taps.offer(&fx.record);
        self.record.push(fx.record);
        if !fx.channels.is_empty() {
            let mut channels = self.channels();
            drop(state);
            let left = channels.apply(fx.channels);
            drop(channels);
            if !left.is_empty() {
                self.note_left_behind(left);
            }
        }
        result
    }

    /// Puts on record what readers left behind. Not generic: what calls this must not be made anew for it.
    fn note_left_behind(&self, left: Vec<LeftBehind>) {
        self.with_state(|state, now, fx| {
            for LeftBehind {
                channel,
                unread,
                status,
            } in left
            {
                state.router.note_unread(&channel, unread, status, now, fx);
            }
        });
    }

    /// An agent has left the bus.
    pub fn detach(&self, id: PeerId) {
        self.with_state(|state, now, fx| {
            state.router.detach(id, now, fx);
            state.rights.remove(&id);
        });
    }

    /// Waits while the record is behind: how it pushes back on a flooding sender.
    pub async fn throttle(&self) {
        self.record.throttle().await;
    }

    /// Adds a connection and its wake-up handle in one step, so that no wake-up is missed.
    pub fn connect(
        &self,
        peer: PeerId,
        kind: ConnKind,
    ) -> Result<(ConnId, Arc<ConnHandle>), ConnectRefused> {
        let now = self.now();
        let mut state = self.lock();
        let id = state.router.connect(peer, kind, now)?;
        let handle = Arc::new(ConnHandle::default());
        state.handles.insert(id, handle.clone());
        Ok((id, handle))
    }

    /// Removes a connection from the router and forgets its handle.
    pub fn disconnect(&self, id: ConnId) {
        self.with(|router, now, fx| router.disconnect(id, now, fx));
        self.lock().handles.remove(&id);
    }

    pub fn is_congested(&self, id: ConnId) -> bool {
        self.lock().router.is_congested(id)
    }

    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

/// Expires deadlines until the bus is dropped. Holds no share of it while it sleeps.
async fn run_timer(shared: Weak<Shared>, changed: Arc<Notify>, stop: CancellationToken) {
    loop {
        let Some(bus) = shared.upgrade() else { return };
        bus.with(|router, now, fx| router.tick(now, fx));
        let next = {
            let mut state = bus.lock();
            state.armed_ns = state.router.next_deadline_ns();
            state.armed_ns
        };
        let now = bus.now().mono_ns;
        drop(bus);
        let due = async {
            match next {
                Some(at) => tokio::time::sleep(Duration::from_nanos(at.saturating_sub(now))).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = changed.notified() => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn accept_loop(
    shared: Arc<Shared>,
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
            Ok((stream, _)) => match shared.connect(peer, ConnKind::Socket) {
                Ok((id, handle)) => {
                    tokio::spawn(socket::serve(shared.clone(), id, handle, stream));
                }
                Err(refused) => socket::refuse(&stream, &refused),
            },
            Err(error) => {
                // Out of descriptors or memory: the connection stays queued, so look again in a while.
                tracing::warn!(agent = %peer, "bus accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
