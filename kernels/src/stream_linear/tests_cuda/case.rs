//! A random matrix on the GPU, one launch with it, and how far that is from f64.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::sync::Arc;

use gpu::{Buffer, Device, Stream, use_kernels_of_environment};
use half::f16;
use kernels::cuda::{Activation, Element, ElementBuffer, RowLayout};
use kernels::stream_linear::codes::{self, CodeSource, Packed};
use kernels::stream_linear::reference::{self, AwqMatrix, CodeMatrix, pack_awq, pack_half};
use kernels::stream_linear::{
    Arrangement, AwqPart, Epilogue, Format, LargeM, Layout, Output, StreamLinear,
    StreamLinearKernels, Variant,
};
use rand::Rng;
use rand::rngs::StdRng;

pub struct Gpu {
    pub device: Device,
    pub stream: Stream,
    pub kernels: Arc<StreamLinearKernels>,
}

/// Tests run side by side, so no launch has the device to itself.
pub fn gpu(element: Element) -> Gpu {
    let best = |device: &Device| LargeM::best(device, false);
    gpu_with(element, best)
}

pub fn gpu_with(element: Element, large_m: impl Fn(&Device) -> LargeM) -> Gpu {
    use_kernels_of_environment().expect("a folder of compiled kernels");
    let device = Device::open(0).expect("these tests need a GPU and a build with kernels for it");
    let stream = Stream::new(&device).expect("a stream");
    let kernels =
        StreamLinearKernels::load(&stream, element, large_m(&device)).expect("the kernels");
    Gpu {
        device,
        stream,
        kernels,
    }
}

/// A random matrix on the device and what it should compute with.
pub struct Case {
    pub linear: StreamLinear,
    pub layout: Layout,
    /// A part each: W[n][k].
    pub weights: Vec<Vec<f64>>,
}

pub fn random_case(
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
        if let Some(group) = format.awq_group() {
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
        } else if format.group().is_some() {
            let scale = if format == Format::Fp8 {
                0.1
            } else {
                0.16 / f32::powi(2.0, format.code_bits() as i32)
            };
            let matrix = CodeMatrix::random(format, (n, k), scale, || rng.random());
            codes::pack(&layout, part, CodeSource::Codes(&matrix), &mut packed).expect("packed");
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
    if format.group().is_some() && format.awq_group().is_none() {
        linear
            .load_packed(&gpu.stream, &packed.weights, &packed.scales)
            .expect("upload");
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

/// Plain rows as tiles; rows after the last are NaN.
pub fn tiled(x: &[f32], m: usize, stride: usize, columns: usize, rows: usize) -> Vec<f32> {
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
pub fn check(
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

    // Tiles hold whole groups of rows; values after the m rows must not matter.
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
    // One row more than needed, to see that nothing is written after the last.
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
        "{layout:?} {epilogue:?} m={m}: wrote past the output"
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
/// add to that. In the tiled kernels the weights are rounded to fp16 as well, (q - z) s, instead of
/// staying integers until the scale is applied to the sums.
pub const TOLERANCE: f64 = 2e-3;
pub const TOLERANCE_MANY_ROWS: f64 = 4e-3;
/// bf16 rounds to 8 bits where fp16 rounds to 11: weights in the tiled kernels, and the output. Eight times
/// as much, and somewhat more for the worst of a million outputs of a full-size matrix (3.24e-2 there,
/// the same by `wgmma.cu` and `mma.cu`).
pub const BF16_FACTOR: f64 = 10.0;

pub fn assert_close(gpu: &Gpu, case: &Case, epilogue: Epilogue, m: usize, error: f64) {
    let element = gpu.kernels.element();
    // Weights of 8 bits are rounded in every kernel.
    let is_stream = matches!(case.linear.variant(m), Ok(Variant::Stream(_)))
        && case.layout.format.code_bits() != 8;
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
