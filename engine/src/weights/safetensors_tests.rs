use std::path::Path;

use super::*;
use crate::model::config::Family;
use crate::weights::fixture::{self, FolderFormat};

const FAMILIES: [Family; 3] = [Family::Qwen3, Family::Qwen2, Family::Llama];

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
