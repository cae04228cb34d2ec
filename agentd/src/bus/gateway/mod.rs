//! The socket gateway in the daemon: listeners, certificates and rings made while agentd still may, shards started later.
//!
//! [`prepare`] runs with the rights of whoever started agentd, on its one thread; io_uring rings are made there, because
//! the daemon's own filter denies it afterwards. [`Prepared::start`] gives each shard its thread. Nothing listens
//! unless the configuration says so. Fails at start-up, naming the listener; later a shard that fails is logged, and its
//! connections end.

pub mod config;
mod desk;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agentd_bus::gateway::select::{Chosen, select};
use agentd_bus::gateway::tls::TlsConfig;
use agentd_bus::gateway::{
    Door, Interop, ListenerOptions, Shard, ShardLimits, Transport, TransportKind, TransportLimits,
};
use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use self::config::{GatewayConfig, ListenConfig, PeerConfig, TlsFiles};
use self::desk::{BusDesk, Outsiders};
use super::BusServer;

/// A listening socket with what it speaks, once for each shard.
type Listeners = Vec<(OwnedFd, ListenerOptions)>;

/// Shards that are not running yet.
#[derive(Debug)]
pub struct Prepared {
    shards: Vec<(Box<dyn Transport + Send>, Listeners)>,
    chosen: Option<Chosen>,
    peers: Vec<PeerConfig>,
}

/// The running gateway. Dropping it ends its shards.
#[derive(Debug, Default)]
pub struct Gateway {
    doors: Vec<Door>,
}

/// Opens everything that `config` names.
///
/// # Errors
/// The first listener, file or ring that can't be had.
pub fn prepare(config: &GatewayConfig) -> anyhow::Result<Prepared> {
    let mut prepared = Prepared {
        shards: Vec::new(),
        chosen: None,
        peers: config.peer.clone(),
    };
    if config.listen.is_empty() {
        return Ok(prepared);
    }
    raise_descriptors();
    let limits = TransportLimits {
        connections: config.connections,
        stall: Duration::from_secs(config.stall_s),
        ..TransportLimits::default()
    };
    let names: Vec<String> = config
        .peer
        .iter()
        .filter_map(|peer| peer.certificate.clone())
        .collect();
    let mut listeners: Vec<Listeners> = (0..config.shards).map(|_| Vec::new()).collect();
    for listen in &config.listen {
        let socket = match (&listen.unix, listen.tcp) {
            (Some(path), _) => listen_unix(path)
                .with_context(|| format!("[bus.gateway] cannot listen on {}", path.display()))?,
            (None, Some(address)) => listen_tcp(address)
                .with_context(|| format!("[bus.gateway] cannot listen on {address}"))?,
            (None, None) => bail!("[bus.gateway] a listener without unix and tcp"),
        };
        let options = options(listen, &names)?;
        for shard in &mut listeners {
            shard.push((socket.try_clone()?, options.clone()));
        }
    }
    for listeners in listeners {
        let (transport, chosen) =
            select(config.transport.wanted(), limits).context("[bus.gateway] transport")?;
        prepared.chosen = Some(chosen);
        prepared.shards.push((transport, listeners));
    }
    Ok(prepared)
}

/// Up to the hard limit: with epoll each connection takes one, and a ring's table is as long as the soft limit.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        tracing::warn!("the gateway keeps the soft limit of descriptors: {error}");
    }
}

fn options(listen: &ListenConfig, names: &[String]) -> anyhow::Result<ListenerOptions> {
    let tls = listen
        .tls
        .as_ref()
        .map(|files| tls(files, names))
        .transpose()?;
    let interop = match listen.interop {
        true => Interop::Accepted,
        false => Interop::Refused,
    };
    Ok(ListenerOptions { tls, interop })
}

fn tls(files: &TlsFiles, names: &[String]) -> anyhow::Result<TlsConfig> {
    let certificates = |path: &Path| -> anyhow::Result<Vec<CertificateDer<'static>>> {
        let read =
            CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let list =
            read.with_context(|| format!("[bus.gateway] certificates in {}", path.display()))?;
        if list.is_empty() {
            bail!("[bus.gateway] {} has no certificate in PEM", path.display());
        }
        Ok(list)
    };
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .with_context(|| format!("[bus.gateway] private key in {}", files.key.display()))?;
    TlsConfig::new(
        certificates(&files.certificate)?,
        key,
        certificates(&files.client_ca)?,
        names,
    )
    .with_context(|| format!("[bus.gateway] TLS with {}", files.certificate.display()))
}

const SOCKET: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

fn listen_unix(path: &Path) -> anyhow::Result<OwnedFd> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {
            // One that somebody still serves answers; a dead one is replaced.
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                bail!("another process listens there");
            }
            std::fs::remove_file(path)?;
        }
        Ok(_) => bail!("there is something that is no socket"),
        Err(_) => {}
    }
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SOCKET, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Who connects is known by its uid and judged by it.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket)
}

fn listen_tcp(address: SocketAddr) -> anyhow::Result<OwnedFd> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SOCKET, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // Connections inherit these: a peer whose host has gone is noticed after 90 s, or 30 s with bytes under way.
    sockopt::set_tcp_nodelay(&socket, true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    sockopt::set_tcp_keepidle(&socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(&socket, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(&socket, 3)?;
    sockopt::set_tcp_user_timeout(&socket, 30_000)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket)
}

impl Prepared {
    /// Whether a ring has been made, which the daemon's filter then has to let be used.
    pub fn has_rings(&self) -> bool {
        let chosen = self.chosen.as_ref();
        chosen.is_some_and(|chosen| chosen.kind == TransportKind::IoUring)
    }

    /// Over what the gateway runs and why; `None`: nothing listens.
    pub fn transport(&self) -> Option<String> {
        let chosen = self.chosen.as_ref()?;
        Some(format!("{}: {}", chosen.kind, chosen.why))
    }

    /// Where the listeners are, in the order of the configuration.
    #[cfg(test)]
    fn addresses(&self) -> Vec<SocketAddr> {
        let sockets = self.shards[0].1.iter().map(|(socket, _)| socket);
        sockets
            .filter_map(|socket| rustix::net::getsockname(socket).ok()?.try_into().ok())
            .collect()
    }

    /// Gives each shard its thread.
    ///
    /// # Errors
    /// A thread that can't be started.
    pub fn start(self, bus: &BusServer) -> anyhow::Result<Gateway> {
        let limits = ShardLimits {
            max_payload: bus.max_payload(),
            ..ShardLimits::default()
        };
        let outsiders = Arc::new(Outsiders::new(self.peers));
        let mut gateway = Gateway { doors: Vec::new() };
        for (at, (transport, listeners)) in self.shards.into_iter().enumerate() {
            let desk = BusDesk::new(bus.clone(), Arc::clone(&outsiders), transport.kind());
            let door = Arc::clone(&desk.door);
            let mut shard = Shard::new(transport, desk, limits);
            for (socket, options) in listeners {
                shard.listen(socket, options)?;
            }
            door.get_or_init(|| shard.door());
            gateway.doors.push(shard.door());
            std::thread::Builder::new()
                .name(format!("gateway-{at}"))
                .spawn(move || {
                    if let Err(error) = shard.run() {
                        tracing::error!(
                            "a shard of the socket gateway has ended: {error}: {}",
                            error.source
                        );
                    }
                })
                .context("start a shard of the socket gateway")?;
        }
        if let Some(chosen) = &self.chosen {
            let shards = gateway.doors.len();
            tracing::info!(
                shards,
                "socket gateway over {}: {}",
                chosen.kind,
                chosen.why
            );
        }
        Ok(gateway)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.doors.iter().for_each(Door::stop);
    }
}
