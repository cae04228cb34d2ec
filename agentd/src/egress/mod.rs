//! The egress proxy: connections that leave a sandbox, by the policy's allow list.

use std::sync::Arc;

use agentd_api::AgentIdentity;
use agentd_sandbox::EgressRules;
use agentd_storage::Store;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the proxy needs to know about the agent it serves.
#[derive(Debug)]
pub struct EgressContext {
    pub identity: AgentIdentity,
    pub rules: EgressRules,
    pub store: Store,
}

/// Serves `listener` until `cancel`. Every connection is closed: this build has no proxy yet.
pub async fn serve(listener: TcpListener, context: Arc<EgressContext>, cancel: CancellationToken) {
    tracing::debug!(agent = %context.identity, "no egress proxy in this build");
    cancel.cancelled().await;
    drop(listener);
}
