//! Threads that compute masks concurrently with the engine.
//!
//! Started with the first guide; they end when the model is dropped. Grammars are served
//! round-robin, so the choices of one request do not delay another request's mask. Nothing relies
//! on the threads: the engine helps while it waits ([`MaskWorkers::help`]), and a mask that is not
//! ready is computed where it is needed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::{Guide, MaskCounts};

/// Masks are short work; more threads would take cores from the CPU executor.
const MAX_WORKERS: usize = 4;

#[derive(Default)]
pub(crate) struct MaskWorkers {
    shared: Arc<Shared>,
    are_started: OnceLock<()>,
    n_ready: AtomicU64,
    n_late: AtomicU64,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Signals new work or shutdown.
    has_work: Condvar,
    /// Signals a finished mask.
    is_made: Condvar,
}

/// Guides whose next mask is needed, by grammar, served round-robin.
#[derive(Default)]
struct Queue {
    grammars: VecDeque<(u64, VecDeque<Guide>)>,
    is_closed: bool,
}

impl MaskWorkers {
    /// Queues the next mask of `guide`.
    pub fn prepare(&self, guide: Guide) {
        self.are_started.get_or_init(|| start(&self.shared));
        self.shared.queue().push(guide);
        self.shared.has_work.notify_one();
    }

    /// Computes the next queued mask on the caller's thread. Returns false if there is none.
    pub fn help(&self) -> bool {
        let next = self.shared.queue().pop();
        next.map(|guide| self.shared.work(&guide)).is_some()
    }

    /// Waits until a thread has finished a mask, for at most `limit`; returns at once if
    /// `is_needed`, which is evaluated under the lock, is false.
    pub fn wait(&self, limit: Duration, is_needed: impl Fn() -> bool) {
        let queue = self.shared.queue();
        if is_needed() {
            // Woken early or late, the caller checks again.
            let _ = self.shared.is_made.wait_timeout(queue, limit);
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

impl Drop for MaskWorkers {
    fn drop(&mut self) {
        self.shared.queue().is_closed = true;
        self.shared.has_work.notify_all();
    }
}

impl Queue {
    fn push(&mut self, guide: Guide) {
        let id = guide.grammar_id();
        match self.grammars.iter_mut().find(|(other, _)| *other == id) {
            Some((_, guides)) => guides.push_back(guide),
            None => self.grammars.push_back((id, VecDeque::from([guide]))),
        }
    }

    fn pop(&mut self) -> Option<Guide> {
        let (id, mut guides) = self.grammars.pop_front()?;
        let next = guides.pop_front();
        if !guides.is_empty() {
            self.grammars.push_back((id, guides));
        }
        next
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, guide: &Guide) {
        guide.prepare();
        // Under the lock, so that a thread that has just seen the mask missing is already waiting.
        let queue = self.queue();
        self.is_made.notify_all();
        drop(queue);
    }

    /// Blocks until there is one; `None` ends the thread.
    fn next(&self) -> Option<Guide> {
        let mut queue = self.queue();
        loop {
            if let Some(guide) = queue.pop() {
                return Some(guide);
            }
            if queue.is_closed {
                return None;
            }
            queue = self
                .has_work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn start(shared: &Arc<Shared>) {
    let n_cores = std::thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..n_cores.div_ceil(2).min(MAX_WORKERS) {
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new().name("masks".to_owned());
        let started = thread.spawn(move || {
            while let Some(guide) = shared.next() {
                shared.work(&guide);
            }
        });
        if let Err(error) = started {
            tracing::warn!("no thread for masks: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::structured::tests::{grammar_of, grammars};
    use crate::structured::{Constraint, Preamble};

    #[test]
    fn grammars_take_turns() {
        // From one source, which numbers its grammars.
        let grammars = grammars(1 << 16);
        let compiled = |regex: &str| {
            let constraint = Constraint::Regex(regex.to_owned());
            let grammar = grammars.compile(&constraint, Preamble::Nothing, 1);
            grammar.expect("compiles")
        };
        let (large, small) = (compiled("a+"), compiled("b+"));
        let mut queue = Queue::default();
        let guides: Vec<Guide> = (0..3).map(|_| large.guide()).collect();
        guides.iter().cloned().for_each(|guide| queue.push(guide));
        let other = small.guide();
        queue.push(other.clone());
        let order: Vec<Guide> = std::iter::from_fn(|| queue.pop()).collect();
        let [first, second, third] = [&guides[0], &guides[1], &guides[2]];
        assert_eq!(
            order.iter().collect::<Vec<_>>(),
            [first, &other, second, third]
        );
    }

    #[test]
    fn what_no_thread_has_come_to_is_made_by_who_waits() {
        let workers = MaskWorkers::default();
        assert!(!workers.help());
        workers.shared.queue().push(grammar_of("ab").guide());
        assert!(workers.help() && !workers.help());
        // The limit ends the wait if no thread finishes a mask.
        workers.wait(Duration::from_millis(1), || true);
    }
}
