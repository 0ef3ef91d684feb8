//! Parses amounts of memory: `31.4GiB`, `24GB`, `512MiB`, `1073741824`.

/// Bytes of `text`. Units are case-insensitive; `GiB` is 1024³ and `GB` is 1000³. The error is
/// suitable for the command line.
///
/// ```
/// use engine::config::size::parse_bytes;
///
/// assert_eq!(parse_bytes("512MiB"), Ok(512 << 20));
/// assert_eq!(parse_bytes("24 gb"), Ok(24_000_000_000));
/// assert!(parse_bytes("31.4").is_err());
/// ```
///
/// # Errors
///
/// If the number is none, its unit is unknown, or a fraction has no unit.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let n_digits = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(n_digits);
    if unit.trim().is_empty() && number.contains('.') && number.parse::<f64>().is_ok() {
        return Err(format!(
            "{number} has no unit, and a number alone is whole bytes; {number}GiB or {number}GB may be \
             meant"
        ));
    }
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        other => {
            return Err(format!(
                "unknown unit {other:?}; known are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"
            ));
        }
    };
    let value: f64 = number
        .parse()
        .map_err(|_| format!("{number:?} is not a number"))?;
    if unit.trim().is_empty() && number.contains('.') {
        return Err(format!(
            "{number} has no unit, and there are no parts of a byte; write {number}GiB, for one"
        ));
    }
    let bytes = (value * scale).round();
    // 2^53: above it a float no longer counts single bytes.
    if (1.0..=9_007_199_254_740_992.0).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err(format!("{text:?} is not between 1 byte and 8 PiB"))
    }
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn units_of_both_kinds_are_read() {
        assert_eq!(parse_bytes("31.4GiB"), Ok(33_715_493_274));
        assert_eq!(parse_bytes("24gb"), Ok(24_000_000_000));
        assert_eq!(parse_bytes("512 MiB"), Ok(512 << 20));
        assert_eq!(parse_bytes("1073741824"), Ok(1 << 30));
        assert_eq!(parse_bytes("31"), Ok(31));
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        assert!(
            parse_bytes("31.4Gibi")
                .unwrap_err()
                .contains("unknown unit")
        );
        assert!(parse_bytes("GiB").unwrap_err().contains("not a number"));
        assert!(parse_bytes("31.4").unwrap_err().contains("31.4GiB"));
        assert!(parse_bytes("0").unwrap_err().contains("between 1 byte"));
        assert!(parse_bytes("1.2.3").unwrap_err().contains("not a number"));
        assert!(parse_bytes("31.4").unwrap_err().contains("31.4GiB"));
        assert!(parse_bytes("-5GiB").is_err());
    }
}
