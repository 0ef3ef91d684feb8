//! Engine flags as a table: what `[flags]` of an `experiment.toml` holds, what was typed
//! after `--`, and the argument list that both become.
//!
//! A table, not a list, so that one experiment can override a single flag of another.
//! Deliberately absent: what the flags mean. The engine validates them and says so.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Flags that the runner sets itself, with the option that sets them.
const OWNED_BY_THE_RUNNER: [(&str, &str); 8] = [
    ("model-path", "--model of `experiments run`"),
    ("config", "[[models]] of an `experiment.toml`"),
    ("host", "the runner, which serves on the loopback address"),
    ("port", "the runner, which lets the server take a free one"),
    (
        "api-key",
        "no experiment: the server is reachable from this machine alone, and records hold all flags",
    ),
    ("api-key-file", "no experiment, as --api-key"),
    ("admin-api-key-file", "no experiment, as --admin-api-key"),
    (
        "admin-api-key",
        "no experiment: no experiment asks for the admin API, and records hold all flags",
    ),
];

#[derive(Debug, thiserror::Error, PartialEq)]
pub enum FlagError {
    #[error(
        "flag `{flag}`: `{value}` is no value for a flag; allowed: true, a number, a string, or an array of numbers and strings"
    )]
    Value { flag: String, value: String },
    #[error(
        "flag `{flag}`: a name is lower-case letters, digits and `-`, without the leading `--`"
    )]
    Name { flag: String },
    #[error("flag `--{flag}` is set by {owner}")]
    Owned { flag: String, owner: &'static str },
    #[error(
        "`{word}` stands before any flag; extra engine flags look like `-- --schedule-policy fcfs`"
    )]
    StrayWord { word: String },
    #[error("remove_flags: `{flag}` is not among the inherited flags: {inherited}")]
    NothingToRemove { flag: String, inherited: String },
}

/// Flag name without the dashes → value. Sorted, so that the same set of flags always
/// gives the same command line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flags(BTreeMap<String, toml::Value>);

impl Flags {
    /// Checks every name and value.
    ///
    /// # Errors
    ///
    /// [`FlagError::Name`] if a name is not in lower case with dashes, [`FlagError::Owned`] if
    /// the runner sets the flag itself, [`FlagError::Value`] if the value has no form on a
    /// command line.
    pub fn validate(&self) -> Result<(), FlagError> {
        for (flag, value) in &self.0 {
            let well_named = flag.starts_with(|c: char| c.is_ascii_lowercase())
                && flag
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            if !well_named {
                return Err(FlagError::Name { flag: flag.clone() });
            }
            if let Some((_, owner)) = OWNED_BY_THE_RUNNER.iter().find(|(name, _)| name == flag) {
                return Err(FlagError::Owned {
                    flag: flag.clone(),
                    owner,
                });
            }
            values_of(value).ok_or_else(|| FlagError::Value {
                flag: flag.clone(),
                value: value.to_string(),
            })?;
        }
        Ok(())
    }

    /// Reads what was typed after `--`: `--flag`, `--flag value…` or `--flag=value`.
    ///
    /// ```
    /// use experiments::spec::flags::{FlagError, Flags};
    ///
    /// let typed: Vec<String> = "--schedule-policy lof --mem-fraction-static=0.9 --enable-mixed-chunk"
    ///     .split(' ')
    ///     .map(str::to_owned)
    ///     .collect();
    /// let flags = Flags::parse(&typed)?;
    /// assert_eq!(flags.shown("schedule-policy"), "--schedule-policy lof");
    /// assert_eq!(flags.names().count(), 3);
    ///
    /// let owned = Flags::parse(&["--port".to_owned(), "80".to_owned()]);
    /// assert!(matches!(owned, Err(FlagError::Owned { .. })));
    /// # Ok::<(), FlagError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a value comes before any flag, a name is malformed, or the runner sets the flag itself.
    pub fn parse(args: &[String]) -> Result<Self, FlagError> {
        let mut typed: Vec<(String, Vec<String>)> = Vec::new();
        for word in args {
            if let Some(flag) = word.strip_prefix("--") {
                match flag.split_once('=') {
                    Some((flag, value)) => typed.push((flag.into(), vec![value.into()])),
                    None => typed.push((flag.into(), Vec::new())),
                }
            } else if let Some((_, values)) = typed.last_mut() {
                values.push(word.clone());
            } else {
                return Err(FlagError::StrayWord { word: word.clone() });
            }
        }
        let table = typed.into_iter().map(|(flag, mut values)| {
            let value = match values.len() {
                0 => toml::Value::Boolean(true),
                1 => toml::Value::String(values.remove(0)),
                _ => toml::Value::Array(values.into_iter().map(toml::Value::String).collect()),
            };
            (flag, value)
        });
        let flags = Self(table.collect());
        flags.validate()?;
        Ok(flags)
    }

    /// `other` wins where both set a flag.
    pub fn overlay(&mut self, other: &Self) {
        self.0.extend(other.0.clone());
    }

    /// Takes inherited flags away; a name that is not there is a mistake in the spec.
    ///
    /// # Errors
    ///
    /// [`FlagError::NothingToRemove`] for the first name that is not there.
    pub fn remove(&mut self, names: &[String]) -> Result<(), FlagError> {
        for flag in names {
            if self.0.remove(flag).is_none() {
                let inherited: Vec<_> = self.0.keys().map(String::as_str).collect();
                return Err(FlagError::NothingToRemove {
                    flag: flag.clone(),
                    inherited: inherited.join(", "),
                });
            }
        }
        Ok(())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub fn get(&self, flag: &str) -> Option<&toml::Value> {
        self.0.get(flag)
    }

    /// `None` takes the flag away, whether it was there or not.
    pub fn set(&mut self, flag: &str, value: Option<toml::Value>) {
        match value {
            Some(value) => self.0.insert(flag.into(), value),
            None => self.0.remove(flag),
        };
    }

    /// The arguments of the flag, as the engine gets them; `None` where it is not set.
    /// `3` and `"3"` are the same arguments.
    pub fn words(&self, flag: &str) -> Option<Vec<String>> {
        self.0.get(flag).and_then(values_of)
    }

    /// Flags that one of the two sets and the other does not, or sets otherwise. Sorted.
    pub fn differing(&self, other: &Self) -> Vec<String> {
        let names: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        names
            .into_iter()
            .filter(|flag| self.words(flag) != other.words(flag))
            .cloned()
            .collect()
    }

    /// `--flag value`, or `none` where the flag is not set.
    pub fn shown(&self, flag: &str) -> String {
        self.words(flag).map_or_else(
            || "none".into(),
            |words| [vec![format!("--{flag}")], words].concat().join(" "),
        )
    }

    /// The argument list: `["--max-total-tokens", "3072", "--disable-radix-cache", …]`.
    /// Values that `validate` would refuse yield nothing.
    pub fn to_args(&self) -> Vec<String> {
        let mut args = Vec::new();
        for (flag, value) in &self.0 {
            if let Some(values) = values_of(value) {
                args.push(format!("--{flag}"));
                args.extend(values);
            }
        }
        args
    }
}

/// The arguments of the flag; `None` where the value is of no allowed kind.
fn values_of(value: &toml::Value) -> Option<Vec<String>> {
    let scalar = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        _ => None,
    };
    match value {
        // `false` would read as "the flag is off", which is what leaving it out says.
        toml::Value::Boolean(set) => set.then(Vec::new),
        toml::Value::Array(items) if !items.is_empty() => items.iter().map(scalar).collect(),
        other => scalar(other).map(|word| vec![word]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(String::from).collect()
    }

    #[test]
    fn typed_flags_become_the_same_arguments() {
        let flags = Flags::parse(&words(
            "--cuda-graph-bs 1 2 4 --disable-radix-cache --seed=3 --chunked-prefill-size -1",
        ));
        assert_eq!(
            flags.map(|flags| flags.to_args()),
            Ok(words(
                "--chunked-prefill-size -1 --cuda-graph-bs 1 2 4 --disable-radix-cache --seed 3"
            ))
        );
    }

    #[test]
    fn refuses_what_is_no_flag() {
        let parse = |line: &str| Flags::parse(&words(line)).map_err(|error| error.to_string());
        assert!(parse("fcfs").is_err_and(|e| e.contains("`fcfs` stands before any flag")));
        assert!(parse("--port 80").is_err_and(|e| e.contains("take a free one")));
        assert!(parse("--Max 80").is_err_and(|e| e.contains("`Max`")));
    }

    #[test]
    fn refuses_false_and_tables() {
        for (text, shown) in [
            ("x = false", "false"),
            ("x = []", "[]"),
            ("x = { y = 1 }", "y = 1"),
        ] {
            let flags: Flags = toml::from_str(text).expect("valid toml");
            let error = flags
                .validate()
                .expect_err("no value for a flag")
                .to_string();
            assert!(
                error.contains("flag `x`") && error.contains(shown),
                "{error}"
            );
        }
    }

    #[test]
    fn removing_a_flag_that_is_not_there_names_it() {
        let mut flags = Flags::parse(&words("--a --b")).expect("flags");
        assert_eq!(flags.remove(&words("a")), Ok(()));
        let error = flags
            .remove(&words("a"))
            .expect_err("gone already")
            .to_string();
        assert!(
            error.contains("`a` is not among the inherited flags: b"),
            "{error}"
        );
    }
}
