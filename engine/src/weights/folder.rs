//! Writes a checkpoint as a folder that other engines read, too: `config.json`,
//! `generation_config.json` and one safetensors file for each layer.
//!
//! Matrices keep their bytes; AWQ ones become AutoAWQ's `qweight`, `qzeros` and `scales`. A layer is
//! made, written and forgotten, so that a model larger than memory can be written. The folder appears
//! under its name when it is complete.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::format::MatrixFormat;
use super::{Checkpoint, ElementFormat, Matrix, MatrixId, VectorId, WeightError};
use crate::model::config::{Family, ModelConfig, RopeScaling};

/// As Hugging Face's libraries write it into the header.
const FORMAT: (&str, &str) = ("format", "pt");

/// What [`write`] can write.
const WRITTEN: &str = "F32, F16, BF16, AWQ";

/// One tensor as it is stored.
pub(super) struct OwnedTensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

/// Which file is being written.
#[derive(Debug, Clone, Copy)]
pub struct Writing<'a> {
    pub file: &'a str,
    pub index: usize,
    pub n_files: usize,
}

/// Writes `checkpoint` to `dir`, with copies of `others` (a tokenizer's files) beside it.
///
/// # Errors
///
/// If `dir` exists, a file cannot be written, or a matrix has a format that safetensors has not.
pub fn write(
    checkpoint: &dyn Checkpoint,
    dir: &Path,
    others: &[PathBuf],
    progress: &dyn Fn(Writing<'_>),
) -> Result<(), WeightError> {
    if dir.exists() {
        return Err(failed(dir, "exists; a checkpoint is never written over"));
    }
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let partial = dir.with_file_name(format!(".{name}.partial-{}", std::process::id()));
    let written = write_files(checkpoint, &partial, others, progress)
        .and_then(|()| std::fs::rename(&partial, dir).map_err(|e| failed(dir, e)));
    if written.is_err() {
        // A full disk may have taken a part of it.
        let _ = std::fs::remove_dir_all(&partial);
    }
    written
}

fn write_files(
    checkpoint: &dyn Checkpoint,
    dir: &Path,
    others: &[PathBuf],
    progress: &dyn Fn(Writing<'_>),
) -> Result<(), WeightError> {
    let config = checkpoint.config();
    let element = element_of(checkpoint)?;
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    for other in others {
        let copy = dir.join(other.file_name().unwrap_or_default());
        std::fs::copy(other, &copy).map_err(|e| failed(&copy, e))?;
    }
    let shards = shards_of(config);
    let n_files = shards.len();
    let mut weight_map = Map::new();
    let mut total_size = 0;
    for (i, (matrices, vectors)) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{n_files:05}.safetensors", i + 1);
        progress(Writing {
            file: &file,
            index: i + 1,
            n_files,
        });
        let mut tensors = Vec::new();
        for id in matrices {
            tensors.extend(tensors_of(checkpoint.matrix(id)?, &id.safetensors_stem())?);
        }
        for id in vectors {
            let values = checkpoint.vector(id)?;
            let shape = vec![values.len()];
            tensors.push(float(id.safetensors_name(), shape, &values, element));
        }
        for tensor in &tensors {
            total_size += tensor.bytes.len();
            weight_map.insert(tensor.name.clone(), json!(file));
        }
        write_shard(&dir.join(&file), &tensors)?;
    }
    let group_size = match checkpoint.storage(MatrixId::Q(0))?.format {
        MatrixFormat::Awq { group_size } => Some(group_size),
        MatrixFormat::Rows(_) | MatrixFormat::Scaled(_) => None,
    };
    write_json(
        dir,
        "config.json",
        &config_json(config, element, group_size),
    )?;
    let generation = json!({ "eos_token_id": config.eos_token_ids });
    write_json(dir, "generation_config.json", &generation)?;
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    write_json(dir, "model.safetensors.index.json", &index)
}

/// The tables of the vocabulary in files of their own, a layer each in the others.
fn shards_of(config: &ModelConfig) -> Vec<(Vec<MatrixId>, Vec<VectorId>)> {
    let (matrices, vectors) = (MatrixId::all(config), VectorId::all(config));
    let of = |layer: Option<usize>| {
        let matrices = matrices.iter().copied().filter(|id| id.layer() == layer);
        let vectors = vectors.iter().copied().filter(|id| id.layer() == layer);
        (matrices.collect::<Vec<_>>(), vectors.collect())
    };
    let mut shards: Vec<_> = (0..config.n_layers).map(|layer| of(Some(layer))).collect();
    let (tables, norms) = of(None);
    shards.extend(tables.into_iter().map(|id| (vec![id], Vec::new())));
    shards.push((Vec::new(), norms));
    shards
}

pub(super) fn tensors_of(matrix: Matrix<'_>, stem: &str) -> Result<Vec<OwnedTensor>, WeightError> {
    match matrix {
        Matrix::Rows {
            format,
            n_out,
            n_in,
            bytes,
        } => {
            let name = format!("{stem}.weight");
            let Some(dtype) = dtype_of(format) else {
                return Err(WeightError::Format {
                    name,
                    format: format!("{format:?}"),
                    supported: WRITTEN,
                });
            };
            Ok(vec![OwnedTensor {
                name,
                dtype,
                shape: vec![n_out, n_in],
                bytes: bytes.into_owned(),
            }])
        }
        Matrix::Scaled(scaled) => Err(WeightError::Format {
            name: format!("{stem}.weight"),
            format: scaled.element.to_string(),
            supported: WRITTEN,
        }),
        Matrix::Awq(awq) => {
            let (n_out, n_in) = (awq.n_out, awq.n_in);
            let n_groups = n_in / awq.group_size;
            let tensor = |part: &str, dtype, shape, bytes: Vec<u8>| OwnedTensor {
                name: format!("{stem}.{part}"),
                dtype,
                shape,
                bytes,
            };
            Ok(vec![
                tensor(
                    "qweight",
                    Dtype::I32,
                    vec![n_in, n_out / 8],
                    awq.qweight.into_owned(),
                ),
                tensor(
                    "qzeros",
                    Dtype::I32,
                    vec![n_groups, n_out / 8],
                    awq.qzeros.into_owned(),
                ),
                tensor(
                    "scales",
                    Dtype::F16,
                    vec![n_groups, n_out],
                    awq.scales.into_owned(),
                ),
            ])
        }
    }
}

fn dtype_of(format: ElementFormat) -> Option<Dtype> {
    match format {
        ElementFormat::F32 => Some(Dtype::F32),
        ElementFormat::F16 => Some(Dtype::F16),
        ElementFormat::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// Of what is not packed: that of the embedding.
fn element_of(checkpoint: &dyn Checkpoint) -> Result<ElementFormat, WeightError> {
    match checkpoint.storage(MatrixId::Embedding)?.format {
        MatrixFormat::Rows(format) => Ok(format),
        MatrixFormat::Awq { .. } | MatrixFormat::Scaled(_) => Ok(ElementFormat::F16),
    }
}

/// `values` in this format, or in f32 where it is none of floats.
pub(super) fn float(
    name: String,
    shape: Vec<usize>,
    values: &[f32],
    format: ElementFormat,
) -> OwnedTensor {
    let (dtype, bytes) = match format {
        ElementFormat::F16 => {
            let bits = |v: &f32| f16::from_f32(*v).to_le_bytes();
            (Dtype::F16, values.iter().flat_map(bits).collect())
        }
        ElementFormat::BF16 => {
            let bits = |v: &f32| bf16::from_f32(*v).to_le_bytes();
            (Dtype::BF16, values.iter().flat_map(bits).collect())
        }
        _ => {
            let bits = |v: &f32| v.to_le_bytes();
            (Dtype::F32, values.iter().flat_map(bits).collect())
        }
    };
    OwnedTensor {
        name,
        dtype,
        shape,
        bytes,
    }
}

pub(super) fn write_shard(path: &Path, tensors: &[OwnedTensor]) -> Result<(), WeightError> {
    let mut views = Vec::new();
    for tensor in tensors {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes)
            .map_err(|e| failed(path, format!("{}: {e}", tensor.name)))?;
        views.push((tensor.name.as_str(), view));
    }
    let header = std::iter::once(FORMAT).map(|(key, value)| (key.to_owned(), value.to_owned()));
    ::safetensors::serialize_to_file(views, Some(header.collect()), path)
        .map_err(|e| failed(path, e))?;
    // The crate lets the owner alone read it; another engine may run as another user.
    let all_may_read = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(path, all_may_read).map_err(|e| failed(path, e))
}

fn write_json(dir: &Path, name: &str, value: &Value) -> Result<(), WeightError> {
    let path = dir.join(name);
    std::fs::write(&path, format!("{value:#}\n")).map_err(|e| failed(&path, e))
}

fn failed(path: &Path, message: impl ToString) -> WeightError {
    WeightError::Unreadable {
        file: path.display().to_string(),
        message: message.to_string(),
    }
}

/// As Hugging Face's libraries read it. `group_size`: of AWQ.
pub(super) fn config_json(
    config: &ModelConfig,
    element: ElementFormat,
    group_size: Option<usize>,
) -> Value {
    let (architecture, model_type) = match config.family {
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        Family::Qwen3Moe => ("Qwen3MoeForCausalLM", "qwen3_moe"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Llama => ("LlamaForCausalLM", "llama"),
    };
    let rope_scaling = match &config.rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Dynamic { factor, original } => json!({
            "rope_type": "dynamic", "factor": factor,
            "original_max_position_embeddings": original,
        }),
        RopeScaling::Llama3 {
            factor,
            low_freq,
            high_freq,
            original,
        } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq,
            "high_freq_factor": high_freq, "original_max_position_embeddings": original,
        }),
        RopeScaling::Yarn {
            factor,
            original,
            beta_fast,
            beta_slow,
            attention_factor,
        } => json!({
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
            "beta_fast": beta_fast, "beta_slow": beta_slow, "attention_factor": attention_factor,
        }),
    };
    let torch_dtype = match element {
        ElementFormat::F32 => "float32",
        ElementFormat::BF16 => "bfloat16",
        _ => "float16",
    };
    let mut value = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_q_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.qkv_bias,
        "hidden_act": "silu",
        "use_sliding_window": false,
        "sliding_window": null,
        "max_window_layers": config.n_layers,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_ids,
        "torch_dtype": torch_dtype,
    });
    if let Some(experts) = &config.experts {
        value["num_experts"] = json!(experts.n_experts);
        value["num_experts_per_tok"] = json!(experts.n_active);
        value["moe_intermediate_size"] = json!(experts.intermediate);
        value["norm_topk_prob"] = json!(experts.norm_topk_prob);
        value["decoder_sparse_step"] = json!(1);
        value["mlp_only_layers"] = json!(experts.dense_layers);
    }
    if let Some(group_size) = group_size {
        value["quantization_config"] = json!({
            "quant_method": "awq", "bits": 4, "group_size": group_size,
            "version": "gemm", "zero_point": true,
        });
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::safetensors::SafetensorsCheckpoint;
    use crate::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
    use crate::weights::{ElementFormat, preset};

    const NO_PROGRESS: &dyn Fn(Writing<'_>) = &|_| ();

    #[test]
    fn what_is_written_is_what_was_made() {
        let config = |name: &str| preset::find(name).expect("a preset").config;
        for (name, format) in [
            ("tiny-qwen3", SyntheticFormat::Awq { group_size: 32 }),
            ("tiny-qwen2", SyntheticFormat::Rows(ElementFormat::BF16)),
            ("tiny-llama", SyntheticFormat::Rows(ElementFormat::F16)),
            ("tiny-qwen3-moe", SyntheticFormat::Awq { group_size: 32 }),
        ] {
            let made = SyntheticCheckpoint::new(config(name), format, 5);
            let dir = tempfile::tempdir().expect("a folder");
            let folder = dir.path().join("model");
            let tokenizer = dir.path().join("tokenizer.json");
            std::fs::write(&tokenizer, "{}").expect("written");
            write(&made, &folder, &[tokenizer], NO_PROGRESS).expect("written");
            assert!(folder.join("tokenizer.json").is_file());
            let opened = SafetensorsCheckpoint::open(&folder).expect(name);
            assert_eq!(opened.config(), made.config(), "{name}");
            for id in MatrixId::all(made.config()) {
                let (written, original) = (opened.matrix(id), made.matrix(id));
                match (written.expect("read"), original.expect("made")) {
                    (Matrix::Awq(a), Matrix::Awq(b)) => {
                        assert_eq!(a.qweight, b.qweight, "{name} {id:?}");
                        assert_eq!((a.qzeros, a.scales), (b.qzeros, b.scales), "{name} {id:?}");
                    }
                    (Matrix::Rows { bytes: a, .. }, Matrix::Rows { bytes: b, .. }) => {
                        assert_eq!(a, b, "{name} {id:?}");
                    }
                    (a, b) => panic!("{name} {id:?}: {a:?} for {b:?}"),
                }
            }
            for id in VectorId::all(made.config()) {
                let (a, b) = (
                    opened.vector(id).expect("read"),
                    made.vector(id).expect("made"),
                );
                // Norms and biases are rounded to the element's bits.
                let worst = a
                    .iter()
                    .zip(&b)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f32::max);
                assert!(
                    a.len() == b.len() && worst < 0.005,
                    "{name} {id:?}: {worst}"
                );
            }
        }
    }

    #[test]
    fn nothing_is_written_over_and_no_half_is_left() {
        let preset = preset::find("tiny-llama").expect("a preset");
        let made = SyntheticCheckpoint::from_preset(&preset, 0);
        let dir = tempfile::tempdir().expect("a folder");
        let error = write(&made, dir.path(), &[], NO_PROGRESS).expect_err("it exists");
        assert!(error.to_string().contains("never written over"), "{error}");
        let gone = [dir.path().join("no tokenizer.json")];
        let folder = dir.path().join("model");
        let error = write(&made, &folder, &gone, NO_PROGRESS).expect_err("no tokenizer");
        assert!(error.to_string().contains("No such file"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("read").count(), 0);
    }
}
