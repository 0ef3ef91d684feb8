//! The packed layout and the product in plain Rust, as the reference for the CUDA sources.
//!
//! `pack_*` follows the writer (`repack.cu`); `unpack` follows the reader (`packed_weights.cuh`),
//! with its shifts and masks, so that a mistake in either, or in [`super::codes`], shows.

use half::f16;

pub use super::codes::Packed;
use super::{Arrangement, CHUNK_BYTES, Epilogue, Format, GroupScales, Layout, TILE_COLUMNS};
use crate::cuda::Element;
use crate::lanes::e4m3;

/// An AWQ matrix in the checkpoint's layout.
#[derive(Debug, Clone)]
pub struct AwqMatrix {
    pub n: usize,
    pub k: usize,
    pub group: usize,
    /// `[k][n / 8]`; nibble i of a word is column `{0, 2, 4, 6, 1, 3, 5, 7}[i]`.
    pub qweight: Vec<u32>,
    /// [k / group][n / 8], same order.
    pub qzeros: Vec<u32>,
    /// `[k / group][n]`
    pub scales: Vec<f16>,
}

impl AwqMatrix {
    fn nibble(words: &[u32], row: usize, n: usize, column: usize) -> u32 {
        let c = column % 8;
        let position = (c & 1) * 4 + (c >> 1);
        words[row * (n / 8) + column / 8] >> (4 * position) & 0xf
    }

    pub fn quant(&self, column: usize, k: usize) -> u32 {
        Self::nibble(&self.qweight, k, self.n, column)
    }

    pub fn zero(&self, column: usize, group: usize) -> u32 {
        Self::nibble(&self.qzeros, group, self.n, column)
    }

    /// (q - zero) * scale
    pub fn weight(&self, column: usize, k: usize) -> f64 {
        let group = k / self.group;
        let scale = self.scales[group * self.n + column].to_f64();
        (f64::from(self.quant(column, k)) - f64::from(self.zero(column, group))) * scale
    }
}

/// Rows of codes as the other formats have them, with what they mean.
#[derive(Debug, Clone)]
pub struct CodeMatrix {
    pub format: Format,
    pub n: usize,
    pub k: usize,
    /// `[n][k]`: 4 bits unsigned, 8 bits signed or E4M3.
    pub codes: Vec<u8>,
    /// `[n][groups of k]`, in the precision of the format.
    pub scales: Vec<f32>,
    /// The same; zero without minima.
    pub mins: Vec<f32>,
}

impl CodeMatrix {
    /// A number of every code that is no NaN, and scales and minima as the format's precision has them. `scale`: between
    /// half and one and a half of it. `bits` is a source of random bits.
    pub fn random(
        format: Format,
        (n, k): (usize, usize),
        scale: f32,
        mut bits: impl FnMut() -> u32,
    ) -> Self {
        let group = format.group().unwrap_or(1);
        let n_scales = n * k.div_ceil(group);
        let codes = (0..n * k).map(|_| match (format, bits() as u8) {
            (Format::Fp8, code) => code & 0xbf,
            (Format::MinG32, code) => code & 15,
            (_, code) => code,
        });
        let codes = codes.collect();
        let mut uniform = || (bits() >> 8) as f32 / (1 << 24) as f32;
        let stored = |value: f32| match format {
            Format::Fp8 => value,
            _ => f16::from_f32(value).to_f32(),
        };
        let scales = (0..n_scales).map(|_| stored(scale * (0.5 + uniform())));
        let scales = scales.collect();
        let has_minimum = format.scales() == Some(GroupScales::Minimum);
        let least = if has_minimum { -16.0 * scale } else { 0.0 };
        let mins = (0..n_scales).map(|_| stored(least * uniform())).collect();
        Self {
            format,
            n,
            k,
            codes,
            scales,
            mins,
        }
    }

    /// In f64, exactly.
    pub fn weight(&self, column: usize, k: usize) -> f64 {
        let group = self.format.group().unwrap_or(1);
        let at = column * self.k.div_ceil(group) + k / group;
        let code = self.codes[column * self.k + k];
        let value = match (self.format, self.format.code_bits()) {
            (Format::Fp8, _) => f64::from(e4m3::to_f32(code)),
            (_, 4) => f64::from(code),
            _ => f64::from(code.cast_signed()),
        };
        value * f64::from(self.scales[at]) + f64::from(self.mins[at])
    }
}

/// First k of register pair (product) `product` of lane quarter `j`, within a chunk.
const fn product_k(product: usize, j: usize) -> usize {
    product / 2 * 32 + j * 8 + product % 2 * 4
}

/// Positions of the bits of register r's values (low and high half) before the reader's shift.
const PLACES: [[u32; 2]; 4] = [[2, 18], [6, 22], [10, 26], [14, 30]];

pub fn pack_awq(layout: &Layout, part: usize, matrix: &AwqMatrix, packed: &mut Packed) {
    let (step, offset) = layout.tile_place(part);
    let groups = layout.format.chunk_groups();
    for tile in 0..matrix.n.div_ceil(TILE_COLUMNS) {
        for chunk in 0..layout.n_chunks {
            let home = (tile * step + offset) * layout.n_chunks + chunk;
            let out = &mut packed.weights[home * CHUNK_BYTES..][..CHUNK_BYTES];
            for product in 0..16 {
                for lane in 0..32 {
                    let (g, j) = (lane / 4, lane % 4);
                    let mut word = 0_u32;
                    for (r, places) in PLACES.iter().enumerate() {
                        for (high, &place) in places.iter().enumerate() {
                            let k = chunk * 256 + product_k(product, j) + r / 2 * 2 + high;
                            let column = tile * TILE_COLUMNS + g + r % 2 * 8;
                            if k < matrix.k && column < matrix.n {
                                word |= matrix.quant(column, k).rotate_left(place);
                            }
                        }
                    }
                    // Four products are the 16 bytes of a lane; 32 lanes are adjacent.
                    let at = product / 4 * 512 + lane * 16 + product % 4 * 4;
                    out[at..at + 4].copy_from_slice(&word.to_le_bytes());
                }
            }
            let data = &mut packed.scales[home * groups * 40..][..groups * 40];
            for i in 0..groups * 8 {
                let (row, c) = (chunk * groups + i / 8, i % 8);
                let mut zeros = 0_u8;
                for high in 0..2 {
                    let column = tile * TILE_COLUMNS + c + high * 8;
                    let is_inside = row < matrix.k / matrix.group && column < matrix.n;
                    let scale = if is_inside {
                        matrix.scales[row * matrix.n + column]
                    } else {
                        f16::ZERO
                    };
                    data[i * 4 + high * 2..][..2].copy_from_slice(&scale.to_le_bytes());
                    if is_inside {
                        zeros |= (matrix.zero(column, row) as u8) << (4 * high);
                    }
                }
                data[groups * 32 + i] = zeros;
            }
        }
    }
}

/// `rows`: `[n][k]`, the bits of elements.
pub fn pack_half(layout: &Layout, part: usize, rows: &[u16], packed: &mut Packed) {
    let (step, offset) = layout.tile_place(part);
    let (n, k_end) = (layout.parts_n[part], layout.k);
    for tile in 0..n.div_ceil(TILE_COLUMNS) {
        for chunk in 0..layout.n_chunks {
            let home = (tile * step + offset) * layout.n_chunks + chunk;
            for (thread, r, high) in (0..128).flat_map(|t| (0..8).map(move |i| (t, i / 2, i % 2))) {
                let (product, lane) = (thread / 32, thread % 32);
                let k = chunk * 64 + product_k(product, lane % 4) + r / 2 * 2 + high;
                let column = tile * TILE_COLUMNS + lane / 4 + r % 2 * 8;
                let value = if k < k_end && column < n {
                    rows[column * k_end + k]
                } else {
                    0
                };
                let at = home * CHUNK_BYTES + (thread * 8 + r * 2 + high) * 2;
                packed.weights[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

/// `W[column][k]` of one part as seen by the kernel for `element`: `[parts_n[part]][padded_k]`.
pub fn unpack(layout: &Layout, part: usize, packed: &Packed, element: Element) -> Vec<f64> {
    let (step, offset) = layout.tile_place(part);
    let (n, padded_k, chunk_k) = (
        layout.parts_n[part],
        layout.padded_k(),
        layout.format.chunk_k(),
    );
    let groups = layout.format.chunk_groups();
    let mut values = vec![0.0; n * padded_k];
    for column in 0..n {
        let (tile, g, is_high) = (column / 16, column % 8, column / 8 % 2);
        for k in 0..padded_k {
            let (chunk, inside) = (k / chunk_k, k % chunk_k);
            let home = (tile * step + offset) * layout.n_chunks + chunk;
            let bytes = &packed.weights[home * CHUNK_BYTES..][..CHUNK_BYTES];
            // Which x vector of 8, whose lane, which product of the two, which register and half.
            let (vector, j, within) = (inside / 32, inside % 32 / 8, inside % 8);
            let (i, pair, half_index) = (within / 4, within % 4 / 2, within % 2);
            let (lane, register) = (g * 4 + j, pair * 2 + is_high);
            let place = Place {
                vector,
                i,
                lane,
                register,
                half_index,
                group: inside * groups / chunk_k,
                g,
                is_high,
            };
            let data =
                &packed.scales[home * layout.format.scale_bytes()..][..layout.format.scale_bytes()];
            values[column * padded_k + k] = match layout.format.code_bits() {
                16 => {
                    let at = (2 * vector + i) * 512 + lane * 16 + register * 4 + half_index * 2;
                    let bits = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                    f64::from(element.value(bits))
                }
                8 => {
                    byte_value(layout.format, bytes, &place) * place.scale(layout.format, data)
                        + place.minimum(layout.format, data)
                }
                _ => nibble_value(layout.format, bytes, data, &place, element),
            };
        }
    }
    values
}

/// Where the kernels find one weight of a chunk.
struct Place {
    vector: usize,
    /// Of the vector's two products.
    i: usize,
    lane: usize,
    register: usize,
    half_index: usize,
    group: usize,
    g: usize,
    /// 1 for columns from g + 8 on.
    is_high: usize,
}

impl Place {
    fn half(data: &[u8], at: usize) -> f64 {
        f16::from_le_bytes([data[at], data[at + 1]]).to_f64()
    }

    fn scale(&self, format: Format, data: &[u8]) -> f64 {
        let Self {
            group, g, is_high, ..
        } = *self;
        match format.scales() {
            Some(GroupScales::Minimum) => Self::half(data, group * 64 + g * 8 + is_high * 2),
            Some(GroupScales::Float) => {
                let at = g * 8 + is_high * 4;
                let bytes = [data[at], data[at + 1], data[at + 2], data[at + 3]];
                f64::from(f32::from_le_bytes(bytes))
            }
            _ => Self::half(data, group * 32 + g * 4 + is_high * 2),
        }
    }

    fn minimum(&self, format: Format, data: &[u8]) -> f64 {
        let Self {
            group, g, is_high, ..
        } = *self;
        match format.scales() {
            Some(GroupScales::Minimum) => Self::half(data, group * 64 + g * 8 + 4 + is_high * 2),
            _ => 0.0,
        }
    }
}

/// An 8-bit code as `IntegerBytes` and `E4m3Bytes` take it out of a lane's bytes.
fn byte_value(format: Format, chunk: &[u8], place: &Place) -> f64 {
    let at = place.vector * 512 + place.lane * 16;
    let word_at = at + place.i * 8 + place.register / 2 * 4;
    let code = chunk[word_at + place.register % 2 * 2 + place.half_index];
    if format == Format::Fp8 {
        let bits = u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7;
        f16::from_bits(bits).to_f64() * 256.0
    } else {
        f16::from_bits(0x6400 | u16::from(code)).to_f64() - 1152.0
    }
}

fn nibble_value(format: Format, chunk: &[u8], data: &[u8], place: &Place, element: Element) -> f64 {
    let at = place.vector / 2 * 512 + place.lane * 16 + place.vector % 2 * 8 + place.i * 4;
    let w = u32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]]);
    let shifted = match (element, place.register) {
        (Element::F16, 0) => w << 4,
        (Element::F16, 1) => w,
        (Element::F16, 2) => w >> 4,
        (Element::F16, _) => w.rotate_right(8),
        (Element::Bf16, 0) => w << 1,
        (Element::Bf16, 1) => w >> 3,
        (Element::Bf16, 2) => w >> 7,
        (Element::Bf16, _) => w.rotate_right(11),
    };
    let (nibbles, sixteens, nibble_bit) = match element {
        Element::F16 => (0x03c0_03c0, 0x4c00_4c00, 6),
        Element::Bf16 => (0x0078_0078, 0x4180_4180, 3),
    };
    let sixteen_plus = |bits: u32, half_index: usize| {
        let bits = bits & nibbles | sixteens;
        f64::from(element.value((bits >> (16 * half_index)) as u16))
    };
    let (value, scale) = (
        sixteen_plus(shifted, place.half_index),
        place.scale(format, data),
    );
    if format == Format::MinG32 {
        return (value - 16.0) * scale + place.minimum(format, data);
    }
    let z = u32::from(data[format.chunk_groups() * 32 + place.group * 8 + place.g]);
    let zero = sixteen_plus(z << nibble_bit | z << (nibble_bit + 12), place.is_high);
    (value - zero) * scale
}

/// A row of x in 8 bits as rounded by `quantize_rows.cu`: values, and a scale for every 128 of k.
///
/// ```
/// use kernels::stream_linear::reference::quantize_row;
///
/// let x: Vec<f32> = (0..128).map(|i| i as f32 - 64.0).collect();
/// let (values, scales) = quantize_row(&x);
/// assert_eq!(scales.len(), 1);
/// let error = |(q, x): (&i8, &f32)| (f32::from(*q) * scales[0] - x).abs();
/// assert!(values.iter().zip(&x).map(error).all(|error| error <= scales[0]));
/// ```
pub fn quantize_row(x: &[f32]) -> (Vec<i8>, Vec<f32>) {
    let mut values = Vec::with_capacity(x.len());
    let mut scales = Vec::with_capacity(x.len() / 128);
    for group in x.chunks(128) {
        if group.iter().any(|v| !v.is_finite()) {
            scales.push(f32::NAN);
        } else {
            scales.push(group_scale(group));
        }
        let scale = group_scale(group);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let round = |v: &f32| (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
        values.extend(group.iter().map(round));
    }
    (values, scales)
}

/// The largest value over 127, rounded up to 11 significant bits.
fn group_scale(group: &[f32]) -> f32 {
    let most = group.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    if most < 2.0_f32.powi(-100) {
        return 0.0;
    }
    f32::from_bits(((most / 127.0).to_bits() + 0x1fff) & !0x1fff)
}

/// Offset of value k of a row in x in 8 bits, of `rows` rows (quantize_rows.cuh).
pub const fn int8_offset(row: usize, k: usize, rows: usize) -> usize {
    let (j, h, e) = (k % 32 / 8, k % 8 / 4, k % 4);
    let slot = k % 128 / 32 * 32 + 16 * h + 4 * j + [0, 2, 1, 3][e];
    (k / 128 * rows + row) * 128 + ((slot / 16) ^ (row % 8)) * 16 + slot % 16
}

/// The op in f64. `weights`: a part's `W[n][k]`, in order; `x`: `[m][x_stride]`; `out`: `[m][n]`, read
/// by [`Epilogue::AddResidual`].
pub fn stream_linear(
    layout: &Layout,
    epilogue: Epilogue,
    weights: &[Vec<f64>],
    x: &[f32],
    x_stride: usize,
    bias: Option<&[f32]>,
    m: usize,
    out: &mut [f64],
) {
    let (n, k) = (layout.n(), layout.k);
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let dot = |w: &[f64], column: usize, row: usize| -> f64 {
        let (w, x) = (&w[column * k..][..k], &x[row * x_stride..][..k]);
        w.iter().zip(x).map(|(w, x)| w * x).sum()
    };
    for row in 0..m {
        let mut column = 0;
        let n_outputs = if layout.arrangement == Arrangement::GateUp {
            1
        } else {
            weights.len()
        };
        for part in 0..n_outputs {
            for part_column in 0..layout.parts_n[part] {
                let mut y = dot(&weights[part], part_column, row);
                if epilogue == Epilogue::SiluMul {
                    y = y / (1.0 + (-y).exp()) * dot(&weights[1], part_column, row);
                }
                y += bias.map_or(0.0, |bias| f64::from(bias[column]));
                let at = &mut out[row * n + column];
                *at = if epilogue == Epilogue::AddResidual {
                    *at + y
                } else {
                    y
                };
                column += 1;
            }
        }
    }
}
