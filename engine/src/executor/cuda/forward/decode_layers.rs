//! Small decode steps in one launch, where the model's layers allow it.

use kernels::cuda::{CudaError, ElementBuffer, Stream};
use kernels::decode_layers::{DecodeLayer, DecodeLayers, DecodeLayersArgs, DecodeShape};
use kernels::qkv_prepare::cuda::HeadShape;
use kernels::stream_linear::StreamLinear;

use super::super::inputs::Inputs;
use super::{AttentionOptions, DeviceWeights, Forward, KvPool, LayerWeights, PassSize};

fn products(layer: &LayerWeights) -> [&StreamLinear; 4] {
    [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]
}

/// The layers for one launch, or why they cannot have it.
pub(super) fn decode_layers(
    stream: &Stream,
    weights: &DeviceWeights,
    kv: &KvPool,
    heads: HeadShape,
    attention: AttentionOptions,
) -> Result<DecodeLayers, CudaError> {
    let layers = weights
        .layers
        .iter()
        .enumerate()
        .map(|(i, layer)| {
            Ok(DecodeLayer {
                products: products(layer),
                attn_norm: layer.attn_norm.all(),
                mlp_norm: layer.mlp_norm.all(),
                q_norm: layer.q_norm.as_ref().map(ElementBuffer::all),
                k_norm: layer.k_norm.as_ref().map(ElementBuffer::all),
                qkv_bias: layer.qkv_bias.as_ref().map(ElementBuffer::all),
                o_bias: layer.o_bias.as_ref().map(ElementBuffer::all),
                kv: kv.layer(i)?,
            })
        })
        .collect::<Result<Vec<_>, CudaError>>()?;
    let shape = DecodeShape {
        heads,
        n_layers: layers.len(),
        layouts: products(&weights.layers[0]).map(|linear| linear.layout().clone()),
    };
    // The executor's turn keeps everything else off the card.
    let is_alone = true;
    DecodeLayers::new(
        stream,
        shape,
        weights.element(),
        attention.format,
        &layers,
        attention.max_splits,
        is_alone,
    )
}

impl Forward {
    /// The layers that can take a pass in one launch: one token a sequence, few enough of them.
    pub(super) fn persistent(&self, size: PassSize) -> Option<&DecodeLayers> {
        let is_decode = size.n_tokens == size.n_sequences;
        self.decode_layers
            .as_ref()
            .filter(|layers| is_decode && layers.plan(size.n_tokens).is_ok())
    }

    /// How a decode step of `n_rows` goes through the layers, for the log.
    pub fn describe_decode(&self, n_rows: usize) -> String {
        let size = PassSize {
            n_tokens: n_rows,
            n_sequences: n_rows,
        };
        let plan = self.persistent(size).map(|layers| layers.plan(n_rows));
        match (plan, &self.kernel_by_kernel) {
            (Some(Ok(plan)), _) => format!(
                "{n_rows} row: one launch {}x{} stages {}",
                plan.n_clusters, plan.n_ranks, plan.n_stages
            ),
            (_, Some(reason)) => format!("kernel by kernel: {reason}"),
            (_, None) => format!("{n_rows} row: kernel by kernel"),
        }
    }

    pub(super) fn launch_decode_layers(
        &self,
        stream: &Stream,
        layers: &DecodeLayers,
        inputs: &Inputs,
        n_rows: usize,
    ) -> Result<(), CudaError> {
        let ws = &self.workspace;
        layers.launch(
            stream,
            &DecodeLayersArgs {
                n_rows,
                h: ws.h.all(),
                qkv: ws.qkv.all(),
                attended: ws.attended.plain.all(),
                gated: ws.gated.plain.all(),
                cos_sin: self.cos_sin.all(),
                n_positions: self.cos_sin.len() / self.heads.head_dim,
                positions: inputs.positions()?,
                slots: inputs.slots()?,
                page_table: inputs.page_table()?,
                max_pages: inputs.max_pages(),
                context_len: inputs.context_len()?,
                eps: self.config.rms_norm_eps,
            },
        )
    }
}
