//! The kernel and launch shape of a product.
//!
//! A fixed rule selects one by the number of rows. A caller that can time them may list all that
//! fit ([`candidates`]) and replace a matrix's choice
//! ([`StreamLinear::set_variant`](super::StreamLinear::set_variant)). Candidates sum in different
//! orders, and those for many rows round the weights to the element type first: results agree
//! within that tolerance, not bit by bit.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::plan::{check_plan, choose_plan, ranked_plans};
use super::{
    DeviceLimits, Format, LARGE_M_MIN, LargeM, Layout, MAX_ROWS, OP, Plan, RowBucket, TILED_ROWS,
    mma, mma_int8, wgmma,
};
use crate::KernelError;

/// Number of launch shapes of `stream_linear.cu` to time: the model's first choices, and the best
/// of each number of ranks, where the model is least certain.
const STREAM_CANDIDATES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// `stream_linear.cu`, up to 64 rows.
    Stream(Plan),
    /// `mma.cu` with tiles of `rows` rows: 16 (of AWQ and 16-bit weights), 24, 32, 64 or 128.
    Mma { rows: usize },
    /// `mma_int8.cu` with tiles of `rows` rows: 32 or 64; x is rounded to 8 bits first.
    MmaInt8 { rows: usize },
    /// `wgmma.cu` with tiles of `rows` rows: 24, 32, 64 or 128.
    Wgmma { rows: usize },
}

/// The kernels loaded for many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedKernels {
    pub large_m: LargeM,
    /// Whether AWQ weights in groups of 128 are multiplied with 8-bit activations from [`LARGE_M_MIN`] rows on.
    pub int8: bool,
}

/// The kernel for rows in tiles of one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TiledKernel {
    Wgmma,
    /// Elsewhere than on sm_90, and there of formats that `wgmma.cu` does not have.
    Mma,
}

impl LoadedKernels {
    pub(super) const fn tiled(self, format: Format) -> TiledKernel {
        match self.large_m {
            LargeM::Wgmma { .. } if format.has_wgmma() => TiledKernel::Wgmma,
            LargeM::Wgmma { .. } | LargeM::Mma => TiledKernel::Mma,
        }
    }

    const fn uses_int8(self, layout: &Layout, m: usize) -> bool {
        self.int8 && m >= LARGE_M_MIN && matches!(layout.format, Format::AwqG128)
    }
}

impl Variant {
    /// Whether x must be in tiles, and a SiLU output may be.
    pub const fn is_tiled(self) -> bool {
        matches!(
            self,
            Self::Wgmma { .. } | Self::Mma { .. } | Self::MmaInt8 { .. }
        )
    }

    /// Whether a launch can fuse the previous or the next norm.
    pub const fn fuses_norm(self) -> bool {
        matches!(self, Self::Stream(_))
    }
}

/// For example `stream 66x2 stages 3 phases 1`, `mma 32`, `mma int8 64`, `wgmma 24`.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(plan) => write!(
                f,
                "stream {}x{} stages {} phases {}",
                plan.n_clusters, plan.n_ranks, plan.n_stages, plan.n_phases
            ),
            Self::Mma { rows } => write!(f, "mma {rows}"),
            Self::MmaInt8 { rows } => write!(f, "mma int8 {rows}"),
            Self::Wgmma { rows } => write!(f, "wgmma {rows}"),
        }
    }
}

/// The variant for `m` rows by default.
///
/// # Errors
///
/// If no plan fits the device, or `m` has none: see [`choose_plan`].
pub fn default_variant(
    layout: &Layout,
    m: usize,
    limits: &DeviceLimits,
    loaded: LoadedKernels,
) -> Result<Variant, KernelError> {
    if loaded.uses_int8(layout, m) {
        let rows = mma_int8::tile_rows(m);
        return Ok(Variant::MmaInt8 { rows });
    }
    if m < TILED_ROWS {
        return choose_plan(layout, m, limits).map(Variant::Stream);
    }
    Ok(match loaded.tiled(layout.format) {
        TiledKernel::Wgmma => Variant::Wgmma {
            rows: wgmma::tile_rows(m),
        },
        TiledKernel::Mma => Variant::Mma {
            rows: mma::tile_rows(layout.format, m),
        },
    })
}

/// All that are worth timing for `m` rows, up to [`MAX_ROWS`]; the default comes first.
///
/// Up to 8 rows `wgmma.cu` and `mma.cu` would multiply mostly padding. From [`LARGE_M_MIN`] on
/// activations lie in tiles only.
///
/// # Errors
///
/// [`KernelError::Shape`] if `m` is not from 1 to [`MAX_ROWS`], [`KernelError::Value`] if no
/// plan fits the device.
pub fn candidates(
    layout: &Layout,
    m: usize,
    limits: &DeviceLimits,
    loaded: LoadedKernels,
) -> Result<Vec<Variant>, KernelError> {
    if m == 0 || m > MAX_ROWS {
        return Err(KernelError::Shape {
            op: OP,
            what: "the number of rows",
            found: m,
            expected: format!("1 to {MAX_ROWS}"),
        });
    }
    let mut found = vec![default_variant(layout, m, limits, loaded)?];
    let mut add = |variant| {
        if !found.contains(&variant) {
            found.push(variant);
        }
    };
    if m < LARGE_M_MIN {
        for plan in ranked_plans(layout, m, limits, STREAM_CANDIDATES)? {
            add(Variant::Stream(plan));
        }
    }
    if loaded.uses_int8(layout, m) {
        // Variants that round x and variants that do not are not candidates for each other.
        let holds_all = mma_int8::ROWS.into_iter().filter(|rows| *rows >= m);
        holds_all.for_each(|rows| add(Variant::MmaInt8 { rows }));
    } else if m > RowBucket::Up8.max() {
        // A tile twice as large as needed gains nothing.
        let is_worth_it = |rows: &usize| *rows < 2 * m.max(LARGE_M_MIN);
        match loaded.tiled(layout.format) {
            TiledKernel::Wgmma => wgmma::ROWS
                .into_iter()
                .filter(is_worth_it)
                .for_each(|rows| add(Variant::Wgmma { rows })),
            TiledKernel::Mma => mma::rows(layout.format)
                .iter()
                .copied()
                .filter(is_worth_it)
                .for_each(|rows| add(Variant::Mma { rows })),
        }
    }
    Ok(found)
}

/// Errors unless `variant` can run `m` rows.
pub(super) fn check_variant(
    layout: &Layout,
    variant: Variant,
    m: usize,
    limits: &DeviceLimits,
    loaded: LoadedKernels,
) -> Result<(), KernelError> {
    let is_there = match (variant, loaded.tiled(layout.format)) {
        (Variant::Stream(plan), _) => return check_plan(layout, &plan, m, limits).map(|_| ()),
        (Variant::MmaInt8 { rows }, _) => {
            loaded.uses_int8(layout, m) && mma_int8::ROWS.contains(&rows)
        }
        (Variant::Mma { rows }, TiledKernel::Mma) => mma::rows(layout.format).contains(&rows),
        (Variant::Wgmma { rows }, TiledKernel::Wgmma) => wgmma::ROWS.contains(&rows),
        (Variant::Mma { .. }, TiledKernel::Wgmma) | (Variant::Wgmma { .. }, TiledKernel::Mma) => {
            false
        }
    };
    if is_there {
        return Ok(());
    }
    Err(not_there(variant, m, loaded))
}

pub(super) fn not_there(variant: Variant, m: usize, loaded: LoadedKernels) -> KernelError {
    KernelError::Value {
        op: OP,
        message: format!("no kernel `{variant}` for {m} rows where {loaded:?} is loaded"),
    }
}
