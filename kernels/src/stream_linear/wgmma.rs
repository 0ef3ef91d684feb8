//! Launches of `wgmma.cu`: any number of rows, by default 9 and more, on sm_90.

use bytemuck::Zeroable;
use gpu::{Buffer, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

use super::cuda::NextMatrix;
use super::{Arrangement, CHUNK_BYTES, Epilogue, Format, LargeMLaunch, OP};
use crate::KernelError;
use crate::cuda::Element;
use crate::shared_with_device::{device_structs, shared_constants};

const SOURCE: &str = "stream_linear/wgmma";
/// Rows of a tile of work that kernels are compiled for.
pub(super) const ROWS: [usize; 4] = [24, 32, 64, 128];
/// What kernels are compiled for, by their names: the residual is added by the one that stores f32.
const OUTPUTS: [&str; 3] = ["store", "silu_mul", "store_f32"];
/// k of an x stage.
const X_K: usize = 64;
/// Stages of x by row count, the fewest that hide the L2's latency; the rest of the memory holds
/// weights. Measured on an H100; see NOTES.md.
const X_STAGES: [usize; 4] = [4, 4, 4, 7];
/// More only lengthen the memory queues. Measured on an H100; see NOTES.md.
const MAX_W_STAGES: usize = 3;
/// Amount of the next matrix that a block prefetches into the L2. Measured likewise.
const PREFETCH_BYTES: usize = 128 << 10;
/// Scales of a tile that come in one copy, at most.
const SCALE_COPY_BYTES: usize = 320;
/// Groups of chunks whose scales are there at a time.
const SCALE_SLOTS: usize = 3;
/// f32 of the largest part of a tile: 256 columns by 128 rows.
const PART_VALUES: usize = 4 * 8192;

shared_constants! {
    in "stream_linear/wgmma.cu" { X_K, SCALE_COPY_BYTES, SCALE_SLOTS as S_SLOTS }
}

device_structs! {
    #[derive(Debug)]
    struct NextMatrixParams as NextMatrix in "stream_linear/wgmma.cu" {
        weights: DevicePtr<u8>,
        scales: DevicePtr<u8>,
        n_tiles: i32,
        n_chunks: i32,
        block_tiles: i32,
        scale_bytes: i32,
        wanted_chunks: i32,
        padding: i32,
    }

    #[derive(Debug)]
    struct WgmmaLinearParams as WgmmaLinearParams in "stream_linear/wgmma.cu" {
        weights: DevicePtr<u8>,
        scales: DevicePtr<u8>,
        x: DevicePtr<u16>,
        out: DevicePtr<u8>,
        bias: DevicePtr<u16>,
        parts: DevicePtr<f32>,
        tickets: DevicePtr<i32>,
        m: i32,
        x_rows: i32,
        n: i32,
        n_tiles: i32,
        n_chunks: i32,
        out_tile_rows: i32,
        w_stages: i32,
        x_stages: i32,
        epilogue: i32,
        padding: i32,
        next: NextMatrixParams,
    }
}

/// Amount that a launch prefetches into the L2 for the next one with as many rows: nothing if there
/// is more than one tile of rows, because the products dominate then.
fn next_params(launch: &LargeMLaunch<'_>, variant: usize) -> NextMatrixParams {
    let is_read_alike =
        |next: &&NextMatrix| launch.m <= ROWS[variant] && next.layout.format.has_wgmma();
    let Some(next) = launch.next.filter(is_read_alike) else {
        return NextMatrixParams::zeroed();
    };
    let is_silu = next.layout.arrangement == Arrangement::GateUp;
    let block_tiles = Block::of(variant, is_silu).n_tiles();
    let chunk_bytes = CHUNK_BYTES + next.layout.format.scale_bytes();
    NextMatrixParams {
        weights: next.weights,
        scales: next.scales,
        n_tiles: next.layout.n_tiles as i32,
        n_chunks: next.layout.n_chunks as i32,
        block_tiles: block_tiles as i32,
        scale_bytes: next.layout.format.scale_bytes() as i32,
        wanted_chunks: (PREFETCH_BYTES / (block_tiles * chunk_bytes)) as i32,
        padding: 0,
    }
}

/// Index of [`OUTPUTS`].
fn output_of(epilogue: Epilogue) -> usize {
    match epilogue {
        Epilogue::Store => 0,
        Epilogue::SiluMul => 1,
        Epilogue::AddResidual | Epilogue::StoreF32 => 2,
    }
}

/// Rows of the tiles that `m` rows use by default: the fewest that hold them all.
pub(super) fn tile_rows(m: usize) -> usize {
    ROWS.into_iter().find(|rows| m <= *rows).unwrap_or(128)
}

/// A block's shape, as `BlockFor` in wgmma.cu.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    rows: usize,
    n_warpgroups: usize,
    warp_tiles: usize,
    x_stages: usize,
}

impl Block {
    fn of(variant: usize, is_silu: bool) -> Self {
        let rows = ROWS[variant];
        let (n_warpgroups, warp_tiles) = match (rows, is_silu) {
            (128, _) => (2, 2),
            (_, true) => (3, 2),
            (_, false) => (4, 1),
        };
        Self {
            rows,
            n_warpgroups,
            warp_tiles,
            x_stages: X_STAGES[variant],
        }
    }

    /// Tiles of 16 columns.
    fn n_tiles(self) -> usize {
        self.n_warpgroups * 4 * self.warp_tiles
    }

    fn n_threads(self) -> usize {
        (self.n_warpgroups + 1) * 128
    }

    fn shared_bytes(self, format: Format, w_stages: usize) -> usize {
        let x = self.x_stages * self.rows * X_K * 2;
        let weights = w_stages * self.n_tiles() * CHUNK_BYTES;
        let scales = SCALE_SLOTS * self.n_tiles() * scale_copy_bytes(format);
        let barriers = 8 * (2 * (w_stages + self.x_stages) + SCALE_SLOTS);
        x + weights + scales + barriers
    }

    /// As many stages of weights as fit, with what they take.
    fn w_stages(self, format: Format, room: usize) -> Option<(usize, usize)> {
        (2..=MAX_W_STAGES)
            .rev()
            .map(|stages| (stages, self.shared_bytes(format, stages)))
            .find(|(_, bytes)| *bytes <= room)
    }
}

/// The formats that have kernels, in their order.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|format| format.has_wgmma())
}

/// Scales of a tile that come in one copy, as `SCALE_CHUNKS` in wgmma.cu.
fn scale_copy_bytes(format: Format) -> usize {
    match format.scale_bytes() {
        0 => 0,
        bytes => SCALE_COPY_BYTES / bytes * bytes,
    }
}

#[derive(Debug)]
pub(super) struct WgmmaKernels {
    /// [format][output][rows]
    variants: Vec<Kernel>,
    /// [blocks][2][PART_VALUES]: sums of tiles that several blocks share
    parts: Buffer<f32>,
    /// [cut tiles, fewer than blocks][2], zero between launches
    tickets: Buffer<i32>,
    n_multiprocessors: usize,
    shared_room: usize,
    /// Whether other streams may launch at the same time.
    pub exclusive_device: bool,
}

impl WgmmaKernels {
    /// `exclusive_device`: nothing else runs on the device, so that all blocks of a launch are on it
    /// together without being told to.
    pub fn load(
        stream: &Stream,
        element: Element,
        exclusive_device: bool,
    ) -> Result<Self, CudaError> {
        let device: &Device = stream.device();
        let properties = device.properties();
        if properties.compute_capability != (9, 0) {
            let architecture = properties.architecture();
            let message = format!("wgmma.cu runs on sm_90 alone, the device is {architecture}");
            return Err(KernelError::Value { op: OP, message }.into());
        }
        let shared_room = properties.shared_bytes_per_block;
        let n_variants = formats().count() * OUTPUTS.len() * ROWS.len();
        let mut variants = Vec::with_capacity(n_variants);
        for format in formats() {
            for output in OUTPUTS {
                for rows in ROWS {
                    let name = format!("wgmma_{}_{output}_{rows}", format.kernel_name());
                    let kernel = element.kernel(device, SOURCE, &name)?;
                    kernel.set_max_dynamic_shared(shared_room)?;
                    kernel.set_shared_carveout(100)?;
                    variants.push(kernel);
                }
            }
        }
        let n_multiprocessors = properties.n_multiprocessors;
        Ok(Self {
            variants,
            parts: Buffer::new(device, n_multiprocessors * 2 * PART_VALUES)?,
            tickets: Buffer::zeroed(stream, 2 * n_multiprocessors)?,
            n_multiprocessors,
            shared_room,
            exclusive_device,
        })
    }

    /// In tiles of `tile_rows` rows, one of [`ROWS`]; tiled x has whole tiles of them.
    pub fn launch(
        &self,
        stream: &Stream,
        tile_rows: usize,
        launch: &LargeMLaunch<'_>,
    ) -> Result<(), CudaError> {
        let layout = launch.layout;
        let is_silu = launch.epilogue == Epilogue::SiluMul;
        let limit = |what, found, limit| CudaError::Launch {
            kernel: SOURCE.to_owned(),
            what,
            found,
            limit,
        };
        let variant = ROWS
            .iter()
            .position(|rows| *rows == tile_rows)
            .ok_or_else(|| limit("the rows of a tile", tile_rows, ROWS[ROWS.len() - 1]))?;
        let rows_read = launch.m.next_multiple_of(tile_rows);
        if rows_read > launch.x_rows {
            return Err(limit("rows of tiled x", rows_read, launch.x_rows));
        }
        let block = Block::of(variant, is_silu);
        let Some((w_stages, shared_bytes)) = block.w_stages(layout.format, self.shared_room) else {
            let found = block.shared_bytes(layout.format, 2);
            return Err(limit("shared memory in bytes", found, self.shared_room));
        };
        let params = WgmmaLinearParams {
            weights: launch.weights.ptr(),
            scales: launch.scales.ptr(),
            x: launch.x.ptr(),
            out: launch.out,
            bias: launch.bias,
            parts: self.parts.ptr(),
            tickets: self.tickets.ptr(),
            m: launch.m as i32,
            x_rows: launch.x_rows as i32,
            n: layout.n() as i32,
            n_tiles: layout.n_tiles as i32,
            n_chunks: layout.n_chunks as i32,
            out_tile_rows: launch.out_tile_rows as i32,
            w_stages: w_stages as i32,
            x_stages: block.x_stages as i32,
            epilogue: launch.epilogue.on_device(),
            padding: 0,
            next: next_params(launch, variant),
        };
        let n_blocks = self.n_multiprocessors as u32;
        let mut config = LaunchConfig::new(n_blocks, block.n_threads() as u32);
        config.shared_bytes = shared_bytes;
        config.dependent = launch.dependent;
        config.cooperative = !self.exclusive_device;
        let Some(format) = formats().position(|format| format == layout.format) else {
            let message = format!("wgmma.cu has no kernels for {:?}", layout.format);
            return Err(KernelError::Value { op: OP, message }.into());
        };
        let output = output_of(launch.epilogue);
        let index = (format * OUTPUTS.len() + output) * ROWS.len() + variant;
        // SAFETY: the caller has checked weights, x, bias and output against the layout and m; x
        // has whole tiles of rows; parts hold two shares for each block, tickets two for each tile
        // that is cut, which are fewer than the blocks; the rings fit the shared memory asked for.
        unsafe { self.variants[index].launch(stream, &config, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_fit_an_h100_with_every_format() {
        for format in formats() {
            for variant in 0..ROWS.len() {
                for is_silu in [false, true] {
                    let block = Block::of(variant, is_silu);
                    let room = 232_448;
                    let (stages, bytes) = block.w_stages(format, room).expect("fits");
                    assert!(stages >= 2 && bytes <= room, "{format:?} {block:?}");
                    let part = block.warp_tiles * block.rows / 8 * block.n_warpgroups * 128;
                    assert!(4 * part <= PART_VALUES, "{block:?}");
                    // Threads that leave registers enough.
                    assert!(block.n_threads() <= 640);
                }
            }
        }
        let silu = Block::of(1, true);
        assert_eq!(
            silu.w_stages(Format::AwqG128, 232_448).map(|s| s.0),
            Some(3)
        );
    }

    /// What the tests of serving schedules run has tiles of work for whole waves of an H200's
    /// multiprocessors and a rest, which is cut.
    #[test]
    fn serving_shapes_have_whole_and_cut_tiles() {
        let tiles_of_work = |n_tiles: usize, is_silu, m: usize| {
            let rows = tile_rows(m);
            let variant = ROWS.iter().position(|r| *r == rows).expect("one of them");
            let block = Block::of(variant, is_silu);
            n_tiles.div_ceil(block.n_tiles()) * m.div_ceil(rows)
        };
        // gate and up of 25,600 columns each; o of 5,120.
        for m in [20, 64, 128, 1024] {
            let n = tiles_of_work(2 * 25_600 / 16, true, m);
            assert!(n > 132 && !n.is_multiple_of(132), "{m} rows: {n}");
        }
        let n = tiles_of_work(5120 / 16, false, 1024);
        assert!(n > 132 && !n.is_multiple_of(132), "{n}");
        // Fewer rows of o have no whole wave: all tiles are cut.
        assert!(tiles_of_work(5120 / 16, false, 64) < 132);
    }
}
