//! Excluded tokens: their logits become -inf before bias and penalties.

use std::sync::Arc;

/// The exclusions of a request; the default excludes nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exclusions {
    /// Only these tokens are allowed.
    pub allowed: Option<Arc<[u32]>>,
    /// Token sequences that the output must not contain.
    pub bad_words: Arc<[Vec<u32>]>,
    /// Number of output tokens before which none of `ends` is allowed.
    pub min_tokens: usize,
    /// Tokens that end the sequence.
    pub ends: Arc<[u32]>,
}

impl Exclusions {
    /// Whether some token is excluded as output token `output_index`.
    pub fn apply_at(&self, output_index: usize) -> bool {
        self.allowed.is_some() || !self.bad_words.is_empty() || self.holds_back_ends(output_index)
    }

    /// The request's fields that exclude tokens, by their names in the API.
    pub fn names(&self) -> Vec<&'static str> {
        [
            ("allowed_token_ids", self.allowed.is_some()),
            ("bad_words", !self.bad_words.is_empty()),
            ("min_tokens", self.holds_back_ends(0)),
        ]
        .into_iter()
        .filter_map(|(name, excludes)| excludes.then_some(name))
        .collect()
    }

    /// Whether the exclusions depend on the output so far.
    pub fn need_history(&self) -> bool {
        self.bad_words.iter().any(|word| word.len() > 1)
    }

    fn holds_back_ends(&self, output_index: usize) -> bool {
        output_index < self.min_tokens && !self.ends.is_empty()
    }

    /// `logits`: `[n_vocab]`, for output token `output_index`. `output`: the end of the output so
    /// far, as long as the longest bad word, or all of it if it is shorter. Ids outside the
    /// vocabulary have no effect.
    pub fn mask(&self, logits: &mut [f32], output_index: usize, output: &[u32]) {
        if let Some(allowed) = &self.allowed {
            let kept: Vec<(u32, f32)> = allowed
                .iter()
                .filter_map(|token| Some((*token, *logits.get(*token as usize)?)))
                .collect();
            logits.fill(f32::NEG_INFINITY);
            for (token, logit) in kept {
                logits[token as usize] = logit;
            }
        }
        let mut exclude = |token: u32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        };
        for word in self.bad_words.iter() {
            if let Some((last, before)) = word.split_last()
                && output.ends_with(before)
            {
                exclude(*last);
            }
        }
        if self.holds_back_ends(output_index) {
            self.ends.iter().copied().for_each(exclude);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

    /// The tokens that are still allowed.
    fn left(exclusions: &Exclusions, output_index: usize, output: &[u32]) -> Vec<usize> {
        let mut logits = LOGITS;
        exclusions.mask(&mut logits, output_index, output);
        for (logit, before) in logits.iter().zip(LOGITS) {
            assert!(logit.total_cmp(&before).is_eq() || logit.is_infinite());
        }
        let is_left = |i: &usize| logits[*i].is_finite();
        (0..LOGITS.len()).filter(is_left).collect()
    }

    #[test]
    fn nothing_is_excluded_by_default() {
        let none = Exclusions::default();
        assert!(!none.apply_at(0) && !none.need_history());
        assert_eq!(left(&none, 0, &[1]).len(), LOGITS.len());
    }

    #[test]
    fn only_allowed_tokens_are_left() {
        let allowed = Exclusions {
            allowed: Some(Arc::from([4, 1, 99])),
            ..Exclusions::default()
        };
        assert!(allowed.apply_at(1000) && !allowed.need_history());
        assert_eq!(left(&allowed, 0, &[]), [1, 4]);
    }

    #[test]
    fn the_last_token_of_a_bad_word_is_excluded_after_the_others() {
        let words = Exclusions {
            bad_words: Arc::from([vec![5], vec![1, 2], vec![0, 1, 3], vec![98]]),
            ..Exclusions::default()
        };
        assert!(words.apply_at(0) && words.need_history());
        assert_eq!(left(&words, 0, &[]), [0, 1, 2, 3, 4]);
        assert_eq!(left(&words, 1, &[1]), [0, 1, 3, 4]);
        assert_eq!(left(&words, 2, &[0, 1]), [0, 1, 4]);
        assert_eq!(left(&words, 3, &[0, 1, 0]), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn ends_may_come_from_the_minimum_on() {
        let ends = Exclusions {
            min_tokens: 3,
            ends: Arc::from([2, 5]),
            ..Exclusions::default()
        };
        for output_index in 0..3 {
            assert!(ends.apply_at(output_index));
            assert_eq!(left(&ends, output_index, &[]), [0, 1, 3, 4]);
        }
        assert!(!ends.apply_at(3));
        assert_eq!(left(&ends, 3, &[]).len(), LOGITS.len());
        // This sequence ends only by its length.
        let endless = Exclusions {
            ends: Arc::from([]),
            ..ends
        };
        assert!(!endless.apply_at(0));
    }
}
