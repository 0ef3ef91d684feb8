//! Dummy weights made on the device (`random.cu`).

use gpu::{BufferView, CudaError, DevicePtr, LaunchConfig, Stream};

use super::{Format, GroupScales, Layout};
use crate::cuda::{Element, ElementView};
use crate::shared_with_device::{device_structs, shared_constants};

const SOURCE: &str = "stream_linear/random";
const N_BLOCKS: u32 = 1024;
const N_THREADS: u32 = 256;

/// Standard deviation of `q - z` where both are uniform over 0..16.
const AWQ_LEVEL_STD: f32 = 6.519_202;
/// Of q alone.
const NIBBLE_STD: f32 = 4.609_772;
/// Mean of q, which a minimum takes off.
const NIBBLE_MEAN: f32 = 7.5;
/// Standard deviation of integers uniform over -128..128.
const BYTE_STD: f32 = 73.900_38;
/// Of E4M3 without the codes that [`FP8_MASK`] excludes.
const FP8_STD: f32 = 0.598_37;
/// No exponent above 7, so that no code is NaN.
const FP8_MASK: u32 = 0xbfbf_bfbf;

shared_constants! {
    in "stream_linear/random.cu" { N_THREADS as THREADS }
}

device_structs! {
    #[derive(Debug)]
    struct FillBitsParams as FillBitsParams in "stream_linear/random.cu" {
        words: DevicePtr<u32>,
        n: u64,
        seed: u64,
        mask: u32,
        padding: i32,
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

    #[derive(Debug)]
    struct FillGroupsParams as FillGroupsParams in "stream_linear/random.cu" {
        group_data: DevicePtr<u8>,
        n_groups: u64,
        seed: u64,
        scale: f32,
        minimum: f32,
        has_minimum: i32,
        is_float: i32,
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
    let Some(kind) = layout.format.scales() else {
        let values = ElementView::new(weights.cast()?, element);
        return fill_normal(stream, values, 0.0, std, seed);
    };
    stream.enter(weights.device())?;
    stream.enter(scales.device())?;
    let config = LaunchConfig::new(N_BLOCKS, N_THREADS);
    let words = weights.cast::<u32>()?;
    let bits = FillBitsParams {
        words: words.ptr(),
        n: words.len() as u64,
        seed,
        mask: match layout.format {
            Format::Fp8 => FP8_MASK,
            _ => u32::MAX,
        },
        padding: 0,
    };
    let device = stream.device();
    // SAFETY: the kernel writes n words, which is the view's length.
    unsafe {
        device
            .kernel(SOURCE, "fill_bits")?
            .launch(stream, &config, &bits)
    }?;
    let n_chunks = (layout.n_tiles * layout.n_chunks) as u64;
    if kind == GroupScales::Zero {
        let groups = FillAwqGroupsParams {
            group_data: scales.ptr(),
            n_chunks,
            seed: !seed,
            scale: std / AWQ_LEVEL_STD,
            groups: layout.format.chunk_groups() as i32,
        };
        let kernel = device.kernel(SOURCE, "fill_awq_groups")?;
        // SAFETY: the buffer holds groups * 40 bytes for each chunk of each tile, as the layout says.
        return unsafe { kernel.launch(stream, &config, &groups) };
    }
    let (code_std, minimum) = match (layout.format, layout.format.code_bits()) {
        (Format::Fp8, _) => (FP8_STD, 0.0),
        (_, 4) => (NIBBLE_STD, -NIBBLE_MEAN),
        _ => (BYTE_STD, 0.0),
    };
    let groups = FillGroupsParams {
        group_data: scales.ptr(),
        n_groups: n_chunks * layout.format.chunk_groups() as u64,
        seed: !seed,
        scale: std / code_std,
        minimum,
        has_minimum: i32::from(kind == GroupScales::Minimum),
        is_float: i32::from(kind == GroupScales::Float),
    };
    let kernel = device.kernel(SOURCE, "fill_groups")?;
    // SAFETY: the buffer holds a group's bytes for each group of each chunk and tile, as the layout says.
    unsafe { kernel.launch(stream, &config, &groups) }
}
