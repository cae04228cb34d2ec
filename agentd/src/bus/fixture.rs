//! What the tests of the bus share: a bus with agents on it, a bus that ends as a process does, and
//! a client that speaks raw bytes.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use agentd_api::{AgentId, AgentIdentity};
use agentd_bus::channel::Tag;
use agentd_bus::client::{Client, LaneError, LaneOffers, LaneOptions, LaneReceiver, LaneSender};
use agentd_bus::frame::{Decoder, Frame, PeerId, WithFd, kind};
use agentd_bus::message::{Control, Response};
use agentd_bus::router::{Limits, MessageMeta};
use agentd_sandbox::IpcRules;
use agentd_sandbox::rules::ipc::NamePattern;

use super::{AgentPort, BusServer, MessageSink, Unrecorded};

/// Generous: a test that needs it is about to fail.
pub(super) const WATCHDOG: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<MessageMeta>>);

impl MessageSink for Kept {
    fn record(&self, meta: MessageMeta) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.0.lock().unwrap().push(meta);
        Box::pin(std::future::ready(()))
    }
}

/// A bus on the test's runtime.
pub(super) struct Fixture {
    pub(super) server: BusServer,
    kept: Arc<Kept>,
    dir: tempfile::TempDir,
    /// Of the agents it began with.
    ports: Vec<AgentPort>,
}

pub(super) fn open_rules() -> IpcRules {
    let all = || vec![NamePattern::parse("#").unwrap()];
    IpcRules {
        send: all(),
        request: all(),
        publish: all(),
        subscribe: all(),
        shared_memory: true,
        tightened: Vec::new(),
    }
}

/// A new agent of this name.
pub(super) fn identity(name: &str, uid: u32) -> AgentIdentity {
    AgentIdentity {
        id: AgentId::new(),
        name: name.into(),
        uid,
        short: 1,
    }
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(super) fn with_limits(limits: Limits) -> Self {
        let kept = Arc::new(Kept::default());
        let server = BusServer::start_with(kept.clone(), limits);
        Self {
            server,
            kept,
            dir: tempfile::tempdir().unwrap(),
            ports: Vec::new(),
        }
    }

    /// With one user's agents of these names, who may do everything, and their sockets.
    pub(super) fn of<const N: usize>(names: [&str; N]) -> (Self, [PathBuf; N]) {
        let mut bus = Self::new();
        let paths = names.map(|name| {
            let (port, path) = bus.attach(name);
            bus.ports.push(port);
            path
        });
        (bus, paths)
    }

    /// Everything on record so far.
    pub(super) async fn record(&self) -> Vec<MessageMeta> {
        self.server.flush().await;
        self.kept.0.lock().unwrap().clone()
    }

    pub(super) fn attach(&self, name: &str) -> (AgentPort, PathBuf) {
        self.attach_as(name, 1000, open_rules())
    }

    pub(super) fn attach_as(&self, name: &str, uid: u32, rules: IpcRules) -> (AgentPort, PathBuf) {
        let (listener, path) = self.listen(name);
        let port = self.server.attach(identity(name, uid), rules, listener);
        (port.unwrap(), path)
    }

    /// A socket for an agent of this name.
    pub(super) fn listen(&self, name: &str) -> (UnixListener, PathBuf) {
        let path = self.path(name);
        (UnixListener::bind(&path).unwrap(), path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.sock"))
    }
}

/// A bus on a runtime of its own, which ends as a process ends: everything at once. Its agents'
/// sockets go on listening, as those do that the broker keeps.
pub(super) struct MortalBus {
    dir: tempfile::TempDir,
    listeners: Vec<(&'static str, UnixListener)>,
    life: Option<(tokio::runtime::Runtime, BusServer)>,
}

impl MortalBus {
    /// With one user's agents of these names, who may do everything.
    pub(super) fn of(names: &[&'static str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = |name: &&'static str| {
            let listener = UnixListener::bind(dir.path().join(name)).unwrap();
            (*name, listener)
        };
        let mut bus = Self {
            listeners: names.iter().map(listen).collect(),
            dir,
            life: None,
        };
        bus.succeed();
        bus
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn client(&self, name: &str) -> Client {
        Client::connect_to(&self.path(name)).unwrap()
    }

    pub(super) fn die(&mut self) {
        let (runtime, server) = self.life.take().expect("it lives");
        drop(server);
        runtime.shutdown_timeout(WATCHDOG);
    }

    /// The next one, with the same agents.
    pub(super) fn succeed(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let server = runtime.block_on(async {
            let server = BusServer::start(Arc::new(Unrecorded));
            for (name, listener) in &self.listeners {
                // An adopted agent is who it was.
                let mut id = [0; 16];
                id[..name.len()].copy_from_slice(name.as_bytes());
                let identity = AgentIdentity {
                    id: AgentId(uuid::Uuid::from_bytes(id)),
                    ..identity(name, 1000)
                };
                // What the broker keeps of an agent: the same socket, still listening.
                let listener = listener.try_clone().unwrap();
                server.attach(identity, open_rules(), listener).unwrap();
            }
            server
        });
        self.life = Some((runtime, server));
    }
}

impl Drop for MortalBus {
    fn drop(&mut self) {
        if self.life.is_some() {
            self.die();
        }
    }
}

/// Runs blocking client code beside the server, with a watchdog against hangs.
pub(super) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    in_time(tokio::task::spawn_blocking(act)).await.unwrap()
}

pub(super) async fn in_time<T>(act: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, act).await.expect("watchdog")
}

/// A tag that carries a number.
pub(super) fn tag(number: u32) -> Tag {
    Tag {
        kind: 4,
        flags: 0,
        correlation: number,
    }
}

/// Opens a lane to the agent of this name in a thread of its own, since it waits until the lane is taken.
pub(super) fn opening(
    from: &Client,
    to: &'static str,
    options: LaneOptions,
) -> JoinHandle<Result<LaneSender, LaneError>> {
    let from = from.clone();
    std::thread::spawn(move || from.open_lane(to, options))
}

/// Takes the next lane that is offered.
pub(super) fn take(offers: &LaneOffers) -> LaneReceiver {
    offers.next(WATCHDOG).unwrap().unwrap().accept().unwrap()
}

/// A client that speaks raw bytes.
pub(super) struct Raw {
    pub(super) stream: UnixStream,
    decoder: Decoder,
}

impl Raw {
    pub(super) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        Self {
            stream,
            decoder: Decoder::new(16 << 20),
        }
    }

    pub(super) fn greeted(path: &Path) -> Self {
        Self::greeted_with(path, 0)
    }

    pub(super) fn greeted_with(path: &Path, options: u16) -> Self {
        let mut raw = Self::connect(path);
        raw.say(&Frame::new(
            kind::COMMAND,
            PeerId::BUS,
            1,
            Control::Hello {
                version: 1,
                options,
            }
            .encode()
            .unwrap(),
        ));
        assert_eq!(raw.read().unwrap().kind(), kind::RESPONSE);
        raw
    }

    pub(super) fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode_into(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// As [`Self::say`], of a frame that comes with a descriptor.
    pub(super) fn say_with(&self, mut frame: Frame, fd: BorrowedFd<'_>) {
        frame.set_fd_flag(WithFd::Yes);
        let mut bytes = Vec::new();
        frame.encode_into(&mut bytes);
        agentd_kernel::fdpass::send(self.stream.as_fd(), &bytes, &[fd]).unwrap();
    }

    pub(super) fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(n) => self.decoder.feed(&buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The reason that the bus gives before it closes.
    pub(super) fn last_words(mut self) -> String {
        let mut last = None;
        while let Some(frame) = self.read() {
            last = Some(frame);
        }
        let last = last.expect("the bus says why");
        assert_eq!(last.kind(), kind::ERROR);
        Response::parse(&last.payload).unwrap().error.to_owned()
    }
}
