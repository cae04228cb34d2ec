//! Reaching the broker: the one that already serves the runtime directory, or a new one.
//!
//! [`reach`] runs at start-up, with the rights of whoever started agentd and under the instance lock: it connects to
//! `broker.sock`, where a broker may still hold the agents of an agentd that was killed, and starts a broker on a fresh
//! socket if nobody serves there. [`connect`] starts nothing. Both block until the broker has answered, for
//! [`ANSWER_TIMEOUT`] at most. What a running daemon does when its broker's worker dies is in `agents/broker.rs`.
//!
//! Fails with [`ConnectError`], whose [`ConnectError::Nobody`] says that nobody serves the socket.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentd_broker::client::{self, BrokerClient, ClientError};
use agentd_broker::protocol::{CgroupFeatures, Mode};
use anyhow::Context as _;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use super::confine::ServiceIds;
use crate::config::{HostNetwork, KernelAudit};

/// A broker that serves another client, or has stopped, does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The broker and what ties it to this process.
#[derive(Debug)]
pub struct BrokerProcess {
    /// Connected `SOCK_SEQPACKET` to the broker.
    pub socket: OwnedFd,
    /// Write end of agentd's lifeline. Never written: its closing, by exit or death, is the message.
    pub lifeline: OwnedFd,
    /// The last request id that the greeting used.
    pub last_id: u64,
    /// Whether it runs as root.
    pub mode: Mode,
    /// What it can do with cgroups.
    pub cgroups: CgroupFeatures,
    /// How many agents it holds for us.
    pub held: u32,
}

/// Why there is no broker to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("nobody serves {}", path.display())]
    Nobody { path: PathBuf },
    #[error(
        "the broker at {} does not answer within {} s: it serves another client, or has stopped; `fuser -v {0}` names it",
        path.display(), ANSWER_TIMEOUT.as_secs()
    )]
    Silent { path: PathBuf },
    #[error("cannot reach the broker at {}", path.display())]
    Os {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the broker does not answer as expected")]
    Client(#[source] ClientError),
}

/// Connects to the broker that serves `runtime_dir`, and greets it.
pub fn connect(runtime_dir: &Path) -> Result<BrokerProcess, ConnectError> {
    let path = runtime_dir.join(agentd_api::BROKER_SOCKET);
    let os = |source| {
        let path = path.clone();
        ConnectError::Os { path, source }
    };
    let socket = match client::connect(&path) {
        Ok(socket) => socket,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ConnectError::Nobody { path }
                }
                _ => os(error),
            });
        }
    };
    let timeout = |duration| set_socket_timeout(&socket, Timeout::Recv, duration);
    timeout(Some(ANSWER_TIMEOUT)).map_err(|e| os(e.into()))?;
    let (lifeline_read, lifeline) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| os(e.into()))?;
    let (socket, welcome, last_id) = {
        let mut client = BrokerClient::new(socket);
        let welcome = match client.hello(lifeline_read.as_fd()) {
            Ok(welcome) => welcome,
            // It was about to end as we connected.
            Err(ClientError::Gone) => return Err(ConnectError::Nobody { path }),
            Err(error) if error.is_would_block() => return Err(ConnectError::Silent { path }),
            Err(error) => return Err(ConnectError::Client(error)),
        };
        let last_id = client.last_id();
        (client.into_socket(), welcome, last_id)
    };
    set_socket_timeout(&socket, Timeout::Recv, None).map_err(|e| os(e.into()))?;
    tracing::debug!(?welcome, "connected to the broker");
    Ok(BrokerProcess {
        socket,
        lifeline,
        last_id,
        mode: welcome.mode,
        cgroups: welcome.cgroups,
        held: welcome.held,
    })
}

/// Takes over the broker that serves `runtime_dir`, or starts one there. `named` is its program if not the one beside
/// agentd's own; `service` is who this daemon is about to become. An ordinary user's broker keeps its notes in `state_dir`.
pub fn reach(
    runtime_dir: &Path,
    state_dir: &Path,
    named: Option<&Path>,
    service: Option<ServiceIds>,
    network: HostNetwork,
    kernel_audit: KernelAudit,
) -> anyhow::Result<BrokerProcess> {
    match connect(runtime_dir) {
        Err(ConnectError::Nobody { .. }) => {}
        reached => return reached.context("the broker of an earlier agentd"),
    }
    let program = match named {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .context("cannot find agentd's own path")?
            .with_file_name("agentd-broker"),
    };
    let listener = bind(&runtime_dir.join(agentd_api::BROKER_SOCKET), service)?;
    let client = service.map(|ids| [OsString::from("--client-uid"), ids.uid.to_string().into()]);
    // Root's broker believes only notes that root alone can write, and has a place for them.
    let notes = std::path::absolute(state_dir.join("broker")).context("state directory")?;
    let notes = [OsString::from("--notes"), notes.into()];
    let notes = (!rustix::process::geteuid().is_root()).then_some(notes);
    let network = (network == HostNetwork::Allow).then(|| OsString::from("--host-network"));
    let options = client.into_iter().chain(notes).flatten();
    let audit = (kernel_audit == KernelAudit::On).then(|| OsString::from("--kernel-audit"));
    let arguments: Vec<OsString> = options.chain(network).chain(audit).collect();
    let child = client::start_listening(&program, &arguments, listener).with_context(|| {
        format!(
            "cannot start the broker {} (it is installed beside agentd; AGENTD_BROKER names another)",
            program.display()
        )
    })?;
    tracing::debug!(pid = child.id(), "broker started");
    Ok(connect(runtime_dir)?)
}

/// The socket, for this daemon alone. What lay there was a dead broker's: we hold the instance lock, and nobody served.
fn bind(path: &Path, service: Option<ServiceIds>) -> anyhow::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener = client::bind(path).with_context(|| format!("cannot make {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    if let Some(ids) = service {
        std::os::unix::fs::chown(path, Some(ids.uid), Some(ids.gid))
            .with_context(|| format!("cannot give {} to uid {}", path.display(), ids.uid))?;
    }
    Ok(listener)
}
