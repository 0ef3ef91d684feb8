use host::memory::Arena;

use super::*;
use crate::dense_linear::{DenseFormat, DenseMatrix};

#[test]
fn rows_are_looked_up() {
    let mut pool = WorkerPool::new(2).expect("pool");
    let values: Vec<f32> = (0..30).map(|i| i as f32).collect();
    let bytes: &[u8] = bytemuck::cast_slice(&values);
    let table = LinearWeights::Dense(
        DenseMatrix::copy_from(&mut Arena::default(), 10, 3, DenseFormat::F32, bytes)
            .expect("table"),
    );
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 10).collect();
    let mut out = vec![0.0; 60];
    forward(&mut pool, &table, &tokens, &mut out).expect("forward");
    for (token, row) in tokens.iter().zip(out.chunks_exact(3)) {
        assert_eq!(row, &values[*token as usize * 3..][..3]);
    }
    let error = forward(&mut pool, &table, &[3, 10], &mut out[..6]).expect_err("no such token");
    assert!(error.to_string().contains("10"), "{error}");
    assert!(forward(&mut pool, &table, &[3], &mut out[..4]).is_err());
}
