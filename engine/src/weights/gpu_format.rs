//! How matrices are stored on a GPU, decided by their formats alone, before any is read.
//!
//! Every format stays in few bits but 16- and 32-bit floats, which become the activations' type: 4-bit integers in
//! AWQ's layout, GGUF's blocks, INT8 and NVFP4 as the CPU's codes of 4 or 8 bits with scales in fp16, FP8 as it is.
//! With activations in bf16 only AWQ's layout has kernels, and all else becomes bf16. The parts of a
//! matrix (q, k and v; gate and up) share a format. Where theirs differ, it is the narrowest that holds all of them
//! exactly; if none does, as of 4-bit integers beside floats, they are widened to 16 bits.

use kernels::KernelError;
use kernels::cuda::Element;
use kernels::quant_linear::{BlockFormat, Offset, PackedLayout, QuantSource};
use kernels::stream_linear::codes::{CodeSource, format_of};
use kernels::stream_linear::{CHUNK_BYTES, Format, TILE_COLUMNS};

use super::format::MatrixFormat;
use super::scaled::ScaledElement;
use super::{ElementFormat, Matrix, MatrixStorage};

/// Columns under one scale of FP8, or a multiple of it.
const SCALE_COLUMNS: usize = 128;
/// NVFP4 as the CPU's codes: twice the numbers, and a scale for 16.
const NVFP4_CODES: PackedLayout = PackedLayout {
    code_bits: 8,
    group: 16,
    offset: Offset::Zero(128),
};

/// Integers with a scale a row, which is that of every 32.
const INT8_CODES: PackedLayout = PackedLayout {
    group: 32,
    ..NVFP4_CODES
};

/// A part's own form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Own(Format),
    Codes(PackedLayout),
}

/// The format of a matrix with these parts, multiplied with activations of `element`.
///
/// # Errors
///
/// [`KernelError::Shape`] for AWQ in groups other than 32, 64 or 128.
pub fn gpu_format(parts: &[MatrixStorage], element: Element) -> Result<Format, KernelError> {
    let forms = parts.iter().map(form_of).collect::<Result<Vec<_>, _>>()?;
    let codes: Option<Vec<PackedLayout>> = forms
        .iter()
        .map(|form| match form {
            Form::Codes(layout) => Some(*layout),
            Form::Own(_) => None,
        })
        .collect();
    let format = match (codes, forms.first()) {
        (Some(codes), _) => format_of(&codes).unwrap_or(Format::Half),
        (None, Some(Form::Own(first))) if forms.iter().all(|form| *form == Form::Own(*first)) => {
            *first
        }
        _ => Format::Half,
    };
    Ok(if format.has_element(element) {
        format
    } else {
        Format::Half
    })
}

fn form_of(part: &MatrixStorage) -> Result<Form, KernelError> {
    Ok(match part.format {
        MatrixFormat::Awq { group_size } => Form::Own(Format::awq(group_size)?),
        MatrixFormat::Rows(format) => match block_format(format) {
            Some(blocks) => Form::Codes(blocks.layout()),
            None => Form::Own(Format::Half),
        },
        MatrixFormat::Scaled(ScaledElement::Nvfp4) if part.n_in.is_multiple_of(32) => {
            Form::Codes(NVFP4_CODES)
        }
        MatrixFormat::Scaled(ScaledElement::Int8) if part.n_in.is_multiple_of(32) => {
            Form::Codes(INT8_CODES)
        }
        MatrixFormat::Scaled(ScaledElement::Fp8) => {
            let holds =
                |columns: usize| columns >= part.n_in || columns.is_multiple_of(SCALE_COLUMNS);
            Form::Own(match part.scale_columns {
                Some(columns) if holds(columns) => Format::Fp8,
                _ => Format::Half,
            })
        }
        MatrixFormat::Scaled(ScaledElement::Nvfp4 | ScaledElement::Int8) => Form::Own(Format::Half),
    })
}

/// Bytes of a part on a GPU, in a matrix of this format, without the padding of its last tile and chunk.
#[must_use]
pub fn gpu_bytes(part: &MatrixStorage, format: Format) -> u64 {
    let is_float = |stored: ElementFormat| block_format(stored).is_none();
    match part.format {
        // What the files have, but that they may have 32 bits.
        MatrixFormat::Awq { .. } if format != Format::Half => part.n_bytes,
        MatrixFormat::Rows(stored) if is_float(stored) => 2 * part.n_elements,
        _ => {
            let per_chunk = (CHUNK_BYTES + format.scale_bytes()) as u64;
            part.n_elements * per_chunk / (TILE_COLUMNS * format.chunk_k()) as u64
        }
    }
}

/// What is packed for a GPU; `None` of AWQ and of rows in 16 or 32 bits.
pub fn code_source<'a>(matrix: &'a Matrix<'_>) -> Option<CodeSource<'a>> {
    match matrix {
        Matrix::Awq(_) => None,
        Matrix::Rows { format, bytes, .. } => {
            let format = block_format(*format)?;
            Some(CodeSource::Quant(QuantSource::Blocks { format, bytes }))
        }
        Matrix::Scaled(scaled) => Some(match scaled.element {
            ScaledElement::Nvfp4 => CodeSource::Quant(QuantSource::Fp4 {
                codes: &scaled.codes,
                scales: &scaled.scales,
                factor: scaled.factor,
            }),
            ScaledElement::Int8 => CodeSource::Quant(QuantSource::Int8 {
                codes: &scaled.codes,
                scales: &scaled.scales,
            }),
            ScaledElement::Fp8 => CodeSource::Fp8 {
                codes: &scaled.codes,
                group: scaled.group,
                scales: &scaled.scales,
            },
        }),
    }
}

/// ggml's blocks as the kernels name them; `None` of floats.
pub const fn block_format(format: ElementFormat) -> Option<BlockFormat> {
    Some(match format {
        ElementFormat::F32 | ElementFormat::F16 | ElementFormat::BF16 => return None,
        ElementFormat::Q4_0 => BlockFormat::Q4_0,
        ElementFormat::Q4_1 => BlockFormat::Q4_1,
        ElementFormat::Q5_0 => BlockFormat::Q5_0,
        ElementFormat::Q5_1 => BlockFormat::Q5_1,
        ElementFormat::Q8_0 => BlockFormat::Q8_0,
        ElementFormat::Q2K => BlockFormat::Q2K,
        ElementFormat::Q3K => BlockFormat::Q3K,
        ElementFormat::Q4K => BlockFormat::Q4K,
        ElementFormat::Q5K => BlockFormat::Q5K,
        ElementFormat::Q6K => BlockFormat::Q6K,
        ElementFormat::Iq4Nl => BlockFormat::Iq4Nl,
        ElementFormat::Iq4Xs => BlockFormat::Iq4Xs,
        ElementFormat::Mxfp4 => BlockFormat::Mxfp4,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(format: MatrixFormat) -> MatrixStorage {
        MatrixStorage {
            n_out: 64,
            n_in: 512,
            format,
            is_reordered: false,
            scale_columns: None,
            n_elements: 64 * 512,
            n_bytes: 0,
        }
    }

    fn rows(format: ElementFormat) -> MatrixStorage {
        part(MatrixFormat::Rows(format))
    }

    fn scaled(element: ScaledElement, scale_columns: usize) -> MatrixStorage {
        MatrixStorage {
            scale_columns: Some(scale_columns),
            ..part(MatrixFormat::Scaled(element))
        }
    }

    fn of(parts: &[MatrixStorage]) -> Format {
        gpu_format(parts, Element::F16).expect("known")
    }

    #[test]
    fn every_format_has_its_own_on_a_gpu() {
        use ElementFormat::{
            BF16, F16, F32, Iq4Nl, Iq4Xs, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K,
            Q8_0,
        };
        let expected = [
            (&[F32, F16, BF16][..], Format::Half),
            (&[Q4_0], Format::AwqG32),
            (&[Q4_1, Q4K], Format::MinG32),
            (&[Q5_0, Q8_0, Iq4Nl, Iq4Xs, Mxfp4], Format::BytesG32),
            (&[Q3K, Q6K], Format::BytesG16),
            (&[Q5_1, Q5K, Q2K], Format::BytesMinG16),
        ];
        let n: usize = expected.iter().map(|(formats, _)| formats.len()).sum();
        assert_eq!(n, ElementFormat::ALL.len());
        for (formats, expected) in expected {
            for format in formats {
                assert_eq!(of(&[rows(*format)]), expected, "{format}");
            }
        }
        for (element, columns, expected) in [
            (ScaledElement::Fp8, 128, Format::Fp8),
            (ScaledElement::Fp8, 256, Format::Fp8),
            (ScaledElement::Fp8, 512, Format::Fp8),
            (ScaledElement::Fp8, 64, Format::Half),
            (ScaledElement::Int8, 512, Format::BytesG32),
            (ScaledElement::Nvfp4, 16, Format::BytesG16),
        ] {
            let found = of(&[scaled(element, columns)]);
            assert_eq!(found, expected, "{element} {columns}");
        }
        let ragged = MatrixStorage {
            n_in: 520,
            ..scaled(ScaledElement::Int8, 520)
        };
        assert_eq!(of(&[ragged]), Format::Half);
        let refused = gpu_format(&[part(MatrixFormat::Awq { group_size: 16 })], Element::F16);
        assert!(refused.expect_err("refused").to_string().contains("is 16"));
    }

    #[test]
    fn bf16_has_awq_in_few_bits_alone() {
        let in_bf16 = |part| gpu_format(&[part], Element::Bf16).expect("known");
        let awq = part(MatrixFormat::Awq { group_size: 128 });
        assert_eq!(in_bf16(awq), Format::AwqG128);
        assert_eq!(in_bf16(rows(ElementFormat::Q4_0)), Format::AwqG32);
        assert_eq!(in_bf16(rows(ElementFormat::Q4K)), Format::Half);
        assert_eq!(in_bf16(scaled(ScaledElement::Fp8, 128)), Format::Half);
    }

    #[test]
    fn parts_that_differ_take_the_narrowest_that_holds_them() {
        use ElementFormat::{F16, Q4_0, Q4_1, Q4K, Q5K, Q6K, Q8_0};
        for (parts, expected) in [
            (&[Q4K, Q4K, Q6K][..], Format::BytesMinG16),
            (&[Q4_0, Q4_1], Format::MinG32),
            (&[Q4_0, Q8_0], Format::BytesG32),
            (&[Q6K, Q8_0], Format::BytesG16),
            (&[Q4K, Q5K], Format::BytesMinG16),
            (&[Q4K, F16], Format::Half),
        ] {
            let parts: Vec<_> = parts.iter().map(|format| rows(*format)).collect();
            assert_eq!(of(&parts), expected, "{parts:?}");
        }
        let awq = |group_size| part(MatrixFormat::Awq { group_size });
        assert_eq!(of(&[awq(64), awq(64)]), Format::AwqG64);
        for parts in [
            [awq(32), rows(F16)],
            [awq(32), rows(Q4_0)],
            [scaled(ScaledElement::Fp8, 128), rows(ElementFormat::BF16)],
        ] {
            assert_eq!(of(&parts), Format::Half, "{parts:?}");
        }
    }

    #[test]
    fn bytes_are_those_of_the_format_on_the_gpu() {
        let bits = |part: &MatrixStorage| {
            let format = of(std::slice::from_ref(part));
            8.0 * gpu_bytes(part, format) as f64 / part.n_elements as f64
        };
        for (part, expected) in [
            (rows(ElementFormat::F32), 16.0),
            (rows(ElementFormat::Q4K), 5.0),
            (rows(ElementFormat::Q6K), 9.0),
            (rows(ElementFormat::Q4_0), 4.625),
            (scaled(ScaledElement::Fp8, 128), 8.25),
        ] {
            assert!((bits(&part) - expected).abs() < 1e-9, "{part:?}");
        }
    }
}
