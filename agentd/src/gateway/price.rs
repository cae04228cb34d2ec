//! `[[price]]` of the daemon's configuration: what the tokens of a model cost.
//!
//! Pure. A price is held as millionths of a dollar for a million tokens, which is picodollars for one: prices as they are
//! published are whole numbers of these. What a request costs is rounded up to a nanodollar, so nothing is free that has a
//! price.

use std::sync::Arc;

use agentd_api::NanoUsd;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::budget::TokenCounts;

/// One `[[price]]`: amounts in US dollars for a million tokens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceConfig {
    /// The model's name as agents ask for it; `*` stands for anything.
    pub model: String,
    pub input: Dollars,
    pub output: Dollars,
    /// As `input` where it is not said.
    pub cache_read: Option<Dollars>,
    /// Twice `input` where it is not said: no provider takes more.
    pub cache_write: Option<Dollars>,
}

/// Millionths of a dollar, written as `3`, `0.25` or `"$0.25"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dollars(u64);

/// The most that a million tokens may cost, in dollars.
const MOST: u64 = 1_000_000;

impl Dollars {
    fn parse(text: &str) -> Option<Self> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(decimals) || decimals.len() > 6 {
            return None;
        }
        let whole: u64 = whole.parse().ok().filter(|w| *w <= MOST)?;
        let fraction: u64 = format!("{decimals:0<6}").parse().ok()?;
        Some(Self(whole * 1_000_000 + fraction))
    }
}

impl<'de> Deserialize<'de> for Dollars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Dollars;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("US dollars for a million tokens, such as 3, 0.25 or \"$0.25\", with at most six decimals, up to 1000000")
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Dollars, E> {
                self.visit_str(&value.to_string())
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Dollars, E> {
                self.visit_str(&value.to_string())
            }
            // The shortest decimal that stands for the float is what was written.
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Dollars, E> {
                self.visit_str(&value.to_string())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Dollars, E> {
                Dollars::parse(text.strip_prefix('$').unwrap_or(text))
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Written)
    }
}

/// What one token of each kind costs, in picodollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    input: u64,
    output: u64,
    cache_read: u64,
    cache_write: u64,
}

const PICO_PER_NANO: u128 = 1000;

fn nano(pico: u128) -> NanoUsd {
    NanoUsd(u64::try_from(pico.div_ceil(PICO_PER_NANO)).unwrap_or(u64::MAX))
}

impl Price {
    fn of(config: &PriceConfig) -> Self {
        let Dollars(input) = config.input;
        Self {
            input,
            output: config.output.0,
            cache_read: config.cache_read.map_or(input, |d| d.0),
            cache_write: config.cache_write.map_or(2 * input, |d| d.0),
        }
    }

    /// Rounded up.
    pub fn cost(&self, counts: &TokenCounts) -> NanoUsd {
        let parts = [
            (counts.input, self.input),
            (counts.output, self.output),
            (counts.cache_read, self.cache_read),
            (counts.cache_write, self.cache_write),
        ];
        nano(
            parts
                .iter()
                .map(|(n, each)| u128::from(*n) * u128::from(*each))
                .sum(),
        )
    }

    /// What `input` tokens cost at most: which of them the provider writes to its cache is not known beforehand.
    pub fn most_for_input(&self, input: u64) -> NanoUsd {
        let dearest = self.input.max(self.cache_read).max(self.cache_write);
        nano(u128::from(input) * u128::from(dearest))
    }

    pub fn for_output(&self, output: u64) -> NanoUsd {
        nano(u128::from(output) * u128::from(self.output))
    }

    /// How many tokens of output `amount` pays.
    pub fn output_for(&self, amount: NanoUsd) -> u64 {
        let pico = u128::from(amount.0) * PICO_PER_NANO;
        let tokens = pico.checked_div(u128::from(self.output));
        tokens.map_or(u64::MAX, |n| u64::try_from(n).unwrap_or(u64::MAX))
    }
}

/// All prices, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PriceList(Arc<[(String, Price)]>);

impl PriceList {
    pub fn from_config(config: &[PriceConfig]) -> Self {
        let price = |p: &PriceConfig| (p.model.clone(), Price::of(p));
        Self(config.iter().map(price).collect())
    }

    /// The first line whose pattern is of this model.
    pub fn of(&self, model: &str) -> Option<Price> {
        let mut lines = self.0.iter();
        let line = lines.find(|(pattern, _)| agentd_sandbox::matches_model(pattern, model));
        line.map(|(_, price)| *price)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        price: Vec<PriceConfig>,
    }

    fn list(text: &str) -> Result<PriceList, toml::de::Error> {
        toml::from_str::<File>(text).map(|f| PriceList::from_config(&f.price))
    }

    fn counts(input: u64, output: u64, cache_read: u64, cache_write: u64) -> TokenCounts {
        TokenCounts {
            input,
            output,
            cache_read,
            cache_write,
        }
    }

    #[test]
    fn a_request_costs_what_the_first_matching_line_says_rounded_up() {
        let prices = list(
            "[[price]]\nmodel = 'small-*'\ninput = 0.0375\noutput = '$0.15'\ncache_read = 0\ncache_write = 0.05\n\
             [[price]]\nmodel = '*'\ninput = 3\noutput = 15\n",
        )
        .unwrap();
        let small = prices.of("small-1").unwrap();
        assert_eq!(small.cost(&counts(1_000_000, 0, 0, 0)), NanoUsd(37_500_000));
        assert_eq!(small.cost(&counts(1, 0, 0, 0)), NanoUsd(38));
        assert_eq!(small.cost(&counts(0, 1, 1_000_000, 0)), NanoUsd(150));
        let large = prices.of("large").unwrap();
        assert_eq!(
            large.cost(&counts(1000, 1000, 1000, 1000)),
            NanoUsd(27_000_000)
        );
        assert_eq!(large.most_for_input(1000), NanoUsd(6_000_000));
        assert_eq!(large.output_for(NanoUsd(15_000 * 7 + 14_999)), 7);
        assert_eq!(list("price = []").unwrap().of("large"), None);
    }

    #[test]
    fn what_is_no_amount_is_refused_with_what_is() {
        for wrong in [
            "-1",
            "0.0000001",
            "'1e3'",
            "'5 USD'",
            "2000000",
            "true",
            "nan",
        ] {
            let text = format!("[[price]]\nmodel = 'm'\ninput = {wrong}\noutput = 1\n");
            let error = list(&text).unwrap_err().to_string();
            assert!(
                error.contains("US dollars for a million tokens"),
                "{wrong}: {error}"
            );
        }
        assert!(
            list("[[price]]\nmodel = 'm'\ninput = 1\n").is_err(),
            "no output"
        );
    }
}
