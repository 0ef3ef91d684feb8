//! The planner and the choice of variants. What needs a GPU is in `tests_cuda.rs`.

use proptest::prelude::*;

use super::plan::check_plan;
use super::variant::check_variant;
use super::*;

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
