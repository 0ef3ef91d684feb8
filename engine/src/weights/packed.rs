//! 4-bit matrices as AutoAWQ, GPTQ, AutoRound and compressed-tensors store them. All mean
//! `W[n][k] = s[g][n] * (q[k][n] - z[g][n])`, so each is rearranged into AutoAWQ's `gemm` layout,
//! value for value, and the executors know no other.
//!
//! | | `q`, eight a word | `z`, eight a word | `s` |
//! |---|---|---|---|
//! | AutoAWQ `gemm` | `[in, out / 8]`, nibbles 0 2 4 6 1 3 5 7 | `[groups, out / 8]`, likewise | `[groups, out]` |
//! | AutoAWQ `gemv` | `[out, in / 8]` | `[out, ≥ groups / 8]` | `[out, ≥ groups]` |
//! | GPTQ | `[in / 8, out]` | `[groups, out / 8]`, minus one in version 1 | `[groups, out]` |
//! | compressed-tensors | `[out, in / 8]`, plus 8 | `[out / 8, groups]`, plus 8 | `[out, groups]` |
//!
//! With act-order a group's columns lie anywhere: `g_idx` names the group of each. They are moved
//! together here, and the matrix says which input each of its columns multiplies.
//!
//! Deliberately absent: words of other widths than 32 bits, and numbers of other widths than 4.

use std::borrow::Cow;

use ::safetensors::Dtype;
use half::{bf16, f16};

use super::awq::{COLUMN_OF_NIBBLE, pack_word, unpack_word};
use super::format::MatrixFormat;
use super::safetensors::TensorFiles;
use super::{AwqMatrix, MatrixStorage, WeightError};
use crate::model::quantization::{Packed, Packing};

/// `q` and `z` without zero points: halfway of the 16 levels.
const SYMMETRIC_ZERO: u8 = 8;

/// Below this, 16-bit floats lose bits of an 8-bit mantissa. Such a scale is that of weights which
/// are all but zero, and off by less than one part in 2^24 of 1.
const EXACT_FROM: f32 = 1.0 / (1u32 << 17) as f32;

/// Where a matrix is: alone, or some rows of a fused one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub stem: String,
    /// Its first row there.
    pub first: usize,
    /// Rows of the stored matrix.
    pub n_stored: usize,
}

/// A matrix whose tensors were found and have the shapes that they must have.
pub(super) struct PackedMatrix<'a> {
    place: Place,
    n_out: usize,
    n_in: usize,
    /// As stored.
    group_size: usize,
    packing: Packing,
    weights: &'a [[u8; 4]],
    zeros: Option<&'a [[u8; 4]]>,
    scales: Scales<'a>,
    order: Option<Vec<u32>>,
}

struct Scales<'a> {
    name: String,
    dtype: Dtype,
    bytes: &'a [u8],
    /// Of a group or of a row, by the packing.
    width: usize,
}

/// Whether `stem` is packed in these files.
pub(super) fn is_packed(files: &TensorFiles, stem: &str) -> bool {
    ["qweight", "weight_packed"]
        .iter()
        .any(|part| files.has(&format!("{stem}.{part}")))
}

/// Columns under one scale in the engine's layout: at most 128, which the kernels know, and a
/// divisor of what is stored, so that repeated scales mean the same matrix.
pub(super) fn kernel_group(stored: usize) -> usize {
    [128, 64, 32]
        .into_iter()
        .find(|group| stored.is_multiple_of(*group))
        .unwrap_or(stored)
}

impl<'a> PackedMatrix<'a> {
    /// Finds the tensors of an `[n_out, n_in]` matrix and checks their types, shapes and groups.
    ///
    /// # Errors
    ///
    /// If one is missing or is not what the configuration says; the error names it.
    pub fn find(
        files: &'a TensorFiles,
        place: Place,
        (n_out, n_in): (usize, usize),
        config: Packed,
    ) -> Result<Self, WeightError> {
        let (stem, rows) = (place.stem.as_str(), place.n_stored);
        let group_size = config.group_size.unwrap_or(n_in);
        let fits = rows.is_multiple_of(8) && n_out.is_multiple_of(8);
        if !fits || !n_in.is_multiple_of(group_size) || !group_size.is_multiple_of(32) {
            return Err(WeightError::File {
                file: stem.to_owned(),
                message: format!(
                    "[{n_out}, {n_in}] cannot be {} in 4 bits: rows must be a multiple of 8, and \
                     columns of the group size {group_size}, which must be one of 32",
                    config.method
                ),
            });
        }
        let n_groups = n_in / group_size;
        let find = |part: &str, shape: &[usize]| words(files, &format!("{stem}.{part}"), shape);
        let find_scales = |part: &str, shape: [usize; 2]| {
            let name = format!("{stem}.{part}");
            let tensor = files.tensor(&name)?;
            if !matches!(tensor.dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32) {
                return Err(wrong_type(&name, tensor.dtype, "F16 BF16 F32"));
            }
            same_shape(&name, tensor.shape, &shape)?;
            let [_, width] = shape;
            Ok(Scales {
                name,
                dtype: tensor.dtype,
                bytes: tensor.bytes,
                width,
            })
        };
        // Without zero points, some writers leave the tensor out and some fill it with 8.
        let optional = |part: &str, shape: &[usize]| {
            let is_there = config.has_zero_points || files.has(&format!("{stem}.{part}"));
            is_there.then(|| find(part, shape)).transpose()
        };
        let (weights, zeros, scales, groups) = match config.packing {
            Packing::AwqGemm => (
                find("qweight", &[n_in, rows / 8])?,
                optional("qzeros", &[n_groups, rows / 8])?,
                find_scales("scales", [n_groups, rows])?,
                None,
            ),
            Packing::AwqGemv => {
                let width = gemv_zeros_width(n_groups, group_size);
                (
                    find("qweight", &[rows, n_in / 8])?,
                    optional("qzeros", &[rows, width])?,
                    find_scales("scales", [rows, 8 * width])?,
                    None,
                )
            }
            Packing::Gptq { .. } => (
                find("qweight", &[n_in / 8, rows])?,
                optional("qzeros", &[n_groups, rows / 8])?,
                find_scales("scales", [n_groups, rows])?,
                Some("g_idx"),
            ),
            Packing::PackQuantized => {
                check_stored_shape(files, stem, [rows, n_in])?;
                (
                    find("weight_packed", &[rows, n_in / 8])?,
                    optional("weight_zero_point", &[rows / 8, n_groups])?,
                    find_scales("weight_scale", [rows, n_groups])?,
                    Some("weight_g_idx"),
                )
            }
        };
        let order = match groups {
            Some(part) if config.act_order || files.has(&format!("{stem}.{part}")) => {
                order_of(&format!("{stem}.{part}"), find(part, &[n_in])?, group_size)?
            }
            _ => None,
        };
        Ok(Self {
            n_out,
            n_in,
            group_size,
            packing: config.packing,
            weights,
            zeros,
            scales,
            order,
            place,
        })
    }

    pub fn storage(&self) -> MatrixStorage {
        let group_size = kernel_group(self.group_size);
        let n_groups = self.n_in / group_size;
        let n_bytes = self.n_in * self.n_out / 2 + n_groups * (self.n_out / 2 + 2 * self.n_out);
        MatrixStorage {
            n_out: self.n_out,
            n_in: self.n_in,
            format: MatrixFormat::Awq { group_size },
            is_reordered: self.order.is_some(),
            scale_columns: None,
            n_elements: (self.n_out * self.n_in) as u64,
            n_bytes: n_bytes as u64,
        }
    }

    /// The same matrix in AutoAWQ's `gemm` layout: borrowed if it is stored so.
    ///
    /// # Errors
    ///
    /// If a scale is not finite in 16 bits, or is a 32-bit number that they cannot hold.
    pub fn repack(self) -> Result<AwqMatrix<'a>, WeightError> {
        let group_size = kernel_group(self.group_size);
        let is_as_stored = self.packing == Packing::AwqGemm
            && self.place.n_stored == self.n_out
            && group_size == self.group_size;
        let qweight = if is_as_stored {
            Cow::Borrowed(self.weights.as_flattened())
        } else {
            Cow::Owned(self.repack_weights())
        };
        let qzeros = match self.zeros {
            Some(zeros) if is_as_stored => Cow::Borrowed(zeros.as_flattened()),
            _ => Cow::Owned(self.repack_zeros(group_size)),
        };
        let scales = if is_as_stored && self.scales.dtype == Dtype::F16 {
            Cow::Borrowed(self.scales.bytes)
        } else {
            Cow::Owned(self.repack_scales(group_size)?)
        };
        Ok(AwqMatrix {
            n_out: self.n_out,
            n_in: self.n_in,
            group_size,
            qweight,
            qzeros,
            scales,
            order: self.order,
        })
    }

    /// `[n_in, n_out / 8]`
    fn repack_weights(&self) -> Vec<u8> {
        let row_bytes = self.n_out / 2;
        let (first, n_stored) = (self.place.first, self.place.n_stored);
        let mut out = vec![0; self.n_in * row_bytes];
        match self.packing {
            Packing::AwqGemm => on_threads(&mut out, row_bytes, &|row, out| {
                let rows = self.weights[row * n_stored / 8..].chunks_exact(n_stored / 8);
                for (out, row) in out.chunks_exact_mut(row_bytes).zip(rows) {
                    let part = row[first / 8..][..self.n_out / 8].as_flattened();
                    out.copy_from_slice(part);
                }
            }),
            Packing::Gptq { .. } => on_threads(&mut out, 8 * row_bytes, &|eight, out| {
                let rows = self.weights[eight * n_stored..].chunks_exact(n_stored);
                for (out, row) in out.chunks_exact_mut(8 * row_bytes).zip(rows) {
                    let words = row[first..][..self.n_out].as_chunks::<8>().0;
                    for (column, words) in words.iter().enumerate() {
                        store(out, row_bytes, column, COLUMN_OF_NIBBLE.map(|c| words[c]));
                    }
                }
            }),
            Packing::AwqGemv | Packing::PackQuantized => {
                let width = self.n_in / 8;
                let weights = &self.weights[first * width..];
                on_threads(&mut out, 8 * row_bytes, &|eight, out| {
                    // A line of the cache at a time, of what is read and of what is written.
                    for from in (0..self.n_out / 8).step_by(16) {
                        for (i, out) in out.chunks_exact_mut(8 * row_bytes).enumerate() {
                            for column in from..(from + 16).min(self.n_out / 8) {
                                let word = |c| weights[(8 * column + c) * width + eight + i];
                                store(out, row_bytes, column, COLUMN_OF_NIBBLE.map(word));
                            }
                        }
                    }
                });
            }
        }
        let Some(order) = &self.order else {
            return out;
        };
        let mut ordered = Vec::with_capacity(out.len());
        for &row in order {
            ordered.extend_from_slice(&out[row as usize * row_bytes..][..row_bytes]);
        }
        ordered
    }

    /// `[n_in / group_size, n_out / 8]`
    fn repack_zeros(&self, group_size: usize) -> Vec<u8> {
        let row_bytes = self.n_out / 2;
        let repeats = self.group_size / group_size;
        let mut out = vec![0; self.n_in / group_size * row_bytes];
        on_threads(&mut out, row_bytes, &|group, out| {
            for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                for (column, word) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let zeros = self.eight_zeros((group + i) / repeats, 8 * column);
                    *word = pack_word(zeros).to_le_bytes();
                }
            }
        });
        out
    }

    /// Of a stored group, for the columns from `column` on.
    fn eight_zeros(&self, group: usize, column: usize) -> [u8; 8] {
        let Some(zeros) = self.zeros else {
            return [SYMMETRIC_ZERO; 8];
        };
        let n_groups = self.n_in / self.group_size;
        let row = self.place.first + column;
        let nibbles = |word: [u8; 4]| {
            let word = u32::from_le_bytes(word);
            std::array::from_fn(|i| (word >> (4 * i)) as u8 & 15)
        };
        match self.packing {
            Packing::AwqGemm => {
                let word = zeros[group * self.place.n_stored / 8 + row / 8];
                unpack_word(u32::from_le_bytes(word))
            }
            Packing::Gptq { zeros_minus_one } => {
                let stored: [u8; 8] = nibbles(zeros[group * self.place.n_stored / 8 + row / 8]);
                // A zero point of 0 is stored as 15.
                stored.map(|zero| (zero + u8::from(zeros_minus_one)) & 15)
            }
            Packing::PackQuantized => nibbles(zeros[row / 8 * n_groups + group]),
            Packing::AwqGemv => {
                let width = self.scales.width / 8;
                std::array::from_fn(|i| {
                    let word = u32::from_le_bytes(zeros[(row + i) * width + group / 8]);
                    (word >> (4 * (group % 8))) as u8 & 15
                })
            }
        }
    }

    /// `[n_in / group_size, n_out]` in f16
    fn repack_scales(&self, group_size: usize) -> Result<Vec<u8>, WeightError> {
        let repeats = self.group_size / group_size;
        let mut out = Vec::with_capacity(self.n_in / group_size * self.n_out * 2);
        let mut n_rounded = 0usize;
        for group in 0..self.n_in / self.group_size {
            let from = out.len();
            for row in (0..self.n_out).map(|row| self.place.first + row) {
                let at = match self.packing {
                    Packing::AwqGemm | Packing::Gptq { .. } => group * self.scales.width + row,
                    Packing::AwqGemv | Packing::PackQuantized => row * self.scales.width + group,
                };
                let (scale, is_exact) = self.scales.value(at)?;
                n_rounded += usize::from(!is_exact);
                out.extend_from_slice(&scale.to_le_bytes());
            }
            let to = out.len();
            for _ in 1..repeats {
                out.extend_from_within(from..to);
            }
        }
        if n_rounded > 0 {
            tracing::warn!(
                tensor = self.scales.name,
                n_rounded,
                "scales below {EXACT_FROM:e} were rounded to fp16"
            );
        }
        Ok(out)
    }
}

impl Scales<'_> {
    /// In f16, and whether that is exact.
    fn value(&self, at: usize) -> Result<(f16, bool), WeightError> {
        let half = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        let value = match self.dtype {
            Dtype::F16 => {
                let scale = f16::from_bits(half(&self.bytes[2 * at..]));
                if scale.is_finite() {
                    return Ok((scale, true));
                }
                scale.to_f32()
            }
            Dtype::BF16 => bf16::from_bits(half(&self.bytes[2 * at..])).to_f32(),
            _ => {
                let b = &self.bytes[4 * at..];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            }
        };
        let scale = f16::from_f32(value);
        let is_exact = scale.to_f32().to_bits() == value.to_bits();
        if scale.is_finite() && (is_exact || value.abs() < EXACT_FROM) {
            return Ok((scale, is_exact));
        }
        let limit = if scale.is_finite() {
            "scales are kept in fp16, which does not hold this value exactly".to_owned()
        } else {
            format!("scales are kept in fp16, so at most {}", f16::MAX)
        };
        Err(WeightError::File {
            file: self.name.clone(),
            message: format!("scale {at} is {value:e}; {limit}"),
        })
    }
}

/// AutoAWQ pads the groups of a row so that its kernel reads whole vectors.
fn gemv_zeros_width(n_groups: usize, group_size: usize) -> usize {
    let multiple = match group_size {
        32 => 4,
        64 => 2,
        _ => 1,
    };
    n_groups.div_ceil(8).next_multiple_of(multiple)
}

/// Words of eight neighbouring columns become words of eight neighbouring inputs: nibble `i` of
/// `words[j]` goes to nibble `j` of row `i`.
fn store(out: &mut [u8], row_bytes: usize, column: usize, words: [[u8; 4]; 8]) {
    let mut a = words.map(u32::from_le_bytes);
    // Blocks of 4 x 4, 2 x 2 and 1 x 1 nibbles change places.
    for (distance, mask) in [(4, 0x0000_ffff), (2, 0x00ff_00ff), (1, 0x0f0f_0f0f)] {
        for low in (0..8).filter(|i| i & distance == 0) {
            let moved = ((a[low] >> (4 * distance)) ^ a[low + distance]) & mask;
            a[low + distance] ^= moved;
            a[low] ^= moved << (4 * distance);
        }
    }
    for (row, word) in a.into_iter().enumerate() {
        out[row * row_bytes + 4 * column..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Calls `task(first, part)` on parts of `out` that are whole chunks, on several threads if it is
/// long: a matrix of 64 MiB takes one core a tenth of a second.
fn on_threads(out: &mut [u8], chunk_bytes: usize, task: &(dyn Fn(usize, &mut [u8]) + Sync)) {
    const LEAST_BYTES: usize = 1 << 20;
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let n_threads = (out.len() / LEAST_BYTES).clamp(1, most);
    let n_chunks = out.len() / chunk_bytes.max(1);
    let n_each = n_chunks.div_ceil(n_threads).max(1);
    std::thread::scope(|scope| {
        let mut parts = out.chunks_mut(n_each * chunk_bytes.max(1)).enumerate();
        // This thread takes the first.
        let own = parts.next();
        for (i, part) in parts {
            scope.spawn(move || task(i * n_each, part));
        }
        if let Some((_, part)) = own {
            task(0, part);
        }
    });
}

/// The input that each column multiplies, if columns were moved to bring groups together.
fn order_of(
    name: &str,
    groups: &[[u8; 4]],
    group_size: usize,
) -> Result<Option<Vec<u32>>, WeightError> {
    let wrong = |message: String| WeightError::File {
        file: name.to_owned(),
        message,
    };
    let n_groups = groups.len() / group_size;
    let mut columns = vec![Vec::with_capacity(group_size); n_groups];
    for (column, group) in groups.iter().enumerate() {
        let group = i32::from_le_bytes(*group);
        let known = usize::try_from(group).ok().filter(|g| *g < n_groups);
        let Some(known) = known else {
            let last = n_groups.saturating_sub(1);
            return Err(wrong(format!(
                "column {column} is in group {group}; it must be 0 to {last}"
            )));
        };
        columns[known].push(column as u32);
    }
    for (group, columns) in columns.iter().enumerate() {
        if columns.len() != group_size {
            let n = columns.len();
            return Err(wrong(format!(
                "group {group} has {n} columns; it must have {group_size}"
            )));
        }
    }
    let order = columns.concat();
    let is_identity = order.iter().enumerate().all(|(i, &k)| i == k as usize);
    Ok((!is_identity).then_some(order))
}

/// compressed-tensors says the shape again.
fn check_stored_shape(
    files: &TensorFiles,
    stem: &str,
    expected: [usize; 2],
) -> Result<(), WeightError> {
    let name = format!("{stem}.weight_shape");
    if !files.has(&name) {
        return Ok(());
    }
    let tensor = files.tensor(&name)?;
    let found: Vec<usize> = match tensor.dtype {
        Dtype::I64 => {
            let sizes = tensor.bytes.as_chunks().0.iter();
            sizes.map(|b| i64::from_le_bytes(*b) as usize).collect()
        }
        Dtype::I32 => {
            let sizes = tensor.bytes.as_chunks().0.iter();
            sizes.map(|b| i32::from_le_bytes(*b) as usize).collect()
        }
        other => return Err(wrong_type(&name, other, "I64 I32")),
    };
    if found == expected {
        return Ok(());
    }
    Err(WeightError::File {
        file: name,
        message: format!("says {found:?}; config.json asks for {expected:?}"),
    })
}

fn words<'a>(
    files: &'a TensorFiles,
    name: &str,
    shape: &[usize],
) -> Result<&'a [[u8; 4]], WeightError> {
    let tensor = files.tensor(name)?;
    if tensor.dtype != Dtype::I32 {
        return Err(wrong_type(name, tensor.dtype, "I32"));
    }
    same_shape(name, tensor.shape, shape)?;
    Ok(tensor.bytes.as_chunks().0)
}

fn wrong_type(name: &str, found: Dtype, supported: &'static str) -> WeightError {
    WeightError::Format {
        name: name.to_owned(),
        format: format!("{found:?}"),
        supported,
    }
}

fn same_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), WeightError> {
    if found == expected {
        return Ok(());
    }
    Err(WeightError::Shape {
        name: name.to_owned(),
        found: found.to_vec(),
        expected: expected.to_vec(),
    })
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
