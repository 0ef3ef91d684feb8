//! Limits on the memory and time of a constraint, all in one place.
//!
//! A lexer's states and expressions grow with the output, so their number is bounded over all
//! choices of a request, which share lexers. Fuel is llguidance's count of created expressions.

use llguidance::api::ParserLimits;

/// Number of lexers of a request; choices that share one wait for each other's masks.
pub(crate) const MAX_LEXERS: usize = 4;
/// States of all lexers of a request, of 1 to 4 KiB and some tens of microseconds each: a request
/// can occupy the mask threads for a second or two in total, however many choices it has.
pub(crate) const MAX_LEXER_STATES: usize = 32_000;
/// Symbols in all rules of a grammar together.
const MAX_GRAMMAR_SIZE: usize = 100_000;
/// Rules of a grammar and their symbols: the parser numbers them in 16 bits.
pub(crate) const MAX_SYMBOLS: usize = 65_000;
/// Rules that may be open at one position of a text.
pub(crate) const MAX_ITEMS: usize = 2000;
/// For creating a lexer: some tens of milliseconds.
const COMPILE_FUEL: u64 = 1_000_000;
/// For one mask: some ten milliseconds.
pub(crate) const MASK_FUEL: u64 = 200_000;
/// Rules examined for one mask: some milliseconds.
pub(crate) const MASK_ITEMS: usize = 50_000;

/// Limits of each of `n_lexers` lexers.
pub(crate) fn parser_limits(n_lexers: usize) -> ParserLimits {
    ParserLimits {
        max_items_in_row: MAX_ITEMS,
        initial_lexer_fuel: COMPILE_FUEL,
        step_lexer_fuel: MASK_FUEL,
        step_max_items: MASK_ITEMS,
        max_lexer_states: MAX_LEXER_STATES / n_lexers.max(1),
        max_grammar_size: MAX_GRAMMAR_SIZE,
        precompute_large_lexemes: true,
        // The grammar's text and the output must not be logged.
        verbose_errors: false,
    }
}
