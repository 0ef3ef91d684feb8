//! What a campaign of `ablate` on a group's machine and model found, for the templates: the newest
//! full one, or the newest quick one where no full one can be judged.

use records::manifest::Derived;
use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::load::run_folder::{Outcome, RunFolder, flags_one_a_line};
use crate::render::compare::{phrase, word};
use crate::render::reasons::translated;
use crate::select::{Group, same_place};
use crate::stats::verdict::{Comparison, VerdictConfig};
use crate::verdicts::ablation::{Ablation, FlagVerdicts, Surrounding, is_of};
use crate::verdicts::{Figure, Runs};

#[derive(Debug, Clone, Serialize)]
pub struct AblationContext {
    pub campaign: String,
    pub parent: String,
    /// None: the engine's defaults.
    pub baseline: Option<String>,
    pub case: String,
    pub quick: bool,
    /// No one can say what ran; there are figures and no verdict.
    pub source_unknown: bool,
    pub rows: Vec<FlagRow>,
    /// Flag, where it does nothing, why.
    pub idle: Vec<(String, &'static str, String)>,
    pub n_figures: usize,
    pub n_full: usize,
    pub n_baseline: usize,
    /// Of all arms.
    pub n_starts: usize,
    /// Name and run ids of each arm.
    pub arms: Vec<(String, Vec<String>)>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FlagRow {
    /// None: all flags together.
    pub flag: Option<String>,
    pub place: &'static str,
    /// Throughput, time to first token, time per token.
    pub cells: Vec<Cell>,
    pub starts: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    pub improvement_percent: Option<f64>,
    /// 95 % interval of the improvement, per cent.
    pub interval: Option<(f64, f64)>,
    pub verdict: &'static str,
    pub phrase: String,
}

/// None if no `ablate` has been completed there.
pub fn ablation_of(
    records: &Records,
    group: &Group<'_>,
    config: VerdictConfig,
    lang: Lang,
) -> Option<AblationContext> {
    let here = group.all_runs().next()?.record;
    let of_group = |run: &&RunFolder| {
        run.outcome == Outcome::Complete
            && run.record.as_ref().is_some_and(|record| {
                let manifest = &record.manifest;
                manifest
                    .derived
                    .as_ref()
                    .is_some_and(|derived| matches!(derived, Derived::Ablation { .. }))
                    && same_place(record, here)
                    && flags_one_a_line(&manifest.extra_flags) == group.extra_flags
            })
    };
    let manifests = records
        .runs
        .iter()
        .rev()
        .filter(of_group)
        .filter_map(|run| Some(&run.record.as_ref()?.manifest));
    let (quick, full): (Vec<_>, Vec<_>) = manifests.partition(|manifest| manifest.quick);
    let mut campaigns: Vec<(&str, bool)> = Vec::new();
    for manifest in full.into_iter().chain(quick) {
        let campaign = (manifest.campaign.as_str(), manifest.quick);
        if !campaigns.contains(&campaign) {
            campaigns.push(campaign);
        }
    }
    // One that was ended early may lack its references.
    let (found, quick) = campaigns.into_iter().find_map(|(campaign, quick)| {
        let runs = Runs::of_records(records, |run| is_of(run, campaign));
        Some((Ablation::of(&runs, campaign, config).ok()?, quick))
    })?;
    Some(AblationContext {
        quick,
        source_unknown: found.source_unknown,
        rows: found
            .rows
            .iter()
            .map(|row| flag_row(row, config, lang))
            .collect(),
        idle: found
            .idle
            .iter()
            .map(|idle| {
                let place = idle.surrounding.map_or("", |at| place(at, lang));
                (idle.flag.clone(), place, translated(&idle.reason, lang))
            })
            .collect(),
        n_figures: found.n_figures(),
        n_full: found.n_starts.0,
        n_baseline: found.n_starts.1,
        n_starts: found.arms.iter().map(|(_, ids)| ids.len()).sum(),
        campaign: found.campaign,
        parent: found.parent,
        baseline: found.baseline,
        case: found.case,
        arms: found.arms,
    })
}

fn flag_row(row: &FlagVerdicts, config: VerdictConfig, lang: Lang) -> FlagRow {
    let cell = |answer: &Comparison| Cell {
        improvement_percent: answer.improvement_percent,
        interval: answer.interval_percent,
        verdict: word(answer.verdict),
        phrase: phrase(answer, config, lang),
    };
    debug_assert_eq!(row.answers.len(), Figure::ALL.len());
    FlagRow {
        flag: (row.surrounding != Surrounding::AllFlags).then(|| row.flag.clone()),
        place: place(row.surrounding, lang),
        cells: row.answers.iter().map(cell).collect(),
        starts: row.starts.clone(),
    }
}

fn place(surrounding: Surrounding, lang: Lang) -> &'static str {
    match surrounding {
        Surrounding::AllFlags => "",
        Surrounding::InFull => lang.pick("전체 구성에서", "in the full configuration"),
        Surrounding::Alone => lang.pick("기준에 단독으로", "alone, over the baseline"),
    }
}
