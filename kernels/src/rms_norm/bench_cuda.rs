//! Speed of `rms_norm.cu`.

use gpu::{Buffer, CudaError};
use kernels::cuda::{Activation, Element, ElementBuffer};
use kernels::rms_norm::cuda::RmsNorm;

use crate::measure::{Bench, Work};
use crate::model::{HIDDEN, ROWS};

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    let width = bench.shape.n.unwrap_or(HIDDEN);
    let kernel = RmsNorm::new(&bench.device, Element::F16)?;
    let weight = bench.normal(width, 1)?;
    for n_rows in bench.shape.rows(&ROWS) {
        let h = Buffer::<f32>::zeroed(&bench.stream, n_rows * width)?;
        let x = ElementBuffer::zeroed(&bench.stream, Element::F16, n_rows * width)?;
        let to = Activation::plain(x.all(), width);
        let work = Work::bytes(6 * n_rows * width + 2 * width);
        let case = bench.shape.case(format!("{n_rows} rows"));
        bench.case("rms_norm", &case, work, |stream| {
            kernel.launch(stream, h.all(), weight.all(), None, to, n_rows, width, 1e-6)
        })?;
    }
    Ok(())
}
