//! Options of the CPU executor, as given and as validated.

use kernels::Isa;
use kernels::attention::KvFormat;

use super::CpuLoadError;
use crate::executor::HostTierOptions;

/// Names an instruction set for the whole process; an explicit option takes precedence.
pub const ISA_VARIABLE: &str = "ENGINE_CPU_ISA";

/// The activation type for products with quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActivationType {
    /// 8-bit integers with one scale for each 16 values: fast. The inputs of q, k and v are the sum
    /// of two such terms.
    #[default]
    Int8,
    /// f32: no rounding beyond the checkpoint's own.
    F32,
}

impl ActivationType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::F32 => "f32",
        }
    }
}

/// The attention kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Attention {
    /// Eight queries at once, vectorised in f32.
    #[default]
    Vectorised,
    /// The plain kernel in f64, one key after the other: slow.
    Reference,
}

/// The sampler. Both choose the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sampling {
    /// Rows spread over the threads, partial selection instead of a sort.
    #[default]
    Selecting,
    /// One row after the other; the vocabulary is sorted.
    Plain,
}

#[derive(Debug, Clone)]
pub struct CpuOptions {
    /// 0 uses every core available to this process.
    pub n_threads: usize,
    /// Rounded up to whole pages.
    pub kv_pool_tokens: usize,
    pub kv_format: KvFormat,
    /// Where evicted KV pages go.
    pub host_tier: Option<HostTierOptions>,
    pub attention: Attention,
    pub sampling: Sampling,
    /// Unset: `ENGINE_CPU_ISA` if set, otherwise the best instruction set of the CPU.
    pub isa: Option<Isa>,
    pub activations: ActivationType,
    /// Tokens that go through the layers together; longer steps are split, with the same result.
    /// Bounds the working memory and keeps it in the cache.
    pub max_pass_tokens: usize,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            n_threads: 0,
            kv_pool_tokens: 8192,
            kv_format: KvFormat::F16,
            host_tier: None,
            attention: Attention::default(),
            sampling: Sampling::default(),
            isa: None,
            activations: ActivationType::default(),
            max_pass_tokens: 256,
        }
    }
}

/// Validated options.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub n_threads: usize,
    pub kv_pool_tokens: usize,
    pub kv_format: KvFormat,
    pub host_tier: Option<HostTierOptions>,
    pub attention: Attention,
    pub sampling: Sampling,
    pub isa: Isa,
    pub activations: ActivationType,
    pub max_pass_tokens: usize,
}

impl CpuOptions {
    pub(super) fn validate(&self) -> Result<Settings, CpuLoadError> {
        let kernel = |source| CpuLoadError::Kernel {
            what: ISA_VARIABLE.to_owned(),
            source,
        };
        let isa = match (self.isa, std::env::var(ISA_VARIABLE)) {
            (Some(isa), _) => isa,
            (None, Ok(name)) => name.parse().map_err(kernel)?,
            (None, Err(_)) => Isa::detect(),
        };
        let at_least_one = |name, value: usize| {
            if value > 0 {
                return Ok(value);
            }
            Err(CpuLoadError::Option {
                name,
                value,
                limit: "above 0".to_owned(),
            })
        };
        let n_threads = match self.n_threads {
            0 => std::thread::available_parallelism()
                .map_or(1, std::num::NonZero::get)
                .min(host::pool::MAX_THREADS),
            n => n,
        };
        Ok(Settings {
            n_threads,
            kv_pool_tokens: at_least_one("kv_pool_tokens", self.kv_pool_tokens)?,
            kv_format: self.kv_format,
            host_tier: self.host_tier,
            attention: self.attention,
            sampling: self.sampling,
            isa: isa.checked().map_err(kernel)?,
            activations: self.activations,
            max_pass_tokens: at_least_one("max_pass_tokens", self.max_pass_tokens)?,
        })
    }
}
