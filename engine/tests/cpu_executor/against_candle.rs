//! Two-layer seeded checkpoints of each family against candle-transformers' own models in f32.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{llama, qwen2, qwen3, qwen3_moe};
use engine::executor::cpu::ActivationType;
use engine::model::config::{Family, ModelConfig, RopeScaling};
use engine::weights::fixture::{FolderFormat, tiny_config, with_experts, write_folder};
use engine::weights::safetensors::SafetensorsCheckpoint;
use kernels::Isa;

use super::{executor, options, relative_difference, row, tokens};

/// Logits of the last token, by candle.
fn candle_logits(dir: &Path, family: Family, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
    let device = Device::Cpu;
    let weights = std::fs::read(dir.join("model.safetensors"))?;
    let builder = VarBuilder::from_buffered_safetensors(weights, DType::F32, &device)?;
    let config = std::fs::read(dir.join("config.json"))?;
    let input = Tensor::new(tokens, &device)?.unsqueeze(0)?;
    let logits = match family {
        Family::Qwen3 => {
            let config: qwen3::Config = serde_json::from_slice(&config).expect("config");
            qwen3::ModelForCausalLM::new(&config, builder)?.forward(&input, 0)?
        }
        Family::Qwen3Moe => {
            let config: qwen3_moe::Config = serde_json::from_slice(&config).expect("config");
            qwen3_moe::ModelForCausalLM::new(&config, builder)?.forward(&input, 0)?
        }
        Family::Qwen2 => {
            let config: qwen2::Config = serde_json::from_slice(&config).expect("config");
            qwen2::ModelForCausalLM::new(&config, builder)?.forward(&input, 0)?
        }
        Family::Llama => {
            let config: llama::LlamaConfig = serde_json::from_slice(&config).expect("config");
            let config = config.into_config(false);
            let mut cache = llama::Cache::new(true, DType::F32, &config, &device)?;
            llama::Llama::load(builder, &config)?.forward(&input, 0, &mut cache)?
        }
    };
    logits.flatten_all()?.to_vec1()
}

fn compare(config: &ModelConfig, what: &str) {
    let dir = tempfile::tempdir().expect("folder");
    write_folder(dir.path(), config, FolderFormat::F32, 11, 1).expect("checkpoint");
    let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("checkpoint");
    let tokens = tokens(90, 1, config.vocab);
    for isa in Isa::available() {
        let mut executor = executor(&checkpoint, options(ActivationType::F32, isa));
        for n in [1, 2, 17, 90] {
            let expected = candle_logits(dir.path(), config.family, &tokens[..n]).expect("candle");
            let found = executor
                .forward_logits(&[row(&tokens[..n], 0, 0)], &[(0, n - 1)])
                .expect("logits");
            let difference = relative_difference(&found, &expected);
            println!("{what}, {n} tokens, {}: {difference:.2e}", isa.name());
            assert!(
                difference <= 1e-3,
                "{what}, {n} tokens, {}: {difference}",
                isa.name()
            );
        }
    }
}

#[test]
fn qwen3() {
    compare(&tiny_config(Family::Qwen3), "qwen3");
}

#[test]
fn qwen3_moe() {
    compare(&tiny_config(Family::Qwen3Moe), "qwen3-moe");
    let config = with_experts(tiny_config(Family::Qwen3Moe), |experts| {
        (experts.n_experts, experts.n_active) = (16, 5);
        experts.norm_topk_prob = false;
    });
    compare(&config, "qwen3-moe, not normalised");
}

#[test]
fn qwen2() {
    compare(&tiny_config(Family::Qwen2), "qwen2");
}

#[test]
fn llama() {
    compare(&tiny_config(Family::Llama), "llama");
}

#[test]
fn llama_with_scaled_rope() {
    let mut config = tiny_config(Family::Llama);
    config.rope.scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq: 1.0,
        high_freq: 4.0,
        original: 64,
    };
    compare(&config, "llama3 rope");
}
