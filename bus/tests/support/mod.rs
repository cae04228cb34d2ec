//! A bus of threads around the router, small enough to be hostile: whoever tests may change any frame on its way.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

use agentd_bus::access::SameUser;
use agentd_bus::frame::{Decoder, Frame, PeerId};
use agentd_bus::router::{ConnId, ConnKind, Descriptor, Effects, Limits, Now, PeerSpec, Router};

/// Generous: a test that needs it is about to fail.
pub const WATCHDOG: Duration = Duration::from_secs(30);

/// What the bus sends instead of a frame: itself, nothing, something else, or more than it should.
pub type Tamper = Box<dyn FnMut(Frame) -> Vec<Frame> + Send>;

/// No frame comes with a descriptor here.
#[derive(Clone, Debug)]
enum NoMemory {}

impl Descriptor for NoMemory {
    fn bytes(&self) -> u64 {
        match *self {}
    }
}

struct State {
    router: Router<NoMemory>,
    streams: HashMap<ConnId, UnixStream>,
    tamper: Option<Tamper>,
    seen: Vec<Frame>,
}

/// The bus, and a bell for those that wait until more may be read from them.
struct Shared {
    state: Mutex<State>,
    resumed: Condvar,
}

/// A running bus; its threads end with the sockets of its clients.
pub struct Bus {
    state: Arc<Shared>,
    dir: tempfile::TempDir,
}

fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    Now {
        mono_ns: wall.as_nanos() as u64,
        wall_ns: wall.as_nanos() as u64,
    }
}

impl Bus {
    pub fn new() -> Self {
        Self {
            state: Arc::new(Shared {
                state: Mutex::new(State {
                    router: Router::new(Limits::default()),
                    streams: HashMap::new(),
                    tamper: None,
                    seen: Vec::new(),
                }),
                resumed: Condvar::new(),
            }),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// From now on every frame to a client goes through `tamper`.
    pub fn tamper(&self, tamper: impl FnMut(Frame) -> Vec<Frame> + Send + 'static) {
        self.state.state.lock().unwrap().tamper = Some(Box::new(tamper));
    }

    pub fn be_honest(&self) {
        self.state.state.lock().unwrap().tamper = None;
    }

    /// Every frame that came from clients so far.
    pub fn seen(&self) -> Vec<Frame> {
        self.state.state.lock().unwrap().seen.clone()
    }

    /// A new agent; the path of its socket.
    pub fn agent(&self, n: u8, name: &str) -> PathBuf {
        let id = PeerId([n; 16]);
        let spec = PeerSpec {
            id,
            uid: 1000,
            name: name.into(),
            short: n.into(),
            access: Arc::new(SameUser),
        };
        let mut effects = Effects::default();
        let mut state = self.state.state.lock().unwrap();
        state.router.attach(spec, now(), &mut effects).unwrap();
        state.flush(effects);
        drop(state);
        let path = self.dir.path().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let shared = self.state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let shared = shared.clone();
                std::thread::spawn(move || serve(&shared, stream, id));
            }
        });
        path
    }
}

fn serve(shared: &Shared, mut stream: UnixStream, peer: PeerId) {
    let conn = {
        let mut state = shared.state.lock().unwrap();
        let conn = state.router.connect(peer, ConnKind::Socket, now()).unwrap();
        state.streams.insert(conn, stream.try_clone().unwrap());
        conn
    };
    let mut decoder = Decoder::new(Limits::default().max_payload);
    let mut buffer = [0; 16 * 1024];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        decoder.feed(&buffer[..len]);
        while let Ok(Some(frame)) = decoder.next_frame() {
            let mut state = shared.state.lock().unwrap();
            let mut effects = Effects::default();
            state.seen.push(frame.clone());
            state.router.frame(conn, frame, None, now(), &mut effects);
            if state.flush(effects) {
                shared.resumed.notify_all();
            }
            let congested = |state: &mut State| state.router.is_congested(conn);
            drop(shared.resumed.wait_while(state, congested).unwrap());
        }
    }
    let mut state = shared.state.lock().unwrap();
    let mut effects = Effects::default();
    state.streams.remove(&conn);
    state.router.disconnect(conn, now(), &mut effects);
    state.flush(effects);
    shared.resumed.notify_all();
}

impl State {
    /// Writes what there is to write; whether somebody may be read from again.
    fn flush(&mut self, mut effects: Effects<NoMemory>) -> bool {
        while let Some(conn) = effects.wake.pop() {
            while let Some(out) = self.router.pull(conn, &mut effects) {
                let frames = match &mut self.tamper {
                    Some(tamper) => tamper(out.frame),
                    None => vec![out.frame],
                };
                let mut bytes = Vec::new();
                frames
                    .iter()
                    .for_each(|frame| frame.encode_into(&mut bytes));
                if let Some(stream) = self.streams.get_mut(&conn) {
                    // A client that has gone is told of by its reader.
                    drop(stream.write_all(&bytes));
                }
            }
        }
        !effects.resume.is_empty()
    }
}
