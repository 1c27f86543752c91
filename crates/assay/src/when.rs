//! Dates as people write them: UTC, by the proleptic Gregorian calendar.

use anyhow::{Context, bail};
use std::time::{SystemTime, UNIX_EPOCH};

const DAY_S: u64 = 86_400;

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// `2026-11-20T15:04:05Z`.
pub fn rfc3339(unix_seconds: u64) -> String {
    // Howard Hinnant's "days to civil": eras of 400 years that begin on 1 March.
    let (days, seconds) = (unix_seconds / DAY_S, unix_seconds % DAY_S);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `2026-11-20` or `2026-11-20T15:04:05Z`, in seconds since the Unix epoch.
pub fn moment(text: &str) -> anyhow::Result<u64> {
    let bad = || format!("{text:?} is no day or moment in UTC, as in 2026-11-20 or 2026-11-20T15:04:05Z");
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let number = |range: std::ops::Range<usize>| -> Option<u64> {
        let digits = whole.get(range)?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let seconds = (|| {
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        // The inverse of what `rfc3339` does.
        let shifted = if month > 2 { year } else { year.checked_sub(1)? };
        let (era, of_era) = (shifted / 400, shifted % 400);
        let month_from_march = (month + 9) % 12;
        let of_year = (153 * month_from_march + 2) / 5 + day.checked_sub(1)?;
        let days = (era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year).checked_sub(719_468)?;
        Some(days * DAY_S + number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?)
    })();
    // What is written back differently was no date: 30 February, hour 24, other separators.
    seconds.filter(|&seconds| rfc3339(seconds) == whole).with_context(bad)
}

/// `90s`, `15m`, `12h`, `30d` or `8w`, in seconds.
pub fn duration(text: &str) -> anyhow::Result<u64> {
    let unit = text.chars().last().context("a duration is a number and s, m, h, d or w")?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => DAY_S,
        'w' => 7 * DAY_S,
        _ => bail!("{text:?} is no duration: a number and s, m, h, d or w, as in 30d"),
    };
    let number: u64 = text[..text.len() - 1].parse().with_context(|| format!("{text:?} is no duration, as in 30d"))?;
    number
        .checked_mul(seconds)
        .filter(|s| (1..1 << 40).contains(s))
        .with_context(|| format!("{text:?} is too long or 0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_dates() {
        let check = |seconds: u64, expect: &str| assert_eq!(rfc3339(seconds), expect);
        check(0, "1970-01-01T00:00:00Z");
        check(951_782_399, "2000-02-28T23:59:59Z");
        check(951_782_400, "2000-02-29T00:00:00Z");
        check(951_868_800, "2000-03-01T00:00:00Z");
        check(1_798_761_599, "2026-12-31T23:59:59Z");
        check(4_107_542_400, "2100-03-01T00:00:00Z");
    }

    #[test]
    fn dates_are_seconds() {
        for seconds in [0, 951_782_399, 951_782_400, 951_868_800, 1_798_761_599, 4_107_542_400] {
            assert_eq!(moment(&rfc3339(seconds)).unwrap(), seconds);
        }
        assert_eq!(moment("2000-02-29").unwrap(), 951_782_400);
        let bad =
            ["", "2000", "2001-02-29", "2000-13-01", "2000-00-01", "2000-01-00", "1969-12-31", "2000-01-01T24:00:00Z"];
        for bad in bad.into_iter().chain(["2000-01-01 00:00:00", "2000-01-01T00:00:00", "+000-01-01", "2000-01-0ä"]) {
            assert!(moment(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("90s").unwrap(), 90);
        assert_eq!(duration("2w").unwrap(), 1_209_600);
        for bad in ["", "d", "30", "0d", "-1d", "1.5h", "99999999999999999999d", "9999999999999w", "5ä"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
