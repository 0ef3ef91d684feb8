//! What ended the program: its code in the error catalogue, and its text.

use engine::config::{ConfigError, PlanError};
use engine::errors::Code;
use engine::launch::LaunchError;
use engine::server::ServeError;
use engine::source::SourceError;
use engine::text::TextError;
use engine::weights::WeightError;

/// A failure of the program itself before it serves: address, signal handler or thread.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct StartFailure {
    pub code: Code,
    pub message: String,
}

/// The code of the error that ended the program, if it has one.
pub fn code_of(error: &anyhow::Error) -> Option<Code> {
    error.chain().find_map(|cause| {
        None.or_else(|| cause.downcast_ref().map(|_: &ConfigError| Code::BadFlag))
            .or_else(|| cause.downcast_ref().map(|_: &PlanError| Code::BadFlag))
            .or_else(|| cause.downcast_ref().map(LaunchError::code))
            .or_else(|| cause.downcast_ref().map(SourceError::code))
            .or_else(|| cause.downcast_ref().map(WeightError::code))
            .or_else(|| cause.downcast_ref().map(TextError::code))
            .or_else(|| cause.downcast_ref().map(ServeError::code))
            .or_else(|| {
                cause
                    .downcast_ref()
                    .map(|failure: &StartFailure| failure.code)
            })
    })
}

/// An error and its causes on one line. Many errors repeat their cause's text for readers who only
/// see the outermost one; here each is written once.
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_its_error_repeats_is_said_once() {
        let missing = || WeightError::Missing { name: "x".into() };
        let error = anyhow::Error::from(LaunchError::Weights(missing()));
        let line = in_one_line(&error.context("loading"));
        assert_eq!(
            line,
            "loading: reading the weights: the checkpoint has no tensor x"
        );
        let plain = anyhow::Error::from(missing()).context("reading");
        assert_eq!(
            in_one_line(&plain),
            "reading: the checkpoint has no tensor x"
        );
    }
}
