//! The command line, in two steps: exactly what was typed ([`typed`]), then values that were
//! validated against each other ([`resolved`]).
//!
//! Flag names and value formats are SGLang's, so a launch line from its documentation can be pasted
//! after `engine serve`. A flag that the chosen executor does not use is accepted and listed with
//! the reason ([`inactive`]); none is silently ignored.
//!
//! Common flags of SGLang, vLLM and llama.cpp with other names here are translated before the line
//! is parsed ([`aliases`]), and flags can come from the environment ([`environment`]).
//!
//! Several models are given one after the other on the command line, or in an equivalent file
//! ([`models`]).

pub mod aliases;
pub mod environment;
mod file_lines;
pub mod inactive;
mod kept_streams;
mod keys;
mod kv_events;
mod loopback;
pub mod models;
mod origins;
pub mod resolved;
pub mod result_cache;
pub mod size;
mod speculation;
mod template;
mod traces;
pub mod typed;
mod warnings;

pub use kept_streams::KeptStreamLimits;
pub use loopback::is_loopback;
pub use models::{ModelPlan, PlanError, ServePlan};
pub use origins::AllowedOrigins;
pub use resolved::{ConfigError, EngineConfig, HttpConfig, ServeConfig};
pub use result_cache::{RedisUrl, ResultCacheConfig, ResultCachePlace, redacted_url};
pub use template::ChatTemplateFlag;
pub use typed::{EngineArgs, HttpArgs, ModelsArgs, ServeArgs};
