//! A safetensors folder: one file, or several under `model.safetensors.index.json`, all
//! memory-mapped; f32, f16 and bf16 matrices, those in 4-bit words, and small numbers with scales.
//!
//! The `safetensors` crate validates each header against its file (size, overlaps, gaps), so a
//! tensor's bytes are always inside the mapping.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use ::safetensors::{Dtype, SafeTensors};
use host::mapped_file::MappedFile;

use super::format::CheckpointFormat;
use super::format::MatrixFormat;
use super::packed::{self, PackedMatrix, Place};
use super::scaled;
use super::{
    Checkpoint, ElementFormat, Matrix, MatrixId, MatrixStorage, VectorId, WeightError, decode,
    file_kind, still_whole,
};
use crate::model::config::{ConfigError, ModelConfig};
use crate::model::config_json::{self, FolderConfig};
use crate::model::quantization::Quantization;

/// A shard list is at most a few megabytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;
const MAX_SHARDS: usize = 4096;

/// The mapped files of a folder and the location of each tensor.
pub struct TensorFiles {
    files: Vec<(PathBuf, MappedFile)>,
    tensors: HashMap<String, Location>,
}

struct Location {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    range: std::ops::Range<usize>,
}

/// One tensor as stored.
pub struct StoredTensor<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl TensorFiles {
    /// Maps the files named by the index, or the single `model.safetensors`, or otherwise every
    /// `*.safetensors` in the folder.
    ///
    /// # Errors
    ///
    /// [`WeightError::Absent`] if the folder has no such file, [`WeightError::Unreadable`] if
    /// one cannot be mapped, [`WeightError::File`] if the index or a file is malformed or holds
    /// a tensor that another file holds, too.
    pub fn open(dir: &Path) -> Result<Self, WeightError> {
        let mut opened = Self {
            files: Vec::new(),
            tensors: HashMap::new(),
        };
        for path in weight_files(dir)? {
            opened.add(&path)?;
        }
        Ok(opened)
    }

    fn add(&mut self, path: &Path) -> Result<(), WeightError> {
        let file = super::map(path)?;
        let (header_bytes, metadata) = SafeTensors::read_metadata(&file).map_err(|e| {
            let kind = file_kind::of(&file[..file.len().min(64)]);
            match kind.filter(|kind| !kind.starts_with("a safetensors")) {
                Some(kind) => file_error(path, format!("is {kind}")),
                None => file_error(path, format!("is not a whole safetensors file: {e}")),
            }
        })?;
        let data_start = 8 + header_bytes;
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let range = data_start + start..data_start + end;
            if range.start > range.end || range.end > file.len() {
                let message = format!("tensor {name} lies outside the file's {} bytes", file.len());
                return Err(file_error(path, message));
            }
            let location = Location {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                range,
            };
            if self.tensors.insert(name.clone(), location).is_some() {
                return Err(file_error(
                    path,
                    format!("tensor {name} is in another file too"),
                ));
            }
        }
        self.files.push((path.to_path_buf(), file));
        Ok(())
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor as it is stored.
    ///
    /// # Errors
    ///
    /// [`WeightError::Missing`] if no file holds it.
    pub fn tensor(&self, name: &str) -> Result<StoredTensor<'_>, WeightError> {
        let missing = || WeightError::Missing {
            name: name.to_string(),
        };
        let at = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = &self.files[at.file].1[at.range.clone()];
        Ok(StoredTensor {
            dtype: at.dtype,
            shape: &at.shape,
            bytes,
        })
    }

    /// In no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A float tensor of exactly this shape.
    ///
    /// # Errors
    ///
    /// [`WeightError::Missing`], [`WeightError::Format`] or [`WeightError::Shape`].
    pub(super) fn float_tensor(
        &self,
        name: &str,
        expected: &[usize],
    ) -> Result<(ElementFormat, &[u8]), WeightError> {
        let tensor = self.tensor(name)?;
        let format = match tensor.dtype {
            Dtype::F32 => ElementFormat::F32,
            Dtype::F16 => ElementFormat::F16,
            Dtype::BF16 => ElementFormat::BF16,
            other => {
                return Err(WeightError::Format {
                    name: name.to_string(),
                    format: format!("{other:?}"),
                    supported: "F32 F16 BF16",
                });
            }
        };
        if tensor.shape != expected {
            return Err(WeightError::Shape {
                name: name.to_string(),
                found: tensor.shape.to_vec(),
                expected: expected.to_vec(),
            });
        }
        Ok((format, tensor.bytes))
    }
}

/// The weight files of a folder, in a fixed order.
pub(crate) fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, WeightError> {
    let index = dir.join("model.safetensors.index.json");
    if index.exists() {
        return Ok(index_shards(&index)?
            .into_iter()
            .map(|name| dir.join(name))
            .collect());
    }
    let single = dir.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let entries = std::fs::read_dir(dir).map_err(|e| file_error(dir, e.to_string()))?;
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    if paths.is_empty() {
        return Err(WeightError::Absent {
            place: dir.display().to_string(),
            message: what_is_there(dir),
        });
    }
    Ok(paths)
}

/// Why a folder without safetensors files is not a model.
fn what_is_there(dir: &Path) -> String {
    let has = |name: &str| dir.join(name).exists();
    let pytorch = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
    if pytorch.into_iter().any(has) {
        "has pytorch_model.bin and no .safetensors file; convert it (transformers: \
         `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)`)"
            .into()
    } else {
        "has no .safetensors file".into()
    }
}

/// The shard names of an index, each a plain file name.
pub(crate) fn index_shards(index: &Path) -> Result<BTreeSet<String>, WeightError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let n_bytes = std::fs::metadata(index)
        .map_err(|e| file_error(index, e.to_string()))?
        .len();
    if n_bytes > MAX_INDEX_BYTES {
        let message = format!("has {n_bytes} bytes; at most {MAX_INDEX_BYTES} are read");
        return Err(file_error(index, message));
    }
    let text = std::fs::read(index).map_err(|e| file_error(index, e.to_string()))?;
    let parsed: Index = serde_json::from_slice(&text)
        .map_err(|e| file_error(index, format!("is not a shard index: {e}")))?;
    let shards: BTreeSet<String> = parsed.weight_map.into_values().collect();
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        let message = format!("names {} files; it must be 1 to {MAX_SHARDS}", shards.len());
        return Err(file_error(index, message));
    }
    for name in &shards {
        let plain = !name.contains(['/', '\\', '\0']) && name != ".." && name != ".";
        if !plain || !name.ends_with(".safetensors") {
            let message = format!("names {name:?}, which is not a .safetensors file next to it");
            return Err(file_error(index, message));
        }
    }
    Ok(shards)
}

fn file_error(path: &Path, message: String) -> WeightError {
    WeightError::File {
        file: path.display().to_string(),
        message,
    }
}

/// A folder of `config.json` and safetensors files.
pub struct SafetensorsCheckpoint {
    config: FolderConfig,
    files: TensorFiles,
}

/// A matrix as it was found.
enum Found<'a> {
    Rows {
        format: ElementFormat,
        bytes: &'a [u8],
    },
    Packed(PackedMatrix<'a>),
    Scaled(scaled::Stored<'a>),
}

impl SafetensorsCheckpoint {
    /// Opens the folder and checks that every tensor exists and has its shape.
    ///
    /// # Errors
    ///
    /// If `config.json` is missing or refused, the weight files cannot be opened, or a tensor is
    /// missing or has another shape or format.
    pub fn open(dir: &Path) -> Result<Self, WeightError> {
        let config = config_json::read_folder(dir)?;
        let opened = Self {
            config,
            files: TensorFiles::open(dir)?,
        };
        let vectors = VectorId::all(opened.config());
        for id in MatrixId::all(opened.config()) {
            let found = opened.find(id).map_err(|error| opened.explained(error))?;
            if !matches!(found, Found::Rows { .. })
                && !vectors.iter().any(|vector| vector.bias_of() == Some(id))
            {
                opened.check_unused_bias(&id.safetensors_stem())?;
            }
        }
        for id in vectors {
            opened.stored_vector(id)?;
        }
        Ok(opened)
    }

    /// Some quantisers write a bias of zeros for every matrix. The model adds none here, so it must
    /// be zero.
    fn check_unused_bias(&self, stem: &str) -> Result<(), WeightError> {
        let name = format!("{stem}.bias");
        if !self.files.has(&name) {
            return Ok(());
        }
        let tensor = self.files.tensor(&name)?;
        let (format, bytes) = self.files.float_tensor(&name, tensor.shape)?;
        let values = decode::to_f32(format, bytes, tensor.shape.iter().product())?;
        match values.iter().find(|value| **value != 0.0) {
            None => Ok(()),
            Some(value) => Err(WeightError::File {
                file: name,
                message: format!("has {value}; models of this family have no such bias"),
            }),
        }
    }

    /// Its own tensors, or its rows in a fused matrix if the files have that instead.
    fn place(&self, id: MatrixId) -> Place {
        let is_there = |stem: &str| {
            let name = format!("{stem}.weight");
            self.files.has(&name) || packed::is_packed(&self.files, stem)
        };
        let rows = |id: &MatrixId| id.shape(&self.config.model).0;
        let stem = id.safetensors_stem();
        if !is_there(&stem)
            && let Some((fused, parts)) = id.fused()
            && is_there(&fused)
        {
            return Place {
                stem: fused,
                first: parts.iter().take_while(|part| **part != id).map(rows).sum(),
                n_stored: parts.iter().map(rows).sum(),
            };
        }
        Place {
            stem,
            first: 0,
            n_stored: rows(&id),
        }
    }

    fn find(&self, id: MatrixId) -> Result<Found<'_>, WeightError> {
        let id = match id {
            MatrixId::LmHead if self.config.model.tied_embeddings => MatrixId::Embedding,
            other => other,
        };
        let (n_out, n_in) = id.shape(&self.config.model);
        let place = self.place(id);
        let shape = (n_out, n_in);
        match self.config.quantization {
            Some(Quantization::Packed(config)) if packed::is_packed(&self.files, &place.stem) => {
                return PackedMatrix::find(&self.files, place, shape, config).map(Found::Packed);
            }
            Some(Quantization::Scaled(config))
                if scaled::is_scaled(&self.files, &place.stem, config.kind) =>
            {
                return scaled::find(&self.files, place, shape, config).map(Found::Scaled);
            }
            _ => {}
        }
        let name = format!("{}.weight", place.stem);
        let (format, bytes) = self.files.float_tensor(&name, &[place.n_stored, n_in])?;
        let row_bytes = n_in * format.block_bytes();
        Ok(Found::Rows {
            format,
            bytes: &bytes[place.first * row_bytes..][..n_out * row_bytes],
        })
    }

    fn stored_vector(&self, id: VectorId) -> Result<(ElementFormat, &[u8]), WeightError> {
        let n = id.n_elements(&self.config.model);
        let name = id.safetensors_name();
        let Some(matrix) = id.bias_of().filter(|_| !self.files.has(&name)) else {
            return self.files.float_tensor(&name, &[n]);
        };
        let place = self.place(matrix);
        let name = format!("{}.bias", place.stem);
        let (format, bytes) = self.files.float_tensor(&name, &[place.n_stored])?;
        let size = format.block_bytes();
        Ok((format, &bytes[place.first * size..][..n * size]))
    }

    /// If a tensor is missing or has a type of quantised weights, and nothing says how they are
    /// quantised, explains that.
    fn explained(&self, error: WeightError) -> WeightError {
        let found = match &error {
            WeightError::Missing { name } => {
                let stem = name.trim_end_matches(".weight");
                ["qweight", "weight_packed", "weight_scale_inv", "absmax"]
                    .into_iter()
                    .map(|end| format!("{stem}.{end}"))
                    .find(|other| self.files.has(other))
                    .map(|other| format!("there is {other} and no {name}"))
            }
            WeightError::Format { name, format, .. } if self.config.quantization.is_none() => {
                let is_quantised = matches!(format.as_str(), "F8_E4M3" | "I8" | "U8");
                is_quantised.then(|| format!("{name} has {format}"))
            }
            _ => None,
        };
        match found {
            None => error,
            Some(found) => WeightError::Config(ConfigError::Missing {
                key: format!(
                    "quantization_config (in config.json), and the weights are quantised: {found}"
                ),
            }),
        }
    }
}

impl Checkpoint for SafetensorsCheckpoint {
    fn config(&self) -> &ModelConfig {
        &self.config.model
    }

    fn matrix(&self, id: MatrixId) -> Result<Matrix<'_>, WeightError> {
        let (n_out, n_in) = id.shape(&self.config.model);
        Ok(match self.find(id)? {
            Found::Packed(packed) => Matrix::Awq(packed.repack()?),
            Found::Scaled(stored) => Matrix::Scaled(stored.read()?),
            Found::Rows { format, bytes } => Matrix::Rows {
                format,
                n_out,
                n_in,
                bytes: Cow::Borrowed(bytes),
            },
        })
    }

    fn storage(&self, id: MatrixId) -> Result<MatrixStorage, WeightError> {
        let (n_out, n_in) = id.shape(&self.config.model);
        Ok(match self.find(id)? {
            Found::Packed(packed) => packed.storage(),
            Found::Scaled(stored) => stored.storage(),
            Found::Rows { format, bytes } => MatrixStorage {
                n_out,
                n_in,
                format: MatrixFormat::Rows(format),
                is_reordered: false,
                scale_columns: None,
                n_elements: (n_out * n_in) as u64,
                n_bytes: bytes.len() as u64,
            },
        })
    }

    fn vector(&self, id: VectorId) -> Result<Vec<f32>, WeightError> {
        let (format, bytes) = self.stored_vector(id)?;
        decode::to_f32(format, bytes, id.n_elements(&self.config.model))
    }

    fn check_unchanged(&self) -> Result<(), WeightError> {
        let mut files = self.files.files.iter();
        files.try_for_each(|(path, map)| still_whole(path, map))
    }

    fn release(&self) {
        self.files.files.iter().for_each(|(_, map)| map.release());
    }

    fn format(&self) -> CheckpointFormat {
        let mut ids = MatrixId::all(self.config()).into_iter();
        if ids.any(|id| !matches!(self.find(id), Ok(Found::Rows { .. }))) {
            return CheckpointFormat::of(self.config.quantization);
        }
        match self.find(MatrixId::Q(0)) {
            Ok(Found::Rows { format, .. }) => CheckpointFormat::Safetensors(Some(format)),
            _ => CheckpointFormat::Safetensors(None),
        }
    }
}

#[cfg(test)]
#[path = "safetensors_tests.rs"]
mod tests;
