//! Number and unit formatting, as minijinja filters.
//!
//! Every filter takes a number and refuses anything else, so a null or a NaN fails the render
//! instead of printing "none". Thousands are grouped, a real minus sign is used, and a value that
//! rounds to zero carries no sign.

use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind};

use crate::lang::Lang;

/// Registers the filters: `num`, `count`, `ms`, `pct`, `signed_pct`, `tok_s`, `req_s`, `bytes`, `day`,
/// `duration`.
pub fn register(env: &mut Environment<'_>, lang: Lang) {
    env.add_filter("num", |v: Value, digits: usize| {
        Ok::<_, Error>(number(float(&v)?, digits))
    });
    env.add_filter("count", |v: Value| Ok::<_, Error>(number(float(&v)?, 0)));
    env.add_filter("ms", move |v: Value| {
        Ok::<_, Error>(milliseconds(float(&v)?, lang))
    });
    env.add_filter("tok_s", |v: Value| {
        Ok::<_, Error>(format!("{} tok/s", number(float(&v)?, 2)))
    });
    env.add_filter("req_s", |v: Value| {
        Ok::<_, Error>(format!("{} req/s", number(float(&v)?, 2)))
    });
    env.add_filter("pct", |v: Value| {
        Ok::<_, Error>(format!("{} %", number(float(&v)?, 1)))
    });
    env.add_filter("signed_pct", |v: Value| {
        Ok::<_, Error>(signed_percent(float(&v)?))
    });
    env.add_filter("bytes", |v: Value| Ok::<_, Error>(bytes(float(&v)?)));
    env.add_filter("duration", move |v: Value| {
        Ok::<_, Error>(duration(float(&v)?, lang))
    });
    env.add_filter("day", move |v: String| day(&v, lang));
}

fn float(value: &Value) -> Result<f64, Error> {
    let refuse = || {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("a number is missing here: got `{value}`"),
        )
    };
    if value.is_undefined() || value.is_none() {
        return Err(refuse());
    }
    f64::try_from(value.clone())
        .ok()
        .filter(|v| v.is_finite())
        .ok_or_else(refuse)
}

/// `1054.13` with one digit: `1,054.1`.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, fraction) = text
        .split_once('.')
        .map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if let Some(fraction) = fraction {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    let is_zero = text.chars().all(|c| c == '0' || c == '.');
    if value < 0.0 && !is_zero {
        format!("−{grouped}")
    } else {
        grouped
    }
}

/// Under 10 ms two digits, under 10 s one, from there on seconds.
pub fn milliseconds(value: f64, lang: Lang) -> String {
    if value.abs() < 10.0 {
        format!("{} ms", number(value, 2))
    } else if value.abs() < 10_000.0 {
        format!("{} ms", number(value, 1))
    } else {
        format!("{}{}", number(value / 1000.0, 2), lang.pick("초", " s"))
    }
}

/// Seconds in hours and minutes: `1시간 45분`, `25 min`.
pub fn duration(seconds: f64, lang: Lang) -> String {
    let minutes = (seconds / 60.0).ceil() as u64;
    let (hours, minutes) = (minutes / 60, minutes % 60);
    let parts = [
        (hours, lang.pick("시간", " h")),
        (minutes, lang.pick("분", " min")),
    ];
    let words = parts.iter().filter(|(n, _)| *n > 0);
    let text: Vec<String> = words.map(|(n, unit)| format!("{n}{unit}")).collect();
    text.join(" ")
}

/// `+7.4 %`, `−3.0 %`, `0.0 %`.
///
/// ```
/// use reports::render::format::{number, signed_percent};
///
/// assert_eq!(number(1054.13, 1), "1,054.1");
/// assert_eq!(signed_percent(7.41), "+7.4 %");
/// ```
pub fn signed_percent(value: f64) -> String {
    let text = number(value, 1);
    let is_positive = value > 0.0 && text != "0.0";
    format!("{}{text} %", if is_positive { "+" } else { "" })
}

/// Binary multiples with their own names, as GPU memory is stated.
pub fn bytes(value: f64) -> String {
    const STEPS: [(f64, &str); 4] = [
        (1024.0 * 1024.0 * 1024.0, "GiB"),
        (1024.0 * 1024.0, "MiB"),
        (1024.0, "KiB"),
        (1.0, "B"),
    ];
    let (size, name) = STEPS
        .into_iter()
        .find(|(size, _)| value >= *size)
        .unwrap_or((1.0, "B"));
    format!(
        "{} {name}",
        number(
            value / size,
            if size >= 1024.0 * 1024.0 * 1024.0 {
                2
            } else {
                0
            }
        )
    )
}

/// `2026-11-22T03:00:00Z` to `2026년 11월 22일` or `2026-11-22`.
fn day(utc: &str, lang: Lang) -> Result<String, Error> {
    let date = utc.get(..10).unwrap_or(utc);
    let parts: Vec<u32> = date.split('-').filter_map(|p| p.parse().ok()).collect();
    match parts[..] {
        [year, month, day] => Ok(lang.pick(
            format!("{year}년 {month}월 {day}일"),
            format!("{year}-{month:02}-{day:02}"),
        )),
        _ => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("`{utc}` is no date"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_zero_has_no_sign() {
        assert_eq!(number(1_234_567.891, 1), "1,234,567.9");
        assert_eq!(number(-1054.13, 1), "−1,054.1");
        assert_eq!(number(-0.04, 1), "0.0");
        assert_eq!(number(999.96, 1), "1,000.0");
        assert_eq!(signed_percent(7.38), "+7.4 %");
        assert_eq!(signed_percent(0.01), "0.0 %");
        assert_eq!(signed_percent(-3.0), "−3.0 %");
    }

    #[test]
    fn units_fit_the_size() {
        assert_eq!(milliseconds(5.678, Lang::Ko), "5.68 ms");
        assert_eq!(milliseconds(975.7, Lang::Ko), "975.7 ms");
        assert_eq!(milliseconds(48_700.0, Lang::Ko), "48.70초");
        assert_eq!(milliseconds(48_700.0, Lang::En), "48.70 s");
        assert_eq!(bytes(22.5 * 1024.0 * 1024.0 * 1024.0), "22.50 GiB");
        assert_eq!(bytes(600.0 * 1024.0 * 1024.0), "600 MiB");
        assert_eq!(duration(6300.0, Lang::Ko), "1시간 45분");
        assert_eq!(duration(7200.0, Lang::En), "2 h");
        assert_eq!(duration(31.0, Lang::En), "1 min");
        assert_eq!(bytes(0.0), "0 B");
        assert_eq!(
            day("2025-09-16T10:00:00Z", Lang::Ko).unwrap(),
            "2025년 9월 16일"
        );
        assert_eq!(day("2025-09-16T10:00:00Z", Lang::En).unwrap(), "2025-09-16");
        assert!(day("gestern", Lang::Ko).is_err());
    }

    #[test]
    fn a_missing_number_is_an_error() {
        let mut env = Environment::new();
        register(&mut env, Lang::Ko);
        let null = minijinja::context! { x => Value::from(()) };
        assert!(env.render_str("{{ x|ms }}", &null).is_err());
        assert!(
            env.render_str("{{ x|num(1) }}", minijinja::context! { x => f64::NAN })
                .is_err()
        );
        assert_eq!(
            env.render_str("{{ x|ms }}", minijinja::context! { x => 1.5 })
                .unwrap(),
            "1.50 ms"
        );
    }
}
