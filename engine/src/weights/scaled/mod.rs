//! Matrices of small numbers in row order, each times a scale: `W[n][k] = q[n][k] * s[n][k / group]`,
//! in NVFP4 times a factor of the matrix, as well.
//! A file for each format says which tensors these are; all of them are read through `Stored`.
//!
//! | | `q` | `s` |
//! |---|---|---|
//! | FP8 | E4M3 `[out, in]` | of a block of rows and columns, a row, or the matrix |
//! | INT8 | signed `[out, in]` | of a row, or the matrix |
//! | NVFP4 | E2M1 `[out, in / 2]`, the even column low | E4M3 `[out, in / 16]` |
//!
//! Scales that quantisers keep for activations (`input_scale` and others) are not read.

use std::borrow::Cow;
use std::fmt;

use ::safetensors::Dtype;

use super::format::MatrixFormat;
use super::packed::Place;
use super::safetensors::TensorFiles;
use super::{ElementFormat, MatrixStorage, WeightError, decode};
use crate::model::quantization::{Scaled, ScaledKind};

mod fp8;
mod int8;
mod nvfp4;

/// What one number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaledElement {
    /// E4M3: 4 bits of exponent, 3 of mantissa.
    Fp8,
    /// A signed integer of 8 bits.
    Int8,
    /// E2M1: 2 bits of exponent, 1 of mantissa.
    Nvfp4,
}

/// `FP8`
impl fmt::Display for ScaledElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp8 => "FP8",
            Self::Int8 => "INT8",
            Self::Nvfp4 => "NVFP4",
        })
    }
}

impl From<ScaledKind> for ScaledElement {
    fn from(kind: ScaledKind) -> Self {
        match kind {
            ScaledKind::Fp8 { .. } => Self::Fp8,
            ScaledKind::Int8 => Self::Int8,
            ScaledKind::Nvfp4 { .. } => Self::Nvfp4,
        }
    }
}

impl ScaledElement {
    /// Bytes of a row of `n` numbers.
    const fn row_bytes(self, n: usize) -> usize {
        match self {
            Self::Fp8 | Self::Int8 => n,
            Self::Nvfp4 => n / 2,
        }
    }

    /// Bytes of a scale.
    const fn scale_bytes(self) -> usize {
        match self {
            Self::Fp8 | Self::Int8 => 4,
            Self::Nvfp4 => 1,
        }
    }
}

/// A matrix of small numbers and their scales.
#[derive(Debug, Clone)]
pub struct ScaledMatrix<'a> {
    pub element: ScaledElement,
    pub n_out: usize,
    pub n_in: usize,
    /// Row after row; no FP8 code is NaN.
    pub codes: Cow<'a, [u8]>,
    /// Columns under one scale; the last group of a row may be shorter.
    pub group: usize,
    /// `[n_out, n_in.div_ceil(group)]`, all finite; those of NVFP4 are numbers that E4M3 has.
    pub scales: Vec<f32>,
    /// Of all products: 1 but in NVFP4.
    pub factor: f32,
}

impl ScaledMatrix<'_> {
    pub fn storage(&self) -> MatrixStorage {
        let shape = (self.n_out, self.n_in);
        storage_of(self.element, shape, self.group, self.scales.len())
    }

    /// Row-major f32, `[n_out, n_in]`. Each product is rounded once: that of a number and a scale of
    /// NVFP4 is exact.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let n_groups = self.n_in.div_ceil(self.group);
        let value: [f32; 256] = match self.element {
            ScaledElement::Fp8 => std::array::from_fn(|code| fp8::value(code as u8)),
            ScaledElement::Int8 => std::array::from_fn(|code| int8::value(code as u8)),
            ScaledElement::Nvfp4 => std::array::from_fn(|code| nvfp4::value(code as u8 & 15)),
        };
        let group_bytes = self.element.row_bytes(self.group);
        let rows = self.codes.chunks_exact(self.element.row_bytes(self.n_in));
        let mut out = Vec::with_capacity(self.n_out * self.n_in);
        for (codes, scales) in rows.zip(self.scales.chunks_exact(n_groups)) {
            for (codes, scale) in codes.chunks(group_bytes).zip(scales) {
                let weight = |code: u8| value[usize::from(code)] * scale * self.factor;
                match self.element {
                    ScaledElement::Nvfp4 => {
                        out.extend(codes.iter().flat_map(|c| [weight(*c), weight(*c >> 4)]));
                    }
                    _ => out.extend(codes.iter().map(|code| weight(*code))),
                }
            }
        }
        out
    }
}

fn storage_of(
    element: ScaledElement,
    (n_out, n_in): (usize, usize),
    scale_columns: usize,
    n_scales: usize,
) -> MatrixStorage {
    MatrixStorage {
        n_out,
        n_in,
        format: MatrixFormat::Scaled(element),
        is_reordered: false,
        scale_columns: Some(scale_columns),
        n_elements: (n_out * n_in) as u64,
        n_bytes: (n_out * element.row_bytes(n_in) + element.scale_bytes() * n_scales) as u64,
    }
}

/// A matrix whose tensors were found and have the types and shapes that they must have.
pub(super) struct Stored<'a> {
    element: ScaledElement,
    place: Place,
    n_out: usize,
    n_in: usize,
    /// Of the whole stored matrix.
    codes: Tensor<'a>,
    scales: Grid<'a>,
    factor: f32,
}

/// A tensor with its name, for messages.
struct Tensor<'a> {
    name: String,
    bytes: &'a [u8],
}

/// Scales of blocks: that of row `n` and column `k` is number `n / rows * width + k / columns`.
struct Grid<'a> {
    tensor: Tensor<'a>,
    /// `None`: E4M3.
    format: Option<ElementFormat>,
    /// Rows and columns under one scale.
    block: [usize; 2],
    width: usize,
}

/// Whether `stem` is in this format in these files.
pub(super) fn is_scaled(files: &TensorFiles, stem: &str, kind: ScaledKind) -> bool {
    let weight = files.tensor(&format!("{stem}.weight"));
    let has = |dtype| weight.as_ref().is_ok_and(|weight| weight.dtype == dtype);
    match kind {
        ScaledKind::Fp8 { .. } => has(Dtype::F8_E4M3),
        ScaledKind::Int8 => has(Dtype::I8),
        ScaledKind::Nvfp4 { .. } => has(Dtype::U8) || files.has(&format!("{stem}.weight_packed")),
    }
}

/// Finds the tensors of an `[n_out, n_in]` matrix and checks their types and shapes.
pub(super) fn find(
    files: &TensorFiles,
    place: Place,
    shape: (usize, usize),
    config: Scaled,
) -> Result<Stored<'_>, WeightError> {
    match config.kind {
        ScaledKind::Fp8 { block } => fp8::find(files, place, shape, block),
        ScaledKind::Int8 => int8::find(files, place, shape),
        ScaledKind::Nvfp4 { divides } => nvfp4::find(files, place, shape, divides),
    }
}

impl<'a> Stored<'a> {
    pub fn storage(&self) -> MatrixStorage {
        let [_, columns] = self.scales.block;
        let n_scales = self.n_out * self.n_in.div_ceil(columns);
        storage_of(self.element, (self.n_out, self.n_in), columns, n_scales)
    }

    /// The same matrix with a scale for each row and group.
    ///
    /// # Errors
    ///
    /// If a scale is not finite or a weight is NaN; the error names the first.
    pub fn read(&self) -> Result<ScaledMatrix<'a>, WeightError> {
        let row_bytes = self.element.row_bytes(self.n_in);
        let codes = &self.codes.bytes[self.place.first * row_bytes..][..self.n_out * row_bytes];
        if self.element == ScaledElement::Fp8 {
            fp8::check_codes(&self.codes.name, codes, self.n_in)?;
        }
        let [_, group] = self.scales.block;
        Ok(ScaledMatrix {
            element: self.element,
            n_out: self.n_out,
            n_in: self.n_in,
            codes: Cow::Borrowed(codes),
            group,
            scales: self.scales.rows(self.place.first, self.n_out, self.n_in)?,
            factor: self.factor,
        })
    }
}

impl Grid<'_> {
    fn values(&self) -> Result<Vec<f32>, WeightError> {
        let bytes = self.tensor.bytes;
        match self.format {
            Some(format) => decode::to_f32(format, bytes, bytes.len() / format.block_bytes()),
            None => Ok(bytes.iter().map(|code| fp8::value_or_nan(*code)).collect()),
        }
    }

    /// Those of rows `first ..`, each repeated for every row under it.
    fn rows(&self, first: usize, n_out: usize, n_in: usize) -> Result<Vec<f32>, WeightError> {
        let values = self.values()?;
        let [rows, columns] = self.block;
        let n_groups = n_in.div_ceil(columns);
        let mut scales = Vec::with_capacity(n_out * n_groups);
        for row in first..first + n_out {
            let from = row / rows * self.width;
            for (at, scale) in values[from..][..n_groups].iter().enumerate() {
                if !scale.is_finite() {
                    return Err(WeightError::File {
                        file: self.tensor.name.clone(),
                        message: format!("scale {} is {scale}; it must be finite", from + at),
                    });
                }
                scales.push(*scale);
            }
        }
        Ok(scales)
    }
}

/// `name`, of this type and shape.
fn codes(
    files: &TensorFiles,
    name: String,
    dtype: Dtype,
    shape: [usize; 2],
) -> Result<Tensor<'_>, WeightError> {
    let tensor = files.tensor(&name)?;
    if tensor.dtype != dtype {
        return Err(WeightError::Format {
            name,
            format: format!("{:?}", tensor.dtype),
            supported: match dtype {
                Dtype::F8_E4M3 => "F8_E4M3",
                Dtype::U8 => "U8",
                _ => "I8",
            },
        });
    }
    if tensor.shape != shape {
        return Err(wrong_shape(name, tensor.shape, &shape));
    }
    let bytes = tensor.bytes;
    Ok(Tensor { name, bytes })
}

/// Scales of `[rows, columns]`, or without a block those of a row or of the matrix.
fn grid<'a>(
    files: &'a TensorFiles,
    name: String,
    place: &Place,
    n_in: usize,
    block: Option<[usize; 2]>,
) -> Result<Grid<'a>, WeightError> {
    let tensor = files.tensor(&name)?;
    let Some(format) = float_format(tensor.dtype) else {
        return Err(WeightError::Format {
            name,
            format: format!("{:?}", tensor.dtype),
            supported: "F32 F16 BF16",
        });
    };
    let n_stored = place.n_stored;
    let is_one = tensor.shape.iter().product::<usize>() == 1;
    let block = match block {
        Some(block) => block,
        None if is_one => [n_stored, n_in],
        None => [1, n_in],
    };
    let expected = [n_stored.div_ceil(block[0]), n_in.div_ceil(block[1])];
    // Without its last size, as well, where that is 1.
    let is_as_expected = tensor.shape == expected
        || (expected[1] == 1 && tensor.shape == [expected[0]])
        || (expected == [1, 1] && is_one);
    if !is_as_expected {
        return Err(wrong_shape(name, tensor.shape, &expected));
    }
    Ok(Grid {
        tensor: Tensor {
            name,
            bytes: tensor.bytes,
        },
        format: Some(format),
        block: [block[0], block[1].min(n_in)],
        width: expected[1],
    })
}

fn float_format(dtype: Dtype) -> Option<ElementFormat> {
    match dtype {
        Dtype::F32 => Some(ElementFormat::F32),
        Dtype::F16 => Some(ElementFormat::F16),
        Dtype::BF16 => Some(ElementFormat::BF16),
        _ => None,
    }
}

fn wrong_shape(name: String, found: &[usize], expected: &[usize]) -> WeightError {
    WeightError::Shape {
        name,
        found: found.to_vec(),
        expected: expected.to_vec(),
    }
}

#[cfg(test)]
mod tests;
