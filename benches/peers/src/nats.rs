//! NATS as a contender: core publish-subscribe through `nats-server` on the loopback, TCP_NODELAY.
//!
//! The protocol is a few lines of text, spoken here without a runtime in between. Publishes are gathered into writes of
//! 64 KiB, as its own clients do, and flushed where a reply is awaited. The server may hold back as much as it likes for
//! a slow subscriber instead of dropping it.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use bench_kit::helper::Helper;
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting};

use super::wire::{Wire, number};

/// What names the server's binary; xtask sets it.
pub const PROGRAM: &str = "BENCH_NATS_SERVER";

#[derive(Debug)]
pub struct Server {
    _helper: Helper,
    _directory: super::Scratch,
}

thread_local! {
    static ADDRESS: std::cell::Cell<Option<SocketAddr>> = const { std::cell::Cell::new(None) };
}

impl Server {
    pub fn start() -> Result<Self> {
        let program = std::env::var_os(PROGRAM).map_or("nats-server".into(), PathBuf::from);
        let directory = super::Scratch::new("nats")?;
        let configuration = directory.path().join("nats.conf");
        std::fs::write(
            &configuration,
            "listen: \"127.0.0.1:-1\"\nmax_pending: 4GB\nwrite_deadline: \"60s\"\n",
        )
        .context("write the server's configuration")?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&configuration);
        let helper = Helper::start_by_stderr(&mut command, "Server is ready")?;
        let address = helper
            .said()
            .lines()
            .find_map(|line| line.split_once("Listening for client connections on "))
            .context("the server named no address")?;
        let address = address
            .1
            .trim()
            .parse()
            .context("read the server's address")?;
        ADDRESS.set(Some(address));
        Ok(Self {
            _helper: helper,
            _directory: directory,
        })
    }
}

pub struct Nats {
    subject: String,
}

pub struct End {
    wire: Wire<TcpStream>,
    /// `PUB subject len\r\n`
    head: Vec<u8>,
}

impl Nats {
    fn connect(&self) -> Result<Wire<TcpStream>> {
        let address = ADDRESS.get().context("the server was not started")?;
        let socket = TcpStream::connect(address).context("connect to nats-server")?;
        socket.set_nodelay(true).context("TCP_NODELAY")?;
        let mut wire = Wire::new(socket);
        wire.line()?;
        wire.put(&[b"CONNECT {\"verbose\":false,\"pedantic\":false,\"protocol\":1}\r\n"])?;
        Ok(wire)
    }

    /// Waits until the server has done everything asked before.
    fn settle(wire: &mut Wire<TcpStream>) -> Result<()> {
        wire.put(&[b"PING\r\n"])?;
        wire.flush()?;
        loop {
            let line = wire.line()?;
            match wire.bytes(line) {
                b"PONG" => return Ok(()),
                line if line.starts_with(b"-ERR") => bail!("{}", String::from_utf8_lossy(line)),
                _ => {}
            }
        }
    }
}

impl Transport for Nats {
    type Sender = End;
    type Receiver = End;

    fn prepare(setup: &Setup) -> Result<Self> {
        if setup.waiting != Waiting::Blocking {
            bail!("the server's threads would share the CPUs with what spins");
        }
        Ok(Self {
            subject: setup.name.clone(),
        })
    }

    fn receiver(&self) -> Result<End> {
        let mut wire = self.connect()?;
        wire.put(&[b"SUB ", self.subject.as_bytes(), b" 1\r\n"])?;
        Self::settle(&mut wire)?;
        Ok(End {
            wire,
            head: Vec::new(),
        })
    }

    fn sender(&self) -> Result<End> {
        let mut wire = self.connect()?;
        Self::settle(&mut wire)?;
        Ok(End {
            wire,
            head: format!("PUB {} ", self.subject).into_bytes(),
        })
    }
}

impl Sender for End {
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let len = payload.len().to_string();
        self.wire
            .put(&[&self.head, len.as_bytes(), b"\r\n", payload, b"\r\n"])?;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.wire.flush()
    }
}

impl Receiver for End {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        loop {
            let line = self.wire.line()?;
            let line = self.wire.bytes(line);
            if line.starts_with(b"MSG ") {
                let digits = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
                let len = number(digits)?;
                return Ok(see(self.wire.counted(len)?));
            }
            if line == b"PING" {
                self.wire.put(&[b"PONG\r\n"])?;
                self.wire.flush()?;
            } else if line.starts_with(b"-ERR") {
                bail!("{}", String::from_utf8_lossy(line));
            }
        }
    }
}
