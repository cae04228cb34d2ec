//! What the router knows of its peers, for whoever looks in: names, what waits, what was counted.
//!
//! Read-only, under the same lock as everything else of the router; a listing is as long as there are peers. What
//! two agents exchange in shared memory is not here: see [`crate::shm::counters`].

use crate::channel::Tier;
use crate::frame::PeerId;
use crate::listing::Liveness;

use super::direct::DirectPlace;
use super::{ConnKind, Descriptor, Now, Router};

/// Messages that went through the router, by what one peer had to do with them. Since it came; never reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounters {
    /// Requests, answers and events of its own that were accepted, and their payload.
    pub sent: u64,
    pub sent_bytes: u64,
    /// Messages that were put into its queues, and their payload.
    pub received: u64,
    pub received_bytes: u64,
    /// Messages of its own that the bus refused.
    pub refused: u64,
    /// Topic messages and notices for which it was too slow.
    pub dropped: u64,
}

impl PeerCounters {
    pub(super) fn count_received(&mut self, messages: u64, bytes: usize) {
        self.received += messages;
        self.received_bytes += messages * bytes as u64;
    }
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub id: PeerId,
    pub uid: u32,
    pub name: String,
    pub short: u32,
    pub tier: Tier,
    pub liveness: Liveness,
    /// Something of it takes requests.
    pub serving: bool,
    /// Of its own processes; the daemon's ports left out.
    pub connections: usize,
    /// Pairs of rings to and from the bus.
    pub routed: usize,
    /// Messages in its inbox.
    pub queued: usize,
    /// Requests that nothing of it has taken yet.
    pub waiting: usize,
    /// Patterns that it follows.
    pub subscriptions: usize,
    pub counters: PeerCounters,
    /// Where it is on the direct path.
    pub direct: Option<DirectPlace>,
}

impl<F: Descriptor> Router<F> {
    /// Everybody on the bus, by user and name.
    pub fn peers(&self, now: Now) -> Vec<PeerStatus> {
        let mut peers: Vec<PeerStatus> = self
            .peers
            .iter()
            .map(|(id, peer)| PeerStatus {
                id: *id,
                uid: peer.uid,
                name: peer.name.to_string(),
                short: peer.short,
                tier: self.tier(*id),
                liveness: self.liveness(peer, now),
                serving: self.is_serving(peer),
                connections: peer
                    .conns
                    .iter()
                    .filter(|conn| self.conns[conn].kind == ConnKind::Socket)
                    .count(),
                routed: self.routes_of(*id).count(),
                queued: peer.inbox.len(),
                waiting: peer.waiting.len(),
                subscriptions: peer.subscriptions.len()
                    + peer
                        .conns
                        .iter()
                        .map(|conn| self.conns[conn].subscriptions.len())
                        .sum::<usize>(),
                counters: peer.counters,
                direct: peer.direct,
            })
            .collect();
        peers.sort_by(|a, b| (a.uid, &a.name).cmp(&(b.uid, &b.name)));
        peers
    }

    /// Open connections of all peers, the daemon's ports among them.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }
}
