//! Holm's step-down correction for several tests of one question.
//!
//! A table that tests many metrics finds a "difference" by chance sooner or later; the adjusted
//! p-values keep the chance of any false one at the stated level, with no assumption on how the
//! metrics depend on each other.
//!
//! Source: Holm, "A simple sequentially rejective multiple test procedure" (1979).

/// Adjusted p-values in the order of the input.
///
/// ```
/// let adjusted = reports::stats::holm::adjust(&[0.01, 0.04]);
/// assert_eq!(adjusted, [0.02, 0.04]);
/// ```
pub fn adjust(p_values: &[f64]) -> Vec<f64> {
    let m = p_values.len();
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; m];
    let mut largest = 0.0_f64;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max(p_values[i] * (m - rank) as f64).min(1.0);
        adjusted[i] = largest;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::adjust;

    /// R: `p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")`, and an unordered set worked by hand.
    #[test]
    fn agrees_with_r() {
        let close = |got: Vec<f64>, want: &[f64]| {
            assert_eq!(got.len(), want.len());
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 1e-12, "{got:?} against {want:?}");
            }
        };
        close(
            adjust(&[0.01, 0.02, 0.03, 0.04, 0.05]),
            &[0.05, 0.08, 0.09, 0.09, 0.09],
        );
        close(adjust(&[0.04, 0.001, 0.6]), &[0.08, 0.003, 0.6]);
        close(adjust(&[0.7, 0.9]), &[1.0, 1.0]);
        close(adjust(&[]), &[]);
    }
}
