//! Text that a grammar forces: where it allows only one, tokens can be guessed without a model.

use llguidance::Matcher;

use super::TokenMask;

/// Bytes that become tokens in one call: more drafts than a row can have.
const MAX_BYTES: usize = 256;

/// What is known to be forced after the last token.
#[derive(Default)]
pub(super) struct Forced {
    bytes: Vec<u8>,
    /// How many of them have come.
    n_passed: usize,
}

impl Forced {
    /// The tokens of the forced text, each as long as possible; empty if nothing is forced. `mask`:
    /// of the next token.
    pub fn tokens(&mut self, matcher: &Matcher, mask: &TokenMask) -> Vec<u32> {
        let Ok(env) = matcher.tok_env() else {
            return Vec::new();
        };
        if self.rest().is_empty() {
            let trie = env.tok_trie();
            if !begin_alike(mask, |token| trie.token(token).first().copied()) {
                return Vec::new();
            }
            // The bytes that are looked for stay in the matcher, and would shape its masks.
            self.bytes = matcher.clone().compute_ff_bytes();
            self.n_passed = 0;
        }
        let rest = self.rest();
        env.tokenize_bytes(&rest[..rest.len().min(MAX_BYTES)])
    }

    /// Records that `token` has come.
    pub fn pass(&mut self, matcher: &Matcher, token: u32) {
        if self.rest().is_empty() {
            return;
        }
        let env = matcher.tok_env().ok();
        let bytes = env.map(|env| env.tok_trie().decode_raw(&[token]));
        match bytes {
            Some(bytes) if self.rest().starts_with(&bytes) => self.n_passed += bytes.len(),
            _ => *self = Self::default(),
        }
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.n_passed..]
    }
}

/// Whether all allowed tokens have the same first byte.
fn begin_alike(mask: &TokenMask, first_byte: impl Fn(u32) -> Option<u8>) -> bool {
    let mut first = None;
    mask.iter().all(|token| {
        let byte = first_byte(token);
        byte.is_some() && *first.get_or_insert(byte) == byte
    })
}
