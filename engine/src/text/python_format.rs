//! Formats values like Python, since chat templates were tested against Python: `json.dumps`,
//! `repr(float)` and `strftime`.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Arguments of `json.dumps` that templates pass to `tojson`.
#[derive(Debug, Clone)]
pub struct JsonStyle {
    pub ensure_ascii: bool,
    /// Indentation of one level; `None` puts everything on one line.
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub sort_keys: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
            sort_keys: false,
        }
    }
}

const MAX_DEPTH: usize = 200;

/// `json.dumps(value, …)`.
pub fn json_dumps(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    write_json(&mut out, value, style, 0)?;
    Ok(out)
}

fn write_json(
    out: &mut String,
    value: &Value,
    style: &JsonStyle,
    depth: usize,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(not_json(&format!("a value nested deeper than {MAX_DEPTH}")));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), style),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_items(out, ['[', ']'], &items, style, depth, |out, item| {
                write_json(out, item, style, depth + 1)
            })?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            write_items(out, ['{', '}'], &keys, style, depth, |out, key| {
                write_string(out, &key_text(key)?, style);
                out.push_str(&style.key_separator);
                write_json(out, &value.get_item(key)?, style, depth + 1)
            })?;
        }
        other => return Err(not_json(&other.to_string())),
    }
    Ok(())
}

fn write_items(
    out: &mut String,
    brackets: [char; 2],
    items: &[Value],
    style: &JsonStyle,
    depth: usize,
    mut write_item: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let break_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(brackets[0]);
    for (idx, item) in items.iter().enumerate() {
        if idx > 0 {
            out.push_str(&style.item_separator);
        }
        break_line(out, depth + 1);
        write_item(out, item)?;
    }
    if !items.is_empty() {
        break_line(out, depth);
    }
    out.push(brackets[1]);
    Ok(())
}

fn not_json(what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("{what} is not JSON serializable"),
    )
}

fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".to_owned(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_owned(),
        ValueKind::Number => number(key),
        other => return Err(not_json(&format!("a key of type {other}"))),
    })
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float_repr)
}

/// `str(float)`.
pub fn float_text(value: f64) -> String {
    if value.is_nan() {
        "nan".to_owned()
    } else if value.is_infinite() {
        if value > 0.0 { "inf" } else { "-inf" }.to_owned()
    } else {
        float_repr(value)
    }
}

/// `repr(float)`, with JSON's names for values that are not finite.
fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let fixed = value.to_string();
        return if fixed.contains('.') {
            fixed
        } else {
            fixed + ".0"
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn write_string(out: &mut String, text: &str, style: &JsonStyle) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(character),
            '\0'..='\u{1f}' => push_escape(out, character),
            _ if style.ensure_ascii => push_escape(out, character),
            _ => out.push(character),
        }
    }
    out.push('"');
}

fn push_escape(out: &mut String, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        // Writing to a string cannot fail.
        let _ = write!(out, "\\u{unit:04x}");
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// `strftime` in the C locale for a UTC time; other directives are left as written.
pub fn strftime(format: &str, unix_seconds: i64) -> String {
    let (days, seconds) = (
        unix_seconds.div_euclid(86_400),
        unix_seconds.rem_euclid(86_400),
    );
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let weekday = (days + 3).rem_euclid(7) as usize;
    let day_of_year = days - days_from_civil(year, 1, 1) + 1;
    let month_name = MONTHS[(month - 1) as usize];
    let hour_12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let Some(mut directive) = characters.next() else {
            out.push('%');
            break;
        };
        let is_unpadded = directive == '-';
        if is_unpadded {
            let Some(next) = characters.next() else {
                out.push_str("%-");
                break;
            };
            directive = next;
        }
        let padded = |value: i64, width: usize| {
            if is_unpadded {
                value.to_string()
            } else {
                format!("{value:0width$}")
            }
        };
        match directive {
            'Y' => out.push_str(&padded(year, 4)),
            'y' => out.push_str(&padded(year.rem_euclid(100), 2)),
            'm' => out.push_str(&padded(month, 2)),
            'd' => out.push_str(&padded(day, 2)),
            'e' if day < 10 => out.extend([' ', char::from(b'0' + day as u8)]),
            'e' => out.push_str(&day.to_string()),
            'j' => out.push_str(&padded(day_of_year, 3)),
            'H' => out.push_str(&padded(hour, 2)),
            'I' => out.push_str(&padded(hour_12, 2)),
            'M' => out.push_str(&padded(minute, 2)),
            'S' => out.push_str(&padded(second, 2)),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'B' => out.push_str(month_name),
            'b' | 'h' => out.push_str(&month_name[..3]),
            'A' => out.push_str(DAYS[weekday]),
            'a' => out.push_str(&DAYS[weekday][..3]),
            'F' => out.push_str(&strftime("%Y-%m-%d", unix_seconds)),
            'T' => out.push_str(&strftime("%H:%M:%S", unix_seconds)),
            'Z' => out.push_str("UTC"),
            'z' => out.push_str("+0000"),
            '%' => out.push('%'),
            other => {
                out.push('%');
                out.push(other);
            }
        }
    }
    out
}

/// Proleptic Gregorian date of a day counted from 1970-01-01. Years are counted from March, so
/// that the leap day ends them; 400 of them have 146097 days.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        // Each right side is CPython's repr().
        for (value, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5, "-2.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-0.0, "-0.0"),
            (123_456_789.123, "123456789.123"),
            (5e-324, "5e-324"),
        ] {
            assert_eq!(float_repr(value), text);
        }
    }

    #[test]
    fn json_escapes_and_separators_match_json_dumps() {
        let value = Value::from_pairs([
            (
                "한",
                Value::from(vec![Value::from(1), Value::from(2.5), Value::from(true)]),
            ),
            ("q\"\\\n\u{1}", Value::from(())),
            ("e", Value::from("👩<&>'\u{7f}")),
        ]);
        assert_eq!(
            json_dumps(&value, &JsonStyle::default()).unwrap(),
            "{\"한\": [1, 2.5, true], \"q\\\"\\\\\\n\\u0001\": null, \"e\": \"👩<&>'\u{7f}\"}"
        );
        let ascii = JsonStyle {
            ensure_ascii: true,
            ..JsonStyle::default()
        };
        assert_eq!(
            json_dumps(&value, &ascii).unwrap(),
            "{\"\\ud55c\": [1, 2.5, true], \"q\\\"\\\\\\n\\u0001\": null, \
             \"e\": \"\\ud83d\\udc69<&>'\\u007f\"}"
        );
        let indented = JsonStyle {
            indent: Some("  ".to_owned()),
            item_separator: ",".to_owned(),
            ..JsonStyle::default()
        };
        let nested = Value::from_pairs([
            ("a", Value::from(vec![1, 2])),
            ("b", Value::from(Vec::<i64>::new())),
        ]);
        assert_eq!(
            json_dumps(&nested, &indented).unwrap(),
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": []\n}"
        );
        assert!(json_dumps(&Value::UNDEFINED, &JsonStyle::default()).is_err());
    }

    #[test]
    fn dates_are_right_over_leap_years() {
        // Each right side is datetime.fromtimestamp(…, UTC).strftime(…) of CPython.
        assert_eq!(
            strftime("%Y-%m-%d %H:%M:%S %a %j", 0),
            "1970-01-01 00:00:00 Thu 001"
        );
        assert_eq!(
            strftime("%d %B %Y, %A", 951_782_400),
            "29 February 2000, Tuesday"
        );
        assert_eq!(
            strftime("%-d %b %y %I%p %%", 1_709_251_199),
            "29 Feb 24 11PM %"
        );
        assert_eq!(
            strftime("%j %F %T", 1_735_689_599),
            "366 2024-12-31 23:59:59"
        );
        assert_eq!(strftime("[%e] %Q %", 0), "[ 1] %Q %");
    }

    #[test]
    fn civil_dates_round_trip() {
        for days in (-800_000..800_000).step_by(97) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
