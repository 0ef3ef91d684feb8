//! Attention over a paged cache, decode rows and prompts.

use gpu::{Buffer, CudaError, Stream};
use half::f16;
use kernels::attention::cuda::{
    ContextParts, DecodeAttention, DecodeAttentionArgs, PlainAttention, PrefillAttention,
    PrefillAttentionArgs,
};
use kernels::cuda::{Activation, Element, ElementBuffer, KvFormat, PAGE_TOKENS, PagedKv};
use kernels::stream_linear::fill_normal;

use crate::measure::{Bench, Work};
use crate::model::HEADS;

/// Columns of q, k and v of a token, and of the heads' outputs.
const QKV: usize = (HEADS.n_q + 2 * HEADS.n_kv) * HEADS.head_dim;
const OUT: usize = HEADS.n_q * HEADS.head_dim;
const MAX_SPLITS: usize = 8;

/// A layer's keys and values with a page table of their own for each of `n_rows` sequences.
pub struct Cache {
    format: KvFormat,
    n_pages: usize,
    k: Buffer<u8>,
    v: Buffer<u8>,
    pub page_table: Buffer<i32>,
    pub max_pages: usize,
}

impl Cache {
    pub fn new(
        stream: &Stream,
        format: KvFormat,
        n_rows: usize,
        context: usize,
    ) -> Result<Self, CudaError> {
        let max_pages = context.div_ceil(PAGE_TOKENS);
        let n_pages = n_rows * max_pages;
        let n_bytes = n_pages * HEADS.page_bytes(format);
        let filled = |seed| -> Result<Buffer<u8>, CudaError> {
            let buffer = Buffer::<u8>::new(stream.device(), n_bytes)?;
            match format {
                KvFormat::F16 | KvFormat::Bf16 => {
                    fill_normal(stream, buffer.all().cast::<f16>()?.into(), 0.0, 1.0, seed)?;
                }
                // 1.0, as an e4m3 has it.
                KvFormat::Fp8E4m3 => buffer.all().fill_bytes(stream, 0x38)?,
            }
            Ok(buffer)
        };
        // Neighbouring pages of a sequence lie apart, as in a pool that is in use.
        let pages: Vec<i32> = (0..n_rows * max_pages)
            .map(|i| (i % max_pages * n_rows + i / max_pages) as i32)
            .collect();
        Ok(Self {
            format,
            n_pages,
            k: filled(1)?,
            v: filled(2)?,
            page_table: Buffer::from_slice(stream, &pages)?,
            max_pages,
        })
    }

    pub fn view(&self) -> PagedKv<'_> {
        PagedKv {
            k: self.k.all(),
            v: self.v.all(),
            k_scale: 1.0,
            v_scale: 1.0,
            n_pages: self.n_pages,
        }
    }

    /// Bytes of keys and values of `n_tokens` tokens.
    pub fn token_bytes(&self, n_tokens: usize) -> usize {
        2 * n_tokens * HEADS.n_kv * HEADS.head_dim * self.format.bytes_per_value()
    }
}

pub const fn name(format: KvFormat) -> &'static str {
    match format {
        KvFormat::F16 => "f16",
        KvFormat::Bf16 => "bf16",
        KvFormat::Fp8E4m3 => "fp8",
    }
}

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    let contexts = bench.shape.n.map_or(vec![192, 2048], |n| vec![n]);
    let prompts = bench.shape.n.map_or(vec![128, 1024], |n| vec![n]);
    for format in [KvFormat::F16, KvFormat::Fp8E4m3] {
        for &context in &contexts {
            for n_rows in bench.shape.rows(&[1, 8, 20, 64]) {
                decode(bench, format, n_rows, context)?;
            }
        }
        for &n_tokens in &prompts {
            prefill(bench, format, n_tokens)?;
        }
    }
    Ok(())
}

/// Splits as the executor has them.
fn n_splits(n_rows: usize) -> usize {
    match n_rows {
        0..=4 => 8,
        5..=8 => 4,
        9..=32 => 2,
        _ => 1,
    }
}

fn decode(
    bench: &mut Bench,
    format: KvFormat,
    n_rows: usize,
    context: usize,
) -> Result<(), CudaError> {
    let stream = &bench.stream;
    let cache = Cache::new(stream, format, n_rows, context)?;
    let attention =
        DecodeAttention::new(&bench.device, Element::F16, HEADS, format, MAX_SPLITS, true)?;
    let q = ElementBuffer::new(&bench.device, Element::F16, n_rows * QKV)?;
    fill_normal(stream, q.all(), 0.0, 1.0, 3)?;
    let out = ElementBuffer::zeroed(stream, Element::F16, n_rows * OUT)?;
    let context_len = Buffer::from_slice(stream, &vec![context as i32; n_rows])?;
    let parts = ContextParts::new(stream, HEADS.head_dim)?;
    let args = DecodeAttentionArgs {
        q: q.all(),
        q_stride: QKV,
        kv: cache.view(),
        page_table: cache.page_table.all(),
        max_pages: cache.max_pages,
        context_len: context_len.all(),
        out: Activation::plain(out.all(), OUT),
        n_rows,
        n_splits: n_splits(n_rows),
        parts: Some(&parts),
        fresh: 1,
    };
    let work = Work {
        bytes: (cache.token_bytes(n_rows * context) + 4 * n_rows * OUT) as f64,
        flops: (4 * n_rows * context * OUT) as f64,
    };
    let case = format!("{} {n_rows} rows of {context}", name(format));
    bench.case("attention_decode", &case, work, |stream| {
        attention.launch(stream, &args)
    })
}

fn prefill(bench: &mut Bench, format: KvFormat, n_tokens: usize) -> Result<(), CudaError> {
    let stream = &bench.stream;
    let cache = Cache::new(stream, format, 1, n_tokens)?;
    let attention = PrefillAttention::new(&bench.device, Element::F16, HEADS, format)?;
    let plain = PlainAttention::new(&bench.device, Element::F16, HEADS, format)?;
    let q = ElementBuffer::new(&bench.device, Element::F16, n_tokens * QKV)?;
    fill_normal(stream, q.all(), 0.0, 1.0, 3)?;
    let out = ElementBuffer::zeroed(stream, Element::F16, n_tokens * OUT)?;
    let context_len = Buffer::from_slice(stream, &[n_tokens as i32])?;
    let q_start = Buffer::from_slice(stream, &[0, n_tokens as i32])?;
    let args = PrefillAttentionArgs {
        q: q.all(),
        q_stride: QKV,
        kv: cache.view(),
        page_table: cache.page_table.all(),
        max_pages: cache.max_pages,
        q_start: q_start.all(),
        context_len: context_len.all(),
        out: Activation::plain(out.all(), OUT),
        n_tokens,
        n_seqs: 1,
    };
    let work = Work {
        bytes: (cache.token_bytes(n_tokens) + 4 * n_tokens * OUT) as f64,
        // A token sees those up to itself.
        flops: (4 * OUT * n_tokens * (n_tokens + 1) / 2) as f64,
    };
    let case = format!("{} {n_tokens} tokens", name(format));
    bench.case("attention_prefill", &case, work, |stream| {
        attention.launch(stream, &args)
    })?;
    if n_tokens > 128 {
        return Ok(());
    }
    bench.case("attention_plain", &case, work, |stream| {
        plain.launch(stream, &args)
    })
}
