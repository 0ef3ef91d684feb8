//! Dummy weights made on the device (`random.cu`).

use gpu::{BufferView, CudaError, DevicePtr, LaunchConfig, Stream};

use super::Layout;
use crate::cuda::{Element, ElementView};
use crate::shared_with_device::{device_structs, shared_constants};

const SOURCE: &str = "stream_linear/random";
const N_BLOCKS: u32 = 1024;
const N_THREADS: u32 = 256;

/// Standard deviation of `q - z` where both are uniform over 0..16.
const AWQ_LEVEL_STD: f32 = 6.519_202;

shared_constants! {
    in "stream_linear/random.cu" { N_THREADS as THREADS }
}

device_structs! {
    #[derive(Debug)]
    struct FillBitsParams as FillBitsParams in "stream_linear/random.cu" {
        words: DevicePtr<u32>,
        n: u64,
        seed: u64,
    }

    #[derive(Debug)]
    struct FillNormalParams as FillNormalParams in "stream_linear/random.cu" {
        values: DevicePtr<u16>,
        n: u64,
        seed: u64,
        std: f32,
        mean: f32,
    }

    #[derive(Debug)]
    struct FillAwqGroupsParams as FillAwqGroupsParams in "stream_linear/random.cu" {
        group_data: DevicePtr<u8>,
        n_chunks: u64,
        seed: u64,
        scale: f32,
        groups: i32,
    }
}

/// Normally distributed values, the same for the same seed.
///
/// # Errors
///
/// If the binary has no such kernel for this device, or `values` and `stream` are not of one
/// device.
pub fn fill_normal(
    stream: &Stream,
    values: ElementView<'_>,
    mean: f32,
    std: f32,
    seed: u64,
) -> Result<(), CudaError> {
    stream.enter(values.device())?;
    let kernel = match values.element() {
        Element::F16 => stream.device().kernel(SOURCE, "fill_normal_f16"),
        Element::Bf16 => stream.device().kernel(SOURCE, "fill_normal_bf16"),
    }?;
    let params = FillNormalParams {
        values: values.ptr(),
        n: values.len() as u64,
        seed,
        std,
        mean,
    };
    // SAFETY: the kernel writes n values, which is the view's length.
    unsafe { kernel.launch(stream, &LaunchConfig::new(N_BLOCKS, N_THREADS), &params) }
}

/// Packed weights of `layout` whose values have the standard deviation `1 / sqrt(k)`.
pub(super) fn fill_packed(
    stream: &Stream,
    layout: &Layout,
    element: Element,
    weights: BufferView<'_, u8>,
    scales: BufferView<'_, u8>,
    seed: u64,
) -> Result<(), CudaError> {
    let std = 1.0 / (layout.k as f32).sqrt();
    if layout.format.group().is_none() {
        let values = ElementView::new(weights.cast()?, element);
        return fill_normal(stream, values, 0.0, std, seed);
    }
    stream.enter(weights.device())?;
    stream.enter(scales.device())?;
    let config = LaunchConfig::new(N_BLOCKS, N_THREADS);
    let words = weights.cast::<u32>()?;
    let bits = FillBitsParams {
        words: words.ptr(),
        n: words.len() as u64,
        seed,
    };
    let groups = FillAwqGroupsParams {
        group_data: scales.ptr(),
        n_chunks: (layout.n_tiles * layout.n_chunks) as u64,
        seed: !seed,
        scale: std / AWQ_LEVEL_STD,
        groups: layout.format.chunk_groups() as i32,
    };
    let device = stream.device();
    // SAFETY: the kernel writes n words, which is the view's length.
    unsafe {
        device
            .kernel(SOURCE, "fill_bits")?
            .launch(stream, &config, &bits)
    }?;
    // SAFETY: the buffer holds groups * 40 bytes for each chunk of each tile, as the layout says.
    unsafe {
        device
            .kernel(SOURCE, "fill_awq_groups")?
            .launch(stream, &config, &groups)
    }
}
