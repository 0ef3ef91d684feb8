//! The load generator: which prompts are drawn, how requests are sent to an OpenAI-compatible server, and
//! when every token came back.
//!
//! Knows the workload of [`crate::spec`], and no server process and no file of a record.

pub mod prompts;
mod trace;

mod generator;

mod exchange;
mod http;
pub mod sse;

pub use exchange::{Answer, RunClock, Target};
pub use generator::{Company, poisson_gaps_s, run_case};
pub use http::{BaseUrl, HttpError};
pub use records::rows::RequestRow;
