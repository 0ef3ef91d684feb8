//! The error catalogue: every error that a client or an operator can get has a code here, with its
//! cause and its cure.
//!
//! One table, so that the JSON of an answer, the message of a start that failed and the page
//! `engine/deploy/TROUBLESHOOTING.md` cannot disagree. The message of a single error (which
//! field, value and limit) is written where it happens; what is here holds for all of its kind.
//! Deliberately absent: translations, and numbers as codes.

mod codes;
mod markdown;

pub use self::codes::Code;
pub use self::markdown::markdown;

/// Whose turn it is when this error shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request is wrong: it will fail again as it is.
    Request,
    /// A limit that the operator set was reached.
    Limit,
    /// The server's own state; the same request may succeed later.
    Server,
    /// The program ends before it serves.
    Start,
}

impl Class {
    pub const ALL: [Self; 4] = [Self::Request, Self::Limit, Self::Server, Self::Start];

    pub fn title(self) -> &'static str {
        match self {
            Self::Request => "The request is wrong",
            Self::Limit => "A limit was reached",
            Self::Server => "The server cannot answer now",
            Self::Start => "The server does not start",
        }
    }
}

/// What the catalogue says of one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// OpenAI's `code`, one word for programs; never renamed.
    pub code: &'static str,
    pub class: Class,
    /// HTTP status; `None` for errors at the start, which no client sees.
    pub status: Option<u16>,
    /// OpenAI's `type`, empty for errors at the start.
    pub kind: &'static str,
    pub cause: &'static str,
    pub cure: &'static str,
    /// Seconds in `Retry-After`, where waiting is a cure.
    pub retry_after_s: Option<u32>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_words_with_a_cause_and_a_cure() {
        let mut seen = BTreeSet::new();
        for code in Code::ALL {
            let entry = code.entry();
            assert!(seen.insert(entry.code), "{} appears twice", entry.code);
            let is_word = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
            assert!(entry.code.chars().all(is_word), "{}", entry.code);
            for text in [entry.cause, entry.cure] {
                assert!(
                    text.len() > 20 && text.ends_with('.'),
                    "{}: {text}",
                    entry.code
                );
            }
            assert_eq!(entry.class == Class::Start, entry.status.is_none());
            assert_eq!(entry.class == Class::Start, entry.kind.is_empty());
        }
    }

    #[test]
    fn usage_errors_are_errors_of_the_start() {
        for code in Code::ALL.iter().filter(|code| code.is_usage()) {
            assert_eq!(code.entry().class, Class::Start, "{code}");
        }
    }

    #[test]
    fn waiting_is_a_cure_only_of_what_passes() {
        for code in Code::ALL {
            let entry = code.entry();
            let may_pass = matches!(entry.status, Some(429 | 503));
            assert_eq!(may_pass, entry.retry_after_s.is_some(), "{}", entry.code);
        }
    }
}
