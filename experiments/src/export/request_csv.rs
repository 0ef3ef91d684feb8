//! The request rows as CSV (RFC 4180): the columns of `requests.jsonl` and the times that follow
//! from them. A list (`token_s`) is one field, its values apart by blanks; a null is an empty field.

use serde_json::Value;

use crate::loadgen::RequestRow;
use crate::summary::RequestTimes;

pub fn table(rows: &[RequestRow]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
        let Ok(Value::Object(fields)) = serde_json::to_value(row) else {
            continue;
        };
        let times = RequestTimes::of(row);
        let derived = [
            ("ttft_ms", times.as_ref().map(|t| t.ttft_ms)),
            ("tpot_ms", times.as_ref().and_then(|t| t.tpot_ms)),
            ("e2el_ms", times.as_ref().map(|t| t.e2el_ms)),
        ]
        .map(|(name, value)| (name.to_string(), Value::from(value)));
        let all: Vec<(String, Value)> = fields.into_iter().chain(derived).collect();
        if lines.is_empty() {
            let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
            lines.push(names.join(","));
        }
        let cells: Vec<String> = all.iter().map(|(_, value)| cell(value)).collect();
        lines.push(cells.join(","));
    }
    lines.join("\r\n") + "\r\n"
}

fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(values) => values
            .iter()
            .map(Value::to_string)
            .collect::<Vec<_>>()
            .join(" "),
        other => other.to_string(),
    };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_break_a_row_is_quoted() {
        for (value, text) in [
            (Value::Null, ""),
            (Value::from(1.5), "1.5"),
            (Value::from(vec![1, 2]), "1 2"),
            (Value::from("a, \"b\"\nc"), "\"a, \"\"b\"\"\nc\""),
        ] {
            assert_eq!(cell(&value), text);
        }
    }
}
