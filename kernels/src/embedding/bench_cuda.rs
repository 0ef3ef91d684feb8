//! Speed of `embedding.cu`.

use gpu::{Buffer, CudaError};
use kernels::cuda::Element;
use kernels::embedding::cuda::Embedding;

use crate::measure::{Bench, Work};
use crate::model::{HIDDEN, ROWS, VOCAB};

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    let width = bench.shape.n.unwrap_or(HIDDEN);
    let kernel = Embedding::new(&bench.device, Element::F16)?;
    let table = bench.normal(VOCAB * width, 1)?;
    for n_rows in bench.shape.rows(&ROWS) {
        let ids: Vec<i32> = (0..n_rows).map(|i| (i * 7919 % VOCAB) as i32).collect();
        let ids = Buffer::from_slice(&bench.stream, &ids)?;
        let h = Buffer::<f32>::zeroed(&bench.stream, n_rows * width)?;
        let work = Work::bytes(6 * n_rows * width);
        let case = bench.shape.case(format!("{n_rows} rows"));
        bench.case("embedding", &case, work, |stream| {
            kernel.launch(stream, ids.all(), table.all(), h.all(), n_rows, width)
        })?;
    }
    Ok(())
}
