//! What is to be measured: an `experiment.toml`, its flags and its workload, and where they lie.
//!
//! Reads files and checks values. Starts nothing, writes nothing.

pub mod repository;

mod experiment;

pub mod flags;
pub mod workload;

pub use experiment::{
    Experiment, FieldError, MAX_NAME_LENGTH, ModelSpec, Overrides, SpecError, experiment_names,
    full_name, tune_table,
};
