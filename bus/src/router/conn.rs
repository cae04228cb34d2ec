//! One connection: what waits for it, and the policy when too much does.
//!
//! Two queues. *Must* frames (answers, requests within the window it asked for, cancellations) are
//! bounded because each was asked for, and a reader that lets them pile up past the limit is cut off.
//! *Droppable* frames (topic messages, notices) lose their oldest, and the reader is told how many.

use std::collections::{HashMap, VecDeque};

use crate::frame::{Frame, PeerId, WithFd, kind};
use crate::message::Control;

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
    pub subscriptions: Vec<String>,
    must: VecDeque<Outgoing<F>>,
    must_bytes: usize,
    droppable: VecDeque<Frame>,
    droppable_bytes: usize,
    lost: u64,
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
            must: VecDeque::new(),
            must_bytes: 0,
            droppable: VecDeque::new(),
            droppable_bytes: 0,
            lost: 0,
        }
    }

    /// Room for a large frame, so that it can be refused in a civil way before it is queued.
    pub fn has_room_for(&self, bytes: usize, limits: &Limits) -> bool {
        self.must.is_empty() || self.must_bytes + bytes <= limits.out_bytes
    }

    /// `false` when there is no room even for a must frame.
    pub fn push_must(&mut self, out: Outgoing<F>, limits: &Limits) -> bool {
        // Small answers may go over the byte bound (their number is bounded): an error must get through.
        let bytes = out.frame.wire_len();
        if self.must.len() >= limits.out_frames
            || (bytes > 4096 && !self.has_room_for(bytes, limits))
        {
            return false;
        }
        self.must_bytes += bytes;
        self.must.push_back(out);
        true
    }

    /// Always succeeds, at the cost of the oldest; how many that were.
    pub fn push_droppable(&mut self, frame: Frame, limits: &Limits) -> u64 {
        let bytes = frame.wire_len();
        let lost_before = self.lost;
        while !self.droppable.is_empty()
            && (self.droppable.len() >= limits.out_frames
                || self.droppable_bytes + bytes > limits.out_bytes)
        {
            if let Some(old) = self.droppable.pop_front() {
                self.droppable_bytes -= old.wire_len();
                self.lost += 1;
            }
        }
        self.droppable_bytes += bytes;
        self.droppable.push_back(frame);
        self.lost - lost_before
    }

    pub fn pull(&mut self) -> Option<Outgoing<F>> {
        let mut out = if let Some(out) = self.must.pop_front() {
            self.must_bytes -= out.frame.wire_len();
            out
        } else if self.lost > 0 {
            let payload = Control::Lost {
                count: std::mem::take(&mut self.lost),
            }
            .encode()
            .expect("fixed size");
            Outgoing {
                frame: Frame::new(kind::COMMAND, self.peer, 0, payload),
                fd: None,
            }
        } else {
            let frame = self.droppable.pop_front()?;
            self.droppable_bytes -= frame.wire_len();
            Outgoing { frame, fd: None }
        };
        out.frame.header.destination = self.peer;
        out.frame.set_fd_flag(if out.fd.is_some() {
            WithFd::Yes
        } else {
            WithFd::No
        });
        if self.want_crc {
            out.frame.seal_crc();
        }
        Some(out)
    }

    /// Descriptors that wait for this connection to take them.
    pub fn queued_fds(&self) -> usize {
        self.must.iter().filter(|out| out.fd.is_some()).count()
    }

    pub fn is_congested(&self, limits: &Limits) -> bool {
        self.must.len() >= limits.out_frames / 2 || self.must_bytes >= limits.out_bytes / 2
    }
}
