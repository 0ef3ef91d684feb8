//! What a model is: its shapes and options. The arithmetic is the executors' business.
pub mod config;
pub mod config_json;
pub(crate) mod json_fields;
mod layer_types;
mod rope_json;
