//! Copies of rows that are strided on the device and contiguous on the host, all in one call.

use bytemuck::Pod;
use cudarc::driver::sys;

use super::super::{BufferView, CudaError, Stream};
use super::HostBuffer;

/// Maximum row pitch in bytes that the driver accepts (`CU_DEVICE_ATTRIBUTE_MAX_PITCH`).
const MAX_PITCH_BYTES: usize = i32::MAX as usize;

/// Rows of a copy, in values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowsCopy {
    pub n_rows: usize,
    pub row_len: usize,
    /// Distance between the starts of consecutive rows on the device.
    pub pitch: usize,
    /// Offset of the first row on the device.
    pub device_start: usize,
    /// Offset of the rows on the host.
    pub host_start: usize,
}

impl RowsCopy {
    /// Errors unless all rows lie inside both sides and do not overlap.
    fn check<T: Pod>(&self, host_len: usize, device: BufferView<'_, T>) -> Result<(), CudaError> {
        let inside = |start: usize, n: Option<usize>, len: usize| match n
            .and_then(|n| start.checked_add(n))
        {
            Some(end) if end <= len => Ok(()),
            end => Err(CudaError::Range {
                start,
                end: end.unwrap_or(usize::MAX),
                len,
            }),
        };
        let steps = self.n_rows.saturating_sub(1).checked_mul(self.pitch);
        let on_device = steps.and_then(|n| n.checked_add(self.row_len));
        inside(self.device_start, on_device, device.len())?;
        let on_host = self.n_rows.checked_mul(self.row_len);
        inside(self.host_start, on_host, host_len)?;
        let limit = MAX_PITCH_BYTES / size_of::<T>().max(1);
        inside(self.row_len, Some(0), self.pitch)?;
        inside(self.pitch, Some(0), limit)
    }

    fn is_empty(&self) -> bool {
        self.n_rows == 0 || self.row_len == 0
    }
}

impl<T: Pod> HostBuffer<T> {
    /// Copies rows to the device, in stream order, without waiting.
    ///
    /// # Errors
    ///
    /// If the rows are not inside both sides or overlap, or `stream` is being captured or of
    /// another device.
    pub fn copy_rows_to(
        &self,
        stream: &Stream,
        to: BufferView<'_, T>,
        rows: RowsCopy,
    ) -> Result<(), CudaError> {
        rows.check(self.len, to)?;
        self.begin_copy(stream, to.device())?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut copy = Self::described(rows);
        // SAFETY: `host_start` lies in this buffer (checked).
        copy.srcHost = unsafe { self.start.as_ptr().add(rows.host_start) }.cast();
        copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
        copy.srcPitch = rows.row_len * size_of::<T>();
        copy.dstDevice = to.ptr().address() + (rows.device_start * size_of::<T>()) as u64;
        copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.dstPitch = rows.pitch * size_of::<T>();
        // SAFETY: all rows lie inside both sides (checked); the pinned memory is not written before
        // `copied` is reached, and freed only after it.
        let result = unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream.raw()) };
        self.end_copy(stream, "cuMemcpy2DAsync", result)
    }

    /// Copies rows from the device, in stream order, without waiting.
    ///
    /// # Errors
    ///
    /// As [`Self::copy_rows_to`].
    pub fn copy_rows_from(
        &mut self,
        stream: &Stream,
        from: BufferView<'_, T>,
        rows: RowsCopy,
    ) -> Result<(), CudaError> {
        rows.check(self.len, from)?;
        self.begin_copy(stream, from.device())?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut copy = Self::described(rows);
        copy.srcDevice = from.ptr().address() + (rows.device_start * size_of::<T>()) as u64;
        copy.srcMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_DEVICE;
        copy.srcPitch = rows.pitch * size_of::<T>();
        // SAFETY: `host_start` lies in this buffer (checked).
        copy.dstHost = unsafe { self.start.as_ptr().add(rows.host_start) }.cast();
        copy.dstMemoryType = sys::CUmemorytype::CU_MEMORYTYPE_HOST;
        copy.dstPitch = rows.row_len * size_of::<T>();
        // SAFETY: all rows lie inside both sides (checked); the pinned memory is neither read nor
        // written before `copied` is reached, and freed only after it.
        let result = unsafe { sys::cuMemcpy2DAsync_v2(&raw const copy, stream.raw()) };
        self.end_copy(stream, "cuMemcpy2DAsync", result)
    }

    /// Without the two sides.
    fn described(rows: RowsCopy) -> sys::CUDA_MEMCPY2D {
        sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: std::ptr::null(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: 0,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            dstHost: std::ptr::null_mut(),
            dstDevice: 0,
            dstArray: std::ptr::null_mut(),
            dstPitch: 0,
            WidthInBytes: rows.row_len * size_of::<T>(),
            Height: rows.n_rows,
        }
    }
}
