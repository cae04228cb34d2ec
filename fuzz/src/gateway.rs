//! The socket gateway: streams in either dialect however they are cut, and every transport under scripts of commands and
//! of peers that come, send, stop reading and go.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agentd_bus::frame::{Frame, PeerId};
use agentd_bus::gateway::epoll::Epoll;
use agentd_bus::gateway::interop::{self, Dialect, HEADER_LEN, ShortIds};
use agentd_bus::gateway::loopback::{Fabric, FabricPeer, Loopback};
use agentd_bus::gateway::stream::Stream;
use agentd_bus::gateway::uring::Uring;
use agentd_bus::gateway::{
    Command, Commands, ConnKey, Event, Handler, Interop, Transport, TransportLimits,
};

use crate::input::Input;

/// Every short id but 13 names somebody.
struct Ids;

impl ShortIds for Ids {
    fn id_of(&self, short: u32) -> Option<PeerId> {
        let mut id = [7; 16];
        id[12..].copy_from_slice(&short.to_be_bytes());
        (short != 13).then_some(PeerId(id))
    }

    fn short_of(&self, id: PeerId) -> Option<u32> {
        let short = u32::from_be_bytes(*id.0.last_chunk()?);
        (self.id_of(short) == Some(id)).then_some(short)
    }
}

/// However a stream is cut, the same frames come out, and they encode to what went in.
pub fn streams(data: &[u8]) {
    let mut input = Input::new(data);
    let limit = u32::from(input.u16());
    let piece = usize::from(input.u8()).max(1);
    let bytes = input.rest();
    let decode = |piece: usize| {
        let (mut stream, mut frames) = (Stream::default(), Vec::<Frame>::new());
        for part in bytes.chunks(piece) {
            let mut rest = part;
            loop {
                match stream.next(&mut rest, Interop::Accepted, limit, &Ids) {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => return (stream.dialect(), frames, Some(error)),
                }
            }
            assert!(rest.is_empty() && stream.held() < HEADER_LEN + limit as usize);
        }
        (stream.dialect(), frames, None)
    };
    let (dialect, frames, error) = decode(piece);
    assert_eq!((dialect, frames.clone(), error), decode(bytes.len().max(1)));
    let mut at = 0;
    for frame in &frames {
        assert!(frame.payload.len() <= limit as usize);
        let mut again = Vec::new();
        match dialect {
            Dialect::B1 => frame.encode_into(&mut again),
            Dialect::V3 => {
                interop::to_v3(frame, &Ids, &mut again).expect("what came from v3 goes back")
            }
        }
        let mut came = bytes[at..at + again.len()].to_vec();
        if dialect == Dialect::V3 && came[28..60].iter().all(|byte| *byte == 0) {
            // No check sum came; ours always has one.
            came[28..60].copy_from_slice(&again[28..60]);
        }
        assert_eq!(came, again);
        at += again.len();
    }
}

/// The far end of a connection of either sort.
enum Peer {
    Socket(UnixStream),
    Memory(FabricPeer),
}

impl Peer {
    fn send(&mut self, bytes: &[u8]) -> usize {
        match self {
            Self::Socket(stream) => stream.write(bytes).unwrap_or(0),
            Self::Memory(peer) => peer.send(bytes),
        }
    }

    fn finish(&mut self) {
        match self {
            Self::Socket(stream) => stream.shutdown(std::net::Shutdown::Write).unwrap_or_default(),
            Self::Memory(peer) => peer.finish(),
        }
    }

    fn receive(&mut self, into: &mut Vec<u8>) {
        match self {
            Self::Socket(stream) => {
                let mut bytes = [0; 8192];
                let count = stream.read(&mut bytes).unwrap_or(0);
                into.extend_from_slice(&bytes[..count]);
            }
            Self::Memory(peer) => into.extend(peer.receive().unwrap_or_default()),
        }
    }
}

/// Holds a transport to its promises while the script runs.
#[derive(Default)]
struct Witness {
    accepted: Vec<ConnKey>,
    open: BTreeMap<ConnKey, Vec<u8>>,
    closed: usize,
}

impl Handler for Witness {
    fn event(&mut self, event: Event<'_>, out: &mut Commands) {
        match event {
            Event::Accepted { conn, .. } => {
                assert!(!self.accepted.contains(&conn), "a key is used once");
                self.accepted.push(conn);
                self.open.insert(conn, Vec::new());
            }
            Event::Received { conn, bytes } => {
                let seen = self.open.get_mut(&conn).expect("open");
                // Every peer sends the same endless stream, so order and loss show without knowing who it is.
                for byte in bytes {
                    assert_eq!(*byte, (seen.len() % 251) as u8, "in order, without a gap");
                    seen.push(*byte);
                }
                if bytes.len() % 3 == 0 {
                    let bytes = bytes.to_vec();
                    out.push(Command::Send { conn, bytes });
                }
            }
            Event::Sent { conn, .. } => assert!(self.open.contains_key(&conn)),
            Event::Finished { conn } => {
                assert!(self.open.contains_key(&conn));
                out.push(Command::Drain { conn });
            }
            Event::Closed { conn, .. } => {
                assert!(self.open.remove(&conn).is_some(), "closed once");
                self.closed += 1;
            }
            Event::Listening { .. } | Event::Woken => {}
        }
    }
}

fn play(mut script: Input<'_>, transport: &mut dyn Transport, dial: &dyn Fn() -> Option<Peer>) {
    let mut witness = Witness::default();
    let mut peers: Vec<Option<(Peer, usize)>> = Vec::new();
    let mut steps = 0;
    while !script.is_empty() && steps < 200 {
        steps += 1;
        let (op, which, size) = (
            script.u8() % 10,
            usize::from(script.u8() % 8),
            usize::from(script.u16() % 9000),
        );
        match op {
            0 | 1 if peers.len() < 8 => peers.push(dial().map(|peer| (peer, 0))),
            2 => {
                if let Some(peer) = peers.get_mut(which) {
                    *peer = None;
                }
            }
            3 | 4 => {
                if let Some(Some((peer, sent))) = peers.get_mut(which) {
                    let bytes: Vec<u8> = (*sent..*sent + size).map(|at| (at % 251) as u8).collect();
                    *sent += peer.send(&bytes);
                    if size % 64 == 63 {
                        peer.finish();
                    }
                }
            }
            5 => {
                if let Some(Some((peer, _))) = peers.get_mut(which) {
                    peer.receive(&mut Vec::new());
                }
            }
            _ => {
                if let Some(&conn) = witness.accepted.get(which) {
                    let command = match (op, size % 4) {
                        (6, _) => Command::Send {
                            conn,
                            bytes: vec![1; size],
                        },
                        (7, _) => Command::Pause { conn },
                        (8, _) => Command::Resume { conn },
                        (_, 0) => Command::Drain { conn },
                        _ => Command::Close { conn },
                    };
                    transport.command(&mut vec![command], &mut witness);
                }
            }
        }
        transport
            .turn(Some(Duration::ZERO), &mut witness)
            .expect("a transport outlives its peers");
    }
    // Everybody goes: each connection has ended once, and nothing stays.
    peers.clear();
    let mut resume: Commands = witness
        .accepted
        .iter()
        .map(|&conn| Command::Resume { conn })
        .collect();
    transport.command(&mut resume, &mut witness);
    for _ in 0..2000 {
        if transport.connections() == 0 && witness.open.is_empty() {
            return;
        }
        transport
            .turn(Some(Duration::from_millis(1)), &mut witness)
            .expect("a transport outlives its peers");
    }
    panic!("{} connections are left", transport.connections());
}

/// An address of this process and run.
fn address() -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!(
        "agentd-fuzz-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    std::env::temp_dir().join(name)
}

fn over_sockets(script: Input<'_>, mut transport: impl Transport) {
    let path = address();
    let listener = UnixListener::bind(&path).expect("a socket in the temporary directory");
    transport
        .listen(listener.into())
        .expect("it listens already");
    let dial = || {
        let stream = UnixStream::connect(&path).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Peer::Socket(stream))
    };
    play(script, &mut transport, &dial);
    std::fs::remove_file(&path).expect("made above");
}

/// One script, against every transport that there is.
pub fn transports(data: &[u8]) {
    let limits = TransportLimits {
        connections: 6,
        ..TransportLimits::default()
    };
    let fabric = Fabric::default();
    let mut memory = Loopback::new(limits, &fabric).expect("descriptors for its waker");
    play(Input::new(data), &mut memory, &|| {
        Some(Peer::Memory(fabric.dial()))
    });
    over_sockets(
        Input::new(data),
        Epoll::new(limits).expect("epoll is everywhere"),
    );
    // Not everywhere; the conformance suite says where it is missing.
    if let Ok(uring) = Uring::new(limits) {
        over_sockets(Input::new(data), uring);
    }
}
