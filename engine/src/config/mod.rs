//! The command line, in two steps: exactly what was typed ([`typed`]), then values that were
//! checked against each other ([`resolved`]).
//!
//! Flag names and value forms are SGLang's, so a launch line from its documentation can be
//! pasted behind `engine serve`. A flag that the chosen executor has no use for is accepted and
//! listed with the reason ([`inactive`]); none is silently ignored.
//!
//! Deliberately absent: a configuration file. An experiment's flags are its configuration.

pub mod inactive;
pub mod resolved;
pub mod result_cache;
pub mod size;
pub mod typed;

pub use resolved::{ConfigError, EngineConfig, HttpConfig, ServeConfig};
pub use result_cache::{RedisUrl, ResultCacheConfig, ResultCachePlace, redacted_url};
pub use typed::{EngineArgs, HttpArgs, ServeArgs};
