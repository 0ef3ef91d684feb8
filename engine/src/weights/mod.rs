//! Reads a checkpoint's tensors under one set of names, whatever the file format.
//!
//! Values are never changed here. A matrix is returned in its format on disk, memory-mapped if the
//! layout allows it; 4-bit checkpoints all get AWQ's layout ([`packed`]). Each executor repacks it
//! for its own kernels. The bytes of a mapped matrix may be unaligned: check the alignment before
//! casting them.
//!
//! One order holds for all families and formats: rows of q and k are in the half-split order of
//! RoPE (NeoX), so that a pair is `(i, i + head_dim / 2)`. Interleaved files are reordered.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use host::mapped_file::MappedFile;

use crate::errors::Code;
use crate::model::config::{ConfigError, ModelConfig};

use self::format::{CheckpointFormat, MatrixFormat};
use self::preset::Preset;
use self::scaled::ScaledMatrix;

pub mod awq;
pub mod decode;
pub mod eagle_head;
pub mod file_kind;
#[cfg(feature = "testkit")]
pub mod fixture;
pub mod folder;
pub mod format;
pub mod gguf;
pub mod gguf_names;
pub mod gpu_format;
#[cfg(test)]
mod moe_tests;
pub mod names;
mod packed;
pub mod preset;
pub mod safetensors;
pub mod scaled;
pub mod synthetic;

/// A matrix of the decoder by its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixId {
    /// `[vocab, hidden]`
    Embedding,
    /// `[vocab, hidden]`; the embedding itself if embeddings are tied.
    LmHead,
    /// `[n_q_heads * head_dim, hidden]`
    Q(usize),
    K(usize),
    V(usize),
    O(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
    /// `[n_experts, hidden]`: of a sparse layer, which has experts in place of gate, up and down.
    Router(usize),
    /// Of an expert, after its layer.
    ExpertGate(usize, usize),
    ExpertUp(usize, usize),
    ExpertDown(usize, usize),
}

/// A vector of the decoder by its role; the index is the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VectorId {
    AttnNorm(usize),
    MlpNorm(usize),
    QNorm(usize),
    KNorm(usize),
    FinalNorm,
    QBias(usize),
    KBias(usize),
    VBias(usize),
    OBias(usize),
}

/// How the elements of a row-major `[n_out, n_in]` matrix are stored. Block formats are ggml's,
/// with blocks along `n_in`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub enum ElementFormat {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// One weight matrix, `y = W x` with `W: [n_out, n_in]`.
#[derive(Debug, Clone)]
pub enum Matrix<'a> {
    Rows {
        format: ElementFormat,
        n_out: usize,
        n_in: usize,
        bytes: Cow<'a, [u8]>,
    },
    Awq(AwqMatrix<'a>),
    Scaled(ScaledMatrix<'a>),
}

/// AutoAWQ `gemm` layout: `W[n][k] = (q - z) * s`.
/// Nibble i of a packed word holds column `{0,2,4,6,1,3,5,7}[i]` of its eight.
#[derive(Debug, Clone)]
pub struct AwqMatrix<'a> {
    pub n_out: usize,
    pub n_in: usize,
    pub group_size: usize,
    /// `[n_in, n_out / 8]` little-endian u32
    pub qweight: Cow<'a, [u8]>,
    /// `[n_in / group_size, n_out / 8]` little-endian u32
    pub qzeros: Cow<'a, [u8]>,
    /// `[n_in / group_size, n_out]` f16
    pub scales: Cow<'a, [u8]>,
    /// The input that each column multiplies, if columns were moved so that those of a group are
    /// neighbours (act-order). A permutation of `0 .. n_in`.
    pub order: Option<Vec<u32>>,
}

#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    #[error("{file}: {message}")]
    File { file: String, message: String },
    #[error("the checkpoint has no tensor {name}")]
    Missing { name: String },
    #[error("tensor {name} has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    #[error("tensor {name} has format {format}, which is not supported; supported: {supported}")]
    Format {
        name: String,
        format: String,
        supported: &'static str,
    },
    /// A file that cannot be opened or mapped, whatever is in it.
    #[error("{file}: {message}")]
    Unreadable { file: String, message: String },
    /// A folder without weights in a supported format.
    #[error("{place}: {message}")]
    Absent { place: String, message: String },
    #[error("{file} {message}")]
    LoadFormat { file: String, message: String },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl WeightError {
    pub fn code(&self) -> Code {
        match self {
            Self::File { .. } => Code::WeightsFile,
            Self::Missing { .. } => Code::WeightsMissing,
            Self::Shape { .. } => Code::WeightsShape,
            Self::Format { .. } => Code::WeightsFormat,
            Self::Unreadable { .. } => Code::ModelFile,
            Self::Absent { .. } => Code::NoWeights,
            Self::LoadFormat { .. } => Code::LoadFormat,
            Self::Config(error) => error.code(),
        }
    }
}

/// An opened checkpoint: safetensors folder, GGUF file or synthetic.
pub trait Checkpoint: Send + Sync {
    fn config(&self) -> &ModelConfig;
    /// Shape-checked against the configuration.
    ///
    /// # Errors
    ///
    /// If the tensor is missing, has another shape or a format that is not supported, or its
    /// file became shorter.
    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError>;
    /// Converted to f32, length-checked.
    ///
    /// # Errors
    ///
    /// If the tensor is missing, has another length or a format that is not supported, or its
    /// file became shorter.
    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError>;
    fn format(&self) -> CheckpointFormat;
    /// Seed of dummy weights, which an executor may generate itself; `None` for real ones.
    fn dummy_seed(&self) -> Option<u64> {
        None
    }
    /// Whether the files are still as long as when they were opened: data read from a shorter one
    /// may be wrong.
    ///
    /// # Errors
    ///
    /// [`WeightError::File`] with the file and both lengths.
    fn check_unchanged(&self) -> Result<(), WeightError> {
        Ok(())
    }
    /// Declares that the reader of this checkpoint has copied what it has read so far, so that the
    /// pages of mapped files may be evicted. They are read again if needed.
    fn release(&self) {}
    /// A matrix's format and size, without its bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::matrix`].
    fn storage(&self, id: MatrixId) -> Result<MatrixStorage, WeightError> {
        Ok(self.matrix(id)?.storage())
    }
}

/// A matrix's format and size, for reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatrixStorage {
    pub n_out: usize,
    pub n_in: usize,
    pub format: MatrixFormat,
    /// Its columns are not in the order of its inputs ([`AwqMatrix::order`]).
    pub is_reordered: bool,
    /// Columns under one scale of [`MatrixFormat::Scaled`].
    pub scale_columns: Option<usize>,
    pub n_elements: u64,
    pub n_bytes: u64,
}

impl Matrix<'_> {
    /// `[n_out, n_in]`
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Rows { n_out, n_in, .. } => (*n_out, *n_in),
            Self::Awq(awq) => (awq.n_out, awq.n_in),
            Self::Scaled(scaled) => (scaled.n_out, scaled.n_in),
        }
    }

    pub fn storage(&self) -> MatrixStorage {
        let (n_out, n_in) = self.shape();
        let (format, n_bytes) = match self {
            Self::Rows { format, bytes, .. } => (MatrixFormat::Rows(*format), bytes.len()),
            Self::Awq(awq) => (
                MatrixFormat::Awq {
                    group_size: awq.group_size,
                },
                awq.qweight.len() + awq.qzeros.len() + awq.scales.len(),
            ),
            Self::Scaled(scaled) => return scaled.storage(),
        };
        MatrixStorage {
            n_out,
            n_in,
            format,
            is_reordered: matches!(self, Self::Awq(awq) if awq.order.is_some()),
            scale_columns: None,
            n_elements: (n_out * n_in) as u64,
            n_bytes: n_bytes as u64,
        }
    }

    /// Row-major f32 copy, `[n_out, n_in]`: the simple reference for every format.
    ///
    /// # Errors
    ///
    /// As the constructors: if the bytes are not as many as shape and format need. An opened
    /// checkpoint gives no such matrix.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightError> {
        match self {
            Self::Rows {
                format,
                n_out,
                n_in,
                bytes,
            } => decode::to_f32(*format, bytes, n_out * n_in),
            Self::Awq(awq) => awq::dequantise(awq),
            Self::Scaled(scaled) => Ok(scaled.to_f32()),
        }
    }
}

/// `--load-format`: which reader opens the checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadFormat {
    /// Decided by the model's files.
    #[default]
    Auto,
    Safetensors,
    Gguf,
    /// Seeded random weights of the configuration's shapes; no checkpoint is read.
    Dummy,
}

impl std::str::FromStr for LoadFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "safetensors" => Ok(Self::Safetensors),
            "gguf" => Ok(Self::Gguf),
            "dummy" => Ok(Self::Dummy),
            other => Err(format!(
                "{other} is not one of auto, safetensors, gguf, dummy"
            )),
        }
    }
}

/// Maps a weights file. If a file becomes shorter while it is mapped, reading the missing part
/// kills the process, so a file that is being written is refused as far as that can be detected.
fn map(path: &Path) -> Result<MappedFile, WeightError> {
    let unreadable = |error: std::io::Error| WeightError::Unreadable {
        file: path.display().to_string(),
        message: error.to_string(),
    };
    let map = MappedFile::open(path).map_err(unreadable)?;
    still_whole(path, &map)?;
    Ok(map)
}

fn still_whole(path: &Path, map: &MappedFile) -> Result<(), WeightError> {
    let n_mapped = map.len() as u64;
    let n_bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if n_bytes >= n_mapped {
        return Ok(());
    }
    let message = format!(
        "had {n_mapped} bytes when it was opened and has {n_bytes} now. A model's file must not be \
         written to while it is loaded: write another file and rename it"
    );
    Err(WeightError::File {
        file: path.display().to_string(),
        message,
    })
}

/// What a model consists of on this machine.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelFiles {
    /// `config.json` and safetensors.
    Folder(PathBuf),
    Gguf(PathBuf),
    Synthetic(Box<Preset>),
}

/// Opens a model's files. `seed` matters for random weights alone.
///
/// # Errors
///
/// If a file cannot be read or mapped, is no checkpoint of the asked format, or lacks a tensor.
pub fn open(
    files: &ModelFiles,
    load_format: LoadFormat,
    seed: u64,
) -> Result<Box<dyn Checkpoint>, WeightError> {
    let refuse = |file: &Path, message: &str| {
        Err(WeightError::LoadFormat {
            file: file.display().to_string(),
            message: message.into(),
        })
    };
    match (files, load_format) {
        (ModelFiles::Synthetic(preset), LoadFormat::Auto | LoadFormat::Dummy) => Ok(Box::new(
            synthetic::SyntheticCheckpoint::from_preset(preset, seed),
        )),
        (ModelFiles::Synthetic(preset), LoadFormat::Safetensors | LoadFormat::Gguf) => refuse(
            Path::new(preset.name),
            "is synthetic; --load-format must be auto or dummy",
        ),
        (ModelFiles::Folder(dir), LoadFormat::Auto | LoadFormat::Safetensors) => {
            Ok(Box::new(safetensors::SafetensorsCheckpoint::open(dir)?))
        }
        (ModelFiles::Folder(dir), LoadFormat::Dummy) => Ok(Box::new(
            synthetic::SyntheticCheckpoint::of_folder(dir, seed)?,
        )),
        (ModelFiles::Folder(dir), LoadFormat::Gguf) => refuse(
            dir,
            "is a safetensors folder, but --load-format gguf was asked",
        ),
        (ModelFiles::Gguf(file), LoadFormat::Auto | LoadFormat::Gguf) => {
            Ok(Box::new(gguf::GgufCheckpoint::open(file)?))
        }
        (ModelFiles::Gguf(file), LoadFormat::Safetensors) => refuse(
            file,
            "is a GGUF file, but --load-format safetensors was asked",
        ),
        (ModelFiles::Gguf(file), LoadFormat::Dummy) => Ok(Box::new(
            synthetic::SyntheticCheckpoint::of_gguf(file, seed)?,
        )),
    }
}
