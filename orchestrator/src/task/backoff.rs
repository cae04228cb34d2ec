//! When to try again: exponential back-off with full jitter.
//!
//! The pause before attempt *n* + 1 is drawn evenly from 0 to `min(cap, base × 2ⁿ⁻¹)`, so that agents which failed
//! together don't come back together ("Exponential Backoff And Jitter", Brooker, 2015). Pure: the draw is an argument.

use serde::{Deserialize, Serialize};

/// Most retries a task may ask for.
pub const MAX_RETRIES: u32 = 100;

/// How often a task is tried again, and with which pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Attempts after the first.
    pub retries: u32,
    /// Upper bound of the first pause, in milliseconds.
    pub base_ms: u64,
    /// Upper bound of every pause, in milliseconds.
    pub cap_ms: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            retries: 2,
            base_ms: 1_000,
            cap_ms: 300_000,
        }
    }
}

impl Retry {
    /// Attempts in all.
    pub fn attempts(&self) -> u32 {
        self.retries.saturating_add(1)
    }

    /// The pause after attempt `attempt` (the first is 1), with `jitter` drawn evenly from all of `u64`.
    pub fn pause_ms(&self, attempt: u32, jitter: u64) -> u64 {
        let doublings = attempt.saturating_sub(1).min(62);
        let most = self
            .base_ms
            .saturating_mul(1 << doublings)
            .min(self.cap_ms.max(self.base_ms));
        // Even over 0..=most, without the bias of a remainder.
        let drawn = (u128::from(jitter) * (u128::from(most) + 1)) >> 64;
        u64::try_from(drawn).unwrap_or(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap() {
        let retry = Retry {
            retries: 9,
            base_ms: 100,
            cap_ms: 1_000,
        };
        let longest: Vec<u64> = (1..=6).map(|n| retry.pause_ms(n, u64::MAX)).collect();
        assert_eq!(longest, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!(retry.pause_ms(6, 0), 0);
        assert_eq!(retry.pause_ms(u32::MAX, u64::MAX), 1_000);
    }

    #[test]
    fn jitter_is_spread_over_the_whole_pause() {
        let retry = Retry {
            retries: 1,
            base_ms: 999,
            cap_ms: 999,
        };
        for quarter in 0..4u64 {
            let pause = retry.pause_ms(1, quarter << 62);
            assert_eq!(pause, quarter * 250);
        }
    }
}
