//! What the processor's side of the machine gives: memory for vector loads ([`memory`]), files as
//! byte slices ([`mapped_file`]), and threads that share one piece of work ([`pool`]).
//!
//! ```
//! use host::memory::Arena;
//! use host::pool::WorkerPool;
//!
//! # fn main() -> Result<(), host::HostError> {
//! let mut weights = Arena::default().zeroed(1000)?;
//! assert_eq!(weights.as_slice().as_ptr() as usize % 64, 0);
//!
//! let mut pool = WorkerPool::new(2)?;
//! pool.for_each_mut(weights.as_mut_slice(), &|index, byte| *byte = index as u8)?;
//! assert_eq!(weights.as_slice()[..3], [0, 1, 2]);
//! # Ok(())
//! # }
//! ```
//!
//! The crate knows neither operations nor models. Everything public is safe, except
//! [`DisjointMut::slice`](pool::DisjointMut::slice).

#![allow(
    unsafe_code,
    reason = "allocations, mappings, and slices that threads share"
)]
#![warn(clippy::missing_errors_doc)]
#![allow(
    clippy::inline_always,
    reason = "a slice for a kernel body must be taken inside the function that turns its instructions on"
)]

mod error;
pub mod mapped_file;
pub mod memory;
pub mod pool;

pub use error::HostError;
