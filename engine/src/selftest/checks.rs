//! Collects checks: each has a name, an error, and the limit that it must stay within.

use std::fmt::Display;

use super::report::{Check, Outcome};

#[derive(Debug, Default)]
pub struct Checks {
    list: Vec<Check>,
}

impl Checks {
    /// Runs one check. `run` returns how far off the result is; one that cannot run has failed.
    pub fn run<E: Display>(
        &mut self,
        family: &str,
        case: impl Into<String>,
        limit: f64,
        run: impl FnOnce() -> Result<f64, E>,
    ) {
        let (outcome, error, message) = match run() {
            Ok(error) if error <= limit => (Outcome::Passed, Some(error), None),
            Ok(error) => {
                let message = format!("off by {error:.2e}, at most {limit:.1e} is right");
                (Outcome::Failed, Some(error), Some(message))
            }
            Err(error) => (Outcome::Failed, None, Some(error.to_string())),
        };
        self.list.push(Check {
            family: family.to_owned(),
            case: case.into(),
            outcome,
            // JSON has no infinity; the message says it.
            error: error.filter(|error| error.is_finite()),
            limit: Some(limit),
            message,
        });
    }

    /// As a failed check of what has no error to compare.
    pub fn fail(&mut self, family: &str, case: &str, message: String) {
        self.list.push(Check {
            family: family.to_owned(),
            case: case.to_owned(),
            outcome: Outcome::Failed,
            error: None,
            limit: None,
            message: Some(message),
        });
    }

    /// One line for each failed check.
    pub fn failures(&self) -> Vec<String> {
        let failed = self
            .list
            .iter()
            .filter(|check| check.outcome == Outcome::Failed);
        failed.map(ToString::to_string).collect()
    }

    pub fn into_list(self) -> Vec<Check> {
        self.list
    }
}

/// ‖found - expected‖ / ‖expected‖; infinite where a value is not finite or the sizes differ.
pub fn relative_error(
    found: impl IntoIterator<Item = f32>,
    expected: impl IntoIterator<Item = f64>,
) -> f64 {
    let (mut found, mut expected) = (found.into_iter(), expected.into_iter());
    let (mut difference, mut norm) = (0.0_f64, 0.0_f64);
    loop {
        match (found.next(), expected.next()) {
            (None, None) => break,
            (Some(found), Some(expected)) => {
                difference += (f64::from(found) - expected).powi(2);
                norm += expected * expected;
            }
            _ => return f64::INFINITY,
        }
    }
    if difference.is_finite() && norm > 0.0 {
        (difference / norm).sqrt()
    } else {
        f64::INFINITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_and_what_cannot_run_have_failed() {
        let mut checks = Checks::default();
        checks.run("a", "right", 1e-3, || Ok::<_, String>(1e-4));
        checks.run("a", "wrong", 1e-3, || Ok::<_, String>(2e-3));
        checks.run("b", "not a number", 1e-3, || Ok::<_, String>(f64::NAN));
        checks.run("b", "broken", 1e-3, || Err("no memory"));
        checks.fail("c", "missing", "is not there".to_owned());
        assert_eq!(
            checks.failures(),
            [
                "a, wrong: off by 2.00e-3, at most 1.0e-3 is right",
                "b, not a number: off by NaN, at most 1.0e-3 is right",
                "b, broken: no memory",
                "c, missing: is not there",
            ]
        );
        let outcomes: Vec<_> = checks
            .into_list()
            .iter()
            .map(|check| check.outcome)
            .collect();
        assert_eq!(
            outcomes.iter().filter(|o| **o == Outcome::Passed).count(),
            1
        );
    }

    #[test]
    fn errors_are_relative_to_what_is_right() {
        let error = relative_error([3.0, 4.5], [3.0, 4.0]);
        assert!((error - 0.1).abs() < 1e-9, "{error}");
        assert!(relative_error([1.0], [1.0, 2.0]).is_infinite());
        assert!(relative_error([f32::NAN], [1.0]).is_infinite());
        assert!(relative_error([0.0], [0.0]).is_infinite());
    }
}
