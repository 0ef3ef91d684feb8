//! Model configurations: shapes and options. The executors implement the arithmetic.
pub mod config;
pub mod config_json;
pub mod eagle_json;
pub mod experts;
pub(crate) mod json_fields;
mod layer_types;
pub mod quantization;
mod rope_json;
