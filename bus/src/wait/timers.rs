//! Deadlines of a waiter: one-shot and periodic, by CLOCK_MONOTONIC ([`Instant`]).
//!
//! Pure: the present is a parameter. Memory is that of the timers alive, times two, whatever is started and
//! cancelled; a periodic timer allocates nothing after its start.

#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// Names a timer of one waiter. Never reused by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TimerToken(u64);

/// A timer that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    pub timer: TimerToken,
    /// Periods that have passed since it was last reported, 1 or more; of a one-shot timer 1.
    pub times: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Timers {
    /// Soonest first. Cancelled ones stay until they come up or are too many.
    heap: BinaryHeap<Reverse<(Instant, TimerToken)>>,
    /// By token, so that the newest are last.
    alive: Vec<(TimerToken, Option<Duration>)>,
    next: u64,
}

impl Timers {
    /// `period` must not be zero.
    pub fn start(&mut self, at: Instant, period: Option<Duration>) -> TimerToken {
        debug_assert_ne!(period, Some(Duration::ZERO));
        let timer = TimerToken(self.next);
        self.next += 1;
        self.alive.push((timer, period));
        self.heap.push(Reverse((at, timer)));
        timer
    }

    /// `false`: it is over, or was never there.
    pub fn cancel(&mut self, timer: TimerToken) -> bool {
        let Some(at) = self.find(timer) else {
            return false;
        };
        self.alive.remove(at);
        if self.heap.len() > 2 * self.alive.len() + 16 {
            let alive = &self.alive;
            self.heap
                .retain(|Reverse((_, timer))| position(alive, *timer).is_some());
        }
        true
    }

    /// When the next one is due.
    pub fn next_deadline(&mut self) -> Option<Instant> {
        loop {
            let Reverse((at, timer)) = *self.heap.peek()?;
            if self.find(timer).is_some() {
                return Some(at);
            }
            self.heap.pop();
        }
    }

    /// The soonest that is due at `now`. A periodic one stays on its grid: it is started again for the first
    /// multiple of its period that is still to come.
    pub fn pop_due(&mut self, now: Instant) -> Option<Expired> {
        let at = self.next_deadline()?;
        if at > now {
            return None;
        }
        let Reverse((_, timer)) = self.heap.pop()?;
        let index = self.find(timer)?;
        let Some(period) = self.alive[index].1 else {
            self.alive.remove(index);
            return Some(Expired { timer, times: 1 });
        };
        let late = now.duration_since(at).as_nanos() / period.as_nanos();
        let times = u64::try_from(late).unwrap_or(u64::MAX).saturating_add(1);
        let again = u32::try_from(times)
            .ok()
            .and_then(|times| period.checked_mul(times))
            .and_then(|ahead| at.checked_add(ahead))
            // More periods than a u32 counts were missed: the grid starts anew.
            .or_else(|| now.checked_add(period));
        if let Some(again) = again {
            self.heap.push(Reverse((again, timer)));
        }
        Some(Expired { timer, times })
    }

    pub fn is_empty(&self) -> bool {
        self.alive.is_empty()
    }

    fn find(&self, timer: TimerToken) -> Option<usize> {
        position(&self.alive, timer)
    }
}

fn position(alive: &[(TimerToken, Option<Duration>)], timer: TimerToken) -> Option<usize> {
    alive.binary_search_by_key(&timer, |(token, _)| *token).ok()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn timers_come_in_the_order_of_their_deadlines() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let late = timers.start(start + ms(20), None);
        let soon = timers.start(start + ms(10), None);
        assert_eq!(timers.pop_due(start), None);
        assert_eq!(timers.next_deadline(), Some(start + ms(10)));
        let expired = |timer| Some(Expired { timer, times: 1 });
        assert_eq!(timers.pop_due(start + ms(30)), expired(soon));
        assert_eq!(timers.pop_due(start + ms(30)), expired(late));
        assert_eq!(timers.pop_due(start + ms(30)), None);
        assert!(timers.is_empty());
        assert!(!timers.cancel(soon), "it is over");
    }

    #[test]
    fn a_periodic_timer_counts_what_it_missed_and_keeps_its_grid() {
        let start = Instant::now();
        let mut timers = Timers::default();
        let timer = timers.start(start + ms(10), Some(ms(10)));
        let expired = |times| Some(Expired { timer, times });
        assert_eq!(timers.pop_due(start + ms(10)), expired(1));
        assert_eq!(timers.pop_due(start + ms(10)), None);
        assert_eq!(timers.pop_due(start + ms(57)), expired(4));
        assert_eq!(timers.next_deadline(), Some(start + ms(60)));
        assert!(timers.cancel(timer));
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn cancelled_timers_take_no_memory() {
        let far = Instant::now() + ms(1_000_000);
        let mut timers = Timers::default();
        let kept = timers.start(far, None);
        for _ in 0..10_000 {
            let timer = timers.start(far, None);
            assert!(timers.cancel(timer));
        }
        assert!(timers.heap.len() <= 32, "{} left", timers.heap.len());
        assert!(timers.cancel(kept));
    }

    proptest! {
        /// Against a list that is searched.
        #[test]
        fn timers_equal_a_plain_list(
            steps in proptest::collection::vec((0u8..4, 0u64..50, 0u64..8), 1..60)
        ) {
            let start = Instant::now();
            let mut timers = Timers::default();
            let mut list: Vec<(u64, TimerToken, u64)> = Vec::new();
            let mut now = 0;
            for (what, a, b) in steps {
                match what {
                    0 | 1 => {
                        let period = (b > 0).then(|| ms(b));
                        let token = timers.start(start + ms(now + a), period);
                        list.push((now + a, token, b));
                    }
                    2 if !list.is_empty() => {
                        let (_, token, _) = list.remove(a as usize % list.len());
                        prop_assert!(timers.cancel(token));
                    }
                    _ => {
                        now += a;
                        while let Some(expired) = timers.pop_due(start + ms(now)) {
                            list.sort();
                            let (at, token, period) = list.remove(0);
                            prop_assert!(at <= now);
                            prop_assert_eq!(expired.timer, token);
                            if let Some(late) = (now - at).checked_div(period) {
                                prop_assert_eq!(expired.times, late + 1);
                                list.push((at + period * (late + 1), token, period));
                            }
                        }
                        prop_assert!(list.iter().all(|(at, ..)| *at > now));
                    }
                }
            }
        }
    }
}
