//! The shape of a launch: how many blocks share k, and how deep the rings are.

use crate::KernelError;
use crate::cuda::HeadShape;
use crate::stream_linear::{Arrangement, CHUNK_BYTES, DeviceLimits, Format, Layout, TILE_COLUMNS};

use super::{MAX_ROWS, OP};

/// q/k/v, o, gate and up, down.
pub(super) const PRODUCTS: usize = 4;
/// Blocks of a cluster, and which of [`DeviceLimits::max_clusters`] they are.
const RANKS: [(usize, usize); 3] = [(4, 2), (2, 1), (1, 0)];
/// As in decode_layers.cu.
const MAX_STAGES: usize = 8;
const MAX_TILES: usize = 768;
/// A ring of one chunk would have nothing on the way while that is multiplied.
const MIN_STAGES: usize = 2;
/// `Shared` of decode_layers.cu beside its barriers, row scales, values of h and tile table.
const RUN_BYTES: usize = 12;
const SHARE_BYTES: usize = 20;

/// What a decoder's layers look like, the same in all of them.
#[derive(Debug, Clone)]
pub struct DecodeShape {
    pub heads: HeadShape,
    pub n_layers: usize,
    /// q/k/v, o, gate and up, down.
    pub layouts: [Layout; PRODUCTS],
}

/// One launch's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Blocks of a cluster: each has a slice of k.
    pub n_ranks: usize,
    /// Each has a range of columns.
    pub n_clusters: usize,
    /// Ring depth of a warp, in chunks.
    pub n_stages: usize,
    pub shared_bytes: usize,
}

/// Warps of a block that multiply; two more bring weights. `WARPS` in decode_layers.cu has the same numbers.
const fn n_warps(compute_major: u32) -> usize {
    if compute_major >= 10 { 6 } else { 14 }
}

pub(super) const fn n_threads(compute_major: u32) -> usize {
    (n_warps(compute_major) + 2) * 32
}

impl DecodeShape {
    /// Errors unless the kernel can compute such layers at all.
    fn check(&self) -> Result<(), KernelError> {
        let wrong = |message: String| Err(KernelError::Value { op: OP, message });
        let HeadShape {
            n_q,
            n_kv,
            head_dim,
        } = self.heads;
        let [qkv, o, gate_up, down] = &self.layouts;
        for layout in &self.layouts {
            if layout.format != Format::AwqG128 {
                return wrong(format!(
                    "weights are {:?}, must be AWQ in groups of 128",
                    layout.format
                ));
            }
            if layout.k != layout.padded_k() || !layout.n().is_multiple_of(TILE_COLUMNS) {
                return wrong(format!(
                    "a matrix of {} x {}, must be multiples of {TILE_COLUMNS} and {}",
                    layout.n(),
                    layout.k,
                    layout.format.chunk_k()
                ));
            }
        }
        if n_kv == 0 || n_q / n_kv > MAX_ROWS {
            return wrong(format!(
                "{n_q} query heads to {n_kv} KV heads, must be at most {MAX_ROWS} each"
            ));
        }
        let fits = qkv.n() == (n_q + 2 * n_kv) * head_dim
            && o.k == n_q * head_dim
            && o.n() == qkv.k
            && gate_up.k == qkv.k
            && gate_up.arrangement == Arrangement::GateUp
            && down.k == gate_up.n()
            && down.n() == qkv.k;
        if !fits || self.n_layers == 0 {
            let sizes: Vec<_> = self.layouts.iter().map(|l| (l.n(), l.k)).collect();
            return wrong(format!(
                "{} layers of matrices {sizes:?} do not fit together with {:?}",
                self.n_layers, self.heads
            ));
        }
        Ok(())
    }

    /// Tiles that the kernel takes as one: a tile, or gate's and up's.
    fn n_groups(&self, product: usize) -> usize {
        let layout = &self.layouts[product];
        match layout.arrangement {
            Arrangement::GateUp => layout.n_tiles / 2,
            Arrangement::Stacked => layout.n_tiles,
        }
    }

    /// Tiles of the cluster with the most of them.
    fn cluster_tiles(&self, product: usize, n_clusters: usize) -> usize {
        let groups = self.n_groups(product);
        groups.div_ceil(n_clusters) * (self.layouts[product].n_tiles / groups)
    }

    /// Chunks that the busiest block reads of a layer.
    fn busiest(&self, n_ranks: usize, n_clusters: usize) -> usize {
        (0..PRODUCTS)
            .map(|i| self.cluster_tiles(i, n_clusters) * self.layouts[i].n_chunks / n_ranks)
            .sum()
    }

    /// Of the products or of attention, whichever needs more.
    fn scratch_bytes(&self, m: usize, n_ranks: usize, n_clusters: usize, n_warps: usize) -> usize {
        let format = Format::AwqG128;
        let of_products = (0..PRODUCTS).map(|i| {
            let chunks = self.layouts[i].n_chunks / n_ranks;
            let x = m * (chunks * format.chunk_k() * 2 + 64);
            let sums = chunks * format.chunk_groups() * MAX_ROWS * 4;
            let tiles = self.cluster_tiles(i, n_clusters) + n_warps;
            x + sums + tiles * TILE_COLUMNS * m.next_multiple_of(2) * 4
        });
        let head_dim = self.heads.head_dim;
        let q = 8 * (head_dim + 8) * 2;
        let warps = 4 * 8 * (head_dim + 1) * 4 + 2 * n_warps * 8 * 4;
        let attention = q + warps + 8 * head_dim * 4 + 2 * 8 * 4 + 2 * head_dim * 2;
        of_products.max().unwrap_or(0).max(attention)
    }

    /// As `Shared` in decode_layers.cu.
    fn shared_bytes(&self, m: usize, plan: &Plan, n_warps: usize) -> usize {
        let tables = 2 * n_warps * MAX_STAGES * 8
            + 8
            + PRODUCTS * (n_warps * RUN_BYTES + SHARE_BYTES)
            + MAX_ROWS * 4
            + n_warps * 32 * 4
            + MAX_TILES * 2;
        let pointers = self.n_layers * 2 * PRODUCTS * 8;
        let chunk = CHUNK_BYTES + Format::AwqG128.scale_bytes();
        tables.next_multiple_of(128)
            + pointers.next_multiple_of(128)
            + n_warps * plan.n_stages * chunk
            + self.scratch_bytes(m, plan.n_ranks, plan.n_clusters, n_warps)
    }
}

/// The launch for `m` rows, or why the kernel cannot have these layers on such a device.
pub fn plan(shape: &DecodeShape, m: usize, limits: &DeviceLimits) -> Result<Plan, KernelError> {
    shape.check()?;
    if m == 0 || m > MAX_ROWS {
        return Err(KernelError::Shape {
            op: OP,
            what: "the number of rows",
            found: m,
            expected: format!("1 to {MAX_ROWS}"),
        });
    }
    let n_warps = n_warps(limits.compute_major);
    let mut best: Option<(usize, Plan)> = None;
    for (n_ranks, index) in RANKS {
        let n_clusters = limits.max_clusters[index];
        let divides = |layout: &Layout| layout.n_chunks.is_multiple_of(n_ranks);
        if n_clusters == 0 || !shape.layouts.iter().all(divides) {
            continue;
        }
        let n_tiles: usize = (0..PRODUCTS)
            .map(|i| shape.cluster_tiles(i, n_clusters))
            .sum();
        // A thread keeps one value of h at most.
        let h_tiles = shape.cluster_tiles(1, n_clusters).div_ceil(n_ranks);
        if n_tiles > MAX_TILES || h_tiles * TILE_COLUMNS * m > n_warps * 32 {
            continue;
        }
        let deepest = (MIN_STAGES..=MAX_STAGES).rev().find_map(|n_stages| {
            let mut plan = Plan {
                n_ranks,
                n_clusters,
                n_stages,
                shared_bytes: 0,
            };
            plan.shared_bytes = shape.shared_bytes(m, &plan, n_warps);
            (plan.shared_bytes <= limits.shared_bytes_per_block).then_some(plan)
        });
        let Some(plan) = deepest else { continue };
        let busiest = shape.busiest(n_ranks, n_clusters);
        // Of equal ones the first: more ranks keep less of x in shared memory.
        if best.is_none_or(|(least, _)| busiest < least) {
            best = Some((busiest, plan));
        }
    }
    best.map(|(_, plan)| plan).ok_or_else(|| KernelError::Value {
        op: OP,
        message: format!(
            "{m} rows of layers with {:?} x {:?} values leave no rings of {MIN_STAGES} chunks in {} \
             bytes of shared memory",
            shape.layouts.each_ref().map(Layout::n),
            shape.layouts.each_ref().map(|l| l.k),
            limits.shared_bytes_per_block
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(
        hidden: usize,
        intermediate: usize,
        n_q: usize,
        n_kv: usize,
        n_layers: usize,
    ) -> DecodeShape {
        let head_dim = 128;
        let stacked = |parts: &[usize], k| {
            Layout::new(Format::AwqG128, Arrangement::Stacked, parts, k).expect("a layout")
        };
        let (q, kv) = (n_q * head_dim, n_kv * head_dim);
        DecodeShape {
            heads: HeadShape {
                n_q,
                n_kv,
                head_dim,
            },
            n_layers,
            layouts: [
                stacked(&[q, kv, kv], hidden),
                stacked(&[hidden], q),
                Layout::new(
                    Format::AwqG128,
                    Arrangement::GateUp,
                    &[intermediate, intermediate],
                    hidden,
                )
                .expect("a layout"),
                stacked(&[hidden], intermediate),
            ],
        }
    }

    fn h100() -> DeviceLimits {
        DeviceLimits {
            compute_major: 9,
            shared_bytes_per_block: 232_448,
            shared_bytes_per_multiprocessor: 233_472,
            reserved_shared_bytes_per_block: 1024,
            max_clusters: [132, 66, 32, 16],
        }
    }

    #[test]
    fn qwen3_32b_is_shared_out_evenly() {
        let shape = shape(5120, 25_600, 64, 8, 64);
        for (m, n_stages) in [(1, 5), (4, 4), (8, 2)] {
            let plan = plan(&shape, m, &h100()).expect("fits");
            assert_eq!((plan.n_ranks, plan.n_clusters), (4, 32));
            assert!(
                plan.n_stages >= n_stages,
                "{m} rows: {plan:?}, at least {n_stages} stages expected"
            );
            assert!(plan.shared_bytes <= 232_448);
            // Every block has as many chunks of every product.
            let mean: usize = shape.layouts.iter().map(|l| l.n_tiles * l.n_chunks).sum();
            assert_eq!(shape.busiest(4, 32) * 128, mean);
        }
    }

    #[test]
    fn slices_of_k_are_equal() {
        // 14 chunks do not divide by 4.
        let plan = plan(&shape(3584, 18_944, 28, 4, 28), 1, &h100()).expect("fits");
        assert_eq!((plan.n_ranks, plan.n_clusters), (2, 66));
    }

    #[test]
    fn a_5090_has_rings_for_a_row() {
        let limits = DeviceLimits {
            compute_major: 12,
            shared_bytes_per_block: 101_376,
            shared_bytes_per_multiprocessor: 102_400,
            reserved_shared_bytes_per_block: 1024,
            max_clusters: [170, 85, 42, 21],
        };
        let shape = shape(5120, 25_600, 64, 8, 64);
        let plan = plan(&shape, 1, &limits).expect("fits");
        assert_eq!(plan.n_ranks, 4);
        assert!(plan.n_stages >= 3, "{plan:?}");
    }

    #[test]
    fn what_the_kernel_cannot_have_is_said() {
        let limits = h100();
        let error = |shape: &DecodeShape, m| plan(shape, m, &limits).unwrap_err().to_string();
        let qwen = shape(5120, 25_600, 64, 8, 64);
        assert!(error(&qwen, 0).contains('0'));
        assert!(error(&qwen, 9).contains("1 to 8"));
        let mut half = qwen.clone();
        half.layouts[3] =
            Layout::new(Format::Half, Arrangement::Stacked, &[5120], 25_600).expect("a layout");
        assert!(error(&half, 1).contains("AWQ in groups of 128"));
        assert!(error(&shape(5120, 25_600, 64, 4, 64), 1).contains("64 query heads"));
        let mut other = qwen.clone();
        other.layouts[1] = qwen.layouts[0].clone();
        assert!(error(&other, 1).contains("fit together"));
        let odd = shape(5120 + 128, 25_600, 64, 8, 64);
        assert!(error(&odd, 1).contains("256"));
    }
}
