//! Which agents there are for tasks. The scheduler asks a [`Fleet`] for a free one and gets a [`Lease`], or is told why
//! not and asks again when [`Fleet::changed`] says that something did.
//!
//! [`RunningAgents`] knows the agents that live, by name; units put themselves in front of it to find agents by unit,
//! role or capability and to start instances. Never blocks, never waits: starting something goes on elsewhere.

use std::fmt;
use std::sync::Arc;

use agentd_orchestrator::task::Target;
use tokio::sync::Notify;

use crate::agents::{Agent, Caller, Registry};
use crate::driver::WorkLease;

/// What a task needs of an agent.
pub type Wanted = Target;

/// An agent that is free for one task. It stays leased until this is dropped.
pub struct Lease {
    pub agent: Arc<Agent>,
    pub work: WorkLease,
    /// Anything else to be given back with the lease, such as a pool's claim on its instance.
    pub held: Option<Box<dyn Send + Sync>>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("agent", &self.agent.identity.name)
            .finish_non_exhaustive()
    }
}

/// Why no agent can be leased now, for whoever asks why a task waits: "coder is busy", "starting coder@2", "no agent
/// named x is running". The scheduler asks again after the next change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotNow(pub String);

/// The agents that tasks may be given to.
pub trait Fleet: Send + Sync + fmt::Debug {
    /// A free agent of `uid` that is `wanted`. It may begin to start one, and then says [`NotNow`].
    ///
    /// # Errors
    /// [`NotNow`].
    fn lease(&self, uid: u32, wanted: &Wanted) -> Result<Lease, NotNow>;
}

/// The agents that live, by name.
#[derive(Debug)]
pub struct RunningAgents {
    agents: Arc<Registry>,
}

impl RunningAgents {
    pub fn new(agents: Arc<Registry>) -> Self {
        Self { agents }
    }

    /// The living agents of `uid` itself: root's tasks go to root's agents.
    pub fn of(&self, uid: u32) -> Vec<Arc<Agent>> {
        let mut agents = self.agents.visible(Caller { uid, gid: uid });
        agents.retain(|agent| agent.identity.uid == uid && agent.state().is_live());
        agents
    }
}

impl Fleet for RunningAgents {
    fn lease(&self, uid: u32, wanted: &Wanted) -> Result<Lease, NotNow> {
        let Target::Agent(name) = wanted else {
            return Err(NotNow(format!("no unit gives an agent with {wanted}")));
        };
        let agents = self.of(uid);
        let agent = agents
            .iter()
            .find(|agent| agent.identity.name == *name)
            .ok_or_else(|| NotNow(format!("no agent named {name} is running")))?;
        lease_agent(agent)
    }
}

/// The lease of one living agent.
///
/// # Errors
/// [`NotNow`] when it takes no tasks, or is busy.
pub fn lease_agent(agent: &Arc<Agent>) -> Result<Lease, NotNow> {
    let name = &agent.identity.name;
    let port = agent.work().ok_or_else(|| {
        NotNow(format!(
            "{name} takes no tasks: it was started without a driver, or with a prompt"
        ))
    })?;
    let work = port
        .lease()
        .ok_or_else(|| NotNow(format!("{name} is busy or not ready")))?;
    Ok(Lease {
        agent: Arc::clone(agent),
        work,
        held: None,
    })
}

/// Tells the scheduler that an agent may have become free. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct FleetChanged(pub Arc<Notify>);

impl FleetChanged {
    /// The scheduler asks its fleet again.
    pub fn notify(&self) {
        self.0.notify_one();
    }
}
