//! Who gets a topic's messages: worked out once from all subscriptions, and kept until one of them changes.
//!
//! A user's audiences are forgotten whenever one of its agents subscribes, unsubscribes, goes, loses a connection or a
//! right, so what is kept here is never older than the subscriptions. At most [`KEPT`] topics of a user have one;
//! the next begins anew. Fails towards the publisher, with a status and a text.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;

use crate::channel::Overflow;
use crate::frame::{Frame, PeerId};
use crate::message::Status;
use crate::topic::matches;

use super::dispatch::Refusal;
use super::{CloseReason, ConnId, Descriptor, Effects, Router};

/// Topics of a user whose audiences are kept.
const KEPT: usize = 1024;

/// By topic.
pub(super) type Audiences = HashMap<Arc<str>, Arc<[Reader]>>;

/// One place where copies go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader {
    peer: PeerId,
    to: To,
}

#[derive(Clone, Copy, Debug)]
enum To {
    Inbox,
    Conn(ConnId, Overflow),
}

impl<F: Descriptor> Router<F> {
    /// A subscription of that user has changed.
    pub(super) fn audiences_changed(&mut self, uid: u32) {
        if let Some(space) = self.spaces.get_mut(&uid) {
            space.audiences.clear();
        }
    }

    fn audience(&mut self, uid: u32, topic: &str) -> Arc<[Reader]> {
        let kept = self.spaces.get(&uid);
        if let Some(audience) = kept.and_then(|space| space.audiences.get(topic)) {
            return audience.clone();
        }
        let audience: Arc<[Reader]> = self.readers(uid, topic).into();
        let word = self.words.get(topic);
        let audiences = &mut self.space(uid).audiences;
        if audiences.len() >= KEPT {
            audiences.clear();
        }
        audiences.insert(word, audience.clone());
        audience
    }

    /// One place per connection and per inbox, however many of its patterns match.
    fn readers(&self, uid: u32, topic: &str) -> Vec<Reader> {
        let mut readers = Vec::new();
        for (id, peer) in self.peers.iter().filter(|(_, peer)| peer.uid == uid) {
            let covers = |pattern: &String| matches(pattern, topic);
            if peer.subscriptions.iter().any(covers) {
                readers.push(Reader {
                    peer: *id,
                    to: To::Inbox,
                });
            }
            for conn in &peer.conns {
                let held = &self.conns[conn].subscriptions;
                if let Some(held) = held.iter().find(|held| covers(&held.pattern)) {
                    readers.push(Reader {
                        peer: *id,
                        to: To::Conn(*conn, held.overflow),
                    });
                }
            }
        }
        readers
    }

    /// Subscriptions that cover a topic now.
    pub(super) fn subscribers(&self, uid: u32, topic: &str) -> u32 {
        self.readers(uid, topic).len() as u32
    }

    /// Puts a topic message into every queue of `uid` that follows it, the sender's own left out. How many that were, and
    /// who of them wants the publisher to pause.
    pub(super) fn spread(
        &mut self,
        from: PeerId,
        uid: u32,
        topic: &str,
        frame: &Frame,
        from_name: &Arc<str>,
        fx: &mut Effects<F>,
    ) -> (u32, Vec<ConnId>) {
        let audience = self.audience(uid, topic);
        let mut receivers = 0;
        let mut paused = Vec::new();
        let mut dropped = std::mem::take(&mut self.lost);
        for Reader { peer: id, to } in audience.iter().filter(|reader| reader.peer != from) {
            let Some(peer) = self.peers.get_mut(id) else {
                continue;
            };
            let mut taken = 0;
            match to {
                To::Inbox => {
                    let copy = frame.clone();
                    taken +=
                        u32::from(peer.accept_topic(from_name, copy, &self.limits, &mut dropped));
                    if !peer.waiters.is_empty() {
                        self.roused.push(*id);
                    }
                }
                To::Conn(conn_id, overflow) => {
                    let Some(conn) = self.conns.get_mut(conn_id) else {
                        continue;
                    };
                    let mut copy = frame.clone();
                    copy.header.destination = *id;
                    let lost = dropped.len();
                    if conn.offer(copy, *overflow, &self.limits, &mut dropped) {
                        taken += 1;
                    } else if *overflow == Overflow::Disconnect {
                        fx.close.push((*conn_id, CloseReason::SlowSubscriber));
                    }
                    fx.wake.push(*conn_id);
                    peer.counters.dropped += (dropped.len() - lost) as u64;
                    if *overflow == Overflow::Block && conn.is_filling(&self.limits) {
                        paused.push(*conn_id);
                    }
                }
            }
            peer.counters
                .count_received(taken.into(), frame.payload.len());
            receivers += taken;
        }
        for lost in dropped.drain(..) {
            self.count_dropped(uid, &lost);
        }
        self.lost = dropped;
        (receivers, paused)
    }

    /// A blocking subscriber that is full takes nothing more: then nobody is given anything, and the publisher hears.
    pub(super) fn check_blocking(
        &mut self,
        from: PeerId,
        uid: u32,
        topic: &str,
        bytes: usize,
    ) -> Result<(), Refusal> {
        if self.blocking == 0 {
            return Ok(());
        }
        let audience = self.audience(uid, topic);
        for Reader { peer, to } in audience.iter().filter(|reader| reader.peer != from) {
            let To::Conn(id, Overflow::Block) = to else {
                continue;
            };
            let full = |id| {
                let conn = self.conns.get(id);
                conn.is_some_and(|conn| conn.is_full(bytes, &self.limits))
            };
            if full(id) {
                let text = format!(
                    "{} follows {topic}, wants every message and reads too slowly (connection {})",
                    self.name_of(*peer),
                    id.0
                );
                return Err(Refusal::new(Status::QUEUE_FULL, text));
            }
        }
        Ok(())
    }
}
