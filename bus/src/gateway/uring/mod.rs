//! The transport with the fewest calls: one io_uring per shard.
//!
//! Accepting and receiving are multishot: armed once per listener and connection. Received bytes land in buffers that
//! the kernel takes from a shared ring, so an idle connection has none. Connections are direct descriptors: their number
//! in the ring's table is their slot here, and they take no place in the process's table. Everything that a turn wants
//! goes to the kernel in batches of up to 256 by the call that also waits.
//!
//! A send is tried without waiting first. Only one that finds the socket full is sent again, linked to a time-out that
//! ends the connection when the peer takes nothing. Large buffers on TCP go out with `send_zc` and stay where they are
//! until the kernel says that it is done with them.
//!
//! A connection that ends has its operations cancelled; its slot is free when the last of them is back. See `ring` for
//! what a ring may do at all. Made on any thread, bound to the one of the first [`Transport::turn`].

mod buffers;
mod ring;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;

use self::buffers::BufferRing;
pub use self::ring::UringUnavailable;
use super::epoll::is_unix;
use super::outbox::Outbox;
use super::transport::{
    Command, Commands, ConnKey, Counters, Ended, Event, Handler, ListenerId, Listening, Origin,
    Transport, TransportError, TransportKind, TransportLimits, Waker,
};

/// Direct descriptors beyond the limit: what the kernel accepts before it hears that it should not.
const SPARE: usize = 256;
/// Completions handled before the queue of submissions goes to the kernel again.
const COMPLETIONS: usize = 512;
/// One receive buffer.
const BUFFER: usize = 4096;
/// From this size on TCP sends without copying. A quick run over loopback shows no gain (0.92 to 1.43 of a copy's
/// time): `bench gateway` has the rows (`send_zc`), a network card is where it could pay.
pub const ZERO_COPY_FROM: usize = 32 << 10;
/// After running out of memory or descriptors, look again so often.
const RETRY: Duration = Duration::from_secs(1);
const MSG: i32 = libc::MSG_NOSIGNAL;

/// What a completion is about; the top byte of its user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Accept = 1,
    Install,
    Recv,
    Send,
    Stall,
    Cancel,
    Close,
    Wake,
}

impl Op {
    fn of(key: ConnKey, op: Self) -> u64 {
        u64::from(op as u8) << 56 | u64::from(key.generation) << 32 | u64::from(key.slot)
    }

    fn parse(data: u64) -> (Option<Self>, ConnKey) {
        let op = match (data >> 56) as u8 {
            1 => Self::Accept,
            2 => Self::Install,
            3 => Self::Recv,
            4 => Self::Send,
            5 => Self::Stall,
            6 => Self::Cancel,
            7 => Self::Close,
            8 => Self::Wake,
            _ => {
                return (
                    None,
                    ConnKey {
                        slot: 0,
                        generation: 0,
                    },
                );
            }
        };
        let generation = (data >> 32) as u32 & ((1 << ConnKey::GENERATION_BITS) - 1);
        let slot = data as u32;
        (Some(op), ConnKey { slot, generation })
    }
}

#[derive(Debug)]
struct Conn {
    outbox: Outbox,
    listener: u16,
    /// The handler knows of it.
    told: bool,
    ended: bool,
    /// Its descriptor is being given up.
    closing: bool,
    reading: bool,
    draining: bool,
    dirty: bool,
    receiving: bool,
    /// The receive operation has been told to stop.
    stopping: bool,
    /// Receives one buffer at a time until so many in a row were half empty: what sends more than its share would
    /// otherwise fill the completion queue ahead of everyone else.
    heavy: u8,
    /// What it has received in which turn.
    turn: u64,
    turn_bytes: usize,
    sending: bool,
    /// The socket was full: the next send waits, under a time-out.
    blocked: bool,
    /// Result of a `send_zc` whose buffer is still in use.
    zero_copied: i32,
    /// When a peer that keeps a `send_zc`'s buffer in use is given up. `Some` while a notification is awaited.
    notified_by: Option<Instant>,
    /// Operations that will still complete.
    in_flight: u32,
}

/// Buffers in a row that are at most half full until a connection is no longer taken for a flood.
const CALM: u8 = 16;

impl Conn {
    /// Accounts for what was received in this turn, and tells a flood from others by it.
    fn share(&mut self, turn: u64, count: usize, budget: usize) {
        if self.turn != turn {
            (self.turn, self.turn_bytes) = (turn, 0);
        }
        self.turn_bytes += count;
        if self.turn_bytes > budget || (self.heavy > 0 && count > BUFFER / 2) {
            self.heavy = CALM;
        } else {
            self.heavy = self.heavy.saturating_sub(1);
        }
    }

    /// Operations that a cancellation brings back; the notification of a `send_zc` comes when its bytes have arrived.
    fn is_busy(&self) -> bool {
        self.in_flight > u32::from(self.notified_by.is_some())
    }
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    conn: Option<Box<Conn>>,
}

#[derive(Debug)]
struct Listener {
    fd: OwnedFd,
    unix: bool,
    armed: bool,
    paused: bool,
}

/// What the kernel may still write to or read from while requests are in flight.
#[derive(Debug)]
struct Shared {
    buffers: BufferRing,
    /// What the waker's counter is read into.
    woken: Box<u64>,
    slots: Vec<Slot>,
    /// Closed, but the network still reads from a buffer of theirs.
    lingering: BTreeMap<ConnKey, Box<Conn>>,
}

/// See the module's documentation.
pub struct Uring {
    ring: IoUring,
    shared: ManuallyDrop<Shared>,
    enabled: bool,
    waker: Waker,
    limits: TransportLimits,
    zero_copy_from: usize,
    listeners: Vec<Listener>,
    open: usize,
    /// Accepted by the kernel beyond the limit.
    parked: VecDeque<(u32, u16)>,
    dirty: VecDeque<ConnKey>,
    /// Entries for which the submission queue had no room; linked ones together.
    overflow: VecDeque<Vec<squeue::Entry>>,
    in_flight: u64,
    stall: Box<Timespec>,
    unnotified: BTreeSet<(Instant, ConnKey)>,
    retry_at: Option<Instant>,
    completions: Vec<(u64, i32, u32)>,
    commands: Commands,
    counters: Counters,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("open", &self.open)
            .field("in_flight", &self.in_flight)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// A completion's result as a call would have returned it.
fn outcome(result: i32) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno::from_raw_os_error(-result))
}

fn fault(call: &'static str, source: std::io::Error) -> TransportError {
    TransportError {
        transport: TransportKind::IoUring,
        call,
        source,
    }
}

impl Uring {
    /// A ring that is made and restricted but not yet enabled: the first turn does that, on its thread.
    pub fn new(limits: TransportLimits) -> Result<Self, UringUnavailable> {
        // A ring's table is as long as the process may have descriptors, though it takes none of them.
        let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let most = most.map_or(usize::MAX, |most| {
            usize::try_from(most).unwrap_or(usize::MAX)
        });
        let spare = SPARE.min(most / 4);
        let connections = limits.connections.min(most.saturating_sub(spare));
        let limits = TransportLimits {
            connections,
            ..limits
        };
        let (ring, buffers) = ring::make((connections + spare) as u32, BUFFER)?;
        let waker = Waker::new().map_err(|errno| UringUnavailable::Call {
            call: "eventfd2",
            source: errno.into(),
        })?;
        let stall = Timespec::new()
            .sec(limits.stall.as_secs())
            .nsec(limits.stall.subsec_nanos());
        let mut uring = Self {
            ring,
            shared: ManuallyDrop::new(Shared {
                buffers,
                woken: Box::new(0),
                slots: Vec::new(),
                lingering: BTreeMap::new(),
            }),
            enabled: false,
            waker,
            limits,
            zero_copy_from: ZERO_COPY_FROM,
            listeners: Vec::new(),
            open: 0,
            parked: VecDeque::new(),
            dirty: VecDeque::new(),
            overflow: VecDeque::new(),
            in_flight: 0,
            stall: Box::new(stall),
            unnotified: BTreeSet::new(),
            retry_at: None,
            completions: Vec::new(),
            commands: Vec::new(),
            counters: Counters::default(),
        };
        uring.watch_waker();
        Ok(uring)
    }

    /// Sends without copying from another size on; `usize::MAX` is never.
    pub fn zero_copy_from(mut self, bytes: usize) -> Self {
        self.zero_copy_from = bytes;
        self
    }

    fn conn(&mut self, key: ConnKey) -> Option<&mut Conn> {
        let slot = self.shared.slots.get_mut(key.slot as usize)?;
        let conn = slot.conn.as_deref_mut()?;
        (slot.generation == key.generation).then_some(conn)
    }

    /// Of those that the handler may still speak of.
    fn live(&mut self, key: ConnKey) -> Option<&mut Conn> {
        self.conn(key).filter(|conn| conn.told && !conn.ended)
    }

    /// Queues operations; several are linked and go in one batch.
    fn push(&mut self, entries: &[squeue::Entry]) {
        self.in_flight += entries.len() as u64;
        if !self.overflow.is_empty() || !self.try_push(entries) {
            self.overflow.push_back(entries.to_vec());
        }
    }

    fn try_push(&mut self, entries: &[squeue::Entry]) -> bool {
        for _ in 0..2 {
            // SAFETY: what the entries point to lives until their completions: send buffers are held by their outbox in a
            // slot that is freed only with nothing in flight, the waker's word and the time-out are boxed. `Drop` leaks
            // all of it if the kernel may still use it.
            if unsafe { self.ring.submission().push_multiple(entries) }.is_ok() {
                return true;
            }
            // Full: make room. If the kernel does not take them now, they wait.
            if !self.enabled || self.enter(0, 0, None).is_err() {
                return false;
            }
        }
        false
    }

    fn enter(
        &mut self,
        want: u32,
        flags: u32,
        args: Option<&SubmitArgs<'_, '_>>,
    ) -> std::io::Result<usize> {
        let pending = self.ring.submission().len() as u32;
        self.counters.syscalls += 1;
        // SAFETY: `pending` entries are in the queue; `flags` and `args` belong together as io_uring_enter(2) asks.
        unsafe { self.ring.submitter().enter(pending, want, flags, args) }
    }

    fn watch_waker(&mut self) {
        let word: *mut u64 = &raw mut *self.shared.woken;
        let entry = opcode::Read::new(Fd(self.waker.fd().as_raw_fd()), word.cast(), 8)
            .build()
            .user_data(u64::from(Op::Wake as u8) << 56);
        self.push(&[entry]);
    }

    fn tell(&mut self, event: Event<'_>, handler: &mut dyn Handler) {
        let mut commands = std::mem::take(&mut self.commands);
        handler.event(event, &mut commands);
        self.commands = commands;
        self.obey(handler);
    }

    fn obey(&mut self, handler: &mut dyn Handler) {
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            match command {
                Command::Send { conn: key, bytes } => {
                    if let Some(conn) = self.live(key)
                        && !conn.draining
                    {
                        conn.outbox.push(bytes);
                        self.mark_dirty(key);
                    }
                }
                Command::Pause { conn } => self.set_reading(conn, false),
                Command::Resume { conn } => self.set_reading(conn, true),
                Command::Drain { conn: key } => {
                    self.set_reading(key, false);
                    if let Some(conn) = self.live(key) {
                        conn.draining = true;
                        self.mark_dirty(key);
                    }
                }
                Command::Close { conn } => {
                    if self.live(conn).is_some() {
                        self.end(conn, Ended::Asked, handler);
                    }
                }
            }
        }
        if self.commands.is_empty() {
            self.commands = commands;
        }
    }

    fn mark_dirty(&mut self, key: ConnKey) {
        if let Some(conn) = self.conn(key)
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push_back(key);
        }
    }

    fn set_reading(&mut self, key: ConnKey, reading: bool) {
        if let Some(conn) = self.live(key)
            && !conn.draining
        {
            conn.reading = reading;
            self.steer(key);
        }
    }

    /// Arms or stops receiving, as the connection wants it.
    fn steer(&mut self, key: ConnKey) {
        let Some(conn) = self.conn(key) else { return };
        let wanted = conn.reading && !conn.ended;
        let entry = if wanted && !conn.receiving {
            conn.receiving = true;
            let fd = Fixed(key.slot);
            let entry = if conn.heavy > 0 {
                opcode::Recv::new(fd, std::ptr::null_mut(), BUFFER as u32)
                    .buf_group(ring::GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            } else {
                opcode::RecvMulti::new(fd, ring::GROUP).build()
            };
            entry.user_data(Op::of(key, Op::Recv))
        } else if !wanted && conn.receiving && !conn.stopping {
            conn.stopping = true;
            opcode::AsyncCancel::new(Op::of(key, Op::Recv))
                .build()
                .user_data(Op::of(key, Op::Cancel))
        } else {
            return;
        };
        conn.in_flight += 1;
        self.push(&[entry]);
    }

    /// Ends a connection: tells so, and cancels what is under way on it.
    fn end(&mut self, key: ConnKey, how: Ended, handler: &mut dyn Handler) {
        let Some(conn) = self.conn(key) else { return };
        if std::mem::replace(&mut conn.ended, true) {
            return;
        }
        let (told, busy) = (conn.told, conn.is_busy());
        if busy {
            conn.in_flight += 1;
            let entry = opcode::AsyncCancel2::new(CancelBuilder::fd(Fixed(key.slot)).all())
                .build()
                .user_data(Op::of(key, Op::Cancel));
            self.push(&[entry]);
        } else {
            self.close(key);
        }
        self.open -= 1;
        if told {
            self.counters.closed += 1;
            self.tell(Event::Closed { conn: key, how }, handler);
        }
    }

    /// Nothing is under way any more: the descriptor goes.
    fn close(&mut self, key: ConnKey) {
        let Some(conn) = self.conn(key) else { return };
        if std::mem::replace(&mut conn.closing, true) {
            return;
        }
        let entry = opcode::Close::new(Fixed(key.slot))
            .build()
            .user_data(Op::of(key, Op::Close));
        self.push(&[entry]);
    }

    /// The kernel has closed it: the slot is free.
    fn closed(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        if self.conn(key).is_some() {
            self.vacate(key.slot);
        }
        self.make_room(handler);
    }

    /// The slot is another connection's from here on.
    fn vacate(&mut self, slot: u32) {
        let entry = &mut self.shared.slots[slot as usize];
        let generation = entry.generation;
        entry.generation = ConnKey::next_generation(generation);
        if let Some(conn) = entry.conn.take()
            && conn.in_flight > 0
        {
            let key = ConnKey { slot, generation };
            self.shared.lingering.insert(key, conn);
        }
    }

    fn make_room(&mut self, handler: &mut dyn Handler) {
        if !self.parked.is_empty() {
            while self.open < self.limits.connections
                && let Some((slot, listener)) = self.parked.pop_front()
            {
                self.begin(slot, listener);
            }
            if !self.parked.is_empty() {
                return;
            }
        } else if self.retry_at.is_none() {
            return;
        }
        self.retry_at = None;
        for at in 0..self.listeners.len() {
            if std::mem::take(&mut self.listeners[at].paused) {
                self.arm_accept(at);
                let (listener, state) = (ListenerId(at as u16), Listening::Resumed);
                self.tell(Event::Listening { listener, state }, handler);
            }
        }
    }

    fn arm_accept(&mut self, at: usize) {
        let listener = &mut self.listeners[at];
        if listener.paused || std::mem::replace(&mut listener.armed, true) {
            return;
        }
        let entry = opcode::AcceptMulti::new(Fd(listener.fd.as_raw_fd()))
            .allocate_file_index(true)
            .build()
            .user_data(u64::from(Op::Accept as u8) << 56 | at as u64);
        self.push(&[entry]);
    }

    fn pause_listener(&mut self, at: usize, state: Listening, handler: &mut dyn Handler) {
        let listener = &mut self.listeners[at];
        if std::mem::replace(&mut listener.paused, true) {
            return;
        }
        if listener.armed {
            let accept = u64::from(Op::Accept as u8) << 56 | at as u64;
            let entry = opcode::AsyncCancel::new(accept)
                .build()
                .user_data(u64::from(Op::Cancel as u8) << 56 | u64::from(u32::MAX));
            self.push(&[entry]);
        }
        if !matches!(state, Listening::Full { .. }) {
            self.retry_at = Some(Instant::now() + RETRY);
        }
        let listener = ListenerId(at as u16);
        self.tell(Event::Listening { listener, state }, handler);
    }

    fn accepted(&mut self, at: usize, result: i32, more: bool, handler: &mut dyn Handler) {
        if !more {
            self.listeners[at].armed = false;
        }
        match outcome(result) {
            Ok(slot) => {
                let slot = slot as u32;
                if self.open >= self.limits.connections {
                    self.parked.push_back((slot, at as u16));
                    let limit = self.limits.connections;
                    self.pause_listener(at, Listening::Full { limit }, handler);
                } else {
                    self.begin(slot, at as u16);
                }
            }
            Err(Errno::CANCELED | Errno::INTR | Errno::CONNABORTED | Errno::AGAIN) => {}
            Err(errno) => {
                if errno == Errno::NFILE || errno == Errno::MFILE {
                    // Accepted, but there was no place for it: the kernel closed it again.
                    self.counters.shed += 1;
                }
                self.pause_listener(at, Listening::Paused { errno }, handler);
            }
        }
        if !self.listeners[at].armed {
            self.arm_accept(at);
        }
    }

    /// A connection sits in `slot`: asks for a moment's ordinary descriptor, to learn who it is.
    fn begin(&mut self, slot: u32, listener: u16) {
        let slots = &mut self.shared.slots;
        if slots.len() <= slot as usize {
            slots.resize_with(slot as usize + 1, Slot::default);
        }
        if slots[slot as usize].conn.is_some() {
            // Its close has happened, only its completion has not been seen.
            self.vacate(slot);
        }
        let entry = &mut self.shared.slots[slot as usize];
        entry.conn = Some(Box::new(Conn {
            outbox: Outbox::default(),
            listener,
            told: false,
            ended: false,
            closing: false,
            reading: true,
            draining: false,
            dirty: false,
            receiving: false,
            stopping: false,
            heavy: 0,
            turn: 0,
            turn_bytes: 0,
            sending: false,
            blocked: false,
            zero_copied: 0,
            notified_by: None,
            in_flight: 1,
        }));
        let generation = entry.generation;
        self.open += 1;
        let install = opcode::FixedFdInstall::new(Fixed(slot), 0)
            .build()
            .user_data(Op::of(ConnKey { slot, generation }, Op::Install));
        self.push(&[install]);
    }

    fn installed(&mut self, key: ConnKey, result: i32, handler: &mut dyn Handler) {
        let Some(conn) = self.conn(key) else { return };
        let at = usize::from(conn.listener);
        if let Err(errno) = outcome(result) {
            self.counters.shed += 1;
            self.end(key, Ended::Io(errno), handler);
            return self.pause_listener(at, Listening::Paused { errno }, handler);
        }
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        self.counters.syscalls += 2;
        let origin = if self.listeners[at].unix {
            rustix::net::sockopt::socket_peercred(&fd).map(|who| Origin::Unix {
                uid: who.uid.as_raw(),
                gid: who.gid.as_raw(),
                pid: who.pid.as_raw_nonzero().get(),
            })
        } else {
            rustix::net::getpeername(&fd).and_then(|from| {
                let from = from.and_then(|from| from.try_into().ok());
                from.map(Origin::Tcp).ok_or(Errno::NOTCONN)
            })
        };
        drop(fd);
        let origin = match origin {
            Ok(origin) => origin,
            // Gone already.
            Err(errno) => return self.end(key, Ended::from_errno(errno), handler),
        };
        if let Some(conn) = self.conn(key) {
            conn.told = true;
        }
        self.counters.accepted += 1;
        let listener = ListenerId(at as u16);
        self.tell(
            Event::Accepted {
                conn: key,
                listener,
                origin,
            },
            handler,
        );
        self.steer(key);
    }

    fn received(&mut self, key: ConnKey, result: i32, flags: u32, handler: &mut dyn Handler) {
        let more = cqueue::more(flags);
        let (turn, budget) = (self.counters.turns, self.limits.read_budget);
        let Some(conn) = self.conn(key) else { return };
        if !more {
            conn.receiving = false;
            conn.stopping = false;
        }
        let live = !conn.ended;
        let count = usize::try_from(result).unwrap_or(0);
        conn.share(turn, count, budget);
        if conn.heavy > 0 && more && !conn.stopping && live {
            conn.stopping = true;
            conn.in_flight += 1;
            let stop = opcode::AsyncCancel::new(Op::of(key, Op::Recv))
                .build()
                .user_data(Op::of(key, Op::Cancel));
            self.push(&[stop]);
        }
        if let Some(id) = cqueue::buffer_select(flags) {
            if live && result > 0 {
                self.counters.received_bytes += result as u64;
                // Commands wait until the buffer is no longer looked at.
                let mut commands = std::mem::take(&mut self.commands);
                let bytes = self.shared.buffers.bytes(id, result as usize);
                handler.event(Event::Received { conn: key, bytes }, &mut commands);
                self.commands = commands;
            }
            self.shared.buffers.give(id);
            self.obey(handler);
        }
        match outcome(result) {
            _ if !live => {}
            Ok(0) => return self.end(key, Ended::Eof, handler),
            Ok(_) | Err(Errno::CANCELED | Errno::NOBUFS | Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return self.end(key, Ended::from_errno(errno), handler),
        }
        if !more {
            self.steer(key);
        }
    }

    /// Sends the front of the outbox, unless a send is under way.
    fn flush(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        let Some(conn) = self
            .shared
            .slots
            .get_mut(key.slot as usize)
            .filter(|slot| slot.generation == key.generation)
            .and_then(|slot| slot.conn.as_deref_mut())
        else {
            return;
        };
        conn.dirty = false;
        if conn.sending || conn.ended {
            return;
        }
        if conn.outbox.waiting() == 0 {
            if conn.draining {
                self.end(key, Ended::Asked, handler);
            }
            return;
        }
        let bytes = conn.outbox.hold();
        let (at, len) = (bytes.as_ptr(), bytes.len().min(1 << 30));
        let fd = Fixed(key.slot);
        let data = Op::of(key, Op::Send);
        conn.sending = true;
        if conn.blocked {
            let send = opcode::Send::new(fd, at, len as u32)
                .flags(MSG)
                .build()
                .flags(squeue::Flags::IO_LINK)
                .user_data(data);
            let stall: *const Timespec = &raw const *self.stall;
            let timeout = opcode::LinkTimeout::new(stall)
                .build()
                .user_data(Op::of(key, Op::Stall));
            conn.in_flight += 2;
            return self.push(&[send, timeout]);
        }
        conn.in_flight += 1;
        let flags = MSG | libc::MSG_DONTWAIT;
        let zero_copy =
            len >= self.zero_copy_from && !self.listeners[usize::from(conn.listener)].unix;
        let entry = if zero_copy {
            opcode::SendZc::new(fd, at, len as u32).flags(flags).build()
        } else {
            opcode::Send::new(fd, at, len as u32).flags(flags).build()
        };
        self.push(&[entry.user_data(data)]);
    }

    fn sent(&mut self, key: ConnKey, result: i32, flags: u32, handler: &mut dyn Handler) {
        let stall = self.limits.stall;
        let Some(conn) = self.conn(key) else { return };
        if cqueue::more(flags) {
            // The result of a send_zc; the kernel still reads from the buffer.
            let by = Instant::now() + stall;
            conn.zero_copied = result;
            conn.notified_by = Some(by);
            self.unnotified.insert((by, key));
            return;
        }
        let result = match conn.notified_by.take() {
            Some(by) => {
                let result = conn.zero_copied;
                self.unnotified.remove(&(by, key));
                result
            }
            None => result,
        };
        let Some(conn) = self.conn(key) else { return };
        conn.sending = false;
        conn.outbox.release();
        if conn.ended {
            return;
        }
        match outcome(result) {
            Ok(count) => {
                conn.blocked = false;
                conn.outbox.advance(count);
                let waiting = conn.outbox.waiting();
                let again = waiting > 0 || conn.draining;
                self.counters.sent_bytes += count as u64;
                if again {
                    self.mark_dirty(key);
                }
                self.tell(Event::Sent { conn: key, waiting }, handler);
            }
            Err(Errno::AGAIN) => {
                conn.blocked = true;
                self.mark_dirty(key);
            }
            Err(Errno::INTR) if !conn.blocked => self.mark_dirty(key),
            // The linked time-out has come: nothing was taken for so long.
            Err(Errno::CANCELED | Errno::INTR) => {
                let seconds = stall.as_secs() as u32;
                self.end(key, Ended::Stalled { seconds }, handler);
            }
            Err(errno) => self.end(key, Ended::from_errno(errno), handler),
        }
    }

    fn complete(&mut self, data: u64, result: i32, flags: u32, handler: &mut dyn Handler) {
        let more = cqueue::more(flags);
        if !more {
            self.in_flight -= 1;
        }
        let (op, key) = Op::parse(data);
        match op {
            Some(Op::Accept) => return self.accepted(key.slot as usize, result, more, handler),
            Some(Op::Wake) => {
                self.watch_waker();
                return self.tell(Event::Woken, handler);
            }
            Some(Op::Close) => return self.closed(key, handler),
            _ => {}
        }
        let Some(conn) = self.conn(key) else {
            let lingering = &mut self.shared.lingering;
            if let Some(conn) = lingering.get_mut(&key)
                && !more
            {
                conn.in_flight -= 1;
                if conn.in_flight == 0 {
                    lingering.remove(&key);
                }
            }
            return;
        };
        if !more {
            conn.in_flight -= 1;
        }
        match op {
            Some(Op::Install) => self.installed(key, result, handler),
            Some(Op::Recv) => self.received(key, result, flags, handler),
            Some(Op::Send) => self.sent(key, result, flags, handler),
            _ => {}
        }
        if let Some(conn) = self.conn(key)
            && conn.ended
            && !conn.is_busy()
        {
            self.close(key);
        }
    }

    fn expire(&mut self, handler: &mut dyn Handler) {
        if self.unnotified.is_empty() && self.retry_at.is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(&(at, key)) = self.unnotified.first() {
            if at > now {
                break;
            }
            self.unnotified.pop_first();
            let seconds = self.limits.stall.as_secs() as u32;
            self.end(key, Ended::Stalled { seconds }, handler);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.make_room(handler);
        }
    }

    fn flush_dirty(&mut self, handler: &mut dyn Handler) {
        for _ in 0..self.dirty.len() {
            let Some(key) = self.dirty.pop_front() else {
                break;
            };
            self.flush(key, handler);
        }
        while let Some(entries) = self.overflow.pop_front() {
            if !self.try_push(&entries) {
                self.overflow.push_front(entries);
                break;
            }
        }
    }
}

impl Transport for Uring {
    fn kind(&self) -> TransportKind {
        TransportKind::IoUring
    }

    fn listen(&mut self, socket: OwnedFd) -> Result<ListenerId, TransportError> {
        let unix = is_unix(socket.as_fd()).map_err(|errno| fault("getsockname", errno.into()))?;
        let at = self.listeners.len();
        self.listeners.push(Listener {
            fd: socket,
            unix,
            armed: false,
            paused: false,
        });
        self.arm_accept(at);
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
        /// `IORING_ENTER_GETEVENTS`, and with `IORING_ENTER_EXT_ARG`.
        const GETEVENTS: u32 = 1;
        const WITH_ARGS: u32 = GETEVENTS | 8;
        if !std::mem::replace(&mut self.enabled, true) {
            self.counters.syscalls += 1;
            let enabled = self.ring.submitter().register_enable_rings();
            enabled.map_err(|error| fault("IORING_REGISTER_ENABLE_RINGS", error))?;
        }
        self.counters.turns += 1;
        self.flush_dirty(handler);
        self.shared.buffers.publish();
        let idle = self.dirty.is_empty() && self.overflow.is_empty();
        let stalls = self.unnotified.first().map(|(at, _)| *at);
        let wait = if idle {
            let due = [stalls, self.retry_at].into_iter().flatten().min();
            let due = due.map(|at| at.saturating_duration_since(Instant::now()));
            [wait, due].into_iter().flatten().min()
        } else {
            Some(Duration::ZERO)
        };
        let entered = match wait {
            None => self.enter(1, GETEVENTS, None),
            Some(Duration::ZERO) => self.enter(0, GETEVENTS, None),
            Some(wait) => {
                let timeout = Timespec::new()
                    .sec(wait.as_secs())
                    .nsec(wait.subsec_nanos());
                let args = SubmitArgs::new().timespec(&timeout);
                self.enter(1, WITH_ARGS, Some(&args))
            }
        };
        if let Err(error) = entered {
            match error.raw_os_error() {
                // Nothing came in time, a signal, or completions have to be taken first.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => {}
                _ => return Err(fault("io_uring_enter", error)),
            }
        }
        let mut completions = std::mem::take(&mut self.completions);
        completions.extend(
            self.ring
                .completion()
                .take(COMPLETIONS)
                .map(|entry| (entry.user_data(), entry.result(), entry.flags())),
        );
        for (data, result, flags) in completions.drain(..) {
            self.complete(data, result, flags, handler);
        }
        self.completions = completions;
        self.expire(handler);
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn connections(&self) -> usize {
        self.open
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.enabled {
            let entry = opcode::AsyncCancel2::new(CancelBuilder::any())
                .build()
                .user_data(u64::from(Op::Cancel as u8) << 56 | u64::from(u32::MAX));
            self.push(&[entry]);
            // On another thread than the ring's own the first call fails, and what it uses is given up instead.
            while self.in_flight > 0 {
                let limit = Timespec::new().sec(1);
                let args = SubmitArgs::new().timespec(&limit);
                if self.enter(1, 1 | 8, Some(&args)).is_err() {
                    break;
                }
                let ended = self
                    .ring
                    .completion()
                    .filter(|entry| !cqueue::more(entry.flags()));
                self.in_flight -= ended.count() as u64;
            }
            if self.in_flight > 0 {
                return;
            }
        }
        // SAFETY: dropped here only, and the kernel has nothing of it in hand: a ring that was never enabled has not
        // seen any request, and this one has completed all of them.
        unsafe { ManuallyDrop::drop(&mut self.shared) };
    }
}
