//! The running daemon: what every part shares, and how it starts and ends serving.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agentd_api::{AgentId, DaemonMode};
use agentd_kernel::probe::HostCaps;
use agentd_storage::Store;
use agentd_storage::stream::StreamStore;
use agentd_storage::stream::segment::{self, Disk, SegmentStore};
use agentd_storage::stream::sqlite::SqliteStreams;
use anyhow::Context as _;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::agents::agent::Command;
use crate::agents::broker::BrokerLink;
use crate::agents::{Caller, Registry};
use crate::approvals::{self, Approvals};
use crate::bus::direct::Paths;
use crate::bus::{BusServer, Durable, MessageSink};
use crate::config::{Config, DurableConfig, DurableStore, OnStop};
use crate::control;
use crate::counters::KernelCounters;
use crate::denials::Denials;
use crate::driver::TaskSink;
use crate::egress::Credentials;
use crate::gateway::Upstreams;
use crate::plane::KernelPlane;
use crate::record::BusRecord;
use crate::sched::Scheduler;
use crate::service;
use crate::ssh::SshAgents;
use crate::startup::Prepared;
use crate::tasks::{Fleet, FleetChanged, Tasks};
use crate::units::Units;
use crate::units::fleet::UnitFleet;
use crate::upkeep;

/// How long agents get between TERM and KILL when the daemon is told to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// The record, in the state directory.
pub const RECORD: &str = "agentd.db";

/// What the parts of the daemon share. One per process.
#[derive(Debug)]
pub struct Daemon {
    pub config: Config,
    pub mode: DaemonMode,
    pub runtime_dir: PathBuf,
    pub state_dir: PathBuf,
    pub started_at_ms: i64,
    pub host: HostCaps,
    pub store: Store,
    pub broker: BrokerLink,
    /// Which eBPF programs the broker has.
    pub plane: KernelPlane,
    /// The direct path between agents.
    pub paths: Paths,
    pub scheduler: Scheduler,
    pub counters: KernelCounters,
    pub bus: BusServer,
    /// Over what the bus's socket gateway runs and why.
    pub gateway: Option<String>,
    pub upstreams: Arc<Upstreams>,
    pub credentials: Credentials,
    pub ssh_agents: Arc<SshAgents>,
    pub agents: Arc<Registry>,
    pub tasks: Tasks,
    /// The same, as conversations see it: where the ends of their tasks are reported.
    pub task_sink: Arc<dyn TaskSink>,
    pub fleet_changed: FleetChanged,
    /// Which agents tasks may be given to.
    pub fleet: Arc<UnitFleet>,
    pub units: Units,
    pub approvals: Arc<Approvals>,
    pub denials: Denials,
    /// Somebody asked for the end over the control socket.
    pub shutdown: Notify,
}

impl Daemon {
    /// Reads again what may change while the daemon runs: the system's units. All or nothing. Policies are read anew at each
    /// launch anyway; `agentd.toml` only at start, before the daemon gives up the right to read it.
    ///
    /// # Errors
    /// What is wrong; everything stays as it is.
    pub async fn reload(self: &Arc<Self>) -> Result<(), agentd_api::Error> {
        let root = Caller { uid: 0, gid: 0 };
        self.units.reload(self, root).await.map(drop)
    }

    /// Where an agent's output is kept.
    pub fn log_path(&self, id: AgentId) -> PathBuf {
        self.state_dir.join("logs").join(format!("{id}.log"))
    }

    /// Where a driven agent's side of its protocol is kept until it is on record.
    pub fn journal_path(&self, id: AgentId) -> PathBuf {
        self.state_dir.join("logs").join(format!("{id}.protocol"))
    }

    /// Where the agent's init writes its last report.
    pub fn status_path(&self, id: AgentId) -> PathBuf {
        self.state_dir.join("agents").join(format!("{id}.status"))
    }

    pub fn sandbox_mode(&self) -> agentd_sandbox::Mode {
        match self.mode {
            DaemonMode::Root => agentd_sandbox::Mode::Root,
            DaemonMode::User => agentd_sandbox::Mode::User,
        }
    }
}

/// The runtime: two workers do, because agents do the work and the daemon forwards.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .thread_name("agentd")
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Opens the store of durable topics and queues.
fn open_durable(
    config: &DurableConfig,
    state_dir: &Path,
    disk: Disk,
    store: &Store,
) -> anyhow::Result<Arc<Durable>> {
    let streams: Arc<dyn StreamStore> = match config.store {
        DurableStore::Sqlite => Arc::new(SqliteStreams::new(store.clone())),
        DurableStore::Segment => {
            let directory = config.directory.clone();
            let directory = directory.unwrap_or_else(|| state_dir.join("streams"));
            let (streams, notes) =
                SegmentStore::open(&directory, disk, segment::Options::default())?;
            for note in notes {
                tracing::warn!("{note}");
            }
            Arc::new(streams)
        }
    };
    tracing::info!("durable topics and queues: {}", streams.describe());
    Ok(Durable::new(streams, config.clone()))
}

/// Serves until a signal, a shutdown request or the end of the broker.
pub async fn serve(prepared: Prepared) -> anyhow::Result<()> {
    let store = Store::open(prepared.state_dir.join(RECORD))
        .await
        .context("cannot open the record")?;
    for incident in store.incidents() {
        tracing::error!(
            "the record is not as it was left: {}; `agentctl audit verify` says more",
            incident.detail
        );
    }
    let record = Arc::new(BusRecord::new(store.clone()));
    let durable = open_durable(
        &prepared.config.durable,
        &prepared.state_dir,
        prepared.disk,
        &store,
    )?;
    let sink = Arc::clone(&record) as Arc<dyn MessageSink>;
    let bus = BusServer::start_durable(sink, durable.clone(), prepared.config.bus_shards)
        .await
        .context("cannot read the durable topics and queues")?;
    tokio::spawn(durable.keep_retention());
    let agents = Arc::new(Registry::new(prepared.config.daemon.max_agents));
    let fleet_changed = FleetChanged::default();
    let tasks = Tasks::start(store.clone(), Arc::clone(&agents), fleet_changed.clone())
        .await
        .context("cannot read the open tasks")?;
    let broker = BrokerLink::start(
        prepared.broker.socket,
        prepared.broker.last_id,
        prepared.runtime_dir.join(agentd_api::BROKER_SOCKET),
    )?;
    let plane = KernelPlane::ask(&broker).await;
    let audit = broker.audit().await;
    let paths = Paths::start(prepared.config.direct, &plane, broker.clone());
    bus.connect_paths(paths.clone());
    let daemon = Arc::new(Daemon {
        units: Units::new(&prepared.config.units, prepared.unit_dirs, prepared.mode),
        fleet: Arc::new(UnitFleet::new(Arc::clone(&agents))),
        mode: prepared.mode,
        state_dir: prepared.state_dir,
        started_at_ms: agentd_storage::unix_ms(),
        host: prepared.host,
        broker,
        scheduler: Scheduler::new(&plane),
        counters: KernelCounters::new(&plane),
        denials: Denials::new(store.clone(), &plane, audit),
        plane,
        paths,
        runtime_dir: prepared.runtime_dir,
        gateway: prepared.gateway.transport(),
        bus,
        approvals: Approvals::start(store.clone())
            .await
            .context("cannot read the open questions")?,
        store,
        upstreams: Arc::new(prepared.upstreams),
        credentials: prepared.credentials,
        ssh_agents: Arc::default(),
        agents,
        task_sink: Arc::new(tasks.clone()),
        tasks,
        fleet_changed,
        shutdown: Notify::new(),
        config: prepared.config,
    });
    // Ends with this function.
    let _gateway = prepared.gateway.start(&daemon.bus)?;
    let adopted = daemon
        .adopt_all()
        .await
        .context("cannot take over from an earlier agentd")?;
    // Once everybody is known of whom the ring may tell.
    let told = Arc::clone(&daemon);
    tokio::spawn(async move { told.denials.follow_programs().await });
    let told = Arc::clone(&daemon);
    tokio::spawn(async move { told.denials.follow_landlock().await });
    let control = UnixListener::from_std(prepared.control)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let reloading = Arc::clone(&daemon);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            service::reload(&reloading).await;
        }
    });
    // The questions of those that live on are asked again under the same ids.
    daemon
        .approvals
        .forget_lost(|launch| daemon.agents.is_live(launch.as_str()))
        .await;
    tokio::spawn(approvals::tell_attached(Arc::clone(&daemon)));
    record.connect(&daemon);
    daemon.fleet.connect(&daemon);
    let enabled = prepared.units.load(&daemon).await;
    for (agent, unit) in &adopted {
        if let Some(unit) = unit {
            daemon.units.adopted(&daemon, agent, unit);
        }
    }
    enabled.start(&daemon);
    let engines = Arc::clone(&daemon);
    tokio::spawn(async move { engines.units.run(&engines).await });
    let fleet = Arc::clone(&daemon.fleet) as Arc<dyn Fleet>;
    daemon.tasks.serve(fleet).await;
    tokio::spawn(upkeep::run(Arc::clone(&daemon)));
    let connections = Arc::default();
    let mut serving = tokio::task::JoinSet::new();
    if let Some(address) = prepared.system_bus {
        let (daemon, connections) = (Arc::clone(&daemon), Arc::clone(&connections));
        serving.spawn(control::systembus::serve(address, daemon, connections));
    }
    serving.spawn(control::accept(control, Arc::clone(&daemon), connections));
    serving.spawn(service::ping(Arc::clone(&daemon)));
    service::announce_ready()?;

    let on_signal = daemon.config.daemon.on_stop;
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(on_signal),
        _ = interrupt.recv() => Ok(on_signal),
        // Somebody who asked for the end by its name gets all of it.
        () = daemon.shutdown.notified() => Ok(OnStop::Stop),
        () = daemon.broker.gone() => Err(anyhow::anyhow!("agentd-broker has gone; start agentd again")),
    };
    service::announce_stopping();
    serving.abort_all();
    daemon.tasks.rest();
    daemon.units.close();
    match outcome {
        Ok(OnStop::Stop) => stop_agents(&daemon).await,
        Ok(OnStop::Keep) => leave_agents(&daemon).await,
        Err(_) => {}
    }
    if let Err(error) = daemon.bus.flush_streams().await {
        tracing::error!("what was last acknowledged on durable queues may come again: {error}");
    }
    daemon
        .store
        .close()
        .await
        .context("the record may be incomplete")?;
    drop((prepared.broker.lifeline, prepared.instance_lock));
    outcome.map(drop)
}

/// The broker holds the agents for the next agentd; without one they die when their grace is over.
async fn leave_agents(daemon: &Daemon) {
    match daemon.broker.detach().await {
        Ok(()) => tracing::info!("the agents are left to the next agentd"),
        Err(error) => {
            tracing::error!("the agents cannot be left to the next agentd, so they end: {error}");
            stop_agents(daemon).await;
        }
    }
}

async fn stop_agents(daemon: &Daemon) {
    let root = Caller { uid: 0, gid: 0 };
    for agent in daemon.agents.visible(root) {
        let stop = Command::Stop {
            grace: SHUTDOWN_GRACE,
            by: "agentd, which is ending".into(),
        };
        if agent.command(stop).await.is_err() {
            tracing::debug!(agent = %agent.identity, "had already ended");
        }
    }
    let limit = SHUTDOWN_GRACE + Duration::from_secs(5);
    if tokio::time::timeout(limit, daemon.agents.all_ended())
        .await
        .is_err()
    {
        tracing::error!("some agents did not end; they die with the broker");
    }
}
