//! Tests and filters of Jinja2 that minijinja lacks or implements differently.
//!
//! `tests/data/jinja_builtins.json.gz` compares each of them, and minijinja's own, with Jinja2's
//! results. Deliberately absent: filters that write HTML (`urlize`, `xmlattr`) or are random
//! (`random`, `lipsum`), `filesizeformat` and `wordwrap`.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};

use super::MAX_OUTPUT_BYTES;

pub(super) fn add_to(environment: &mut Environment<'_>) {
    // Values of a template that are not data are functions and macros. Undefined values in Jinja2
    // are objects with Python's methods, so they count as callable.
    environment.add_test("callable", |value: &Value| {
        matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
    });
    environment.add_test("sequence", |value: &Value| {
        use ValueKind::{Map, Seq, String, Undefined};
        minijinja::tests::is_sequence(value)
            || matches!(value.kind(), Seq | Map | String | Undefined)
    });
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && minijinja::tests::is_iterable(value)
    });
    environment.add_filter("center", |text: &str, width: Option<usize>| {
        centered(text, width.unwrap_or(80), ' ')
    });
    environment.add_filter("wordcount", |text: &str| {
        let is_of_word = |c: char| c.is_alphanumeric() || c == '_';
        let words = text.split(|c: char| !is_of_word(c));
        words.filter(|word| !word.is_empty()).count()
    });
    environment.add_filter("forceescape", |text: &Value| escaped(&text.to_string()));
    environment.add_filter("striptags", without_tags);
    environment.add_filter("truncate", truncate);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("replace", replace);
    environment.add_filter("dictsort", dictsort);
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("items", |value: &Value| {
        if value.is_undefined() {
            return Ok(Value::from(Vec::<Value>::new()));
        }
        filters::items(value)
    });
    environment.add_filter(
        "int",
        |state: &State, value: &Value, default: Option<Value>, base: Option<u32>, named: Kwargs| {
            let has_default = default.is_some() || named.has("default");
            let default = default.or_else(|| (!has_default).then(|| Value::from(0)));
            filters::int(state, value, default, base, named)
        },
    );
}

/// `default(value, default_value='', boolean=False)`.
fn default(
    value: &Value,
    other: Option<Value>,
    lax: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(named.get("default_value")?);
    let lax = lax.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    if value.is_undefined() || (lax && !value.is_true()) {
        return Ok(other.unwrap_or_else(|| Value::from("")));
    }
    Ok(value.clone())
}

/// `replace(s, old, new, count=None)`.
fn replace(text: &Value, old: &str, new: &str, count: Option<usize>) -> String {
    let text = text.to_string();
    match count {
        Some(count) => text.replacen(old, new, count),
        None => text.replace(old, new),
    }
}

/// `dictsort(value, case_sensitive=False, by='key', reverse=False)`.
fn dictsort(
    value: &Value,
    case_sensitive: Option<bool>,
    by: Option<String>,
    reverse: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let or_named = |positional: Option<Value>, name: &str| match positional {
        Some(value) => Ok(Some(value)),
        None => named.get::<Option<Value>>(name),
    };
    let pairs = [
        (
            "case_sensitive",
            or_named(case_sensitive.map(Value::from), "case_sensitive")?,
        ),
        ("by", or_named(by.map(Value::from), "by")?),
        ("reverse", or_named(reverse.map(Value::from), "reverse")?),
    ];
    named.assert_all_used()?;
    let given = pairs
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    filters::dictsort(value, given.collect())
}

/// For a text, keeping slashes; for a mapping, as a query.
fn urlencode(value: &Value) -> Result<String, Error> {
    if value.kind() != ValueKind::Map {
        return Ok(percent_encoded(&value.to_string(), b"/"));
    }
    let quoted = |value: &Value| percent_encoded(&value.to_string(), b" ").replace(' ', "+");
    let pairs = value.try_iter()?.map(|key| {
        let item = value.get_item(&key)?;
        Ok(format!("{}={}", quoted(&key), quoted(&item)))
    });
    Ok(pairs.collect::<Result<Vec<_>, Error>>()?.join("&"))
}

fn percent_encoded(text: &str, also_plain: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also_plain.contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Distributes an odd number of fill characters like CPython.
pub(super) fn centered(text: &str, width: usize, fill: char) -> String {
    let width = width.min(MAX_OUTPUT_BYTES);
    let n = width.saturating_sub(text.chars().count());
    let n_left = n / 2 + (n & width & 1);
    let fills = |n| std::iter::repeat_n(fill, n);
    fills(n_left)
        .chain(text.chars())
        .chain(fills(n - n_left))
        .collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&#34;")
}

/// Removes tags and comments, and collapses white space.
fn without_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let close = if rest[start..].starts_with("<!--") {
            "-->"
        } else {
            ">"
        };
        let Some(n) = rest[start..].find(close) else {
            break;
        };
        out.push_str(&rest[..start]);
        rest = &rest[start + n + close.len()..];
    }
    out.push_str(rest);
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `truncate(length=255, killwords=False, end='...', leeway=5)`; `leeway` by its name only.
fn truncate(
    text: &str,
    length: Option<usize>,
    kills_words: Option<bool>,
    end: Option<String>,
    named: Kwargs,
) -> Result<String, Error> {
    let length = length.or(named.get("length")?).unwrap_or(255);
    let kills_words = kills_words.or(named.get("killwords")?).unwrap_or(false);
    let end = end
        .or(named.get("end")?)
        .unwrap_or_else(|| "...".to_owned());
    let leeway = named.get::<Option<usize>>("leeway")?.unwrap_or(5);
    named.assert_all_used()?;
    let n_end = end.chars().count();
    if length < n_end {
        let message = format!("a length of {length} is less than that of {end:?}");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let cut: String = text.chars().take(length - n_end).collect();
    let kept = match cut.rfind(' ') {
        Some(at) if !kills_words => &cut[..at],
        _ => &cut,
    };
    Ok(format!("{kept}{end}"))
}
