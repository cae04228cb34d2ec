//! What a queue shows to whoever looks in: bounds, what is where, what was counted. Read-only.

#![forbid(unsafe_code)]

use crate::message::QueueSpec;

use super::super::{Descriptor, Router};
use super::QueueCounters;

/// One work queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStatus {
    pub number: u32,
    pub uid: u32,
    pub name: String,
    pub spec: QueueSpec,
    /// May be delivered now.
    pub waiting: u32,
    /// Was given back, and waits for its time.
    pub delayed: u32,
    /// In consumers' hands.
    pub in_hand: u32,
    pub dead: u32,
    /// Of all but the dead letters, and of those.
    pub bytes: u64,
    pub dead_bytes: u64,
    /// Names of the consuming agents, one for each connection.
    pub consumers: Vec<String>,
    /// Producers that wait for room.
    pub paused: u32,
    pub counters: QueueCounters,
}

impl<F: Descriptor> Router<F> {
    /// The queues of a user, or of all, by name.
    pub fn queues(&self, uid: Option<u32>) -> Vec<QueueStatus> {
        let mut list: Vec<QueueStatus> = self
            .queues
            .iter()
            .filter(|(_, queue)| uid.is_none_or(|uid| queue.uid == uid))
            .map(|(number, queue)| QueueStatus {
                number: *number,
                uid: queue.uid,
                name: queue.name.to_string(),
                spec: *queue.store.spec(),
                waiting: queue.store.waiting(),
                delayed: queue.store.delayed(),
                in_hand: queue.store.in_hand(),
                dead: queue.store.dead().0,
                bytes: queue.store.live().1,
                dead_bytes: queue.store.dead().1,
                consumers: queue
                    .store
                    .consumers
                    .iter()
                    .filter_map(|consumer| self.conns.get(&consumer.conn))
                    .map(|conn| self.name_of(conn.peer).to_string())
                    .collect(),
                paused: queue.paused.len() as u32,
                counters: queue.store.counters,
            })
            .collect();
        list.sort_by(|a, b| (a.uid, &a.name).cmp(&(b.uid, &b.name)));
        list
    }
}
