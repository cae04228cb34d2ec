//! The transport that works on every kernel: readiness by epoll, one call per read and per write.
//!
//! Level-triggered: a connection that has more than its budget is simply reported again in the next turn, after the
//! others. Writes are tried at once and only a full socket is watched for room. Memory: one read buffer for the shard,
//! and per connection what its user queued.
//!
//! When no descriptor is left, the one held in reserve is given up for a moment to take the longest-waiting connection
//! off the queue and close it: its peer learns at once. Then the listener pauses until a connection ends.

use std::collections::{BTreeSet, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use super::orders::Orders;
use super::outbox::Outbox;
use super::slab::Slab;
use super::transport::{
    Commands, ConnKey, Counters, Ended, Event, Handler, ListenerId, Listening, Origin, Transport,
    TransportError, TransportKind, TransportLimits, Waker, is_unix,
};

/// Events taken from the kernel in one call.
const BATCH: usize = 256;
/// Connections taken from one listener in one turn.
const ACCEPTS: usize = 64;
/// After running out of descriptors for which no connection of ours can be blamed, look again so often.
const RETRY: Duration = Duration::from_secs(1);

/// Low half of an epoll token that belongs to no connection.
const NO_CONN: u32 = u32::MAX;
/// High half of the waker's token; listeners have their number.
const WAKER: u32 = u32::MAX;

#[derive(Debug)]
struct Conn {
    fd: OwnedFd,
    outbox: Outbox,
    reading: bool,
    /// The peer sends nothing more.
    finished: bool,
    dirty: bool,
    /// What epoll watches; `None`: not registered, because a peer that has hung up is reported without end.
    watched: Option<epoll::EventFlags>,
    /// When a peer that takes nothing is given up.
    stalls_at: Option<Instant>,
}

#[derive(Debug)]
struct Listener {
    fd: OwnedFd,
    unix: bool,
    paused: bool,
}

/// See the module's documentation.
pub struct Epoll {
    epoll: OwnedFd,
    waker: Waker,
    limits: TransportLimits,
    listeners: Vec<Listener>,
    conns: Slab<Conn>,
    /// Have something to send.
    dirty: VecDeque<ConnKey>,
    stalls: BTreeSet<(Instant, ConnKey)>,
    retry_at: Option<Instant>,
    reserve: Option<OwnedFd>,
    scratch: Vec<u8>,
    commands: Commands,
    counters: Counters,
}

impl std::fmt::Debug for Epoll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Epoll")
            .field("open", &self.conns.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

fn fault(call: &'static str) -> impl Fn(Errno) -> TransportError {
    move |errno| TransportError {
        transport: TransportKind::Epoll,
        call,
        source: errno.into(),
    }
}

impl Epoll {
    /// An epoll instance with its waker and its reserve descriptor.
    pub fn new(limits: TransportLimits) -> Result<Self, TransportError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(fault("epoll_create1"))?;
        let waker = Waker::new().map_err(fault("eventfd2"))?;
        epoll::add(
            &epoll,
            waker.fd(),
            epoll::EventData::new_u64(token(NO_CONN, WAKER)),
            epoll::EventFlags::IN,
        )
        .map_err(fault("epoll_ctl"))?;
        let reserve = rustix::io::fcntl_dupfd_cloexec(waker.fd(), 0).map_err(fault("dup"))?;
        Ok(Self {
            epoll,
            waker,
            limits,
            listeners: Vec::new(),
            conns: Slab::default(),
            dirty: VecDeque::new(),
            stalls: BTreeSet::new(),
            retry_at: None,
            reserve: Some(reserve),
            scratch: vec![0; limits.read_budget],
            commands: Vec::new(),
            counters: Counters::default(),
        })
    }

    /// Brings what epoll watches in line with what the connection wants.
    fn watch(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        let epoll = &self.epoll;
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let mut wanted = epoll::EventFlags::empty();
        if conn.reading {
            wanted |= epoll::EventFlags::IN;
        }
        if conn.stalls_at.is_some() {
            wanted |= epoll::EventFlags::OUT;
        }
        if conn.watched == Some(wanted) {
            return;
        }
        let data = epoll::EventData::new_u64(key.token());
        self.counters.syscalls += 1;
        let done = match conn.watched {
            Some(_) => epoll::modify(epoll, &conn.fd, data, wanted),
            None if wanted.is_empty() => return,
            None => epoll::add(epoll, &conn.fd, data, wanted),
        };
        match done {
            Ok(()) => conn.watched = Some(wanted),
            Err(errno) => self.end(key, Ended::Io(errno), handler),
        }
    }

    fn pause_listener(&mut self, at: usize, state: Listening, handler: &mut dyn Handler) {
        let listener = &mut self.listeners[at];
        if std::mem::replace(&mut listener.paused, true) {
            return;
        }
        self.counters.syscalls += 1;
        // It can only fail for a descriptor that is not there.
        epoll::delete(&self.epoll, &listener.fd).unwrap_or_default();
        self.retry_at = Some(Instant::now() + RETRY);
        let listener = ListenerId(at as u16);
        self.tell(Event::Listening { listener, state }, handler);
    }

    fn resume_listeners(&mut self, handler: &mut dyn Handler) {
        if self.retry_at.is_none() || self.conns.len() >= self.limits.connections {
            return;
        }
        self.retry_at = None;
        for at in 0..self.listeners.len() {
            let listener = &mut self.listeners[at];
            if !listener.paused {
                continue;
            }
            let data = epoll::EventData::new_u64(token(NO_CONN, at as u32));
            self.counters.syscalls += 1;
            if epoll::add(&self.epoll, &listener.fd, data, epoll::EventFlags::IN).is_err() {
                self.retry_at = Some(Instant::now() + RETRY);
                continue;
            }
            listener.paused = false;
            let state = Listening::Resumed;
            let listener = ListenerId(at as u16);
            self.tell(Event::Listening { listener, state }, handler);
        }
    }

    fn accept(&mut self, at: usize, handler: &mut dyn Handler) {
        for _ in 0..ACCEPTS {
            if self.conns.len() >= self.limits.connections {
                let limit = self.limits.connections;
                return self.pause_listener(at, Listening::Full { limit }, handler);
            }
            let Some(listener) = self.listeners.get(at) else {
                return;
            };
            self.counters.syscalls += 1;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let (fd, from) = match rustix::net::acceptfrom_with(&listener.fd, flags) {
                Ok(accepted) => accepted,
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    return self.shed(at, handler);
                }
                // The peer has gone meanwhile, or the network had something to say about it.
                Err(_) => continue,
            };
            let origin = if listener.unix {
                self.counters.syscalls += 1;
                Origin::of_unix(fd.as_fd())
            } else {
                Origin::of_tcp(from)
            };
            // Gone already.
            let Ok(origin) = origin else { continue };
            let Some(conn) = self.add(fd) else { continue };
            let listener = ListenerId(at as u16);
            self.tell(
                Event::Accepted {
                    conn,
                    listener,
                    origin,
                },
                handler,
            );
        }
    }

    fn add(&mut self, fd: OwnedFd) -> Option<ConnKey> {
        let watched = epoll::EventFlags::IN;
        let key = self.conns.insert(Conn {
            fd,
            outbox: Outbox::default(),
            reading: true,
            finished: false,
            dirty: false,
            watched: Some(watched),
            stalls_at: None,
        });
        self.counters.syscalls += 1;
        let data = epoll::EventData::new_u64(key.token());
        let conn = self.conns.get(key)?;
        if epoll::add(&self.epoll, &conn.fd, data, watched).is_err() {
            self.conns.remove(key);
            return None;
        }
        self.counters.accepted += 1;
        Some(key)
    }

    /// No descriptor is left: tells one waiting peer by closing, and pauses.
    fn shed(&mut self, at: usize, handler: &mut dyn Handler) {
        let errno = Errno::MFILE;
        if self.reserve.take().is_some() {
            self.counters.syscalls += 4;
            if rustix::net::accept_with(&self.listeners[at].fd, SocketFlags::CLOEXEC).is_ok() {
                self.counters.shed += 1;
            }
            self.reserve = rustix::io::fcntl_dupfd_cloexec(self.waker.fd(), 0).ok();
        }
        self.pause_listener(at, Listening::Paused { errno }, handler);
    }

    fn read(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let Some(conn) = self.conns.get(key) else {
            self.scratch = scratch;
            return;
        };
        let got = rustix::net::recv(&conn.fd, &mut scratch[..], RecvFlags::DONTWAIT);
        self.counters.syscalls += 1;
        match got {
            Ok((0, _)) => self.finish(key, handler),
            Ok((count, _)) => {
                self.counters.received_bytes += count as u64;
                let bytes = &scratch[..count];
                self.tell(Event::Received { conn: key, bytes }, handler);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => self.end(key, Ended::from_errno(errno), handler),
        }
        self.scratch = scratch;
    }

    /// The peer has said all that it will say.
    fn finish(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.finished = true;
            conn.reading = false;
            self.watch(key, handler);
        }
        self.tell(Event::Finished { conn: key }, handler);
    }

    /// Sends what waits on one connection, as far as its socket takes it.
    fn flush(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        let stall = self.limits.stall;
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        conn.dirty = false;
        let (mut moved, mut blocked) = (0, false);
        while conn.outbox.waiting() > 0 {
            self.counters.syscalls += 1;
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&conn.fd, conn.outbox.front(), flags) {
                Ok(count) => {
                    conn.outbox.advance(count);
                    moved += count;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    blocked = true;
                    break;
                }
                Err(errno) => return self.end(key, Ended::from_errno(errno), handler),
            }
        }
        self.counters.sent_bytes += moved as u64;
        let waiting = conn.outbox.waiting();
        let drained = conn.outbox.is_drained();
        if (moved > 0 || !blocked)
            && let Some(at) = conn.stalls_at.take()
        {
            self.stalls.remove(&(at, key));
        }
        if blocked && conn.stalls_at.is_none() {
            let at = Instant::now() + stall;
            conn.stalls_at = Some(at);
            self.stalls.insert((at, key));
        }
        if drained {
            return self.end(key, Ended::Asked, handler);
        }
        self.watch(key, handler);
        if moved > 0 {
            self.tell(Event::Sent { conn: key, waiting }, handler);
        }
    }

    fn flush_dirty(&mut self, handler: &mut dyn Handler) {
        // Once each: what a handler adds meanwhile has its turn next.
        for _ in 0..self.dirty.len() {
            let Some(key) = self.dirty.pop_front() else {
                break;
            };
            self.flush(key, handler);
        }
    }

    fn expire(&mut self, handler: &mut dyn Handler) {
        if self.stalls.is_empty() && self.retry_at.is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(&(at, key)) = self.stalls.first() {
            if at > now {
                break;
            }
            self.stalls.pop_first();
            let seconds = self.limits.stall.as_secs() as u32;
            self.end(key, Ended::Stalled { seconds }, handler);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.resume_listeners(handler);
        }
    }

    fn dispatch(&mut self, token: u64, flags: epoll::EventFlags, handler: &mut dyn Handler) {
        let key = ConnKey::from_token(token);
        if key.slot == NO_CONN && key.generation == WAKER {
            self.counters.syscalls += 1;
            self.waker.clear();
            return self.tell(Event::Woken, handler);
        }
        if key.slot == NO_CONN {
            return self.accept(key.generation as usize, handler);
        }
        if flags.contains(epoll::EventFlags::OUT) {
            self.flush(key, handler);
        }
        let hung_up = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let epoll = &self.epoll;
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.reading && (hung_up || flags.contains(epoll::EventFlags::IN)) {
            self.read(key, handler);
        } else if hung_up && conn.finished {
            self.end(key, Ended::Eof, handler);
        } else if hung_up && conn.outbox.is_draining() {
            self.end(key, Ended::Reset, handler);
        } else if hung_up && conn.watched.take().is_some() {
            // Told again when it is read from again.
            self.counters.syscalls += 1;
            epoll::delete(epoll, &conn.fd).unwrap_or_default();
        }
    }
}

fn token(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

impl Orders for Epoll {
    fn commands(&mut self) -> &mut Commands {
        &mut self.commands
    }

    fn outbox(&mut self, key: ConnKey) -> Option<&mut Outbox> {
        Some(&mut self.conns.get_mut(key)?.outbox)
    }

    fn mark_dirty(&mut self, key: ConnKey) {
        if let Some(conn) = self.conns.get_mut(key)
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push_back(key);
        }
    }

    fn set_reading(&mut self, key: ConnKey, reading: bool, handler: &mut dyn Handler) {
        if let Some(conn) = self.conns.get_mut(key)
            && !conn.finished
            && conn.reading != reading
        {
            conn.reading = reading;
            self.watch(key, handler);
        }
    }

    fn end(&mut self, key: ConnKey, how: Ended, handler: &mut dyn Handler) {
        let Some(conn) = self.conns.remove(key) else {
            return;
        };
        if let Some(at) = conn.stalls_at {
            self.stalls.remove(&(at, key));
        }
        // Closing takes it out of epoll too.
        self.counters.syscalls += 1;
        drop(conn);
        self.counters.closed += 1;
        self.resume_listeners(handler);
        self.tell(Event::Closed { conn: key, how }, handler);
    }
}

impl Transport for Epoll {
    fn kind(&self) -> TransportKind {
        TransportKind::Epoll
    }

    fn listen(&mut self, socket: OwnedFd) -> Result<ListenerId, TransportError> {
        let unix = is_unix(socket.as_fd()).map_err(fault("getsockname"))?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(fault("FIONBIO"))?;
        let at = self.listeners.len() as u32;
        let data = epoll::EventData::new_u64(token(NO_CONN, at));
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)
            .map_err(fault("epoll_ctl"))?;
        self.listeners.push(Listener {
            fd: socket,
            unix,
            paused: false,
        });
        Ok(ListenerId(at as u16))
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
        self.flush_dirty(handler);
        let wait = if self.dirty.is_empty() {
            let now = Instant::now();
            let due = self.stalls.first().map(|(at, _)| *at);
            [due, self.retry_at]
                .into_iter()
                .flatten()
                .map(|at| at.saturating_duration_since(now))
                .chain(wait)
                .min()
        } else {
            Some(Duration::ZERO)
        };
        let timeout = wait.map(|wait| Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        });
        let mut events = [const { MaybeUninit::uninit() }; BATCH];
        self.counters.syscalls += 1;
        self.counters.turns += 1;
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((ready, _)) => {
                for event in ready {
                    self.dispatch(event.data.u64(), event.flags, handler);
                }
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(fault("epoll_wait")(errno)),
        }
        self.expire(handler);
        self.flush_dirty(handler);
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
