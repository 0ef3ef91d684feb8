//! Persistent worker threads: a parallel region costs about a microsecond while they are warm.
//!
//! A region has a share for every thread, and kernels divide their work by the share's index alone,
//! so the same thread reads the same weight rows in every step. If a worker has not started by the
//! time the caller has finished its own share, because another process has its core or it is still
//! waking up, the caller takes that share as well. Between regions a thread spins for a few
//! microseconds, then yields to other threads, and parks after [`SPIN_LIMIT`].
//!
//! Deliberately absent: stealing anything smaller than a share, nesting, futures.

mod disjoint;

pub use disjoint::DisjointMut;

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crate::HostError;

/// A waiting thread parks after this time.
const SPIN_LIMIT: Duration = Duration::from_micros(50);
/// Polls without a system call, before the first yield.
const BUSY_POLLS: u32 = 200;
/// Yields between two looks at the clock.
const YIELDS_PER_CLOCK: u32 = 4;
/// More threads than this are refused.
pub const MAX_THREADS: usize = 256;

type Task = dyn Fn(usize) + Sync;

/// A borrowed task whose lifetime was erased; valid until its region ends.
#[derive(Clone, Copy)]
struct TaskPtr(*const Task);

// SAFETY: the task that the pointer refers to is `Sync`, and `run` does not return before every worker
// is done with it.
unsafe impl Send for TaskPtr {}

struct Shared {
    /// Counts regions; a worker starts when it changes.
    epoch: AtomicU64,
    task: Mutex<Option<TaskPtr>>,
    /// The latest region in which each share was taken, by its worker or by the caller.
    taken: Vec<AtomicU64>,
    /// Shares of workers that are not finished in the current region.
    n_running: AtomicUsize,
    caller: Mutex<Option<Thread>>,
    caller_parked: AtomicBool,
    parked: Vec<AtomicBool>,
    panic_message: Mutex<Option<String>>,
    stop: AtomicBool,
}

/// `n_threads - 1` workers; the calling thread is the first.
pub struct WorkerPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Shared {
    /// Returns true for the one thread that may, and must, run share `index` of region `epoch`.
    fn take(&self, index: usize, epoch: u64) -> bool {
        let before = self.taken[index].load(Ordering::SeqCst);
        before < epoch
            && self.taken[index]
                .compare_exchange(before, epoch, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
    }

    fn run_share(&self, task: &(dyn Fn(usize) + Sync), index: usize) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| task(index))) {
            lock(&self.panic_message).get_or_insert(message_of(&*payload));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock contains a message or a pointer that is overwritten before use.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WorkerPool {
    /// Starts the workers.
    ///
    /// # Errors
    ///
    /// If `n_threads` is 0 or above [`MAX_THREADS`], or the system starts no more threads.
    pub fn new(n_threads: usize) -> Result<Self, HostError> {
        if n_threads == 0 || n_threads > MAX_THREADS {
            return Err(HostError::Threads { found: n_threads });
        }
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            task: Mutex::new(None),
            taken: (0..n_threads).map(|_| AtomicU64::new(0)).collect(),
            n_running: AtomicUsize::new(0),
            caller: Mutex::new(None),
            caller_parked: AtomicBool::new(false),
            parked: (0..n_threads).map(|_| AtomicBool::new(false)).collect(),
            panic_message: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self {
            shared,
            workers: Vec::with_capacity(n_threads - 1),
        };
        for index in 1..n_threads {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("kernel-{index}"))
                .spawn(move || work(&shared, index))
                .map_err(|source| HostError::Spawn { index, source })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub fn n_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(share_index)` once for every thread's share and waits for all of them.
    ///
    /// # Errors
    ///
    /// If a share panicked; the others have run.
    pub fn run(&mut self, task: &(dyn Fn(usize) + Sync)) -> Result<(), HostError> {
        let shared = &*self.shared;
        if self.workers.is_empty() {
            return catch_unwind(AssertUnwindSafe(|| task(0)))
                .map_err(|payload| HostError::WorkerPanic(message_of(&*payload)));
        }
        // SAFETY: only the lifetime changes; the pointer is dropped by every worker before
        // `n_running` reaches zero, and this function waits for that.
        let erased: &'static Task =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static Task>(task) };
        *lock(&shared.task) = Some(TaskPtr(erased));
        shared.n_running.store(self.workers.len(), Ordering::SeqCst);
        let epoch = shared.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        for (i, worker) in self.workers.iter().enumerate() {
            if shared.parked[i + 1].swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        shared.run_share(task, 0);
        for index in 1..=self.workers.len() {
            if shared.take(index, epoch) {
                shared.run_share(task, index);
                shared.n_running.fetch_sub(1, Ordering::SeqCst);
            }
        }
        wait_until(
            || shared.n_running.load(Ordering::SeqCst) == 0,
            || {
                *lock(&shared.caller) = Some(thread::current());
                shared.caller_parked.store(true, Ordering::SeqCst);
            },
        );
        shared.caller_parked.store(false, Ordering::SeqCst);
        match lock(&shared.panic_message).take() {
            Some(message) => Err(HostError::WorkerPanic(message)),
            None => Ok(()),
        }
    }

    /// Divides `0 .. n_items` into one contiguous range for each thread. Below `min_items` for each
    /// thread nothing is gained, and the caller does all of it.
    ///
    /// # Errors
    ///
    /// If a range panicked; the others have run.
    pub fn for_ranges(
        &mut self,
        n_items: usize,
        min_items: usize,
        task: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<(), HostError> {
        let n_threads = self.n_threads();
        if n_threads == 1 || n_items < 2 * min_items.max(1) {
            return catch_unwind(AssertUnwindSafe(|| task(0..n_items)))
                .map_err(|payload| HostError::WorkerPanic(message_of(&*payload)));
        }
        self.run(&|thread| task(share(n_items, thread, n_threads)))
    }

    /// Calls `task(index, item)` for every item, spread over the threads.
    ///
    /// # Errors
    ///
    /// If an item panicked; those of other threads have run.
    pub fn for_each_mut<T: Send>(
        &mut self,
        items: &mut [T],
        task: &(dyn Fn(usize, &mut T) + Sync),
    ) -> Result<(), HostError> {
        let n_items = items.len();
        let items = DisjointMut::new(items);
        self.for_ranges(n_items, 1, &|range| {
            // SAFETY: the ranges of different threads do not overlap.
            let own = unsafe { items.slice(range.start, range.len()) };
            for (i, item) in own.iter_mut().enumerate() {
                task(range.start + i, item);
            }
        })
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker catches its tasks' panics, so it has nothing to report here.
            let _ = worker.join();
        }
    }
}

/// The part of `0 .. n_items` that belongs to `thread`.
pub fn share(n_items: usize, thread: usize, n_threads: usize) -> Range<usize> {
    n_items * thread / n_threads..n_items * (thread + 1) / n_threads
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        wait_until(
            || shared.epoch.load(Ordering::SeqCst) != seen,
            || shared.parked[index].store(true, Ordering::SeqCst),
        );
        shared.parked[index].store(false, Ordering::SeqCst);
        seen = shared.epoch.load(Ordering::SeqCst);
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        if !shared.take(index, seen) {
            continue;
        }
        let task = *lock(&shared.task);
        if let Some(task) = task {
            // SAFETY: this worker has taken its share of region `seen`, so `run` waits for the
            // decrement below before it returns or begins another region; until then the pointer
            // is that region's and its task lives.
            shared.run_share(unsafe { &*task.0 }, index);
        }
        if shared.n_running.fetch_sub(1, Ordering::SeqCst) == 1
            && shared.caller_parked.swap(false, Ordering::SeqCst)
            && let Some(caller) = &*lock(&shared.caller)
        {
            caller.unpark();
        }
    }
}

/// Spins, yields, then parks until `ready`. `announce` tells the other side to unpark.
fn wait_until(ready: impl Fn() -> bool, announce: impl Fn()) {
    for _ in 0..BUSY_POLLS {
        if ready() {
            return;
        }
        std::hint::spin_loop();
    }
    let started = Instant::now();
    while started.elapsed() < SPIN_LIMIT {
        for _ in 0..YIELDS_PER_CLOCK {
            if ready() {
                return;
            }
            thread::yield_now();
        }
    }
    loop {
        announce();
        // Checked after the announcement, so that a change in between is not missed.
        if ready() {
            return;
        }
        thread::park();
    }
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        return (*text).to_owned();
    }
    payload
        .downcast_ref::<String>()
        .cloned()
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests;
