//! Kernels whose blocks work together give the same bits however they meet: every launch many times.
//! With kernels that sleep at random (`ENGINE_KERNELS_JITTER=1 cargo xtask build --arch …`) every launch
//! meets otherwise. Projections: `cuda_serving_schedules`.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

mod common;

use gpu::Buffer;
use kernels::attention::cuda::{
    ContextParts, DecodeAttention, DecodeAttentionArgs, PrefillAttention, PrefillAttentionArgs,
};
use kernels::cuda::{Activation, Element, ElementBuffer, HeadShape, PAGE_TOKENS};
use kernels::sampling::cuda::{
    ArgmaxAdvance, ArgmaxAdvanceArgs, PenalizedToken, Sample, SampleArgs, SamplingRow,
};

const REPEATS: usize = 200;

/// Runs `launch` many times; the first result must come every time.
fn repeated<T: PartialEq>(what: &str, mut launch: impl FnMut() -> T) {
    let first = launch();
    for i in 1..REPEATS {
        assert!(
            launch() == first,
            "{what}: launch {i} differs from the first"
        );
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn attention_gives_the_same_bits() {
    let (device, stream) = common::open();
    let mut rng = common::rng(51);
    let shape = HeadShape {
        n_q: 16,
        n_kv: 2,
        head_dim: 128,
    };
    let width = shape.n_q * shape.head_dim;
    let contexts: [i32; 6] = [700, 1, 2049, 64, 333, 0];
    let (n_rows, max_pages) = (contexts.len(), 2049 / PAGE_TOKENS + 2);
    let tables = common::page_tables(&mut rng, n_rows, max_pages);
    let page_table = Buffer::from_slice(&stream, &tables).unwrap();
    let context_len = Buffer::from_slice(&stream, &contexts).unwrap();
    // For prefill every sequence has a chunk of up to 50 tokens.
    let mut q_start = vec![0];
    for context in contexts {
        q_start.push(q_start[q_start.len() - 1] + context.min(50));
    }
    let n_tokens = q_start[n_rows] as usize;
    let q_start = Buffer::from_slice(&stream, &q_start).unwrap();
    let parts = ContextParts::new(&stream, shape.head_dim).unwrap();
    for (element, format) in Element::ALL
        .into_iter()
        .flat_map(|element| common::kv_formats(element).map(|format| (element, format)))
    {
        let pool = common::KvPool::random(&stream, &mut rng, shape, format, n_rows * max_pages);
        let q = common::elements(&mut rng, element, n_tokens * width, 1.0);
        let q = ElementBuffer::from_f32(&stream, element, &q).unwrap();
        let out = ElementBuffer::zeroed(&stream, element, n_tokens * width).unwrap();
        for n_splits in [1, 3, 8] {
            let attention =
                DecodeAttention::new(&device, element, shape, format, n_splits, false).unwrap();
            repeated(&format!("decode {format:?} splits {n_splits}"), || {
                let args = DecodeAttentionArgs {
                    q: q.all(),
                    q_stride: width,
                    kv: pool.view(),
                    page_table: page_table.all(),
                    max_pages,
                    context_len: context_len.all(),
                    out: Activation::plain(out.all(), width),
                    n_rows,
                    n_splits,
                    parts: Some(&parts),
                    fresh: 1,
                };
                attention.launch(&stream, &args).unwrap();
                bits(&out.download(&stream).unwrap())
            });
        }
        let attention = PrefillAttention::new(&device, element, shape, format).unwrap();
        repeated(&format!("prefill {format:?}"), || {
            let args = PrefillAttentionArgs {
                q: q.all(),
                q_stride: width,
                kv: pool.view(),
                page_table: page_table.all(),
                max_pages,
                q_start: q_start.all(),
                context_len: context_len.all(),
                out: Activation::plain(out.all(), width),
                n_tokens,
                n_seqs: n_rows,
            };
            attention.launch(&stream, &args).unwrap();
            bits(&out.download(&stream).unwrap())
        });
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn tokens_are_chosen_the_same() {
    let (device, stream) = common::open();
    let vocab = 32_000;
    let argmax = ArgmaxAdvance::new(&device).unwrap();
    let sample = Sample::new(&device).unwrap();
    // Clusters of blocks for few rows, one block a row for many.
    for n_rows in [3, 64] {
        let logits = common::normals(&mut common::rng(52), n_rows * vocab, 3.0);
        let on_device = Buffer::from_slice(&stream, &logits).unwrap();
        let next_ids = Buffer::<i32>::zeroed(&stream, n_rows).unwrap();
        let history = Buffer::<i32>::zeroed(&stream, n_rows).unwrap();
        repeated(&format!("argmax of {n_rows} rows"), || {
            let args = ArgmaxAdvanceArgs {
                logits: on_device.all(),
                vocab,
                stride: vocab,
                next_ids: next_ids.all(),
                history: history.all(),
                step: None,
                n_rows,
                advance: None,
            };
            argmax.launch(&stream, &args).unwrap();
            history.download(&stream).unwrap()
        });
        let rows: Vec<SamplingRow> = (0..n_rows)
            .map(|row| SamplingRow {
                seed: row as u64,
                temperature: 0.9,
                top_k: if row % 2 == 0 { 0 } else { 40 },
                top_p: 0.95,
                ..SamplingRow::GREEDY
            })
            .collect();
        let rows_on_device = Buffer::from_slice(&stream, &rows).unwrap();
        let penalized = Buffer::<PenalizedToken>::zeroed(&stream, n_rows).unwrap();
        repeated(&format!("a draw of {n_rows} rows"), || {
            // Each launch moves the rows on to their next draw.
            rows_on_device.upload(&stream, &rows).unwrap();
            let args = SampleArgs {
                logits: on_device.all(),
                vocab,
                stride: vocab,
                rows: rows_on_device.all(),
                penalized: penalized.all(),
                max_penalized: 1,
                next_ids: next_ids.all(),
                history: history.all(),
                step: None,
                n_rows,
                advance: None,
                logprobs: None,
            };
            sample.launch(&stream, &args).unwrap();
            history.download(&stream).unwrap()
        });
    }
}
