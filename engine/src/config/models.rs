//! Reads the models of a server from its command line or a file.
//!
//! On the command line every `--model-path` begins a model; the flags after it, up to the next one,
//! apply to that model. Flags before the first one apply to all:
//!
//! ```text
//! engine serve --port 30000 --device-memory-limit 31.4GiB \
//!     --model-path TinyLlama/TinyLlama-1.1B-Chat-v1.0 --served-model-name tiny --mem-fraction-static 0.15 \
//!     --model-path Qwen/Qwen2.5-3B --served-model-name qwen --mem-fraction-static 0.25 --schedule-policy lpm
//! ```
//!
//! `--config` names an equivalent TOML file: flags without their dashes, those of a model in its
//! table `[[model]]`. Both become arguments for the same parser, so every flag can be in the file
//! and is checked alike. Flags typed next to `--config` override the file's common flags, and a
//! model's own override both: `switch = false` in its table turns off a common switch, wherever it
//! was set.

use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use serde_json::{Map, Value};

use super::aliases;
use super::file_lines::FileLines;
use super::resolved::{ConfigError, DEFAULT_FRACTION, EngineConfig, HttpConfig};
use super::typed::{EngineArgs, ServeArgs};
use super::warnings::warnings;

/// The table of a model in the file.
pub(super) const MODEL_TABLE: &str = "model";

/// A server and its models.
#[derive(Debug, Clone)]
pub struct ServePlan {
    pub http: HttpConfig,
    /// At least one.
    pub models: Vec<ModelPlan>,
    /// For the log.
    pub warnings: Vec<String>,
}

/// One model, checked.
#[derive(Debug, Clone)]
pub struct ModelPlan {
    pub typed: EngineArgs,
    pub engine: EngineConfig,
    /// `--served-model-name`
    pub name: Option<String>,
    /// Flag → value as typed, for the record.
    pub flags: Value,
    pub start_unloaded: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The parser's message, several lines long.
    #[error("{0}")]
    Flags(String),
    #[error("--config {}: {message}", path.display())]
    File { path: PathBuf, message: String },
}

/// The arguments of `engine serve`.
#[derive(Debug, Parser)]
#[command(name = "engine serve", args_override_self = true)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

/// Arguments common to all models, and those of each.
struct Sections {
    common: Vec<String>,
    models: Vec<Section>,
}

/// Flags as they would be typed.
#[derive(Default)]
struct Section {
    args: Vec<String>,
    /// Switches that are turned off, which cannot be typed.
    off: Vec<String>,
}

impl ServePlan {
    /// Parses the arguments after `engine serve`.
    ///
    /// ```
    /// use engine::config::ServePlan;
    ///
    /// let line = "--port 8000 --model-path synthetic:tiny-qwen3 --mem-fraction-static 0.5";
    /// let typed: Vec<String> = line.split(' ').map(str::to_owned).collect();
    /// let plan = ServePlan::read(&typed)?;
    /// assert_eq!(plan.http.port, 8000);
    /// assert_eq!(plan.models.len(), 1);
    ///
    /// let refused = ServePlan::read(&["--prot".to_owned(), "8000".to_owned()]);
    /// assert!(refused.unwrap_err().to_string().contains("--prot"));
    /// # Ok::<(), engine::config::PlanError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If a flag is unknown or has a value outside its limits, or the file of `--config` cannot be read.
    pub fn read(args: &[String]) -> Result<Self, PlanError> {
        let args = &in_our_flags(args)?;
        let whole = parse(args)?;
        let (sections, http) = match &whole.models.config {
            Some(path) if whole.engine.model_path.is_some() => {
                return Err(PlanError::File {
                    path: path.clone(),
                    message: "not allowed together with --model-path; models are in the file"
                        .to_owned(),
                });
            }
            Some(path) => {
                let sections = Sections::of_file(path, args)?;
                let http = parse(&sections.common)?.http;
                (sections, http)
            }
            // Flags of the server may also come after a model.
            None => (Sections::of_args(args), whole.http),
        };
        let mut models: Vec<ModelPlan> = sections
            .models
            .iter()
            .map(|section| ModelPlan::read(&sections.common, section))
            .collect::<Result<_, _>>()?;
        let typed_http = http;
        let mut http = typed_http.resolve()?;
        let warnings = warnings(&typed_http, &http);
        if let [only] = models.as_mut_slice() {
            // Its name may be anywhere on the line.
            only.name = only.name.take().or(http.served_model_name.take());
            http.served_model_name.clone_from(&only.name);
        } else {
            if let Some(name) = parse(&sections.common)?.http.served_model_name {
                let limit = "with several models, must come after the --model-path that it names";
                return Err(ConfigError::new("--served-model-name", name, limit).into());
            }
            http.served_model_name = None;
        }
        check_names(&models)?;
        share_memory(&mut models)?;
        Ok(Self {
            http,
            models,
            warnings,
        })
    }
}

impl ModelPlan {
    fn read(common: &[String], section: &Section) -> Result<Self, PlanError> {
        let own = parse(&section.args)?;
        // Values never start with `--`, so matching by name is safe.
        let mut args = common.to_vec();
        args.retain(|word| !section.off.contains(word));
        args.extend_from_slice(&section.args);
        let all = parse(&args)?;
        Ok(Self {
            engine: all.engine.resolve()?,
            flags: all.typed_flags(),
            typed: all.engine,
            name: own.http.resolve_served_model_name()?,
            start_unloaded: all.models.start_unloaded,
        })
    }

    /// A model that is added to a running server, from flags without dashes.
    ///
    /// # Errors
    ///
    /// [`PlanError::Flags`] if a flag is unknown, has a value of the wrong type or belongs to
    /// the server; [`PlanError::Config`] if a value is out of its range.
    pub fn of_flags(flags: &Map<String, Value>) -> Result<Self, PlanError> {
        let section = Section::of(flags, &|_| String::new()).map_err(PlanError::Flags)?;
        check_own(&section.args).map_err(PlanError::Flags)?;
        Self::read(&[], &section)
    }

    /// Its names until it is loaded.
    pub fn names(&self) -> Vec<String> {
        let path = || self.engine.model_path.clone();
        let name = self.name.clone().or_else(path);
        vec![name.unwrap_or_else(|| "default".to_owned())]
    }
}

impl Sections {
    /// A line without `--model-path` has one model, the default.
    fn of_args(args: &[String]) -> Self {
        let is_start = |word: &String| {
            let flag = word.split_once('=').map_or(word.as_str(), |(flag, _)| flag);
            matches!(flag, "--model-path" | "--model")
        };
        let starts: Vec<usize> = (0..args.len()).filter(|i| is_start(&args[*i])).collect();
        let first = starts.first().copied().unwrap_or(args.len());
        let ends = starts.iter().skip(1).copied().chain([args.len()]);
        let mut models: Vec<Section> = starts
            .iter()
            .zip(ends)
            .map(|(start, end)| Section {
                args: args[*start..end].to_vec(),
                off: Vec::new(),
            })
            .collect();
        if models.is_empty() {
            models.push(Section::default());
        }
        Self {
            common: args[..first].to_vec(),
            models,
        }
    }

    fn of_file(path: &Path, typed: &[String]) -> Result<Self, PlanError> {
        let failed = |message: String| PlanError::File {
            path: path.to_owned(),
            message,
        };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        let mut file: Map<String, Value> =
            toml::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let lines = FileLines::of(&text);
        let tables = match file.remove(MODEL_TABLE) {
            Some(Value::Array(tables)) if !tables.is_empty() => tables,
            _ => {
                return Err(failed(
                    "there is no model; each needs a table [[model]]".to_owned(),
                ));
            }
        };
        for flag in ["config", "model-path", "model", "served-model-name"] {
            if file.contains_key(flag) {
                let place = lines.place(None, flag);
                return Err(failed(format!(
                    "{place}{flag} must not come before the models"
                )));
            }
        }
        let common = Section::of(&file, &|key| lines.place(None, key)).map_err(failed)?;
        let mut models = Vec::with_capacity(tables.len());
        for (i, table) in tables.iter().enumerate() {
            let in_table = |message: String| failed(format!("model {i}: {message}"));
            let Value::Object(table) = table else {
                return Err(in_table("is not a table".to_owned()));
            };
            let place = |key: &str| lines.place(Some(i), key);
            let section = Section::of(table, &place).map_err(in_table)?;
            check_own(&section.args).map_err(in_table)?;
            models.push(section);
        }
        Ok(Self {
            common: [common.args.as_slice(), typed].concat(),
            models,
        })
    }
}

/// Translates other servers' flags.
fn in_our_flags(args: &[String]) -> Result<Vec<String>, PlanError> {
    aliases::translate(args, &Line::command()).map_err(PlanError::Flags)
}

fn parse(args: &[String]) -> Result<ServeArgs, PlanError> {
    let program = [String::from("engine serve")];
    let line = Line::try_parse_from(program.iter().chain(args)).map_err(|error| {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        PlanError::Flags(text.trim_end().to_owned())
    })?;
    Ok(line.serve)
}

/// Refuses server flags among a model's own flags.
fn check_own(args: &[String]) -> Result<(), String> {
    let mut own = parse(args).map_err(|error| error.to_string())?;
    own.engine = EngineArgs::default();
    own.http.served_model_name = None;
    own.models.start_unloaded = false;
    match own.typed_flags() {
        Value::Object(typed) if !typed.is_empty() => {
            let flags: Vec<String> = typed.keys().cloned().collect();
            Err(format!(
                "{} is a flag of the server, not of a model",
                flags.join(", ")
            ))
        }
        _ => Ok(()),
    }
}

impl Section {
    /// Converts `key = value` to arguments: `--key=value`, each checked on its own. `place` returns
    /// the location of a key.
    fn of(flags: &Map<String, Value>, place: &dyn Fn(&str) -> String) -> Result<Self, String> {
        let mut section = Self::default();
        for (key, value) in flags {
            let at = |message: String| format!("{}{message}", place(key));
            section.add(key, value).map_err(at)?;
        }
        Ok(section)
    }

    fn add(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let scalar = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if key.is_empty() || key.starts_with('-') || !key.chars().all(is_name) {
            return Err(format!(
                "{key:?}: a flag is lower-case letters, digits and -, without the leading --"
            ));
        }
        let wrong = || {
            format!(
                "{key} = {value}: a flag is true, false, a number, a string or an array of these"
            )
        };
        let args = match value {
            Value::Bool(_) => vec![format!("--{key}")],
            Value::Array(values) => {
                let values: Option<Vec<String>> = values.iter().map(scalar).collect();
                let values = values.ok_or_else(wrong)?;
                // A value that looks like a flag would be parsed as one.
                if let Some(flag) = values.iter().find(|value| value.starts_with('-')) {
                    return Err(format!("{key} has {flag:?}, which is not a value"));
                }
                [vec![format!("--{key}")], values].concat()
            }
            value => vec![format!("--{key}={}", scalar(value).ok_or_else(wrong)?)],
        };
        let refused = |error: PlanError| {
            let message = error.to_string();
            // Without the usage part, which is about command lines.
            let reason = message.split("\n\n").next().unwrap_or_default();
            // A string may be a secret under a misspelt name.
            if value.is_string() {
                format!("{key}: {reason}")
            } else {
                format!("{key} = {value}: {reason}")
            }
        };
        let args = in_our_flags(&args).map_err(refused)?;
        // Switches that are off are validated like those that are on; no other place does it.
        parse(&args).map_err(refused)?;
        if *value == Value::Bool(false) {
            self.off.extend(args);
        } else {
            self.args.extend(args);
        }
        Ok(())
    }
}

fn check_names(models: &[ModelPlan]) -> Result<(), ConfigError> {
    let mut names: Vec<String> = models.iter().flat_map(ModelPlan::names).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let limit = "two models have this name; names must be unique";
            Err(ConfigError::new("--served-model-name", &pair[0], limit))
        }
        None => Ok(()),
    }
}

/// Models without `--mem-fraction-static` share what the others leave of the default. The models
/// loaded at start-up must fit together.
fn share_memory(models: &mut [ModelPlan]) -> Result<(), ConfigError> {
    if models.len() < 2 {
        return Ok(());
    }
    let is_given = |plan: &ModelPlan| plan.typed.mem_fraction_static.is_some();
    let at_start = || models.iter().filter(|plan| !plan.start_unloaded);
    let fractions: Vec<f64> = at_start()
        .filter(|plan| is_given(plan))
        .map(|plan| plan.engine.mem_fraction_static)
        .collect();
    let given: f64 = fractions.iter().sum();
    let n_open = at_start().filter(|plan| !is_given(plan)).count();
    let sum = || {
        let shown: Vec<String> = fractions.iter().map(ToString::to_string).collect();
        shown.join(" + ")
    };
    if given > 1.0 + 1e-9 {
        let limit = "the models of one device must not have more than 1 together";
        return Err(ConfigError::new("--mem-fraction-static", sum(), limit));
    }
    let left = (DEFAULT_FRACTION - given) / n_open.max(1) as f64;
    if n_open > 0 && left <= 0.0 {
        let limit = format!(
            "leaves nothing of {DEFAULT_FRACTION} for the {n_open} models without a fraction"
        );
        return Err(ConfigError::new("--mem-fraction-static", sum(), limit));
    }
    for plan in models {
        if !is_given(plan) && !plan.start_unloaded {
            plan.engine.mem_fraction_static = left;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
