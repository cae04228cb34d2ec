//! A process that holds connections and does nothing with them: the far end of the `conns` rows.
//!
//! Prints `held` when all of them are ready. At a line on its standard input it goes without a word, as a host does that
//! loses its power, and prints `gone`: what is left of the connections is the other side's alone.

use std::io::{BufRead as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[arg(long)]
    to: String,
    #[arg(long)]
    count: usize,
    /// Of all connections, the number of this process's first
    #[arg(long)]
    first: usize,
    /// Directory with `client.der`, `client.key`, `ca.der`
    #[arg(long)]
    tls: Option<PathBuf>,
}

/// Leaves the port to `connect`, which needs one that is free towards the server only, not towards everybody.
fn bind_address_only(socket: &OwnedFd) -> Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option is read from `on`, which has the length that is given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    ensure!(
        done == 0,
        "IP_BIND_ADDRESS_NO_PORT: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// One connection. An address of ours has about 28,000 ports, so the source changes.
pub fn connect(to: &str, nth: usize) -> Result<OwnedFd> {
    if to.starts_with('/') {
        return Ok(UnixStream::connect(to)?.into());
    }
    use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    // Closed by a reset: ports that linger in TIME-WAIT would be missing in the next sample.
    sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO))?;
    bind_address_only(&socket)?;
    let from = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1 + (nth / 5_000) as u8));
    rustix::net::bind(&socket, &SocketAddr::new(from, 0))?;
    rustix::net::connect(&socket, &to.parse::<SocketAddr>()?)?;
    Ok(socket)
}

fn client_config(directory: &Path) -> Result<Arc<ClientConfig>> {
    let read = |name: &str| std::fs::read(directory.join(name)).context(name.to_owned());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(read("ca.der")?))?;
    let key = PrivateKeyDer::try_from(read("client.key")?).map_err(anyhow::Error::msg)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![CertificateDer::from(read("client.der")?)], key)?;
    Ok(Arc::new(config))
}

fn hold_one(options: &Options, tls: Option<&Arc<ClientConfig>>, nth: usize) -> Result<OwnedFd> {
    let socket = connect(&options.to, nth)?;
    let Some(config) = tls else { return Ok(socket) };
    let mut stream = TcpStream::from(socket);
    let mut session =
        ClientConnection::new(Arc::clone(config), ServerName::try_from("server.bench")?)?;
    while session.is_handshaking() || session.wants_write() {
        session.complete_io(&mut stream)?;
    }
    // Its keys are not needed any more: this side only stays connected.
    Ok(stream.into())
}

pub fn hold(options: &Options) -> Result<()> {
    let tls = options.tls.as_deref().map(client_config).transpose()?;
    let next = AtomicUsize::new(0);
    let workers = if tls.is_some() { 16 } else { 1 };
    let held: Result<Vec<Vec<OwnedFd>>> = std::thread::scope(|scope| {
        let work = || -> Result<Vec<OwnedFd>> {
            let mut mine = Vec::new();
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                if nth >= options.count {
                    return Ok(mine);
                }
                mine.push(
                    hold_one(options, tls.as_ref(), nth)
                        .with_context(|| format!("connection {nth}"))?,
                );
            }
        };
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker does not panic"))
            .collect()
    });
    let held = held?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "held")?;
    out.flush()?;
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line)? > 0 {
        for socket in held.into_iter().flatten() {
            forget(socket)?;
        }
        writeln!(out, "gone")?;
        out.flush()?;
    }
    Ok(())
}

/// Closes without telling the other side: a socket in repair, as checkpointing tools use it, sends nothing.
#[doc(alias = "TCP_REPAIR")]
fn forget(socket: OwnedFd) -> Result<()> {
    const TCP_REPAIR: libc::c_int = 19;
    let on: libc::c_int = 1;
    // SAFETY: the option is read from `on`, which has the length that is given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_REPAIR,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    let error = std::io::Error::last_os_error();
    ensure!(
        done == 0,
        "TCP_REPAIR, for a far end that goes without a word: {error}; run as root"
    );
    Ok(())
}
