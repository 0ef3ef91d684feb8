//! Attention over packed rows for `--attention-backend`: the tensor-core kernel or the plain one,
//! for prompts alone or also for decode rows, which are sequences of one token.

use gpu::{CudaError, Stream};
use kernels::attention::cuda::{PlainAttention, PrefillAttention, PrefillAttentionArgs};
use kernels::cuda::Element;
use kernels::qkv_prepare::cuda::{HeadShape, KvFormat};

use super::PassSize;

/// `--attention-backend`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionBackend {
    /// `split-kv`: split-KV flash decoding for decode rows, tensor cores for prompts.
    #[default]
    Split,
    /// `packed-mma`: tensor cores for all rows, packed.
    Packed,
    /// `reference`: all rows packed, one key after the other in f32.
    Plain,
}

enum Kernel {
    Fast(PrefillAttention),
    Plain(PlainAttention),
}

pub(super) struct PackedAttention {
    kernel: Kernel,
    serves_decode: bool,
}

impl PackedAttention {
    pub fn new(
        stream: &Stream,
        element: Element,
        heads: HeadShape,
        format: KvFormat,
        backend: AttentionBackend,
    ) -> Result<Self, CudaError> {
        let device = stream.device();
        let kernel = match backend {
            AttentionBackend::Split | AttentionBackend::Packed => {
                Kernel::Fast(PrefillAttention::new(device, element, heads, format)?)
            }
            AttentionBackend::Plain => {
                Kernel::Plain(PlainAttention::new(device, element, heads, format)?)
            }
        };
        Ok(Self {
            kernel,
            serves_decode: backend != AttentionBackend::Split,
        })
    }

    /// Whether a pass uses this kernel rather than the one for decode rows.
    pub fn serves(&self, size: PassSize) -> bool {
        self.serves_decode || size.n_tokens > size.n_sequences
    }

    pub fn launch(
        &self,
        stream: &Stream,
        args: &PrefillAttentionArgs<'_>,
    ) -> Result<(), CudaError> {
        match &self.kernel {
            Kernel::Fast(kernel) => kernel.launch(stream, args),
            Kernel::Plain(kernel) => kernel.launch(stream, args),
        }
    }
}
