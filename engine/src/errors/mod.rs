//! The error catalogue: every error that a client or an operator can get has a code here, with its
//! cause and its fix.
//!
//! One table, so that the JSON of a response, the message of a failed start and the page
//! `engine/deploy/TROUBLESHOOTING.md` cannot disagree. The message of a single error (which field,
//! value and limit) is written where it occurs; the table holds for all errors of a kind.
//! Deliberately absent: translations, and numeric codes.

mod codes;
mod markdown;

pub use self::codes::Code;
pub use self::markdown::markdown;

/// Who must act on this error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request is wrong: repeating it unchanged will fail again.
    Request,
    /// A limit set by the operator was reached.
    Limit,
    /// The server's own state; the same request may succeed later.
    Server,
    /// The program exits before it serves.
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

/// The catalogue's entry for one code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodeEntry {
    /// OpenAI's `code`, one word for programs; never renamed.
    pub code: &'static str,
    pub class: Class,
    /// HTTP status; `None` for start-up errors, which clients do not see.
    pub status: Option<u16>,
    /// OpenAI's `type`, empty for start-up errors.
    pub kind: &'static str,
    pub cause: &'static str,
    pub fix: &'static str,
    /// Seconds in `Retry-After`, if waiting helps.
    pub retry_after_s: Option<u32>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_have_a_cause_and_a_fix() {
        let mut seen = BTreeSet::new();
        for code in Code::ALL {
            let entry = code.entry();
            assert!(seen.insert(entry.code), "{} appears twice", entry.code);
            let is_word = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
            assert!(entry.code.chars().all(is_word), "{}", entry.code);
            for text in [entry.cause, entry.fix] {
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
    fn waiting_helps_only_with_transient_errors() {
        for code in Code::ALL {
            let entry = code.entry();
            let may_pass = matches!(entry.status, Some(429 | 503));
            assert_eq!(may_pass, entry.retry_after_s.is_some(), "{}", entry.code);
        }
    }
}
