//! Latencies as HDR histograms: three digits, from a nanosecond to an hour.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::output::nanoseconds;

/// An hour, in ns: what is later counts as that.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// Counted latencies.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    pub fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, 3);
        Self(histogram.expect("the bounds are constants that fit"))
    }

    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.max(1));
    }

    /// What [`Self::add`] takes on the other side.
    pub fn counts(&self) -> Vec<(u64, u64)> {
        let recorded = self.0.iter_recorded();
        recorded
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect()
    }

    pub fn add(&mut self, counts: &[(u64, u64)]) {
        for (ns, count) in counts {
            self.0.saturating_record_n((*ns).max(1), *count);
        }
    }

    pub fn to_json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        json!({
            "samples": self.0.len(),
            "min": self.0.min(),
            "mean": self.0.mean(),
            "p50": self.0.value_at_quantile(0.5),
            "p90": self.0.value_at_quantile(0.9),
            "p99": self.0.value_at_quantile(0.99),
            "p999": self.0.value_at_quantile(0.999),
            "p9999": self.0.value_at_quantile(0.9999),
            "max": self.0.max(),
        })
    }

    /// `P50 143 ns  P90 …` for people.
    pub fn lines(&self) -> Vec<(&'static str, String)> {
        let at = |quantile| nanoseconds(self.0.value_at_quantile(quantile));
        vec![
            ("P50", at(0.5)),
            ("P90", at(0.9)),
            ("P99", at(0.99)),
            ("P99.9", at(0.999)),
            ("P99.99", at(0.9999)),
            ("most", nanoseconds(self.0.max())),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_the_way_from_the_agent() {
        let mut inside = Latencies::new();
        for ns in 1..=10_000 {
            inside.record(ns);
        }
        let mut here = Latencies::new();
        here.add(&inside.counts());
        assert_eq!(here.to_json()["samples"], 10_000);
        assert_eq!(here.to_json(), inside.to_json());
        assert_eq!(Latencies::new().to_json(), Value::Null);
    }
}
