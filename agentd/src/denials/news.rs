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
pub struct News<K = String>(Mutex<Remembered<K>>);

#[derive(Debug)]
struct Remembered<K> {
    at: HashMap<K, Instant>,
    /// There is no room before this.
    full_until: Option<Instant>,
}

impl<K> Default for News<K> {
    fn default() -> Self {
        Self(Mutex::new(Remembered {
            at: HashMap::new(),
            full_until: None,
        }))
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
        match recorded.at.get_mut(&refusal) {
            Some(at) if now.duration_since(*at) < PERIOD => return false,
            Some(at) => {
                *at = now;
                return true;
            }
            None => {}
        }
        if recorded.full_until.is_some_and(|until| now < until) {
            return false;
        }
        if recorded.at.len() >= REMEMBERED {
            recorded.at.retain(|_, at| now.duration_since(*at) < PERIOD);
            // Looked for once in a while, not with each refusal of a flood.
            let room_at = recorded.at.values().min().map(|oldest| *oldest + PERIOD);
            recorded.full_until = room_at.filter(|_| recorded.at.len() >= REMEMBERED);
            if recorded.full_until.is_some() {
                return false;
            }
        }
        recorded.at.insert(refusal, now);
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
        assert_eq!(new(start + PERIOD / 2), 0);
        assert_eq!(new(start + PERIOD), REMEMBERED);
    }
}
