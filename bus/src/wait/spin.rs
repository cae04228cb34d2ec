//! How long to look before sleeping, learned from how long the last waits were.
//!
//! The rule of the kernel's own halt polling (`halt_poll_ns` of KVM): a wait that was over soon after we
//! had fallen asleep makes the budget longer, a wait so long that looking could not have paid makes it
//! shorter. Pure.

#![forbid(unsafe_code)]

use std::time::Duration;

/// The longest look: about the price of a sleep and a wake-up between two CPUs, so that in the worst case looking
/// doubles what waiting costs.
const BUDGET_MAX: Duration = Duration::from_micros(20);
/// The first step up from nothing.
const BUDGET_MIN: Duration = Duration::from_micros(2);

#[derive(Debug)]
pub(crate) struct Spin {
    budget: Duration,
}

impl Default for Spin {
    fn default() -> Self {
        Self { budget: BUDGET_MAX }
    }
}

impl Spin {
    /// How long to look in the next wait.
    pub fn budget(&self) -> Duration {
        self.budget
    }

    /// A wait is over that had to sleep, and took `waited` from its first look.
    pub fn slept(&mut self, waited: Duration) {
        self.budget = if waited > BUDGET_MAX {
            let half = self.budget / 2;
            if half < BUDGET_MIN {
                Duration::ZERO
            } else {
                half
            }
        } else {
            (self.budget * 2).clamp(BUDGET_MIN, BUDGET_MAX)
        };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn long_waits_end_looking_and_short_ones_bring_it_back() {
        let mut spin = Spin::default();
        for _ in 0..10 {
            spin.slept(BUDGET_MAX * 2);
        }
        assert_eq!(spin.budget(), Duration::ZERO);
        spin.slept(BUDGET_MAX);
        assert_eq!(spin.budget(), BUDGET_MIN);
        for _ in 0..10 {
            spin.slept(BUDGET_MIN);
        }
        assert_eq!(spin.budget(), BUDGET_MAX);
    }
}
