//! The packed layout against the AWQ matrix, and the planner. What needs a GPU is in
//! `tests_cuda.rs`.

use std::collections::HashSet;

use half::f16;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::codes::{CodeSource, format_of, pack};
use super::plan::check_plan;
use super::reference::{AwqMatrix, CodeMatrix, Packed, pack_awq, pack_half, unpack};
use super::variant::check_variant;
use super::*;
use crate::cuda::Element;
use crate::quant_linear::pack::{TileCodes, layout_of, row_scales_of};
use crate::quant_linear::{BlockFormat, Offset, QuantSource};

const H100: DeviceLimits = DeviceLimits {
    compute_major: 9,
    shared_bytes_per_block: 232_448,
    shared_bytes_per_multiprocessor: 233_472,
    reserved_shared_bytes_per_block: 1024,
    max_clusters: [132, 66, 33, 16],
};
const RTX_5090: DeviceLimits = DeviceLimits {
    compute_major: 12,
    shared_bytes_per_block: 101_376,
    shared_bytes_per_multiprocessor: 102_400,
    reserved_shared_bytes_per_block: 1024,
    max_clusters: [170, 85, 42, 20],
};

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

fn qwen3_32b(name: &str) -> Layout {
    let (arrangement, parts_n, k): (_, &[usize], _) = match name {
        "qkv" => (Arrangement::Stacked, &[8192, 1024, 1024], 5120),
        "o" => (Arrangement::Stacked, &[5120], 8192),
        "gate_up" => (Arrangement::GateUp, &[25_600, 25_600], 5120),
        _ => (Arrangement::Stacked, &[5120], 25_600),
    };
    Layout::new(Format::AwqG128, arrangement, parts_n, k).expect("fits")
}

/// What decode steps ran fastest with: one row on an H200 with two stages in all rings (156 tok/s; 151 with up to
/// six), 8 rows as fast with two as with three or four, and with other ranks never by more than 0.3 % faster
/// (`NOTES.md`).
#[test]
fn the_model_picks_what_steps_ran_fastest_with() {
    let measured = [
        (1, "qkv", 1, 2),
        (1, "o", 1, 2),
        (1, "gate_up", 1, 2),
        (1, "down", 2, 2),
        (8, "qkv", 1, 2),
        (8, "o", 1, 2),
        (8, "gate_up", 1, 2),
        (8, "down", 4, 2),
    ];
    let found = measured.map(|(m, name, ..)| {
        let plan = choose_plan(&qwen3_32b(name), m, &H100).expect("fits");
        (m, name, plan.n_ranks, plan.n_stages)
    });
    assert_eq!(found, measured);
}

/// Within sm_120's limits, timed on an H200: one stage and few phases at 8 rows (`NOTES.md`). For o and down at
/// 8 rows two ranks were fastest, too, but the choice depends on how many clusters of four a GPU holds.
#[test]
fn x_in_few_phases_is_preferred_to_deep_rings() {
    let h200_as_sm_120 = DeviceLimits {
        max_clusters: H100.max_clusters,
        ..RTX_5090
    };
    let measured = [
        (1, "gate_up", 1, 2, 1),
        (1, "qkv", 1, 2, 1),
        (1, "down", 2, 2, 1),
        (8, "gate_up", 1, 1, 2),
        (8, "qkv", 1, 1, 2),
    ];
    let found = measured.map(|(m, name, ..)| {
        let plan = choose_plan(&qwen3_32b(name), m, &h200_as_sm_120).expect("fits");
        (m, name, plan.n_ranks, plan.n_stages, plan.n_phases)
    });
    assert_eq!(found, measured);
}

#[test]
fn shared_memory_is_counted_region_by_region() {
    // 16 warps of 3 stages; one row of 20 chunks; 5 tiles of the busiest block.
    let plan = Plan {
        rows: RowBucket::Up8,
        n_ranks: 1,
        n_clusters: 132,
        n_stages: 3,
        phase_chunks: 20,
        n_phases: 1,
    };
    let (sums, factors, slots) = (20 * 2 * 8 * 4, 8 * 4, (5 + 16) * 16 * 2 * 4);
    let expected = 512 + 16 * 3 * (2048 + 80) + (20 * 512 + 64) + sums + factors + slots;
    assert_eq!(shared_bytes(&qwen3_32b("qkv"), &plan, 1, &H100), expected);
}

#[test]
fn every_projection_of_qwen3_32b_fits_both_cards() {
    for limits in [H100, RTX_5090] {
        for name in ["qkv", "o", "gate_up", "down"] {
            for m in 1..=MAX_ROWS {
                let layout = qwen3_32b(name);
                let plan = choose_plan(&layout, m, &limits).expect("fits");
                check_plan(&layout, &plan, m, &limits).expect("the planner's plans are valid");
            }
        }
    }
}

#[test]
fn plans_that_cannot_run_are_refused() {
    let layout = qwen3_32b("qkv");
    let good = choose_plan(&layout, 8, &H100).expect("fits");
    let refused = |plan: Plan, m| {
        check_plan(&layout, &plan, m, &H100)
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(good, 9).contains("rows is 9"));
    assert!(refused(Plan { n_ranks: 3, ..good }, 8).contains("ranks is 3"));
    assert!(
        refused(
            Plan {
                n_clusters: 641,
                ..good
            },
            8
        )
        .contains("clusters is 641")
    );
    assert!(
        refused(
            Plan {
                n_stages: 0,
                ..good
            },
            8
        )
        .contains("stages is 0")
    );
    assert!(
        refused(
            Plan {
                n_stages: 9,
                ..good
            },
            8
        )
        .contains("shared memory")
    );
    assert!(
        refused(
            Plan {
                n_phases: 7,
                ..good
            },
            8
        )
        .contains("phases is 7")
    );
    assert!(
        refused(
            Plan {
                phase_chunks: 0,
                ..good
            },
            8
        )
        .contains("phases")
    );
    assert!(choose_plan(&layout, 0, &H100).is_err() && choose_plan(&layout, 65, &H100).is_err());
}

proptest! {
    /// The kernel gives each cluster a range of tiles and each rank a range of chunks.
    #[test]
    fn any_shape_gets_a_plan_that_covers_it(
        n in 1_usize..4000, k in 1_usize..400, m in 1_usize..=64, format in 0_usize..9, is_pair: bool, is_5090: bool,
    ) {
        let format = Format::ALL[format];
        let m = m.min(format.max_stream_rows());
        let (n, k) = (n * 8, k * format.group().unwrap_or(64));
        let limits = if is_5090 { RTX_5090 } else { H100 };
        let layout = if is_pair {
            Layout::new(format, Arrangement::GateUp, &[n, n], k)
        } else {
            Layout::new(format, Arrangement::Stacked, &[n], k)
        }.expect("a valid shape");
        let plan = choose_plan(&layout, m, &limits);
        // Very wide matrices at 64 rows may not fit the small card; that is an error, not a plan.
        if let Ok(plan) = plan {
            let n_bytes = check_plan(&layout, &plan, m, &limits).expect("the planner's plans are valid");
            prop_assert!(n_bytes <= limits.shared_bytes_per_block);
            prop_assert!(plan.n_ranks * plan.n_phases * plan.phase_chunks >= layout.n_chunks);
        } else {
            prop_assert!(is_5090 && m > 16, "{layout:?} {m}");
        }
    }
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

const WGMMA: LoadedKernels = LoadedKernels {
    large_m: LargeM::Wgmma {
        exclusive_device: true,
    },
    int8: false,
};
const MMA: LoadedKernels = LoadedKernels {
    large_m: LargeM::Mma,
    int8: false,
};

fn names(variants: &[Variant]) -> Vec<String> {
    variants
        .iter()
        .filter(|variant| !matches!(variant, Variant::Stream(_)))
        .map(ToString::to_string)
        .collect()
}

#[test]
fn the_rule_for_the_kernel_goes_by_rows_and_card() {
    let layout = qwen3_32b("o");
    let rule = |m, limits: &DeviceLimits, large_m| {
        default_variant(&layout, m, limits, large_m).expect("a kernel")
    };
    for large_m in [WGMMA, MMA] {
        let plan = choose_plan(&layout, 8, &H100).expect("fits");
        assert_eq!(rule(8, &H100, large_m), Variant::Stream(plan));
    }
    for (m, rows) in [
        (9, 24),
        (24, 24),
        (25, 32),
        (33, 64),
        (65, 128),
        (1024, 128),
    ] {
        assert_eq!(rule(m, &H100, WGMMA), Variant::Wgmma { rows }, "{m}");
    }
    for (m, rows) in [
        (9, 16),
        (16, 16),
        (17, 24),
        (25, 32),
        (33, 64),
        (65, 128),
        (1024, 128),
    ] {
        assert_eq!(rule(m, &RTX_5090, MMA), Variant::Mma { rows }, "{m}");
    }
}

/// `mma.cu` takes rows in tiles of formats that `wgmma.cu` does not have, on every GPU.
#[test]
fn formats_without_wgmma_are_multiplied_by_mma() {
    for format in Format::ALL.into_iter().filter(|format| !format.has_wgmma()) {
        let layout = Layout::new(format, Arrangement::Stacked, &[5120], 5120).expect("fits");
        for (limits, loaded) in [(H100, WGMMA), (RTX_5090, MMA)] {
            let rule = |m| default_variant(&layout, m, &limits, loaded).expect("a kernel");
            assert!(matches!(rule(8), Variant::Stream(_)));
            for (m, rows) in [(9, 24), (24, 24), (25, 64), (64, 64), (1024, 128)] {
                assert_eq!(rule(m), Variant::Mma { rows }, "{format:?} {m}");
            }
            for m in 1..=MAX_ROWS {
                for variant in candidates(&layout, m, &limits, loaded).expect("some") {
                    check_variant(&layout, variant, m, &limits, loaded).expect("can run");
                }
            }
            let refused = |variant| {
                check_variant(&layout, variant, 16, &limits, loaded)
                    .expect_err("refused")
                    .to_string()
            };
            assert!(refused(Variant::Wgmma { rows: 24 }).contains("no kernel `wgmma 24`"));
            assert!(refused(Variant::Mma { rows: 16 }).contains("no kernel `mma 16`"));
            let error = choose_plan(&layout, 17, &limits).expect_err("no variant");
            assert!(error.to_string().contains("1 to 16"), "{error}");
        }
    }
}

#[test]
fn candidates_begin_with_the_default_and_can_all_run() {
    for (limits, large_m) in [(H100, WGMMA), (RTX_5090, MMA)] {
        for name in ["qkv", "o", "gate_up", "down"] {
            let layout = qwen3_32b(name);
            for m in 1..=MAX_ROWS {
                let found = candidates(&layout, m, &limits, large_m).expect("some");
                let default = default_variant(&layout, m, &limits, large_m).expect("a kernel");
                assert_eq!(found[0], default);
                assert!((2..=15).contains(&found.len()), "{m}: {found:?}");
                for (i, variant) in found.iter().enumerate() {
                    assert!(!found[..i].contains(variant), "{variant} twice");
                    check_variant(&layout, *variant, m, &limits, large_m).expect("can run");
                }
            }
        }
    }
}

#[test]
fn candidates_of_a_card_are_its_own_kernels() {
    let layout = qwen3_32b("down");
    let of = |m, large_m| names(&candidates(&layout, m, &H100, large_m).expect("some"));
    assert!(of(8, WGMMA).is_empty() && of(8, MMA).is_empty());
    assert_eq!(of(9, WGMMA), ["wgmma 24", "wgmma 32"]);
    assert_eq!(of(20, WGMMA), ["wgmma 24", "wgmma 32"]);
    assert_eq!(of(33, WGMMA), ["wgmma 64", "wgmma 24", "wgmma 32"]);
    assert_eq!(of(64, WGMMA), ["wgmma 64", "wgmma 24", "wgmma 32"]);
    assert_eq!(of(9, MMA), ["mma 16", "mma 24", "mma 32"]);
    assert_eq!(of(20, MMA), ["mma 24", "mma 16", "mma 32"]);
    assert_eq!(of(64, MMA), ["mma 64", "mma 16", "mma 24", "mma 32"]);
    // Rows in tiles have no streaming kernel.
    for large_m in [WGMMA, MMA] {
        let many = candidates(&layout, 20, &H100, large_m).expect("some");
        assert!(many.iter().all(|variant| variant.is_tiled()));
    }
    assert!(candidates(&layout, 65, &H100, WGMMA).is_err());
    assert!(candidates(&layout, 0, &H100, WGMMA).is_err());
}

#[test]
fn variants_that_are_not_loaded_are_refused() {
    let layout = qwen3_32b("o");
    let refused = |variant, large_m| {
        check_variant(&layout, variant, 20, &H100, large_m)
            .expect_err("refused")
            .to_string()
    };
    let mma = Variant::Mma { rows: 32 };
    assert!(refused(mma, WGMMA).contains("no kernel `mma 32` for 20 rows"));
    let wgmma = Variant::Wgmma { rows: 24 };
    assert!(refused(wgmma, MMA).contains("no kernel `wgmma 24`"));
    assert!(refused(Variant::Wgmma { rows: 25 }, WGMMA).contains("`wgmma 25`"));
    let plan = choose_plan(&layout, 8, &H100).expect("fits");
    assert!(refused(Variant::Stream(plan), WGMMA).contains("rows is 20"));
}

#[test]
fn eight_bit_activations_are_for_awq_in_groups_of_128_and_many_rows() {
    let int8 = LoadedKernels { int8: true, ..MMA };
    let layout = qwen3_32b("down");
    let rule = |m| default_variant(&layout, m, &RTX_5090, int8).expect("a kernel");
    assert!(matches!(rule(8), Variant::Stream(_)));
    assert_eq!(rule(16), Variant::Mma { rows: 16 });
    for (m, rows) in [(17, 32), (32, 32), (33, 64), (1024, 64)] {
        assert_eq!(rule(m), Variant::MmaInt8 { rows }, "{m}");
    }
    // One that rounds x and one that does not never take each other's place.
    let of = |m| names(&candidates(&layout, m, &RTX_5090, int8).expect("some"));
    assert_eq!(of(20), ["mma int8 32", "mma int8 64"]);
    assert_eq!(of(64), ["mma int8 64"]);
    assert_eq!(of(16), ["mma 16", "mma 24", "mma 32"]);
    let check = |loaded, m| {
        let variant = Variant::MmaInt8 { rows: 32 };
        check_variant(&layout, variant, m, &RTX_5090, loaded)
    };
    assert!(check(int8, 20).is_ok() && check(int8, 16).is_err() && check(MMA, 20).is_err());
    let half = Layout::new(Format::Half, Arrangement::Stacked, &[5120], 5120).expect("fits");
    let of_half = default_variant(&half, 64, &RTX_5090, int8).expect("a kernel");
    assert_eq!(of_half, Variant::Mma { rows: 64 });
}
