//! Speed of `silu_mul.cu`.

use gpu::CudaError;
use kernels::cuda::{Element, ElementBuffer};
use kernels::silu_mul::cuda::SiluMul;

use crate::measure::{Bench, Work};
use crate::model::{INTERMEDIATE, ROWS};

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    let width = bench.shape.n.unwrap_or(INTERMEDIATE);
    let kernel = SiluMul::new(&bench.device, Element::F16)?;
    for n_rows in bench.shape.rows(&ROWS) {
        let n = n_rows * width;
        let (gate, up) = (bench.normal(n, 1)?, bench.normal(n, 2)?);
        let out = ElementBuffer::zeroed(&bench.stream, Element::F16, n)?;
        let work = Work::bytes(6 * n);
        let case = bench.shape.case(format!("{n_rows} rows"));
        bench.case("silu_mul", &case, work, |stream| {
            kernel.launch(
                stream,
                gate.all(),
                up.all(),
                width,
                out.all(),
                width,
                n_rows,
                width,
            )
        })?;
    }
    Ok(())
}
