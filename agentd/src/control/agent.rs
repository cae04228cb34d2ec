//! `org.agentd1.Agent`: one agent, for a caller that may touch it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::{
    AgentState, AttachOptions, Error, ExitInfo, LogOptions, Restrictions, Revocable, StdioMode,
    TightenSpec,
};
use zbus::Connection;
use zbus::object_server::SignalEmitter;

use crate::agents::agent::{Attach, Command, Ended, TakesInput};
use crate::agents::attachment::{Attachment, Manner};
use crate::agents::log::{self, Extent, Follow};
use crate::agents::stdio::Input;
use crate::agents::viewer::Begin;
use crate::agents::{Agent, Caller};
use crate::daemon::Daemon;
use crate::revocation::Control;

/// Longest grace a stop may ask for.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// The object at `/org/agentd1/agent/ID`.
#[derive(Debug)]
pub struct AgentObject {
    daemon: Arc<Daemon>,
    agent: Arc<Agent>,
    caller: Caller,
}

impl AgentObject {
    pub fn new(daemon: Arc<Daemon>, agent: Arc<Agent>, caller: Caller) -> Self {
        Self {
            daemon,
            agent,
            caller,
        }
    }

    /// Live control of an agent that lives.
    fn control(&self) -> Result<&Control, Error> {
        if self.agent.state().is_live() {
            Ok(&self.agent.control)
        } else {
            Err(self.ended()(Ended))
        }
    }

    /// Returns when nothing of the agent is left, as a caller of `stop` expects.
    async fn end(&self, command: Command) -> Result<(), Error> {
        self.agent.command(command).await.map_err(self.ended())?;
        self.agent.wait().await;
        Ok(())
    }

    fn ended(&self) -> impl FnOnce(Ended) -> Error + '_ {
        |_| {
            Error::Unavailable(format!(
                "`{}` has already ended; `agentctl inspect` shows how",
                self.agent.identity.name
            ))
        }
    }
}

#[zbus::interface(name = "org.agentd1.Agent")]
impl AgentObject {
    async fn attach(&self, options: AttachOptions) -> Result<zbus::OwnedFd, Error> {
        let failed = |e: std::io::Error| Error::Internal(format!("cannot attach: {e}"));
        let manner = if options.lossless == Some(true) {
            Manner::Lossless
        } else {
            Manner::Lossy
        };
        let (ours, theirs) = Attachment::pair(manner).map_err(failed)?;
        let how = Attach {
            takes_input: if options.stdin == Some(true) {
                TakesInput::Yes
            } else {
                TakesInput::No
            },
            from: match (options.from_offset, options.replay) {
                (Some(offset), _) => Begin::Offset(offset),
                (None, Some(false)) => Begin::Now,
                (None, _) => Begin::Tail,
            },
            window: options.rows.zip(options.cols),
        };
        self.agent.attach(ours, how).map_err(failed)?;
        Ok(theirs.into())
    }

    async fn stop(&self, grace_ms: u32) -> Result<(), Error> {
        let mut grace = Duration::from_millis(grace_ms.into()).min(MAX_GRACE);
        // Frozen, it could not hear of it; and by somebody else, it must not run again for it.
        if self.agent.control.is_frozen() && self.thaw().await.is_err() {
            grace = Duration::ZERO;
        }
        let stop = Command::Stop {
            grace,
            by: "agentctl stop".into(),
        };
        self.end(stop).await
    }

    async fn kill(&self) -> Result<(), Error> {
        let kill = Command::Stop {
            grace: Duration::ZERO,
            by: "agentctl kill".into(),
        };
        self.end(kill).await
    }

    async fn signal(&self, signo: i32) -> Result<(), Error> {
        if !(1..=64).contains(&signo) {
            return Err(Error::InvalidArgument(format!(
                "{signo} is not a signal; allowed are 1 to 64"
            )));
        }
        self.agent
            .command(Command::Signal(signo.unsigned_abs()))
            .await
            .map_err(self.ended())
    }

    async fn revoke(&self, rights: Vec<Revocable>) -> Result<Restrictions, Error> {
        self.control()?.revoke(&rights, self.caller).await
    }

    async fn tighten(&self, spec: TightenSpec) -> Result<Restrictions, Error> {
        self.control()?.tighten(spec, self.caller).await
    }

    async fn restore(&self, rights: Vec<Revocable>) -> Result<Restrictions, Error> {
        self.control()?.restore(&rights, self.caller).await
    }

    async fn freeze(&self) -> Result<Restrictions, Error> {
        let frozen = self.control()?.freeze(self.caller).await;
        self.agent.state_may_have_changed();
        frozen
    }

    async fn thaw(&self) -> Result<Restrictions, Error> {
        let thawed = self.control()?.thaw(self.caller).await;
        self.agent.state_may_have_changed();
        thawed
    }

    async fn restrictions(&self) -> Result<Restrictions, Error> {
        Ok(self.agent.control.restrictions().await)
    }

    async fn logs(&self, options: LogOptions) -> Result<zbus::OwnedFd, Error> {
        let extent = Extent::of(&options);
        let follow = if options.follow == Some(true) {
            Follow::Yes
        } else {
            Follow::No
        };
        let fd = log::read(&self.agent.log, extent, follow);
        fd.map(Into::into)
            .map_err(|e| Error::Internal(format!("cannot read the log: {e}")))
    }

    async fn log_start(&self, options: LogOptions) -> Result<u64, Error> {
        let begin = Extent::of(&options).begin(&self.agent.log);
        begin.map_err(|e| Error::Internal(format!("cannot read the log: {e}")))
    }

    async fn wait(&self) -> Result<ExitInfo, Error> {
        Ok(self.agent.wait().await)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> String {
        self.agent.identity.id.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> &str {
        &self.agent.identity.name
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn state(&self) -> &str {
        self.agent.state().as_str()
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn pid(&self) -> u32 {
        self.agent.facts.host_pid
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn uid(&self) -> u32 {
        self.agent.identity.uid
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn policy(&self) -> &str {
        &self.agent.facts.policy
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn stdio(&self) -> &'static str {
        let mode = match &self.agent.input {
            Input::Terminal(_) => StdioMode::Pty,
            Input::Pipe(_) => StdioMode::Pipes,
            Input::Nothing => StdioMode::Null,
        };
        mode.as_str()
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn layers(&self) -> Vec<&'static str> {
        self.agent.facts.layers.clone()
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn input_tokens(&self) -> u64 {
        self.agent.budget.snapshot().spent.input
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn output_tokens(&self) -> u64 {
        self.agent.budget.snapshot().spent.output
    }

    #[zbus(property(emits_changed_signal = "false"))]
    fn kernel_counters(&self) -> BTreeMap<&'static str, u64> {
        let counted = self.daemon.counters.of(&self.agent);
        counted.map_or_else(BTreeMap::new, |counted| {
            BTreeMap::from([
                ("packets_in", counted.packets_in),
                ("packets_out", counted.packets_out),
                ("bytes_in", counted.bytes_in),
                ("bytes_out", counted.bytes_out),
                ("refused", counted.refused),
                ("untold", counted.untold),
            ])
        })
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn workspace(&self) -> &str {
        self.agent.facts.workspace.as_deref().unwrap_or_default()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    fn started_at(&self) -> u64 {
        self.agent.facts.started_at_ms
    }

    #[zbus(signal)]
    async fn state_changed(emitter: &SignalEmitter<'_>, state: AgentState) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn exited(emitter: &SignalEmitter<'_>, exit: ExitInfo) -> zbus::Result<()>;
}

/// Turns an agent's changes into signals on one connection, until the agent or the connection ends.
pub async fn follow(connection: Connection, agent: Arc<Agent>) {
    let Ok(emitter) = SignalEmitter::new(&connection, agent.identity.id.object_path()) else {
        unreachable!("an agent id makes a valid object path")
    };
    let mut states = agent.watch_state();
    let sent = async {
        loop {
            tokio::select! {
                () = connection.closed() => return Ok(()),
                exit = agent.wait() => {
                    AgentObject::state_changed(&emitter, agent.state()).await?;
                    return AgentObject::exited(&emitter, exit).await;
                }
                changed = states.changed() => if changed.is_ok() {
                    states.mark_unchanged();
                    AgentObject::state_changed(&emitter, agent.state()).await?;
                },
            }
        }
    };
    if let Err(error) = sent.await {
        tracing::debug!(agent = %agent.identity, "signals: {error}");
    }
}
