//! A counter that kernels increment and the host reads without waiting.

use std::ptr::NonNull;

use cudarc::driver::sys;

use super::error::check;
use super::{CudaError, Device, DevicePtr};

/// One `u64` in page-locked host memory, initially zero. Kernels of one device add to it, rarely:
/// an addition crosses the bus. The host sees it grow while they run, and the total after
/// synchronising with them.
#[derive(Debug)]
pub struct HostCounter {
    device: Device,
    start: NonNull<u64>,
    ptr: DevicePtr<u64>,
}

// SAFETY: the object owns its memory; the host only reads it, and an aligned u64 is read at once.
unsafe impl Send for HostCounter {}
// SAFETY: as above.
unsafe impl Sync for HostCounter {}

impl HostCounter {
    /// A counter that kernels of `device` can add to.
    ///
    /// # Errors
    ///
    /// If the system cannot lock the memory.
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        device.inner.bind()?;
        let bytes_asked = size_of::<u64>();
        let mut start = std::ptr::null_mut();
        // SAFETY: the driver writes one address.
        let result = unsafe {
            sys::cuMemHostAlloc(&raw mut start, bytes_asked, sys::CU_MEMHOSTALLOC_DEVICEMAP)
        };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(CudaError::OutOfHostMemory { bytes_asked });
        }
        check("cuMemHostAlloc", result)?;
        let start =
            NonNull::new(start.cast::<u64>()).ok_or(CudaError::OutOfHostMemory { bytes_asked })?;
        // SAFETY: one u64, page-aligned, which no kernel knows yet.
        unsafe { start.as_ptr().write(0) };
        let mut counter = Self {
            device: device.clone(),
            start,
            ptr: DevicePtr::null(),
        };
        let mut address = 0;
        // SAFETY: the memory was allocated as mapped; the driver writes one address.
        check("cuMemHostGetDevicePointer", unsafe {
            sys::cuMemHostGetDevicePointer_v2(&raw mut address, start.as_ptr().cast(), 0)
        })?;
        counter.ptr = DevicePtr::at(address);
        Ok(counter)
    }

    /// The total so far.
    pub fn value(&self) -> u64 {
        // SAFETY: initialised, aligned, and owned as long as `self`; kernels may write meanwhile,
        // hence volatile.
        unsafe { self.start.as_ptr().read_volatile() }
    }

    pub fn ptr(&self) -> DevicePtr<u64> {
        self.ptr
    }

    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl Drop for HostCounter {
    /// After the device's work, which may still add to it.
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; after the synchronisation no kernel has it any more. A device
        // that cannot be synchronised is lost, and runs nothing.
        unsafe {
            if self.device.inner.bind().is_ok() {
                let _ = sys::cuCtxSynchronize();
                let _ = sys::cuMemFreeHost(self.start.as_ptr().cast());
            }
        }
    }
}
