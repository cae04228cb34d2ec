//! A transport in memory, in the shape that RDMA has: registered regions, work requests that are posted, completions
//! that are polled, and nothing that is received without a buffer posted for it.
//!
//! It exists to hold the trait [`Transport`] to that shape, so that an RDMA transport would change no line above it, and to
//! test everything above without sockets. It moves bytes between two ends in one process by copying; there is no
//! hardware behind it and it pretends none. What a real one needs is said by `agentctl doctor`.
//!
//! Flow: a paused connection posts no receive buffers, so its peer's sends wait. The end of a stream is a send of no
//! bytes. One lock around the fabric; a transport belongs to one thread. Fails as the trait says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::orders::Orders;
use super::outbox::Outbox;
use super::slab::Slab;
use super::transport::{
    Commands, ConnKey, Counters, Ended, Event, Handler, ListenerId, Listening, Origin, Transport,
    TransportError, TransportKind, TransportLimits, Waker,
};

/// Bytes of one buffer of a registered region.
const BUFFER: usize = 4096;
/// Work requests that one end may have outstanding in each direction.
const DEPTH: usize = 16;

/// A queue pair's number.
type Pair = u32;

/// What a poll of the completion queue gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Completion {
    Sent {
        buffer: usize,
    },
    Received {
        buffer: usize,
        len: usize,
    },
    /// The other end is gone: the request came back undone.
    Flushed,
}

/// One end of a queue pair. Its region is registered with it: `DEPTH` buffers to send from, as many to receive into.
#[derive(Debug)]
struct End {
    region: Box<[u8]>,
    sends: VecDeque<(usize, usize)>,
    receives: VecDeque<usize>,
    completions: VecDeque<Completion>,
    /// Buffers that may be posted.
    free_sends: Vec<usize>,
    free_receives: Vec<usize>,
    gone: bool,
}

impl End {
    fn new() -> Self {
        Self {
            region: vec![0; 2 * DEPTH * BUFFER].into(),
            sends: VecDeque::new(),
            receives: VecDeque::new(),
            completions: VecDeque::new(),
            free_sends: (0..DEPTH).collect(),
            free_receives: (DEPTH..2 * DEPTH).collect(),
            gone: false,
        }
    }

    fn buffer(&self, at: usize, len: usize) -> &[u8] {
        &self.region[at * BUFFER..][..len]
    }

    /// Copies into a free buffer and posts it; how much was taken.
    fn post_send(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        for part in bytes.chunks(BUFFER) {
            let Some(buffer) = self.free_sends.pop() else {
                break;
            };
            self.region[buffer * BUFFER..][..part.len()].copy_from_slice(part);
            self.sends.push_back((buffer, part.len()));
            taken += part.len();
        }
        taken
    }

    /// The send of no bytes. Needs no buffer.
    fn post_end(&mut self) {
        self.sends.push_back((usize::MAX, 0));
    }

    fn post_receives(&mut self) {
        self.receives.extend(self.free_receives.drain(..));
    }
}

#[derive(Debug, Default)]
struct State {
    pairs: BTreeMap<Pair, [End; 2]>,
    next: Pair,
    /// Waiting to be accepted.
    dialled: VecDeque<Pair>,
    /// Have completions for the transport's side.
    ready: BTreeSet<Pair>,
    channel: Option<Waker>,
}

/// The transport's side of a pair; the dialler's is the other one.
const SERVER: usize = 0;
const CLIENT: usize = 1;

impl State {
    /// Brings posted sends and posted receives together, both ways.
    fn match_up(&mut self, pair: Pair) {
        let Some(ends) = self.pairs.get_mut(&pair) else {
            return;
        };
        for from in [SERVER, CLIENT] {
            let [server, client] = ends;
            let (from, to) = match from {
                SERVER => (server, client),
                _ => (client, server),
            };
            if to.gone {
                let undone = from.sends.drain(..).count();
                let flushed = std::iter::repeat_n(Completion::Flushed, undone.min(1));
                from.completions.extend(flushed);
                continue;
            }
            while !from.sends.is_empty()
                && let Some(into) = to.receives.pop_front()
            {
                let Some((buffer, len)) = from.sends.pop_front() else {
                    break;
                };
                if len > 0 {
                    let bytes = &from.region[buffer * BUFFER..][..len];
                    to.region[into * BUFFER..][..len].copy_from_slice(bytes);
                    from.completions.push_back(Completion::Sent { buffer });
                }
                let buffer = into;
                to.completions
                    .push_back(Completion::Received { buffer, len });
            }
        }
        if !ends[SERVER].completions.is_empty() {
            self.ready.insert(pair);
            if let Some(channel) = &self.channel {
                channel.wake();
            }
        }
    }

    /// One end goes; the pair goes with the second.
    fn leave(&mut self, pair: Pair, side: usize) {
        if let Some(ends) = self.pairs.get_mut(&pair) {
            ends[side].gone = true;
            ends[side].completions.clear();
            if ends[1 - side].gone {
                self.pairs.remove(&pair);
            }
        }
        self.match_up(pair);
    }
}

/// What connects diallers with a [`Loopback`]. Clones are the same fabric.
#[derive(Clone, Debug, Default)]
pub struct Fabric {
    state: Arc<Mutex<State>>,
}

impl Fabric {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new connection, which the transport accepts in its next turn.
    pub fn dial(&self) -> FabricPeer {
        let mut state = self.lock();
        let pair = state.next;
        state.next += 1;
        let mut ends = [End::new(), End::new()];
        ends[CLIENT].post_receives();
        state.pairs.insert(pair, ends);
        state.dialled.push_back(pair);
        if let Some(channel) = &state.channel {
            channel.wake();
        }
        drop(state);
        FabricPeer {
            fabric: self.clone(),
            pair,
            finished: false,
            ended: false,
        }
    }
}

/// The dialling end of a connection. Dropping it ends the connection after what was sent.
#[derive(Debug)]
pub struct FabricPeer {
    fabric: Fabric,
    pair: Pair,
    finished: bool,
    ended: bool,
}

impl FabricPeer {
    /// How many bytes were taken; 0 while too much is under way.
    pub fn send(&mut self, bytes: &[u8]) -> usize {
        if self.finished {
            return 0;
        }
        let mut state = self.fabric.lock();
        let Some(ends) = state.pairs.get_mut(&self.pair) else {
            return 0;
        };
        let end = &mut ends[CLIENT];
        let free = &mut end.free_sends;
        end.completions.retain(|completion| match completion {
            Completion::Sent { buffer } => {
                free.push(*buffer);
                false
            }
            _ => true,
        });
        let taken = end.post_send(bytes);
        state.match_up(self.pair);
        taken
    }

    /// Sends nothing more; still receives.
    pub fn finish(&mut self) {
        let mut state = self.fabric.lock();
        if let Some(ends) = state.pairs.get_mut(&self.pair)
            && !std::mem::replace(&mut self.finished, true)
        {
            ends[CLIENT].post_end();
        }
        state.match_up(self.pair);
    }

    /// What has come; `None` after the end.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut state = self.fabric.lock();
        let ends = state.pairs.get_mut(&self.pair)?;
        let [server, end] = ends;
        let cut = server.gone && server.sends.is_empty();
        let mut bytes = Vec::new();
        while let Some(completion) = end.completions.pop_front() {
            match completion {
                Completion::Sent { buffer } => end.free_sends.push(buffer),
                Completion::Received { buffer, len } => {
                    bytes.extend_from_slice(end.buffer(buffer, len));
                    end.free_receives.push(buffer);
                    self.ended |= len == 0;
                }
                Completion::Flushed => self.ended = true,
            }
        }
        end.post_receives();
        state.match_up(self.pair);
        (!bytes.is_empty() || !(self.ended || cut)).then_some(bytes)
    }
}

impl Drop for FabricPeer {
    fn drop(&mut self) {
        self.finish();
        self.fabric.lock().leave(self.pair, CLIENT);
    }
}

#[derive(Debug)]
struct Conn {
    pair: Pair,
    outbox: Outbox,
    reading: bool,
    /// The send of no bytes has come.
    finished: bool,
    /// When a peer that posts no buffers for what waits is given up.
    stalls_at: Option<Instant>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Loopback {
    fabric: Fabric,
    waker: Waker,
    /// The completion channel: what wakes the transport for the fabric.
    channel: Waker,
    limits: TransportLimits,
    conns: Slab<Conn>,
    by_pair: BTreeMap<Pair, ConnKey>,
    dirty: BTreeSet<ConnKey>,
    full: bool,
    commands: Commands,
    counters: Counters,
}

fn fault(call: &'static str, source: std::io::Error) -> TransportError {
    TransportError {
        transport: TransportKind::Loopback,
        call,
        source,
    }
}

impl Loopback {
    /// The one transport of `fabric`, which is its only listener.
    pub fn new(limits: TransportLimits, fabric: &Fabric) -> Result<Self, TransportError> {
        let waker = || Waker::new().map_err(|errno| fault("eventfd2", errno.into()));
        let channel = waker()?;
        fabric.lock().channel = Some(channel.clone());
        Ok(Self {
            fabric: fabric.clone(),
            waker: waker()?,
            channel,
            limits,
            conns: Slab::default(),
            by_pair: BTreeMap::new(),
            dirty: BTreeSet::new(),
            full: false,
            commands: Vec::new(),
            counters: Counters::default(),
        })
    }

    fn accept(&mut self, handler: &mut dyn Handler) {
        loop {
            if self.conns.len() >= self.limits.connections {
                if !self.full && !self.fabric.lock().dialled.is_empty() {
                    self.full = true;
                    let limit = self.limits.connections;
                    let (listener, state) = (ListenerId(0), Listening::Full { limit });
                    self.tell(Event::Listening { listener, state }, handler);
                }
                return;
            }
            let Some(pair) = self.fabric.lock().dialled.pop_front() else {
                return;
            };
            let conn = self.conns.insert(Conn {
                pair,
                outbox: Outbox::default(),
                reading: true,
                finished: false,
                stalls_at: None,
            });
            self.by_pair.insert(pair, conn);
            self.counters.accepted += 1;
            let (listener, origin) = (ListenerId(0), Origin::Memory);
            self.tell(
                Event::Accepted {
                    conn,
                    listener,
                    origin,
                },
                handler,
            );
            if self.conns.get(conn).is_some_and(|conn| conn.reading) {
                self.set_reading(conn, true, handler);
            }
        }
    }

    /// Polls one connection's completions: a few, then the others have their turn.
    fn serve(&mut self, pair: Pair, handler: &mut dyn Handler) {
        let Some(&key) = self.by_pair.get(&pair) else {
            return;
        };
        for _ in 0..self.limits.read_budget.div_ceil(BUFFER) {
            let Some(reading) = self.conns.get(key).map(|conn| conn.reading) else {
                return;
            };
            let mut state = self.fabric.lock();
            let Some(ends) = state.pairs.get_mut(&pair) else {
                return;
            };
            let end = &mut ends[SERVER];
            let next = end.completions.iter().position(|completion| {
                reading || !matches!(completion, Completion::Received { .. })
            });
            let Some(completion) = next.and_then(|at| end.completions.remove(at)) else {
                return;
            };
            match completion {
                Completion::Sent { buffer } => {
                    end.free_sends.push(buffer);
                    drop(state);
                    self.dirty.insert(key);
                }
                Completion::Flushed => {
                    drop(state);
                    // What it sent before is read first, if somebody reads.
                    let conn = self.conns.get(key);
                    match conn.map(|conn| (conn.finished, conn.outbox.is_draining())) {
                        Some((true, _)) => return self.end(key, Ended::Eof, handler),
                        Some((_, true)) => return self.end(key, Ended::Reset, handler),
                        _ => {}
                    }
                }
                Completion::Received { len: 0, .. } => {
                    drop(state);
                    if let Some(conn) = self.conns.get_mut(key) {
                        conn.finished = true;
                        conn.reading = false;
                    }
                    self.tell(Event::Finished { conn: key }, handler);
                }
                Completion::Received { buffer, len } => {
                    let bytes = end.buffer(buffer, len).to_vec();
                    end.free_receives.push(buffer);
                    end.post_receives();
                    state.match_up(pair);
                    drop(state);
                    self.counters.received_bytes += len as u64;
                    let bytes = &bytes[..];
                    self.tell(Event::Received { conn: key, bytes }, handler);
                }
            }
        }
        self.fabric.lock().ready.insert(pair);
    }

    fn flush(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        let stall = self.limits.stall;
        let fabric = self.fabric.clone();
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let mut state = fabric.lock();
        let Some(ends) = state.pairs.get_mut(&conn.pair) else {
            return;
        };
        let mut moved = 0;
        while conn.outbox.waiting() > 0 {
            let taken = ends[SERVER].post_send(conn.outbox.front());
            if taken == 0 {
                break;
            }
            conn.outbox.advance(taken);
            moved += taken;
        }
        let waiting = conn.outbox.waiting();
        let done = conn.outbox.is_drained();
        if done {
            ends[SERVER].post_end();
        }
        state.match_up(conn.pair);
        drop(state);
        if moved > 0 || waiting == 0 {
            conn.stalls_at = None;
        }
        if waiting > 0 && conn.stalls_at.is_none() {
            conn.stalls_at = Some(Instant::now() + stall);
        }
        self.counters.sent_bytes += moved as u64;
        if done {
            // What was posted stays in the fabric until the peer has taken it.
            return self.end(key, Ended::Asked, handler);
        }
        if moved > 0 {
            self.tell(Event::Sent { conn: key, waiting }, handler);
        }
    }

    fn expire(&mut self, handler: &mut dyn Handler) {
        let now = Instant::now();
        let late: Vec<ConnKey> = self
            .conns
            .iter()
            .filter(|(_, conn)| conn.stalls_at.is_some_and(|at| at <= now))
            .map(|(key, _)| key)
            .collect();
        for key in late {
            let seconds = self.limits.stall.as_secs() as u32;
            self.end(key, Ended::Stalled { seconds }, handler);
        }
    }
}

impl Orders for Loopback {
    fn commands(&mut self) -> &mut Commands {
        &mut self.commands
    }

    fn outbox(&mut self, key: ConnKey) -> Option<&mut Outbox> {
        Some(&mut self.conns.get_mut(key)?.outbox)
    }

    fn mark_dirty(&mut self, key: ConnKey) {
        self.dirty.insert(key);
    }

    fn set_reading(&mut self, key: ConnKey, reading: bool, _: &mut dyn Handler) {
        let Some(conn) = self.conns.get_mut(key).filter(|conn| !conn.finished) else {
            return;
        };
        conn.reading = reading;
        let pair = conn.pair;
        let mut state = self.fabric.lock();
        if reading {
            if let Some(ends) = state.pairs.get_mut(&pair) {
                ends[SERVER].post_receives();
            }
            state.match_up(pair);
            state.ready.insert(pair);
        }
    }

    fn end(&mut self, key: ConnKey, how: Ended, handler: &mut dyn Handler) {
        let Some(conn) = self.conns.remove(key) else {
            return;
        };
        self.by_pair.remove(&conn.pair);
        self.dirty.remove(&key);
        self.fabric.lock().leave(conn.pair, SERVER);
        self.counters.closed += 1;
        if std::mem::take(&mut self.full) {
            let (listener, state) = (ListenerId(0), Listening::Resumed);
            self.tell(Event::Listening { listener, state }, handler);
        }
        self.tell(Event::Closed { conn: key, how }, handler);
    }
}

impl Transport for Loopback {
    fn kind(&self) -> TransportKind {
        TransportKind::Loopback
    }

    /// There is no socket to listen on: the fabric it was made with is the listener, number 0.
    fn listen(&mut self, _socket: OwnedFd) -> Result<ListenerId, TransportError> {
        let unsupported = std::io::ErrorKind::Unsupported;
        Err(fault("listen on a socket", unsupported.into()))
    }

    fn command(&mut self, commands: &mut Commands, handler: &mut dyn Handler) {
        self.commands.append(commands);
        self.obey(handler);
    }

    fn turn(
        &mut self,
        wait: Option<Duration>,
        handler: &mut dyn Handler,
    ) -> Result<(), TransportError> {
        self.counters.turns += 1;
        for key in std::mem::take(&mut self.dirty) {
            self.flush(key, handler);
        }
        let busy = {
            let state = self.fabric.lock();
            !state.ready.is_empty() || (!state.dialled.is_empty() && !self.full)
        };
        let now = Instant::now();
        let due = self.conns.iter().filter_map(|(_, conn)| conn.stalls_at);
        let due = due.min();
        let due = due.map(|at| at.saturating_duration_since(now));
        let wait = if busy || !self.dirty.is_empty() {
            Some(Duration::ZERO)
        } else {
            [wait, due].into_iter().flatten().min()
        };
        let timeout = wait.map(|wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        });
        let mut fds = [
            PollFd::new(self.waker.fd(), PollFlags::IN),
            PollFd::new(self.channel.fd(), PollFlags::IN),
        ];
        self.counters.syscalls += 1;
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(fault("poll", errno.into())),
        }
        let [woken, completions] = fds.map(|fd| !fd.revents().is_empty());
        if completions {
            self.channel.clear();
        }
        if woken {
            self.waker.clear();
            self.tell(Event::Woken, handler);
        }
        self.accept(handler);
        let ready = std::mem::take(&mut self.fabric.lock().ready);
        for pair in ready {
            self.serve(pair, handler);
        }
        self.expire(handler);
        for key in std::mem::take(&mut self.dirty) {
            self.flush(key, handler);
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn connections(&self) -> usize {
        self.conns.len()
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}
