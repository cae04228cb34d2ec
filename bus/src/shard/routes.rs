//! The shared memory of routes: a ring from each agent to this thread, and one back.
//!
//! Agents' memory is read through [`Consumer`], which copies each message once and then checks it; frames are put
//! together by [`Assembler`] and go the same way as those of a socket. What an agent is sent is copied once, into
//! memory that only this process can write. Whatever an agent writes into its own memory ends its route at worst.
//!
//! A ring that is full, or whose agent's answers wait unread, is not looked at until that has changed: see [`RouteEnd`].

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::compact::{Assembler, HEAD, Pieces, Reading};
use super::memory::SharedFd;
use super::thread::{Body, SHARE};
use crate::channel::{Class, Inline};
use crate::frame::PeerId;
use crate::lane::ring::{Consumer, Producer, SendError, format_cursor, format_data, message_limit};
use crate::lane::{
    LayoutError, ReceiverOptions, SLOT_BYTES, SenderOptions, cursor_words, data_words,
};
use crate::message::Status;
use crate::router::numbers::ByNumber;
use crate::router::{ConnId, Now, RouteEvent, RouteMemory};
use crate::shm::PAGE_WORDS;
use crate::shm::atomics::AtomicU64;
use crate::shm::memfd::{self, Mapping, MemfdError};
use crate::shm::park::Closer;
use crate::shm::region::Words;
use crate::wait::{Bell, BellError, Park, Parking, Source, Token, Watch};

/// Slots of the lane back: as many as the agent's own, within these bounds, since they are the bus's memory.
const SLOTS_MIN: usize = 64;
const SLOTS_MAX: usize = 4096;

/// Why a route can't be had.
#[derive(Debug, thiserror::Error)]
enum RouteError {
    #[error(transparent)]
    Memory(#[from] MemfdError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Bell(#[from] BellError),
}

/// From an agent.
#[derive(Debug)]
pub(super) struct Inward {
    consumer: Consumer<Mapping, Mapping>,
    assembler: Assembler,
    route: u32,
    conn: ConnId,
    /// Its answers wait unread.
    paused: bool,
}

/// To an agent.
#[derive(Debug)]
pub(super) struct Outward {
    producer: Producer<Mapping, Mapping>,
    /// A frame of which pieces are left.
    sending: Option<Pieces>,
    /// Longest piece: a quarter of the ring, so that one long frame does not wait for all of it to be empty.
    most: usize,
    route: u32,
    conn: ConnId,
    /// There was no room last time.
    starved: bool,
}

/// What the thread waits for: messages of an agent that may be taken, room for one that has been missed. An end that
/// waits for neither watches a word that never changes.
#[derive(Debug)]
pub(super) enum RouteEnd {
    In(Box<Inward>, Still),
    Out(Box<Outward>, Still),
}

/// A word that nobody changes.
#[derive(Debug, Default)]
pub(super) struct Still(AtomicU64);

impl Still {
    fn watch(&self) -> Watch<'_> {
        Watch {
            word: &self.0,
            seen: 0,
        }
    }
}

impl Source for RouteEnd {
    fn watch(&self) -> Watch<'_> {
        match self {
            Self::In(end, _) if !end.paused => end.consumer.watch(),
            Self::Out(end, _) if end.starved => end.producer.watch(),
            Self::In(_, still) | Self::Out(_, still) => still.watch(),
        }
    }

    fn arm(&mut self, how: Park) {
        match self {
            Self::In(end, _) if !end.paused => end.consumer.arm(how),
            Self::Out(end, _) if end.starved => end.producer.arm(how),
            Self::In(..) | Self::Out(..) => {}
        }
    }

    fn disarm(&mut self) {
        match self {
            Self::In(end, _) if !end.paused => end.consumer.disarm(),
            Self::Out(end, _) if end.starved => end.producer.disarm(),
            Self::In(..) | Self::Out(..) => {}
        }
    }

    fn closer(&self) -> &Closer {
        match self {
            Self::In(end, _) => end.consumer.closer(),
            Self::Out(end, _) => end.producer.closer(),
        }
    }

    fn parking(&self) -> Parking {
        match self {
            Self::In(end, _) => end.consumer.parking(),
            Self::Out(end, _) => end.producer.parking(),
        }
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::In(end, _) => end.consumer.bell(),
            Self::Out(end, _) => end.producer.bell(),
        }
    }
}

/// A route of which the agent has not taken the lane back yet.
struct Opening {
    consumer: Consumer<Mapping, Mapping>,
    data: Mapping,
    slots: usize,
    bell: Bell,
}

#[derive(Clone, Copy)]
struct Open {
    conn: ConnId,
    input: Token,
    output: Token,
}

#[derive(Default)]
pub(super) struct Routes {
    opening: ByNumber<u32, Opening>,
    open: ByNumber<u32, Open>,
}

/// Makes the bus's ends of a route over an agent's data memory.
fn prepare(data: &SharedFd) -> Result<(Opening, RouteMemory<SharedFd>), RouteError> {
    let theirs = memfd::open(data.as_fd())?;
    let slots = (theirs.words().len().saturating_sub(PAGE_WORDS) * 8 / SLOT_BYTES)
        .clamp(SLOTS_MIN, SLOTS_MAX)
        .next_power_of_two();
    let options = ReceiverOptions::default();
    let (cursor, cursor_fd) = memfd::create("agentd-route-cursor", cursor_words())?;
    format_cursor(&cursor, &options)?;
    let mut consumer = Consumer::new(theirs, cursor, Closer::default(), options)?;
    let (data, data_fd) = memfd::create("agentd-route-data", data_words(slots, Inline::Small))?;
    format_data(&data, slots, &SenderOptions::default())?;
    let (bell_in, bell_out) = (Bell::new()?, Bell::new()?);
    let bells = [
        SharedFd::made(bell_in.share()?, 0),
        SharedFd::made(bell_out.share()?, 0),
    ];
    consumer.set_bell(bell_in);
    let memory = RouteMemory {
        cursor: SharedFd::made(cursor_fd, cursor_words() as u64 * 8),
        bells,
        data: SharedFd::made(data_fd, data_words(slots, Inline::Small) as u64 * 8),
        slots: slots as u32,
    };
    let opening = Opening {
        consumer,
        data,
        slots,
        bell: bell_out,
    };
    Ok((opening, memory))
}

impl Body {
    pub(super) fn route_event(&mut self, event: RouteEvent<SharedFd>, now: Now) {
        match event {
            RouteEvent::Offered { route, data } => match prepare(&data) {
                Ok((opening, memory)) => {
                    self.routes.opening.insert(route, opening);
                    self.router.route_taken(route, memory, now, &mut self.fx);
                }
                Err(error) => {
                    let text = error.to_string();
                    self.router.route_refused(route, &text, &mut self.fx);
                }
            },
            RouteEvent::Opened {
                route,
                conn,
                cursor,
            } => {
                if let Err(error) = self.open_route(route, conn, &cursor) {
                    self.host.route_failed(&error.to_string());
                    self.router
                        .end_route(route, Status::MALFORMED, &mut self.fx);
                }
            }
            RouteEvent::Over { route, status } => {
                if !matches!(status, Status::DENIED | Status::MALFORMED) {
                    self.drain(route, now);
                }
                self.routes.opening.remove(&route);
                if let Some(open) = self.routes.open.remove(&route) {
                    self.waiter.remove(open.input);
                    self.waiter.remove(open.output);
                    self.conns.remove(&open.conn);
                }
                self.router.route_ended(route, now, &mut self.fx);
            }
        }
    }

    fn open_route(&mut self, route: u32, conn: ConnId, cursor: &SharedFd) -> Result<(), OpenError> {
        let Some(opening) = self.routes.opening.remove(&route) else {
            return Err(OpenError::Unknown);
        };
        let Opening {
            consumer,
            data,
            slots,
            bell,
        } = opening;
        let cursor = memfd::open(cursor.as_fd())?;
        let mut producer =
            Producer::new(data, cursor, Closer::default(), SenderOptions::default())?;
        producer.set_bell(bell);
        let max_payload = self.router.limits().max_payload;
        let inward = Inward {
            consumer,
            assembler: Assembler::new(Reading::FromAgent, max_payload),
            route,
            conn,
            paused: false,
        };
        let outward = Outward {
            producer,
            sending: None,
            most: message_limit(slots / 4, Inline::Small).max(HEAD),
            route,
            conn,
            starved: false,
        };
        let input = RouteEnd::In(Box::new(inward), Still::default());
        let output = RouteEnd::Out(Box::new(outward), Still::default());
        let add = |body: &mut Self, end| {
            let added = body.waiter.add(end, Class::Normal);
            added.map_err(|(error, _)| OpenError::Wait(error))
        };
        let input = add(self, input)?;
        let output = match add(self, output) {
            Ok(output) => output,
            Err(error) => {
                self.waiter.remove(input);
                return Err(error);
            }
        };
        let open = Open {
            conn,
            input,
            output,
        };
        self.routes.open.insert(route, open);
        self.add_routed(conn, route);
        Ok(())
    }

    /// An end is ready.
    pub(super) fn serve(&mut self, token: Token, now: Now) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve_some(token, SHARE, now)));
        match served {
            Ok(Some((route, status))) => self.router.end_route(route, status, &mut self.fx),
            Ok(None) => {}
            Err(_) => {
                self.host.panicked();
                if let Some(RouteEnd::In(end, _)) = self.waiter.get(token) {
                    let route = end.route;
                    self.router.end_route(route, Status::FAILED, &mut self.fx);
                }
            }
        }
    }

    /// Takes up to `share` frames. The route to end, and why, if it must.
    fn serve_some(&mut self, token: Token, share: usize, now: Now) -> Option<(u32, Status)> {
        let Self {
            waiter,
            router,
            fx,
            conns,
            ..
        } = self;
        let end = match waiter.get_mut(token)? {
            RouteEnd::In(end, _) => end,
            RouteEnd::Out(end, _) => {
                end.starved = false;
                let conn = end.conn;
                self.wake(conn);
                return None;
            }
        };
        let Inward {
            consumer,
            assembler,
            route,
            conn,
            paused,
        } = &mut **end;
        let mut left = share;
        while left > 0 {
            if router.is_congested(*conn) {
                *paused = true;
                if let Some(conn) = conns.get_mut(conn) {
                    conn.paused = true;
                }
                return None;
            }
            match consumer.try_recv_with(|tag, message| assembler.take(tag, message)) {
                Ok(Some(Ok(Some(frame)))) => {
                    left -= 1;
                    router.frame(*conn, frame, None, now, fx);
                }
                Ok(Some(Ok(None))) => {}
                Ok(None) => return None,
                // Nonsense of one kind or another; nobody here closes this ring.
                Ok(Some(Err(_))) | Err(_) => return Some((*route, Status::MALFORMED)),
            }
        }
        None
    }

    /// Its answers have been read: its ring may be looked at again.
    pub(super) fn unpause(&mut self, route: u32) {
        if let Some(open) = self.routes.open.get(&route)
            && let Some(RouteEnd::In(end, _)) = self.waiter.get_mut(open.input)
        {
            end.paused = false;
        }
    }

    /// Takes what an agent that has ended, or is done, had committed: at most a lap.
    fn drain(&mut self, route: u32, now: Now) {
        let Some(Open { input, .. }) = self.routes.open.get(&route).copied() else {
            return;
        };
        let position = |body: &Self| match body.waiter.get(input) {
            Some(RouteEnd::In(end, _)) => Some(end.consumer.next_slot()),
            _ => None,
        };
        let lap = crate::lane::CAPACITY_MAX as u64;
        let (mut at, start) = (None, position(self));
        while at != position(self)
            && let (Some(now_at), Some(start)) = (position(self), start)
            && now_at.wrapping_sub(start) < lap
        {
            at = position(self);
            self.serve(input, now);
        }
    }

    /// As [`Self::drain`], for all routes of an agent.
    pub(super) fn drain_peer(&mut self, peer: PeerId, now: Now) {
        let routes: Vec<u32> = self.router.routes_of(peer).collect();
        for route in routes {
            self.drain(route, now);
        }
    }

    /// Puts what waits for a routed connection into its ring, as far as there is room.
    pub(super) fn pour(&mut self, route: u32) {
        let Some(Open { conn, output, .. }) = self.routes.open.get(&route).copied() else {
            return;
        };
        let Self {
            waiter, router, fx, ..
        } = self;
        let Some(RouteEnd::Out(end, _)) = waiter.get_mut(output) else {
            return;
        };
        let Outward {
            producer,
            sending,
            most,
            starved,
            ..
        } = &mut **end;
        *starved = false;
        let poured = loop {
            let pieces = match sending {
                Some(pieces) => pieces,
                None => match router.pull(conn, fx) {
                    Some(out) => sending.insert(Pieces::to_agent(out.frame)),
                    None => break Ok(()),
                },
            };
            let piece = pieces.next(*most);
            match producer.put_parts(piece.tag, piece.head.bytes(), pieces.body(&piece)) {
                Ok(()) => {
                    if pieces.sent(&piece) {
                        *sending = None;
                    }
                }
                Err(error) => break Err(error),
            }
        };
        // Once for all: an agent that is woken for the first would take it and sleep again.
        producer.notify();
        match poured {
            Ok(()) => {}
            Err(SendError::Full) => *starved = true,
            Err(_) => {
                let route = end.route;
                router.end_route(route, Status::MALFORMED, fx);
            }
        }
    }
}

/// Why an agent's answer does not make a route.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("no such route is being opened")]
    Unknown,
    #[error(transparent)]
    Memory(#[from] MemfdError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Wait(crate::wait::WaitError),
}
