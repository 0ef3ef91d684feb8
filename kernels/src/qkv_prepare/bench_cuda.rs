//! Speed of `qkv_prepare.cu`: rotation and cache write.

use gpu::{Buffer, CudaError};
use kernels::cuda::{Element, KvFormat};
use kernels::qkv_prepare::cuda::{QkvPrepare, QkvPrepareArgs};

use crate::attention::{Cache, name};
use crate::measure::{Bench, Work};
use crate::model::{HEADS, ROWS};

pub fn all(bench: &mut Bench) -> Result<(), CudaError> {
    for format in [KvFormat::F16, KvFormat::Fp8E4m3] {
        qkv_prepare(bench, format)?;
    }
    Ok(())
}

fn qkv_prepare(bench: &mut Bench, format: KvFormat) -> Result<(), CudaError> {
    let kernel = QkvPrepare::new(&bench.device, Element::F16, HEADS, format)?;
    let row_stride = (HEADS.n_q + 2 * HEADS.n_kv) * HEADS.head_dim;
    let n_positions = 1024;
    let cos_sin = Buffer::<f32>::zeroed(&bench.stream, n_positions * HEADS.head_dim)?;
    let norm = bench.normal(HEADS.head_dim, 1)?;
    for n_rows in bench.shape.rows(&ROWS) {
        let cache = Cache::new(&bench.stream, format, 1, n_rows)?;
        let qkv = bench.normal(n_rows * row_stride, 2)?;
        let numbers: Vec<i32> = (0..n_rows as i32).collect();
        let numbers = Buffer::from_slice(&bench.stream, &numbers)?;
        let args = QkvPrepareArgs {
            qkv: qkv.all(),
            row_stride,
            q_norm: Some(norm.all()),
            k_norm: Some(norm.all()),
            cos_sin: cos_sin.all(),
            n_positions,
            positions: numbers.all(),
            slots: numbers.all(),
            kv: cache.view(),
            saturated: None,
            eps: 1e-6,
            n_rows,
        };
        // Queries go back where they were, keys and values into the cache.
        let queries = 2 * n_rows * HEADS.n_q * HEADS.head_dim;
        let work = Work::bytes(2 * n_rows * row_stride + queries + cache.token_bytes(n_rows));
        let case = format!("{} {n_rows} rows", name(format));
        bench.case("qkv_prepare", &case, work, |stream| {
            kernel.launch(stream, &args)
        })?;
    }
    Ok(())
}
