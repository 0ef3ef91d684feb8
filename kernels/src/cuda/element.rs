//! The 16-bit type of activations and unquantised weights, chosen when a model is loaded.
//!
//! Kernels that work on it are compiled once for each type (`cuda/element.cuh`). Memory of this
//! type carries its [`Element`], and launchers refuse a different one.

use std::ops::Range;

use gpu::{Buffer, BufferView, CudaError, Device, DevicePtr, Kernel, Stream};
use half::{bf16, f16};

/// fp16 has 11 significant bits and reaches 65,504; bf16 has 8 and the range of fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    F16,
    Bf16,
}

impl Element {
    pub const ALL: [Self; 2] = [Self::F16, Self::Bf16];

    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// The element nearest to `value`.
    pub fn bits(self, value: f32) -> u16 {
        match self {
            Self::F16 => f16::from_f32(value).to_bits(),
            Self::Bf16 => bf16::from_f32(value).to_bits(),
        }
    }

    /// The exact value of an element.
    pub fn value(self, bits: u16) -> f32 {
        match self {
            Self::F16 => f16::from_bits(bits).to_f32(),
            Self::Bf16 => bf16::from_bits(bits).to_f32(),
        }
    }

    /// `value`, rounded to an element.
    pub fn round(self, value: f32) -> f32 {
        self.value(self.bits(value))
    }

    /// As [`Device::kernel`], of a source that is compiled for each element.
    pub(crate) fn kernel(
        self,
        device: &Device,
        source_name: &str,
        name: &str,
    ) -> Result<Kernel, CudaError> {
        device.kernel(&self.fatbin_name(source_name), name)
    }

    fn fatbin_name(self, source_name: &str) -> String {
        match self {
            Self::F16 => source_name.to_owned(),
            Self::Bf16 => format!("{source_name}_bf16"),
        }
    }
}

/// `len` elements in device memory, freed when dropped.
#[derive(Debug)]
pub struct ElementBuffer {
    words: Buffer<u16>,
    element: Element,
}

impl ElementBuffer {
    /// Uninitialised memory.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory.
    pub fn new(device: &Device, element: Element, len: usize) -> Result<Self, CudaError> {
        let words = Buffer::new(device, len)?;
        Ok(Self { words, element })
    }

    /// Zeroed memory.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory, or the memory cannot be set.
    pub fn zeroed(stream: &Stream, element: Element, len: usize) -> Result<Self, CudaError> {
        let words = Buffer::zeroed(stream, len)?;
        Ok(Self { words, element })
    }

    /// `values`, rounded.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory, or `stream` is being captured.
    pub fn from_f32(stream: &Stream, element: Element, values: &[f32]) -> Result<Self, CudaError> {
        let bits: Vec<u16> = values.iter().map(|value| element.bits(*value)).collect();
        Self::from_bits(stream, element, &bits)
    }

    /// Values by their bits.
    ///
    /// # Errors
    ///
    /// If the device has not as much free memory, or `stream` is being captured.
    pub fn from_bits(stream: &Stream, element: Element, bits: &[u16]) -> Result<Self, CudaError> {
        let words = Buffer::from_slice(stream, bits)?;
        Ok(Self { words, element })
    }

    pub fn element(&self) -> Element {
        self.element
    }

    pub fn len(&self) -> usize {
        self.words.len()
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    pub fn n_bytes(&self) -> usize {
        self.words.n_bytes()
    }

    pub fn all(&self) -> ElementView<'_> {
        ElementView::new(self.words.all(), self.element)
    }

    /// A part of the buffer.
    ///
    /// # Errors
    ///
    /// If the range is not inside the buffer.
    pub fn view(&self, range: Range<usize>) -> Result<ElementView<'_>, CudaError> {
        Ok(ElementView::new(self.words.view(range)?, self.element))
    }

    /// The exact values, after all work queued on `stream` so far.
    ///
    /// # Errors
    ///
    /// If `stream` is being captured or of another device, or earlier work on it failed.
    pub fn download(&self, stream: &Stream) -> Result<Vec<f32>, CudaError> {
        let bits = self.words.download(stream)?;
        Ok(bits.into_iter().map(|b| self.element.value(b)).collect())
    }
}

/// A range of an [`ElementBuffer`], or of a [`Buffer`] whose type is one of the elements.
#[derive(Debug, Clone, Copy)]
pub struct ElementView<'a> {
    words: BufferView<'a, u16>,
    element: Element,
}

impl<'a> ElementView<'a> {
    pub const fn new(words: BufferView<'a, u16>, element: Element) -> Self {
        Self { words, element }
    }

    pub fn element(self) -> Element {
        self.element
    }

    /// The bits of the elements.
    pub fn words(self) -> BufferView<'a, u16> {
        self.words
    }

    pub fn len(self) -> usize {
        self.words.len()
    }

    pub fn is_empty(self) -> bool {
        self.words.is_empty()
    }

    pub fn device(self) -> &'a Device {
        self.words.device()
    }

    pub fn ptr(self) -> DevicePtr<u16> {
        self.words.ptr()
    }
}

impl<'a> From<BufferView<'a, f16>> for ElementView<'a> {
    fn from(view: BufferView<'a, f16>) -> Self {
        Self::new(view.same_size(), Element::F16)
    }
}

impl<'a> From<BufferView<'a, bf16>> for ElementView<'a> {
    fn from(view: BufferView<'a, bf16>) -> Self {
        Self::new(view.same_size(), Element::Bf16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_round_to_the_nearest_and_keep_their_range() {
        // 1 + 2^-9 is not a bf16, whose step there is 2^-7; 70,000 exceeds fp16.
        let x = 1.0 + 1.0 / 512.0;
        assert_eq!((Element::F16.round(x), Element::Bf16.round(x)), (x, 1.0));
        assert!(Element::F16.round(70_000.0).is_infinite());
        let kept = Element::Bf16.round(70_000.0);
        assert!((kept / 70_000.0 - 1.0).abs() < 1.0 / 256.0, "{kept}");
        for element in Element::ALL {
            assert_eq!(
                element.value(element.bits(-0.5)).to_bits(),
                (-0.5_f32).to_bits()
            );
        }
    }

    #[test]
    fn fatbins_of_bf16_have_names_of_their_own() {
        let names = Element::ALL.map(|element| element.fatbin_name("op/op"));
        assert_eq!(names, ["op/op", "op/op_bf16"]);
    }
}
