use std::path::Path;

use super::*;
use crate::model::config::Family;
use crate::weights::fixture::packed::{
    PackedFormat, PackedKind, packed_config, write_packed_folder,
};
use crate::weights::fixture::scaled::{ScaledFormat, scaled_config, write_scaled_folder};
use crate::weights::fixture::{self, FolderFormat};
use crate::weights::folder::{self, OwnedTensor};

const FAMILIES: [Family; 4] = [
    Family::Qwen3,
    Family::Qwen3Moe,
    Family::Qwen2,
    Family::Llama,
];

fn write(dir: &Path, family: Family, format: FolderFormat, n_shards: usize) -> ModelConfig {
    let config = fixture::tiny_config(family);
    fixture::write_folder(dir, &config, format, 5, n_shards).expect("written");
    config
}

/// Largest difference between what is opened and the original.
fn worst_difference(opened: &dyn Checkpoint, meant: &dyn Checkpoint) -> f32 {
    let config = meant.config();
    assert_eq!(opened.config(), config);
    let mut worst = 0.0f32;
    let mut compare = |a: Vec<f32>, b: Vec<f32>| {
        assert_eq!(a.len(), b.len());
        worst = a
            .iter()
            .zip(&b)
            .map(|(a, b)| (a - b).abs())
            .fold(worst, f32::max);
    };
    for id in MatrixId::all(config).into_iter().chain([MatrixId::LmHead]) {
        let found = opened.matrix(id).expect("there");
        assert_eq!(found.shape(), id.shape(config));
        compare(
            found.to_f32().expect("decodes"),
            meant.matrix(id).and_then(|m| m.to_f32()).expect("made"),
        );
    }
    for id in VectorId::all(config) {
        compare(
            opened.vector(id).expect("there"),
            meant.vector(id).expect("made"),
        );
    }
    worst
}

#[test]
fn what_is_written_is_read_back() {
    // 16-bit values up to 1.1 are off by at most half a unit in the last place.
    for family in FAMILIES {
        for (format, n_shards, tolerance) in [
            (FolderFormat::F32, 1, 0.0),
            (FolderFormat::F32, 3, 0.0),
            (FolderFormat::F16, 1, 5e-4),
            (FolderFormat::BF16, 2, 4e-3),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            let config = write(dir.path(), family, format, n_shards);
            let opened = SafetensorsCheckpoint::open(dir.path()).expect("opens");
            let worst = worst_difference(&opened, &fixture::reference(&config, 5));
            assert!(worst <= tolerance, "{family:?} {format:?}: {worst}");
        }
    }
}

#[test]
fn awq_folders_are_read_as_awq() {
    let dir = tempfile::tempdir().expect("a folder");
    let format = FolderFormat::Awq { group_size: 32 };
    let config = write(dir.path(), Family::Qwen3, format, 2);
    let opened = SafetensorsCheckpoint::open(dir.path()).expect("opens");
    assert_eq!(opened.format().to_string(), "awq 4-bit, group 32");
    let down = opened.matrix(MatrixId::Down(1)).expect("there");
    let Matrix::Awq(awq) = &down else {
        panic!("{down:?}")
    };
    assert_eq!((awq.n_out, awq.n_in, awq.group_size), (64, 128, 32));
    assert!(matches!(
        opened.matrix(MatrixId::Embedding).expect("there"),
        Matrix::Rows {
            format: ElementFormat::F16,
            ..
        }
    ));
    // Uniform over ±sqrt(3 / n_in), so a level of a group is at most 2 sqrt(3 / 64) / 15, and
    // rounding value and zero point may each cost half a level.
    let worst = worst_difference(&opened, &fixture::reference(&config, 5));
    assert!(worst < 0.03, "{worst}");
}

fn packed_folder(dir: &Path, kind: PackedKind) -> ModelConfig {
    let config = packed_config(Family::Qwen2);
    let format = PackedFormat {
        kind,
        group_size: Some(64),
        symmetric: true,
        act_order: false,
    };
    write_packed_folder(dir, &config, format, 5).expect("written");
    config
}

fn stored_tensors(dir: &Path) -> Vec<OwnedTensor> {
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("written");
    let tensors = SafeTensors::deserialize(&bytes).expect("whole");
    let owned = |(name, tensor): (String, ::safetensors::tensor::TensorView<'_>)| OwnedTensor {
        name,
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.data().to_vec(),
    };
    let mut owned: Vec<OwnedTensor> = tensors.tensors().into_iter().map(owned).collect();
    owned.sort_by(|a, b| a.name.cmp(&b.name));
    owned
}

/// Joins the rows of `parts`, which have one name each, in that order.
fn join(tensors: &mut Vec<OwnedTensor>, parts: &[&str], fused: &str) {
    let is_of = |tensor: &OwnedTensor, part: &str| tensor.name.contains(part);
    let firsts: Vec<String> = tensors
        .iter()
        .filter(|tensor| is_of(tensor, parts[0]))
        .map(|tensor| tensor.name.clone())
        .collect();
    assert!(!firsts.is_empty());
    for first in firsts {
        let mut joined: Option<OwnedTensor> = None;
        for part in parts {
            let name = first.replace(parts[0], part);
            let at = tensors.iter().position(|tensor| tensor.name == name);
            let mut part = tensors.remove(at.expect("all parts have the same tensors"));
            // It says the shape of one part.
            if part.name.ends_with("weight_shape") {
                continue;
            }
            joined = Some(match joined {
                None => {
                    part.name = first.replace(parts[0], fused);
                    part
                }
                Some(mut joined) => {
                    joined.shape[0] += part.shape[0];
                    joined.bytes.extend(part.bytes);
                    joined
                }
            });
        }
        tensors.extend(joined);
    }
}

#[test]
fn fused_matrices_are_read_by_their_rows() {
    for is_packed in [false, true] {
        let dir = tempfile::tempdir().expect("a folder");
        let config = if is_packed {
            packed_folder(dir.path(), PackedKind::PackQuantized)
        } else {
            write(dir.path(), Family::Qwen2, FolderFormat::F16, 1)
        };
        let fused = tempfile::tempdir().expect("a folder");
        let text = std::fs::read(dir.path().join("config.json")).expect("written");
        std::fs::write(fused.path().join("config.json"), text).expect("written");
        let generation = dir.path().join("generation_config.json");
        std::fs::copy(generation, fused.path().join("generation_config.json")).expect("copied");
        let mut tensors = stored_tensors(dir.path());
        join(&mut tensors, &["q_proj", "k_proj", "v_proj"], "qkv_proj");
        join(&mut tensors, &["gate_proj", "up_proj"], "gate_up_proj");
        folder::write_shard(&fused.path().join("model.safetensors"), &tensors).expect("written");
        let apart = SafetensorsCheckpoint::open(dir.path()).expect("opens");
        let opened = SafetensorsCheckpoint::open(fused.path()).expect("opens");
        assert_eq!(opened.config(), &config);
        assert!(worst_difference(&opened, &apart) <= 0.0);
        assert_eq!(opened.format(), apart.format());
        let storage = |id| opened.storage(id).expect("there");
        assert_eq!(
            storage(MatrixId::K(1)),
            apart.storage(MatrixId::K(1)).expect("there")
        );
        // A fused matrix with rows too few for its parts is named.
        let qkv = tensors
            .iter_mut()
            .find(|tensor| tensor.name.contains("1.self_attn.qkv_proj"));
        let qkv = qkv.expect("there");
        let row = qkv.bytes.len() / qkv.shape[0];
        qkv.shape[0] -= 8;
        let shorter = qkv.shape[0] * row;
        qkv.bytes.truncate(shorter);
        folder::write_shard(&fused.path().join("model.safetensors"), &tensors).expect("written");
        let error = SafetensorsCheckpoint::open(fused.path())
            .err()
            .expect("refused");
        assert!(
            error.to_string().contains("1.self_attn.qkv_proj"),
            "{error}"
        );
    }
}

/// GPTQ's writers give every matrix a bias.
#[test]
fn a_bias_that_no_model_of_the_family_has_must_be_zero() {
    let dir = tempfile::tempdir().expect("a folder");
    packed_folder(dir.path(), PackedKind::Gptq);
    let mut tensors = stored_tensors(dir.path());
    let name = "model.layers.0.mlp.down_proj.bias".to_owned();
    let mut values = vec![0.0; 128];
    let bias = |values: &[f32]| folder::float(name.clone(), vec![128], values, ElementFormat::F16);
    tensors.push(bias(&values));
    let path = dir.path().join("model.safetensors");
    folder::write_shard(&path, &tensors).expect("written");
    SafetensorsCheckpoint::open(dir.path()).expect("opens");
    values[100] = 0.5;
    tensors.pop();
    tensors.push(bias(&values));
    folder::write_shard(&path, &tensors).expect("written");
    let error = SafetensorsCheckpoint::open(dir.path())
        .err()
        .expect("refused");
    assert_eq!(
        error.to_string(),
        "model.layers.0.mlp.down_proj.bias: has 0.5; models of this family have no such bias"
    );
}

/// Every format says what it is, and a matrix left in 16 bits is read as it is.
#[test]
fn packed_folders_are_named_by_their_method() {
    for (kind, name) in [
        (PackedKind::AwqGemv, "awq 4-bit, group 64"),
        (PackedKind::GptqV2, "gptq 4-bit, group 64"),
        (PackedKind::AutoRoundGptq, "auto-round 4-bit, group 64"),
        (
            PackedKind::PackQuantized,
            "compressed-tensors 4-bit, group 64",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        packed_folder(dir.path(), kind);
        let opened = SafetensorsCheckpoint::open(dir.path()).expect("opens");
        assert_eq!(opened.format().to_string(), name);
        let down = opened.storage(MatrixId::Down(1)).expect("there").format;
        let expected = match kind {
            PackedKind::AutoRoundGptq => MatrixFormat::Rows(ElementFormat::F16),
            _ => MatrixFormat::Awq { group_size: 64 },
        };
        assert_eq!(down, expected, "{kind:?}");
    }
}

#[test]
fn folders_of_scaled_numbers_are_named_by_their_method() {
    for (format, name) in [
        (ScaledFormat::Fp8Blocks, "fp8 FP8"),
        (ScaledFormat::Fp8Matrix, "fp8 FP8"),
        (ScaledFormat::CtFp8Rows, "compressed-tensors FP8"),
        (ScaledFormat::CtInt8, "compressed-tensors INT8"),
        (ScaledFormat::CtNvfp4, "compressed-tensors NVFP4"),
        (ScaledFormat::ModelOptNvfp4, "modelopt NVFP4"),
        (ScaledFormat::ModelOptFp8, "modelopt FP8"),
    ] {
        let dir = tempfile::tempdir().expect("a folder");
        let config = scaled_config(Family::Qwen2);
        write_scaled_folder(dir.path(), &config, format, 2).expect("written");
        let opened = SafetensorsCheckpoint::open(dir.path()).expect("opens");
        assert_eq!(opened.format().to_string(), name);
        let down = opened.storage(MatrixId::Down(1)).expect("there").format;
        let is_left_out = down == MatrixFormat::Rows(ElementFormat::BF16);
        assert_eq!(is_left_out, format == ScaledFormat::Fp8Blocks, "{format:?}");
        for id in MatrixId::all(&config) {
            let matrix = opened.matrix(id).expect("read");
            assert_eq!(matrix.storage(), opened.storage(id).expect("there"));
        }
        // Without its configuration, the message says what the files contain.
        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path).expect("a configuration");
        let mut value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        value["quantization_config"] = serde_json::Value::Null;
        std::fs::write(&path, value.to_string()).expect("written");
        let error = SafetensorsCheckpoint::open(dir.path())
            .err()
            .expect("refused");
        let message = error.to_string();
        assert!(
            message.contains("quantization_config") && message.contains("q_proj.weight"),
            "{message}"
        );
    }
}

/// A quantised checkpoint without a configuration: the message names what the files contain.
#[test]
fn quantised_weights_without_their_configuration_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let format = FolderFormat::Awq { group_size: 32 };
    write(dir.path(), Family::Qwen3, format, 1);
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).expect("a configuration");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let fields = config.as_object_mut().expect("an object");
    fields.remove("quantization_config").expect("it says so");
    std::fs::write(&path, config.to_string()).expect("written");
    let opened = SafetensorsCheckpoint::open(dir.path()).map(|opened| {
        let error = opened.matrix(MatrixId::Down(1)).expect_err("refused");
        error.to_string()
    });
    let message = opened.unwrap_or_else(|error| error.to_string());
    for part in [
        "quantization_config",
        "the weights are quantised",
        ".qweight",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), Family::Llama, FolderFormat::F16, 1);
    let path = dir.path().join("model.safetensors");
    let whole = std::fs::read(&path).expect("readable");
    for n in [0, 1, 7, 8, 9, 500, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..n]).expect("written");
        let error = SafetensorsCheckpoint::open(dir.path())
            .err()
            .expect("refused")
            .to_string();
        assert!(error.contains("model.safetensors"), "{n}: {error}");
    }
}

/// A file with one tensor and a given header.
fn write_with_header(dir: &Path, header: &str, n_data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + n_data, 0);
    std::fs::write(dir.join("model.safetensors"), bytes).expect("written");
}

#[test]
fn lying_headers_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    for (what, header) in [
        (
            "offset beyond the file",
            r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,32]}}"#,
        ),
        (
            "end before start",
            r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}"#,
        ),
        (
            "shape larger than data",
            r#"{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,16]}}"#,
        ),
        (
            "shape that overflows",
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}}"#,
        ),
        (
            "two tensors at one place",
            r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
        ),
        (
            "huge offsets",
            r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,18446744073709551615]}}"#,
        ),
        ("no JSON", "hello"),
    ] {
        write_with_header(dir.path(), header, 16);
        assert!(
            TensorFiles::open(dir.path()).is_err(),
            "{what} was accepted"
        );
    }
    let mut bytes = u64::MAX.to_le_bytes().to_vec();
    bytes.extend_from_slice(b"{}");
    std::fs::write(dir.path().join("model.safetensors"), bytes).expect("written");
    assert!(
        TensorFiles::open(dir.path()).is_err(),
        "header of 2^64 bytes"
    );
    write_with_header(
        dir.path(),
        r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#,
        16,
    );
    assert!(TensorFiles::open(dir.path()).is_ok(), "the honest one");
}

#[test]
fn wrong_shapes_missing_tensors_and_formats_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = || {
        SafetensorsCheckpoint::open(dir.path())
            .err()
            .expect("refused")
            .to_string()
    };
    let config = write(dir.path(), Family::Llama, FolderFormat::F16, 1);
    let rewrite = |changed: &ModelConfig| {
        let json = fixture::config_json(changed, FolderFormat::F16).to_string();
        std::fs::write(dir.path().join("config.json"), json).expect("written");
    };
    rewrite(&ModelConfig {
        intermediate: 256,
        ..config.clone()
    });
    let error = open();
    assert!(
        error.contains("gate_proj") && error.contains("[128, 64]"),
        "{error}"
    );
    assert!(error.contains("[256, 64]"), "{error}");
    rewrite(&ModelConfig {
        n_layers: 3,
        ..config.clone()
    });
    assert!(open().contains("model.layers.2."), "{}", open());

    let header =
        r#"{"model.embed_tokens.weight":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#;
    rewrite(&config);
    write_with_header(dir.path(), header, 16);
    let error = open();
    assert!(
        error.contains("format I64") && error.contains("F32 F16 BF16"),
        "{error}"
    );
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let index = dir.path().join("model.safetensors.index.json");
    for name in [
        "../x.safetensors",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "model.bin",
        "..",
    ] {
        let text = serde_json::json!({ "weight_map": { "a": name } }).to_string();
        std::fs::write(&index, text).expect("written");
        let error = index_shards(&index).expect_err(name).to_string();
        assert!(
            error.contains("is not a .safetensors file next to it"),
            "{error}"
        );
    }
    std::fs::write(&index, r#"{"weight_map":{}}"#).expect("written");
    assert!(index_shards(&index).is_err());
}

#[test]
fn a_missing_shard_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), Family::Llama, FolderFormat::F16, 2);
    std::fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).expect("removed");
    let error = SafetensorsCheckpoint::open(dir.path())
        .err()
        .expect("refused")
        .to_string();
    assert!(
        error.contains("model-00002-of-00002.safetensors"),
        "{error}"
    );
}
