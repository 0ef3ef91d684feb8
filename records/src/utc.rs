//! Wall-clock time as text, in UTC. Two formats of one calendar computation do not justify a
//! calendar crate; no time zones are needed.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01T00:00:00Z; 0 on a clock set before that.
pub fn now_unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// `2025-09-22T08:15:30Z`.
pub fn rfc3339(unix_s: u64) -> String {
    let (year, month, day) = civil_date(unix_s / 86_400);
    let (hour, minute, second) = clock(unix_s);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `20250922T081530Z`: sorts as text and is a safe folder name.
pub fn compact(unix_s: u64) -> String {
    rfc3339(unix_s).replace(['-', ':'], "")
}

fn clock(unix_s: u64) -> (u64, u64, u64) {
    let of_day = unix_s % 86_400;
    (of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

/// Days since 1970-01-01 → (year, month, day) of the proleptic Gregorian calendar, counted
/// in years that start in March, so that the leap day is a year's last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_PER_400_YEARS: u64 = 146_097;
    let since_march_0000 = days + 719_468;
    let era = since_march_0000 / DAYS_PER_400_YEARS;
    let day_of_era = since_march_0000 % DAYS_PER_400_YEARS;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_based_month + 2) / 5 + 1;
    let month = if march_based_month < 10 {
        march_based_month + 3
    } else {
        march_based_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        // Checked with `date -u -d @N`.
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(951_868_799), "2000-02-29T23:59:59Z");
        assert_eq!(rfc3339(1_758_528_930), "2025-09-22T08:15:30Z");
        assert_eq!(rfc3339(4_107_542_400), "2100-03-01T00:00:00Z");
        assert_eq!(compact(1_758_528_930), "20250922T081530Z");
    }
}
