//! What a model's makers recommend for requests that do not say how to sample:
//! `generation_config.json`.
//!
//! `do_sample` and lengths are not read: whether a request is greedy is its temperature's business,
//! and how long an answer may be is the request's. vLLM and SGLang take the same fields.

use std::path::Path;

use super::config::ConfigError;
use super::config_json::read_json;
use super::json_fields::Fields;

/// `None`: the file does not say, and OpenAI's default holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct SamplingDefaults {
    pub temperature: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// Reads the file of a folder; nothing is recommended where there is none. A value outside the
    /// range that a request may ask for is an error.
    pub fn read_folder(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("generation_config.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let json = read_json(&path)?;
        let fields = Fields::of(&json, "generation_config.json: ")?;
        let ranged = |key: &str, min: f64, max: f64| match fields.number(key)? {
            Some(value) if !(min..=max).contains(&value) => {
                let limit = format!("{min} to {max}; --sampling-defaults openai does without");
                Err(ConfigError::invalid(fields.key(key), value, limit))
            }
            value => Ok(value.map(|value| value as f32)),
        };
        Ok(Self {
            temperature: ranged("temperature", 0.0, 2.0)?,
            // Below 1 all tokens are kept, as requests have it.
            top_k: ranged("top_k", -1.0, f64::from(i32::MAX))?.map(|k| k.max(0.0) as usize),
            top_p: ranged("top_p", 0.001, 1.0)?,
            min_p: ranged("min_p", 0.0, 1.0)?,
            repetition_penalty: ranged("repetition_penalty", 0.01, 10.0)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SamplingDefaults, String> {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("generation_config.json"), text).expect("written");
        SamplingDefaults::read_folder(dir.path()).map_err(|error| error.to_string())
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
        let nothing = SamplingDefaults::read_folder(empty.path()).expect("no file is no error");
        assert_eq!(nothing, SamplingDefaults::default());
    }

    #[test]
    fn values_that_no_request_may_ask_for_are_refused_by_name() {
        for (key, value) in [
            ("temperature", "5"),
            ("temperature", "-1"),
            ("top_p", "0"),
            ("top_p", "1.5"),
            ("top_k", "-2"),
            ("min_p", "2"),
            ("repetition_penalty", "0"),
            ("temperature", "\"hot\""),
        ] {
            let error = read(&format!("{{\"{key}\": {value}}}")).expect_err(key);
            assert!(
                error.contains(&format!("generation_config.json: {key} is {value}")),
                "{error}"
            );
        }
    }
}
