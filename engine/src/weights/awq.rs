//! AutoAWQ's 4-bit `gemm` layout, which all 4-bit checkpoints get: its words, the plain
//! dequantisation that kernels are tested against, and a quantiser for tests.
//!
//! A word of `qweight` (and of `qzeros`) holds eight neighbouring output columns, but its
//! nibbles hold them in the order 0 2 4 6 1 3 5 7, which suits a kernel that unpacks pairs.
//! `W[n][k] = (q[k][n] - z[k / group][n]) * s[k / group][n]`.
//!
//! Deliberately absent: activation-aware search of the scales (the "AW" of AWQ). The quantiser
//! here rounds to the nearest level of each group's range.

use std::borrow::Cow;

use half::f16;

use super::{AwqMatrix, WeightError};

/// `COLUMN_OF_NIBBLE[i]` is the column, of a word's eight, in nibble i.
pub const COLUMN_OF_NIBBLE: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The eight values of one packed word, in column order.
pub fn unpack_word(word: u32) -> [u8; 8] {
    let mut columns = [0; 8];
    for (nibble, &column) in COLUMN_OF_NIBBLE.iter().enumerate() {
        columns[column] = ((word >> (4 * nibble)) & 15) as u8;
    }
    columns
}

/// The inverse of [`unpack_word`]; values are below 16.
pub fn pack_word(columns: [u8; 8]) -> u32 {
    let mut word = 0;
    for (nibble, &column) in COLUMN_OF_NIBBLE.iter().enumerate() {
        word |= u32::from(columns[column] & 15) << (4 * nibble);
    }
    word
}

/// Row-major f32, `[n_out, n_in]`.
///
/// # Errors
///
/// If the parts are not as long as a matrix of this shape and group needs.
pub fn dequantise(matrix: &AwqMatrix) -> Result<Vec<f32>, WeightError> {
    let (n_out, n_in, group) = (matrix.n_out, matrix.n_in, matrix.group_size);
    let whole = group > 0 && n_in.is_multiple_of(group) && n_out.is_multiple_of(8);
    let n_groups = if whole { n_in / group } else { 0 };
    if !whole
        || matrix.qweight.len() != n_in * n_out / 2
        || matrix.qzeros.len() != n_groups * n_out / 2
        || matrix.scales.len() != n_groups * n_out * 2
        || matrix
            .order
            .as_ref()
            .is_some_and(|order| order.len() != n_in)
    {
        return Err(WeightError::File {
            file: format!("AWQ matrix [{n_out}, {n_in}], group {group}"),
            message: format!(
                "its parts have {}, {} and {} bytes, which does not fit",
                matrix.qweight.len(),
                matrix.qzeros.len(),
                matrix.scales.len()
            ),
        });
    }
    let word = |bytes: &[u8], index: usize| {
        let b = &bytes[4 * index..4 * index + 4];
        unpack_word(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    let words_per_row = n_out / 8;
    let mut out = vec![0.0; n_out * n_in];
    for k in 0..n_in {
        let g = k / group;
        let input = matrix.order.as_ref().map_or(k, |order| order[k] as usize);
        for j in 0..words_per_row {
            let q = word(&matrix.qweight, k * words_per_row + j);
            let z = word(&matrix.qzeros, g * words_per_row + j);
            for i in 0..8 {
                let n = 8 * j + i;
                let at = 2 * (g * n_out + n);
                let scale = f16::from_le_bytes([matrix.scales[at], matrix.scales[at + 1]]);
                out[n * n_in + input] = f32::from(q[i] as i8 - z[i] as i8) * scale.to_f32();
            }
        }
    }
    Ok(out)
}

/// Quantises row-major `[n_out, n_in]` weights by rounding within each group's range. Fails if
/// `n_out` is not a multiple of 8 or `n_in` not one of `group_size`.
///
/// # Errors
///
/// If `n_out` is no multiple of 8, `n_in` none of `group_size`, or `weights` not `n_out · n_in`
/// long.
pub fn quantise(
    weights: &[f32],
    (n_out, n_in): (usize, usize),
    group_size: usize,
) -> Result<AwqMatrix<'static>, WeightError> {
    if group_size == 0
        || !n_in.is_multiple_of(group_size)
        || !n_out.is_multiple_of(8)
        || weights.len() != n_out * n_in
    {
        return Err(WeightError::File {
            file: format!("[{n_out}, {n_in}] with {} weights", weights.len()),
            message: format!(
                "cannot be quantised: rows must be a multiple of 8 and columns of the group \
                 size {group_size}"
            ),
        });
    }
    let n_groups = n_in / group_size;
    let mut q = vec![0u8; n_in * n_out]; // [n_in, n_out]
    let mut zeros = vec![0u8; n_groups * n_out]; // [n_groups, n_out]
    let mut scales = vec![0u8; n_groups * n_out * 2];
    for n in 0..n_out {
        for g in 0..n_groups {
            let span = &weights[n * n_in + g * group_size..][..group_size];
            let low = span.iter().copied().fold(0.0f32, f32::min);
            let high = span.iter().copied().fold(0.0f32, f32::max);
            let stored = f16::from_f32(((high - low) / 15.0).max(1e-5));
            let scale = stored.to_f32();
            let zero = (-low / scale).round().clamp(0.0, 15.0);
            for (i, w) in span.iter().enumerate() {
                let level = (w / scale).round() + zero;
                q[(g * group_size + i) * n_out + n] = level.clamp(0.0, 15.0) as u8;
            }
            zeros[g * n_out + n] = zero as u8;
            scales[2 * (g * n_out + n)..][..2].copy_from_slice(&stored.to_le_bytes());
        }
    }
    let pack = |levels: &[u8]| -> Vec<u8> {
        let words = levels.as_chunks::<8>().0;
        words
            .iter()
            .flat_map(|&columns| pack_word(columns).to_le_bytes())
            .collect()
    };
    Ok(AwqMatrix {
        n_out,
        n_in,
        group_size,
        qweight: Cow::Owned(pack(&q)),
        qzeros: Cow::Owned(pack(&zeros)),
        scales: Cow::Owned(scales),
        order: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Columns 0..8 hold 1..=8. Nibbles from the lowest: columns 0 2 4 6 1 3 5 7, so the values
    /// 1 3 5 7 2 4 6 8, which reads 0x8642_7531 as a word.
    #[test]
    fn a_word_packs_as_worked_out_by_hand() {
        assert_eq!(pack_word([1, 2, 3, 4, 5, 6, 7, 8]), 0x8642_7531);
        assert_eq!(unpack_word(0x8642_7531), [1, 2, 3, 4, 5, 6, 7, 8]);
        for word in [0, u32::MAX, 0x0123_4567, 0xf00d_cafe] {
            assert_eq!(pack_word(unpack_word(word)), word);
        }
    }

    /// One word, one group: column n has q = n + 1, z = 2, s = 0.5.
    #[test]
    fn dequantise_follows_the_formula() {
        let scales: Vec<u8> = (0..8)
            .flat_map(|_| f16::from_f32(0.5).to_le_bytes())
            .collect();
        let matrix = AwqMatrix {
            n_out: 8,
            n_in: 1,
            group_size: 1,
            qweight: Cow::Owned(0x8642_7531u32.to_le_bytes().to_vec()),
            qzeros: Cow::Owned(0x2222_2222u32.to_le_bytes().to_vec()),
            scales: Cow::Owned(scales),
            order: None,
        };
        let expected = [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0];
        assert_eq!(dequantise(&matrix).expect("consistent"), expected);
    }

    #[test]
    fn quantised_weights_come_back_within_half_a_level() {
        let (n_out, n_in, group) = (24, 96, 32);
        let weights: Vec<f32> = (0..n_out * n_in)
            .map(|i| ((i * 7919 % 1009) as f32 / 1009.0 - 0.4) * 0.3)
            .collect();
        let matrix = quantise(&weights, (n_out, n_in), group).expect("fits");
        let back = dequantise(&matrix).expect("consistent");
        // The range of a group is at most 0.3, so a level is at most 0.02; the zero point is
        // rounded too, which clamps the ends by up to half a level more.
        for (a, b) in weights.iter().zip(&back) {
            assert!((a - b).abs() <= 0.0205, "{a} came back as {b}");
        }
        let again = quantise(&back, (n_out, n_in), group).expect("fits");
        let twice = dequantise(&again).expect("consistent");
        let worst = back
            .iter()
            .zip(&twice)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-3, "levels moved by {worst} when quantised again");
    }

    #[test]
    fn shapes_that_do_not_pack_are_refused() {
        assert!(quantise(&[0.0; 7 * 8], (7, 8), 8).is_err());
        assert!(quantise(&[0.0; 8 * 8], (8, 8), 3).is_err());
        let mut matrix = quantise(&[0.5; 64], (8, 8), 8).expect("fits");
        matrix.scales = Cow::Owned(vec![0; 3]);
        assert!(dequantise(&matrix).is_err());
    }
}
