//! Bringing an agent up, from a request to a running session, and writing its end down.
//!
//! The order is chosen so that nothing runs unrecorded and nothing half-made is left: reserve the name → plan (pure) →
//! record the launch (durable, while the broker already works) → broker → the init's `Ready` with the sockets →
//! gateway, proxy, bus and MCP on those sockets → session. A failure at any step is recorded with its reason,
//! and whatever the broker started is killed.

use std::collections::BTreeMap;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::{AgentId, AgentIdentity, Driver, Error, ExitInfo, LaunchSpec, StdioMode};
use agentd_broker::client::{ClientError, LaunchedAgent};
use agentd_broker::protocol::ErrorCode;
use agentd_launch::plan::{self, Plan};
use agentd_launch::status::{Failure, Status, Step};
use agentd_orchestrator::agent::{Happening, Life};
use agentd_sandbox::{EffectivePolicy, GrantInput, LaunchInputs, PolicyRef, SandboxPlan, Sources};
use agentd_storage::{Event, Fact};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Caller;
use super::agent::{Agent, Facts, TakesInput};
use super::attachment::{Attachment, Manner};
use super::broker::BrokerError;
use super::log::OutputLog;
use super::session::{Ending, Session};
use super::status::{StatusError, StatusLink};
use super::stdio::{self, Input, Output};
use crate::daemon::Daemon;
use crate::gateway::TokenBudget;

/// How long the init may take to report. It does a few dozen system calls; a host that swaps gets a generous while.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Kept output per launch where the policy says nothing.
const DEFAULT_LOG_BYTES: u64 = 256 << 20;

/// A launched agent, and the attachment of whoever launched it, if asked for.
#[derive(Debug)]
pub struct Launched {
    pub agent: Arc<Agent>,
    pub attachment: Option<OwnedFd>,
    pub degradations: Vec<String>,
}

impl Daemon {
    /// Launches `spec` for `caller`. `grants` are the paths that the caller opened.
    pub async fn launch(
        self: &Arc<Self>,
        caller: Caller,
        spec: LaunchSpec,
        grants: Vec<OwnedFd>,
    ) -> Result<Launched, Error> {
        let program = spec.argv.first().map(String::as_str).unwrap_or_default();
        if program.is_empty() {
            return Err(Error::InvalidArgument(
                "there is no command to run; usage: agentctl run [OPTIONS] -- CMD…".into(),
            ));
        }
        let reservation = self
            .agents
            .reserve(caller.uid, spec.name.as_deref(), program)?;
        let identity = AgentIdentity::new(AgentId::new(), reservation.name(), caller.uid);
        let plan = self.plan(caller, &spec, &grants, &identity)?;
        let id = identity.id.to_string();
        let status_path = self.status_path(identity.id);
        let status_file = std::fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&status_path)
            .map_err(|e| {
                Error::Unavailable(format!("cannot make {}: {e}", status_path.display()))
            })?;

        let record = self.store.record_durable(Event::now(
            id.clone(),
            Fact::Launch(self.launch_fact(&identity, &spec, &plan)),
        ));
        let launched = self.broker.launch(
            &plan.wire,
            status_file.as_fd(),
            &grants,
            (caller.uid, caller.gid),
        );
        let (recorded, launched) = tokio::join!(record, launched);
        let up = match (recorded, launched) {
            (Ok(()), Ok(launched)) => self.await_ready(launched, &plan).await,
            (Ok(()), Err(error)) => Err(Refusal::from(error)),
            (Err(error), launched) => {
                // An agent that cannot be put on record does not run.
                if let Ok(launched) = launched {
                    self.broker.discard(launched.info.slot).await;
                }
                return Err(Error::Unavailable(format!(
                    "the launch cannot be recorded: {error}"
                )));
            }
        };
        let up = match up {
            Ok(up) => up,
            Err(refusal) => {
                let failure = agentd_storage::LaunchFailure {
                    step: refusal.step,
                    errno: refusal.errno,
                    text: refusal.error.text(),
                };
                self.note(Event::now(id, Fact::LaunchFailed(failure))).await;
                return Err(refusal.error);
            }
        };
        let degradations = plan
            .degradations
            .iter()
            .map(|d| format!("{}: {}", d.property, d.missing))
            .collect();
        let slot = up.slot;
        match self.start(up, reservation, identity, &spec, plan).await {
            Ok((agent, attachment)) => Ok(Launched {
                agent,
                attachment,
                degradations,
            }),
            Err(error) => {
                self.broker.discard(slot).await;
                let failure = agentd_storage::LaunchFailure {
                    step: "start the session".into(),
                    errno: 0,
                    text: format!("{error:#}"),
                };
                self.note(Event::now(id, Fact::LaunchFailed(failure))).await;
                Err(Error::LaunchFailed(format!("{error:#}")))
            }
        }
    }

    /// Policy × launch × host → plan. Opens nothing but policy files.
    fn plan(
        &self,
        caller: Caller,
        spec: &LaunchSpec,
        grants: &[OwnedFd],
        identity: &AgentIdentity,
    ) -> Result<SandboxPlan, Error> {
        let policy = match (&spec.policy_text, &spec.policy) {
            (Some(text), _) => PolicyRef::Text {
                origin: spec
                    .policy_origin
                    .clone()
                    .unwrap_or_else(|| "policy".into()),
                text: text.clone(),
            },
            (None, Some(name)) => PolicyRef::Name(name.clone()),
            (None, None) => PolicyRef::Name("coding".into()),
        };
        let sources = Sources {
            folders: self.config.daemon.policy_dirs.clone(),
            settings: spec
                .settings
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        };
        let policy = EffectivePolicy::load(&policy, &sources)
            .map_err(|e| Error::InvalidPolicy(e.to_string()))?;
        let grants = grants
            .iter()
            .map(|socket| {
                let terms = agentd_kernel::grant::peek(socket.as_fd()).map_err(|e| {
                    Error::InvalidArgument(format!("a path handed over is unusable: {e}"))
                })?;
                let access = match terms.access {
                    agentd_kernel::grant::Access::ReadOnly => agentd_sandbox::Access::ReadOnly,
                    agentd_kernel::grant::Access::ReadWrite => agentd_sandbox::Access::ReadWrite,
                };
                Ok(GrantInput {
                    dst: terms.dst,
                    access,
                })
            })
            .collect::<Result<Vec<_>, Error>>()?;
        let driver = spec.driver.unwrap_or(Driver::None);
        let driven = crate::driver::prepare(driver, spec)?;
        let path = |text: &Option<String>| text.as_ref().map(PathBuf::from);
        let inputs = LaunchInputs {
            argv: driven.argv,
            exe_hint: path(&spec.exe),
            cwd: path(&spec.cwd),
            caller_env: spec.env.clone().unwrap_or_default().into_iter().collect(),
            extra_env: driven.env,
            workspace: path(&spec.workspace),
            grants,
            stdio: stdio_mode(driver, spec),
            uid: if caller.uid == 0 { 1000 } else { caller.uid },
            gid: if caller.gid == 0 { 1000 } else { caller.gid },
            user_name: spec
                .user
                .clone()
                .filter(|_| caller.uid != 0)
                .unwrap_or_else(|| "agent".into()),
            caller_home: path(&spec.home),
            home: None,
            home_files: driven.home_files,
            name: identity.name.clone(),
            mode: self.sandbox_mode(),
            lifeline_grace_ms: u32::try_from(self.config.daemon.lifeline_grace.as_millis())
                .unwrap_or(u32::MAX),
        };
        agentd_sandbox::plan(&policy, &inputs, &self.host)
            .map_err(|e| Error::LaunchRefused(e.to_string()))
    }

    fn launch_fact(
        &self,
        identity: &AgentIdentity,
        spec: &LaunchSpec,
        plan: &SandboxPlan,
    ) -> agentd_storage::Launch {
        agentd_storage::Launch {
            name: identity.name.clone(),
            uid: identity.uid,
            policy: plan.policy.clone(),
            policy_hash: plan.policy_hash.clone(),
            argv: spec.argv.clone(),
            workspace: spec.workspace.clone(),
            driver: spec.driver.unwrap_or(Driver::None).as_str().into(),
            mode: self.mode.as_str().into(),
            kernel: self.host.kernel.clone(),
            details: serde_json::json!({
                "agentd": agentd_api::VERSION,
                "settings": spec.settings.clone().unwrap_or_default().into_iter().collect::<BTreeMap<_, _>>(),
                "timeout_ms": spec.timeout_ms,
                "unit": spec.unit,
            }),
        }
    }

    /// Waits for the init's report.
    async fn await_ready(
        &self,
        launched: LaunchedAgent,
        plan: &SandboxPlan,
    ) -> Result<Up, Refusal> {
        let LaunchedAgent {
            info,
            pidfd: _,
            status,
        } = launched;
        let status = match StatusLink::new(status) {
            Ok(status) => status,
            Err(error) => {
                self.broker.discard(info.slot).await;
                return Err(Refusal::internal("watch the sandbox", &error));
            }
        };
        let report = tokio::time::timeout(READY_LIMIT, status.receive()).await;
        let refusal = match report {
            Ok(Ok((
                Status::Ready {
                    layers,
                    landlock_abi,
                    ..
                },
                fds,
            ))) => {
                return Ok(Up {
                    slot: info.slot,
                    pid: info.pid.unsigned_abs(),
                    host_uid: info.host_uid,
                    layers: layers | info.layers,
                    landlock_abi,
                    status,
                    fds,
                });
            }
            Ok(Ok((Status::Failed(failure), _))) => Refusal::of_launcher(&failure, &plan.wire),
            Ok(Ok(_)) => {
                Refusal::internal("read the sandbox's report", &"its first word was not Ready")
            }
            Ok(Err(StatusError::Gone)) => Refusal::internal(
                "wait for the sandbox",
                &"its init died before it could report",
            ),
            Ok(Err(error)) => Refusal::internal("read the sandbox's report", &error),
            Err(_) => Refusal::internal(
                "wait for the sandbox",
                &format_args!("no report in {} s", READY_LIMIT.as_secs()),
            ),
        };
        self.broker.discard(info.slot).await;
        Err(refusal)
    }

    /// Puts the daemon's services on the sandbox's sockets and starts the session.
    async fn start(
        self: &Arc<Self>,
        up: Up,
        reservation: super::Reservation<'_>,
        identity: AgentIdentity,
        spec: &LaunchSpec,
        plan: SandboxPlan,
    ) -> anyhow::Result<(Arc<Agent>, Option<OwnedFd>)> {
        let Up {
            slot,
            pid,
            host_uid,
            layers,
            landlock_abi,
            status,
            fds,
        } = up;
        let id = identity.id.to_string();
        let layers: Vec<&'static str> = agentd_launch::layers::layer_names(layers).collect();
        let driver = spec.driver.unwrap_or(Driver::None);
        let mut fds = fds.into_iter();
        let (input, output) = take_stdio(&mut fds, stdio_mode(driver, spec))?;
        let log_limit = plan.limits.output_bytes.unwrap_or(DEFAULT_LOG_BYTES);
        let log = Arc::new(OutputLog::create(&self.log_path(identity.id), log_limit)?);
        let budget = TokenBudget::new(plan.model.max_tokens_total);
        let facts = Facts {
            argv: spec.argv.clone(),
            policy: plan.policy.clone(),
            workspace: spec.workspace.clone(),
            driver: (driver != Driver::None).then(|| driver.as_str().to_owned()),
            started_at_ms: unix_ms(),
            layers: layers.clone(),
            host_pid: pid,
        };
        let ready = agentd_storage::Ready {
            pid,
            host_uid,
            layers: layers.iter().map(|l| (*l).to_owned()).collect(),
            landlock_abi,
            degradations: plan
                .degradations
                .iter()
                .map(|d| agentd_storage::Degradation {
                    property: d.property.clone(),
                    why: format!("{}: {}", d.missing, d.lost),
                })
                .collect(),
        };
        self.note(Event::now(id, Fact::Ready(ready))).await;

        let (agent, channels) =
            Agent::new(identity.clone(), facts, Arc::clone(&budget), log, input);
        let cancel = CancellationToken::new();
        let port =
            self.serve_listeners(fds, &plan, &identity, &budget, &cancel, kind_of_unit(spec))?;
        for topic in spec.subscriptions.iter().flatten() {
            port.subscribe(topic).await?;
        }

        let attachment = if spec.attach == Some(true) {
            let (ours, theirs) = Attachment::pair(Manner::Lossless)?;
            let takes_input = if driver == Driver::None {
                TakesInput::Yes
            } else {
                TakesInput::No
            };
            agent.attach(ours, takes_input);
            Some(theirs)
        } else {
            None
        };
        let output = match driver {
            Driver::None => tokio::spawn(Arc::clone(&agent).pump(output, channels.notices)),
            Driver::Claude | Driver::Jsonl => {
                crate::driver::start(crate::driver::Start {
                    driver,
                    spec,
                    agent: Arc::clone(&agent),
                    output,
                    notices: channels.notices,
                    port: port.clone(),
                    tools: plan.tools.clone(),
                    approvals: Arc::clone(&self.approvals),
                    store: self.store.clone(),
                    tasks: (Arc::clone(&self.task_sink), self.fleet_changed.clone()),
                })
                .await?
            }
        };
        let limit = [
            spec.timeout_ms.map(Duration::from_millis),
            plan.limits.wall_clock,
        ]
        .into_iter()
        .flatten()
        .min();
        let mut life = Life::new();
        life.see(Happening::Ready)?;
        let session = Session {
            agent: Arc::clone(&agent),
            slot,
            status,
            broker: self.broker.clone(),
            commands: channels.commands,
            deadline: limit.map(|limit| (Instant::now() + limit, limit)),
            life,
            output,
            cancel,
            port,
        };
        self.agents.add(reservation, &agent);
        let daemon = Arc::clone(self);
        let followed = Arc::clone(&agent);
        tokio::spawn(async move {
            let ending = session.run().await;
            daemon.finish(&followed, ending).await;
        });
        Ok((agent, attachment))
    }

    /// Starts gateway, proxy, MCP and bus on the listeners that were born inside the sandbox.
    fn serve_listeners(
        &self,
        fds: impl Iterator<Item = OwnedFd>,
        plan: &SandboxPlan,
        identity: &AgentIdentity,
        budget: &Arc<TokenBudget>,
        cancel: &CancellationToken,
        unit: Option<String>,
    ) -> anyhow::Result<crate::bus::AgentPort> {
        let mut by_tag = BTreeMap::new();
        for (listener, fd) in plan.listeners.iter().zip(fds) {
            by_tag.insert(listener.tag, fd);
        }
        let bus = by_tag
            .remove(&plan::BUS)
            .ok_or_else(|| anyhow::anyhow!("the plan has no bus socket"))?;
        let port = self
            .bus
            .attach(identity.clone(), plan.ipc.clone(), UnixListener::from(bus))?;
        for (tag, fd) in by_tag {
            let listener = StdTcpListener::from(fd);
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let cancel = cancel.child_token();
            let identity = identity.clone();
            match tag {
                plan::GATEWAY => {
                    let context = crate::gateway::GatewayContext {
                        identity,
                        rules: plan.model.clone(),
                        budget: Arc::clone(budget),
                        upstreams: Arc::clone(&self.upstreams),
                        store: self.store.clone(),
                    };
                    tokio::spawn(crate::gateway::serve(listener, Arc::new(context), cancel));
                }
                plan::PROXY => {
                    let context = crate::egress::EgressContext::new(
                        identity,
                        plan.egress.clone(),
                        self.store.clone(),
                    )
                    .with_approvals(
                        Arc::clone(&self.approvals),
                        unit.clone(),
                        plan.tools.ask_timeout,
                    );
                    tokio::spawn(crate::egress::serve(listener, Arc::new(context), cancel));
                }
                plan::MCP => {
                    let port = port.clone();
                    tokio::spawn(async move {
                        if let Err(error) = crate::mcp::serve(listener, port, cancel).await {
                            tracing::error!(agent = %identity, "its MCP server ended: {error}");
                        }
                    });
                }
                other => {
                    anyhow::bail!("the plan has a listener that agentd does not know (tag {other})")
                }
            }
        }
        Ok(port)
    }

    /// Writes the end down, then lets those who wait go on.
    async fn finish(&self, agent: &Arc<Agent>, ending: Ending) {
        let Ending { exit, gone } = ending;
        let fact = exit_fact(&exit, gone.and_then(|g| g.stats.memory_peak));
        if let Err(error) = self
            .store
            .record_durable(Event::now(agent.identity.id.to_string(), Fact::Exit(fact)))
            .await
        {
            tracing::error!(agent = %agent.identity, "its exit cannot be recorded: {error}");
        }
        self.approvals
            .agent_ended(&agent.identity.id.to_string().into())
            .await;
        agent.end(exit, unix_ms());
        self.agents.retire(agent);
    }

    /// Records what nobody waits for.
    async fn note(&self, event: Event) {
        if let Err(error) = self.store.record(event).await {
            tracing::error!("the record is incomplete: {error}");
        }
    }
}

/// What a launch that stands consists of.
#[derive(Debug)]
struct Up {
    slot: agentd_broker::protocol::Slot,
    pid: u32,
    host_uid: u32,
    layers: u64,
    landlock_abi: u32,
    status: StatusLink,
    fds: Vec<OwnedFd>,
}

/// Why it does not stand: for the caller and for the record.
#[derive(Debug)]
struct Refusal {
    step: String,
    errno: i32,
    error: Error,
}

impl Refusal {
    fn internal(step: &str, why: &dyn std::fmt::Display) -> Self {
        Self {
            step: step.into(),
            errno: 0,
            error: Error::LaunchFailed(format!("cannot {step}: {why}")),
        }
    }

    /// The launcher's own words about the plan it was given.
    fn of_launcher(failure: &Failure, wire: &[u8]) -> Self {
        let text = match Plan::parse(wire) {
            Ok(plan) => failure.describe(&plan),
            Err(_) => failure.step.to_string(),
        };
        let error = match (failure.step, failure.shell_code()) {
            (Step::Exec, 127) => Error::ProgramNotFound(text),
            (Step::Exec, _) => Error::ProgramNotExecutable(text),
            (Step::Require, _) => Error::LaunchRefused(text),
            _ => Error::LaunchFailed(text),
        };
        Self {
            step: failure.step.to_string(),
            errno: failure.errno,
            error,
        }
    }
}

impl From<BrokerError> for Refusal {
    fn from(error: BrokerError) -> Self {
        let (code, errno) = match &error {
            BrokerError::Client(ClientError::Refused(failure)) => {
                (Some(failure.code), failure.errno)
            }
            _ => (None, 0),
        };
        let text = error.to_string();
        let error = match code {
            Some(ErrorCode::Grant) => Error::Denied(text),
            Some(ErrorCode::CgroupLimits) => Error::LaunchRefused(text),
            Some(ErrorCode::TooMany | ErrorCode::ShuttingDown) => Error::Unavailable(text),
            Some(_) => Error::LaunchFailed(text),
            None => Error::Unavailable(text),
        };
        Self {
            step: code.map_or("broker", ErrorCode::name).into(),
            errno,
            error,
        }
    }
}

/// The unit that a launch belongs to, of an instance its template: what a person decides once for a kind of agent.
pub(crate) fn kind_of_unit(spec: &LaunchSpec) -> Option<String> {
    let unit = spec.unit.as_deref()?;
    Some(match unit.split_once('@') {
        Some((template, _)) => format!("{template}@"),
        None => unit.to_owned(),
    })
}

/// A driven agent always has pipes: its stdin and stdout carry the protocol.
fn stdio_mode(driver: Driver, spec: &LaunchSpec) -> agentd_sandbox::StdioMode {
    match (driver, spec.stdio) {
        (Driver::Claude | Driver::Jsonl, _) | (Driver::None, Some(StdioMode::Pipes) | None) => {
            agentd_sandbox::StdioMode::Pipes
        }
        (Driver::None, Some(StdioMode::Null)) => agentd_sandbox::StdioMode::Null,
        (Driver::None, Some(StdioMode::Pty)) => agentd_sandbox::StdioMode::Pty {
            rows: spec.rows.unwrap_or(24),
            cols: spec.cols.unwrap_or(80),
        },
    }
}

fn take_stdio(
    fds: &mut impl Iterator<Item = OwnedFd>,
    mode: agentd_sandbox::StdioMode,
) -> anyhow::Result<(Input, Output)> {
    let mut next = || {
        fds.next().ok_or_else(|| {
            anyhow::anyhow!("the sandbox passed fewer descriptors than its plan has")
        })
    };
    Ok(match mode {
        agentd_sandbox::StdioMode::Pty { .. } => stdio::from_terminal(next()?)?,
        agentd_sandbox::StdioMode::Pipes => stdio::from_pipes(next()?, next()?, next()?)?,
        agentd_sandbox::StdioMode::Null => (Input::Nothing, Output::Nothing),
    })
}

fn exit_fact(exit: &ExitInfo, memory_peak_bytes: Option<u64>) -> agentd_storage::Exit {
    use agentd_api::ExitCause;
    use agentd_storage::ExitKind;
    agentd_storage::Exit {
        kind: match exit.cause {
            ExitCause::Exited => ExitKind::Exited,
            ExitCause::Signaled => ExitKind::Signaled,
            ExitCause::Stopped | ExitCause::Limit => ExitKind::Stopped,
            ExitCause::TimedOut => ExitKind::TimedOut,
            ExitCause::LaunchFailed
            | ExitCause::NotExecutable
            | ExitCause::NotFound
            | ExitCause::Lost => ExitKind::Lost,
        },
        code: exit.code,
        signal: exit.signal,
        cause: exit.text.clone().unwrap_or_else(|| "program ended".into()),
        resources: agentd_storage::Resources {
            user_us: exit.utime_us.unwrap_or(0),
            system_us: exit.stime_us.unwrap_or(0),
            max_rss_kib: exit.max_rss_kb.unwrap_or(0),
            memory_peak_bytes,
        },
    }
}

fn unix_ms() -> u64 {
    u64::try_from(agentd_storage::unix_ms()).unwrap_or(0)
}
