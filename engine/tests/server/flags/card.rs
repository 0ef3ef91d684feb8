//! Flags of the GPU, on one.

use engine::model::config::Family;
use engine::weights::fixture::{FolderFormat, wide_config};

use super::fixture::{Model, kernel};

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn card_flags_change_kernels_memory_and_graphs() {
    let format = FolderFormat::Awq { group_size: 128 };
    let model = Model::of(&wide_config(Family::Qwen3), format);
    let info = |flags: &str| model.executor_info(&format!("--device cuda {flags}"));
    let plain = info("");
    let other_kernel = |role: &str, flags: &str, part: &str| {
        let changed = info(flags);
        let found = kernel(&changed, role);
        assert!(found.contains(part), "{flags}: {found}");
        assert_ne!(found, kernel(&plain, role), "{flags}");
    };
    other_kernel("attention", "--triton-attention-num-kv-splits 4", "splits4");
    other_kernel("attention", "--triton-attention-reduce-in-fp32", "fp32");
    other_kernel("attention", "--kv-cache-dtype fp8_e4m3", "fp8_e4m3");
    other_kernel("attention", "--attention-backend flashinfer", "packed_mma");
    other_kernel("attention", "--attention-backend torch_native", "plain");
    other_kernel(
        "activations",
        "--activation-quantization int8",
        "int8 from 17 rows on",
    );
    other_kernel("sampling", "--sampling-backend pytorch", "host's");
    other_kernel("sampling", "--disable-flashinfer", "host's");
    other_kernel(
        "two_batch_overlap",
        "--enable-two-batch-overlap",
        "batches of",
    );
    assert_eq!(plain.host_tier, None);
    let tier = info("--enable-hierarchical-cache --hicache-ratio 0.5").host_tier;
    let n_pool_pages = plain.kv_pool_tokens / 16;
    assert_eq!(tier.map(|tier| tier.n_pages), Some(n_pool_pages / 2));
    for flags in [
        "--disable-cuda-graph",
        "--cuda-graph-max-bs 4",
        "--cuda-graph-bs 1 2",
    ] {
        other_kernel("cuda_graph_bs", flags, "");
    }
    let fp8 = info("--kv-cache-dtype fp8_e4m3");
    assert_eq!(fp8.kv_pool_bytes * 2, plain.kv_pool_bytes);

    let pool_tokens = |flags: &str| {
        model
            .executor_info_by_memory(&format!("--device cuda {flags}"))
            .kv_pool_tokens
    };
    let limited = pool_tokens("--device-memory-limit 4GiB");
    assert!(limited < pool_tokens("--device-memory-limit 6GiB"));
    let fraction = "--device-memory-limit 4GiB --mem-fraction-static 0.5";
    assert!(pool_tokens(fraction) < limited);
}

#[test]
#[ignore = "needs a GPU: run with --ignored on a machine with one"]
fn card_profile_runs_the_kernels_of_another_chip_and_says_so() {
    let format = FolderFormat::Awq { group_size: 128 };
    let model = Model::of(&wide_config(Family::Qwen3), format);
    let info = model.executor_info("--device cuda --card-profile sm_120:60");
    assert!(
        info.device.ends_with("(card profile sm_120:60)"),
        "{}",
        info.device
    );
    assert_eq!(kernel(&info, "architecture"), "sm_120");
    let described = kernel(&info, "card_profile");
    assert!(described.starts_with("sm_120:60:"), "{described}");
    assert!(described.contains("another device"), "{described}");
    for (role, name) in &info.kernels {
        assert!(!name.contains("wgmma"), "{role}: {name}");
    }
}
