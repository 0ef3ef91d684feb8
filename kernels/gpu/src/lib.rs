//! A small safe layer over the CUDA driver: only what the launchers and the executor need.
//!
//! The driver is loaded at run time, so that one binary runs with and without a GPU. Memory is
//! allocated once and by its owner; there is no pool, because the decode loop allocates nothing.
//! Device memory is accessed only through copies: the host never has a reference to it, so views
//! are plain `Copy` handles and a kernel may write through any of them.
//!
//! Everything is safe except [`Kernel::launch`], whose caller vouches for the pointers:
//!
//! ```
//! use gpu::{Buffer, CudaError, Device, Stream};
//!
//! fn repeated(values: &[f32]) -> Result<Vec<f32>, CudaError> {
//!     let stream = Stream::new(&Device::open(0)?)?;
//!     let source = Buffer::from_slice(&stream, values)?;
//!     let twice = Buffer::new(stream.device(), 2 * values.len())?;
//!     twice.view(0..values.len())?.copy_from(&stream, source.all())?;
//!     twice.view(values.len()..2 * values.len())?.copy_from(&stream, source.all())?;
//!     twice.download(&stream)
//! }
//!
//! match repeated(&[1.0, 2.0]) {
//!     Ok(values) => assert_eq!(values, [1.0, 2.0, 1.0, 2.0]),
//!     // A machine without a GPU, or a binary without kernels for it.
//!     Err(error) => println!("{error}"),
//! }
//! ```
//!
//! The crate knows no operation. The kernels that `cargo xtask build --arch` has compiled are a table
//! of names and code in it ([`embedded_kernels`]), because loading them is the driver's work.
//!
//! `cudarc` is used for its bindings alone: clusters, programmatic launches, shared memory
//! carveouts and captures of several streams need the driver's own calls, and with them half of its
//! safe types would be written again.
//!
//! Deliberately absent: several devices in one process, unified memory, run-time compilation.

#![allow(unsafe_code, reason = "the driver's functions are C")]
#![warn(clippy::missing_errors_doc)]

mod buffer;
mod device;
mod embedded;
mod error;
mod graph;
mod host_buffer;
mod host_counter;
mod image;
mod kernel;
mod kernel_index;
mod profile;
mod stream;
#[cfg(test)]
mod tests;

pub use buffer::{Buffer, BufferView, DevicePtr, MemoryPlace};
pub use device::{Device, DeviceProperties};
pub use embedded::{
    CompiledKernelsError, EmbeddedKernels, TEST_KERNELS_VARIABLE, embedded_kernels,
    use_compiled_kernels, use_kernels_of_environment,
};
pub use error::CudaError;
pub use graph::Graph;
pub use host_buffer::{HostBuffer, RowsCopy};
pub use host_counter::HostCounter;
pub use image::{Image, MIN_CAPABILITY};
pub use kernel::{CLUSTERS, Dim3, Kernel, LaunchConfig};
pub use profile::{CardProfile, PROFILE_VARIABLE, ProfileError};
pub use stream::{Event, Stream};
