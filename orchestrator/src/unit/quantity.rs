//! Durations, sizes, percentages and watts as people write them, and durations as people read them.

use std::time::Duration;

/// `90s`, `15m`, `1h30m`, `500ms`, `2d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err("the duration is empty".into());
    }
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(letters);
        let number = whole(number)?;
        let scale: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "" => return Err("the duration has no unit".into()),
            _ => return Err(format!("{unit:?} is not a unit of time")),
        };
        total = number
            .checked_mul(scale)
            .and_then(|part| total.checked_add(part))
            .ok_or("the duration is too long")?;
        rest = next;
    }
    Ok(Duration::from_millis(total))
}

/// The shortest exact form: `1h30m`, `500ms`, `0s`.
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, scale) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1_000),
        ("ms", 1),
    ] {
        if rest >= scale {
            text.push_str(&format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    if text.is_empty() {
        text.push_str("0s");
    }
    text
}

/// `20%`.
pub(super) fn parse_percent(text: &str) -> Result<u64, String> {
    whole(
        text.strip_suffix('%')
            .ok_or("the percent sign is missing")?,
    )
}

/// `15W`, `500mW`: milliwatts.
pub(super) fn parse_watts(text: &str) -> Result<u64, String> {
    if let Some(number) = text.strip_suffix("mW") {
        return whole(number);
    }
    let number = text
        .strip_suffix('W')
        .ok_or("the unit W or mW is missing")?;
    whole(number)?
        .checked_mul(1000)
        .ok_or_else(|| "the number is too large".into())
}

/// `512MiB`, `2GB`: bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let at = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let scale: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        other => return Err(format!("{other:?} is not a unit of size")),
    };
    whole(number)?
        .checked_mul(scale)
        .ok_or_else(|| "the size is larger than 16 EiB".into())
}

fn whole(digits: &str) -> Result<u64, String> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err("it does not start with a whole number".into());
    }
    digits.parse().map_err(|_| "the number is too large".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_as_people_write_them() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(parse_duration("90").unwrap_err().contains("no unit"));
        assert!(parse_duration("1y").unwrap_err().contains("\"y\""));
        assert_eq!(parse_percent("20%"), Ok(20));
        assert!(parse_percent("20").is_err());
        assert_eq!(parse_watts("15W"), Ok(15_000));
        assert_eq!(parse_watts("500mW"), Ok(500));
        assert!(parse_watts("15").is_err());
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(ms in 0u64..=365 * 86_400_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }
    }
}
