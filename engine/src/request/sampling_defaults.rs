//! A model's recommended sampling parameters for requests that do not set them:
//! `generation_config.json`.
//!
//! `do_sample` and lengths are ignored: greedy sampling is controlled by the temperature, and
//! lengths by the request. vLLM and SGLang use the same fields.

use std::path::Path;

use super::ranges::{self, Range};
use crate::model::config::ConfigError;
use crate::model::config_json::read_json;
use crate::model::json_fields::Fields;

/// `None`: not in the file, and OpenAI's default applies.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct SamplingDefaults {
    pub temperature: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

/// The file's recommendations, and those that were dropped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recommendation {
    pub defaults: SamplingDefaults,
    /// Values outside the ranges of requests, each with its range; they are ignored.
    pub dropped: Vec<String>,
}

impl Recommendation {
    /// Reads the file of a folder; without a file nothing is recommended. The ranges are those of
    /// requests. A value that is not a number is an error.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is no JSON object, or one of the values is of the wrong type.
    /// A number outside its range is left out with a remark.
    pub fn read_folder(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("generation_config.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let json = read_json(&path)?;
        let fields = Fields::of(&json, "generation_config.json: ")?;
        let mut dropped = Vec::new();
        let mut drop_value = |name: &str, value: f64, range: &dyn std::fmt::Display| {
            dropped.push(format!(
                "{} is {value}, but may be {range}",
                fields.key(name)
            ));
        };
        let mut ranged = |range: Range| -> Result<Option<f32>, ConfigError> {
            let Some(value) = fields.number(range.name)? else {
                return Ok(None);
            };
            let taken = range.take(value);
            if taken.is_none() {
                drop_value(range.name, value, &range);
            }
            Ok(taken)
        };
        let temperature = ranged(ranges::TEMPERATURE)?;
        let top_p = ranged(ranges::TOP_P)?;
        let min_p = ranged(ranges::MIN_P)?;
        let repetition_penalty = ranged(ranges::REPETITION_PENALTY)?;
        let (least, most) = (*ranges::TOP_K.start(), *ranges::TOP_K.end());
        let top_k = match fields.number("top_k")? {
            Some(k) if !(least as f64..=most as f64).contains(&k) => {
                drop_value("top_k", k, &format_args!("{least} to {most}"));
                None
            }
            // Below 1 all tokens are kept, as in requests.
            k => k.map(|k| k.max(0.0) as usize),
        };
        let defaults = SamplingDefaults {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
        };
        Ok(Self { defaults, dropped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(text: &str) -> Result<Recommendation, String> {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("generation_config.json"), text).expect("written");
        Recommendation::read_folder(dir.path()).map_err(|error| error.to_string())
    }

    fn read(text: &str) -> Result<SamplingDefaults, String> {
        let read = read_all(text)?;
        assert_eq!(read.dropped, [] as [String; 0]);
        Ok(read.defaults)
    }

    #[test]
    fn what_the_file_recommends_is_read_and_the_rest_is_left_open() {
        let qwen3 = r#"{"bos_token_id": 151643, "do_sample": true, "eos_token_id": [151645, 151643],
            "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"}"#;
        let expected = SamplingDefaults {
            temperature: Some(0.6),
            top_k: Some(20),
            top_p: Some(0.95),
            ..SamplingDefaults::default()
        };
        assert_eq!(read(qwen3), Ok(expected));
        assert_eq!(
            read(r#"{"repetition_penalty": 1.05, "min_p": 0, "top_k": -1, "top_p": null}"#),
            Ok(SamplingDefaults {
                repetition_penalty: Some(1.05),
                min_p: Some(0.0),
                top_k: Some(0),
                ..SamplingDefaults::default()
            })
        );
        let empty = tempfile::tempdir().expect("a folder");
        let nothing = Recommendation::read_folder(empty.path()).expect("no file is no error");
        assert_eq!(nothing, Recommendation::default());
    }

    /// The same ranges apply to requests and to the file.
    #[test]
    fn the_ends_of_every_range_are_taken_and_what_is_beyond_is_dropped_by_name() {
        for range in [
            ranges::TEMPERATURE,
            ranges::TOP_P,
            ranges::MIN_P,
            ranges::REPETITION_PENALTY,
        ] {
            let (name, least, most) = (range.name, f64::from(range.least), f64::from(range.most));
            for value in [least, most, least.midpoint(most).min(2.5)] {
                let read = read(&format!("{{\"{name}\": {value}}}")).expect(name);
                assert_ne!(read, SamplingDefaults::default(), "{name} {value}");
            }
            for value in [least - 1.0, most * 2.0] {
                let read = read_all(&format!("{{\"{name}\": {value}, \"top_k\": 7}}")).expect(name);
                let rest = SamplingDefaults {
                    top_k: Some(7),
                    ..SamplingDefaults::default()
                };
                assert_eq!(read.defaults, rest);
                let expected =
                    format!("generation_config.json: {name} is {value}, but may be {range}");
                assert_eq!(read.dropped, [expected]);
            }
        }
        let read_k = read_all("{\"top_k\": -2}").expect("reads");
        assert_eq!(read_k.defaults.top_k, None);
        let expected = "generation_config.json: top_k is -2, but may be -1 to 2147483647";
        assert_eq!(read_k.dropped, [expected]);
    }

    #[test]
    fn what_is_no_number_is_refused_by_name() {
        let error = read_all("{\"temperature\": \"hot\"}").expect_err("refused");
        let expected = "generation_config.json: temperature is \"hot\"";
        assert!(error.contains(expected), "{error}");
    }
}
