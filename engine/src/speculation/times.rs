//! What a row costs: a line through the measured times of decode steps with more and fewer rows.

/// Cost of a row before it was measured, as [`StepTimes::row_cost`] gives it.
const ASSUMED: f64 = 0.1;
/// Weight of the newest step.
const NEWEST: f64 = 0.02;
/// Least variance of the number of rows for a slope.
const MIN_VARIANCE: f64 = 0.05;
/// Variance of the number of rows at which the measured slope weighs as much as the one that is
/// assumed, or was measured when it varied more: the slope of few and noisy steps can be anything.
const HALF_TRUSTED: f64 = 0.1;
/// Variance from which on a slope is remembered.
const TRUSTED: f64 = 0.5;
/// Steps before the first slope: the first ones of a process are slow.
const MIN_STEPS: u64 = 16;

/// Time of a decode step: `base_s + row_s · rows`. Both 0 if not measured yet. An input of `plan`,
/// like `now`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StepTimes {
    pub base_s: f64,
    pub row_s: f64,
}

impl StepTimes {
    /// By how much one row more prolongs a step of `n_rows`, relative to the step's time for each
    /// of them: 1 if rows cost all of the time.
    pub fn row_cost(&self, n_rows: usize) -> f64 {
        let rows_s = self.row_s * n_rows as f64;
        let step_s = self.base_s + rows_s;
        if step_s <= 0.0 {
            return ASSUMED;
        }
        (rows_s / step_s).clamp(0.0, 1.0)
    }
}

/// Fits [`StepTimes`] to the steps as they run.
#[derive(Debug, Default)]
pub struct TimesMeter {
    n_steps: u64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_seconds: f64,
    trusted_row_s: Option<f64>,
    times: StepTimes,
}

impl TimesMeter {
    /// Records a decode step of `n_rows` rows, drafts included.
    pub fn observe(&mut self, n_rows: usize, seconds: f64) -> StepTimes {
        let n = n_rows as f64;
        self.n_steps += 1;
        // At first all steps weigh the same.
        let weight = NEWEST.max(1.0 / self.n_steps as f64);
        for (mean, newest) in [
            (&mut self.rows, n),
            (&mut self.seconds, seconds),
            (&mut self.rows_squared, n * n),
            (&mut self.rows_seconds, n * seconds),
        ] {
            *mean += weight * (newest - *mean);
        }
        let variance = self.rows_squared - self.rows * self.rows;
        if variance >= MIN_VARIANCE && self.n_steps >= MIN_STEPS {
            let covariance = (self.rows_seconds - self.rows * self.seconds).max(0.0);
            if variance >= TRUSTED {
                self.trusted_row_s = Some(covariance / variance);
            }
            let assumed_s = ASSUMED * self.seconds / self.rows;
            let prior_s = self.trusted_row_s.unwrap_or(assumed_s);
            let row_s = (covariance + HALF_TRUSTED * prior_s) / (variance + HALF_TRUSTED);
            let base_s = (self.seconds - row_s * self.rows).max(0.0);
            self.times = StepTimes { base_s, row_s };
        }
        self.times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_kept_while_all_steps_have_the_same_rows() {
        let mut meter = TimesMeter::default();
        for i in 0..200usize {
            let n_rows = 1 + i % 5;
            meter.observe(n_rows, 7e-3 + 1e-4 * n_rows as f64);
        }
        let times = meter.observe(1, 7.1e-3);
        assert!((times.row_s - 1e-4).abs() < 1e-5, "{times:?}");
        assert!((times.base_s - 7e-3).abs() < 4e-5, "{times:?}");
        let mut last = times;
        for _ in 0..2000 {
            last = meter.observe(1, 7.1e-3);
        }
        assert!((last.row_s - 1e-4).abs() < 2e-5, "{last:?}");
    }

    #[test]
    fn few_noisy_steps_do_not_make_rows_free() {
        let mut meter = TimesMeter::default();
        let mut times = StepTimes::default();
        for i in 0..100usize {
            // The rare steps of two rows happen to be the fast ones.
            let is_wide = i % 10 == 0;
            times = meter.observe(1 + usize::from(is_wide), if is_wide { 5e-3 } else { 7e-3 });
        }
        let cost = times.row_cost(1);
        assert!((0.03..0.1).contains(&cost), "{cost}");
    }

    #[test]
    fn a_rows_cost_is_relative_to_its_share_of_the_step() {
        let times = StepTimes {
            base_s: 7e-3,
            row_s: 1e-4,
        };
        assert!((times.row_cost(1) - 1.0 / 71.0).abs() < 1e-6);
        assert!((times.row_cost(70) - 0.5).abs() < 1e-6);
        let unknown = StepTimes::default().row_cost(8);
        assert!((unknown - ASSUMED).abs() < 1e-9);
        let all = StepTimes {
            base_s: 0.0,
            row_s: 1.0,
        };
        assert!((all.row_cost(3) - 1.0).abs() < 1e-9);
    }
}
