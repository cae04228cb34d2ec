//! Routed shared memory, as an agent has it: a ring to the bus and one back, in place of the socket's bytes.
//!
//! There is no thread that reads the ring back: whoever waits for something reads it, hands out what is for others, and
//! passes the task on when it has what it waited for ([`Route::wait`]). What nobody waits for stays in the ring, and
//! then in the bus's queues, under their bounds. Whoever finds no room to send reads meanwhile, because the bus takes
//! nothing more from an agent whose answers wait unread.
//!
//! A route ends with the socket over which it was opened, and the socket with it: the next call makes both anew.

#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::inbox::{Inbox, TheirBell};
use super::lanes::LaneError;
use super::link::{Arrived, Expected, Link, Registered};
use super::mailbox::{Received, wait_changed};
use super::{ClientError, ok_result};
use crate::channel::{Class, Inline, Overflow, Tag};
use crate::frame::{Frame, PeerId, kind};
use crate::lane::ring::{self, Consumer, Producer, RecvError, SendError, message_limit};
use crate::lane::{Barrier, ReceiverOptions, SenderOptions, cursor_words, data_words};
use crate::message::{Control, Response, Shape};
use crate::shard::compact::{Assembler, HEAD, Head, Pieces, Reading, head_of};
use crate::shm::bell::Ringer;
use crate::shm::memfd::{self, Mapping};
use crate::shm::park::{Closer, probe_waitv, sleep_any};
use crate::wait::{Park, Parking, Source};

/// Slots of the ring to the bus, and of the one back: 256 KiB each, so that a batch is a quarter of it at most, and what
/// goes on while the other side waits for a processor is a few thousand messages.
pub const ROUTE_SLOTS: usize = 4096;
/// How long the bus has to offer its lane back.
const OFFER: Duration = Duration::from_secs(10);
/// Messages that are taken before those who wait are looked after.
const AT_ONCE: usize = 64;
/// How long one who finds no room leaves the reading to another before looking whether there is another.
const LEFT_TO_OTHERS: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Out {
    producer: Producer<Mapping, Mapping>,
    /// Longest piece.
    most: usize,
}

impl Out {
    fn send(&mut self, tag: Tag, head: &Head, body: &[u8]) -> Result<(), SendError> {
        let sent = self.producer.put_parts(tag, head.bytes(), body);
        self.producer.notify();
        sent
    }
}

#[derive(Debug)]
struct Back {
    consumer: Consumer<Mapping, Mapping>,
    assembler: Assembler,
}

/// Who waits while another reads.
#[derive(Debug, Default)]
struct Turn {
    /// How often something was handed out, or the reading let go.
    count: AtomicU64,
    waiting: AtomicUsize,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Turn {
    fn pass(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.changed.notify_all();
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Until the count is another than `seen`, or the deadline.
    fn wait(&self, seen: u64, deadline: Option<Instant>) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.count() == seen {
            match wait_changed(&self.changed, held, deadline) {
                Some(woken) => held = woken,
                None => break,
            }
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An offer of the bus's lane back.
#[derive(Debug)]
pub(super) struct RouteOffer {
    pub lane: u32,
    pub memory: std::os::fd::OwnedFd,
    pub registered: Registered,
}

#[derive(Debug)]
pub(super) struct Route {
    out: Mutex<Out>,
    back: Mutex<Back>,
    turn: Turn,
    /// Of both rings.
    closer: Closer,
}

impl Route {
    /// Opens both rings over the socket of `link`.
    pub fn open(link: &Link, slots: usize, max_payload: u32) -> Result<Self, LaneError> {
        probe_waitv().map_err(LaneError::NoWaitv)?;
        let closer = link.route_closer.clone();
        let options = SenderOptions::default();
        let (data, data_fd) =
            memfd::create("agentd-route-data", data_words(slots, options.inline))?;
        ring::format_data(&data, slots, &options)?;
        let shape = Shape {
            class: Class::default(),
            overflow: Overflow::Block,
            inline: options.inline,
            slots: slots as u32,
        };
        let offer = Control::LaneOffer {
            to: PeerId::BUS,
            shape,
        };
        let registered = Registered::new(closer.clone());
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, offer.encode()?);
        let expected = Expected::Channel(registered.clone());
        let arrived = link.call_expecting(frame, Some(&data_fd), None, Some(expected))?;
        ok_result(&arrived.frame)?;
        let cursor = memfd::open(arrived.fd.ok_or(LaneError::NoMemory)?.as_fd())?;
        let mut out = Out {
            producer: Producer::new(data, cursor, closer.clone(), options)?,
            most: message_limit(slots / 4, Inline::Small).max(HEAD),
        };
        let Received::Item(offered) = link.route_offers.take(Some(OFFER)) else {
            return Err(LaneError::Client(ClientError::NoAnswer {
                seconds: OFFER.as_secs(),
            }));
        };
        let options = ReceiverOptions {
            barrier: Barrier::Both,
            ..ReceiverOptions::default()
        };
        let data = memfd::open(offered.memory.as_fd())?;
        let (cursor, cursor_fd) = memfd::create("agentd-route-cursor", cursor_words())?;
        ring::format_cursor(&cursor, &options)?;
        let mut back = Back {
            consumer: Consumer::new(data, cursor, closer.clone(), options)?,
            assembler: Assembler::new(Reading::FromBus, max_payload),
        };
        // Before the first message: the bus may wait for it by its bell alone.
        out.producer.set_ringer(bell_of(&registered.inbox)?);
        back.consumer
            .set_ringer(bell_of(&offered.registered.inbox)?);
        let taken = Response::ok(b"").encode()?;
        link.send_on_socket(
            Frame::new(kind::RESPONSE, PeerId::BUS, offered.lane, taken),
            Some(&cursor_fd),
        )?;
        Ok(Self {
            out: Mutex::new(out),
            back: Mutex::new(back),
            turn: Turn::default(),
            closer,
        })
    }

    /// Sends one frame whole; waits while the bus is not reading.
    pub fn send(&self, link: &Link, frame: Frame) -> Result<(), ClientError> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pieces = Pieces::to_bus(frame);
        loop {
            let piece = pieces.next(out.most);
            let body = pieces.body(&piece);
            match out.send(piece.tag, &piece.head, body) {
                Ok(()) if pieces.sent(&piece) => return Ok(()),
                Ok(()) => {}
                Err(SendError::Full) => self.make_room(link, &mut out)?,
                Err(error) => return Err(closed(link, &error)),
            }
        }
    }

    /// Sends a frame of which the parts are there: kind, flags and correlation id, receiver, payload. Needs no memory of
    /// its own. `false`: it is too long for one message, and was not sent.
    pub fn send_parts(
        &self,
        link: &Link,
        head: (u16, u32, u32),
        to: PeerId,
        payload: &[u8],
    ) -> Result<bool, ClientError> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if HEAD + payload.len() > out.most {
            return Ok(false);
        }
        let (tag, head) = head_of(head, to, payload.len());
        loop {
            match out.send(tag, &head, payload) {
                Ok(()) => return Ok(true),
                Err(SendError::Full) => self.make_room(link, &mut out)?,
                Err(error) => return Err(closed(link, &error)),
            }
        }
    }

    /// There was no room: reads what waits, unless somebody does, and sleeps until there is room or more to read.
    fn make_room(&self, link: &Link, out: &mut Out) -> Result<(), ClientError> {
        let Some(mut back) = self.try_back() else {
            return match out.producer.make_room(LEFT_TO_OTHERS) {
                Ok(()) | Err(SendError::Full) => Ok(()),
                Err(error) => Err(closed(link, &error)),
            };
        };
        let read = back.read_what_is_there(link);
        if matches!(read, Ok(0)) {
            self.sleep(&mut out.producer, &mut back.consumer);
        }
        drop(back);
        self.turn.pass();
        read.map(drop).map_err(|error| closed(link, &error))
    }

    /// Until there is room, or something to read, or both are over.
    fn sleep(&self, room: &mut Producer<Mapping, Mapping>, more: &mut Consumer<Mapping, Mapping>) {
        room.arm(Park::Futex);
        more.arm(Park::Futex);
        let heavy = [room.parking(), more.parking()].contains(&Parking::Heavy);
        crate::wait::source::barrier_for(heavy);
        if !room.is_ready() && !more.is_ready() {
            let watched = [room.watch(), more.watch()];
            let words = watched.iter().map(|watch| (watch.word, watch.seen));
            sleep_any(words, &self.closer, None);
        }
        room.disarm();
        more.disarm();
    }

    fn try_back(&self) -> Option<MutexGuard<'_, Back>> {
        match self.back.try_lock() {
            Ok(back) => Some(back),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// What `ready` has now, or after what is in the ring was read. Waits for nothing and nobody.
    pub fn poll<T>(&self, link: &Link, mut ready: impl FnMut() -> Option<T>) -> Option<T> {
        if let Some(found) = ready() {
            return Some(found);
        }
        let mut back = self.try_back()?;
        let read = back.read_what_is_there(link);
        drop(back);
        if !matches!(read, Ok(0)) {
            self.turn.pass();
        }
        if let Err(error) = read {
            link.close(format!("the bus's shared memory: {error}"));
        }
        ready()
    }

    /// Waits until `ready` has something, reading for all meanwhile. `None`: it had nothing by the deadline.
    pub fn wait<T>(
        &self,
        link: &Link,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        loop {
            let seen = self.turn.count();
            if let Some(found) = ready() {
                return Some(found);
            }
            let left = match deadline {
                None => Duration::MAX,
                Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            };
            let Some(mut back) = self.try_back() else {
                if left.is_zero() {
                    return None;
                }
                self.turn.wait(seen, deadline);
                continue;
            };
            // Another may have brought it between the look and here.
            let found = ready();
            if found.is_none() {
                let read = back.read(link, left);
                drop(back);
                self.turn.pass();
                match read {
                    Ok(()) => continue,
                    Err(RecvError::TimedOut) => return ready(),
                    Err(error) => {
                        // Both end together, and with them whatever waits.
                        link.close(format!("the bus's shared memory: {error}"));
                        return ready();
                    }
                }
            }
            drop(back);
            self.turn.pass();
            return found;
        }
    }
}

/// The bell that the bus has sent for one of the rings.
fn bell_of(inbox: &Inbox) -> Result<Ringer, LaneError> {
    inbox.wait(Instant::now().checked_add(OFFER));
    let bell = inbox.take_bells().pop_front();
    let TheirBell { bell, .. } = bell.ok_or(LaneError::NoMemory)?;
    Ringer::from_fd(bell).map_err(|_| LaneError::NoMemory)
}

impl Back {
    /// Waits for a message, and takes those behind it too.
    fn read(&mut self, link: &Link, timeout: Duration) -> Result<(), RecvError> {
        let Self {
            consumer,
            assembler,
        } = self;
        let first = consumer.recv_with(timeout, |tag, message| assembler.take(tag, message))?;
        hand_out(link, first);
        self.read_what_is_there(link).map(drop)
    }

    /// Takes what is there; how many messages that was.
    fn read_what_is_there(&mut self, link: &Link) -> Result<usize, RecvError> {
        let Self {
            consumer,
            assembler,
        } = self;
        let mut count = 0;
        while count < AT_ONCE
            && let Some(taken) =
                consumer.try_recv_with(|tag, message| assembler.take(tag, message))?
        {
            hand_out(link, taken);
            count += 1;
        }
        Ok(count)
    }
}

/// Passes a frame to whoever waits for it. The bus sends nothing that is none.
fn hand_out(link: &Link, taken: Result<Option<Frame>, crate::shard::compact::CompactError>) {
    match taken {
        Ok(Some(frame)) => link.arrived(Arrived { frame, fd: None }),
        Ok(None) => {}
        Err(error) => link.close(format!("the bus's shared memory: {error}")),
    }
}

fn closed(link: &Link, error: &dyn std::fmt::Display) -> ClientError {
    ClientError::Closed {
        why: link
            .lost()
            .unwrap_or_else(|| format!("the bus's shared memory: {error}")),
    }
}
