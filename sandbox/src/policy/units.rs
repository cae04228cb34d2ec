//! Sizes, durations, percentages and sums of money as people write them.

use std::time::Duration;

/// `512MiB`, `2GB`, `4096`: bytes, with units of 1024 (KiB…) or 1000 (KB…).
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let scale: u64 = match unit {
        "" | "B" => 1,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return Err(format!("{unit:?} is not a unit of size")),
    };
    whole(number)?
        .checked_mul(scale)
        .ok_or_else(|| "the size is larger than 16 EiB".to_owned())
}

/// `90s`, `15m`, `1h30m`, `500ms`, `2d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err("the duration is empty".into());
    }
    while !rest.is_empty() {
        let digits = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '_')
                .len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let n = whole(number)?;
        let ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err("the duration has no unit".into()),
            _ => return Err(format!("{unit:?} is not a unit of time")),
        };
        let part = n
            .checked_mul(ms)
            .ok_or_else(|| "the duration is too long".to_owned())?;
        total = total
            .checked_add(Duration::from_millis(part))
            .ok_or_else(|| "the duration is too long".to_owned())?;
        rest = next;
    }
    Ok(total)
}

/// `150%`: of one core.
pub(crate) fn parse_percent(text: &str) -> Result<u64, String> {
    let number = text
        .strip_suffix('%')
        .ok_or_else(|| "the percent sign is missing".to_owned())?;
    whole(number)
}

/// `$12.50`, in millionths of a dollar.
pub(crate) fn parse_dollars(text: &str) -> Result<u64, String> {
    let amount = text
        .strip_prefix('$')
        .ok_or_else(|| "the dollar sign is missing".to_owned())?;
    let (dollars, decimals) = amount.split_once('.').unwrap_or((amount, "0"));
    if decimals.len() > 6 || decimals.contains('_') {
        return Err("the amount has more than six decimals".into());
    }
    let fraction = whole(&format!("{decimals:0<6}"))?;
    if decimals.is_empty() {
        return Err("no decimals follow the point".into());
    }
    whole(dollars)?
        .checked_mul(1_000_000)
        .and_then(|d| d.checked_add(fraction))
        .ok_or_else(|| "the amount is too large".to_owned())
}

fn split_unit(text: &str) -> (&str, &str) {
    let at = text
        .find(|c: char| !(c.is_ascii_digit() || c == '_'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    (number, unit.trim_start())
}

fn whole(digits: &str) -> Result<u64, String> {
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    if plain.is_empty() || !plain.bytes().all(|b| b.is_ascii_digit()) {
        return Err("it does not start with a whole number".into());
    }
    plain.parse().map_err(|_| "the number is too large".into())
}

/// The largest exact unit, for people.
pub(crate) fn show_size(bytes: u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// `$12.50`, without decimals that say nothing.
pub(crate) fn show_dollars(micro: u64) -> String {
    let (dollars, fraction) = (micro / 1_000_000, micro % 1_000_000);
    if fraction == 0 {
        return format!("${dollars}");
    }
    let decimals = format!("{fraction:06}");
    let decimals = decimals.trim_end_matches('0');
    format!("${dollars}.{decimals:0<2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_binary_and_decimal_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        assert_eq!(parse_size("2 GB"), Ok(2_000_000_000));
        assert_eq!(parse_size("1_000K"), Ok(1_024_000));
        assert!(parse_size("GiB").is_err());
        assert!(parse_size("-1").is_err());
        assert!(parse_size("1.5GiB").is_err());
        assert!(parse_size("99999999TiB").unwrap_err().contains("16 EiB"));
    }

    #[test]
    fn durations_add_up() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert!(parse_duration("90").unwrap_err().contains("no unit"));
        assert!(parse_duration("1y").unwrap_err().contains("\"y\""));
        assert!(parse_duration("").is_err());
        assert!(parse_duration("99999999999999999d").is_err());
    }

    #[test]
    fn dollars_have_decimals() {
        assert_eq!(parse_dollars("$5"), Ok(5_000_000));
        assert_eq!(parse_dollars("$0.50"), Ok(500_000));
        assert_eq!(parse_dollars("$0.000001"), Ok(1));
        for shown in ["$5", "$0.50", "$0.000001", "$12.345"] {
            assert_eq!(parse_dollars(shown).map(show_dollars), Ok(shown.to_owned()));
        }
        for wrong in [
            "5",
            "$",
            "$5.",
            "$.5",
            "$-1",
            "$1.0000001",
            "$1e3",
            "$99999999999999999",
        ] {
            assert!(parse_dollars(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_exact_unit() {
        assert_eq!(show_size(2 << 30), "2GiB");
        assert_eq!(show_size(1000), "1000B");
        assert_eq!(show_size(0), "0B");
    }
}
