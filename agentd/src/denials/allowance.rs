//! How many refusals a source may be read of now: ten thousand a second, whoever refuses how much.
//!
//! What was not used is kept for a fifth of a second, so a source that never brings more than that rate is never held up, however
//! late it is read; a flood costs the daemon the rate and no more. Takes the time as an argument.

use std::time::{Duration, Instant};

/// Refusals told in a second.
const RATE: u32 = 10_000;
/// Kept at most.
const DEPTH: u32 = RATE / 5;
/// Waited for at least, once there are none: a flood wakes the daemon a hundred times a second.
const WORTH_WAKING: u32 = RATE / 100;
const EACH: Duration = Duration::from_nanos(1_000_000_000 / RATE as u64);

#[derive(Debug)]
pub struct Allowance {
    left: u32,
    /// Until when `left` counts.
    since: Instant,
}

impl Allowance {
    pub fn new(now: Instant) -> Self {
        Self {
            left: DEPTH,
            since: now,
        }
    }

    /// How many may be read now.
    pub fn at(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.since);
        let gained = passed.as_nanos() / EACH.as_nanos();
        match u32::try_from(gained) {
            Ok(gained) if gained < DEPTH - self.left => {
                self.left += gained;
                self.since += EACH * gained;
            }
            _ => {
                self.left = DEPTH;
                self.since = now;
            }
        }
        self.left as usize
    }

    pub fn spend(&mut self, read: usize) {
        let read = u32::try_from(read).unwrap_or(u32::MAX);
        self.left = self.left.saturating_sub(read);
    }

    /// When it is worth while to read again after [`Self::at`] gave none.
    pub fn again(&self) -> Instant {
        self.since + EACH * WORTH_WAKING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_to_the_rate_is_never_held_up() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut now = start;
        // Each tenth of a second the reader is late, and finds all that has come since.
        for _ in 0..100 {
            now += Duration::from_millis(100);
            assert!(allowance.at(now) >= 1000);
            allowance.spend(1000);
        }
    }

    #[test]
    fn a_flood_is_read_at_the_rate() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let (mut now, mut read) = (start, 0);
        let end = start + Duration::from_secs(10);
        while now < end {
            match allowance.at(now) {
                0 => now = allowance.again(),
                some => {
                    allowance.spend(some);
                    read += some;
                }
            }
        }
        let most = (RATE * 10 + DEPTH) as usize;
        assert!((RATE as usize * 10..=most).contains(&read), "{read}");
    }

    #[test]
    fn nothing_is_saved_up_for_longer_than_its_depth() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        assert_eq!(
            allowance.at(start + Duration::from_secs(3600)),
            DEPTH as usize
        );
        allowance.spend(usize::MAX);
        assert_eq!(allowance.at(start + Duration::from_secs(3600)), 0);
    }
}
