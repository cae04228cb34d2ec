//! Which refusals are new: the same one is recorded once a minute, however often it happens.
//!
//! Bounded in memory: of an agent that finds ever new things to be refused, a thousand a minute are recorded.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The same refusal is recorded once in this time; the counters see all.
const PERIOD: Duration = Duration::from_secs(60);
/// How many different refusals are remembered for that.
const REMEMBERED: usize = 1024;

/// When which refusal of one agent was last recorded.
#[derive(Debug)]
pub struct News<K = String>(Mutex<HashMap<K, Instant>>);

impl<K> Default for News<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> News<K> {
    /// Whether this refusal was not recorded lately. It then counts as recorded.
    pub fn is_new(&self, refusal: impl Into<K>) -> bool {
        self.is_new_at(refusal.into(), Instant::now())
    }

    fn is_new_at(&self, refusal: K, now: Instant) -> bool {
        // Times by refusal: whatever a panic leaves behind is still right.
        let mut recorded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match recorded.get_mut(&refusal) {
            Some(at) if now.duration_since(*at) < PERIOD => return false,
            Some(at) => {
                *at = now;
                return true;
            }
            None => {}
        }
        if recorded.len() >= REMEMBERED {
            recorded.retain(|_, at| now.duration_since(*at) < PERIOD);
            if recorded.len() >= REMEMBERED {
                return false;
            }
        }
        recorded.insert(refusal, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_refusal_is_new_once_a_minute() {
        let news: News = News::default();
        let start = Instant::now();
        assert!(news.is_new_at("a".into(), start));
        assert!(!news.is_new_at("a".into(), start + PERIOD / 2));
        assert!(news.is_new_at("b".into(), start + PERIOD / 2));
        assert!(news.is_new_at("a".into(), start + PERIOD));
    }

    #[test]
    fn ever_new_refusals_are_forgotten_in_time_and_never_pile_up() {
        let news: News<usize> = News::default();
        let start = Instant::now();
        let new = |at| {
            (0..2 * REMEMBERED)
                .filter(|n| news.is_new_at(*n, at))
                .count()
        };
        assert_eq!(new(start), REMEMBERED);
        assert_eq!(new(start), 0);
        assert_eq!(new(start + PERIOD), REMEMBERED);
    }
}
