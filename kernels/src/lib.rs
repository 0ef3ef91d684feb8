//! Compute kernels: a folder an op, each with its shape checks, a plain Rust reference and the
//! fast versions that are tested against it.
//!
//! This is the only crate of the workspace with `unsafe` in it. Everything public is safe: a
//! launcher checks its shapes and returns a [`KernelError`] instead of reading out of bounds.

#![allow(
    clippy::inline_always,
    reason = "a kernel body must be inlined into the function that turns its instructions on"
)]
#![allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays at once, and unrolled loops are the point"
)]

pub mod attention;
pub mod cuda;
pub mod dense_linear;
pub mod embedding;
pub mod error;
pub mod isa;
pub mod lanes;
pub mod linear;
pub mod mapped_file;
pub mod memory;
pub mod pool;
pub mod qkv_prepare;
pub mod quant_linear;
pub mod rms_norm;
pub mod roofline;
pub mod rope;
pub mod sampling;
mod shared_with_device;
pub mod silu_mul;
pub mod stream_linear;

pub use error::KernelError;
pub use isa::Isa;
