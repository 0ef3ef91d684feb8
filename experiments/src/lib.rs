//! Runs a numbered experiment end to end and records it.
//!
//! An experiment's life: `experiment.toml` → resolved [`spec`] → server process on a free
//! port → `/health` → warm-up → load → raw samples → summary → `status.json`, written last.
//! The record (`data/SCHEMA.md`) is the only thing that leaves this crate; the reports
//! read it and nothing else.
//!
//! Deliberately absent: building the engine (the recipe does that), statistics across
//! replicates and comparisons between arms (the reports do that).

pub mod ablate;
pub mod calibrate;
pub mod campaign;
pub mod drift;
pub mod environment;
pub mod export;
pub mod flags;
pub mod import;
pub mod interrupts;
pub mod loadgen;
pub mod machine_load;
pub mod measurement;
pub mod measurement_lock;
pub mod new;
pub mod progress;
pub mod prompts;
pub mod provenance;
pub mod recorded;
pub mod reports_program;
pub mod repository;
pub mod reproduce;
pub mod run_list;
pub mod runner;
pub mod sampler;
pub mod sealing;
pub mod served_model;
pub mod server_process;
pub mod simulate;
pub mod spec;
pub mod statistics;
pub mod summary;
pub mod supervise;
pub mod terminal;
pub mod tune;
pub mod verdict_list;
pub mod workload;
