//! INT8 as compressed-tensors stores it: signed `weight`, and `weight_scale` for rows or for the
//! matrix.

use ::safetensors::Dtype;

use super::{ScaledElement, Stored, codes, grid};
use crate::weights::WeightError;
use crate::weights::packed::Place;
use crate::weights::safetensors::TensorFiles;

pub(super) fn find(
    files: &TensorFiles,
    place: Place,
    (n_out, n_in): (usize, usize),
) -> Result<Stored<'_>, WeightError> {
    let named = |part: &str| format!("{}.{part}", place.stem);
    let zero = named("weight_zero_point");
    if files.has(&zero) {
        return Err(WeightError::File {
            file: zero,
            message: "is there; integers of 8 bits must be symmetric".to_owned(),
        });
    }
    Ok(Stored {
        element: ScaledElement::Int8,
        codes: codes(files, named("weight"), Dtype::I8, [place.n_stored, n_in])?,
        scales: grid(files, named("weight_scale"), &place, n_in, None)?,
        factor: 1.0,
        place,
        n_out,
        n_in,
    })
}

pub(super) fn value(code: u8) -> f32 {
    f32::from(code as i8)
}
