//! The plain version, in f64.

use super::Choice;

/// Experts and weights of one token, the most weighted first.
#[must_use]
pub fn choose(logits: &[f32], choice: Choice) -> Vec<(u32, f64)> {
    let exp: Vec<f64> = logits.iter().map(|l| f64::from(*l).exp()).collect();
    let total: f64 = exp.iter().sum();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    // Stable: of equal ones the lower number stays first.
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    order.truncate(choice.n_active);
    let chosen: f64 = order.iter().map(|e| exp[*e as usize]).sum();
    let divisor = if choice.normalise { chosen } else { total };
    let weighted = order.into_iter().map(|e| (e, exp[e as usize] / divisor));
    weighted.collect()
}
