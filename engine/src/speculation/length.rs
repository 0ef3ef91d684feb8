//! How many drafts a request's row gets: as many as are expected to pay.
//!
//! With drafts that are right with probability p, k of them give 1 + p + p² + … + pᵏ tokens, in a
//! step that takes 1 + c·k times as long. p is a moving average over this request's drafts. Where
//! no number pays, the first draft is still made, without computing it, and compared with the
//! token that comes: so a text that begins to repeat itself is noticed at no cost.

/// Weight of the newest draft in the average: it follows the last ten or so.
const NEWEST: f64 = 0.1;
/// What a request's drafts are assumed to be before there were any.
const AT_FIRST: f64 = 0.5;
/// Speed-up that must be expected, so that an error of the estimate makes nothing slower.
const MIN_GAIN: f64 = 1.05;

#[derive(Debug, Clone)]
pub struct DraftLength {
    p_right: f64,
}

impl Default for DraftLength {
    fn default() -> Self {
        Self { p_right: AT_FIRST }
    }
}

impl DraftLength {
    /// The number of drafts that gives most tokens in a time, at most `max`. `row_cost`: by how much
    /// one more row prolongs the step, relative to the share of the step that this row has.
    pub fn wanted(&self, max: usize, row_cost: f64) -> usize {
        let (mut n_tokens, mut p_reached) = (1.0, 1.0);
        let mut best = (MIN_GAIN, 0);
        for n_drafts in 1..=max {
            p_reached *= self.p_right;
            n_tokens += p_reached;
            let gain = n_tokens / (1.0 + row_cost * n_drafts as f64);
            if gain > best.0 {
                best = (gain, n_drafts);
            }
        }
        best.1
    }

    /// Records that of `n_drafts` drafts the first `n_right` were right. What follows a wrong draft
    /// says nothing.
    pub fn record(&mut self, n_drafts: usize, n_right: usize) {
        for _ in 0..n_right {
            self.p_right += NEWEST * (1.0 - self.p_right);
        }
        if n_right < n_drafts {
            self.p_right -= NEWEST * self.p_right;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(outcomes: &[(usize, usize)]) -> DraftLength {
        let mut length = DraftLength::default();
        for (n_drafts, n_right) in outcomes {
            length.record(*n_drafts, *n_right);
        }
        length
    }

    #[test]
    fn right_drafts_become_more_and_wrong_ones_none() {
        let cheap = 0.02;
        assert_eq!(after(&[(7, 7); 10]).wanted(7, cheap), 7);
        assert_eq!(after(&[(7, 7); 10]).wanted(15, cheap), 15);
        let at_first = DraftLength::default().wanted(15, cheap);
        assert!((2..7).contains(&at_first), "{at_first}");
        assert_eq!(after(&[(3, 0); 40]).wanted(15, cheap), 0);
        // Shadow drafts bring it back.
        let mut length = after(&[(3, 0); 40]);
        for _ in 0..10 {
            length.record(1, 1);
        }
        assert!(length.wanted(15, cheap) > 2);
    }

    #[test]
    fn a_row_that_costs_much_gets_few_drafts() {
        let length = after(&[(4, 4), (4, 4), (4, 4)]);
        let by_cost: Vec<usize> = [0.0, 0.05, 0.3, 0.6, 1.0]
            .map(|cost| length.wanted(8, cost))
            .into();
        assert!(by_cost.is_sorted_by(|a, b| a >= b), "{by_cost:?}");
        assert_eq!((by_cost[0], by_cost[4]), (8, 0));
        assert_eq!(length.wanted(0, 0.0), 0);
    }
}
