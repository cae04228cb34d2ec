//! One slot of the broker as agentd holds it: what to hand to a new broker, and what the broker keeps for a new agentd.
//!
//! The descriptors are duplicates of those in use, so that they can be given away at any time. One that is closed on
//! purpose, such as a stdin at its end, has to leave the hold *first*: as long as anybody keeps it, the agent sees no end
//! of file. Shared between the tasks of one agent and the broker link; no privilege.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use agentd_broker::protocol::{Launched, Slot};

use super::broker::{BrokerError, BrokerLink};
use super::kept::{Descriptors, Kept, KeptError};

/// A slot. Clones share it.
#[derive(Debug, Clone)]
pub struct Hold {
    inner: Arc<Inner>,
}

/// A slot for what outlives the agent: it keeps no descriptor open.
#[derive(Debug, Clone)]
pub struct WeakHold {
    inner: Weak<Inner>,
}

impl WeakHold {
    /// `None` once the agent has ended: the slot may be another's by then.
    pub fn upgrade(&self) -> Option<Hold> {
        let inner = self.inner.upgrade()?;
        Some(Hold { inner })
    }
}

#[derive(Debug)]
struct Inner {
    info: Launched,
    pidfd: OwnedFd,
    status: OwnedFd,
    kept: Mutex<Arc<Keepsakes>>,
    /// One change at a time, so that the last one is what the broker has.
    changing: tokio::sync::Mutex<()>,
}

/// What the broker keeps: the document first. Empty while the agent is being launched.
#[derive(Debug, Default)]
struct Keepsakes {
    kept: Option<Kept>,
    document: Option<OwnedFd>,
    named: Descriptors,
}

impl Keepsakes {
    fn new(mut kept: Kept, named: Descriptors) -> Result<Self, KeptError> {
        kept.descriptors = named.iter().map(|(name, _)| name.clone()).collect();
        Ok(Self {
            document: Some(kept.to_fd()?),
            kept: Some(kept),
            named,
        })
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let document = self.document.iter().map(|fd| fd.as_fd());
        document
            .chain(self.named.iter().map(|(_, fd)| fd.as_fd()))
            .collect()
    }
}

/// Why the broker doesn't keep it.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    #[error(transparent)]
    Kept(#[from] KeptError),
    #[error("cannot duplicate a descriptor of the agent")]
    Duplicate(#[source] std::io::Error),
    #[error("agentd-broker does not keep the agent's state: {0}")]
    Broker(#[from] BrokerError),
}

impl Hold {
    /// A slot of which nothing is kept yet.
    pub fn new(info: Launched, pidfd: OwnedFd, status: BorrowedFd<'_>) -> std::io::Result<Self> {
        Ok(Self {
            inner: Arc::new(Inner {
                info,
                pidfd,
                status: status.try_clone_to_owned()?,
                kept: Mutex::default(),
                changing: tokio::sync::Mutex::default(),
            }),
        })
    }

    pub fn downgrade(&self) -> WeakHold {
        WeakHold {
            inner: Arc::downgrade(&self.inner),
        }
    }

    pub fn slot(&self) -> Slot {
        self.inner.info.slot
    }

    pub fn info(&self) -> &Launched {
        &self.inner.info
    }

    /// What a new broker gets with `Adopt`: pidfd, status socket, and what is kept.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn duplicate(&self) -> std::io::Result<Vec<OwnedFd>> {
        let kept = Arc::clone(&self.kept());
        let own = [self.inner.pidfd.as_fd(), self.inner.status.as_fd()];
        own.into_iter()
            .chain(kept.fds())
            .map(|fd| fd.try_clone_to_owned())
            .collect()
    }

    /// Has the broker keep `kept` and duplicates of `descriptors`, instead of what it kept before.
    ///
    /// # Errors
    /// [`HoldError`]; the broker keeps what it had.
    pub async fn keep(
        &self,
        broker: &BrokerLink,
        kept: Kept,
        descriptors: &[(String, BorrowedFd<'_>)],
    ) -> Result<(), HoldError> {
        let mut named = Descriptors::new();
        for (name, fd) in descriptors {
            let fd = fd.try_clone_to_owned().map_err(HoldError::Duplicate)?;
            named.push((name.clone(), fd));
        }
        let _turn = self.inner.changing.lock().await;
        self.put(broker, kept, named).await
    }

    /// What is kept was given by an earlier agentd and is still with the broker.
    ///
    /// # Errors
    /// [`HoldError::Kept`].
    pub fn recall(&self, kept: Kept, named: Descriptors) -> Result<(), HoldError> {
        *self.kept() = Arc::new(Keepsakes::new(kept, named)?);
        Ok(())
    }

    /// Changes the document.
    ///
    /// # Errors
    /// [`HoldError`]; the broker keeps what it had.
    pub async fn change(
        &self,
        broker: &BrokerLink,
        change: impl FnOnce(&mut Kept),
    ) -> Result<(), HoldError> {
        let _turn = self.inner.changing.lock().await;
        let (kept, named) = self.copy(|_| true)?;
        let Some(mut kept) = kept else { return Ok(()) };
        change(&mut kept);
        self.put(broker, kept, named).await
    }

    /// Forgets the descriptors called `names`, which are about to be closed.
    ///
    /// # Errors
    /// [`HoldError`]; the broker keeps what it had.
    pub async fn forget(&self, broker: &BrokerLink, names: &[&str]) -> Result<(), HoldError> {
        let _turn = self.inner.changing.lock().await;
        let (kept, named) = self.copy(|name| !names.contains(&name))?;
        let Some(kept) = kept else { return Ok(()) };
        if named.len() == kept.descriptors.len() {
            return Ok(());
        }
        self.put(broker, kept, named).await
    }

    fn copy(
        &self,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(Option<Kept>, Descriptors), HoldError> {
        let now = Arc::clone(&self.kept());
        let mut named = Descriptors::new();
        for (name, fd) in now.named.iter().filter(|(name, _)| wanted(name)) {
            named.push((name.clone(), fd.try_clone().map_err(HoldError::Duplicate)?));
        }
        Ok((now.kept.clone(), named))
    }

    /// Under the lock `changing`.
    async fn put(
        &self,
        broker: &BrokerLink,
        kept: Kept,
        named: Descriptors,
    ) -> Result<(), HoldError> {
        let next = Keepsakes::new(kept, named)?;
        broker.keep(self.slot(), &next.fds()).await?;
        *self.kept() = Arc::new(next);
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Arc<Keepsakes>> {
        self.inner
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
