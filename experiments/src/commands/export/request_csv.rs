//! The request rows as CSV (RFC 4180): the columns of `requests.jsonl` and the times that follow
//! from them. A list (`token_s`) is one field, its values apart by blanks; a null is an empty field,
//! and so are the times of a request that failed. All rows have the same columns, `model` too.

use records::rows::RequestRow;
use serde_json::Value;

use crate::record::summary::RequestTimes;

pub fn table(rows: &[RequestRow]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for row in rows {
        let Ok(Value::Object(fields)) = serde_json::to_value(row) else {
            continue;
        };
        let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
        if row.model.is_none() {
            // Where a row that has one has it.
            let next = fields.iter().position(|(name, _)| name == "index");
            fields.insert(next.unwrap_or(fields.len()), ("model".into(), Value::Null));
        }
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

    fn row(extra: &str) -> RequestRow {
        let text = format!(
            r#"{{"case":"c","phase":"latency","warmup":false,{extra}"index":0,"user":0,"n_users":1,"rate_per_s":null,"prompt_id":"p","max_tokens":2,"scheduled_s":0.0,"sent_s":0.0,"first_token_s":1.0,"token_s":[1.0],"end_s":2.0,"prompt_tokens":1,"output_tokens":2,"cached_tokens":0,"finish_reason":null,"error":null}}"#
        );
        serde_json::from_str(&text).expect("a row")
    }

    #[test]
    fn rows_with_and_without_a_model_have_the_same_columns_and_failed_ones_no_times() {
        let failed = RequestRow {
            error: Some("timed out".into()),
            ..row("")
        };
        let text = table(&[row(""), row(r#""model":"m","#), failed]);
        let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
        let column = |name: &str| -> Vec<&str> {
            let at = rows[0].iter().position(|cell| *cell == name).expect(name);
            rows[1..].iter().map(|row| row[at]).collect()
        };
        assert_eq!(column("model"), ["", "m", ""]);
        assert_eq!(column("index"), ["0", "0", "0"]);
        assert_eq!(column("e2el_ms"), ["2000.0", "2000.0", ""]);
        assert_eq!(column("ttft_ms")[2], "");
    }

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
