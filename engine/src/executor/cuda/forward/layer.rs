//! The launches of one layer.
//!
//! Of few rows the norms are done on the projections' way (`kernels::rms_norm::deferred`): the
//! projection before writes what the one behind reads. Then only the first layer's first norm is a
//! launch, which begins the chain, and the head's, which picks rows.

use kernels::attention::cuda::{DecodeAttentionArgs, PrefillAttentionArgs};
use kernels::cuda::{Activation, CudaError, ElementBuffer, ElementView, Stream};
use kernels::qkv_prepare::cuda::QkvPrepareArgs;
use kernels::rms_norm::deferred::{DeferredNorm, NormState};
use kernels::stream_linear::{Output, StreamLinear};

use super::{Forward, Half, PassSize, from_row};
use crate::executor::cuda::inputs::Inputs;
use crate::executor::cuda::weights::LayerWeights;

/// What all layers of a pass are launched with.
pub(super) struct LayerPass<'a> {
    pub stream: &'a Stream,
    pub inputs: &'a Inputs,
    pub half: Half<'a>,
    pub size: PassSize,
    /// Whether norms are done on the projections' way.
    pub defers_norms: bool,
}

/// The two states between which a chain of norms on the way goes back and forth.
pub(super) struct Norms {
    attention: NormState,
    mlp: NormState,
}

impl Norms {
    pub fn new(stream: &Stream) -> Result<Self, CudaError> {
        Ok(Self {
            attention: NormState::new(stream)?,
            mlp: NormState::new(stream)?,
        })
    }

    /// Device memory, in bytes.
    pub const fn n_bytes() -> usize {
        2 * NormState::n_bytes()
    }
}

impl Forward {
    /// Whether all projections can do the norms of `n` rows on their way.
    pub(super) fn defers_norms(&self, n: usize) -> Result<bool, CudaError> {
        for linear in self.weights.layers.iter().flat_map(LayerWeights::linears) {
            if !linear.defers_norm(n)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn layer(&self, pass: &LayerPass<'_>, i: usize) -> Result<(), CudaError> {
        self.attention_block(pass, i)?;
        self.mlp_block(pass, i)
    }

    fn attention_block(&self, pass: &LayerPass<'_>, i: usize) -> Result<(), CudaError> {
        let (layer, ws) = (&self.weights.layers[i], pass.half.workspace);
        let norm = self.norm_before_attention(pass, i)?;
        let bias = layer.qkv_bias.as_ref().map(ElementBuffer::all);
        let (x, out) = (pass.x_of(&layer.qkv), Output::Store(ws.qkv.all()));
        pass.project(&layer.qkv, x, bias, out, norm)?;
        self.prepare_heads(pass, i)?;
        let attended = ws.attended.read_by(&layer.o, pass.size.n_tokens);
        self.attention(pass, i, attended)?;
        let bias = layer.o_bias.as_ref().map(ElementBuffer::all);
        let out = Output::AddResidual(ws.h.all());
        let state = &ws.norms.mlp;
        let norm = pass.norm_behind(state, &layer.mlp_norm, &layer.gate_up);
        pass.project(&layer.o, attended, bias, out, norm)
    }

    fn mlp_block(&self, pass: &LayerPass<'_>, i: usize) -> Result<(), CudaError> {
        let (layer, ws) = (&self.weights.layers[i], pass.half.workspace);
        let norm = self.norm_before_mlp(pass, i)?;
        let gated = ws.gated.read_by(&layer.down, pass.size.n_tokens);
        let (x, out) = (pass.x_of(&layer.gate_up), Output::SiluMul(gated));
        pass.project(&layer.gate_up, x, None, out, norm)?;
        let norm = match self.weights.layers.get(i + 1) {
            Some(next) => pass.norm_behind(&ws.norms.attention, &next.attn_norm, &next.qkv),
            None => DeferredNorm::None,
        };
        pass.project(
            &layer.down,
            gated,
            None,
            Output::AddResidual(ws.h.all()),
            norm,
        )
    }

    /// Done here, or what q, k and v do of it.
    fn norm_before_attention<'a>(
        &self,
        pass: &LayerPass<'a>,
        i: usize,
    ) -> Result<DeferredNorm<'a>, CudaError> {
        let (ws, layer) = (pass.half.workspace, &self.weights.layers[i]);
        let (weight, x, n) = (&layer.attn_norm, pass.x_of(&layer.qkv), pass.size.n_tokens);
        let (hidden, eps) = (self.config.hidden, self.config.rms_norm_eps);
        match (pass.defers_norms, i) {
            (false, _) => self.norm(pass.stream, ws, weight, None, x, n)?,
            (true, 0) => {
                let (h, next) = (ws.h.all(), &ws.norms.mlp);
                let rms_norm = &self.ops.rms_norm;
                rms_norm.launch_first(pass.stream, h, weight.all(), x, n, hidden, eps, next)?;
            }
            (true, _) => {
                return Ok(DeferredNorm::Reads {
                    state: &ws.norms.attention,
                    next: &ws.norms.mlp,
                    eps,
                });
            }
        }
        Ok(DeferredNorm::None)
    }

    /// Done here, or what gate and up do of it.
    fn norm_before_mlp<'a>(
        &self,
        pass: &LayerPass<'a>,
        i: usize,
    ) -> Result<DeferredNorm<'a>, CudaError> {
        let (ws, layer) = (pass.half.workspace, &self.weights.layers[i]);
        if pass.defers_norms {
            return Ok(DeferredNorm::Reads {
                state: &ws.norms.mlp,
                next: &ws.norms.attention,
                eps: self.config.rms_norm_eps,
            });
        }
        let (x, n) = (pass.x_of(&layer.gate_up), pass.size.n_tokens);
        self.norm(pass.stream, ws, &layer.mlp_norm, None, x, n)?;
        Ok(DeferredNorm::None)
    }

    /// Head norms and rotation of q and k, and the way of k and v into the cache.
    fn prepare_heads(&self, pass: &LayerPass<'_>, i: usize) -> Result<(), CudaError> {
        let (layer, first_row) = (&self.weights.layers[i], pass.half.first_row);
        self.ops.qkv_prepare.launch(
            pass.stream,
            &QkvPrepareArgs {
                qkv: pass.half.workspace.qkv.all(),
                row_stride: self.qkv_stride(),
                q_norm: layer.q_norm.as_ref().map(ElementBuffer::all),
                k_norm: layer.k_norm.as_ref().map(ElementBuffer::all),
                cos_sin: self.cos_sin.all(),
                n_positions: self.cos_sin.len() / self.heads.head_dim,
                positions: from_row(pass.inputs.positions()?, first_row)?,
                slots: from_row(pass.inputs.slots()?, first_row)?,
                kv: self.kv.layer(i)?,
                saturated: Some(&self.kv_saturated),
                eps: self.config.rms_norm_eps,
                n_rows: pass.size.n_tokens,
            },
        )
    }

    fn attention(
        &self,
        pass: &LayerPass<'_>,
        i: usize,
        out: Activation<'_>,
    ) -> Result<(), CudaError> {
        let LayerPass {
            stream,
            inputs,
            half,
            size,
            ..
        } = *pass;
        if self.ops.packed_attention.serves(size) {
            return self.ops.packed_attention.launch(
                stream,
                &PrefillAttentionArgs {
                    q: half.workspace.qkv.all(),
                    q_stride: self.qkv_stride(),
                    kv: self.kv.layer(i)?,
                    page_table: inputs.page_table()?,
                    max_pages: inputs.max_pages(),
                    q_start: inputs.sequence_start()?,
                    context_len: inputs.context_len()?,
                    out,
                    n_tokens: size.n_tokens,
                    n_seqs: size.n_sequences,
                },
            );
        }
        let n_splits = self.n_splits(size.n_tokens);
        self.decode_attention(stream, inputs, half, i, out, size.n_tokens, n_splits)
    }

    pub(super) fn decode_attention(
        &self,
        stream: &Stream,
        inputs: &Inputs,
        half: Half<'_>,
        i: usize,
        out: Activation<'_>,
        n_rows: usize,
        n_splits: usize,
    ) -> Result<(), CudaError> {
        let first_page = half.first_row * inputs.max_pages();
        self.ops.decode_attention.launch(
            stream,
            &DecodeAttentionArgs {
                q: half.workspace.qkv.all(),
                q_stride: self.qkv_stride(),
                kv: self.kv.layer(i)?,
                page_table: from_row(inputs.page_table()?, first_page)?,
                max_pages: inputs.max_pages(),
                context_len: from_row(inputs.context_len()?, half.first_row)?,
                out,
                n_rows,
                n_splits,
                fresh: 1,
            },
        )
    }

    /// Values of a row of q, k and v.
    fn qkv_stride(&self) -> usize {
        (self.heads.n_q + 2 * self.heads.n_kv) * self.heads.head_dim
    }
}

impl<'a> LayerPass<'a> {
    /// The norms' output, as `linear` reads it.
    fn x_of(&self, linear: &StreamLinear) -> Activation<'a> {
        self.half.workspace.x.read_by(linear, self.size.n_tokens)
    }

    /// What the projection before the norm with `weight` does of it; `reader` multiplies behind.
    fn norm_behind(
        &self,
        state: &'a NormState,
        weight: &'a ElementBuffer,
        reader: &StreamLinear,
    ) -> DeferredNorm<'a> {
        if !self.defers_norms {
            return DeferredNorm::None;
        }
        DeferredNorm::Writes {
            state,
            weight: weight.all(),
            x: self.x_of(reader),
        }
    }

    fn project(
        &self,
        linear: &StreamLinear,
        x: Activation<'_>,
        bias: Option<ElementView<'_>>,
        output: Output<'_>,
        norm: DeferredNorm<'_>,
    ) -> Result<(), CudaError> {
        let n = self.size.n_tokens;
        linear.launch_with_norm(self.stream, n, x, bias, output, norm, true)
    }
}
