//! What is promoted: a model and a file of `engine serve --config`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

/// Where a server listens is not part of what is promoted.
const OF_THE_PLACE: [&str; 2] = ["host", "port"];
/// Keys are checked at the gateway, and stand in no log or record.
const REFUSED: [&str; 5] = [
    "model-path",
    "api-key",
    "api-key-file",
    "admin-api-key",
    "admin-api-key-file",
];

#[derive(Debug, Clone)]
pub struct Configuration {
    pub model: String,
    pub file: PathBuf,
    flags: Table,
}

impl Configuration {
    /// # Errors
    ///
    /// If the file cannot be read, has several models, or says what is not its matter: the model, a key.
    pub fn read(model: &str, file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let flags = flags_of(&text).with_context(|| file.display().to_string())?;
        Ok(Self {
            model: model.to_owned(),
            file: file.canonicalize()?,
            flags,
        })
    }

    /// Of `engine serve`, without host and port: `--config` names its models itself.
    pub fn serve_flags(&self, cache: &Path) -> Vec<String> {
        let cache = cache.display().to_string();
        let mut typed = vec!["--model-path".to_owned(), self.model.clone()];
        typed.extend(["--cache-dir".to_owned(), cache]);
        for (name, value) in &self.flags {
            let flag = format!("--{name}");
            match value {
                Value::Boolean(false) => {}
                Value::Boolean(true) => typed.push(flag),
                Value::Array(values) => {
                    typed.push(flag);
                    typed.extend(values.iter().map(typed_value));
                }
                value => typed.extend([flag, typed_value(value)]),
            }
        }
        typed
    }

    /// The same configuration as an experiment that has the workload of another one.
    ///
    /// # Errors
    ///
    /// If that workload cannot be read, or builds on a third experiment's.
    pub fn experiment(&self, name: &str, workload: &str) -> Result<String> {
        let mut table: Table = workload.parse().context("the experiment of the workload")?;
        if table.contains_key("extends") {
            bail!("the experiment of the workload extends another one; name that one");
        }
        for gone in ["baseline", "tune", "remove_flags"] {
            table.remove(gone);
        }
        table.insert("name".into(), name.into());
        table.insert(
            "title".into(),
            format!("{name}, to be promoted or not").into(),
        );
        table.insert("model".into(), self.model.clone().into());
        table.insert("flags".into(), Value::Table(self.flags.clone()));
        Ok(toml::to_string(&table)?)
    }
}

fn typed_value(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

fn flags_of(text: &str) -> Result<Table> {
    let mut flags: Table = text.parse()?;
    if flags.contains_key("model") {
        bail!("`[[model]]`: one model is promoted at a time, the one on the command line");
    }
    for refused in REFUSED {
        if flags.contains_key(refused) {
            bail!(
                "`{refused}` must not stand in the file: the command line names the model, and the gateway checks keys"
            );
        }
    }
    for place in OF_THE_PLACE {
        flags.remove(place);
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_flags_and_keys_are_refused() {
        let flags = flags_of("port = 1\ndevice = \"cpu\"\nn-threads = 2\n").expect("flags");
        assert_eq!(flags.len(), 2, "{flags}");
        for (text, named) in [
            ("api-key = \"x\"", "`api-key`"),
            ("model-path = \"x\"", "`model-path`"),
            ("[[model]]\nname = \"x\"", "[[model]]"),
        ] {
            let error = flags_of(text).expect_err("refused").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn flags_are_typed_as_the_command_line_takes_them() {
        let text = "a = true\nb = false\nc = 1.5\nd = \"x\"\ne = [1, \"y\"]";
        let configuration = Configuration {
            model: "m".into(),
            file: PathBuf::new(),
            flags: flags_of(text).expect("flags"),
        };
        let typed = configuration.serve_flags(Path::new("/c")).join(" ");
        assert_eq!(
            typed,
            "--model-path m --cache-dir /c --a --c 1.5 --d x --e 1 y"
        );
    }

    #[test]
    fn the_experiment_has_the_workload_and_the_flags_of_the_file() {
        let configuration = Configuration {
            model: "m".into(),
            file: PathBuf::new(),
            flags: flags_of("device = \"cpu\"").expect("flags"),
        };
        let workload =
            "name = \"w\"\nbaseline = true\nseed = 7\n[flags]\nold = true\n[workload]\nx = 1\n";
        let text = configuration
            .experiment("02-candidate", workload)
            .expect("text");
        let table: Table = text.parse().expect("TOML");
        assert_eq!(table["name"].as_str(), Some("02-candidate"));
        assert_eq!(table["model"].as_str(), Some("m"));
        assert_eq!(table["seed"].as_integer(), Some(7));
        assert_eq!(table["workload"]["x"].as_integer(), Some(1));
        assert_eq!(table["flags"].to_string(), "{ device = \"cpu\" }");
        assert!(!table.contains_key("baseline"));
        let error = configuration
            .experiment("a", "extends = \"b\"")
            .expect_err("refused");
        assert!(error.to_string().contains("extends"));
    }

    /// The workload that is used unless another one is named.
    #[test]
    fn the_default_workload_can_be_taken() {
        let root = crate::cargo::root().expect("a root");
        let path = root
            .join("experiments")
            .join(super::super::WORKLOAD)
            .join("experiment.toml");
        let workload = fs::read_to_string(path).expect("read");
        let configuration = Configuration {
            model: "m".into(),
            file: PathBuf::new(),
            flags: Table::new(),
        };
        let text = configuration
            .experiment("01-deployed", &workload)
            .expect("text");
        assert!(text.contains("[quick.workload"), "{text}");
    }
}
