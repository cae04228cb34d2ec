//! The daemon's line to the broker: many requests in flight over one packet socket, and another broker when it dies.
//!
//! One task receives. Replies find their caller by request id; `Gone` events find the session of their slot. A broker that
//! is killed is replaced by its supervisor; the link connects to the successor at the same socket, says hello, and hands
//! every agent back with `Adopt`. Meanwhile requests wait; those that were under way are sent again, except launches,
//! whose grants are used up. When nobody serves the socket any more, every pending and later request fails with
//! [`BrokerError::Gone`], and the daemon ends, because it has given up the right to start another (ADR 9).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentd_bpf::{Group, Right};
use agentd_broker::client::{self, ClientError, HeldAgent, Incoming, LaunchedAgent, PlaneTables};
use agentd_broker::protocol::{self, ErrorCode, Gone, Launch, Reply, Request, Slot, Stats};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use super::hold::Hold;
use super::status::StatusLink;

/// How long a successor may take to greet and take every agent back. Generous, since agentd ends when it is over.
const SUCCESSION_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("agentd-broker has gone; agentd ends with it and must be started again")]
    Gone,
    #[error("agentd-broker died while it did this; its successor serves, so try again")]
    Lost,
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot hand the plan to agentd-broker")]
    Plan(#[source] io::Error),
    #[error("cannot use what agentd-broker sent")]
    Descriptor(#[source] io::Error),
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct BrokerLink {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Where successors serve.
    socket_path: PathBuf,
    /// Its closing, by the end of this process, is what brokers and inits wait for.
    lifeline: Lifeline,
    line: watch::Sender<Line>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Lifeline {
    read: OwnedFd,
    /// Held, never written.
    _write: OwnedFd,
}

#[derive(Debug, Clone)]
enum Line {
    Up(Arc<AsyncFd<OwnedFd>>),
    /// Between a broker and its successor.
    Down,
    Gone,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u64,
    replies: HashMap<u64, oneshot::Sender<Incoming>>,
    /// Sessions that wait for their slot's end, and ends that came before anyone waited.
    ends: HashMap<Slot, End>,
    /// What a successor is handed.
    holds: BTreeMap<Slot, Hold>,
}

#[derive(Debug)]
enum End {
    Awaited(oneshot::Sender<Gone>),
    Came(Gone),
}

/// Whether a request may be made again when the broker died before it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Safe,
    Never,
}

impl BrokerLink {
    /// Takes the socket over after the hello, whose request was `last_id`, and starts the receiving task. Successors of
    /// this broker serve at `socket_path`.
    pub fn start(socket: OwnedFd, last_id: u64, socket_path: PathBuf) -> io::Result<Self> {
        let socket = watch_socket(socket)?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let inner = Arc::new(Inner {
            socket_path,
            lifeline: Lifeline {
                read,
                _write: write,
            },
            line: watch::Sender::new(Line::Up(Arc::clone(&socket))),
            waiting: Mutex::new(Waiting {
                last_id,
                ..Waiting::default()
            }),
        });
        tokio::spawn(Arc::clone(&inner).serve(socket));
        Ok(Self { inner })
    }

    /// Resolves when the broker has gone and nobody follows it.
    pub async fn gone(&self) {
        let mut line = self.inner.line.subscribe();
        // The sender lives in `inner`, so waiting ends only by the value.
        if line
            .wait_for(|line| matches!(line, Line::Gone))
            .await
            .is_err()
        {
            tracing::debug!("broker link dropped");
        }
    }

    /// Starts an agent, whose init writes its end to `status_file`. `caller` is used only where no grant attests one.
    /// The slot is handed to a successor of the broker from here on.
    pub async fn launch(
        &self,
        plan: &[u8],
        status_file: BorrowedFd<'_>,
        grants: &[OwnedFd],
        caller: (u32, u32),
    ) -> Result<(Hold, StatusLink), BrokerError> {
        let memfd = client::seal_plan(plan).map_err(BrokerError::Plan)?;
        let launch = Launch {
            plan_len: u32::try_from(plan.len()).unwrap_or(u32::MAX),
            grants: u32::try_from(grants.len()).unwrap_or(u32::MAX),
            caller_uid: caller.0,
            caller_gid: caller.1,
        };
        let fds: Vec<_> = [memfd.as_fd(), status_file]
            .into_iter()
            .chain(grants.iter().map(|g| g.as_fd()))
            .collect();
        let request = Request::Launch(launch);
        let launched: LaunchedAgent = self.call(&request, &fds, Again::Never).await?.try_into()?;
        let slot = launched.info.slot;
        match self.hold(launched.info, launched.pidfd, launched.status) {
            Ok(held) => Ok(held),
            Err(error) => {
                self.discard(slot).await;
                Err(error)
            }
        }
    }

    /// The agent of an earlier agentd with the lowest slot above `after`.
    pub async fn next_held(&self, after: Option<Slot>) -> Result<Option<HeldAgent>, BrokerError> {
        let incoming = self
            .call(&Request::Next { after }, &[], Again::Safe)
            .await?;
        match HeldAgent::from_reply(incoming) {
            Err(error) if is_unsupported(&error) => Ok(None),
            held => Ok(held?),
        }
    }

    /// From here on a slot is handed to a successor of the broker.
    pub fn hold(
        &self,
        info: protocol::Launched,
        pidfd: OwnedFd,
        status: OwnedFd,
    ) -> Result<(Hold, StatusLink), BrokerError> {
        let slot = info.slot;
        let hold = Hold::new(info, pidfd, status.as_fd()).map_err(BrokerError::Descriptor)?;
        let status = StatusLink::new(status).map_err(BrokerError::Descriptor)?;
        self.inner.waiting().holds.insert(slot, hold.clone());
        Ok((hold, status))
    }

    /// Makes this process the agentd whose death the init behind `status` waits for.
    pub fn renew_lifeline(&self, status: &StatusLink) -> io::Result<()> {
        status.renew_lifeline(self.inner.lifeline.read.as_fd())
    }

    /// An agent of an earlier agentd had ended before anybody asked.
    pub fn ended_before(&self, gone: Gone) {
        self.inner.end(gone);
    }

    /// Has the broker keep `fds` for the slot instead of what it kept before.
    pub async fn keep(&self, slot: Slot, fds: &[BorrowedFd<'_>]) -> Result<(), BrokerError> {
        let count = u32::try_from(fds.len()).unwrap_or(u32::MAX);
        match self.done(Request::Keep { slot, count }, fds).await {
            Err(BrokerError::Client(error)) if is_unsupported(&error) => {
                tracing::debug!(%slot, "this agentd-broker keeps nothing: its agents end with this agentd");
                Ok(())
            }
            kept => kept,
        }
    }

    /// What there is of the kernel plane, with the tables that agentd may read.
    pub async fn plane(&self) -> Result<PlaneTables, BrokerError> {
        Ok(self
            .call(&Request::Plane, &[], Again::Safe)
            .await?
            .try_into()?)
    }

    /// The socket on which Landlock's records arrive, or why there is none. A broker of an earlier version has none.
    pub async fn audit(&self) -> Result<OwnedFd, String> {
        let answer = self.call(&Request::Audit, &[], Again::Safe).await;
        let answer = answer.map_err(|error| error.to_string())?;
        client::audit_from_reply(answer).map_err(|error| error.to_string())?
    }

    /// Records of its audit that the kernel itself has lost.
    pub async fn audit_lost(&self) -> Result<u64, BrokerError> {
        let incoming = self.call(&Request::AuditLost, &[], Again::Safe).await?;
        match incoming.reply {
            Reply::Count(lost) => Ok(lost),
            Reply::Failed(failure) => Err(ClientError::Refused(failure).into()),
            _ => Err(ClientError::Unexpected {
                expected: "count",
                got: "another reply",
            }
            .into()),
        }
    }

    /// Why a group of the kernel plane's programs is not there.
    pub async fn absent(&self, group: Group) -> Result<String, BrokerError> {
        let incoming = self.call(&Request::Absent(group), &[], Again::Safe).await?;
        match incoming.reply {
            Reply::Reason(why) => Ok(why),
            Reply::Failed(failure) => Err(ClientError::Refused(failure).into()),
            _ => Err(ClientError::Unexpected {
                expected: "reason",
                got: "another reply",
            }
            .into()),
        }
    }

    /// Leaves the agents to the next agentd.
    pub async fn detach(&self) -> Result<(), BrokerError> {
        self.done(Request::Detach, &[]).await
    }

    /// Kills everything in the slot at once.
    pub async fn kill(&self, slot: Slot) -> Result<(), BrokerError> {
        self.done(Request::Kill(slot), &[]).await
    }

    /// Sets what the slot may no longer do in the kernel: a set of `revoked` bits, and the ports that stay reachable.
    pub async fn restrict(
        &self,
        slot: Slot,
        revoked: u32,
        kept_ports: [u16; 8],
    ) -> Result<(), BrokerError> {
        let request = Request::Restrict {
            slot,
            revoked,
            kept_ports,
        };
        self.done(request, &[]).await
    }

    /// Lets one agent ask another by the direct path, or no longer; both by their addresses.
    pub async fn route(&self, from: u64, to: u64, right: Right) -> Result<(), BrokerError> {
        self.done(Request::Route { from, to, right }, &[]).await
    }

    /// Holds the slot's cgroup to these limits instead of all those before.
    pub async fn limit(&self, slot: Slot, limits: protocol::Limits) -> Result<(), BrokerError> {
        self.done(Request::Limit { slot, limits }, &[]).await
    }

    /// Stops every process in the slot.
    pub async fn freeze(&self, slot: Slot) -> Result<(), BrokerError> {
        self.done(Request::Freeze(slot), &[]).await
    }

    /// Lets the slot's processes run again.
    pub async fn thaw(&self, slot: Slot) -> Result<(), BrokerError> {
        self.done(Request::Thaw(slot), &[]).await
    }

    /// What the slot uses now.
    pub async fn stat(&self, slot: Slot) -> Result<Stats, BrokerError> {
        let incoming = self.call(&Request::Stat(slot), &[], Again::Safe).await?;
        match incoming.reply {
            Reply::Stats(stats) => Ok(stats),
            Reply::Failed(failure) => Err(ClientError::Refused(failure).into()),
            _ => Err(ClientError::Unexpected {
                expected: "stats",
                got: "another reply",
            }
            .into()),
        }
    }

    /// Resolves with the slot's last figures when its init is reaped and its cgroup removed.
    pub async fn end_of(&self, slot: Slot) -> Result<Gone, BrokerError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.inner.waiting();
            if let Some(End::Came(gone)) = waiting.ends.remove(&slot) {
                return Ok(gone);
            }
            if matches!(*self.inner.line.borrow(), Line::Gone) {
                return Err(BrokerError::Gone);
            }
            waiting.ends.insert(slot, End::Awaited(sender));
        }
        receiver.await.map_err(|_| BrokerError::Gone)
    }

    /// Gives the slot's number back. Only after [`BrokerLink::end_of`], and nothing may name the slot afterwards: the next
    /// launch may get it.
    pub async fn release(&self, slot: Slot) -> Result<(), BrokerError> {
        // First, so that a successor of the broker is not handed a slot that is free.
        self.inner.waiting().holds.remove(&slot);
        self.done(Request::Release(slot), &[]).await
    }

    /// Ends what a launch that came to nothing left in the slot, and frees it.
    pub async fn discard(&self, slot: Slot) {
        let discarded = async {
            self.kill(slot).await?;
            self.end_of(slot).await?;
            self.release(slot).await
        };
        if let Err(error) = discarded.await {
            tracing::error!(%slot, "after a failed launch: {error}");
        }
    }

    async fn done(&self, request: Request, fds: &[BorrowedFd<'_>]) -> Result<(), BrokerError> {
        done(self.call(&request, fds, Again::Safe).await?)
    }

    /// Makes a request of whichever broker serves.
    async fn call(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
        again: Again,
    ) -> Result<Incoming, BrokerError> {
        let mut line = self.inner.line.subscribe();
        loop {
            // The sender lives in `inner`.
            let up = match line.wait_for(|line| !matches!(line, Line::Down)).await {
                Ok(line) => line.clone(),
                Err(_) => Line::Gone,
            };
            let Line::Up(socket) = up else {
                return Err(BrokerError::Gone);
            };
            match self.inner.call(&socket, request, fds).await {
                Err(BrokerError::Lost | BrokerError::Client(ClientError::Gone)) => {
                    if again == Again::Never {
                        return Err(BrokerError::Lost);
                    }
                    // The receiving task has seen the same end, or is about to.
                    let over =
                        |line: &Line| !matches!(line, Line::Up(now) if Arc::ptr_eq(now, &socket));
                    if line.wait_for(over).await.is_err() {
                        return Err(BrokerError::Gone);
                    }
                }
                other => return other,
            }
        }
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives from one broker after another, until nobody follows.
    async fn serve(self: Arc<Self>, mut socket: Arc<AsyncFd<OwnedFd>>) {
        loop {
            let why = self.receive_all(&socket).await;
            tracing::warn!("agentd-broker: {why}; looking for its successor");
            self.line.send_replace(Line::Down);
            // Whoever waits for a reply learns that none will come.
            self.waiting().replies.clear();
            match tokio::time::timeout(SUCCESSION_LIMIT, self.succeed()).await {
                Ok(Ok(successor)) => {
                    tracing::info!("another agentd-broker serves");
                    self.line.send_replace(Line::Up(Arc::clone(&successor)));
                    socket = successor;
                }
                failed => {
                    match failed {
                        Ok(Err(error)) => tracing::error!("nobody follows agentd-broker: {error}"),
                        _ => tracing::error!("the next agentd-broker does not answer"),
                    }
                    let mut waiting = self.waiting();
                    self.line.send_replace(Line::Gone);
                    *waiting = Waiting::default();
                    return;
                }
            }
        }
    }

    /// Connects to the next broker and hands it every agent.
    async fn succeed(&self) -> Result<Arc<AsyncFd<OwnedFd>>, BrokerError> {
        let socket = self
            .connect()
            .and_then(watch_socket)
            .map_err(|e| BrokerError::Client(ClientError::Send(e)))?;
        let hand_over = async {
            let version = protocol::VERSION;
            let lifeline = self.lifeline.read.as_fd();
            let hello = self
                .call(&socket, &Request::Hello { version }, &[lifeline])
                .await?;
            if !matches!(hello.reply, Reply::Welcome(_)) {
                done(hello)?;
            }
            let holds: Vec<Hold> = self.waiting().holds.values().cloned().collect();
            for hold in holds {
                self.hand_back(&socket, &hold).await?;
            }
            Ok(())
        };
        let handed: Result<(), BrokerError> = tokio::select! {
            handed = hand_over => handed,
            why = self.receive_all(&socket) => Err(why.into()),
        };
        handed.map(|()| socket)
    }

    async fn hand_back(&self, socket: &AsyncFd<OwnedFd>, hold: &Hold) -> Result<(), BrokerError> {
        let request = Request::Adopt(hold.info().clone());
        // Duplicates: nothing of the hold may stay borrowed while a reply is awaited.
        let fds = hold.duplicate().map_err(BrokerError::Descriptor)?;
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        match done(self.call(socket, &request, &fds).await?) {
            Err(BrokerError::Client(ClientError::Refused(failure))) => {
                tracing::warn!(slot = %hold.slot(), "the next agentd-broker does not take it: {failure}");
                self.end(Gone {
                    slot: hold.slot(),
                    pid: hold.info().pid,
                    wait_status: None,
                    stats: Stats::default(),
                });
                Ok(())
            }
            other => other,
        }
    }

    fn connect(&self) -> io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&self.socket_path)?)?;
        Ok(socket)
    }

    /// Makes a request over `socket`. [`BrokerError::Lost`] when it ends before the reply.
    async fn call(
        &self,
        socket: &AsyncFd<OwnedFd>,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Incoming, BrokerError> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut waiting = self.waiting();
            waiting.last_id += 1;
            let id = waiting.last_id;
            waiting.replies.insert(id, sender);
            id
        };
        loop {
            let mut guard = socket
                .ready(Interest::WRITABLE)
                .await
                .map_err(|_| BrokerError::Lost)?;
            match client::try_send(socket.get_ref().as_fd(), id, request, fds) {
                Ok(()) => break,
                Err(error) if error.is_would_block() => guard.clear_ready(),
                Err(error) => {
                    self.waiting().replies.remove(&id);
                    return Err(error.into());
                }
            }
        }
        receiver.await.map_err(|_| BrokerError::Lost)
    }

    async fn receive_all(&self, socket: &AsyncFd<OwnedFd>) -> ClientError {
        loop {
            let Ok(mut guard) = socket.ready(Interest::READABLE).await else {
                return ClientError::Gone;
            };
            match client::try_receive(socket.get_ref().as_fd()) {
                Ok(incoming) => self.dispatch(incoming),
                Err(error) if error.is_would_block() => guard.clear_ready(),
                Err(error) => return error,
            }
        }
    }

    fn dispatch(&self, incoming: Incoming) {
        if let Reply::Gone(gone) = incoming.reply {
            return self.end(gone);
        }
        match self.waiting().replies.remove(&incoming.request) {
            Some(caller) => drop(caller.send(incoming)),
            None => tracing::warn!(
                request = incoming.request,
                "agentd-broker answered a request that nobody made"
            ),
        }
    }

    fn end(&self, gone: Gone) {
        let mut waiting = self.waiting();
        match waiting.ends.remove(&gone.slot) {
            // A session that no longer listens has nothing left to learn.
            Some(End::Awaited(session)) => drop(session.send(gone)),
            _ => drop(waiting.ends.insert(gone.slot, End::Came(gone))),
        }
    }
}

fn is_unsupported(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(failure) if failure.code == ErrorCode::Unsupported)
}

fn watch_socket(socket: OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(Arc::new(super::watch_fd(socket)?))
}

fn done(incoming: Incoming) -> Result<(), BrokerError> {
    match incoming.reply {
        Reply::Done => Ok(()),
        Reply::Failed(failure) => Err(ClientError::Refused(failure).into()),
        _ => Err(ClientError::Unexpected {
            expected: "done",
            got: "another reply",
        }
        .into()),
    }
}
