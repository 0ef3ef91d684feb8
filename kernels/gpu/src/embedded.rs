//! The fatbins that launches use: those that `cargo xtask build --arch …` has put into this binary,
//! or, where a test or a bench says so before it opens a device, those of a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::kernel_index::KernelIndex;

// `FATBINS`, `ARCHITECTURES` and `SHA256`, written by build.rs.
include!(concat!(env!("OUT_DIR"), "/embedded_kernels.rs"));

/// Set once, by [`use_compiled_kernels`].
static OF_A_FOLDER: Mutex<Option<(PathBuf, EmbeddedKernels)>> = Mutex::new(None);

/// Names a folder of compiled kernels for GPU tests and benches (`cargo xtask kernel` sets it). The
/// engine does not read it.
pub const TEST_KERNELS_VARIABLE: &str = "ENGINE_TEST_KERNELS_DIR";

/// Compiled kernels: one fatbin a source file, and a second one (`…_bf16`) of those that are
/// compiled for each type of activations.
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
    let built_in = EmbeddedKernels {
        fatbins: FATBINS,
        architectures: ARCHITECTURES,
        sha256: SHA256,
    };
    let of_a_folder = OF_A_FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    of_a_folder
        .as_ref()
        .map_or(built_in, |(_, kernels)| *kernels)
}

/// Why kernels of a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CompiledKernelsError {
    #[error("{}: {source}", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {message}", .path.display())]
    Index { path: PathBuf, message: String },
    #[error("this process uses the kernels of {} already", .used.display())]
    Another { used: PathBuf },
}

/// Launches of this process use the kernels of a folder that `cargo xtask kernel` has compiled, so
/// that a changed kernel is checked and timed without building Rust again. Before a device is opened.
///
/// The fatbins stay in memory until the process ends: loaded modules and views of them live as long.
///
/// # Errors
///
/// If the folder's index or a fatbin cannot be read, or another folder was named before.
pub fn use_compiled_kernels(folder: &Path) -> Result<EmbeddedKernels, CompiledKernelsError> {
    let mut used = OF_A_FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((used, kernels)) = used.as_ref() {
        if used == folder {
            return Ok(*kernels);
        }
        let used = used.clone();
        return Err(CompiledKernelsError::Another { used });
    }
    let kernels = read_folder(folder)?;
    *used = Some((folder.to_owned(), kernels));
    Ok(kernels)
}

/// As [`use_compiled_kernels`], of the folder that `ENGINE_TEST_KERNELS_DIR` names; `None` where it
/// names none.
///
/// # Errors
///
/// As [`use_compiled_kernels`].
pub fn use_kernels_of_environment() -> Result<Option<PathBuf>, CompiledKernelsError> {
    let named = std::env::var_os(TEST_KERNELS_VARIABLE).filter(|name| !name.is_empty());
    let Some(folder) = named.map(PathBuf::from) else {
        return Ok(None);
    };
    use_compiled_kernels(&folder)?;
    Ok(Some(folder))
}

fn read_folder(folder: &Path) -> Result<EmbeddedKernels, CompiledKernelsError> {
    let read_failed = |path: &Path, source| CompiledKernelsError::Read {
        path: path.to_owned(),
        source,
    };
    let path = folder.join("index.txt");
    let text = fs::read_to_string(&path).map_err(|error| read_failed(&path, error))?;
    let index = KernelIndex::read(&text)
        .map_err(|message| CompiledKernelsError::Index { path, message })?;
    let mut fatbins = Vec::new();
    for (source, file) in index.fatbins {
        let path = folder.join(file);
        let bytes = fs::read(&path).map_err(|error| read_failed(&path, error))?;
        fatbins.push((leaked(source), &*bytes.leak()));
    }
    let architectures: Vec<_> = index.architectures.into_iter().map(leaked).collect();
    Ok(EmbeddedKernels {
        fatbins: fatbins.leak(),
        architectures: architectures.leak(),
        sha256: leaked(index.sha256),
    })
}

fn leaked(text: String) -> &'static str {
    text.leak()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("kernels-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a scratch folder");
        folder
    }

    #[test]
    fn a_folder_of_compiled_kernels_is_read_whole() {
        let folder = scratch("whole");
        fs::write(folder.join("a.fatbin"), b"code of a").expect("written");
        let index = "architecture sm_90\nfatbin op/a a.fatbin\nsha256 00ff\n";
        fs::write(folder.join("index.txt"), index).expect("written");
        let kernels = read_folder(&folder).expect("a whole folder");
        assert_eq!(kernels.architectures, ["sm_90"]);
        assert_eq!(kernels.fatbins, [("op/a", &b"code of a"[..])]);
        assert_eq!((kernels.sha256, kernels.n_bytes()), ("00ff", 9));
        fs::remove_dir_all(folder).expect("removed");
    }

    #[test]
    fn what_a_folder_lacks_is_named() {
        let folder = scratch("broken");
        let error = |index: &str| {
            fs::write(folder.join("index.txt"), index).expect("written");
            read_folder(&folder).expect_err("broken").to_string()
        };
        assert!(error("fatbin op/a gone.fatbin\n").contains("gone.fatbin: No such file"));
        assert!(error("fatbins op/a\n").ends_with("cannot read the line `fatbins op/a`"));
        fs::remove_dir_all(folder).expect("removed");
    }
}
