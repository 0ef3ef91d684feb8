//! Tensor roles: their names in safetensors and GGUF, and the required shapes.

use super::{MatrixId, VectorId};
use crate::model::config::ModelConfig;

impl MatrixId {
    /// `(n_out, n_in)` under this configuration.
    pub fn shape(self, c: &ModelConfig) -> (usize, usize) {
        let experts = c.experts.as_ref();
        let (n_experts, width) = experts.map_or((0, 0), |e| (e.n_experts, e.intermediate));
        match self {
            Self::Embedding | Self::LmHead => (c.vocab, c.hidden),
            Self::Q(_) => (c.q_width(), c.hidden),
            Self::K(_) | Self::V(_) => (c.kv_width(), c.hidden),
            Self::O(_) => (c.hidden, c.q_width()),
            Self::Gate(_) | Self::Up(_) => (c.intermediate, c.hidden),
            Self::Down(_) => (c.hidden, c.intermediate),
            Self::Router(_) => (n_experts, c.hidden),
            Self::ExpertGate(..) | Self::ExpertUp(..) => (width, c.hidden),
            Self::ExpertDown(..) => (c.hidden, width),
        }
    }

    /// The decoder's matrices in file order; without `LmHead` if it is tied to the embedding.
    pub fn all(c: &ModelConfig) -> Vec<Self> {
        let mut ids = vec![Self::Embedding];
        for i in 0..c.n_layers {
            ids.extend([Self::Q(i), Self::K(i), Self::V(i), Self::O(i)]);
            match c.experts_of(i) {
                None => ids.extend([Self::Gate(i), Self::Up(i), Self::Down(i)]),
                Some(experts) => {
                    ids.push(Self::Router(i));
                    ids.extend((0..experts.n_experts).flat_map(|e| Self::of_expert(i, e)));
                }
            }
        }
        if !c.tied_embeddings {
            ids.push(Self::LmHead);
        }
        ids
    }

    /// Gate, up and down of an expert.
    pub fn of_expert(layer: usize, expert: usize) -> [Self; 3] {
        [
            Self::ExpertGate(layer, expert),
            Self::ExpertUp(layer, expert),
            Self::ExpertDown(layer, expert),
        ]
    }

    /// The decoder layer that it belongs to, if to one.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::Q(i)
            | Self::K(i)
            | Self::V(i)
            | Self::O(i)
            | Self::Gate(i)
            | Self::Up(i)
            | Self::Down(i)
            | Self::Router(i)
            | Self::ExpertGate(i, _)
            | Self::ExpertUp(i, _)
            | Self::ExpertDown(i, _) => Some(i),
            Self::Embedding | Self::LmHead => None,
        }
    }

    /// The expert that it belongs to, if to one. GGUF stores those of a layer as one tensor.
    pub fn expert(self) -> Option<usize> {
        match self {
            Self::ExpertGate(_, e) | Self::ExpertUp(_, e) | Self::ExpertDown(_, e) => Some(e),
            _ => None,
        }
    }

    /// False for the embedding, the head and routers, which quantised checkpoints keep in 16 or 32
    /// bits.
    pub fn is_quantised(self) -> bool {
        self.layer().is_some() && !matches!(self, Self::Router(_))
    }

    /// Name in a safetensors file, without the `.weight` or `.qweight` at its end.
    pub fn safetensors_stem(self) -> String {
        match self {
            Self::Embedding => "model.embed_tokens".into(),
            Self::LmHead => "lm_head".into(),
            Self::Q(i) => format!("model.layers.{i}.self_attn.q_proj"),
            Self::K(i) => format!("model.layers.{i}.self_attn.k_proj"),
            Self::V(i) => format!("model.layers.{i}.self_attn.v_proj"),
            Self::O(i) => format!("model.layers.{i}.self_attn.o_proj"),
            Self::Gate(i) => format!("model.layers.{i}.mlp.gate_proj"),
            Self::Up(i) => format!("model.layers.{i}.mlp.up_proj"),
            Self::Down(i) => format!("model.layers.{i}.mlp.down_proj"),
            Self::Router(i) => format!("model.layers.{i}.mlp.gate"),
            Self::ExpertGate(i, e) => format!("model.layers.{i}.mlp.experts.{e}.gate_proj"),
            Self::ExpertUp(i, e) => format!("model.layers.{i}.mlp.experts.{e}.up_proj"),
            Self::ExpertDown(i, e) => format!("model.layers.{i}.mlp.experts.{e}.down_proj"),
        }
    }

    /// The stem under which some tools store several matrices as one, and those in their order.
    pub fn fused(self) -> Option<(String, Vec<Self>)> {
        match self {
            Self::Q(i) | Self::K(i) | Self::V(i) => Some((
                format!("model.layers.{i}.self_attn.qkv_proj"),
                vec![Self::Q(i), Self::K(i), Self::V(i)],
            )),
            Self::Gate(i) | Self::Up(i) => Some((
                format!("model.layers.{i}.mlp.gate_up_proj"),
                vec![Self::Gate(i), Self::Up(i)],
            )),
            Self::Embedding
            | Self::LmHead
            | Self::O(_)
            | Self::Down(_)
            | Self::Router(_)
            | Self::ExpertGate(..)
            | Self::ExpertUp(..)
            | Self::ExpertDown(..) => None,
        }
    }

    /// The same for all experts of a layer, which are one tensor.
    pub fn gguf_name(self) -> String {
        match self {
            Self::Embedding => "token_embd.weight".into(),
            Self::LmHead => "output.weight".into(),
            Self::Q(i) => format!("blk.{i}.attn_q.weight"),
            Self::K(i) => format!("blk.{i}.attn_k.weight"),
            Self::V(i) => format!("blk.{i}.attn_v.weight"),
            Self::O(i) => format!("blk.{i}.attn_output.weight"),
            Self::Gate(i) => format!("blk.{i}.ffn_gate.weight"),
            Self::Up(i) => format!("blk.{i}.ffn_up.weight"),
            Self::Down(i) => format!("blk.{i}.ffn_down.weight"),
            Self::Router(i) => format!("blk.{i}.ffn_gate_inp.weight"),
            Self::ExpertGate(i, _) => format!("blk.{i}.ffn_gate_exps.weight"),
            Self::ExpertUp(i, _) => format!("blk.{i}.ffn_up_exps.weight"),
            Self::ExpertDown(i, _) => format!("blk.{i}.ffn_down_exps.weight"),
        }
    }
}

impl VectorId {
    /// The matrix to whose product a bias is added.
    pub fn bias_of(self) -> Option<MatrixId> {
        match self {
            Self::QBias(i) => Some(MatrixId::Q(i)),
            Self::KBias(i) => Some(MatrixId::K(i)),
            Self::VBias(i) => Some(MatrixId::V(i)),
            Self::OBias(i) => Some(MatrixId::O(i)),
            Self::AttnNorm(_)
            | Self::MlpNorm(_)
            | Self::QNorm(_)
            | Self::KNorm(_)
            | Self::FinalNorm => None,
        }
    }

    /// The decoder layer that it belongs to, if to one.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::AttnNorm(i)
            | Self::MlpNorm(i)
            | Self::QNorm(i)
            | Self::KNorm(i)
            | Self::QBias(i)
            | Self::KBias(i)
            | Self::VBias(i)
            | Self::OBias(i) => Some(i),
            Self::FinalNorm => None,
        }
    }

    /// Elements under this configuration.
    pub fn n_elements(self, c: &ModelConfig) -> usize {
        match self {
            Self::AttnNorm(_) | Self::MlpNorm(_) | Self::FinalNorm | Self::OBias(_) => c.hidden,
            Self::QNorm(_) | Self::KNorm(_) => c.head_dim,
            Self::QBias(_) => c.q_width(),
            Self::KBias(_) | Self::VBias(_) => c.kv_width(),
        }
    }

    /// The vectors of a model with this configuration.
    pub fn all(c: &ModelConfig) -> Vec<Self> {
        let mut ids = Vec::new();
        for i in 0..c.n_layers {
            ids.extend([Self::AttnNorm(i), Self::MlpNorm(i)]);
            if c.qk_norm {
                ids.extend([Self::QNorm(i), Self::KNorm(i)]);
            }
            if c.qkv_bias {
                ids.extend([Self::QBias(i), Self::KBias(i), Self::VBias(i)]);
            }
            if c.o_bias {
                ids.push(Self::OBias(i));
            }
        }
        ids.push(Self::FinalNorm);
        ids
    }

    pub fn safetensors_name(self) -> String {
        match self {
            Self::AttnNorm(i) => format!("model.layers.{i}.input_layernorm.weight"),
            Self::MlpNorm(i) => format!("model.layers.{i}.post_attention_layernorm.weight"),
            Self::QNorm(i) => format!("model.layers.{i}.self_attn.q_norm.weight"),
            Self::KNorm(i) => format!("model.layers.{i}.self_attn.k_norm.weight"),
            Self::FinalNorm => "model.norm.weight".into(),
            Self::QBias(i) => format!("model.layers.{i}.self_attn.q_proj.bias"),
            Self::KBias(i) => format!("model.layers.{i}.self_attn.k_proj.bias"),
            Self::VBias(i) => format!("model.layers.{i}.self_attn.v_proj.bias"),
            Self::OBias(i) => format!("model.layers.{i}.self_attn.o_proj.bias"),
        }
    }

    pub fn gguf_name(self) -> String {
        match self {
            Self::AttnNorm(i) => format!("blk.{i}.attn_norm.weight"),
            Self::MlpNorm(i) => format!("blk.{i}.ffn_norm.weight"),
            Self::QNorm(i) => format!("blk.{i}.attn_q_norm.weight"),
            Self::KNorm(i) => format!("blk.{i}.attn_k_norm.weight"),
            Self::FinalNorm => "output_norm.weight".into(),
            Self::QBias(i) => format!("blk.{i}.attn_q.bias"),
            Self::KBias(i) => format!("blk.{i}.attn_k.bias"),
            Self::VBias(i) => format!("blk.{i}.attn_v.bias"),
            Self::OBias(i) => format!("blk.{i}.attn_output.bias"),
        }
    }
}
