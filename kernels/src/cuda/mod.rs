//! A small safe layer over the CUDA driver: only what the launchers and the executor need.
//!
//! The driver is loaded at run time, so that one binary runs with and without a GPU. Memory is
//! allocated once and by its owner; there is no pool, because the decode loop allocates nothing.
//! Device memory is accessed only through copies: the host never has a reference to it, so views
//! are plain `Copy` handles and a kernel may write through any of them.
//!
//! Deliberately absent: several devices in one process, unified memory, run-time compilation.

mod activation;
mod buffer;
mod device;
mod element;
mod embedded;
mod error;
mod graph;
mod host_buffer;
mod host_counter;
mod kernel;
mod kernel_index;
mod paged_kv;
mod profile;
pub(crate) mod shape;
mod stream;
#[cfg(test)]
mod tests;

pub use activation::{Activation, RowLayout, TILE_ROWS};
pub use buffer::{Buffer, BufferView, DevicePtr};
pub use device::{Device, DeviceProperties};
pub use element::{Element, ElementBuffer, ElementView};
pub use embedded::{
    CompiledKernelsError, EmbeddedKernels, TEST_KERNELS_VARIABLE, embedded_kernels,
    use_compiled_kernels, use_kernels_of_environment,
};
pub use error::CudaError;
pub use graph::Graph;
pub use host_buffer::{HostBuffer, RowsCopy};
pub use host_counter::HostCounter;
pub use kernel::{Dim3, Kernel, LaunchConfig};
pub(crate) use paged_kv::PagedKvParams;
pub use paged_kv::{HeadShape, KvFormat, PAGE_TOKENS, PagedKv};
pub use profile::{CardProfile, PROFILE_VARIABLE, ProfileError};
pub use stream::{Event, Stream};
