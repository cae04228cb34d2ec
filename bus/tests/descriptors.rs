//! The gateway without descriptors, over each transport and each kind of socket: a process of its own, because the limit is the
//! process's, and one case at a time.
//!
//! Whoever is in is served all the while; of those who wait one is told by a close, the others when there is room; and it
//! works a second time, so that the descriptor in reserve has come back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_bus::gateway::epoll::Epoll;
use agentd_bus::gateway::uring::Uring;
use agentd_bus::gateway::{
    Command, Commands, Event, Handler, Listening, Transport, TransportLimits,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Sends everything back.
#[derive(Default)]
struct Log {
    accepted: usize,
    closed: usize,
    paused: Vec<Listening>,
    resumed: usize,
}

impl Handler for Log {
    fn event(&mut self, event: Event<'_>, out: &mut Commands) {
        match event {
            Event::Accepted { .. } => self.accepted += 1,
            Event::Received { conn, bytes } => {
                let bytes = bytes.to_vec();
                out.push(Command::Send { conn, bytes });
            }
            Event::Finished { conn } => out.push(Command::Drain { conn }),
            Event::Closed { .. } => self.closed += 1,
            Event::Listening { state, .. } => match state {
                Listening::Resumed => self.resumed += 1,
                state => self.paused.push(state),
            },
            Event::Sent { .. } | Event::Woken => {}
        }
    }
}

trait Stream: Read + Write {
    fn at_once(&self) -> std::io::Result<()>;
}

impl Stream for UnixStream {
    fn at_once(&self) -> std::io::Result<()> {
        self.set_nonblocking(true)
    }
}

impl Stream for TcpStream {
    fn at_once(&self) -> std::io::Result<()> {
        self.set_nonblocking(true)
    }
}

/// A listening socket's way in.
enum Way {
    Unix(tempfile::TempDir),
    Tcp(SocketAddr),
}

impl Way {
    fn unix() -> (Self, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        (Self::Unix(directory), listener.into())
    }

    fn tcp() -> (Self, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (Self::Tcp(listener.local_addr().unwrap()), listener.into())
    }

    fn dial(&self) -> Box<dyn Stream> {
        let stream: Box<dyn Stream> = match self {
            Self::Unix(directory) => {
                Box::new(UnixStream::connect(directory.path().join("s")).unwrap())
            }
            Self::Tcp(address) => Box::new(TcpStream::connect(address).unwrap()),
        };
        stream.at_once().unwrap();
        stream
    }
}

/// Not one descriptor more than there are, until it is dropped.
struct Tight(Rlimit);

impl Tight {
    fn new() -> Self {
        let before = getrlimit(Resource::Nofile);
        let probe = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 0).unwrap();
        let current = Some(probe.as_raw_fd() as u64);
        drop(probe);
        let maximum = before.maximum;
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
        Self(before)
    }
}

impl Drop for Tight {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

struct Bed<T> {
    transport: T,
    log: Log,
    way: Way,
}

impl<T: Transport> Bed<T> {
    fn until(&mut self, what: &str, mut done: impl FnMut(&Log) -> bool) {
        let watchdog = Instant::now() + Duration::from_secs(60);
        while !done(&self.log) {
            assert!(Instant::now() < watchdog, "hangs: {what}");
            let wait = Some(Duration::from_millis(5));
            self.transport.turn(wait, &mut self.log).unwrap();
        }
    }

    /// Says a word and hears it again, or the end; which of the two.
    fn is_served(&mut self, peer: &mut dyn Stream) -> bool {
        let closed = |result: std::io::Result<usize>| match result {
            Ok(0) => Some(false),
            Ok(_) => Some(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(_) => Some(false),
        };
        if closed(peer.write(b"word")) == Some(false) {
            return false;
        }
        let (mut heard, mut word) = (None, [0; 4]);
        self.until("an answer or the end", |_| {
            heard = closed(peer.read(&mut word));
            heard.is_some()
        });
        heard == Some(true) && word == *b"word"
    }
}

fn without_descriptors<T: Transport>(make: fn(TransportLimits) -> T, way: fn() -> (Way, OwnedFd)) {
    // The limit is everybody's, so nobody else makes anything meanwhile.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (way, socket) = way();
    let mut transport = make(TransportLimits::default());
    transport.listen(socket).unwrap();
    let log = Log::default();
    let mut bed = Bed {
        transport,
        log,
        way,
    };
    let mut first = bed.way.dial();
    bed.until("the first is in", |log| log.accepted == 1);
    for round in 1..=2u64 {
        let pauses = bed.log.paused.len();
        // They wait in the listener's queue, which takes none of the gateway's descriptors.
        let mut waiting = [bed.way.dial(), bed.way.dial()];
        let tight = Tight::new();
        bed.until("the listener pauses", |log| log.paused.len() > pauses);
        let errno = rustix::io::Errno::MFILE;
        assert_eq!(bed.log.paused[pauses], Listening::Paused { errno });
        let shed = bed.transport.counters().shed;
        assert!(shed >= round, "one is told by a close: {shed}");
        assert!(bed.is_served(&mut *first), "whoever is in is served");
        drop(tight);
        bed.until("it takes connections again", |log| {
            log.resumed == log.paused.len()
        });
        let mut served = 0;
        for peer in &mut waiting {
            served += usize::from(bed.is_served(&mut **peer));
        }
        assert!(served < waiting.len(), "{served} of those who waited");
        let mut late = bed.way.dial();
        assert!(bed.is_served(&mut *late), "there is room again");
    }
    drop(first);
    let open = |bed: &Bed<T>| bed.transport.connections();
    let watchdog = Instant::now() + Duration::from_secs(60);
    while open(&bed) > 0 {
        assert!(Instant::now() < watchdog, "{} are left", open(&bed));
        let wait = Some(Duration::from_millis(5));
        bed.transport.turn(wait, &mut bed.log).unwrap();
    }
    assert_eq!(bed.log.closed, bed.log.accepted);
}

fn epoll(limits: TransportLimits) -> Epoll {
    Epoll::new(limits).unwrap()
}

fn uring(limits: TransportLimits) -> Uring {
    Uring::new(limits).unwrap()
}

#[test]
fn epoll_over_af_unix_without_descriptors() {
    without_descriptors(epoll, Way::unix);
}

#[test]
fn epoll_over_tcp_without_descriptors() {
    without_descriptors(epoll, Way::tcp);
}

#[test]
fn io_uring_over_af_unix_without_descriptors() {
    without_descriptors(uring, Way::unix);
}

#[test]
fn io_uring_over_tcp_without_descriptors() {
    without_descriptors(uring, Way::tcp);
}
