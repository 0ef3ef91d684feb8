//! Compiles constraints for one model's vocabulary.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};

use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use super::constraint::{Constraint, Preamble, StructuredError};
use super::guide::Guide;
use super::mask::TokenMask;
use super::words::has_words;
use super::workers::MaskWorkers;
use crate::text::Tokenizer;

/// Longest piece of the parser's message that a client sees, in characters.
const MAX_MESSAGE_CHARS: usize = 400;

/// A model's vocabulary as a trie of bytes, made when the first constraint comes.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Logits of a token; ids that the tokenizer does not know are never chosen.
    n_vocab: usize,
    eos_ids: Vec<u32>,
    max_bytes: usize,
    factory: OnceLock<Result<ParserFactory, StructuredError>>,
    workers: Arc<MaskWorkers>,
}

impl Grammars {
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        n_vocab: usize,
        eos_ids: &[u32],
        max_bytes: usize,
    ) -> Self {
        let mut eos_ids = eos_ids.to_vec();
        eos_ids.retain(|id| (*id as usize) < n_vocab);
        Self {
            tokenizer,
            n_vocab,
            eos_ids,
            max_bytes,
            factory: OnceLock::new(),
            workers: Arc::default(),
        }
    }

    /// Compiles; takes from a millisecond to about a second, longest the first time. Its first
    /// mask is made here, too.
    pub fn compile(
        &self,
        constraint: &Constraint,
        preamble: Preamble,
    ) -> Result<Grammar, StructuredError> {
        let (what, n_bytes) = (constraint.what(), constraint.n_bytes());
        if n_bytes > self.max_bytes {
            let limit = self.max_bytes;
            return Err(StructuredError::TooLarge {
                what,
                n_bytes,
                limit,
            });
        }
        let factory = self.factory.get_or_init(|| self.factory());
        let factory = factory.as_ref().map_err(Clone::clone)?;
        let invalid = |message: &dyn std::fmt::Display| StructuredError::Invalid {
            what,
            message: shortened(&message.to_string()),
        };
        let grammar = internal(factory, constraint.grammar(preamble))
            .map_err(|error| invalid(&format!("{error:#}")))?
            .ok_or(StructuredError::Endless { what })?;
        let parser = factory
            .create_parser_from_init_default(grammar)
            .map_err(|error| invalid(&format!("{error:#}")))?;
        let mut matcher = Matcher::new(Ok(parser));
        let first = matcher
            .compute_mask_or_eos()
            .map_err(|error| invalid(&error))?;
        Ok(Grammar {
            matcher,
            first: Arc::new(TokenMask::new(first)),
            workers: Arc::clone(&self.workers),
        })
    }

    fn factory(&self) -> Result<ParserFactory, StructuredError> {
        let vocabulary = |error: &dyn std::fmt::Display| {
            StructuredError::Vocabulary(shortened(&error.to_string()))
        };
        let env = self.token_trie()?;
        let mut factory = ParserFactory::new_simple(&env).map_err(|error| vocabulary(&error))?;
        factory.quiet();
        // The grammar's text and the output so far are not the log's business.
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }

    fn token_trie(&self) -> Result<TokEnv, StructuredError> {
        let Some(eos_id) = self.eos_ids.first() else {
            return Err(StructuredError::NoEndToken);
        };
        let words: Vec<Vec<u8>> = (0..self.n_vocab as u32)
            .map(|id| self.trie_bytes(id))
            .collect();
        let info = TokRxInfo::new(self.n_vocab as u32, *eos_id);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&self.eos_ids);
        Ok(Arc::new(ApproximateTokEnv::new(trie)))
    }

    /// Special tokens are no text, so no text may be made of them.
    fn trie_bytes(&self, id: u32) -> Vec<u8> {
        let bytes = self.tokenizer.token_bytes(id);
        if self.tokenizer.is_special(id) || self.eos_ids.contains(&id) {
            [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat()
        } else {
            bytes
        }
    }
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (n_vocab, max_bytes) = (self.n_vocab, self.max_bytes);
        write!(f, "Grammars of {n_vocab} tokens, up to {max_bytes} bytes")
    }
}

/// The grammar in the parser's own form; `None` where no text fits it.
fn internal(
    factory: &ParserFactory,
    grammar: TopLevelGrammar,
) -> anyhow::Result<Option<GrammarInit>> {
    let limits = factory.limits();
    // The compiler panics on some inputs; that is the client's error.
    llguidance::panic_utils::catch_unwind(AssertUnwindSafe(|| {
        let env = Some(factory.tok_env().clone());
        let (grammar, lexemes) =
            GrammarInit::Serialized(grammar).to_internal(env, limits.clone())?;
        let compiled = grammar.optimize().compile(lexemes.clone(), limits)?;
        Ok(has_words(&compiled).then_some(GrammarInit::Internal(grammar, lexemes)))
    }))
}

fn shortened(message: &str) -> String {
    let message = message.trim();
    match message.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// A compiled constraint, which any number of choices begin with.
pub struct Grammar {
    matcher: Matcher,
    first: Arc<TokenMask>,
    workers: Arc<MaskWorkers>,
}

impl Grammar {
    /// A guide at its first token.
    pub fn guide(&self) -> Guide {
        // Deep, so that choices do not wait for each other's lexer.
        let matcher = self.matcher.deep_clone();
        Guide::new(matcher, Arc::clone(&self.first), Arc::clone(&self.workers))
    }
}
