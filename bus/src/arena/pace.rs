//! Which stores to write payloads with: learned from how fast they go.
//!
//! While a receiver waits for each message, stores through the cache reach it soonest. While it is behind, it
//! depends on where the two cores are: with a cache in common, the cached way is up to twice as fast; without one,
//! past the cache is two to three times as fast (both seen on one and the same virtual machine, an hour apart). So
//! the sender measures: it goes by the faster one, and now and then tries the other.
//!
//! Pure: time is a parameter.

#![forbid(unsafe_code)]

use std::time::Duration;

use crate::shm::copy::Stores;

/// A measurement ends after so many bytes.
const WINDOW_BYTES: u64 = 4 << 20;
/// After so many windows the way that lost is tried again: it costs at most a few windows in a hundred.
const TRY_EVERY: u32 = 64;
/// Windows that are not measured: memory is touched for the first time.
const COLD: u32 = 1;

/// What is known of both ways.
#[derive(Debug)]
pub(crate) struct Pace {
    stores: Stores,
    /// When the current window began and what has been sent in it; `None` while the receiver is not behind.
    window: Option<(Duration, u64)>,
    /// Bytes per millisecond, when tried last.
    cached: Option<u64>,
    streaming: Option<u64>,
    windows: u32,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            stores: Stores::Cached,
            window: None,
            cached: None,
            streaming: None,
            windows: 0,
        }
    }

    /// Says at `now` (from any fixed moment) that `bytes` have been sent since the last call, and whether the receiver
    /// is behind; answers how to go on.
    pub(crate) fn note(&mut self, now: Duration, bytes: u64, behind: bool) -> Stores {
        if !behind {
            self.window = None;
            return Stores::Cached;
        }
        let Some((since, sent)) = self.window else {
            self.window = Some((now, 0));
            return self.stores;
        };
        let sent = sent + bytes;
        if sent < WINDOW_BYTES {
            self.window = Some((since, sent));
            return self.stores;
        }
        let micros = now.saturating_sub(since).as_micros().max(1);
        let rate = u64::try_from(u128::from(sent) * 1000 / micros).unwrap_or(u64::MAX);
        self.window = Some((now, 0));
        self.windows += 1;
        match self.stores {
            _ if self.windows <= COLD => return self.stores,
            Stores::Cached => self.cached = Some(rate),
            Stores::Streaming => self.streaming = Some(rate),
        }
        self.stores = self.choose();
        self.stores
    }

    fn choose(&self) -> Stores {
        let (Some(cached), Some(streaming)) = (self.cached, self.streaming) else {
            // What has not been tried is next.
            return if self.cached.is_none() {
                Stores::Cached
            } else {
                Stores::Streaming
            };
        };
        // A tenth is noise, and the cached way also serves a receiver that catches up.
        let streaming_wins = streaming > cached + cached / 10;
        let try_other = self.windows.is_multiple_of(TRY_EVERY);
        if streaming_wins != try_other {
            Stores::Streaming
        } else {
            Stores::Cached
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Sends with the given rates (bytes per ms) and says how many windows each way had.
    fn run(cached: u64, streaming: u64, windows: usize) -> (usize, usize) {
        let (mut pace, mut now, mut counts) = (Pace::new(), Duration::ZERO, (0, 0));
        let mut stores = pace.note(now, 0, true);
        for _ in 0..windows {
            let rate = match stores {
                Stores::Cached => {
                    counts.0 += 1;
                    cached
                }
                Stores::Streaming => {
                    counts.1 += 1;
                    streaming
                }
            };
            now += Duration::from_micros(WINDOW_BYTES * 1000 / rate);
            stores = pace.note(now, WINDOW_BYTES, true);
        }
        counts
    }

    #[test]
    fn the_faster_way_is_taken_and_the_other_is_tried_now_and_then() {
        let (cached, streaming) = run(5_000_000, 13_000_000, 320);
        assert!((320 / 64..10).contains(&cached), "{cached}");
        assert_eq!(cached + streaming, 320);
        // Nearly alike: through the cache.
        for (cached, streaming) in [(30_000_000, 13_000_000), (13_000_000, 14_000_000)] {
            let (_, tried) = run(cached, streaming, 320);
            assert!((320 / 64..10).contains(&tried), "{tried}");
        }
    }

    #[test]
    fn a_receiver_that_waits_gets_cached_stores_at_once() {
        let mut pace = Pace::new();
        for window in 0..3u64 {
            pace.note(Duration::from_millis(window), WINDOW_BYTES, true);
        }
        assert_eq!(
            pace.note(Duration::from_millis(4), WINDOW_BYTES, true),
            pace.stores
        );
        assert_eq!(
            pace.note(Duration::from_millis(5), 1, false),
            Stores::Cached
        );
        assert!(pace.window.is_none(), "what comes next is measured anew");
    }

    #[test]
    fn what_changes_is_noticed() {
        let mut pace = Pace::new();
        let mut now = Duration::ZERO;
        let mut stores = pace.note(now, 0, true);
        for window in 0..200 {
            // The cores part after a while.
            let cached = if window < 100 { 20_000 } else { 2_000 };
            let rate = if stores == Stores::Cached {
                cached
            } else {
                10_000
            };
            now += Duration::from_micros(WINDOW_BYTES / rate);
            stores = pace.note(now, WINDOW_BYTES, true);
        }
        assert_eq!(stores, Stores::Streaming);
    }
}
