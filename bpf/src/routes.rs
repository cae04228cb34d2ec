//! Rights on the direct path between agents, as their one writer has them: the broker.
//!
//! Two agents are named by their addresses, never by slots alone: a right that was asked for
//! somebody who is gone is refused here, and a frame to somebody who is gone by the program. A
//! right is one bit; taking it back is one store.

use crate::layout::route::{
    CREDIT, Flow, Grant, SLOTS, Traffic, WORDS, address, cgroup_of, slot_of,
};
use crate::mapping::{MapError, Shared, Use};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

const GRANT_WORDS: usize = size_of::<Grant>() / 8;
/// Word of [`Grant::credit`] (its low half), and the first of [`Grant::to`].
const CREDIT_WORD: usize = 1;
const TO_WORD: usize = 2;

/// Why a right was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteRefused {
    #[error("no agent has address {0:#x} on the direct path; it has ended, or its slot is above {max}", max = SLOTS - 1)]
    Nobody(u64),
    #[error("an agent has no direct path to itself")]
    Oneself,
}

/// The writer's view of grants and flows.
#[derive(Debug)]
pub struct Routes {
    grants: Shared,
    flows: Shared,
    traffic: Shared,
}

impl Routes {
    pub fn map(grants: impl AsFd, flows: impl AsFd, traffic: impl AsFd) -> Result<Self, MapError> {
        let map = |fd: std::os::fd::BorrowedFd<'_>, table, row| {
            Shared::map(fd, table, SLOTS * row, 0, Use::Writing)
        };
        Ok(Self {
            grants: map(grants.as_fd(), "ROUTE_GRANTS", size_of::<Grant>())?,
            flows: map(flows.as_fd(), "ROUTE_FLOWS", size_of::<Flow>())?,
            traffic: map(traffic.as_fd(), "ROUTE_TRAFFIC", size_of::<Traffic>())?,
        })
    }

    /// Gives `slot` to the agent of this cgroup, without a right to anybody; its address. `None` for slots that take no part.
    ///
    /// Called before the agent is in the directory. For one that has the slot already, as after a restart, nothing changes.
    pub fn begin(&self, slot: u32, cgroup_id: u64) -> Option<u64> {
        if slot == 0 || slot as usize >= SLOTS {
            return None;
        }
        let address = address(slot, cgroup_id);
        let first = slot as usize * GRANT_WORDS;
        if self.grants.load(first) == address {
            return Some(address);
        }
        self.end(slot);
        for (table, row) in [
            (&self.flows, size_of::<Flow>()),
            (&self.traffic, size_of::<Traffic>()),
        ] {
            let words = row / 8;
            for word in slot as usize * words..(slot as usize + 1) * words {
                table.store(word, 0, Ordering::Relaxed);
            }
        }
        self.grants
            .store(first + CREDIT_WORD, u64::from(CREDIT), Ordering::Relaxed);
        // SYNC: grant. Programs look at a row only after its address.
        self.grants.store(first, address, Ordering::Release);
        Some(address)
    }

    /// Takes every right that `slot` has, and every right to it.
    pub fn end(&self, slot: u32) {
        let at = slot as usize;
        if at == 0 || at >= SLOTS {
            return;
        }
        let first = at * GRANT_WORDS;
        // SYNC: grant. From here on nobody's frames are to this slot, and none of its own are from anybody.
        self.grants.store(first, 0, Ordering::Release);
        for word in 0..WORDS {
            self.grants
                .store(first + TO_WORD + word, 0, Ordering::Relaxed);
        }
        for row in 1..SLOTS {
            self.set(row, at, Right::No);
        }
    }

    /// Ends every slot whose agent's cgroup is not to stay.
    pub fn retain(&self, stays: impl Fn(u64) -> bool) {
        for slot in 1..SLOTS as u32 {
            let has_ended = self
                .address(slot)
                .is_some_and(|address| !stays(cgroup_of(address)));
            if has_ended {
                self.end(slot);
            }
        }
    }

    /// Lets `from` send to `to`, or no longer.
    pub fn allow(&self, from: u64, to: u64, right: Right) -> Result<(), RouteRefused> {
        for address in [from, to] {
            if address == 0 || self.address(slot_of(address)) != Some(address) {
                return Err(RouteRefused::Nobody(address));
            }
        }
        if from == to {
            return Err(RouteRefused::Oneself);
        }
        self.set(slot_of(from) as usize, slot_of(to) as usize, right);
        Ok(())
    }

    /// Who has `slot`.
    pub fn address(&self, slot: u32) -> Option<u64> {
        let at = slot as usize;
        let address = (at < SLOTS).then(|| self.grants.load(at * GRANT_WORDS))?;
        (address != 0).then_some(address)
    }

    fn set(&self, from: usize, to: usize, right: Right) {
        let word = from * GRANT_WORDS + TO_WORD + to / 64;
        let (before, bit) = (self.grants.load(word), 1 << (to % 64));
        let after = match right {
            Right::Yes => before | bit,
            Right::No => before & !bit,
        };
        if after != before {
            self.grants.store(word, after, Ordering::Release);
        }
    }
}

/// Whether an agent may send to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    Yes,
    No,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::tests::memory;

    fn routes() -> Routes {
        Routes::map(
            memory(SLOTS * size_of::<Grant>()),
            memory(SLOTS * size_of::<Flow>()),
            memory(SLOTS * size_of::<Traffic>()),
        )
        .expect("map")
    }

    fn may(routes: &Routes, from: u64, to: u64) -> bool {
        let word = slot_of(from) as usize * GRANT_WORDS + TO_WORD + slot_of(to) as usize / 64;
        routes.grants.load(word) & (1 << (slot_of(to) % 64)) != 0
    }

    #[test]
    fn an_end_takes_the_rights_to_and_of_a_slot_and_leaves_the_others() {
        let routes = routes();
        let [a, b, c] = [(1, 11), (70, 12), (1023, 13)]
            .map(|(slot, cgroup)| routes.begin(slot, cgroup).expect("takes part"));
        for (from, to) in [(a, b), (b, a), (a, c), (c, b)] {
            routes.allow(from, to, Right::Yes).expect("both are there");
        }
        routes.end(70);
        assert!(may(&routes, a, c));
        assert!(
            ![(a, b), (b, a), (c, b)]
                .into_iter()
                .any(|(from, to)| may(&routes, from, to))
        );
        let next = routes.begin(70, 14).expect("takes part");
        assert_ne!(next, b);
        assert_eq!(routes.allow(a, b, Right::Yes), Err(RouteRefused::Nobody(b)));
        assert!(
            !may(&routes, a, next),
            "a right to the former is none to the next"
        );
    }

    #[test]
    fn an_agent_that_is_there_keeps_its_rights_when_it_begins_again() {
        let routes = routes();
        let a = routes.begin(1, 11).expect("takes part");
        let b = routes.begin(2, 12).expect("takes part");
        routes.allow(a, b, Right::Yes).expect("both are there");
        assert_eq!(routes.begin(1, 11), Some(a));
        assert!(may(&routes, a, b));
        routes.allow(a, b, Right::No).expect("both are there");
        assert!(!may(&routes, a, b));
    }

    #[test]
    fn agents_whose_cgroups_are_gone_are_ended() {
        let routes = routes();
        let a = routes.begin(1, 11).expect("takes part");
        let b = routes.begin(2, 12 << 32).expect("takes part");
        routes.allow(b, a, Right::Yes).expect("both are there");
        routes.retain(|id| id == 12 << 32);
        assert_eq!((routes.address(1), routes.address(2)), (None, Some(b)));
        assert!(!may(&routes, b, a));
    }

    #[test]
    fn slots_beyond_the_table_and_oneself_are_refused() {
        let routes = routes();
        assert_eq!(routes.begin(SLOTS as u32, 1), None);
        assert_eq!(routes.begin(0, 1), None);
        routes.end(5000);
        let a = routes.begin(1, 11).expect("takes part");
        assert_eq!(routes.allow(a, a, Right::Yes), Err(RouteRefused::Oneself));
        assert_eq!(routes.allow(0, a, Right::Yes), Err(RouteRefused::Nobody(0)));
    }
}
