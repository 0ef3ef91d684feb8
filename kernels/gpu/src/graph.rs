//! Captured launches: recorded once, replayed with one call.

use cudarc::driver::sys;

use super::error::check;
use super::{CudaError, Device, Stream};

/// A sequence of launches that was captured from a stream.
#[derive(Debug)]
pub struct Graph {
    device: Device,
    captured: sys::CUgraph,
    executable: sys::CUgraphExec,
}

// SAFETY: the driver's handles may be used from every thread; launches need `&self` on one
// thread at a time, as the object is not `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    /// Runs `record`, which queues work on `stream`, and records that work instead of executing it.
    /// Allocate memory and look kernels up before: neither can be captured.
    ///
    /// The memory that the captured launches and copies use must live as long as the graph: a
    /// replay after its end would touch freed device memory. The host never holds references to
    /// device memory, so that is an error on the GPU, not undefined behaviour here.
    ///
    /// # Errors
    ///
    /// If `record` fails or queues what cannot be captured.
    pub fn capture<E: From<CudaError>>(
        stream: &Stream,
        record: impl FnOnce() -> Result<(), E>,
    ) -> Result<Self, E> {
        stream.refuse_capture("a second capture")?;
        let device = stream.device().clone();
        device.inner.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives and is not capturing.
        let begun = unsafe { sys::cuStreamBeginCapture_v2(stream.raw(), mode) };
        check("cuStreamBeginCapture", begun)?;
        let capture = Capture { stream };
        stream.is_capturing.set(true);
        let recorded = record();
        let mut graph = std::ptr::null_mut();
        std::mem::forget(capture);
        stream.is_capturing.set(false);
        device.inner.bind()?;
        // SAFETY: the capture was begun above on this stream.
        let ended = unsafe { sys::cuStreamEndCapture(stream.raw(), &raw mut graph) };
        // From here on dropped together, also on an error.
        let mut result = Self {
            device,
            captured: graph,
            executable: std::ptr::null_mut(),
        };
        recorded?;
        check("cuStreamEndCapture", ended)?;
        // SAFETY: a complete graph; the driver writes one handle.
        check("cuGraphInstantiate", unsafe {
            sys::cuGraphInstantiateWithFlags(&raw mut result.executable, result.captured, 0)
        })?;
        Ok(result)
    }

    /// Uploads the graph's data to the device, so that the first launch is as fast as the others.
    ///
    /// # Errors
    ///
    /// If `stream` is of another device.
    pub fn upload(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.enter(&self.device)?;
        // SAFETY: graph and stream live, and belong to one device.
        check("cuGraphUpload", unsafe {
            sys::cuGraphUpload(self.executable, stream.raw())
        })
    }

    /// Replays the captured work in stream order.
    ///
    /// # Errors
    ///
    /// If `stream` is being captured or of another device.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.refuse_capture("a graph launch")?;
        stream.enter(&self.device)?;
        // SAFETY: graph and stream live; the captured memory lives by the promise of `capture`.
        check("cuGraphLaunch", unsafe {
            sys::cuGraphLaunch(self.executable, stream.raw())
        })
    }

    /// Number of its nodes: kernels, copies and so on.
    ///
    /// # Errors
    ///
    /// If the driver cannot read the graph.
    pub fn n_nodes(&self) -> Result<usize, CudaError> {
        let mut n_nodes = 0;
        // SAFETY: with no array given, the driver only writes the number of nodes.
        check("cuGraphGetNodes", unsafe {
            sys::cuGraphGetNodes(self.captured, std::ptr::null_mut(), &raw mut n_nodes)
        })?;
        Ok(n_nodes)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.device.inner.bind().is_err() {
            return;
        }
        // SAFETY: each handle is null or was created in `capture`, and is destroyed once; a graph
        // that still runs is finished by the driver first.
        unsafe {
            if !self.executable.is_null() {
                let _ = sys::cuGraphExecDestroy(self.executable);
            }
            if !self.captured.is_null() {
                let _ = sys::cuGraphDestroy(self.captured);
            }
        }
    }
}

/// Ends a capture whose recording panicked, so that the stream stays usable.
struct Capture<'a> {
    stream: &'a Stream,
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        self.stream.is_capturing.set(false);
        let mut graph = std::ptr::null_mut();
        // SAFETY: dropped only while the capture runs; the partial graph is destroyed once.
        unsafe {
            let _ = sys::cuStreamEndCapture(self.stream.raw(), &raw mut graph);
            if !graph.is_null() {
                let _ = sys::cuGraphDestroy(graph);
            }
        }
    }
}
