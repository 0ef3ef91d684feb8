//! `test [arguments]`: all tests of the workspace, with one summary line. Dependencies beyond Rust,
//! a C compiler and Python are downloaded.

use std::io::{BufRead, BufReader};
use std::process::ExitCode;

use anyhow::{Context, Result};
use duct::cmd;

use crate::cargo;
use crate::redis;
use crate::trailing_args::TrailingArgs;

/// Totals over all test programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TestCounts {
    pub n_passed: u64,
    pub n_failed: u64,
    pub n_ignored: u64,
    /// Whether cargo itself succeeded; a test that does not compile counts nowhere else.
    pub succeeded: bool,
}

impl TestCounts {
    pub fn line(self) -> String {
        let ignored = if self.n_ignored > 0 {
            format!(", {} ignored", self.n_ignored)
        } else {
            String::new()
        };
        format!(
            "{} passed, {} failed{ignored}",
            self.n_passed, self.n_failed
        )
    }
}

pub fn run(args: &TrailingArgs) -> Result<ExitCode> {
    let counts = run_and_count(&args.args)?;
    println!("{}", counts.line());
    Ok(if counts.succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Forwards the output line by line and adds up the `test result:` lines.
pub fn run_and_count(arguments: &[String]) -> Result<TestCounts> {
    let mut args: Vec<String> = ["test", "--workspace", "--no-fail-fast"]
        .map(String::from)
        .into();
    args.extend(arguments.iter().cloned());
    let mut tests = cmd("cargo", args).dir(cargo::root()?);
    if let Some(server) = redis::for_tests() {
        tests = tests.env(redis::VARIABLE, server);
    }
    let reader = tests
        .unchecked()
        .reader()
        .context("cargo cannot be started")?;
    let mut counts = TestCounts::default();
    for line in BufReader::new(&reader).lines() {
        let line = line.context("the tests' output")?;
        println!("{line}");
        if let Some([n_passed, n_failed, n_ignored]) = result_of(&line) {
            counts.n_passed += n_passed;
            counts.n_failed += n_failed;
            counts.n_ignored += n_ignored;
        }
    }
    let output = reader
        .try_wait()?
        .context("cargo closed its output but still runs")?;
    counts.succeeded = output.status.success();
    Ok(counts)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; …` → passed, failed, ignored.
fn result_of(line: &str) -> Option<[u64; 3]> {
    let rest = line.strip_prefix("test result: ")?;
    let count = |word: &str| {
        let before = rest.split(&format!(" {word}")).next()?;
        before.rsplit(' ').next()?.parse().ok()
    };
    Some([count("passed")?, count("failed")?, count("ignored")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_cargos_result_lines() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.1s";
        assert_eq!(result_of(line), Some([12, 3, 1]));
        assert_eq!(result_of("test tests::x ... ok"), None);
    }
}
