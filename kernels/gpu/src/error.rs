//! Errors between the host and the GPU.

use std::ffi::CStr;

use cudarc::driver::sys;

use super::ProfileError;

#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    #[error("no CUDA driver: libcuda cannot be loaded on this machine")]
    NoDriver,
    #[error("the CUDA driver supports CUDA {found}, at least {needed} is needed")]
    OldDriver { found: String, needed: String },
    #[error("CUDA device {ordinal} does not exist: the driver sees {n_devices}")]
    NoDevice { ordinal: usize, n_devices: usize },
    #[error(
        "{name} has compute capability {found}; this engine's kernels need {needed} or newer \
         (H100, H200, RTX 50)"
    )]
    TooOld {
        name: String,
        found: String,
        needed: String,
    },
    #[error("this binary holds no CUDA kernels; build it with `cargo xtask build --arch {wanted}`")]
    NoKernels { wanted: String },
    #[error(
        "this binary holds CUDA kernels for {built}, the device is {wanted}; build it with \
         `cargo xtask build --arch {wanted}`"
    )]
    OtherArchitecture { built: String, wanted: String },
    #[error("no CUDA kernel `{name}` in `{source_name}`; known there: {known}")]
    UnknownKernel {
        source_name: String,
        name: String,
        known: String,
    },
    #[error("{call} failed: {name} ({code})")]
    Call {
        call: &'static str,
        name: String,
        code: u32,
    },
    #[error("out of device memory: {bytes_asked} bytes asked, {bytes_free} free")]
    OutOfMemory {
        bytes_asked: usize,
        bytes_free: usize,
    },
    #[error("out of pinned host memory: {bytes_asked} bytes asked")]
    OutOfHostMemory { bytes_asked: usize },
    #[error("range {start}..{end} of a buffer of {len}")]
    Range {
        start: usize,
        end: usize,
        len: usize,
    },
    #[error("{what}: {found} values, must be {expected}")]
    Length {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("a view of {bytes} bytes at address {address:#x} cannot be read as values of {size}")]
    Cast {
        address: u64,
        bytes: usize,
        size: usize,
    },
    #[error("kernel `{kernel}` takes {expected} bytes of parameters, {found} were given")]
    Parameters {
        kernel: String,
        expected: usize,
        found: usize,
    },
    #[error("kernel `{kernel}`: {what} is {found}, the limit is {limit}")]
    Launch {
        kernel: String,
        what: &'static str,
        found: usize,
        limit: usize,
    },
    #[error("card profile {profile} needs {needed} {what}, the device has {found}")]
    Profile {
        profile: String,
        what: &'static str,
        needed: usize,
        found: usize,
    },
    #[error(transparent)]
    UnknownProfile(#[from] ProfileError),
    #[error("{0} cannot be part of a captured graph")]
    Captured(&'static str),
    #[error("the work of another device was given to this one")]
    OtherDevice,
    /// A launcher's own error: a shape or a value that its kernel does not take.
    #[error(transparent)]
    Arguments(Box<dyn std::error::Error + Send + Sync>),
}

impl CudaError {
    /// After this error every call of the process fails: the context keeps the error until the
    /// process ends (illegal address or instruction, launch timeout, lost device, …).
    pub fn loses_device(&self) -> bool {
        matches!(
            self,
            Self::Call {
                code: 700 | 702 | 709 | 710 | 713..=719 | 999,
                ..
            }
        )
    }
}

/// Errors unless the driver reports success.
pub(super) fn check(call: &'static str, result: sys::CUresult) -> Result<(), CudaError> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = std::ptr::null();
    // SAFETY: the driver stores a pointer to a static string, or null for a code it does not know.
    let known = unsafe { sys::cuGetErrorName(result, &raw mut name) };
    let name = if known == sys::CUresult::CUDA_SUCCESS && !name.is_null() {
        // SAFETY: not null, so it is one of the driver's static zero-terminated strings.
        unsafe { CStr::from_ptr(name) }
            .to_string_lossy()
            .into_owned()
    } else {
        "unknown error".to_string()
    };
    Err(CudaError::Call {
        call,
        name,
        code: result as u32,
    })
}
