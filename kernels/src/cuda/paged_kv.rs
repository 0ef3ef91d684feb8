//! One layer's paged KV cache on the device. The layout inside a page is in `paged_kv.cuh`.

use gpu::{BufferView, CudaError, DevicePtr};

use super::Element;
use super::shape::ShapeCheck;
use crate::shared_with_device::{device_structs, shared_constants};

pub use crate::attention::PAGE_TOKENS;
/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    /// If activations are fp16.
    F16,
    /// If activations are bf16.
    Bf16,
    /// 4 exponent and 3 mantissa bits, up to 448, times a scale.
    Fp8E4m3,
}

impl KvFormat {
    /// The format of activations.
    pub const fn of(element: Element) -> Self {
        match element {
            Element::F16 => Self::F16,
            Element::Bf16 => Self::Bf16,
        }
    }

    pub const fn bytes_per_value(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::Fp8E4m3 => 1,
        }
    }

    /// Errors unless kernels of `element` have this format: its own, or e4m3.
    pub(crate) fn check(self, check: ShapeCheck, element: Element) -> Result<(), CudaError> {
        if self == Self::Fp8E4m3 || self == Self::of(element) {
            return Ok(());
        }
        let message = format!("KV pages of {self:?} beside {} activations", element.name());
        Err(crate::KernelError::Value {
            op: check.0,
            message,
        }
        .into())
    }

    /// The suffix of kernel names.
    pub(crate) const fn kernel_suffix(self) -> &'static str {
        match self {
            Self::F16 | Self::Bf16 => "half",
            Self::Fp8E4m3 => "fp8",
        }
    }
}

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    pub n_q: usize,
    pub n_kv: usize,
    /// 64 or 128.
    pub head_dim: usize,
}

impl HeadShape {
    /// Query heads that share a KV head.
    pub const fn group(self) -> usize {
        self.n_q / self.n_kv
    }

    /// Bytes of one page of keys, or of values.
    pub const fn page_bytes(self, format: KvFormat) -> usize {
        self.n_kv * PAGE_TOKENS * self.head_dim * format.bytes_per_value()
    }

    pub(crate) fn check(self, check: ShapeCheck) -> Result<(), CudaError> {
        check.at_least("n_kv", self.n_kv, 1)?;
        check.multiple("n_q", self.n_q, self.n_kv)?;
        check.at_most("n_q", self.n_q, 1 << 16)?;
        check.one_of("head_dim", self.head_dim, &[64, 128])
    }
}

/// Keys and values of one layer.
#[derive(Debug, Clone, Copy)]
pub struct PagedKv<'a> {
    /// `[n_pages, n_kv, 16, head_dim]`, values of the [`KvFormat`].
    pub k: BufferView<'a, u8>,
    /// `[n_pages, n_kv, head_dim / 16, 32, 8]`, values of the [`KvFormat`].
    pub v: BufferView<'a, u8>,
    /// A key is the stored value times this; 1 for 16-bit formats.
    pub k_scale: f32,
    /// A value is the stored value times this; 1 for 16-bit formats.
    pub v_scale: f32,
    pub n_pages: usize,
}

impl PagedKv<'_> {
    /// The kernels' parameters, after checking sizes, alignment and scales.
    pub(crate) fn params(
        &self,
        check: ShapeCheck,
        shape: HeadShape,
        format: KvFormat,
    ) -> Result<PagedKvParams, CudaError> {
        check.at_least("n_pages", self.n_pages, 1)?;
        let n_bytes = self.n_pages.saturating_mul(shape.page_bytes(format));
        check.at_least("bytes of k", self.k.len(), n_bytes)?;
        check.at_least("bytes of v", self.v.len(), n_bytes)?;
        check.aligned("k", self.k, 16)?;
        check.aligned("v", self.v, 16)?;
        check.positive("k_scale", self.k_scale)?;
        check.positive("v_scale", self.v_scale)?;
        if format != KvFormat::Fp8E4m3 && (self.k_scale, self.v_scale) != (1.0, 1.0) {
            let message = format!(
                "scales of 16-bit KV pages are {} and {}, must be 1",
                self.k_scale, self.v_scale
            );
            return Err(crate::KernelError::Value {
                op: check.0,
                message,
            }
            .into());
        }
        // Slots are 32-bit: page * 16 + token.
        check.int(
            "tokens of the pool",
            self.n_pages.saturating_mul(PAGE_TOKENS),
        )?;
        Ok(PagedKvParams {
            k: self.k.ptr(),
            v: self.v.ptr(),
            k_scale: self.k_scale,
            v_scale: self.v_scale,
            n_pages: self.n_pages as i32,
            padding: 0,
        })
    }
}

shared_constants! {
    in "cuda/page.cuh" { PAGE_TOKENS }
}

device_structs! {
    /// `PagedKv` of `paged_kv.cuh`.
    #[derive(Debug)]
    pub(crate) struct PagedKvParams as PagedKv in "cuda/paged_kv.cuh" {
        k: DevicePtr<u8>,
        v: DevicePtr<u8>,
        k_scale: f32,
        v_scale: f32,
        n_pages: i32,
        padding: i32,
    }
}
