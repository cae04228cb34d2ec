//! The bus as agentd runs it, without the rest of agentd: one router thread, a socket for each agent, no record.
//!
//! A process of its own, started before the first sample: `router --serve DIRECTORY COUNT` listens on `a0`, `a1`, … below the
//! directory, one agent each, all of one user and allowed everything. The router's thread is agentd's
//! (`agentd_bus::shard`); its sockets are served by two threads each, since nothing that is measured goes over them.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use agentd_bus::access::SameUser;
use agentd_bus::frame::{Decoder, PeerId};
use agentd_bus::router::{
    CloseReason, ConnKind, Effects, Limits, Now, Outgoing, PeerSpec, Persist, Router,
};
use agentd_bus::shard::{
    Flow, Frames, Host, Inbound, Outlet, Shard, Shards, SharedFd, Took, admit,
};
use agentd_bus::wait::WaitError;
use agentd_kernel::fdpass::{self, Wait};
use anyhow::{Context, Result, bail};
use bench_kit::helper::Helper;
use bench_peers::Scratch;

/// The running router.
#[derive(Debug)]
pub struct Server {
    _helper: Helper,
    directory: Scratch,
}

impl Server {
    pub fn start(agents: usize) -> Result<Self> {
        let directory = Scratch::new("router")?;
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.arg("--serve").arg(directory.path());
        command.arg("--agents").arg(agents.to_string());
        let helper = Helper::start(&mut command, "serving")?;
        Ok(Self {
            _helper: helper,
            directory,
        })
    }

    /// Where an agent finds its bus.
    pub fn socket(&self, agent: usize) -> PathBuf {
        socket(self.directory.path(), agent)
    }
}

fn socket(directory: &Path, agent: usize) -> PathBuf {
    directory.join(format!("a{agent}"))
}

/// Serves until it is killed.
#[expect(clippy::print_stdout, reason = "says that it is ready")]
pub fn serve(directory: &Path, agents: usize) -> Result<()> {
    agentd_bus::shm::barrier::register();
    let shards = Shards::start(1, Limits::default(), |_| {
        Box::new(Surroundings {
            epoch: Instant::now(),
        })
    });
    let shards = shards.context("start the router's thread")?;
    let shard = shards.of(1000).clone();
    for agent in 0..agents {
        let path = socket(directory, agent);
        let listener =
            UnixListener::bind(&path).with_context(|| format!("bind {}", path.display()))?;
        let mut id = [0xA0; 16];
        id[..8].copy_from_slice(&(agent as u64 + 1).to_le_bytes());
        let id = PeerId(id);
        let spec = PeerSpec {
            id,
            uid: 1000,
            name: format!("a{agent}"),
            short: agent as u32 + 1,
            access: Arc::new(SameUser),
        };
        shard.call(move |router, now, fx| router.attach(spec, now, fx))?;
        let shard = shard.clone();
        std::thread::spawn(move || accept(&listener, id, &shard));
    }
    println!("serving");
    loop {
        std::thread::park();
    }
}

/// Keeps no record.
struct Surroundings {
    epoch: Instant,
}

impl Host for Surroundings {
    fn act(&mut self, _: &mut Router<SharedFd>, _: Now, fx: &mut Effects<SharedFd>) {
        fx.record.clear();
        fx.channels.clear();
    }

    fn persist(&mut self, requests: Vec<Persist>) {
        assert!(requests.is_empty(), "nothing durable is measured here");
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mono = self.epoch.elapsed() + Duration::from_secs(1);
        Now {
            mono_ns: mono.as_nanos() as u64,
            wall_ns: wall.unwrap_or_default().as_nanos() as u64,
        }
    }

    fn panicked(&mut self) {
        eprintln!("the router panicked");
        std::process::abort();
    }

    fn route_failed(&mut self, why: &str) {
        eprintln!("no route: {why}");
    }

    fn cannot_wait(&mut self, error: &WaitError) {
        eprintln!("the router can't sleep: {error}");
    }
}

/// What is to be written to one socket.
#[derive(Default)]
struct Pending {
    out: Vec<Outgoing<SharedFd>>,
    closed: bool,
}

struct SocketOutlet {
    pending: Mutex<Pending>,
    changed: Condvar,
    taken: SyncSender<()>,
}

impl Outlet for SocketOutlet {
    fn offer(&self, frames: &mut Frames<'_>) -> Took {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.out.extend(frames);
        self.changed.notify_one();
        Took::All
    }

    fn taken(&self, flow: Flow) {
        if flow == Flow::ReadOn {
            // One batch is under way at a time, and one place is there for its answer.
            self.taken.try_send(()).ok();
        }
    }

    fn close(&self, reason: CloseReason) {
        eprintln!("closed: {reason}");
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
        self.changed.notify_one();
    }
}

fn accept(listener: &UnixListener, peer: PeerId, shard: &Shard) {
    for stream in listener.incoming() {
        let served = stream
            .context("accept")
            .and_then(|stream| connection(stream, peer, shard.clone()));
        if let Err(error) = served {
            eprintln!("{error:#}");
        }
    }
}

fn connection(stream: UnixStream, peer: PeerId, shard: Shard) -> Result<()> {
    let (taken, handled) = sync_channel(1);
    let outlet = Arc::new(SocketOutlet {
        pending: Mutex::default(),
        changed: Condvar::new(),
        taken,
    });
    let id = shard
        .connect(peer, ConnKind::Socket, outlet.clone())
        .context("the router has stopped")??;
    let writing = stream.try_clone().context("share a socket")?;
    let writer = outlet.clone();
    std::thread::spawn(move || {
        if let Err(error) = write(&writing, &writer) {
            eprintln!("{error:#}");
        }
    });
    std::thread::spawn(move || {
        let read = read(&stream, &shard, id, &handled);
        shard.closed(id);
        outlet.close_quietly();
        if let Err(error) = read {
            eprintln!("{error:#}");
        }
    });
    Ok(())
}

impl SocketOutlet {
    fn close_quietly(&self) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
        self.changed.notify_one();
    }
}

fn write(stream: &UnixStream, outlet: &SocketOutlet) -> Result<()> {
    let mut bytes = Vec::new();
    loop {
        let mut pending = outlet
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while pending.out.is_empty() && !pending.closed {
            pending = outlet
                .changed
                .wait(pending)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let out = std::mem::take(&mut pending.out);
        let closed = pending.closed;
        drop(pending);
        for Outgoing { frame, fd } in out {
            bytes.clear();
            frame.encode_into(&mut bytes);
            let mut rest = &bytes[..];
            let mut fd = fd;
            while !rest.is_empty() {
                let fds: Vec<_> = fd.take().into_iter().collect();
                let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                match fdpass::send(stream.as_fd(), rest, &borrowed) {
                    Ok(sent) => rest = &rest[sent..],
                    // The other side has gone; the reader says so.
                    Err(_) => return Ok(()),
                }
            }
        }
        if closed {
            stream.shutdown(std::net::Shutdown::Both).ok();
            return Ok(());
        }
    }
}

fn read(
    stream: &UnixStream,
    shard: &Shard,
    id: agentd_bus::router::ConnId,
    handled: &Receiver<()>,
) -> Result<()> {
    let mut decoder = Decoder::new(Limits::default().max_payload);
    let mut fds = std::collections::VecDeque::<OwnedFd>::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let received = match fdpass::receive(stream.as_fd(), &mut buffer, 4, Wait::AsSocket) {
            Ok(received) => received,
            Err(error) => bail!("read a socket: {error}"),
        };
        if received.len == 0 {
            return Ok(());
        }
        decoder.feed(&buffer[..received.len]);
        fds.extend(received.fds);
        let mut batch = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            let fd = if frame.has_fd_flag() {
                let fd = fds.pop_front().context("a descriptor is missing")?;
                Some(admit(&frame, fd)?)
            } else {
                None
            };
            batch.push(Inbound { frame, fd });
        }
        if !batch.is_empty() {
            shard.frames(id, batch);
            handled.recv().context("the router has stopped")?;
        }
    }
}
