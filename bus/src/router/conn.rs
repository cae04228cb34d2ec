//! One connection: what waits for it, in which order it goes out, and the policy when too much does.
//!
//! *Must* frames (answers, requests within the window it asked for, cancellations) are bounded because each was asked
//! for, and a reader that lets them pile up past the limit is cut off. *Droppable* frames (topic messages, notices)
//! are lost by the policy of their subscription, and the reader is told how many. Deliveries wait in their queues.
//!
//! The bus's own words and answers go first, in their order; then requests, by priority; then topic messages, by
//! priority, in turns with deliveries. Whatever waits is passed over at most [`PATIENCE`](super::turns::PATIENCE) times
//! in a row.

use std::collections::{HashMap, VecDeque};

use crate::channel::Overflow;
use crate::frame::{Frame, PeerId, WithFd, flags, kind};
use crate::message::Control;
use crate::wait::order::Order;

use super::queue::{Opened, Parked};
use super::turns::{CLASSES, Turns};
use super::{ConnKind, Limits};

/// Names a connection for as long as the router lives; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub(super) u64);

/// A frame on its way to a connection, perhaps with a file descriptor.
#[derive(Debug, PartialEq, Eq)]
pub struct Outgoing<F> {
    pub frame: Frame,
    pub fd: Option<F>,
}

/// A pattern that a connection follows, and what happens when it is too slow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub pattern: String,
    pub overflow: Overflow,
}

/// What goes out next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Frame,
    Delivery,
    Nothing,
}

/// Topic messages and deliveries, requests, the bus's own words and answers.
const LEVELS: usize = 3;
const EVENTS: usize = 0;
const REQUESTS: usize = 1;
const ANSWERS: usize = 2;

#[derive(Debug)]
struct Must<F> {
    answers: VecDeque<Outgoing<F>>,
    requests: [VecDeque<Outgoing<F>>; CLASSES],
    turns: Turns<CLASSES>,
    len: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Droppable {
    frames: [VecDeque<Frame>; CLASSES],
    turns: Turns<CLASSES>,
    len: usize,
    bytes: usize,
    /// Frames that were dropped since the reader was told.
    lost: u64,
}

fn class_of(frame: &Frame) -> usize {
    (frame.header.flags.get() & flags::PRIORITY_MASK) as usize
}

impl<F> Default for Must<F> {
    fn default() -> Self {
        Self {
            answers: VecDeque::new(),
            requests: Default::default(),
            turns: Turns::default(),
            len: 0,
            bytes: 0,
        }
    }
}

impl<F> Must<F> {
    fn push(&mut self, out: Outgoing<F>) {
        self.len += 1;
        self.bytes += out.frame.wire_len();
        if out.frame.kind() == kind::REQUEST {
            self.requests[class_of(&out.frame)].push_back(out);
        } else {
            self.answers.push_back(out);
        }
    }

    fn has_requests(&self) -> bool {
        self.len > self.answers.len()
    }

    fn pop(&mut self, level: usize) -> Option<Outgoing<F>> {
        let out = if level == ANSWERS {
            self.answers.pop_front()?
        } else {
            let requests = &self.requests;
            let waits = |class: usize| !requests[class].is_empty();
            let class = self.turns.pick(waits)?;
            self.turns.served(class, waits);
            self.requests[class].pop_front()?
        };
        self.len -= 1;
        self.bytes -= out.frame.wire_len();
        Some(out)
    }
}

impl Droppable {
    fn fits(&self, bytes: usize, limits: &Limits) -> bool {
        self.len == 0 || (self.len < limits.out_frames && self.bytes + bytes <= limits.out_bytes)
    }

    fn push(&mut self, frame: Frame) {
        self.len += 1;
        self.bytes += frame.wire_len();
        self.frames[class_of(&frame)].push_back(frame);
    }

    /// The oldest of the lowest class, this one at most.
    fn evict(&mut self, class: usize) -> Option<Frame> {
        let mut up_to = self.frames.iter_mut().take(class + 1);
        let frame = up_to.find(|frames| !frames.is_empty())?.pop_front()?;
        self.len -= 1;
        self.bytes -= frame.wire_len();
        Some(frame)
    }

    fn pop(&mut self) -> Option<Frame> {
        let frames = &self.frames;
        let waits = |class: usize| !frames[class].is_empty();
        let class = self.turns.pick(waits)?;
        self.turns.served(class, waits);
        let frame = self.frames[class].pop_front()?;
        self.len -= 1;
        self.bytes -= frame.wire_len();
        Some(frame)
    }
}

/// Neighbouring events that were taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    first: u32,
    count: u32,
    receivers: u64,
}

impl Run {
    pub fn frame(self, to: PeerId) -> Frame {
        let Self {
            first,
            count,
            receivers,
        } = self;
        let control = Control::Acknowledged {
            first,
            count,
            receivers,
        };
        Frame::new(kind::COMMAND, to, 0, control.encode().expect("fixed size"))
    }
}

/// Acknowledgements that go out as one: of events whose correlation ids follow each other.
#[derive(Debug, Default)]
pub(super) struct Gathered(Option<Run>);

impl Gathered {
    fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Adds an event; the run that it does not go on.
    pub fn add(&mut self, correlation: u32, receivers: u32) -> Option<Run> {
        match &mut self.0 {
            Some(run) if run.first.checked_add(run.count) == Some(correlation) => {
                run.count += 1;
                run.receivers += u64::from(receivers);
                None
            }
            other => other.replace(Run {
                first: correlation,
                count: 1,
                receivers: receivers.into(),
            }),
        }
    }

    fn take(&mut self) -> Option<Run> {
        self.0.take()
    }
}

#[derive(Debug)]
pub(super) struct Conn<F> {
    pub peer: PeerId,
    pub kind: ConnKind,
    pub greeted: bool,
    pub want_crc: bool,
    pub takes_lanes: bool,
    /// Its client says that it can map and wait on memory, or does so.
    pub shares_memory: bool,
    /// When it last said anything, monotonic.
    pub heard_ns: u64,
    /// Requests it takes at a time (0: none) and has now.
    pub window: u32,
    pub serving: u32,
    /// Its own open requests: its correlation id to ours.
    pub inflight: HashMap<u32, u32>,
    pub subscriptions: Vec<Subscription>,
    /// Events that were taken and not acknowledged yet.
    pub gathered: Gathered,
    /// Queues by their numbers here, and those that it takes messages from.
    pub opened: Vec<Opened>,
    pub consuming: Vec<u32>,
    /// Of those, the ones that have something for it.
    pub order: Order,
    /// What it produced last and found no room for.
    pub parked: Option<Parked>,
    /// How many slow readers it waits for, and who waits for it.
    pub paused_by: u32,
    pub pauses: Vec<ConnId>,
    must: Must<F>,
    droppable: Droppable,
    turns: Turns<LEVELS>,
    /// Whether deliveries go before topic messages next.
    deliveries_next: bool,
}

impl<F> Conn<F> {
    pub fn new(peer: PeerId, kind: ConnKind, now_ns: u64) -> Self {
        Self {
            peer,
            kind,
            greeted: kind == ConnKind::Port,
            want_crc: false,
            takes_lanes: false,
            shares_memory: false,
            heard_ns: now_ns,
            window: 0,
            serving: 0,
            inflight: HashMap::new(),
            subscriptions: Vec::new(),
            gathered: Gathered::default(),
            opened: Vec::new(),
            consuming: Vec::new(),
            order: Order::default(),
            parked: None,
            paused_by: 0,
            pauses: Vec::new(),
            must: Must::default(),
            droppable: Droppable::default(),
            turns: Turns::default(),
            deliveries_next: false,
        }
    }

    /// Room for a large frame, so that it can be refused in a civil way before it is queued.
    pub fn has_room_for(&self, bytes: usize, limits: &Limits) -> bool {
        self.must.len == 0 || self.must.bytes + bytes <= limits.out_bytes
    }

    /// `false` when there is no room even for a must frame.
    pub fn push_must(&mut self, out: Outgoing<F>, limits: &Limits) -> bool {
        // Small answers may go over the byte bound (their number is bounded): an error must get through.
        let bytes = out.frame.wire_len();
        if self.must.len >= limits.out_frames || (bytes > 4096 && !self.has_room_for(bytes, limits))
        {
            return false;
        }
        self.must.push(out);
        true
    }

    /// Puts in a frame that may be lost, by that policy; what was lost for it goes into `dropped`. `false`: the frame
    /// itself was.
    pub fn offer(
        &mut self,
        frame: Frame,
        overflow: Overflow,
        limits: &Limits,
        dropped: &mut Vec<Frame>,
    ) -> bool {
        let class = class_of(&frame);
        while !self.droppable.fits(frame.wire_len(), limits) {
            let old = match overflow {
                Overflow::DropOldest => self.droppable.evict(class),
                Overflow::DropNewest | Overflow::Disconnect | Overflow::Block => None,
            };
            self.droppable.lost += 1;
            match old {
                Some(old) => dropped.push(old),
                None => {
                    dropped.push(frame);
                    return false;
                }
            }
        }
        self.droppable.push(frame);
        true
    }

    /// What [`Self::pull`] and the queues have, and whose turn it is.
    pub fn next(&self) -> Next {
        let events = self.has_events();
        let deliveries = self.order.queued().next().is_some();
        match self.level(events || deliveries) {
            None => Next::Nothing,
            Some(EVENTS) if deliveries && (self.deliveries_next || !events) => Next::Delivery,
            Some(_) => Next::Frame,
        }
    }

    fn has_events(&self) -> bool {
        self.droppable.lost > 0 || self.droppable.len > 0
    }

    fn level(&self, events: bool) -> Option<usize> {
        self.turns.pick(|level| self.waits(level, events))
    }

    fn waits(&self, level: usize, events: bool) -> bool {
        match level {
            ANSWERS => !self.must.answers.is_empty() || !self.gathered.is_empty(),
            REQUESTS => self.must.has_requests(),
            _ => events,
        }
    }

    /// The next frame that waits here.
    pub fn pull(&mut self) -> Option<Outgoing<F>> {
        let events = self.has_events();
        let level = self.level(events)?;
        self.count_turn(level, events);
        let out = if level == ANSWERS && self.must.answers.is_empty() {
            let frame = self.gathered.take()?.frame(self.peer);
            Outgoing { frame, fd: None }
        } else if level != EVENTS {
            self.must.pop(level)?
        } else if self.droppable.lost > 0 {
            let payload = Control::Lost {
                count: std::mem::take(&mut self.droppable.lost),
            }
            .encode()
            .expect("fixed size");
            Outgoing {
                frame: Frame::new(kind::COMMAND, self.peer, 0, payload),
                fd: None,
            }
        } else {
            self.deliveries_next = true;
            let frame = self.droppable.pop()?;
            Outgoing { frame, fd: None }
        };
        Some(self.finish(out))
    }

    /// A delivery of a queue goes out.
    pub fn delivered(&mut self) {
        self.deliveries_next = false;
        self.count_turn(EVENTS, true);
    }

    fn count_turn(&mut self, level: usize, events: bool) {
        let waits = [0, 1, 2].map(|other| self.waits(other, events));
        self.turns.served(level, |other| waits[other]);
    }

    /// What every frame has when it leaves.
    pub fn finish(&self, mut out: Outgoing<F>) -> Outgoing<F> {
        out.frame.header.destination = self.peer;
        out.frame.set_fd_flag(if out.fd.is_some() {
            WithFd::Yes
        } else {
            WithFd::No
        });
        if self.want_crc {
            out.frame.seal_crc();
        }
        out
    }

    /// Descriptors that wait for this connection to take them.
    pub fn queued_fds(&self) -> usize {
        let answers = self.must.answers.iter();
        answers.filter(|out| out.fd.is_some()).count()
    }

    pub fn is_congested(&self, limits: &Limits) -> bool {
        self.parked.is_some()
            || self.paused_by > 0
            || self.must.len >= limits.out_frames / 2
            || self.must.bytes >= limits.out_bytes / 2
    }

    /// Half of what may wait for it does: publishers should pause.
    pub fn is_filling(&self, limits: &Limits) -> bool {
        self.droppable.len >= limits.out_frames / 2 || self.droppable.bytes >= limits.out_bytes / 2
    }

    /// Another frame of that size would be lost, or something for it.
    pub fn is_full(&self, bytes: usize, limits: &Limits) -> bool {
        !self.droppable.fits(bytes, limits)
    }

    /// A quarter at most is left of what waited: publishers may go on.
    pub fn has_drained(&self, limits: &Limits) -> bool {
        self.droppable.len <= limits.out_frames / 4 && self.droppable.bytes <= limits.out_bytes / 4
    }
}
