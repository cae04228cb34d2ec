//! Amounts of money: whole billionths of a US dollar, never a float.
//!
//! Pure. 2^64 of them are 18 thousand million dollars, and one is a thousandth of what the cheapest token costs.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Nanodollars.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NanoUsd(pub u64);

const PER_DOLLAR: u64 = 1_000_000_000;

impl NanoUsd {
    /// Never wraps.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// Never below nothing.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

/// `$1.50`, `$0.00042`: at least cents, and no more decimals than there are.
impl fmt::Display for NanoUsd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let decimals = format!("{:09}", self.0 % PER_DOLLAR);
        let shown = decimals.trim_end_matches('0').len().max(2);
        write!(f, "${}.{}", self.0 / PER_DOLLAR, &decimals[..shown])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cents_are_shown_and_no_decimal_is_lost() {
        for (nano, shown) in [
            (0, "$0.00"),
            (1, "$0.000000001"),
            (1_500_000_000, "$1.50"),
            (12_345_000_000, "$12.345"),
            (u64::MAX, "$18446744073.709551615"),
        ] {
            assert_eq!(NanoUsd(nano).to_string(), shown);
        }
    }
}
