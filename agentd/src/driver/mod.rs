//! Speaking an agent's own protocol over its stdin and stdout.

use std::collections::BTreeMap;
use std::sync::Arc;

use agentd_api::attach::AttachFrame;
use agentd_api::{Driver, Error, LaunchSpec};
use agentd_sandbox::{HomeFile, ToolRules};
use agentd_storage::Store;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::agents::Agent;
use crate::agents::stdio::Output;
use crate::bus::AgentPort;

/// What a driver adds to a launch.
#[derive(Debug)]
pub struct Driven {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub home_files: Vec<HomeFile>,
}

/// The command line, environment and HOME that `driver` needs.
pub fn prepare(driver: Driver, spec: &LaunchSpec) -> Result<Driven, Error> {
    match driver {
        Driver::None => Ok(Driven {
            argv: spec.argv.clone(),
            env: BTreeMap::new(),
            home_files: Vec::new(),
        }),
        other => Err(Error::Unavailable(format!(
            "the driver `{other}` is not part of this build"
        ))),
    }
}

/// Starts the driver's task, which owns the agent's streams.
#[expect(
    clippy::too_many_arguments,
    reason = "becomes a struct with the first driver"
)]
pub async fn start(
    driver: Driver,
    _spec: &LaunchSpec,
    _agent: Arc<Agent>,
    _output: Output,
    _notices: mpsc::UnboundedReceiver<AttachFrame<'static>>,
    _port: AgentPort,
    _tools: ToolRules,
    _store: Store,
) -> anyhow::Result<JoinHandle<()>> {
    anyhow::bail!("the driver `{driver}` is not part of this build")
}
