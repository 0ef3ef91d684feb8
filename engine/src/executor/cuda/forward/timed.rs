//! Single launches of a pass with a given kernel variant: what autotuning measures, and where it
//! stores its choices.

use gpu::{BufferView, CudaError, Stream};
use kernels::cuda::{Activation, ElementBuffer};
use kernels::qkv_prepare::cuda::HeadShape;
use kernels::roofline::cuda::ReadMemory;
use kernels::stream_linear::{Layout, Output, StreamLinear, Variant};
use serde::{Deserialize, Serialize};

use super::super::inputs::Inputs;
use super::{ActivationBuffer, Forward};
use crate::executor::cuda::weights::LayerWeights;

/// The projections of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    Qkv,
    O,
    GateUp,
    Down,
    LmHead,
}

impl Projection {
    const OF_LAYER: [Self; 4] = [Self::Qkv, Self::O, Self::GateUp, Self::Down];

    /// Those whose kernels can be chosen: experts have one for few rows and one for many.
    pub fn of_layer_with(is_sparse: bool) -> &'static [Self] {
        if is_sparse {
            &Self::OF_LAYER[..2]
        } else {
            &Self::OF_LAYER
        }
    }

    fn of(self, layer: &LayerWeights) -> Option<&StreamLinear> {
        match self {
            Self::Qkv => Some(&layer.qkv),
            Self::O => Some(&layer.o),
            Self::GateUp => Some(&layer.gate_up),
            Self::Down => Some(&layer.down),
            Self::LmHead => None,
        }
    }

    fn of_mut(self, layer: &mut LayerWeights) -> Option<&mut StreamLinear> {
        match self {
            Self::Qkv => Some(&mut layer.qkv),
            Self::O => Some(&mut layer.o),
            Self::GateUp => Some(&mut layer.gate_up),
            Self::Down => Some(&mut layer.down),
            Self::LmHead => None,
        }
    }
}

/// Not 0, whose products use less power, and not a large value in any 16-bit format.
const ACTIVATION_BYTE: u8 = 0x2e;

impl Forward {
    /// Indices of layers whose four matrices have the same layouts, in order of first occurrence.
    /// There is one group unless a checkpoint leaves some layers unquantized.
    pub fn layer_groups(&self) -> Vec<Vec<usize>> {
        let layouts = |i: usize| {
            Projection::OF_LAYER.map(|p| p.of(&self.weights.layers[i]).map(StreamLinear::layout))
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for i in 0..self.weights.layers.len() {
            match groups.iter_mut().find(|g| layouts(g[0]) == layouts(i)) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        groups
    }

    pub fn is_sparse(&self, layer: usize) -> bool {
        self.weights.layers[layer].is_sparse()
    }

    /// The matrix of `layer`, or the head.
    pub fn linear(&self, projection: Projection, layer: usize) -> &StreamLinear {
        projection
            .of(&self.weights.layers[layer])
            .unwrap_or(&self.weights.lm_head)
    }

    pub fn layout(&self, projection: Projection, layer: usize) -> &Layout {
        self.linear(projection, layer).layout()
    }

    /// Makes `rows` rows of `layer` (ignored for the head) use `variant` from now on.
    pub fn set_variant(
        &mut self,
        projection: Projection,
        layer: usize,
        rows: std::ops::RangeInclusive<usize>,
        variant: Variant,
    ) -> Result<(), CudaError> {
        let linear = match projection.of_mut(&mut self.weights.layers[layer]) {
            Some(linear) => linear,
            None => &mut self.weights.lm_head,
        };
        for m in rows {
            linear.set_variant(m, variant)?;
        }
        Ok(())
    }

    /// Makes decode attention over `rows` rows use `n_splits` splits from now on.
    pub fn set_splits(&mut self, rows: std::ops::RangeInclusive<usize>, n_splits: usize) {
        for m in rows {
            if let Some(splits) = self.tuned_splits.get_mut(m) {
                *splits = Some(n_splits.clamp(1, self.max_splits));
            }
        }
    }

    pub fn max_splits(&self) -> usize {
        self.max_splits
    }

    pub fn heads(&self) -> HeadShape {
        self.heads
    }

    pub fn n_layers(&self) -> usize {
        self.weights.layers.len()
    }

    /// One launch of a projection over `m` rows of the workspace.
    pub fn launch_projection(
        &self,
        stream: &Stream,
        projection: Projection,
        layer: usize,
        m: usize,
        variant: Variant,
    ) -> Result<(), CudaError> {
        let ws = &self.workspace;
        let weights = &self.weights.layers[layer];
        let is_tiled = variant.is_tiled();
        let (x, out) = match projection {
            Projection::Qkv => (&ws.normed, Output::Store(ws.qkv.all())),
            Projection::O => (&ws.attn_out, Output::AddResidual(ws.residual.all())),
            Projection::GateUp => (&ws.normed, Output::SiluMul(ws.ffn_act.laid_out(is_tiled))),
            Projection::Down => (&ws.ffn_act, Output::AddResidual(ws.residual.all())),
            Projection::LmHead => (&ws.normed, Output::StoreF32(ws.logits.all())),
        };
        let bias = match projection {
            Projection::Qkv => weights.qkv_bias.as_ref(),
            Projection::O => weights.o_bias.as_ref(),
            Projection::GateUp | Projection::Down | Projection::LmHead => None,
        };
        self.linear(projection, layer).launch_variant(
            stream,
            variant,
            m,
            x.laid_out(is_tiled),
            bias.map(ElementBuffer::all),
            out,
            true,
        )
    }

    /// One launch of decode attention over the rows that `inputs` holds.
    pub fn launch_decode_attention(
        &self,
        stream: &Stream,
        inputs: &Inputs,
        layer: usize,
        n_rows: usize,
        n_splits: usize,
    ) -> Result<(), CudaError> {
        let is_tiled = self.linear(Projection::O, layer).wants_tiled(n_rows);
        let out = self.workspace.attn_out.laid_out(is_tiled);
        self.decode_attention(stream, inputs, self.whole(), layer, out, n_rows, n_splits)
    }

    /// Fills the projections' inputs with data; [`Self::clear_activations`] reverts it.
    pub fn fill_activations(&self, stream: &Stream) -> Result<(), CudaError> {
        let ws = &self.workspace;
        for rows in [&ws.normed, &ws.attn_out, &ws.ffn_act] {
            rows.fill(stream, ACTIVATION_BYTE)?;
        }
        Ok(())
    }

    /// Restores the initial state: the padding columns of activations must be zero.
    pub fn clear_activations(&self, stream: &Stream) -> Result<(), CudaError> {
        let ws = &self.workspace;
        for rows in [&ws.normed, &ws.attn_out, &ws.ffn_act] {
            rows.fill(stream, 0)?;
        }
        ws.residual.all().zero(stream)?;
        ws.qkv.all().words().zero(stream)
    }

    /// Evicts weights from the L2 cache by reading up to `n_bytes` of the KV pool.
    pub fn push_weights_out(
        &self,
        stream: &Stream,
        read: &ReadMemory,
        n_bytes: usize,
        out: BufferView<'_, u32>,
    ) -> Result<(), CudaError> {
        let n_bytes = n_bytes.min(self.kv.buffer.len()) / 16 * 16;
        read.launch(stream, self.kv.buffer.view(0..n_bytes)?, out)
    }
}

impl ActivationBuffer {
    /// The rows as tiles, or plain.
    pub fn laid_out(&self, is_tiled: bool) -> Activation<'_> {
        if is_tiled {
            Activation::tiled(self.tiled.all(), self.n_tiled)
        } else {
            Activation::plain(self.plain.all(), self.stride)
        }
    }

    fn fill(&self, stream: &Stream, byte: u8) -> Result<(), CudaError> {
        self.plain.all().words().fill_bytes(stream, byte)?;
        self.tiled.all().words().fill_bytes(stream, byte)
    }
}
