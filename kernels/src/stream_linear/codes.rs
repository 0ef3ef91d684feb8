//! Weights of few bits from checkpoints: which format holds them, and packing them on the host.
//!
//! The codes, scales and minima are those of the CPU's kernels ([`crate::quant_linear`]), so both compute with the
//! same weights: scales that are products of two numbers are rounded to fp16, everything else is exact. FP8
//! keeps its codes and its scales in fp32.
//!
//! Parts of one matrix share a format. Where they differ, [`format_of`] takes the narrowest that holds all of
//! them exactly.

use half::f16;

use super::reference::CodeMatrix;
use super::{
    CHUNK_BYTES, Format, GROUP_SCALE_BYTES, GroupScales, Layout, MIN_GROUP_BYTES, OP, TILE_COLUMNS,
};
use crate::KernelError;
use crate::error::check_shape;
use crate::quant_linear::pack::{TileCodes, check_source, layout_of, row_scales_of};
use crate::quant_linear::{Offset, PackedLayout, QuantSource};

/// Packed weights and scales of a whole matrix in host memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// `[n_tiles][n_chunks][2048]`
    pub weights: Vec<u8>,
    /// `[n_tiles][n_chunks][scale_bytes]`
    pub scales: Vec<u8>,
}

impl Packed {
    pub fn zeroed(layout: &Layout) -> Self {
        Self {
            weights: vec![0; layout.weight_bytes()],
            scales: vec![0; layout.scale_bytes()],
        }
    }
}

/// One part of a matrix, `[n_out, n_in]`.
#[derive(Debug, Clone, Copy)]
pub enum CodeSource<'a> {
    /// For every format but [`Format::Fp8`] and [`Format::Half`].
    Quant(QuantSource<'a>),
    /// Rows of E4M3 without NaN ([`Format::Fp8`]), with a scale for each row and `group` columns: `scales [n_out, n_in.div_ceil(group)]`. `group`: a multiple of 128, or at least `n_in`.
    Fp8 {
        codes: &'a [u8],
        group: usize,
        scales: &'a [f32],
    },
    /// Already as the format has them.
    Codes(&'a CodeMatrix),
}

/// The narrowest format that holds parts with these codes exactly. `None`: no parts, or one that no format holds, as
/// 4-bit zero points for every group.
///
/// ```
/// use kernels::quant_linear::BlockFormat;
/// use kernels::stream_linear::{Format, codes::format_of};
///
/// let of = |formats: &[BlockFormat]| {
///     let layouts: Vec<_> = formats.iter().map(|format| format.layout()).collect();
///     format_of(&layouts)
/// };
/// assert_eq!(of(&[BlockFormat::Q4_0]), Some(Format::AwqG32));
/// assert_eq!(of(&[BlockFormat::Q4K, BlockFormat::Q4_0]), Some(Format::MinG32));
/// assert_eq!(of(&[BlockFormat::Q4K, BlockFormat::Q6K]), Some(Format::BytesMinG16));
/// ```
pub fn format_of(parts: &[PackedLayout]) -> Option<Format> {
    let holds = |part: &PackedLayout, format: Format| {
        let Some(group) = format.group() else {
            return false;
        };
        let is_wide_enough =
            part.code_bits <= format.code_bits() && part.group.is_multiple_of(group);
        let has_offset = match (part.offset, format.scales()) {
            (Offset::Zero(8), Some(GroupScales::Zero)) => part.code_bits == 4,
            (Offset::Zero(_), Some(GroupScales::Plain | GroupScales::Minimum))
            | (Offset::Min, Some(GroupScales::Minimum)) => true,
            _ => false,
        };
        is_wide_enough && has_offset
    };
    const NARROWEST_FIRST: [Format; 5] = [
        Format::AwqG32,
        Format::MinG32,
        Format::BytesG32,
        Format::BytesG16,
        Format::BytesMinG16,
    ];
    NARROWEST_FIRST
        .into_iter()
        .find(|format| !parts.is_empty() && parts.iter().all(|part| holds(part, *format)))
}

/// Packs part `part` of a matrix in one of these formats, on all of the host's threads.
///
/// # Errors
///
/// If the layout has no such part, the source is not of its shape or needs another format, or a scale or minimum is
/// not finite in fp16.
pub fn pack(
    layout: &Layout,
    part: usize,
    source: CodeSource<'_>,
    packed: &mut Packed,
) -> Result<(), KernelError> {
    let Some(&n) = layout.parts_n.get(part) else {
        return Err(KernelError::Shape {
            op: OP,
            what: "the part",
            found: part,
            expected: format!("below {}", layout.parts_n.len()),
        });
    };
    let reader = Reader::of(layout, n, source)?;
    check_shape(
        OP,
        "the packed weights' bytes",
        packed.weights.len(),
        layout.weight_bytes(),
    )?;
    check_shape(
        OP,
        "the packed scales' bytes",
        packed.scales.len(),
        layout.scale_bytes(),
    )?;
    let (step, offset) = layout.tile_place(part);
    let tile_weights = layout.n_chunks * CHUNK_BYTES;
    let tile_scales = layout.n_chunks * layout.format.scale_bytes();
    let mut places: Vec<_> = packed
        .weights
        .chunks_exact_mut(tile_weights)
        .zip(packed.scales.chunks_exact_mut(tile_scales))
        .skip(offset)
        .step_by(step)
        .take(n.div_ceil(TILE_COLUMNS))
        .enumerate()
        .collect();
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let per_thread = places.len().div_ceil(n_threads).max(1);
    let is_finite = std::thread::scope(|scope| {
        let threads: Vec<_> = places
            .chunks_mut(per_thread)
            .map(|places| {
                let reader = &reader;
                scope.spawn(move || {
                    let mut tile = TileRows::new(layout);
                    let mut is_finite = true;
                    for (index, (weights, scales)) in places {
                        reader.read(*index, &mut tile);
                        tile.write_codes(layout, weights);
                        is_finite &= tile.write_scales(layout, scales);
                    }
                    is_finite
                })
            })
            .collect();
        // A thread that panicked has packed nothing that may be used.
        threads
            .into_iter()
            .all(|thread| thread.join().unwrap_or(false))
    });
    if is_finite {
        return Ok(());
    }
    Err(KernelError::Value {
        op: OP,
        message: format!(
            "a group's scale or minimum is not finite in fp16 (limit {})",
            f16::MAX
        ),
    })
}

/// What reads a source's rows as a format has them.
struct Reader<'a> {
    n: usize,
    k: usize,
    format: Format,
    source: CodeSource<'a>,
    /// Of [`CodeSource::Quant`].
    layout: Option<PackedLayout>,
    row_scales: Option<Vec<f32>>,
}

impl<'a> Reader<'a> {
    fn of(layout: &Layout, n: usize, source: CodeSource<'a>) -> Result<Self, KernelError> {
        let (format, k) = (layout.format, layout.k);
        let wrong = || {
            Err(KernelError::Value {
                op: OP,
                message: format!("{format:?} does not hold {}", name_of(source)),
            })
        };
        let (mut of_codes, mut row_scales) = (None, None);
        match source {
            CodeSource::Quant(quant) => {
                check_source(n, k, quant)?;
                let found = layout_of(quant, k);
                // A wider format than the part's own holds it, too.
                let wider = |other: Format| match other.scales() {
                    Some(GroupScales::Minimum) => Offset::Min,
                    _ => Offset::Zero(8),
                };
                let asked = PackedLayout {
                    code_bits: format.code_bits(),
                    group: format.group().unwrap_or(1),
                    offset: wider(format),
                };
                if format_of(&[found]) != Some(format) && format_of(&[found, asked]) != Some(format)
                {
                    return wrong();
                }
                of_codes = Some(found);
                row_scales = row_scales_of(quant, n, k);
            }
            CodeSource::Fp8 {
                codes,
                group,
                scales,
            } => {
                if format != Format::Fp8 {
                    return wrong();
                }
                let of_format = format.group().unwrap_or(1);
                if group < k && !group.is_multiple_of(of_format) {
                    return Err(KernelError::Shape {
                        op: OP,
                        what: "the columns under a scale",
                        found: group,
                        expected: format!("a multiple of {of_format}, or {k}"),
                    });
                }
                check_shape(OP, "the codes", codes.len(), n * k)?;
                check_shape(OP, "the scales", scales.len(), n * k.div_ceil(group.max(1)))?;
            }
            CodeSource::Codes(matrix) => {
                let Some(group) = format.group().filter(|_| matrix.format == format) else {
                    return wrong();
                };
                let n_scales = n * k.div_ceil(group);
                check_shape(OP, "the codes", matrix.codes.len(), n * k)?;
                check_shape(OP, "the scales", matrix.scales.len(), n_scales)?;
                check_shape(OP, "the minima", matrix.mins.len(), n_scales)?;
            }
        }
        Ok(Self {
            n,
            k,
            format,
            source,
            layout: of_codes,
            row_scales,
        })
    }

    /// The sixteen rows of a tile; rows after the last are zero.
    fn read(&self, index: usize, tile: &mut TileRows) {
        let first = index * TILE_COLUMNS;
        let n_rows = (self.n - first).min(TILE_COLUMNS);
        tile.clear();
        match (self.source, self.layout) {
            (CodeSource::Quant(source), Some(layout)) => {
                let mut read = TileCodes::new(self.k, self.k / layout.group);
                read.read(source, self.n, first, n_rows);
                self.convert(&read, layout, first, n_rows, tile);
            }
            (
                CodeSource::Fp8 {
                    codes,
                    group,
                    scales,
                },
                _,
            ) => {
                let n_scales = self.k.div_ceil(group);
                for lane in 0..n_rows {
                    let row = first + lane;
                    let from = &codes[row * self.k..][..self.k];
                    tile.codes_of(lane)[..self.k].copy_from_slice(from);
                    let of_row = &scales[row * n_scales..][..n_scales];
                    for (g, scale) in tile.scales_of(lane).iter_mut().enumerate() {
                        *scale = of_row[(g * 128 / group).min(n_scales - 1)];
                    }
                }
            }
            (CodeSource::Codes(matrix), _) => {
                let n_scales = matrix.scales.len() / self.n;
                let flip = self.flip();
                for lane in 0..n_rows {
                    let row = first + lane;
                    let codes = &matrix.codes[row * self.k..][..self.k];
                    for (to, code) in tile.codes_of(lane).iter_mut().zip(codes) {
                        *to = code ^ flip;
                    }
                    let scales = &matrix.scales[row * n_scales..][..n_scales];
                    tile.scales_of(lane)[..n_scales].copy_from_slice(scales);
                    let mins = &matrix.mins[row * n_scales..][..n_scales];
                    tile.mins_of(lane)[..n_scales].copy_from_slice(mins);
                }
            }
            (CodeSource::Quant(_), None) => {}
        }
    }

    /// Signed codes are stored with 128 added.
    fn flip(&self) -> u8 {
        match (self.format, self.format.code_bits()) {
            (Format::Fp8, _) | (_, 4) => 0,
            _ => 0x80,
        }
    }

    /// From the CPU's codes to this format's.
    fn convert(
        &self,
        read: &TileCodes,
        layout: PackedLayout,
        first: usize,
        n_rows: usize,
        tile: &mut TileRows,
    ) {
        let n_groups = self.k / layout.group;
        let shift = match (self.format.code_bits(), layout.offset) {
            // Signed codes are stored with 128 added.
            (8, Offset::Zero(zero)) => 128 - zero,
            (8, _) => 128,
            _ => 0,
        };
        for lane in 0..n_rows {
            let row_scale = self.row_scales.as_ref().map_or(1.0, |s| s[first + lane]);
            let codes = &read.codes[lane * self.k..][..self.k];
            for (to, code) in tile.codes_of(lane).iter_mut().zip(codes) {
                *to = code.wrapping_add(shift);
            }
            let group = layout.group / self.format.group().unwrap_or(1);
            let scales = &read.scales[lane * n_groups..][..n_groups];
            let mins = &read.mins[lane * n_groups..][..n_groups];
            for (i, (scale, min)) in scales.iter().zip(mins).enumerate() {
                let min = match (self.format.code_bits(), layout.offset) {
                    (_, Offset::Min) => *min,
                    (4, Offset::Zero(zero)) => -f32::from(zero) * scale,
                    _ => 0.0,
                };
                tile.scales_of(lane)[i * group..][..group].fill(scale * row_scale);
                tile.mins_of(lane)[i * group..][..group].fill(min * row_scale);
            }
        }
    }
}

fn name_of(source: CodeSource<'_>) -> &'static str {
    match source {
        CodeSource::Quant(QuantSource::Blocks { .. }) => "these blocks",
        CodeSource::Quant(QuantSource::Rows { .. }) => "rounded rows",
        CodeSource::Quant(QuantSource::Int8 { .. }) => "8-bit integers with a scale a row",
        CodeSource::Quant(QuantSource::Fp4 { .. }) => "FP4",
        CodeSource::Quant(QuantSource::Awq { .. }) => "AWQ's zero points",
        CodeSource::Fp8 { .. } => "FP8",
        CodeSource::Codes(_) => "codes of another format",
    }
}

/// Sixteen rows as a format stores them, in order: `codes [16][padded k]`, `scales` and `mins [16][groups]`.
struct TileRows {
    padded_k: usize,
    n_groups: usize,
    empty_code: u8,
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
}

impl TileRows {
    fn new(layout: &Layout) -> Self {
        let (padded_k, n_groups) = (
            layout.padded_k(),
            layout.n_chunks * layout.format.chunk_groups(),
        );
        Self {
            padded_k,
            n_groups,
            empty_code: match (layout.format, layout.format.code_bits()) {
                (Format::Fp8, _) | (_, 4) => 0,
                _ => 128,
            },
            codes: vec![0; TILE_COLUMNS * padded_k],
            scales: vec![0.0; TILE_COLUMNS * n_groups],
            mins: vec![0.0; TILE_COLUMNS * n_groups],
        }
    }

    fn clear(&mut self) {
        self.codes.fill(self.empty_code);
        self.scales.fill(0.0);
        self.mins.fill(0.0);
    }

    fn codes_of(&mut self, lane: usize) -> &mut [u8] {
        &mut self.codes[lane * self.padded_k..][..self.padded_k]
    }

    fn scales_of(&mut self, lane: usize) -> &mut [f32] {
        &mut self.scales[lane * self.n_groups..][..self.n_groups]
    }

    fn mins_of(&mut self, lane: usize) -> &mut [f32] {
        &mut self.mins[lane * self.n_groups..][..self.n_groups]
    }

    /// Four codes of a column from `k` on.
    fn quad(&self, column: usize, k: usize) -> [u8; 4] {
        let at = &self.codes[column * self.padded_k + k..][..4];
        [at[0], at[1], at[2], at[3]]
    }

    /// As `repack.cu` has it: a lane's four k of columns g and g + 8 are one word of 4-bit codes, or 8 bytes.
    fn write_codes(&self, layout: &Layout, weights: &mut [u8]) {
        let chunk_k = layout.format.chunk_k();
        let is_nibbles = layout.format.code_bits() == 4;
        for (chunk, out) in weights.chunks_exact_mut(CHUNK_BYTES).enumerate() {
            for (i, vector) in out.chunks_exact_mut(16).enumerate() {
                let (lane, column) = (i % 32, i % 32 / 4);
                let (products, size) = if is_nibbles { (4, 4) } else { (2, 8) };
                for (p, to) in vector.chunks_exact_mut(size).enumerate() {
                    let product = i / 32 * products + p;
                    let inside = product / 2 * 32 + lane % 4 * 8 + product % 2 * 4;
                    let k = chunk * chunk_k + inside;
                    let (a, b) = (self.quad(column, k), self.quad(column + 8, k));
                    if is_nibbles {
                        to.copy_from_slice(&word_of(a, b).to_le_bytes());
                    } else {
                        to.copy_from_slice(&[a[0], a[1], b[0], b[1], a[2], a[3], b[2], b[3]]);
                    }
                }
            }
        }
    }

    /// False if a number is not finite as it is stored.
    fn write_scales(&self, layout: &Layout, out: &mut [u8]) -> bool {
        let (groups, kind) = (layout.format.chunk_groups(), layout.format.scales());
        let mut is_finite = true;
        let half = |to: &mut [u8], value: f32| {
            let value = f16::from_f32(value);
            to.copy_from_slice(&value.to_le_bytes());
            value.is_finite()
        };
        for (chunk, out) in out
            .chunks_exact_mut(layout.format.scale_bytes())
            .enumerate()
        {
            for i in 0..groups * TILE_COLUMNS {
                let (group, g, high) = (i / TILE_COLUMNS, i % TILE_COLUMNS / 2, i % 2);
                let at = (g + 8 * high) * self.n_groups + chunk * groups + group;
                let (scale, min) = (self.scales[at], self.mins[at]);
                match kind {
                    Some(GroupScales::Minimum) => {
                        let to = &mut out[group * MIN_GROUP_BYTES + g * 8 + high * 2..];
                        is_finite &= half(&mut to[..2], scale) & half(&mut to[4..6], min);
                    }
                    Some(GroupScales::Float) => {
                        out[g * 8 + high * 4..][..4].copy_from_slice(&scale.to_le_bytes());
                        is_finite &= scale.is_finite();
                    }
                    Some(GroupScales::Plain | GroupScales::Zero) => {
                        let at = group * GROUP_SCALE_BYTES + g * 4 + high * 2;
                        is_finite &= half(&mut out[at..][..2], scale);
                    }
                    None => {}
                }
            }
            if kind == Some(GroupScales::Zero) {
                out[groups * GROUP_SCALE_BYTES..].fill(0x88);
            }
        }
        is_finite
    }
}

/// Codes of columns g and g + 8: register r's are at bits 2 + 4 r and 18 + 4 r, turned.
fn word_of(a: [u8; 4], b: [u8; 4]) -> u32 {
    let pairs = [(a[0], a[1]), (b[0], b[1]), (a[2], a[3]), (b[2], b[3])];
    let places = (0u32..).map(|r| 2 + 4 * r);
    pairs
        .into_iter()
        .zip(places)
        .fold(0, |word, ((low, high), at)| {
            word | u32::from(low).rotate_left(at) | u32::from(high).rotate_left(at + 16)
        })
}
