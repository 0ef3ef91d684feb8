//! Compute kernels: a folder an op, each with its shape checks, a plain Rust reference and the
//! fast versions that are tested against it.
//!
//! This is the only crate of the workspace with `unsafe` in it. Everything public is safe: a
//! launcher checks its shapes and returns a [`KernelError`] instead of reading out of bounds.

pub mod attention;
pub mod dense_linear;
pub mod embedding;
pub mod error;
pub mod isa;
pub mod lanes;
pub mod linear;
pub mod mapped_file;
pub mod memory;
pub mod pool;
pub mod quant_linear;
pub mod rms_norm;
pub mod rope;
pub mod silu_mul;

pub use error::KernelError;
pub use isa::Isa;
