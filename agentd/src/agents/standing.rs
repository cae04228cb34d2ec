//! An agent whose sandbox stands: the daemon's services around it, from its rules and its descriptors.
//!
//! The same steps for an agent that was just launched and for one that an earlier agentd launched: everything starts from
//! [`Kept`] and the descriptors it names, so whatever a launch needs is, by construction, also there for an adoption. A
//! failure leaves nothing running but the agent itself, which the caller discards.

use std::collections::BTreeMap;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use agentd_api::{AgentId, Driver};
use agentd_bus::message::Status;
use agentd_launch::layers::{LAYER_NET_NS, LAYER_SECCOMP_NOTIFY};
use agentd_launch::plan;
use agentd_orchestrator::agent::{Happening, Life};
use agentd_sandbox::StdioMode;
use agentd_storage::{LaunchId, Revocation};
use anyhow::Context as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Reservation;
use super::agent::{Agent, Attach, Facts, TakesInput};
use super::attachment::{Attachment, Manner};
use super::feed::Feed;
use super::hold::Hold;
use super::kept::{Descriptors, Kept, listener_name, listener_tag};
use super::launch::kind_of_unit;
use super::log::{self, OutputLog};
use super::pump::Pump;
use super::session::Session;
use super::status::StatusLink;
use super::stdio::{self, Input, Output};
use super::viewer::Begin;
use crate::bus::direct::{self, Came};
use crate::bus::{RefusalSink, TakenBack};
use crate::daemon::Daemon;
use crate::denials::follow_bus;
use crate::driver::History;
use crate::gateway::{Spent, TokenBudget, UnderWay};
use crate::mcp::Rights;
use crate::revocation::{self, Control, LiveRules, NetworkSwitch};
use crate::tasks::Delegation;

/// An agent with everything that its services are made of.
#[derive(Debug)]
pub struct Standing {
    pub kept: Kept,
    pub hold: Hold,
    pub status: StatusLink,
    pub streams: Streams,
    pub log: OutputLog,
    /// What it has cost so far.
    pub spent: Spent,
    /// What was said with a driven agent so far.
    pub history: Option<History>,
}

/// The name of the pipe of refused calls.
const REFUSALS: &str = "refusals";

/// The descriptors of an agent in the form in which they are used.
#[derive(Debug)]
pub struct Streams {
    pub input: Input,
    pub output: Output,
    /// By the tag of the plan.
    pub listeners: BTreeMap<u16, OwnedFd>,
    /// What the filter refused, as the sandbox's init tells it.
    pub refusals: Option<OwnedFd>,
}

/// What an agent's services judge and count by.
#[derive(Debug)]
struct Served {
    rules: LiveRules,
    budget: Arc<TokenBudget>,
    under_way: Arc<UnderWay>,
    network: Arc<NetworkSwitch>,
}

/// Where a new agent belongs.
#[derive(Debug)]
pub enum Place<'a> {
    /// Just launched, under this name.
    New(Reservation<'a>),
    /// Taken over from an earlier agentd.
    Adopted,
}

impl Streams {
    /// Names the descriptors of a new agent, which come in the order of the plan: streams, then listeners; then the refusals, if
    /// that is one of its `layers`.
    pub fn name(
        fds: Vec<OwnedFd>,
        mode: StdioMode,
        listeners: impl Iterator<Item = u16>,
        layers: u64,
    ) -> anyhow::Result<Descriptors> {
        let streams: &[&str] = match mode {
            StdioMode::Pty { .. } => &["terminal"],
            StdioMode::Pipes => &["stdin", "stdout", "stderr"],
            StdioMode::Null => &[],
        };
        let mut names: Vec<String> = streams.iter().map(|name| (*name).to_owned()).collect();
        names.extend(listeners.map(listener_name));
        if layers & LAYER_SECCOMP_NOTIFY != 0 {
            names.push(REFUSALS.to_owned());
        }
        if names.len() != fds.len() {
            anyhow::bail!(
                "the sandbox passed {} descriptors and its plan has {}",
                fds.len(),
                names.len()
            );
        }
        Ok(names.into_iter().zip(fds).collect())
    }

    /// Puts descriptors to use, those of a new agent or those that were kept.
    pub fn new(named: Descriptors, mode: StdioMode) -> anyhow::Result<Self> {
        let mut listeners = BTreeMap::new();
        let mut streams = BTreeMap::new();
        for (name, fd) in named {
            match listener_tag(&name) {
                Some(tag) => drop(listeners.insert(tag, fd)),
                None => drop(streams.insert(name, fd)),
            }
        }
        let mut take = |name: &str| streams.remove(name);
        let (input, output) = match mode {
            StdioMode::Null => (Input::Nothing, Output::Nothing),
            StdioMode::Pty { .. } => {
                let master = take("terminal").context("no terminal is among them")?;
                let held = take("held-out").zip(take("held-in"));
                stdio::from_terminal(master, held)?
            }
            StdioMode::Pipes => {
                let feed = match (take("stdin"), take("stdin-queue")) {
                    (Some(pipe), Some(queue)) => Some(Feed::adopt(pipe, queue)?),
                    (Some(pipe), None) => Some(Feed::new(pipe)?),
                    // Its stdin was ended by an earlier agentd.
                    (None, _) => None,
                };
                let stdout = take("stdout").context("no stdout is among them")?;
                let stderr = take("stderr").context("no stderr is among them")?;
                stdio::from_pipes(feed, stdout, stderr)?
            }
        };
        Ok(Self {
            input,
            output,
            listeners,
            refusals: streams.remove(REFUSALS),
        })
    }

    /// What the broker has to keep for the next agentd.
    pub async fn keep(&self, hold: &Hold, daemon: &Daemon, kept: Kept) -> anyhow::Result<()> {
        let feed = self.input.lock_feed().await;
        let mut fds: Vec<(String, BorrowedFd<'_>)> = Vec::new();
        let mut add = |name: &str, fd| fds.push((name.to_owned(), fd));
        if let Some(feed) = feed.as_ref().and_then(|feed| feed.as_ref()) {
            for (name, fd) in feed.kept_fds() {
                add(name, fd);
            }
        }
        for (name, fd) in self.output.kept_fds() {
            add(name, fd);
        }
        for (tag, fd) in &self.listeners {
            add(&listener_name(*tag), fd.as_fd());
        }
        if let Some(refusals) = &self.refusals {
            add(REFUSALS, refusals.as_fd());
        }
        Ok(hold.keep(&daemon.broker, kept, &fds).await?)
    }
}

impl Daemon {
    /// Brings the services of an agent up and starts its session; `attach` makes the first attachment.
    pub async fn bring_up(
        self: &Arc<Self>,
        standing: Standing,
        place: Place<'_>,
        attach: bool,
    ) -> anyhow::Result<(Arc<Agent>, Option<OwnedFd>)> {
        let Standing {
            kept,
            hold,
            status,
            streams,
            log: output_log,
            spent,
            history,
        } = standing;
        let Streams {
            input,
            output,
            listeners,
            refusals,
        } = streams;
        let init = hold.info().pid.unsigned_abs();
        let (witness, domain) = self.denials.witness(crate::denials::Suspect {
            identity: kept.identity.clone(),
            slot: hold.slot(),
            rules: kept.rules.denials.clone(),
            init,
            domain: kept.landlock_domain,
        });
        // For the next agentd, which does not hear of it again.
        let (keeps, broker, of) = (hold.downgrade(), self.broker.clone(), kept.identity.clone());
        tokio::spawn(async move {
            if let Ok(domain) = domain.await
                && let Some(hold) = keeps.upgrade()
                && let Err(error) = hold
                    .change(&broker, |kept| kept.landlock_domain = Some(domain))
                    .await
            {
                tracing::warn!(agent = %of, "the next agentd will not know what Landlock refuses it: {error}");
            }
        });
        if let Input::Pipe(_) = &input {
            let (forgets, broker, name) =
                (hold.clone(), self.broker.clone(), kept.identity.to_string());
            input
                .before_end(async move {
                    let stdin = ["stdin", "stdin-queue"];
                    if let Err(error) = forgets.forget(&broker, &stdin).await {
                        tracing::error!(agent = name, "its stdin stays open: {error}");
                    }
                })
                .await;
        }
        let driven = kept.driver != Driver::None;
        let facts = Facts {
            argv: kept.argv.clone(),
            policy: kept.policy.clone(),
            workspace: kept.workspace.clone(),
            driver: driven.then(|| kept.driver.as_str().to_owned()),
            started_at_ms: kept.started_at_ms,
            layers: agentd_launch::layers::layer_names(kept.layers).collect(),
            host_pid: kept.ready.pid,
            slot: hold.slot(),
        };
        if let Some(key) = kept.taken.unknown_key() {
            anyhow::bail!(
                "its policy was tightened under a later agentd by {key}, which this one can't hold"
            );
        }
        let rules = LiveRules::new(&kept.rules, &kept.taken.tightenings());
        let budget = TokenBudget::resumed(&*rules.model.now(), spent);
        let under_way = Arc::new(UnderWay::default());
        let cancel = CancellationToken::new();
        let network = NetworkSwitch::new(cancel.clone());
        let control = Control::new(revocation::Parts {
            agent: kept.identity.name.clone(),
            id: kept.identity.id,
            hold: hold.downgrade(),
            broker: self.broker.clone(),
            store: self.store.clone(),
            network: Arc::clone(&network),
            kept_ports: revocation::kept_ports(ports(&listeners)),
            own: kept.rules.clone(),
            rules: rules.clone(),
            budget: Arc::clone(&budget),
            under_way: Arc::clone(&under_way),
            bus: self.bus.clone(),
            policy_dirs: self.config.daemon.policy_dirs.clone(),
            beyond: revocation::beyond(kept.rules.limits.as_ref(), |it| self.host.has(it)),
            network_is_ours: kept.layers & LAYER_NET_NS != 0,
            taken: kept.taken.clone(),
        });
        // Before anything of it is served.
        control.take_again().await?;
        let (agent, channels) = Agent::new(
            kept.identity.clone(),
            facts,
            Arc::clone(&budget),
            Arc::new(output_log),
            input,
            control,
        );
        // Ends what is served already when a later step fails.
        let undo = cancel.clone().drop_guard();
        let adopted = matches!(place, Place::Adopted);
        let revoked = match place {
            Place::New(_) => Vec::new(),
            Place::Adopted => self.revoked(kept.identity.id).await?,
        };
        let came = match place {
            Place::New(_) => Came::New,
            Place::Adopted => Came::Adopted,
        };
        if listeners.contains_key(&plan::DIRECT)
            && let Some(address) = self.paths.address_of(hold.info())
        {
            self.paths.expect(kept.identity.id, address, came);
        }
        let (sink, refused) = crate::bus::refusals();
        tokio::spawn(follow_bus(refused, Arc::clone(&witness)));
        let rights = (revoked.as_slice(), sink.clone());
        let served = Served {
            rules: rules.clone(),
            budget,
            under_way,
            network,
        };
        let port = self.serve_listeners(listeners, &kept, rights, &served, &cancel)?;
        for topic in &kept.subscriptions {
            match port.subscribe(topic).await {
                // Taken from it while it ran.
                Err(error) if adopted && error.status == Status::DENIED => {
                    tracing::info!(agent = %kept.identity, "no longer follows {topic}: {error}");
                }
                other => other?,
            }
        }
        let attachment = if attach {
            let (ours, theirs) = Attachment::pair(Manner::Lossless)?;
            let takes_input = if driven {
                TakesInput::No
            } else {
                TakesInput::Yes
            };
            let everything = Attach {
                takes_input,
                from: Begin::Offset(0),
                window: None,
            };
            agent.attach(ours, everything)?;
            Some(theirs)
        } else {
            None
        };
        if !driven {
            // What an earlier agentd accepted for its stdin; nobody may ever type again.
            let fed = Arc::clone(&agent);
            tokio::spawn(async move {
                if let Err(error) = fed.input.flush().await {
                    tracing::debug!(agent = %fed.identity, "input not taken: {error}");
                }
            });
        }
        let output = if driven {
            crate::driver::start(crate::driver::Start {
                driver: kept.driver,
                prompt: kept.prompt.clone(),
                workspace: kept.workspace.clone(),
                cwd: kept.cwd.clone(),
                start_limit: self.config.daemon.driver_start,
                unit: kept.unit.as_deref().map(kind_of_unit),
                history,
                agent: Arc::clone(&agent),
                output,
                journal: Arc::new(OutputLog::reopen(
                    &self.journal_path(kept.identity.id),
                    log::JOURNAL_LIMIT_BYTES,
                )?),
                port: port.clone(),
                tools: rules.tools.clone(),
                approvals: Arc::clone(&self.approvals),
                store: self.store.clone(),
                tasks: (Arc::clone(&self.task_sink), self.fleet_changed.clone()),
                delegation: Some(self.delegation(&kept, &rules, sink)),
            })
            .await?
        } else {
            let pump = Pump {
                output,
                stdout_to: Arc::clone(&agent.log),
                stderr_to: Arc::clone(&agent.log),
            };
            let of = kept.identity.clone();
            tokio::spawn(async move {
                if let Err(error) = pump.run().await {
                    tracing::warn!(agent = %of, "its output cannot be read further: {error}");
                }
            })
        };
        if let Some(refusals) = refusals {
            let of = kept.identity.clone();
            let witness = Arc::clone(&witness);
            tokio::spawn(async move {
                if let Err(error) = crate::denials::follow_refusals(refusals, witness).await {
                    tracing::warn!(agent = %of, "its refused calls can't be read further: {error}");
                }
            });
        }
        let mut life = Life::new();
        life.see(Happening::Ready)?;
        if let Some(ending) = &kept.ending {
            life.see(Happening::EndRequested(ending.text.clone()))?;
        }
        let session = Session {
            agent: Arc::clone(&agent),
            status_path: self.status_path(kept.identity.id),
            hold,
            status,
            broker: self.broker.clone(),
            commands: channels.commands,
            deadline: kept
                .deadline
                .map(|deadline| (Instant::now() + deadline.left(), deadline.limit())),
            keeps_names: kept.keeps_names,
            reason: kept.ending.map(|ending| ending.cause),
            life,
            output,
            cancel: undo.disarm(),
            port,
        };
        match place {
            Place::New(reservation) => self.agents.add(reservation, &agent),
            Place::Adopted => self.agents.restore(&agent),
        }
        let daemon = Arc::clone(self);
        let followed = Arc::clone(&agent);
        tokio::spawn(async move {
            let ending = session.run().await;
            daemon.denials.ended(init);
            daemon.finish(&followed, ending).await;
            drop(witness);
        });
        Ok((agent, attachment))
    }

    /// What the agent may do with tasks.
    fn delegation(&self, kept: &Kept, rules: &LiveRules, refusals: RefusalSink) -> Delegation {
        let (tasks, identity) = (self.tasks.clone(), kept.identity.clone());
        Delegation::new(tasks, identity, rules.ipc.clone(), refusals)
    }

    /// The rights on the bus that were taken from an agent under an earlier agentd.
    async fn revoked(&self, id: AgentId) -> anyhow::Result<Vec<TakenBack>> {
        let held = self
            .store
            .revocations(&LaunchId::new(id.to_string()))
            .await?;
        held.into_iter()
            .map(|Revocation { right, pattern, by }| {
                let right = right.parse()?;
                Ok(TakenBack { right, pattern, by })
            })
            .collect()
    }

    /// Starts gateway, proxy, MCP and bus on the listeners that were born inside the sandbox.
    fn serve_listeners(
        &self,
        mut listeners: BTreeMap<u16, OwnedFd>,
        kept: &Kept,
        (revoked, sink): (&[TakenBack], RefusalSink),
        served: &Served,
        cancel: &CancellationToken,
    ) -> anyhow::Result<crate::bus::AgentPort> {
        let Served {
            rules,
            budget,
            under_way,
            network,
        } = served;
        let identity = &kept.identity;
        let bus = listeners
            .remove(&plan::BUS)
            .ok_or_else(|| anyhow::anyhow!("the plan has no bus socket"))?;
        let port = self.bus.attach_less(
            identity.clone(),
            (*rules.ipc.now()).clone(),
            revoked,
            Some(sink.clone()),
            UnixListener::from(bus),
        )?;
        for (tag, fd) in listeners {
            if tag == plan::SSH_AGENT {
                let listener = UnixListener::from(fd);
                listener.set_nonblocking(true)?;
                let forward = crate::ssh::Forward {
                    identity: identity.clone(),
                    rules: rules.ssh.clone(),
                    unit: kept.unit.as_deref().map(kind_of_unit),
                    ask_timeout: kept.rules.tools.ask_timeout,
                    approvals: Arc::clone(&self.approvals),
                    store: self.store.clone(),
                    agents: Arc::clone(&self.ssh_agents),
                };
                self.ssh_agents.expect(identity.id);
                let listener = tokio::net::UnixListener::from_std(listener)?;
                tokio::spawn(crate::ssh::serve(listener, forward, cancel.child_token()));
                continue;
            }
            let listener = StdTcpListener::from(fd);
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let cancel = cancel.child_token();
            let identity = identity.clone();
            match tag {
                plan::GATEWAY => {
                    let context = crate::gateway::GatewayContext {
                        identity,
                        rules: rules.model.clone(),
                        lines: kept.rules.denials.clone(),
                        budget: Arc::clone(budget),
                        under_way: Arc::clone(under_way),
                        prices: self.config.prices.clone(),
                        upstreams: Arc::clone(&self.upstreams),
                        store: self.store.clone(),
                    };
                    tokio::spawn(crate::gateway::serve(listener, Arc::new(context), cancel));
                }
                plan::PROXY => {
                    let names = &kept.rules.egress.credentials;
                    // Taken out of the configuration since the launch: then its host is a host like any other.
                    let credentials = self
                        .credentials
                        .for_agent(identity.uid, names)
                        .unwrap_or_else(|error| {
                            tracing::warn!(agent = %identity, "{error}");
                            None
                        });
                    let context = crate::egress::EgressContext::new(
                        identity,
                        rules.egress.clone(),
                        self.store.clone(),
                    )
                    .with_approvals(
                        Arc::clone(&self.approvals),
                        kept.unit.as_deref().map(kind_of_unit),
                        kept.rules.tools.ask_timeout,
                    )
                    .with_credentials(credentials)
                    .with_switch(Arc::clone(network));
                    tokio::spawn(crate::egress::serve(listener, Arc::new(context), cancel));
                }
                plan::MCP => {
                    let rights = Rights {
                        port: port.clone(),
                        delegation: Some(self.delegation(kept, rules, sink.clone())),
                    };
                    tokio::spawn(async move {
                        if let Err(error) = crate::mcp::serve(listener, rights, cancel).await {
                            tracing::error!(agent = %identity, "its MCP server ended: {error}");
                        }
                    });
                }
                plan::DIRECT => {
                    tokio::spawn(async move {
                        if let Err(error) = direct::keep(listener, cancel).await {
                            tracing::error!(agent = %identity, "its direct connections are not kept: {error}");
                        }
                    });
                }
                other => {
                    port.detach();
                    anyhow::bail!("the plan has a listener that agentd does not know (tag {other})")
                }
            }
        }
        Ok(port)
    }
}

/// The tags and ports of those listeners that have one.
fn ports(listeners: &BTreeMap<u16, OwnedFd>) -> impl Iterator<Item = (u16, u16)> + '_ {
    listeners.iter().filter_map(|(tag, fd)| {
        let address = rustix::net::getsockname(fd).ok()?;
        let address = std::net::SocketAddr::try_from(address).ok()?;
        Some((*tag, address.port()))
    })
}
