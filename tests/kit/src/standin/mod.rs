//! A stand-in for the model provider: Anthropic Messages and OpenAI chat completions and responses, streaming
//! or not, answering by a [`Script`].
//!
//! It never reaches a network but the address it listens on, and never invents an answer: a request that no rule
//! matches gets a 500 that quotes what was asked. It runs on a thread and a runtime of its own and stops when
//! dropped. Start reading at [`Standin::start`], then [`server`].

pub mod answer;
pub mod anthropic;
pub mod conversation;
pub mod log;
pub mod openai;
pub mod script;
pub mod server;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

pub use log::{End, Logged};
pub use script::{Script, ScriptError, Usage};

/// A running stand-in. Dropping it closes its listener and its connections.
#[derive(Debug)]
pub struct Standin {
    addr: SocketAddr,
    log: Arc<log::Log>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Standin {
    /// Starts answering on `addr` (port 0 picks one). Returns once it accepts.
    pub fn start(script: Script, addr: SocketAddr) -> io::Result<Self> {
        Self::start_logging(script, addr, None)
    }

    /// The same, on a free port of 127.0.0.1.
    pub fn local(script: Script) -> io::Result<Self> {
        Self::start(script, SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// The same, writing each request and its end as JSON lines to `log_file`.
    pub fn start_logging(
        script: Script,
        addr: SocketAddr,
        log_file: Option<&Path>,
    ) -> io::Result<Self> {
        let file = log_file.map(log::create).transpose()?;
        let log = Arc::new(log::Log::new(file));
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let router = server::router(script, log.clone());
        let thread = std::thread::Builder::new().name("model-standin".into()).spawn(move || {
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime has its I/O driver");
                tokio::select! {
                    served = axum::serve(listener, router) => served.expect("accept errors are retried by axum"),
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self {
            addr,
            log,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://ADDR`, the value for a base URL (without `/v1`).
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every request so far, in order of arrival.
    pub fn requests(&self) -> Vec<Logged> {
        self.log.entries()
    }

    /// Blocks until `ready` holds for the requests so far; false when `timeout` passed first.
    pub fn wait_until(&self, timeout: Duration, ready: impl Fn(&[Logged]) -> bool) -> bool {
        self.log.wait(timeout, ready)
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("model-standin: its thread panicked");
        }
    }
}
