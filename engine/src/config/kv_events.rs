//! `--kv-events-config`: JSON as vLLM and SGLang read it.
//!
//! vLLM asks for `enable_kv_cache_events`, SGLang for the publisher `zmq`; either is enough, and an
//! explicit `false` or `null` turns events off.

use serde::Deserialize;

use super::resolved::ConfigError;
use super::typed::EngineArgs;
use crate::kv_events::{Endpoint, HWM, KvEventsConfig};

const FLAG: &str = "--kv-events-config";
/// vLLM's defaults.
const ENDPOINT: &str = "tcp://*:5557";
const BUFFER_STEPS: usize = 10_000;
const MAX_QUEUE_SIZE: usize = 100_000;
const LIMIT: usize = 1 << 24;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Typed {
    enable_kv_cache_events: Option<bool>,
    publisher: Option<String>,
    endpoint: Option<String>,
    replay_endpoint: Option<String>,
    buffer_steps: Option<usize>,
    hwm: Option<usize>,
    max_queue_size: Option<usize>,
    topic: Option<String>,
}

impl EngineArgs {
    pub(super) fn resolve_kv_events(&self) -> Result<Option<KvEventsConfig>, ConfigError> {
        let Some(json) = &self.kv_events_config else {
            return Ok(None);
        };
        let typed: Typed = serde_json::from_str(json).map_err(|error| {
            let limit = format!("must be a JSON object of vLLM's form: {error}");
            ConfigError::new(FLAG, json, limit)
        })?;
        let is_zmq = match typed.publisher.as_deref() {
            None => typed.enable_kv_cache_events.unwrap_or(false),
            Some("zmq") => typed.enable_kv_cache_events.unwrap_or(true),
            Some("null") => false,
            Some(other) => {
                let limit = "publisher must be \"zmq\" or \"null\"";
                return Err(ConfigError::new(FLAG, other, limit));
            }
        };
        let endpoint = |field: &str, text: &str| {
            Endpoint::parse(text)
                .map_err(|error| ConfigError::new(FLAG, text, format!("{field} {error}")))
        };
        let count = |field: &str, typed: Option<usize>, least, default| match typed {
            Some(n) if !(least..=LIMIT).contains(&n) => {
                let limit = format!("{field} must be between {least} and {LIMIT}");
                Err(ConfigError::new(FLAG, n, limit))
            }
            typed => Ok(typed.unwrap_or(default)),
        };
        let config = KvEventsConfig {
            endpoint: endpoint("endpoint", typed.endpoint.as_deref().unwrap_or(ENDPOINT))?,
            replay_endpoint: typed
                .replay_endpoint
                .map(|text| endpoint("replay_endpoint", &text))
                .transpose()?,
            buffer_steps: count("buffer_steps", typed.buffer_steps, 0, BUFFER_STEPS)?,
            max_queue_size: count("max_queue_size", typed.max_queue_size, 1, MAX_QUEUE_SIZE)?,
            topic: typed.topic.unwrap_or_default(),
        };
        let hwm = count("hwm", typed.hwm, 1, HWM)?;
        if !is_zmq {
            return Ok(None);
        }
        if self.disable_radix_cache {
            let clash = "publishes the prefix cache, which --disable-radix-cache turns off";
            return Err(ConfigError::new(FLAG, json, clash));
        }
        if hwm != HWM {
            tracing::warn!(
                "--kv-events-config: hwm {hwm} has no effect; {HWM} messages wait for a subscriber"
            );
        }
        Ok(Some(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(json: &str) -> Result<Option<KvEventsConfig>, String> {
        let args = EngineArgs {
            kv_events_config: Some(json.to_owned()),
            ..EngineArgs::default()
        };
        args.resolve_kv_events().map_err(|error| error.to_string())
    }

    #[test]
    fn vllms_and_sglangs_forms_turn_events_on() {
        let default = resolved(r#"{"enable_kv_cache_events": true}"#)
            .unwrap()
            .unwrap();
        assert_eq!(default.endpoint.to_string(), "tcp://*:5557");
        assert_eq!(
            (default.buffer_steps, default.max_queue_size),
            (10_000, 100_000)
        );
        let line = r#"{"publisher": "zmq", "endpoint": "tcp://router:5557", "topic": "kv@a@m",
            "replay_endpoint": "tcp://*:5558", "buffer_steps": 3, "max_queue_size": 4}"#;
        let typed = resolved(line).unwrap().unwrap();
        assert_eq!(typed.topic, "kv@a@m");
        assert_eq!((typed.buffer_steps, typed.max_queue_size), (3, 4));
        assert!(!typed.endpoint.is_bound());
        for off in [
            "{}",
            r#"{"publisher": "null"}"#,
            r#"{"enable_kv_cache_events": true, "publisher": "null"}"#,
            r#"{"enable_kv_cache_events": false, "publisher": "zmq"}"#,
        ] {
            assert_eq!(resolved(off), Ok(None), "{off}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_known() {
        for (json, named) in [
            ("[]", "JSON object"),
            (
                r#"{"endpont": "tcp://*:1"}"#,
                "`endpont`, expected one of `enable_kv_cache_events`",
            ),
            (r#"{"publisher": "nats"}"#, "\"zmq\" or \"null\""),
            (
                r#"{"endpoint": "ipc:///tmp/a"}"#,
                "endpoint must be tcp://host:port",
            ),
            (
                r#"{"replay_endpoint": "tcp://*"}"#,
                "replay_endpoint must be",
            ),
            (
                r#"{"max_queue_size": 0}"#,
                "max_queue_size must be between 1",
            ),
        ] {
            let error = resolved(json).unwrap_err();
            assert!(
                error.contains(named) && error.contains(FLAG),
                "{json}: {error}"
            );
        }
        let args = EngineArgs {
            kv_events_config: Some(r#"{"publisher": "zmq"}"#.to_owned()),
            disable_radix_cache: true,
            ..EngineArgs::default()
        };
        let error = args.resolve_kv_events().unwrap_err().to_string();
        assert!(error.contains("--disable-radix-cache"), "{error}");
    }
}
