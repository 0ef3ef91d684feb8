//! Computes what fits on the GPU before anything is allocated.
//!
//! `--mem-fraction-static` is the share that weights and KV pool may use together. The workspace,
//! the graphs and the driver's own needs are taken from the rest, so that a server that has started
//! does not run out of memory later.

use crate::executor::MemoryParts;
use crate::kv::PAGE_TOKENS;

/// Upper bound for a graph of one decode step on the device: launch parameters and the driver's
/// bookkeeping for some 600 nodes.
pub(super) const GRAPH_BYTES: u64 = 24 << 20;
/// Memory that the driver may still allocate after start-up.
const DRIVER_RESERVE_BYTES: u64 = 256 << 20;

/// The sizes that decide how large the KV pool can be, in bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Demand {
    /// Memory of the device, or `--device-memory-limit`.
    pub device: u64,
    /// Memory in use by others.
    pub in_use: u64,
    pub mem_fraction_static: f64,
    pub weights: u64,
    pub workspace: u64,
    pub n_graphs: usize,
    /// KV of one page over all layers.
    pub page: u64,
    /// `--max-total-tokens`
    pub max_total_tokens: Option<usize>,
}

impl Demand {
    fn graphs(&self) -> u64 {
        GRAPH_BYTES * self.n_graphs as u64
    }

    /// What [`pool_pages`] leaves beside weights and pool.
    pub fn parts(&self) -> MemoryParts {
        MemoryParts {
            total: Some(self.device),
            others: Some(self.in_use),
            workspace: Some(self.workspace),
            graphs: Some(self.graphs()),
            reserve: Some(DRIVER_RESERVE_BYTES),
        }
    }
}

/// Number of KV pages, or why not even one fits.
pub(super) fn pool_pages(d: &Demand) -> Result<usize, String> {
    let graphs = d.graphs();
    let static_share = (d.device as f64 * d.mem_fraction_static) as u64;
    let others = d.in_use + d.workspace + graphs + DRIVER_RESERVE_BYTES;
    let budget = static_share
        .min(d.device.saturating_sub(others))
        .saturating_sub(d.weights);
    let fits = (budget / d.page.max(1)) as usize;
    let wanted = d
        .max_total_tokens
        .map_or(fits, |tokens| tokens.div_ceil(PAGE_TOKENS));
    if fits == 0 || (d.max_total_tokens.is_some() && wanted > fits) {
        return Err(format!(
            "{} of device memory, {} in use; --mem-fraction-static {} leaves {} for weights ({}) and \
             KV pool, beside workspace {}, graphs {} and reserve {}: room for {} tokens of KV at {} a \
             page of {PAGE_TOKENS}, {} asked",
            gib(d.device),
            gib(d.in_use),
            d.mem_fraction_static,
            gib(static_share.min(d.device.saturating_sub(others))),
            gib(d.weights),
            gib(d.workspace),
            gib(graphs),
            gib(DRIVER_RESERVE_BYTES),
            fits * PAGE_TOKENS,
            gib(d.page),
            d.max_total_tokens
                .map_or_else(|| "at least one page".to_owned(), |t| t.to_string()),
        ));
    }
    Ok(wanted)
}

fn gib(bytes: u64) -> String {
    format!("{:.3} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn demand() -> Demand {
        Demand {
            device: 31 * GIB,
            in_use: GIB / 2,
            mem_fraction_static: 0.85,
            weights: 18 * GIB,
            workspace: GIB / 4,
            n_graphs: 3,
            page: 4 << 20,
            max_total_tokens: None,
        }
    }

    #[test]
    fn the_static_share_bounds_weights_and_pool() {
        // 0.85 of 31 GiB is 26.35 GiB; minus 18 GiB of weights leaves 8.35 GiB of 4 MiB pages.
        assert_eq!(pool_pages(&demand()), Ok(2137));
    }

    #[test]
    fn graphs_and_workspace_come_off_before_the_pool() {
        let all = Demand {
            mem_fraction_static: 0.999,
            ..demand()
        };
        let without = Demand { n_graphs: 0, ..all };
        let (with_graphs, without_graphs) = (pool_pages(&all), pool_pages(&without));
        // 31 GiB minus 0.5 in use, 0.25 of workspace, 72 MiB of graphs, 256 MiB of reserve and 18
        // GiB of weights.
        assert_eq!(with_graphs, Ok(3054));
        assert_eq!(without_graphs, Ok(3054 + 3 * 6));
        // They are what an operator is shown.
        let parts = all.parts();
        assert_eq!((parts.total, parts.others), (Some(31 * GIB), Some(GIB / 2)));
        assert_eq!(parts.workspace, Some(GIB / 4));
        assert_eq!(
            (parts.graphs, parts.reserve),
            (Some(72 << 20), Some(256 << 20))
        );
    }

    #[test]
    fn max_total_tokens_caps_the_pool_and_is_refused_when_it_does_not_fit() {
        let capped = Demand {
            max_total_tokens: Some(3328),
            ..demand()
        };
        assert_eq!(pool_pages(&capped), Ok(208));
        let too_many = Demand {
            max_total_tokens: Some(100_000),
            ..demand()
        };
        let message = pool_pages(&too_many).unwrap_err();
        assert!(
            message.contains("100000 asked") && message.contains("34192 tokens"),
            "{message}"
        );
        let no_room = Demand {
            weights: 30 * GIB,
            ..demand()
        };
        assert!(pool_pages(&no_room).unwrap_err().contains("30.000 GiB"));
    }
}
