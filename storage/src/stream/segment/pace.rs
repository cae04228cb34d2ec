//! Which of two ways is quicker here and now, found out by taking both.
//!
//! One write at a time is quicker by a plain system call on a host with idle cores, and through the ring on one where each of
//! the caller's sleeps may cost it the core (docs/journal). Neither is known beforehand and both change, so each write is
//! timed. The ring has to be quicker by far: what it hands to the kernel's workers is not in its time, and on a host with idle
//! cores the whole is slower when both take as long. Pure; the caller's clock. The other way gets a 128th of the time at most.

use std::time::Duration;

/// Commits between two looks at the other way, if it takes as long as the one in use.
const LOOK_EVERY: u64 = 128;
/// The ring is taken where the call takes so many times as long.
const MARGIN: u64 = 2;
/// A time that is longer than so many means counts as that many: one hiccup is no verdict.
const CLIP: u64 = 4;

/// A way to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `pwritev2` with `RWF_DSYNC`.
    Call,
    /// A write and its sync, linked, through io_uring.
    Ring,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Nanoseconds that each way takes, smoothed; 0: not taken yet.
    means: [u64; 2],
    /// Commits since the other one was looked at.
    since: u64,
}

impl Pace {
    /// The way to take now.
    pub(super) fn choose(&mut self) -> Way {
        let [call, ring] = self.means;
        let (way, mean, other, of_other) = if ring > 0 && call / ring >= MARGIN {
            (Way::Ring, ring, Way::Call, call)
        } else {
            (Way::Call, call, Way::Ring, ring)
        };
        self.since += 1;
        // One that takes n times as long is looked at n times as seldom.
        if mean > 0 && self.since * mean > LOOK_EVERY * of_other {
            self.since = 0;
            return other;
        }
        way
    }

    /// What taking it came to.
    pub(super) fn note(&mut self, way: Way, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let mean = &mut self.means[way as usize];
        *mean = match *mean {
            0 => took,
            mean => mean - mean / 8 + took.min(mean.saturating_mul(CLIP)) / 8,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many commits on a host where the ways take this long; how many went through the ring.
    fn ring_of(pace: &mut Pace, commits: u64, call_us: u64, ring_us: u64) -> u64 {
        let mut ring = 0;
        for _ in 0..commits {
            let way = pace.choose();
            let us = match way {
                Way::Call => call_us,
                Way::Ring => ring_us,
            };
            ring += u64::from(way == Way::Ring);
            pace.note(way, Duration::from_micros(us));
        }
        ring
    }

    #[test]
    fn the_quicker_way_is_taken_and_the_other_looked_at() {
        let mut pace = Pace::default();
        let ring = ring_of(&mut pace, 3200, 100, 130);
        assert!((2..=100).contains(&ring), "{ring}");
        // The host has changed.
        ring_of(&mut pace, 3200, 3000, 250);
        let ring = ring_of(&mut pace, 3200, 3000, 250);
        assert!(ring > 3150, "{ring}");
        // And back.
        ring_of(&mut pace, 20_000, 100, 130);
        let ring = ring_of(&mut pace, 3200, 100, 130);
        assert!(ring <= 100, "{ring}");
    }

    #[test]
    fn looking_at_a_slow_way_costs_a_128th_of_the_time_at_most() {
        let mut pace = Pace::default();
        ring_of(&mut pace, 100, 10_000, 100);
        let commits = 100_000;
        let slow = commits - ring_of(&mut pace, commits, 10_000, 100);
        assert!(
            slow > 0 && slow * 10_000 * 128 <= commits * 100 + 10_000 * 256,
            "{slow}"
        );
    }

    #[test]
    fn a_ring_that_is_a_little_quicker_is_left() {
        let mut pace = Pace::default();
        let ring = ring_of(&mut pace, 3200, 130, 100);
        assert!(ring <= 40, "{ring}");
    }

    #[test]
    fn one_hiccup_is_no_verdict() {
        let mut pace = Pace::default();
        ring_of(&mut pace, 1000, 100, 300);
        pace.note(Way::Call, Duration::from_secs(1));
        assert_eq!(pace.choose(), Way::Call);
    }
}
