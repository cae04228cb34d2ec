//! One agent: its inbox, the requests that wait for it, and who reads them.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::access::Access;
use crate::frame::{Frame, flags};

use super::direct::DirectPlace;
use super::status::PeerCounters;
use super::turns::Fair;
use super::{ConnId, Limits, PeerSpec};

#[derive(Debug)]
pub(super) struct Peer {
    pub uid: u32,
    pub name: Arc<str>,
    pub short: u32,
    pub access: Arc<dyn Access>,
    pub conns: Vec<ConnId>,
    /// Sender's name and message, by class and sender.
    pub inbox: Fair<(Arc<str>, Frame)>,
    /// Topic messages dropped from the inbox since it was last read.
    pub lost: u64,
    /// Patterns whose messages come into the inbox.
    pub subscriptions: Vec<String>,
    /// Reads of the inbox that wait for a first message, oldest first.
    pub waiters: VecDeque<InboxWaiter>,
    /// Requests (by our correlation id) that no connection has taken yet, by class and asker.
    pub waiting: Fair<u32>,
    pub counters: PeerCounters,
    /// Its place on the direct path, if it has one.
    pub direct: Option<DirectPlace>,
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
            name: spec.name.into(),
            short: spec.short,
            access: spec.access,
            conns: Vec::new(),
            inbox: Fair::default(),
            lost: 0,
            subscriptions: Vec::new(),
            waiters: VecDeque::new(),
            waiting: Fair::default(),
            counters: PeerCounters::default(),
            direct: None,
        }
    }

    fn is_full(&self, bytes: usize, limits: &Limits) -> bool {
        self.inbox.len() >= limits.inbox_messages
            || (!self.inbox.is_empty() && self.inbox.bytes() + bytes > limits.inbox_bytes)
    }

    /// Puts in a message that was addressed to this agent. `false`: the inbox is full.
    pub fn accept_direct(&mut self, from: &Arc<str>, frame: Frame, limits: &Limits) -> bool {
        if self.is_full(frame.wire_len(), limits) {
            return false;
        }
        self.put(from, frame);
        true
    }

    fn put(&mut self, from: &Arc<str>, frame: Frame) {
        let class = (frame.header.flags.get() & flags::PRIORITY_MASK) as usize;
        let (sender, bytes) = (frame.header.source, frame.wire_len());
        self.inbox.push(class, sender, bytes, (from.clone(), frame));
    }

    /// Puts in a topic message; the oldest topic messages of the lowest class make room, direct ones never do.
    /// What was lost goes into `dropped`.
    pub fn accept_topic(
        &mut self,
        from: &Arc<str>,
        frame: Frame,
        limits: &Limits,
        dropped: &mut Vec<Frame>,
    ) -> bool {
        while self.is_full(frame.wire_len(), limits) {
            // A direct message has the agent as its destination, a topic message has none.
            let oldest = self
                .inbox
                .remove_oldest(|(_, old)| old.header.destination.is_bus());
            self.lost += 1;
            self.counters.dropped += 1;
            match oldest {
                Some((_, old)) => dropped.push(old),
                None => {
                    dropped.push(frame);
                    return false;
                }
            }
        }
        self.put(from, frame);
        true
    }

    /// Takes the next message if it is at most `room` bytes in a batch.
    pub fn take_message(&mut self, room: usize) -> Option<(Arc<str>, Frame)> {
        let (name, frame) = self.inbox.peek()?;
        if crate::listing::InboxBatch::entry_len(name, frame) > room {
            return None;
        }
        self.inbox.pop()
    }
}
