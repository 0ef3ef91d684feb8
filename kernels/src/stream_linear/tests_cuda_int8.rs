//! Products with activations in 8 bits on a GPU: the rounding bit by bit, the rest against f64.
//!
//! Ignored where no GPU is expected; `ENGINE_TEST_CUDA=1` at build time, or `--ignored`, runs
//! them, and then a missing GPU, driver or kernel fails.

#[path = "tests_cuda/case.rs"]
mod case;
#[path = "tests_cuda/rows.rs"]
mod rows;

use std::sync::Arc;

use gpu::{Device, Stream, use_kernels_of_environment};
use kernels::cuda::Element;
use kernels::stream_linear::reference::{int8_offset, quantize_row};
use kernels::stream_linear::{
    Arrangement, Epilogue, Format, Int8Room, LargeM, StreamLinearKernels, Variant,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::case::{Case, Gpu, random_case};
use self::rows::{largest_error, launched};

const ROOM: Int8Room = Int8Room {
    rows: 1024,
    k: 2048,
};

/// With 8-bit activations; without `wgmma`, as on other GPUs.
fn gpu(element: Element) -> Gpu {
    use_kernels_of_environment().expect("a folder of compiled kernels");
    let device = Device::open(0).expect("these tests need a GPU and a build with kernels for it");
    let stream = Stream::new(&device).expect("a stream");
    let kernels = StreamLinearKernels::load_with_int8(&stream, element, LargeM::Mma, Some(ROOM))
        .expect("the kernels");
    Gpu {
        device,
        stream,
        kernels,
    }
}

fn random_rows(rng: &mut StdRng, element: Element, m: usize, k: usize) -> Vec<f32> {
    // Groups of unlike size, so that a scale that belongs to another shows.
    let value = |i: usize, v: f32| element.round(v * 2.0_f32.powi((i / 128 % 7) as i32 - 3));
    (0..m * k)
        .map(|i| value(i, rng.random_range(-1.0..1.0)))
        .collect()
}

/// What the rows are once they are in 8 bits.
fn rounded(x: &[f32], k: usize) -> Vec<f32> {
    x.chunks(k)
        .flat_map(|row| {
            let (values, scales) = quantize_row(row);
            let value = move |(i, q): (usize, &i8)| f32::from(*q) * scales[i / 128];
            values.iter().enumerate().map(value).collect::<Vec<f32>>()
        })
        .collect()
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn rows_are_rounded_as_the_reference_rounds_them() {
    for element in Element::ALL {
        let gpu = gpu(element);
        let mut rng = StdRng::seed_from_u64(31);
        for (m, k) in [(17, 128), (33, 1152), (64, 2048), (300, 640)] {
            let case = random_case(
                &gpu,
                &mut rng,
                Format::AwqG128,
                Arrangement::Stacked,
                &[64],
                k,
            );
            let x = random_rows(&mut rng, element, m, k);
            launched(&gpu, &case, Epilogue::StoreF32, m, &x);
            let (q, scales) = gpu.kernels.quantized_x().expect("loaded");
            let q = q.download(&gpu.stream).expect("download");
            let scales = scales.download(&gpu.stream).expect("download");
            let rows = m.next_multiple_of(if m > 32 { 64 } else { 32 });
            for (row, x) in x.chunks(k).enumerate() {
                let (values, expected) = quantize_row(x);
                for (at, value) in values.iter().enumerate() {
                    let found = q[int8_offset(row, at, rows)] as i8;
                    assert_eq!(found, *value, "{element:?} m {m} row {row} k {at}");
                }
                for (group, scale) in expected.iter().enumerate() {
                    let found = scales[group * rows + row];
                    assert_eq!(found.to_bits(), scale.to_bits(), "row {row} group {group}");
                }
            }
        }
    }
}

/// Nothing is lost but what rounding x loses: the products are whole numbers.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn products_of_rounded_rows_are_exact() {
    for element in Element::ALL {
        let gpu = gpu(element);
        let mut rng = StdRng::seed_from_u64(32);
        let of_output = if element == Element::F16 { 6e-4 } else { 5e-3 };
        let k = 1408; // eleven groups: the last chunk is half empty
        let stacked = [160, 32, 40];
        let stacked = random_case(
            &gpu,
            &mut rng,
            Format::AwqG128,
            Arrangement::Stacked,
            &stacked,
            k,
        );
        let paired = [200, 200];
        let paired = random_case(
            &gpu,
            &mut rng,
            Format::AwqG128,
            Arrangement::GateUp,
            &paired,
            k,
        );
        for m in [17, 20, 32, 33, 63, 64, 65, 128, 300, 1000] {
            for epilogue in Epilogue::ALL {
                let case = if epilogue == Epilogue::SiluMul {
                    &paired
                } else {
                    &stacked
                };
                let is_f32 = matches!(epilogue, Epilogue::AddResidual | Epilogue::StoreF32);
                let tolerance = if is_f32 { 2e-6 } else { of_output };
                let error = error_against_rounded(&gpu, &mut rng, case, epilogue, m);
                assert!(
                    error < tolerance,
                    "{element:?} {epilogue:?} m={m}: {error:.2e}"
                );
                assert!(matches!(
                    case.linear.variant(m),
                    Ok(Variant::MmaInt8 { .. })
                ));
            }
        }
        gpu.device.synchronize().expect("no late error");
    }
}

fn error_against_rounded(
    gpu: &Gpu,
    rng: &mut StdRng,
    case: &Case,
    epilogue: Epilogue,
    m: usize,
) -> f64 {
    let (element, k) = (gpu.kernels.element(), case.layout.k);
    let x = random_rows(rng, element, m, k);
    let found = launched(gpu, case, epilogue, m, &x);
    let rows: Vec<usize> = (0..m).step_by(1 + m / 16).chain([m - 1]).collect();
    let columns: Vec<usize> = (0..case.layout.n()).collect();
    largest_error(
        element,
        case,
        epilogue,
        &rounded(&x, k),
        &found,
        &rows,
        &columns,
    )
}

/// 8-bit rounding of uniform values costs 0.3 % of an output, no more.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn rounding_costs_less_than_a_hundredth() {
    let gpu = gpu(Element::F16);
    let mut rng = StdRng::seed_from_u64(33);
    let case = random_case(
        &gpu,
        &mut rng,
        Format::AwqG128,
        Arrangement::Stacked,
        &[512],
        2048,
    );
    let x = random_rows(&mut rng, Element::F16, 64, 2048);
    let found = launched(&gpu, &case, Epilogue::StoreF32, 64, &x);
    let rows: Vec<usize> = (0..64).collect();
    let columns: Vec<usize> = (0..512).collect();
    let error = largest_error(
        Element::F16,
        &case,
        Epilogue::StoreF32,
        &x,
        &found,
        &rows,
        &columns,
    );
    assert!((1e-4..2e-2).contains(&error), "{error:.2e}");
}

/// Cut tiles, many runs: the sums are added in the same order each time.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn every_run_gives_the_same_bits() {
    let gpu = gpu(Element::F16);
    let mut rng = StdRng::seed_from_u64(34);
    for n in [5120, 40_960] {
        let case = random_case(
            &gpu,
            &mut rng,
            Format::AwqG128,
            Arrangement::Stacked,
            &[n],
            1024,
        );
        for m in [20, 64, 200] {
            let x = random_rows(&mut rng, Element::F16, m, 1024);
            let first = launched(&gpu, &case, Epilogue::StoreF32, m, &x);
            for _ in 0..20 {
                let again = launched(&gpu, &case, Epilogue::StoreF32, m, &x);
                assert!(first == again, "n {n} m {m}");
            }
        }
    }
}

/// A row with NaN or an infinity is broken, and no other.
#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn a_broken_row_is_broken_alone() {
    for (element, broken) in Element::ALL
        .into_iter()
        .flat_map(|element| [f32::NAN, f32::INFINITY].map(|v| (element, v)))
    {
        let gpu = gpu(element);
        let mut rng = StdRng::seed_from_u64(35);
        let case = random_case(
            &gpu,
            &mut rng,
            Format::AwqG128,
            Arrangement::Stacked,
            &[256],
            512,
        );
        let x = random_rows(&mut rng, element, 40, 512);
        let whole = launched(&gpu, &case, Epilogue::StoreF32, 40, &x);
        let mut with_broken = x.clone();
        with_broken[7 * 512 + 300] = broken;
        let found = launched(&gpu, &case, Epilogue::StoreF32, 40, &with_broken);
        for row in 0..40 {
            let (a, b) = (&whole[row * 256..][..256], &found[row * 256..][..256]);
            if row == 7 {
                assert!(b.iter().all(|v| !v.is_finite()), "{element:?} {broken}");
            } else {
                assert_eq!(a, b, "{element:?} {broken} row {row}");
            }
        }
    }
}

#[cfg_attr(
    not(engine_test_cuda),
    ignore = "needs a GPU: ENGINE_TEST_CUDA=1, or --ignored"
)]
#[test]
fn more_than_the_room_is_refused() {
    let gpu = gpu(Element::F16);
    let mut rng = StdRng::seed_from_u64(36);
    let wide = Arc::clone(&gpu.kernels);
    assert!(wide.loaded().int8);
    let case = random_case(
        &gpu,
        &mut rng,
        Format::AwqG128,
        Arrangement::Stacked,
        &[64],
        2176,
    );
    let x = kernels::cuda::ElementBuffer::zeroed(&gpu.stream, Element::F16, 128 * 2304)
        .expect("memory");
    let out = gpu::Buffer::<f32>::zeroed(&gpu.stream, 20 * 64).expect("memory");
    let error = case
        .linear
        .launch(
            &gpu.stream,
            20,
            kernels::cuda::Activation::tiled(x.all(), 128),
            None,
            kernels::stream_linear::Output::StoreF32(out.all()),
            false,
        )
        .expect_err("k is larger than the room")
        .to_string();
    assert!(error.contains("2304") && error.contains("2048"), "{error}");
}
