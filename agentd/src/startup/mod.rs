//! Start-up in phases, each of which gives something up that the next one no longer needs.
//!
//! 1. [`prepare`] runs with the rights of whoever started agentd, on one thread: directories, the instance lock, the
//!    control socket, the broker process, the model keys. The order matters: the broker must exist before agentd
//!    drops root, the keys must be read before Landlock hides them.
//! 2. [`Prepared::confine`] drops root, capabilities, file system and system calls.
//! 3. The caller starts the runtime and serves.
//!
//! A failure in any phase ends the daemon with a message that names the next step; nothing is left running
//! (a broker whose client has gone ends when it holds no agents).

pub mod broker;
pub mod confine;
pub mod host;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use agentd_api::DaemonMode;
use agentd_broker::protocol::{CgroupFeatures, Mode};
use agentd_kernel::probe::{Feature, HostCaps, ProbeState, Roots, probe_host};
use agentd_storage::stream::segment::Disk;
use anyhow::{Context as _, bail};
use rustix::fs::FlockOperation;

use self::broker::BrokerProcess;
use self::confine::{Confinement, ServiceIds};
use crate::bus::gateway;
use crate::config::{Config, Confine, DurableStore, OnStop};
use crate::egress::Credentials;
use crate::gateway::Upstreams;
use crate::options::{Options, Standing};
use crate::units::Units;
use crate::units::boot::{Boot, Rights};

/// Lowest kernel uid of the reserved range; slot 0 is the daemon itself where no service user exists.
const FALLBACK_SERVICE_ID: u32 = agentd_broker::protocol::RESERVED_ID_BASE;

/// Everything that start-up made while it still could.
#[derive(Debug)]
pub struct Prepared {
    pub config: Config,
    pub runtime_dir: PathBuf,
    pub state_dir: PathBuf,
    pub control: UnixListener,
    pub broker: BrokerProcess,
    pub upstreams: Upstreams,
    pub credentials: Credentials,
    /// The socket gateway's listeners, certificates and rings.
    pub gateway: gateway::Prepared,
    /// Where the system's units are, and what was read and opened of them.
    pub unit_dirs: Vec<PathBuf>,
    pub units: Boot,
    /// What the host can do, probed with the rights that the broker keeps.
    pub host: HostCaps,
    /// How durable streams get to the disk: a ring is made while it may be.
    pub disk: Disk,
    /// Whether the whole system is served, or one user.
    pub mode: DaemonMode,
    /// Where to serve on a bus too.
    pub system_bus: Option<String>,
    /// `Some` when root started us: who we become.
    pub service: Option<ServiceIds>,
    /// Held for the life of the process.
    pub instance_lock: OwnedFd,
}

/// Phase 1. See the module.
pub fn prepare(options: &Options) -> anyhow::Result<Prepared> {
    let mut passed = agentd_kernel::activation::take(|name| std::env::var(name).ok())
        .context("the descriptors of the service manager")?;
    let root = rustix::process::geteuid().is_root();
    let system = root || options.standing == Standing::System;
    let mut config = Config::load(&options.config, options.config_required)?;
    if options.keep_agents {
        config.daemon.on_stop = OnStop::Keep;
    }
    let service = if root {
        Some(service_ids(&config.daemon.user)?)
    } else {
        None
    };

    // Stays root's in root mode: whoever owns it could put another daemon's socket there.
    make_dir(&options.runtime_dir, 0o755, None).context("runtime directory")?;
    make_dir(&options.state_dir, 0o700, service).context("state directory")?;
    make_dir(&options.state_dir.join("logs"), 0o700, service).context("log directory")?;
    make_dir(&options.state_dir.join("agents"), 0o700, service).context("agents directory")?;
    let instance_lock = lock_instance(&options.runtime_dir)?;
    let control = match passed.iter().position(|(name, _)| name == CONTROL_NAME) {
        Some(at) => listening(passed.swap_remove(at).1)?,
        None => bind_control(&options.runtime_dir, system)?,
    };
    let broker = match options.standing {
        Standing::Own => broker::reach(
            &options.runtime_dir,
            &options.state_dir,
            options.broker.as_deref(),
            service,
            config.daemon.host_network,
            config.daemon.kernel_audit,
        )?,
        Standing::System => broker::connect(&options.runtime_dir)
            .context("start agentd-broker.socket, or run agentd without --system")?,
    };
    let upstreams = Upstreams::from_config(&config.model).context("model keys")?;
    let credentials = Credentials::from_config(&config.net).context("credentials")?;

    let gateway = gateway::prepare(&config.gateway)?;

    let mode = match broker.mode {
        Mode::Root => DaemonMode::Root,
        Mode::User => DaemonMode::User,
    };
    let unit_dirs = config
        .units
        .dirs
        .clone()
        .unwrap_or_else(|| Units::default_dirs(mode, &options.config));
    let units = {
        let rights = if system && !root {
            Rights::None
        } else {
            Rights::Own
        };
        Boot::prepare(&unit_dirs, &config, &options.state_dir, rights)
    };

    let mut host = match &options.host_caps {
        Some(path) => host::read(path)?,
        None => probe_host(&Roots::default()),
    };
    trust_broker(&mut host, broker.cgroups);

    // Making a ring is a call that agentd forbids itself.
    let disk = match config.durable.store {
        DurableStore::Segment => Disk::probe(),
        DurableStore::Sqlite => Disk::plain("the record keeps durable streams"),
    };
    if let Some(directory) = &config.durable.directory {
        make_dir(directory, 0o700, service).context("directory of durable streams")?;
    }

    Ok(Prepared {
        disk,
        config,
        unit_dirs,
        units,
        host,
        runtime_dir: options.runtime_dir.clone(),
        state_dir: options.state_dir.clone(),
        control,
        broker,
        upstreams,
        mode,
        system_bus: system.then(|| options.system_bus.clone()),
        credentials,
        gateway,
        service,
        instance_lock,
    })
}

impl Prepared {
    /// Phase 2. See [`confine`].
    pub fn confine(&self) -> anyhow::Result<Confinement> {
        if let Some(ids) = self.service {
            confine::drop_root(ids)?;
        }
        confine::drop_privileges()?;
        // Said here, because the first call that fails for it would blame something else.
        std::fs::metadata(self.state_dir.join(".")).with_context(|| {
            format!(
                "agentd, as uid {}, cannot enter its state directory {}: every directory above must let others \
                 pass (chmod o+x), or choose another with --state-dir",
                rustix::process::geteuid().as_raw(),
                self.state_dir.display()
            )
        })?;
        let soften = |result: Result<(), confine::ConfineError>| match (
            result,
            self.config.daemon.confine,
        ) {
            (Ok(()), _) => Ok(true),
            (Err(error), Confine::Degrade) => {
                tracing::warn!("running without: {error}");
                Ok(false)
            }
            (Err(error), Confine::Required) => Err(error)
                .context("set `[daemon] confine = \"degrade\"` to run without this protection"),
        };
        let streams = self.config.durable.directory.as_deref();
        let writable: Vec<&Path> = [self.state_dir.as_path()]
            .into_iter()
            .chain(streams)
            .collect();
        let landlock = soften(confine::restrict_files(
            &writable,
            &[&self.config.daemon.policy_dirs[..], &self.unit_dirs].concat(),
        ))?;
        let rings = match self.gateway.has_rings() || self.disk.has_ring() {
            true => confine::Rings::MadeBefore,
            false => confine::Rings::None,
        };
        let seccomp = soften(confine::restrict_syscalls(rings))?;
        Ok(Confinement { landlock, seccomp })
    }
}

/// The ids of the service user, or the reserved ones where the host has no such user.
fn service_ids(user: &str) -> anyhow::Result<ServiceIds> {
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    for line in passwd.lines() {
        let mut fields = line.split(':');
        if fields.next() != Some(user) {
            continue;
        }
        let ids = (
            fields.nth(1).and_then(|f| f.parse().ok()),
            fields.next().and_then(|f| f.parse().ok()),
        );
        return match ids {
            (Some(0), _) => bail!("the service user `{user}` must not be uid 0"),
            (Some(uid), Some(gid)) => Ok(ServiceIds { uid, gid }),
            _ => bail!("/etc/passwd: the entry of `{user}` is malformed: {line:?}"),
        };
    }
    tracing::info!(
        "no user `{user}` on this host: running as the reserved uid {FALLBACK_SERVICE_ID}"
    );
    Ok(ServiceIds {
        uid: FALLBACK_SERVICE_ID,
        gid: FALLBACK_SERVICE_ID,
    })
}

/// Makes `dir` (and its parents), owned by the service user, or checks an existing one.
fn make_dir(dir: &Path, mode: u32, service: Option<ServiceIds>) -> anyhow::Result<()> {
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make {}", parent.display()))?;
    }
    match std::fs::DirBuilder::new().mode(mode).create(dir) {
        Ok(()) => std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))?,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e).with_context(|| format!("cannot make {}", dir.display())),
    }
    let meta = std::fs::symlink_metadata(dir)
        .with_context(|| format!("cannot inspect {}", dir.display()))?;
    if !meta.is_dir() {
        bail!(
            "{} is not a directory (symbolic links are not followed here)",
            dir.display()
        );
    }
    let me = rustix::process::geteuid().as_raw();
    let owner = service.map_or(me, |ids| ids.uid);
    if meta.uid() != me && meta.uid() != owner {
        bail!(
            "{} belongs to uid {}, not to {owner}: choose another directory",
            dir.display(),
            meta.uid()
        );
    }
    if meta.mode() & 0o022 != 0 {
        bail!(
            "{} is writable by others (mode {:o}): chmod go-w it",
            dir.display(),
            meta.mode() & 0o7777
        );
    }
    if let Some(ids) = service {
        std::os::unix::fs::chown(dir, Some(ids.uid), Some(ids.gid))
            .with_context(|| format!("cannot give {} to uid {}", dir.display(), ids.uid))?;
    }
    Ok(())
}

/// One daemon per runtime directory. The lock goes with the process, however it ends.
fn lock_instance(runtime_dir: &Path) -> anyhow::Result<OwnedFd> {
    let path = runtime_dir.join("agentd.lock");
    let mut file = std::fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => bail!(
            "another agentd already serves {}; talk to it with `agentctl --runtime-dir {0} ps`",
            runtime_dir.display()
        ),
        Err(e) => return Err(e).with_context(|| format!("cannot lock {}", path.display())),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file.into())
}

/// The name of the control socket among the service manager's descriptors.
const CONTROL_NAME: &str = "control";

/// The control socket that the service manager made.
fn listening(socket: OwnedFd) -> anyhow::Result<UnixListener> {
    use rustix::net::{AddressFamily, SocketType, sockopt};
    let usable = sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&socket) == Ok(SocketType::STREAM)
        && sockopt::socket_acceptconn(&socket) == Ok(true);
    if !usable {
        bail!(
            "the service manager's descriptor `{CONTROL_NAME}` is not a listening AF_UNIX stream socket"
        );
    }
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The control socket. In root mode every user may connect; what each may do is decided by its uid.
fn bind_control(runtime_dir: &Path, system: bool) -> anyhow::Result<UnixListener> {
    let path = runtime_dir.join(agentd_api::CONTROL_SOCKET);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", path.display()));
        }
        // We hold the instance lock: a socket that lay there was a dead daemon's.
        _ => {}
    }
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let mode = if system { 0o666 } else { 0o600 };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The broker has tried to make its subtree: what it found usable counts more than what a probe could tell.
fn trust_broker(host: &mut HostCaps, cgroups: CgroupFeatures) {
    for (feature, usable) in [
        (Feature::CgroupMemory, cgroups.memory),
        (Feature::CgroupPids, cgroups.pids),
        (Feature::CgroupCpu, cgroups.cpu),
    ] {
        if usable {
            host.observe(feature, ProbeState::Supported);
        } else if host.has(feature) {
            let why = "the broker could not enable it in a cgroup of its own".to_owned();
            host.observe(
                feature,
                ProbeState::Denied {
                    capability: "a delegated cgroup".into(),
                    why,
                },
            );
        }
    }
}
