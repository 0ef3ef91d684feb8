//! Which models a server has, from its command line or a file.
//!
//! On the command line every `--model-path` begins a model, and what stands behind it, up to the
//! next one, is that model's own; what stands before the first is common to all:
//!
//! ```text
//! engine serve --port 30000 --device-memory-limit 31.4GiB \
//!     --model-path TinyLlama/TinyLlama-1.1B-Chat-v1.0 --served-model-name tiny --mem-fraction-static 0.15 \
//!     --model-path Qwen/Qwen2.5-3B --served-model-name qwen --mem-fraction-static 0.25 --schedule-policy lpm
//! ```
//!
//! `--config` names a TOML file that says the same: flags without their dashes, those of a model in
//! its table `[[model]]`. Both become words that the one parser of flags reads, so every flag can
//! be in the file and is checked alike. What is typed beside `--config` goes before the file's
//! common flags, and a model's own before both: `switch = false` in its table takes back a switch that
//! is common, wherever it stands.

use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::{Map, Value};

use super::resolved::{ConfigError, DEFAULT_FRACTION, EngineConfig, HttpConfig};
use super::typed::{EngineArgs, ServeArgs};

/// The table of a model in the file.
const MODEL_TABLE: &str = "model";

/// A server and its models.
#[derive(Debug, Clone)]
pub struct ServePlan {
    pub http: HttpConfig,
    /// At least one.
    pub models: Vec<ModelPlan>,
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
    /// As the parser of flags has it, over several lines.
    #[error("{0}")]
    Flags(String),
    #[error("--config {}: {message}", path.display())]
    File { path: PathBuf, message: String },
}

/// The words of `engine serve`.
#[derive(Debug, Parser)]
#[command(name = "engine serve", args_override_self = true)]
struct Line {
    #[command(flatten)]
    serve: ServeArgs,
}

/// Words that all models share, and those of each.
struct Sections {
    common: Vec<String>,
    models: Vec<Section>,
}

/// Flags as they would be typed.
#[derive(Default)]
struct Section {
    words: Vec<String>,
    /// Switches that are off, which nobody can type.
    off: Vec<String>,
}

impl ServePlan {
    /// From the words behind `engine serve`.
    pub fn read(words: &[String]) -> Result<Self, PlanError> {
        let whole = parse(words)?;
        let (sections, http) = match &whole.models.config {
            Some(path) if whole.engine.model_path.is_some() => {
                return Err(PlanError::File {
                    path: path.clone(),
                    message: "not allowed together with --model-path; models are in the file"
                        .to_owned(),
                });
            }
            Some(path) => {
                let sections = Sections::of_file(path, words)?;
                let http = parse(&sections.common)?.http;
                (sections, http)
            }
            // Flags of the server may stand behind a model, too.
            None => (Sections::of_words(words), whole.http),
        };
        let mut models: Vec<ModelPlan> = sections
            .models
            .iter()
            .map(|section| ModelPlan::read(&sections.common, section))
            .collect::<Result<_, _>>()?;
        let mut http = http.resolve()?;
        if let [only] = models.as_mut_slice() {
            // Its name may stand anywhere.
            only.name = only.name.take().or(http.served_model_name.take());
            http.served_model_name.clone_from(&only.name);
        } else {
            if let Some(name) = parse(&sections.common)?.http.served_model_name {
                let limit = "with several models, stands behind the --model-path that it names";
                return Err(ConfigError::new("--served-model-name", name, limit).into());
            }
            http.served_model_name = None;
        }
        check_names(&models)?;
        share_memory(&mut models)?;
        Ok(Self { http, models })
    }
}

impl ModelPlan {
    fn read(common: &[String], section: &Section) -> Result<Self, PlanError> {
        let own = parse(&section.words)?;
        // No value of a flag begins with --, so a word that is a switch's name is the switch.
        let mut words = common.to_vec();
        words.retain(|word| !section.off.contains(word));
        words.extend_from_slice(&section.words);
        let all = parse(&words)?;
        Ok(Self {
            engine: all.engine.resolve()?,
            flags: all.typed_flags(),
            typed: all.engine,
            name: own.http.resolve_served_model_name()?,
            start_unloaded: all.models.start_unloaded,
        })
    }

    /// A model that is added to a running server, from flags without dashes.
    pub fn of_flags(flags: &Map<String, Value>) -> Result<Self, PlanError> {
        let section = Section::of(flags).map_err(PlanError::Flags)?;
        check_own(&section.words).map_err(PlanError::Flags)?;
        Self::read(&[], &section)
    }

    /// What it is called until it is loaded.
    pub fn names(&self) -> Vec<String> {
        let path = || self.engine.model_path.clone();
        let name = self.name.clone().or_else(path);
        vec![name.unwrap_or_else(|| "default".to_owned())]
    }
}

impl Sections {
    /// A line without any `--model-path` has one model, the default.
    fn of_words(words: &[String]) -> Self {
        let is_start = |word: &String| {
            let flag = word.split_once('=').map_or(word.as_str(), |(flag, _)| flag);
            matches!(flag, "--model-path" | "--model")
        };
        let starts: Vec<usize> = (0..words.len()).filter(|i| is_start(&words[*i])).collect();
        let first = starts.first().copied().unwrap_or(words.len());
        let ends = starts.iter().skip(1).copied().chain([words.len()]);
        let mut models: Vec<Section> = starts
            .iter()
            .zip(ends)
            .map(|(start, end)| Section {
                words: words[*start..end].to_vec(),
                off: Vec::new(),
            })
            .collect();
        if models.is_empty() {
            models.push(Section::default());
        }
        Self {
            common: words[..first].to_vec(),
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
        let tables = match file.remove(MODEL_TABLE) {
            Some(Value::Array(tables)) if !tables.is_empty() => tables,
            _ => return Err(failed("no model; each has a table [[model]]".to_owned())),
        };
        for flag in ["config", "model-path", "model", "served-model-name"] {
            if file.contains_key(flag) {
                return Err(failed(format!("{flag} does not go before the models")));
            }
        }
        let common = Section::of(&file).map_err(failed)?.words;
        let mut models = Vec::with_capacity(tables.len());
        for (i, table) in tables.iter().enumerate() {
            let in_table = |message: String| failed(format!("model {i}: {message}"));
            let Value::Object(table) = table else {
                return Err(in_table("is no table".to_owned()));
            };
            let section = Section::of(table).map_err(in_table)?;
            check_own(&section.words).map_err(in_table)?;
            models.push(section);
        }
        Ok(Self {
            common: [common.as_slice(), typed].concat(),
            models,
        })
    }
}

fn parse(words: &[String]) -> Result<ServeArgs, PlanError> {
    let program = [String::from("engine serve")];
    let line = Line::try_parse_from(program.iter().chain(words)).map_err(|error| {
        let text = error.to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        PlanError::Flags(text.trim_end().to_owned())
    })?;
    Ok(line.serve)
}

/// A model's own flags are none of the server's.
fn check_own(words: &[String]) -> Result<(), String> {
    let mut own = parse(words).map_err(|error| error.to_string())?;
    own.engine = EngineArgs::default();
    own.http.served_model_name = None;
    own.models.start_unloaded = false;
    match own.typed_flags() {
        Value::Object(typed) if !typed.is_empty() => {
            let flags: Vec<String> = typed.keys().cloned().collect();
            Err(format!(
                "{} is the server's, not a model's",
                flags.join(", ")
            ))
        }
        _ => Ok(()),
    }
}

impl Section {
    /// `key = value` as it would be typed: `--key=value`.
    fn of(flags: &Map<String, Value>) -> Result<Self, String> {
        let scalar = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let mut section = Self::default();
        let words = &mut section.words;
        for (key, value) in flags {
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
            match value {
                Value::Bool(true) => words.push(format!("--{key}")),
                Value::Bool(false) => {
                    let switch = format!("--{key}");
                    // As a switch that is on it is read as every other; off, it would be read by
                    // nobody.
                    parse(std::slice::from_ref(&switch)).map_err(|error| error.to_string())?;
                    section.off.push(switch);
                }
                Value::Array(values) => {
                    words.push(format!("--{key}"));
                    let values: Option<Vec<String>> = values.iter().map(scalar).collect();
                    words.extend(values.ok_or_else(wrong)?);
                }
                value => words.push(format!("--{key}={}", scalar(value).ok_or_else(wrong)?)),
            }
        }
        Ok(section)
    }
}

fn check_names(models: &[ModelPlan]) -> Result<(), ConfigError> {
    let mut names: Vec<String> = models.iter().flat_map(ModelPlan::names).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let limit = "two models are called that; each needs a name of its own";
            Err(ConfigError::new("--served-model-name", &pair[0], limit))
        }
        None => Ok(()),
    }
}

/// Models without `--mem-fraction-static` share what the others leave of the default. Those that
/// are there from the start must fit together.
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
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn plan(line: &str) -> ServePlan {
        ServePlan::read(&words(line)).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn refusal(line: &str) -> String {
        ServePlan::read(&words(line)).expect_err(line).to_string()
    }

    fn in_file(text: &str, typed: &str) -> Result<ServePlan, PlanError> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("serve.toml");
        std::fs::write(&path, text).expect("written");
        ServePlan::read(&words(&format!("--config {} {typed}", path.display())))
    }

    #[test]
    fn one_model_is_read_as_ever_wherever_its_flags_stand() {
        for line in [
            "--model-path a --served-model-name n --port 1 --max-total-tokens 64",
            "--served-model-name n --port 1 --max-total-tokens 64 --model=a",
        ] {
            let plan = plan(line);
            assert_eq!((plan.models.len(), plan.http.port), (1, 1), "{line}");
            let model = &plan.models[0];
            assert_eq!(model.engine.model_path.as_deref(), Some("a"));
            assert_eq!(model.name.as_deref(), Some("n"));
            assert_eq!(model.engine.max_total_tokens, Some(64));
            assert!((model.engine.mem_fraction_static - 0.88).abs() < 1e-9);
        }
        assert_eq!(plan("--port 2").models[0].names(), ["default"]);
    }

    #[test]
    fn every_model_has_its_own_flags_over_the_common_ones() {
        let plan = plan(
            "--context-length 512 --model-path a --served-model-name x --mem-fraction-static 0.15 \
             --schedule-policy lpm --model-path b --context-length 128 --port 7",
        );
        assert_eq!(plan.http.port, 7);
        let [a, b] = plan.models.as_slice() else {
            panic!("two models")
        };
        assert_eq!(
            (a.names(), b.names()),
            (vec!["x".to_owned()], vec!["b".to_owned()])
        );
        assert_eq!(a.engine.context_length, Some(512));
        assert_eq!(b.engine.context_length, Some(128));
        assert_eq!(a.engine.schedule_policy.to_string(), "lpm");
        assert_eq!(b.engine.schedule_policy.to_string(), "fcfs");
        // What the first leaves of the default.
        assert!((b.engine.mem_fraction_static - 0.73).abs() < 1e-9);
        assert_eq!(a.flags["--mem-fraction-static"], 0.15);
    }

    #[test]
    fn a_file_says_the_same_as_the_command_line() {
        let text = "context-length = 512\nport = 9\nenable-mixed-chunk = true\n\
            disable-radix-cache = false\n\
            [[model]]\nmodel-path = \"a\"\nserved-model-name = \"x\"\n\
            mem-fraction-static = 0.15\ncuda-graph-bs = [1, 4]\n\
            [[model]]\nmodel-path = \"b\"\ncontext-length = 128\nstart-unloaded = true\n";
        let plan = in_file(text, "--port 10 --max-total-tokens 64").expect("a plan");
        assert_eq!(plan.http.port, 10, "what is typed goes first");
        let [a, b] = plan.models.as_slice() else {
            panic!("two models")
        };
        assert_eq!(a.engine.context_length, Some(512));
        assert_eq!(b.engine.context_length, Some(128));
        for model in [a, b] {
            assert!(model.engine.enable_mixed_chunk && model.engine.radix_cache);
            assert_eq!(model.engine.max_total_tokens, Some(64));
        }
        assert_eq!(a.flags["--cuda-graph-bs"], serde_json::json!([1, 4]));
        assert!(b.start_unloaded && !a.start_unloaded);
    }

    #[test]
    fn a_models_table_takes_back_a_switch_that_is_common() {
        let text = "enable-mixed-chunk = true\nstart-unloaded = true\n\
            [[model]]\nmodel-path = \"a\"\nenable-mixed-chunk = false\n\
            disable-radix-cache = false\nstart-unloaded = false\n\
            [[model]]\nmodel-path = \"b\"\n";
        let plan = in_file(text, "--disable-radix-cache").expect("a plan");
        let shown = plan.models.iter().map(|model| {
            let engine = &model.engine;
            (
                engine.enable_mixed_chunk,
                engine.radix_cache,
                model.start_unloaded,
            )
        });
        let shown: Vec<_> = shown.collect();
        assert_eq!(shown, [(false, true, false), (true, false, true)]);
        let flags = &plan.models[0].flags;
        assert!(flags.get("--enable-mixed-chunk").is_none(), "{flags}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let file = |text: &str| in_file(text, "").expect_err(text).to_string();
        for (found, expected) in [
            (
                refusal("--config no.toml --model-path a"),
                "models are in the file",
            ),
            (refusal("--config no/such.toml"), "no/such.toml"),
            (
                refusal(
                    "--model-path a --mem-fraction-static 0.6 --model-path b --mem-fraction-static 0.5",
                ),
                "--mem-fraction-static 0.6 + 0.5",
            ),
            (
                refusal("--model-path a --mem-fraction-static 0.9 --model-path b"),
                "leaves nothing of 0.88",
            ),
            (
                refusal("--served-model-name x --model-path a --model-path b"),
                "--served-model-name x: with several models",
            ),
            (
                refusal("--model-path a --model-path b --served-model-name a"),
                "--served-model-name a: two models",
            ),
            (file("port = 1\n"), "[[model]]"),
            (
                file("model-path = \"a\"\n[[model]]\n"),
                "model-path does not go before",
            ),
            (file("[[model]]\nport = 1\n"), "--port is the server's"),
            (file("[[model]]\nno-such-flag = 1\n"), "--no-such-flag"),
            (
                file("[[model]]\n\"--port\" = 1\n"),
                "without the leading --",
            ),
            (file("[[model]]\ncontext-length = 0\n"), "context-length"),
            (
                file("[[model]]\ncontext-length = {}\n"),
                "context-length = {}",
            ),
            (file("no-such-flag = false\n[[model]]\n"), "--no-such-flag"),
            (file("[[model]]\nno-such-flag = false\n"), "--no-such-flag"),
            (
                file("[[model]]\ncontext-length = false\n"),
                "--context-length",
            ),
            (file("model = 3"), "[[model]]"),
            (file("["), "--config"),
        ] {
            assert!(found.contains(expected), "{expected} is not in: {found}");
        }
    }
}
