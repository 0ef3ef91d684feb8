//! Arguments of a call with integers beyond 64 bits: `serde_json` would convert them to floats, but
//! a call that is sent back must have the digits that the model wrote. Templates support integers
//! of up to 128 bits.

use minijinja::Value;
use serde_json::Value as Json;

use super::conversation::unlikely_word;
use super::{to_value, to_value_with};

/// Whether JSON has integers beyond 64 bits.
///
/// # Errors
///
/// The first integer beyond 128 bits.
pub fn has_large_integers(json: &str) -> Result<bool, &str> {
    let mut has_large = false;
    for number in numbers(json).filter(|number| is_large(number)) {
        number.parse::<i128>().map_err(|_| number)?;
        has_large = true;
    }
    Ok(has_large)
}

/// A message, with the arguments of its calls as objects if they are JSON texts of objects.
pub(super) fn message_value(message: &Json) -> Value {
    with_entry(message, "tool_calls", &|calls| match calls {
        Json::Array(calls) => Value::from(calls.iter().map(call_value).collect::<Vec<_>>()),
        other => to_value(other),
    })
}

fn call_value(call: &Json) -> Value {
    with_entry(call, "function", &|function| {
        with_entry(function, "arguments", &arguments_value)
    })
}

/// `object` with one of its entries converted by `convert`.
fn with_entry(object: &Json, name: &str, convert: &dyn Fn(&Json) -> Value) -> Value {
    let Json::Object(pairs) = object else {
        return to_value(object);
    };
    Value::from_pairs(pairs.iter().map(|(key, json)| {
        let value = if key == name {
            convert(json)
        } else {
            to_value(json)
        };
        (key.as_str(), value)
    }))
}

fn arguments_value(arguments: &Json) -> Value {
    let exact = arguments.as_str().and_then(exact_object);
    exact.unwrap_or_else(|| to_value(arguments))
}

/// `None` if the text is not a JSON object with large integers.
fn exact_object(text: &str) -> Option<Value> {
    if !text.trim_start().starts_with('{') || has_large_integers(text) != Ok(true) {
        return None;
    }
    // Large integers are passed as strings that no client can have written.
    let mark = unlikely_word();
    let (mut marked, mut end) = (String::with_capacity(text.len()), 0);
    for number in numbers(text).filter(|number| is_large(number)) {
        let start = number.as_ptr() as usize - text.as_ptr() as usize;
        marked.push_str(&text[end..start]);
        marked.extend(["\"", &mark, number, "\""]);
        end = start + number.len();
    }
    marked.push_str(&text[end..]);
    let object: Json = serde_json::from_str(&marked).ok()?;
    Some(to_value_with(&object, &|text| {
        let integer = text
            .strip_prefix(&mark)
            .and_then(|n| n.parse::<i128>().ok());
        integer.map_or_else(|| Value::from(text), Value::from)
    }))
}

fn is_large(number: &str) -> bool {
    let is_integer = !number.contains(['.', 'e', 'E']);
    is_integer && number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
}

/// The numbers of a JSON text, in order, excluding those in strings.
fn numbers(mut rest: &str) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(|c: char| c == '"' || c == '-' || c.is_ascii_digit())?;
            rest = &rest[start..];
            if let Some(inside) = rest.strip_prefix('"') {
                rest = after_string(inside);
                continue;
            }
            let is_part = |c: char| c.is_ascii_digit() || "+-.eE".contains(c);
            let n_bytes = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
            let (number, after) = rest.split_at(n_bytes);
            rest = after;
            return Some(number);
        }
    })
}

/// The rest after the string whose content begins here.
fn after_string(inside: &str) -> &str {
    let mut is_escaped = false;
    for (i, byte) in inside.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return &inside[i + 1..],
            _ => {}
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::python_format::{JsonStyle, json_dumps};

    fn written(text: &str) -> String {
        let call =
            serde_json::json!({"tool_calls": [{"function": {"name": "f", "arguments": text}}]});
        let message = message_value(&call);
        let calls = message.get_attr("tool_calls").expect("calls");
        let call = calls.get_item_by_index(0).expect("a call");
        let function = call.get_attr("function").expect("a function");
        let arguments = function.get_attr("arguments").expect("arguments");
        json_dumps(&arguments, &JsonStyle::default()).expect("JSON")
    }

    #[test]
    fn large_integers_keep_their_digits() {
        for text in [
            r#"{"n": 123456789012345678901234567890}"#,
            r#"{"n": -123456789012345678901234567890, "m": [18446744073709551615, 18446744073709551616]}"#,
            r#"{"z": {"a": [1.5, 170141183460469231731687303715884105727]}, "a": "12345678901234567890123 \" 1"}"#,
        ] {
            assert_eq!(has_large_integers(text), Ok(true), "{text}");
            assert_eq!(written(text), text);
        }
    }

    #[test]
    fn what_has_none_is_left_to_others() {
        for text in [
            r#"{"n": 18446744073709551615, "m": -9223372036854775808, "f": 1e30, "g": 1.5}"#,
            r#"{"t": "123456789012345678901234567890"}"#,
            r#"{"t": "a\\\"123456789012345678901234567890"}"#,
            "",
            "\"",
        ] {
            assert_eq!(has_large_integers(text), Ok(false), "{text}");
        }
        let beyond = format!("{{\"n\": 1{}}}", "0".repeat(40));
        assert_eq!(has_large_integers(&beyond).expect_err("beyond").len(), 41);
        // Not an object: the text stays a text.
        let list = "[123456789012345678901234567890]";
        assert_eq!(written(list), format!("\"{list}\""));
    }
}
