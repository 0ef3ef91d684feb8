//! Threads that make masks while the engine does something else.
//!
//! Started with the first guide; they end when the model goes. Nothing depends on them: a mask
//! that they did not come to is made by who needs it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::guide::{Guide, MaskCounts};

/// Masks are short work; more threads would take cores from the CPU executor.
const MAX_WORKERS: usize = 4;

#[derive(Default)]
pub(super) struct MaskWorkers {
    /// `None` inside: no thread could be started.
    queue: OnceLock<Option<Sender<Guide>>>,
    n_ready: AtomicU64,
    n_late: AtomicU64,
}

impl MaskWorkers {
    /// Has the next mask of `guide` made.
    pub fn prepare(&self, guide: Guide) {
        if let Some(queue) = self.queue.get_or_init(start) {
            // Without a thread to take it, whoever needs the mask makes it.
            let _ = queue.send(guide);
        }
    }

    pub fn count(&self, is_ready: bool) {
        let n = if is_ready {
            &self.n_ready
        } else {
            &self.n_late
        };
        n.fetch_add(1, Ordering::Relaxed);
    }

    pub fn counts(&self) -> MaskCounts {
        MaskCounts {
            ready: self.n_ready.load(Ordering::Relaxed),
            late: self.n_late.load(Ordering::Relaxed),
        }
    }
}

fn start() -> Option<Sender<Guide>> {
    let (queue, guides) = channel();
    let guides = Arc::new(Mutex::new(guides));
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let n_started = (0..n_cores.div_ceil(2).min(MAX_WORKERS))
        .filter(|_| {
            let guides = Arc::clone(&guides);
            let thread = std::thread::Builder::new().name("masks".to_owned());
            let started = thread.spawn(move || work(&guides));
            started
                .inspect_err(|error| tracing::warn!("no thread for masks: {error}"))
                .is_ok()
        })
        .count();
    (n_started > 0).then_some(queue)
}

fn work(guides: &Mutex<Receiver<Guide>>) {
    loop {
        let next = guides.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(guide) = next else { return };
        guide.prepare();
    }
}
