//! The measured process: one shard of the gateway, with an echo behind it, on a CPU of its own.
//!
//! Requests come back as responses, events are swallowed. A line on standard input is a question: the answer, one JSON
//! line, has what the process has used so far. Ends with its standard input.

use std::io::{BufRead as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use agentd_bus::frame::{Frame, PeerId, kind};
use agentd_bus::gateway::desk::Taken;
use agentd_bus::gateway::epoll::Epoll;
use agentd_bus::gateway::tls::TlsConfig;
use agentd_bus::gateway::uring::Uring;
use agentd_bus::gateway::{
    ConnKey, Desk, Ending, Identity, ListenerId, ListenerOptions, Listening, Shard, ShardLimits,
    Transport, TransportLimits, Turned, Waker,
};
use anyhow::{Context, Result, bail};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// What the process has used since it started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time of the whole process, user and system.
    pub cpu_ns: u64,
    /// Calls that the transport made, counted where they are made.
    pub syscalls: u64,
    pub frames: u64,
    pub connections: usize,
    /// Connections that are ready for frames.
    pub opened: usize,
    pub turns: u64,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// `epoll` or `io_uring`
    #[arg(long)]
    transport: String,
    /// Where to listen: a path, or an address with a port
    #[arg(long)]
    listen: String,
    /// Directory with `server.der`, `server.key`, `ca.der`: TLS with client certificates
    #[arg(long)]
    tls: Option<PathBuf>,
    #[arg(long, default_value_t = 16_384)]
    connections: usize,
    /// Shards, each with a thread, a transport and a TCP address of its own: see `address`
    #[arg(long, default_value_t = 1)]
    shards: usize,
    #[arg(long)]
    cpu: usize,
    /// Sends without copying from this size on
    #[arg(long, default_value_t = usize::MAX)]
    zero_copy: usize,
}

struct Echo {
    opened: usize,
}

impl Desk for Echo {
    fn opened(&mut self, _: ConnKey, _: &Identity) -> Result<(), Turned> {
        self.opened += 1;
        Ok(())
    }

    fn frames(&mut self, _: ConnKey, frames: &mut Vec<Frame>, out: &mut Vec<Frame>) -> Taken {
        for mut frame in frames.drain(..) {
            if frame.kind() == kind::REQUEST {
                frame.header.kind = kind::RESPONSE.into();
                out.push(frame);
            }
        }
        Taken::More
    }

    fn written(&mut self, _: ConnKey) {}

    fn closed(&mut self, _: ConnKey, _: &Ending) {
        self.opened -= 1;
    }

    fn listening(&mut self, _: ListenerId, _: Listening) {}

    fn id_of(&self, _: ConnKey, _: u32) -> Option<PeerId> {
        None
    }

    fn short_of(&self, _: ConnKey, _: PeerId) -> Option<u32> {
        None
    }
}

/// Where the `nth` shard listens: a path is for one only, of a TCP address the next ones on loopback.
pub fn address(listen: &str, nth: usize) -> Result<String> {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    if listen.starts_with('/') {
        return Ok(listen.to_owned());
    }
    let mut address: SocketAddr = listen.parse()?;
    if let IpAddr::V4(ip) = address.ip() {
        address.set_ip(Ipv4Addr::from_bits(ip.to_bits() + nth as u32).into());
    }
    Ok(address.to_string())
}

fn listener(at: &str) -> Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
    let family = if at.starts_with('/') {
        AddressFamily::UNIX
    } else {
        AddressFamily::INET
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    if at.starts_with('/') {
        rustix::net::bind(&socket, &SocketAddrUnix::new(at)?)?;
    } else {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        rustix::net::bind(&socket, &at.parse::<std::net::SocketAddr>()?)?;
    }
    rustix::net::listen(&socket, 4096)?;
    Ok(socket)
}

fn tls(directory: &Path) -> Result<TlsConfig> {
    let read = |name: &str| std::fs::read(directory.join(name)).context(name.to_owned());
    let key = PrivateKeyDer::try_from(read("server.key")?).map_err(anyhow::Error::msg)?;
    let clients = ["client.bench".to_owned()];
    Ok(TlsConfig::new(
        vec![CertificateDer::from(read("server.der")?)],
        key,
        vec![CertificateDer::from(read("ca.der")?)],
        &clients,
    )?)
}

pub fn serve(options: &Options) -> Result<()> {
    let limits = TransportLimits {
        connections: options.connections,
        ..TransportLimits::default()
    };
    crate::pin(options.cpu)?;
    let mut shards = Vec::new();
    for nth in 0..options.shards {
        shards.push(match options.transport.as_str() {
            "epoll" => start(Epoll::new(limits)?, options, nth)?,
            "io_uring" => start(
                Uring::new(limits)?.zero_copy_from(options.zero_copy),
                options,
                nth,
            )?,
            other => bail!("no transport is called {other}"),
        });
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let mut sum = Usage::default();
        for (asking, waker) in &shards {
            let (answer, usage) = mpsc::channel();
            asking.send(answer)?;
            waker.wake();
            let usage: Usage = usage.recv().context("a shard has ended")?;
            sum.syscalls += usage.syscalls;
            sum.frames += usage.frames;
            sum.connections += usage.connections;
            sum.opened += usage.opened;
            sum.turns += usage.turns;
        }
        sum.cpu_ns = cpu_ns();
        writeln!(out, "{}", serde_json::to_string(&sum)?)?;
        out.flush()?;
    }
    Ok(())
}

type Asking = mpsc::Sender<mpsc::Sender<Usage>>;

/// One shard on a thread of its own; answers questions after being woken.
fn start<T: Transport + Send + 'static>(
    transport: T,
    options: &Options,
    nth: usize,
) -> Result<(Asking, Waker)> {
    let shard_limits = ShardLimits {
        // An idle connection is measured while it is idle.
        greeting: std::time::Duration::from_secs(3600),
        ..ShardLimits::default()
    };
    let mut shard = Shard::new(transport, Echo { opened: 0 }, shard_limits);
    let options_of = ListenerOptions {
        tls: options.tls.as_deref().map(tls).transpose()?,
        ..ListenerOptions::default()
    };
    shard.listen(listener(&address(&options.listen, nth)?)?, options_of)?;
    let (asking, questions) = mpsc::channel::<mpsc::Sender<Usage>>();
    let door = shard.door();
    let waker = shard.transport().waker();
    std::thread::spawn(move || -> Result<()> {
        while !door.is_stopped() {
            shard.step(None)?;
            while let Ok(answer) = questions.try_recv() {
                let counters = shard.transport().counters();
                answer.send(Usage {
                    cpu_ns: 0,
                    syscalls: counters.syscalls,
                    frames: shard.counters().frames_in,
                    connections: shard.transport().connections(),
                    opened: shard.desk().opened,
                    turns: counters.turns,
                })?;
            }
        }
        Ok(())
    });
    Ok((asking, waker))
}

fn cpu_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
