//! The transport with the fewest calls: one io_uring per shard.
//!
//! Accepting and receiving are multishot: armed once per listener and connection. Received bytes
//! land in buffers that the kernel takes from a shared ring, so an idle connection has none; one
//! that stays idle has only a poll. Connections are direct descriptors: their number in the ring's
//! table is their slot here, and they take no place in the process's table. Everything that a turn
//! wants goes to the kernel in batches of up to 256 by the call that also waits.
//!
//! A send is tried without waiting first. Only one that finds the socket full is sent again, linked
//! to a time-out that ends the connection when the peer takes nothing. Large buffers on TCP go out
//! with `send_zc` and stay where they are until the kernel says that it is done with them.
//!
//! A connection that ends has its operations cancelled; its slot is free when the last of them is
//! back. Read on: `accept`, `receive`, `quiet`, `send`, `lifecycle`; `ring` for what a ring may do
//! at all. Made on any thread, bound to the one of the first [`Transport::turn`].

mod accept;
mod buffers;
mod conn;
mod lifecycle;
mod quiet;
mod receive;
mod ring;
mod send;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::io::Errno;

use self::accept::Listener;
use self::buffers::BufferRing;
use self::conn::Conn;
use self::quiet::Rounds;
use self::receive::BUFFER;
pub use self::ring::UringUnavailable;
pub use self::send::ZERO_COPY_FROM;
use super::orders::Orders;
use super::slab::Slab;
use super::transport::{
    Commands, ConnKey, Counters, Event, Handler, ListenerId, Transport, TransportError,
    TransportKind, TransportLimits, Waker, is_unix,
};

/// Direct descriptors beyond the limit: what the kernel accepts before it hears that it should not.
const SPARE: usize = 256;
/// Completions handled before the queue of submissions goes to the kernel again.
const COMPLETIONS: usize = 512;
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

/// What the kernel may still write to or read from while requests are in flight.
#[derive(Debug)]
struct Shared {
    buffers: BufferRing,
    /// What the waker's counter is read into.
    woken: Box<u64>,
    conns: Slab<Conn>,
    /// Closed, but the network still reads from a buffer of theirs.
    lingering: BTreeMap<ConnKey, Conn>,
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
    rounds: Rounds,
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
                conns: Slab::default(),
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
            rounds: Rounds::default(),
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
        let Some(conn) = self.shared.conns.get_mut(key) else {
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
        if let Some(conn) = self.shared.conns.get_mut(key)
            && conn.ended
            && !conn.is_busy()
        {
            self.close(key);
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
            let due = [stalls, self.retry_at, self.rounds.due];
            let due = due.into_iter().flatten().min();
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
        self.go_round();
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
