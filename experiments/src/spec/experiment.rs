//! `experiment.toml` → a validated [`Experiment`].
//!
//! Two steps: exactly what is written (TOML tables, merged along `extends`
//! and, for a quick run, `[quick]`), then validated values. Every error names the field,
//! the value and the limit. What comes out is written into the record as
//! `config.resolved.toml`, so that a reader needs no second file to know what ran.

use std::fs;
use std::path::{Path, PathBuf};

use records::manifest::Derived;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::spec::flags::{FlagError, Flags};
use crate::spec::workload::{self, Workload};

/// A night's work. A noisy machine takes hundreds of server starts to tell 3 % apart.
const MAX_REPLICATES: u32 = 400;

/// Longest chain of `extends`.
const MAX_LINEAGE: usize = 8;

/// What an experiment is to the reports; its heirs are that no more.
const ROLES: [&str; 2] = ["baseline", "focus"];

/// The table of an `experiment.toml` that is the business of `tune` alone.
const TUNE: &str = "tune";

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("no experiment is called `{name}`; there are: {known}")]
    Unknown { name: String, known: String },
    #[error("`{name}` fits several experiments: {fits}")]
    Ambiguous { name: String, fits: String },
    #[error("{path}: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path}: {message}")]
    Toml { path: PathBuf, message: String },
    #[error("{experiment}: {source}")]
    Flag {
        experiment: String,
        source: FlagError,
    },
    #[error("{experiment}: {source}")]
    Field {
        experiment: String,
        source: FieldError,
    },
    #[error(
        "{experiment}: extends = \"{parent}\": the chain is longer than {MAX_LINEAGE} or runs in a circle"
    )]
    Lineage { experiment: String, parent: String },
}

/// A value outside its limits.
#[derive(Debug, thiserror::Error)]
#[error("{field} = {value}: must be {limit}")]
pub struct FieldError {
    pub field: String,
    pub value: String,
    pub limit: String,
}

impl FieldError {
    pub fn new(
        field: impl Into<String>,
        value: impl std::fmt::Display,
        limit: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            value: value.to_string(),
            limit: limit.into(),
        }
    }
}

/// An experiment with everything inherited, overridden and checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Experiment {
    /// Folder name, `03-balanced-v2`.
    pub name: String,
    pub title: String,
    /// The experiments it was built from, itself first.
    pub lineage: Vec<String>,
    pub quick: bool,
    /// Of several models, all of them.
    pub model: String,
    pub seed: u64,
    /// Server starts to run.
    pub replicates: u32,
    /// What was typed after `--`, already contained in `flags`.
    pub extra_flags: Vec<String>,
    #[serde(serialize_with = "as_arguments")]
    pub flags: Flags,
    pub workload: Workload,
    /// Where the server has several; empty where it has `model` alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelSpec>,
    /// Others are judged against it. In the manifest, since it changes nothing that runs.
    #[serde(skip)]
    pub baseline: bool,
    /// The reports' findings are about it. In the manifest, too.
    #[serde(skip)]
    pub focus: bool,
    /// Set where the flags are not those of the folder's file.
    #[serde(skip)]
    pub derived: Option<Derived>,
}

/// One of a server's models, `[[models]]` of an `experiment.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// What requests call it.
    pub name: String,
    pub model: String,
    /// Its own, over those of the server.
    #[serde(default, serialize_with = "as_arguments")]
    pub flags: Flags,
}

/// The record shows the flags as the server got them.
fn as_arguments<S: serde::Serializer>(flags: &Flags, to: S) -> Result<S::Ok, S::Error> {
    flags.to_args().serialize(to)
}

/// Values of the command line that override the file's.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub quick: bool,
    pub model: Option<String>,
    pub replicates: Option<u32>,
    /// In place of the experiment's cases: a search for the highest load within limits.
    pub slo: Option<String>,
    /// Arguments after `--`.
    pub extra_flags: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    title: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    models: Vec<ModelSpec>,
    seed: u64,
    replicates: u32,
    #[serde(default)]
    flags: Flags,
    workload: Workload,
    #[serde(default)]
    baseline: bool,
    #[serde(default)]
    focus: bool,
}

/// Folders below `dir` that hold an `experiment.toml`, sorted.
///
/// # Errors
///
/// [`SpecError::Read`] if `dir` cannot be listed.
pub fn experiment_names(dir: &Path) -> Result<Vec<String>, SpecError> {
    let entries = fs::read_dir(dir).map_err(|source| SpecError::Read {
        path: dir.into(),
        source,
    })?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("experiment.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// `balanced-v2`, `03` or `03-balanced-v2` → `03-balanced-v2`.
///
/// # Errors
///
/// [`SpecError::Read`] if `dir` cannot be listed, [`SpecError::Unknown`] if no experiment has
/// this name or number, [`SpecError::Ambiguous`] if several have.
pub fn full_name(dir: &Path, typed: &str) -> Result<String, SpecError> {
    let names = experiment_names(dir)?;
    if let Some(name) = names.iter().find(|name| *name == typed) {
        return Ok(name.clone());
    }
    let fits: Vec<&String> = names
        .iter()
        .filter(|name| {
            name.split_once('-')
                .is_some_and(|(number, rest)| rest == typed || number == typed)
        })
        .collect();
    match fits.as_slice() {
        [] => Err(SpecError::Unknown {
            name: typed.into(),
            known: names.join(", "),
        }),
        [name] => Ok((*name).clone()),
        _ => Err(SpecError::Ambiguous {
            name: typed.into(),
            fits: fits
                .iter()
                .map(|name| name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        }),
    }
}

/// Of a folder of `experiments/`. A run folder's name has the host, the time and, of an ablation, a
/// flag beside it, and file systems allow 255 bytes.
pub const MAX_NAME_LENGTH: usize = 100;

impl Experiment {
    /// Reads `dir/<name>/experiment.toml` and everything it extends.
    ///
    /// # Errors
    ///
    /// If the experiment or one that it extends is missing, or a field is unknown or out of range.
    pub fn load(dir: &Path, name: &str, overrides: &Overrides) -> Result<Self, SpecError> {
        let name = full_name(dir, name)?;
        let path = dir.join(&name).join("experiment.toml");
        let mut lineage = Vec::new();
        let mut table = load_lineage(dir, &name, &mut lineage)?;

        table.remove(TUNE);
        let quick = table.remove("quick");
        if overrides.quick
            && let Some(Value::Table(quick)) = quick
        {
            lay_over(&mut table, quick);
        }
        let written: Written =
            Value::Table(table)
                .try_into()
                .map_err(|error: toml::de::Error| SpecError::Toml {
                    path: path.clone(),
                    message: error.to_string(),
                })?;

        let field = |source| SpecError::Field {
            experiment: name.clone(),
            source,
        };
        let flag = |source| SpecError::Flag {
            experiment: name.clone(),
            source,
        };
        if name.len() > MAX_NAME_LENGTH {
            let limit =
                format!("at most {MAX_NAME_LENGTH} characters, so that run folders can carry it");
            return Err(field(FieldError::new("name", &name, limit)));
        }
        if written.name != name {
            return Err(field(FieldError::new(
                "name",
                written.name,
                format!("the folder's name, {name}"),
            )));
        }
        let replicates = overrides.replicates.unwrap_or(written.replicates);
        if !(1..=MAX_REPLICATES).contains(&replicates) {
            let limit = format!("1 to {MAX_REPLICATES}");
            return Err(field(FieldError::new("replicates", replicates, limit)));
        }
        let model = if written.models.is_empty() {
            overrides.model.clone().unwrap_or(written.model)
        } else {
            check_models(&written.models, &written.workload).map_err(field)?;
            let all = written.models.iter().map(|m| m.model.as_str());
            let all = all.collect::<Vec<_>>().join(" + ");
            if let Some(asked) = overrides.model.as_ref().filter(|asked| **asked != all) {
                let limit = "left out: the experiment names its models, [[models]]";
                return Err(field(FieldError::new("--model", asked, limit)));
            }
            all
        };
        if model.trim().is_empty() {
            return Err(field(FieldError::new(
                "model",
                "\"\"",
                "a path, a model id, `synthetic:<preset>` or `default`",
            )));
        }
        let mut workload = written.workload;
        if let Some(typed) = &overrides.slo {
            if !written.models.is_empty() {
                let limit = "left out: the experiment has several models";
                return Err(field(FieldError::new("--slo", typed, limit)));
            }
            let output_tokens = workload.users.as_ref().map_or(50, |u| u.output_tokens);
            workload = Workload {
                slo: Some(workload::parse_slo(typed, output_tokens).map_err(field)?),
                latency: None,
                ladder: None,
                users: None,
                rate: None,
                ..workload
            };
        }
        workload::validate(&workload).map_err(field)?;
        let mut flags = written.flags;
        flags.validate().map_err(flag)?;
        for model in &written.models {
            model.flags.validate().map_err(flag)?;
        }
        flags.overlay(&Flags::parse(&overrides.extra_flags).map_err(flag)?);
        Ok(Self {
            title: written.title,
            lineage,
            quick: overrides.quick,
            model,
            seed: written.seed,
            replicates,
            extra_flags: overrides.extra_flags.clone(),
            flags,
            workload,
            models: written.models,
            baseline: written.baseline,
            focus: written.focus,
            derived: None,
            name,
        })
    }
}

impl Experiment {
    /// What the server has to be able to load.
    pub fn sources(&self) -> Vec<&str> {
        if self.models.is_empty() {
            return vec![&self.model];
        }
        self.models.iter().map(|m| m.model.as_str()).collect()
    }
}

/// Every model has a name of its own, and the workload asks none that is not there.
fn check_models(models: &[ModelSpec], workload: &Workload) -> Result<(), FieldError> {
    let names: Vec<&str> = models.iter().map(|m| m.name.as_str()).collect();
    for (i, model) in models.iter().enumerate() {
        if model.name.trim().is_empty() || names[..i].contains(&model.name.as_str()) {
            let limit = "a name that no other model has";
            return Err(FieldError::new("models.name", &model.name, limit));
        }
    }
    let asked = workload.models.iter().flat_map(|models| &models.names);
    for name in asked {
        if !names.contains(&name.as_str()) {
            let limit = format!("among the models: {}", names.join(", "));
            return Err(FieldError::new("workload.models.names", name, limit));
        }
    }
    Ok(())
}

/// `[tune]` of the experiment or the nearest ancestor that has one; `name` is a folder's.
///
/// # Errors
///
/// If an `experiment.toml` of the lineage cannot be read or `tune` is no table.
pub fn tune_table(dir: &Path, name: &str) -> Result<Option<Table>, SpecError> {
    match load_lineage(dir, name, &mut Vec::new())?.remove(TUNE) {
        None => Ok(None),
        Some(Value::Table(table)) => Ok(Some(table)),
        Some(other) => Err(SpecError::Toml {
            path: dir.join(name).join("experiment.toml"),
            message: format!("tune = {other}: must be a table"),
        }),
    }
}

/// The file's table merged into its ancestors', `extends` and `remove_flags` consumed.
fn load_lineage(dir: &Path, name: &str, lineage: &mut Vec<String>) -> Result<Table, SpecError> {
    lineage.push(name.to_string());
    let path = dir.join(name).join("experiment.toml");
    let text = fs::read_to_string(&path).map_err(|source| SpecError::Read {
        path: path.clone(),
        source,
    })?;
    let malformed = |message: String| SpecError::Toml {
        path: path.clone(),
        message,
    };
    let mut own: Table = text
        .parse()
        .map_err(|error: toml::de::Error| malformed(error.to_string()))?;

    let removed: Vec<String> = match own.remove("remove_flags") {
        None => Vec::new(),
        Some(value) => value
            .try_into()
            .map_err(|_| malformed("remove_flags: must be an array of flag names".into()))?,
    };
    let parent = match own.remove("extends") {
        None => None,
        Some(Value::String(parent)) => Some(parent),
        Some(other) => {
            return Err(malformed(format!(
                "extends = {other}: must be the name of an experiment"
            )));
        }
    };
    let mut table = match parent {
        None => Table::new(),
        Some(parent) if lineage.len() >= MAX_LINEAGE || lineage.contains(&parent) => {
            return Err(SpecError::Lineage {
                experiment: name.into(),
                parent,
            });
        }
        Some(parent) => load_lineage(dir, &full_name(dir, &parent)?, lineage)?,
    };
    for role in ROLES {
        table.remove(role);
    }

    let inherited = table
        .remove("flags")
        .unwrap_or_else(|| Value::Table(Table::new()));
    let mut inherited: Flags = inherited
        .try_into()
        .map_err(|error: toml::de::Error| malformed(error.to_string()))?;
    inherited
        .remove(&removed)
        .map_err(|source| SpecError::Flag {
            experiment: name.into(),
            source,
        })?;
    let inherited = Value::try_from(inherited).map_err(|error| malformed(error.to_string()))?;
    table.insert("flags".into(), inherited);
    lay_over(&mut table, own);
    Ok(table)
}

/// Tables merge key by key, everything else is replaced.
fn lay_over(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => lay_over(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}
