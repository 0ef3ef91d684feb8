//! The flags of speculative decoding: SGLang's one by one, or vLLM's JSON.

use serde_json::Value;

use super::resolved::ConfigError;
use super::typed::EngineArgs;
use crate::speculation::{Algorithm, MAX_DRAFTS, NgramConfig, SpeculationConfig};

/// Seven drafts and the known token are the eight rows that a GPU's smallest kernels compute.
const DEFAULT_DRAFTS: usize = 7;
/// Longest n-gram that can be asked for.
pub(super) const MAX_MATCH: usize = 64;

const ALGORITHM: &str = "--speculative-algorithm";
const JSON: &str = "--speculative-config";
const MIN_WINDOW: &str = "--speculative-ngram-min-match-window-size";

/// Algorithms of other servers.
const NOT_YET: [&str; 10] = [
    "EAGLE",
    "EAGLE3",
    "STANDALONE",
    "NEXTN",
    "MTP",
    "SUFFIX",
    "MEDUSA",
    "DFLASH",
    "DRAFT_MODEL",
    "MLP_SPECULATOR",
];

impl EngineArgs {
    pub(super) fn resolve_speculation(&self) -> Result<Option<SpeculationConfig>, ConfigError> {
        if let Some(json) = &self.speculative_config {
            if self.speculative_algorithm.is_some() {
                let clash = "says the same; give only one of them";
                return Err(ConfigError::new(ALGORITHM, JSON, clash));
            }
            return of_json(json).map(Some);
        }
        let Some(algorithm) = &self.speculative_algorithm else {
            return Ok(None);
        };
        check_algorithm(ALGORITHM, algorithm)?;
        let default = NgramConfig::default();
        let (min, max) = match (
            self.speculative_ngram_min_match_window_size,
            self.speculative_ngram_max_match_window_size,
        ) {
            (Some(min), Some(max)) => (min, max),
            (Some(min), None) => (min, default.max_match.max(min)),
            (None, Some(max)) => (default.min_match.min(max), max),
            (None, None) => (default.min_match, default.max_match),
        };
        if min > max {
            let limit = format!(
                "must not exceed --speculative-ngram-max-match-window-size, which is {max}"
            );
            return Err(ConfigError::new(MIN_WINDOW, min, limit));
        }
        let n_draft_tokens = self.speculative_num_draft_tokens;
        Ok(Some(ngram(
            n_draft_tokens.unwrap_or(DEFAULT_DRAFTS),
            min,
            max,
        )))
    }
}

fn ngram(n_draft_tokens: usize, min_match: usize, max_match: usize) -> SpeculationConfig {
    SpeculationConfig {
        algorithm: Algorithm::Ngram(NgramConfig {
            min_match,
            max_match,
        }),
        n_draft_tokens,
    }
}

fn check_algorithm(flag: &'static str, name: &str) -> Result<(), ConfigError> {
    let upper = name.to_uppercase();
    if upper == "NGRAM" {
        return Ok(());
    }
    let limit = if NOT_YET.contains(&upper.as_str()) {
        "is not supported yet, NGRAM is"
    } else {
        "is not known; NGRAM is"
    };
    Err(ConfigError::new(flag, name, limit))
}

/// vLLM's form: `{"method": "ngram", "num_speculative_tokens": N, "prompt_lookup_max": …,
/// "prompt_lookup_min": …}`.
fn of_json(json: &str) -> Result<SpeculationConfig, ConfigError> {
    let refused = |limit: String| ConfigError::new(JSON, json, limit);
    let Ok(Value::Object(map)) = serde_json::from_str(json) else {
        return Err(refused("must be a JSON object".to_owned()));
    };
    let known = [
        "method",
        "num_speculative_tokens",
        "prompt_lookup_max",
        "prompt_lookup_min",
    ];
    match map.get("method") {
        Some(Value::String(name)) => check_algorithm(JSON, name)?,
        _ => return Err(refused("needs \"method\": \"ngram\"".to_owned())),
    }
    if let Some(key) = map.keys().find(|key| !known.contains(&key.as_str())) {
        let known = known.join(", ");
        return Err(refused(format!("has {key}; the method ngram has {known}")));
    }
    let count = |name: &str, most: usize| match map.get(name) {
        None => Ok(None),
        Some(value) => {
            let count = value.as_u64().map(|n| n as usize);
            let count = count.filter(|n| (1..=most).contains(n));
            let limit = || refused(format!("{name} is {value}; it must be from 1 to {most}"));
            count.map(Some).ok_or_else(limit)
        }
    };
    let n_draft_tokens = count("num_speculative_tokens", MAX_DRAFTS)?
        .ok_or_else(|| refused("needs num_speculative_tokens".to_owned()))?;
    let default = NgramConfig::default();
    // One of them alone is both, as in vLLM.
    let (min, max) = match (
        count("prompt_lookup_min", MAX_MATCH)?,
        count("prompt_lookup_max", MAX_MATCH)?,
    ) {
        (Some(min), Some(max)) => (min, max),
        (Some(both), None) | (None, Some(both)) => (both, both),
        (None, None) => (default.min_match, default.max_match),
    };
    if min > max {
        return Err(refused(format!(
            "prompt_lookup_min is {min}; it must not exceed prompt_lookup_max, which is {max}"
        )));
    }
    Ok(ngram(n_draft_tokens, min, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(algorithm: &str) -> EngineArgs {
        EngineArgs {
            speculative_algorithm: Some(algorithm.to_owned()),
            ..EngineArgs::default()
        }
    }

    fn json(text: &str) -> Result<Option<SpeculationConfig>, String> {
        let args = EngineArgs {
            speculative_config: Some(text.to_owned()),
            ..EngineArgs::default()
        };
        args.resolve_speculation().map_err(|e| e.to_string())
    }

    #[test]
    fn flags_fill_each_other_in() {
        let resolved = |min, max| {
            let args = EngineArgs {
                speculative_ngram_min_match_window_size: min,
                speculative_ngram_max_match_window_size: max,
                ..args("ngram")
            };
            args.resolve_speculation()
        };
        assert_eq!(resolved(None, None), Ok(Some(ngram(7, 3, 12))));
        assert_eq!(resolved(Some(20), None), Ok(Some(ngram(7, 20, 20))));
        assert_eq!(resolved(None, Some(2)), Ok(Some(ngram(7, 2, 2))));
        assert_eq!(resolved(Some(1), Some(4)), Ok(Some(ngram(7, 1, 4))));
        let error = resolved(Some(5), Some(4)).unwrap_err().to_string();
        assert!(
            error.contains("min-match") && error.contains('4'),
            "{error}"
        );
        assert_eq!(EngineArgs::default().resolve_speculation(), Ok(None));
    }

    #[test]
    fn other_algorithms_are_refused_by_name() {
        for name in ["EAGLE3", "standalone", "NEXTN", "SUFFIX"] {
            let error = args(name).resolve_speculation().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert!(error.contains("not supported yet, NGRAM is"), "{error}");
        }
        let error = args("LOOKUP").resolve_speculation().unwrap_err();
        assert!(error.to_string().contains("not known"), "{error}");
    }

    #[test]
    fn the_json_of_vllm_says_the_same() {
        let text = r#"{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_max":4,"prompt_lookup_min":2}"#;
        assert_eq!(json(text), Ok(Some(ngram(5, 2, 4))));
        let text = r#"{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_max":4}"#;
        assert_eq!(json(text), Ok(Some(ngram(5, 4, 4))));
        for (text, named) in [
            ("ngram", "a JSON object"),
            (r#"{"num_speculative_tokens":5}"#, "method"),
            (
                r#"{"method":"eagle3","num_speculative_tokens":5}"#,
                "eagle3",
            ),
            (r#"{"method":"ngram"}"#, "num_speculative_tokens"),
            (
                r#"{"method":"ngram","num_speculative_tokens":32}"#,
                "1 to 31",
            ),
            (
                r#"{"method":"ngram","num_speculative_tokens":"5"}"#,
                "1 to 31",
            ),
            (
                r#"{"method":"ngram","num_speculative_tokens":5,"model":"x"}"#,
                "has model",
            ),
            (
                r#"{"method":"ngram","num_speculative_tokens":5,"prompt_lookup_max":2,"prompt_lookup_min":3}"#,
                "must not exceed",
            ),
        ] {
            let error = json(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
        let both = EngineArgs {
            speculative_config: Some("{}".to_owned()),
            ..args("NGRAM")
        };
        assert!(both.resolve_speculation().is_err());
    }
}
