//! `SUFFIX`: what followed the text's end most often, in the request's own text and in recent
//! answers.
//!
//! Two trees count all pieces of texts ([`tree`]): one of the request's prompt and output, and one
//! of the answers of all requests, which the requests share and which begin with the end of their
//! prompt. Every end of the text that occurred before is a match, and what followed it most often
//! is a candidate, as far as the counts make it likely. The candidate with most tokens expected to
//! be right is drafted. A longer match may give more drafts, so little is drafted after a chance
//! match.
//!
//! Answers are shared only between requests whose prefixes are (`cache_salt`). Their number and
//! tokens are bounded.

mod tree;

use self::tree::{DraftRule, Limits, SuffixTree, TextId};
use super::{Drafter, Drafters, Shared};
use crate::request::Request;

/// A call enters no more tokens: a long prompt takes several steps before there are drafts.
const MAX_ENTERED: usize = 4096;
/// Tokens of all answers together, and nodes for them: about 40 and 70 bytes each.
const MAX_ANSWER_TOKENS: usize = 1 << 18;
const MAX_ANSWER_NODES: usize = 4 * MAX_ANSWER_TOKENS;

#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct SuffixConfig {
    /// Length of the sequences that are counted, match and drafts together; at least 2. What
    /// occurred once is followed beyond it.
    pub max_tree_depth: usize,
    /// Answers that are kept; 0 drafts from the request's own text alone.
    pub max_cached_requests: usize,
    /// Drafts for each token of the match.
    pub max_spec_factor: f64,
    /// Least probability, by the counts, that a draft and all before it are right.
    pub min_token_prob: f64,
}

impl Default for SuffixConfig {
    fn default() -> Self {
        Self {
            max_tree_depth: 24,
            max_cached_requests: 10_000,
            max_spec_factor: 1.0,
            min_token_prob: 0.1,
        }
    }
}

impl Drafters for SuffixConfig {
    fn drafter_of(&self, request: &Request) -> Box<dyn Drafter> {
        Box::new(SuffixDrafter::new(*self, request))
    }

    fn shared(&self) -> Shared {
        let keeps_answers = self.max_cached_requests > 0;
        Shared {
            answers: keeps_answers.then(|| Answers::new(*self)),
        }
    }
}

/// Recent answers of all requests.
#[derive(Debug)]
pub struct Answers(SuffixTree);

impl Answers {
    pub(super) fn new(config: SuffixConfig) -> Self {
        Self(SuffixTree::new(Limits {
            depth: config.max_tree_depth,
            n_texts: config.max_cached_requests,
            n_tokens: MAX_ANSWER_TOKENS,
            n_nodes: MAX_ANSWER_NODES,
        }))
    }

    /// Tokens that are kept, at most 262,144.
    pub fn n_tokens(&self) -> usize {
        self.0.n_tokens()
    }

    /// Nodes of the tree, at most 1,048,576, and in the long run a fifth fewer.
    pub fn n_nodes(&self) -> usize {
        self.0.n_nodes()
    }
}

#[derive(Debug)]
pub struct SuffixDrafter {
    config: SuffixConfig,
    prefix_root: u64,
    own: SuffixTree,
    own_id: TextId,
    /// Tokens that are in the own tree.
    n_own: usize,
    answer: Answer,
}

/// The request's text among the answers.
#[derive(Debug)]
enum Answer {
    /// The first token that will be in it.
    NotBegun { first: usize },
    /// `n` tokens of the request are in it, or were before it.
    Grows { id: TextId, n: usize },
    /// There was no room, or answers are not kept.
    None,
}

impl SuffixDrafter {
    pub fn new(config: SuffixConfig, request: &Request) -> Self {
        let mut own = SuffixTree::new(Limits {
            depth: config.max_tree_depth,
            n_texts: 1,
            n_tokens: usize::MAX,
            n_nodes: usize::MAX,
        });
        let first = request.prompt.len().saturating_sub(config.max_tree_depth);
        Self {
            config,
            prefix_root: request.prefix_root,
            own_id: own.begin(0),
            own,
            n_own: 0,
            answer: Answer::NotBegun { first },
        }
    }

    /// Enters new tokens into the request's own tree. False if some are left for the next call.
    fn enter_own(&mut self, tokens: &[u32]) -> bool {
        let new = tokens.get(self.n_own..).unwrap_or_default();
        for token in new.iter().take(MAX_ENTERED) {
            self.own.append(self.own_id, *token);
            self.n_own += 1;
        }
        self.n_own == tokens.len()
    }

    /// Enters new tokens among the answers. Returns the text if all are there.
    fn enter_answer(&mut self, answers: &mut Answers, tokens: &[u32]) -> Option<TextId> {
        if let Answer::NotBegun { first } = self.answer {
            self.answer = Answer::Grows {
                id: answers.0.begin(self.prefix_root),
                n: first,
            };
        }
        let Answer::Grows { id, n } = &mut self.answer else {
            return None;
        };
        let (id, new) = (*id, tokens.get(*n..).unwrap_or_default());
        for token in new.iter().take(MAX_ENTERED) {
            if !answers.0.append(id, *token) {
                self.answer = Answer::None;
                return None;
            }
            *n += 1;
        }
        (*n == tokens.len()).then_some(id)
    }
}

impl Drafter for SuffixDrafter {
    fn draft(&mut self, shared: &mut Shared, tokens: &[u32], max: usize, drafts: &mut Vec<u32>) {
        let rule = DraftRule {
            max,
            per_matched: self.config.max_spec_factor,
            min_prob: self.config.min_token_prob,
        };
        let is_entered = self.enter_own(tokens);
        let own = self.own.find(self.own_id, rule).filter(|_| is_entered);
        let answers = shared.answers.as_mut();
        if let Some(answers) = answers
            && let Some(id) = self.enter_answer(answers, tokens)
            && let Some(found) = answers.0.find(id, rule)
            && own.is_none_or(|own| found.score > own.score)
        {
            answers.0.draft(found, rule, drafts);
        } else if let Some(own) = own {
            self.own.draft(own, rule, drafts);
        }
    }

    /// Any token may have occurred before.
    fn may_draft_next(&self, _: &[u32]) -> bool {
        true
    }

    fn end(&mut self, shared: &mut Shared, tokens: &[u32]) {
        // Nothing has been generated if it never had a row.
        let (Some(answers), Answer::Grows { .. }) = (&mut shared.answers, &self.answer) else {
            return;
        };
        self.enter_answer(answers, tokens);
        if let Answer::Grows { id, .. } = self.answer {
            answers.0.end(id);
        }
        self.answer = Answer::None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::request::{RequestId, SamplingParams};

    fn request(id: u64, prompt: &[u32], prefix_root: u64) -> Request {
        Request {
            id: RequestId(id),
            prompt: prompt.into(),
            sampling: Arc::new(SamplingParams::default()),
            max_new_tokens: 100,
            stop_token_ids: Arc::from([]),
            priority: 0,
            prefix_root,
        }
    }

    fn shared(config: SuffixConfig) -> Shared {
        Shared {
            answers: Some(Answers::new(config)),
        }
    }

    fn draft(drafter: &mut SuffixDrafter, shared: &mut Shared, tokens: &[u32]) -> Vec<u32> {
        let mut drafts = Vec::new();
        drafter.draft(shared, tokens, 7, &mut drafts);
        drafts
    }

    /// Tokens that do not repeat each other by chance.
    fn words(seed: u32, n: u32) -> Vec<u32> {
        (0..n).map(|i| seed * 10_000 + i).collect()
    }

    /// Generates `output` after `prompt`, and returns how many of its tokens were drafted rightly.
    fn generate(
        config: SuffixConfig,
        shared: &mut Shared,
        request: &Request,
        output: &[u32],
    ) -> usize {
        let mut drafter = SuffixDrafter::new(config, request);
        let (mut n, mut n_right) = (1, 0);
        while n < output.len() {
            let tokens = [&request.prompt[..], &output[..n]].concat();
            let drafts = draft(&mut drafter, shared, &tokens);
            let right = drafts.iter().zip(&output[n..]);
            let accepted = right.take_while(|(draft, token)| draft == token).count();
            n_right += accepted;
            n += accepted + 1;
        }
        drafter.end(shared, &[&request.prompt[..], output].concat());
        n_right
    }

    #[test]
    fn a_repeated_answer_is_drafted_from_the_answers() {
        let config = SuffixConfig::default();
        let mut shared = shared(config);
        let (question, answer) = (words(1, 30), words(2, 60));
        let first = generate(config, &mut shared, &request(1, &question, 0), &answer);
        assert_eq!(first, 0, "nothing repeats itself");
        let again = generate(config, &mut shared, &request(2, &question, 0), &answer);
        assert_eq!(
            again, 52,
            "seven in each of seven steps, and the last three"
        );
        // Another question with the same answer: its first tokens find it.
        let other = generate(config, &mut shared, &request(3, &words(3, 30), 0), &answer);
        assert!((45..52).contains(&other), "{other}");
        // Another salt shares nothing, and neither do requests that keep no answers.
        let salted = generate(config, &mut shared, &request(4, &question, 9), &answer);
        assert_eq!(salted, 0);
        let mut alone = Shared { answers: None };
        for id in 5..7 {
            let asked = request(id, &question, 0);
            assert_eq!(generate(config, &mut alone, &asked, &answer), 0);
        }
    }

    #[test]
    fn the_requests_own_text_is_quoted() {
        let config = SuffixConfig::default();
        let mut alone = Shared { answers: None };
        let prompt = [words(1, 50), words(2, 5)].concat();
        let quote = [words(7, 3), words(1, 50)].concat();
        let n_right = generate(config, &mut alone, &request(1, &prompt, 0), &quote);
        assert!(n_right >= 40, "{n_right} of 50");
    }

    #[test]
    fn a_long_prompt_is_entered_in_pieces() {
        let config = SuffixConfig::default();
        let mut alone = Shared { answers: None };
        let prompt: Vec<u32> = (0..2 * MAX_ENTERED as u32 + 100)
            .map(|i| i % 6000)
            .collect();
        let mut drafter = SuffixDrafter::new(config, &request(1, &prompt, 0));
        assert!(draft(&mut drafter, &mut alone, &prompt).is_empty());
        assert!(draft(&mut drafter, &mut alone, &prompt).is_empty());
        let next = &prompt[prompt.len() - 6000..][..7];
        assert_eq!(draft(&mut drafter, &mut alone, &prompt), next);
    }

    #[test]
    fn the_answers_are_bounded() {
        let config = SuffixConfig {
            max_cached_requests: 3,
            ..SuffixConfig::default()
        };
        let mut shared = shared(config);
        let answer = |i: u32| words(100 + i, 40);
        for i in 0..10 {
            generate(
                config,
                &mut shared,
                &request(u64::from(i), &words(i, 30), 0),
                &answer(i),
            );
        }
        let answers = shared.answers.as_ref().expect("kept");
        assert!(answers.n_tokens() <= 4 * 64 && answers.n_nodes() <= 5 * 64);
        // The last one is there, the first one has left.
        let last = generate(
            config,
            &mut shared,
            &request(20, &words(9, 30), 0),
            &answer(9),
        );
        let first = generate(
            config,
            &mut shared,
            &request(21, &words(0, 30), 0),
            &answer(0),
        );
        assert!(last > 30 && first == 0, "{last}, {first}");
    }
}
