//! `stream_linear` for the five matrices of a decoder, and what prepares weights.

use gpu::{Buffer, CudaError};
use half::f16;
use kernels::cuda::{Activation, Element, ElementBuffer, TILE_ROWS};
use kernels::stream_linear::{
    Arrangement, AwqPart, Epilogue, Format, LargeM, Layout, Output, StreamLinear,
    StreamLinearKernels, fill_normal,
};

use crate::measure::{Bench, Work};
use crate::model::{HEADS, HIDDEN, INTERMEDIATE, VOCAB};
use crate::shape::Shape;

const ROWS: [usize; 6] = [1, 8, 16, 20, 64, 1024];

struct Projection {
    name: &'static str,
    format: Format,
    arrangement: Arrangement,
    parts_n: Vec<usize>,
    k: usize,
    epilogue: Epilogue,
}

/// Those of the model, or the one matrix that was asked for.
fn projections(shape: Shape) -> Vec<Projection> {
    let heads = HEADS.n_q * HEADS.head_dim;
    let kv = HEADS.n_kv * HEADS.head_dim;
    let stacked = |name, parts_n, k, epilogue| Projection {
        name,
        format: Format::AwqG128,
        arrangement: Arrangement::Stacked,
        parts_n,
        k,
        epilogue,
    };
    if let (Some(n), Some(k)) = (shape.n, shape.k) {
        return vec![stacked("matrix", vec![n], k, Epilogue::Store)];
    }
    vec![
        stacked("qkv", vec![heads, kv, kv], HIDDEN, Epilogue::Store),
        stacked("o", vec![HIDDEN], heads, Epilogue::AddResidual),
        Projection {
            arrangement: Arrangement::GateUp,
            ..stacked("gate_up", vec![INTERMEDIATE; 2], HIDDEN, Epilogue::SiluMul)
        },
        stacked("down", vec![HIDDEN], INTERMEDIATE, Epilogue::AddResidual),
        // As GGUF's Q4_K_M and FP8 have them.
        Projection {
            format: Format::MinG32,
            arrangement: Arrangement::GateUp,
            ..stacked(
                "gate_up q4_k",
                vec![INTERMEDIATE; 2],
                HIDDEN,
                Epilogue::SiluMul,
            )
        },
        Projection {
            format: Format::BytesG16,
            ..stacked(
                "down q6_k",
                vec![HIDDEN],
                INTERMEDIATE,
                Epilogue::AddResidual,
            )
        },
        Projection {
            format: Format::Fp8,
            arrangement: Arrangement::GateUp,
            ..stacked(
                "gate_up fp8",
                vec![INTERMEDIATE; 2],
                HIDDEN,
                Epilogue::SiluMul,
            )
        },
        Projection {
            format: Format::Half,
            ..stacked("lm_head", vec![VOCAB], HIDDEN, Epilogue::StoreF32)
        },
    ]
}

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    // The bench uses one stream and the card has no other user.
    let large_m = LargeM::best(&bench.device, true);
    let kernels = StreamLinearKernels::load(&bench.stream, Element::F16, large_m)?;
    for projection in projections(bench.shape) {
        let layout = Layout::new(
            projection.format,
            projection.arrangement,
            &projection.parts_n,
            projection.k,
        )?;
        let mut linear = StreamLinear::new(&kernels, layout)?;
        linear.fill_random(&bench.stream, 1)?;
        for m in bench.shape.rows(&ROWS) {
            if m <= kernels.max_rows() {
                rows(bench, &projection, &linear, m)?;
            }
        }
    }
    if bench.shape.is_the_models() {
        prepare(bench, &kernels)?;
    }
    Ok(())
}

fn rows(
    bench: &mut Bench,
    projection: &Projection,
    linear: &StreamLinear,
    m: usize,
) -> Result<(), CudaError> {
    let layout = linear.layout();
    let (n, stride) = (layout.n(), layout.padded_k());
    let tile_rows = m.next_multiple_of(TILE_ROWS);
    let is_tiled = linear.wants_tiled(m);
    let x_rows = if is_tiled { tile_rows } else { m };
    let x = ElementBuffer::new(&bench.device, Element::F16, x_rows * stride)?;
    fill_normal(&bench.stream, x.all(), 0.0, 1.0, 2)?;
    let x_in = if is_tiled {
        Activation::tiled(x.all(), tile_rows)
    } else {
        Activation::plain(x.all(), stride)
    };
    let is_f32 = matches!(
        projection.epilogue,
        Epilogue::AddResidual | Epilogue::StoreF32
    );
    // As fp16 or as fp32, in tiles or in rows.
    let out_bytes = if is_f32 { 4 * m * n } else { 2 * x_rows * n };
    let out = Buffer::<u8>::zeroed(&bench.stream, out_bytes)?;
    let output = match projection.epilogue {
        Epilogue::Store => Output::Store(out.all().cast::<f16>()?.into()),
        Epilogue::AddResidual => Output::AddResidual(out.all().cast()?),
        Epilogue::StoreF32 => Output::StoreF32(out.all().cast()?),
        Epilogue::SiluMul if is_tiled => {
            Output::SiluMul(Activation::tiled(out.all().cast::<f16>()?, tile_rows))
        }
        Epilogue::SiluMul => Output::SiluMul(Activation::plain(out.all().cast::<f16>()?, n)),
    };
    let columns: usize = layout.parts_n.iter().sum();
    let written = match projection.epilogue {
        Epilogue::AddResidual => 8,
        Epilogue::StoreF32 => 4,
        Epilogue::Store | Epilogue::SiluMul => 2,
    };
    let work = Work {
        bytes: (linear.n_bytes() + 2 * m * layout.k + written * m * n) as f64,
        flops: 2.0 * m as f64 * columns as f64 * layout.k as f64,
    };
    let case = match bench.shape.k {
        Some(k) => format!("{} {n} x {k} {m} rows", projection.name),
        None => format!("{} {m} rows", projection.name),
    };
    bench.case("stream_linear", &case, work, |stream| {
        linear.launch(stream, m, x_in, None, output, false)
    })
}

/// Repacking and dummy weights of one gate matrix.
fn prepare(
    bench: &mut Bench,
    kernels: &std::sync::Arc<StreamLinearKernels>,
) -> Result<(), CudaError> {
    let (n, k) = (INTERMEDIATE, HIDDEN);
    let stream = &bench.stream;
    let qweight = Buffer::<u32>::zeroed(stream, k * n / 8)?;
    let qzeros = Buffer::<u32>::zeroed(stream, k / 128 * n / 8)?;
    let scales = Buffer::<f16>::zeroed(stream, k / 128 * n)?;
    let source = AwqPart {
        qweight: qweight.all(),
        qzeros: qzeros.all(),
        scales: scales.all(),
    };
    let one = |format| Layout::new(format, Arrangement::Stacked, &[n], k);
    let mut awq = StreamLinear::new(kernels, one(Format::AwqG128)?)?;
    let n_read = qweight.n_bytes() + qzeros.n_bytes() + scales.n_bytes();
    let work = Work::bytes(n_read + awq.n_bytes());
    bench.case("repack", "awq 25600 x 5120", work, |stream| {
        awq.load_awq(stream, 0, &source)
    })?;
    let rows = ElementBuffer::zeroed(&bench.stream, Element::F16, n * k)?;
    let mut half = StreamLinear::new(kernels, one(Format::Half)?)?;
    let work = Work::bytes(rows.n_bytes() + half.n_bytes());
    bench.case("repack", "fp16 25600 x 5120", work, |stream| {
        half.load_half(stream, 0, rows.all())
    })?;
    let work = Work::bytes(awq.n_bytes());
    bench.case("random", "awq 25600 x 5120", work, |stream| {
        awq.fill_random(stream, 3)
    })?;
    let work = Work::bytes(half.n_bytes());
    bench.case("random", "fp16 25600 x 5120", work, |stream| {
        half.fill_random(stream, 3)
    })
}
