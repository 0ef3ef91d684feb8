//! Launches of `mma.cu`: any number of rows, by default 9 and more, where there is no `wgmma`.

use gpu::{Buffer, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

use super::{Format, LargeMLaunch, Layout};
use crate::cuda::Element;
use crate::shared_with_device::{device_structs, shared_constants};

const SOURCE: &str = "stream_linear/mma";
const WARPS: usize = 8;
const THREADS: usize = WARPS * 32;
/// Tiles of 16 columns that a warp multiplies.
const WARP_TILES: usize = 2;
const BLOCK_TILES: usize = WARPS * WARP_TILES;
/// k of a stage.
const STAGE_K: usize = 64;
/// Rows of a tile of work that kernels are compiled for.
const ROWS: [usize; 5] = [16, 24, 32, 64, 128];
/// Those for formats that do not have all variants.
const FEW_ROWS: [usize; 3] = [24, 64, 128];
/// Up to this many rows of a tile, two blocks of 4-bit weights fit a multiprocessor.
const MAX_ROWS_OF_TWO_BLOCKS: usize = 32;
/// Chunks of k that a block works on at least for two of them to be faster than one: between q, k and v of
/// Qwen3-32B, which 264 blocks share with 3 chunks each and lose 9 % of their time, and its down projection,
/// which has 7.6 and gains 4 to 7 % (`NOTES.md`).
const MIN_CHUNKS_OF_TWO_BLOCKS: usize = 5;

shared_constants! {
    in "stream_linear/mma.cu" { WARPS, THREADS, WARP_TILES, BLOCK_TILES, STAGE_K as PIECE_K }
}

device_structs! {
    #[derive(Debug)]
    pub(super) struct MmaLinearParams as MmaLinearParams in "stream_linear/mma_block.cuh" {
        weights: DevicePtr<u8>,
        scales: DevicePtr<u8>,
        x: DevicePtr<u8>,
        /// Null for 16-bit x.
        x_scales: DevicePtr<f32>,
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
        epilogue: i32,
        shared_bytes: i32,
    }
}

impl MmaLinearParams {
    /// `x`: values and, of 8-bit ones, scales, of `x_rows` rows.
    pub fn new(
        launch: &LargeMLaunch<'_>,
        x: (DevicePtr<u8>, DevicePtr<f32>),
        x_rows: usize,
        parts: DevicePtr<f32>,
        tickets: DevicePtr<i32>,
        shared_bytes: usize,
    ) -> Self {
        let layout = launch.layout;
        Self {
            weights: launch.weights.ptr(),
            scales: launch.scales.ptr(),
            x: x.0,
            x_scales: x.1,
            out: launch.out,
            bias: launch.bias,
            parts,
            tickets,
            m: launch.m as i32,
            x_rows: x_rows as i32,
            n: layout.n() as i32,
            n_tiles: layout.n_tiles as i32,
            n_chunks: layout.n_chunks as i32,
            out_tile_rows: launch.out_tile_rows as i32,
            epilogue: launch.epilogue.on_device(),
            shared_bytes: shared_bytes as i32,
        }
    }
}

/// Bytes of shared memory of a tile of `rows` rows, one of [`ROWS`]: as `Ring` in mma.cu counts them, which
/// refuses to run with another number.
fn shared_bytes(format: Format, rows: usize) -> usize {
    let per_chunk = format.chunk_k() / STAGE_K;
    let ahead = match (per_chunk, rows) {
        (1, _) | (2, 128) => 1,
        (4, 64) => 4,
        _ => 2,
    };
    let is_late = rows >= 64 || per_chunk == 1;
    let stages = ahead + 1 + usize::from(is_late);
    let x = stages * rows * STAGE_K * 2;
    // Slots of a chunk's scales; there are no scales of 16-bit weights.
    let slots = ahead / per_chunk + 2;
    let scales = slots * BLOCK_TILES * format.scale_bytes();
    let barrier = 8;
    x + scales + barrier
}

/// Tiles of work and chunks are counted in 32 bits.
pub(super) fn check_units(kernel: &str, n_blocks: usize, layout: &Layout) -> Result<(), CudaError> {
    let found = n_blocks * layout.n_chunks;
    let limit = i32::MAX as usize / n_blocks;
    if found <= limit {
        return Ok(());
    }
    Err(CudaError::Launch {
        kernel: kernel.to_owned(),
        what: "blocks times chunks of k",
        found,
        limit,
    })
}

/// Rows of the tiles that `format` has kernels for, ascending.
pub(super) const fn rows(format: Format) -> &'static [usize] {
    if format.has_all_variants() {
        &ROWS
    } else {
        &FEW_ROWS
    }
}

/// Rows of the tiles that `m` rows use by default: the fewest that hold them all.
pub(super) fn tile_rows(format: Format, m: usize) -> usize {
    let mut sizes = rows(format).iter().copied();
    sizes.find(|rows| m <= *rows).unwrap_or(128)
}

/// Blocks of a launch: two a multiprocessor if the tiles have few rows and each block has enough to do.
fn n_blocks(n_multiprocessors: usize, tile_rows: usize, m: usize, layout: &Layout) -> usize {
    let n_tiles = layout.n_tiles.div_ceil(BLOCK_TILES) * m.div_ceil(tile_rows);
    let enough = 2 * n_multiprocessors * MIN_CHUNKS_OF_TWO_BLOCKS;
    let fits_twice = layout.format.code_bits() == 4 && tile_rows <= MAX_ROWS_OF_TWO_BLOCKS;
    if fits_twice && n_tiles * layout.n_chunks >= enough {
        2 * n_multiprocessors
    } else {
        n_multiprocessors
    }
}

#[derive(Debug)]
pub(super) struct MmaKernels {
    /// [format][rows of it]
    variants: Vec<Vec<Kernel>>,
    /// [blocks][2][256 columns * rows of a tile]: sums of tiles that several blocks share
    parts: Buffer<f32>,
    /// [tiles that are cut], zero between launches
    tickets: Buffer<i32>,
    n_multiprocessors: usize,
    shared_room: usize,
    /// So much that no second block fits beside it. Blocks start while those of the previous launch still run,
    /// and without this two of them may come to a multiprocessor that is free early, and none to another.
    shared_of_a_single_block: usize,
}

impl MmaKernels {
    pub fn load(stream: &Stream, element: Element) -> Result<Self, CudaError> {
        let device: &Device = stream.device();
        let properties = device.properties();
        let shared_room = properties.shared_bytes_per_block;
        let load = |format: Format, rows: &usize| -> Result<Kernel, CudaError> {
            let name = format!("mma_{}_{rows}", format.kernel_name());
            let kernel = element.kernel(device, SOURCE, &name)?;
            kernel.set_max_dynamic_shared(shared_room)?;
            kernel.set_shared_carveout(100)?;
            Ok(kernel)
        };
        let load_all = |format: Format| {
            let rows = rows(format).iter().filter(|_| format.has_element(element));
            rows.map(|rows| load(format, rows)).collect()
        };
        let variants = Format::ALL
            .into_iter()
            .map(load_all)
            .collect::<Result<_, _>>()?;
        let n_multiprocessors = properties.n_multiprocessors;
        let part = BLOCK_TILES * 16 * ROWS[ROWS.len() - 1];
        Ok(Self {
            variants,
            parts: Buffer::new(device, n_multiprocessors * 2 * part)?,
            tickets: Buffer::zeroed(stream, 2 * n_multiprocessors)?,
            n_multiprocessors,
            shared_room,
            shared_of_a_single_block: shared_room
                .min(properties.shared_bytes_per_multiprocessor / 2),
        })
    }

    /// In tiles of `tile_rows` rows, one of the format's [`rows`]; tiled x has whole tiles of them.
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
        let kernel = rows(layout.format)
            .iter()
            .zip(&self.variants[layout.format as usize])
            .find_map(|(rows, kernel)| (*rows == tile_rows).then_some(kernel))
            .ok_or_else(|| limit("the rows of a tile", tile_rows, ROWS[ROWS.len() - 1]))?;
        let rows_read = launch.m.next_multiple_of(tile_rows);
        if rows_read > launch.x_rows {
            return Err(limit("rows of tiled x", rows_read, launch.x_rows));
        }
        let n_blocks = n_blocks(self.n_multiprocessors, tile_rows, launch.m, layout);
        check_units(SOURCE, n_blocks, layout)?;
        let shared_bytes = shared_bytes(layout.format, tile_rows);
        if shared_bytes > self.shared_room {
            return Err(limit(
                "shared memory in bytes",
                shared_bytes,
                self.shared_room,
            ));
        }
        let x = (launch.x.ptr().cast(), DevicePtr::null());
        let params = MmaLinearParams::new(
            launch,
            x,
            launch.x_rows,
            self.parts.ptr(),
            self.tickets.ptr(),
            shared_bytes,
        );
        let mut config = LaunchConfig::new(n_blocks as u32, THREADS as u32);
        config.shared_bytes = if n_blocks == self.n_multiprocessors {
            shared_bytes.max(self.shared_of_a_single_block)
        } else {
            shared_bytes
        };
        config.dependent = launch.dependent;
        // SAFETY: the caller has checked weights, x, bias and output against the layout and m; x
        // has whole tiles of rows; parts hold two shares for each block (twice the blocks have at most a quarter
        // of the rows), tickets one for each tile that is cut, which are fewer than the blocks; the kernel has
        // the shared memory that it counts.
        unsafe { kernel.launch(stream, &config, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Arrangement;
    use super::*;

    /// The values of `Ring::BYTES` in mma.cu, by format and rows of a tile.
    #[test]
    fn shared_memory_is_what_the_kernels_count() {
        let expected = [
            (Format::AwqG128, [8_712, 11_784, 14_856, 53_000, 68_104]),
            (Format::AwqG64, [11_272, 14_344, 17_416, 56_840, 70_664]),
            (Format::AwqG32, [16_392, 19_464, 22_536, 64_520, 75_784]),
            (Format::Half, [6_152, 9_224, 12_296, 24_584, 49_160]),
        ];
        for (format, bytes) in expected {
            let found = ROWS.map(|rows| shared_bytes(format, rows));
            assert_eq!(found, bytes, "{format:?}");
        }
        let expected = [
            (Format::MinG32, [25_608, 73_736, 81_928]),
            (Format::BytesG32, [15_368, 38_920, 53_256]),
            (Format::BytesG16, [21_512, 45_064, 57_352]),
            (Format::BytesMinG16, [33_800, 57_352, 65_544]),
            (Format::Fp8, [12_296, 35_848, 51_208]),
        ];
        for (format, bytes) in expected {
            let found = FEW_ROWS.map(|rows| shared_bytes(format, rows));
            assert_eq!(found, bytes, "{format:?}");
            assert_eq!(rows(format), FEW_ROWS);
        }
    }

    #[test]
    fn two_blocks_share_a_multiprocessor_where_each_has_enough_chunks() {
        let stacked = |n, k| Layout::new(Format::AwqG128, Arrangement::Stacked, &[n], k);
        let gate_up = Layout::new(
            Format::AwqG128,
            Arrangement::GateUp,
            &[25_600, 25_600],
            5_120,
        );
        let gate_up = gate_up.expect("layout");
        let qkv = stacked(10_240, 5_120).expect("layout");
        let down = stacked(5_120, 25_600).expect("layout");
        assert_eq!(n_blocks(132, 32, 20, &gate_up), 264);
        assert_eq!(n_blocks(132, 16, 16, &down), 264);
        assert_eq!(n_blocks(132, 16, 16, &qkv), 132);
        // More tiles of rows are more work.
        assert_eq!(n_blocks(132, 16, 32, &qkv), 264);
        assert_eq!(n_blocks(132, 64, 64, &gate_up), 132);
        assert_eq!(n_blocks(170, 32, 32, &down), 340);
        for rows in ROWS
            .into_iter()
            .filter(|rows| *rows <= MAX_ROWS_OF_TWO_BLOCKS)
        {
            for format in Format::ALL {
                // Two blocks and their reserved KiB in a multiprocessor of 100 KiB.
                assert!(
                    2 * (shared_bytes(format, rows) + 1024) <= 100 * 1024,
                    "{format:?} {rows}"
                );
            }
        }
    }

    #[test]
    fn every_kernel_fits_a_block_of_99_kib() {
        for format in Format::ALL {
            for rows in ROWS {
                let bytes = shared_bytes(format, rows);
                assert!(bytes <= 99 * 1024, "{format:?} {rows} {bytes}");
            }
        }
    }
}
