//! Why a guide cannot continue.
//!
//! llguidance keeps a parser error only as text. The texts for exceeded limits are recognised here,
//! and a test provokes each of them; any other text is an internal error.

use super::limits::{MASK_FUEL, MASK_ITEMS, MAX_ITEMS, MAX_LEXER_STATES};

/// The message is suitable for a client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuideError {
    /// The constraint exceeded a limit of one request while it was used.
    #[error(
        "it grew too large while the output was generated: more than {limit} {what}, which is the limit; \
         have shorter repeats and fewer alternatives, or ask for fewer choices"
    )]
    TooLarge { what: &'static str, limit: u64 },
    #[error("no token of this model continues it")]
    DeadEnd,
    /// An error that the request did not cause.
    #[error("{0}")]
    Broken(String),
}

/// llguidance's message, the quantity, and its limit.
const TOO_LARGE: [(&str, &str, u64); 4] = [
    (
        "lexer error: too many states",
        "states of its automaton, over all choices of the request",
        MAX_LEXER_STATES as u64,
    ),
    (
        "lexer error: too many expressions constructed",
        "expressions for one token",
        MASK_FUEL,
    ),
    (
        "Current row has",
        "rules that are open at one place",
        MAX_ITEMS as u64,
    ),
    (
        "Too many items (limit",
        "rules looked at for one token",
        MASK_ITEMS as u64,
    ),
];
const DEAD_END: &str = "NoExtensionBias";
/// The prefix of a caught panic in the library, whose text may be anything.
const PANIC: &str = "panic:";

impl GuideError {
    pub(super) fn of_parser(message: &str) -> Self {
        // A caught panic's backtrace may follow.
        let first_line = message.lines().next().unwrap_or_default();
        let broken = || Self::Broken(first_line.to_owned());
        if message.starts_with(PANIC) {
            return broken();
        }
        if message.starts_with(DEAD_END) {
            return Self::DeadEnd;
        }
        let known = TOO_LARGE.iter().find(|(text, ..)| message.contains(text));
        known.map_or_else(broken, |&(_, what, limit)| Self::TooLarge { what, limit })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use llguidance::api::{ParserLimits, TopLevelGrammar};
    use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
    use llguidance::{Matcher, ParserFactory};

    use super::super::limits::parser_limits;
    use super::*;

    /// The library's error while `text` is written, one token for each byte.
    fn said(env: &TokEnv, limits: ParserLimits, grammar: TopLevelGrammar, text: &str) -> String {
        let mut factory = ParserFactory::new_simple(env).expect("a factory");
        factory.quiet();
        *factory.limits_mut() = limits;
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        let mut next = text.bytes();
        loop {
            if let Err(error) = matcher.compute_mask_or_eos() {
                return error.to_string();
            }
            let byte = next.next().expect("a limit before the text's end");
            if let Err(error) = matcher.consume_token(byte.into()) {
                return error.to_string();
            }
        }
    }

    /// Small limits, so that each is reached before the others.
    #[test]
    fn the_library_says_what_is_known_of_each_limit() {
        let env = ApproximateTokEnv::single_byte_env();
        let text: String = "abcabbcaabccb".repeat(20);
        let regex = || TopLevelGrammar::from_regex(".*[ab].{30}z");
        let lark = |lark: &str| TopLevelGrammar::from_lark(lark.to_owned());
        // Every letter leaves all rules open, and the next ones open theirs.
        let wide: Vec<String> = (0..30).map(|i| format!("r{i}")).collect();
        let rules: Vec<String> = wide
            .iter()
            .map(|name| format!("{name}: /[abc]/ {name} | \"{name}\"\n"))
            .collect();
        let wide = lark(&format!("start: {}\n{}", wide.join(" | "), rules.concat()));
        let limits = || parser_limits(1);
        for (limits, grammar, of) in [
            (
                ParserLimits {
                    max_lexer_states: 30,
                    ..limits()
                },
                regex(),
                0,
            ),
            (
                ParserLimits {
                    step_lexer_fuel: 5,
                    ..limits()
                },
                regex(),
                1,
            ),
            (
                ParserLimits {
                    max_items_in_row: 10,
                    ..limits()
                },
                wide.clone(),
                2,
            ),
            (
                ParserLimits {
                    step_max_items: 10,
                    ..limits()
                },
                wide,
                3,
            ),
        ] {
            let (_, what, limit) = TOO_LARGE[of];
            let said = said(&env, limits, grammar, &text);
            let error = GuideError::of_parser(&said);
            assert_eq!(error, GuideError::TooLarge { what, limit }, "{said}");
            assert!(error.to_string().contains(&limit.to_string()), "{error}");
        }
    }

    #[test]
    fn a_vocabulary_that_cannot_go_on_is_a_dead_end() {
        let words = [&b"a"[..], b"b", &[TokTrie::SPECIAL_TOKEN_MARKER, b'e']].map(<[u8]>::to_vec);
        let trie = TokTrie::from(&TokRxInfo::new(3, 2), &words);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).expect("a factory");
        factory.quiet();
        let grammar = TopLevelGrammar::from_regex("az");
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        let first = matcher.compute_mask_or_eos().expect("a mask");
        assert_eq!(first.to_list(), [0]);
        let read = matcher
            .consume_token(0)
            .and_then(|()| matcher.compute_mask_or_eos());
        let error = GuideError::of_parser(&read.expect_err("no z").to_string());
        assert_eq!(error, GuideError::DeadEnd);
    }

    #[test]
    fn a_panic_is_no_limit_whatever_it_says() {
        let error = GuideError::of_parser("panic: lexer error: too many states: 9 >= 9\nframes");
        let first_line = "panic: lexer error: too many states: 9 >= 9".to_owned();
        assert_eq!(error, GuideError::Broken(first_line));
        let error = GuideError::of_parser("prefix mismatch: applying");
        assert!(matches!(error, GuideError::Broken(_)), "{error}");
    }
}
