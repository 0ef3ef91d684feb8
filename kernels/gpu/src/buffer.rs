//! Device memory, allocated once by its owner.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys;

use super::error::check;
use super::{CudaError, Device, Stream};

/// A pointer into device memory, as in a kernel's parameter struct. The host cannot dereference it.
#[derive(Debug)]
#[repr(transparent)]
pub struct DevicePtr<T> {
    address: u64,
    value: PhantomData<*const T>,
}

impl<T> Clone for DevicePtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for DevicePtr<T> {}
impl<T> PartialEq for DevicePtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}
// SAFETY: one u64 beside a zero-sized marker (repr(transparent)); all zeroes is the null pointer.
unsafe impl<T> Zeroable for DevicePtr<T> {}
// SAFETY: as above: no padding, every bit pattern is a u64, and the host never follows it.
unsafe impl<T: 'static> Pod for DevicePtr<T> {}
// SAFETY: an address that the host never follows.
unsafe impl<T> Send for DevicePtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for DevicePtr<T> {}

impl<T> DevicePtr<T> {
    /// The kernels' representation of "none", for example a missing bias.
    pub const fn null() -> Self {
        Self {
            address: 0,
            value: PhantomData,
        }
    }

    pub(super) const fn at(address: u64) -> Self {
        Self {
            address,
            value: PhantomData,
        }
    }

    pub const fn address(self) -> u64 {
        self.address
    }

    pub const fn is_null(self) -> bool {
        self.address == 0
    }

    /// The same address for a parameter of another element type.
    pub const fn cast<U>(self) -> DevicePtr<U> {
        DevicePtr {
            address: self.address,
            value: PhantomData,
        }
    }
}

/// `len` values in device memory, freed when dropped (after the device's pending work).
#[derive(Debug)]
pub struct Buffer<T: Pod> {
    device: Device,
    ptr: DevicePtr<T>,
    len: usize,
    place: MemoryPlace,
}

/// Whose memory a buffer lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MemoryPlace {
    #[default]
    Device,
    /// Pinned host memory, which kernels read over the bus.
    Host,
}

impl<T: Pod> Buffer<T> {
    /// Uninitialised memory: write it, or [`zero`](BufferView::zero) it, before it is read.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory.
    pub fn new(device: &Device, len: usize) -> Result<Self, CudaError> {
        let bytes_asked = len.saturating_mul(size_of::<T>());
        device.inner.bind()?;
        let mut address = 0;
        // SAFETY: at least one byte is asked for; the driver writes one address.
        match unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes_asked.max(1)) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let (bytes_free, _) = device.inner.memory_bytes()?;
                Err(CudaError::OutOfMemory {
                    bytes_asked,
                    bytes_free,
                })
            }
            result => {
                check("cuMemAlloc", result)?;
                Ok(Self {
                    device: device.clone(),
                    ptr: DevicePtr::at(address),
                    len,
                    place: MemoryPlace::Device,
                })
            }
        }
    }

    /// Uninitialised memory in this place.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory, or the system cannot lock as much.
    pub fn new_in(device: &Device, place: MemoryPlace, len: usize) -> Result<Self, CudaError> {
        match place {
            MemoryPlace::Device => Self::new(device, len),
            MemoryPlace::Host => Self::in_host_memory(device, len),
        }
    }

    fn in_host_memory(device: &Device, len: usize) -> Result<Self, CudaError> {
        let bytes_asked = len.saturating_mul(size_of::<T>());
        device.inner.bind()?;
        let mut start = std::ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_DEVICEMAP | sys::CU_MEMHOSTALLOC_WRITECOMBINED;
        // SAFETY: at least one byte is asked for; the driver writes one address.
        let result = unsafe { sys::cuMemHostAlloc(&raw mut start, bytes_asked.max(1), flags) };
        if result == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(CudaError::OutOfHostMemory { bytes_asked });
        }
        check("cuMemHostAlloc", result)?;
        // With unified addressing, which every supported GPU has, the device's address is the host's.
        Ok(Self {
            device: device.clone(),
            ptr: DevicePtr::at(start as u64),
            len,
            place: MemoryPlace::Host,
        })
    }

    pub fn place(&self) -> MemoryPlace {
        self.place
    }

    /// Memory with every byte zero.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory, or `stream` is being captured and the memory
    /// cannot be set.
    pub fn zeroed(stream: &Stream, len: usize) -> Result<Self, CudaError> {
        let buffer = Self::new(stream.device(), len)?;
        buffer.all().zero(stream)?;
        Ok(buffer)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory, or `stream` is being captured.
    pub fn from_slice(stream: &Stream, values: &[T]) -> Result<Self, CudaError> {
        let buffer = Self::new(stream.device(), values.len())?;
        buffer.all().upload(stream, values)?;
        Ok(buffer)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn n_bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn ptr(&self) -> DevicePtr<T> {
        self.ptr
    }

    pub fn all(&self) -> BufferView<'_, T> {
        BufferView {
            device: &self.device,
            ptr: self.ptr,
            len: self.len,
        }
    }

    /// The values of `range`.
    ///
    /// # Errors
    ///
    /// If the range is not inside the buffer.
    pub fn view(&self, range: Range<usize>) -> Result<BufferView<'_, T>, CudaError> {
        self.all().view(range)
    }

    /// As [`BufferView::upload`], to the whole buffer.
    ///
    /// # Errors
    ///
    /// As [`BufferView::upload`].
    pub fn upload(&self, stream: &Stream, values: &[T]) -> Result<(), CudaError> {
        self.all().upload(stream, values)
    }

    /// As [`BufferView::download`], of the whole buffer.
    ///
    /// # Errors
    ///
    /// As [`BufferView::download`].
    pub fn download(&self, stream: &Stream) -> Result<Vec<T>, CudaError> {
        self.all().download(stream)
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.device.inner.bind().is_ok() {
            // SAFETY: allocated by cuMemAlloc or cuMemHostAlloc and freed once, here; the wait before
            // it keeps kernels in flight from using freed memory. Errors cannot be reported from drop.
            unsafe {
                let _ = sys::cuCtxSynchronize();
                let _ = match self.place {
                    MemoryPlace::Device => sys::cuMemFree_v2(self.ptr.address),
                    MemoryPlace::Host => sys::cuMemFreeHost(self.ptr.address as *mut _),
                };
            }
        }
    }
}

/// A range of a [`Buffer`]: where launchers read and write.
#[derive(Debug)]
pub struct BufferView<'a, T> {
    device: &'a Device,
    ptr: DevicePtr<T>,
    len: usize,
}

impl<T> Clone for BufferView<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for BufferView<'_, T> {}

impl<'a, T: Pod> BufferView<'a, T> {
    pub fn len(self) -> usize {
        self.len
    }

    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    pub fn n_bytes(self) -> usize {
        self.len * size_of::<T>()
    }

    pub fn device(self) -> &'a Device {
        self.device
    }

    pub fn ptr(self) -> DevicePtr<T> {
        self.ptr
    }

    /// The values of `range`.
    ///
    /// # Errors
    ///
    /// If the range is not inside the view.
    pub fn view(self, range: Range<usize>) -> Result<Self, CudaError> {
        if range.start > range.end || range.end > self.len {
            return Err(CudaError::Range {
                start: range.start,
                end: range.end,
                len: self.len,
            });
        }
        let address = self.ptr.address + (range.start * size_of::<T>()) as u64;
        let ptr = DevicePtr {
            address,
            value: PhantomData,
        };
        Ok(Self {
            device: self.device,
            ptr,
            len: range.end - range.start,
        })
    }

    /// The same values under another type of their size.
    pub fn same_size<U: Pod>(self) -> BufferView<'a, U> {
        const { assert!(size_of::<T>() == size_of::<U>()) };
        BufferView {
            device: self.device,
            ptr: self.ptr.cast(),
            len: self.len,
        }
    }

    /// The same bytes as values of another type, so that one workspace can serve several ops.
    ///
    /// # Errors
    ///
    /// If the bytes are no whole number of values, or the address is not aligned for them.
    pub fn cast<U: Pod>(self) -> Result<BufferView<'a, U>, CudaError> {
        let (bytes, size) = (self.n_bytes(), size_of::<U>());
        let is_aligned = self.ptr.address.is_multiple_of(align_of::<U>() as u64);
        if size == 0 || !bytes.is_multiple_of(size) || !is_aligned {
            return Err(CudaError::Cast {
                address: self.ptr.address,
                bytes,
                size,
            });
        }
        Ok(BufferView {
            device: self.device,
            ptr: self.ptr.cast(),
            len: bytes / size,
        })
    }

    /// Copies `values` to the whole view and waits until that is done. For large or frequent
    /// copies use a [`HostBuffer`](super::HostBuffer).
    ///
    /// # Errors
    ///
    /// If the lengths differ, or `stream` is being captured or of another device.
    pub fn upload(self, stream: &Stream, values: &[T]) -> Result<(), CudaError> {
        check_length("upload", values.len(), self.len)?;
        if values.is_empty() {
            return Ok(());
        }
        stream.refuse_capture("a copy from pageable memory")?;
        stream.enter(self.device)?;
        // SAFETY: both sides have n_bytes bytes; the wait below ends before `values` can go.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(
                self.ptr.address,
                values.as_ptr().cast(),
                self.n_bytes(),
                stream.raw(),
            )
        };
        let waited = stream.synchronize();
        check("cuMemcpyHtoDAsync", result)?;
        waited
    }

    /// The view's values, after all work queued on `stream` so far.
    ///
    /// # Errors
    ///
    /// If `stream` is being captured or of another device, or earlier work on it failed.
    pub fn download(self, stream: &Stream) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); self.len];
        self.download_to(stream, &mut values)?;
        Ok(values)
    }

    /// As [`Self::download`], into `values`.
    ///
    /// # Errors
    ///
    /// As [`Self::download`], and if the lengths differ.
    pub fn download_to(self, stream: &Stream, values: &mut [T]) -> Result<(), CudaError> {
        check_length("download", values.len(), self.len)?;
        if values.is_empty() {
            return Ok(());
        }
        stream.refuse_capture("a copy to pageable memory")?;
        stream.enter(self.device)?;
        // SAFETY: both sides have n_bytes bytes; the wait below ends before `values` can be read.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                values.as_mut_ptr().cast(),
                self.ptr.address,
                self.n_bytes(),
                stream.raw(),
            )
        };
        let waited = stream.synchronize();
        check("cuMemcpyDtoHAsync", result)?;
        waited
    }

    /// Copies from another view of the same length, in stream order; may be captured.
    ///
    /// # Errors
    ///
    /// If the lengths differ, or the views and `stream` are not of one device.
    pub fn copy_from(self, stream: &Stream, from: BufferView<'_, T>) -> Result<(), CudaError> {
        check_length("copy", from.len, self.len)?;
        if self.len == 0 {
            return Ok(());
        }
        stream.enter(self.device)?;
        stream.enter(from.device)?;
        // SAFETY: both sides are device memory of n_bytes bytes, freed only after a wait.
        check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(
                self.ptr.address,
                from.ptr.address,
                self.n_bytes(),
                stream.raw(),
            )
        })
    }

    /// Sets every byte to zero, in stream order; may be captured.
    ///
    /// # Errors
    ///
    /// If `stream` is of another device.
    pub fn zero(self, stream: &Stream) -> Result<(), CudaError> {
        self.fill_bytes(stream, 0)
    }

    /// Sets every byte to `byte`, in stream order; may be captured.
    ///
    /// # Errors
    ///
    /// If `stream` is of another device.
    pub fn fill_bytes(self, stream: &Stream, byte: u8) -> Result<(), CudaError> {
        if self.len == 0 {
            return Ok(());
        }
        stream.enter(self.device)?;
        // SAFETY: the view has n_bytes bytes of device memory, freed only after a wait.
        check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(self.ptr.address, byte, self.n_bytes(), stream.raw())
        })
    }
}

pub(super) fn check_length(
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), CudaError> {
    if found == expected {
        return Ok(());
    }
    Err(CudaError::Length {
        what,
        found,
        expected,
    })
}
