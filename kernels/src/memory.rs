//! Memory that is aligned for vector loads, on huge pages where the system has them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::KernelError;

const HUGE_PAGE_BYTES: usize = 2 << 20;
const LINE_BYTES: usize = 64;

/// Zero-initialised bytes that start on a cache line.
#[derive(Debug)]
pub struct AlignedBytes {
    start: NonNull<u8>,
    layout: Layout,
    n_bytes: usize,
}

// SAFETY: the object owns its bytes alone; shared access is through `&self` only.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above, `&self` gives shared slices and nothing else.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    pub fn zeroed(n_bytes: usize) -> Result<Self, KernelError> {
        let alignment = if n_bytes >= HUGE_PAGE_BYTES {
            HUGE_PAGE_BYTES
        } else {
            LINE_BYTES
        };
        let failed = || KernelError::Memory { bytes: n_bytes };
        let layout =
            Layout::from_size_align(n_bytes.max(LINE_BYTES), alignment).map_err(|_| failed())?;
        // SAFETY: the layout's size is at least one line, never zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(failed)?;
        #[cfg(target_os = "linux")]
        if n_bytes >= HUGE_PAGE_BYTES {
            // SAFETY: the range lies inside the allocation just made; the call is a hint about
            // its page size and changes no byte.
            unsafe {
                libc::madvise(
                    start.as_ptr().cast(),
                    n_bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES,
                    libc::MADV_HUGEPAGE,
                );
            }
        }
        Ok(Self {
            start,
            layout,
            n_bytes,
        })
    }

    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` is valid for `n_bytes` initialised bytes as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.n_bytes) }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.n_bytes) }
    }

    /// The bytes as 16-bit words.
    pub fn as_u16(&self) -> &[u16] {
        bytemuck::cast_slice(&self.as_slice()[..self.n_bytes / 2 * 2])
    }

    pub fn as_u16_mut(&mut self) -> &mut [u16] {
        let n_bytes = self.n_bytes / 2 * 2;
        bytemuck::cast_slice_mut(&mut self.as_mut_slice()[..n_bytes])
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout, freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
