//! `--otlp-traces-endpoint` and `--otlp-traces-protocol`, as in vLLM.

use axum::http::Uri;

use super::redacted_url;
use super::resolved::ConfigError;
use super::typed::HttpArgs;
use crate::traces::TracesConfig;

const ENDPOINT: &str = "--otlp-traces-endpoint";
const PROTOCOL: &str = "--otlp-traces-protocol";
/// What the flag is without being typed.
const PROTOCOL_VARIABLE: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
const HTTP_PROTOBUF: &str = "http/protobuf";

impl HttpArgs {
    pub(super) fn resolve_traces(&self) -> Result<Option<TracesConfig>, ConfigError> {
        let typed = self.otlp_traces_protocol.as_deref();
        check_protocol(PROTOCOL, typed)?;
        let Some(url) = self.otlp_traces_endpoint.as_deref() else {
            return match typed {
                Some(protocol) => {
                    let limit = "needs --otlp-traces-endpoint, the collector's URL";
                    Err(ConfigError::new(PROTOCOL, protocol, limit))
                }
                None => Ok(None),
            };
        };
        if typed.is_none() {
            let set = std::env::var(PROTOCOL_VARIABLE).ok();
            check_protocol(PROTOCOL_VARIABLE, set.as_deref())?;
        }
        endpoint(url).map(|endpoint| Some(TracesConfig { endpoint }))
    }
}

fn check_protocol(flag: &'static str, protocol: Option<&str>) -> Result<(), ConfigError> {
    let limit = match protocol {
        None | Some(HTTP_PROTOBUF) => return Ok(()),
        Some("grpc") => {
            "is not built in; use http/protobuf, which collectors take on another port, mostly 4318"
        }
        Some(_) => "must be http/protobuf",
    };
    Err(ConfigError::new(flag, protocol.unwrap_or_default(), limit))
}

/// The URL with its path.
fn endpoint(url: &str) -> Result<String, ConfigError> {
    let refused = |limit: &str| Err(ConfigError::new(ENDPOINT, redacted_url(url), limit));
    let Ok(uri) = url.parse::<Uri>() else {
        return refused("is not a URL");
    };
    let Some(authority) = uri.authority().filter(|a| !a.host().is_empty()) else {
        return refused("must be http://host:port or https://host:port, with a path or without");
    };
    if authority.as_str().contains('@') {
        return refused("must have no password; headers are in OTEL_EXPORTER_OTLP_TRACES_HEADERS");
    }
    match (uri.scheme_str(), uri.path()) {
        (Some("http" | "https"), "/" | "") => {
            Ok(format!("{}/v1/traces", url.trim_end_matches('/')))
        }
        (Some("http" | "https"), _) => Ok(url.to_owned()),
        _ => refused("must begin with http:// or https://"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(url: Option<&str>, protocol: Option<&str>) -> Result<Option<String>, String> {
        let args = HttpArgs {
            otlp_traces_endpoint: url.map(str::to_owned),
            otlp_traces_protocol: protocol.map(str::to_owned),
            ..HttpArgs::default()
        };
        let resolved = args.resolve_traces().map_err(|error| error.to_string())?;
        Ok(resolved.map(|config| config.endpoint))
    }

    #[test]
    fn a_url_without_a_path_gets_otlps() {
        for (typed, sent) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://a.example.org/", "https://a.example.org/v1/traces"),
            ("http://a:1/otlp/v1/traces", "http://a:1/otlp/v1/traces"),
        ] {
            let found = resolved(Some(typed), Some("http/protobuf"));
            assert_eq!(found.as_ref().map(Option::as_deref), Ok(Some(sent)));
        }
        assert_eq!(resolved(None, None), Ok(None));
    }

    #[test]
    fn what_is_not_sent_to_is_refused_by_name() {
        for (url, protocol, named) in [
            (Some("grpc://a:4317"), None, "must begin with http://"),
            (Some("a:4317"), None, "must be"),
            (Some("http://"), None, "not a URL"),
            (
                Some("http://a:4318"),
                Some("grpc"),
                "not built in; use http/protobuf",
            ),
            (
                Some("http://a:4318"),
                Some("http/json"),
                "must be http/protobuf",
            ),
            (None, Some("http/protobuf"), "--otlp-traces-endpoint"),
        ] {
            let error = resolved(url, protocol).unwrap_err();
            assert!(error.contains(named), "{url:?} {protocol:?}: {error}");
        }
        let error = resolved(Some("http://me:s3cret@a:4318"), None).unwrap_err();
        assert!(
            error.contains("password") && !error.contains("s3cret"),
            "{error}"
        );
    }
}
