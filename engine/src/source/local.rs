//! A local path → the files of a model. Decided by file names and, if they are not enough, the
//! first bytes.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{SourceError, is_gguf};
use crate::weights::ModelFiles;
use crate::weights::safetensors::weight_files;
use crate::weights::{file_kind, gguf, gguf_names};

/// The model at an absolute path.
pub(super) fn files_at(path: &Path) -> Result<ModelFiles, SourceError> {
    if path.is_dir() {
        return files_of_folder(path);
    }
    let beginning = beginning_of(path, 64)?;
    if !is_gguf(path) && !beginning.starts_with(b"GGUF") {
        let kind = file_kind::of(&beginning).filter(|_| path.extension().is_some());
        let message = match kind {
            Some(kind) => format!("is no folder with config.json and no GGUF file; it is {kind}"),
            None => "is neither a folder with config.json nor a GGUF file".to_owned(),
        };
        return Err(SourceError::file(path, message));
    }
    Ok(ModelFiles::Gguf(first_part(path)))
}

/// The files of a GGUF model whose first one is `first`.
pub(super) fn gguf_parts(first: &Path) -> Vec<PathBuf> {
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    match gguf_names::part_of(&name) {
        None => vec![first.to_path_buf()],
        Some(part) => (1..=part.count)
            .map(|number| first.with_file_name(part.name(number)))
            .filter(|path| path.exists())
            .collect(),
    }
}

/// Any part of a model in several files stands for the first, if that exists.
fn first_part(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    gguf_names::part_of(&name)
        .map(|part| path.with_file_name(part.name(1)))
        .filter(|first| first.is_file())
        .unwrap_or_else(|| path.to_path_buf())
}

/// `config.json` with safetensors, or the folder's only GGUF model.
fn files_of_folder(dir: &Path) -> Result<ModelFiles, SourceError> {
    let has = |name: &str| dir.join(name).exists();
    let entries = std::fs::read_dir(dir).map_err(|e| SourceError::file(dir, e))?;
    let names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let models = gguf_names::models(names.iter().map(String::as_str));
    // Repositories of GGUF files often include the original's config.json.
    let is_folder = has("config.json") && (models.is_empty() || weight_files(dir).is_ok());
    if is_folder {
        return Ok(ModelFiles::Folder(dir.to_path_buf()));
    }
    match models.as_slice() {
        [only] => Ok(ModelFiles::Gguf(dir.join(&only[0]))),
        [] => {
            let message = if has("adapter_config.json") {
                "is a LoRA adapter, not a model: it has adapter_config.json and no config.json. \
                 Merge it into its base model (peft: merge_and_unload) and give that folder"
            } else if names.iter().any(is_gguf) {
                "has parts of a GGUF model, not all of them"
            } else {
                "has neither config.json nor a .gguf file"
            };
            Err(SourceError::file(dir, message))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|parts| parts[0].as_str()).collect();
            let message = format!(
                "has several .gguf files; name the one to load: {}",
                names.join(", ")
            );
            Err(SourceError::file(dir, message))
        }
    }
}

/// Refuses a GGUF file for its architecture or a format in it, by its header alone. An unreadable
/// file is reported when it is opened.
pub(super) fn judge_header(path: &Path) -> Result<(), SourceError> {
    const HEADER_BYTES: u64 = 16 << 20;
    let n_bytes = std::fs::metadata(path)
        .map_err(|e| SourceError::file(path, e))?
        .len();
    let beginning = beginning_of(path, HEADER_BYTES)?;
    gguf::judge_beginning(&beginning, n_bytes)
        .map(drop)
        .map_err(|error| SourceError::Weights(Box::new(error)))
}

fn beginning_of(path: &Path, most: u64) -> Result<Vec<u8>, SourceError> {
    let mut beginning = Vec::new();
    File::open(path)
        .and_then(|file| file.take(most).read_to_end(&mut beginning))
        .map_err(|e| SourceError::file(path, e))?;
    Ok(beginning)
}
