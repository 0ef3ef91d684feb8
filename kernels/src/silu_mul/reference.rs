//! The plain version, in f64.

/// `gate, up: [n]` → `[n]`
pub fn forward(gate: &[f32], up: &[f32]) -> Vec<f32> {
    gate.iter()
        .zip(up)
        .map(|(g, u)| (f64::from(*g) / (1.0 + f64::from(-*g).exp()) * f64::from(*u)) as f32)
        .collect()
}
