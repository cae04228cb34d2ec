//! One agent: its inbox, the requests that wait for it, and who reads them.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::access::Access;
use crate::frame::Frame;

use super::status::PeerCounters;
use super::{ConnId, Limits, PeerSpec};

#[derive(Debug)]
pub(super) struct Peer {
    pub uid: u32,
    pub name: String,
    pub short: u32,
    pub access: Arc<dyn Access>,
    pub conns: Vec<ConnId>,
    /// Sender's name and message, oldest first.
    pub inbox: VecDeque<(String, Frame)>,
    inbox_bytes: usize,
    /// Topic messages dropped from the inbox since it was last read.
    pub lost: u64,
    /// Patterns whose messages come into the inbox.
    pub subscriptions: Vec<String>,
    /// Reads of the inbox that wait for a first message, oldest first.
    pub waiters: VecDeque<InboxWaiter>,
    /// Requests (by our correlation id) that no connection has taken yet, oldest first.
    pub waiting: VecDeque<u32>,
    pub counters: PeerCounters,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct InboxWaiter {
    pub conn: ConnId,
    pub correlation: u32,
    pub max: u32,
    pub deadline_ns: u64,
}

impl Peer {
    pub fn new(spec: PeerSpec) -> Self {
        Self {
            uid: spec.uid,
            name: spec.name,
            short: spec.short,
            access: spec.access,
            conns: Vec::new(),
            inbox: VecDeque::new(),
            inbox_bytes: 0,
            lost: 0,
            subscriptions: Vec::new(),
            waiters: VecDeque::new(),
            waiting: VecDeque::new(),
            counters: PeerCounters::default(),
        }
    }

    fn is_full(&self, bytes: usize, limits: &Limits) -> bool {
        self.inbox.len() >= limits.inbox_messages
            || (!self.inbox.is_empty() && self.inbox_bytes + bytes > limits.inbox_bytes)
    }

    /// Puts in a message that was addressed to this agent. `false`: the inbox is full.
    pub fn accept_direct(&mut self, from: &str, frame: Frame, limits: &Limits) -> bool {
        if self.is_full(frame.wire_len(), limits) {
            return false;
        }
        self.inbox_bytes += frame.wire_len();
        self.inbox.push_back((from.to_owned(), frame));
        true
    }

    /// Puts in a topic message; the oldest topic messages make room, direct ones never do.
    pub fn accept_topic(&mut self, from: &str, frame: Frame, limits: &Limits) -> bool {
        while self.is_full(frame.wire_len(), limits) {
            // A direct message has the agent as its destination, a topic message has none.
            let Some(oldest) = self
                .inbox
                .iter()
                .position(|(_, old)| old.header.destination.is_bus())
            else {
                self.lost += 1;
                self.counters.dropped += 1;
                return false;
            };
            if let Some((_, old)) = self.inbox.remove(oldest) {
                self.inbox_bytes -= old.wire_len();
                self.lost += 1;
                self.counters.dropped += 1;
            }
        }
        self.inbox_bytes += frame.wire_len();
        self.inbox.push_back((from.to_owned(), frame));
        true
    }

    /// Takes the oldest message if it is at most `room` bytes in a batch.
    pub fn take_message(&mut self, room: usize) -> Option<(String, Frame)> {
        let (name, frame) = self.inbox.front()?;
        if crate::listing::InboxBatch::entry_len(name, frame) > room {
            return None;
        }
        let taken = self.inbox.pop_front();
        if let Some((_, frame)) = &taken {
            self.inbox_bytes -= frame.wire_len();
        }
        taken
    }
}
