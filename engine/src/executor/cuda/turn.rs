//! One executor's work on the card at a time: safety, whoever calls. Whose step is next is
//! `engine_loop::turns`' business.
//!
//! Blocks of the many-row projection wait for each other, so kernels of two executors of this
//! process must not run side by side. A call holds the turn until its results are there. Work
//! begun ahead outlives the call that queued it: then an event that marks its end stays in the
//! turn, and the next executor waits for it. For the same executor its stream keeps the order.
//!
//! Loading holds the turn while it captures graphs and times kernels. Freeing memory waits for all
//! that the card has been given, which a capture does not survive: so models are loaded, unloaded
//! and put to sleep one at a time (`server::admin` sees to that), and no step allocates or frees. Not
//! covered: a model whose engine dies of a panic while another one is being loaded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernels::cuda::{CudaError, Event, Stream};

/// Behind the work that is still on the card, if any.
static TURN: Mutex<Option<Arc<Event>>> = Mutex::new(None);

pub(super) struct Turn {
    left: MutexGuard<'static, Option<Arc<Event>>>,
}

impl Turn {
    /// Waits until no other executor's work is on the card. `own` is the caller's event.
    pub fn take(own: &Arc<Event>) -> Result<Self, CudaError> {
        let mut left = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = left.take()
            && !Arc::ptr_eq(&event, own)
        {
            event.synchronize()?;
        }
        Ok(Self { left })
    }

    /// What was given to `stream` so far may still run after this turn.
    pub fn leave_work(&mut self, stream: &Stream, own: &Arc<Event>) -> Result<(), CudaError> {
        own.record(stream)?;
        *self.left = Some(Arc::clone(own));
        Ok(())
    }
}
