//! The daemon's line to the broker: many requests in flight over one packet socket.
//!
//! One task receives. Replies find their caller by request id; `Gone` events find the session of their slot. When the
//! broker goes away every pending and later request fails with [`BrokerError::Gone`], and the daemon ends, because
//! it has given up the right to start another (ADR 9).

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentd_broker::client::{self, ClientError, Incoming, LaunchedAgent};
use agentd_broker::protocol::{Gone, Launch, Reply, Request, Slot, Stats};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("agentd-broker has gone; agentd ends with it and must be started again")]
    Gone,
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot hand the plan to agentd-broker")]
    Plan(#[source] std::io::Error),
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct BrokerLink {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    socket: AsyncFd<OwnedFd>,
    waiting: Mutex<Waiting>,
    gone: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    last_id: u64,
    replies: HashMap<u64, oneshot::Sender<Incoming>>,
    /// Sessions that wait for their slot's end, and ends that came before anyone waited.
    ends: HashMap<Slot, End>,
}

#[derive(Debug)]
enum End {
    Awaited(oneshot::Sender<Gone>),
    Came(Gone),
}

impl BrokerLink {
    /// Takes the socket over after the hello, whose request was `last_id`, and starts the receiving task.
    pub fn start(socket: OwnedFd, last_id: u64) -> std::io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let inner = Arc::new(Inner {
            socket: super::watch_fd(socket)?,
            waiting: Mutex::new(Waiting {
                last_id,
                ..Waiting::default()
            }),
            gone: watch::Sender::new(false),
        });
        let receiver = Arc::clone(&inner);
        tokio::spawn(async move {
            let error = receiver.receive_all().await;
            tracing::debug!("broker link ended: {error}");
            receiver.gone.send_replace(true);
            *receiver.waiting() = Waiting::default();
        });
        Ok(Self { inner })
    }

    /// Resolves when the broker has gone.
    pub async fn gone(&self) {
        let mut gone = self.inner.gone.subscribe();
        // The sender lives in `inner`, so waiting ends only by the value.
        if gone.wait_for(|gone| *gone).await.is_err() {
            tracing::debug!("broker link dropped");
        }
    }

    /// Starts an agent, whose init writes its end to `status_file`. `caller` is used only where no grant attests one.
    pub async fn launch(
        &self,
        plan: &[u8],
        status_file: BorrowedFd<'_>,
        grants: &[OwnedFd],
        caller: (u32, u32),
    ) -> Result<LaunchedAgent, BrokerError> {
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
        Ok(self
            .call(&Request::Launch(launch), &fds)
            .await?
            .try_into()?)
    }

    /// Kills everything in the slot at once.
    pub async fn kill(&self, slot: Slot) -> Result<(), BrokerError> {
        self.done(Request::Kill(slot)).await
    }

    /// What the slot uses now.
    pub async fn stat(&self, slot: Slot) -> Result<Stats, BrokerError> {
        match self.call(&Request::Stat(slot), &[]).await?.reply {
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
            if *self.inner.gone.borrow() {
                return Err(BrokerError::Gone);
            }
            waiting.ends.insert(slot, End::Awaited(sender));
        }
        receiver.await.map_err(|_| BrokerError::Gone)
    }

    /// Gives the slot's number back. Only after [`BrokerLink::end_of`], and nothing may name the slot afterwards: the next
    /// launch may get it.
    pub async fn release(&self, slot: Slot) -> Result<(), BrokerError> {
        self.done(Request::Release(slot)).await
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

    async fn done(&self, request: Request) -> Result<(), BrokerError> {
        match self.call(&request, &[]).await?.reply {
            Reply::Done => Ok(()),
            Reply::Failed(failure) => Err(ClientError::Refused(failure).into()),
            _ => Err(ClientError::Unexpected {
                expected: "done",
                got: "another reply",
            }
            .into()),
        }
    }

    async fn call(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Incoming, BrokerError> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut waiting = self.inner.waiting();
            if *self.inner.gone.borrow() {
                return Err(BrokerError::Gone);
            }
            waiting.last_id += 1;
            let id = waiting.last_id;
            waiting.replies.insert(id, sender);
            id
        };
        loop {
            let mut guard = self
                .inner
                .socket
                .ready(Interest::WRITABLE)
                .await
                .map_err(|_| BrokerError::Gone)?;
            match client::try_send(self.inner.socket.get_ref().as_fd(), id, request, fds) {
                Ok(()) => break,
                Err(error) if error.is_would_block() => guard.clear_ready(),
                Err(error) => {
                    self.inner.waiting().replies.remove(&id);
                    return Err(error.into());
                }
            }
        }
        receiver.await.map_err(|_| BrokerError::Gone)
    }
}

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive_all(&self) -> ClientError {
        loop {
            let Ok(mut guard) = self.socket.ready(Interest::READABLE).await else {
                return ClientError::Gone;
            };
            match client::try_receive(self.socket.get_ref().as_fd()) {
                Ok(incoming) => self.dispatch(incoming),
                Err(error) if error.is_would_block() => guard.clear_ready(),
                Err(error) => return error,
            }
        }
    }

    fn dispatch(&self, incoming: Incoming) {
        let mut waiting = self.waiting();
        if let Reply::Gone(gone) = incoming.reply {
            match waiting.ends.remove(&gone.slot) {
                // A session that no longer listens has nothing left to learn.
                Some(End::Awaited(session)) => drop(session.send(gone)),
                _ => drop(waiting.ends.insert(gone.slot, End::Came(gone))),
            }
            return;
        }
        match waiting.replies.remove(&incoming.request) {
            Some(caller) => drop(caller.send(incoming)),
            None => tracing::warn!(
                request = incoming.request,
                "agentd-broker answered a request that nobody made"
            ),
        }
    }
}
