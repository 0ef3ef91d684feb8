//! Attention of packed chunks, fast and plain, against f64.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use gpu::{Buffer, Device, Stream};
use kernels::attention::cuda::{PlainAttention, PrefillAttention, PrefillAttentionArgs};
use kernels::cuda::{Activation, Element, ElementBuffer, HeadShape, KvFormat};

/// Of one head's result in fp16.
const TOLERANCE: f64 = 2e-3;
const POISON: f32 = -77.0;

/// (tokens before the chunk, tokens of the chunk) of each sequence. A padding sequence has a
/// chunk but no context.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Chunk {
    Of(usize, usize),
    Padding(usize),
}
use Chunk::{Of, Padding};

fn check(
    device: &Device,
    stream: &Stream,
    element: Element,
    shape: HeadShape,
    format: KvFormat,
    chunks: &[Chunk],
) {
    let mut rng = common::rng(7 + chunks.len() as u64);
    let HeadShape { n_q, head_dim, .. } = shape;
    let (mut q_start, mut contexts) = (vec![0i32], Vec::new());
    for chunk in chunks {
        let (context, len) = match *chunk {
            Of(start, len) => (start + len, len),
            Padding(len) => (0, len),
        };
        contexts.push(context as i32);
        q_start.push(q_start[q_start.len() - 1] + len as i32);
    }
    let (n_seqs, n_tokens) = (chunks.len(), q_start[chunks.len()] as usize);
    let max_pages = contexts.iter().copied().max().unwrap_or(0) as usize / 16 + 2;
    let tables = common::page_tables(&mut rng, n_seqs, max_pages);
    let pool = common::KvPool::random(stream, &mut rng, shape, format, n_seqs * max_pages);
    let values = pool.download(stream);
    let width = n_q * head_dim;
    let (q_stride, out_stride) = (width + 64, width + 2);
    let q = common::elements(&mut rng, element, n_tokens * q_stride, 1.0);
    let q_on_device = ElementBuffer::from_f32(stream, element, &q).unwrap();
    let [page_table, starts, context_len] =
        [&tables, &q_start, &contexts].map(|values| Buffer::from_slice(stream, values).unwrap());
    let poison = vec![POISON; n_tokens * out_stride];
    let outs = [(); 2].map(|()| ElementBuffer::from_f32(stream, element, &poison).unwrap());
    let args = PrefillAttentionArgs {
        q: q_on_device.all(),
        q_stride,
        kv: pool.view(),
        page_table: page_table.all(),
        max_pages,
        q_start: starts.all(),
        context_len: context_len.all(),
        out: Activation::plain(outs[0].all(), out_stride),
        n_tokens,
        n_seqs,
    };
    PrefillAttention::new(device, element, shape, format)
        .unwrap()
        .launch(stream, &args)
        .unwrap();
    let args = PrefillAttentionArgs {
        out: Activation::plain(outs[1].all(), out_stride),
        ..args
    };
    PlainAttention::new(device, element, shape, format)
        .unwrap()
        .launch(stream, &args)
        .unwrap();
    let outs = outs.map(|out| out.download(stream).unwrap());
    for (seq, chunk) in chunks.iter().enumerate() {
        for token in q_start[seq] as usize..q_start[seq + 1] as usize {
            let rows = outs
                .each_ref()
                .map(|out| &out[token * out_stride..][..out_stride]);
            let Of(start, _) = *chunk else {
                assert!(
                    rows.iter().all(|row| row.iter().all(|x| *x == POISON)),
                    "padding"
                );
                continue;
            };
            assert!(
                rows.iter()
                    .all(|row| row[width..].iter().all(|x| *x == POISON))
            );
            let context = start + token - q_start[seq] as usize + 1;
            for head in 0..n_q {
                let q = &q[token * q_stride + head * head_dim..][..head_dim];
                let expected = values.attention(q, head, context, &tables[seq * max_pages..]);
                for (which, row) in ["prefill", "plain"].into_iter().zip(rows) {
                    let found = &row[head * head_dim..][..head_dim];
                    let error = common::relative_error(found, &expected);
                    assert!(
                        error < common::tolerance(element, TOLERANCE),
                        "{which} {element:?} {shape:?} {format:?} {chunk:?} token {token} head {head}: {error}"
                    );
                }
            }
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn packed_chunks_agree_with_f64() {
    let (device, stream) = common::open();
    let shapes = [
        (1, 1, 64),
        (9, 3, 64),
        (12, 1, 64),
        (8, 1, 128),
        (3, 3, 128),
        (14, 2, 128),
    ];
    for (n_q, n_kv, head_dim) in shapes {
        for (element, format) in Element::ALL
            .into_iter()
            .flat_map(|element| common::kv_formats(element).map(|format| (element, format)))
        {
            let shape = HeadShape {
                n_q,
                n_kv,
                head_dim,
            };
            let check = |chunks: &[Chunk]| check(&device, &stream, element, shape, format, chunks);
            check(&[Of(0, 1)]);
            check(&[Of(0, 200)]);
            // Around tile and page borders, with prefixes, decode rows and padding between.
            check(&[
                Of(0, 64),
                Of(63, 1),
                Padding(3),
                Of(64, 65),
                Of(0, 15),
                Of(16, 16),
                Of(300, 1),
                Of(1, 63),
                Padding(1),
                Of(129, 31),
            ]);
        }
    }
}

/// Pages of a request that left broken numbers in them, as their next owner gets them.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn broken_values_after_a_context_change_no_bit() {
    let (device, stream) = common::open();
    let (starts, lens) = ([0, 0, 63, 5, 100], [1, 70, 1, 20, 29]);
    let contexts: Vec<i32> = starts
        .iter()
        .zip(lens)
        .map(|(start, len)| start + len)
        .collect();
    let q_start: Vec<i32> = (0..=lens.len()).map(|i| lens[..i].iter().sum()).collect();
    let (n_seqs, max_pages) = (lens.len(), 12);
    let n_tokens = q_start[n_seqs] as usize;
    for (element, (n_q, n_kv, head_dim)) in Element::ALL
        .into_iter()
        .flat_map(|element| [(6, 2, 64), (8, 1, 128)].map(|shape| (element, shape)))
    {
        let shape = HeadShape {
            n_q,
            n_kv,
            head_dim,
        };
        let width = n_q * head_dim;
        for format in common::kv_formats(element) {
            let mut rng = common::rng(15);
            let tables = common::page_tables(&mut rng, n_seqs, max_pages);
            let pool = common::KvPool::random(&stream, &mut rng, shape, format, n_seqs * max_pages);
            let q = common::elements(&mut rng, element, n_tokens * width, 1.0);
            let q = ElementBuffer::from_f32(&stream, element, &q).unwrap();
            let [page_table, q_starts, context_len] = [&tables, &q_start, &contexts]
                .map(|values| Buffer::from_slice(&stream, values).unwrap());
            let attention = PrefillAttention::new(&device, element, shape, format).unwrap();
            let attended = |bits: u16| {
                for (seq, context) in contexts.iter().enumerate() {
                    let pages = &tables[seq * max_pages..][..max_pages];
                    pool.fill_after(&stream, pages, *context as usize, bits);
                }
                let out = ElementBuffer::zeroed(&stream, element, n_tokens * width).unwrap();
                attention
                    .launch(
                        &stream,
                        &PrefillAttentionArgs {
                            q: q.all(),
                            q_stride: width,
                            kv: pool.view(),
                            page_table: page_table.all(),
                            max_pages,
                            q_start: q_starts.all(),
                            context_len: context_len.all(),
                            out: Activation::plain(out.all(), width),
                            n_tokens,
                            n_seqs,
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
                    "{element:?} {shape:?} {format:?} bits {bits:x}"
                );
            }
        }
    }
}

/// More sequences than a warp has lanes: the search for a block's tile goes on.
#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn many_sequences_and_a_long_context() {
    let (device, stream) = common::open();
    let shape = HeadShape {
        n_q: 8,
        n_kv: 2,
        head_dim: 128,
    };
    let many: Vec<Chunk> = (0..77)
        .map(|i| {
            if i % 9 == 4 {
                Padding(i % 2)
            } else {
                Of(i * 5 % 83, i * 7 % 23)
            }
        })
        .collect();
    for (element, format) in Element::ALL
        .into_iter()
        .flat_map(|element| common::kv_formats(element).map(|format| (element, format)))
    {
        check(&device, &stream, element, shape, format, &many);
        check(
            &device,
            &stream,
            element,
            shape,
            format,
            &[Of(4000, 33), Of(8191, 1)],
        );
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
    let odd = HeadShape {
        head_dim: 32,
        ..shape
    };
    assert!(PrefillAttention::new(&device, Element::F16, odd, KvFormat::F16).is_err());
    let text = PlainAttention::new(&device, Element::Bf16, shape, KvFormat::F16)
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        "attention_prefill: KV pages of F16 beside bf16 activations"
    );
    let prefill = PrefillAttention::new(&device, Element::F16, shape, KvFormat::F16).unwrap();
    let pool = common::KvPool::random(&stream, &mut common::rng(1), shape, KvFormat::F16, 4);
    let q = ElementBuffer::zeroed(&stream, Element::F16, 3 * 512).unwrap();
    let bf16 = ElementBuffer::zeroed(&stream, Element::Bf16, 3 * 512).unwrap();
    let ints = Buffer::<i32>::zeroed(&stream, 4).unwrap();
    let good = PrefillAttentionArgs {
        q: q.all(),
        q_stride: 512,
        kv: pool.view(),
        page_table: ints.all(),
        max_pages: 2,
        q_start: ints.view(0..3).unwrap(),
        context_len: ints.all(),
        out: Activation::plain(q.all(), 512),
        n_tokens: 3,
        n_seqs: 2,
    };
    let launch = |args: &PrefillAttentionArgs<'_>| {
        prefill
            .launch(&stream, args)
            .map_err(|error| error.to_string())
    };
    launch(&good).unwrap();
    launch(&PrefillAttentionArgs {
        n_tokens: 0,
        ..good
    })
    .unwrap();
    let text = launch(&PrefillAttentionArgs {
        n_seqs: 3,
        max_pages: 1,
        ..good
    })
    .unwrap_err();
    assert_eq!(
        text,
        "attention_prefill: length of q_start is 3, must be at least 4"
    );
    assert!(
        launch(&PrefillAttentionArgs {
            n_tokens: 4,
            ..good
        })
        .is_err()
    );
    assert!(
        launch(&PrefillAttentionArgs {
            max_pages: 3,
            ..good
        })
        .is_err()
    );
    assert!(
        launch(&PrefillAttentionArgs {
            out: Activation::plain(q.all(), 513),
            n_tokens: 1,
            ..good
        })
        .is_err()
    );
    let text = launch(&PrefillAttentionArgs {
        q: bf16.all(),
        ..good
    })
    .unwrap_err();
    assert_eq!(
        text,
        "attention_prefill: q is bf16, the kernel computes in f16"
    );
    let text = launch(&PrefillAttentionArgs {
        out: Activation::plain(bf16.all(), 512),
        ..good
    })
    .unwrap_err();
    assert!(text.contains("out is bf16"), "{text}");
    stream.synchronize().unwrap();
}
