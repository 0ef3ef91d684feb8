//! `y = W x` for weights of 4 or 8 bits in groups along the input.
//!
//! At load, every checkpoint format is converted to one of a few packed layouts, so that there is
//! one kernel for each instruction set:
//!
//! | on disk | packed codes | group | weight |
//! |---|---|---|---|
//! | Q4_0 | 4 bits | 32 | `s (q - 8)` |
//! | Q4_1, Q4_K | 4 bits | 32 | `s q + m` |
//! | AWQ | 4 bits | AWQ's: a multiple of 32 | `s (q - z)` |
//! | Q5_0 | 8 bits | 32 | `s (q - 16)` |
//! | Q5_1, Q5_K | 8 bits | 32 | `s q + m` |
//! | Q2_K | 8 bits | 16 | `s q + m` |
//! | Q3_K | 8 bits | 16 | `s (q - 4)` |
//! | Q6_K | 8 bits | 16 | `s (q - 32)` |
//! | IQ4_NL, IQ4_XS | 8 bits | 32 | `s (q - 128)` |
//! | MXFP4 | 8 bits | 32 | `r s (q - 128)` |
//! | Q8_0 | 8 bits | 32 | `s (q - 128)` |
//! | 8-bit integers | 8 bits | a row | `r (q - 128)` |
//! | FP4 in groups of 16 | 8 bits | 16 | `r s (q - 128)` |
//! | f32, f16, bf16 | 8 bits | 128, 64 or 32 | `s (q - 128)`, rounded here |
//!
//! `s`, `m` and `z` are f16, one for each group: exact except for the K formats and IQ4_XS, whose
//! scales are products rounded to f16 (2^-12 of a weight). `r` is f32, one for a row. Activations are f32, or 8-bit integers with one
//! f32 scale for 16 of them ([`QuantActivations`]), in one term or two ([`Terms`]); `y` is always
//! f32.
//!
//! A token's result depends only on that token, bit for bit, whatever else is in the batch.

mod activations;
mod blocks;
mod codebooks;
mod cpu;
pub(crate) mod pack;
pub mod reference;
mod round;
mod small_k_blocks;

pub use activations::{QuantActivations, Terms};
pub use blocks::BlockFormat;

use half::f16;
use host::memory::{AlignedBytes, Arena};
use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::dense_linear::DenseFormat;
use crate::error::check_shape;
use crate::isa::Isa;

/// Output rows that are interleaved in one tile.
pub const TILE_ROWS: usize = 16;
/// Inputs that share one activation scale. Sixteen, not ggml's 32: a small model with outliers
/// in its residual stream loses a quarter less log-probability that way.
pub const ACTIVATION_GROUP: usize = 16;
/// Inputs that share a weight scale at most; rows are whole multiples of it.
const WEIGHT_GROUP: usize = 32;

/// The source format of a matrix.
#[derive(Debug, Clone, Copy)]
pub enum QuantSource<'a> {
    /// ggml blocks along each row: `[n_out, n_in / block_len]` blocks.
    Blocks {
        format: BlockFormat,
        bytes: &'a [u8],
    },
    /// Little-endian rows `[n_out, n_in]`, which are rounded to 8 bits here.
    Rows {
        format: DenseFormat,
        bytes: &'a [u8],
    },
    /// Signed rows `[n_out, n_in]`, with a scale for each row: `scales [n_out]`.
    Int8 { codes: &'a [u8], scales: &'a [f32] },
    /// FP4 (E2M1), two a byte, the even input low: `codes [n_out, n_in / 2]`. A weight is its value
    /// times the scale of its 16, `scales [n_out, n_in / 16]`, which fit f16, times `factor`.
    Fp4 {
        codes: &'a [u8],
        scales: &'a [f32],
        factor: f32,
    },
    /// AutoAWQ `gemm`: `qweight [n_in, n_out / 8]` u32, `qzeros [n_in / group_size, n_out / 8]`
    /// u32, `scales [n_in / group_size, n_out]` f16, all little-endian.
    Awq {
        group_size: usize,
        qweight: &'a [u8],
        qzeros: &'a [u8],
        scales: &'a [u8],
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedLayout {
    /// 4 or 8.
    pub code_bits: usize,
    /// Inputs that share a scale: 16, or a multiple of 32.
    pub group: usize,
    pub offset: Offset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offset {
    /// `w = s (q - zero)`
    Zero(u8),
    /// `w = s q + m`, with `m` stored next to `s`.
    Min,
    /// `w = s (q - z)`, with `z` stored next to `s`.
    GroupZero,
}

impl Offset {
    /// Whether each group has a second number besides its scale.
    fn is_stored(self) -> bool {
        !matches!(self, Self::Zero(_))
    }
}

impl PackedLayout {
    /// Inputs whose codes are contiguous: what a kernel reads at once.
    fn chunk(&self) -> usize {
        self.group.min(WEIGHT_GROUP)
    }

    fn n_chunks(&self) -> usize {
        self.group / self.chunk()
    }

    fn chunk_bytes(&self) -> usize {
        TILE_ROWS * self.chunk() * self.code_bits / 8
    }

    fn code_bytes(&self) -> usize {
        self.n_chunks() * self.chunk_bytes()
    }

    fn scale_bytes(&self) -> usize {
        TILE_ROWS * 2 * if self.offset.is_stored() { 2 } else { 1 }
    }

    fn group_bytes(&self) -> usize {
        self.code_bytes() + self.scale_bytes()
    }

    /// The code of input `k` of a group in row `lane`.
    fn code(&self, codes: &[u8], k: usize, lane: usize) -> u8 {
        let codes = &codes[k / self.chunk() * self.chunk_bytes()..];
        let k = k % self.chunk();
        if self.code_bits == 8 {
            return codes[(k / 4 * TILE_ROWS + lane) * 4 + k % 4];
        }
        let byte = codes[(k % 16 / 4 * TILE_ROWS + lane) * 4 + k % 4];
        if k < 16 { byte & 15 } else { byte >> 4 }
    }
}

/// A packed matrix.
///
/// A tile has 16 rows, group after group, each group's scales after its codes: one stream from the
/// first byte to the last. Codes are in chunks of up to 32 inputs. In a chunk, the four bytes at
/// word `16 i + r` belong to row `r`: inputs `4 i .. 4 i + 4`, and with 4-bit codes the high
/// nibbles have inputs `16 + 4 i ..`. Scales of a group: 16 f16, then 16 minima or zeros if the
/// layout has them. Rows past `n_out` are zero.
#[derive(Debug)]
pub struct QuantMatrix {
    n_out: usize,
    n_in: usize,
    layout: PackedLayout,
    /// What each row's weights are multiplied with in addition, `[n_out]`, in some formats.
    row_scales: Option<Vec<f32>>,
    tile_bytes: usize,
    tiles: AlignedBytes,
}

/// One tile's memory: whole groups.
#[derive(Clone, Copy)]
struct Tile<'a> {
    bytes: &'a [u8],
    group_bytes: usize,
    n_groups: usize,
    /// Chunks of a group.
    n_chunks: usize,
    /// Of [`Offset::Zero`], otherwise 0.
    zero: i32,
}

impl<'a> Tile<'a> {
    fn groups(&self) -> std::slice::ChunksExact<'a, u8> {
        self.bytes.chunks_exact(self.group_bytes)
    }

    /// Number `i` of a group's scales.
    fn scale(scales: &[u8], i: usize) -> f32 {
        f16::from_ne_bytes([scales[2 * i], scales[2 * i + 1]]).to_f32()
    }
}

impl QuantMatrix {
    /// Repacks a matrix of shape `[n_out, n_in]`; `n_in` must be a multiple of 32.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if a dimension is not a multiple of what the format needs or a
    /// part of `source` has another length, [`KernelError::Host`] if the memory cannot be had or
    /// a worker thread panicked.
    pub fn pack(
        pool: &mut WorkerPool,
        arena: &mut Arena,
        n_out: usize,
        n_in: usize,
        source: QuantSource<'_>,
    ) -> Result<Self, KernelError> {
        pack::pack(pool, arena, n_out, n_in, source)
    }

    pub fn n_out(&self) -> usize {
        self.n_out
    }

    pub fn n_in(&self) -> usize {
        self.n_in
    }

    pub fn layout(&self) -> PackedLayout {
        self.layout
    }

    pub fn n_tiles(&self) -> usize {
        self.n_out.div_ceil(TILE_ROWS)
    }

    /// Bytes that one pass over the matrix reads.
    pub fn bytes(&self) -> usize {
        let row_scales = self.row_scales.as_deref().unwrap_or_default();
        self.tile_bytes * self.n_tiles() + size_of_val(row_scales)
    }

    fn n_groups(&self) -> usize {
        self.n_in / self.layout.group
    }

    fn tile(&self, tile: usize) -> Tile<'_> {
        let (n_groups, group_bytes) = (self.n_groups(), self.layout.group_bytes());
        let bytes = &self.tiles.as_slice()[tile * self.tile_bytes..][..n_groups * group_bytes];
        Tile {
            bytes,
            group_bytes,
            n_groups,
            n_chunks: self.layout.n_chunks(),
            zero: match self.layout.offset {
                Offset::Zero(zero) => i32::from(zero),
                Offset::Min | Offset::GroupZero => 0,
            },
        }
    }

    /// One row as f32, into `out: [n_in]`.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if `out` is not `n_in` long or there is no such row.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        check_shape("quant_linear", "length of out", out.len(), self.n_in)?;
        if row >= self.n_out {
            return Err(KernelError::Shape {
                op: "quant_linear",
                what: "row",
                found: row,
                expected: format!("below {}", self.n_out),
            });
        }
        let lane = row % TILE_ROWS;
        let groups = self.tile(row / TILE_ROWS).groups();
        for (out, group) in out.chunks_exact_mut(self.layout.group).zip(groups) {
            let (codes, scales) = group.split_at(self.layout.code_bytes());
            let (scale, min) = reference::scale_and_min(scales, self.layout.offset, lane);
            for (k, w) in out.iter_mut().enumerate() {
                let code = f32::from(self.layout.code(codes, k, lane));
                *w = match self.layout.offset {
                    Offset::Zero(zero) => (code - f32::from(zero)) * scale,
                    Offset::Min | Offset::GroupZero => code * scale + min,
                };
            }
        }
        if let Some(scales) = &self.row_scales {
            for w in out {
                *w *= scales[row];
            }
        }
        Ok(())
    }
}

/// The other factor of a product; both variants are `[n_tokens, n_in]`.
#[derive(Clone, Copy)]
pub enum Activations<'a> {
    F32(&'a [f32]),
    Int8(&'a QuantActivations),
}

/// Destination of the results: `y[token, row]` at `token * stride + row`.
#[derive(Clone, Copy)]
pub struct OutputView<'a> {
    pub y: &'a DisjointMut<'a, f32>,
    pub stride: usize,
    /// Add to the output instead of overwriting it.
    pub accumulate: bool,
    /// `[n_out]`
    pub bias: Option<&'a [f32]>,
}

impl OutputView<'_> {
    /// Writes the results of rows `first ..` for one token.
    ///
    /// # Safety
    /// No other thread touches these rows of this token meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, token: usize, first: usize, values: &[f32]) {
        // SAFETY: the caller's promise.
        let y = unsafe { self.y.slice(token * self.stride + first, values.len()) };
        if self.accumulate {
            y.iter_mut().zip(values).for_each(|(y, v)| *y += v);
        } else {
            y.copy_from_slice(values);
        }
        if let Some(bias) = self.bias {
            y.iter_mut().zip(&bias[first..]).for_each(|(y, b)| *y += b);
        }
    }
}

/// Computes the rows of `tiles` for these tokens of `x`, of which `out` has the first. Shapes were
/// checked by [`crate::linear`].
///
/// # Safety
/// No other thread touches these tiles' part of the output meanwhile.
pub(crate) unsafe fn run_tiles(
    isa: Isa,
    w: &QuantMatrix,
    x: Activations<'_>,
    tokens: std::ops::Range<usize>,
    tiles: std::ops::Range<usize>,
    out: OutputView<'_>,
) {
    for tile in tiles {
        let first = tile * TILE_ROWS;
        let rows = (w.n_out - first).min(TILE_ROWS);
        let mut token = tokens.start;
        while token < tokens.end {
            let mut block = [[0.0f32; TILE_ROWS]; cpu::BLOCK_ROWS];
            let n = cpu::tile_block(isa, w, tile, x, token, tokens.end - token, &mut block);
            for (t, values) in block[..n].iter_mut().enumerate() {
                if let Some(scales) = &w.row_scales {
                    let scales = &scales[first..][..rows];
                    values.iter_mut().zip(scales).for_each(|(y, s)| *y *= s);
                }
                // SAFETY: these rows of this token belong to this tile; the caller promises that
                // no other thread has it.
                unsafe { out.write(token - tokens.start + t, first, &values[..rows]) }
            }
            token += n;
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_packing;
