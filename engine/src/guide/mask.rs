//! The set of tokens allowed next.

use llguidance::toktrie::SimpleVob;

/// One bit for each token of the vocabulary. Ids beyond the last bit are not allowed.
#[derive(Clone)]
pub struct TokenMask(SimpleVob);

impl TokenMask {
    pub(crate) fn new(allowed: SimpleVob) -> Self {
        Self(allowed)
    }

    /// Allows no token.
    pub(super) fn nothing() -> Self {
        Self(SimpleVob::new())
    }

    pub fn allows(&self, token: u32) -> bool {
        let words = self.0.as_slice();
        let word = words.get(token as usize / 32).copied().unwrap_or(0);
        word >> (token % 32) & 1 == 1
    }

    /// The allowed tokens, ascending, without a list of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        let words = self.0.as_slice().iter().enumerate();
        words.flat_map(|(i, word)| {
            let bits = (0..32u32).filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| i as u32 * 32 + bit)
        })
    }

    /// The allowed tokens, ascending.
    pub fn allowed(&self) -> Vec<u32> {
        self.0.to_list()
    }

    /// Excludes the tokens that are not allowed: sets their logits to -inf.
    pub fn apply(&self, logits: &mut [f32]) {
        let words = self.0.as_slice();
        for (i, logits) in logits.chunks_mut(32).enumerate() {
            match words.get(i).copied().unwrap_or(0) {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in logits.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }
}

impl std::fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TokenMask of {} tokens", self.0.num_set())
    }
}
