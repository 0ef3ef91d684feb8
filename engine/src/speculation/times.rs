//! How long a decode step of how many rows takes, measured.
//!
//! A mean for each number of rows. Between two that were measured the time is taken from a line;
//! beyond them each row costs an assumed share. Times grow with the contexts, and only the numbers
//! of rows in use are measured: what all have in common is a level, which every step corrects.

use crate::executor::cuda::MAX_ROWS;

/// By how much a step is assumed to be longer with twice the rows.
const ASSUMED: f64 = 0.1;
/// Steps that say nothing: the first ones of a process are slow.
const N_SLOW: u64 = 8;
/// Steps of a number of rows of which a much faster one replaces those before: a size that is new may
/// be slow.
const N_FIRST: u32 = 3;
/// A mean of n steps counts as this much longer, divided by √n: of many numbers of rows, those that
/// seem to be the fastest were lucky.
const CAUTION: f64 = 0.02;
/// Weight of the newest step in the level, and in the mean of its number of rows beside it: what
/// changes slowly is the level.
const NEWEST_LEVEL: f64 = 0.1;
const NEWEST: f64 = 0.02;
/// One step changes a mean as if it had been at most this much slower, or faster.
const MAX_SURPRISE: f64 = 1.3;
/// Steps after which a step without drafts is made again, to compare with; before the first
/// [`N_FIRST`] of them there are no drafts.
const N_UNTIL_PLAIN: u64 = 512;
/// Steps after which a mean is forgotten that no step confirmed.
const N_UNTIL_FORGOTTEN: u64 = 20_000;

/// Time of a decode step for each number of rows. An input of `plan`, like `now`.
#[derive(Debug, Clone, PartialEq)]
pub struct StepTimes {
    /// Seconds; 0 if not measured.
    seconds: [f64; MAX_ROWS + 1],
    /// Numbers of rows whose steps were measured too seldom, or too long ago.
    wants_plain: [bool; MAX_ROWS + 1],
}

impl Default for StepTimes {
    fn default() -> Self {
        Self {
            seconds: [0.0; MAX_ROWS + 1],
            wants_plain: [false; MAX_ROWS + 1],
        }
    }
}

impl StepTimes {
    /// Steps of `base_s + row_s · rows`.
    #[must_use]
    pub fn line(base_s: f64, row_s: f64) -> Self {
        let mut times = Self::default();
        for n in 1..=MAX_ROWS {
            times.set(n, base_s + row_s * n as f64);
        }
        times
    }

    /// The time of steps of `n_rows`, at most 64; more are not kept.
    pub fn set(&mut self, n_rows: usize, seconds: f64) {
        if let Some(place) = self.seconds.get_mut(n_rows) {
            *place = seconds;
        }
    }

    /// How many times as long a step of `to` rows is as one of `from`.
    pub fn ratio(&self, from: usize, to: usize) -> f64 {
        match (self.seconds(from), self.seconds(to)) {
            (Some(from), Some(to)) if from > 0.0 => to / from,
            _ => 1.0 + ASSUMED * (to as f64 - from as f64) / from.max(1) as f64,
        }
    }

    /// Whether a step of `n_rows` without drafts is to be measured again.
    pub fn wants_plain(&self, n_rows: usize) -> bool {
        self.wants_plain.get(n_rows).copied().unwrap_or(false)
    }

    fn seconds(&self, n_rows: usize) -> Option<f64> {
        let n_rows = n_rows.min(MAX_ROWS);
        let known = |n: &usize| self.seconds[*n] > 0.0;
        let below = (1..=n_rows).rev().find(known);
        let above = (n_rows..=MAX_ROWS).find(known);
        let assumed = |n: usize| {
            let share = (n_rows as f64 - n as f64) / n as f64;
            self.seconds[n] * (1.0 + ASSUMED * share)
        };
        match (below, above) {
            (Some(n), Some(same)) if n == same => Some(self.seconds[n]),
            (Some(low), Some(high)) => {
                let share = (n_rows - low) as f64 / (high - low) as f64;
                let (low, high) = (self.seconds[low], self.seconds[high]);
                Some(low + share * (high - low))
            }
            (Some(n), None) | (None, Some(n)) => Some(assumed(n)),
            (None, None) => None,
        }
    }
}

/// Measures [`StepTimes`] from the steps as they run.
#[derive(Debug)]
pub struct TimesMeter {
    n_steps: u64,
    level: f64,
    /// For each number of rows, its time as a multiple of the level.
    shapes: [Shape; MAX_ROWS + 1],
}

#[derive(Debug, Clone, Copy, Default)]
struct Shape {
    multiple: f64,
    n_seen: u32,
    last_step: u64,
}

impl Default for TimesMeter {
    fn default() -> Self {
        Self {
            n_steps: 0,
            level: 1.0,
            shapes: [Shape::default(); MAX_ROWS + 1],
        }
    }
}

impl TimesMeter {
    /// Records a decode step of `n_rows` rows, drafts included.
    pub fn observe(&mut self, n_rows: usize, seconds: f64) -> StepTimes {
        self.n_steps += 1;
        let is_counted = self.n_steps > N_SLOW && (1..=MAX_ROWS).contains(&n_rows);
        if is_counted && seconds > 0.0 {
            self.count(n_rows, seconds);
        }
        let mut times = StepTimes::default();
        for (n, shape) in self.shapes.iter_mut().enumerate() {
            let age = self.n_steps - shape.last_step;
            times.wants_plain[n] = shape.n_seen < N_FIRST || age > N_UNTIL_PLAIN;
            if shape.n_seen > 0 && age > N_UNTIL_FORGOTTEN {
                *shape = Shape::default();
            }
            if shape.n_seen > 0 {
                let caution = 1.0 + CAUTION / f64::from(shape.n_seen).sqrt();
                times.set(n, self.level * shape.multiple * caution);
            }
        }
        times
    }

    fn count(&mut self, n_rows: usize, seconds: f64) {
        if self.shapes.iter().all(|shape| shape.n_seen == 0) {
            self.level = seconds;
        }
        let shape = &mut self.shapes[n_rows];
        shape.last_step = self.n_steps;
        shape.n_seen = shape.n_seen.saturating_add(1);
        let multiple = seconds / self.level;
        let surprise = multiple / shape.multiple;
        let was_slow = shape.n_seen <= N_FIRST && surprise < 1.0 / MAX_SURPRISE;
        if shape.n_seen == 1 || was_slow {
            shape.multiple = multiple;
            return;
        }
        let surprise = surprise.clamp(1.0 / MAX_SURPRISE, MAX_SURPRISE);
        let weight = NEWEST.max(1.0 / f64::from(shape.n_seen));
        shape.multiple *= 1.0 + weight * (surprise - 1.0);
        if shape.n_seen > N_FIRST {
            self.level *= 1.0 + NEWEST_LEVEL * (surprise - 1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows, then seconds.
    fn after(steps: impl IntoIterator<Item = (usize, f64)>) -> StepTimes {
        let mut meter = TimesMeter::default();
        let slow = std::iter::repeat_n((1, 1.0), N_SLOW as usize);
        slow.chain(steps)
            .map(|(n_rows, seconds)| meter.observe(n_rows, seconds))
            .last()
            .unwrap_or_default()
    }

    fn assert_near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.01, "{found} {expected}");
    }

    #[test]
    fn every_number_of_rows_has_its_own_mean() {
        // A jump after eight rows.
        let time = |n: usize| if n <= 8 { 7e-3 } else { 9e-3 };
        let steps = (0..2000).map(|i| 1 + i % 16).map(|n| (n, time(n)));
        let times = after(steps);
        assert_near(times.ratio(1, 8), 1.0);
        assert_near(times.ratio(8, 9), 9.0 / 7.0);
        assert_near(times.ratio(16, 8), 7.0 / 9.0);
    }

    #[test]
    fn what_was_not_measured_lies_on_a_line_or_is_assumed() {
        assert_near(StepTimes::default().ratio(8, 16), 1.1);
        let times = after((0..20).flat_map(|_| [(2, 1.0), (10, 2.0)]));
        assert_near(times.ratio(2, 6), 1.5);
        // Twice as many rows as the largest, and the half of the smallest.
        assert_near(times.ratio(10, 20), 1.1);
        assert_near(times.ratio(2, 1), 0.95);
    }

    #[test]
    fn longer_contexts_raise_all_times() {
        let growing = (0..3000).map(|i| {
            let level = 1.0 + i as f64 / 1000.0;
            // Eight rows are measured at the start alone.
            if i < 100 && i % 2 == 0 {
                (8, 1.5 * level)
            } else {
                (1, level)
            }
        });
        let times = after(growing);
        let found = times.ratio(1, 8);
        assert!((1.15..1.6).contains(&found), "{found}");
    }

    #[test]
    fn one_slow_step_changes_little() {
        let steady = || std::iter::repeat_n((4, 1.0), 50).chain(std::iter::repeat_n((1, 1.0), 50));
        let times = after(steady().chain([(4, 30.0)]));
        let found = times.ratio(1, 4);
        assert!((1.0..1.04).contains(&found), "{found}");
        // Even the first of its kind, which may capture a graph.
        let times = after(steady().chain([(8, 30.0), (8, 1.2), (8, 1.2)]));
        assert_near(times.ratio(1, 8), 1.2);
    }

    #[test]
    fn a_step_without_drafts_is_asked_for_now_and_then() {
        let mut meter = TimesMeter::default();
        for _ in 0..N_SLOW + u64::from(N_FIRST) {
            meter.observe(1, 1.0);
        }
        let times = meter.observe(1, 1.0);
        assert!(!times.wants_plain(1) && times.wants_plain(2));
        let until = (0..5000).find(|_| meter.observe(4, 1.0).wants_plain(1));
        assert_eq!(until, Some(N_UNTIL_PLAIN as usize));
    }
}
