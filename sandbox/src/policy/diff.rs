//! Two policies side by side: which lines only one of them has, and which of the two allows more.

use super::{CallerContext, EffectivePolicy, Excess, ShownValue};
use serde::Serialize;

/// How a key differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub key: String,
    /// The values that only the first has; one at most for a key that holds a single value.
    pub left: Vec<ShownValue>,
    /// The values that only the second has.
    pub right: Vec<ShownValue>,
}

/// What [`EffectivePolicy::diff`] finds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyDiff {
    /// In the order of the reference.
    pub differences: Vec<Difference>,
    /// What the first allows beyond the second.
    pub left_exceeds: Vec<Excess>,
    /// What the second allows beyond the first.
    pub right_exceeds: Vec<Excess>,
}

impl EffectivePolicy {
    /// How `other` differs from this policy, for any launch at all.
    pub fn diff(&self, other: &Self) -> PolicyDiff {
        let mut keys: Vec<&str> = Vec::new();
        for line in self.shown.iter().chain(&other.shown) {
            if !keys.contains(&line.key.as_str()) && line.key != "extends" {
                keys.push(&line.key);
            }
        }
        let only = |one: &Self, two: &Self, key: &str| -> Vec<ShownValue> {
            let same =
                |l: &ShownValue| two.shown.iter().any(|o| o.key == key && o.value == l.value);
            let lines = one.shown.iter().filter(|l| l.key == key);
            lines.filter(|l| !same(l)).cloned().collect()
        };
        let difference = |key: &str| Difference {
            key: key.to_owned(),
            left: only(self, other, key),
            right: only(other, self, key),
        };
        let anywhere = CallerContext::default();
        PolicyDiff {
            differences: keys
                .into_iter()
                .map(difference)
                .filter(|d| !d.left.is_empty() || !d.right.is_empty())
                .collect(),
            left_exceeds: self.exceeds(&anywhere, other, &anywhere),
            right_exceeds: other.exceeds(&anywhere, self, &anywhere),
        }
    }
}
