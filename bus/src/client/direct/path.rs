//! One direct connection: a thread reads it, any thread sends on it.
//!
//! What comes is a request of another agent, an answer, or a frame of our own that was not taken,
//! with the reason in its head. The reading thread never waits for a program: requests go into the
//! mailbox from which [`super::super::Requests`] are taken, within the window, or are declined.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use agentd_ebpf_common::route::{CONTENT_MAX, HEAD_LEN, Head, PORT};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::super::link::Link;
use super::super::serve::Asked;
use super::super::{ClientError, Reply, refusal_of};
use super::choice::{Choice, Way};
use super::wire::{ANSWER, DECLINED, REQUEST, decode, encode};
use super::{DirectUse, answer_by_bus, whose};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{ERROR_MAX, Request, Response, Status};

/// How long a connection may take until it is proven.
const PROOF: Duration = Duration::from_secs(5);
/// Read at once.
const BUFFER: usize = 64 * 1024;
const _: () = assert!(BUFFER > HEAD_LEN + CONTENT_MAX as usize);

#[derive(Debug)]
pub struct Path {
    stream: TcpStream,
    own: u64,
    /// This agent.
    id: PeerId,
    /// One frame at a time.
    sending: Mutex<()>,
    waiting: Mutex<Waiting>,
    last: AtomicU64,
    targets: Mutex<HashMap<PeerId, Arc<Target>>>,
    /// Requests in the hands of this program.
    served: AtomicU32,
}

#[derive(Debug, Default)]
struct Waiting {
    asked: HashMap<u64, (u64, SyncSender<Told>)>,
    /// Why the connection is over.
    over: Option<String>,
}

/// What becomes of a request.
#[derive(Debug)]
enum Told {
    Answer(Answer),
    /// Not taken: nothing has happened.
    NotTaken,
    Gone,
    Lost(String),
}

/// The response to a request.
#[derive(Debug)]
pub struct Answer {
    response: Vec<u8>,
    /// The bus's own word may be in it.
    by_bus: bool,
}

impl Answer {
    pub fn reply(&self, from: PeerId) -> Result<Reply, ClientError> {
        let response = Response::parse(&self.response)?;
        if response.status.is_bus_only() && !self.by_bus {
            let text = "the answer has a status that only the bus may use";
            return Err(ClientError::Refused {
                status: Status::MALFORMED,
                text: text.to_owned(),
            });
        }
        if response.status != Status::OK {
            return Err(refusal_of(&response));
        }
        Ok(Reply {
            from,
            result: response.result.to_vec(),
        })
    }
}

/// Why a frame did not go out.
#[derive(Debug)]
enum SendError {
    /// The kernel refused it before a byte of it had left.
    Refused,
    Unknown(io::Error),
}

/// A peer that was asked before.
#[derive(Debug)]
pub struct Target {
    pub id: PeerId,
    /// 0: not known.
    address: AtomicU64,
    choice: Mutex<Choice>,
}

impl Target {
    fn choice(&self) -> MutexGuard<'_, Choice> {
        self.choice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn choose(&self, how: DirectUse) -> Way {
        self.choice().next(how)
    }

    pub fn took(&self, way: Way, time: Duration) {
        self.choice().took(way, time);
    }

    /// It has not been taken. The peer's connection may be another by now; its address stays, for as long as it lives.
    pub fn came_back(&self) {
        self.choice().came_back();
    }

    pub fn address(&self) -> Option<u64> {
        let address = self.address.load(Ordering::Relaxed);
        (address != 0).then_some(address)
    }

    pub fn set_address(&self, address: u64) {
        self.address.store(address, Ordering::Relaxed);
    }
}

impl Path {
    /// Connects, and sends a frame to this agent itself, which nobody may: that it comes back
    /// proves that the kernel takes what is sent here. A second connection of an agent is none;
    /// agentd ends it when something comes on it.
    pub fn connect(own: u64, id: PeerId) -> io::Result<Self> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
        let stream = TcpStream::connect_timeout(&at, PROOF)?;
        let path = Self {
            stream,
            own,
            id,
            sending: Mutex::default(),
            waiting: Mutex::default(),
            last: AtomicU64::new(first_correlation()),
            targets: Mutex::default(),
            served: AtomicU32::new(0),
        };
        let proof = path.send(own, REQUEST, 0, &[]);
        proof.map_err(|error| match error {
            SendError::Refused => ErrorKind::PermissionDenied.into(),
            SendError::Unknown(error) => error,
        })?;
        let deadline = Instant::now() + PROOF;
        let (mut frame, mut held) = ([0; HEAD_LEN], 0);
        while held < HEAD_LEN {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            path.stream.set_read_timeout(Some(left))?;
            match (&path.stream).read(&mut frame[held..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => held += len,
                Err(error) if is_nothing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        path.stream.set_read_timeout(None)?;
        let proven = decode(&frame).ok().flatten();
        match proven {
            Some((head, ..)) if head.from == own && head.status != 0 => Ok(path),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a peer.
    pub fn target(&self, id: PeerId) -> Arc<Target> {
        let mut targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || Target {
            id,
            address: AtomicU64::new(0),
            choice: Mutex::default(),
        };
        Arc::clone(targets.entry(id).or_insert_with(|| Arc::new(fresh())))
    }

    fn send(&self, to: u64, kind: u32, correlation: u64, content: &[u8]) -> Result<(), SendError> {
        let head = Head {
            from: self.own,
            to,
            correlation,
            kind,
            ..Head::default()
        };
        let frame = encode(head, content);
        let _one = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match rustix::net::send(&self.stream, &frame, SendFlags::NOSIGNAL) {
                Ok(sent) if sent == frame.len() => return Ok(()),
                Ok(_) => return Err(SendError::Unknown(ErrorKind::WriteZero.into())),
                Err(Errno::INTR) => {}
                Err(Errno::ACCESS) => return Err(SendError::Refused),
                Err(errno) => return Err(SendError::Unknown(errno.into())),
            }
        }
    }

    /// Asks and waits for the answer. `None`: it was not taken by anybody.
    pub fn ask(
        &self,
        to: u64,
        payload: &[u8],
        timeout: Duration,
    ) -> Result<Option<Answer>, ClientError> {
        let (tell, told) = sync_channel(1);
        let correlation = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        {
            let mut waiting = self.waiting();
            if waiting.over.is_some() {
                return Ok(None);
            }
            waiting.asked.insert(correlation, (to, tell));
        }
        match self.send(to, REQUEST, correlation, payload) {
            Ok(()) => {}
            Err(error) => {
                self.waiting().asked.remove(&correlation);
                // The kernel refuses whatever is sent here from now on; another connection is needed.
                self.shut();
                return match error {
                    SendError::Refused => Ok(None),
                    SendError::Unknown(error) => Err(ClientError::Lost {
                        why: format!("direct connection: {error}"),
                    }),
                };
            }
        }
        match told.recv_timeout(timeout) {
            Ok(Told::Answer(answer)) => Ok(Some(answer)),
            Ok(Told::NotTaken) => Ok(None),
            Ok(Told::Gone) => Err(ClientError::Refused {
                status: Status::PEER_GONE,
                text: "the process that was asked has closed its connection".to_owned(),
            }),
            Ok(Told::Lost(why)) => Err(ClientError::Lost { why }),
            Err(RecvTimeoutError::Timeout) => {
                self.waiting().asked.remove(&correlation);
                Err(ClientError::Refused {
                    status: Status::DEADLINE,
                    text: "no answer before the deadline; whether it was done is not known"
                        .to_owned(),
                })
            }
            Err(RecvTimeoutError::Disconnected) => Err(ClientError::Lost {
                why: "the direct connection is closed".to_owned(),
            }),
        }
    }

    /// Hands out what comes until nothing more does; why.
    pub fn read_all(self: &Arc<Self>, link: &Weak<Link>) -> String {
        let mut buffer = vec![0; BUFFER];
        let mut held = 0;
        let mut known = HashMap::new();
        loop {
            match (&self.stream).read(&mut buffer[held..]) {
                Ok(0) => return "agentd has closed the direct connection".to_owned(),
                Ok(len) => held += len,
                // Redirected sockets say so when they were woken for nothing.
                Err(error) if is_nothing(&error) => continue,
                Err(error) => return format!("direct connection: {error}"),
            }
            let mut at = 0;
            loop {
                let (head, content) = match decode(&buffer[at..held]) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(error) => return error.to_string(),
                };
                let Some(link) = link.upgrade() else {
                    return "closed by this program".to_owned();
                };
                self.arrived(&link, head, content, &mut known);
                at += HEAD_LEN + content.len();
            }
            buffer.copy_within(at..held, 0);
            held -= at;
        }
    }

    fn arrived(
        self: &Arc<Self>,
        link: &Arc<Link>,
        head: Head,
        content: &[u8],
        known: &mut HashMap<u64, PeerId>,
    ) {
        let ours = head.from == self.own;
        match head.kind {
            REQUEST if ours => self.tell(head.correlation, head.to, Told::NotTaken),
            ANSWER if ours => {
                // Whoever asked then hears nothing, until its deadline: the connection is lost, which it learns as well.
                answer_by_bus(link, head.to, head.correlation, content).ok();
            }
            REQUEST => self.asked(link, head, content, known),
            ANSWER => {
                let answer = Answer {
                    response: content.to_vec(),
                    by_bus: false,
                };
                self.tell(head.correlation, head.from, Told::Answer(answer));
            }
            DECLINED if !ours => self.tell(head.correlation, head.from, Told::NotTaken),
            // Of another version, or what was declined did not get through either.
            _ => {}
        }
    }

    /// Tells whoever asked `peer` under this id.
    fn tell(&self, correlation: u64, peer: u64, told: Told) {
        let mut waiting = self.waiting();
        if waiting
            .asked
            .get(&correlation)
            .is_none_or(|(to, _)| *to != peer)
        {
            return;
        }
        if let Some((_, tell)) = waiting.asked.remove(&correlation) {
            // The caller may have given up in this moment.
            tell.send(told).ok();
        }
    }

    /// A request of another agent.
    fn asked(
        self: &Arc<Self>,
        link: &Arc<Link>,
        head: Head,
        content: &[u8],
        known: &mut HashMap<u64, PeerId>,
    ) {
        let from = match known.get(&head.from) {
            Some(from) => Some(*from),
            None => whose(link, head.from).ok(),
        };
        let window = link.direct.window.load(Ordering::Relaxed);
        let request = Request::parse(content).ok();
        let (Some(from), Some(request), true) =
            (from, request, self.served.load(Ordering::Relaxed) < window)
        else {
            // If this does not get through, a deadline tells.
            self.send(head.from, DECLINED, head.correlation, &[]).ok();
            return;
        };
        known.insert(head.from, from);
        let until = match request.timeout_ms {
            0 => None,
            ms => Instant::now().checked_add(Duration::from_millis(ms.into())),
        };
        self.served.fetch_add(1, Ordering::Relaxed);
        let mut frame = Frame::new(kind::REQUEST, self.id, 0, content);
        frame.header.source = from;
        link.requests.push(Asked {
            frame,
            by: Some(Return {
                path: Arc::clone(self),
                to: head.from,
                correlation: head.correlation,
                until,
            }),
        });
    }

    pub fn answered_by_bus(&self, from: u64, correlation: u64, response: &[u8]) {
        let answer = Answer {
            response: response.to_vec(),
            by_bus: true,
        };
        self.tell(correlation, from, Told::Answer(answer));
    }

    /// Nobody at `address` answers what it was asked.
    pub fn peer_gone(&self, address: u64) {
        let mut waiting = self.waiting();
        let gone: Vec<u64> = waiting
            .asked
            .iter()
            .filter(|(_, (to, _))| *to == address)
            .map(|(correlation, _)| *correlation)
            .collect();
        for correlation in gone {
            if let Some((_, tell)) = waiting.asked.remove(&correlation) {
                tell.send(Told::Gone).ok();
            }
        }
    }

    /// Ends the connection; the reading thread sees it.
    fn shut(&self) {
        // An error means that it has ended already.
        self.stream.shutdown(Shutdown::Both).ok();
    }

    /// Takes the socket out of the kernel's table, whoever else still holds this, so that the next
    /// connection gets its place. Not while it is read: a reader would never hear of it.
    pub fn leave(&self) {
        // Where it can't be, the place is free when both ends have closed.
        rustix::net::connect_unspec(&self.stream).ok();
    }

    /// The connection is over: whoever waits is told that nobody knows.
    pub fn end(&self, why: &str) {
        self.shut();
        let mut waiting = self.waiting();
        waiting.over.get_or_insert_with(|| why.to_owned());
        for (_, (_, tell)) in waiting.asked.drain() {
            tell.send(Told::Lost(why.to_owned())).ok();
        }
    }
}

/// Ids go on from the clock, which is further than any that an earlier connection of this agent has
/// used: a late answer to one of those is the answer to nothing.
fn first_correlation() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64) * 1_000_000_000 + now.tv_nsec as u64
}

/// Nothing was read, and nothing is wrong.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::TimedOut
    )
}

/// The way back to whoever asked by the direct path.
#[derive(Debug)]
pub struct Return {
    path: Arc<Path>,
    to: u64,
    correlation: u64,
    until: Option<Instant>,
}

impl Return {
    /// Answers by the path, or over the bus what it does not take.
    pub fn answer(&self, link: &Link, response: &[u8], limit: usize) -> Result<(), ClientError> {
        let small = response.len() <= CONTENT_MAX as usize;
        if small
            && self
                .path
                .send(self.to, ANSWER, self.correlation, response)
                .is_ok()
        {
            return Ok(());
        }
        // What is in front of it counts too.
        let len = response.len() + ERROR_MAX;
        if len > limit {
            return Err(ClientError::TooLarge { len, limit });
        }
        answer_by_bus(link, self.to, self.correlation, response)
    }

    /// Whether whoever asked has stopped waiting.
    pub fn is_over(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}

impl Drop for Return {
    fn drop(&mut self) {
        self.path.served.fetch_sub(1, Ordering::Relaxed);
    }
}
