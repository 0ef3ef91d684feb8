//! A GGUF file, or a model in several, memory-mapped.
//!
//! llama.cpp's converter interleaves the rows of q and k of the `llama` architecture, so that RoPE
//! rotates neighbours `(2i, 2i + 1)`. Here they are restored to half-split order, whole rows at a
//! time (quantised blocks run along a row, so their bytes are unchanged). `qwen2`, `qwen3` and
//! `qwen3moe` files are already in half-split order. The experts of a layer are one tensor each for
//! gate, up and down, one after the other.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use host::mapped_file::MappedFile;

use self::value::Value;
use super::format::{CheckpointFormat, MatrixFormat, ggml_name};
use super::{
    Checkpoint, ElementFormat, Matrix, MatrixId, MatrixStorage, VectorId, WeightError, decode,
    gguf_names, still_whole,
};
use crate::model::config::{ConfigError, Family, ModelConfig};

pub mod config;
mod experts;
pub mod header;
pub mod value;

pub use header::GgufHeader;

/// A GGUF file with its configuration.
pub struct GgufCheckpoint {
    file: GgufFile,
    config: ModelConfig,
}

/// The mapped files of one model and their combined header; also used for the tokenizer's metadata
/// alone.
pub struct GgufFile {
    parts: Vec<Part>,
    /// Metadata of the first part, tensors of all.
    pub header: GgufHeader,
}

struct Part {
    path: PathBuf,
    map: MappedFile,
}

impl GgufFile {
    /// Opens a file and, if it is the first of several (`split.count`), the others next to it.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or has no valid header, a part is missing or is another one than
    /// its name says, or two parts hold the same tensor.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let (part, mut header) = open_part(path)?;
        let mut parts = vec![part];
        let n_parts = split_number(&header, "split.count").unwrap_or(1);
        if n_parts > 1 {
            for path in &other_parts(path, &header, n_parts)? {
                let (part, of_part) = open_part(path)?;
                let named = split_number(&of_part, "split.no");
                if named != Some(parts.len() as u64) {
                    let message = format!(
                        "is part {} of a model by its name, and split.no is {named:?}",
                        parts.len() + 1
                    );
                    return Err(file_error(path, message));
                }
                for (name, mut info) in of_part.tensors {
                    info.part = parts.len();
                    if header.tensors.insert(name.clone(), info).is_some() {
                        let message = format!("tensor {name} is in another part, too");
                        return Err(file_error(path, message));
                    }
                }
                parts.push(part);
            }
        }
        Ok(Self { parts, header })
    }

    /// Format and bytes of a tensor, which must have exactly this shape.
    ///
    /// # Errors
    ///
    /// [`WeightError::Missing`], [`WeightError::Shape`] or [`WeightError::Format`];
    /// [`WeightError::File`] if its rows are no whole blocks or do not lie inside the file.
    pub fn tensor(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Result<(ElementFormat, &[u8]), WeightError> {
        let missing = || WeightError::Missing {
            name: name.to_string(),
        };
        let info = self.header.tensors.get(name).ok_or_else(missing)?;
        if info.shape != expected {
            return Err(WeightError::Shape {
                name: name.to_string(),
                found: info.shape.clone(),
                expected: expected.to_vec(),
            });
        }
        let Some(format) = ElementFormat::from_ggml(info.ggml_type) else {
            return Err(WeightError::Format {
                name: name.to_string(),
                format: ggml_name(info.ggml_type),
                supported: ElementFormat::SUPPORTED,
            });
        };
        let part = &self.parts[info.part];
        let fail = |message: String| file_error(&part.path, message);
        // Blocks run along a row and do not cross into the next.
        let n_in = expected.last().copied().unwrap_or(0);
        let n_rows: usize = expected.iter().rev().skip(1).product();
        let n_bytes = format.n_bytes(n_in).and_then(|row| row.checked_mul(n_rows));
        let Some(n_bytes) = n_bytes else {
            return Err(fail(format!(
                "tensor {name}: rows of {n_in} elements are not whole {format} blocks of {}",
                format.block_elements()
            )));
        };
        let bytes = info
            .offset
            .checked_add(n_bytes)
            .and_then(|end| part.map.get(info.offset..end));
        let short = || {
            let (start, n) = (info.offset, part.map.len());
            fail(format!(
                "tensor {name} needs {n_bytes} bytes from {start}; the file has {n}"
            ))
        };
        Ok((format, bytes.ok_or_else(short)?))
    }

    fn rope_factors(&self) -> Result<Option<Vec<f32>>, WeightError> {
        const NAME: &str = "rope_freqs.weight";
        let Some(info) = self.header.tensors.get(NAME) else {
            return Ok(None);
        };
        let &[n] = info.shape.as_slice() else {
            let message = format!("{NAME} has shape {:?}; it must be a vector", info.shape);
            return Err(file_error(&self.parts[info.part].path, message));
        };
        let (format, bytes) = self.tensor(NAME, &[n])?;
        decode::to_f32(format, bytes, n).map(Some)
    }
}

/// Refuses a model by the beginning of its first file, of `n_bytes` in total: for its architecture,
/// or for the format of a tensor. An incomplete header alone is not a reason; then there may be no
/// configuration.
pub(crate) fn judge_beginning(
    beginning: &[u8],
    n_bytes: u64,
) -> Result<Option<ModelConfig>, WeightError> {
    let Ok(header) = header::parse_beginning(beginning, n_bytes) else {
        return Ok(None);
    };
    let config = match config::read(&header, None) {
        Ok(config) => Some(config),
        Err(error @ ConfigError::Unsupported { .. }) => return Err(error.into()),
        // Other errors may be due to tensors in other parts.
        Err(_) => None,
    };
    let is_read = |name: &str| {
        let is_matrix = name.ends_with(".weight") && name != "rope_freqs.weight";
        is_matrix
            && (name.starts_with("blk.")
                || name.starts_with("output")
                || name.starts_with("token_embd"))
    };
    let mut tensors: Vec<_> = header.tensors.iter().collect();
    tensors.sort_by_key(|(name, _)| name.as_str());
    for (name, info) in tensors.into_iter().filter(|(name, _)| is_read(name)) {
        if ElementFormat::from_ggml(info.ggml_type).is_none() {
            return Err(WeightError::Format {
                name: name.clone(),
                format: ggml_name(info.ggml_type),
                supported: ElementFormat::SUPPORTED,
            });
        }
    }
    Ok(config)
}

fn file_error(path: &Path, message: String) -> WeightError {
    WeightError::File {
        file: path.display().to_string(),
        message,
    }
}

fn open_part(path: &Path) -> Result<(Part, GgufHeader), WeightError> {
    let map = super::map(path)?;
    let header = header::parse(&map).map_err(|message| file_error(path, message))?;
    let path = path.to_path_buf();
    Ok((Part { path, map }, header))
}

fn split_number(header: &GgufHeader, key: &str) -> Option<u64> {
    header.metadata.get(key).and_then(Value::to_u64)
}

/// The second and later parts, all of which must exist.
fn other_parts(
    first: &Path,
    header: &GgufHeader,
    n_parts: u64,
) -> Result<Vec<PathBuf>, WeightError> {
    let number = split_number(header, "split.no").unwrap_or(0) + 1;
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    let numbered = gguf_names::part_of(&name).filter(|part| {
        u64::from(part.count) == n_parts && u64::from(part.number) == number && number == 1
    });
    let Some(numbered) = numbered else {
        let message = format!(
            "is part {number} of a model in {n_parts} files. Give the first, with the others next to \
             it under the names that they were made with (…-00001-of-{n_parts:05}.gguf), or join \
             them with `llama-gguf-split --merge`"
        );
        return Err(file_error(first, message));
    };
    let others: Vec<PathBuf> = (2..=numbered.count)
        .map(|number| first.with_file_name(numbered.name(number)))
        .collect();
    match others.iter().find(|path| !path.is_file()) {
        None => Ok(others),
        Some(absent) => {
            let message = format!(
                "is part 1 of a model in {n_parts} files, and {} is not next to it",
                absent.file_name().unwrap_or_default().to_string_lossy()
            );
            Err(file_error(first, message))
        }
    }
}

impl GgufCheckpoint {
    /// Opens the file and checks that every tensor exists, has its shape and is inside the file.
    ///
    /// # Errors
    ///
    /// As [`GgufFile::open`], [`config::read`] and [`GgufFile::tensor`], for the first tensor
    /// that is wrong.
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let file = GgufFile::open(path)?;
        let rope_factors = file.rope_factors()?;
        let config = config::read(&file.header, rope_factors.as_deref())?;
        let opened = Self { file, config };
        for id in MatrixId::all(&opened.config) {
            opened.stored_rows(id)?;
        }
        for id in VectorId::all(&opened.config) {
            opened
                .file
                .tensor(&id.gguf_name(), &[id.n_elements(&opened.config)])?;
        }
        Ok(opened)
    }

    /// Rows in the file's order.
    fn stored_rows(&self, id: MatrixId) -> Result<(ElementFormat, &[u8]), WeightError> {
        let id = match id {
            MatrixId::LmHead if self.config.tied_embeddings => MatrixId::Embedding,
            other => other,
        };
        let (n_out, n_in) = id.shape(&self.config);
        let (Some(expert), Some(experts)) = (id.expert(), &self.config.experts) else {
            return self.file.tensor(&id.gguf_name(), &[n_out, n_in]);
        };
        let shape = [experts.n_experts, n_out, n_in];
        let (format, bytes) = self.file.tensor(&id.gguf_name(), &shape)?;
        let n_bytes = bytes.len() / experts.n_experts;
        Ok((format, &bytes[expert * n_bytes..][..n_bytes]))
    }

    fn interleaves_rope(&self) -> bool {
        self.config.family == Family::Llama
    }
}

/// The index in the file of row `row` in half-split order: within a head, row `p * head_dim / 2 +
/// i` is stored at `2 i + p`.
pub fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

impl Checkpoint for GgufCheckpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        let (n_out, n_in) = id.shape(&self.config);
        let (format, stored) = self.stored_rows(id)?;
        let rotated = matches!(id, MatrixId::Q(_) | MatrixId::K(_));
        let bytes = if rotated && self.interleaves_rope() {
            let row_bytes = stored.len() / n_out;
            let mut rows = Vec::with_capacity(stored.len());
            for row in 0..n_out {
                let from = interleaved_row(row, self.config.head_dim) * row_bytes;
                rows.extend_from_slice(&stored[from..from + row_bytes]);
            }
            Cow::Owned(rows)
        } else {
            Cow::Borrowed(stored)
        };
        Ok(Matrix::Rows {
            format,
            n_out,
            n_in,
            bytes,
        })
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        let n = id.n_elements(&self.config);
        let (format, bytes) = self.file.tensor(&id.gguf_name(), &[n])?;
        let stored = decode::to_f32(format, bytes, n)?;
        let rotated = matches!(id, VectorId::QBias(_) | VectorId::KBias(_));
        if rotated && self.interleaves_rope() {
            let head_dim = self.config.head_dim;
            return Ok((0..n)
                .map(|row| stored[interleaved_row(row, head_dim)])
                .collect());
        }
        Ok(stored)
    }

    /// The format that most bytes of the layers have.
    fn format(&self) -> CheckpointFormat {
        let mut totals: Vec<(MatrixFormat, u64)> = Vec::new();
        for id in MatrixId::all(&self.config)
            .into_iter()
            .filter(|id| id.is_quantised())
        {
            let Ok(MatrixStorage {
                format, n_bytes, ..
            }) = self.storage(id)
            else {
                continue;
            };
            match totals.iter_mut().find(|(name, _)| *name == format) {
                Some((_, total)) => *total += n_bytes,
                None => totals.push((format, n_bytes)),
            }
        }
        let main = totals.into_iter().max_by_key(|(_, total)| *total);
        CheckpointFormat::Gguf(main.map(|(format, _)| format))
    }

    fn check_unchanged(&self) -> Result<(), WeightError> {
        let mut parts = self.file.parts.iter();
        parts.try_for_each(|part| still_whole(&part.path, &part.map))
    }

    fn release(&self) {
        self.file.parts.iter().for_each(|part| part.map.release());
    }

    fn storage(&self, id: MatrixId) -> Result<MatrixStorage, WeightError> {
        let (n_out, n_in) = id.shape(&self.config);
        let (format, bytes) = self.stored_rows(id)?;
        Ok(MatrixStorage {
            n_out,
            n_in,
            format: MatrixFormat::Rows(format),
            is_reordered: false,
            scale_columns: None,
            n_elements: (n_out * n_in) as u64,
            n_bytes: bytes.len() as u64,
        })
    }
}

#[cfg(test)]
mod tests;
