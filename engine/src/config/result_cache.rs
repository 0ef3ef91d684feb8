//! Configuration of the result cache.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResultCacheConfig {
    pub place: ResultCachePlace,
    pub ttl: Duration,
    /// Limit on the memory, or with Redis on the largest response.
    pub max_bytes: u64,
}

impl Default for ResultCacheConfig {
    fn default() -> Self {
        Self {
            place: ResultCachePlace::Off,
            ttl: Duration::from_hours(1),
            max_bytes: 64 << 20,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResultCachePlace {
    Off,
    Memory,
    Redis(RedisUrl),
}

/// May contain a password, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(pub(crate) String);

impl RedisUrl {
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// With its password, for the Redis client only.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redacted_url(&self.0))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Removes everything between the scheme and the last `@`, and the query, which contains the
/// password for redis+unix. If the two overlap, nothing after the scheme is shown.
pub fn redacted_url(url: &str) -> String {
    const WITHHELD: &str = "(withheld)";
    let (scheme, rest) = split_scheme(url);
    let shown = rest.split('?').next().unwrap_or_default();
    match (shown.rfind('@'), rest.rfind('@')) {
        (None, None) => format!("{scheme}{shown}"),
        (Some(end), Some(last)) if end == last => format!("{scheme}{WITHHELD}{}", &shown[end..]),
        _ => format!("{scheme}{WITHHELD}"),
    }
}

/// Only the scheme: a malformed address may contain a password anywhere.
pub fn scheme_of(url: &str) -> &str {
    split_scheme(url).0
}

/// Splits off `redis://`.
fn split_scheme(url: &str) -> (&str, &str) {
    let is_scheme = |c: char| c.is_ascii_lowercase() || c == '+';
    match url.split_once("://") {
        Some((scheme, rest)) if scheme.chars().all(is_scheme) => {
            (&url[..url.len() - rest.len()], rest)
        }
        _ => ("", url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for (url, shown) in [
            (
                "redis://:pass@host:6379/0",
                "redis://(withheld)@host:6379/0",
            ),
            ("redis://user:p@ss@host", "redis://(withheld)@host"),
            ("redis://host:6379", "redis://host:6379"),
            (
                "redis+unix:///run/r.sock?pass=pw",
                "redis+unix:///run/r.sock",
            ),
            ("redis://:pa?ss@host", "redis://(withheld)"),
            ("redis://:pa#s/s@host", "redis://(withheld)@host"),
            (
                "redis+unix:///run/r.sock?pass=p@w",
                "redis+unix://(withheld)",
            ),
            ("redis:/:pa//ss@host", "(withheld)@host"),
            ("memory", "memory"),
        ] {
            let url = RedisUrl::new(url);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }
}
