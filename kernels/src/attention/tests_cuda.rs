//! Decode attention against f64.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use gpu::Buffer;
use kernels::attention::cuda::{ContextParts, DecodeAttention, DecodeAttentionArgs};
use kernels::cuda::{Activation, Element, ElementBuffer, HeadShape, KvFormat, PAGE_TOKENS};
use kernels::qkv_prepare::cuda::{QkvPrepare, QkvPrepareArgs};

/// Of one head's result in fp16: probabilities, parts and the result are 16-bit.
const TOLERANCE: f64 = 2e-3;
const POISON: f32 = -77.0;

/// Contexts around pages, warps' and splits' borders; 0 is padding.
const CONTEXTS: [i32; 22] = [
    1, 2, 15, 16, 17, 31, 0, 32, 33, 63, 64, 65, 127, 129, 255, 257, 500, 1000, 0, 2047, 2048, 2049,
];

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn ragged_contexts_agree_with_f64_for_every_split_and_format() {
    let shapes = [
        (1, 1, 64),
        (9, 3, 64),
        (16, 2, 64),
        (8, 1, 128),
        (4, 2, 128),
        (7, 1, 128),
        (10, 2, 128),
    ];
    check_contexts(&CONTEXTS, &shapes);
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn long_contexts_agree_with_f64_for_every_split_and_format() {
    check_contexts(&[8192, 4097, 8191, 8177], &[(8, 1, 128), (9, 3, 64)]);
}

/// Contexts that several clusters share, around the border from which a part is worth while, beside short ones.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn contexts_in_parts_agree_with_f64_for_every_split_and_format() {
    check_contexts(&[30_001], &[(8, 1, 128)]);
    let contexts = [5, 1023, 1024, 0, 2047, 2048, 2049, 3072, 1, 6_000];
    check_contexts(&contexts, &[(8, 1, 128), (9, 3, 64)]);
}

/// More blocks than an H100 holds of the kernel for fewer.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn many_rows_agree_with_f64_for_every_split_and_format() {
    let contexts: Vec<i32> = CONTEXTS.iter().cycle().take(64).map(|n| n / 8).collect();
    check_contexts(&contexts, &[(16, 8, 128)]);
}

/// Every row has a context of its own; `shapes` are query heads, KV heads, head dimension.
fn check_contexts(contexts: &[i32], shapes: &[(usize, usize, usize)]) {
    let (device, stream) = common::open();
    let mut rng = common::rng(4);
    let longest = contexts.iter().copied().max().unwrap() as usize;
    // A page more than any row needs.
    let (n_rows, max_pages) = (contexts.len(), longest.div_ceil(PAGE_TOKENS) + 1);
    let context_len = Buffer::from_slice(&stream, contexts).unwrap();
    let parts = ContextParts::new(&stream, 128).unwrap();
    let tables = common::page_tables(&mut rng, n_rows, max_pages);
    let page_table = Buffer::from_slice(&stream, &tables).unwrap();
    for (element, (n_q, n_kv, head_dim)) in Element::ALL
        .into_iter()
        .flat_map(|element| shapes.iter().map(move |shape| (element, *shape)))
    {
        let shape = HeadShape {
            n_q,
            n_kv,
            head_dim,
        };
        let width = n_q * head_dim;
        let (q_stride, out_stride) = (width + 2 * n_kv * head_dim, width + 3);
        let q = common::elements(&mut rng, element, n_rows * q_stride, 1.0);
        let q_on_device = ElementBuffer::from_f32(&stream, element, &q).unwrap();
        for format in common::kv_formats(element) {
            let n_pages = n_rows * max_pages;
            let pool = common::KvPool::random(&stream, &mut rng, shape, format, n_pages);
            let values = pool.download(&stream);
            let expected: Vec<Vec<f64>> = (0..n_rows * n_q)
                .map(|i| {
                    let (row, head) = (i / n_q, i % n_q);
                    let q = &q[row * q_stride + head * head_dim..][..head_dim];
                    let pages = &tables[row * max_pages..][..max_pages];
                    values.attention(q, head, contexts[row] as usize, pages)
                })
                .collect();
            for (n_splits, reduce_in_fp32) in
                (1..=8).flat_map(|splits| [(splits, false), (splits, true)])
            {
                let attention =
                    DecodeAttention::new(&device, element, shape, format, 8, reduce_in_fp32)
                        .unwrap();
                let attended = || {
                    let poison = vec![POISON; n_rows * out_stride];
                    let out = ElementBuffer::from_f32(&stream, element, &poison).unwrap();
                    attention
                        .launch(
                            &stream,
                            &DecodeAttentionArgs {
                                q: q_on_device.all(),
                                q_stride,
                                kv: pool.view(),
                                page_table: page_table.all(),
                                max_pages,
                                context_len: context_len.all(),
                                out: Activation::plain(out.all(), out_stride),
                                n_rows,
                                n_splits,
                                parts: Some(&parts),
                                fresh: 1,
                            },
                        )
                        .unwrap();
                    out.download(&stream).unwrap()
                };
                let out = attended();
                // Also that the first launch leaves the parts' tickets as it found them.
                assert!(out == attended(), "other bits in the second launch");
                for row in 0..n_rows {
                    let found = &out[row * out_stride..][..out_stride];
                    let n_written = if contexts[row] == 0 { 0 } else { width };
                    assert!(found[n_written..].iter().all(|x| *x == POISON), "row {row}");
                    for head in 0..n_written / head_dim {
                        let error = common::relative_error(
                            &found[head * head_dim..][..head_dim],
                            &expected[row * n_q + head],
                        );
                        assert!(
                            error < common::tolerance(element, TOLERANCE),
                            "{element:?} {shape:?} {format:?} splits {n_splits} f32 {reduce_in_fp32} row {row} \
                             context {} head {head}: {error}",
                            contexts[row]
                        );
                    }
                }
            }
        }
    }
}

/// Pages of a request that left broken numbers in them, as their next owner gets them.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn broken_values_after_a_context_change_no_bit() {
    let (device, stream) = common::open();
    let contexts = [1, 7, 8, 9, 15, 16, 17, 33, 47, 70, 129, 250];
    let (n_rows, max_pages) = (contexts.len(), 17);
    let context_len = Buffer::from_slice(&stream, &contexts).unwrap();
    for (element, (n_q, n_kv, head_dim)) in Element::ALL
        .into_iter()
        .flat_map(|element| [(8, 2, 64), (16, 2, 128)].map(|shape| (element, shape)))
    {
        let shape = HeadShape {
            n_q,
            n_kv,
            head_dim,
        };
        let width = n_q * head_dim;
        for format in common::kv_formats(element) {
            let mut rng = common::rng(14);
            let tables = common::page_tables(&mut rng, n_rows, max_pages);
            let page_table = Buffer::from_slice(&stream, &tables).unwrap();
            let q = common::elements(&mut rng, element, n_rows * width, 1.0);
            let q = ElementBuffer::from_f32(&stream, element, &q).unwrap();
            let pool = common::KvPool::random(&stream, &mut rng, shape, format, n_rows * max_pages);
            for n_splits in [1, 4] {
                let attention =
                    DecodeAttention::new(&device, element, shape, format, n_splits, true).unwrap();
                let attended = |bits: u16| {
                    for (row, context) in contexts.iter().enumerate() {
                        let pages = &tables[row * max_pages..][..max_pages];
                        pool.fill_after(&stream, pages, *context as usize, bits);
                    }
                    let out = ElementBuffer::zeroed(&stream, element, n_rows * width).unwrap();
                    attention
                        .launch(
                            &stream,
                            &DecodeAttentionArgs {
                                q: q.all(),
                                q_stride: width,
                                kv: pool.view(),
                                page_table: page_table.all(),
                                max_pages,
                                context_len: context_len.all(),
                                out: Activation::plain(out.all(), width),
                                n_rows,
                                n_splits,
                                parts: None,
                                fresh: 1,
                            },
                        )
                        .unwrap();
                    out.download(&stream).unwrap()
                };
                let clean = attended(0);
                assert!(clean.iter().all(|x| x.is_finite()));
                for bits in common::broken_bits(format) {
                    assert!(
                        attended(*bits) == clean,
                        "{element:?} {shape:?} {format:?} splits {n_splits} bits {bits:x}"
                    );
                }
            }
        }
    }
}

/// A prompt as rows of one sequence, its keys and values written by the launch just before.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn rows_of_one_sequence_see_each_other_and_nothing_later() {
    let (device, stream) = common::open();
    let mut rng = common::rng(5);
    let shape = HeadShape {
        n_q: 8,
        n_kv: 2,
        head_dim: 128,
    };
    let stride = 12 * 128;
    for (element, format, start, n_rows) in [
        (Element::F16, KvFormat::F16, 0, 50),
        (Element::F16, KvFormat::F16, 100, 37),
        (Element::F16, KvFormat::Fp8E4m3, 77, 64),
        (Element::Bf16, KvFormat::Bf16, 100, 37),
        (Element::Bf16, KvFormat::Fp8E4m3, 77, 64),
    ] {
        let max_pages = (start + n_rows + 15) / PAGE_TOKENS + 1;
        let pages = common::page_tables(&mut rng, 1, max_pages);
        let tables: Vec<i32> = (0..n_rows).flat_map(|_| pages.clone()).collect();
        let positions: Vec<i32> = (start..start + n_rows).map(|p| p as i32).collect();
        let contexts: Vec<i32> = positions.iter().map(|p| p + 1).collect();
        let slots: Vec<i32> = positions
            .iter()
            .map(|p| pages[*p as usize / 16] * 16 + p % 16)
            .collect();
        let pool = common::KvPool::random(&stream, &mut rng, shape, format, max_pages);
        let qkv = common::elements(&mut rng, element, n_rows * stride, 1.0);
        let qkv = ElementBuffer::from_f32(&stream, element, &qkv).unwrap();
        let n_positions = start + n_rows;
        let cos_sin: Vec<f32> = (0..n_positions * 128)
            .map(|i| {
                let angle = (i / 128) as f32 * 0.01 * (1 + i % 64) as f32;
                if i % 128 < 64 {
                    angle.cos()
                } else {
                    angle.sin()
                }
            })
            .collect();
        let cos_sin = Buffer::from_slice(&stream, &cos_sin).unwrap();
        let [positions, contexts_on_device, slots, page_table] =
            [&positions, &contexts, &slots, &tables]
                .map(|values| Buffer::from_slice(&stream, values).unwrap());
        let out = ElementBuffer::zeroed(&stream, element, n_rows * 1024).unwrap();
        let prepare = QkvPrepare::new(&device, element, shape, format).unwrap();
        let attention = DecodeAttention::new(&device, element, shape, format, 4, true).unwrap();
        prepare
            .launch(
                &stream,
                &QkvPrepareArgs {
                    qkv: qkv.all(),
                    row_stride: stride,
                    q_norm: None,
                    k_norm: None,
                    cos_sin: cos_sin.all(),
                    n_positions,
                    positions: positions.all(),
                    slots: slots.all(),
                    kv: pool.view(),
                    saturated: None,
                    eps: 1e-6,
                    n_rows,
                },
            )
            .unwrap();
        attention
            .launch(
                &stream,
                &DecodeAttentionArgs {
                    q: qkv.all(),
                    q_stride: stride,
                    kv: pool.view(),
                    page_table: page_table.all(),
                    max_pages,
                    context_len: contexts_on_device.all(),
                    out: Activation::plain(out.all(), 1024),
                    n_rows,
                    n_splits: 4,
                    parts: None,
                    fresh: n_rows,
                },
            )
            .unwrap();
        let (out, q) = (
            out.download(&stream).unwrap(),
            qkv.download(&stream).unwrap(),
        );
        let values = pool.download(&stream);
        for (row, head) in (0..n_rows).flat_map(|row| (0..8).map(move |head| (row, head))) {
            let q = &q[row * stride + head * 128..][..128];
            let expected = values.attention(q, head, contexts[row] as usize, &pages);
            let error = common::relative_error(&out[row * 1024 + head * 128..][..128], &expected);
            assert!(
                error < common::tolerance(element, TOLERANCE),
                "{element:?} {format:?} row {row} head {head}: {error}"
            );
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn wrong_shapes_are_errors() {
    let (device, stream) = common::open();
    let shape = HeadShape {
        n_q: 8,
        n_kv: 2,
        head_dim: 64,
    };
    let new = |shape, max_splits| {
        DecodeAttention::new(
            &device,
            Element::F16,
            shape,
            KvFormat::F16,
            max_splits,
            false,
        )
        .map_err(|error| error.to_string())
    };
    let text = new(HeadShape { n_q: 18, ..shape }, 1).unwrap_err();
    assert!(
        text.contains("query heads a KV head is 9, must be at most 8"),
        "{text}"
    );
    assert!(
        new(shape, 9)
            .unwrap_err()
            .contains("max_splits is 9, must be at most 8")
    );
    assert!(new(shape, 0).unwrap_err().contains("max_splits is 0"));
    assert!(
        new(
            HeadShape {
                head_dim: 96,
                ..shape
            },
            1
        )
        .unwrap_err()
        .contains("head_dim")
    );

    let attention = new(shape, 2).unwrap();
    let pool = common::KvPool::random(&stream, &mut common::rng(1), shape, KvFormat::F16, 4);
    let q = ElementBuffer::zeroed(&stream, Element::F16, 3 * 512).unwrap();
    let ints = Buffer::<i32>::zeroed(&stream, 6).unwrap();
    let good = DecodeAttentionArgs {
        q: q.all(),
        q_stride: 512,
        kv: pool.view(),
        page_table: ints.all(),
        max_pages: 2,
        context_len: ints.all(),
        out: Activation::plain(q.all(), 512),
        n_rows: 3,
        n_splits: 2,
        parts: None,
        fresh: 1,
    };
    let launch = |args: &DecodeAttentionArgs<'_>| {
        attention
            .launch(&stream, args)
            .map_err(|error| error.to_string())
    };
    launch(&good).unwrap();
    let text = launch(&DecodeAttentionArgs {
        n_splits: 3,
        ..good
    })
    .unwrap_err();
    assert_eq!(text, "attention_decode: n_splits is 3, must be at most 2");
    assert!(
        launch(&DecodeAttentionArgs {
            max_pages: 3,
            ..good
        })
        .is_err()
    );
    assert!(
        launch(&DecodeAttentionArgs {
            q_stride: 516,
            ..good
        })
        .is_err()
    );
    assert!(launch(&DecodeAttentionArgs { n_rows: 4, ..good }).is_err());
    let bf16 = ElementBuffer::zeroed(&stream, Element::Bf16, 3 * 512).unwrap();
    let text = launch(&DecodeAttentionArgs {
        q: bf16.all(),
        ..good
    })
    .unwrap_err();
    assert_eq!(
        text,
        "attention_decode: q is bf16, the kernel computes in f16"
    );
    let text = launch(&DecodeAttentionArgs {
        out: Activation::plain(bf16.all(), 512),
        ..good
    })
    .unwrap_err();
    assert_eq!(
        text,
        "attention_decode: out is bf16, the kernel computes in f16"
    );
    let refused =
        DecodeAttention::new(&device, Element::F16, shape, KvFormat::Bf16, 1, false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "attention_decode: KV pages of Bf16 beside f16 activations"
    );
    let q = q.view(1..2 * 512 + 1).unwrap();
    let text = launch(&DecodeAttentionArgs {
        q,
        n_rows: 2,
        ..good
    })
    .unwrap_err();
    assert!(
        text.contains("q is 2, must be 0 bytes off an address divisible by 16"),
        "{text}"
    );
}
