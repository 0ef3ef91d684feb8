//! Layers with experts in place of one MLP.

use gpu::{CudaError, Device, Stream};
use kernels::cuda::Element;
use kernels::experts::Choice;
use kernels::experts::cuda::{ExpertBuffers, ExpertWeights, Experts, ExpertsShape};
use kernels::stream_linear::Format;

use super::layer::LayerPass;
use super::{Forward, PassShape};
use crate::executor::cuda::weights::{DeviceWeights, LayerWeights};
use crate::model::config::ModelConfig;

/// The model's experts as the kernels take them; `None`: it has none.
pub fn experts_shape(config: &ModelConfig) -> Option<ExpertsShape> {
    let experts = config.experts.as_ref()?;
    Some(ExpertsShape {
        hidden: config.hidden,
        intermediate: experts.intermediate,
        choice: Choice {
            n_experts: experts.n_experts,
            n_active: experts.n_active,
            normalise: experts.norm_topk_prob,
        },
    })
}

/// The kernels for the formats of these experts.
pub(super) fn experts_of(
    config: &ModelConfig,
    device: &Device,
    weights: &DeviceWeights,
) -> Result<Option<Experts>, CudaError> {
    let Some(shape) = experts_shape(config) else {
        return Ok(None);
    };
    let sparse = weights.layers.iter().filter(|layer| layer.is_sparse());
    let matrices = sparse.flat_map(|layer| [&layer.gate_up, &layer.down]);
    let formats: Vec<Format> = matrices.map(|matrix| matrix.layout().format).collect();
    Experts::new(device, weights.element(), shape, &formats).map(Some)
}

pub(super) fn expert_buffers(
    stream: &Stream,
    element: Element,
    config: &ModelConfig,
    pass: PassShape,
) -> Result<Option<ExpertBuffers>, CudaError> {
    experts_shape(config)
        .map(|shape| ExpertBuffers::new(stream, element, &shape, pass.max_tokens))
        .transpose()
}

impl Forward {
    /// Whether this layer has experts; adds what they make to the residual stream if so.
    pub(super) fn sparse_block(
        &self,
        pass: &LayerPass<'_>,
        layer: &LayerWeights,
    ) -> Result<bool, CudaError> {
        let ws = pass.slice.workspace;
        let (Some(router), Some(experts), Some(buffers)) =
            (&layer.router, &self.ops.experts, &ws.experts)
        else {
            return Ok(false);
        };
        let weights = ExpertWeights {
            norm: layer.mlp_norm.all(),
            router: router.all(),
            gate_up: &layer.gate_up,
            down: &layer.down,
        };
        let (h, n, eps) = (
            ws.residual.all(),
            pass.size.n_tokens,
            self.config.rms_norm_eps,
        );
        experts.launch(pass.stream, h, &weights, buffers, n, eps)?;
        Ok(true)
    }
}
