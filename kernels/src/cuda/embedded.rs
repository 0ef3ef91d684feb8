//! The fatbins that `cargo xtask build --arch …` has embedded in this binary.

// `FATBINS`, `ARCHITECTURES` and `SHA256`, written by build.rs.
include!(concat!(env!("OUT_DIR"), "/embedded_kernels.rs"));

/// Compiled kernels: one fatbin for each source file, and a second one (`…_bf16`) for those that
/// are compiled for each [`Element`](super::Element).
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedKernels {
    /// Source path below `kernels/src` without its ending (`stream_linear/repack`), and its fatbin.
    pub fatbins: &'static [(&'static str, &'static [u8])],
    /// For example `sm_90`, `sm_120`; empty in a binary without kernels.
    pub architectures: &'static [&'static str],
    /// Over all fatbins and the architectures; empty in a binary without kernels.
    pub sha256: &'static str,
}

impl EmbeddedKernels {
    pub fn n_bytes(&self) -> usize {
        self.fatbins.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    pub(super) fn fatbin(&self, source_name: &str) -> Option<&'static [u8]> {
        self.fatbins
            .iter()
            .find(|(name, _)| *name == source_name)
            .map(|(_, bytes)| *bytes)
    }
}

pub fn embedded_kernels() -> EmbeddedKernels {
    EmbeddedKernels {
        fatbins: FATBINS,
        architectures: ARCHITECTURES,
        sha256: SHA256,
    }
}
