//! The masks after drafts of the next tokens.
//!
//! They are made by a copy of the matcher, so nothing has to be taken back if the drafts are wrong,
//! and a limit that only they exceed ends no request.

use std::sync::Arc;

use llguidance::Matcher;

use super::TokenMask;

pub(super) struct Ahead {
    /// Has consumed the known tokens and as many drafts as there are masks.
    matcher: Matcher,
    drafts: Vec<u32>,
    /// The mask after the first draft, after the second, …
    masks: Vec<Arc<TokenMask>>,
    /// No more masks can be made.
    has_failed: bool,
}

impl Ahead {
    /// The drafts that the grammar allows, up to the first that it does not. `None` if there are
    /// none.
    pub fn new(matcher: &Matcher, drafts: &[u32]) -> Option<Self> {
        let mut matcher = matcher.clone();
        let n_vocab = matcher.tok_env().ok()?.tok_trie().vocab_size();
        let n_known = drafts.iter().take_while(|d| (**d as usize) < n_vocab);
        let drafts = &drafts[..n_known.count()];
        let n_allowed = matcher.validate_tokens(drafts).unwrap_or(0);
        (n_allowed > 0).then(|| Self {
            matcher,
            drafts: drafts[..n_allowed].to_vec(),
            masks: Vec::with_capacity(n_allowed),
            has_failed: false,
        })
    }

    pub fn n_drafts(&self) -> usize {
        self.drafts.len()
    }

    pub fn has_drafts(&self, drafts: &[u32]) -> bool {
        self.drafts == drafts
    }

    /// The mask after the first `n_before` drafts, at least one; it allows no token if it cannot be
    /// made. `None` if there are fewer drafts.
    pub fn mask_after(&mut self, n_before: usize) -> Option<Arc<TokenMask>> {
        if n_before > self.drafts.len() {
            return None;
        }
        while self.masks.len() < n_before && !self.has_failed {
            self.make_mask();
        }
        let nothing = || Arc::new(TokenMask::nothing());
        let made = self.masks.get(n_before - 1);
        Some(made.map_or_else(nothing, Arc::clone))
    }

    /// Whether the mask after `n_before` drafts could not be made.
    pub fn fails_after(&self, n_before: usize) -> bool {
        self.has_failed && n_before > self.masks.len()
    }

    pub fn make_masks(&mut self) {
        self.mask_after(self.drafts.len());
    }

    fn make_mask(&mut self) {
        let Some(draft) = self.drafts.get(self.masks.len()).copied() else {
            return;
        };
        let consumed = self.matcher.consume_token(draft);
        match consumed.and_then(|()| self.matcher.compute_mask_or_eos()) {
            Ok(mask) => self.masks.push(Arc::new(TokenMask::new(mask))),
            Err(_) => self.has_failed = true,
        }
    }
}
