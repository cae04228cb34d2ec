//! What each agent may no longer do, as its one writer has it: the broker.

use crate::layout::{MAX_SLOT, Policy, ROWS, revoked};
use crate::mapping::{MapError, Shared, Use};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

const WORDS: usize = size_of::<Policy>() / 8;

/// The writer's view. A change is in force when the store is visible: within the write buffer's drain.
#[derive(Debug)]
pub struct Policies {
    shared: Shared,
}

impl Policies {
    pub fn map(fd: impl AsFd) -> Result<Self, MapError> {
        let shared = Shared::map(fd, "POLICY", ROWS * size_of::<Policy>(), 0, Use::Writing)?;
        Ok(Self { shared })
    }

    /// Sets what `slot` may no longer do, and which ports stay. The ports are stored first: a program that sees a new bit sees
    /// the ports that go with it.
    ///
    /// # Panics
    /// There is no such slot, or a bit that is none of [`revoked::ALL`].
    pub fn restrict(&self, slot: u32, bits: u32, kept_ports: [u16; 8]) {
        assert!(slot <= MAX_SLOT, "slot {slot}");
        assert!(bits & !revoked::ALL == 0, "bits {bits:#x}");
        let first = slot as usize * WORDS;
        let word = |ports: &[u16]| {
            ports
                .iter()
                .rev()
                .fold(0u64, |word, port| word << 16 | u64::from(*port))
        };
        for (at, ports) in kept_ports.chunks(4).enumerate() {
            self.shared
                .store(first + 1 + at, word(ports), Ordering::Relaxed);
        }
        // SYNC: policy. Pairs with the programs' load of `revoked`, which they make before they load a port.
        self.shared.store(first, u64::from(bits), Ordering::Release);
    }

    /// The row of cgroups that are in no directory: nothing is allowed.
    pub fn close_row_zero(&self) {
        self.restrict(0, revoked::ALL, [0; 8]);
    }

    pub fn revoked(&self, slot: u32) -> u32 {
        self.shared.load(slot as usize * WORDS) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Rows;
    use crate::mapping::tests::memory;

    #[test]
    fn a_restriction_is_the_row_that_programs_read() {
        let fd = memory(ROWS * size_of::<Policy>());
        let policies = Policies::map(&fd).expect("map");
        let rows = Rows::<Policy>::map(&fd, "POLICY", ROWS).expect("map");
        let ports = [1, 2, 3, 4, 5, 6, 7, 65535];
        policies.restrict(MAX_SLOT, revoked::NET, ports);
        let row = rows.get(MAX_SLOT as usize).expect("row");
        assert_eq!((row.revoked, row.kept_ports), (revoked::NET, ports));
        assert_eq!(policies.revoked(MAX_SLOT), revoked::NET);
        policies.close_row_zero();
        assert_eq!(rows.get(0).expect("row").revoked, revoked::ALL);
    }
}
