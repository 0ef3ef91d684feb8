//! The plain version: one complex multiplication a pair.

/// Rotates one head `[head_dim]` at `position` with unscaled frequencies of base `theta`.
pub fn rotate(head: &[f32], position: usize, theta: f64) -> Vec<f32> {
    let half = head.len() / 2;
    let mut out = vec![0.0; head.len()];
    for i in 0..half {
        let angle = position as f64 * theta.powf(-(i as f64) / half as f64);
        let (a, b) = (f64::from(head[i]), f64::from(head[i + half]));
        out[i] = (a * angle.cos() - b * angle.sin()) as f32;
        out[i + half] = (b * angle.cos() + a * angle.sin()) as f32;
    }
    out
}
