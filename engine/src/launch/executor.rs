//! Chooses the executor and converts the flags to its options.

use super::draft_model::DraftHead;
use super::model::cache_dir;
use super::{LaunchError, cpu_memory};
use crate::config::EngineConfig;
use crate::config::resolved::CudaGraph;
use crate::config::typed::{self, AttentionBackend, Device, Dtype, KvCacheDtype, SamplingBackend};
use crate::executor::cpu::{self, ActivationType, Attention, CpuExecutor, CpuOptions, Sampling};
use crate::executor::cuda::{
    self, CudaExecutor, CudaOptions, Element, GraphSizes, KvFormat, Sampler, TuningOptions,
};
use crate::executor::{Executor, ExecutorInfo, HostTierOptions, host_memory};
use crate::kv::PAGE_TOKENS;
use crate::weights::format::MatrixFormat;
use crate::weights::{Checkpoint, ElementFormat, MatrixId, WeightError};

/// The default KV pool takes at most this share of the free memory, and at most the following
/// amount; `--max-total-tokens` overrides both.
const POOL_SHARE_OF_FREE_MEMORY: u64 = 4;
const MAX_DEFAULT_POOL_BYTES: u64 = 1 << 30;
/// Assumed free memory if the system does not report it.
const ASSUMED_FREE_BYTES: u64 = 2 << 30;

/// Chooses the device, logs why, and loads the model there.
///
/// # Errors
///
/// [`LaunchError::NoCuda`] if a GPU is asked for and cannot be used, [`LaunchError::Cuda`] or
/// [`LaunchError::Cpu`] if the model cannot be loaded there, [`LaunchError::Isa`] if there is no
/// such instruction set, [`LaunchError::CpuMemory`] if the memory does not suffice.
pub fn load_executor(
    config: &EngineConfig,
    checkpoint: &dyn Checkpoint,
) -> Result<Box<dyn Executor>, LaunchError> {
    match choose_device(config) {
        Device::Cuda => load_cuda(config, checkpoint),
        Device::Cpu | Device::Auto => load_cpu(config, checkpoint, 0, None),
    }
}

/// `Cpu` or `Cuda`.
pub(super) fn choose_device(config: &EngineConfig) -> Device {
    let reason = match config.device {
        Device::Cpu => "--device cpu".to_owned(),
        Device::Cuda => return Device::Cuda,
        Device::Auto => match CudaExecutor::unavailable() {
            None => {
                tracing::info!(reason = "a CUDA device is available", "running on the GPU");
                return Device::Cuda;
            }
            Some(reason) => reason,
        },
    };
    tracing::info!(reason, "running on the CPU");
    Device::Cpu
}

pub(super) fn load_cuda(
    config: &EngineConfig,
    checkpoint: &dyn Checkpoint,
) -> Result<Box<dyn Executor>, LaunchError> {
    if let Some(reason) = CudaExecutor::unavailable() {
        return Err(LaunchError::NoCuda { reason });
    }
    let element = element(config.dtype, checkpoint)?;
    let options = CudaOptions {
        ordinal: 0,
        card_profile: config.card_profile,
        memory_limit_bytes: config.device_memory_limit_bytes,
        cpu_offload_bytes: config.cpu_offload_bytes,
        mem_fraction_static: config.mem_fraction_static,
        max_total_tokens: config.max_total_tokens,
        context_length: config.context_length,
        element,
        int8_activations: config.activation_quantization == typed::ActivationQuantization::Int8,
        kv_format: match config.kv_cache_dtype {
            KvCacheDtype::Auto => KvFormat::of(element),
            KvCacheDtype::Fp8E4m3 => KvFormat::Fp8E4m3,
        },
        attention_backend: match config.attention_backend {
            Some(AttentionBackend::SplitKv) | None => cuda::AttentionBackend::Split,
            Some(AttentionBackend::PackedMma) => cuda::AttentionBackend::Packed,
            Some(AttentionBackend::Reference) => cuda::AttentionBackend::Plain,
        },
        host_tier: host_tier(config),
        n_kv_splits: config.num_kv_splits,
        reduce_in_fp32: config.reduce_in_fp32,
        graphs: GraphSizes::from(&config.cuda_graph),
        tuning: match config.torch_compile_max_bs {
            Some(max_rows) => Some(TuningOptions {
                max_rows,
                cache_dir: Some(cache_dir(config.cache_dir.as_ref())?),
            }),
            None => None,
        },
        sampler: match config.sampling_backend {
            SamplingBackend::Device => Sampler::Device,
            SamplingBackend::Host => Sampler::Host,
        },
        run_ahead: config.overlap_schedule,
        two_batch_overlap: config.two_batch_overlap,
        n_draft_tokens: config.speculation.map_or(0, |s| s.n_draft_tokens),
    };
    Ok(Box::new(CudaExecutor::load(checkpoint, &options)?))
}

impl From<&CudaGraph> for GraphSizes {
    fn from(asked: &CudaGraph) -> Self {
        match asked {
            CudaGraph::Off => Self::Off,
            CudaGraph::Auto { max_bs } => Self::UpTo(max_bs.unwrap_or(usize::MAX)),
            CudaGraph::Sizes(sizes) => Self::Exactly(sizes.clone()),
        }
    }
}

/// Resolves `--dtype` for this checkpoint. bf16 matrices may exceed the range of fp16; AWQ's scales
/// are fp16, and so are those of GGUF's quantised blocks.
fn element(asked: Dtype, checkpoint: &dyn Checkpoint) -> Result<Element, WeightError> {
    let is_bf16 = match asked {
        Dtype::Float16 => false,
        Dtype::Bfloat16 => true,
        Dtype::Auto => {
            let stored = checkpoint.storage(MatrixId::Q(0))?.format;
            stored == MatrixFormat::Rows(ElementFormat::BF16)
        }
    };
    Ok(if is_bf16 { Element::Bf16 } else { Element::F16 })
}

/// `in_use`: bytes of `--device-memory-limit` that other models use.
pub(super) fn load_cpu(
    config: &EngineConfig,
    checkpoint: &dyn Checkpoint,
    in_use: u64,
    draft_head: Option<&DraftHead>,
) -> Result<Box<dyn Executor>, LaunchError> {
    let isa = match &config.cpu_isa {
        None => None,
        Some(asked) => {
            Some(
                asked
                    .parse()
                    .map_err(|error: kernels::KernelError| LaunchError::Isa {
                        asked: asked.clone(),
                        reason: error.to_string(),
                    })?,
            )
        }
    };
    let options = CpuOptions {
        n_threads: config.n_threads,
        kv_pool_tokens: cpu_pool_tokens(config, checkpoint, in_use)?,
        kv_format: cpu_kv_format(config),
        host_tier: host_tier(config),
        attention: match config.attention_backend {
            Some(AttentionBackend::Reference) => Attention::Reference,
            // One kernel serves both.
            Some(AttentionBackend::SplitKv | AttentionBackend::PackedMma) | None => {
                Attention::Vectorised
            }
        },
        sampling: match config.sampling_backend {
            SamplingBackend::Device => Sampling::Selecting,
            SamplingBackend::Host => Sampling::Plain,
        },
        isa,
        activations: match config.cpu_activations {
            typed::CpuActivations::F32 => ActivationType::F32,
            typed::CpuActivations::Int8 => ActivationType::Int8,
        },
        ..CpuOptions::default()
    };
    let mut executor = CpuExecutor::load(checkpoint, options)?;
    if let Some(head) = draft_head {
        head.add_to(&mut executor)?;
    }
    Ok(Box::new(executor))
}

fn host_tier(config: &EngineConfig) -> Option<HostTierOptions> {
    let size = config.hierarchical_cache?.into();
    let free_bytes = host_memory::free_bytes().unwrap_or(ASSUMED_FREE_BYTES);
    Some(HostTierOptions { size, free_bytes })
}

fn cpu_kv_format(config: &EngineConfig) -> cpu::KvFormat {
    match config.kv_cache_dtype {
        KvCacheDtype::Auto => cpu::KvFormat::F16,
        KvCacheDtype::Fp8E4m3 => cpu::KvFormat::Fp8E4m3,
    }
}

/// `--max-total-tokens`; otherwise as many tokens as fit the default share of the memory, limited
/// to what 16 sequences of the model's full length could use. With `--device-memory-limit`, limited
/// to the model's fraction of it.
fn cpu_pool_tokens(
    config: &EngineConfig,
    checkpoint: &dyn Checkpoint,
    in_use: u64,
) -> Result<usize, LaunchError> {
    let model = checkpoint.config();
    let n_values = 2 * model.n_layers * model.n_kv_heads * model.head_dim;
    let token_bytes = (n_values * cpu_kv_format(config).bytes_per_value()) as u64;
    let by_default = || {
        let free = host_memory::free_bytes().unwrap_or(ASSUMED_FREE_BYTES);
        let budget = (free / POOL_SHARE_OF_FREE_MEMORY).min(MAX_DEFAULT_POOL_BYTES);
        let fits = (budget / token_bytes.max(1)) as usize;
        fits.min(model.context_length.saturating_mul(16))
            .max(PAGE_TOKENS)
    };
    let Some(limit) = config.device_memory_limit_bytes else {
        let pool_tokens = config.max_total_tokens.unwrap_or_else(by_default);
        // If the system does not report free memory, nothing is refused.
        if let Some(free) = host_memory::free_bytes() {
            let weights = cpu_memory::weight_bytes(checkpoint)?;
            cpu_memory::fits_the_host(free, weights, pool_tokens, token_bytes)
                .map_err(LaunchError::CpuMemory)?;
        }
        return Ok(pool_tokens);
    };
    let demand = cpu_memory::Demand {
        limit,
        in_use,
        mem_fraction_static: config.mem_fraction_static,
        weights: cpu_memory::weight_bytes(checkpoint)?,
        page: token_bytes * PAGE_TOKENS as u64,
        max_total_tokens: config.max_total_tokens,
    };
    let fits = cpu_memory::pool_tokens(&demand).map_err(LaunchError::CpuMemory)?;
    Ok(config
        .max_total_tokens
        .unwrap_or_else(|| fits.min(by_default())))
}

pub(super) fn log_executor(info: &ExecutorInfo) {
    let kernels: Vec<String> = info
        .kernels
        .iter()
        .map(|(role, name)| format!("{role}={name}"))
        .collect();
    tracing::info!(
        executor = info.name,
        device = info.device,
        kernels = kernels.join(" "),
        kv_pool_tokens = info.kv_pool_tokens,
        kv_pool_bytes = info.kv_pool_bytes,
        weight_bytes = info.weight_bytes,
        "executor ready"
    );
    for (flag, reason) in &info.inactive_flags {
        tracing::info!(flag, reason, "flag has no effect");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Family;
    use crate::weights::fixture::{self, FolderFormat};
    use crate::weights::safetensors::SafetensorsCheckpoint;
    use crate::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};

    fn dummy(format: SyntheticFormat) -> SyntheticCheckpoint {
        SyntheticCheckpoint::new(fixture::wide_config(Family::Qwen3), format, 0)
    }

    #[test]
    fn activations_are_bf16_where_the_matrices_are_or_where_it_is_asked() {
        let awq = dummy(SyntheticFormat::Awq { group_size: 128 });
        let f16 = dummy(SyntheticFormat::Rows(ElementFormat::F16));
        let bf16 = dummy(SyntheticFormat::Rows(ElementFormat::BF16));
        let chosen = |asked, checkpoint| element(asked, checkpoint).expect("known");
        for (checkpoint, auto) in [
            (&awq, Element::F16),
            (&f16, Element::F16),
            (&bf16, Element::Bf16),
        ] {
            assert_eq!(chosen(Dtype::Auto, checkpoint), auto);
            assert_eq!(chosen(Dtype::Float16, checkpoint), Element::F16);
            assert_eq!(chosen(Dtype::Bfloat16, checkpoint), Element::Bf16);
        }
    }

    #[test]
    fn a_folder_says_by_its_tensors_what_activations_are() {
        for (format, auto) in [
            (FolderFormat::BF16, Element::Bf16),
            (FolderFormat::F16, Element::F16),
            (FolderFormat::F32, Element::F16),
            (FolderFormat::Awq { group_size: 32 }, Element::F16),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            let config = fixture::wide_config(Family::Llama);
            fixture::write_folder(dir.path(), &config, format, 7, 1).expect("written");
            let checkpoint = SafetensorsCheckpoint::open(dir.path()).expect("opens");
            assert_eq!(
                element(Dtype::Auto, &checkpoint).expect("known"),
                auto,
                "{format:?}"
            );
        }
    }
}
