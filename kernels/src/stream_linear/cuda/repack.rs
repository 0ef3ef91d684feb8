//! Repacks a checkpoint's weights into the layout that the kernels read.

use gpu::{BufferView, CudaError, DevicePtr, LaunchConfig, Stream};
use half::f16;

use super::{CHECK, StreamLinear, check_len, value_error};
use crate::cuda::ElementView;
use crate::shared_with_device::{device_structs, shared_constants};
use crate::stream_linear::{Format, Layout, TILE_COLUMNS};

pub(super) const SOURCE: &str = "stream_linear/repack";
const THREADS: u32 = 128;

shared_constants! {
    in "stream_linear/repack.cu" { THREADS }
}

device_structs! {
    #[derive(Debug)]
    struct AwqParams as RepackAwqParams in "stream_linear/repack.cu" {
        qweight: DevicePtr<u32>,
        qzeros: DevicePtr<u32>,
        scales: DevicePtr<f16>,
        weights: DevicePtr<u8>,
        group_data: DevicePtr<u8>,
        n: i32,
        k: i32,
        group: i32,
        n_chunks: i32,
        tile_step: i32,
        tile_offset: i32,
    }

    /// As `RepackHalfParams` in repack.cu, with the padding that C++ adds.
    #[derive(Debug)]
    struct HalfParams as RepackHalfParams in "stream_linear/repack.cu" {
        rows: DevicePtr<u16>,
        weights: DevicePtr<u8>,
        n: i32,
        k: i32,
        n_chunks: i32,
        tile_step: i32,
        tile_offset: i32,
        padding: i32,
    }
}

/// One part of an AWQ matrix in device memory, in the checkpoint's layout: scales are fp16 for
/// either element type.
#[derive(Debug, Clone, Copy)]
pub struct AwqPart<'a> {
    /// [k][n / 8]
    pub qweight: BufferView<'a, u32>,
    /// [k / group][n / 8]
    pub qzeros: BufferView<'a, u32>,
    /// `[k / group][n]`
    pub scales: BufferView<'a, f16>,
}

impl StreamLinear {
    /// Loads all parts from host copies of [`Self::packed_weights`] and [`Self::packed_scales`] of
    /// a matrix with the same layout.
    ///
    /// # Errors
    ///
    /// If the bytes are not those of this layout, or `stream` is being captured or of another
    /// device.
    pub fn load_packed(
        &mut self,
        stream: &Stream,
        weights: &[u8],
        scales: &[u8],
    ) -> Result<(), CudaError> {
        check_len(
            "the packed weights' bytes",
            weights.len(),
            self.weights.n_bytes(),
        )?;
        check_len(
            "the packed scales' bytes",
            scales.len(),
            self.scales.n_bytes(),
        )?;
        self.weights.upload(stream, weights)?;
        self.scales.upload(stream, scales)?;
        self.is_loaded.fill(true);
        Ok(())
    }

    /// Repacks part `part`, in stream order. The source may be overwritten once the stream has
    /// passed this point.
    ///
    /// # Errors
    ///
    /// If there is no such part, the matrix has another format, the part's columns are no multiple of 8, the source's
    /// lengths are not those of the part, or one of its views or `stream` is of another device.
    pub fn load_awq(
        &mut self,
        stream: &Stream,
        part: usize,
        source: &AwqPart<'_>,
    ) -> Result<(), CudaError> {
        let n = self.part_n(part)?;
        let layout = &self.layout;
        let Some(group) = layout.format.awq_group() else {
            let format = layout.format;
            return Err(value_error(format!(
                "AWQ weights for a matrix in {format:?}"
            )));
        };
        if !n.is_multiple_of(8) {
            return Err(value_error(format!(
                "a part of AWQ weights has {n} columns, no multiple of 8"
            )));
        }
        let k = layout.k;
        check_len("qweight's words", source.qweight.len(), k * n / 8)?;
        check_len("qzeros' words", source.qzeros.len(), k / group * n / 8)?;
        check_len("scales' values", source.scales.len(), k / group * n)?;
        stream.enter(source.qweight.device())?;
        stream.enter(source.qzeros.device())?;
        stream.enter(source.scales.device())?;
        let (step, offset) = layout.tile_place(part);
        let params = AwqParams {
            qweight: source.qweight.ptr(),
            qzeros: source.qzeros.ptr(),
            scales: source.scales.ptr(),
            weights: self.weights.ptr(),
            group_data: self.scales.ptr(),
            n: n as i32,
            k: k as i32,
            group: group as i32,
            n_chunks: layout.n_chunks as i32,
            tile_step: step as i32,
            tile_offset: offset as i32,
        };
        let config = LaunchConfig::new(grid(layout, n), THREADS);
        // SAFETY: the sources have the lengths checked above, the destinations those that
        // `layout` gives for all parts; buffers are freed only after the device is idle.
        unsafe { self.kernels.repack_awq.launch(stream, &config, &params) }?;
        self.is_loaded[part] = true;
        Ok(())
    }

    /// Repacks part `part` from rows `[n][k]` of the kernels' element, in stream order.
    ///
    /// # Errors
    ///
    /// If there is no such part, the matrix is AWQ, the rows have another length or element, or
    /// they or `stream` are of another device.
    pub fn load_half(
        &mut self,
        stream: &Stream,
        part: usize,
        rows: ElementView<'_>,
    ) -> Result<(), CudaError> {
        let n = self.part_n(part)?;
        let layout = &self.layout;
        if layout.format != Format::Half {
            let format = layout.format;
            return Err(value_error(format!(
                "16-bit weights for a matrix in {format:?}"
            )));
        }
        let rows = CHECK.element("a weight", rows, self.kernels.element)?;
        check_len("the weights", rows.len(), n * layout.k)?;
        stream.enter(rows.device())?;
        let (step, offset) = layout.tile_place(part);
        let params = HalfParams {
            rows: rows.ptr(),
            weights: self.weights.ptr(),
            n: n as i32,
            k: layout.k as i32,
            n_chunks: layout.n_chunks as i32,
            tile_step: step as i32,
            tile_offset: offset as i32,
            padding: 0,
        };
        let config = LaunchConfig::new(grid(layout, n), THREADS);
        // SAFETY: the source has the length checked above, the destination that of `layout`;
        // buffers are freed only after the device is idle.
        unsafe { self.kernels.repack_half.launch(stream, &config, &params) }?;
        self.is_loaded[part] = true;
        Ok(())
    }
}

fn grid(layout: &Layout, n: usize) -> u32 {
    (n.div_ceil(TILE_COLUMNS) * layout.n_chunks) as u32
}
