//! What vLLM's and SGLang's load generators write: one JSON object a result, alone in a file or one
//! a line. Their keys are nearly the same; `latency` is called `e2el` by one and `e2e_latency` by
//! the other.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::commands::import::Source;

/// One result.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultFile {
    source: Source,
    keys: Map<String, Value>,
}

/// Keys that every result of either program has.
const NEEDED: [&str; 5] = [
    "duration",
    "completed",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
];

impl ResultFile {
    /// All results of a file; none, or one that is no result, is an error that names its line.
    ///
    /// # Errors
    ///
    /// If the text is neither one JSON object nor one a line, holds no object, or one of them is
    /// not what `source` writes. The error names the line.
    pub fn parse(source: Source, text: &str) -> Result<Vec<Self>> {
        let text = strict_json(text);
        let objects: Vec<(usize, Value)> = match serde_json::from_str(&text) {
            Ok(value) => vec![(1, value)],
            Err(whole) => text
                .lines()
                .zip(1..)
                .filter(|(line, _)| !line.trim().is_empty())
                .map(|(line, number)| {
                    let value = serde_json::from_str(line).with_context(|| {
                        format!("neither one JSON object ({whole}) nor one a line: line {number}")
                    })?;
                    Ok((number, value))
                })
                .collect::<Result<_>>()?,
        };
        if objects.is_empty() {
            bail!("the file is empty");
        }
        objects
            .into_iter()
            .map(|(line, value)| {
                Self::of(source, value).with_context(|| format!("the result in line {line}"))
            })
            .collect()
    }

    fn of(source: Source, value: Value) -> Result<Self> {
        let Value::Object(keys) = value else {
            bail!("must be a JSON object");
        };
        for key in NEEDED {
            if !keys.get(key).is_some_and(Value::is_number) {
                bail!("has no number `{key}`; a result of {} has", source.tool());
            }
        }
        // What tells the two apart, so that a file is not put to the wrong source.
        let (own, other) = match source {
            Source::Vllm => ("model_id", "mean_e2e_latency_ms"),
            Source::Sglang => ("mean_e2e_latency_ms", "model_id"),
        };
        if !keys.contains_key(own) && keys.contains_key(other) {
            bail!(
                "has `{other}` and no `{own}`: it is no result of {}",
                source.tool()
            );
        }
        Ok(Self { source, keys })
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        self.keys.get(key)?.as_f64()
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.keys.get(key)? {
            // Blank text is none: the tables that are written from it are read with their cells trimmed.
            Value::String(text) => Some(text.trim().to_owned()).filter(|text| !text.is_empty()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    pub fn backend(&self) -> Option<String> {
        self.text("backend").or_else(|| self.text("endpoint_type"))
    }

    /// SGLang states it only in what the server said of itself.
    pub fn model(&self) -> Option<String> {
        self.text("model_id").or_else(|| {
            let path = self
                .keys
                .get("server_info")?
                .get("model_path")?
                .as_str()?
                .trim();
            Some(path.to_string()).filter(|path| !path.is_empty())
        })
    }

    pub fn date(&self) -> Option<String> {
        self.text("date")
    }

    /// `rate inf, concurrency 20`: what the load was.
    pub fn condition(&self) -> String {
        let rate = self.text("request_rate").map(|rate| format!("rate {rate}"));
        let limit = self
            .text("max_concurrency")
            .map(|limit| format!("concurrency {limit}"));
        let parts: Vec<String> = rate.into_iter().chain(limit).collect();
        parts.join(", ")
    }

    /// The key's name for end-to-end latency.
    pub fn latency_key(&self) -> &'static str {
        match self.source {
            Source::Vllm => "e2el",
            Source::Sglang => "e2e_latency",
        }
    }
}

/// Python writes `Infinity` and `NaN`, which JSON does not have: an unlimited rate becomes `"inf"`,
/// as vLLM writes it, and what is no number becomes null.
fn strict_json(text: &str) -> String {
    let mut strict = String::with_capacity(text.len());
    let mut in_string = false;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if !in_string {
            let word = [
                ("-Infinity", "\"-inf\""),
                ("Infinity", "\"inf\""),
                ("NaN", "null"),
            ]
            .into_iter()
            .find(|(word, _)| rest.starts_with(word));
            if let Some((word, json)) = word {
                strict.push_str(json);
                rest = &rest[word.len()..];
                continue;
            }
        }
        let mut n_bytes = c.len_utf8();
        match c {
            '"' => in_string = !in_string,
            '\\' if in_string => n_bytes += rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        strict.push_str(&rest[..n_bytes]);
        rest = &rest[n_bytes..];
    }
    strict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pythons_words_become_json_and_strings_stay() {
        assert_eq!(
            strict_json(r#"{"a": Infinity, "b": [-Infinity, NaN], "c": "Infinity \" NaN é\\"}"#),
            r#"{"a": "inf", "b": ["-inf", null], "c": "Infinity \" NaN é\\"}"#
        );
    }

    #[test]
    fn a_blank_name_is_no_name() {
        let blank = r#"{"model_id":" \u2003","backend":"\t","date":" 20260101-000000 ","duration":1,"completed":1,"total_output_tokens":1,"request_throughput":1,"output_throughput":1}"#;
        let results = ResultFile::parse(Source::Vllm, blank).expect("one result");
        assert_eq!((results[0].model(), results[0].backend()), (None, None));
        assert_eq!(results[0].date().as_deref(), Some("20260101-000000"));
    }

    #[test]
    fn mistakes_name_the_line_and_the_key() {
        let good = r#"{"model_id":"m","duration":1,"completed":1,"total_output_tokens":1,"request_throughput":1,"output_throughput":1}"#;
        let parse = |source, text: &str| ResultFile::parse(source, text);
        assert_eq!(
            parse(Source::Vllm, &format!("{good}\n\n{good}\n"))
                .expect("two")
                .len(),
            2
        );
        for (source, text, part) in [
            (Source::Vllm, String::new(), "the file is empty"),
            (Source::Vllm, "{".into(), "line 1"),
            (Source::Vllm, format!("{good}\n{{}}"), "line 3"),
            (Source::Vllm, "[]".into(), "must be a JSON object"),
            (
                Source::Vllm,
                "{\"duration\": 1}".into(),
                "no number `completed`",
            ),
            (
                Source::Sglang,
                good.into(),
                "it is no result of `sglang.bench_serving`",
            ),
        ] {
            let error = format!(
                "{:#}",
                parse(source, &text.replace("\n{}", "\n\n{}")).expect_err("a mistake")
            );
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
