//! An inference engine for small and 4-bit language models, and its OpenAI-compatible server.
//!
//! The path of a request: HTTP JSON → [`server`] validates it into a [`request::Request`] →
//! [`text`] tokenizes → [`engine_loop`] drains its queue → `scheduler.plan()` →
//! `executor.execute()` → `scheduler.commit()` → tokens → text → server-sent events.
//!
//! Deliberately absent: model code loaded at run time, training, more than one device.

pub mod bench;
pub mod config;
mod deep_stack;
pub mod engine_loop;
pub mod errors;
pub mod executor;
pub mod guide;
pub mod inspect;
pub mod kv;
pub mod launch;
pub mod metrics;
pub mod model;
pub mod printable;
pub mod request;
pub mod result_cache;
pub mod sampler;
pub mod scheduler;
pub mod served_model;
pub mod server;
pub mod simulate;
pub mod source;
pub mod step;
pub mod structured;
pub mod text;
pub mod weights;
