//! stream_linear on a GPU against f64.
//!
//! Ignored where no GPU is expected; `ENGINE_TEST_CUDA=1` at build time, or `--ignored`, runs
//! them, and then a missing GPU, driver or kernel fails.

use std::sync::Arc;

use half::f16;
use kernels::cuda::{
    Activation, Buffer, CudaError, Device, Element, ElementBuffer, Graph, RowLayout, Stream,
};
use kernels::stream_linear::reference::{self, AwqMatrix, Packed, pack_awq, pack_half};
use kernels::stream_linear::{
    Arrangement, AwqPart, Epilogue, Format, Layout, ManyRows, Output, Plan, StreamLinear,
    StreamLinearKernels, Variant, choose_plan,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const ROWS: [usize; 19] = [
    1, 2, 3, 7, 8, 9, 15, 16, 17, 20, 24, 31, 32, 33, 50, 63, 64, 65, 300,
];

struct Gpu {
    device: Device,
    stream: Stream,
    kernels: Arc<StreamLinearKernels>,
}

/// Tests run side by side, so no launch has the device to itself.
fn gpu(element: Element) -> Gpu {
    let best = |device: &Device| ManyRows::best(device, false);
    gpu_with(element, best)
}

fn gpu_with(element: Element, many_rows: impl Fn(&Device) -> ManyRows) -> Gpu {
    let device = Device::open(0).expect("these tests need a GPU and a build with kernels for it");
    let stream = Stream::new(&device).expect("a stream");
    let kernels =
        StreamLinearKernels::load(&stream, element, many_rows(&device)).expect("the kernels");
    Gpu {
        device,
        stream,
        kernels,
    }
}

/// A random matrix on the device and what it should compute with.
struct Case {
    linear: StreamLinear,
    layout: Layout,
    /// A part each: W[n][k].
    weights: Vec<Vec<f64>>,
}

fn random_case(
    gpu: &Gpu,
    rng: &mut StdRng,
    format: Format,
    arrangement: Arrangement,
    parts_n: &[usize],
    k: usize,
) -> Case {
    let layout = Layout::new(format, arrangement, parts_n, k).expect("a shape that fits");
    let mut linear = StreamLinear::new(&gpu.kernels, layout.clone()).expect("memory");
    let mut packed = Packed::zeroed(&layout);
    let mut weights = Vec::new();
    for (part, &n) in parts_n.iter().enumerate() {
        if let Some(group) = format.group() {
            let matrix = AwqMatrix {
                n,
                k,
                group,
                qweight: (0..k * n / 8).map(|_| rng.random()).collect(),
                qzeros: (0..k / group * n / 8).map(|_| rng.random()).collect(),
                scales: (0..k / group * n)
                    .map(|_| f16::from_f32(rng.random_range(0.002..0.02)))
                    .collect(),
            };
            let qweight = Buffer::from_slice(&gpu.stream, &matrix.qweight).expect("memory");
            let qzeros = Buffer::from_slice(&gpu.stream, &matrix.qzeros).expect("memory");
            let scales = Buffer::from_slice(&gpu.stream, &matrix.scales).expect("memory");
            let source = AwqPart {
                qweight: qweight.all(),
                qzeros: qzeros.all(),
                scales: scales.all(),
            };
            linear.load_awq(&gpu.stream, part, &source).expect("repack");
            pack_awq(&layout, part, &matrix, &mut packed);
            weights.push((0..n * k).map(|i| matrix.weight(i / k, i % k)).collect());
        } else {
            let element = gpu.kernels.element();
            let rows: Vec<u16> = (0..n * k)
                .map(|_| element.bits(rng.random_range(-0.1..0.1)))
                .collect();
            let source = ElementBuffer::from_bits(&gpu.stream, element, &rows).expect("memory");
            linear
                .load_half(&gpu.stream, part, source.all())
                .expect("repack");
            pack_half(&layout, part, &rows, &mut packed);
            let values = rows.iter().map(|bits| f64::from(element.value(*bits)));
            weights.push(values.collect());
        }
    }
    let on_device = linear
        .packed_weights()
        .download(&gpu.stream)
        .expect("download");
    assert!(
        on_device == packed.weights,
        "{layout:?}: the device packs weights otherwise"
    );
    let on_device = linear
        .packed_scales()
        .download(&gpu.stream)
        .expect("download");
    assert!(
        on_device == packed.scales,
        "{layout:?}: the device packs scales otherwise"
    );
    Case {
        linear,
        layout,
        weights,
    }
}

/// Plain rows as tiles; rows behind the last are NaN.
fn tiled(x: &[f32], m: usize, stride: usize, columns: usize, rows: usize) -> Vec<f32> {
    let layout = RowLayout::Tiled { rows };
    let mut tiled = vec![f32::NAN; rows * columns];
    for row in 0..m {
        for k in 0..columns {
            tiled[layout.offset(row, k)] = x[row * stride + k];
        }
    }
    tiled
}

/// Launches once; compares with f64; returns the largest error, relative to the value and the outputs' mean square.
fn check(
    gpu: &Gpu,
    rng: &mut StdRng,
    case: &Case,
    epilogue: Epilogue,
    m: usize,
    with_bias: bool,
) -> f64 {
    let Case {
        linear,
        layout,
        weights,
    } = case;
    let element = gpu.kernels.element();
    let (n, stride) = (layout.n(), layout.padded_k() + 8);
    let x: Vec<f32> = (0..m * stride)
        .map(|i| {
            if i % stride < layout.k {
                element.round(rng.random_range(-1.0..1.0))
            } else {
                0.0
            }
        })
        .collect();
    let bias: Vec<f32> = (0..n)
        .map(|_| element.round(rng.random_range(-1.0..1.0)))
        .collect();
    let before: Vec<f32> = (0..m * n).map(|_| rng.random_range(-4.0..4.0)).collect();
    let mut expected: Vec<f64> = before.iter().map(|v| f64::from(*v)).collect();
    let host_bias = with_bias.then_some(&bias[..]);
    reference::stream_linear(
        layout,
        epilogue,
        weights,
        &x,
        stride,
        host_bias,
        m,
        &mut expected,
    );

    // Tiles hold whole groups of rows; what is behind the m rows must not matter.
    let tile_rows = m.next_multiple_of(128);
    let is_tiled = linear.wants_tiled(m);
    let x = if is_tiled {
        tiled(&x, m, stride, layout.padded_k(), tile_rows)
    } else {
        x
    };
    let x = ElementBuffer::from_f32(&gpu.stream, element, &x).expect("memory");
    let x = if is_tiled {
        Activation::tiled(x.all(), tile_rows)
    } else {
        Activation::plain(x.all(), stride)
    };
    let bias = ElementBuffer::from_f32(&gpu.stream, element, &bias).expect("memory");
    let bias = with_bias.then(|| bias.all());
    // One row more than needed, to see that nothing is written behind the last.
    let guard = n;
    let found: Vec<f64> = match epilogue {
        Epilogue::SiluMul if is_tiled && m % 2 == 1 => {
            let columns = n.next_multiple_of(64);
            let out =
                ElementBuffer::zeroed(&gpu.stream, element, tile_rows * columns).expect("memory");
            let output = Output::SiluMul(Activation::tiled(out.all(), tile_rows));
            linear
                .launch(&gpu.stream, m, x, bias, output, false)
                .expect("launch");
            let tiles = out.download(&gpu.stream).expect("download");
            let at = RowLayout::Tiled { rows: tile_rows };
            (0..m * n)
                .map(|i| f64::from(tiles[at.offset(i / n, i % n)]))
                .chain(vec![-77.0; guard])
                .collect()
        }
        Epilogue::Store | Epilogue::SiluMul => {
            let before = vec![-77.0; m * n + guard];
            let out = ElementBuffer::from_f32(&gpu.stream, element, &before).expect("memory");
            let output = if epilogue == Epilogue::Store {
                Output::Store(out.all())
            } else {
                Output::SiluMul(Activation::plain(out.all(), n))
            };
            linear
                .launch(&gpu.stream, m, x, bias, output, false)
                .expect("launch");
            out.download(&gpu.stream)
                .expect("download")
                .iter()
                .map(|v| f64::from(*v))
                .collect()
        }
        Epilogue::AddResidual | Epilogue::StoreF32 => {
            let mut values = before.clone();
            values.resize(m * n + guard, -77.0);
            let out = Buffer::from_slice(&gpu.stream, &values).expect("memory");
            let output = if epilogue == Epilogue::StoreF32 {
                Output::StoreF32(out.all())
            } else {
                Output::AddResidual(out.all())
            };
            linear
                .launch(&gpu.stream, m, x, bias, output, false)
                .expect("launch");
            out.download(&gpu.stream)
                .expect("download")
                .iter()
                .map(|v| f64::from(*v))
                .collect()
        }
    };
    assert!(
        found[m * n..]
            .iter()
            .all(|v| v.to_bits() == (-77.0_f64).to_bits()),
        "{layout:?} {epilogue:?} m={m}: wrote behind the output"
    );
    let scale = (expected.iter().map(|v| v * v).sum::<f64>() / expected.len() as f64).sqrt();
    expected
        .iter()
        .zip(&found)
        .map(|(a, b)| {
            if b.is_finite() {
                (a - b).abs() / (scale + a.abs())
            } else {
                f64::INFINITY
            }
        })
        .fold(0.0, f64::max)
}

/// Rounding to fp16 makes up to 5e-4 of a value; the order of the sums and the fast exponential
/// add to that. From 17 rows on the weights are rounded to fp16 as well, (q - z) s, instead of
/// staying integers until the scale is applied to the sums.
const TOLERANCE: f64 = 2e-3;
const TOLERANCE_MANY_ROWS: f64 = 4e-3;
/// bf16 rounds to 8 bits where fp16 rounds to 11: weights, from 17 rows on, and the output.
const BF16_FACTOR: f64 = 8.0;

fn assert_close(gpu: &Gpu, case: &Case, epilogue: Epilogue, m: usize, error: f64) {
    let element = gpu.kernels.element();
    let is_stream = matches!(case.linear.variant(m), Ok(Variant::Stream(_)));
    let of_f16 = if is_stream {
        TOLERANCE
    } else {
        TOLERANCE_MANY_ROWS
    };
    // Streamed, bf16 loses nothing until the output is rounded; in fp32 it is not.
    let is_exact = is_stream && matches!(epilogue, Epilogue::AddResidual | Epilogue::StoreF32);
    let tolerance = if element == Element::F16 || is_exact {
        of_f16
    } else {
        BF16_FACTOR * of_f16
    };
    assert!(
        error < tolerance,
        "{element:?} {:?} {epilogue:?} m={m}: relative error {error:.2e}, {:?}",
        case.layout,
        case.linear.variant(m)
    );
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn every_format_epilogue_and_number_of_rows_agrees_with_f64() {
    for element in Element::ALL {
        every_format_and_epilogue_agrees(&gpu(element));
    }
}

/// What cards without `wgmma` use from 17 rows on.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn the_kernel_for_other_cards_agrees_with_f64() {
    for element in Element::ALL {
        every_format_and_epilogue_agrees(&gpu_with(element, |_| ManyRows::Batch));
    }
}

fn every_format_and_epilogue_agrees(gpu: &Gpu) {
    let mut rng = StdRng::seed_from_u64(11);
    for format in Format::ALL {
        // n a multiple of 8 but not of 16, k a multiple of the group but not of the chunk.
        let k = 3 * format.group().unwrap_or(40) + 512;
        let stacked = random_case(
            gpu,
            &mut rng,
            format,
            Arrangement::Stacked,
            &[160, 32, 40],
            k,
        );
        let paired = random_case(gpu, &mut rng, format, Arrangement::GateUp, &[200, 200], k);
        for m in ROWS.into_iter().filter(|m| *m <= gpu.kernels.max_rows()) {
            for epilogue in Epilogue::ALL {
                let case = if epilogue == Epilogue::SiluMul {
                    &paired
                } else {
                    &stacked
                };
                let with_bias = m % 2 == 0 && epilogue != Epilogue::SiluMul;
                let error = check(gpu, &mut rng, case, epilogue, m, with_bias);
                assert_close(gpu, case, epilogue, m, error);
            }
        }
    }
    gpu.device.synchronize().expect("no late error");
}

/// Small enough for a tool that follows every access to shared memory.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn a_small_launch_of_each_kernel_agrees_with_f64() {
    let mut rng = StdRng::seed_from_u64(21);
    for gpu in [
        gpu(Element::F16),
        gpu_with(Element::F16, |_| ManyRows::Batch),
    ] {
        for format in [Format::AwqG128, Format::Half] {
            let mut case = |arrangement, parts_n| {
                random_case(&gpu, &mut rng, format, arrangement, parts_n, 512)
            };
            let stacked = case(Arrangement::Stacked, &[64]);
            let paired = case(Arrangement::GateUp, &[64, 64]);
            for m in [1, 12, 20, 64] {
                for (case, epilogue) in [
                    (&stacked, Epilogue::AddResidual),
                    (&paired, Epilogue::SiluMul),
                ] {
                    let error = check(&gpu, &mut rng, case, epilogue, m, false);
                    assert_close(&gpu, case, epilogue, m, error);
                }
            }
        }
    }
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn ragged_shapes_agree_with_f64() {
    let mut rng = StdRng::seed_from_u64(12);
    for (element, format) in Element::ALL
        .into_iter()
        .flat_map(|element| Format::ALL.map(|format| (element, format)))
    {
        let gpu = gpu(element);
        let group = format.group().unwrap_or(8);
        for (n, k) in [
            (8, group),
            (24, 2 * group),
            (1000, 5 * group),
            (136, 4096),
            (2056, 1024 + group),
            (5120, 512),
        ] {
            let case = random_case(&gpu, &mut rng, format, Arrangement::Stacked, &[n], k);
            for m in [1, 5, 8, 13, 29, 64] {
                let error = check(&gpu, &mut rng, &case, Epilogue::StoreF32, m, false);
                assert_close(&gpu, &case, Epilogue::StoreF32, m, error);
            }
        }
    }
}

/// Ranks, stages and phases that the planner would not choose here.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn any_plan_gives_the_same_numbers() {
    let gpu = gpu(Element::F16);
    let mut rng = StdRng::seed_from_u64(13);
    // 11 chunks: slices and phases of unequal size, one of them empty in some ranks.
    let mut case = random_case(
        &gpu,
        &mut rng,
        Format::AwqG128,
        Arrangement::GateUp,
        &[264, 264],
        11 * 256 - 128,
    );
    for m in [1, 8, 12] {
        let chosen = choose_plan(&case.layout, m, gpu.kernels.limits()).expect("a plan");
        for n_ranks in [1, 2, 4, 8] {
            let rank_chunks = case.layout.n_chunks.div_ceil(n_ranks);
            for phase_chunks in 1..=rank_chunks {
                for (n_stages, n_clusters) in [(1, 3), (2, 17)] {
                    let n_phases = rank_chunks.div_ceil(phase_chunks);
                    let plan = Plan {
                        n_ranks,
                        n_clusters,
                        n_stages,
                        phase_chunks,
                        n_phases,
                        ..chosen
                    };
                    if case.linear.set_variant(m, Variant::Stream(plan)).is_err() {
                        continue; // does not fit this card
                    }
                    let error = check(&gpu, &mut rng, &case, Epilogue::SiluMul, m, false);
                    assert_close(&gpu, &case, Epilogue::SiluMul, m, error);
                }
            }
        }
        case.linear
            .set_variant(m, Variant::Stream(chosen))
            .expect("the planner's own plan");
    }
}

/// What a caller may put in the place of the default, on this card and on those without `wgmma`.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn every_candidate_gives_the_same_numbers() {
    let on_other_cards = |element| gpu_with(element, |_| ManyRows::Batch);
    let elements = Element::ALL.into_iter();
    for gpu in elements.flat_map(|element| [gpu(element), on_other_cards(element)]) {
        let mut rng = StdRng::seed_from_u64(19);
        for format in Format::ALL {
            let k = 3 * format.group().unwrap_or(40) + 1024;
            let stacked = random_case(
                &gpu,
                &mut rng,
                format,
                Arrangement::Stacked,
                &[320, 32, 40],
                k,
            );
            let paired = random_case(&gpu, &mut rng, format, Arrangement::GateUp, &[264, 264], k);
            for (mut case, epilogue) in [
                (stacked, Epilogue::AddResidual),
                (paired, Epilogue::SiluMul),
            ] {
                for m in [1, 8, 9, 12, 16, 20, 33, 64] {
                    let candidates = case.linear.candidates(m).expect("candidates");
                    assert!(!candidates.is_empty());
                    for variant in candidates {
                        case.linear.set_variant(m, variant).expect("it can run");
                        assert_eq!(case.linear.variant(m).expect("set"), variant);
                        let error = check(&gpu, &mut rng, &case, epilogue, m, false);
                        assert_close(&gpu, &case, epilogue, m, error);
                    }
                }
            }
        }
        gpu.device.synchronize().expect("no late error");
    }
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn dependent_launches_and_graphs_give_the_same_bits() {
    for element in Element::ALL {
        dependent_launches_and_graphs_agree(element);
    }
}

fn dependent_launches_and_graphs_agree(element: Element) {
    let gpu = gpu(element);
    let mut rng = StdRng::seed_from_u64(14);
    // Two layers: gate and up into a row of elements, down from it into the residual.
    let mut gate_up = random_case(
        &gpu,
        &mut rng,
        Format::AwqG128,
        Arrangement::GateUp,
        &[768, 768],
        512,
    );
    let mut down = random_case(
        &gpu,
        &mut rng,
        Format::AwqG128,
        Arrangement::Stacked,
        &[512],
        768,
    );
    let mut unchained: Vec<Vec<f32>> = Vec::new();
    for (is_chained, m) in [false, true]
        .into_iter()
        .flat_map(|c| [1, 8, 20, 64].map(|m| (c, m)))
    {
        if is_chained {
            gate_up.linear.set_next(&down.linear);
            down.linear.set_next(&gate_up.linear);
        }
        rng = StdRng::seed_from_u64(15 + m as u64);
        let x: Vec<f32> = (0..m * 512).map(|_| rng.random_range(-1.0..1.0)).collect();
        let is_tiled = gpu.kernels.wants_tiled(m);
        let x = if is_tiled {
            tiled(&x, m, 512, 512, 128)
        } else {
            x
        };
        let x = ElementBuffer::from_f32(&gpu.stream, element, &x).expect("memory");
        let hidden = ElementBuffer::zeroed(&gpu.stream, element, 128 * 768).expect("memory");
        let residual = Buffer::<f32>::zeroed(&gpu.stream, m * 512).expect("memory");
        let place = |stride| {
            let (plain, tiled) = (RowLayout::Plain { stride }, RowLayout::Tiled { rows: 128 });
            if is_tiled { tiled } else { plain }
        };
        let x_at = Activation {
            view: x.all(),
            layout: place(512),
        };
        let hidden_at = Activation {
            view: hidden.all(),
            layout: place(768),
        };
        let step = |dependent: bool| -> Result<(), CudaError> {
            residual.all().zero(&gpu.stream)?;
            for i in 0..8 {
                let dependent = dependent && i > 0; // the zeroing is no kernel to overlap with
                gate_up.linear.launch(
                    &gpu.stream,
                    m,
                    x_at,
                    None,
                    Output::SiluMul(hidden_at),
                    dependent,
                )?;
                down.linear.launch(
                    &gpu.stream,
                    m,
                    hidden_at,
                    None,
                    Output::AddResidual(residual.all()),
                    dependent,
                )?;
            }
            Ok(())
        };
        step(false).expect("launches");
        let plain = residual.download(&gpu.stream).expect("download");
        assert!(plain.iter().any(|v| *v != 0.0));
        // What is called into the cache for the next launch changes nothing.
        match unchained
            .iter()
            .find(|other| is_chained && other.len() == plain.len())
        {
            Some(other) => assert_eq!(other, &plain, "m={m}: with the next matrix known"),
            None => unchained.push(plain.clone()),
        }
        step(true).expect("launches");
        assert_eq!(
            residual.download(&gpu.stream).expect("download"),
            plain,
            "m={m}: dependent"
        );
        let graph = Graph::capture(&gpu.stream, || step(true)).expect("a graph");
        assert_eq!(graph.n_nodes().expect("nodes"), 17);
        graph.upload(&gpu.stream).expect("upload");
        for _ in 0..3 {
            graph.launch(&gpu.stream).expect("launch");
            assert_eq!(
                residual.download(&gpu.stream).expect("download"),
                plain,
                "m={m}: graph"
            );
        }
    }
}
