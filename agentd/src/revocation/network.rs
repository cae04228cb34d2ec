//! The switch between an agent and the egress proxy: open connections through it end when the network is revoked, and those
//! that new rules refuse when its policy is tightened.
//!
//! The kernel drops an agent's packets by itself; this is for the other end. What agentd holds open towards the network is
//! closed, and the agent's side is reset, so that a program that waits for an answer learns that none comes. Runs in the
//! daemon's runtime, without privilege. A connection that comes in while the switch is off is closed unread.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentd_sandbox::rules::egress::forbidden_reason;
use agentd_sandbox::{Decision, EgressRules};
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
    /// What is open, by number.
    open: BTreeMap<u64, Open>,
    last: u64,
}

/// One open connection.
#[derive(Debug)]
struct Open {
    /// The agent's end.
    end: OwnedFd,
    cancel: CancellationToken,
    /// Where it leads, or is about to.
    ways: Vec<Way>,
}

/// Where a connection leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// As the agent named it.
    pub host: String,
    pub port: u16,
    /// Once it is connected.
    pub address: Option<IpAddr>,
}

impl Way {
    /// Whether a connection that was made under `before` may stay under `after`. What a person agreed to under the same rules
    /// stays agreed to.
    fn stays(&self, before: &EgressRules, after: &EgressRules) -> bool {
        let rule = match after.allows(&self.host, self.port) {
            Decision::Allow { rule } => rule,
            Decision::Ask { rule } => match before.allows(&self.host, self.port) {
                Decision::Ask { .. } => rule,
                _ => return false,
            },
            Decision::Deny { .. } => return false,
        };
        rule.private || self.address.is_none_or(|a| forbidden_reason(a).is_none())
    }
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
        let cancel = inner.on.child_token();
        let open = Open {
            end: copy,
            cancel: cancel.clone(),
            ways: Vec::new(),
        };
        inner.open.insert(number, open);
        Ok(Some(Admitted {
            switch: Arc::clone(self),
            number,
            cancel,
        }))
    }

    /// Ends everything that is open and lets nothing in; how many connections that were.
    pub fn cut(&self) -> u32 {
        let inner = self.inner();
        if inner.on.is_cancelled() {
            return 0;
        }
        inner.open.values().for_each(Open::reset_at_its_end);
        inner.on.cancel();
        u32::try_from(inner.open.len()).unwrap_or(u32::MAX)
    }

    /// Ends what was let in under `before` and would not be under `after`; how many connections that were. The new rules are
    /// in force already, so what comes in meanwhile is judged by them.
    pub fn judge(&self, before: &EgressRules, after: &EgressRules) -> u32 {
        let mut shut = 0;
        for open in self.inner().open.values() {
            if open.ways.iter().all(|way| way.stays(before, after)) {
                // Nothing is asked of it yet, or nothing that is refused now.
                continue;
            }
            open.reset_at_its_end();
            open.cancel.cancel();
            shut += 1;
        }
        shut
    }

    /// Lets connections in again.
    pub fn mend(&self) {
        let mut inner = self.inner();
        if inner.on.is_cancelled() {
            inner.on = self.session.child_token();
        }
    }
}

impl Open {
    /// A reset instead of an end: behind data that the kernel drops, or in the middle of an answer.
    fn reset_at_its_end(&self) {
        let end = self.end.as_fd();
        if let Err(error) = rustix::net::sockopt::set_socket_linger(end, Some(Duration::ZERO)) {
            tracing::debug!("a connection of a revoked agent ends without a reset: {error}");
        }
    }
}

impl Admitted {
    fn ways(&self, change: impl FnOnce(&mut Vec<Way>)) {
        if let Some(open) = self.switch.inner().open.get_mut(&self.number) {
            change(&mut open.ways);
        }
    }

    /// It is about to lead there and nowhere else. Said before the rules are asked: whoever changes them in between finds it.
    pub fn leads_to(&self, host: &str, port: u16) {
        self.ways(|ways| {
            *ways = vec![Way {
                host: host.to_owned(),
                port,
                address: None,
            }];
        });
    }

    /// It carries TLS with this server as well.
    pub fn leads_also_to(&self, host: &str, port: u16) {
        self.ways(|ways| {
            ways.push(Way {
                host: host.to_owned(),
                port,
                address: None,
            });
        });
    }

    /// Whether it may stay when these rules come after those that it was made under.
    pub fn stays(&self, before: &EgressRules, after: &EgressRules) -> bool {
        let inner = self.switch.inner();
        let open = inner.open.get(&self.number);
        open.is_some_and(|open| open.ways.iter().all(|way| way.stays(before, after)))
    }

    /// It is connected to this address.
    pub fn is_connected(&self, address: IpAddr) {
        self.ways(|ways| {
            if let Some(way) = ways.first_mut() {
                way.address = Some(address);
            }
        });
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

    fn rules(text: &str) -> EgressRules {
        let policy = agentd_sandbox::PolicyRef::Text {
            origin: "p.toml".into(),
            text: text.into(),
        };
        agentd_sandbox::EffectivePolicy::load(&policy, &agentd_sandbox::Sources::default())
            .unwrap()
            .egress
    }

    #[test]
    fn new_rules_reset_what_they_refuse_and_leave_the_rest_open() {
        let before = rules("[net]\nmode = \"proxy\"\nallow = [{ host = \"*\", private = true }]");
        let after = rules(
            "[net]\nmode = \"proxy\"\nallow = [\"a.example\", \"local.example\"]\nask = [\"b.example\"]",
        );
        let switch = NetworkSwitch::new(CancellationToken::new());
        let mut open = Vec::new();
        for (host, address, fronted, stays) in [
            ("a.example", Some([1, 1, 1, 1]), None, true),
            ("a.example", Some([1, 1, 1, 1]), Some("c.example"), false),
            ("b.example", None, None, false),
            ("c.example", None, None, false),
            ("local.example", Some([10, 0, 0, 1]), None, false),
        ] {
            let (agent, ours) = pair();
            let admitted = switch.admit(ours.as_fd()).unwrap().expect("it is on");
            admitted.leads_to("elsewhere.example", 443);
            admitted.leads_to(host, 443);
            if let Some(address) = address {
                admitted.is_connected(address.into());
            }
            if let Some(server) = fronted {
                admitted.leads_also_to(server, 443);
            }
            assert!(admitted.stays(&before, &before), "{host}");
            open.push((agent, ours, admitted, stays));
        }
        let (_agent, ours) = pair();
        let idle = switch.admit(ours.as_fd()).unwrap().expect("it is on");
        assert_eq!(switch.judge(&before, &after), 4);
        assert!(!idle.cancel.is_cancelled(), "it has asked for nothing yet");
        for (mut agent, ours, admitted, stays) in open {
            assert_eq!(admitted.cancel.is_cancelled(), !stays);
            drop((ours, admitted));
            match agent.read(&mut [0]) {
                Ok(0) => assert!(stays, "an end, not a reset"),
                other => {
                    assert_eq!(other.unwrap_err().kind(), ErrorKind::ConnectionReset);
                    assert!(!stays);
                }
            }
        }
    }
}
