//! How many drafts each row of a step gets: those with which most tokens are expected in a time.
//!
//! With drafts that are right with probability p, the k-th counts with probability pᵏ. The likeliest
//! ones are added one by one, over all rows, and after each the step's expected tokens are divided
//! by the time that a step of that many rows takes. The best ratio decides, if it is better than
//! without drafts by enough.

use super::StepTimes;
use crate::executor::cuda::MAX_ROWS;

/// Speed-up that must be expected, so that an error of the estimates makes nothing slower.
const MIN_GAIN: f64 = 1.05;
/// What is less likely is not considered.
const MIN_PROB: f64 = 1e-4;

/// A due row, and what could be drafted for it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Candidate {
    /// The probability that a draft is right if those before it are, and its standard deviation.
    pub p_right: f64,
    pub deviation: f64,
    pub n_drafts: usize,
}

/// Moves the rows' probabilities towards their mean, as far as chance explains that they differ: the
/// likeliest of many rows are those that were lucky.
fn shrink(rows: &mut [Candidate]) {
    let known = |row: &&Candidate| row.n_drafts > 0;
    let n = rows.iter().filter(known).count() as f64;
    if n < 2.0 {
        return;
    }
    let mean_of = |value: &dyn Fn(&Candidate) -> f64| {
        let sum: f64 = rows.iter().filter(known).map(value).sum();
        sum / n
    };
    let mean = mean_of(&|row| row.p_right);
    let spread = mean_of(&|row| (row.p_right - mean).powi(2)) * n / (n - 1.0);
    let by_chance = mean_of(&|row| row.deviation.powi(2));
    let kept = if spread > by_chance {
        1.0 - by_chance / spread
    } else {
        0.0
    };
    for row in rows {
        row.p_right = mean + kept * (row.p_right - mean);
    }
}

/// The number of drafts of each row, together at most `n_free`.
pub fn choose(mut rows: Vec<Candidate>, n_free: usize, times: &StepTimes) -> Vec<usize> {
    shrink(&mut rows);
    let n_free = n_free.min(MAX_ROWS.saturating_sub(rows.len()));
    let mut chosen = vec![0; rows.len()];
    if times.wants_plain(rows.len()) {
        return chosen;
    }
    let mut next: Vec<f64> = rows
        .iter()
        .map(|row| if row.n_drafts > 0 { row.p_right } else { 0.0 })
        .collect();
    let mut order = Vec::with_capacity(n_free);
    let (mut n_tokens, mut best) = (rows.len() as f64, (MIN_GAIN, 0));
    while order.len() < n_free {
        let likeliest = next.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        let Some((i, prob)) = likeliest.filter(|(_, prob)| **prob >= MIN_PROB) else {
            break;
        };
        n_tokens += prob;
        order.push(i);
        chosen[i] += 1;
        next[i] = if chosen[i] < rows[i].n_drafts {
            prob * rows[i].p_right
        } else {
            0.0
        };
        let ratio = times.ratio(rows.len(), rows.len() + order.len());
        let gain = n_tokens / rows.len() as f64 / ratio;
        if gain > best.0 {
            best = (gain, order.len());
        }
    }
    for i in &order[best.1..] {
        chosen[*i] -= 1;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(p_right: f64, n_drafts: usize) -> Candidate {
        Candidate {
            p_right,
            deviation: 0.0,
            n_drafts,
        }
    }

    #[test]
    fn rows_that_differ_by_chance_are_taken_for_alike() {
        let shrunk = |p_right: [f64; 4]| {
            let mut rows = p_right.map(|p| Candidate {
                deviation: 0.05,
                ..row(p, 3)
            });
            shrink(&mut rows);
            rows.map(|row| row.p_right)
        };
        for p in shrunk([0.2, 0.25, 0.15, 0.2]) {
            assert!((p - 0.2).abs() < 1e-9, "{p}");
        }
        let [low, _, _, high] = shrunk([0.0, 0.0, 0.9, 0.9]);
        assert!(low < 0.01 && high > 0.89, "{low} {high}");
        let mut one = [row(0.7, 3), row(0.1, 0)];
        shrink(&mut one);
        assert_eq!(one, [row(0.7, 3), row(0.1, 0)]);
    }

    /// Each row more costs this share of a step of one row.
    fn line(row_s: f64) -> StepTimes {
        StepTimes::line(1.0 - row_s, row_s)
    }

    #[test]
    fn a_row_that_costs_much_gets_few_drafts() {
        let by_cost = [0.0, 0.02, 0.1, 0.3, 0.6, 1.0]
            .map(|cost| choose(vec![row(0.7, 8)], 63, &line(cost))[0]);
        assert!(by_cost.is_sorted_by(|a, b| a >= b), "{by_cost:?}");
        assert_eq!((by_cost[0], by_cost[5]), (8, 0));
        // 1.7 tokens in 1.3 of the time, then 2.19 in 1.6.
        assert_eq!(by_cost[3], 2);
        assert_eq!(choose(vec![row(0.7, 0)], 63, &line(0.0)), [0]);
        assert_eq!(choose(vec![row(0.7, 8)], 3, &line(0.0)), [3]);
    }

    #[test]
    fn the_likeliest_drafts_of_all_rows_are_taken() {
        let rows = [row(0.9, 7), row(0.2, 7), row(0.9, 1), row(0.0, 7)];
        assert_eq!(choose(rows.to_vec(), 63, &line(0.0)), [7, 5, 1, 0]);
        assert_eq!(choose(rows.to_vec(), 3, &line(0.0)), [2, 0, 1, 0]);
        // A gain of less than 5 % is none: a token in four, at once.
        let few = [row(0.15, 1), row(0.0, 1), row(0.0, 1), row(0.0, 1)];
        assert_eq!(choose(few.to_vec(), 63, &line(0.0)), [0; 4]);
    }

    #[test]
    fn rows_that_no_pass_has_get_none() {
        assert_eq!(choose(vec![row(1.0, 7); 64], 63, &line(0.0)), [0; 64]);
        assert_eq!(choose(vec![row(1.0, 7); 70], 63, &line(0.0)), [0; 70]);
        let n: usize = choose(vec![row(1.0, 7); 62], 63, &line(0.0)).iter().sum();
        // Two tokens more than 62 are too few.
        assert_eq!(n, 0);
        let n: usize = choose(vec![row(1.0, 7); 50], 63, &line(0.0)).iter().sum();
        assert_eq!(n, 14);
    }

    #[test]
    fn a_step_of_the_next_tile_is_taken_only_if_it_pays() {
        // Eight rows cost as much as one, nine half as much again.
        let mut times = StepTimes::default();
        for n in 1..=64 {
            times.set(n, if n <= 8 { 1.0 } else { 1.5 });
        }
        assert_eq!(choose(vec![row(0.8, 31)], 63, &times), [7]);
        assert_eq!(choose(vec![row(0.99, 31)], 63, &times), [31]);
    }
}
