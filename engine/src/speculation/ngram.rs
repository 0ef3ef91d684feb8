//! `NGRAM`: the longest end of the text that occurred in it before, and what followed there.
//!
//! The text is the request's own prompt and output. Matches of `max_match` tokens down to
//! `min_match` are sought, the longest first, and among equally long ones the latest. The drafts
//! end with the text.
//!
//! Every n-gram of `min_match` tokens is entered once, under its hash, with the place of the
//! previous one of the same hash, so a search follows the occurrences from the latest back. Both
//! the tokens entered and the occurrences looked at in one call are bounded.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Drafter, Drafters, Shared};
use crate::request::Request;

/// A call looks at no more occurrences. More are likely to be of a short and frequent n-gram, whose
/// continuation is uncertain anyway.
const MAX_CANDIDATES: usize = 64;
/// A call enters no more tokens: a long prompt takes several steps before there are drafts.
const MAX_ENTERED: usize = 16_384;
/// No previous occurrence.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct NgramConfig {
    /// Least and largest number of tokens that have to match; `1 ≤ min_match ≤ max_match`.
    pub min_match: usize,
    pub max_match: usize,
}

impl Default for NgramConfig {
    fn default() -> Self {
        Self {
            min_match: 3,
            max_match: 12,
        }
    }
}

impl Drafters for NgramConfig {
    fn drafter_of(&self, _: &Request) -> Box<dyn Drafter> {
        Box::new(NgramDrafter::new(*self))
    }
}

#[derive(Debug)]
pub struct NgramDrafter {
    config: NgramConfig,
    /// Hash of an n-gram of `min_match` tokens → the end of its latest occurrence.
    latest: FxHashMap<u64, u32>,
    /// For each token: the end of the previous occurrence of the n-gram that ends there.
    previous: Vec<u32>,
    /// Hashes of all n-grams of `min_match − 1` tokens that something follows.
    shorter: FxHashSet<u64>,
}

impl NgramDrafter {
    pub fn new(config: NgramConfig) -> Self {
        Self {
            config,
            latest: FxHashMap::default(),
            previous: Vec::new(),
            shorter: FxHashSet::default(),
        }
    }

    /// Enters the n-grams of new tokens. False if some are left for the next call.
    fn enter(&mut self, tokens: &[u32]) -> bool {
        let n = self.config.min_match;
        let first = self.previous.len();
        for end in first..tokens.len().min(first + MAX_ENTERED) {
            let previous = match ngram(tokens, end, n) {
                Some(ngram) => self.latest.insert(hash(ngram), end as u32),
                None => None,
            };
            self.previous.push(previous.unwrap_or(NONE));
            if end > 0
                && let Some(shorter) = ngram(tokens, end - 1, n - 1)
            {
                self.shorter.insert(hash(shorter));
            }
        }
        self.previous.len() == tokens.len()
    }

    /// The end of the occurrence that the drafts follow.
    fn find(&self, tokens: &[u32]) -> Option<usize> {
        let last = tokens.len().checked_sub(1)?;
        let mut best = (self.config.min_match - 1, None);
        let mut candidate = self.previous[last];
        for _ in 0..MAX_CANDIDATES {
            if candidate == NONE {
                break;
            }
            let end = candidate as usize;
            let n_equal = tokens[..=end]
                .iter()
                .rev()
                .zip(tokens.iter().rev())
                .take(self.config.max_match)
                .take_while(|(a, b)| a == b)
                .count();
            if n_equal > best.0 {
                best = (n_equal, Some(end));
                if n_equal == self.config.max_match {
                    break;
                }
            }
            candidate = self.previous[end];
        }
        best.1
    }
}

impl Drafter for NgramDrafter {
    fn draft(&mut self, _: &mut Shared, tokens: &[u32], max: usize, drafts: &mut Vec<u32>) {
        if self.enter(tokens)
            && let Some(end) = self.find(tokens)
        {
            drafts.extend(tokens[end + 1..].iter().take(max));
        }
    }

    fn may_draft_next(&self, tokens: &[u32]) -> bool {
        let Some(last) = tokens.len().checked_sub(1) else {
            return false;
        };
        if self.config.min_match == 1 {
            return true;
        }
        match ngram(tokens, last, self.config.min_match - 1) {
            Some(shorter) => self.shorter.contains(&hash(shorter)),
            None => false,
        }
    }
}

/// The `n` tokens up to `end`, which is included.
fn ngram(tokens: &[u32], end: usize, n: usize) -> Option<&[u32]> {
    let start = (end + 1).checked_sub(n)?;
    tokens.get(start..=end)
}

fn hash(ngram: &[u32]) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault};
    BuildHasherDefault::<rustc_hash::FxHasher>::default().hash_one(ngram)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drafter(min_match: usize, max_match: usize) -> NgramDrafter {
        NgramDrafter::new(NgramConfig {
            min_match,
            max_match,
        })
    }

    fn draft(drafter: &mut NgramDrafter, tokens: &[u32], max: usize) -> Vec<u32> {
        let mut drafts = Vec::new();
        drafter.draft(&mut Shared::default(), tokens, max, &mut drafts);
        drafts
    }

    /// The same rule, by looking everywhere.
    fn searched(tokens: &[u32], min_match: usize, max_match: usize, max: usize) -> Vec<u32> {
        let n = tokens.len();
        for m in (min_match..=max_match).rev() {
            for start in (0..n.saturating_sub(m)).rev() {
                if tokens[start..start + m] == tokens[n - m..] {
                    return tokens[start + m..].iter().copied().take(max).collect();
                }
            }
        }
        Vec::new()
    }

    #[test]
    fn the_longest_match_decides_and_among_equals_the_latest() {
        let mut two = drafter(1, 4);
        // 7 8 is followed by 1 at first and by 2 later; 9 7 8 occurred once.
        let text = [9, 7, 8, 1, 5, 7, 8, 2, 6, 9, 7, 8];
        assert_eq!(draft(&mut two, &text, 2), [1, 5]);
        let text = [7, 8, 1, 5, 7, 8, 2, 6, 4, 7, 8];
        assert_eq!(draft(&mut drafter(1, 4), &text, 9), [2, 6, 4, 7, 8]);
        assert_eq!(draft(&mut drafter(3, 4), &text, 9), [0u32; 0]);
        assert_eq!(draft(&mut drafter(1, 4), &[1, 2, 3], 9), [0u32; 0]);
    }

    #[derive(serde::Deserialize)]
    struct Recorded {
        prompts: Vec<RecordedPrompt>,
    }

    #[derive(serde::Deserialize)]
    struct RecordedPrompt {
        prompt: Vec<u32>,
        greedy: Vec<u32>,
        runs: Vec<RecordedRun>,
    }

    #[derive(serde::Deserialize)]
    struct RecordedRun {
        k: usize,
        /// Of each step the drafts, and how many of them were accepted.
        steps: Vec<(Vec<u32>, usize)>,
    }

    #[test]
    fn every_step_of_the_recorded_runs_has_the_same_drafts() {
        let packed: &[u8] = include_bytes!("../../tests/data/ngram_steps.json.gz");
        let recorded: Recorded =
            serde_json::from_reader(flate2::read::GzDecoder::new(packed)).unwrap();
        let mut n_drafts = 0;
        for RecordedPrompt {
            prompt,
            greedy,
            runs,
        } in recorded.prompts
        {
            for RecordedRun { k, steps } in runs {
                let mut one = drafter(2, 4);
                let mut n_output = 1;
                for (expected, n_accepted) in steps {
                    let text = [&prompt[..], &greedy[..n_output]].concat();
                    assert_eq!(draft(&mut one, &text, k), expected);
                    n_drafts += expected.len();
                    let right = expected.iter().zip(&greedy[n_output..]);
                    let n_right = right.take_while(|(draft, token)| draft == token).count();
                    // The text is cut where it is long enough.
                    assert_eq!(n_right, n_accepted.min(greedy.len() - n_output));
                    n_output += n_accepted + 1;
                }
                assert!(n_output >= greedy.len(), "{n_output}");
            }
        }
        assert_eq!(n_drafts, 570);
    }

    #[test]
    fn a_long_prompt_is_entered_in_pieces() {
        let mut one = drafter(2, 4);
        let text: Vec<u32> = (0..=2 * MAX_ENTERED as u32).map(|i| i % 5000).collect();
        assert!(draft(&mut one, &text, 4).is_empty());
        assert!(draft(&mut one, &text, 4).is_empty());
        let next = text[text.len() - 5000..][..4].to_vec();
        assert_eq!(draft(&mut one, &text, 4), next);
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_search_finds(
            text in proptest::collection::vec(0u32..4, 1..60),
            first in 1usize..60,
            min_match in 1usize..4,
            longer in 0usize..4,
            max in 1usize..9,
        ) {
            let max_match = min_match + longer;
            let mut one = drafter(min_match, max_match);
            let mut could = true;
            // The text grows by a token at a time, as it is generated.
            for n in first.min(text.len())..=text.len() {
                let expected = searched(&text[..n], min_match, max_match, max);
                prop_assert_eq!(&draft(&mut one, &text[..n], max), &expected);
                prop_assert!(could || expected.is_empty(), "it said that there would be none");
                could = one.may_draft_next(&text[..n]);
            }
        }
    }
}
