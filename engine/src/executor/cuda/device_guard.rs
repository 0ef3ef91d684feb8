//! Process-wide mutual exclusion for GPU work. `engine_loop::device_arbiter` decides which model
//! runs next; this guards correctness, whatever the caller.
//!
//! Blocks of the large-M projection wait for each other, so kernels of two executors of this
//! process must never be co-resident. A call holds the guard until its results have arrived.
//! Lookahead work outlives the call that queued it: then an event that marks its end stays in the
//! guard, and the next executor waits for it. For the same executor, its stream keeps the order.
//!
//! Loading holds the guard while it captures graphs and times kernels. Freeing memory synchronises
//! with the device, which invalidates a capture: therefore models are loaded, unloaded and put to
//! sleep one at a time (`server::admin` ensures it), and no step allocates or frees. Not covered: a
//! model whose engine panics while another one is being loaded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gpu::{CudaError, Event, Stream};

/// Recorded after the work that is still running on the GPU, if any.
static DEVICE: Mutex<Option<Arc<Event>>> = Mutex::new(None);

pub(super) struct DeviceGuard {
    left: MutexGuard<'static, Option<Arc<Event>>>,
}

impl DeviceGuard {
    /// Waits until no other executor's work is running on the GPU. `own` is the caller's event.
    pub fn take(own: &Arc<Event>) -> Result<Self, CudaError> {
        let mut left = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = left.take()
            && !Arc::ptr_eq(&event, own)
        {
            event.synchronize()?;
        }
        Ok(Self { left })
    }

    /// Work queued on `stream` so far may still run after this guard is dropped.
    pub fn hand_off(&mut self, stream: &Stream, own: &Arc<Event>) -> Result<(), CudaError> {
        own.record(stream)?;
        *self.left = Some(Arc::clone(own));
        Ok(())
    }
}
