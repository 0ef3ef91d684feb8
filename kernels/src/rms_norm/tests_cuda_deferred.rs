//! Norms fused into two projections, compared with f64.

#[path = "../stream_linear/tests_cuda/case.rs"]
mod case;

use gpu::Buffer;
use kernels::cuda::{Activation, Element, ElementBuffer, ElementView};
use kernels::rms_norm::cuda::RmsNorm;
use kernels::rms_norm::deferred::{FusedNorm, MAX_FUSED_NORM_ROWS, NormState};
use kernels::stream_linear::{
    Arrangement, Epilogue, Format, LargeM, Output, Variant, choose_plan, reference,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::case::{BF16_FACTOR, Case, Gpu, gpu, gpu_with, random_case};

const EPS: f32 = 1e-6;
const ROWS: [usize; 9] = [1, 2, 7, 8, 9, 16, 20, 33, 64];
const ATTENDED: usize = 512;
const GATED: usize = 256;
/// As for a projection alone, and as much again for x that is rounded, too.
const TOLERANCE: f64 = 6e-3;

/// A layer's four projections, and the norms' weights.
struct Layer {
    o: Case,
    gate_up: Case,
    down: Case,
    qkv: Case,
    hidden: usize,
    mlp_norm: Vec<f32>,
    attention_norm: Vec<f32>,
    bias: Vec<f32>,
}

/// Those that are streamed.
fn rows_of(format: Format) -> impl Iterator<Item = usize> {
    let most = format.max_stream_rows();
    ROWS.into_iter().filter(move |m| *m <= most)
}

impl Layer {
    fn new(gpu: &Gpu, rng: &mut StdRng, format: Format) -> Self {
        let element = gpu.kernels.element();
        // Of 16-bit weights a width that is no multiple of a tile.
        let hidden = if format == Format::Half { 648 } else { 640 };
        let mut case = |arrangement, parts_n: &[usize], k| {
            random_case(gpu, rng, format, arrangement, parts_n, k)
        };
        let mut o = case(Arrangement::Stacked, &[hidden], ATTENDED);
        let mut gate_up = case(Arrangement::GateUp, &[GATED, GATED], hidden);
        let mut down = case(Arrangement::Stacked, &[hidden], GATED);
        let mut qkv = case(Arrangement::Stacked, &[160, 40], hidden);
        for case in [&mut o, &mut gate_up, &mut down, &mut qkv] {
            for m in rows_of(format) {
                let plan = choose_plan(&case.layout, m, gpu.kernels.limits()).expect("a plan");
                let variant = Variant::Stream(plan);
                case.linear.set_variant(m, variant).expect("it can run");
            }
        }
        let mut values = |n| -> Vec<f32> {
            (0..n)
                .map(|_| element.round(rng.random_range(-2.0..2.0)))
                .collect()
        };
        Self {
            o,
            gate_up,
            down,
            qkv,
            hidden,
            mlp_norm: values(hidden),
            attention_norm: values(hidden),
            bias: values(200),
        }
    }
}

/// Memory for `m` rows of a layer's steps.
struct Rows<'a> {
    gpu: &'a Gpu,
    layer: &'a Layer,
    m: usize,
    states: [NormState; 2],
    rms_norm: RmsNorm,
    attended: ElementBuffer,
    h: Buffer<f32>,
    x: ElementBuffer,
    gated: ElementBuffer,
    qkv: ElementBuffer,
    mlp_norm: ElementBuffer,
    attention_norm: ElementBuffer,
    bias: ElementBuffer,
}

impl<'a> Rows<'a> {
    fn new(gpu: &'a Gpu, rng: &mut StdRng, layer: &'a Layer, m: usize) -> Self {
        let (stream, element) = (&gpu.stream, gpu.kernels.element());
        let place = |columns: usize| m * columns.next_multiple_of(256);
        let zeroed = |len| ElementBuffer::zeroed(stream, element, len).expect("memory");
        let from =
            |values: &[f32]| ElementBuffer::from_f32(stream, element, values).expect("memory");
        let attended: Vec<f32> = (0..place(ATTENDED))
            .map(|_| element.round(rng.random_range(-1.0..1.0)))
            .collect();
        Self {
            gpu,
            layer,
            m,
            states: [0, 1].map(|_| NormState::new(stream).expect("memory")),
            rms_norm: RmsNorm::new(&gpu.device, element).expect("the kernel"),
            attended: from(&attended),
            h: Buffer::zeroed(stream, m * layer.hidden).expect("memory"),
            x: zeroed(place(layer.hidden)),
            gated: zeroed(place(GATED)),
            qkv: zeroed(m * 200),
            mlp_norm: from(&layer.mlp_norm),
            attention_norm: from(&layer.attention_norm),
            bias: from(&layer.bias),
        }
    }

    /// The norm before the first projection, of rows like `h` times `before`.
    fn begin(&self, h: &[f32], before: f32) {
        let stream = &self.gpu.stream;
        let scaled: Vec<f32> = h.iter().map(|h| h * before).collect();
        let scaled = Buffer::from_slice(stream, &scaled).expect("memory");
        let x = read_by(&self.layer.qkv, self.x.all());
        let (norm, n) = (self.attention_norm.all(), self.layer.hidden);
        self.rms_norm
            .launch_first(
                stream,
                scaled.all(),
                norm,
                x,
                self.m,
                n,
                EPS,
                &self.states[0],
            )
            .expect("launch");
        let h = Buffer::from_slice(stream, h).expect("memory");
        self.h.all().copy_from(stream, h.all()).expect("copy");
    }

    fn launch(
        &self,
        case: &Case,
        x: ElementView<'_>,
        bias: Option<ElementView<'_>>,
        output: Output<'_>,
        norm: FusedNorm<'_>,
    ) {
        let x = read_by(case, x);
        case.linear
            .launch_with_norm(&self.gpu.stream, self.m, x, bias, output, norm, true)
            .expect("launch");
    }

    fn o(&self) {
        let norm = FusedNorm::Epilogue {
            state: &self.states[0],
            weight: self.mlp_norm.all(),
            x: read_by(&self.layer.gate_up, self.x.all()),
        };
        let output = Output::AddResidual(self.h.all());
        self.launch(&self.layer.o, self.attended.all(), None, output, norm);
    }

    fn gate_up(&self) {
        let norm = FusedNorm::Prologue {
            state: &self.states[0],
            next: &self.states[1],
            eps: EPS,
        };
        let output = Output::SiluMul(read_by(&self.layer.down, self.gated.all()));
        self.launch(&self.layer.gate_up, self.x.all(), None, output, norm);
    }

    fn down(&self) {
        let norm = FusedNorm::Epilogue {
            state: &self.states[1],
            weight: self.attention_norm.all(),
            x: read_by(&self.layer.qkv, self.x.all()),
        };
        let output = Output::AddResidual(self.h.all());
        self.launch(&self.layer.down, self.gated.all(), None, output, norm);
    }

    fn qkv(&self) {
        let norm = FusedNorm::Prologue {
            state: &self.states[1],
            next: &self.states[0],
            eps: EPS,
        };
        let (bias, output) = (Some(self.bias.all()), Output::Store(self.qkv.all()));
        self.launch(&self.layer.qkv, self.x.all(), bias, output, norm);
    }

    /// Norm and projection of what `h` is now, in f64.
    fn expected(
        &self,
        case: &Case,
        norm: &[f32],
        epilogue: Epilogue,
        bias: Option<&[f32]>,
    ) -> Vec<f64> {
        let (hidden, m) = (self.layer.hidden, self.m);
        let h = self.h.download(&self.gpu.stream).expect("download");
        let stride = case.layout.padded_k();
        let mut x = vec![0.0; m * stride];
        for (row, h) in h.chunks_exact(hidden).enumerate() {
            let square: f64 = h.iter().map(|h| f64::from(*h).powi(2)).sum();
            let inverse = 1.0 / (square / hidden as f64 + f64::from(EPS)).sqrt();
            for (i, h) in h.iter().enumerate() {
                x[row * stride + i] = (f64::from(*h) * inverse * f64::from(norm[i])) as f32;
            }
        }
        let mut expected = vec![0.0; m * case.layout.n()];
        let (layout, weights) = (&case.layout, &case.weights);
        reference::stream_linear(
            layout,
            epilogue,
            weights,
            &x,
            stride,
            bias,
            m,
            &mut expected,
        );
        expected
    }

    fn gated(&self) -> Vec<f32> {
        let mut found = self.gated.download(&self.gpu.stream).expect("download");
        found.truncate(self.m * GATED);
        found
    }

    fn assert_close(&self, what: &str, found: &[f32], expected: &[f64]) {
        let element = self.gpu.kernels.element();
        let factor = if element == Element::F16 {
            1.0
        } else {
            BF16_FACTOR
        };
        let mean_square = expected.iter().map(|v| v * v).sum::<f64>() / expected.len() as f64;
        let scale = mean_square.sqrt();
        assert!(scale > 0.0 && found.len() == expected.len());
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - expected).abs() / (scale + expected.abs());
            assert!(
                error < TOLERANCE * factor,
                "{element:?} {:?} m={} {what} {i}: {found} for {expected}",
                self.layer.o.layout.format,
                self.m
            );
        }
    }
}

/// As the projection that reads it wants it.
fn read_by<'a>(case: &Case, view: impl Into<ElementView<'a>>) -> Activation<'a> {
    Activation::plain(view, case.layout.padded_k())
}

fn chains_agree_with_f64(gpu: &Gpu, formats: &[Format], rows: &[usize], before: &[f32]) {
    let mut rng = StdRng::seed_from_u64(31);
    for format in formats {
        let layer = Layer::new(gpu, &mut rng, *format);
        let streamed = rows.iter().filter(|m| **m <= format.max_stream_rows());
        for (&m, &before) in streamed.flat_map(|m| before.iter().map(move |b| (m, b))) {
            let rows = Rows::new(gpu, &mut rng, &layer, m);
            let h: Vec<f32> = (0..m * layer.hidden)
                .map(|_| rng.random_range(-9.0..9.0))
                .collect();
            rows.begin(&h, before);
            // Twice, for what a layer leaves to the next one.
            for _ in 0..2 {
                rows.o();
                let expected =
                    rows.expected(&layer.gate_up, &layer.mlp_norm, Epilogue::SiluMul, None);
                rows.gate_up();
                rows.assert_close("gate, up", &rows.gated(), &expected);
                rows.down();
                let bias = Some(layer.bias.as_slice());
                let expected =
                    rows.expected(&layer.qkv, &layer.attention_norm, Epilogue::Store, bias);
                rows.qkv();
                let found = rows.qkv.download(&gpu.stream).expect("download");
                rows.assert_close("q, k, v", &found, &expected);
            }
            let one_by_one = rows.qkv.download(&gpu.stream).expect("download");
            // Without a launch in between, and the same bits.
            rows.begin(&h, before);
            for _ in 0..2 {
                rows.o();
                rows.gate_up();
                rows.down();
                rows.qkv();
            }
            let at_once = rows.qkv.download(&gpu.stream).expect("download");
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&at_once), bits(&one_by_one), "{format:?} m={m}");
        }
    }
}

#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn a_layers_fused_norms_agree_with_f64() {
    for element in Element::ALL {
        let mut formats = Format::ALL.to_vec();
        formats.retain(|format| format.has_element(element));
        chains_agree_with_f64(&gpu(element), &formats, &ROWS, &[1.0]);
    }
}

#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn the_residual_may_grow_a_thousandfold_and_shrink_to_a_hundredth() {
    for element in Element::ALL {
        let formats = [Format::AwqG128, Format::Half];
        chains_agree_with_f64(&gpu(element), &formats, &[1, 8, 16], &[1e-3, 1e2]);
    }
}

/// One channel that grows by more than the fine units of a row's squares hold.
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn a_massive_channel_has_the_right_norm() {
    for element in Element::ALL {
        let gpu = gpu(element);
        let mut rng = StdRng::seed_from_u64(33);
        let layer = Layer::new(&gpu, &mut rng, Format::AwqG128);
        for (m, grown) in [(1, 3e5), (7, 3e5), (16, -2e6)] {
            let rows = Rows::new(&gpu, &mut rng, &layer, m);
            let mut h: Vec<f32> = (0..m * layer.hidden)
                .map(|_| rng.random_range(-9.0..9.0))
                .collect();
            rows.begin(&h, 1.0);
            h[(m - 1) * layer.hidden + 77] = grown;
            rows.h.upload(&gpu.stream, &h).expect("upload");
            rows.o();
            let expected = rows.expected(&layer.gate_up, &layer.mlp_norm, Epilogue::SiluMul, None);
            rows.gate_up();
            // Row by row: the grown row's values are of a size of their own.
            let gated = rows.gated();
            for (found, expected) in gated.chunks(GATED).zip(expected.chunks(GATED)) {
                rows.assert_close("gate, up", found, expected);
            }
        }
    }
}

/// What no norm can be made of ends as NaN in its own row, and changes no bit of another.
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn a_broken_row_is_seen_as_broken_and_stays_alone() {
    for element in Element::ALL {
        let gpu = gpu(element);
        let mut rng = StdRng::seed_from_u64(34);
        let layer = Layer::new(&gpu, &mut rng, Format::AwqG128);
        for (m, broken) in [(2, 1), (8, 0), (16, 9)] {
            let rows = Rows::new(&gpu, &mut rng, &layer, m);
            let good: Vec<f32> = (0..m * layer.hidden)
                .map(|_| rng.random_range(-9.0..9.0))
                .collect();
            let made = |h: &[f32]| {
                rows.begin(&good, 1.0);
                rows.h.upload(&gpu.stream, h).expect("upload");
                rows.o();
                rows.gate_up();
                rows.down();
                rows.qkv();
                rows.qkv.download(&gpu.stream).expect("download")
            };
            let clean = made(&good);
            assert!(clean.iter().all(|y| y.is_finite()));
            for value in [f32::NAN, f32::INFINITY, 1e30] {
                let mut h = good.clone();
                h[broken * layer.hidden + 321] = value;
                for (row, found) in made(&h).chunks(200).enumerate() {
                    if row == broken {
                        assert!(
                            found.iter().all(|y| y.is_nan()),
                            "{element:?} m={m} {value}"
                        );
                    } else {
                        assert!(
                            found == &clean[row * 200..][..200],
                            "{element:?} m={m} {value}: row {row}"
                        );
                    }
                }
            }
        }
    }
}

/// Small enough for a tool that follows every access to shared memory.
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn a_small_chain_agrees_with_f64() {
    chains_agree_with_f64(&gpu(Element::F16), &[Format::AwqG128], &[3, 16], &[1.0]);
}

#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn launches_check_their_norms() {
    let gpu = gpu(Element::F16);
    let mut rng = StdRng::seed_from_u64(32);
    let layer = Layer::new(&gpu, &mut rng, Format::AwqG128);
    let rows = Rows::new(&gpu, &mut rng, &layer, 4);
    let launch = |case: &Case, m, x: ElementView<'_>, output: Output<'_>, norm: FusedNorm<'_>| {
        let x = Activation::plain(x, case.layout.padded_k());
        case.linear
            .launch_with_norm(&gpu.stream, m, x, None, output, norm, false)
            .expect_err("refused")
            .to_string()
    };
    let reads = |eps| FusedNorm::Prologue {
        state: &rows.states[0],
        next: &rows.states[1],
        eps,
    };
    let writes = |weight, x| FusedNorm::Epilogue {
        state: &rows.states[0],
        weight,
        x,
    };
    let h = Output::AddResidual(rows.h.all());
    let error = launch(&layer.o, 4, rows.attended.all(), h, reads(EPS));
    assert!(error.contains("AddResidual"), "{error}");
    let store = Output::Store(rows.qkv.all());
    let error = launch(&layer.qkv, 4, rows.x.all(), store, reads(f32::NAN));
    assert!(error.contains("eps is NaN"), "{error}");
    let x = read_by(&layer.gate_up, rows.x.all());
    let short = rows.mlp_norm.view(0..600).expect("inside");
    let error = launch(&layer.o, 4, rows.attended.all(), h, writes(short, x));
    assert!(
        error.contains("length of the norm's weight is 600, must be 640"),
        "{error}"
    );
    let narrow = Activation::plain(rows.x.all(), 600);
    let error = launch(
        &layer.o,
        4,
        rows.attended.all(),
        h,
        writes(rows.mlp_norm.all(), narrow),
    );
    assert!(
        error.contains("rows of 640 values do not fit a stride of 600"),
        "{error}"
    );
    assert!(
        !layer
            .o
            .linear
            .fuses_norm(MAX_FUSED_NORM_ROWS + 1)
            .expect("a variant")
    );

    let mma = gpu_with(Element::F16, |_| LargeM::Mma);
    let layer = Layer::new(&mma, &mut rng, Format::AwqG128);
    assert!(layer.o.linear.fuses_norm(16).expect("a variant"));
    assert!(!layer.o.linear.fuses_norm(17).expect("a variant"));
}
