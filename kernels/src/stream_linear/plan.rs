//! The shape of a launch: how many blocks share k, how deep the rings are, how much of x is kept.
//!
//! Several shapes fit; a small model picks one. It counts, for the busiest block, KiB read at the
//! device memory's rate. Its constants were fitted to the ranks and stages that were fastest on an
//! H100 for the projections of Qwen3-32B at 1, 8 and 16 rows, and on an H200 within sm_120's limits.
//! They rank candidates and predict no times. A plan measured on the GPU may replace a choice
//! (`variant`).

use serde::{Deserialize, Serialize};

use super::{CHUNK_BYTES, Layout, MAX_ROWS, OP, TILE_COLUMNS};
use crate::KernelError;
use crate::shared_with_device::shared_constants;

/// Variants of the kernel: the rows it has registers for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RowBucket {
    Up8,
    Up16,
    Up32,
    Up64,
}

impl RowBucket {
    pub const ALL: [Self; 4] = [Self::Up8, Self::Up16, Self::Up32, Self::Up64];

    /// The smallest variant for `m` rows.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `m` is not from 1 to [`MAX_ROWS`].
    pub fn of(m: usize) -> Result<Self, KernelError> {
        Self::of_at_most(m, MAX_ROWS)
    }

    /// The smallest variant for `m` rows of a format with variants for up to `most`.
    fn of_at_most(m: usize, most: usize) -> Result<Self, KernelError> {
        Self::ALL
            .into_iter()
            .find(|rows| m > 0 && m <= rows.max() && rows.max() <= most)
            .ok_or_else(|| KernelError::Shape {
                op: OP,
                what: "the number of rows",
                found: m,
                expected: format!("1 to {most}"),
            })
    }

    pub const fn max(self) -> usize {
        match self {
            Self::Up8 => 8,
            Self::Up16 => 16,
            Self::Up32 => 32,
            Self::Up64 => 64,
        }
    }

    /// Warps of a block; `WARPS_OF` in stream_linear.cu has the same numbers.
    pub const fn n_warps(self, compute_major: u32) -> usize {
        match (self, compute_major >= 10) {
            (Self::Up64, true) => 4,
            (Self::Up16 | Self::Up32, true) | (Self::Up64, false) => 8,
            (Self::Up32, false) => 12,
            (Self::Up8, true) | (_, false) => 16,
        }
    }
}

/// The device properties that the choice depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceLimits {
    pub compute_major: u32,
    /// Dynamic shared memory that a block may have.
    pub shared_bytes_per_block: usize,
    /// Shared memory of a multiprocessor.
    pub shared_bytes_per_multiprocessor: usize,
    pub reserved_shared_bytes_per_block: usize,
    /// Clusters of 1, 2, 4 and 8 blocks that run at a time, one block a multiprocessor.
    pub max_clusters: [usize; 4],
}

/// The shape of one launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub rows: RowBucket,
    /// Blocks of a cluster: each has a slice of k.
    pub n_ranks: usize,
    /// Each has a range of columns.
    pub n_clusters: usize,
    /// Ring depth of a warp, in chunks.
    pub n_stages: usize,
    /// Chunks of x in shared memory at a time.
    pub phase_chunks: usize,
    pub n_phases: usize,
}

const RANKS: [usize; 4] = [1, 2, 4, 8];
/// Cost of exchanging sums over a cluster, and of the multiprocessors that large clusters leave
/// idle. KiB.
const RANKS_COST: [f64; 4] = [0.0, 18.7, 31.4, 213.0];
/// x comes from the L2 cache, faster than W.
const X_COST: f64 = 0.145;
/// Blocks with fewer columns leave their share of the bandwidth to the others.
const IMBALANCE_COST: f64 = 0.116;
/// A wait for all warps, and loads of x that nothing hides. KiB. Fitted to an H200 with sm_120's limits, where
/// x has to come in phases: 16 warps, one to ten of them.
const PHASE_COST: f64 = 8.0;
/// Filling and draining a ring, against the stalls of a ring that is too short. KiB for each stage.
const STAGE_COST: f64 = 3.7;
/// The next kernel's block fits next to this one and can fill its rings meanwhile. KiB.
const NEIGHBOUR_GAIN: f64 = 0.06;
/// Deeper rings fill the memory's queues and make the multiprocessors' shares of its rate unequal: in a step on an
/// H200 two stages everywhere are 3 % faster at one row than up to six, and no slower at 8 (`NOTES.md`).
const MAX_STAGES: usize = 2;
const MAX_PHASES: usize = 128;
const MAX_WAVES: usize = 16;
/// More are tried only if nothing else fits.
const COMPARED_WAVES: usize = 3;

/// Between rows of x in shared memory, so that they begin in different banks.
const X_ROW_PAD_BYTES: usize = 64;

shared_constants! {
    in "stream_linear/stream_linear.cu" { X_ROW_PAD_BYTES }
}

/// Dynamic shared memory of a block, region by region as stream_linear.cu lists them.
pub fn shared_bytes(layout: &Layout, plan: &Plan, m: usize, limits: &DeviceLimits) -> usize {
    let format = layout.format;
    let n_warps = plan.rows.n_warps(limits.compute_major);
    let rings = n_warps * plan.n_stages;
    let barriers = (8 + rings * 8).next_multiple_of(128);
    let weights = rings * CHUNK_BYTES;
    let scales = rings * format.scale_bytes();
    let x = m.min(plan.rows.max()) * (plan.phase_chunks * format.chunk_k() * 2 + X_ROW_PAD_BYTES);
    let sums = plan.phase_chunks * format.sum_groups() * plan.rows.max() * 4;
    let slots = (n_block_tiles(layout, plan) + n_warps) * TILE_COLUMNS * m.next_multiple_of(2) * 4;
    let factors = plan.rows.max() * 4;
    barriers + weights + scales + x + sums + factors + slots
}

/// Tiles of the cluster with the most columns.
fn n_block_tiles(layout: &Layout, plan: &Plan) -> usize {
    let group = layout.tile_group();
    (layout.n_tiles / group).div_ceil(plan.n_clusters.max(1)) * group
}

/// The plan with the least estimated time. An error if no plan fits the device.
///
/// # Errors
///
/// [`KernelError::Shape`] if `m` is not from 1 to what the format has variants for
/// ([`Format::max_stream_rows`](super::Format::max_stream_rows)), [`KernelError::Value`] if no plan fits the device.
pub fn choose_plan(layout: &Layout, m: usize, limits: &DeviceLimits) -> Result<Plan, KernelError> {
    let mut best: Option<(f64, Plan)> = None;
    each_plan(layout, m, limits, |cost, plan| {
        if best.is_none_or(|(least, _)| cost < least) {
            best = Some((cost, plan));
        }
    })?;
    best.map(|(_, plan)| plan).ok_or_else(|| {
        let (n, k, room) = (layout.n(), layout.k, limits.shared_bytes_per_block);
        KernelError::Value {
            op: OP,
            message: format!(
                "{m} rows of {n} x {k} need more than the {room} bytes of shared memory that a \
                 block has"
            ),
        }
    })
}

/// The `n` plans with the least estimated times, and the best of every number of ranks.
pub(super) fn ranked_plans(
    layout: &Layout,
    m: usize,
    limits: &DeviceLimits,
    n: usize,
) -> Result<Vec<Plan>, KernelError> {
    let mut plans = Vec::new();
    each_plan(layout, m, limits, |cost, plan| plans.push((cost, plan)))?;
    plans.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    let mut seen_ranks = Vec::new();
    Ok(plans
        .into_iter()
        .enumerate()
        .filter(|(i, (_, plan))| {
            let is_new = !seen_ranks.contains(&plan.n_ranks);
            if is_new {
                seen_ranks.push(plan.n_ranks);
            }
            is_new || *i < n
        })
        .map(|(_, (_, plan))| plan)
        .collect())
}

/// Calls `visit` with every plan that fits the device, and its estimated cost.
fn each_plan(
    layout: &Layout,
    m: usize,
    limits: &DeviceLimits,
    mut visit: impl FnMut(f64, Plan),
) -> Result<(), KernelError> {
    let rows = RowBucket::of_at_most(m, layout.format.max_stream_rows())?;
    let mut any_fits = false;
    // More waves mean fewer columns for each block, so smaller sums and deeper rings, but x is read
    // again.
    for n_waves in 1..=MAX_WAVES {
        for (n_ranks, &max_clusters) in RANKS.into_iter().zip(&limits.max_clusters) {
            if n_ranks > layout.n_chunks || max_clusters == 0 {
                continue;
            }
            let n_clusters = (max_clusters * n_waves).min(layout.n_tiles / layout.tile_group());
            let rank_chunks = layout.n_chunks.div_ceil(n_ranks);
            let mut tried = 0;
            for n_phases in 1..=rank_chunks.min(MAX_PHASES) {
                let phase_chunks = rank_chunks.div_ceil(n_phases);
                if phase_chunks == tried {
                    continue;
                }
                tried = phase_chunks;
                for n_stages in 1..=MAX_STAGES {
                    let n_phases = rank_chunks.div_ceil(phase_chunks);
                    let plan = Plan {
                        rows,
                        n_ranks,
                        n_clusters,
                        n_stages,
                        phase_chunks,
                        n_phases,
                    };
                    if shared_bytes(layout, &plan, m, limits) > limits.shared_bytes_per_block {
                        break;
                    }
                    any_fits = true;
                    visit(estimate(layout, &plan, m, limits), plan);
                }
            }
        }
        if any_fits && n_waves >= COMPARED_WAVES {
            break;
        }
    }
    Ok(())
}

/// KiB that the busiest multiprocessor could have read meanwhile at its share of the bandwidth.
fn estimate(layout: &Layout, plan: &Plan, m: usize, limits: &DeviceLimits) -> f64 {
    const KB: f64 = 1000.0;
    let format = layout.format;
    let rank_index = plan.n_ranks.trailing_zeros() as usize;
    let slots = limits.max_clusters[rank_index] as f64;
    let n_waves = (plan.n_clusters as f64 / slots).ceil();
    let rank_chunks = layout.n_chunks.div_ceil(plan.n_ranks);
    let item_bytes = (CHUNK_BYTES + format.scale_bytes()) as f64 / KB;
    let n_items = (n_block_tiles(layout, plan) * rank_chunks) as f64;
    let busiest = n_items * item_bytes * n_waves;
    let mean =
        (layout.n_tiles * layout.n_chunks) as f64 * item_bytes / (slots * plan.n_ranks as f64);
    let x_bytes = (m * rank_chunks * format.chunk_k() * 2) as f64 / KB * n_waves;
    let warp_items = n_items / plan.rows.n_warps(limits.compute_major) as f64;
    let half = limits.shared_bytes_per_multiprocessor / 2 - limits.reserved_shared_bytes_per_block;
    let fits_beside = shared_bytes(layout, plan, m, limits) <= half;
    mean + IMBALANCE_COST * (busiest - mean).max(0.0)
        + X_COST * x_bytes
        + RANKS_COST[rank_index]
        + PHASE_COST * (plan.n_phases as f64 - 1.0) * n_waves
        + STAGE_COST * n_waves * (plan.n_stages as f64 + warp_items / plan.n_stages as f64)
        - if fits_beside { NEIGHBOUR_GAIN } else { 0.0 }
}

/// Errors unless the kernel can run `plan`: the planner's own plans are valid, one from elsewhere
/// (a timed choice, a file) might not be.
pub(super) fn check_plan(
    layout: &Layout,
    plan: &Plan,
    m: usize,
    limits: &DeviceLimits,
) -> Result<usize, KernelError> {
    let wrong = |what, found, expected: String| KernelError::Shape {
        op: OP,
        what,
        found,
        expected,
    };
    let most = plan.rows.max().min(layout.format.max_stream_rows());
    if m == 0 || m > most {
        return Err(wrong("the number of rows", m, format!("1 to {most}")));
    }
    if plan.rows.max() > most {
        return Err(wrong(
            "the rows of a variant",
            plan.rows.max(),
            format!("at most {most}"),
        ));
    }
    if !RANKS.contains(&plan.n_ranks) || plan.n_ranks > layout.n_chunks {
        let expected = format!("1, 2, 4 or 8, and at most {}", layout.n_chunks);
        return Err(wrong("the number of ranks", plan.n_ranks, expected));
    }
    let n_groups = layout.n_tiles / layout.tile_group();
    if plan.n_clusters == 0 || plan.n_clusters > n_groups {
        return Err(wrong(
            "the number of clusters",
            plan.n_clusters,
            format!("1 to {n_groups}"),
        ));
    }
    if plan.n_stages == 0 {
        return Err(wrong("the number of stages", 0, "at least 1".into()));
    }
    let rank_chunks = layout.n_chunks.div_ceil(plan.n_ranks);
    let needed = if plan.phase_chunks == 0 {
        0
    } else {
        rank_chunks.div_ceil(plan.phase_chunks)
    };
    if needed == 0 || plan.phase_chunks > rank_chunks || plan.n_phases != needed {
        let expected = format!("{needed} of {} chunks for {rank_chunks}", plan.phase_chunks);
        return Err(wrong("the number of phases", plan.n_phases, expected));
    }
    let n_bytes = shared_bytes(layout, plan, m, limits);
    if n_bytes > limits.shared_bytes_per_block {
        let expected = format!("at most {} bytes", limits.shared_bytes_per_block);
        return Err(wrong("shared memory", n_bytes, expected));
    }
    Ok(n_bytes)
}
