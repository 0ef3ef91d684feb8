//! Projections against f64: every format, epilogue and kernel at small shapes, and a 32B model's
//! matrices at a server's numbers of rows, sampled.

use std::sync::Arc;

use ::gpu::{Buffer, CudaError, Stream};
use half::f16;
use kernels::cuda::{Activation, Element, ElementBuffer, RowLayout, TILE_ROWS};
use kernels::stream_linear::codes::{self, CodeSource, Packed};
use kernels::stream_linear::reference::{AwqMatrix, CodeMatrix, quantize_row};
use kernels::stream_linear::{
    Arrangement, AwqPart, Epilogue, Format, Int8Room, LargeM, Layout, Output, StreamLinear,
    StreamLinearKernels, Variant,
};
use rand::Rng;
use rand::rngs::StdRng;

use super::checks::Checks;
use super::random::{elements, rng};

/// As the tests have it: rounding to fp16 makes up to 5e-4 of a value; the tiled kernels round the
/// weights to the element as well.
const LIMIT_STREAM: f64 = 2e-3;
const LIMIT_TILED: f64 = 4e-3;
/// bf16 has three bits less than fp16, and the worst of a full-size matrix is somewhat more.
const BF16_FACTOR: f64 = 10.0;
/// Sums of whole numbers are exact; those of their groups are fp32.
const LIMIT_INT8_F32: f64 = 1e-5;
const LIMIT_INT8_F16: f64 = 6e-4;
/// Values of an output row before the launch, where it adds to them.
const BEFORE: f32 = 0.5;

/// A matrix of Qwen3-32B in 4 bits.
pub struct Served {
    pub name: &'static str,
    pub arrangement: Arrangement,
    pub parts_n: &'static [usize],
    pub k: usize,
    pub epilogue: Epilogue,
}

pub const SERVED: [Served; 4] = [
    Served {
        name: "qkv",
        arrangement: Arrangement::Stacked,
        parts_n: &[8192, 1024, 1024],
        k: 5120,
        epilogue: Epilogue::Store,
    },
    Served {
        name: "o",
        arrangement: Arrangement::Stacked,
        parts_n: &[5120],
        k: 8192,
        epilogue: Epilogue::AddResidual,
    },
    Served {
        name: "gate_up",
        arrangement: Arrangement::GateUp,
        parts_n: &[25_600, 25_600],
        k: 5120,
        epilogue: Epilogue::SiluMul,
    },
    Served {
        name: "down",
        arrangement: Arrangement::Stacked,
        parts_n: &[5120],
        k: 25_600,
        epilogue: Epilogue::AddResidual,
    },
];

const SERVED_ROWS: [usize; 6] = [1, 8, 16, 20, 64, 1024];
const SMALL_ROWS: [usize; 6] = [1, 8, 12, 20, 64, 300];
const INT8_ROWS: [usize; 4] = [17, 64, 300, 1024];

pub fn check(stream: &Stream, checks: &mut Checks) -> Result<(), CudaError> {
    let device = stream.device();
    let own = LargeM::best(device, !device.is_shared());
    for element in Element::ALL {
        let kernels = StreamLinearKernels::load(stream, element, own)?;
        small(stream, &kernels, &SMALL_ROWS, checks)?;
        if own != LargeM::Mma {
            // Other cards' kernels for many rows run here as well.
            let of_others = StreamLinearKernels::load(stream, element, LargeM::Mma)?;
            small(stream, &of_others, &SMALL_ROWS[2..], checks)?;
        }
        served(stream, &kernels, checks)?;
    }
    int8(stream, own, checks)
}

fn small(
    stream: &Stream,
    kernels: &Arc<StreamLinearKernels>,
    rows: &[usize],
    checks: &mut Checks,
) -> Result<(), CudaError> {
    let mut rng = rng(11);
    let element = kernels.element();
    for format in Format::ALL.into_iter().filter(|f| f.has_element(element)) {
        // n a multiple of 8 but not of 16, k a multiple of the group but not of the chunk.
        let k = 3 * format.group().unwrap_or(40) + 512;
        let mut matrix = |arrangement, parts_n: &[usize]| {
            Matrix::random(stream, kernels, &mut rng, format, arrangement, parts_n, k)
        };
        let stacked = matrix(Arrangement::Stacked, &[160, 32, 40])?;
        let paired = matrix(Arrangement::GateUp, &[200, 200])?;
        let x = elements(&mut rng, kernels.element(), 300 * k, 1.0);
        for (i, m) in rows.iter().enumerate() {
            let pair = [
                [Epilogue::Store, Epilogue::SiluMul],
                [Epilogue::AddResidual, Epilogue::StoreF32],
            ];
            for epilogue in pair[i % 2] {
                let matrix = if epilogue == Epilogue::SiluMul {
                    &paired
                } else {
                    &stacked
                };
                let columns: Vec<usize> = (0..matrix.layout.n()).collect();
                matrix.check(stream, checks, "small", epilogue, *m, &x, &columns);
            }
        }
    }
    Ok(())
}

fn served(
    stream: &Stream,
    kernels: &Arc<StreamLinearKernels>,
    checks: &mut Checks,
) -> Result<(), CudaError> {
    let element = kernels.element();
    let mut rng = rng(12);
    let most = SERVED_ROWS[SERVED_ROWS.len() - 1];
    for served in &SERVED {
        // Of bf16 the largest matrix alone, in the interest of time.
        if element == Element::Bf16 && served.name != "gate_up" {
            continue;
        }
        let Served {
            arrangement,
            parts_n,
            k,
            ..
        } = *served;
        let format = Format::AwqG128;
        let matrix = Matrix::random(stream, kernels, &mut rng, format, arrangement, parts_n, k)?;
        let x = elements(&mut rng, element, most * k, 1.0);
        let columns = sampled(matrix.layout.n());
        for m in SERVED_ROWS {
            matrix.check(
                stream,
                checks,
                served.name,
                served.epilogue,
                m,
                &x,
                &columns,
            );
        }
    }
    if element == Element::Bf16 {
        return Ok(());
    }
    // Qwen3's vocabulary, with shorter rows.
    let k = 256;
    let stacked = Arrangement::Stacked;
    let head = Matrix::random(
        stream,
        kernels,
        &mut rng,
        Format::Half,
        stacked,
        &[151_936],
        k,
    )?;
    let x = elements(&mut rng, element, 64 * k, 1.0);
    let columns = sampled(head.layout.n());
    for m in [1, 8, 20, 64] {
        head.check(
            stream,
            checks,
            "lm_head",
            Epilogue::StoreF32,
            m,
            &x,
            &columns,
        );
    }
    Ok(())
}

fn int8(stream: &Stream, large_m: LargeM, checks: &mut Checks) -> Result<(), CudaError> {
    let (element, format) = (Element::F16, Format::AwqG128);
    let room = Int8Room {
        rows: 1024,
        k: 5120,
    };
    let kernels = StreamLinearKernels::load_with_int8(stream, element, large_m, Some(room))?;
    let mut rng = rng(13);
    let stacked = Arrangement::Stacked;
    let o = Matrix::random(stream, &kernels, &mut rng, format, stacked, &[5120], 5120)?;
    let pair = Arrangement::GateUp;
    let parts_n = [25_600, 25_600];
    let gate_up = Matrix::random(stream, &kernels, &mut rng, format, pair, &parts_n, 1024)?;
    let of_case = [
        ("o", &o, Epilogue::AddResidual),
        ("gate_up", &gate_up, Epilogue::SiluMul),
    ];
    for (name, matrix, epilogue) in of_case {
        let x = elements(&mut rng, element, 1024 * matrix.layout.k, 1.0);
        let columns = sampled(matrix.layout.n());
        for m in INT8_ROWS {
            matrix.check(stream, checks, name, epilogue, m, &x, &columns);
        }
    }
    Ok(())
}

/// Columns at both ends of a matrix and some between.
fn sampled(n: usize) -> Vec<usize> {
    (0..16)
        .chain((16..n - 16).step_by(n / 40))
        .chain(n - 16..n)
        .collect()
}

/// The first and last rows, and one in the middle.
fn sampled_rows(m: usize) -> Vec<usize> {
    let mut rows: Vec<usize> = if m <= 4 {
        (0..m).collect()
    } else {
        vec![0, 1, m / 2, m - 2, m - 1]
    };
    rows.dedup();
    rows
}

enum Part {
    Awq(AwqMatrix),
    /// Of the formats that are packed on the host.
    Codes(CodeMatrix),
    /// Bits of elements, `[n][k]`.
    Half(Vec<u16>),
}

/// A random matrix on the device, and what it was made of.
struct Matrix {
    linear: StreamLinear,
    layout: Layout,
    element: Element,
    parts: Vec<Part>,
}

impl Matrix {
    fn random(
        stream: &Stream,
        kernels: &Arc<StreamLinearKernels>,
        rng: &mut StdRng,
        format: Format,
        arrangement: Arrangement,
        parts_n: &[usize],
        k: usize,
    ) -> Result<Self, CudaError> {
        let layout = Layout::new(format, arrangement, parts_n, k)?;
        let mut linear = StreamLinear::new(kernels, layout.clone())?;
        let element = kernels.element();
        let mut parts = Vec::new();
        if format.group().is_some() && format.awq_group().is_none() {
            let scale = 0.16 / f32::powi(2.0, format.code_bits() as i32);
            let mut packed = Packed::zeroed(&layout);
            for (i, &n) in parts_n.iter().enumerate() {
                let matrix = CodeMatrix::random(format, (n, k), scale, || rng.random());
                codes::pack(&layout, i, CodeSource::Codes(&matrix), &mut packed)?;
                parts.push(Part::Codes(matrix));
            }
            linear.load_packed(stream, &packed.weights, &packed.scales)?;
            return Ok(Self {
                linear,
                layout,
                element,
                parts,
            });
        }
        for (i, &n) in parts_n.iter().enumerate() {
            let Some(group) = format.awq_group() else {
                let bits: Vec<u16> = (0..n * k)
                    .map(|_| element.bits(rng.random_range(-0.1..0.1)))
                    .collect();
                let source = ElementBuffer::from_bits(stream, element, &bits)?;
                linear.load_half(stream, i, source.all())?;
                parts.push(Part::Half(bits));
                continue;
            };
            let mut words = |len: usize| {
                let mut words = vec![0_u32; len];
                rng.fill(&mut words[..]);
                words
            };
            let matrix = AwqMatrix {
                n,
                k,
                group,
                qweight: words(k * n / 8),
                qzeros: words(k / group * n / 8),
                scales: (0..k / group * n)
                    .map(|_| f16::from_f32(rng.random_range(0.002..0.02)))
                    .collect(),
            };
            let qweight = Buffer::from_slice(stream, &matrix.qweight)?;
            let qzeros = Buffer::from_slice(stream, &matrix.qzeros)?;
            let scales = Buffer::from_slice(stream, &matrix.scales)?;
            let source = AwqPart {
                qweight: qweight.all(),
                qzeros: qzeros.all(),
                scales: scales.all(),
            };
            linear.load_awq(stream, i, &source)?;
            parts.push(Part::Awq(matrix));
        }
        Ok(Self {
            linear,
            layout,
            element,
            parts,
        })
    }

    /// One check of `m` rows of `x: [..][k]` against f64, and one that a second launch gives the same
    /// bits.
    fn check(
        &self,
        stream: &Stream,
        checks: &mut Checks,
        name: &str,
        epilogue: Epilogue,
        m: usize,
        x: &[f32],
        columns: &[usize],
    ) {
        let variant = self.linear.variant(m).ok();
        let family = family(variant);
        let case = format!(
            "{name} {:?} {} {epilogue:?}, {m} rows of {} to {}",
            self.layout.format,
            self.element.name(),
            self.layout.k,
            self.layout.n(),
        );
        let x = &x[..m * self.layout.k];
        let mut found = Vec::new();
        checks.run(family, &*case, self.limit(variant, epilogue), || {
            found = self.launched(stream, epilogue, m, x)?;
            let is_int8 = matches!(variant, Some(Variant::MmaInt8 { .. }));
            Ok::<_, CudaError>(self.largest_error(epilogue, m, x, &found, columns, is_int8))
        });
        if found.is_empty() {
            return;
        }
        checks.run(family, format!("{case}: the same bits again"), 0.0, || {
            let again = self.launched(stream, epilogue, m, x)?;
            let n_other = found
                .iter()
                .zip(&again)
                .filter(|(a, b)| a.to_bits() != b.to_bits());
            Ok::<_, CudaError>(n_other.count() as f64 / again.len() as f64)
        });
    }

    fn limit(&self, variant: Option<Variant>, epilogue: Epilogue) -> f64 {
        let is_f32 = matches!(epilogue, Epilogue::AddResidual | Epilogue::StoreF32);
        // Weights of 8 bits are rounded in every kernel.
        let is_rounded = self.layout.format.code_bits() == 8;
        let of_f16 = match variant {
            Some(Variant::MmaInt8 { .. }) if is_f32 => return LIMIT_INT8_F32,
            Some(Variant::MmaInt8 { .. }) => LIMIT_INT8_F16,
            Some(Variant::Stream(_)) if is_rounded => LIMIT_TILED,
            // Streamed, bf16 loses nothing until the output is rounded.
            Some(Variant::Stream(_)) if is_f32 => return LIMIT_STREAM,
            Some(Variant::Stream(_)) => LIMIT_STREAM,
            _ => LIMIT_TILED,
        };
        match self.element {
            Element::F16 => of_f16,
            Element::Bf16 => BF16_FACTOR * of_f16,
        }
    }

    /// One launch; `[m][n]`.
    fn launched(
        &self,
        stream: &Stream,
        epilogue: Epilogue,
        m: usize,
        x: &[f32],
    ) -> Result<Vec<f32>, CudaError> {
        let (n, k, columns) = (self.layout.n(), self.layout.k, self.layout.padded_k());
        let element = self.element;
        let is_tiled = self.linear.wants_tiled(m);
        let rows = m.next_multiple_of(TILE_ROWS);
        let layout = if is_tiled {
            RowLayout::Tiled { rows }
        } else {
            RowLayout::Plain { stride: columns }
        };
        let mut placed = vec![0.0; columns * if is_tiled { rows } else { m }];
        for (row, values) in x.chunks_exact(k).enumerate() {
            for (at, value) in values.iter().enumerate() {
                placed[layout.offset(row, at)] = *value;
            }
        }
        let x = ElementBuffer::from_f32(stream, element, &placed)?;
        let x = Activation {
            view: x.all(),
            layout,
        };
        let launch = |output| self.linear.launch(stream, m, x, None, output, true);
        match epilogue {
            Epilogue::Store | Epilogue::SiluMul => {
                let out = ElementBuffer::zeroed(stream, element, m * n)?;
                launch(if epilogue == Epilogue::Store {
                    Output::Store(out.all())
                } else {
                    Output::SiluMul(Activation::plain(out.all(), n))
                })?;
                out.download(stream)
            }
            Epilogue::AddResidual | Epilogue::StoreF32 => {
                let out = Buffer::from_slice(stream, &vec![BEFORE; m * n])?;
                launch(if epilogue == Epilogue::StoreF32 {
                    Output::StoreF32(out.all())
                } else {
                    Output::AddResidual(out.all())
                })?;
                out.download(stream)
            }
        }
    }

    fn dot(&self, part: usize, column: usize, x: &[f64]) -> f64 {
        let products = x.iter().enumerate();
        match &self.parts[part] {
            Part::Awq(matrix) => products.map(|(k, x)| matrix.weight(column, k) * x).sum(),
            Part::Codes(matrix) => products.map(|(k, x)| matrix.weight(column, k) * x).sum(),
            Part::Half(bits) => products
                .map(|(k, x)| f64::from(self.element.value(bits[column * self.layout.k + k])) * x)
                .sum(),
        }
    }

    fn expected(&self, epilogue: Epilogue, x: &[f64], column: usize) -> f64 {
        if self.layout.arrangement == Arrangement::GateUp {
            let gate = self.dot(0, column, x);
            return gate / (1.0 + (-gate).exp()) * self.dot(1, column, x);
        }
        let (mut part, mut column) = (0, column);
        while column >= self.layout.parts_n[part] {
            column -= self.layout.parts_n[part];
            part += 1;
        }
        let y = self.dot(part, column, x);
        if epilogue == Epilogue::AddResidual {
            y + f64::from(BEFORE)
        } else {
            y
        }
    }

    /// The largest error of the sampled outputs, relative to the value and its row's mean square.
    fn largest_error(
        &self,
        epilogue: Epilogue,
        m: usize,
        x: &[f32],
        found: &[f32],
        columns: &[usize],
        is_int8: bool,
    ) -> f64 {
        let (n, k) = (self.layout.n(), self.layout.k);
        let mut largest: f64 = 0.0;
        for row in sampled_rows(m) {
            let x = &x[row * k..][..k];
            let x: Vec<f64> = if is_int8 {
                let (values, scales) = quantize_row(x);
                let value = |(i, q): (usize, &i8)| f64::from(f32::from(*q) * scales[i / 128]);
                values.iter().enumerate().map(value).collect()
            } else {
                x.iter().map(|x| f64::from(*x)).collect()
            };
            let expected: Vec<f64> = columns
                .iter()
                .map(|column| self.expected(epilogue, &x, *column))
                .collect();
            let squares: f64 = expected.iter().map(|y| y * y).sum();
            let scale = (squares / expected.len() as f64).sqrt();
            for (column, expected) in columns.iter().zip(&expected) {
                let found = f64::from(found[row * n + column]);
                let error = (found - expected).abs() / (scale + expected.abs());
                // NaN is larger than any error.
                largest = if error.is_nan() {
                    f64::INFINITY
                } else {
                    largest.max(error)
                };
            }
        }
        largest
    }
}

/// The source that a variant runs.
fn family(variant: Option<Variant>) -> &'static str {
    match variant {
        Some(Variant::Stream(_)) => "stream_linear.cu",
        Some(Variant::Mma { .. }) => "mma.cu",
        Some(Variant::MmaInt8 { .. }) => "mma_int8.cu",
        Some(Variant::Wgmma { .. }) => "wgmma.cu",
        None => "projections",
    }
}
