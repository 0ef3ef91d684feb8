//! Launches of `mma.cu`: any number of rows, by default 17 and more, where there is no `wgmma`.

use bytemuck::{Pod, Zeroable};

use super::{CHUNK_BYTES, Epilogue, Format, ManyRowsLaunch};
use crate::cuda::{Buffer, CudaError, Device, DevicePtr, Element, Kernel, LaunchConfig, Stream};

const SOURCE: &str = "stream_linear/mma";
const WARPS: usize = 8;
const THREADS: usize = WARPS * 32;
/// Tiles of 16 columns that a warp multiplies.
const WARP_TILES: usize = 2;
const BLOCK_TILES: usize = WARPS * WARP_TILES;
/// k of a stage of x.
const STEP_K: usize = 64;
/// Rows of a tile of work that kernels are compiled for.
pub(super) const ROWS: [usize; 4] = [16, 32, 64, 128];
/// (stages of weights, stages of x) to try, best first, by row count. x needs three at least: what
/// is brought has been read a step ago.
const STAGES: [&[(usize, usize)]; 4] = [
    &[(6, 6), (5, 6), (4, 6), (3, 4), (2, 4)],
    &[(6, 6), (5, 4), (4, 4), (3, 4), (2, 4)],
    &[(6, 6), (4, 4), (4, 3), (3, 4), (3, 3), (2, 4)],
    &[(4, 4), (2, 4), (2, 3), (1, 3)],
];

/// As `MmaLinearParams` in mma.cu.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct MmaLinearParams {
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
    epilogue: i32,
    w_stages: i32,
    x_stages: i32,
    scale_slots: i32,
}

/// Stages of the rings and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rings {
    w_stages: usize,
    x_stages: usize,
    scale_slots: usize,
    shared_bytes: usize,
}

impl Rings {
    /// The first of [`STAGES`] that fits `room` bytes; `None` where none does.
    fn fitting(format: Format, rows: usize, room: usize) -> Option<Self> {
        let variant = ROWS.iter().position(|r| *r == rows)?;
        STAGES[variant]
            .iter()
            .map(|&(w_stages, x_stages)| Self::of(format, rows, w_stages, x_stages))
            .find(|rings| rings.shared_bytes <= room)
    }

    /// Shared memory as the comment in mma.cu lists it.
    fn of(format: Format, rows: usize, w_stages: usize, x_stages: usize) -> Self {
        // Half a chunk, or the whole where that is 64 k.
        let stages_per_chunk = if format.chunk_k() == STEP_K { 1 } else { 2 };
        // A chunk's scales come with its first stage and stay until its last is done.
        let scale_slots = match format.scale_bytes() {
            0 => 1,
            _ => w_stages / stages_per_chunk + 1,
        };
        let x = x_stages * rows * STEP_K * 2;
        let weights = BLOCK_TILES * w_stages * CHUNK_BYTES / stages_per_chunk;
        let scales = BLOCK_TILES * scale_slots * format.scale_bytes();
        let barriers = 8 * (2 * x_stages + WARPS * w_stages);
        Self {
            w_stages,
            x_stages,
            scale_slots,
            shared_bytes: x + weights + scales + barriers,
        }
    }
}

/// Rows of the tiles that `m` rows use by default: the fewest that hold them all.
pub(super) fn tile_rows(m: usize) -> usize {
    ROWS.into_iter().find(|rows| m <= *rows).unwrap_or(128)
}

#[derive(Debug)]
pub(super) struct MmaKernels {
    /// [format][rows]
    variants: Vec<Kernel>,
    /// [blocks][2][256 columns * 128 rows]: sums of tiles that several blocks share
    parts: Buffer<f32>,
    /// [tiles that are cut], zero between launches
    tickets: Buffer<i32>,
    n_multiprocessors: usize,
    shared_room: usize,
}

impl MmaKernels {
    pub fn load(stream: &Stream, element: Element) -> Result<Self, CudaError> {
        let device: &Device = stream.device();
        let properties = device.properties();
        let shared_room = properties.shared_bytes_per_block;
        let mut variants = Vec::with_capacity(16);
        for format in Format::ALL {
            for rows in ROWS {
                let prefix = format.kernel_prefix().replacen("stream", "mma", 1);
                let kernel = device.element_kernel(element, SOURCE, &format!("{prefix}_{rows}"))?;
                kernel.set_max_dynamic_shared(shared_room)?;
                kernel.set_shared_carveout(100)?;
                variants.push(kernel);
            }
        }
        let n_multiprocessors = properties.n_multiprocessors;
        let part = BLOCK_TILES * 16 * ROWS[ROWS.len() - 1];
        Ok(Self {
            variants,
            parts: Buffer::new(device, n_multiprocessors * 2 * part)?,
            tickets: Buffer::zeroed(stream, n_multiprocessors)?,
            n_multiprocessors,
            shared_room,
        })
    }

    /// In tiles of `tile_rows` rows, one of [`ROWS`]; tiled x has whole tiles of them.
    pub fn launch(
        &self,
        stream: &Stream,
        tile_rows: usize,
        launch: &ManyRowsLaunch<'_>,
    ) -> Result<(), CudaError> {
        let layout = launch.layout;
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
        // Tiles of work and chunks are counted in 32 bits.
        let units = self.n_multiprocessors * layout.n_chunks;
        let max_units = i32::MAX as usize / self.n_multiprocessors;
        if units > max_units {
            return Err(limit("multiprocessors times chunks of k", units, max_units));
        }
        let Some(rings) = Rings::fitting(layout.format, tile_rows, self.shared_room) else {
            let least = Rings::of(layout.format, tile_rows, 1, 3).shared_bytes;
            return Err(limit("shared memory in bytes", least, self.shared_room));
        };
        let params = MmaLinearParams {
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
            epilogue: match launch.epilogue {
                Epilogue::Store => 0,
                Epilogue::AddResidual => 1,
                Epilogue::SiluMul => 2,
                Epilogue::StoreF32 => 3,
            },
            w_stages: rings.w_stages as i32,
            x_stages: rings.x_stages as i32,
            scale_slots: rings.scale_slots as i32,
        };
        let mut config = LaunchConfig::new(self.n_multiprocessors as u32, THREADS as u32);
        config.shared_bytes = rings.shared_bytes;
        config.dependent = launch.dependent;
        let index = layout.format as usize * ROWS.len() + variant;
        // SAFETY: the caller has checked weights, x, bias and output against the layout and m; x
        // has whole tiles of rows; parts hold two shares for each block, tickets one for each tile
        // that is cut, which are fewer than the blocks; the rings fit the shared memory asked for.
        unsafe { self.variants[index].launch(stream, &config, &params) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_fit_both_chips_with_every_format() {
        for (room, least_weights) in [(101_376, 32 << 10), (232_448, 64 << 10)] {
            for format in Format::ALL {
                for rows in ROWS {
                    let rings = Rings::fitting(format, rows, room).expect("fits");
                    assert!(rings.shared_bytes <= room, "{format:?} {rows} {rings:?}");
                    assert!(rings.x_stages >= 3, "{format:?} {rows} {rings:?}");
                    let stage = if format == Format::Half { 2048 } else { 1024 };
                    let weights = rings.w_stages * BLOCK_TILES * stage;
                    assert!(
                        weights >= least_weights || rows == 128,
                        "{format:?} {rows} {rings:?}"
                    );
                }
            }
        }
        let prompt = Rings::fitting(Format::AwqG128, 128, 101_376).expect("fits");
        assert_eq!((prompt.w_stages, prompt.x_stages), (2, 4));
    }
}
