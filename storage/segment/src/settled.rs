//! Which offsets of a stream are settled: everything below a cursor, and ranges above it.
//!
//! Pure. Ranges that meet become one, so a queue that is worked off in order is a single number, whatever its length.

use std::{collections::BTreeMap, ops::Range};

/// A set of offsets that mostly grows from its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    below: u64,
    /// Start to end, disjoint, not touching, all above `below`.
    above: BTreeMap<u64, u64>,
}

impl Settled {
    /// Everything below `below` and nothing else.
    pub fn below(below: u64) -> Self {
        Self {
            below,
            above: BTreeMap::new(),
        }
    }

    /// The lowest offset that is not settled.
    pub fn cursor(&self) -> u64 {
        self.below
    }

    /// What is settled above the cursor.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.above.iter().map(|(&start, &end)| start..end)
    }

    /// Whether `offset` is settled.
    pub fn contains(&self, offset: u64) -> bool {
        offset < self.below
            || self
                .above
                .range(..=offset)
                .next_back()
                .is_some_and(|(_, &end)| offset < end)
    }

    /// How many of `range` are not settled.
    pub fn missing(&self, range: Range<u64>) -> u64 {
        let start = range.start.max(self.below);
        if start >= range.end {
            return 0;
        }
        let covered: u64 = self
            .ranges()
            .map(|it| it.end.min(range.end).saturating_sub(it.start.max(start)))
            .sum();
        range.end - start - covered
    }

    /// Settles a range.
    pub fn insert(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        if start >= end || end <= self.below {
            return;
        }
        if let Some((&before, &until)) = self.above.range(..=start).next_back()
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((&next, &until)) = self.above.range(start..=end).next() {
            end = end.max(until);
            self.above.remove(&next);
        }
        if start <= self.below {
            self.below = end;
        } else {
            self.above.insert(start, end);
        }
    }
}

/// The same offsets in as few ranges as there can be, in order.
pub fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(inserts in proptest::collection::vec((0_u64..60, 0_u64..12), 0..40)) {
            let (mut settled, mut model) = (Settled::default(), BTreeSet::new());
            for (start, length) in inserts {
                settled.insert(start..start + length);
                model.extend(start..start + length);
                for offset in 0..80 {
                    prop_assert_eq!(settled.contains(offset), model.contains(&offset));
                }
                let lowest = (0..).find(|it| !model.contains(it)).unwrap();
                prop_assert_eq!(settled.cursor(), lowest);
                prop_assert_eq!(settled.missing(3..50), (3..50).filter(|it| !model.contains(it)).count() as u64);
                // As few ranges as there can be.
                let ranges: Vec<_> = settled.ranges().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(ranges.first().is_none_or(|first| first.start > lowest));
            }
        }

        #[test]
        fn ranges_become_as_few_as_there_can_be(ranges in proptest::collection::vec((0_u64..50, 0_u64..6), 0..30)) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, length)| start..start + length).collect();
            let model: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();
            let merged = merged(ranges);
            prop_assert!(merged.windows(2).all(|pair| pair[0].end < pair[1].start));
            let flat: Vec<u64> = merged.into_iter().flatten().collect();
            prop_assert_eq!(flat, model.into_iter().collect::<Vec<_>>());
        }
    }
}
