//! Compute kernels: one folder for each op, with its shape checks, a plain Rust reference and the
//! fast versions that are tested against it.
//!
//! A fast version and its reference:
//!
//! ```
//! use kernels::Isa;
//! use host::pool::WorkerPool;
//! use kernels::rms_norm;
//!
//! # fn main() -> Result<(), kernels::KernelError> {
//! let (x, weight) = ([3.0, 4.0, 0.0, 5.0], [1.0, 2.0]);
//! let mut y = [0.0; 4];
//! let mut pool = WorkerPool::new(1)?;
//! rms_norm::forward(&mut pool, Isa::detect(), &x, &weight, 1e-6, &mut y)?;
//! for (row, y) in x.chunks(2).zip(y.chunks(2)) {
//!     let expected = rms_norm::reference::forward(row, &weight, 1e-6);
//!     assert!(y.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
//! }
//!
//! let wrong_shape = rms_norm::forward(&mut pool, Isa::detect(), &x, &[1.0; 3], 1e-6, &mut y);
//! assert!(wrong_shape.is_err());
//! # Ok(())
//! # }
//! ```
//!
//! Everything public is safe: a launcher checks its shapes and returns a [`KernelError`] instead of
//! reading out of bounds. GPU memory and launches are those of the crate `gpu`, threads and memory
//! for vector loads those of `host`. These three are the only crates of the workspace with `unsafe`.

#![allow(
    unsafe_code,
    reason = "vector instructions, launches, and slices that threads share"
)]
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
pub mod experts;
pub mod isa;
pub mod lanes;
pub mod linear;
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
