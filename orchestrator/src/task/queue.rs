//! Who is next: one lane per user and target, ordered by priority and age.
//!
//! A task's rank is the moment it was queued minus [`AGE_STEP_MS`] for each level of its priority. Waiting therefore
//! counts like priority, one level each step, without bound: whatever keeps arriving, a task of priority 0 is ahead of
//! every task of priority 9 that came more than nine steps after it, so nothing starves. The rank never changes, so
//! the order is a sorted set and needs no ageing pass.

use std::collections::{BTreeMap, BTreeSet};

use super::{Priority, Target, TaskId};

/// Waiting this long is worth one level of priority, in milliseconds.
pub const AGE_STEP_MS: u64 = 60_000;

/// Place in a lane; less is earlier. The id, which grows with time, settles ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(i64, TaskId);

impl Rank {
    pub(super) fn new(priority: Priority, queued_boot_ms: i64, id: TaskId) -> Self {
        let ahead = i64::from(priority.level()) * AGE_STEP_MS.cast_signed();
        Self(queued_boot_ms.saturating_sub(ahead), id)
    }
}

/// Tasks that compete for the same agents.
pub(super) type Lane = (u32, Target);

/// Tasks that wait for an agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    lanes: BTreeMap<Lane, BTreeSet<Rank>>,
}

impl Queue {
    pub(super) fn insert(&mut self, lane: Lane, rank: Rank) {
        self.lanes.entry(lane).or_default().insert(rank);
    }

    pub(super) fn remove(&mut self, lane: &Lane, rank: Rank) {
        if let Some(ranks) = self.lanes.get_mut(lane) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.lanes.remove(lane);
            }
        }
    }

    /// The first of each lane, the most urgent lane first.
    pub(super) fn heads(&self) -> Vec<TaskId> {
        let mut heads: Vec<Rank> = self
            .lanes
            .values()
            .filter_map(|ranks| ranks.first().copied())
            .collect();
        heads.sort_unstable();
        heads.into_iter().map(|Rank(_, id)| id).collect()
    }

    #[cfg(test)]
    pub(super) fn contains(&self, lane: &Lane, rank: Rank) -> bool {
        self.lanes
            .get(lane)
            .is_some_and(|ranks| ranks.contains(&rank))
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.values().map(BTreeSet::len).sum()
    }
}
