//! The flags of speculative decoding: SGLang's one by one, or vLLM's JSON.

use serde_json::{Map, Value};

use super::resolved::ConfigError;
use super::typed::EngineArgs;
use crate::speculation::{Algorithm, MAX_DRAFTS, NgramConfig, SpeculationConfig, SuffixConfig};

/// Seven drafts and the known token are the eight rows that a GPU's smallest kernels compute.
const DEFAULT_DRAFTS: usize = 7;
/// Longest n-gram that can be asked for.
pub(super) const MAX_MATCH: usize = 64;
/// Largest depth of a suffix tree that can be asked for.
pub(super) const MAX_DEPTH: usize = 64;
/// Most answers that can be kept; their tokens are bounded as well.
pub(super) const MAX_ANSWERS: usize = 1 << 20;
/// Most drafts for each token of a match that can be asked for.
const MAX_FACTOR: f64 = 16.0;

const ALGORITHM: &str = "--speculative-algorithm";
const JSON: &str = "--speculative-config";
const MIN_WINDOW: &str = "--speculative-ngram-min-match-window-size";
const FACTOR: &str = "--speculative-suffix-max-spec-factor";
const MIN_PROB: &str = "--speculative-suffix-min-token-prob";

/// Algorithms of other servers.
const NOT_YET: [&str; 6] = [
    "EAGLE",
    "NEXTN",
    "MTP",
    "MEDUSA",
    "DFLASH",
    "MLP_SPECULATOR",
];

/// An algorithm that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Ngram,
    Suffix,
    Standalone,
    Eagle3,
}

/// What was asked for, and the draft model or head if it needs one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ResolvedSpeculation {
    pub config: SpeculationConfig,
    pub draft_model: Option<String>,
}

impl From<SpeculationConfig> for ResolvedSpeculation {
    fn from(config: SpeculationConfig) -> Self {
        Self {
            config,
            draft_model: None,
        }
    }
}

impl EngineArgs {
    pub(super) fn resolve_speculation(&self) -> Result<Option<ResolvedSpeculation>, ConfigError> {
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
        let n_draft_tokens = self.speculative_num_draft_tokens.unwrap_or(DEFAULT_DRAFTS);
        let drafted = |algorithm| SpeculationConfig {
            algorithm,
            n_draft_tokens,
        };
        let resolved = match method(ALGORITHM, algorithm)? {
            Method::Ngram => drafted(Algorithm::Ngram(self.resolve_ngram()?)).into(),
            Method::Suffix => drafted(Algorithm::Suffix(self.resolve_suffix()?)).into(),
            Method::Standalone => ResolvedSpeculation {
                config: drafted(Algorithm::Standalone),
                draft_model: Some(self.resolve_draft_model(algorithm)?),
            },
            Method::Eagle3 => ResolvedSpeculation {
                config: drafted(Algorithm::Eagle3),
                draft_model: Some(self.resolve_draft_model(algorithm)?),
            },
        };
        Ok(Some(resolved))
    }

    fn resolve_draft_model(&self, algorithm: &str) -> Result<String, ConfigError> {
        let path = self.speculative_draft_model_path.as_deref().map(str::trim);
        let path = path.filter(|path| !path.is_empty());
        let missing = || {
            let limit = "needs --speculative-draft-model-path, the smaller model or the head";
            ConfigError::new(ALGORITHM, algorithm, limit)
        };
        path.map(str::to_owned).ok_or_else(missing)
    }

    fn resolve_ngram(&self) -> Result<NgramConfig, ConfigError> {
        let default = NgramConfig::default();
        let (min_match, max_match) = match (
            self.speculative_ngram_min_match_window_size,
            self.speculative_ngram_max_match_window_size,
        ) {
            (Some(min), Some(max)) => (min, max),
            (Some(min), None) => (min, default.max_match.max(min)),
            (None, Some(max)) => (default.min_match.min(max), max),
            (None, None) => (default.min_match, default.max_match),
        };
        if min_match > max_match {
            let limit = format!(
                "must not exceed --speculative-ngram-max-match-window-size, which is {max_match}"
            );
            return Err(ConfigError::new(MIN_WINDOW, min_match, limit));
        }
        Ok(NgramConfig {
            min_match,
            max_match,
        })
    }

    fn resolve_suffix(&self) -> Result<SuffixConfig, ConfigError> {
        let default = SuffixConfig::default();
        let count = |typed: Option<u64>, default| typed.map_or(default, |n| n as usize);
        let refused = |flag| move |value: f64, limit: String| ConfigError::new(flag, value, limit);
        let factor = self.speculative_suffix_max_spec_factor;
        let prob = self.speculative_suffix_min_token_prob;
        Ok(SuffixConfig {
            max_tree_depth: count(
                self.speculative_suffix_max_tree_depth,
                default.max_tree_depth,
            ),
            max_cached_requests: count(
                self.speculative_suffix_max_cached_requests,
                default.max_cached_requests,
            ),
            max_spec_factor: checked_factor(
                factor.unwrap_or(default.max_spec_factor),
                refused(FACTOR),
            )?,
            min_token_prob: checked_prob(
                prob.unwrap_or(default.min_token_prob),
                refused(MIN_PROB),
            )?,
        })
    }
}

fn checked_factor(
    value: f64,
    refused: impl Fn(f64, String) -> ConfigError,
) -> Result<f64, ConfigError> {
    if value > 0.0 && value <= MAX_FACTOR {
        return Ok(value);
    }
    Err(refused(
        value,
        format!("must be above 0 and at most {MAX_FACTOR}"),
    ))
}

fn checked_prob(
    value: f64,
    refused: impl Fn(f64, String) -> ConfigError,
) -> Result<f64, ConfigError> {
    if (0.0..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(refused(value, "must be from 0 to 1".to_owned()))
}

fn method(flag: &'static str, name: &str) -> Result<Method, ConfigError> {
    let upper = name.to_uppercase();
    let limit = match upper.as_str() {
        "NGRAM" => return Ok(Method::Ngram),
        "SUFFIX" => return Ok(Method::Suffix),
        "STANDALONE" | "DRAFT_MODEL" => return Ok(Method::Standalone),
        "EAGLE3" => return Ok(Method::Eagle3),
        other if NOT_YET.contains(&other) => {
            "is not supported yet; NGRAM, SUFFIX, STANDALONE and EAGLE3 are"
        }
        _ => "is not known; NGRAM, SUFFIX, STANDALONE and EAGLE3 are",
    };
    Err(ConfigError::new(flag, name, limit))
}

/// vLLM's form: `{"method": "ngram", "num_speculative_tokens": N, "prompt_lookup_max": …,
/// "prompt_lookup_min": …}`, `{"method": "suffix", "suffix_decoding_…": …}` or `{"method":
/// "draft_model" | "eagle3", "model": …}`.
fn of_json(text: &str) -> Result<ResolvedSpeculation, ConfigError> {
    let refused = |limit: String| ConfigError::new(JSON, text, limit);
    let Ok(Value::Object(map)) = serde_json::from_str(text) else {
        return Err(refused("must be a JSON object".to_owned()));
    };
    let json = Json { text, map };
    let Some(Value::String(name)) = json.map.get("method") else {
        let limit = "needs \"method\": \"ngram\", \"suffix\", \"draft_model\" or \"eagle3\"";
        return Err(refused(limit.to_owned()));
    };
    match method(JSON, name)? {
        Method::Ngram => json.ngram().map(Into::into),
        Method::Suffix => json.suffix().map(Into::into),
        Method::Standalone => json.of_model("draft_model", Algorithm::Standalone),
        Method::Eagle3 => json.of_model("eagle3", Algorithm::Eagle3),
    }
}

struct Json<'a> {
    text: &'a str,
    map: Map<String, Value>,
}

impl Json<'_> {
    fn refused(&self, limit: String) -> ConfigError {
        ConfigError::new(JSON, self.text, limit)
    }

    fn allow(&self, method: &str, known: &[&str]) -> Result<(), ConfigError> {
        match self.map.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let known = known.join(", ");
                Err(self.refused(format!("has {key}; the method {method} has {known}")))
            }
        }
    }

    fn count(&self, name: &str, least: usize, most: usize) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.map.get(name) else {
            return Ok(None);
        };
        let count = value.as_u64().map(|n| n as usize);
        let count = count.filter(|n| (least..=most).contains(n));
        let limit = || format!("{name} is {value}; it must be from {least} to {most}");
        count.map(Some).ok_or_else(|| self.refused(limit()))
    }

    fn number(&self, name: &str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.map.get(name) else {
            return Ok(default);
        };
        let limit = || format!("{name} is {value}; it must be a number");
        value.as_f64().ok_or_else(|| self.refused(limit()))
    }

    fn ngram(&self) -> Result<SpeculationConfig, ConfigError> {
        self.allow(
            "ngram",
            &[
                "method",
                "num_speculative_tokens",
                "prompt_lookup_max",
                "prompt_lookup_min",
            ],
        )?;
        let n_draft_tokens = self
            .count("num_speculative_tokens", 1, MAX_DRAFTS)?
            .ok_or_else(|| self.refused("needs num_speculative_tokens".to_owned()))?;
        let default = NgramConfig::default();
        // One of them alone is both, as in vLLM.
        let (min_match, max_match) = match (
            self.count("prompt_lookup_min", 1, MAX_MATCH)?,
            self.count("prompt_lookup_max", 1, MAX_MATCH)?,
        ) {
            (Some(min), Some(max)) => (min, max),
            (Some(both), None) | (None, Some(both)) => (both, both),
            (None, None) => (default.min_match, default.max_match),
        };
        if min_match > max_match {
            return Err(self.refused(format!(
                "prompt_lookup_min is {min_match}; it must not exceed prompt_lookup_max, which \
                 is {max_match}"
            )));
        }
        Ok(SpeculationConfig {
            algorithm: Algorithm::Ngram(NgramConfig {
                min_match,
                max_match,
            }),
            n_draft_tokens,
        })
    }

    /// A method whose guesses a model or a head makes.
    fn of_model(
        &self,
        method: &str,
        algorithm: Algorithm,
    ) -> Result<ResolvedSpeculation, ConfigError> {
        self.allow(method, &["method", "model", "num_speculative_tokens"])?;
        let Some(Value::String(path)) = self.map.get("model") else {
            let limit = "needs model, the name of the smaller model or the head";
            return Err(self.refused(limit.to_owned()));
        };
        let n_draft_tokens = self
            .count("num_speculative_tokens", 1, MAX_DRAFTS)?
            .ok_or_else(|| self.refused("needs num_speculative_tokens".to_owned()))?;
        Ok(ResolvedSpeculation {
            config: SpeculationConfig {
                algorithm,
                n_draft_tokens,
            },
            draft_model: Some(path.clone()),
        })
    }

    fn suffix(&self) -> Result<SpeculationConfig, ConfigError> {
        let [depth, answers, factor, prob] = [
            "suffix_decoding_max_tree_depth",
            "suffix_decoding_max_cached_requests",
            "suffix_decoding_max_spec_factor",
            "suffix_decoding_min_token_prob",
        ];
        let names = [
            "method",
            "num_speculative_tokens",
            depth,
            answers,
            factor,
            prob,
        ];
        self.allow("suffix", &names)?;
        let default = SuffixConfig::default();
        let refused = |name: &'static str| {
            move |value: f64, limit: String| self.refused(format!("{name} is {value}; it {limit}"))
        };
        let max_tree_depth = self
            .count(depth, 2, MAX_DEPTH)?
            .unwrap_or(default.max_tree_depth);
        // Without a number there are as many as the tree is deep, as in vLLM.
        let n_draft_tokens = self
            .count("num_speculative_tokens", 1, MAX_DRAFTS)?
            .unwrap_or(max_tree_depth.min(MAX_DRAFTS));
        let config = SuffixConfig {
            max_tree_depth,
            max_cached_requests: self
                .count(answers, 0, MAX_ANSWERS)?
                .unwrap_or(default.max_cached_requests),
            max_spec_factor: checked_factor(
                self.number(factor, default.max_spec_factor)?,
                refused(factor),
            )?,
            min_token_prob: checked_prob(
                self.number(prob, default.min_token_prob)?,
                refused(prob),
            )?,
        };
        Ok(SpeculationConfig {
            algorithm: Algorithm::Suffix(config),
            n_draft_tokens,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ngram(n_draft_tokens: usize, min_match: usize, max_match: usize) -> SpeculationConfig {
        SpeculationConfig {
            algorithm: Algorithm::Ngram(NgramConfig {
                min_match,
                max_match,
            }),
            n_draft_tokens,
        }
    }

    fn suffix(n_draft_tokens: usize, config: SuffixConfig) -> SpeculationConfig {
        SpeculationConfig {
            algorithm: Algorithm::Suffix(config),
            n_draft_tokens,
        }
    }

    fn args(algorithm: &str) -> EngineArgs {
        EngineArgs {
            speculative_algorithm: Some(algorithm.to_owned()),
            ..EngineArgs::default()
        }
    }

    fn config_of(args: &EngineArgs) -> Result<Option<SpeculationConfig>, ConfigError> {
        let resolved = args.resolve_speculation()?;
        Ok(resolved.map(|resolved| {
            assert_eq!(resolved.draft_model, None);
            resolved.config
        }))
    }

    fn of(text: &str) -> EngineArgs {
        EngineArgs {
            speculative_config: Some(text.to_owned()),
            ..EngineArgs::default()
        }
    }

    fn json(text: &str) -> Result<Option<SpeculationConfig>, String> {
        config_of(&of(text)).map_err(|e| e.to_string())
    }

    #[test]
    fn flags_fill_each_other_in() {
        let resolved = |min, max| {
            let args = EngineArgs {
                speculative_ngram_min_match_window_size: min,
                speculative_ngram_max_match_window_size: max,
                ..args("ngram")
            };
            config_of(&args)
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
        for name in ["eagle", "NEXTN", "DFLASH"] {
            let error = args(name).resolve_speculation().unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
            assert!(
                error.contains("not supported yet; NGRAM, SUFFIX, STANDALONE and EAGLE3 are"),
                "{error}"
            );
        }
        let error = args("LOOKUP").resolve_speculation().unwrap_err();
        assert!(error.to_string().contains("not known"), "{error}");
    }

    #[test]
    fn a_draft_model_is_named() {
        let named = EngineArgs {
            speculative_draft_model_path: Some(" org/small ".to_owned()),
            speculative_num_draft_tokens: Some(4),
            ..args("standalone")
        };
        let expected = |n_draft_tokens| ResolvedSpeculation {
            config: SpeculationConfig {
                algorithm: Algorithm::Standalone,
                n_draft_tokens,
            },
            draft_model: Some("org/small".to_owned()),
        };
        assert_eq!(named.resolve_speculation(), Ok(Some(expected(4))));
        let text = r#"{"method":"draft_model","model":"org/small","num_speculative_tokens":5}"#;
        assert_eq!(of(text).resolve_speculation(), Ok(Some(expected(5))));
        let error = args("STANDALONE").resolve_speculation().unwrap_err();
        assert!(error.to_string().contains("--speculative-draft-model-path"));
        let error = json(r#"{"method":"draft_model","num_speculative_tokens":5}"#).unwrap_err();
        assert!(error.contains("needs model"), "{error}");
    }

    #[test]
    fn a_draft_head_is_named() {
        let named = EngineArgs {
            speculative_draft_model_path: Some("org/head".to_owned()),
            speculative_num_draft_tokens: Some(3),
            ..args("eagle3")
        };
        let expected = ResolvedSpeculation {
            config: SpeculationConfig {
                algorithm: Algorithm::Eagle3,
                n_draft_tokens: 3,
            },
            draft_model: Some("org/head".to_owned()),
        };
        assert_eq!(named.resolve_speculation(), Ok(Some(expected.clone())));
        let text = r#"{"method":"eagle3","model":"org/head","num_speculative_tokens":3}"#;
        assert_eq!(of(text).resolve_speculation(), Ok(Some(expected)));
        assert!(args("EAGLE3").resolve_speculation().is_err());
    }

    #[test]
    fn suffix_has_the_limits_of_vllm() {
        let all = EngineArgs {
            speculative_num_draft_tokens: Some(5),
            speculative_suffix_max_tree_depth: Some(12),
            speculative_suffix_max_cached_requests: Some(0),
            speculative_suffix_max_spec_factor: Some(2.5),
            speculative_suffix_min_token_prob: Some(0.3),
            ..args("suffix")
        };
        let config = SuffixConfig {
            max_tree_depth: 12,
            max_cached_requests: 0,
            max_spec_factor: 2.5,
            min_token_prob: 0.3,
        };
        assert_eq!(config_of(&all), Ok(Some(suffix(5, config))));
        let text = r#"{"method":"suffix","num_speculative_tokens":5,"suffix_decoding_max_tree_depth":12,
            "suffix_decoding_max_cached_requests":0,"suffix_decoding_max_spec_factor":2.5,
            "suffix_decoding_min_token_prob":0.3}"#;
        assert_eq!(json(text), Ok(Some(suffix(5, config))));
        let default = SuffixConfig::default();
        let plain = config_of(&args("SUFFIX"));
        assert_eq!(plain, Ok(Some(suffix(7, default))));
        assert_eq!(
            json(r#"{"method":"suffix"}"#),
            Ok(Some(suffix(24, default)))
        );
        for (factor, prob, named) in [
            (Some(0.0), None, "--speculative-suffix-max-spec-factor"),
            (Some(17.0), None, "at most 16"),
            (Some(f64::NAN), None, "above 0"),
            (None, Some(1.5), "--speculative-suffix-min-token-prob"),
            (None, Some(-0.1), "from 0 to 1"),
        ] {
            let args = EngineArgs {
                speculative_suffix_max_spec_factor: factor,
                speculative_suffix_min_token_prob: prob,
                ..args("SUFFIX")
            };
            let error = args.resolve_speculation().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        for (text, named) in [
            (
                r#"{"method":"suffix","prompt_lookup_max":3}"#,
                "has prompt_lookup_max",
            ),
            (
                r#"{"method":"suffix","suffix_decoding_max_tree_depth":1}"#,
                "from 2 to 64",
            ),
            (
                r#"{"method":"suffix","suffix_decoding_max_spec_factor":"x"}"#,
                "must be a number",
            ),
            (
                r#"{"method":"suffix","suffix_decoding_min_token_prob":2}"#,
                "suffix_decoding_min_token_prob is 2; it must be from 0 to 1",
            ),
        ] {
            let error = json(text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
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
