//! The two languages that reports come in.
//!
//! Templates are files of their own, one a language; words that the program chooses (verdicts,
//! reasons, labels) stand in both languages at the place that chooses them.

use crate::ReportError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lang {
    #[default]
    Ko,
    En,
}

impl Lang {
    /// `ko` or `en`, as in `--lang` and in file names.
    pub fn code(self) -> &'static str {
        self.pick("ko", "en")
    }

    /// From `ko` or `en`.
    ///
    /// # Errors
    ///
    /// [`ReportError::UnknownLanguage`] for any other code.
    pub fn parse(code: &str) -> Result<Self, ReportError> {
        match code {
            "ko" => Ok(Self::Ko),
            "en" => Ok(Self::En),
            other => Err(ReportError::UnknownLanguage {
                code: other.to_owned(),
            }),
        }
    }

    /// The word of this language.
    pub fn pick<T>(self, ko: T, en: T) -> T {
        match self {
            Self::Ko => ko,
            Self::En => en,
        }
    }
}
