//! ZeroMQ as a contender: PUSH and PULL over ipc://, one I/O thread on each side.
//!
//! High-water marks as large as the messages of a sample, so that neither side waits for the other more than it must;
//! socket buffers left to the system. There is no busy-polling: libzmq's I/O thread needs a CPU of its own, and each side
//! has one CPU for both.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bench_kit::measure::sample;
use bench_kit::{Receiver, Sender, Setup, Transport, Waiting, extra};

/// Messages that may wait on each side.
const HIGH_WATER_MARK: i32 = 100_000;

struct Zmq {
    endpoint: String,
    socket: PathBuf,
}

/// In the process that prepared it, once both ends are gone; libzmq leaves the file there.
impl Drop for Zmq {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.socket)
            && error.kind() != ErrorKind::NotFound
        {
            eprintln!("remove {}: {error}", self.socket.display());
        }
    }
}

struct End {
    socket: zmq::Socket,
    message: zmq::Message,
}

impl Transport for Zmq {
    type Sender = End;
    type Receiver = End;

    fn prepare(setup: &Setup) -> Result<Self> {
        if setup.waiting == Waiting::Busy {
            bail!("libzmq's I/O threads would share the CPUs with what spins");
        }
        let socket = std::env::temp_dir().join(&setup.name);
        Ok(Self {
            endpoint: format!("ipc://{}", socket.display()),
            socket,
        })
    }

    fn receiver(&self) -> Result<End> {
        let socket = zmq::Context::new().socket(zmq::PULL).context("PULL")?;
        socket.set_rcvhwm(HIGH_WATER_MARK).context("ZMQ_RCVHWM")?;
        socket.bind(&self.endpoint).context("bind")?;
        Ok(End::new(socket))
    }

    fn sender(&self) -> Result<End> {
        let socket = zmq::Context::new().socket(zmq::PUSH).context("PUSH")?;
        socket.set_sndhwm(HIGH_WATER_MARK).context("ZMQ_SNDHWM")?;
        socket.set_linger(0).context("ZMQ_LINGER")?;
        socket.connect(&self.endpoint).context("connect")?;
        Ok(End::new(socket))
    }
}

impl End {
    fn new(socket: zmq::Socket) -> Self {
        Self {
            socket,
            message: zmq::Message::new(),
        }
    }
}

impl Sender for End {
    fn send(&mut self, payload: &[u8]) -> Result<()> {
        self.socket.send(payload, 0).context("zmq_send")
    }
}

impl Receiver for End {
    fn receive<T>(&mut self, see: impl FnOnce(&[u8]) -> T) -> Result<T> {
        self.socket
            .recv(&mut self.message, 0)
            .context("zmq_msg_recv")?;
        Ok(see(&self.message))
    }
}

fn main() -> ExitCode {
    extra::serve(sample::<Zmq>)
}
