//! Pinned host memory: copies to and from it run concurrently with kernels.

mod rows;

use std::cell::Cell;
use std::ops::Range;
use std::ptr::NonNull;

use bytemuck::Pod;
use cudarc::driver::sys;

use super::buffer::check_length;
use super::error::check;
use super::{BufferView, CudaError, Device, Event, Stream};
pub use rows::RowsCopy;

/// `len` values of page-locked memory. While a copy is in flight, reading or writing waits for it.
#[derive(Debug)]
pub struct HostBuffer<T: Pod> {
    device: Device,
    start: NonNull<T>,
    len: usize,
    /// Recorded after the last copy queued on a stream.
    copied: Event,
    is_in_flight: Cell<bool>,
}

// SAFETY: the object owns its memory alone; `Cell` keeps it from two threads at a time.
unsafe impl<T: Pod + Send> Send for HostBuffer<T> {}

impl<T: Pod> HostBuffer<T> {
    /// Pinned memory with every byte zero.
    ///
    /// # Errors
    ///
    /// If the system cannot lock as much memory.
    pub fn zeroed(device: &Device, len: usize) -> Result<Self, CudaError> {
        let copied = Event::new(device)?;
        let bytes_asked = len.saturating_mul(size_of::<T>());
        let mut start = std::ptr::null_mut();
        // SAFETY: at least one byte is asked for; the driver writes one address.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut start, bytes_asked.max(1), 0) };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(CudaError::OutOfHostMemory { bytes_asked });
        }
        check("cuMemHostAlloc", result)?;
        let start =
            NonNull::new(start.cast::<T>()).ok_or(CudaError::OutOfHostMemory { bytes_asked })?;
        // SAFETY: bytes_asked bytes, page-aligned, not shared yet; all zeroes is a T.
        unsafe { start.as_ptr().write_bytes(0, len) };
        Ok(Self {
            device: device.clone(),
            start,
            len,
            copied,
            is_in_flight: Cell::new(false),
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values, after the last copy into them.
    ///
    /// # Errors
    ///
    /// If the copy failed.
    pub fn as_slice(&self) -> Result<&[T], CudaError> {
        self.wait()?;
        // SAFETY: len initialised values, no copy into them is in progress, and a new copy into
        // them needs `&mut self`.
        Ok(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) })
    }

    /// The values, after the last copy from or into them.
    ///
    /// # Errors
    ///
    /// If the copy failed.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T], CudaError> {
        self.wait()?;
        // SAFETY: len initialised values, no copy is in flight, and `&mut self` is the only way
        // to them.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) })
    }

    /// Whether the last copy is complete, so that reading will not wait.
    ///
    /// # Errors
    ///
    /// If the copy failed.
    pub fn is_ready(&self) -> Result<bool, CudaError> {
        if !self.is_in_flight.get() {
            return Ok(true);
        }
        let is_reached = self.copied.is_reached()?;
        self.is_in_flight.set(!is_reached);
        Ok(is_reached)
    }

    /// Waits for the last copy.
    ///
    /// # Errors
    ///
    /// If the copy failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        if self.is_in_flight.get() {
            self.copied.synchronize()?;
            self.is_in_flight.set(false);
        }
        Ok(())
    }

    /// Copies the first `to.len()` values to the device, in stream order, without waiting.
    ///
    /// # Errors
    ///
    /// As [`Self::copy_range_to`].
    pub fn copy_to(&self, stream: &Stream, to: BufferView<'_, T>) -> Result<(), CudaError> {
        self.copy_range_to(stream, 0..to.len(), to)
    }

    /// Copies the values of `from` to a view of that length, in stream order, without waiting.
    ///
    /// # Errors
    ///
    /// If the range is not inside this buffer or not as long as `to`, or `stream` is being captured
    /// or of another device.
    pub fn copy_range_to(
        &self,
        stream: &Stream,
        from: Range<usize>,
        to: BufferView<'_, T>,
    ) -> Result<(), CudaError> {
        let Range { start, end } = from;
        if start > end || end > self.len {
            let len = self.len;
            return Err(CudaError::Range { start, end, len });
        }
        check_length("copy", to.len(), end - start)?;
        self.start_copy(stream, to)?;
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: `from` lies in this buffer and is as long as `to` (checked); the pinned memory
        // is not written before `copied` is reached, and freed only after it.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                to.ptr().address(),
                self.start.as_ptr().add(start).cast(),
                to.n_bytes(),
                stream.raw(),
            )
        };
        self.end_copy(stream, "cuMemcpyHtoDAsync", result)
    }

    /// Copies a view to the first `from.len()` values, in stream order, without waiting.
    ///
    /// # Errors
    ///
    /// If `from` is longer than this buffer, or `stream` is being captured or of another device.
    pub fn copy_from(&mut self, stream: &Stream, from: BufferView<'_, T>) -> Result<(), CudaError> {
        self.start_copy(stream, from)?;
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: `from` is no longer than this buffer (checked); the pinned memory is neither
        // read nor written before `copied` is reached, and freed only after it.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                self.start.as_ptr().cast(),
                from.ptr().address(),
                from.n_bytes(),
                stream.raw(),
            )
        };
        self.end_copy(stream, "cuMemcpyDtoHAsync", result)
    }

    fn start_copy(&self, stream: &Stream, view: BufferView<'_, T>) -> Result<(), CudaError> {
        if view.len() > self.len {
            check_length("copy", view.len(), self.len)?;
        }
        self.begin_copy(stream, view.device())
    }

    fn begin_copy(&self, stream: &Stream, device: &Device) -> Result<(), CudaError> {
        stream.refuse_capture("a copy from or to a host buffer")?;
        stream.enter(device)?;
        stream.enter(&self.device)?;
        // One event marks the last copy, so copies of one buffer are ordered across streams.
        if self.is_in_flight.get() {
            stream.wait_for(&self.copied)
        } else {
            Ok(())
        }
    }

    fn end_copy(
        &self,
        stream: &Stream,
        call: &'static str,
        result: sys::CUresult,
    ) -> Result<(), CudaError> {
        check(call, result)?;
        if let Err(error) = self.copied.record(stream) {
            // Without the event the copy could not be waited for later, so wait now.
            stream.synchronize()?;
            return Err(error);
        }
        self.is_in_flight.set(true);
        Ok(())
    }
}

impl<T: Pod> Drop for HostBuffer<T> {
    fn drop(&mut self) {
        let _ = self.wait();
        if self.device.inner.bind().is_ok() {
            // SAFETY: allocated by cuMemHostAlloc, freed once, after the last copy.
            let _ = unsafe { sys::cuMemFreeHost(self.start.as_ptr().cast()) };
        }
    }
}
