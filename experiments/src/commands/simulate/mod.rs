//! `experiments simulate`: an experiment's workload on a simulated card, summed up as a real run
//! is and marked as simulated. Nothing is recorded: a simulation is no measurement.
//!
//! [`against`] compares it with every measured run, [`compared`] judges the figures,
//! [`table`] shows them; [`policies`] writes what the scheduling policies do into their notes.

pub mod against;
pub mod compared;
pub mod policies;
pub mod projection;
mod table;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use records::manifest::Manifest;
use records::store::StoredRun;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::load::prompts::PromptSet;
use crate::load::{RequestRow, poisson_gaps_s};
use crate::record::summary::Summary;
use crate::spec::repository::Repository;
use crate::spec::workload::{ApiEndpoint, Arrival, Case};
use crate::spec::{Experiment, Overrides};
use crate::terminal::say;

/// What the cards' steps were measured with; needs no download.
const DEFAULT_MODEL: &str = "synthetic:qwen3-32b-awq";

/// A file of `data/cards`, without its ending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu(String);

impl std::str::FromStr for Gpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if text.is_empty() || !text.chars().all(is_name) {
            return Err("must be the name of a file in data/cards, such as rtx-5090".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

impl Gpu {
    /// The card's file; an error names those that are there.
    fn path(&self, repository: &Repository) -> Result<PathBuf> {
        let folder = repository.cards_dir();
        let path = folder.join(format!("{}.toml", self.0));
        if path.is_file() {
            return Ok(path);
        }
        let entries = std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
        let mut known: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_suffix(".toml")?.to_owned()))
            .collect();
        known.sort();
        bail!("--gpu {}: known are {}", self.0, known.join(", "))
    }
}

#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Experiment, with or without its number
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The card, a file of data/cards: rtx-5090, h100, h200
    #[arg(long)]
    pub gpu: Gpu,
    /// The small workload
    #[arg(long)]
    pub quick: bool,
    /// Model [default: that of --against, else synthetic:qwen3-32b-awq]
    #[arg(long)]
    pub model: Option<String>,
    /// Lay the figures beside those of this run; its model, seed and extra flags are taken
    #[arg(long, value_name = "RUN_FOLDER")]
    pub against: Option<String>,
    /// Engine binary [default: `engine` beside this program]
    #[arg(long, value_name = "PATH")]
    pub engine_bin: Option<PathBuf>,
    /// Extra engine flags that override the experiment's
    #[arg(last = true, value_name = "FLAGS")]
    pub engine_flags: Vec<String>,
}

/// What `engine simulate` prints.
#[derive(Deserialize)]
struct Answer {
    executor: Value,
    steps_source: String,
    /// Runs that a figure of the card's steps was taken from.
    fitted_on: Vec<String>,
    n_preemptions: u64,
    requests: Vec<SimulatedRequest>,
}

#[derive(Deserialize)]
struct SimulatedRequest {
    case: String,
    index: u32,
    user: Option<u32>,
    sent_s: f64,
    token_s: Vec<f64>,
    end_s: f64,
    prompt_tokens: u64,
    cached_tokens: u64,
    error: Option<String>,
}

pub fn simulate(args: &SimulateArgs, repository: &Repository) -> Result<()> {
    let measured = match &args.against {
        Some(typed) => Some(Measured::read(&repository.store(None).find(typed)?)?),
        None => None,
    };
    let model = args
        .model
        .clone()
        .or_else(|| measured.as_ref().map(|m| m.manifest.model.used.clone()))
        .unwrap_or_else(|| DEFAULT_MODEL.into());
    let mut extra_flags = measured
        .as_ref()
        .map_or_else(Vec::new, |m| m.manifest.extra_flags.clone());
    extra_flags.extend(args.engine_flags.iter().cloned());
    let overrides = Overrides {
        quick: args.quick || measured.as_ref().is_some_and(|m| m.manifest.quick),
        model: Some(model),
        replicates: None,
        slo: None,
        extra_flags,
    };
    let experiment = Experiment::load(&repository.experiments_dir(), &args.name, &overrides)?;
    let seed = match &measured {
        Some(measured) if measured.manifest.experiment != experiment.name => bail!(
            "{} is a run of {}, not of {}",
            measured.manifest.run_id,
            measured.manifest.experiment,
            experiment.name
        ),
        Some(measured) => measured.manifest.seed,
        None => experiment.seed,
    };
    let engine = engine_binary(args.engine_bin.as_deref())?;
    let played = play(&experiment, seed, &args.gpu, &engine, repository)?;
    for case in &played.summary.cases {
        say!("SIMULATED\n{}", case.block());
    }
    say!(
        "SIMULATED, not measured: {} on {} ({})\nsteps: {}\n{} preemptions; {} requests \
         simulated in {:.1} s\n{}",
        experiment.name,
        played.device,
        experiment.model,
        played.steps_source,
        played.n_preemptions,
        played.n_requests,
        played.wall_s,
        played.summary.table()
    );
    if let Some(measured) = measured {
        say!(
            "{}",
            measured.beside(&serde_json::to_value(&played.summary)?)
        );
    }
    Ok(())
}

/// What became of an experiment's load on a simulated card.
struct Played {
    device: String,
    steps_source: String,
    fitted_on: Vec<String>,
    n_preemptions: u64,
    n_requests: usize,
    wall_s: f64,
    rows: Vec<RequestRow>,
    summary: Summary,
}

fn play(
    experiment: &Experiment,
    seed: u64,
    gpu: &Gpu,
    engine: &Path,
    repository: &Repository,
) -> Result<Played> {
    if experiment.workload.endpoint != ApiEndpoint::Completions {
        bail!(
            "{}: endpoint = \"chat\": a simulation plays \"completions\" alone",
            experiment.name
        );
    }
    if !experiment.models.is_empty() {
        bail!(
            "{}: {} models: a simulation plays one",
            experiment.name,
            experiment.models.len()
        );
    }
    let prompts = PromptSet::load(&repository.prompts_dir(), &experiment.workload.prompts)?;
    if !prompts.are_texts() {
        bail!(
            "{}: prompts = {:?}: a simulation plays prompts of files alone",
            experiment.name,
            experiment.workload.prompts
        );
    }
    let cases = experiment.workload.cases();
    let load = json!({
        "cases": cases.iter().map(|case| load_of(case, &prompts, seed)).collect::<Vec<_>>(),
    });
    let card = gpu.path(repository)?;
    let began = std::time::Instant::now();
    let answer = ask_engine(engine, &card, experiment, &load)?;
    let wall_s = began.elapsed().as_secs_f64();
    let n_requests = answer.requests.len();
    let rows: Vec<RequestRow> = answer
        .requests
        .into_iter()
        .filter_map(|request| row_of(&cases, request))
        .collect();
    let limits = experiment.workload.goodput.as_ref();
    Ok(Played {
        device: answer.executor["device"]
            .as_str()
            .unwrap_or("a card")
            .to_string(),
        steps_source: answer.steps_source,
        fitted_on: answer.fitted_on,
        n_preemptions: answer.n_preemptions,
        n_requests,
        wall_s,
        summary: Summary::of("simulated", &cases, &rows, limits),
        rows,
    })
}

fn engine_binary(asked: Option<&Path>) -> Result<PathBuf> {
    match asked {
        Some(path) => Ok(path.to_path_buf()),
        None => Ok(std::env::current_exe()
            .context("the path of this program")?
            .with_file_name("engine")),
    }
}

fn load_of(case: &Case, prompts: &PromptSet, seed: u64) -> Value {
    let drawn = prompts.draw(seed, &case.name, case.n_requests as usize);
    let arrivals = match case.arrival {
        Arrival::ClosedLoop { n_users } => json!({ "users": n_users }),
        Arrival::OpenLoop { rate_per_s } => {
            let mut at_s = 0.0;
            let gaps_s = poisson_gaps_s(seed, &case.name, rate_per_s, drawn.len());
            let times_s = gaps_s.into_iter().map(|gap_s| {
                at_s += gap_s;
                at_s
            });
            json!({ "times_s": times_s.collect::<Vec<f64>>() })
        }
        // Refused before: its prompts are no texts.
        Arrival::Trace { .. } => json!({ "times_s": [] }),
    };
    let requests = drawn.into_iter().map(
        |prompt| json!({ "prompt": prompt.content.to_json(), "output_tokens": case.output_tokens }),
    );
    json!({
        "name": case.name,
        "arrivals": arrivals,
        "requests": requests.collect::<Vec<_>>(),
    })
}

fn ask_engine(binary: &Path, card: &Path, experiment: &Experiment, load: &Value) -> Result<Answer> {
    let mut engine = Command::new(binary)
        .arg("simulate")
        .arg("--card")
        .arg(card)
        .args(["--model-path", &experiment.model])
        .args(experiment.flags.to_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("{} cannot be started", binary.display()))?;
    let mut stdin = engine.stdin.take().context("the engine's standard input")?;
    let load = serde_json::to_vec(load)?;
    // An engine that ends early says why on standard error, and its exit code is looked at below.
    let written = stdin.write_all(&load);
    drop(stdin);
    let output = engine.wait_with_output().context("the engine's answer")?;
    if !output.status.success() {
        bail!("engine simulate failed ({})", output.status);
    }
    written.context("writing the load to the engine")?;
    serde_json::from_slice(&output.stdout).context("the engine's answer")
}

fn row_of(cases: &[Case], request: SimulatedRequest) -> Option<RequestRow> {
    let case = cases.iter().find(|case| case.name == request.case)?;
    let (n_users, rate_per_s) = match case.arrival {
        Arrival::ClosedLoop { n_users } => (Some(n_users), None),
        Arrival::OpenLoop { rate_per_s } => (None, Some(rate_per_s)),
        Arrival::Trace { .. } => (None, None),
    };
    let is_good = request.error.is_none();
    Some(RequestRow {
        case: case.name.clone(),
        phase: case.phase,
        warmup: case.warmup,
        model: case.model.clone(),
        index: request.index,
        user: request.user,
        n_users,
        rate_per_s,
        prompt_id: String::new(),
        max_tokens: case.output_tokens,
        scheduled_s: request.sent_s,
        sent_s: Some(request.sent_s),
        first_token_s: request.token_s.first().copied(),
        prompt_tokens: is_good.then_some(request.prompt_tokens),
        output_tokens: is_good.then_some(request.token_s.len() as u64),
        cached_tokens: is_good.then_some(request.cached_tokens),
        token_s: request.token_s,
        end_s: request.end_s,
        finish_reason: is_good.then(|| "length".to_string()),
        error: request.error,
    })
}

/// A recorded run to compare with.
struct Measured {
    manifest: Manifest,
    summary: Value,
}

/// Figures that are laid side by side: key of the summary, heading.
const COMPARED: [(&str, &str); 5] = [
    ("output_throughput", "tok/s"),
    ("median_ttft_ms", "ttft p50"),
    ("median_tpot_ms", "tpot p50"),
    ("median_e2el_ms", "e2e p50"),
    ("p99_ttft_ms", "ttft p99"),
];

impl Measured {
    fn read(run: &StoredRun) -> Result<Self> {
        Ok(Self {
            manifest: run.manifest()?,
            summary: run.json(records::SUMMARY)?,
        })
    }

    /// Measured figure and the simulation's deviation from it, a line a case.
    fn beside(&self, simulated: &Value) -> String {
        let mut lines = vec![format!(
            "simulated against {}: measured value and (simulated − measured) / measured",
            self.manifest.run_id
        )];
        let line = |first: &str, cells: Vec<String>| {
            let mut text = format!("{first:<14}");
            for cell in cells {
                text = format!("{text}{cell:>22}");
            }
            text
        };
        let names = COMPARED.iter().map(|(_, name)| (*name).to_string());
        lines.push(line("case", names.collect()));
        let mut worst: [Option<f64>; COMPARED.len()] = [None; COMPARED.len()];
        for case in self.summary["cases"].as_array().into_iter().flatten() {
            let name = case["case"].as_str().unwrap_or("?");
            let ours = simulated["cases"]
                .as_array()
                .and_then(|cases| cases.iter().find(|ours| ours["case"] == case["case"]));
            let mut cells = Vec::with_capacity(COMPARED.len());
            for ((key, _), worst) in COMPARED.iter().zip(&mut worst) {
                let pair = (case[key].as_f64(), ours.and_then(|ours| ours[key].as_f64()));
                cells.push(match pair {
                    (Some(measured), Some(ours)) if measured > 0.0 => {
                        let deviation = ours / measured - 1.0;
                        *worst = Some(worst.unwrap_or(0.0_f64).max(deviation.abs()));
                        format!("{measured:.2} ({:+.1} %)", 100.0 * deviation)
                    }
                    _ => "-".to_string(),
                });
            }
            lines.push(line(name, cells));
        }
        let largest = worst
            .into_iter()
            .map(|w| w.map_or_else(|| "-".into(), |w| format!("{:.1} %", 100.0 * w)));
        lines.push(line("largest", largest.collect()));
        lines.join("\n")
    }
}
