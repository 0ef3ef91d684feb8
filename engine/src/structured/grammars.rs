//! Compiles constraints for one model's vocabulary.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Logger, Matcher, ParserFactory};

use super::branches::widest;
use super::constraint::{Constraint, Preamble, StructuredError};
use super::nesting::{self, MAX_NESTING};
use super::schema;
use super::words::has_words;
use crate::deep_stack::with_deep_stack;
use crate::guide::limits::{MAX_ITEMS, MAX_LEXERS, MAX_SYMBOLS, parser_limits};
use crate::guide::{Guide, MaskWorkers, TokenMask};
use crate::text::Tokenizer;

/// One level of a grammar takes about 3 KiB in an optimised build and one of a schema 8 KiB, ten
/// times that without optimisation; there are at most [`MAX_NESTING`] levels.
const STACK_BYTES: usize = 256 << 20;

/// Maximum length of the parser's message in an error, in characters.
const MAX_MESSAGE_CHARS: usize = 400;

/// A model's vocabulary as a trie of bytes, built for the first constraint.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Number of logits; ids that the tokenizer does not know are never chosen.
    n_vocab: usize,
    eos_ids: Vec<u32>,
    max_bytes: usize,
    factory: OnceLock<Result<ParserFactory, StructuredError>>,
    n_compiled: AtomicU64,
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
            n_compiled: AtomicU64::new(0),
            workers: Arc::default(),
        }
    }

    /// Compiles for `n` choices. Takes from a millisecond to about a second, most the first time;
    /// includes the first mask. Runs on its own thread, whose stack is large enough for the maximum
    /// nesting.
    ///
    /// # Errors
    ///
    /// [`StructuredError`] with the limit that the constraint exceeds (size, nesting, work) or
    /// the keyword or pattern that is not supported; [`StructuredError::NoThread`] if the thread
    /// cannot be started.
    pub fn compile(
        &self,
        constraint: &Constraint,
        preamble: Preamble,
        n_choices: usize,
    ) -> Result<Grammar, StructuredError> {
        self.check_size(constraint)?;
        let constraint = constraint.clone().usable()?;
        check_work(&constraint)?;
        with_deep_stack("grammars", STACK_BYTES, || {
            self.compile_here(&constraint, preamble, n_choices)
        })
        .unwrap_or_else(|error| Err(StructuredError::NoThread(error.to_string())))
    }

    fn check_size(&self, constraint: &Constraint) -> Result<(), StructuredError> {
        let (what, n_bytes) = (constraint.what(), constraint.n_bytes());
        if n_bytes > self.max_bytes {
            let limit = self.max_bytes;
            return Err(StructuredError::TooLarge {
                what,
                n_bytes,
                limit,
            });
        }
        Ok(())
    }

    fn compile_here(
        &self,
        constraint: &Constraint,
        preamble: Preamble,
        n_choices: usize,
    ) -> Result<Grammar, StructuredError> {
        let what = constraint.what();
        let factory = self.factory.get_or_init(|| self.factory());
        let factory = factory.as_ref().map_err(Clone::clone)?;
        let invalid = |message: &dyn std::fmt::Display| StructuredError::Invalid {
            what,
            message: shortened(&message.to_string()),
        };
        let n_lexers = n_choices.clamp(1, MAX_LEXERS);
        let limits = parser_limits(n_lexers);
        let grammar = match internal(factory, constraint.grammar(preamble), &limits)
            .map_err(|error| invalid(&format!("{error:#}")))?
        {
            Compiled::Usable(grammar) => grammar,
            Compiled::Endless => return Err(StructuredError::Endless { what }),
            Compiled::TooWide => {
                let limit = MAX_ITEMS;
                return Err(StructuredError::TooWide { what, limit });
            }
            Compiled::TooManySymbols(n) => {
                let limit = MAX_SYMBOLS;
                return Err(StructuredError::TooManySymbols { what, n, limit });
            }
        };
        let (logger, caps) = (Logger::new(0, 0), InferenceCapabilities::default());
        let parser = factory
            .create_parser_from_init_ext(*grammar, logger, caps, limits)
            .map_err(|error| invalid(&format!("{error:#}")))?;
        let mut matcher = Matcher::new(Ok(parser));
        let first = matcher
            .compute_mask_or_eos()
            .map_err(|error| invalid(&error))?;
        Ok(Grammar {
            id: self.n_compiled.fetch_add(1, Ordering::Relaxed),
            mask_us: Arc::default(),
            matchers: Mutex::new(vec![matcher]),
            n_lexers,
            n_guides: AtomicUsize::new(0),
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
        *factory.limits_mut() = parser_limits(1);
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

    /// Special tokens are not text, so no text may be tokenized as one.
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

/// Refuses constraints that would need too much stack or time, before a compiler sees them.
fn check_work(constraint: &Constraint) -> Result<(), StructuredError> {
    let depth = nesting::depth(constraint);
    if depth > MAX_NESTING {
        let (what, limit) = (constraint.what(), MAX_NESTING);
        return Err(StructuredError::TooDeep { what, depth, limit });
    }
    constraint.schemas().iter().try_for_each(schema::check_work)
}

enum Compiled {
    /// In the parser's own form.
    Usable(Box<GrammarInit>),
    /// No finite text fits.
    Endless,
    /// Too many rules are open at one position.
    TooWide,
    /// It has this many symbols.
    TooManySymbols(usize),
}

fn internal(
    factory: &ParserFactory,
    grammar: TopLevelGrammar,
    limits: &ParserLimits,
) -> anyhow::Result<Compiled> {
    // The compiler panics on some inputs; that is the client's error.
    llguidance::panic_utils::catch_unwind(AssertUnwindSafe(|| {
        let env = Some(factory.tok_env().clone());
        let (grammar, lexemes) =
            GrammarInit::Serialized(grammar).to_internal(env, limits.clone())?;
        let optimized = grammar.optimize();
        let n_symbols = optimized.num_symbols();
        if n_symbols > MAX_SYMBOLS {
            return Ok(Compiled::TooManySymbols(n_symbols));
        }
        let compiled = optimized.compile(lexemes.clone(), limits)?;
        if !has_words(&compiled) {
            return Ok(Compiled::Endless);
        }
        if widest(&compiled, MAX_ITEMS) > MAX_ITEMS {
            return Ok(Compiled::TooWide);
        }
        let grammar = GrammarInit::Internal(grammar, lexemes);
        Ok(Compiled::Usable(Box::new(grammar)))
    }))
}

fn shortened(message: &str) -> String {
    // A caught panic includes its location, which is meaningless to a client.
    let message = message.split("<backtrace>").next().unwrap_or(message);
    let message = message.trim();
    match message.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// A compiled constraint, shared by any number of choices.
pub struct Grammar {
    /// Unique among the grammars of one model.
    id: u64,
    /// One for each lexer, at the first token; created when a guide needs it.
    matchers: Mutex<Vec<Matcher>>,
    n_lexers: usize,
    n_guides: AtomicUsize,
    /// Microseconds that a mask takes, as its guides find.
    mask_us: Arc<AtomicU64>,
    first: Arc<TokenMask>,
    workers: Arc<MaskWorkers>,
}

impl Grammar {
    /// The tokens with which an output may begin.
    pub fn first_mask(&self) -> &TokenMask {
        &self.first
    }

    /// A guide at its first token. Guides share lexers, so that states created for one are
    /// available to all, and their total is bounded.
    pub fn guide(&self) -> Guide {
        let index = self.n_guides.fetch_add(1, Ordering::Relaxed) % self.n_lexers;
        let mut matchers = self.matchers.lock().unwrap_or_else(PoisonError::into_inner);
        if index >= matchers.len() {
            let matcher = matchers[0].deep_clone();
            matchers.push(matcher);
        }
        let matcher = matchers[index.min(matchers.len() - 1)].clone();
        let (first, workers) = (Arc::clone(&self.first), Arc::clone(&self.workers));
        let mask_us = Arc::clone(&self.mask_us);
        Guide::new(matcher, first, self.id, mask_us, workers)
    }
}
