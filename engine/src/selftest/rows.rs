//! What works row by row, against f64: embedding, norm, SiLU.

use ::gpu::{Buffer, CudaError, Stream};
use kernels::cuda::{Activation, Element, ElementBuffer};
use kernels::embedding::cuda::Embedding;
use kernels::rms_norm::cuda::RmsNorm;
use kernels::silu_mul::cuda::SiluMul;

use super::checks::{Checks, relative_error};
use super::random::{elements, rng};

/// (rows, values a row): a small one, and a server's.
const SHAPES: [(usize, usize); 3] = [(3, 264), (64, 5120), (1024, 5120)];
const EPS: f32 = 1e-6;
/// Of an output in fp16.
const LIMIT: f64 = 1e-3;

fn limit(element: Element) -> f64 {
    match element {
        Element::F16 => LIMIT,
        Element::Bf16 => 8.0 * LIMIT,
    }
}

pub fn check(stream: &Stream, checks: &mut Checks) {
    for element in Element::ALL {
        for (m, n) in SHAPES {
            let case = format!("{} {m} rows of {n}", element.name());
            checks.run("embedding.cu", &*case, 0.0, || {
                embedding(stream, element, m, n)
            });
            checks.run("rms_norm.cu", &*case, limit(element), || {
                norm(stream, element, m, n)
            });
            checks.run("silu_mul.cu", &*case, limit(element), || {
                silu(stream, element, m, n)
            });
        }
    }
}

/// A copy: exact.
fn embedding(stream: &Stream, element: Element, m: usize, n: usize) -> Result<f64, CudaError> {
    let (mut rng, vocab) = (rng(21), 777);
    let table = elements(&mut rng, element, vocab * n, 1.0);
    let ids: Vec<i32> = (0..m).map(|row| ((row * 331 + 5) % vocab) as i32).collect();
    let h = Buffer::<f32>::zeroed(stream, m * n)?;
    let on_device = ElementBuffer::from_f32(stream, element, &table)?;
    let ids_on_device = Buffer::from_slice(stream, &ids)?;
    Embedding::new(stream.device(), element)?.launch(
        stream,
        ids_on_device.all(),
        on_device.all(),
        h.all(),
        m,
        n,
    )?;
    let expected = ids.iter().flat_map(|id| &table[*id as usize * n..][..n]);
    Ok(relative_error(
        h.download(stream)?,
        expected.map(|v| f64::from(*v)),
    ))
}

fn norm(stream: &Stream, element: Element, m: usize, n: usize) -> Result<f64, CudaError> {
    let mut rng = rng(22);
    let h: Vec<f32> = elements(&mut rng, element, m * n, 3.0);
    let weight = elements(&mut rng, element, n, 1.0);
    let on_device = Buffer::from_slice(stream, &h)?;
    let weight_on_device = ElementBuffer::from_f32(stream, element, &weight)?;
    let x = ElementBuffer::zeroed(stream, element, m * n)?;
    RmsNorm::new(stream.device(), element)?.launch(
        stream,
        on_device.all(),
        weight_on_device.all(),
        None,
        Activation::plain(x.all(), n),
        m,
        n,
        EPS,
    )?;
    let expected = h.chunks_exact(n).flat_map(|row| {
        let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
        let inverse = 1.0 / (mean + f64::from(EPS)).sqrt();
        let weight = &weight;
        row.iter()
            .zip(weight)
            .map(move |(v, w)| f64::from(*v) * inverse * f64::from(*w))
    });
    Ok(relative_error(x.download(stream)?, expected))
}

fn silu(stream: &Stream, element: Element, m: usize, n: usize) -> Result<f64, CudaError> {
    let mut rng = rng(23);
    let gate = elements(&mut rng, element, m * n, 6.0);
    let up = elements(&mut rng, element, m * n, 2.0);
    let on_device = [
        ElementBuffer::from_f32(stream, element, &gate)?,
        ElementBuffer::from_f32(stream, element, &up)?,
    ];
    let out = ElementBuffer::zeroed(stream, element, m * n)?;
    SiluMul::new(stream.device(), element)?.launch(
        stream,
        on_device[0].all(),
        on_device[1].all(),
        n,
        out.all(),
        n,
        m,
        n,
    )?;
    let expected = gate.iter().zip(&up).map(|(gate, up)| {
        let gate = f64::from(*gate);
        gate / (1.0 + (-gate).exp()) * f64::from(*up)
    });
    Ok(relative_error(out.download(stream)?, expected))
}
