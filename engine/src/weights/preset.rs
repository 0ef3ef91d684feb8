//! The models of `synthetic:<preset>`: shapes of published models, and tiny ones.
//!
//! Shapes come from the models' published `config.json` files. The tiny ones keep Qwen3's
//! vocabulary, so that they can be served with its tokenizer.

use super::ElementFormat;
use super::synthetic::SyntheticFormat;
use crate::model::config::{Family, ModelConfig, RopeConfig, RopeScaling};
use crate::model::experts::Experts;

/// A named synthetic model.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    pub name: &'static str,
    pub config: ModelConfig,
    pub format: SyntheticFormat,
    /// Whether the vocabulary is large enough for the Qwen3 tokenizer's ids.
    pub uses_qwen3_tokenizer: bool,
}

/// Rows of the published Qwen3 embedding; the tokenizer uses the first 151669.
pub const QWEN3_VOCAB: usize = 151_936;

const QWEN_EOS: [u32; 2] = [151_645, 151_643];
const AWQ_128: SyntheticFormat = SyntheticFormat::Awq { group_size: 128 };
const F16: SyntheticFormat = SyntheticFormat::Rows(ElementFormat::F16);
const BF16: SyntheticFormat = SyntheticFormat::Rows(ElementFormat::BF16);

/// Layers, hidden, intermediate, query heads, key-value heads, head dimension.
type Shape = (usize, usize, usize, usize, usize, usize);

/// Every preset, in the order of help texts.
pub fn all() -> Vec<Preset> {
    let tiny: Shape = (2, 64, 192, 4, 2, 16);
    let tiny_qwen3_moe = ModelConfig {
        tied_embeddings: true,
        ..qwen3_moe(tiny, 4096, (8, 2, 32))
    };
    let qwen3_32b: Shape = (64, 5120, 25_600, 64, 8, 128);
    let qwen3_06b: Shape = (28, 1024, 3072, 16, 8, 128);
    let qwen3_30b_a3b: Shape = (48, 2048, 6144, 32, 4, 128);
    vec![
        preset("tiny-qwen3", qwen(Family::Qwen3, tiny, 4096, true), F16),
        preset("tiny-qwen2", qwen(Family::Qwen2, tiny, 4096, true), F16),
        preset("tiny-llama", qwen(Family::Llama, tiny, 4096, true), F16),
        preset("tiny-qwen3-moe", tiny_qwen3_moe, F16),
        preset(
            "qwen3-0.6b",
            qwen(Family::Qwen3, qwen3_06b, 40_960, true),
            BF16,
        ),
        preset(
            "qwen3-0.6b-awq",
            qwen(Family::Qwen3, qwen3_06b, 40_960, true),
            AWQ_128,
        ),
        preset(
            "qwen3-32b-awq",
            qwen(Family::Qwen3, qwen3_32b, 40_960, false),
            AWQ_128,
        ),
        preset(
            "qwen3-32b-q4_k_m",
            qwen(Family::Qwen3, qwen3_32b, 40_960, false),
            SyntheticFormat::Q4KM,
        ),
        preset(
            "qwen3-32b-fp8",
            qwen(Family::Qwen3, qwen3_32b, 40_960, false),
            SyntheticFormat::Fp8,
        ),
        preset(
            "qwen3-30b-a3b",
            qwen3_moe(qwen3_30b_a3b, 40_960, (128, 8, 768)),
            BF16,
        ),
        preset(
            "qwen3-30b-a3b-awq",
            qwen3_moe(qwen3_30b_a3b, 40_960, (128, 8, 768)),
            AWQ_128,
        ),
        preset(
            "qwen2.5-3b",
            qwen(Family::Qwen2, (36, 2048, 11_008, 16, 2, 128), 32_768, true),
            BF16,
        ),
        preset(
            "tinyllama-1.1b",
            llama((22, 2048, 5632, 32, 4, 64), 32_000, 2048, 1e4),
            BF16,
        ),
        preset(
            "yi-6b",
            llama((32, 4096, 11_008, 32, 4, 128), 64_000, 4096, 5e6),
            BF16,
        ),
    ]
}

/// The preset of this name.
pub fn find(name: &str) -> Option<Preset> {
    all().into_iter().find(|p| p.name == name)
}

/// The names, for error messages and help.
pub fn names() -> String {
    all().iter().map(|p| p.name).collect::<Vec<_>>().join(", ")
}

fn preset(name: &'static str, config: ModelConfig, format: SyntheticFormat) -> Preset {
    let uses_qwen3_tokenizer = config.vocab == QWEN3_VOCAB;
    Preset {
        name,
        config,
        format,
        uses_qwen3_tokenizer,
    }
}

/// A model with Qwen's vocabulary and RoPE base, of any family.
fn qwen(family: Family, shape: Shape, context_length: usize, tied: bool) -> ModelConfig {
    ModelConfig {
        family,
        context_length,
        rms_norm_eps: 1e-6,
        tied_embeddings: tied,
        qkv_bias: family == Family::Qwen2,
        qk_norm: matches!(family, Family::Qwen3 | Family::Qwen3Moe),
        eos_token_ids: QWEN_EOS.to_vec(),
        bos_token_id: Some(151_643),
        ..llama(shape, QWEN3_VOCAB, context_length, 1e6)
    }
}

/// As [`qwen`], with experts in every layer: how many, how many a token, and their width.
fn qwen3_moe(shape: Shape, context_length: usize, experts: (usize, usize, usize)) -> ModelConfig {
    let (n_experts, n_active, intermediate) = experts;
    ModelConfig {
        experts: Some(Experts {
            n_experts,
            n_active,
            intermediate,
            norm_topk_prob: true,
            dense_layers: Vec::new(),
        }),
        ..qwen(Family::Qwen3Moe, shape, context_length, false)
    }
}

fn llama(shape: Shape, vocab: usize, context_length: usize, theta: f32) -> ModelConfig {
    let (n_layers, hidden, intermediate, n_q_heads, n_kv_heads, head_dim) = shape;
    ModelConfig {
        family: Family::Llama,
        n_layers,
        hidden,
        intermediate,
        n_q_heads,
        n_kv_heads,
        head_dim,
        vocab,
        context_length,
        rms_norm_eps: 1e-5,
        rope: RopeConfig {
            theta,
            scaling: RopeScaling::None,
        },
        tied_embeddings: false,
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
        eos_token_ids: vec![2],
        bos_token_id: Some(1),
        experts: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{MatrixId, VectorId};

    fn n_params(c: &ModelConfig) -> usize {
        let matrices = MatrixId::all(c).into_iter().map(|id| {
            let (n_out, n_in) = id.shape(c);
            n_out * n_in
        });
        let vectors = VectorId::all(c).into_iter().map(|id| id.n_elements(c));
        matrices.sum::<usize>() + vectors.sum::<usize>()
    }

    #[test]
    fn every_preset_is_valid() {
        for preset in all() {
            let checked = preset.config.clone().validated();
            assert_eq!(checked.expect(preset.name), preset.config);
        }
    }

    /// Parameter counts from the model cards.
    #[test]
    fn published_shapes_have_their_published_parameter_counts() {
        for (name, billions) in [
            ("qwen3-0.6b", 0.596),
            ("qwen3-32b-awq", 32.76),
            ("qwen2.5-3b", 3.086),
            ("tinyllama-1.1b", 1.100),
            ("yi-6b", 6.061),
            ("qwen3-30b-a3b", 30.53),
        ] {
            let found = n_params(&find(name).expect(name).config) as f64 / 1e9;
            assert!(
                (found / billions - 1.0).abs() < 0.002,
                "{name}: {found} billion"
            );
        }
    }

    #[test]
    fn tiny_presets_stay_tiny() {
        for name in ["tiny-qwen3", "tiny-qwen2", "tiny-llama", "tiny-qwen3-moe"] {
            assert!(n_params(&find(name).expect(name).config) < 10_000_000);
        }
    }
}
