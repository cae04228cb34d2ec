//! Live control: what can be taken from an agent while it runs, and given back.
//!
//! The kernel holds it: the broker writes the agent's row in a table that eBPF programs read at
//! each connect, packet, exec and open ([`agentd_bpf`]), and freezes cgroups. Here is who may do it
//! ([`state`]), in which order, and what agentd itself closes ([`network`]). By what agentd itself
//! judges can be tightened ([`tighten`], [`live`]), and so can the limits of its cgroup
//! ([`limits`]). What is taken is kept with the broker *before* it is taken, and forgotten only
//! after it was given back, so an agentd that dies in between leaves an agent with less, never with
//! more; the next agentd takes it again before it serves anybody. There is no way from inside a
//! sandbox to any of this.
//!
//! Runs in the daemon's runtime, without privilege. Where the host can't do a thing, the broker's
//! reason is the error's text, and nothing has changed. Start reading at [`Control`].

mod limits;
mod live;
mod network;
mod state;
mod tighten;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use agentd_api::{AgentId, Error, Restrictions, Revocable};
use agentd_launch::plan;
use agentd_storage::{Event, Fact, Store, unix_ms};

use crate::agents::broker::{BrokerError, BrokerLink};
use crate::agents::hold::{Hold, WeakHold};
use crate::agents::{Caller, Rules};
use crate::bus::BusServer;
use crate::gateway::{TokenBudget, UnderWay};
pub use limits::beyond;
pub use live::{Live, LiveRules};
pub use network::{Admitted, NetworkSwitch};
pub use state::{Hand, Laid, NotYours, Taken, TooMuch};

/// Ports that agentd may keep reachable: what the kernel's row has room for.
pub const MAX_KEPT_PORTS: usize = 8;

/// The ports of agentd's own listeners in the sandbox that stay reachable without the network: all but the proxy's.
pub fn kept_ports(listeners: impl Iterator<Item = (u16, u16)>) -> [u16; MAX_KEPT_PORTS] {
    let mut kept = [0; MAX_KEPT_PORTS];
    let ports = listeners
        .filter(|(tag, _)| matches!(*tag, plan::GATEWAY | plan::MCP | plan::DIRECT))
        .map(|(_, port)| port);
    for (place, port) in kept.iter_mut().zip(ports) {
        *place = port;
    }
    kept
}

/// Live control of one agent.
#[derive(Debug)]
pub struct Control {
    agent: String,
    launch: String,
    /// This stays with the record of an ended agent, which must keep nothing open.
    hold: WeakHold,
    broker: BrokerLink,
    store: Store,
    network: Arc<NetworkSwitch>,
    kept_ports: [u16; MAX_KEPT_PORTS],
    id: AgentId,
    /// Its policy's rules.
    own: Rules,
    /// The same under what is laid over them.
    rules: LiveRules,
    budget: Arc<TokenBudget>,
    under_way: Arc<UnderWay>,
    bus: BusServer,
    policy_dirs: Vec<PathBuf>,
    /// Keys that can't be tightened for it on this host, each with the reason.
    beyond: Vec<(&'static str, &'static str)>,
    /// Whether its only network is what agentd lets through.
    network_is_ours: bool,
    /// One change at a time.
    taken: tokio::sync::Mutex<Taken>,
    /// As in `taken`, for those who can't wait.
    frozen: AtomicBool,
}

/// What a [`Control`] is made of.
#[derive(Debug)]
pub struct Parts {
    pub agent: String,
    pub id: AgentId,
    pub hold: WeakHold,
    pub broker: BrokerLink,
    pub store: Store,
    pub network: Arc<NetworkSwitch>,
    pub kept_ports: [u16; MAX_KEPT_PORTS],
    pub own: Rules,
    pub rules: LiveRules,
    pub budget: Arc<TokenBudget>,
    pub under_way: Arc<UnderWay>,
    pub bus: BusServer,
    pub policy_dirs: Vec<PathBuf>,
    pub beyond: Vec<(&'static str, &'static str)>,
    pub network_is_ours: bool,
    /// What an earlier agentd left taken.
    pub taken: Taken,
}

impl Control {
    pub fn new(parts: Parts) -> Self {
        Self {
            agent: parts.agent,
            launch: parts.id.to_string(),
            id: parts.id,
            own: parts.own,
            rules: parts.rules,
            budget: parts.budget,
            under_way: parts.under_way,
            bus: parts.bus,
            policy_dirs: parts.policy_dirs,
            beyond: parts.beyond,
            network_is_ours: parts.network_is_ours,
            hold: parts.hold,
            broker: parts.broker,
            store: parts.store,
            network: parts.network,
            kept_ports: parts.kept_ports,
            frozen: AtomicBool::new(parts.taken.frozen.is_some()),
            taken: tokio::sync::Mutex::new(parts.taken),
        }
    }

    /// Whether its processes are stopped by [`Control::freeze`].
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed)
    }

    /// What is taken now.
    pub async fn restrictions(&self) -> Restrictions {
        let taken = self.taken.lock().await;
        told(&taken, None)
    }

    /// Takes again what an earlier agentd took. For a new agent there is nothing.
    ///
    /// # Errors
    /// When it can't be taken any more: the agent must not go on with more than it had.
    pub async fn take_again(&self) -> Result<(), BrokerError> {
        let Some(hold) = self.hold.upgrade() else {
            return Ok(());
        };
        let taken = self.taken.lock().await;
        if taken.is_revoked(Revocable::Net) {
            self.network.cut();
        }
        if taken.bits() != 0 {
            self.restrict(&hold, taken.bits()).await?;
        }
        self.hold_to(&hold, &Taken::default(), &taken).await?;
        if taken.frozen.is_some() {
            self.broker.freeze(hold.slot()).await?;
        }
        Ok(())
    }

    /// Takes rights.
    ///
    /// # Errors
    /// What the host can't take; then nothing has changed.
    pub async fn revoke(
        &self,
        rights: &[Revocable],
        caller: Caller,
    ) -> Result<Restrictions, Error> {
        if rights.is_empty() {
            return Err(Error::InvalidArgument(
                "nothing to revoke was named; allowed are net, exec and write".into(),
            ));
        }
        if rights.contains(&Revocable::Policy) {
            return Err(Error::InvalidArgument(
                "`policy` is no right of the kernel's; what a policy allows is taken by `agentctl tighten`".into(),
            ));
        }
        let hold = self.held()?;
        let mut taken = self.taken.lock().await;
        let mut next = taken.clone();
        for right in rights {
            next.revoke(*right, now(caller));
        }
        self.keep(&hold, &next).await?;
        if let Err(error) = self.restrict(&hold, next.bits()).await {
            self.keep(&hold, &taken).await?;
            return Err(self.cannot(&format!("{} can't be revoked", words(rights)), &error));
        }
        *taken = next;
        let shut = rights.contains(&Revocable::Net).then(|| self.network.cut());
        let told = told(&taken, shut);
        drop(taken);
        let also = match shut {
            Some(shut) if shut > 0 => format!("; {shut} connections shut"),
            _ => String::new(),
        };
        self.record(format!(
            "{} revoked by uid {}{also}",
            words(rights),
            caller.uid
        ))
        .await?;
        Ok(told)
    }

    /// Gives rights back, all that are taken if none is named.
    ///
    /// # Errors
    /// `Denied` when one of them is not the caller's to give.
    pub async fn restore(
        &self,
        rights: &[Revocable],
        caller: Caller,
    ) -> Result<Restrictions, Error> {
        let hold = self.held()?;
        let mut taken = self.taken.lock().await;
        let mut next = taken.clone();
        let back = next
            .restore(rights, caller)
            .map_err(|e| self.denied(&e, "restore"))?;
        if back.is_empty() {
            return Ok(told(&taken, None));
        }
        let cannot = |e| self.cannot(&format!("{} can't be restored", words(&back)), &e);
        self.hold_to(&hold, &taken, &next).await.map_err(cannot)?;
        if next.bits() != taken.bits() {
            let given = self.restrict(&hold, next.bits()).await;
            given.map_err(cannot)?;
        }
        if back.contains(&Revocable::Policy) {
            // Other hands' tightenings hold on.
            self.judge_anew(&next).await;
        }
        self.keep(&hold, &next).await?;
        *taken = next;
        if back.contains(&Revocable::Net) {
            self.network.mend();
        }
        let told = told(&taken, None);
        drop(taken);
        self.record(format!("{} restored by uid {}", words(&back), caller.uid))
            .await?;
        Ok(told)
    }

    /// Stops every process of the agent.
    ///
    /// # Errors
    /// Where there is no cgroup2.
    pub async fn freeze(&self, caller: Caller) -> Result<Restrictions, Error> {
        let hold = self.held()?;
        let mut taken = self.taken.lock().await;
        let mut next = taken.clone();
        next.freeze(now(caller));
        self.keep(&hold, &next).await?;
        if let Err(error) = self.broker.freeze(hold.slot()).await {
            self.keep(&hold, &taken).await?;
            return Err(self.cannot("it can't be frozen", &error));
        }
        self.frozen.store(true, Ordering::Relaxed);
        *taken = next;
        let told = told(&taken, None);
        drop(taken);
        self.record(format!("frozen by uid {}", caller.uid)).await?;
        Ok(told)
    }

    /// Lets the agent run again.
    ///
    /// # Errors
    /// `Denied` when somebody else froze it.
    pub async fn thaw(&self, caller: Caller) -> Result<Restrictions, Error> {
        let hold = self.held()?;
        let mut taken = self.taken.lock().await;
        let mut next = taken.clone();
        next.thaw(caller).map_err(|e| self.denied(&e, "thaw"))?;
        if taken.frozen.is_none() {
            return Ok(told(&taken, None));
        }
        let thawed = self.broker.thaw(hold.slot()).await;
        thawed.map_err(|e| self.cannot("it can't be thawed", &e))?;
        self.frozen.store(false, Ordering::Relaxed);
        self.keep(&hold, &next).await?;
        *taken = next;
        let told = told(&taken, None);
        drop(taken);
        self.record(format!("thawed by uid {}", caller.uid)).await?;
        Ok(told)
    }

    /// The agent's slot, while it is its own.
    fn held(&self) -> Result<Hold, Error> {
        self.hold.upgrade().ok_or_else(|| {
            Error::Unavailable(format!(
                "`{}` has already ended; `agentctl inspect` shows how",
                self.agent
            ))
        })
    }

    async fn restrict(&self, hold: &Hold, bits: u32) -> Result<(), BrokerError> {
        self.broker
            .restrict(hold.slot(), bits, self.kept_ports)
            .await
    }

    async fn keep(&self, hold: &Hold, taken: &Taken) -> Result<(), Error> {
        let changed = hold.change(&self.broker, |kept| kept.taken = taken.clone());
        changed.await.map_err(|e| {
            Error::Internal(format!(
                "what is taken from `{}` can't be kept: {e}",
                self.agent
            ))
        })
    }

    async fn record(&self, text: String) -> Result<(), Error> {
        tracing::info!(agent = self.agent, "{text}");
        let event = Event::now(self.launch.as_str(), Fact::Control { text });
        let recorded = self.store.record_durable(event).await;
        recorded.map_err(|e| Error::Internal(format!("it is done, but not on record: {e}")))
    }

    fn cannot(&self, what: &str, error: &BrokerError) -> Error {
        Error::Unavailable(format!("`{}`: {what}: {error}", self.agent))
    }

    fn denied(&self, error: &NotYours, verb: &str) -> Error {
        Error::Denied(format!("cannot {verb} `{}`: {error}", self.agent))
    }
}

fn now(caller: Caller) -> Hand {
    Hand {
        uid: caller.uid,
        at_ms: unix_ms(),
    }
}

fn told(taken: &Taken, shut: Option<u32>) -> Restrictions {
    Restrictions {
        revoked: taken
            .revoked()
            .map(|(right, hand)| (right, hand.told()))
            .collect(),
        frozen: taken.frozen.map(Hand::told),
        shut,
        tightened: Some(taken.tightened())
            .filter(|laid| !laid.is_empty())
            .map(|laid| {
                let told = |it: &Laid| (it.rules.name.clone(), it.hand.told());
                laid.iter().map(told).collect()
            }),
        ..Restrictions::default()
    }
}

fn words(rights: &[Revocable]) -> String {
    let words: Vec<&str> = rights.iter().map(|right| right.as_str()).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxys_port_is_the_one_that_goes() {
        let listeners = [
            (plan::GATEWAY, 8080),
            (plan::PROXY, 3128),
            (plan::MCP, 8090),
            (plan::DIRECT, 7203),
        ];
        assert_eq!(
            kept_ports(listeners.into_iter())[..4],
            [8080, 8090, 7203, 0]
        );
    }
}
