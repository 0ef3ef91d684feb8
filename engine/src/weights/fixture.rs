//! Small seeded checkpoints written to disk, for tests of this crate, of others, and of the command
//! line. The values are those of [`SyntheticCheckpoint`] in f32, so a test can compare an opened
//! checkpoint with the original.
//!
//! Part of the library, with the feature `testkit`, because integration tests and other crates' tests
//! cannot use test-only code. candle writes the GGUF files, so that they are not read by their writer.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

pub mod blocks;
pub(in crate::weights) mod drawn;
pub mod eagle;
pub mod moe;
pub mod packed;
pub mod scaled;

use candle_core::quantized::gguf_file;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::json;

use super::folder::{self, OwnedTensor};
use super::gguf::interleaved_row;
use super::gguf::value::Value;
use super::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use super::{Checkpoint, ElementFormat, Matrix, MatrixId, VectorId, WeightError, awq};
use crate::model::config::{Family, ModelConfig, RopeConfig, RopeScaling};
use crate::model::experts::Experts;

/// Element format of a written safetensors folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FolderFormat {
    F32,
    F16,
    BF16,
    /// Layers as AutoAWQ tensors, embedding and head as f16.
    Awq {
        group_size: usize,
    },
}

impl FolderFormat {
    /// Of what is not packed.
    fn element(self) -> ElementFormat {
        match self {
            Self::F32 => ElementFormat::F32,
            Self::BF16 => ElementFormat::BF16,
            Self::F16 | Self::Awq { .. } => ElementFormat::F16,
        }
    }
}

/// Two layers, hidden 64, vocabulary 320. GGUF K-quants need rows of whole 256-element blocks:
/// use [`wide_config`] for them.
pub fn tiny_config(family: Family) -> ModelConfig {
    ModelConfig {
        family,
        n_layers: 2,
        hidden: 64,
        intermediate: 128,
        n_q_heads: 4,
        n_kv_heads: 2,
        head_dim: if is_qwen3(family) { 32 } else { 16 },
        vocab: 320,
        context_length: 512,
        rms_norm_eps: 1e-6,
        rope: RopeConfig {
            theta: 10_000.0,
            scaling: RopeScaling::None,
        },
        tied_embeddings: family == Family::Qwen2,
        qkv_bias: family == Family::Qwen2,
        o_bias: false,
        qk_norm: is_qwen3(family),
        eos_token_ids: vec![2],
        bos_token_id: Some(1),
        experts: experts(family, 64),
    }
}

pub(in crate::weights) fn is_qwen3(family: Family) -> bool {
    matches!(family, Family::Qwen3 | Family::Qwen3Moe)
}

/// Six experts of this width in every layer, two of them for a token, if the family has experts.
pub fn experts(family: Family, intermediate: usize) -> Option<Experts> {
    (family == Family::Qwen3Moe).then(|| Experts {
        n_experts: 6,
        n_active: 2,
        intermediate,
        norm_topk_prob: true,
        dense_layers: Vec::new(),
    })
}

/// `config` with other experts, if it has any.
#[must_use]
pub fn with_experts(mut config: ModelConfig, change: impl FnOnce(&mut Experts)) -> ModelConfig {
    if let Some(experts) = &mut config.experts {
        change(experts);
    }
    config
}

/// As [`tiny_config`], with every row a multiple of 256 elements.
pub fn wide_config(family: Family) -> ModelConfig {
    ModelConfig {
        hidden: 256,
        intermediate: 512,
        head_dim: 64,
        experts: experts(family, 256),
        ..tiny_config(family)
    }
}

/// The f32 values that the writers below store.
pub fn reference(config: &ModelConfig, seed: u64) -> SyntheticCheckpoint {
    SyntheticCheckpoint::new(
        config.clone(),
        SyntheticFormat::Rows(ElementFormat::F32),
        seed,
    )
}

/// Writes `config.json`, `generation_config.json` and the weights, in `n_shards` files (with an
/// index if there is more than one).
///
/// # Errors
///
/// If the shapes cannot be stored in this format, or a file cannot be written.
pub fn write_folder(
    dir: &Path,
    config: &ModelConfig,
    format: FolderFormat,
    seed: u64,
    n_shards: usize,
) -> Result<(), WeightError> {
    let tensors = folder_tensors(config, format, seed)?;
    let io = |e: std::io::Error| file_error(dir, e.to_string());
    std::fs::create_dir_all(dir).map_err(io)?;
    let write_json = |name: &str, value: &serde_json::Value| {
        std::fs::write(dir.join(name), format!("{value:#}")).map_err(io)
    };
    write_json("config.json", &config_json(config, format))?;
    write_json(
        "generation_config.json",
        &json!({ "eos_token_id": config.eos_token_ids }),
    )?;

    let n_shards = n_shards.clamp(1, tensors.len());
    let mut weight_map = serde_json::Map::new();
    for (i, shard) in tensors.chunks(tensors.len().div_ceil(n_shards)).enumerate() {
        let name = match n_shards {
            1 => "model.safetensors".to_string(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        for tensor in shard {
            weight_map.insert(tensor.name.clone(), json!(name));
        }
        folder::write_shard(&dir.join(&name), shard)?;
    }
    if n_shards > 1 {
        write_json(
            "model.safetensors.index.json",
            &json!({ "weight_map": weight_map }),
        )?;
    }
    Ok(())
}

fn folder_tensors(
    config: &ModelConfig,
    format: FolderFormat,
    seed: u64,
) -> Result<Vec<OwnedTensor>, WeightError> {
    let values = reference(config, seed);
    let mut tensors = Vec::new();
    for id in MatrixId::all(config) {
        let (n_out, n_in) = id.shape(config);
        let stem = id.safetensors_stem();
        let weights = values.matrix(id)?.to_f32()?;
        match format {
            FolderFormat::Awq { group_size } if id.is_quantised() => {
                let packed = awq::quantise(&weights, (n_out, n_in), group_size)?;
                tensors.extend(folder::tensors_of(Matrix::Awq(packed), &stem)?);
            }
            _ => {
                let (name, shape) = (format!("{stem}.weight"), vec![n_out, n_in]);
                tensors.push(folder::float(name, shape, &weights, format.element()));
            }
        }
    }
    for id in VectorId::all(config) {
        let vector = values.vector(id)?;
        let shape = vec![vector.len()];
        let name = id.safetensors_name();
        tensors.push(folder::float(name, shape, &vector, format.element()));
    }
    Ok(tensors)
}

/// `config.json` with every key that Hugging Face's and candle's readers require.
pub fn config_json(config: &ModelConfig, format: FolderFormat) -> serde_json::Value {
    let group_size = match format {
        FolderFormat::Awq { group_size } => Some(group_size),
        _ => None,
    };
    let mut value = folder::config_json(config, ElementFormat::F16, group_size);
    // candle's reader of Qwen2 takes no null.
    value["sliding_window"] = json!(config.context_length);
    value
}

/// Writes a GGUF file like llama.cpp's converter: q and k rows of `llama` interleaved, matrices in
/// `format`, vectors in f32. `extra` metadata is added to (or replaces) the model's own; the token
/// list is invented, one `<tN>` for each id.
///
/// # Errors
///
/// If the shapes cannot be stored in this format, or the file cannot be written.
pub fn write_gguf(
    path: &Path,
    config: &ModelConfig,
    format: ElementFormat,
    seed: u64,
    extra: &[(&str, Value)],
) -> Result<(), WeightError> {
    let tensors = gguf_tensors(path, config, format, seed)?;
    let mut metadata = gguf_metadata(config);
    for (key, value) in extra {
        metadata.insert((*key).to_string(), value.clone());
    }
    write_gguf_file(path, &metadata, &tensors)
}

/// As [`write_gguf`], in several files like `llama-gguf-split`: the first has the metadata. Returns
/// their paths.
///
/// # Errors
///
/// As [`write_gguf`].
pub fn write_gguf_parts(
    dir: &Path,
    config: &ModelConfig,
    format: ElementFormat,
    seed: u64,
    n_parts: usize,
) -> Result<Vec<std::path::PathBuf>, WeightError> {
    let tensors = gguf_tensors(dir, config, format, seed)?;
    let n_each = tensors.len().div_ceil(n_parts);
    let mut paths = Vec::new();
    for (i, tensors) in tensors.chunks(n_each).enumerate() {
        let path = dir.join(format!("model-{:05}-of-{n_parts:05}.gguf", i + 1));
        let mut metadata = match i {
            0 => gguf_metadata(config),
            _ => HashMap::new(),
        };
        metadata.insert("split.no".into(), Value::U16(i as u16));
        metadata.insert("split.count".into(), Value::U16(n_parts as u16));
        write_gguf_file(&path, &metadata, tensors)?;
        paths.push(path);
    }
    Ok(paths)
}

fn write_gguf_file(
    path: &Path,
    metadata: &HashMap<String, Value>,
    tensors: &[(String, QTensor)],
) -> Result<(), WeightError> {
    let metadata: BTreeMap<&str, gguf_file::Value> = metadata
        .iter()
        .map(|(key, value)| (key.as_str(), candles(value)))
        .collect();
    let metadata: Vec<(&str, &gguf_file::Value)> =
        metadata.iter().map(|(key, value)| (*key, value)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let file = File::create(path).map_err(|e| file_error(path, e.to_string()))?;
    gguf_file::write(&mut BufWriter::new(file), &metadata, &tensors)
        .map_err(|e| file_error(path, e.to_string()))
}

/// The value as candle writes it.
fn candles(value: &Value) -> gguf_file::Value {
    use gguf_file::Value as Theirs;
    match value {
        Value::U8(n) => Theirs::U8(*n),
        Value::I8(n) => Theirs::I8(*n),
        Value::U16(n) => Theirs::U16(*n),
        Value::I16(n) => Theirs::I16(*n),
        Value::U32(n) => Theirs::U32(*n),
        Value::I32(n) => Theirs::I32(*n),
        Value::U64(n) => Theirs::U64(*n),
        Value::I64(n) => Theirs::I64(*n),
        Value::F32(x) => Theirs::F32(*x),
        Value::F64(x) => Theirs::F64(*x),
        Value::Bool(flag) => Theirs::Bool(*flag),
        Value::String(text) => Theirs::String(text.clone()),
        Value::Array(values) => Theirs::Array(values.iter().map(candles).collect()),
    }
}

fn gguf_tensors(
    path: &Path,
    config: &ModelConfig,
    format: ElementFormat,
    seed: u64,
) -> Result<Vec<(String, QTensor)>, WeightError> {
    let fail = |e: candle_core::Error| file_error(path, e.to_string());
    let values = reference(config, seed);
    let interleaved = |row: usize| match config.family {
        Family::Llama => interleaved_row(row, config.head_dim),
        Family::Qwen2 | Family::Qwen3 | Family::Qwen3Moe => row,
    };
    let dtype = ggml_dtype(format)
        .ok_or_else(|| file_error(path, format!("candle does not write {format}")))?;
    let mut tensors = Vec::new();
    for ids in stacked(config) {
        let (n_out, n_in) = ids[0].shape(config);
        let mut stored = Vec::with_capacity(ids.len() * n_out * n_in);
        for id in &ids {
            let weights = values.matrix(*id)?.to_f32()?;
            match id {
                MatrixId::Q(_) | MatrixId::K(_) => {
                    stored.resize(weights.len(), 0.0);
                    for (row, from) in weights.chunks_exact(n_in).enumerate() {
                        stored[interleaved(row) * n_in..][..n_in].copy_from_slice(from);
                    }
                }
                _ => stored.extend(weights),
            }
        }
        let tensor = match ids[0].expert() {
            None => Tensor::from_vec(stored, (n_out, n_in), &Device::Cpu),
            Some(_) => Tensor::from_vec(stored, (ids.len(), n_out, n_in), &Device::Cpu),
        };
        // Routers are in f32 in files whose other matrices are quantised.
        let dtype = match ids[0] {
            MatrixId::Router(_) => GgmlDType::F32,
            _ => dtype,
        };
        let stored = QTensor::quantize(&tensor.map_err(fail)?, dtype).map_err(fail)?;
        tensors.push((ids[0].gguf_name(), stored));
    }
    for id in VectorId::all(config) {
        let vector = values.vector(id)?;
        let mut stored = vector.clone();
        if matches!(id, VectorId::QBias(_) | VectorId::KBias(_)) {
            for (row, value) in vector.iter().enumerate() {
                stored[interleaved(row)] = *value;
            }
        }
        let tensor = Tensor::new(stored, &Device::Cpu).map_err(fail)?;
        let stored = QTensor::quantize(&tensor, GgmlDType::F32).map_err(fail)?;
        tensors.push((id.gguf_name(), stored));
    }
    Ok(tensors)
}

/// The matrices of each of GGUF's tensors: one, or those of all experts of a layer.
fn stacked(config: &ModelConfig) -> Vec<Vec<MatrixId>> {
    let mut tensors: Vec<Vec<MatrixId>> = Vec::new();
    let mut places = HashMap::new();
    for id in MatrixId::all(config) {
        let place = *places.entry(id.gguf_name()).or_insert(tensors.len());
        match tensors.get_mut(place) {
            Some(ids) => ids.push(id),
            None => tensors.push(vec![id]),
        }
    }
    tensors
}

fn gguf_metadata(config: &ModelConfig) -> HashMap<String, Value> {
    let arch = match config.family {
        Family::Qwen3 => "qwen3",
        Family::Qwen3Moe => "qwen3moe",
        Family::Qwen2 => "qwen2",
        Family::Llama => "llama",
    };
    let tokens = (0..config.vocab)
        .map(|i| Value::String(format!("<t{i}>")))
        .collect();
    let mut metadata = HashMap::from([
        (
            "general.architecture".to_string(),
            Value::String(arch.into()),
        ),
        ("tokenizer.ggml.tokens".to_string(), Value::Array(tokens)),
    ]);
    for (key, size) in [
        ("block_count", config.n_layers),
        ("context_length", config.context_length),
        ("embedding_length", config.hidden),
        ("feed_forward_length", config.intermediate),
        ("attention.head_count", config.n_q_heads),
        ("attention.head_count_kv", config.n_kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        metadata.insert(format!("{arch}.{key}"), Value::U32(size as u32));
    }
    for (key, size) in config.experts.iter().flat_map(|experts| {
        [
            ("expert_count", experts.n_experts),
            ("expert_used_count", experts.n_active),
            ("expert_feed_forward_length", experts.intermediate),
        ]
    }) {
        metadata.insert(format!("{arch}.{key}"), Value::U32(size as u32));
    }
    let eps = format!("{arch}.attention.layer_norm_rms_epsilon");
    metadata.insert(eps, Value::F32(config.rms_norm_eps));
    metadata.insert(
        format!("{arch}.rope.freq_base"),
        Value::F32(config.rope.theta),
    );
    for (key, id) in [
        ("tokenizer.ggml.bos_token_id", config.bos_token_id),
        (
            "tokenizer.ggml.eos_token_id",
            config.eos_token_ids.first().copied(),
        ),
    ] {
        if let Some(id) = id {
            metadata.insert(key.into(), Value::U32(id));
        }
    }
    metadata
}

/// candle's name of a format, if it has one.
pub fn ggml_dtype(format: ElementFormat) -> Option<GgmlDType> {
    Some(match format {
        ElementFormat::Iq4Nl | ElementFormat::Iq4Xs | ElementFormat::Mxfp4 => return None,
        ElementFormat::Q2K => GgmlDType::Q2K,
        ElementFormat::Q3K => GgmlDType::Q3K,
        ElementFormat::F32 => GgmlDType::F32,
        ElementFormat::F16 => GgmlDType::F16,
        ElementFormat::BF16 => GgmlDType::BF16,
        ElementFormat::Q4_0 => GgmlDType::Q4_0,
        ElementFormat::Q4_1 => GgmlDType::Q4_1,
        ElementFormat::Q5_0 => GgmlDType::Q5_0,
        ElementFormat::Q5_1 => GgmlDType::Q5_1,
        ElementFormat::Q8_0 => GgmlDType::Q8_0,
        ElementFormat::Q4K => GgmlDType::Q4K,
        ElementFormat::Q5K => GgmlDType::Q5K,
        ElementFormat::Q6K => GgmlDType::Q6K,
    })
}

fn file_error(path: &Path, message: String) -> WeightError {
    WeightError::File {
        file: path.display().to_string(),
        message,
    }
}
