//! The packed layout against the matrices that it holds.

use std::collections::HashSet;

use half::f16;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::codes::{CodeSource, format_of, pack};
use super::reference::{AwqMatrix, CodeMatrix, Packed, pack_awq, pack_half, unpack};
use super::*;
use crate::cuda::Element;
use crate::quant_linear::pack::{TileCodes, layout_of, row_scales_of};
use crate::quant_linear::{BlockFormat, Offset, QuantSource};

fn random_awq(rng: &mut StdRng, n: usize, k: usize, group: usize) -> AwqMatrix {
    AwqMatrix {
        n,
        k,
        group,
        qweight: (0..k * n / 8).map(|_| rng.random()).collect(),
        qzeros: (0..k / group * n / 8).map(|_| rng.random()).collect(),
        scales: (0..k / group * n)
            .map(|_| f16::from_f32(rng.random_range(0.001..0.02)))
            .collect(),
    }
}

#[test]
fn the_packed_awq_layout_decodes_to_the_matrix() {
    let mut rng = StdRng::seed_from_u64(1);
    for group in [32, 64, 128] {
        for (n, k) in [(8, group), (16, 256), (24, 256 + group), (40, 512)] {
            let format = Format::awq(group).expect("a known group");
            for arrangement in [Arrangement::Stacked, Arrangement::GateUp] {
                let first_n = if arrangement == Arrangement::Stacked {
                    32
                } else {
                    n
                };
                let layout = Layout::new(format, arrangement, &[first_n, n], k).expect("fits");
                let parts = [
                    random_awq(&mut rng, first_n, k, group),
                    random_awq(&mut rng, n, k, group),
                ];
                let mut packed = Packed::zeroed(&layout);
                for (i, part) in parts.iter().enumerate() {
                    pack_awq(&layout, i, part, &mut packed);
                }
                for (i, part, element) in parts
                    .iter()
                    .enumerate()
                    .flat_map(|(i, part)| Element::ALL.map(|element| (i, part, element)))
                {
                    let values = unpack(&layout, i, &packed, element);
                    for column in 0..part.n {
                        for at in 0..layout.padded_k() {
                            let expected = if at < k { part.weight(column, at) } else { 0.0 };
                            let found = values[column * layout.padded_k() + at];
                            assert!(
                                (found - expected).abs() < 1e-12,
                                "{layout:?} {element:?} {i} {column} {at}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_packed_half_layout_decodes_to_the_matrix() {
    let mut rng = StdRng::seed_from_u64(2);
    for (n, k) in [(1, 1), (16, 64), (17, 65), (40, 200)] {
        let layout = Layout::new(Format::Half, Arrangement::Stacked, &[n], k).expect("fits");
        let element = Element::ALL[n % 2];
        let rows: Vec<u16> = (0..n * k)
            .map(|_| element.bits(rng.random_range(-1.0..1.0)))
            .collect();
        let mut packed = Packed::zeroed(&layout);
        pack_half(&layout, 0, &rows, &mut packed);
        let values = unpack(&layout, 0, &packed, element);
        for column in 0..n {
            for at in 0..layout.padded_k() {
                let expected = if at < k {
                    f64::from(element.value(rows[column * k + at]))
                } else {
                    0.0
                };
                assert_eq!(
                    values[column * layout.padded_k() + at].to_bits(),
                    f64::to_bits(expected),
                    "{n}x{k}: {column} {at}"
                );
            }
        }
    }
}

/// The numbers of a matrix in every format that is packed on the host, as the kernels read them.
#[test]
fn packed_codes_decode_to_the_matrix() {
    let mut rng = StdRng::seed_from_u64(4);
    for format in Format::ALL {
        let Some(group) = format.group().filter(|_| format.awq_group().is_none()) else {
            continue;
        };
        for (n, k) in [(1, group), (24, 128 + group), (40, 512)] {
            for arrangement in [Arrangement::Stacked, Arrangement::GateUp] {
                let first_n = if arrangement == Arrangement::Stacked {
                    32
                } else {
                    n
                };
                let layout = Layout::new(format, arrangement, &[first_n, n], k).expect("fits");
                let mut part = |n| CodeMatrix::random(format, (n, k), 0.01, || rng.random::<u32>());
                let parts = [part(first_n), part(n)];
                let mut packed = Packed::zeroed(&layout);
                for (i, part) in parts.iter().enumerate() {
                    pack(&layout, i, CodeSource::Codes(part), &mut packed).expect("packed");
                }
                for (i, part) in parts.iter().enumerate() {
                    for element in Element::ALL {
                        assert_decodes(&layout, i, &packed, element, |column, at| {
                            part.weight(column, at)
                        });
                    }
                }
            }
        }
    }
}

fn assert_decodes(
    layout: &Layout,
    part: usize,
    packed: &Packed,
    element: Element,
    weight: impl Fn(usize, usize) -> f64,
) {
    let values = unpack(layout, part, packed, element);
    for column in 0..layout.parts_n[part] {
        for at in 0..layout.padded_k() {
            let expected = if at < layout.k {
                weight(column, at)
            } else {
                0.0
            };
            let found = values[column * layout.padded_k() + at];
            assert!(
                (found - expected).abs() <= 0.0,
                "{layout:?} {element:?} {part} {column} {at}: {found} {expected}"
            );
        }
    }
}

/// Every ggml format and 8-bit integers, alone and beside others, decode to the CPU's weights.
#[test]
fn blocks_decode_to_what_the_cpu_multiplies() {
    let mut rng = StdRng::seed_from_u64(5);
    let (n, k) = (40, 512);
    let blocks = |rng: &mut StdRng, format: BlockFormat| {
        let mut bytes = vec![0u8; n * k / format.block_len() * format.block_bytes()];
        rng.fill(&mut bytes[..]);
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            let scales: &[usize] = match format {
                BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => {
                    &[0, 2]
                }
                BlockFormat::Q2K => &[80, 82],
                BlockFormat::Q3K => &[108],
                BlockFormat::Q6K => &[208],
                BlockFormat::Mxfp4 => {
                    block[0] = 120 + block[0] % 8;
                    &[]
                }
                _ => &[0],
            };
            for at in scales {
                block[at + 1] = block[at + 1] & 0x83 | 0x18;
            }
        }
        bytes
    };
    let mut n_checked = 0;
    for format in BlockFormat::ALL {
        let bytes = blocks(&mut rng, format);
        let source = QuantSource::Blocks {
            format,
            bytes: &bytes,
        };
        let values = cpu_weights(n, k, source);
        // Alone, and beside any other.
        let formats: HashSet<Format> = BlockFormat::ALL
            .iter()
            .filter_map(|other| format_of(&[format.layout(), other.layout()]))
            .collect();
        assert!(!formats.is_empty());
        for wider in formats {
            let layout = Layout::new(wider, Arrangement::Stacked, &[n], k).expect("fits");
            let mut packed = Packed::zeroed(&layout);
            pack(&layout, 0, CodeSource::Quant(source), &mut packed).expect("packed");
            assert_decodes(&layout, 0, &packed, Element::F16, |column, at| {
                values[column * k + at]
            });
            n_checked += 1;
        }
    }
    assert!(n_checked > 20, "{n_checked}");
}

/// In f64, of codes, scales and minima in the precision in which the CPU keeps them.
fn cpu_weights(n: usize, k: usize, source: QuantSource<'_>) -> Vec<f64> {
    let layout = layout_of(source, k);
    let row_scales = row_scales_of(source, n, k);
    let n_groups = k / layout.group;
    let mut values = Vec::new();
    for first in (0..n).step_by(16) {
        let mut tile = TileCodes::new(k, n_groups);
        tile.read(source, n, first, (n - first).min(16));
        for lane in 0..(n - first).min(16) {
            for at in 0..k {
                let group = lane * n_groups + at / layout.group;
                let half = |value: f32| f16::from_f32(value).to_f64();
                let row = row_scales
                    .as_ref()
                    .map_or(1.0, |s| f64::from(s[first + lane]));
                let code = f64::from(tile.codes[lane * k + at]);
                let weight = match layout.offset {
                    Offset::Zero(zero) => (code - f64::from(zero)) * half(tile.scales[group]),
                    _ => code * half(tile.scales[group]) + half(tile.mins[group]),
                };
                values.push(weight * row);
            }
        }
    }
    values
}

#[test]
fn fp8_decodes_with_scales_of_blocks_rows_and_matrices() {
    let mut rng = StdRng::seed_from_u64(6);
    let (n, k) = (24_usize, 300_usize);
    for group in [128, 256, 300] {
        let codes: Vec<u8> = (0..n * k).map(|_| rng.random::<u8>() & 0xbf).collect();
        let n_scales = k.div_ceil(group);
        let scales: Vec<f32> = (0..n * n_scales)
            .map(|_| rng.random_range(0.001..0.1))
            .collect();
        let source = CodeSource::Fp8 {
            codes: &codes,
            group,
            scales: &scales,
        };
        let layout = Layout::new(Format::Fp8, Arrangement::Stacked, &[n], k).expect("fits");
        let mut packed = Packed::zeroed(&layout);
        pack(&layout, 0, source, &mut packed).expect("packed");
        assert_decodes(&layout, 0, &packed, Element::F16, |column, at| {
            let value = f64::from(crate::lanes::e4m3::to_f32(codes[column * k + at]));
            value * f64::from(scales[column * n_scales + at / group])
        });
    }
}

/// Integers, and FP4 as twice its numbers, with the products of their scales in fp16.
#[test]
fn integers_and_fp4_decode_with_scales_in_fp16() {
    let mut rng = StdRng::seed_from_u64(7);
    let (n, k) = (24, 288);
    let half = |value: f32| f16::from_f32(value).to_f64();
    let mut bytes = |len: usize| -> Vec<u8> { (0..len).map(|_| rng.random()).collect() };
    let (codes, fp4) = (bytes(n * k), bytes(n * k / 2));
    let of_rows: Vec<f32> = (0..n).map(|i| 0.001 + 0.0001 * i as f32).collect();
    let of_sixteens: Vec<f32> = (0..n * k / 16).map(|i| 0.5 + (i % 7) as f32).collect();
    let packed = |format, source| {
        let layout = Layout::new(format, Arrangement::Stacked, &[n], k).expect("fits");
        let mut packed = Packed::zeroed(&layout);
        pack(&layout, 0, CodeSource::Quant(source), &mut packed).expect("packed");
        (layout, packed)
    };
    let source = QuantSource::Int8 {
        codes: &codes,
        scales: &of_rows,
    };
    let (layout, found) = packed(Format::BytesG32, source);
    assert_decodes(&layout, 0, &found, Element::F16, |column, at| {
        f64::from(codes[column * k + at].cast_signed()) * half(of_rows[column])
    });
    let factor = 0.001;
    let source = QuantSource::Fp4 {
        codes: &fp4,
        scales: &of_sixteens,
        factor,
    };
    let (layout, found) = packed(Format::BytesG16, source);
    assert_decodes(&layout, 0, &found, Element::F16, |column, at| {
        let twice = [0, 1, 2, 3, 4, 6, 8, 12].map(f64::from);
        let code = fp4[column * k / 2 + at / 2] >> (4 * (at % 2));
        let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
        let scale = of_sixteens[(column * k + at) / 16] * (factor / 2.0);
        sign * twice[usize::from(code & 7)] * half(scale)
    });
}

#[test]
fn sources_that_a_format_does_not_hold_are_refused() {
    let layout = |format| Layout::new(format, Arrangement::Stacked, &[16], 256).expect("fits");
    let refused = |format, source: CodeSource<'_>| {
        let layout = layout(format);
        let mut packed = Packed::zeroed(&layout);
        pack(&layout, 0, source, &mut packed)
            .expect_err("refused")
            .to_string()
    };
    let q6_k = vec![0; 16 * 210];
    let blocks = CodeSource::Quant(QuantSource::Blocks {
        format: BlockFormat::Q6K,
        bytes: &q6_k,
    });
    for format in [Format::Half, Format::AwqG128, Format::MinG32, Format::Fp8] {
        let text = refused(format, blocks);
        assert!(text.contains("does not hold these blocks"), "{text}");
    }
    let codes = vec![0; 16 * 256];
    let scaled = |group, scales| CodeSource::Fp8 {
        codes: &codes,
        group,
        scales,
    };
    assert!(refused(Format::BytesG32, scaled(128, &[1.0; 32])).contains("does not hold FP8"));
    assert!(refused(Format::Fp8, scaled(64, &[1.0; 64])).contains("columns under a scale is 64"));
    assert!(refused(Format::Fp8, scaled(128, &[1.0; 31])).contains("scales is 31"));
    assert!(refused(Format::Fp8, scaled(256, &[f32::INFINITY; 16])).contains("not finite"));
    assert_eq!(format_of(&[]), None);
    let awq = layout_of(
        QuantSource::Awq {
            group_size: 32,
            qweight: &[],
            qzeros: &[],
            scales: &[],
        },
        256,
    );
    assert_eq!(format_of(&[awq]), None);
}

/// Bits of a weight, scales included.
#[test]
fn formats_take_the_bits_that_the_table_says() {
    let bits = |format: Format| {
        let layout = Layout::new(format, Arrangement::Stacked, &[64], 512).expect("fits");
        8.0 * (layout.weight_bytes() + layout.scale_bytes()) as f64 / (64.0 * 512.0)
    };
    let expected = [
        4.15625, 4.3125, 4.625, 16.0, 5.0, 8.5, 9.0, 10.0, 8.25, 8.25,
    ];
    for (format, expected) in Format::ALL.into_iter().zip(expected) {
        assert!((bits(format) - expected).abs() < 1e-9, "{format:?}");
    }
}

#[test]
fn layouts_that_the_kernels_cannot_take_are_refused() {
    let text = |result: Result<Layout, KernelError>| result.expect_err("refused").to_string();
    let stacked = Arrangement::Stacked;
    assert!(text(Layout::new(Format::AwqG128, stacked, &[16], 200)).contains("k is 200"));
    assert!(text(Layout::new(Format::MinG32, stacked, &[12, 8], 64)).contains("columns is 12"));
    assert!(text(Layout::new(Format::BytesG32, stacked, &[16], 48)).contains("k is 48"));
    assert!(Layout::new(Format::Fp8, stacked, &[16], 200).is_ok());
    assert!(text(Layout::new(Format::Half, stacked, &[8, 8], 64)).contains("multiple of 16"));
    assert!(text(Layout::new(Format::Half, Arrangement::GateUp, &[8, 16], 64)).contains("up's"));
    assert!(text(Layout::new(Format::Half, stacked, &[], 64)).contains("parts is 0"));
    assert!(
        Format::awq(16)
            .expect_err("refused")
            .to_string()
            .contains("32, 64 or 128")
    );
}

/// What `dequantised` does in bf16, for scales of every size and all levels: the scale is two bf16,
/// and the small one's product is rounded before it is added. That rounding is 2^-8 of 2^-8, so a
/// weight is off by hardly more than the 2^-8 of rounding it alone.
#[test]
fn bf16_weights_are_rounded_once() {
    let bf16 = |x: f64| f64::from(Element::Bf16.round(x as f32));
    let mut worst = 0.0_f64;
    for scale in (0x0400..0x7c00_u16).step_by(7).map(f16::from_bits) {
        let exact = scale.to_f64();
        let (high, rest) = (bf16(exact), bf16(exact - bf16(exact)));
        assert!(
            (high + rest - exact).abs() <= 0.0,
            "{scale}: two bf16 hold an fp16"
        );
        for level in -15..=15 {
            let level = f64::from(level);
            let (found, expected) = (bf16(level * high + bf16(level * rest)), level * exact);
            worst = worst.max((found - expected).abs() / expected.abs().max(f64::MIN_POSITIVE));
        }
    }
    let bound = (1.0 + 1.0 / 128.0) / 256.0;
    assert!(
        worst <= bound && worst > 0.9 / 256.0,
        "{worst} against {bound}"
    );
}
