//! Which of the typed flags have nothing to act on, and why.

use super::typed::{Device, EngineArgs};

/// `(flag, reason)` of every typed flag that does nothing on `device` (which is `Cpu` or
/// `Cuda` by now).
pub fn inactive_flags(typed: &EngineArgs, device: Device) -> Vec<(String, String)> {
    let mut inactive = Vec::new();
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
        "streamed chunks carry only the new text anyway",
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
    let one_kernel = "the CUDA executor has one attention kernel";
    let pass = "held to 64, the rows of a decode pass";
    let no_tier = "the CUDA executor does not move KV pages to the host";
    let one_stream = "the CUDA executor runs one stream";
    let cluster = "held to 8, the blocks of the largest cluster that every card has";
    let splits = typed.triton_attention_num_kv_splits;
    let tier = typed.enable_hierarchical_cache;
    for (was_typed, flag, reason) in [
        (
            typed.attention_backend.is_some(),
            "--attention-backend",
            one_kernel,
        ),
        // Alone it chooses the sampler.
        (
            typed.disable_flashinfer && typed.sampling_backend.is_some(),
            "--disable-flashinfer",
            one_kernel,
        ),
        (
            splits.is_some_and(|n| n > 8),
            "--triton-attention-num-kv-splits",
            cluster,
        ),
        (
            typed.enable_torch_compile && typed.torch_compile_max_bs.is_some_and(|n| n > 64),
            "--torch-compile-max-bs",
            pass,
        ),
        (tier, "--enable-hierarchical-cache", no_tier),
        (
            tier && typed.hicache_ratio.is_some(),
            "--hicache-ratio",
            no_tier,
        ),
        (
            tier && typed.hicache_size.is_some(),
            "--hicache-size",
            no_tier,
        ),
        (
            typed.enable_two_batch_overlap,
            "--enable-two-batch-overlap",
            one_stream,
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
    let one_kernel = "the CPU executor has one attention kernel";
    note(
        typed.attention_backend.is_some(),
        "--attention-backend",
        one_kernel,
    );
    note(
        typed.triton_attention_num_kv_splits.is_some(),
        "--triton-attention-num-kv-splits",
        one_kernel,
    );
    note(
        typed.triton_attention_reduce_in_fp32,
        "--triton-attention-reduce-in-fp32",
        "attention on the CPU is computed in fp32 throughout",
    );
    note(
        typed.sampling_backend.is_some(),
        "--sampling-backend",
        "the CPU executor has one sampler",
    );
    note(
        typed.disable_flashinfer,
        "--disable-flashinfer",
        "the CPU executor has no flashinfer",
    );
    let no_budget = "the CPU executor has no device memory to share out; its KV pool is sized by \
                     --max-total-tokens";
    note(
        typed.mem_fraction_static.is_some(),
        "--mem-fraction-static",
        no_budget,
    );
    note(
        typed.device_memory_limit.is_some(),
        "--device-memory-limit",
        no_budget,
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
    let no_tier = "KV pages are in host memory already";
    note(
        typed.enable_hierarchical_cache,
        "--enable-hierarchical-cache",
        no_tier,
    );
    note(
        typed.enable_hierarchical_cache && typed.hicache_ratio.is_some(),
        "--hicache-ratio",
        no_tier,
    );
    note(
        typed.enable_hierarchical_cache && typed.hicache_size.is_some(),
        "--hicache-size",
        no_tier,
    );
    note(
        typed.enable_two_batch_overlap,
        "--enable-two-batch-overlap",
        "the CPU executor has no streams to overlap",
    );
    note(
        typed.disable_overlap_schedule,
        "--disable-overlap-schedule",
        "the CPU executor computes on the host, so its steps never overlap with the host's work",
    );
}
