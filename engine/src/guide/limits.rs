//! What one constraint may take of memory and time, set here and nowhere else.
//!
//! A lexer's states and expressions grow with what is generated, so their number is bounded over
//! all choices of a request: choices share lexers. Fuel is llguidance's count of expressions made.

use llguidance::api::ParserLimits;

/// Choices share so many lexers, since two that share one wait for each other's masks.
pub(crate) const MAX_LEXERS: usize = 4;
/// States of all lexers of a request, of 1 to 4 KiB and some tens of microseconds each: what a
/// request can take of the threads that make masks is a second or two, however many choices it has.
pub(crate) const MAX_LEXER_STATES: usize = 32_000;
/// Symbols in all rules of a grammar together.
const MAX_GRAMMAR_SIZE: usize = 100_000;
/// Rules of a grammar, and what stands for them: the parser numbers them in 16 bits.
pub(crate) const MAX_SYMBOLS: usize = 65_000;
/// Rules that may be open at one place of a text.
pub(crate) const MAX_ITEMS: usize = 2000;
/// While a lexer is made: some tens of milliseconds.
const COMPILE_FUEL: u64 = 1_000_000;
/// For one mask: some ten milliseconds.
pub(crate) const MASK_FUEL: u64 = 200_000;
/// Rules looked at for one mask: some milliseconds.
pub(crate) const MASK_ITEMS: usize = 50_000;

/// Of each of `n_lexers` lexers.
pub(crate) fn parser_limits(n_lexers: usize) -> ParserLimits {
    ParserLimits {
        max_items_in_row: MAX_ITEMS,
        initial_lexer_fuel: COMPILE_FUEL,
        step_lexer_fuel: MASK_FUEL,
        step_max_items: MASK_ITEMS,
        max_lexer_states: MAX_LEXER_STATES / n_lexers.max(1),
        max_grammar_size: MAX_GRAMMAR_SIZE,
        precompute_large_lexemes: true,
        // The grammar's text and the output so far are not the log's business.
        verbose_errors: false,
    }
}
