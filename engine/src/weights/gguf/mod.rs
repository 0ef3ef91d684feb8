//! A GGUF file, memory-mapped.
//!
//! llama.cpp's converter interleaves the rows of q and k of the `llama` architecture, so that
//! RoPE turns neighbours `(2i, 2i + 1)`. They are put back into half-split order here, whole
//! rows at a time (quantised blocks run along a row, so their bytes stay as they are).
//! `qwen2` and `qwen3` files are in half-split order already.

use std::borrow::Cow;
use std::path::Path;

use kernels::mapped_file::MappedFile;

use super::{
    Checkpoint, ElementFormat, Matrix, MatrixId, MatrixStorage, VectorId, WeightError, decode,
};
use crate::model::config::{Family, ModelConfig};

pub mod config;
pub mod header;

pub use header::GgufHeader;

/// A GGUF file with its configuration.
pub struct GgufCheckpoint {
    file: GgufFile,
    config: ModelConfig,
}

/// The mapped file and its header; also for those who want the tokenizer's metadata alone.
pub struct GgufFile {
    path: String,
    map: MappedFile,
    pub header: GgufHeader,
}

impl GgufFile {
    pub fn open(path: &Path) -> Result<Self, WeightError> {
        let name = path.display().to_string();
        let fail = |message: String| WeightError::File {
            file: name.clone(),
            message,
        };
        let map = MappedFile::open(path).map_err(|e| fail(e.to_string()))?;
        let header = header::parse(&map).map_err(fail)?;
        Ok(Self {
            path: name,
            map,
            header,
        })
    }

    /// Format and bytes of a tensor that must have exactly this shape.
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
                format: format!("ggml type {}", info.ggml_type),
                supported: ElementFormat::SUPPORTED,
            });
        };
        let fail = |message: String| WeightError::File {
            file: self.path.clone(),
            message,
        };
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
            .and_then(|end| self.map.get(info.offset..end));
        let short = || {
            let (start, n) = (info.offset, self.map.len());
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
            return Err(WeightError::File {
                file: self.path.clone(),
                message: format!("{NAME} has shape {:?}; it must be a vector", info.shape),
            });
        };
        let (format, bytes) = self.tensor(NAME, &[n])?;
        decode::to_f32(format, bytes, n).map(Some)
    }
}

impl GgufCheckpoint {
    /// Opens the file and checks that every tensor is there, has its shape and is inside.
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

    /// Rows as the file has them.
    fn stored_rows(&self, id: MatrixId) -> Result<(ElementFormat, &[u8]), WeightError> {
        let id = match id {
            MatrixId::LmHead if self.config.tied_embeddings => MatrixId::Embedding,
            other => other,
        };
        let (n_out, n_in) = id.shape(&self.config);
        self.file.tensor(&id.gguf_name(), &[n_out, n_in])
    }

    fn interleaves_rope(&self) -> bool {
        self.config.family == Family::Llama
    }
}

/// Row of the file that holds row `row` of the half-split order: within a head, row
/// `p * head_dim / 2 + i` is stored at `2 i + p`.
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

    /// Names the format that most bytes of the layers have.
    fn format_name(&self) -> String {
        let mut totals: Vec<(String, u64)> = Vec::new();
        for id in MatrixId::all(&self.config)
            .into_iter()
            .filter(|id| id.is_in_layer())
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
        main.map_or_else(|| "gguf".into(), |(format, _)| format!("gguf {format}"))
    }

    fn release(&self) {
        self.file.map.release();
    }

    fn storage(&self, id: MatrixId) -> Result<MatrixStorage, WeightError> {
        let (n_out, n_in) = id.shape(&self.config);
        let (format, bytes) = self.stored_rows(id)?;
        Ok(MatrixStorage {
            n_out,
            n_in,
            awq_group_size: None,
            format: format.name().to_string(),
            n_elements: (n_out * n_in) as u64,
            n_bytes: bytes.len() as u64,
        })
    }
}

#[cfg(test)]
#[path = "../gguf_tests.rs"]
mod tests;
