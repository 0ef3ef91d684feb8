//! Typed flags that have no effect, and why.

use super::aliases;
use super::typed::{AttentionBackend, Device, EngineArgs};

/// `(flag, reason)` for every typed flag without an effect on `device` (which is `Cpu` or `Cuda` at
/// this point).
pub fn inactive_flags(typed: &EngineArgs, device: Device) -> Vec<(String, String)> {
    let foreign = typed.no_effect.iter();
    let mut inactive: Vec<(String, String)> = foreign.map(|kept| aliases::reason(kept)).collect();
    let mut note = |was_typed: bool, flag: &str, reason: &str| {
        if was_typed {
            inactive.push((flag.to_owned(), reason.to_owned()));
        }
    };
    note(
        typed.trust_remote_code,
        "--trust-remote-code",
        "no model code is ever loaded, so there is nothing to trust",
    );
    note(
        typed.disable_custom_all_reduce,
        "--disable-custom-all-reduce",
        "one device has no all-reduce",
    );
    note(
        typed.stream_output,
        "--stream-output",
        "streamed chunks always carry only the new text, except those of /generate, which carry the text so far",
    );
    let needs_autotune = "--autotune was not given";
    note(
        typed.torch_compile_max_bs.is_some() && !typed.enable_torch_compile,
        "--torch-compile-max-bs",
        needs_autotune,
    );
    let needs_tier = "--enable-hierarchical-cache was not given";
    note(
        typed.hicache_ratio.is_some() && !typed.enable_hierarchical_cache,
        "--hicache-ratio",
        needs_tier,
    );
    note(
        typed.hicache_size.is_some() && !typed.enable_hierarchical_cache,
        "--hicache-size",
        needs_tier,
    );
    note(
        typed.enable_hierarchical_cache
            && typed.hicache_ratio.is_some()
            && typed.hicache_size.is_some(),
        "--hicache-ratio",
        "--hicache-size says how large the host tier is",
    );
    note_unused_drafts(typed, &mut note);
    note(
        typed.disable_flashinfer && typed.sampling_backend.is_some(),
        "--disable-flashinfer",
        "--sampling-backend was given, and attention is split-kv unless --attention-backend says \
         otherwise",
    );
    if device == Device::Cpu {
        note_unused_on_cpu(typed, &mut note);
    } else {
        let cpu_only = "the model runs on the GPU";
        note(typed.n_threads.is_some(), "--n-threads", cpu_only);
        note(typed.cpu_isa.is_some(), "--cpu-isa", cpu_only);
        note(
            typed.cpu_activations.is_some(),
            "--cpu-activations",
            cpu_only,
        );
        note_unused_on_cuda(typed, &mut note);
    }
    inactive
}

const OF_A_MODEL: &str = "STANDALONE,EAGLE3";

/// Flags of an algorithm that is not the one that drafts.
fn note_unused_drafts(typed: &EngineArgs, note: &mut impl FnMut(bool, &str, &str)) {
    let algorithm = typed
        .speculative_algorithm
        .as_deref()
        .map(str::to_uppercase);
    let is_off = "--speculative-algorithm was not given";
    for (was_typed, flag, of) in [
        (
            typed.speculative_num_draft_tokens.is_some(),
            "--speculative-num-draft-tokens",
            None,
        ),
        (
            typed.speculative_draft_model_path.is_some(),
            "--speculative-draft-model-path",
            Some(OF_A_MODEL),
        ),
        (
            typed.speculative_ngram_min_match_window_size.is_some(),
            "--speculative-ngram-min-match-window-size",
            Some("NGRAM"),
        ),
        (
            typed.speculative_ngram_max_match_window_size.is_some(),
            "--speculative-ngram-max-match-window-size",
            Some("NGRAM"),
        ),
        (
            typed.speculative_suffix_max_tree_depth.is_some(),
            "--speculative-suffix-max-tree-depth",
            Some("SUFFIX"),
        ),
        (
            typed.speculative_suffix_max_cached_requests.is_some(),
            "--speculative-suffix-max-cached-requests",
            Some("SUFFIX"),
        ),
        (
            typed.speculative_suffix_max_spec_factor.is_some(),
            "--speculative-suffix-max-spec-factor",
            Some("SUFFIX"),
        ),
        (
            typed.speculative_suffix_min_token_prob.is_some(),
            "--speculative-suffix-min-token-prob",
            Some("SUFFIX"),
        ),
    ] {
        note(was_typed && algorithm.is_none(), flag, is_off);
        let (Some(algorithm), Some(of)) = (algorithm.as_deref(), of) else {
            continue;
        };
        let reason = match of {
            "NGRAM" => "--speculative-algorithm is not NGRAM",
            OF_A_MODEL => "--speculative-algorithm is not STANDALONE or EAGLE3",
            _ => "--speculative-algorithm is not SUFFIX",
        };
        let is_used = of.split(',').any(|of| of == algorithm);
        note(was_typed && !is_used, flag, reason);
    }
}

fn note_unused_on_cuda(typed: &EngineArgs, note: &mut impl FnMut(bool, &str, &str)) {
    let no_splits = "only --attention-backend split-kv splits contexts";
    let splits_nothing = typed
        .attention_backend
        .is_some_and(|backend| backend != AttentionBackend::SplitKv);
    let pass = "held to 64, the rows of a decode pass";
    let cluster = "held to 8, the blocks of the largest cluster that every GPU supports";
    let splits = typed.triton_attention_num_kv_splits;
    let speculates = typed.speculative_algorithm.is_some() || typed.speculative_config.is_some();
    for (was_typed, flag, reason) in [
        (
            splits_nothing && splits.is_some(),
            "--triton-attention-num-kv-splits",
            no_splits,
        ),
        (
            splits_nothing && typed.triton_attention_reduce_in_fp32,
            "--triton-attention-reduce-in-fp32",
            no_splits,
        ),
        (
            !splits_nothing && splits.is_some_and(|n| n > 8),
            "--triton-attention-num-kv-splits",
            cluster,
        ),
        (
            typed.enable_torch_compile && typed.torch_compile_max_bs.is_some_and(|n| n > 64),
            "--torch-compile-max-bs",
            pass,
        ),
        (
            typed.enable_two_batch_overlap && splits_nothing,
            "--enable-two-batch-overlap",
            "only --attention-backend split-kv can run two halves of a batch concurrently",
        ),
        (
            typed.enable_two_batch_overlap && !splits_nothing && speculates,
            "--enable-two-batch-overlap",
            "with speculation, rows of one half read what rows of the other write",
        ),
    ] {
        note(was_typed, flag, reason);
    }
}

fn note_unused_on_cpu(typed: &EngineArgs, note: &mut impl FnMut(bool, &str, &str)) {
    note(
        typed.dtype.is_some(),
        "--dtype",
        "the CPU executor computes in fp32, and in int8 with --cpu-activations int8",
    );
    note(
        typed.activation_quantization.is_some(),
        "--activation-quantization",
        "on the CPU, use --cpu-activations",
    );
    note(
        typed.triton_attention_num_kv_splits.is_some(),
        "--triton-attention-num-kv-splits",
        "attention on the CPU splits no context",
    );
    note(
        typed.triton_attention_reduce_in_fp32,
        "--triton-attention-reduce-in-fp32",
        "attention on the CPU is computed in fp32 throughout",
    );
    note(
        typed.mem_fraction_static.is_some() && typed.device_memory_limit.is_none(),
        "--mem-fraction-static",
        "the CPU executor has no device memory to share out unless --device-memory-limit says how \
         much; its KV pool is sized by --max-total-tokens",
    );
    note(
        typed.cpu_offload_gb.is_some_and(|gib| gib > 0.0),
        "--cpu-offload-gb",
        "the CPU executor has all weights in the host's memory",
    );
    let nothing_to_time = "the CPU executor has one kernel for each shape";
    note(
        typed.enable_torch_compile,
        "--enable-torch-compile",
        nothing_to_time,
    );
    note(
        typed.enable_torch_compile && typed.torch_compile_max_bs.is_some(),
        "--torch-compile-max-bs",
        nothing_to_time,
    );
    let no_graph = "the CPU executor captures no graphs";
    note(typed.disable_cuda_graph, "--disable-cuda-graph", no_graph);
    note(
        typed.cuda_graph_max_bs.is_some(),
        "--cuda-graph-max-bs",
        no_graph,
    );
    note(!typed.cuda_graph_bs.is_empty(), "--cuda-graph-bs", no_graph);
    note(
        typed.enable_two_batch_overlap,
        "--enable-two-batch-overlap",
        "two halves of a batch would share the same cores, and read the weights twice",
    );
    note(
        typed.card_profile.is_some(),
        "--card-profile",
        "the CPU executor does not use a GPU",
    );
    note(
        typed.disable_overlap_schedule,
        "--disable-overlap-schedule",
        "the CPU executor computes on the host, so its steps never overlap with the host's work",
    );
}
