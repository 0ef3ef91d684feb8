//! Tokens by rank (larger logit first, then lower id), without sorting the vocabulary.

use std::cmp::Ordering;

#[derive(Debug, Clone, Copy)]
pub struct Ranked {
    pub logit: f32,
    pub token: u32,
}

/// Better is less. A total order on distinct tokens with logits that are numbers.
impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        // Not total_cmp: 0.0 and -0.0 are equal logits.
        let by_logit = other.logit.partial_cmp(&self.logit);
        by_logit
            .unwrap_or(Ordering::Equal)
            .then(self.token.cmp(&other.token))
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked {}

/// Where a filter cuts the ranking.
#[derive(Debug, Clone, Copy)]
pub enum Cutoff {
    None,
    /// Keeps this token and all that rank before it.
    After(Ranked),
}

impl Cutoff {
    pub fn keeps(self, candidate: Ranked) -> bool {
        match self {
            Cutoff::None => true,
            Cutoff::After(last) => candidate <= last,
        }
    }
}

/// The `n` best, best first, in one pass with a short sorted list: for small n.
pub fn best(logits: &[f32], n: usize) -> Vec<Ranked> {
    let n = n.min(logits.len());
    let mut best: Vec<Ranked> = Vec::with_capacity(n + 1);
    for (token, logit) in logits.iter().enumerate() {
        // Ids ascend, so an equal logit never displaces.
        if best.len() == n && best.last().is_none_or(|worst| *logit <= worst.logit) {
            continue;
        }
        let candidate = Ranked {
            logit: *logit,
            token: token as u32,
        };
        let at = best.partition_point(|other| *other < candidate);
        best.insert(at, candidate);
        best.truncate(n);
    }
    best
}

/// Keeps the `n` best, in no particular order.
pub fn truncate_to_best(candidates: &mut Vec<Ranked>, n: usize) {
    if n > 0 && n < candidates.len() {
        candidates.select_nth_unstable(n - 1);
        candidates.truncate(n);
    }
}

/// Cuts after the worst of `candidates`.
pub fn last(candidates: &[Ranked]) -> Cutoff {
    candidates
        .iter()
        .copied()
        .max()
        .map_or(Cutoff::None, Cutoff::After)
}

/// Cuts after the smallest set of best candidates whose weights reach `target`. Sorts increasingly
/// long prefixes, since the set is small when a model is certain.
pub fn nucleus(candidates: &mut [Ranked], target: f64, weight: impl Fn(&Ranked) -> f64) -> Cutoff {
    let mut passed = 0.0;
    let mut n_sorted = 0;
    let mut n_next = 64;
    while n_sorted < candidates.len() {
        let rest = &mut candidates[n_sorted..];
        let n_part = n_next.min(rest.len());
        if n_part < rest.len() {
            rest.select_nth_unstable(n_part - 1);
        }
        rest[..n_part].sort_unstable();
        for candidate in &rest[..n_part] {
            passed += weight(candidate);
            if passed >= target {
                return Cutoff::After(*candidate);
            }
        }
        n_sorted += n_part;
        n_next *= 8;
    }
    // Rounding kept the sum below the target: everything is kept.
    Cutoff::None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(logits: &[f32]) -> Vec<Ranked> {
        let mut all: Vec<Ranked> = logits
            .iter()
            .enumerate()
            .map(|(token, logit)| Ranked {
                logit: *logit,
                token: token as u32,
            })
            .collect();
        all.sort();
        all
    }

    fn tokens(ranked: &[Ranked]) -> Vec<u32> {
        ranked.iter().map(|r| r.token).collect()
    }

    proptest! {
        // Few distinct values, so that ties are common.
        #[test]
        fn partial_selection_agrees_with_a_full_sort(
            values in proptest::collection::vec(-4i8..4, 1..700),
            n in 1usize..700,
            share in 0.0f64..1.0,
        ) {
            let logits: Vec<f32> = values.iter().map(|v| f32::from(*v)).collect();
            let all = sorted(&logits);
            let n_kept = n.min(all.len());
            prop_assert_eq!(tokens(&best(&logits, n)), tokens(&all[..n_kept]));

            let mut candidates = all.clone();
            candidates.reverse();
            truncate_to_best(&mut candidates, n);
            candidates.sort();
            prop_assert_eq!(tokens(&candidates), tokens(&all[..n_kept]));

            let target = share * all.len() as f64;
            let mut candidates = sorted(&logits);
            candidates.reverse();
            let cutoff = nucleus(&mut candidates, target, |_| 1.0);
            let n_expected = (target.ceil() as usize).max(1);
            let kept: Vec<u32> = tokens(&all).into_iter().filter(|t| {
                cutoff.keeps(Ranked { logit: logits[*t as usize], token: *t })
            }).collect();
            prop_assert_eq!(kept, tokens(&all[..n_expected]));
        }
    }
}
