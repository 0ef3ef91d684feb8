//! Whose step is next, where several models share a device or the processor's cores.
//!
//! A step has the device to itself. Among the models that wait, the one that has used it the least
//! goes next; of equals, the one that came first. So a model with a full queue and long steps holds
//! the others up by one of its steps at a time, and over a while all that have work get the same
//! time. A model that was idle does not save up: it comes back as if it had used as much as
//! whoever had the last turn.
//!
//! Between two steps of a model lies the host's work on its tokens. A model that has used less and
//! will be back at once is waited for, [`RETURN_LIMIT`] at most; otherwise one with long steps
//! would have every second turn.
//! This is about time alone. That kernels of two models never run side by side on a card, also while
//! one is loaded, is `executor::cuda::turn`'s business.
//! Deliberately absent: weights, priorities between models, and taking a turn away.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the device is kept free for a model that is due and whose host is busy with its last
/// step.
pub const RETURN_LIMIT: Duration = Duration::from_millis(2);

/// The turns on one device.
#[derive(Debug, Default)]
pub struct Turns {
    ledger: Mutex<Ledger>,
    changed: Condvar,
}

/// One model's place among them; it leaves when this is dropped.
#[derive(Debug)]
pub struct Member {
    turns: Arc<Turns>,
    id: u64,
}

/// The device is its holder's until this is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    id: u64,
    since: Instant,
    /// Another step of this model follows at once.
    pub comes_back: bool,
}

#[derive(Debug, Default)]
struct Ledger {
    members: Vec<Account>,
    is_taken: bool,
    n_joined: u64,
    n_calls: u64,
    /// What the holder of the last turn had used when it got it.
    level: Duration,
}

#[derive(Debug)]
struct Account {
    id: u64,
    used: Duration,
    /// In order of the calls; `None` while it does not wait.
    waiting: Option<u64>,
    expected_until: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    Nobody,
    /// This one may go.
    Of(u64),
    /// Somebody may come until then who would go first.
    NotBefore(Instant),
}

impl Turns {
    pub fn join(self: &Arc<Self>) -> Member {
        let mut ledger = self.lock();
        let id = ledger.join();
        Member {
            turns: Arc::clone(self),
            id,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        // Every change is one assignment after the other; a panic leaves none half done.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// Waits for this model's turn.
    pub fn take(&self) -> Turn {
        let mut ledger = self.turns.lock();
        ledger.call(self.id, Instant::now());
        loop {
            let now = Instant::now();
            let next = ledger.next(now);
            ledger = match next {
                Next::Of(id) if id == self.id => {
                    ledger.grant(id);
                    return Turn {
                        turns: Arc::clone(&self.turns),
                        id,
                        since: now,
                        comes_back: false,
                    };
                }
                Next::NotBefore(then) => {
                    let wait = then.saturating_duration_since(now);
                    let (ledger, _) = self
                        .turns
                        .changed
                        .wait_timeout(ledger, wait)
                        .unwrap_or_else(PoisonError::into_inner);
                    ledger
                }
                Next::Of(_) | Next::Nobody => self
                    .turns
                    .changed
                    .wait(ledger)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Says that this model has nothing to do: nobody need wait for it.
    pub fn rest(&self) {
        let mut ledger = self.turns.lock();
        if let Some(account) = ledger.account(self.id)
            && account.expected_until.take().is_some()
        {
            self.turns.changed.notify_all();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.turns.lock().members.retain(|m| m.id != self.id);
        self.turns.changed.notify_all();
    }
}

impl Turn {
    /// Whether somebody else waits for this turn's end, or will in a moment.
    pub fn is_awaited(&self) -> bool {
        self.turns.lock().is_awaited(self.id, Instant::now())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let now = Instant::now();
        let expected_until = self.comes_back.then(|| now + RETURN_LIMIT);
        self.turns.lock().give_back(
            self.id,
            now.saturating_duration_since(self.since),
            expected_until,
        );
        self.turns.changed.notify_all();
    }
}

impl Ledger {
    fn join(&mut self) -> u64 {
        let id = self.n_joined;
        self.n_joined += 1;
        self.members.push(Account {
            id,
            used: self.level,
            waiting: None,
            expected_until: None,
        });
        id
    }

    fn account(&mut self, id: u64) -> Option<&mut Account> {
        self.members.iter_mut().find(|m| m.id == id)
    }

    fn call(&mut self, id: u64, now: Instant) {
        let (n_calls, level) = (self.n_calls, self.level);
        self.n_calls += 1;
        if let Some(account) = self.account(id) {
            account.waiting = Some(n_calls);
            let expected = account.expected_until.take();
            // One that comes back as expected was not idle, and keeps what it is behind by.
            if expected.is_none_or(|until| until < now) {
                account.used = account.used.max(level);
            }
        }
    }

    fn next(&self, now: Instant) -> Next {
        if self.is_taken {
            return Next::Nobody;
        }
        let waiting = self
            .members
            .iter()
            .filter_map(|m| Some((m.used, m.waiting?, m.id)));
        let Some((used, _, id)) = waiting.min() else {
            return Next::Nobody;
        };
        let due = self.members.iter().filter(|m| m.used < used);
        match due.filter_map(|m| m.expected_until).max() {
            Some(until) if until > now => Next::NotBefore(until),
            _ => Next::Of(id),
        }
    }

    fn is_awaited(&self, id: u64, now: Instant) -> bool {
        let comes = |m: &Account| m.expected_until.is_some_and(|until| until > now);
        let mut others = self.members.iter().filter(|m| m.id != id);
        others.any(|m| m.waiting.is_some() || comes(m))
    }

    fn grant(&mut self, id: u64) {
        self.is_taken = true;
        if let Some(account) = self.account(id) {
            account.waiting = None;
            let used = account.used;
            self.level = self.level.max(used);
        }
    }

    fn give_back(&mut self, id: u64, elapsed: Duration, expected_until: Option<Instant>) {
        self.is_taken = false;
        if let Some(account) = self.account(id) {
            account.used += elapsed;
            account.expected_until = expected_until;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `n` steps each of two members gets that always have work; `steps_ms` says how
    /// long one's step takes.
    fn play(n: usize, steps_ms: [u64; 2]) -> [usize; 2] {
        let mut ledger = Ledger::default();
        let ids = [ledger.join(), ledger.join()];
        let (mut now, mut counts) = (Instant::now(), [0; 2]);
        for id in ids {
            ledger.call(id, now);
        }
        for _ in 0..n {
            let id = match ledger.next(now) {
                Next::Of(id) => id,
                other => panic!("{other:?}"),
            };
            ledger.grant(id);
            let i = usize::from(id == ids[1]);
            counts[i] += 1;
            let step = Duration::from_millis(steps_ms[i]);
            now += step;
            ledger.give_back(id, step, Some(now + RETURN_LIMIT));
            // It comes back a little later, and nobody has taken its place.
            now += Duration::from_micros(300);
            ledger.call(id, now);
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
    fn whoever_was_idle_goes_next_and_saves_nothing_up() {
        let mut ledger = Ledger::default();
        let (busy, idle) = (ledger.join(), ledger.join());
        let now = Instant::now();
        for _ in 0..50 {
            ledger.call(busy, now);
            assert_eq!(ledger.next(now), Next::Of(busy));
            ledger.grant(busy);
            ledger.give_back(busy, Duration::from_millis(10), None);
        }
        ledger.call(busy, now);
        ledger.call(idle, now);
        assert_eq!(ledger.next(now), Next::Of(idle));
        ledger.grant(idle);
        ledger.give_back(idle, Duration::from_millis(11), None);
        ledger.call(idle, now);
        assert_eq!(ledger.next(now), Next::Of(busy), "not for all the 500 ms");
    }

    #[test]
    fn one_that_is_due_is_waited_for_but_not_for_long() {
        let mut ledger = Ledger::default();
        let (long, short) = (ledger.join(), ledger.join());
        let now = Instant::now();
        ledger.call(long, now);
        ledger.grant(long);
        ledger.give_back(long, Duration::from_millis(100), None);
        ledger.call(short, now);
        ledger.grant(short);
        ledger.call(long, now);
        assert_eq!(ledger.next(now), Next::Nobody, "it is taken");
        let until = now + RETURN_LIMIT;
        ledger.give_back(short, Duration::from_millis(1), Some(until));
        assert_eq!(ledger.next(now), Next::NotBefore(until));
        assert_eq!(ledger.next(until), Next::Of(long));
        assert!(ledger.is_awaited(long, now), "the other one is on its way");
        assert!(!ledger.is_awaited(long, until));
        ledger.call(short, now);
        assert_eq!(ledger.next(now), Next::Of(short));
    }

    #[test]
    fn a_turn_ends_when_it_is_dropped_and_a_member_leaves_when_it_is() {
        let turns = Arc::new(Turns::default());
        let (a, b) = (turns.join(), turns.join());
        let turn = a.take();
        assert!(!turn.is_awaited());
        let waiting = std::thread::spawn(move || {
            drop(b.take());
        });
        while !turn.is_awaited() {
            std::thread::yield_now();
        }
        drop(turn);
        waiting.join().expect("it had its turn");
        assert_eq!(turns.lock().members.len(), 1);
    }
}
