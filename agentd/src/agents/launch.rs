//! Bringing an agent up, from a request to a running session, and writing its end down.
//!
//! The order is chosen so that nothing runs unrecorded and nothing half-made is left: reserve the name → plan (pure) →
//! record the launch (durable, while the broker already works) → broker → the init's `Ready` with the sockets →
//! gateway, proxy, bus and MCP on those sockets → session. A failure at any step is recorded with its reason,
//! and whatever the broker started is killed.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::{AgentId, AgentIdentity, Driver, Error, ExitInfo, LaunchSpec, StdioMode};
use agentd_broker::client::ClientError;
use agentd_broker::protocol::{ErrorCode, Gone};
use agentd_launch::plan::Plan;
use agentd_launch::status::{Failure, Status, Step};
use agentd_sandbox::{
    CallerContext, EffectivePolicy, GrantInput, HardLinks, LaunchInputs, NetMode, PolicyRef,
    SandboxPlan, Sources,
};
use agentd_storage::{Event, Fact, StoreError};

use super::Caller;
use super::agent::Agent;
use super::broker::BrokerError;
use super::hold::Hold;
use super::kept::{self, Deadline, Kept, Rules};
use super::log::OutputLog;
use super::session::Ending;
use super::standing::{Place, Standing, Streams};
use super::status::{StatusError, StatusLink};
use crate::daemon::Daemon;
use crate::gateway::Spent;
use crate::revocation::Taken;

/// How long to wait before an exit that could not be recorded is tried again.
const RECORD_RETRY: Duration = Duration::from_secs(1);

/// How long the init may take to report. It does a few dozen system calls; a host that swaps gets a generous while.
const READY_LIMIT: Duration = Duration::from_secs(30);

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
        super::descriptors::check_room()?;
        let reservation = self
            .agents
            .reserve(caller.uid, spec.name.as_deref(), program)?;
        let identity = AgentIdentity::new(AgentId::new(), reservation.name(), caller.uid);
        let plan = self.plan(caller, &spec, &grants, &identity)?;
        let agent_id = identity.id;
        let id = agent_id.to_string();
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
                if let Ok((hold, _)) = launched {
                    self.broker.discard(hold.slot()).await;
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
                self.forget_status(agent_id);
                return Err(refusal.error);
            }
        };
        let degradations = plan
            .degradations
            .iter()
            .map(|d| format!("{}: {}", d.property, d.missing))
            .collect();
        let slot = up.hold.slot();
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
                self.forget_status(agent_id);
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
        if spec.unit.is_some() && policy.fs.hard_links == HardLinks::Inside {
            return Err(Error::LaunchRefused(format!(
                "{}: fs.hard_links = \"inside\": only `agentctl run` looks through what it grants, so no unit runs under it; \
                 add hard_links = \"any\" under [fs]",
                policy.origin_of("fs.hard_links")
            )));
        }
        let has_driver = !matches!(spec.driver, None | Some(Driver::None));
        if let Some(glob) = policy.tools.file_globs().first()
            && spec.unit.is_some()
            && !has_driver
        {
            return Err(Error::LaunchRefused(format!(
                "{}: {}: only `agentctl run` looks for the files that match, and a unit without a driver has no tools to \
                 refuse it to, so nothing would hold it; name the files under [fs] deny or protect",
                glob.rule.origin, glob.rule.text
            )));
        }
        let path = |text: &Option<String>| text.as_ref().map(PathBuf::from);
        let at = CallerContext {
            home: path(&spec.home),
            workspace: path(&spec.workspace),
            ..CallerContext::default()
        };
        let ceilings = &self.config.ceilings;
        crate::ceilings::check(ceilings, &sources.folders, caller, &policy, &at)?;
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
        let trust = self
            .credentials
            .for_agent(caller.uid, &policy.egress.credentials)
            .map_err(|e| Error::LaunchRefused(e.to_string()))?
            .map(|credentials| agentd_sandbox::TrustBundle {
                path: crate::egress::bundle_place().to_owned(),
                pem: credentials.bundle().to_owned(),
            });
        let driven = crate::driver::prepare(driver, spec)?;
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
            trust,
            name: identity.name.clone(),
            mode: self.sandbox_mode(),
            lifeline_grace_ms: u32::try_from(self.config.daemon.lifeline_grace.as_millis())
                .unwrap_or(u32::MAX),
            resolver: (policy.net.mode == NetMode::Host)
                .then(|| std::fs::read("/etc/resolv.conf").ok())
                .flatten(),
            direct: self.paths.are_offered(),
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
                "suite": spec.suite,
            }),
        }
    }

    /// Waits for the init's report.
    async fn await_ready(
        &self,
        (hold, status): (Hold, StatusLink),
        plan: &SandboxPlan,
    ) -> Result<Up, Refusal> {
        let slot = hold.slot();
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
                    layers: layers | hold.info().layers,
                    hold,
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
        self.broker.discard(slot).await;
        Err(refusal)
    }

    /// Has the broker keep what the next agentd needs, and starts the session.
    async fn start(
        self: &Arc<Self>,
        up: Up,
        reservation: super::Reservation<'_>,
        identity: AgentIdentity,
        spec: &LaunchSpec,
        plan: SandboxPlan,
    ) -> anyhow::Result<(Arc<Agent>, Option<OwnedFd>)> {
        let id = identity.id;
        let kept = kept_of(&up, identity, spec, &plan, self.config.logs.limit_bytes);
        let tags = plan.listeners.iter().map(|listener| listener.tag);
        let named = Streams::name(up.fds, kept.stdio, tags, kept.layers)?;
        let streams = Streams::new(named, kept.stdio)?;
        // From here on the agent outlives this agentd.
        streams.keep(&up.hold, self, kept.clone()).await?;
        let ready = Fact::Ready(kept.ready.clone());
        self.note(Event::now(id.to_string(), ready)).await;
        let standing = Standing {
            log: OutputLog::create(&self.log_path(id), kept.output_bytes)?,
            kept,
            hold: up.hold,
            status: up.status,
            streams,
            spent: Spent::default(),
            history: None,
        };
        self.bring_up(standing, Place::New(reservation), spec.attach == Some(true))
            .await
    }

    /// Writes the end down, then lets those who wait go on.
    pub(super) async fn finish(self: &Arc<Self>, agent: &Arc<Agent>, ending: Ending) {
        let Ending { exit, gone } = ending;
        // Before its slot is released: the next agent in it begins with rows of zeros.
        let fact = Fact::Exit(exit_fact(
            &exit,
            gone.as_ref().and_then(|g| g.stats.memory_peak),
            self.scheduler.last(agent.facts.slot),
            self.counters.last(agent.facts.slot),
        ));
        let event = Event::now(agent.identity.id.to_string(), fact);
        if let Err(error) = self.record_end(agent, &event, gone.as_ref()).await {
            tracing::error!(agent = %agent.identity, "its exit is not on record yet: {error}");
            let (daemon, agent) = (Arc::clone(self), Arc::clone(agent));
            // A full disk gets room again; until then the status file says how the agent ended.
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(RECORD_RETRY).await;
                    match daemon.record_end(&agent, &event, gone.as_ref()).await {
                        Ok(()) => return,
                        Err(StoreError::Closed | StoreError::Refused { .. }) => return,
                        Err(error) => {
                            tracing::debug!(agent = %agent.identity, "its exit is not on record yet: {error}");
                        }
                    }
                }
            });
        }
        self.approvals
            .agent_ended(&agent.identity.id.to_string().into())
            .await;
        agent.end(exit, unix_ms());
        self.agents.retire(agent);
        // Its stdin, and with it what was kept for a successor of ours: nobody needs them for as long as the ended are
        // listed. Aside, because somebody may still be writing.
        let input = agent.input.clone();
        tokio::spawn(async move { drop(input.take_feed().await) });
    }

    /// Removes the status file of an agent whose end is on record.
    pub(super) fn forget_status(&self, id: AgentId) {
        let path = self.status_path(id);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }

    /// Puts an exit on record, and only then lets go of what else knows of it: what the broker holds, the status file,
    /// the journal of its protocol.
    async fn record_end(
        &self,
        agent: &Agent,
        event: &Event,
        gone: Option<&Gone>,
    ) -> Result<(), StoreError> {
        self.store.record_durable(event.clone()).await?;
        if let Some(gone) = gone
            && let Err(error) = self.broker.release(gone.slot).await
        {
            tracing::warn!(agent = %agent.identity, "its slot stays taken: {error}");
        }
        self.forget_status(agent.identity.id);
        // If the disk was full, there is room now.
        agent.log.flush_to_disk();
        Ok(())
    }

    /// Records what nobody waits for.
    pub(super) async fn note(&self, event: Event) {
        if let Err(error) = self.store.record(event).await {
            tracing::error!("the record is incomplete: {error}");
        }
    }
}

/// What a launch that stands consists of.
#[derive(Debug)]
struct Up {
    hold: Hold,
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
pub(crate) fn kind_of_unit(unit: &str) -> String {
    match unit.split_once('@') {
        Some((template, _)) => format!("{template}@"),
        None => unit.to_owned(),
    }
}

/// A driven agent always has pipes: its stdin and stdout carry the protocol.
fn stdio_mode(driver: Driver, spec: &LaunchSpec) -> agentd_sandbox::StdioMode {
    match (driver, spec.stdio) {
        (Driver::Claude | Driver::Codex | Driver::Acp | Driver::Jsonl, _)
        | (Driver::None, Some(StdioMode::Pipes) | None) => agentd_sandbox::StdioMode::Pipes,
        (Driver::None, Some(StdioMode::Null)) => agentd_sandbox::StdioMode::Null,
        (Driver::None, Some(StdioMode::Pty)) => agentd_sandbox::StdioMode::Pty {
            rows: spec.rows.unwrap_or(24),
            cols: spec.cols.unwrap_or(80),
        },
    }
}

/// What the next agentd has to know of it.
fn kept_of(
    up: &Up,
    identity: AgentIdentity,
    spec: &LaunchSpec,
    plan: &SandboxPlan,
    log_limit_bytes: u64,
) -> Kept {
    let driver = spec.driver.unwrap_or(Driver::None);
    let limit = [
        spec.timeout_ms.map(Duration::from_millis),
        plan.limits.wall_clock,
    ];
    let degradations = plan.degradations.iter();
    Kept {
        format: kept::FORMAT,
        agentd: agentd_api::VERSION.into(),
        identity,
        argv: spec.argv.clone(),
        policy: plan.policy.clone(),
        workspace: spec.workspace.clone(),
        cwd: plan.summary.cwd.clone(),
        unit: spec.unit.clone(),
        subscriptions: spec.subscriptions.clone().unwrap_or_default(),
        driver,
        prompt: spec.prompt.clone(),
        started_at_ms: unix_ms(),
        layers: up.layers,
        ready: agentd_storage::Ready {
            pid: up.hold.info().pid.unsigned_abs(),
            host_uid: up.hold.info().host_uid,
            layers: agentd_launch::layers::layer_names(up.layers)
                .map(str::to_owned)
                .collect(),
            landlock_abi: up.landlock_abi,
            degradations: degradations
                .map(|d| agentd_storage::Degradation {
                    property: d.property.clone(),
                    why: format!("{}: {}", d.missing, d.lost),
                })
                .collect(),
        },
        rules: Rules::from(plan),
        stdio: stdio_mode(driver, spec),
        output_bytes: plan.limits.output_bytes.unwrap_or(log_limit_bytes),
        deadline: limit.into_iter().flatten().min().map(Deadline::after),
        keeps_names: plan.keeps_names,
        ending: None,
        taken: Taken::default(),
        // Filled in when the broker gets them.
        descriptors: Vec::new(),
        landlock_domain: None,
        links: serde_json::Map::new(),
    }
}

pub(super) fn exit_fact(
    exit: &ExitInfo,
    memory_peak_bytes: Option<u64>,
    scheduled: Option<agentd_storage::Scheduled>,
    counted: Option<agentd_storage::Counted>,
) -> agentd_storage::Exit {
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
            scheduled,
            counted,
        },
    }
}

fn unix_ms() -> u64 {
    u64::try_from(agentd_storage::unix_ms()).unwrap_or(0)
}
