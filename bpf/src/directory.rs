//! The directory from cgroup ids to slots, as its one writer has it: the broker.
//!
//! Open addressing with linear probing ([`layout::Place`]). A program may search it at any instant of a change: the slot is
//! stored before the id, a freed place ends no search, and an id is never there twice.

use crate::layout::{DIRECTORY_LEN, DIRECTORY_PROBES, MAX_SLOT, Place};
use crate::mapping::{MapError, Shared, Use};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

const WORDS: usize = size_of::<Place>() / 8;

/// All places that a cgroup id may have are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {DIRECTORY_PROBES} places of cgroup id {cgroup_id} in the kernel plane's directory are taken"
)]
pub struct DirectoryFull {
    pub cgroup_id: u64,
}

/// The writer's view. One per table: two writers would take each other's places.
#[derive(Debug)]
pub struct Directory {
    shared: Shared,
}

impl Directory {
    pub fn map(fd: impl AsFd) -> Result<Self, MapError> {
        let bytes = DIRECTORY_LEN * size_of::<Place>();
        let shared = Shared::map(fd, "DIRECTORY", bytes, 0, Use::Writing)?;
        Ok(Self { shared })
    }

    /// From now on the programs know the cgroup as `slot`'s.
    ///
    /// # Panics
    /// The slot is 0 or above [`MAX_SLOT`], or the id is one that no cgroup has.
    pub fn insert(&self, cgroup_id: u64, slot: u32) -> Result<(), DirectoryFull> {
        assert!((1..=MAX_SLOT).contains(&slot), "slot {slot}");
        assert!(
            cgroup_id != 0 && cgroup_id != Place::FREED,
            "no cgroup's id"
        );
        if let Some(place) = self.find(cgroup_id) {
            self.set_slot(place, slot);
            return Ok(());
        }
        let free = probes(cgroup_id).find(|place| matches!(self.id(*place), 0 | Place::FREED));
        let place = free.ok_or(DirectoryFull { cgroup_id })?;
        self.set_slot(place, slot);
        // SYNC: directory. Pairs with the programs' load of the id, which they make before they load the slot.
        self.shared
            .store(place * WORDS, cgroup_id, Ordering::Release);
        Ok(())
    }

    /// From now on the cgroup is nobody's.
    pub fn remove(&self, cgroup_id: u64) {
        if let Some(place) = self.find(cgroup_id) {
            self.free(place);
        }
    }

    /// Frees all places but those of `kept`: what a former owner left of agents that are no more.
    pub fn retain(&self, kept: impl Fn(u64) -> bool) {
        for place in 0..DIRECTORY_LEN {
            let id = self.id(place);
            if id != 0 && id != Place::FREED && !kept(id) {
                self.free(place);
            }
        }
    }

    /// Whose cgroup it is.
    pub fn slot(&self, cgroup_id: u64) -> Option<u32> {
        let place = self.find(cgroup_id)?;
        Some(self.shared.load(place * WORDS + 1) as u32)
    }

    fn find(&self, cgroup_id: u64) -> Option<usize> {
        probes(cgroup_id)
            .take_while(|place| self.id(*place) != 0)
            .find(|place| self.id(*place) == cgroup_id)
    }

    fn id(&self, place: usize) -> u64 {
        self.shared.load(place * WORDS)
    }

    fn free(&self, place: usize) {
        self.shared
            .store(place * WORDS, Place::FREED, Ordering::Relaxed);
    }

    fn set_slot(&self, place: usize, slot: u32) {
        // The other half of the word stays zero.
        self.shared
            .store(place * WORDS + 1, u64::from(slot), Ordering::Relaxed);
    }
}

fn probes(cgroup_id: u64) -> impl Iterator<Item = usize> {
    let home = Place::home(cgroup_id) as usize;
    (0..DIRECTORY_PROBES as usize).map(move |step| (home + step) & (DIRECTORY_LEN - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::tests::memory;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn empty() -> Directory {
        Directory::map(memory(DIRECTORY_LEN * size_of::<Place>())).expect("map")
    }

    #[test]
    fn a_freed_place_ends_no_search_and_is_used_again() {
        let directory = empty();
        let collide = |n: u64| 5 + n * DIRECTORY_LEN as u64;
        for n in 0..3 {
            directory.insert(collide(n), n as u32 + 1).expect("place");
        }
        directory.remove(collide(0));
        assert_eq!(directory.slot(collide(0)), None);
        assert_eq!(directory.slot(collide(2)), Some(3));
        directory.insert(collide(9), 9).expect("place");
        assert_eq!(directory.id(5), collide(9));
    }

    #[test]
    fn an_id_is_never_there_twice() {
        let directory = empty();
        let collide = |n: u64| 7 + n * DIRECTORY_LEN as u64;
        directory.insert(collide(1), 1).expect("place");
        directory.insert(collide(2), 2).expect("place");
        directory.remove(collide(1));
        directory.insert(collide(2), 3).expect("place");
        directory.remove(collide(2));
        assert_eq!(directory.slot(collide(2)), None);
    }

    #[test]
    fn a_full_run_is_an_error_and_changes_nothing() {
        let directory = empty();
        let collide = |n: u64| 3 + n * DIRECTORY_LEN as u64;
        for n in 0..DIRECTORY_PROBES {
            directory.insert(collide(n.into()), n + 1).expect("place");
        }
        let cgroup_id = collide(DIRECTORY_PROBES.into());
        let full = directory.insert(cgroup_id, 4000);
        assert_eq!(full, Err(DirectoryFull { cgroup_id }));
        assert_eq!(directory.slot(collide(31)), Some(32));
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in prop::collection::vec((any::<bool>(), 1u64..40, 1u32..=MAX_SLOT), 0..200)) {
            let directory = empty();
            let mut model = HashMap::new();
            for (insert, id, slot) in steps {
                // Ids that share homes.
                let id = (id % 4) + (id / 4) * DIRECTORY_LEN as u64 + 1;
                if insert {
                    directory.insert(id, slot).expect("place");
                    model.insert(id, slot);
                } else {
                    directory.remove(id);
                    model.remove(&id);
                }
            }
            for id in (1..5).flat_map(|low| (0..10).map(move |high| low + high * DIRECTORY_LEN as u64)) {
                prop_assert_eq!(directory.slot(id), model.get(&id).copied());
            }
        }
    }
}
