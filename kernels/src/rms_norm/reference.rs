//! The plain version: sums in f64.

/// `x: [n_rows, n]`, `weight: [n]` → `[n_rows, n]`
pub fn forward(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let n = weight.len();
    x.chunks_exact(n)
        .flat_map(|row| {
            let squares: f64 = row.iter().map(|v| f64::from(*v).powi(2)).sum();
            let inverse = 1.0 / (squares / n as f64 + f64::from(eps)).sqrt();
            row.iter()
                .zip(weight)
                .map(move |(v, w)| (f64::from(*v) * inverse) as f32 * w)
        })
        .collect()
}
