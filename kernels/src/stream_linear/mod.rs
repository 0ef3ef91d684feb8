//! y = x Wᵀ: the projections of decode steps at the speed of reading W, those of prompts at the
//! speed of the matrix instructions.
//!
//! W is repacked once at load (`repack.cu`) into the order in which the matrix instructions read
//! it. Up to 8 rows are streamed by `stream_linear.cu`; from 9 rows on, with x in tiles, `wgmma.cu`
//! takes over on sm_90 and `mma.cu` elsewhere, unless a timed choice replaced the rule ([`Variant`]). Kernels
//! that were loaded for it multiply AWQ weights in groups of 128 with 8-bit activations there
//! (`mma_int8.cu`). Formats of GGUF and FP8 are packed on the host ([`codes`]) and have no variant in
//! `wgmma.cu`. Here are the formats, the packed layout, the shared memory that a launch needs and
//! the choice of its shape; [`StreamLinear`] owns the weights and launches.

pub mod codes;
mod cuda;
mod mma;
mod mma_int8;
mod plan;
mod random;
pub mod reference;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_layout;
mod variant;
mod wgmma;

use cuda::LargeMLaunch;
pub use cuda::{AwqPart, LargeM, Output, StreamLinear, StreamLinearKernels};
pub use mma_int8::Int8Room;
pub use plan::{DeviceLimits, Plan, RowBucket, choose_plan, shared_bytes};
pub use random::fill_normal;
pub use variant::{LoadedKernels, Variant, candidates, default_variant};

use crate::KernelError;
use crate::cuda::Element;
use crate::shared_with_device::shared_constants;

const OP: &str = "stream_linear";

/// Rows (tokens) that one launch of `stream_linear.cu` takes, and for which choices can be timed.
pub const MAX_ROWS: usize = 64;
/// Rows from which `wgmma.cu` and `mma.cu` are faster than `stream_linear.cu` and are the default;
/// x is tiled then.
pub const TILED_ROWS: usize = 9;
/// Rows from which x is always tiled: `stream_linear.cu` is no candidate any more. With 8-bit
/// activations x is rounded from here on.
pub const LARGE_M_MIN: usize = 17;
/// Rows that one launch takes.
pub const MAX_TILED_ROWS: usize = 1 << 16;
/// Columns of W in a tile.
pub const TILE_COLUMNS: usize = 16;
/// Packed weights of one tile and one chunk of k.
pub const CHUNK_BYTES: usize = 2048;
const AWQ_CHUNK_K: usize = 256;
const BYTE_CHUNK_K: usize = 128;
const HALF_CHUNK_K: usize = 64;
/// Scales of one tile and one group: 16 fp16.
const GROUP_SCALE_BYTES: usize = TILE_COLUMNS * 2;
/// Scales and zero points: 16 fp16 and 16 nibbles.
const GROUP_BYTES: usize = GROUP_SCALE_BYTES + TILE_COLUMNS / 2;
/// Scales and minima in fp16.
const MIN_GROUP_BYTES: usize = 2 * GROUP_SCALE_BYTES;
/// Scales in fp32.
const FLOAT_GROUP_BYTES: usize = TILE_COLUMNS * 4;

shared_constants! {
    in "stream_linear/weight_layout.cuh" {
        TILE_COLUMNS, CHUNK_BYTES, AWQ_CHUNK_K, BYTE_CHUNK_K, HALF_CHUNK_K, GROUP_SCALE_BYTES, GROUP_BYTES,
        MIN_GROUP_BYTES, FLOAT_GROUP_BYTES
    }
}

/// How the weights are stored, as `weight_layout.cuh` lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4 bits, `s (q - z)`: one fp16 scale and 4-bit zero point a group of k.
    AwqG128,
    AwqG64,
    AwqG32,
    /// 16 bits, fp16 or bf16 as the activations are.
    Half,
    /// 4 bits, `s q + m`: an fp16 scale and an fp16 minimum for 32 of k.
    MinG32,
    /// 8 bits, signed, with an fp16 scale for 32 of k.
    BytesG32,
    /// The same for 16 of k.
    BytesG16,
    /// 8 bits, signed, `s q + m`, with both in fp16 for 16 of k.
    BytesMinG16,
    /// E4M3 with an fp32 scale for 128 of k.
    Fp8,
}

/// What a group has besides its scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupScales {
    /// fp16 and 4-bit zero points.
    Zero,
    /// fp16.
    Plain,
    /// fp16, and a minimum in fp16.
    Minimum,
    /// fp32.
    Float,
}

impl Format {
    pub const ALL: [Self; 9] = [
        Self::AwqG128,
        Self::AwqG64,
        Self::AwqG32,
        Self::Half,
        Self::MinG32,
        Self::BytesG32,
        Self::BytesG16,
        Self::BytesMinG16,
        Self::Fp8,
    ];

    /// The AWQ format with `group` values of k to a scale: 32, 64 or 128.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] for any other size.
    pub fn awq(group: usize) -> Result<Self, KernelError> {
        match group {
            128 => Ok(Self::AwqG128),
            64 => Ok(Self::AwqG64),
            32 => Ok(Self::AwqG32),
            _ => Err(KernelError::Shape {
                op: OP,
                what: "the AWQ group size",
                found: group,
                expected: "32, 64 or 128".into(),
            }),
        }
    }

    /// The group size of an AWQ format; `None` for the others.
    pub const fn awq_group(self) -> Option<usize> {
        match self {
            Self::AwqG128 | Self::AwqG64 | Self::AwqG32 => self.group(),
            _ => None,
        }
    }

    /// Values of k to a scale; `None` for 16-bit weights.
    pub const fn group(self) -> Option<usize> {
        match self {
            Self::AwqG128 | Self::Fp8 => Some(128),
            Self::AwqG64 => Some(64),
            Self::AwqG32 | Self::MinG32 | Self::BytesG32 => Some(32),
            Self::BytesG16 | Self::BytesMinG16 => Some(16),
            Self::Half => None,
        }
    }

    /// What k must be a multiple of. The last group of 128 with an fp32 scale may be shorter.
    pub const fn k_step(self) -> usize {
        match (self, self.group()) {
            (Self::Fp8, _) | (_, None) => 1,
            (_, Some(group)) => group,
        }
    }

    /// Bits of a code.
    pub const fn code_bits(self) -> usize {
        match self {
            Self::AwqG128 | Self::AwqG64 | Self::AwqG32 | Self::MinG32 => 4,
            Self::BytesG32 | Self::BytesG16 | Self::BytesMinG16 | Self::Fp8 => 8,
            Self::Half => 16,
        }
    }

    pub(crate) const fn scales(self) -> Option<GroupScales> {
        match self {
            Self::AwqG128 | Self::AwqG64 | Self::AwqG32 => Some(GroupScales::Zero),
            Self::BytesG32 | Self::BytesG16 => Some(GroupScales::Plain),
            Self::MinG32 | Self::BytesMinG16 => Some(GroupScales::Minimum),
            Self::Fp8 => Some(GroupScales::Float),
            Self::Half => None,
        }
    }

    /// Values of k in a chunk.
    pub const fn chunk_k(self) -> usize {
        match self.code_bits() {
            4 => AWQ_CHUNK_K,
            8 => BYTE_CHUNK_K,
            _ => HALF_CHUNK_K,
        }
    }

    /// Pieces of 64 k whose codes of one column tile a lane has in four loads of 16 bytes.
    pub(crate) const fn pieces_of_four_loads(self) -> usize {
        16 / self.code_bits()
    }

    /// Groups in a chunk; 0 for 16-bit weights.
    pub const fn chunk_groups(self) -> usize {
        match self.group() {
            Some(group) => self.chunk_k() / group,
            None => 0,
        }
    }

    /// Groups of a chunk whose scales `stream_linear.cu` applies to sums, for which it adds up x.
    pub(crate) const fn sum_groups(self) -> usize {
        match self.code_bits() {
            4 => self.chunk_groups(),
            _ => 0,
        }
    }

    /// Bytes of scales, zeros and minima of one tile and one chunk.
    pub const fn scale_bytes(self) -> usize {
        let of_group = match self.scales() {
            Some(GroupScales::Zero) => GROUP_BYTES,
            Some(GroupScales::Plain) => GROUP_SCALE_BYTES,
            Some(GroupScales::Minimum) => MIN_GROUP_BYTES,
            Some(GroupScales::Float) => FLOAT_GROUP_BYTES,
            None => 0,
        };
        self.chunk_groups() * of_group
    }

    /// The kernels' name without `stream`, `mma` or `wgmma`.
    pub(crate) const fn kernel_name(self) -> &'static str {
        match self {
            Self::AwqG128 => "awq_g128",
            Self::AwqG64 => "awq_g64",
            Self::AwqG32 => "awq_g32",
            Self::Half => "half",
            Self::MinG32 => "min_g32",
            Self::BytesG32 => "bytes_g32",
            Self::BytesG16 => "bytes_g16",
            Self::BytesMinG16 => "bytes_min_g16",
            Self::Fp8 => "fp8",
        }
    }

    /// AWQ and 16 bits: formats with every variant of every kernel. The others have those that are chosen.
    const fn has_all_variants(self) -> bool {
        matches!(
            self,
            Self::AwqG128 | Self::AwqG64 | Self::AwqG32 | Self::Half
        )
    }

    /// Rows up to which `stream_linear.cu` has variants.
    pub const fn max_stream_rows(self) -> usize {
        if self.has_all_variants() {
            MAX_ROWS
        } else {
            RowBucket::Up16.max()
        }
    }

    /// Whether there are kernels for activations of this element: of packed codes other than AWQ's for fp16 alone.
    pub fn has_element(self, element: Element) -> bool {
        self.has_all_variants() || element == Element::F16
    }

    /// Whether `wgmma.cu` multiplies this format; `mma.cu` has all of them.
    pub const fn has_wgmma(self) -> bool {
        self.has_all_variants()
    }
}

/// What happens to the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// y, in the activations' element.
    Store,
    /// out += y, in fp32.
    AddResidual,
    /// silu(gate) * up, in the activations' element; needs [`Arrangement::GateUp`].
    SiluMul,
    /// y, as fp32.
    StoreF32,
}

impl Epilogue {
    pub const ALL: [Self; 4] = [
        Self::Store,
        Self::AddResidual,
        Self::SiluMul,
        Self::StoreF32,
    ];

    /// Its value in packed_weights.cuh.
    const fn on_device(self) -> i32 {
        match self {
            Self::Store => 0,
            Self::AddResidual => 1,
            Self::SiluMul => 2,
            Self::StoreF32 => 3,
        }
    }

    const fn kernel_infix(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::AddResidual => "add_residual",
            Self::SiluMul => "silu_mul",
            Self::StoreF32 => "store_f32",
        }
    }
}

/// The arrangement of the parts of W (for example q, k and v) in one packed matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrangement {
    /// One below the other: the outputs are concatenated.
    Stacked,
    /// Pairs of parts, alternating tile by tile: their outputs become silu(first) * second. A matrix has one pair; that
    /// of all experts has one pair after the other.
    GateUp,
}

/// Shape of a packed matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub format: Format,
    pub arrangement: Arrangement,
    /// Columns of each part.
    pub parts_n: Vec<usize>,
    pub k: usize,
    pub n_tiles: usize,
    pub n_chunks: usize,
}

impl Layout {
    /// Errors unless the kernels can take it: k a multiple of the group, parts (but the last, or the last pair) a
    /// multiple of 16, gate and up of one size.
    ///
    /// ```
    /// use kernels::stream_linear::{Arrangement, Format, Layout};
    ///
    /// // q, k and v of Qwen3-32B in 4 bits, groups of 128.
    /// let layout = Layout::new(Format::awq(128)?, Arrangement::Stacked, &[8192, 1024, 1024], 5120)?;
    /// assert_eq!((layout.n(), layout.n_tiles), (10_240, 640));
    /// assert_eq!(layout.weight_bytes(), 10_240 * 5120 / 2);
    /// assert!(Layout::new(Format::AwqG128, Arrangement::Stacked, &[64], 100).is_err());
    /// # Ok::<(), kernels::KernelError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a size does not fit the format; the error names it and what it must be.
    pub fn new(
        format: Format,
        arrangement: Arrangement,
        parts_n: &[usize],
        k: usize,
    ) -> Result<Self, KernelError> {
        let shape = |what, found, expected: String| KernelError::Shape {
            op: OP,
            what,
            found,
            expected,
        };
        let step = format.k_step();
        if k == 0 || !k.is_multiple_of(step) {
            return Err(shape("k", k, format!("a positive multiple of {step}")));
        }
        let is_pair = arrangement == Arrangement::GateUp;
        if parts_n.is_empty() || (is_pair && !parts_n.len().is_multiple_of(2)) {
            let expected = if is_pair { "pairs" } else { "at least 1" };
            return Err(shape("the number of parts", parts_n.len(), expected.into()));
        }
        if is_pair && let Some(pair) = parts_n.chunks_exact(2).find(|pair| pair[0] != pair[1]) {
            return Err(shape(
                "up's columns",
                pair[1],
                format!("{} as gate has", pair[0]),
            ));
        }
        // Parts that end the matrix need not fill their last tile.
        let n_last = if is_pair { 2 } else { 1 };
        for (i, &n) in parts_n.iter().enumerate() {
            let is_last = i + n_last >= parts_n.len();
            let step = if is_last { 1 } else { TILE_COLUMNS };
            if n == 0 || !n.is_multiple_of(step) {
                return Err(shape(
                    "a part's columns",
                    n,
                    format!("a positive multiple of {step}"),
                ));
            }
        }
        let n_tiles: usize = parts_n.iter().map(|n| n.div_ceil(TILE_COLUMNS)).sum();
        let n_chunks = k.div_ceil(format.chunk_k());
        if n_tiles.saturating_mul(n_chunks) > i32::MAX as usize {
            return Err(shape(
                "tiles times chunks",
                n_tiles * n_chunks,
                format!("at most {}", i32::MAX),
            ));
        }
        Ok(Self {
            format,
            arrangement,
            parts_n: parts_n.to_vec(),
            k,
            n_tiles,
            n_chunks,
        })
    }

    /// Columns of the output.
    pub fn n(&self) -> usize {
        match self.arrangement {
            Arrangement::Stacked => self.parts_n.iter().sum(),
            Arrangement::GateUp => self.parts_n.iter().step_by(2).sum(),
        }
    }

    /// Required length of a row of x: k rounded up to whole chunks. The values from k on are zero.
    pub fn padded_k(&self) -> usize {
        self.n_chunks * self.format.chunk_k()
    }

    pub fn weight_bytes(&self) -> usize {
        self.n_tiles * self.n_chunks * CHUNK_BYTES
    }

    pub fn scale_bytes(&self) -> usize {
        self.n_tiles * self.n_chunks * self.format.scale_bytes()
    }

    /// Location of tile `t` of a part: `t * step + offset`.
    pub fn tile_place(&self, part: usize) -> (usize, usize) {
        let tiles_before = |part: usize| -> usize {
            let before = &self.parts_n[..part];
            before.iter().map(|n| n.div_ceil(TILE_COLUMNS)).sum()
        };
        match self.arrangement {
            Arrangement::GateUp => (2, tiles_before(part / 2 * 2) + part % 2),
            Arrangement::Stacked => (1, tiles_before(part)),
        }
    }

    /// Tiles that only make sense together.
    const fn tile_group(&self) -> usize {
        match self.arrangement {
            Arrangement::Stacked => 1,
            Arrangement::GateUp => 2,
        }
    }
}
