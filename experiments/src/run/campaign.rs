//! What the runs of one call share, and what is done before the first of them: the sources are checked,
//! the lock is taken, killed runs are labelled, models are fetched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use records::digests::digest_of_bytes;
use records::run_folder;
use records::status::RunStatus;
use records::store::Store;
use records::utc;

use crate::engines::{Engine, ModelFiles};
use crate::load::BaseUrl;
use crate::load::prompts::PromptSet;
use crate::record::energy;
use crate::record::environment::{self, Environment};
use crate::record::provenance::Sources;
use crate::run::answers::AnswerBook;
use crate::run::interrupts::Interrupts;
use crate::run::measurement_lock::MeasurementLock;
use crate::run::replicate::RunEnd;
use crate::run::sealing;
use crate::run::served_model::model_name;
use crate::run::server_process::{ServerConfig, ServerProcess};
use crate::run::supervise::Ending;
use crate::spec::Experiment;
use crate::spec::repository::Repository;
use crate::terminal::note;

/// So long a server that is not ours may refuse connections, before a run and in it.
pub const UNREACHABLE_LIMIT: Duration = Duration::from_secs(5);

/// The server that is measured.
#[derive(Debug, Clone)]
pub enum ServerSource {
    /// Started for each run: `<binary> serve …`, watched over by `supervisor`.
    Engine {
        binary: PathBuf,
        supervisor: PathBuf,
    },
    /// Another's; neither started nor stopped here.
    External {
        base_url: BaseUrl,
        /// Which of its models is asked; `None`: the first that it lists.
        model: Option<String>,
    },
}

/// Everything the runs of one campaign share.
#[derive(Debug)]
pub struct Campaign {
    pub id: String,
    pub repository: Repository,
    pub runs_dir: PathBuf,
    pub source: ServerSource,
    pub environment: Environment,
    pub sources: Sources,
    /// Changed sources may be recorded.
    pub allow_dirty: bool,
    /// `None`: as long as the engine of the arm may take.
    pub start_limit: Option<Duration>,
    /// What our engine calls its version.
    pub our_version: Option<String>,
    /// The answers that every start is compared with; `None` where our engine is measured alone.
    pub answers: Option<AnswerBook>,
    /// A campaign folder is made of the runs when they have ended.
    pub seal: bool,
    /// Where the processors' energy counters are.
    pub powercap_dir: PathBuf,
    /// Against another measurement at the same time; taken before the first run.
    pub lock: Option<MeasurementLock>,
}

impl Campaign {
    /// After the last run and all that is read of them.
    pub fn close(&self) -> Result<()> {
        if self.seal {
            sealing::seal_ended(&self.repository, &self.id)?;
        }
        Ok(())
    }
}

/// What every command that measures asks for.
#[derive(Debug, Clone, Args)]
pub struct ServingArgs {
    /// Engine binary [default: `engine` beside this program]
    #[arg(long, value_name = "PATH")]
    pub engine_bin: Option<PathBuf>,
    /// Folder that takes the run folders, and holds those to compare with [default: data/runs]
    #[arg(long, value_name = "PATH")]
    pub runs_dir: Option<PathBuf>,
    /// How long a server may take to load its model [default: 1800, or what another engine takes]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub start_limit_s: Option<u64>,
    /// Wait for another measurement on this machine to end, instead of refusing
    #[arg(long)]
    pub wait: bool,
    /// Record from sources that are not those of a commit; the difference is kept, and the record
    /// marked wherever it is shown
    #[arg(long)]
    pub allow_dirty: bool,
    /// Make a campaign folder of the runs when they have ended (the recipes say so); not of those in a
    /// folder that was typed
    #[arg(long, hide = true)]
    pub seal: bool,
    /// Folder of the processors' energy counters
    #[arg(long, value_name = "PATH", hide = true, default_value = energy::POWERCAP_DIR)]
    pub powercap_dir: PathBuf,
}

impl ServingArgs {
    /// Where runs are looked for.
    pub fn store(&self, repository: &Repository) -> Store {
        repository.store(self.runs_dir.as_deref())
    }
}

/// An experiment, the prompts it draws, and the engine that serves it.
#[derive(Debug, Clone)]
pub struct Arm {
    pub experiment: Experiment,
    pub prompts: PromptSet,
    pub engine: Engine,
}

impl Arm {
    pub fn new(repository: &Repository, experiment: Experiment) -> Result<Self> {
        Self::of(repository, experiment, Engine::Ours)
    }

    pub fn of(repository: &Repository, experiment: Experiment, engine: Engine) -> Result<Self> {
        let prompts = PromptSet::load(&repository.prompts_dir(), &experiment.workload.prompts)?;
        Ok(Self {
            experiment,
            prompts,
            engine,
        })
    }

    /// Unique within a campaign.
    pub fn name(&self) -> String {
        self.engine.arm(&self.experiment.name)
    }
}

/// How the campaign ended, for the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CampaignEnd {
    Complete,
    SomeFailed,
    Interrupted,
}

impl CampaignEnd {
    pub fn of(ends: &[RunEnd]) -> Self {
        if ends.iter().any(|end| end.interrupted) {
            Self::Interrupted
        } else if ends.iter().any(|end| end.status != RunStatus::Complete) {
            Self::SomeFailed
        } else {
            Self::Complete
        }
    }
}

/// Takes the lock, labels killed runs, fetches the models and notes what all runs share. `None`:
/// interrupted.
pub async fn open(
    serving: &ServingArgs,
    source: ServerSource,
    arms: &mut [Arm],
    repository: Repository,
    interrupts: &mut Interrupts,
) -> Result<Option<Campaign>> {
    let mut campaign = describe(serving, source, repository)?;
    let end = prepare(&mut campaign, serving.wait, arms, interrupts).await?;
    Ok((end != CampaignEnd::Interrupted).then_some(campaign))
}

/// What all runs share. Nothing is started or written.
pub fn describe(
    serving: &ServingArgs,
    source: ServerSource,
    repository: Repository,
) -> Result<Campaign> {
    let own = std::env::current_exe().context("the path of this program")?;
    let engine = match &source {
        ServerSource::Engine { binary, .. } => Some(binary.as_path()),
        ServerSource::External { .. } => None,
    };
    let folder = engine
        .unwrap_or(own.as_path())
        .parent()
        .unwrap_or(Path::new("."));
    Ok(Campaign {
        id: campaign_id(),
        sources: Sources::of(&repository.root, folder, engine)?,
        allow_dirty: serving.allow_dirty,
        environment: environment::read().context("the machine cannot be described")?,
        start_limit: serving.start_limit_s.map(Duration::from_secs),
        our_version: None,
        answers: None,
        runs_dir: serving
            .runs_dir
            .clone()
            .unwrap_or_else(|| repository.runs_dir()),
        seal: serving.seal && serving.runs_dir.is_none(),
        repository,
        source,
        powercap_dir: serving.powercap_dir.clone(),
        lock: None,
    })
}

/// Refuses changed sources and a second measurement at the same time (or waits for its end), labels
/// killed runs and seals their campaigns, fetches the models or finds the server.
pub async fn prepare(
    campaign: &mut Campaign,
    wait: bool,
    arms: &mut [Arm],
    interrupts: &mut Interrupts,
) -> Result<CampaignEnd> {
    check_sources(campaign)?;
    campaign.lock = MeasurementLock::take(wait, interrupts).await?;
    if campaign.lock.is_none() {
        return Ok(CampaignEnd::Interrupted);
    }
    if let ServerSource::External { base_url, model } = &campaign.source {
        let found = async {
            base_url
                .probe(UNREACHABLE_LIMIT)
                .await
                .context("with --base-url no server is started; start it, then call again")?;
            match model {
                Some(wanted) => model_name(base_url, Some(wanted)).await.map(drop),
                None => Ok(()),
            }
        };
        tokio::select! {
            found = found => found?,
            name = interrupts.next() => {
                note!("interrupted ({name})");
                return Ok(CampaignEnd::Interrupted);
            }
        }
    }
    for run_id in run_folder::finalise_killed(&campaign.runs_dir)? {
        note!(
            "{run_id}: labelled failed, {}",
            run_folder::REASON_RUNNER_KILLED
        );
    }
    if campaign.seal {
        sealing::seal_all(&campaign.repository)?;
    }
    if let ServerSource::Engine { binary, supervisor } = &campaign.source {
        campaign.our_version = version_of(binary);
        let mut models: Vec<&str> = arms
            .iter()
            .filter(|arm| is_fetched(arm))
            .flat_map(|arm| arm.experiment.sources())
            .collect();
        models.sort_unstable();
        models.dedup();
        for model in models {
            let fetch = vec![
                binary.to_string_lossy().into_owned(),
                "fetch".into(),
                model.into(),
            ];
            let config = ServerConfig {
                supervisor: supervisor.clone(),
                command: fetch,
                environment: BTreeMap::new(),
                log: None,
                run_folder: None,
            };
            if fetch_model(&config, model, interrupts).await? == CampaignEnd::Interrupted {
                return Ok(CampaignEnd::Interrupted);
            }
        }
        let binary = binary.clone();
        give_models(&binary, arms)?;
        if arms.iter().any(|arm| !arm.engine.is_ours()) {
            campaign.answers = Some(AnswerBook::default());
        }
    }
    Ok(CampaignEnd::Complete)
}

/// An engine with a model of its own needs no other.
fn is_fetched(arm: &Arm) -> bool {
    match &arm.engine {
        Engine::Ours => true,
        Engine::Other(other) => other.own_model().is_none(),
    }
}

/// Other engines get the files that ours reads.
fn give_models(binary: &Path, arms: &mut [Arm]) -> Result<()> {
    let with_ours = arms.iter().any(|arm| arm.engine.is_ours());
    let mut known: BTreeMap<String, Fetched> = BTreeMap::new();
    let mut fetched = |model: &str| -> Result<Fetched> {
        if let Some(fetched) = known.get(model) {
            return Ok(fetched.clone());
        }
        let fetched = Fetched::of(binary, model)?;
        known.insert(model.to_owned(), fetched.clone());
        Ok(fetched)
    };
    for arm in arms {
        let Engine::Other(other) = &mut arm.engine else {
            continue;
        };
        let wanted = &arm.experiment.model;
        let own = other.own_model().map(|path| path.to_string_lossy());
        let is_own = own.is_some();
        let model = own.map_or_else(|| wanted.clone(), Into::into);
        let Fetched {
            path,
            sha256,
            name,
            mut source,
        } = fetched(&model)?;
        let Some(path) = path else {
            bail!(
                "{model} has no files that another engine could read; give all engines one checkpoint: `cargo xtask model {model} --write FOLDER`, then --model FOLDER"
            );
        };
        if is_own && with_ours {
            // Shown beside ours, if without a verdict.
            source = fetched(wanted)?.source;
        }
        other.give_model(ModelFiles {
            path,
            sha256,
            name,
            source,
        })?;
    }
    Ok(())
}

/// What our engine says of a model that it has fetched.
#[derive(Debug, Clone)]
struct Fetched {
    /// None of a model that is made as a server starts.
    path: Option<PathBuf>,
    sha256: Option<String>,
    name: String,
    source: String,
}

impl Fetched {
    fn of(binary: &Path, model: &str) -> Result<Self> {
        let said = duct::cmd!(binary, "fetch", model)
            .stderr_null()
            .read()
            .with_context(|| format!("the files of {model}"))?;
        let value = |key: &str| {
            let mut lines = said.lines();
            lines.find_map(|line| Some(line.strip_prefix(key)?.trim().to_owned()))
        };
        let path = value("path ").map(PathBuf::from);
        Ok(Self {
            path: path.filter(|path| path.exists()),
            sha256: value("sha256 "),
            name: value("name ").unwrap_or_else(|| model.to_owned()),
            source: value("source ").unwrap_or_else(|| model.to_owned()),
        })
    }
}

/// `engine 0.1.0` → 0.1.0
fn version_of(binary: &Path) -> Option<String> {
    let said = duct::cmd!(binary, "--version").stderr_null().read().ok()?;
    said.trim().rsplit(' ').next().map(String::from)
}

/// Fetches before the first server start, so that no start time contains a download.
async fn fetch_model(
    config: &ServerConfig,
    model: &str,
    interrupts: &mut Interrupts,
) -> Result<CampaignEnd> {
    // No bar of our own: the engine shows the download's on the same terminal.
    note!("model {model}: fetch");
    let mut fetch = ServerProcess::start(config)?;
    tokio::select! {
        ending = fetch.ended() => {
            match ending {
                Ending::Success => note!("model {model}: here"),
                Ending::Failure(how) if model == DEFAULT_MODEL => note!(
                    "WARNING: the default model cannot be fetched ({how}); the server falls back to a synthetic one"
                ),
                Ending::Failure(how) => bail!("the model {model} cannot be fetched ({how})"),
            }
            Ok(CampaignEnd::Complete)
        }
        name = interrupts.next() => {
            note!("interrupted ({name})");
            Ok(CampaignEnd::Interrupted)
        }
    }
}

/// The model for which the engine has a fallback.
const DEFAULT_MODEL: &str = "default";

/// `engine_bin`, or else the engine beside this program.
pub fn server_source(engine_bin: Option<&Path>) -> Result<ServerSource> {
    let supervisor = std::env::current_exe().context("the path of this program")?;
    let binary = match engine_bin {
        Some(path) => path.to_path_buf(),
        None => supervisor.with_file_name("engine"),
    };
    if !binary.is_file() {
        bail!(
            "no engine binary at {}; `cargo xtask exp` builds it, `--engine-bin` names another",
            binary.display()
        );
    }
    let binary = binary
        .canonicalize()
        .with_context(|| format!("engine binary {}", binary.display()))?;
    Ok(ServerSource::Engine { binary, supervisor })
}

/// Changed sources are recorded only where they are allowed; that there is no git is said.
fn check_sources(campaign: &Campaign) -> Result<()> {
    let sources = &campaign.sources;
    match sources.refusal() {
        Some(refusal) if !campaign.allow_dirty => bail!(refusal),
        Some(_) => note!(
            "WARNING: the sources differ from the commit in {} file(s); the difference is kept with the runs, which are marked",
            sources.git.changed.len()
        ),
        None if sources.git.commit.is_none() => note!(
            "the sources are under no git repository: their sha256 is recorded in place of a commit"
        ),
        None => {}
    }
    Ok(())
}

/// A campaign's id: when it was called, and a hash that tells two of one second apart.
pub fn campaign_id() -> String {
    let seen = format!("{} {:?}", std::process::id(), std::time::SystemTime::now());
    let hash = digest_of_bytes(seen.as_bytes());
    format!("{}_{}", utc::compact(utc::now_unix_s()), &hash[..8])
}
