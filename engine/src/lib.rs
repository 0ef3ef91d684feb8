//! An inference engine for small and 4-bit language models, and its OpenAI-compatible server.
//!
//! The path of a request: HTTP JSON → [`server`] validates it into a [`request::Request`] →
//! [`text`] tokenizes → [`engine_loop`] drains its queue → `scheduler.plan()` →
//! `executor.execute()` → `scheduler.commit()` → tokens → text → server-sent events.
//!
//! A model with random weights generates eight tokens on the CPU, without a server:
//!
//! ```
//! use std::sync::Arc;
//!
//! use engine::engine_loop::{self, EngineLoopConfig};
//! use engine::executor::cpu::{CpuExecutor, CpuOptions};
//! use engine::metrics::Metrics;
//! use engine::request::{FinishReason, Request, SamplingParams, TokenEvent};
//! use engine::scheduler::SchedulerConfig;
//! use engine::weights::{preset, synthetic::SyntheticCheckpoint};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let preset = preset::find("tiny-qwen3").ok_or("no such preset")?;
//! let checkpoint = SyntheticCheckpoint::from_preset(&preset, 0);
//! let options = CpuOptions { kv_pool_tokens: 256, n_threads: 1, ..CpuOptions::default() };
//! let executor = CpuExecutor::load(&checkpoint, options)?;
//! let config = EngineLoopConfig {
//!     scheduler: SchedulerConfig { max_total_tokens: 256, ..SchedulerConfig::default() },
//!     ..EngineLoopConfig::default()
//! };
//! let engine = engine_loop::start(Box::new(executor), config, Arc::new(Metrics::new("tiny")))?;
//!
//! let mut stream = engine.submit(Request {
//!     id: engine.next_request_id(),
//!     prompt: Arc::new([1, 2, 3]),
//!     sampling: Arc::new(SamplingParams::default()),
//!     max_new_tokens: 8,
//!     stop_token_ids: Arc::new([]),
//!     priority: 0,
//!     prefix_root: 0,
//! })?;
//! let mut tokens = Vec::new();
//! let reason = loop {
//!     match stream.blocking_next() {
//!         Some(TokenEvent::Token(sampled)) => tokens.push(sampled.token),
//!         Some(TokenEvent::Finished { reason, .. }) => break reason,
//!         other => return Err(format!("{other:?}").into()),
//!     }
//! };
//! assert_eq!((tokens.len(), reason), (8, FinishReason::Length));
//! # Ok(())
//! # }
//! ```
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
pub mod kv_events;
pub mod launch;
pub mod metrics;
pub mod model;
pub mod printable;
pub mod request;
pub mod result_cache;
pub mod sampler;
pub mod scheduler;
pub mod selftest;
pub mod served_model;
pub mod server;
pub mod simulate;
pub mod source;
pub mod speculation;
pub mod step;
pub mod structured;
pub mod text;
pub mod traces;
pub mod weights;
