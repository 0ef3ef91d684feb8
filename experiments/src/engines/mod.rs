//! Engines as arms: how each one is found, told what an experiment asks, and started.
//!
//! Ours is started as an experiment says. Any other has an [`Adapter`] in a file of its own: where the
//! program comes from and which version it is, its flags for those of an experiment, its presets, the
//! models that it reads. Everything here is decided before the first server starts; supervision, load
//! and records are the same for all.

mod llama_cpp;
mod ours;
mod program;
mod sglang;
mod vllm;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use records::manifest::{EngineUsed, OURS, arm_name};

pub use self::program::Program;
use crate::spec::Experiment;
use crate::spec::flags::Flags;

/// The preset that is meant where none is typed.
const DEFAULT_PRESET: &str = "best";

static OTHERS: [&dyn Adapter; 3] = [&vllm::Vllm, &sglang::Sglang, &llama_cpp::LlamaCpp];

/// An engine that is not ours.
pub trait Adapter: fmt::Debug + Sync {
    fn name(&self) -> &'static str;

    fn presets(&self) -> &'static [Preset];

    /// What becomes of a flag of an experiment; `None` for one that nothing is known of.
    fn rule(&self, preset: &Preset, flag: &str) -> Option<Rule>;

    /// How long it may take from its start to its first answer, compiling included.
    fn ready_limit(&self) -> Duration;

    /// How the names of environment variables begin that change what the engine does.
    fn variable_prefixes(&self) -> &'static [&'static str];

    /// The program at the place that was typed, or else on PATH; its version and digest.
    ///
    /// # Errors
    ///
    /// If there is none, or it does not say its version.
    fn find(&self, place: Option<&Path>) -> Result<Program>;

    /// Why it cannot read the model's files, if it cannot.
    fn refusal(&self, model: &Path) -> Option<String>;

    /// What precedes the mapped flags.
    fn arguments(&self, model: &Path, served_name: &str, port: u16) -> Vec<String>;
}

/// One way to run an engine.
#[derive(Debug)]
pub struct Preset {
    pub name: &'static str,
    /// Its own flags, under those of the experiment.
    pub flags: &'static [&'static str],
}

/// What becomes of an experiment's flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The same flag with the same value.
    Same,
    /// The same value under this name.
    As(&'static str),
    /// These words, whatever the value.
    Words(&'static [&'static str]),
    /// Not given to the engine, for this reason.
    LeftOut(&'static str),
}

/// What was typed for engines.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `ours`, `vllm`, `vllm@enforce-eager`
    pub engines: Vec<String>,
    /// `vllm=PLACE`
    pub places: Vec<String>,
    /// `llama.cpp=FILE`
    pub models: Vec<String>,
}

/// An engine that was found, before it has a model.
#[derive(Debug, Clone)]
pub struct Choice {
    adapter: &'static dyn Adapter,
    preset: &'static Preset,
    program: Program,
    /// Its own model file in place of the experiment's.
    pub model: Option<PathBuf>,
}

/// A model's files on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    pub path: PathBuf,
    pub sha256: Option<String>,
    /// What requests call it.
    pub name: String,
    /// What our engine calls it in its records, so that all arms are of one model there.
    pub source: String,
}

/// The engine of an arm.
#[derive(Debug, Clone)]
pub enum Engine {
    Ours,
    Other(Box<OtherEngine>),
}

/// An engine with everything that its start takes but the port.
#[derive(Debug, Clone)]
pub struct OtherEngine {
    choice: Choice,
    /// None until the models were fetched.
    model: Option<ModelFiles>,
    flags_left_out: BTreeMap<String, String>,
    /// Why its answers are compared with none.
    pub incomparable: Option<String>,
}

/// Resolves `--engine`, `--engine-path` and `--engine-model`; ours comes first, as the reference of the
/// others. `None`: ours.
///
/// # Errors
///
/// If an engine or preset is unknown or named twice, its program is missing, or a place or model is
/// given for an engine that is not asked for.
pub fn choices(asked: &Asked) -> Result<Vec<Option<Choice>>> {
    let places = by_engine("--engine-path", &asked.places)?;
    let models = by_engine("--engine-model", &asked.models)?;
    let mut with_ours = false;
    let mut others: Vec<Choice> = Vec::new();
    for typed in &asked.engines {
        if typed == OURS {
            if with_ours {
                bail!("--engine: {typed} is named twice");
            }
            with_ours = true;
            continue;
        }
        let (adapter, preset) = named(typed)?;
        let is_same = |other: &Choice| {
            other.adapter.name() == adapter.name() && other.preset.name == preset.name
        };
        if others.iter().any(is_same) {
            bail!(
                "--engine: {}@{} is named twice",
                adapter.name(),
                preset.name
            );
        }
        let place = places.get(adapter.name()).map(PathBuf::as_path);
        let program = adapter
            .find(place)
            .with_context(|| format!("engine {}", adapter.name()))?;
        others.push(Choice {
            adapter,
            preset,
            program,
            model: models.get(adapter.name()).cloned(),
        });
    }
    for (option, given) in [("--engine-path", &places), ("--engine-model", &models)] {
        let is_asked = |name: &str| others.iter().any(|other| other.adapter.name() == name);
        if let Some(name) = given.keys().find(|name| !is_asked(name)) {
            bail!("{option} {name}=…: --engine does not name {name}");
        }
    }
    let ours = (with_ours || others.is_empty()).then_some(None);
    Ok(ours
        .into_iter()
        .chain(others.into_iter().map(Some))
        .collect())
}

/// `vllm=PLACE` by the engine's name.
fn by_engine(option: &str, typed: &[String]) -> Result<BTreeMap<&'static str, PathBuf>> {
    let mut found = BTreeMap::new();
    for typed in typed {
        let Some((name, place)) = typed.split_once('=').filter(|(_, place)| !place.is_empty())
        else {
            bail!("{option} {typed}: must be ENGINE=PLACE, for instance vllm=/opt/vllm");
        };
        let Some(adapter) = OTHERS.iter().find(|adapter| adapter.name() == name) else {
            bail!("{option} {typed}: {name} is not one of {}", other_names());
        };
        let place = std::path::absolute(place).with_context(|| format!("{option} {typed}"))?;
        if found.insert(adapter.name(), place).is_some() {
            bail!("{option}: {name} is given twice");
        }
    }
    Ok(found)
}

fn named(typed: &str) -> Result<(&'static dyn Adapter, &'static Preset)> {
    let (name, preset) = typed.split_once('@').unwrap_or((typed, DEFAULT_PRESET));
    let Some(adapter) = OTHERS.iter().find(|adapter| adapter.name() == name) else {
        bail!(
            "--engine {typed}: {name} is not one of {OURS}, {}",
            other_names()
        );
    };
    let presets = adapter.presets();
    let Some(preset) = presets.iter().find(|known| known.name == preset) else {
        let known: Vec<&str> = presets.iter().map(|preset| preset.name).collect();
        bail!(
            "--engine {typed}: {name} has no preset {preset}; it has {}",
            known.join(", ")
        );
    };
    Ok((*adapter, preset))
}

fn other_names() -> String {
    OTHERS.map(Adapter::name).join(", ")
}

impl Choice {
    /// `vllm@best`
    pub fn shown(&self) -> String {
        format!("{}@{}", self.adapter.name(), self.preset.name)
    }

    /// The experiment as this engine runs it: its flags are the engine's own.
    ///
    /// # Errors
    ///
    /// If nothing is known of a flag, or the experiment has several models.
    pub fn take(&self, experiment: &Experiment) -> Result<(Experiment, OtherEngine)> {
        if !experiment.models.is_empty() {
            bail!(
                "{}: several models in one server are measured with {OURS} alone, not with {}",
                experiment.name,
                self.adapter.name()
            );
        }
        let (flags, flags_left_out) = self
            .map(&experiment.flags)
            .with_context(|| experiment.name.clone())?;
        let dummy = experiment.flags.words("load-format") == Some(vec!["dummy".into()]);
        let engine = OtherEngine {
            choice: self.clone(),
            model: None,
            flags_left_out,
            incomparable: dummy
                .then(|| "--load-format dummy: every engine makes weights of its own".to_owned()),
        };
        Ok((
            Experiment {
                flags,
                ..experiment.clone()
            },
            engine,
        ))
    }

    /// The engine's flags, and those of the experiment that it is not given.
    fn map(&self, flags: &Flags) -> Result<(Flags, BTreeMap<String, String>)> {
        let mut args: Vec<String> = Vec::new();
        let mut left_out = BTreeMap::new();
        let mut unknown = Vec::new();
        for flag in flags.names() {
            let mut give = |name: &str| {
                args.push(format!("--{name}"));
                args.extend(flags.words(flag).unwrap_or_default());
            };
            match self.adapter.rule(self.preset, flag) {
                Some(Rule::Same) => give(flag),
                Some(Rule::As(name)) => give(name),
                Some(Rule::Words(own)) => args.extend(own.iter().map(ToString::to_string)),
                Some(Rule::LeftOut(reason)) => {
                    left_out.insert(flag.to_owned(), reason.to_owned());
                }
                None => unknown.push(format!("--{flag}")),
            }
        }
        if !unknown.is_empty() {
            bail!(
                "nothing is known of {} for {}: it is neither mapped to a flag of it nor left out for a reason; take it out of the experiment, or add a rule (docs/engines.md)",
                unknown.join(", "),
                self.shown()
            );
        }
        let own: Vec<String> = self.preset.flags.iter().map(ToString::to_string).collect();
        let mut mapped = Flags::parse(&own)?;
        mapped.overlay(&Flags::parse(&args)?);
        Ok((mapped, left_out))
    }
}

impl Engine {
    pub fn is_ours(&self) -> bool {
        matches!(self, Self::Ours)
    }

    /// The arm's name within its campaign.
    pub fn arm(&self, experiment: &str) -> String {
        match self {
            Self::Ours => experiment.to_owned(),
            Self::Other(engine) => arm_name(experiment, &engine.choice.shown()),
        }
    }

    /// `ours`, `vllm@best`
    pub fn shown(&self) -> String {
        match self {
            Self::Ours => OURS.to_owned(),
            Self::Other(engine) => engine.choice.shown(),
        }
    }

    /// The whole command. `port` 0: the server takes a free one and says which.
    pub fn command(&self, ours: &Path, experiment: &Experiment, port: u16) -> Vec<String> {
        match self {
            Self::Ours => ours::command(ours, experiment, port),
            Self::Other(engine) => engine.command(experiment, port),
        }
    }

    pub fn environment(&self) -> BTreeMap<String, String> {
        match self {
            Self::Ours => BTreeMap::new(),
            Self::Other(engine) => engine.choice.program.environment.clone(),
        }
    }

    pub fn ready_limit(&self) -> Duration {
        match self {
            Self::Ours => ours::READY_LIMIT,
            Self::Other(engine) => engine.choice.adapter.ready_limit(),
        }
    }

    /// For the record.
    pub fn used(&self, our_version: Option<&String>) -> EngineUsed {
        let engine = match self {
            Self::Ours => {
                return EngineUsed {
                    name: OURS.into(),
                    preset: None,
                    version: our_version.cloned(),
                    sha256: None,
                    digest_of: None,
                    environment: BTreeMap::new(),
                    flags_left_out: BTreeMap::new(),
                    answers: None,
                };
            }
            Self::Other(engine) => engine,
        };
        let Choice {
            adapter,
            preset,
            program,
            ..
        } = &engine.choice;
        EngineUsed {
            name: adapter.name().into(),
            preset: Some(preset.name.into()),
            version: Some(program.version.clone()),
            sha256: Some(program.sha256.clone()),
            digest_of: Some(program.digest_of.clone()),
            environment: recorded_variables(*adapter, program, std::env::vars_os()),
            flags_left_out: engine.flags_left_out.clone(),
            answers: None,
        }
    }
}

/// What the record says of an engine's environment: what is set for it, and what the runner's own environment has
/// under the engine's prefixes. A value whose name speaks of a secret stays out.
fn recorded_variables(
    adapter: &dyn Adapter,
    program: &Program,
    inherited: impl Iterator<Item = (OsString, OsString)>,
) -> BTreeMap<String, String> {
    const SECRETS: [&str; 4] = ["KEY", "TOKEN", "SECRET", "PASSWORD"];
    let prefixes = adapter.variable_prefixes();
    let mut variables: BTreeMap<String, String> = inherited
        .filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let is_its_own = prefixes.iter().any(|prefix| name.starts_with(prefix));
            let is_secret = SECRETS.iter().any(|word| name.contains(word));
            let value = value.to_string_lossy().into_owned();
            is_its_own.then(|| {
                (
                    name,
                    if is_secret {
                        "(not recorded)".into()
                    } else {
                        value
                    },
                )
            })
        })
        .collect();
    variables.extend(program.environment.clone());
    variables
}

impl OtherEngine {
    /// A model of its own, whose weights may be others than the reference's.
    pub fn own_model(&self) -> Option<&Path> {
        self.choice.model.as_deref()
    }

    pub fn model(&self) -> Option<&ModelFiles> {
        self.model.as_ref()
    }

    /// # Errors
    ///
    /// If the engine cannot read such files.
    pub fn give_model(&mut self, model: ModelFiles) -> Result<()> {
        if let Some(refusal) = self.choice.adapter.refusal(&model.path) {
            let name = self.choice.adapter.name();
            bail!(
                "{name} cannot serve {}: {refusal}; --engine-model {name}=PATH names files for it alone",
                model.path.display()
            );
        }
        self.model = Some(model);
        Ok(())
    }

    fn command(&self, experiment: &Experiment, port: u16) -> Vec<String> {
        let mut command = self.choice.program.command.clone();
        if let Some(model) = &self.model {
            let adapter = self.choice.adapter;
            command.extend(adapter.arguments(&model.path, &model.name, port));
        }
        command.extend(experiment.flags.to_args());
        command
    }
}

/// Flags of an experiment, which have SGLang's names, by what they choose: an engine treats those of a
/// list alike.
const KERNEL_FLAGS: &[&str] = &[
    "attention-backend",
    "sampling-backend",
    "disable-flashinfer",
    "triton-attention-num-kv-splits",
    "triton-attention-reduce-in-fp32",
];
const GRAPH_FLAGS: &[&str] = &["disable-cuda-graph", "cuda-graph-max-bs", "cuda-graph-bs"];
const COMPILER_FLAGS: &[&str] = &["enable-torch-compile", "torch-compile-max-bs"];
const SCHEDULER_FLAGS: &[&str] = &[
    "schedule-policy",
    "schedule-conservativeness",
    "enable-two-batch-overlap",
    "disable-overlap-schedule",
];
const PREFILL_SIZE_FLAGS: &[&str] = &["max-prefill-tokens", "chunked-prefill-size"];
const HOST_TIER_FLAGS: &[&str] = &["enable-hierarchical-cache", "hicache-ratio"];

/// A table of rules as the adapters write it: flags and what becomes of them.
type Rules = &'static [(&'static [&'static str], Rule)];

fn rule_in(rules: Rules, flag: &str) -> Option<Rule> {
    let found = rules.iter().find(|(flags, _)| flags.contains(&flag));
    found.map(|(_, rule)| *rule)
}

/// A folder of safetensors, which vLLM and SGLang read.
fn refusal_of_no_folder(model: &Path) -> Option<String> {
    if model.join("config.json").is_file() {
        return None;
    }
    Some("it reads a folder with config.json and safetensors".into())
}

#[cfg(test)]
mod tests;
