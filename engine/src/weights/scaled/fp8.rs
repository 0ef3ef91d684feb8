//! FP8: `weight` in E4M3, with `weight_scale_inv` for blocks (which multiplies in spite of its name)
//! or `weight_scale` for rows, for the matrix, or, by compressed-tensors, for blocks. The last blocks
//! may be partial.

use ::safetensors::Dtype;
use kernels::lanes::e4m3;

use super::{ScaledElement, Stored, codes, grid};
use crate::weights::WeightError;
use crate::weights::packed::Place;
use crate::weights::safetensors::TensorFiles;

/// Without its sign.
const NAN: u8 = 0x7f;

pub(super) fn find(
    files: &TensorFiles,
    place: Place,
    (n_out, n_in): (usize, usize),
    block: Option<[usize; 2]>,
) -> Result<Stored<'_>, WeightError> {
    let named = |part: &str| format!("{}.{part}", place.stem);
    let name = [named("weight_scale_inv"), named("weight_scale")]
        .into_iter()
        .find(|name| files.has(name))
        .unwrap_or_else(|| named("weight_scale_inv or weight_scale"));
    Ok(Stored {
        element: ScaledElement::Fp8,
        codes: codes(
            files,
            named("weight"),
            Dtype::F8_E4M3,
            [place.n_stored, n_in],
        )?,
        scales: grid(files, name, &place, n_in, block)?,
        factor: 1.0,
        place,
        n_out,
        n_in,
    })
}

pub(super) fn value(code: u8) -> f32 {
    e4m3::to_f32(code)
}

pub(super) fn value_or_nan(code: u8) -> f32 {
    if code & NAN == NAN {
        f32::NAN
    } else {
        value(code)
    }
}

/// Kernels take no code for NaN, so there must be none.
pub(super) fn check_codes(name: &str, codes: &[u8], n_in: usize) -> Result<(), WeightError> {
    match codes.iter().position(|code| code & NAN == NAN) {
        None => Ok(()),
        Some(at) => Err(WeightError::File {
            file: name.to_owned(),
            message: format!("weight [{}, {}] is NaN", at / n_in, at % n_in),
        }),
    }
}
