//! `--allowed-origins`: which web pages may read responses (CORS).
//!
//! A browser sends a page's requests to any address, including this machine, and the page can read
//! a response only if a header allows it. So without a key no page is allowed unless the operator
//! names it. With a key any page is allowed: it must know the key.

use serde::Serialize;

use super::resolved::ConfigError;

const FLAG: &str = "--allowed-origins";

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AllowedOrigins {
    None,
    /// Any page, on the paths that require the API key. The default if there is one.
    AnyWithKey,
    /// Any page, on all paths except `/admin`.
    Any,
    /// These pages, on all paths except `/admin`.
    These(Vec<String>),
}

impl AllowedOrigins {
    /// `typed`: `*`, `none`, or origins, each as an argument or all in one JSON list.
    pub(super) fn resolve(typed: &[String], has_key: bool) -> Result<Self, ConfigError> {
        let mut origins = Vec::new();
        for value in typed {
            if value.trim_start().starts_with('[') {
                let listed: Vec<String> = serde_json::from_str(value).map_err(|error| {
                    ConfigError::new(
                        FLAG,
                        value,
                        format!("is not a JSON list of strings: {error}"),
                    )
                })?;
                origins.extend(listed);
            } else {
                origins.push(value.clone());
            }
        }
        let is_alone = origins.len() == 1;
        match origins.first().map(String::as_str) {
            None if !typed.is_empty() => return Ok(Self::None),
            None if has_key => return Ok(Self::AnyWithKey),
            None => return Ok(Self::None),
            Some("*") if is_alone => return Ok(Self::Any),
            Some("none") if is_alone => return Ok(Self::None),
            Some(_) => {}
        }
        let origins = origins.into_iter().map(origin);
        origins.collect::<Result<_, _>>().map(Self::These)
    }
}

/// In the form that browsers send: scheme, host and port, in lower case, without a path.
fn origin(typed: String) -> Result<String, ConfigError> {
    let wanted = "must be *, none, or origins such as https://chat.example.org:8443";
    let (scheme, host) = typed
        .split_once("://")
        .ok_or_else(|| ConfigError::new(FLAG, &typed, wanted))?;
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    if scheme.is_empty()
        || host.is_empty()
        || !scheme.chars().all(is_scheme)
        || !host.chars().all(is_host)
    {
        return Err(ConfigError::new(FLAG, &typed, wanted));
    }
    Ok(typed.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(typed: &[&str], has_key: bool) -> Result<AllowedOrigins, ConfigError> {
        let typed: Vec<String> = typed.iter().map(|&value| value.to_owned()).collect();
        AllowedOrigins::resolve(&typed, has_key)
    }

    #[test]
    fn the_default_depends_on_the_key() {
        assert_eq!(resolve(&[], false), Ok(AllowedOrigins::None));
        assert_eq!(resolve(&[], true), Ok(AllowedOrigins::AnyWithKey));
    }

    #[test]
    fn what_is_typed_counts_with_and_without_a_key() {
        let these = |origins: &[&str]| {
            let origins = origins.iter().map(|&origin| origin.to_owned());
            Ok(AllowedOrigins::These(origins.collect()))
        };
        for has_key in [true, false] {
            assert_eq!(resolve(&["*"], has_key), Ok(AllowedOrigins::Any));
            assert_eq!(resolve(&["[\"*\"]"], has_key), Ok(AllowedOrigins::Any));
            assert_eq!(resolve(&["none"], has_key), Ok(AllowedOrigins::None));
            assert_eq!(resolve(&["[]"], has_key), Ok(AllowedOrigins::None));
            assert_eq!(
                resolve(&["https://A.example", "http://localhost:3000"], has_key),
                these(&["https://a.example", "http://localhost:3000"])
            );
            assert_eq!(
                resolve(&["[\"app://chat\", \"http://[::1]:8080\"]"], has_key),
                these(&["app://chat", "http://[::1]:8080"])
            );
        }
        for wrong in [
            "localhost",
            "https://a.example/",
            "http://",
            "*://a",
            "[1]",
            "[",
            "",
        ] {
            let error = resolve(&[wrong], false).expect_err(wrong);
            assert_eq!(error.flag, FLAG);
        }
        assert!(resolve(&["*", "https://a.example"], false).is_err());
    }
}
