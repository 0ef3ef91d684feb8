//! Repacking at load: any source format into tiles of 16 interleaved rows.
//!
//! Threads take ranges of tiles and write directly into the final memory; in addition there is only
//! one tile of unpacked codes for each thread.

use half::f16;
use host::memory::Arena;
use host::pool::{DisjointMut, WorkerPool, share};

use super::blocks::{BlockFormat, RowCodes, unpack_row};
use super::codebooks::{self, TWICE_E2M1};
use super::round::{ROWS_GROUPS, round_row};
use super::{Offset, PackedLayout, QuantMatrix, QuantSource, TILE_ROWS, WEIGHT_GROUP};
use crate::KernelError;
use crate::error::check_shape;
use std::sync::atomic::{AtomicBool, Ordering};

const OP: &str = "quant_linear";
/// Inputs under one scale of [`QuantSource::Fp4`].
const FP4_GROUP: usize = 16;
/// The column, of its eight, in nibble `i` of an AWQ word.
const AWQ_COLUMN_OF_NIBBLE: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Sixteen rows of codes, scales and minima, row after row.
pub(crate) struct TileCodes {
    n_in: usize,
    n_groups: usize,
    /// `[16][n_in]`
    pub codes: Vec<u8>,
    /// `[16][n_groups]`
    pub scales: Vec<f32>,
    /// Minima or zeros, as many.
    pub mins: Vec<f32>,
}

pub(crate) fn layout_of(source: QuantSource<'_>, n_in: usize) -> PackedLayout {
    match source {
        QuantSource::Blocks { format, .. } => format.layout(),
        QuantSource::Awq { group_size, .. } => PackedLayout {
            code_bits: 4,
            group: group_size,
            offset: Offset::GroupZero,
        },
        QuantSource::Int8 { .. } => PackedLayout {
            code_bits: 8,
            group: n_in,
            offset: Offset::Zero(128),
        },
        QuantSource::Fp4 { .. } => PackedLayout {
            code_bits: 8,
            group: FP4_GROUP,
            offset: Offset::Zero(128),
        },
        QuantSource::Rows { .. } => PackedLayout {
            code_bits: 8,
            group: ROWS_GROUPS
                .into_iter()
                .find(|group| n_in.is_multiple_of(*group))
                .unwrap_or(WEIGHT_GROUP),
            offset: Offset::Zero(128),
        },
    }
}

pub(crate) fn check_source(
    n_out: usize,
    n_in: usize,
    source: QuantSource<'_>,
) -> Result<(), KernelError> {
    let multiple = |what, found: usize, of: usize| {
        if found > 0 && found.is_multiple_of(of) {
            return Ok(());
        }
        Err(KernelError::Shape {
            op: OP,
            what,
            found,
            expected: format!("a multiple of {of}"),
        })
    };
    match source {
        QuantSource::Blocks { format, bytes } => {
            multiple("n_in", n_in, format.block_len())?;
            let expected = n_out * (n_in / format.block_len()) * format.block_bytes();
            check_shape(OP, "length of the blocks", bytes.len(), expected)
        }
        QuantSource::Rows { format, bytes } => {
            multiple("n_in", n_in, WEIGHT_GROUP)?;
            let expected = n_out * n_in * format.bytes();
            check_shape(OP, "length of the rows", bytes.len(), expected)
        }
        QuantSource::Int8 { codes, scales } => {
            multiple("n_in", n_in, WEIGHT_GROUP)?;
            check_shape(OP, "length of the rows", codes.len(), n_out * n_in)?;
            check_shape(OP, "number of scales", scales.len(), n_out)
        }
        QuantSource::Fp4 { codes, scales, .. } => {
            multiple("n_in", n_in, WEIGHT_GROUP)?;
            check_shape(OP, "length of the rows", codes.len(), n_out * n_in / 2)?;
            let n_scales = n_out * (n_in / FP4_GROUP);
            check_shape(OP, "number of scales", scales.len(), n_scales)
        }
        QuantSource::Awq {
            group_size,
            qweight,
            qzeros,
            scales,
        } => {
            multiple("AWQ group size", group_size, 32)?;
            multiple("n_in", n_in, group_size)?;
            multiple("n_out", n_out, 8)?;
            let n_groups = n_in / group_size;
            check_shape(OP, "length of qweight", qweight.len(), n_in * n_out / 2)?;
            check_shape(OP, "length of qzeros", qzeros.len(), n_groups * n_out / 2)?;
            check_shape(OP, "length of scales", scales.len(), n_groups * n_out * 2)
        }
    }
}

pub(super) fn pack(
    pool: &mut WorkerPool,
    arena: &mut Arena,
    n_out: usize,
    n_in: usize,
    source: QuantSource<'_>,
) -> Result<QuantMatrix, KernelError> {
    if n_out == 0 {
        return Err(KernelError::Shape {
            op: OP,
            what: "n_out",
            found: 0,
            expected: "above 0".to_owned(),
        });
    }
    check_source(n_out, n_in, source)?;
    let layout = layout_of(source, n_in);
    let n_groups = n_in / layout.group;
    let tile_bytes = (n_groups * layout.group_bytes()).next_multiple_of(64);
    let n_tiles = n_out.div_ceil(TILE_ROWS);
    let mut tiles = arena.zeroed(n_tiles * tile_bytes)?;
    let out = DisjointMut::new(tiles.as_mut_slice());
    let n_threads = pool.n_threads();
    let overflowed = AtomicBool::new(false);
    pool.run(&|thread| {
        let mut scratch = TileCodes::new(n_in, n_groups);
        for tile in share(n_tiles, thread, n_threads) {
            let n_rows = (n_out - tile * TILE_ROWS).min(TILE_ROWS);
            scratch.read(source, n_out, tile * TILE_ROWS, n_rows);
            // SAFETY: each tile is written by the one thread whose share it is in.
            let bytes = unsafe { out.slice(tile * tile_bytes, tile_bytes) };
            if !scratch.write(layout, n_rows, bytes) {
                overflowed.store(true, Ordering::Relaxed);
            }
        }
    })?;
    if overflowed.into_inner() {
        return Err(KernelError::Value {
            op: OP,
            message: format!(
                "a group's scale or minimum is not finite in f16 (limit {})",
                f16::MAX
            ),
        });
    }
    Ok(QuantMatrix {
        n_out,
        n_in,
        layout,
        row_scales: row_scales_of(source, n_out, n_in),
        tile_bytes,
        tiles,
    })
}

pub(crate) fn row_scales_of(
    source: QuantSource<'_>,
    n_out: usize,
    n_in: usize,
) -> Option<Vec<f32>> {
    match source {
        QuantSource::Int8 { scales, .. } => Some(scales.to_vec()),
        // Codes are twice the numbers.
        QuantSource::Fp4 { factor, .. } => Some(vec![factor / 2.0; n_out]),
        QuantSource::Blocks {
            format: format @ BlockFormat::Mxfp4,
            bytes,
        } => {
            let row_bytes = n_in / format.block_len() * format.block_bytes();
            let largest = bytes
                .chunks_exact(row_bytes)
                .map(codebooks::largest_exponent);
            Some(largest.map(codebooks::row_scale).collect())
        }
        QuantSource::Blocks { .. } | QuantSource::Rows { .. } | QuantSource::Awq { .. } => None,
    }
}

impl TileCodes {
    pub(crate) fn new(n_in: usize, n_groups: usize) -> Self {
        Self {
            n_in,
            n_groups,
            codes: vec![0; TILE_ROWS * n_in],
            scales: vec![0.0; TILE_ROWS * n_groups],
            mins: vec![0.0; TILE_ROWS * n_groups],
        }
    }

    /// Rows `first_row ..`, of a source that [`check_source`] found right.
    pub(crate) fn read(
        &mut self,
        source: QuantSource<'_>,
        n_out: usize,
        first_row: usize,
        n_rows: usize,
    ) {
        match source {
            QuantSource::Blocks { format, bytes } => {
                let row_bytes = self.n_in / format.block_len() * format.block_bytes();
                for lane in 0..n_rows {
                    let row = RowCodes {
                        codes: &mut self.codes[lane * self.n_in..][..self.n_in],
                        scales: &mut self.scales[lane * self.n_groups..][..self.n_groups],
                        mins: &mut self.mins[lane * self.n_groups..][..self.n_groups],
                    };
                    unpack_row(
                        format,
                        &bytes[(first_row + lane) * row_bytes..][..row_bytes],
                        row,
                    );
                }
            }
            QuantSource::Int8 { codes, .. } => {
                let from = &codes[first_row * self.n_in..][..n_rows * self.n_in];
                for (code, byte) in self.codes.iter_mut().zip(from) {
                    *code = byte ^ 0x80;
                }
                self.scales.fill(1.0);
            }
            QuantSource::Fp4 { codes, scales, .. } => {
                let from = &codes[first_row * self.n_in / 2..][..n_rows * self.n_in / 2];
                for (pair, byte) in self.codes.chunks_exact_mut(2).zip(from) {
                    pair[0] = codebooks::code(&TWICE_E2M1, byte & 15);
                    pair[1] = codebooks::code(&TWICE_E2M1, byte >> 4);
                }
                let n_scales = n_rows * self.n_groups;
                let from = &scales[first_row * self.n_groups..][..n_scales];
                self.scales[..n_scales].copy_from_slice(from);
            }
            QuantSource::Rows { format, bytes } => {
                let row_bytes = self.n_in * format.bytes();
                for lane in 0..n_rows {
                    let bytes = &bytes[(first_row + lane) * row_bytes..][..row_bytes];
                    let codes = &mut self.codes[lane * self.n_in..][..self.n_in];
                    let scales = &mut self.scales[lane * self.n_groups..][..self.n_groups];
                    round_row(format, bytes, codes, scales);
                }
            }
            QuantSource::Awq {
                qweight,
                qzeros,
                scales,
                ..
            } => {
                let word = |bytes: &[u8], i: usize| {
                    u32::from_le_bytes([
                        bytes[4 * i],
                        bytes[4 * i + 1],
                        bytes[4 * i + 2],
                        bytes[4 * i + 3],
                    ])
                };
                // n_out is a multiple of 8, so a tile has one or two whole words a column.
                for octet in 0..n_rows / 8 {
                    let column = first_row / 8 + octet;
                    for k in 0..self.n_in {
                        let packed = word(qweight, k * (n_out / 8) + column);
                        for (nibble, lane) in AWQ_COLUMN_OF_NIBBLE.iter().enumerate() {
                            self.codes[(octet * 8 + lane) * self.n_in + k] =
                                (packed >> (4 * nibble) & 15) as u8;
                        }
                    }
                    for g in 0..self.n_groups {
                        let zeros = word(qzeros, g * (n_out / 8) + column);
                        for (nibble, lane) in AWQ_COLUMN_OF_NIBBLE.iter().enumerate() {
                            let lane = octet * 8 + lane;
                            let at = 2 * (g * n_out + first_row + lane);
                            let scale = f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32();
                            let zero = (zeros >> (4 * nibble) & 15) as f32;
                            self.scales[lane * self.n_groups + g] = scale;
                            self.mins[lane * self.n_groups + g] = zero;
                        }
                    }
                }
            }
        }
    }

    /// Interleaves the rows into a tile; returns false if a scale does not fit f16.
    fn write(&self, layout: PackedLayout, n_rows: usize, tile: &mut [u8]) -> bool {
        let mut is_finite = true;
        let has_mins = layout.offset.is_stored();
        for (g, group) in tile
            .chunks_exact_mut(layout.group_bytes())
            .take(self.n_groups)
            .enumerate()
        {
            let (codes, scales) = group.split_at_mut(layout.code_bytes());
            for lane in 0..n_rows {
                let from = &self.codes[lane * self.n_in + g * layout.group..][..layout.group];
                interleave(layout, from, lane, codes);
                let mut put = |at: usize, value: f32| {
                    let value = f16::from_f32(value);
                    is_finite &= value.is_finite();
                    scales[2 * at..][..2].copy_from_slice(&value.to_ne_bytes());
                };
                put(lane, self.scales[lane * self.n_groups + g]);
                if has_mins {
                    put(TILE_ROWS + lane, self.mins[lane * self.n_groups + g]);
                }
            }
        }
        is_finite
    }
}

/// Puts one row's codes of a group into their places.
fn interleave(layout: PackedLayout, from: &[u8], lane: usize, codes: &mut [u8]) {
    for (from, to) in from
        .chunks_exact(layout.chunk())
        .zip(codes.chunks_exact_mut(layout.chunk_bytes()))
    {
        let words = to.chunks_exact_mut(4 * TILE_ROWS);
        if layout.code_bits == 8 {
            for (word, quad) in words.zip(from.chunks_exact(4)) {
                word[4 * lane..][..4].copy_from_slice(quad);
            }
        } else {
            let (low, high) = from.split_at(16);
            let quads = low.chunks_exact(4).zip(high.chunks_exact(4));
            for (word, (low, high)) in words.zip(quads) {
                for b in 0..4 {
                    word[4 * lane + b] = low[b] | high[b] << 4;
                }
            }
        }
    }
}
