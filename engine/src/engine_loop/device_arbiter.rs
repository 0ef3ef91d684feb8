//! Decides which model runs next, if several models share a device or the CPU.
//!
//! A step has the device to itself. Among the waiting models, the one that has used the device
//! least runs next; ties go to the one that asked first. So a model with a full queue and long
//! steps delays the others by one step at a time, and over a while all models with work get the
//! same time. An idle model accumulates no credit: it returns with the usage of the model that last
//! held the device.
//!
//! Between two steps of a model, the host processes its tokens. The arbiter waits for a model that
//! has used less and will be back immediately, for [`RETURN_LIMIT`] at most; otherwise a model with
//! long steps would get every second step.
//! This is only about fairness. `executor::cuda::device_guard` guarantees that kernels of two
//! models never run concurrently on a GPU, also while one is being loaded.
//! Deliberately absent: weights, priorities between models, and revoking a lease.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the device is kept free for a model that is next in line while its host part finishes
/// the previous step.
pub const RETURN_LIMIT: Duration = Duration::from_millis(2);

/// Shares one device between several tenants.
#[derive(Debug, Default)]
pub struct DeviceArbiter {
    usage: Mutex<UsageTable>,
    changed: Condvar,
}

/// One model that uses the device; it is removed on drop.
#[derive(Debug)]
pub struct Tenant {
    arbiter: Arc<DeviceArbiter>,
    id: u64,
}

/// Exclusive use of the device until this is dropped.
#[derive(Debug)]
pub struct DeviceLease {
    arbiter: Arc<DeviceArbiter>,
    id: u64,
    since: Instant,
    /// Whether the next step of this model follows immediately.
    pub returns_immediately: bool,
}

#[derive(Debug, Default)]
struct UsageTable {
    tenants: Vec<TenantUsage>,
    is_taken: bool,
    n_joined: u64,
    n_calls: u64,
    /// The usage of the last lease's holder when it got the lease.
    level: Duration,
}

#[derive(Debug)]
struct TenantUsage {
    id: u64,
    used: Duration,
    /// Sequence number of the request for a lease; `None` while it does not wait.
    waiting: Option<u64>,
    expected_until: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    None,
    /// This tenant may run.
    Tenant(u64),
    /// A tenant that would run first is expected until then.
    NotBefore(Instant),
}

impl DeviceArbiter {
    pub fn join(self: &Arc<Self>) -> Tenant {
        let mut usage = self.lock();
        let id = usage.join();
        Tenant {
            arbiter: Arc::clone(self),
            id,
        }
    }

    fn lock(&self) -> MutexGuard<'_, UsageTable> {
        // Every change is a single assignment; a panic leaves none half done.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenant {
    /// Waits for the device.
    pub fn take(&self) -> DeviceLease {
        let mut usage = self.arbiter.lock();
        usage.call(self.id, Instant::now());
        loop {
            let now = Instant::now();
            let next = usage.next(now);
            usage = match next {
                Next::Tenant(id) if id == self.id => {
                    usage.grant(id);
                    return DeviceLease {
                        arbiter: Arc::clone(&self.arbiter),
                        id,
                        since: now,
                        returns_immediately: false,
                    };
                }
                Next::NotBefore(then) => {
                    let wait = then.saturating_duration_since(now);
                    let (usage, _) = self
                        .arbiter
                        .changed
                        .wait_timeout(usage, wait)
                        .unwrap_or_else(PoisonError::into_inner);
                    usage
                }
                Next::Tenant(_) | Next::None => self
                    .arbiter
                    .changed
                    .wait(usage)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Declares that this model has no work, so that others need not wait for it.
    pub fn set_idle(&self) {
        let mut usage = self.arbiter.lock();
        if let Some(tenant) = usage.tenant(self.id)
            && tenant.expected_until.take().is_some()
        {
            self.arbiter.changed.notify_all();
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.arbiter.lock().tenants.retain(|m| m.id != self.id);
        self.arbiter.changed.notify_all();
    }
}

impl DeviceLease {
    /// Whether another tenant waits for the device, or is expected within a moment.
    pub fn has_waiters(&self) -> bool {
        self.arbiter.lock().has_waiters(self.id, Instant::now())
    }
}

impl Drop for DeviceLease {
    fn drop(&mut self) {
        let now = Instant::now();
        let expected_until = self.returns_immediately.then(|| now + RETURN_LIMIT);
        self.arbiter.lock().give_back(
            self.id,
            now.saturating_duration_since(self.since),
            expected_until,
        );
        self.arbiter.changed.notify_all();
    }
}

impl UsageTable {
    fn join(&mut self) -> u64 {
        let id = self.n_joined;
        self.n_joined += 1;
        self.tenants.push(TenantUsage {
            id,
            used: self.level,
            waiting: None,
            expected_until: None,
        });
        id
    }

    fn tenant(&mut self, id: u64) -> Option<&mut TenantUsage> {
        self.tenants.iter_mut().find(|m| m.id == id)
    }

    fn call(&mut self, id: u64, now: Instant) {
        let (n_calls, level) = (self.n_calls, self.level);
        self.n_calls += 1;
        if let Some(tenant) = self.tenant(id) {
            tenant.waiting = Some(n_calls);
            let expected = tenant.expected_until.take();
            // A tenant that returns as expected was not idle, and keeps its lower usage.
            if expected.is_none_or(|until| until < now) {
                tenant.used = tenant.used.max(level);
            }
        }
    }

    fn next(&self, now: Instant) -> Next {
        if self.is_taken {
            return Next::None;
        }
        let waiting = self
            .tenants
            .iter()
            .filter_map(|m| Some((m.used, m.waiting?, m.id)));
        let Some((used, _, id)) = waiting.min() else {
            return Next::None;
        };
        let due = self.tenants.iter().filter(|m| m.used < used);
        match due.filter_map(|m| m.expected_until).max() {
            Some(until) if until > now => Next::NotBefore(until),
            _ => Next::Tenant(id),
        }
    }

    fn has_waiters(&self, id: u64, now: Instant) -> bool {
        let comes = |m: &TenantUsage| m.expected_until.is_some_and(|until| until > now);
        let mut others = self.tenants.iter().filter(|m| m.id != id);
        others.any(|m| m.waiting.is_some() || comes(m))
    }

    fn grant(&mut self, id: u64) {
        self.is_taken = true;
        if let Some(tenant) = self.tenant(id) {
            tenant.waiting = None;
            let used = tenant.used;
            self.level = self.level.max(used);
        }
    }

    fn give_back(&mut self, id: u64, elapsed: Duration, expected_until: Option<Instant>) {
        self.is_taken = false;
        if let Some(tenant) = self.tenant(id) {
            tenant.used += elapsed;
            tenant.expected_until = expected_until;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of steps, out of `n`, that each of two busy tenants gets; `steps_ms` has the length
    /// of their steps.
    fn play(n: usize, steps_ms: [u64; 2]) -> [usize; 2] {
        let mut usage = UsageTable::default();
        let ids = [usage.join(), usage.join()];
        let (mut now, mut counts) = (Instant::now(), [0; 2]);
        for id in ids {
            usage.call(id, now);
        }
        for _ in 0..n {
            let id = match usage.next(now) {
                Next::Tenant(id) => id,
                other => panic!("{other:?}"),
            };
            usage.grant(id);
            let i = usize::from(id == ids[1]);
            counts[i] += 1;
            let step = Duration::from_millis(steps_ms[i]);
            now += step;
            usage.give_back(id, step, Some(now + RETURN_LIMIT));
            // It returns a little later, and is still next.
            now += Duration::from_micros(300);
            usage.call(id, now);
        }
        counts
    }

    #[test]
    fn equal_steps_go_in_turn_and_short_ones_make_up_in_number() {
        assert_eq!(play(100, [5, 5]), [50, 50]);
        let [long, short] = play(110, [100, 10]);
        assert_eq!((long, short), (10, 100));
    }

    #[test]
    fn an_idle_tenant_is_next_and_accumulates_no_credit() {
        let mut usage = UsageTable::default();
        let (busy, idle) = (usage.join(), usage.join());
        let now = Instant::now();
        for _ in 0..50 {
            usage.call(busy, now);
            assert_eq!(usage.next(now), Next::Tenant(busy));
            usage.grant(busy);
            usage.give_back(busy, Duration::from_millis(10), None);
        }
        usage.call(busy, now);
        usage.call(idle, now);
        assert_eq!(usage.next(now), Next::Tenant(idle));
        usage.grant(idle);
        usage.give_back(idle, Duration::from_millis(11), None);
        usage.call(idle, now);
        assert_eq!(
            usage.next(now),
            Next::Tenant(busy),
            "not for all the 500 ms"
        );
    }

    #[test]
    fn one_that_is_due_is_waited_for_but_not_for_long() {
        let mut usage = UsageTable::default();
        let (long, short) = (usage.join(), usage.join());
        let now = Instant::now();
        usage.call(long, now);
        usage.grant(long);
        usage.give_back(long, Duration::from_millis(100), None);
        usage.call(short, now);
        usage.grant(short);
        usage.call(long, now);
        assert_eq!(usage.next(now), Next::None, "it is taken");
        let until = now + RETURN_LIMIT;
        usage.give_back(short, Duration::from_millis(1), Some(until));
        assert_eq!(usage.next(now), Next::NotBefore(until));
        assert_eq!(usage.next(until), Next::Tenant(long));
        assert!(usage.has_waiters(long, now), "the other one is expected");
        assert!(!usage.has_waiters(long, until));
        usage.call(short, now);
        assert_eq!(usage.next(now), Next::Tenant(short));
    }

    #[test]
    fn a_turn_ends_when_it_is_dropped_and_a_member_leaves_when_it_is() {
        let arbiter = Arc::new(DeviceArbiter::default());
        let (a, b) = (arbiter.join(), arbiter.join());
        let turn = a.take();
        assert!(!turn.has_waiters());
        let waiting = std::thread::spawn(move || {
            drop(b.take());
        });
        while !turn.has_waiters() {
            std::thread::yield_now();
        }
        drop(turn);
        waiting.join().expect("it had its turn");
        assert_eq!(arbiter.lock().tenants.len(), 1);
    }
}
