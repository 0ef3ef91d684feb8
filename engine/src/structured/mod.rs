//! Output that has to have a form: a JSON schema, a regular expression, one of several texts, a
//! grammar.
//!
//! A [`Constraint`] says what is asked. [`Grammars`] compiles it for one model's vocabulary into a
//! [`Grammar`], of which every choice runs its own [`Guide`](crate::guide::Guide): before each token the guide says
//! which ones may come ([`TokenMask`](crate::guide::TokenMask)), behind it which one came.
//!
//! A mask takes longer than a token on a fast card, so it is made while something else is done:
//! as soon as a token is known, workers make the mask of the next one, beside the engine's
//! bookkeeping and the next forward pass. A step waits for its masks for a bounded time; rows whose
//! masks are not there by then sit it out, so that a costly form holds up its own request alone.
//! The guide is at one output token at a time, so rows that have one are never run ahead, and go
//! one step at a time; a preempted sequence finds its guide where it left it.
//!
//! Parsing is llguidance's. Deliberately absent: tokens that the grammar forces are sampled like
//! others (they are no faster here), GBNF, and structural tags.

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
