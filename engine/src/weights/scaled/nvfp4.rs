//! NVFP4: E2M1 in groups of 16 columns with E4M3 scales, and an f32 scale of the matrix, by which
//! compressed-tensors divides (`weight_packed`, `weight_global_scale`) and modelopt multiplies
//! (`weight`, `weight_scale_2`).

use ::safetensors::Dtype;

use super::{Grid, ScaledElement, Stored, Tensor, codes, wrong_shape};
use crate::weights::packed::Place;
use crate::weights::safetensors::TensorFiles;
use crate::weights::{ElementFormat, WeightError, decode};

/// Columns under one scale.
const GROUP: usize = 16;
/// Without their sign, which is bit 3 of a code.
const SIZES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

pub(super) fn find(
    files: &TensorFiles,
    place: Place,
    (n_out, n_in): (usize, usize),
    divides: bool,
) -> Result<Stored<'_>, WeightError> {
    if !n_in.is_multiple_of(GROUP) {
        return Err(WeightError::File {
            file: place.stem,
            message: format!(
                "[{n_out}, {n_in}] cannot be NVFP4: columns must be a multiple of {GROUP}"
            ),
        });
    }
    let named = |part: &str| format!("{}.{part}", place.stem);
    let (weights, global) = if divides {
        (named("weight_packed"), named("weight_global_scale"))
    } else {
        (named("weight"), named("weight_scale_2"))
    };
    let rows = place.n_stored;
    let scales = Grid {
        tensor: codes(
            files,
            named("weight_scale"),
            Dtype::F8_E4M3,
            [rows, n_in / GROUP],
        )?,
        format: None,
        block: [1, GROUP],
        width: n_in / GROUP,
    };
    Ok(Stored {
        element: ScaledElement::Nvfp4,
        codes: codes(files, weights, Dtype::U8, [rows, n_in / 2])?,
        scales,
        factor: factor(files, global, divides)?,
        place,
        n_out,
        n_in,
    })
}

pub(super) fn value(code: u8) -> f32 {
    let size = SIZES[usize::from(code & 7)];
    if code & 8 == 0 { size } else { -size }
}

/// What all weights are multiplied with.
fn factor(files: &TensorFiles, name: String, divides: bool) -> Result<f32, WeightError> {
    let tensor = files.tensor(&name)?;
    if tensor.dtype != Dtype::F32 {
        return Err(WeightError::Format {
            name,
            format: format!("{:?}", tensor.dtype),
            supported: "F32",
        });
    }
    if tensor.shape.iter().product::<usize>() != 1 {
        return Err(wrong_shape(name, tensor.shape, &[1]));
    }
    let stored = Tensor {
        name,
        bytes: tensor.bytes,
    };
    let values = decode::to_f32(ElementFormat::F32, stored.bytes, 1)?;
    let factor = if divides {
        values[0].recip()
    } else {
        values[0]
    };
    if factor.is_finite() && factor > 0.0 {
        return Ok(factor);
    }
    Err(WeightError::File {
        file: stored.name,
        message: format!(
            "is {}; it and its reciprocal must be finite and above 0",
            values[0]
        ),
    })
}
