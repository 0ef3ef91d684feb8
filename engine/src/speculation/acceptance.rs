//! How often drafts are right: of one request, and of all.
//!
//! A request has two averages. The slow one is exact enough to decide whether drafts pay; the fast
//! one notices that a text has begun to repeat itself, or has ended to. Where they part by more than
//! chance explains, the slow one continues from the fast one. A request begins with what the drafts
//! of others were.

/// Weight of the newest draft in the fast average, which follows the last ten or so.
const FAST: f64 = 0.1;
/// Least weight of the newest draft in the slow average.
const SLOW: f64 = 0.025;
/// How many drafts the others' acceptance counts for, where nothing is known of it and at most.
const LEAST_PRIOR: f64 = 2.0;
const MOST_PRIOR: f64 = 10.0;
/// Share of the others' drafts that it counts for in between.
const PRIOR_SHARE: f64 = 0.1;
/// Standard deviations by which the averages must part.
const SURPRISE: f64 = 3.0;
/// Least standard deviation: of drafts that were always right, or never.
const MIN_DEVIATION: f64 = 0.03;
/// Weight of the newest draft of any request in the average of all.
const POOLED: f64 = 0.005;
/// What drafts are assumed to be before there were any.
const AT_FIRST: f64 = 0.5;
/// The same of tokens that a grammar forces, which a model can only split in another way.
const FORCED_AT_FIRST: f64 = 0.9;

/// The acceptance of all requests' drafts.
#[derive(Debug, Clone)]
pub struct PooledAcceptance {
    p_right: f64,
    n_drafts: u64,
}

impl Default for PooledAcceptance {
    fn default() -> Self {
        Self {
            p_right: AT_FIRST,
            n_drafts: 0,
        }
    }
}

impl PooledAcceptance {
    /// For tokens that a grammar forces.
    pub fn of_forced() -> Self {
        Self {
            p_right: FORCED_AT_FIRST,
            n_drafts: 0,
        }
    }

    fn record(&mut self, is_right: bool) {
        self.n_drafts += 1;
        let weight = POOLED.max(1.0 / (LEAST_PRIOR + self.n_drafts as f64));
        self.p_right += weight * (f64::from(u8::from(is_right)) - self.p_right);
    }
}

/// The acceptance of one request's drafts.
#[derive(Debug, Clone, Default)]
pub struct Acceptance(Option<Averages>);

#[derive(Debug, Clone)]
struct Averages {
    fast: f64,
    slow: f64,
    /// Drafts that the slow average is of, at first those of others.
    n_drafts: f64,
}

impl Acceptance {
    /// The probability that a draft is right if those before it are.
    pub fn p_right(&self, pool: &PooledAcceptance) -> f64 {
        self.0
            .as_ref()
            .map_or(pool.p_right, |averages| averages.slow)
    }

    /// The standard deviation of [`Self::p_right`]: what chance alone explains.
    pub fn deviation(&self) -> f64 {
        self.0.as_ref().map_or(0.0, |own| {
            let weight = SLOW.max(1.0 / own.n_drafts);
            (own.slow * (1.0 - own.slow) * weight / (2.0 - weight)).sqrt()
        })
    }

    /// Records that of `n_drafts` drafts the first `n_right` were right. What follows a wrong draft
    /// says nothing.
    pub fn record(&mut self, pool: &mut PooledAcceptance, n_drafts: usize, n_right: usize) {
        let own = self.0.get_or_insert(Averages {
            fast: pool.p_right,
            slow: pool.p_right,
            n_drafts: (PRIOR_SHARE * pool.n_drafts as f64).clamp(LEAST_PRIOR, MOST_PRIOR),
        });
        let outcomes =
            std::iter::repeat_n(true, n_right).chain((n_right < n_drafts).then_some(false));
        for is_right in outcomes {
            own.record(f64::from(u8::from(is_right)));
            pool.record(is_right);
        }
    }
}

impl Averages {
    fn record(&mut self, outcome: f64) {
        self.n_drafts += 1.0;
        let weight = SLOW.max(1.0 / self.n_drafts);
        self.fast += FAST * (outcome - self.fast);
        self.slow += weight * (outcome - self.slow);
        let deviation = (self.slow * (1.0 - self.slow) * FAST / (2.0 - FAST)).sqrt();
        if (self.fast - self.slow).abs() > SURPRISE * deviation.max(MIN_DEVIATION) {
            self.slow = self.fast;
            self.n_drafts = 1.0 / FAST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(outcomes: impl IntoIterator<Item = (usize, usize)>) -> f64 {
        let mut pool = PooledAcceptance::default();
        let mut own = Acceptance::default();
        for (n_drafts, n_right) in outcomes {
            own.record(&mut pool, n_drafts, n_right);
        }
        own.p_right(&pool)
    }

    #[test]
    fn right_drafts_raise_it_and_wrong_ones_lower_it() {
        assert!(after([(7, 7); 6]) > 0.9);
        assert!(after([(3, 0); 20]) < 0.1);
        // Six of seven, and a wrong one.
        let mixed = after([(7, 6); 40]);
        assert!((0.8..0.9).contains(&mixed), "{mixed}");
    }

    #[test]
    fn a_text_that_begins_to_repeat_itself_is_noticed_within_a_few_drafts() {
        let wrong = vec![(1, 0); 200];
        let p_right = |n_right: usize| after([wrong.clone(), vec![(1, 1); n_right]].concat());
        assert!(p_right(0) < 0.02);
        assert!(p_right(4) > 0.2, "{}", p_right(4));
        assert!(p_right(12) > 0.5, "{}", p_right(12));
        let right = vec![(5, 5); 40];
        let ended = after([right, vec![(5, 0); 12]].concat());
        assert!(ended < 0.6, "{ended}");
    }

    #[test]
    fn chance_moves_it_little() {
        // Half of the drafts, in an order without a period.
        let mut hash = 1u64;
        let mut pool = PooledAcceptance::default();
        let mut own = Acceptance::default();
        let mut squares = 0.0;
        for i in 0..4000 {
            hash = hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            own.record(&mut pool, 1, usize::from(hash >> 63 == 1));
            if i >= 100 {
                squares += (own.p_right(&pool) - 0.5).powi(2);
            }
        }
        let deviation = f64::sqrt(squares / 3900.0);
        assert!(deviation < 0.08, "{deviation}");
    }

    #[test]
    fn a_request_begins_with_what_others_had() {
        let mut pool = PooledAcceptance::default();
        assert!((Acceptance::default().p_right(&pool) - AT_FIRST).abs() < 1e-9);
        for _ in 0..20 {
            let mut other = Acceptance::default();
            for _ in 0..30 {
                other.record(&mut pool, 4, 0);
            }
        }
        assert!(Acceptance::default().p_right(&pool) < 0.1);
        assert!(Acceptance::default().p_right(&PooledAcceptance::of_forced()) > 0.8);
    }
}
