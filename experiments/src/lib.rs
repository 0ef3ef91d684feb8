//! Runs a numbered experiment end to end and records it.
//!
//! An experiment's life: `experiment.toml` → resolved [`spec`] → server process on a free
//! port → `/health` → warm-up → load → raw samples → summary → `status.json`, written last.
//! The record (`data/SCHEMA.md`) is the only thing that leaves this crate; the reports
//! read it and nothing else.
//!
//! Deliberately absent: building the engine (the recipe does that), statistics across
//! replicates and comparisons between arms (the reports do that).

// Each knows only those before it.
mod terminal;

pub mod spec;

pub mod load;

mod engines;

mod record;

mod run;

pub mod commands;

pub use terminal::{in_one_line, plain};
