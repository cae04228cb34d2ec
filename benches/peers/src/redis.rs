//! Redis as a contender: publish-subscribe through `redis-server` on a Unix socket, nothing kept on disk.
//!
//! Publishes are pipelined: gathered into writes of 64 KiB, and their replies read without waiting for them, which is
//! many times what one round trip per message would give. Publish-subscribe is the fastest that Redis has for this:
//! its streams are in [`crate::streams`].

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use bench_kit::helper::Helper;
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting};

use super::wire::{Wire, number};

#[derive(Debug)]
pub struct Server {
    _helper: Helper,
    _directory: super::Scratch,
}

thread_local! {
    static SOCKET: std::cell::RefCell<PathBuf> = const { std::cell::RefCell::new(PathBuf::new()) };
}

impl Server {
    pub fn start() -> Result<Self> {
        let directory = super::Scratch::new("redis")?;
        let socket = directory.path().join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no"]);
        command.args(["--client-output-buffer-limit", "pubsub 0 0 0"]);
        command.arg("--dir").arg(directory.path());
        command.arg("--unixsocket").arg(&socket);
        let helper = Helper::start(&mut command, "connections at")?;
        SOCKET.set(socket);
        Ok(Self {
            _helper: helper,
            _directory: directory,
        })
    }
}

pub struct Redis {
    channel: String,
}

pub struct Publisher {
    wire: Wire<UnixStream>,
    /// All of a command up to the payload.
    head: Vec<u8>,
}

pub struct Subscriber {
    wire: Wire<UnixStream>,
}

pub(crate) fn connect() -> Result<UnixStream> {
    SOCKET
        .with_borrow(|path| UnixStream::connect(path))
        .context("connect to redis-server")
}

impl Transport for Redis {
    type Sender = Publisher;
    type Receiver = Subscriber;

    fn prepare(setup: &Setup) -> Result<Self> {
        if setup.waiting != Waiting::Blocking {
            bail!("the server would share a CPU with what spins");
        }
        Ok(Self {
            channel: setup.name.clone(),
        })
    }

    fn receiver(&self) -> Result<Subscriber> {
        let mut wire = Wire::new(connect()?);
        let Self { channel } = self;
        let command = format!(
            "*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n{channel}\r\n",
            channel.len()
        );
        wire.put(&[command.as_bytes()])?;
        wire.flush()?;
        // *3, $9, subscribe, the channel's length and name, and how many there are.
        for _ in 0..6 {
            wire.line()?;
        }
        Ok(Subscriber { wire })
    }

    fn sender(&self) -> Result<Publisher> {
        let Self { channel } = self;
        let head = format!(
            "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{channel}\r\n$",
            channel.len()
        );
        Publisher::with_head(head.into_bytes())
    }
}

impl Publisher {
    /// Sends commands that end with the payload, of which this is all before its length.
    pub(crate) fn with_head(head: Vec<u8>) -> Result<Self> {
        Ok(Self {
            wire: Wire::new(connect()?),
            head,
        })
    }

    /// Takes the replies that are there: the server stops reading from a client that never reads.
    fn take_replies(&self) -> Result<()> {
        let mut replies = [0; 16 << 10];
        loop {
            let flags = rustix::net::RecvFlags::DONTWAIT;
            match rustix::net::recv(&self.wire.socket, &mut replies, flags) {
                Ok((0, _)) => bail!("the server closed the connection"),
                // An error is a line of its own that begins with a minus; ids of streams have one inside.
                Ok((taken, _)) if replies[..taken].windows(2).any(|two| two == b"\n-") => {
                    bail!("{}", String::from_utf8_lossy(&replies[..taken]))
                }
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno).context("read replies"),
            }
        }
    }
}

impl Sender for Publisher {
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        let len = payload.len().to_string();
        let parts: [&[u8]; 5] = [&self.head, len.as_bytes(), b"\r\n", payload, b"\r\n"];
        if self.wire.put(&parts)? {
            self.take_replies()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.wire.flush()?;
        self.take_replies()
    }
}

impl Receiver for Subscriber {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        // *3, $7, message, the channel's length and name; then the payload's length, and the payload.
        for _ in 0..5 {
            self.wire.line()?;
        }
        let line = self.wire.line()?;
        let len = match self.wire.bytes(line) {
            [b'$', digits @ ..] => number(digits)?,
            other => bail!("redis said {:?}", String::from_utf8_lossy(other)),
        };
        Ok(see(self.wire.counted(len)?))
    }
}
