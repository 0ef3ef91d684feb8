//! Launches of `quantize_rows.cu` and `mma_int8.cu`: 17 rows and more, activations in 8 bits.

use gpu::{Buffer, BufferView, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

use super::mma::{MmaLinearParams, check_units};
use super::{CHUNK_BYTES, Format, LargeMLaunch, OP};
use crate::KernelError;
use crate::cuda::Element;
use crate::shared_with_device::{device_structs, shared_constants};

const SOURCE: &str = "stream_linear/mma_int8";
const QUANTIZE_SOURCE: &str = "stream_linear/quantize_rows";
const WARPS: usize = 4;
const THREADS: usize = WARPS * 32;
const BLOCKS_A_MULTIPROCESSOR: usize = 2;
/// Tiles of 16 columns that a warp multiplies.
const WARP_TILES: usize = 2;
const BLOCK_TILES: usize = WARPS * WARP_TILES;
/// k of a stage, and of a scale of x.
pub const GROUP_K: usize = 128;
/// Rows of a tile of work that kernels are compiled for.
pub(super) const ROWS: [usize; 2] = [32, 64];
/// Rows that are written are a multiple of this.
const ROW_STEP: usize = ROWS[ROWS.len() - 1];
const QUANTIZE_WARPS: usize = 8;
/// Rows of 128 k that a warp of `quantize_rows.cu` takes.
const QUANTIZE_ROWS: usize = 4;

/// The largest x of a launch: rows and values a row, padding included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Int8Room {
    pub rows: usize,
    pub k: usize,
}

impl Int8Room {
    fn padded(self) -> (usize, usize) {
        let rows = self.rows.next_multiple_of(ROW_STEP);
        (rows, self.k.next_multiple_of(Format::AwqG128.chunk_k()))
    }

    /// Device memory of x in 8 bits and of its scales.
    pub fn n_bytes(self) -> usize {
        let (rows, k) = self.padded();
        rows * k + 4 * rows * (k / GROUP_K)
    }
}

shared_constants! {
    in "stream_linear/mma_int8.cu" { WARPS, THREADS, WARP_TILES, BLOCK_TILES, GROUP_K }
    in "stream_linear/quantize_rows.cu" { QUANTIZE_WARPS as WARPS }
}

device_structs! {
    #[derive(Debug)]
    struct QuantizeRowsParams as QuantizeRowsParams in "stream_linear/quantize_rows.cu" {
        x: DevicePtr<u16>,
        q: DevicePtr<u8>,
        scales: DevicePtr<f32>,
        m: i32,
        rows: i32,
        x_rows: i32,
        n_pieces: i32,
    }
}

/// Bytes of shared memory of a tile of `rows` rows, one of [`ROWS`]: as `Ring` in mma_int8.cu counts them,
/// which refuses to run with another number.
fn shared_bytes(rows: usize) -> usize {
    let ahead = if rows == 64 { 2 } else { 3 };
    let stages = ahead + 1;
    let x = stages * rows * (GROUP_K + 4);
    let weights = ahead * BLOCK_TILES * CHUNK_BYTES / 2;
    let scales = 2 * BLOCK_TILES * Format::AwqG128.scale_bytes();
    x + weights + scales
}

/// Rows of the tiles that `m` rows use.
pub(super) fn tile_rows(m: usize) -> usize {
    ROWS.into_iter().find(|rows| m <= *rows).unwrap_or(ROW_STEP)
}

/// Kernels, and x in 8 bits of the launch that runs: launches go to one stream.
#[derive(Debug)]
pub(super) struct Int8Kernels {
    quantize: Kernel,
    /// By [`ROWS`].
    variants: Vec<Kernel>,
    room: Int8Room,
    /// `[k / 128][rows][128]`, quantize_rows.cuh
    q: Buffer<u8>,
    /// `[k / 128][rows]`
    scales: Buffer<f32>,
    /// `[blocks][2][128 columns * 64 rows]`: sums of tiles that several blocks share
    parts: Buffer<f32>,
    /// `[tiles that are cut]`, zero between launches
    tickets: Buffer<i32>,
    n_blocks: usize,
}

impl Int8Kernels {
    pub fn load(stream: &Stream, element: Element, room: Int8Room) -> Result<Self, CudaError> {
        let device: &Device = stream.device();
        let n_blocks = device.properties().n_multiprocessors * BLOCKS_A_MULTIPROCESSOR;
        let mut variants = Vec::with_capacity(ROWS.len());
        for rows in ROWS {
            let kernel = element.kernel(device, SOURCE, &format!("mma_int8_{rows}"))?;
            kernel.set_max_dynamic_shared(shared_bytes(rows))?;
            kernel.set_shared_carveout(100)?;
            variants.push(kernel);
        }
        let (rows, k) = room.padded();
        Ok(Self {
            quantize: element.kernel(device, QUANTIZE_SOURCE, "quantize_rows")?,
            variants,
            room,
            q: Buffer::new(device, rows * k)?,
            scales: Buffer::new(device, rows * (k / GROUP_K))?,
            parts: Buffer::new(device, n_blocks * 2 * BLOCK_TILES * 16 * ROW_STEP)?,
            tickets: Buffer::zeroed(stream, n_blocks)?,
            n_blocks,
        })
    }

    /// x in 8 bits as the last launch left it: values and scales. For tests.
    pub fn quantized(&self) -> (BufferView<'_, u8>, BufferView<'_, f32>) {
        (self.q.all(), self.scales.all())
    }

    /// In tiles of `tile_rows` rows, one of [`ROWS`].
    pub fn launch(
        &self,
        stream: &Stream,
        tile_rows: usize,
        launch: &LargeMLaunch<'_>,
    ) -> Result<(), CudaError> {
        let layout = launch.layout;
        let limit = |what, found, limit| CudaError::Launch {
            kernel: SOURCE.to_owned(),
            what,
            found,
            limit,
        };
        if layout.format != Format::AwqG128 {
            let message = format!("{:?} has no product with 8-bit activations", layout.format);
            return Err(KernelError::Value { op: OP, message }.into());
        }
        let variant = ROWS
            .iter()
            .position(|rows| *rows == tile_rows)
            .ok_or_else(|| limit("the rows of a tile", tile_rows, ROW_STEP))?;
        let (room_rows, room_k) = self.room.padded();
        let (rows, k) = (launch.m.next_multiple_of(tile_rows), layout.padded_k());
        if rows > room_rows || k > room_k {
            let (what, found, most) = if rows > room_rows {
                ("rows of x", rows, room_rows)
            } else {
                ("values in a row of x", k, room_k)
            };
            return Err(limit(what, found, most));
        }
        if launch.m > launch.x_rows {
            return Err(limit("rows of tiled x", launch.m, launch.x_rows));
        }
        check_units(SOURCE, self.n_blocks, layout)?;
        self.quantize(stream, launch, rows, k / GROUP_K)?;
        let shared_bytes = shared_bytes(tile_rows);
        let params = MmaLinearParams::new(
            launch,
            (self.q.ptr(), self.scales.ptr()),
            rows,
            self.parts.ptr(),
            self.tickets.ptr(),
            shared_bytes,
        );
        let mut config = LaunchConfig::new(self.n_blocks as u32, THREADS as u32);
        config.shared_bytes = shared_bytes;
        config.dependent = true;
        // SAFETY: the caller has checked weights, bias and output against the layout and m; q and scales
        // have whole tiles of rows; parts hold two shares for each block, tickets one for each tile that
        // is cut, which are fewer than the blocks; the kernel has the shared memory that it counts.
        unsafe { self.variants[variant].launch(stream, &config, &params) }
    }

    fn quantize(
        &self,
        stream: &Stream,
        launch: &LargeMLaunch<'_>,
        rows: usize,
        n_pieces: usize,
    ) -> Result<(), CudaError> {
        let params = QuantizeRowsParams {
            x: launch.x.ptr(),
            q: self.q.ptr(),
            scales: self.scales.ptr(),
            m: launch.m as i32,
            rows: rows as i32,
            x_rows: launch.x_rows as i32,
            n_pieces: n_pieces as i32,
        };
        let n_blocks = (rows * n_pieces).div_ceil(QUANTIZE_WARPS * QUANTIZE_ROWS);
        let mut config = LaunchConfig::new(n_blocks as u32, (QUANTIZE_WARPS * 32) as u32);
        config.dependent = launch.dependent;
        // SAFETY: x has x_rows >= m rows of the layout's padded k; q and scales have room for `rows` of them.
        unsafe { self.quantize.launch(stream, &config, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of `Ring::BYTES` in mma_int8.cu.
    #[test]
    fn two_blocks_fit_a_multiprocessor_of_100_kib() {
        assert_eq!(ROWS.map(shared_bytes), [42_752, 43_008]);
        for rows in ROWS {
            assert!(2 * (shared_bytes(rows) + 1024) <= 100 * 1024, "{rows}");
        }
    }

    #[test]
    fn room_is_counted_in_whole_tiles_and_chunks() {
        let room = Int8Room { rows: 65, k: 130 };
        assert_eq!(room.n_bytes(), 128 * 256 + 4 * 128 * 2);
    }
}
