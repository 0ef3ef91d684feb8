//! `[tune]` of an `experiment.toml`: the values that a search may try, and the drawing of
//! candidates from them. Pure.
//!
//! ```toml
//! [tune]
//! n_candidates = 17       # at most this number, besides the experiment as it is
//! keep_one_in = 3         # of a rung, the best third goes on
//! most_starts = 6         # of a candidate, in the last rung
//!
//! [tune.space]            # every flag with the values to try; false: without the flag
//! schedule-policy = ["lof", "fcfs"]
//! enable-mixed-chunk = [true, false]
//! ```

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;
use serde::Deserialize;
use toml::{Table, Value};

use crate::spec::FieldError;
use crate::spec::flags::Flags;

/// More combinations than this are not listed one by one.
const MOST_COMBINATIONS: usize = 100_000;

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneSpec {
    pub n_candidates: usize,
    pub keep_one_in: usize,
    pub most_starts: usize,
    space: BTreeMap<String, Vec<Value>>,
}

impl TuneSpec {
    /// Checks a `[tune]` table.
    ///
    /// # Errors
    ///
    /// If the table has an unknown key or a value of the wrong type, a number is out of its
    /// range, a flag has no values, repeated ones or an impossible one, or there are more than
    /// [`MOST_COMBINATIONS`] combinations.
    pub fn parse(table: Table) -> Result<Self> {
        let spec: Self = Value::Table(table).try_into().context("[tune]")?;
        let in_range = |field: &str, value: usize, min: usize, max: usize| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(FieldError::new(
                    format!("tune.{field}"),
                    value,
                    format!("{min} to {max}"),
                ))
            }
        };
        in_range("n_candidates", spec.n_candidates, 1, 1_000)?;
        in_range("keep_one_in", spec.keep_one_in, 2, 10)?;
        in_range("most_starts", spec.most_starts, 1, 100)?;
        for (flag, values) in &spec.space {
            let repeated = (1..values.len()).any(|i| values[..i].contains(&values[i]));
            if values.is_empty() || repeated {
                bail!("tune.space.{flag}: must be a list of one or more distinct values");
            }
            for value in values {
                with(&Flags::default(), flag, value).validate()?;
            }
        }
        if spec.n_combinations() > MOST_COMBINATIONS {
            bail!(
                "tune.space has {} combinations: at most {MOST_COMBINATIONS}",
                spec.n_combinations()
            );
        }
        if spec.n_combinations() < 2 {
            bail!("tune.space: at least one flag needs two values to choose from");
        }
        Ok(spec)
    }

    fn n_combinations(&self) -> usize {
        self.space
            .values()
            .fold(1, |n, values| n.saturating_mul(values.len()))
    }

    pub fn flags(&self) -> impl Iterator<Item = &str> {
        self.space.keys().map(String::as_str)
    }

    /// Different configurations in an order that the seed decides, none of them `incumbent`.
    /// Flags of `inactive` keep the incumbent's value: trying others would show noise.
    pub fn draw(&self, incumbent: &Flags, inactive: &BTreeSet<String>, seed: u64) -> Vec<Flags> {
        let mut drawn = vec![incumbent.clone()];
        for (flag, values) in &self.space {
            if !inactive.contains(flag) {
                drawn = drawn
                    .iter()
                    .flat_map(|flags| values.iter().map(|value| with(flags, flag, value)))
                    .collect();
            }
        }
        drawn.retain(|flags| !flags.differing(incumbent).is_empty());
        drawn.shuffle(&mut ChaCha12Rng::seed_from_u64(seed));
        drawn.truncate(self.n_candidates);
        drawn
    }
}

fn with(flags: &Flags, flag: &str, value: &Value) -> Flags {
    let mut flags = flags.clone();
    let value = (*value != Value::Boolean(false)).then(|| value.clone());
    flags.set(flag, value);
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TuneSpec> {
        TuneSpec::parse(text.parse().expect("TOML"))
    }

    const SPACE: &str = "n_candidates = 4\nkeep_one_in = 2\nmost_starts = 3\n\
                         [space]\nn = [1, 2, 3]\nmixed = [true, false]";

    fn incumbent() -> Flags {
        Flags::parse(&["--n".into(), "2".into(), "--kept".into()]).expect("flags")
    }

    fn lines(candidates: &[Flags]) -> Vec<String> {
        candidates.iter().map(|c| c.to_args().join(" ")).collect()
    }

    #[test]
    fn candidates_are_distinct_and_the_seed_decides_their_order() {
        let spec = parse(SPACE).expect("a space");
        let draw = |seed| lines(&spec.draw(&incumbent(), &BTreeSet::new(), seed));
        assert_eq!(draw(1), draw(1));
        assert_eq!(draw(1).len(), 4);
        assert!((2..20).any(|seed| draw(seed) != draw(1)));
        let mut spec = spec;
        spec.n_candidates = 100;
        let mut all = lines(&spec.draw(&incumbent(), &BTreeSet::new(), 1));
        all.sort();
        assert_eq!(
            all,
            [
                "--kept --mixed --n 1",
                "--kept --mixed --n 2",
                "--kept --mixed --n 3",
                "--kept --n 1",
                "--kept --n 3"
            ]
        );
    }

    #[test]
    fn flags_that_do_nothing_are_not_searched() {
        let spec = parse(SPACE).expect("a space");
        let drawn = spec.draw(&incumbent(), &BTreeSet::from(["n".into()]), 1);
        assert_eq!(lines(&drawn), ["--kept --mixed --n 2"]);
    }

    #[test]
    fn mistakes_name_field_value_and_limit() {
        for (text, part) in [
            (
                SPACE.replace("keep_one_in = 2", "keep_one_in = 1"),
                "tune.keep_one_in = 1: must be 2 to 10",
            ),
            (
                SPACE.replace("[1, 2, 3]", "[1, 1]"),
                "tune.space.n: must be a list",
            ),
            (
                SPACE.replace("n = [1, 2, 3]", "port = [1]"),
                "flag `--port` is set by",
            ),
            (SPACE.replace("most_starts", "mostly"), "mostly"),
            (
                SPACE
                    .replace("[1, 2, 3]", "[1]")
                    .replace("[true, false]", "[true]"),
                "at least one flag needs two values",
            ),
        ] {
            let error = format!("{:#}", parse(&text).expect_err("a mistake"));
            assert!(error.contains(part), "{error}");
        }
    }
}
