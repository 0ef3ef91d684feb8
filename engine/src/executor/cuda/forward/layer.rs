//! The launches of one layer.
//!
//! For small batches RMSNorm is fused into the adjacent GEMMs (`kernels::rms_norm::deferred`): the
//! projection before a norm writes the values that the projection after it reads. Only the first
//! norm of the first layer and the head's norm, which selects rows, are separate launches.

use gpu::{CudaError, Stream};
use kernels::attention::cuda::{DecodeAttentionArgs, PrefillAttentionArgs};
use kernels::cuda::{Activation, ElementBuffer, ElementView};
use kernels::qkv_prepare::cuda::QkvPrepareArgs;
use kernels::rms_norm::deferred::{FusedNorm, NormState};
use kernels::stream_linear::{Output, StreamLinear};

use super::{BatchSlice, Forward, PassSize, from_row};
use crate::executor::cuda::inputs::Inputs;
use crate::executor::cuda::weights::LayerWeights;

/// Arguments common to all layers of a pass.
pub(super) struct LayerPass<'a> {
    pub stream: &'a Stream,
    pub inputs: &'a Inputs,
    pub slice: BatchSlice<'a>,
    pub size: PassSize,
    /// Whether norms are fused into the projections.
    pub fuses_norms: bool,
}

/// Ping-pong buffers of the fused-norm chain.
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
    /// Whether all projections can fuse the norms for `n` rows.
    pub(super) fn fuses_norms(&self, n: usize) -> Result<bool, CudaError> {
        if self.weights.layers.iter().any(LayerWeights::is_sparse) {
            return Ok(false);
        }
        for linear in self.weights.layers.iter().flat_map(LayerWeights::linears) {
            if !linear.fuses_norm(n)? {
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
        let (layer, ws) = (&self.weights.layers[i], pass.slice.workspace);
        let norm = self.norm_before_attention(pass, i)?;
        let bias = layer.qkv_bias.as_ref().map(ElementBuffer::all);
        let (x, out) = (pass.x_of(&layer.qkv), Output::Store(ws.qkv.all()));
        pass.project(&layer.qkv, x, bias, out, norm)?;
        self.prepare_heads(pass, i)?;
        let attn_out = ws.attn_out.view_for(&layer.o, pass.size.n_tokens);
        self.attention(pass, i, attn_out)?;
        let bias = layer.o_bias.as_ref().map(ElementBuffer::all);
        let out = Output::AddResidual(ws.residual.all());
        let state = &ws.norms.mlp;
        let norm = pass.epilogue_norm(state, &layer.mlp_norm, &layer.gate_up);
        pass.project(&layer.o, attn_out, bias, out, norm)
    }

    fn mlp_block(&self, pass: &LayerPass<'_>, i: usize) -> Result<(), CudaError> {
        let (layer, ws) = (&self.weights.layers[i], pass.slice.workspace);
        if self.sparse_block(pass, layer)? {
            return Ok(());
        }
        let norm = self.norm_before_mlp(pass, i)?;
        let ffn_act = ws.ffn_act.view_for(&layer.down, pass.size.n_tokens);
        let (x, out) = (pass.x_of(&layer.gate_up), Output::SiluMul(ffn_act));
        pass.project(&layer.gate_up, x, None, out, norm)?;
        let norm = match self.weights.layers.get(i + 1) {
            Some(next) => pass.epilogue_norm(&ws.norms.attention, &next.attn_norm, &next.qkv),
            None => FusedNorm::None,
        };
        pass.project(
            &layer.down,
            ffn_act,
            None,
            Output::AddResidual(ws.residual.all()),
            norm,
        )
    }

    /// Launches the norm, or returns the prologue that q, k and v compute of it.
    fn norm_before_attention<'a>(
        &self,
        pass: &LayerPass<'a>,
        i: usize,
    ) -> Result<FusedNorm<'a>, CudaError> {
        let (ws, layer) = (pass.slice.workspace, &self.weights.layers[i]);
        let (weight, x, n) = (&layer.attn_norm, pass.x_of(&layer.qkv), pass.size.n_tokens);
        let (hidden, eps) = (self.config.hidden, self.config.rms_norm_eps);
        match (pass.fuses_norms, i) {
            (false, _) => self.norm(pass.stream, ws, weight, None, x, n)?,
            (true, 0) => {
                let (h, next) = (ws.residual.all(), &ws.norms.mlp);
                let rms_norm = &self.ops.rms_norm;
                rms_norm.launch_first(pass.stream, h, weight.all(), x, n, hidden, eps, next)?;
            }
            (true, _) => {
                return Ok(FusedNorm::Prologue {
                    state: &ws.norms.attention,
                    next: &ws.norms.mlp,
                    eps,
                });
            }
        }
        Ok(FusedNorm::None)
    }

    /// Launches the norm, or returns the prologue that gate and up compute of it.
    fn norm_before_mlp<'a>(
        &self,
        pass: &LayerPass<'a>,
        i: usize,
    ) -> Result<FusedNorm<'a>, CudaError> {
        let (ws, layer) = (pass.slice.workspace, &self.weights.layers[i]);
        if pass.fuses_norms {
            return Ok(FusedNorm::Prologue {
                state: &ws.norms.mlp,
                next: &ws.norms.attention,
                eps: self.config.rms_norm_eps,
            });
        }
        let (x, n) = (pass.x_of(&layer.gate_up), pass.size.n_tokens);
        self.norm(pass.stream, ws, &layer.mlp_norm, None, x, n)?;
        Ok(FusedNorm::None)
    }

    /// Normalises and rotates q and k, and stores k and v in the cache.
    fn prepare_heads(&self, pass: &LayerPass<'_>, i: usize) -> Result<(), CudaError> {
        let (layer, first_row) = (&self.weights.layers[i], pass.slice.first_row);
        self.ops.qkv_prepare.launch(
            pass.stream,
            &QkvPrepareArgs {
                qkv: pass.slice.workspace.qkv.all(),
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
            slice,
            size,
            ..
        } = *pass;
        if self.ops.packed_attention.serves(size) {
            return self.ops.packed_attention.launch(
                stream,
                &PrefillAttentionArgs {
                    q: slice.workspace.qkv.all(),
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
        self.decode_attention(stream, inputs, slice, i, out, size.n_tokens, n_splits)
    }

    pub(super) fn decode_attention(
        &self,
        stream: &Stream,
        inputs: &Inputs,
        slice: BatchSlice<'_>,
        i: usize,
        out: Activation<'_>,
        n_rows: usize,
        n_splits: usize,
    ) -> Result<(), CudaError> {
        let first_page = slice.first_row * inputs.max_pages();
        self.ops.decode_attention.launch(
            stream,
            &DecodeAttentionArgs {
                q: slice.workspace.qkv.all(),
                q_stride: self.qkv_stride(),
                kv: self.kv.layer(i)?,
                page_table: from_row(inputs.page_table()?, first_page)?,
                max_pages: inputs.max_pages(),
                context_len: from_row(inputs.context_len()?, slice.first_row)?,
                out,
                n_rows,
                n_splits,
                parts: Some(&slice.workspace.context_parts),
                fresh: self.n_fresh,
            },
        )
    }

    /// Length of a row of q, k and v.
    fn qkv_stride(&self) -> usize {
        (self.heads.n_q + 2 * self.heads.n_kv) * self.heads.head_dim
    }
}

impl<'a> LayerPass<'a> {
    /// The output of the norm, as `linear` reads it.
    fn x_of(&self, linear: &StreamLinear) -> Activation<'a> {
        self.slice
            .workspace
            .normed
            .view_for(linear, self.size.n_tokens)
    }

    /// The epilogue half of the fused norm with `weight`; `reader` applies 1/rms.
    fn epilogue_norm(
        &self,
        state: &'a NormState,
        weight: &'a ElementBuffer,
        reader: &StreamLinear,
    ) -> FusedNorm<'a> {
        if !self.fuses_norms {
            return FusedNorm::None;
        }
        FusedNorm::Epilogue {
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
        norm: FusedNorm<'_>,
    ) -> Result<(), CudaError> {
        let n = self.size.n_tokens;
        linear.launch_with_norm(self.stream, n, x, bias, output, norm, true)
    }
}
