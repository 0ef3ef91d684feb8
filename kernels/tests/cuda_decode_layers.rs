//! All layers in one launch against the kernels that it stands for, which are held against f64 in
//! tests of their own.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

mod gpu;

use kernels::attention::cuda::{DecodeAttention, DecodeAttentionArgs};
use kernels::cuda::{
    Activation, Buffer, Element, ElementBuffer, HeadShape, KvFormat, PAGE_TOKENS, Stream,
};
use kernels::decode_layers::{
    DecodeLayer, DecodeLayers, DecodeLayersArgs, DecodeShape, MAX_ROWS,
};
use kernels::qkv_prepare::cuda::{QkvPrepare, QkvPrepareArgs};
use kernels::rms_norm::cuda::RmsNorm;
use kernels::stream_linear::{
    Arrangement, Format, Layout, ManyRows, Output, StreamLinear, StreamLinearKernels,
};

/// Of h in fp16: activations are 16-bit and the sums' order differs.
const TOLERANCE: f64 = 2e-3;
const EPS: f32 = 1e-6;
const N_LAYERS: usize = 3;

/// A decoder's sizes, and whether it has head norms (Qwen3) and biases (Qwen2).
#[derive(Debug, Clone, Copy)]
struct Case {
    heads: HeadShape,
    hidden: usize,
    intermediate: usize,
    has_norms: bool,
    has_biases: bool,
}

const fn case(
    (n_q, n_kv, head_dim): (usize, usize, usize),
    hidden: usize,
    intermediate: usize,
    has_norms: bool,
    has_biases: bool,
) -> Case {
    Case {
        heads: HeadShape {
            n_q,
            n_kv,
            head_dim,
        },
        hidden,
        intermediate,
        has_norms,
        has_biases,
    }
}

struct Layer {
    products: [StreamLinear; 4],
    attn_norm: ElementBuffer,
    mlp_norm: ElementBuffer,
    q_norm: Option<ElementBuffer>,
    k_norm: Option<ElementBuffer>,
    qkv_bias: Option<ElementBuffer>,
    o_bias: Option<ElementBuffer>,
    pool: gpu::KvPool,
}

/// Layers on the device, and the rows of a step.
struct Model {
    case: Case,
    element: Element,
    format: KvFormat,
    layers: Vec<Layer>,
    contexts: Vec<i32>,
    max_pages: usize,
    page_table: Buffer<i32>,
    context_len: Buffer<i32>,
    positions: Buffer<i32>,
    slots: Buffer<i32>,
    cos_sin: Buffer<f32>,
    n_positions: usize,
    h: Vec<f32>,
}

impl Case {
    fn layouts(&self) -> [Layout; 4] {
        let HeadShape {
            n_q,
            n_kv,
            head_dim,
        } = self.heads;
        let (q, kv) = (n_q * head_dim, n_kv * head_dim);
        let layout = |arrangement, parts: &[usize], k| {
            Layout::new(Format::AwqG128, arrangement, parts, k).unwrap()
        };
        [
            layout(Arrangement::Stacked, &[q, kv, kv], self.hidden),
            layout(Arrangement::Stacked, &[self.hidden], q),
            layout(
                Arrangement::GateUp,
                &[self.intermediate, self.intermediate],
                self.hidden,
            ),
            layout(Arrangement::Stacked, &[self.hidden], self.intermediate),
        ]
    }
}

impl Model {
    fn new(
        stream: &Stream,
        case: Case,
        element: Element,
        format: KvFormat,
        contexts: &[i32],
    ) -> Self {
        let mut rng = gpu::rng(7);
        let linears = StreamLinearKernels::load(
            stream,
            element,
            ManyRows::best(stream.device(), true),
        )
        .unwrap();
        let longest = contexts.iter().copied().max().unwrap() as usize;
        let (n_rows, max_pages) = (contexts.len(), longest.div_ceil(PAGE_TOKENS) + 1);
        let tables = gpu::page_tables(&mut rng, n_rows, max_pages);
        let head_dim = case.heads.head_dim;
        let layers = (0..N_LAYERS)
            .map(|i| {
                let mut vector = |n: usize, mean: f32| {
                    let values: Vec<f32> =
                        gpu::normals(&mut rng, n, 0.2).iter().map(|x| x + mean).collect();
                    ElementBuffer::from_f32(stream, element, &values).unwrap()
                };
                let [qkv, o, gate_up, down] = case.layouts();
                let n_qkv = qkv.n();
                let attn_norm = vector(case.hidden, 1.0);
                let mlp_norm = vector(case.hidden, 1.0);
                let q_norm = case.has_norms.then(|| vector(head_dim, 1.0));
                let k_norm = case.has_norms.then(|| vector(head_dim, 1.0));
                let qkv_bias = case.has_biases.then(|| vector(n_qkv, 0.0));
                let o_bias = case.has_biases.then(|| vector(case.hidden, 0.0));
                let mut seed = 10 * i as u64;
                let products = [qkv, o, gate_up, down].map(|layout| {
                    let mut linear = StreamLinear::new(&linears, layout).unwrap();
                    seed += 1;
                    linear.fill_random(stream, seed).unwrap();
                    linear
                });
                let pool =
                    gpu::KvPool::random(stream, &mut rng, case.heads, format, n_rows * max_pages);
                Layer {
                    products,
                    attn_norm,
                    mlp_norm,
                    q_norm,
                    k_norm,
                    qkv_bias,
                    o_bias,
                    pool,
                }
            })
            .collect();
        let positions: Vec<i32> = contexts.iter().map(|n| (n - 1).max(0)).collect();
        let slots: Vec<i32> = contexts
            .iter()
            .enumerate()
            .map(|(row, n)| match n {
                0 => -1,
                n => {
                    let at = *n as usize - 1;
                    let page = tables[row * max_pages + at / PAGE_TOKENS] as usize;
                    (page * PAGE_TOKENS + at % PAGE_TOKENS) as i32
                }
            })
            .collect();
        let n_positions = longest + 1;
        let angles: Vec<f32> = (0..n_positions)
            .flat_map(|position| {
                let angle = move |i: usize| {
                    position as f32 * 10_000f32.powf(-2.0 * i as f32 / head_dim as f32)
                };
                let half = head_dim / 2;
                (0..half)
                    .map(move |i| angle(i).cos())
                    .chain((0..half).map(move |i| angle(i).sin()))
            })
            .collect();
        Self {
            h: gpu::normals(&mut rng, n_rows * case.hidden, 1.0),
            case,
            element,
            format,
            layers,
            contexts: contexts.to_vec(),
            max_pages,
            page_table: Buffer::from_slice(stream, &tables).unwrap(),
            context_len: Buffer::from_slice(stream, contexts).unwrap(),
            positions: Buffer::from_slice(stream, &positions).unwrap(),
            slots: Buffer::from_slice(stream, &slots).unwrap(),
            cos_sin: Buffer::from_slice(stream, &angles).unwrap(),
            n_positions,
        }
    }

    fn activation(&self, stream: &Stream, width: usize) -> ElementBuffer {
        ElementBuffer::zeroed(stream, self.element, self.contexts.len() * width).unwrap()
    }

    /// h after all layers, one kernel after the other.
    fn kernel_by_kernel(&self, stream: &Stream) -> Vec<f32> {
        let (device, case, m) = (stream.device(), self.case, self.contexts.len());
        let n_qkv = (case.heads.n_q + 2 * case.heads.n_kv) * case.heads.head_dim;
        let width = case.heads.n_q * case.heads.head_dim;
        let h = Buffer::from_slice(stream, &self.h).unwrap();
        let x = self.activation(stream, case.hidden);
        let qkv = self.activation(stream, n_qkv);
        let attended = self.activation(stream, width);
        let gated = self.activation(stream, case.intermediate);
        let norm = RmsNorm::new(device, self.element).unwrap();
        let prepare = QkvPrepare::new(device, self.element, case.heads, self.format).unwrap();
        let attention =
            DecodeAttention::new(device, self.element, case.heads, self.format, 4, true).unwrap();
        for layer in &self.layers {
            let [of_qkv, of_o, of_gate_up, of_down] = &layer.products;
            let run = |linear: &StreamLinear, x, bias: Option<&ElementBuffer>, out| {
                let bias = bias.map(ElementBuffer::all);
                linear.launch(stream, m, x, bias, out, false).unwrap();
            };
            let normed = |weight: &ElementBuffer| {
                let x = Activation::plain(x.all(), case.hidden);
                norm.launch(stream, h.all(), weight.all(), None, x, m, case.hidden, EPS)
                    .unwrap();
                x
            };
            let x = normed(&layer.attn_norm);
            run(of_qkv, x, layer.qkv_bias.as_ref(), Output::Store(qkv.all()));
            prepare
                .launch(
                    stream,
                    &QkvPrepareArgs {
                        qkv: qkv.all(),
                        row_stride: n_qkv,
                        q_norm: layer.q_norm.as_ref().map(ElementBuffer::all),
                        k_norm: layer.k_norm.as_ref().map(ElementBuffer::all),
                        cos_sin: self.cos_sin.all(),
                        n_positions: self.n_positions,
                        positions: self.positions.all(),
                        slots: self.slots.all(),
                        kv: layer.pool.view(),
                        eps: EPS,
                        n_rows: m,
                    },
                )
                .unwrap();
            stream.synchronize().unwrap();
            attention
                .launch(
                    stream,
                    &DecodeAttentionArgs {
                        q: qkv.all(),
                        q_stride: n_qkv,
                        kv: layer.pool.view(),
                        page_table: self.page_table.all(),
                        max_pages: self.max_pages,
                        context_len: self.context_len.all(),
                        out: Activation::plain(attended.all(), width),
                        n_rows: m,
                        n_splits: 2,
                        fresh: 1,
                    },
                )
                .unwrap();
            let from = Activation::plain(attended.all(), width);
            run(of_o, from, layer.o_bias.as_ref(), Output::AddResidual(h.all()));
            let x = normed(&layer.mlp_norm);
            let to = Activation::plain(gated.all(), case.intermediate);
            run(of_gate_up, x, None, Output::SiluMul(to));
            run(of_down, to, None, Output::AddResidual(h.all()));
        }
        h.download(stream).unwrap()
    }

    fn decode_layers(&self, stream: &Stream, max_splits: usize) -> DecodeLayers {
        let layers: Vec<DecodeLayer<'_>> = self
            .layers
            .iter()
            .map(|layer| DecodeLayer {
                products: layer.products.each_ref(),
                attn_norm: layer.attn_norm.all(),
                mlp_norm: layer.mlp_norm.all(),
                q_norm: layer.q_norm.as_ref().map(ElementBuffer::all),
                k_norm: layer.k_norm.as_ref().map(ElementBuffer::all),
                qkv_bias: layer.qkv_bias.as_ref().map(ElementBuffer::all),
                o_bias: layer.o_bias.as_ref().map(ElementBuffer::all),
                kv: layer.pool.view(),
            })
            .collect();
        let shape = DecodeShape {
            heads: self.case.heads,
            n_layers: layers.len(),
            layouts: self.case.layouts(),
        };
        DecodeLayers::new(
            stream,
            shape,
            self.element,
            self.format,
            &layers,
            max_splits,
            true,
        )
        .unwrap()
    }

    fn in_one_launch(&self, stream: &Stream, layers: &DecodeLayers) -> Vec<f32> {
        let case = self.case;
        let h = Buffer::from_slice(stream, &self.h).unwrap();
        let n_qkv = (case.heads.n_q + 2 * case.heads.n_kv) * case.heads.head_dim;
        let qkv = self.activation(stream, n_qkv);
        let attended = self.activation(stream, case.heads.n_q * case.heads.head_dim);
        let gated = self.activation(stream, case.intermediate);
        layers
            .launch(
                stream,
                &DecodeLayersArgs {
                    n_rows: self.contexts.len(),
                    h: h.all(),
                    qkv: qkv.all(),
                    attended: attended.all(),
                    gated: gated.all(),
                    cos_sin: self.cos_sin.all(),
                    n_positions: self.n_positions,
                    positions: self.positions.all(),
                    slots: self.slots.all(),
                    page_table: self.page_table.all(),
                    max_pages: self.max_pages,
                    context_len: self.context_len.all(),
                    eps: EPS,
                },
            )
            .unwrap();
        h.download(stream).unwrap()
    }

    /// Keys and values of all layers, as bytes.
    fn pages(&self, stream: &Stream) -> Vec<u8> {
        let of = |layer: &Layer| {
            let mut bytes = layer.pool.k.download(stream).unwrap();
            bytes.extend(layer.pool.v.download(stream).unwrap());
            bytes
        };
        self.layers.iter().flat_map(of).collect()
    }

    fn check(&self, stream: &Stream, max_splits: usize) {
        let what = format!(
            "{:?} {:?} {:?} splits {max_splits} contexts {:?}",
            self.case, self.element, self.format, self.contexts
        );
        println!("{what}");
        let expected = self.kernel_by_kernel(stream);
        let values_expected: Vec<_> = self.layers.iter().map(|l| l.pool.download(stream)).collect();
        let layers = self.decode_layers(stream, max_splits);
        let found = self.in_one_launch(stream, &layers);
        // The same again: same bits, in h and in the pages.
        let pages = self.pages(stream);
        for _ in 0..3 {
            let again = self.in_one_launch(stream, &layers);
            assert!(
                again.iter().zip(&found).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{what}: h differs from run to run"
            );
        }
        assert!(self.pages(stream) == pages, "{what}: pages differ from run to run");
        let hidden = self.case.hidden;
        for (row, context) in self.contexts.iter().enumerate() {
            if *context == 0 {
                continue;
            }
            let range = row * hidden..(row + 1) * hidden;
            let expected: Vec<f64> = expected[range.clone()].iter().map(|x| f64::from(*x)).collect();
            let error = gpu::relative_error(&found[range], &expected);
            // A key or value between two e4m3 numbers goes either way.
            let limit = match self.format {
                KvFormat::Fp8E4m3 => 10.0 * TOLERANCE,
                _ => TOLERANCE,
            };
            assert!(
                error < gpu::tolerance(self.element, limit),
                "{what}: row {row}: {error}"
            );
        }
        // The token that was stored, in every layer; the pages' other tokens are as they were.
        let slots = self.slots.download(stream).unwrap();
        for (layer, expected) in self.layers.iter().zip(&values_expected) {
            let found = layer.pool.download(stream);
            for slot in slots.iter().filter(|slot| **slot >= 0) {
                let (page, token) = (*slot as usize / PAGE_TOKENS, *slot as usize % PAGE_TOKENS);
                for head in 0..self.case.heads.n_kv {
                    let of = |values: &gpu::KvValues| -> Vec<f64> {
                        (0..self.case.heads.head_dim)
                            .flat_map(|d| {
                                [values.k(page, head, token, d), values.v(page, head, token, d)]
                            })
                            .collect()
                    };
                    let found: Vec<f32> = of(&found).iter().map(|x| *x as f32).collect();
                    let error = gpu::relative_error(&found, &of(expected));
                    let limit = match self.format {
                        KvFormat::Fp8E4m3 => 3e-2,
                        _ => gpu::tolerance(self.element, TOLERANCE),
                    };
                    assert!(error < limit, "{what}: slot {slot}, head {head}: {error}");
                }
            }
        }
    }
}

const CASES: [Case; 6] = [
    case((16, 2, 128), 1024, 2048, true, false),
    case((8, 1, 128), 1280, 3584, true, false),
    case((4, 2, 64), 256, 512, true, false),
    case((12, 4, 64), 768, 1024, false, true),
    case((10, 2, 128), 1280, 256, false, true),
    case((64, 8, 128), 5120, 25_600, true, false),
];

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn one_launch_agrees_with_the_kernels_it_stands_for() {
    let (_device, stream) = gpu::open();
    let contexts = [193, 1, 16, 17, 0, 700, 32, 129];
    for case in CASES {
        for element in Element::ALL {
            for format in gpu::kv_formats(element) {
                for m in [1, 2, 3, 8] {
                    let model = Model::new(&stream, case, element, format, &contexts[..m]);
                    model.check(&stream, 8);
                }
            }
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn every_split_of_long_contexts_agrees() {
    let (_device, stream) = gpu::open();
    let contexts = [8192, 4097, 1024, 1025, 8191, 65, 0, 255];
    assert_eq!(contexts.len(), MAX_ROWS);
    for case in [CASES[0], CASES[3]] {
        for max_splits in 1..=4 {
            let format = KvFormat::F16;
            Model::new(&stream, case, Element::F16, format, &contexts).check(&stream, max_splits);
            let one = &contexts[..1];
            Model::new(&stream, case, Element::F16, format, one).check(&stream, max_splits);
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn what_does_not_fit_is_refused() {
    let (_device, stream) = gpu::open();
    let model = Model::new(&stream, CASES[2], Element::F16, KvFormat::F16, &[5, 6]);
    let layers = model.decode_layers(&stream, 4);
    let error = layers.plan(9).unwrap_err().to_string();
    assert!(error.contains('9') && error.contains("1 to 8"), "{error}");
    let short = Buffer::<f32>::zeroed(&stream, model.case.hidden).unwrap();
    let element = model.activation(&stream, 4096);
    let args = DecodeLayersArgs {
        n_rows: 2,
        h: short.all(),
        qkv: element.all(),
        attended: element.all(),
        gated: element.all(),
        cos_sin: model.cos_sin.all(),
        n_positions: model.n_positions,
        positions: model.positions.all(),
        slots: model.slots.all(),
        page_table: model.page_table.all(),
        max_pages: model.max_pages,
        context_len: model.context_len.all(),
        eps: EPS,
    };
    let error = layers.launch(&stream, &args).unwrap_err().to_string();
    assert!(error.contains("length of h") && error.contains("512"), "{error}");
}
