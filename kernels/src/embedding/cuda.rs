//! Token ids to hidden states on the GPU.

use gpu::{BufferView, CudaError, Device, DevicePtr, Kernel, LaunchConfig, Stream};

use crate::cuda::shape::ShapeCheck;
use crate::cuda::{Element, ElementView};
use crate::shared_with_device::{device_structs, shared_constants};

const CHECK: ShapeCheck = ShapeCheck("embedding");
const THREADS: u32 = 256;

shared_constants! {
    in "embedding/embedding.cu" { THREADS }
}

device_structs! {
    struct Params as EmbeddingParams in "embedding/embedding.cu" {
        ids: DevicePtr<i32>,
        table: DevicePtr<u16>,
        h: DevicePtr<f32>,
        n: i32,
        vocab: i32,
    }
}

#[derive(Debug)]
pub struct Embedding {
    kernel: Kernel,
    element: Element,
}

impl Embedding {
    /// # Errors
    ///
    /// If the binary has no such kernel for this device.
    pub fn new(device: &Device, element: Element) -> Result<Self, CudaError> {
        let kernel = element.kernel(device, "embedding/embedding", "embedding")?;
        kernel.set_shared_carveout(100)?;
        Ok(Self { kernel, element })
    }

    /// `ids: [n_rows]`, `table: [vocab, hidden]`, `h: [n_rows, hidden]`. An id outside the
    /// vocabulary gives row 0. `hidden` is a multiple of 8.
    ///
    /// # Errors
    ///
    /// If a view is shorter than its shape, misaligned or of another element, `hidden` is no
    /// multiple of 8, or `stream` is of another device.
    pub fn launch(
        &self,
        stream: &Stream,
        ids: BufferView<'_, i32>,
        table: ElementView<'_>,
        h: BufferView<'_, f32>,
        n_rows: usize,
        hidden: usize,
    ) -> Result<(), CudaError> {
        let table = CHECK.element("table", table, self.element)?;
        CHECK.multiple("hidden", hidden, 8)?;
        CHECK.multiple("length of table", table.len(), hidden)?;
        CHECK.at_least("length of ids", ids.len(), n_rows)?;
        CHECK.rows("length of h", h, n_rows, hidden, hidden)?;
        CHECK.aligned("table", table, 16)?;
        CHECK.aligned("h", h, 16)?;
        if n_rows == 0 {
            return Ok(());
        }
        let params = Params {
            ids: ids.ptr(),
            table: table.ptr(),
            h: h.ptr(),
            n: CHECK.int("hidden", hidden)?,
            vocab: CHECK.int("vocab", table.len() / hidden)?,
        };
        let grid = CHECK.int("n_rows", n_rows)? as u32;
        let config = LaunchConfig {
            dependent: true,
            ..LaunchConfig::new(grid, THREADS)
        };
        // SAFETY: a block reads one id below n_rows, one row of the table (the kernel holds ids
        // inside), and writes one row of h; the lengths were checked above.
        unsafe { self.kernel.launch(stream, &config, &params) }
    }
}
