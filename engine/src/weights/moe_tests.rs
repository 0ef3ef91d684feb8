//! Experts in files: missing ones, ones of another shape or type, and stacks of another height.

use std::path::Path;

use ::safetensors::SafeTensors;

use super::fixture::{FolderFormat, tiny_config, with_experts, write_folder, write_gguf};
use super::folder::{self, OwnedTensor};
use super::gguf::GgufCheckpoint;
use super::gguf::value::Value;
use super::safetensors::SafetensorsCheckpoint;
use super::*;
use crate::model::config::Family;

fn tensors(dir: &Path) -> Vec<OwnedTensor> {
    let bytes = std::fs::read(dir.join("model.safetensors")).expect("written");
    let all = SafeTensors::deserialize(&bytes).expect("whole").tensors();
    let owned = all.into_iter().map(|(name, tensor)| OwnedTensor {
        name,
        dtype: tensor.dtype(),
        shape: tensor.shape().to_vec(),
        bytes: tensor.data().to_vec(),
    });
    owned.collect()
}

/// What is said of a folder after `change` of its tensors.
fn refused(format: FolderFormat, change: impl Fn(&mut Vec<OwnedTensor>)) -> String {
    let dir = tempfile::tempdir().expect("a folder");
    let config = tiny_config(Family::Qwen3Moe);
    write_folder(dir.path(), &config, format, 1, 1).expect("written");
    assert!(SafetensorsCheckpoint::open(dir.path()).is_ok());
    let mut tensors = tensors(dir.path());
    change(&mut tensors);
    let path = dir.path().join("model.safetensors");
    folder::write_shard(&path, &tensors).expect("written");
    let opened = SafetensorsCheckpoint::open(dir.path());
    opened.err().expect("refused").to_string()
}

fn named<'a>(tensors: &'a mut [OwnedTensor], name: &str) -> &'a mut OwnedTensor {
    let found = tensors.iter_mut().find(|tensor| tensor.name == name);
    found.expect("there")
}

#[test]
fn missing_experts_and_routers_are_named() {
    for format in [FolderFormat::F16, FolderFormat::Awq { group_size: 32 }] {
        let end = match format {
            FolderFormat::F16 => "weight",
            _ => "qweight",
        };
        for name in [
            format!("model.layers.1.mlp.experts.5.down_proj.{end}"),
            format!("model.layers.0.mlp.experts.0.gate_proj.{end}"),
            "model.layers.1.mlp.gate.weight".to_owned(),
        ] {
            let message = refused(format, |tensors| {
                tensors.retain(|tensor| tensor.name != name);
            });
            let (stem, _) = name.rsplit_once('.').expect("its end");
            assert!(message.contains(stem), "{name}: {message}");
        }
    }
}

#[test]
fn experts_of_another_shape_are_named_with_both() {
    let name = "model.layers.0.mlp.experts.3.up_proj.weight";
    let message = refused(FolderFormat::F16, |tensors| {
        named(tensors, name).shape = vec![32, 128];
    });
    for part in [name, "[32, 128]", "[64, 64]"] {
        assert!(message.contains(part), "{message}");
    }
    let router = "model.layers.1.mlp.gate.weight";
    let message = refused(FolderFormat::BF16, |tensors| {
        let tensor = named(tensors, router);
        tensor.shape = vec![3, 128];
    });
    for part in [router, "[3, 128]", "[6, 64]"] {
        assert!(message.contains(part), "{message}");
    }
}

/// The configuration asks for more experts than there are, or for fewer layers with experts.
#[test]
fn a_configuration_that_does_not_fit_the_experts_is_refused_by_the_first() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = tiny_config(Family::Qwen3Moe);
    write_folder(dir.path(), &config, FolderFormat::F16, 1, 1).expect("written");
    for (more, dense, name) in [
        (8, vec![], "model.layers.0.mlp.gate.weight"),
        (6, vec![1], "model.layers.1.mlp.gate_proj.weight"),
    ] {
        let changed = with_experts(config.clone(), |experts| {
            experts.n_experts = more;
            experts.dense_layers = dense;
        });
        let json = fixture::config_json(&changed, FolderFormat::F16).to_string();
        std::fs::write(dir.path().join("config.json"), json).expect("written");
        let opened = SafetensorsCheckpoint::open(dir.path());
        let message = opened.err().expect("refused").to_string();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn stacks_of_gguf_must_have_every_expert() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.gguf");
    let config = tiny_config(Family::Qwen3Moe);
    let refused = |key: &str, value: Value| {
        let key = format!("qwen3moe.{key}");
        let extra = [(key.as_str(), value)];
        write_gguf(&path, &config, ElementFormat::Q8_0, 1, &extra).expect("written");
        let opened = GgufCheckpoint::open(&path);
        opened.err().expect("refused").to_string()
    };
    for (key, value, parts) in [
        ("expert_count", Value::U32(5), ["ffn_gate_inp", "[6, 64]"]),
        ("expert_count", Value::U32(0), ["is 0", "1 to 4096"]),
        ("expert_used_count", Value::U32(7), ["is 7", "1 to 6"]),
        (
            "expert_feed_forward_length",
            Value::U32(32),
            ["ffn_gate_exps", "[6, 64, 64]"],
        ),
        ("expert_shared_count", Value::U32(1), ["is 1", "Qwen3-MoE"]),
        ("expert_gating_func", Value::U32(2), ["is 2", "Qwen3-MoE"]),
        (
            "expert_weights_scale",
            Value::F32(2.5),
            ["is 2.5", "Qwen3-MoE"],
        ),
        (
            "expert_weights_norm",
            Value::Bool(false),
            ["expert_weights_norm", "false"],
        ),
        (
            "leading_dense_block_count",
            Value::U32(1),
            ["is 1", "Qwen3-MoE"],
        ),
    ] {
        let message = refused(key, value);
        for part in parts {
            assert!(message.contains(part), "{key}: {message}");
        }
    }
}

/// What `inspect` and the memory arithmetic count: every expert once, in any format.
#[test]
fn every_expert_is_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = tiny_config(Family::Qwen3Moe);
    let path = dir.path().join("model.gguf");
    write_gguf(&path, &config, ElementFormat::Q8_0, 1, &[]).expect("written");
    let opened = GgufCheckpoint::open(&path).expect("opened");
    let of_experts = |checkpoint: &dyn Checkpoint| -> u64 {
        let ids = MatrixId::all(checkpoint.config()).into_iter();
        let experts = ids.filter(|id| id.expert().is_some());
        experts
            .map(|id| checkpoint.storage(id).expect("there").n_bytes)
            .sum()
    };
    // Two layers of six experts of three matrices of 64 x 64, in blocks of 34 bytes for 32.
    assert_eq!(of_experts(&opened), 2 * 6 * 3 * 64 * 64 * 34 / 32);
    let folder = dir.path().join("folder");
    write_folder(&folder, &config, FolderFormat::F16, 1, 2).expect("written");
    let opened = SafetensorsCheckpoint::open(&folder).expect("opened");
    assert_eq!(of_experts(&opened), 2 * 6 * 3 * 64 * 64 * 2);
}
