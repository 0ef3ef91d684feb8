//! Lengths of time as they are typed: `90s`, `30m`, `1h30m`.

use std::time::Duration;

/// For clap: the message names what was typed and what is allowed.
pub fn parse(typed: &str) -> Result<Duration, String> {
    let refuse = || format!("`{typed}` is no length of time; allowed: 90s, 30m, 1h30m");
    let mut total_s: u64 = 0;
    let mut digits = String::new();
    for c in typed.chars() {
        if c.is_ascii_digit() {
            digits.push(c);
            continue;
        }
        let seconds: u64 = match c {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            _ => return Err(refuse()),
        };
        let number: u64 = digits.parse().map_err(|_| refuse())?;
        digits.clear();
        total_s = number
            .checked_mul(seconds)
            .and_then(|s| total_s.checked_add(s))
            .ok_or_else(refuse)?;
    }
    if total_s == 0 || !digits.is_empty() {
        return Err(refuse());
    }
    Ok(Duration::from_secs(total_s))
}

/// `29 m 40 s`.
pub fn shown(time: Duration) -> String {
    let s = time.as_secs();
    match (s / 3_600, s / 60 % 60, s % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} m {s} s"),
        (h, m, _) => format!("{h} h {m} m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (typed, seconds) in [("90s", 90), ("30m", 1_800), ("1h30m", 5_400), ("1m5s", 65)] {
            assert_eq!(parse(typed), Ok(Duration::from_secs(seconds)), "{typed}");
        }
        for typed in [
            "",
            "30",
            "m",
            "0s",
            "1d",
            "-1s",
            "1m30",
            "99999999999999999999h",
        ] {
            assert!(
                parse(typed).is_err_and(|e| e.contains("allowed: 90s")),
                "{typed}"
            );
        }
        assert_eq!(shown(Duration::from_secs(1_780)), "29 m 40 s");
        assert_eq!(shown(Duration::from_mins(90)), "1 h 30 m");
    }
}
