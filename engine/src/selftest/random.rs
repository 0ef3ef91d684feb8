//! Seeded random inputs.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use kernels::cuda::Element;

pub fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Uniform in ±`most`, each an exact element.
pub fn elements(rng: &mut StdRng, element: Element, n: usize, most: f32) -> Vec<f32> {
    (0..n)
        .map(|_| element.round(rng.random_range(-most..most)))
        .collect()
}
