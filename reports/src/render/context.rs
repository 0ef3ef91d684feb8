//! What the templates see: plain data, made in `assemble` and `configuration`.
//!
//! Every figure and every judging word of a report is a field here; the templates only place them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::audit::Audit;
use crate::lang::Lang;
use crate::render::ablation::AblationContext;
use crate::render::autoscaling::AutoscalingContext;
use crate::render::compare::VerdictRow;
use crate::render::energy::EnergyTable;
use crate::render::flag_effects::FlagEffect;
use crate::render::history::History;
use crate::render::load_curve::LoadCurves;
use crate::render::multi_model::MultiModelContext;
use crate::render::recommend::{Answers, Next};
use crate::render::seed_figures::SeedRow;
use crate::render::side_by_side::SideBySide;
use crate::render::slo::SloTable;
use crate::render::tables::CaseRow;
use crate::render::trust::TrustContext;

#[derive(Debug, Serialize)]
pub struct ReportContext {
    #[serde(skip)]
    pub lang: Lang,
    /// Servers with one model each.
    pub groups: Vec<GroupContext>,
    /// Servers with several.
    pub multi_models: Vec<MultiModelContext>,
    /// Simulated campaigns; only where they were asked for.
    pub trust: Option<TrustContext>,
    /// The simulated day; only of the repository's own records.
    pub autoscaling: Option<AutoscalingContext>,
    /// What became of the figures that other documents derived.
    pub audit: Audit,
    /// Figures of other documents by source name.
    pub seeds: BTreeMap<String, Vec<SeedRow>>,
    pub reports: Vec<ReportLink>,
    /// Every campaign, the oldest first.
    pub campaigns: Vec<CampaignRow>,
    pub newest_run: Option<String>,
    /// Runs whose record could not be read: nothing of them is used.
    pub unreadable: Vec<FailedRun>,
    /// SVG documents by the path that reports link.
    #[serde(skip)]
    pub charts: BTreeMap<String, String>,
    pub margin_percent: f64,
    pub confidence_percent: f64,
    /// Requests from which on p95 and p99 are shown.
    pub fewest_requests: [usize; 2],
    /// Measured seconds of a start below which a case is short: of a closed loop, and of an open one.
    pub least_seconds: [f64; 2],
    /// With fewer, tables show the range of the starts instead of an interval.
    pub fewest_starts_of_interval: usize,
}

impl ReportContext {
    /// What a kilowatt-hour costs, in a currency that the reader knows.
    pub fn take_price(&mut self, price_per_kwh: f64) {
        for energy in self.groups.iter_mut().filter_map(|g| g.energy.as_mut()) {
            energy.take_price(price_per_kwh);
        }
    }
}

#[derive(Debug, Serialize)]
pub struct GroupContext {
    /// Device, model and extra flags; the host too where those alone would not tell groups apart.
    pub title: String,
    /// Flags typed after `--`, one on each line.
    pub extra_flags: Vec<String>,
    /// The GPU's name, or the processor's.
    pub device: String,
    pub host: String,
    pub cpu: String,
    pub n_cores: u32,
    pub memory_bytes: u64,
    pub os: String,
    pub gpu: Option<GpuContext>,
    pub model: String,
    pub model_format: Option<String>,
    /// Requested model and why another was used, for every fallback.
    pub fallbacks: Vec<(String, String)>,
    pub executors: Vec<String>,
    pub commits: Vec<String>,
    pub first_started_utc: String,
    pub last_started_utc: String,
    pub quick: bool,
    pub baseline: Option<String>,
    /// The configuration that the final report is about.
    pub focus: Option<String>,
    /// What to take, for what one wants.
    pub answers: Answers,
    pub arms: Vec<ArmContext>,
    pub peers: Vec<ArmContext>,
    pub latency: Vec<CaseRow>,
    pub ladder: Vec<CaseRow>,
    pub users: Vec<CaseRow>,
    pub rate: Vec<CaseRow>,
    /// Open loops of configurations and engines, with their knees.
    pub load_curves: Option<LoadCurves>,
    /// Searches for the highest load within limits.
    pub slo: Vec<SloTable>,
    /// Figures over commits, where there are two or more.
    pub history: Vec<History>,
    /// None where nothing was metered.
    pub energy: Option<EnergyTable>,
    /// The focus configuration against each peer.
    pub peer_comparisons: Vec<PeerComparison>,
    /// Engines that were arms of the same campaigns; none where ours was alone.
    pub engines: Option<EngineTable>,
    /// Another engine without a server on this machine, with this model.
    pub side_by_side: Option<SideBySide>,
    pub comparisons: Vec<ComparisonContext>,
    pub findings: Findings,
    pub failed: Vec<FailedRun>,
    /// Pairs of configurations that differ in one flag.
    pub flag_effects: Vec<FlagEffect>,
    /// Each flag of a configuration off and on.
    pub ablation: Option<AblationContext>,
    /// Path and description of each chart, by what it shows.
    pub charts: BTreeMap<&'static str, ChartLink>,
    /// What makes configurations less comparable than they look.
    pub cautions: Vec<Caution>,
    pub n_superseded: usize,
}

/// What a reader should know before he trusts a figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Caution {
    /// The configuration that it is about; none: all of them.
    pub of: Option<String>,
    pub text: String,
}

#[derive(Debug, Serialize)]
pub struct ReportLink {
    pub title: &'static str,
    pub file: String,
}

/// One campaign in the index.
#[derive(Debug, Serialize)]
pub struct CampaignRow {
    pub campaign: String,
    pub experiments: Vec<String>,
    pub device: String,
    pub model: String,
    pub extra_flags: String,
    pub started_utc: String,
    /// How its starts ended, with what is unknown of their sources, and how many.
    pub states: Vec<(String, usize)>,
    pub quick: bool,
    pub n_starts: usize,
    /// Starts that some report's figures rest on.
    pub n_used: usize,
    pub n_requests: u32,
    pub n_failed: u32,
}

#[derive(Debug, Clone, Serialize)]
pub struct ChartLink {
    /// Relative to the reports.
    pub path: String,
    pub alt: String,
}

#[derive(Debug, Serialize)]
pub struct GpuContext {
    pub name: String,
    pub driver: Option<String>,
    pub memory_bytes: Option<u64>,
}

/// One configuration: what it is, what it used, how it held up.
#[derive(Debug, Serialize)]
pub struct ArmContext {
    pub experiment: String,
    /// Whose starts are pooled.
    pub campaigns: Vec<String>,
    /// With whatever binary and workload.
    pub n_campaigns_seen: usize,
    pub base_url: Option<String>,
    pub flags: Vec<String>,
    /// Compared with the baseline's flags.
    pub added_flags: Vec<String>,
    pub removed_flags: Vec<String>,
    pub inactive_flags: Vec<(String, String)>,
    /// Of those, the ones that work, but not with the value that was typed.
    #[serde(skip)]
    pub limited_flags: Vec<String>,
    pub kernels: Vec<(String, String)>,
    pub n_runs: usize,
    pub n_failed_runs: usize,
    pub n_requests: u32,
    pub n_failed_requests: u32,
    pub n_warmup: u32,
    /// `안정`, `불안정`, `실패` in Korean.
    pub stability: &'static str,
    pub peak_rss_bytes: Option<u64>,
    pub peak_gpu_bytes: Option<u64>,
    pub kv_pages: Option<(u64, u64)>,
    pub run_ids: Vec<String>,
    /// The ids' last parts where those are unambiguous.
    pub short_ids: Vec<String>,
}

/// One configuration against the baseline, in the latency case.
#[derive(Debug, Serialize)]
pub struct ComparisonContext {
    pub before: String,
    pub after: String,
    pub case: String,
    pub verdicts: Vec<VerdictRow>,
    pub spread_before_ms: f64,
    pub spread_after_ms: f64,
}

/// Every engine and preset of a group, case by case.
#[derive(Debug, Serialize)]
pub struct EngineTable {
    pub engines: Vec<EngineContext>,
    /// One user's case first, then by users; of each case ours first.
    pub rows: Vec<EngineRow>,
    /// Which engine is the fastest, once every figure of one of our configurations is decided.
    pub conclusion: Option<EngineConclusion>,
    /// What a reader takes away: one of each other engine.
    pub answers: Vec<EngineAnswer>,
    /// What decides what is open between engines; none where more starts would not help.
    pub next: Option<Next>,
}

/// One configuration of ours against all engines that it was compared with.
#[derive(Debug, Serialize)]
pub struct EngineConclusion {
    pub ours: String,
    /// `sglang@triton, vllm@best`
    pub engines: String,
    /// Of the answers to these engines.
    pub n_figures: usize,
    /// In which ours was shown to be faster, and slower. The others show no difference.
    pub n_faster: usize,
    pub n_slower: usize,
}

/// How many times as fast ours was as one other engine, under the least load and the most.
#[derive(Debug, Serialize)]
pub struct EngineAnswer {
    /// `vllm@best`
    pub engine: String,
    pub version: Option<String>,
    /// The configuration of ours that it was compared with.
    pub ours: String,
    /// The arm's name.
    pub arm: String,
    /// Why its figures are in no verdict.
    pub not_comparable: Option<String>,
    pub figures: Vec<EngineFigure>,
}

#[derive(Debug, Serialize)]
pub struct EngineFigure {
    pub metric: &'static str,
    pub n_users: u32,
    /// How many times as fast ours was.
    pub ratio: f64,
    /// As in [`VerdictRow`]; `not judged` where there is none.
    pub verdict: &'static str,
    pub n_more: usize,
}

/// Which engine it was, and what its answers were like.
#[derive(Debug, Serialize)]
pub struct EngineContext {
    /// The arm's name.
    pub arm: String,
    /// `vllm@best`; ours by its own name.
    pub engine: String,
    pub version: Option<String>,
    /// The first digits of the digest.
    pub digest: Option<String>,
    pub n_starts: usize,
    pub n_wrong: usize,
    /// Share of positions with the same likeliest token, least over the starts.
    pub agreement_percent: Option<f64>,
    /// Mean difference of log-probabilities, largest over the starts.
    pub mean_abs_delta: Option<f64>,
    pub n_positions: u32,
    pub is_reference: bool,
    /// Why its figures are in no verdict.
    pub not_comparable: Option<String>,
    /// The experiment's flags that it was not given, and why.
    pub flags_left_out: Vec<(String, String)>,
    /// The whole command of one start.
    pub command: String,
}

#[derive(Debug, Serialize)]
pub struct EngineRow {
    pub case: String,
    /// What the load of the case was.
    pub load: String,
    pub n_users: Option<u32>,
    pub engine: String,
    pub is_ours: bool,
    pub output_tok_per_s: f64,
    pub ttft_p50_ms: Option<f64>,
    pub tpot_p50_ms: Option<f64>,
    pub joules_per_token: Option<f64>,
    /// How many times as fast ours was: tokens per second, first token, time per token.
    pub ratios: [Option<f64>; 3],
    pub n_runs: usize,
    /// Of ours against it.
    pub verdicts: Vec<VerdictRow>,
}

/// Another engine's server and our configuration under the same load.
#[derive(Debug, Serialize)]
pub struct PeerComparison {
    pub peer: String,
    pub base_url: String,
    pub model: String,
    pub ours: Option<String>,
    /// Rows of both; the verdicts stand in ours, relative to the peer.
    pub latency: Vec<CaseRow>,
    pub ladder: Vec<CaseRow>,
    pub users: Vec<CaseRow>,
    pub rate: Vec<CaseRow>,
    pub charts: BTreeMap<&'static str, ChartLink>,
}

/// Configurations by what their verdicts say together.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    pub faster: Vec<Finding>,
    pub slower: Vec<Finding>,
    pub mixed: Vec<Finding>,
    pub same: Vec<Finding>,
    pub undecided: Vec<Finding>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub experiment: String,
    pub statements: Vec<VerdictRow>,
}

#[derive(Debug, Serialize)]
pub struct FailedRun {
    pub run_id: String,
    pub experiment: String,
    /// `실패` or `중단` in Korean.
    pub state: &'static str,
    pub reason: String,
}
