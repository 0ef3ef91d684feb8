//! Projections as a server runs them: shapes whose tiles of work make whole waves and a rest that is
//! cut, launches that have the device to themselves, chains replayed as graphs, and rows as models
//! make them: with massive values, at the end of fp16, and broken.

#[path = "tests_cuda/case.rs"]
mod case;
#[path = "tests_cuda/rows.rs"]
mod rows;

use std::sync::{Mutex, MutexGuard, PoisonError};

use gpu::{Buffer, CudaError, Graph};
use kernels::cuda::{Activation, Element, ElementBuffer};
use kernels::stream_linear::{Arrangement, Epilogue, Format, LargeM, Layout, Output, StreamLinear};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::case::{
    BF16_FACTOR, Case, Gpu, TOLERANCE_MANY_ROWS, assert_close, gpu_with, random_case,
};
use self::rows::{largest_error, launched};

static DEVICE: Mutex<()> = Mutex::new(());

/// Launches with the device to themselves: tests of this program run one after the other.
fn alone(element: Element) -> (MutexGuard<'static, ()>, Gpu) {
    let guard = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let gpu = gpu_with(element, |device| LargeM::best(device, true));
    (guard, gpu)
}

fn uniform(rng: &mut StdRng, element: Element, n: usize) -> Vec<f32> {
    (0..n)
        .map(|_| element.round(rng.random_range(-1.0..1.0)))
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Columns all over the matrix, and closer at its end, where tiles of work are cut.
fn sampled_columns(n: usize) -> Vec<usize> {
    let near_end = n.saturating_sub(1024);
    (0..16)
        .chain((16..near_end).step_by(397))
        .chain((near_end..n).step_by(7))
        .chain(n - 16..n)
        .collect()
}

fn sampled_rows(m: usize) -> Vec<usize> {
    (0..m)
        .filter(|row| m <= 128 || row % 29 == 0 || *row >= m - 4)
        .collect()
}

#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn whole_and_cut_tiles_of_full_size_agree_with_f64_and_themselves() {
    for element in Element::ALL {
        let (_guard, gpu) = alone(element);
        let mut rng = StdRng::seed_from_u64(41);
        let mut case = |arrangement, parts_n: &[usize], k| {
            random_case(&gpu, &mut rng, Format::AwqG128, arrangement, parts_n, k)
        };
        let gate_up = case(Arrangement::GateUp, &[25_600, 25_600], 512);
        let o = case(Arrangement::Stacked, &[5120], 1024);
        for (case, epilogue) in [(&gate_up, Epilogue::SiluMul), (&o, Epilogue::AddResidual)] {
            let columns = sampled_columns(case.layout.n());
            for m in [20, 64, 128, 1024] {
                if m > gpu.kernels.max_rows() {
                    continue;
                }
                let x = uniform(&mut rng, element, m * case.layout.k);
                let found = launched(&gpu, case, epilogue, m, &x);
                let rows = sampled_rows(m);
                let error = largest_error(element, case, epilogue, &x, &found, &rows, &columns);
                assert_close(&gpu, case, epilogue, m, error);
                let again = launched(&gpu, case, epilogue, m, &x);
                assert!(
                    bits(&again) == bits(&found),
                    "{element:?} {epilogue:?} m={m}: other bits"
                );
            }
        }
    }
}

/// One in 5,000 values is a thousand to ten thousand times the others; or one in 500 is fp16's largest.
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn massive_values_in_x_agree_with_f64_and_saturate_where_they_must() {
    let _guard = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    for (element, is_other_card) in Element::ALL
        .into_iter()
        .flat_map(|element| [(element, false), (element, true)])
    {
        let gpu = gpu_with(element, |device| {
            if is_other_card {
                LargeM::Mma
            } else {
                LargeM::best(device, true)
            }
        });
        let mut rng = StdRng::seed_from_u64(42);
        let formats = [
            Format::AwqG128,
            Format::AwqG32,
            Format::Half,
            Format::MinG32,
            Format::Fp8,
        ];
        for format in formats.into_iter().filter(|f| f.has_element(element)) {
            let mut case = |arrangement, parts_n: &[usize]| {
                random_case(&gpu, &mut rng, format, arrangement, parts_n, 2560)
            };
            let stacked = case(Arrangement::Stacked, &[320, 40]);
            let paired = case(Arrangement::GateUp, &[264, 264]);
            for (case, epilogue) in [
                (&stacked, Epilogue::Store),
                (&stacked, Epilogue::AddResidual),
                (&paired, Epilogue::SiluMul),
            ] {
                let columns: Vec<usize> = (0..case.layout.n()).step_by(3).collect();
                for m in [1, 8, 16, 20, 64, 128] {
                    if m > gpu.kernels.max_rows() {
                        continue;
                    }
                    for one_in in [5000, 500] {
                        let mut x = uniform(&mut rng, element, m * 2560);
                        for value in &mut x {
                            if rng.random_range(0..one_in) == 0 {
                                *value = if one_in == 500 {
                                    element.round(65504.0f32.copysign(*value))
                                } else {
                                    element.round(*value * rng.random_range(1e3..1e4))
                                };
                            }
                        }
                        let found = launched(&gpu, case, epilogue, m, &x);
                        assert!(
                            found.iter().all(|y| y.is_finite()),
                            "{element:?} {format:?} {epilogue:?} m={m}: an infinity"
                        );
                        let rows = sampled_rows(m);
                        let error =
                            largest_error(element, case, epilogue, &x, &found, &rows, &columns);
                        // The tiled kernels round weights to an element.
                        let factor = if element == Element::F16 {
                            1.0
                        } else {
                            BF16_FACTOR
                        };
                        assert!(
                            error < TOLERANCE_MANY_ROWS * factor,
                            "{element:?} {format:?} {epilogue:?} m={m} one in {one_in}: {error:.2e}"
                        );
                    }
                }
            }
        }
    }
}

#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn a_broken_row_changes_no_bit_of_another() {
    let _guard = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    for (element, is_other_card) in Element::ALL
        .into_iter()
        .flat_map(|element| [(element, false), (element, true)])
    {
        let gpu = gpu_with(element, |device| {
            if is_other_card {
                LargeM::Mma
            } else {
                LargeM::best(device, true)
            }
        });
        let mut rng = StdRng::seed_from_u64(43);
        for format in [Format::AwqG128, Format::Half] {
            let mut case = |arrangement, parts_n: &[usize]| {
                random_case(&gpu, &mut rng, format, arrangement, parts_n, 768)
            };
            let stacked = case(Arrangement::Stacked, &[320, 40]);
            let paired = case(Arrangement::GateUp, &[264, 264]);
            for (case, epilogue) in [
                (&stacked, Epilogue::Store),
                (&stacked, Epilogue::StoreF32),
                (&paired, Epilogue::SiluMul),
            ] {
                for m in [2, 8, 16, 20, 33, 64, 128, 300] {
                    if m <= gpu.kernels.max_rows() {
                        check_broken_row(&gpu, &mut rng, case, epilogue, m);
                    }
                }
            }
        }
    }
}

fn check_broken_row(gpu: &Gpu, rng: &mut StdRng, case: &Case, epilogue: Epilogue, m: usize) {
    let (n, k) = (case.layout.n(), case.layout.k);
    let element = gpu.kernels.element();
    let good = uniform(rng, element, m * k);
    let clean = launched(gpu, case, epilogue, m, &good);
    let broken = rng.random_range(0..m);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = good.clone();
        x[broken * k + rng.random_range(0..k)] = value;
        let found = launched(gpu, case, epilogue, m, &x);
        let what = format!(
            "{element:?} {:?} {epilogue:?} m={m} {value}",
            case.layout.format
        );
        for (row, (found, clean)) in found.chunks_exact(n).zip(clean.chunks_exact(n)).enumerate() {
            if row != broken {
                assert!(
                    bits(found) == bits(clean),
                    "{what}: row {row}, broken is {broken}"
                );
            } else if value.is_nan() {
                assert!(found.iter().all(|y| y.is_nan()), "{what}: NaN is hidden");
            }
        }
    }
}

/// Four layers' projections of Qwen3-32B with random weights, launched as the engine does.
struct Chain {
    /// q, k, v; o; gate, up; down
    layers: Vec<[StreamLinear; 4]>,
}

impl Chain {
    const HIDDEN: usize = 5120;
    const HEADS: usize = 8192;
    const QKV: [usize; 3] = [8192, 1024, 1024];
    const GATED: usize = 25_600;

    fn new(gpu: &Gpu) -> Self {
        let matrix = |seed, arrangement, parts_n: &[usize], k| {
            let layout =
                Layout::new(Format::AwqG128, arrangement, parts_n, k).expect("a shape that fits");
            let mut linear = StreamLinear::new(&gpu.kernels, layout).expect("memory");
            linear.fill_random(&gpu.stream, seed).expect("weights");
            linear
        };
        let (stacked, paired) = (Arrangement::Stacked, Arrangement::GateUp);
        let mut layers: Vec<_> = (0..4)
            .map(|i| {
                [
                    matrix(10 * i, stacked, &Self::QKV, Self::HIDDEN),
                    matrix(10 * i + 1, stacked, &[Self::HIDDEN], Self::HEADS),
                    matrix(10 * i + 2, paired, &[Self::GATED; 2], Self::HIDDEN),
                    matrix(10 * i + 3, stacked, &[Self::HIDDEN], Self::GATED),
                ]
            })
            .collect();
        for layer in &mut layers {
            for i in 0..3 {
                let (before, after) = layer.split_at_mut(i + 1);
                before[i].set_next(&after[0]);
            }
        }
        Self { layers }
    }
}

#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
#[test]
fn a_thousand_replays_of_full_size_layers_give_the_same_bits() {
    let (_guard, gpu) = alone(Element::F16);
    let (stream, element) = (&gpu.stream, Element::F16);
    let chain = Chain::new(&gpu);
    let mut rng = StdRng::seed_from_u64(44);
    for m in [1, 20, 64, 1024] {
        if m > gpu.kernels.max_rows() {
            continue;
        }
        let rows = m.next_multiple_of(128);
        let is_tiled = gpu.kernels.wants_tiled(m);
        let of_rows = |columns: usize, values: Option<&mut StdRng>| {
            let n = if is_tiled {
                rows * columns
            } else {
                m * columns
            };
            match values {
                Some(rng) => ElementBuffer::from_f32(stream, element, &uniform(rng, element, n)),
                None => ElementBuffer::zeroed(stream, element, n),
            }
            .expect("memory")
        };
        let x = of_rows(Chain::HIDDEN, Some(&mut rng));
        let attended = of_rows(Chain::HEADS, Some(&mut rng));
        let gated = of_rows(Chain::GATED, None);
        let n_qkv: usize = Chain::QKV.iter().sum();
        let qkv = ElementBuffer::zeroed(stream, element, m * n_qkv).expect("memory");
        let h = Buffer::<f32>::zeroed(stream, m * Chain::HIDDEN).expect("memory");
        let (x, attended, gated_at) = (
            activation(&x, is_tiled, rows, Chain::HIDDEN),
            activation(&attended, is_tiled, rows, Chain::HEADS),
            activation(&gated, is_tiled, rows, Chain::GATED),
        );
        let step = || -> Result<(), CudaError> {
            h.all().zero(stream)?;
            for [to_qkv, o, gate_up, down] in &chain.layers {
                let residual = || Output::AddResidual(h.all());
                to_qkv.launch(stream, m, x, None, Output::Store(qkv.all()), false)?;
                o.launch(stream, m, attended, None, residual(), true)?;
                gate_up.launch(stream, m, x, None, Output::SiluMul(gated_at), true)?;
                down.launch(stream, m, gated_at, None, residual(), true)?;
            }
            Ok(())
        };
        let graph = Graph::capture(stream, step).expect("a graph");
        graph.upload(stream).expect("upload");
        let replay = || {
            graph.launch(stream).expect("launch");
            (
                bits(&h.download(stream).expect("download")),
                bits(&qkv.download(stream).expect("download")),
            )
        };
        let first = replay();
        assert!(first.0.iter().any(|h| *h != 0) && first.1.iter().any(|y| *y != 0));
        // A pass of 1,024 rows takes a hundred times as long as one row.
        let n_replays = if m > 128 { 50 } else { 1000 };
        for i in 1..n_replays {
            assert!(replay() == first, "m={m}: replay {i}");
        }
    }
}

fn activation(
    buffer: &ElementBuffer,
    is_tiled: bool,
    rows: usize,
    columns: usize,
) -> Activation<'_> {
    if is_tiled {
        Activation::tiled(buffer.all(), rows)
    } else {
        Activation::plain(buffer.all(), columns)
    }
}
