//! Constrained output: a JSON schema, a regular expression, one of several texts, or a grammar.
//!
//! A [`Constraint`] describes the format. [`Grammars`] compiles it for one model's vocabulary into
//! a [`Grammar`], and every choice follows it with its own [`Guide`](crate::guide::Guide): before
//! each token the guide returns the allowed ones ([`TokenMask`](crate::guide::TokenMask)), and then
//! consumes the chosen one.
//!
//! A mask takes longer than a token on a fast GPU, so it is computed concurrently: as soon as a
//! token is known, worker threads compute the mask of the next one, during the engine's bookkeeping
//! and the next forward pass. A step waits for its masks for a bounded time; rows whose masks are
//! not ready skip it, so that an expensive grammar delays only its own request. The guide advances
//! one output token at a time, so rows with a guide are never run ahead and take one step at a
//! time; a preempted sequence finds its guide where it left it.
//!
//! Parsing is done by llguidance. Deliberately absent: tokens that the grammar forces are sampled
//! like others (skipping them would save nothing here), GBNF, and structural tags.

mod branches;
mod constraint;
mod grammars;
mod nesting;
mod schema;
#[cfg(test)]
pub(crate) mod tests;
pub mod tool_calls;
mod words;

pub(crate) use constraint::literal;
pub use constraint::{Constraint, Preamble, StructuredError};
pub use grammars::{Grammar, Grammars};
pub(crate) use schema::moved;
#[cfg(test)]
pub(crate) use tests::guide_of;
