//! Reads a checkpoint's tensors, whatever file they are in, under one set of names.
//!
//! Nothing is converted here: a matrix comes back in the format it has on disk (memory-mapped
//! where the layout allows it), and each executor repacks it for its own kernels. The bytes of
//! a mapped matrix start wherever its file puts them: cast them only after checking alignment.
//!
//! One order holds for all families and files: rows of q and k are in the half-split order of
//! RoPE (NeoX), so that a pair is `(i, i + head_dim / 2)`. Files that interleave are put back.

use std::borrow::Cow;
use std::path::Path;

use kernels::mapped_file::MappedFile;

use crate::model::config::{ConfigError, ModelConfig};
use crate::source::{ModelFiles, ResolvedModel};

pub mod awq;
pub mod decode;
pub mod file_kind;
pub mod fixture;
pub mod format;
pub mod gguf;
pub mod gguf_names;
pub mod names;
pub mod preset;
pub mod safetensors;
pub mod synthetic;

/// A matrix of the decoder by its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixId {
    /// `[vocab, hidden]`
    Embedding,
    /// `[vocab, hidden]`; the embedding itself where embeddings are tied.
    LmHead,
    /// `[n_q_heads * head_dim, hidden]`
    Q(usize),
    K(usize),
    V(usize),
    O(usize),
    Gate(usize),
    Up(usize),
    Down(usize),
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
    Q4K,
    Q5K,
    Q6K,
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
    /// A folder without weights that are read here.
    #[error("{place}: {message}")]
    Absent { place: String, message: String },
    #[error("{file} {message}")]
    LoadFormat { file: String, message: String },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// An opened checkpoint: safetensors folder, GGUF file or synthetic.
pub trait Checkpoint: Send + Sync {
    fn config(&self) -> &ModelConfig;
    /// Shape-checked against the configuration.
    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError>;
    /// Converted to f32, length-checked.
    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError>;
    /// One line for logs and records: `awq 4-bit, group 128`, `gguf Q4_1`, `dummy awq seed 0`.
    fn format_name(&self) -> String;
    /// Seed of dummy weights, which an executor may make itself; `None` for real ones.
    fn dummy_seed(&self) -> Option<u64> {
        None
    }
    /// Fails where a file became shorter since it was opened: what was read of it may be wrong.
    fn check_unchanged(&self) -> Result<(), WeightError> {
        Ok(())
    }
    /// Says that whoever reads this checkpoint has copied what it has read so far: the pages of
    /// mapped files may leave memory. What is read again comes back.
    fn release(&self) {}
    /// How a matrix is stored and how large it is, without making its bytes.
    fn storage(&self, id: MatrixId) -> Result<MatrixStorage, WeightError> {
        Ok(self.matrix(id)?.storage())
    }
}

/// A matrix's format and size, for reports.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MatrixStorage {
    pub n_out: usize,
    pub n_in: usize,
    /// Values to a scale, where the matrix is AWQ's.
    pub awq_group_size: Option<usize>,
    /// `F16`, `Q4_1`, `AWQ 4-bit, group 128`, …
    pub format: String,
    pub n_elements: u64,
    pub n_bytes: u64,
}

impl Matrix<'_> {
    /// `[n_out, n_in]`
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Rows { n_out, n_in, .. } => (*n_out, *n_in),
            Self::Awq(awq) => (awq.n_out, awq.n_in),
        }
    }

    pub fn storage(&self) -> MatrixStorage {
        let (n_out, n_in) = self.shape();
        let (format, n_bytes) = match self {
            Self::Rows { format, bytes, .. } => (format.name().to_string(), bytes.len()),
            Self::Awq(awq) => (
                awq::storage_name(awq.group_size),
                awq.qweight.len() + awq.qzeros.len() + awq.scales.len(),
            ),
        };
        let awq_group_size = match self {
            Self::Awq(awq) => Some(awq.group_size),
            Self::Rows { .. } => None,
        };
        MatrixStorage {
            n_out,
            n_in,
            awq_group_size,
            format,
            n_elements: (n_out * n_in) as u64,
            n_bytes: n_bytes as u64,
        }
    }

    /// Row-major f32 copy, `[n_out, n_in]`: the plain reference of every format.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightError> {
        match self {
            Self::Rows {
                format,
                n_out,
                n_in,
                bytes,
            } => decode::to_f32(*format, bytes, n_out * n_in),
            Self::Awq(awq) => awq::dequantise(awq),
        }
    }
}

/// `--load-format`: which reader opens the checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadFormat {
    /// By what the model source turned out to be.
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

/// Maps a file of weights. A file that becomes shorter while it is mapped ends the process at the
/// next read of what is gone, so one that is being written is refused as far as that can be seen.
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

/// Opens a resolved model. `seed` matters for random weights alone.
///
/// # Errors
///
/// If a file cannot be read or mapped, is no checkpoint of the asked format, or lacks a tensor.
pub fn open(
    model: &ResolvedModel,
    load_format: LoadFormat,
    seed: u64,
) -> Result<Box<dyn Checkpoint>, WeightError> {
    let refuse = |file: &Path, message: &str| {
        Err(WeightError::LoadFormat {
            file: file.display().to_string(),
            message: message.into(),
        })
    };
    match (&model.files, load_format) {
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
