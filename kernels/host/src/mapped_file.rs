//! A file as a byte slice, paged in on demand.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A read-only mapping of a whole file.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps `path`. The file must not be shortened while the mapping lives: reading a page that is
    /// gone kills the process with a signal. Model files are written once and renamed into place,
    /// so this holds for them.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only and private to this object, which hands out shared
        // slices only; model files are never modified in place (see above).
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(map))
    }

    /// Releases the pages read so far to the system, for a reader that keeps its own copies. They
    /// can be read again from the system's cache or the file. A hint, which the system may ignore.
    pub fn release(&self) {
        #[cfg(unix)]
        // SAFETY: the mapping is shared and read-only, so a page holds nothing but the file's
        // bytes, and a read after this call brings the same bytes back.
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
