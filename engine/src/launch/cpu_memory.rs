//! Computes what fits in a model's share of `--device-memory-limit` on the CPU, before anything is
//! allocated.
//!
//! Weights count with their stored size: packed they take about the same, and an lm_head that is
//! rounded to 8 bits takes less. Experts' buffers count with them. The other activations of a pass are
//! not counted; they are a few MiB.

use crate::executor::cpu::expert_buffer_bytes;
use crate::kv::PAGE_TOKENS;
use crate::weights::{Checkpoint, MatrixId, VectorId, WeightError};

/// In bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Demand {
    /// `--device-memory-limit`
    pub limit: u64,
    /// The part of it that other models use.
    pub in_use: u64,
    pub mem_fraction_static: f64,
    pub weights: u64,
    /// KV of one page over all layers.
    pub page: u64,
    /// `--max-total-tokens`
    pub max_total_tokens: Option<usize>,
}

/// Of weights and experts' buffers.
pub(super) fn weight_bytes(checkpoint: &dyn Checkpoint) -> Result<u64, WeightError> {
    let config = checkpoint.config();
    let mut n_bytes = 0;
    for id in MatrixId::all(config) {
        n_bytes += checkpoint.storage(id)?.n_bytes;
    }
    let values = VectorId::all(config).into_iter();
    let n_values: usize = values.map(|id| id.n_elements(config)).sum();
    Ok(n_bytes + (n_values * size_of::<f32>()) as u64 + expert_buffer_bytes(config))
}

/// The largest KV pool in tokens that fits, or why it is empty or smaller than requested.
pub(super) fn pool_tokens(d: &Demand) -> Result<usize, String> {
    let fraction = (d.limit as f64 * d.mem_fraction_static) as u64;
    let share = fraction.min(d.limit.saturating_sub(d.in_use));
    let fits = (share.saturating_sub(d.weights) / d.page.max(1)) as usize * PAGE_TOKENS;
    let wanted = d.max_total_tokens.unwrap_or(PAGE_TOKENS);
    if wanted.next_multiple_of(PAGE_TOKENS) <= fits {
        return Ok(fits);
    }
    Err(format!(
        "--device-memory-limit {}, {} of it in use by other models; --mem-fraction-static {} of the \
         limit is {}, which leaves {} for weights ({}) and KV pool: room for {fits} tokens of KV at \
         {} a page of {PAGE_TOKENS}, {wanted} asked",
        mib(d.limit),
        mib(d.in_use),
        d.mem_fraction_static,
        mib(fraction),
        mib(share),
        mib(d.weights),
        mib(d.page),
    ))
}

/// Whether weights and pool fit in the host's free memory; the error has the arithmetic. The pool's
/// memory is committed as it fills, so without this check a server would start and be killed under
/// load.
pub(super) fn fits_the_host(
    free: u64,
    weights: u64,
    pool_tokens: usize,
    token_bytes: u64,
) -> Result<(), String> {
    let pool = token_bytes.saturating_mul(pool_tokens as u64);
    if weights.saturating_add(pool) <= free {
        return Ok(());
    }
    let room = free.saturating_sub(weights) / token_bytes.max(1);
    Err(format!(
        "weights of {} and a KV pool of {pool_tokens} tokens at {token_bytes} bytes each, {}, are \
         more than the {} of memory that the host has free; there is room for {room} tokens \
         (--max-total-tokens)",
        mib(weights),
        mib(pool),
        mib(free),
    ))
}

fn mib(bytes: u64) -> String {
    format!("{:.3} MiB", bytes as f64 / (1u64 << 20) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn demand() -> Demand {
        Demand {
            limit: 100 * MIB,
            in_use: 0,
            mem_fraction_static: 0.4,
            weights: 30 * MIB,
            page: MIB,
            max_total_tokens: None,
        }
    }

    #[test]
    fn a_fraction_bounds_weights_and_pool_and_so_does_what_others_have() {
        assert_eq!(pool_tokens(&demand()), Ok(10 * PAGE_TOKENS));
        let beside = Demand {
            in_use: 65 * MIB,
            ..demand()
        };
        assert_eq!(pool_tokens(&beside), Ok(5 * PAGE_TOKENS));
    }

    #[test]
    fn a_pool_beyond_the_hosts_memory_is_refused_with_the_arithmetic() {
        assert_eq!(fits_the_host(100 * MIB, 30 * MIB, 70, MIB), Ok(()));
        let message = fits_the_host(100 * MIB, 30 * MIB, 71, MIB).unwrap_err();
        for part in [
            "30.000 MiB",
            "71 tokens",
            "71.000 MiB",
            "100.000 MiB",
            "room for 70",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let message = fits_the_host(MIB, 0, usize::MAX, u64::MAX).unwrap_err();
        assert!(message.contains("room for 0 tokens"), "{message}");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_arithmetic() {
        let asked = Demand {
            max_total_tokens: Some(10 * PAGE_TOKENS + 1),
            ..demand()
        };
        let message = pool_tokens(&asked).unwrap_err();
        for part in [
            "40.000 MiB",
            "30.000 MiB",
            "room for 160 tokens",
            "161 asked",
        ] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let full = Demand {
            in_use: 75 * MIB,
            ..demand()
        };
        let message = pool_tokens(&full).unwrap_err();
        assert!(message.contains("75.000 MiB of it in use"), "{message}");
        assert!(message.contains("room for 0 tokens"), "{message}");
    }
}
