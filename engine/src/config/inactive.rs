//! Which of the typed flags have nothing to act on, and why.

use super::aliases;
use super::typed::{AttentionBackend, Device, EngineArgs};

/// `(flag, reason)` of every typed flag that does nothing on `device` (which is `Cpu` or
/// `Cuda` by now).
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
        "streamed chunks carry only the new text anyway, and those of /generate always the text so far",
    );
    let needs_compile = "--enable-torch-compile was not given";
    note(
        typed.torch_compile_max_bs.is_some() && !typed.enable_torch_compile,
        "--torch-compile-max-bs",
        needs_compile,
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
    note(
        typed.disable_flashinfer && typed.sampling_backend.is_some(),
        "--disable-flashinfer",
        "flashinfer would not have been chosen: the sampler was named, and attention is triton's \
         unless flashinfer's is asked for",
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

fn note_unused_on_cuda(typed: &EngineArgs, note: &mut impl FnMut(bool, &str, &str)) {
    let no_splits = "only the attention backend triton splits contexts";
    let splits_nothing = typed
        .attention_backend
        .is_some_and(|backend| backend != AttentionBackend::Triton);
    let pass = "held to 64, the rows of a decode pass";
    let cluster = "held to 8, the blocks of the largest cluster that every card has";
    let splits = typed.triton_attention_num_kv_splits;
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
            "halves run side by side with the attention backend triton only",
        ),
    ] {
        note(was_typed, flag, reason);
    }
}

fn note_unused_on_cpu(typed: &EngineArgs, note: &mut impl FnMut(bool, &str, &str)) {
    note(
        typed.dtype.is_some(),
        "--dtype",
        "the CPU executor computes in fp32, and in int8 where --cpu-activations says so",
    );
    note(
        typed.activation_quantization.is_some(),
        "--activation-quantization",
        "on the CPU --cpu-activations says what is rounded",
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
    let compiled = "CPU kernels are compiled ahead of time";
    note(
        typed.enable_torch_compile,
        "--enable-torch-compile",
        compiled,
    );
    note(
        typed.enable_torch_compile && typed.torch_compile_max_bs.is_some(),
        "--torch-compile-max-bs",
        compiled,
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
        "the CPU executor runs on no card",
    );
    note(
        typed.disable_overlap_schedule,
        "--disable-overlap-schedule",
        "the CPU executor computes on the host, so its steps never overlap with the host's work",
    );
}
