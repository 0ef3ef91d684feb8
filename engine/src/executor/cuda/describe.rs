//! How an executor describes itself in the log and in records.

use gpu::Device;
use kernels::qkv_prepare::cuda::KvFormat;
use kernels::stream_linear::LARGE_M_MIN;

use super::forward::{AttentionBackend, AttentionOptions, Forward};
use super::graphs::Graphs;
use super::tuning::{Tuned, describe_linear, describe_splits};
use super::{CudaOptions, DEVICE, Sampler};
use crate::executor::{ExecutorInfo, MemoryParts};

pub(super) fn describe(
    device: &Device,
    forward: &Forward,
    options: &CudaOptions,
    attention: &AttentionOptions,
    graphs: &Graphs,
    tuned: Option<&Tuned>,
    kv_pool_tokens: usize,
) -> ExecutorInfo {
    let properties = device.properties();
    let element = forward.element().name();
    let kv = if options.kv_format == KvFormat::Fp8E4m3 {
        "fp8_e4m3"
    } else {
        element
    };
    let reduce = if attention.reduce_in_fp32 {
        "fp32"
    } else {
        element
    };
    let mut kernels: Vec<(String, String)> = forward
        .linears()
        .map(|(name, linear)| (name.to_owned(), describe_linear(linear, tuned)))
        .collect();
    let (n_offloaded, offloaded_bytes) = forward.weights().offloaded();
    if n_offloaded > 0 {
        let gib = offloaded_bytes as f64 / (1u64 << 30) as f64;
        let what = format!(
            "{n_offloaded} of {} layers, {gib:.2} GiB of weights in the host's memory, read over the bus as they are used",
            forward.n_layers()
        );
        kernels.push(("cpu_offload".to_owned(), what));
    }
    if let Some(experts) = &forward.config().experts {
        let (n, active) = (experts.n_experts, experts.n_active);
        let what = format!("{active} of {n}, sorted by expert, router in f32");
        kernels.push(("experts".to_owned(), what));
    }
    if let Some(tuned) = tuned {
        let splits = describe_splits(forward, tuned);
        kernels.push(("attention_splits".to_owned(), splits));
        kernels.push(("tuning".to_owned(), tuned.describe()));
    }
    kernels.extend([
        (
            "attention".to_owned(),
            match attention.backend {
                AttentionBackend::Split => format!(
                    "decode_cluster_{kv}_{reduce}_splits{}",
                    attention.max_splits
                ),
                AttentionBackend::Packed => format!("packed_mma_{kv}"),
                AttentionBackend::Plain => format!("packed_plain_f32_{kv}"),
            },
        ),
        (
            "sampling".to_owned(),
            match options.sampler {
                Sampler::Device => "argmax, fused sampler",
                Sampler::Host => "argmax, host's reference sampler",
            }
            .to_owned(),
        ),
        (
            "overlap_schedule".to_owned(),
            if options.run_ahead { "on" } else { "off" }.to_owned(),
        ),
        (
            "two_batch_overlap".to_owned(),
            forward.describe_two_batches(),
        ),
        (
            "activations".to_owned(),
            if options.int8_activations {
                format!("{element}, int8 from {LARGE_M_MIN} rows on where weights are AWQ in groups of 128")
            } else {
                element.to_owned()
            },
        ),
        ("cuda_graph_bs".to_owned(), graphs.describe()),
        ("architecture".to_owned(), properties.architecture()),
    ]);
    if device.is_shared() {
        let what = "other processes may run kernels on this GPU; kernels with a grid-wide barrier are \
                    launched cooperatively";
        kernels.push(("multi_process_service".to_owned(), what.to_owned()));
    }
    if let Some(profile) = properties.profile {
        let what = format!(
            "{profile}: kernels, limits and launch shapes of another device; its times are not \
             predicted"
        );
        kernels.push(("card_profile".to_owned(), what));
    }
    ExecutorInfo {
        name: DEVICE.to_owned(),
        device: properties.name.clone(),
        kernels,
        inactive_flags: Vec::new(),
        kv_pool_tokens,
        kv_pool_bytes: forward.kv_bytes(),
        weight_bytes: forward.weight_bytes(),
        host_tier: None,
        memory: MemoryParts::default(),
    }
}
