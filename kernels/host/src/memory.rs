//! Memory that is aligned for vector loads.
//!
//! Weights are allocated from an [`Arena`]: contiguously on huge pages, bypassing the program's
//! allocator and the gaps between its blocks. Memory that fills up gradually is allocated
//! separately, on the system's small pages.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::HostError;

const HUGE_PAGE_BYTES: usize = 2 << 20;
const LINE_BYTES: usize = 64;
/// Size of an arena's allocations; a larger piece gets a larger one.
const REGION_BYTES: usize = 64 << 20;

/// Zero-initialised bytes that start on a cache line.
#[derive(Debug)]
pub struct AlignedBytes {
    start: NonNull<u8>,
    n_bytes: usize,
    owner: Owner,
}

#[derive(Debug)]
enum Owner {
    Allocator(Layout),
    /// Kept until the last piece of the region is dropped.
    Arena {
        _region: Arc<memmap2::MmapMut>,
    },
}

// SAFETY: the object owns its bytes alone; shared access is through `&self` only.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above, `&self` gives shared slices and nothing else.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// Memory of which perhaps little is ever written: each first write allocates a small page.
    ///
    /// # Errors
    ///
    /// If the allocator has not as much.
    pub fn zeroed(n_bytes: usize) -> Result<Self, HostError> {
        let failed = || HostError::Memory { bytes: n_bytes };
        let layout =
            Layout::from_size_align(n_bytes.max(LINE_BYTES), LINE_BYTES).map_err(|_| failed())?;
        // SAFETY: the layout's size is at least one line, never zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(failed)?;
        Ok(Self {
            start,
            n_bytes,
            owner: Owner::Allocator(layout),
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
        if let Owner::Allocator(layout) = self.owner {
            // SAFETY: allocated in `zeroed` with this layout, freed once.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

/// Allocates memory piece by piece, on huge pages if the system has them. A piece should be written
/// completely and live long: a region is returned to the system when its last piece is dropped.
#[derive(Debug, Default)]
pub struct Arena {
    region: Option<Arc<memmap2::MmapMut>>,
    /// The unused end of the region.
    start: Option<NonNull<u8>>,
    n_left: usize,
}

// SAFETY: the unused end of the region belongs to this object alone.
unsafe impl Send for Arena {}

impl Arena {
    /// A piece of zeroes that starts on a cache line.
    ///
    /// # Errors
    ///
    /// If the system has not as much.
    pub fn zeroed(&mut self, n_bytes: usize) -> Result<AlignedBytes, HostError> {
        let failed = || HostError::Memory { bytes: n_bytes };
        let n_taken = n_bytes
            .checked_next_multiple_of(LINE_BYTES)
            .ok_or_else(failed)?;
        if self.n_left < n_taken || self.start.is_none() {
            self.grow(n_taken.max(REGION_BYTES)).ok_or_else(failed)?;
        }
        let (Some(start), Some(region)) = (self.start, &self.region) else {
            return Err(failed());
        };
        // SAFETY: `n_taken` of the bytes from `start` on are left, so the sum stays inside the
        // region or points at its end.
        self.start = Some(unsafe { start.add(n_taken) });
        self.n_left -= n_taken;
        Ok(AlignedBytes {
            start,
            n_bytes,
            owner: Owner::Arena {
                _region: Arc::clone(region),
            },
        })
    }

    /// Begins a new region. Only the written part uses memory.
    fn grow(&mut self, n_bytes: usize) -> Option<()> {
        let n_bytes = n_bytes.checked_next_multiple_of(HUGE_PAGE_BYTES)?;
        let mut map = memmap2::MmapMut::map_anon(n_bytes.checked_add(HUGE_PAGE_BYTES)?).ok()?;
        // A hint; without huge pages the memory works as well, only slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let skipped = map.as_ptr().align_offset(HUGE_PAGE_BYTES);
        let start = map.get_mut(skipped..)?.as_mut_ptr();
        self.start = NonNull::new(start);
        self.n_left = n_bytes;
        self.region = Some(Arc::new(map));
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zeroed_aligned_and_apart() {
        let mut arena = Arena::default();
        let sizes = [
            1,
            63,
            64,
            65,
            0,
            5000,
            REGION_BYTES - 4096,
            4096,
            REGION_BYTES + 1,
        ];
        let mut pieces: Vec<AlignedBytes> = sizes
            .iter()
            .map(|n| arena.zeroed(*n).expect("memory"))
            .collect();
        for (i, piece) in pieces.iter_mut().enumerate() {
            let bytes = piece.as_mut_slice();
            assert_eq!(bytes.len(), sizes[i]);
            assert_eq!(bytes.as_ptr() as usize % LINE_BYTES, 0);
            assert!(bytes.iter().all(|b| *b == 0), "piece {i} was written to");
            bytes.fill(i as u8 + 1);
        }
        // The pieces outlive the arena and keep their contents.
        drop(arena);
        for (i, piece) in pieces.iter().enumerate() {
            assert!(piece.as_slice().iter().all(|b| *b == i as u8 + 1));
        }
    }

    #[test]
    fn sizes_beyond_the_address_space_are_refused() {
        let mut arena = Arena::default();
        assert!(arena.zeroed(usize::MAX).is_err());
        assert!(arena.zeroed(usize::MAX / 2).is_err());
        assert!(AlignedBytes::zeroed(usize::MAX).is_err());
    }
}
