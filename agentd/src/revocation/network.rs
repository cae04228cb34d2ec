//! The switch between an agent and the egress proxy: open connections through it end when the network is revoked.
//!
//! The kernel drops an agent's packets by itself; this is for the other end. What agentd holds open towards the network is
//! closed, and the agent's side is reset, so that a program that waits for an answer learns that none comes. Runs in the
//! daemon's runtime, without privilege. A connection that comes in while the switch is off is closed unread.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// One agent's way to the network.
#[derive(Debug)]
pub struct NetworkSwitch {
    /// The agent's session: its end is the end of every connection.
    session: CancellationToken,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Cancelled when the network is revoked; another one when it is restored.
    on: CancellationToken,
    /// The agent's ends of what is open, by number.
    open: BTreeMap<u64, OwnedFd>,
    last: u64,
}

/// One connection that was let in. Leaves the switch when it is dropped.
#[derive(Debug)]
pub struct Admitted {
    switch: Arc<NetworkSwitch>,
    number: u64,
    /// Cancelled when the connection has to end.
    pub cancel: CancellationToken,
}

impl NetworkSwitch {
    /// A switch that is on, for as long as `session`.
    pub fn new(session: CancellationToken) -> Arc<Self> {
        let on = session.child_token();
        Arc::new(Self {
            session,
            inner: Mutex::new(Inner {
                on,
                open: BTreeMap::new(),
                last: 0,
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection of the agent in; nothing while the network is revoked.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn admit(self: &Arc<Self>, agent: BorrowedFd<'_>) -> std::io::Result<Option<Admitted>> {
        let copy = agent.try_clone_to_owned()?;
        let mut inner = self.inner();
        if inner.on.is_cancelled() {
            return Ok(None);
        }
        inner.last += 1;
        let number = inner.last;
        inner.open.insert(number, copy);
        Ok(Some(Admitted {
            switch: Arc::clone(self),
            number,
            cancel: inner.on.child_token(),
        }))
    }

    /// Ends everything that is open and lets nothing in; how many connections that were.
    pub fn cut(&self) -> u32 {
        let inner = self.inner();
        if inner.on.is_cancelled() {
            return 0;
        }
        for end in inner.open.values() {
            // A reset instead of an end behind data that the kernel drops.
            if let Err(error) =
                rustix::net::sockopt::set_socket_linger(end.as_fd(), Some(Duration::ZERO))
            {
                tracing::debug!("a connection of a revoked agent ends without a reset: {error}");
            }
        }
        inner.on.cancel();
        u32::try_from(inner.open.len()).unwrap_or(u32::MAX)
    }

    /// Lets connections in again.
    pub fn mend(&self) {
        let mut inner = self.inner();
        if inner.on.is_cancelled() {
            inner.on = self.session.child_token();
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.switch.inner().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let agent = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (agent, listener.accept().unwrap().0)
    }

    #[test]
    fn a_cut_resets_what_is_open_and_keeps_the_rest_out_until_it_is_mended() {
        let session = CancellationToken::new();
        let switch = NetworkSwitch::new(session.clone());
        let (mut agent, ours) = pair();
        let admitted = switch.admit(ours.as_fd()).unwrap().expect("it is on");
        assert_eq!(switch.cut(), 1);
        assert!(admitted.cancel.is_cancelled());
        drop((ours, admitted));
        let error = agent.read(&mut [0]).expect_err("reset, not ended");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);

        let (_agent, ours) = pair();
        assert!(switch.admit(ours.as_fd()).unwrap().is_none());
        assert_eq!(switch.cut(), 0, "it is off already");
        switch.mend();
        let admitted = switch.admit(ours.as_fd()).unwrap().expect("on again");
        assert!(!admitted.cancel.is_cancelled());
        session.cancel();
        assert!(admitted.cancel.is_cancelled(), "the agent's end is its end");
        switch.mend();
        assert!(
            switch.admit(ours.as_fd()).unwrap().is_none(),
            "nothing comes after the end"
        );
    }
}
