//! Latencies in a row of shared words: a log-linear (HDR) histogram that one side writes and anybody who
//! maps it reads.
//!
//! 8 buckets per octave: a value is known to 12.5 % or better, from 1 ns to 2^48 ns (78 hours), longer
//! ones count as that. Recording is one load and one store of the writer's own memory. A reader takes a
//! [`Latency`] word by word while recording goes on: a sample more or less, never a torn one.

#![forbid(unsafe_code)]

use super::atomics::Ordering;
use super::region::{Own, Peers, Words};

/// Where the buckets are in a cursor page.
pub const FIRST_WORD: usize = 128;
/// Number of buckets, a word each.
pub const BUCKETS: usize = 384;
const SUB_BITS: u32 = 3;
const SUB: u64 = 1 << SUB_BITS;

/// The bucket that `ns` counts in.
pub const fn bucket_of(ns: u64) -> usize {
    if ns < SUB {
        return ns as usize;
    }
    let octave = ns.ilog2() - SUB_BITS;
    let index = (octave as usize + 1) * SUB as usize + ((ns >> octave) - SUB) as usize;
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The smallest value of a bucket, ns; the next bucket begins where this one ends.
pub const fn lowest_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUB {
        return bucket;
    }
    let octave = bucket / SUB - 1;
    (SUB + bucket % SUB) << octave
}

/// Counts one latency in the writer's own cursor page.
#[cfg_attr(
    any(loom, not(test)),
    allow(dead_code, reason = "the rings begin to count next")
)]
pub(crate) fn record<W: Words>(page: &Own<W>, ns: u64) {
    let at = FIRST_WORD + bucket_of(ns);
    let count = page.load(at, Ordering::Relaxed);
    page.store(at, count.wrapping_add(1), Ordering::Relaxed);
}

/// Latencies that have been counted, taken out of shared memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    counts: Box<[u64]>,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS].into(),
        }
    }
}

impl Latency {
    /// What the writer of this cursor page has counted so far.
    pub fn read<W: Words>(page: &Peers<W>) -> Self {
        Self {
            counts: (0..BUCKETS)
                .map(|bucket| page.load(FIRST_WORD + bucket, Ordering::Relaxed))
                .collect(),
        }
    }

    /// Counts one latency here.
    pub fn record(&mut self, ns: u64) {
        let count = &mut self.counts[bucket_of(ns)];
        *count = count.saturating_add(1);
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        for (own, others) in self.counts.iter_mut().zip(&other.counts) {
            *own = own.saturating_add(*others);
        }
    }

    /// What was counted here and not yet in `before`, an earlier reading.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let pairs = self.counts.iter().zip(&before.counts);
        Self {
            counts: pairs.map(|(now, then)| now.saturating_sub(*then)).collect(),
        }
    }

    /// Buckets that count something, ascending: the highest value that each holds, ns, and its count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.counts.iter().enumerate();
        counts
            .filter(|(_, count)| **count > 0)
            .map(|(bucket, count)| (lowest_of(bucket + 1) - 1, *count))
    }

    /// How many latencies were counted. A hostile writer may say anything, so this doesn't overflow.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The value that `quantile` (0 to 1) of all latencies don't exceed, ns, rounded up to the end of its
    /// bucket; `None` if nothing was counted.
    pub fn at_quantile(&self, quantile: f64) -> Option<u64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let wanted = (total as f64 * quantile.clamp(0.0, 1.0)).ceil().max(1.0) as u64;
        let mut seen = 0_u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= wanted {
                return Some(lowest_of(bucket + 1) - 1);
            }
        }
        Some(lowest_of(BUCKETS) - 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::PAGE_WORDS;
    use super::super::region::Heap;
    use super::*;

    #[test]
    fn buckets_meet_without_gap_or_overlap() {
        for bucket in 0..BUCKETS {
            let (low, next) = (lowest_of(bucket), lowest_of(bucket + 1));
            assert!(low < next);
            assert_eq!(bucket_of(low), bucket);
            assert_eq!(bucket_of(next - 1), bucket);
            assert!(
                next - low <= (low / SUB).max(1),
                "bucket {bucket} is too wide"
            );
        }
        assert_eq!(FIRST_WORD + BUCKETS, PAGE_WORDS);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_samples_to_an_eighth() {
        let page = Heap::new(PAGE_WORDS);
        for ns in 1..=10_000 {
            record(&Own(page.clone()), ns);
        }
        let latency = Latency::read(&Peers(page));
        assert_eq!(latency.count(), 10_000);
        for (quantile, exact) in [(0.5, 5_000.0), (0.99, 9_900.0), (1.0, 10_000.0)] {
            let found = latency.at_quantile(quantile).unwrap() as f64;
            assert!(
                (exact..=exact * 1.125).contains(&found),
                "{quantile}: {found}"
            );
        }
    }

    #[test]
    fn an_empty_histogram_has_no_quantiles_and_a_full_one_does_not_overflow() {
        let mut latency = Latency::default();
        assert_eq!(latency.at_quantile(0.5), None);
        latency.counts.fill(u64::MAX);
        assert_eq!(latency.count(), u64::MAX);
        assert!(latency.at_quantile(1.0).is_some());
    }

    #[test]
    fn buckets_name_their_highest_value_and_leave_out_the_empty() {
        let mut latency = Latency::default();
        for ns in [3, 100, 100] {
            latency.record(ns);
        }
        assert_eq!(latency.buckets().collect::<Vec<_>>(), [(3, 1), (103, 2)]);
        assert_eq!(latency.at_quantile(1.0), Some(103));
    }

    #[test]
    fn a_difference_counts_only_what_came_after() {
        let mut before = Latency::default();
        before.record(10);
        let mut after = before.clone();
        after.record(1_000);
        let mut expected = Latency::default();
        expected.record(1_000);
        assert_eq!(after.since(&before), expected);
    }
}
