use super::*;
use std::sync::atomic::AtomicU32;

#[test]
fn every_thread_runs_every_region_once() {
    for n_threads in [1, 2, 3, 7] {
        let mut pool = WorkerPool::new(n_threads).expect("pool");
        let calls: Vec<AtomicU32> = (0..n_threads).map(|_| AtomicU32::new(0)).collect();
        for _ in 0..300 {
            pool.run(&|thread| {
                calls[thread].fetch_add(1, Ordering::SeqCst);
            })
            .expect("run");
        }
        assert!(calls.iter().all(|c| c.load(Ordering::SeqCst) == 300));
    }
}

/// Shares so short that caller and workers compete for them.
#[test]
fn each_share_runs_once_on_any_thread() {
    for n_threads in [2, 3, 5] {
        let mut pool = WorkerPool::new(n_threads).expect("pool");
        let calls: Vec<AtomicU32> = (0..n_threads).map(|_| AtomicU32::new(0)).collect();
        for region in 1..=20_000 {
            pool.run(&|share| {
                calls[share].fetch_add(1, Ordering::Relaxed);
            })
            .expect("run");
            assert!(calls.iter().all(|c| c.load(Ordering::Relaxed) == region));
        }
    }
}

#[test]
fn the_caller_takes_the_share_of_a_worker_that_does_not_come() {
    let mut pool = WorkerPool::new(2).expect("pool");
    let caller = thread::current().id();
    let mut n_taken = 0;
    for _ in 0..200 {
        // Long enough for the worker to park; waking takes longer than the caller's own share.
        thread::sleep(Duration::from_micros(300));
        let by = Mutex::new(None);
        pool.run(&|share| {
            if share == 1 {
                *lock(&by) = Some(thread::current().id());
            }
        })
        .expect("run");
        n_taken += usize::from(*lock(&by) == Some(caller));
    }
    assert!(n_taken > 0, "the worker was there first every time");
}

#[test]
fn parked_workers_wake() {
    let mut pool = WorkerPool::new(3).expect("pool");
    let n_calls = AtomicU32::new(0);
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(3));
        pool.run(&|thread| {
            // The caller has to park as well if a worker is slow.
            if thread == 1 {
                thread::sleep(Duration::from_millis(2));
            }
            n_calls.fetch_add(1, Ordering::SeqCst);
        })
        .expect("run");
    }
    assert_eq!(n_calls.load(Ordering::SeqCst), 15);
}

#[test]
fn a_panic_becomes_an_error_and_the_pool_lives_on() {
    let mut pool = WorkerPool::new(2).expect("pool");
    for culprit in [0, 1] {
        let error = pool.run(&|thread| assert!(thread != culprit, "thread {culprit} fell"));
        match error {
            Err(HostError::WorkerPanic(message)) => assert!(message.contains("fell")),
            other => panic!("expected a worker panic, got {other:?}"),
        }
        pool.run(&|_| ()).expect("still usable");
    }
}

#[test]
fn items_are_visited_once() {
    let mut pool = WorkerPool::new(3).expect("pool");
    for n in [0, 1, 2, 5, 100] {
        let mut items = vec![0usize; n];
        pool.for_each_mut(&mut items, &|i, item| *item += i + 1)
            .expect("run");
        assert_eq!(items, (1..=n).collect::<Vec<_>>());
    }
}

#[test]
fn thread_count_is_checked() {
    assert!(WorkerPool::new(0).is_err());
    assert!(WorkerPool::new(MAX_THREADS + 1).is_err());
}
