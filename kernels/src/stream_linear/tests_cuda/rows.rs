//! Launches with rows of the caller's choice, and sampled outputs in f64.

use gpu::Buffer;
use kernels::cuda::{Activation, Element, ElementBuffer};
use kernels::stream_linear::{Arrangement, Epilogue, Output};

use super::case::{Case, Gpu, tiled};

/// Values of an output row before the launch, where it adds to them.
pub const BEFORE: f32 = 0.5;

/// One launch with `x: [m][k]`, as the kernels' element; `[m][n]`. `dependent` as the engine has it.
pub fn launched(gpu: &Gpu, case: &Case, epilogue: Epilogue, m: usize, x: &[f32]) -> Vec<f32> {
    let Case { linear, layout, .. } = case;
    let (stream, element) = (&gpu.stream, gpu.kernels.element());
    let (n, k, columns) = (layout.n(), layout.k, layout.padded_k());
    let mut padded = vec![0.0; m * columns];
    for (to, from) in padded.chunks_exact_mut(columns).zip(x.chunks_exact(k)) {
        to[..k].copy_from_slice(from);
    }
    let tile_rows = m.next_multiple_of(128);
    let is_tiled = linear.wants_tiled(m);
    let rows = if is_tiled {
        tiled(&padded, m, columns, columns, tile_rows)
    } else {
        padded
    };
    let x = ElementBuffer::from_f32(stream, element, &rows).expect("memory");
    let x = if is_tiled {
        Activation::tiled(x.all(), tile_rows)
    } else {
        Activation::plain(x.all(), columns)
    };
    let launch = |output| {
        linear
            .launch(stream, m, x, None, output, true)
            .expect("launch");
    };
    match epilogue {
        Epilogue::Store | Epilogue::SiluMul => {
            let out = ElementBuffer::zeroed(stream, element, m * n).expect("memory");
            launch(if epilogue == Epilogue::Store {
                Output::Store(out.all())
            } else {
                Output::SiluMul(Activation::plain(out.all(), n))
            });
            out.download(stream).expect("download")
        }
        Epilogue::AddResidual | Epilogue::StoreF32 => {
            let out = Buffer::from_slice(stream, &vec![BEFORE; m * n]).expect("memory");
            launch(if epilogue == Epilogue::StoreF32 {
                Output::StoreF32(out.all())
            } else {
                Output::AddResidual(out.all())
            });
            out.download(stream).expect("download")
        }
    }
}

/// What output `column` of a row `x: [k]` should be, were there no end to the output's type.
pub fn expected(case: &Case, epilogue: Epilogue, x: &[f32], column: usize) -> f64 {
    let (layout, k) = (&case.layout, case.layout.k);
    let dot = |part: usize, column: usize| -> f64 {
        let w = &case.weights[part][column * k..][..k];
        w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum()
    };
    let y = if layout.arrangement == Arrangement::GateUp {
        let gate = dot(0, column);
        gate / (1.0 + (-gate).exp()) * dot(1, column)
    } else {
        let (mut part, mut column) = (0, column);
        while column >= layout.parts_n[part] {
            column -= layout.parts_n[part];
            part += 1;
        }
        dot(part, column)
    };
    match epilogue {
        Epilogue::AddResidual => y + f64::from(BEFORE),
        Epilogue::StoreF32 | Epilogue::Store | Epilogue::SiluMul => y,
    }
}

/// `y` as it is stored: held inside fp16 where that is the output's type.
fn stored(element: Element, epilogue: Epilogue, y: f64) -> f64 {
    let is_element = matches!(epilogue, Epilogue::Store | Epilogue::SiluMul);
    if is_element && element == Element::F16 {
        y.clamp(-65504.0, 65504.0)
    } else {
        y
    }
}

/// The largest error of the sampled outputs, relative to the value and its row's mean square (before
/// it is held inside fp16: a factor near 0 of a large one is off by as much as the large one says).
pub fn largest_error(
    element: Element,
    case: &Case,
    epilogue: Epilogue,
    x: &[f32],
    found: &[f32],
    rows: &[usize],
    columns: &[usize],
) -> f64 {
    let (n, k) = (case.layout.n(), case.layout.k);
    let mut largest: f64 = 0.0;
    for &row in rows {
        let x = &x[row * k..][..k];
        let of_row: Vec<f64> = columns
            .iter()
            .map(|column| expected(case, epilogue, x, *column))
            .collect();
        let squares: f64 = of_row.iter().map(|y| y * y).sum();
        let scale = (squares / of_row.len() as f64).sqrt();
        for (column, expected) in columns.iter().zip(&of_row) {
            let found = f64::from(found[row * n + column]);
            let difference = (found - stored(element, epilogue, *expected)).abs();
            let error = difference / (scale + expected.abs());
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
