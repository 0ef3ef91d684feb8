//! Measured A/A campaigns: one configuration as two arms, judged by the code that judges all others.
//! Every "better" or "worse" is false.

use std::collections::BTreeMap;

use records::manifest::{Derived, Side};
use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::load::run_folder::Outcome;
use crate::render::compare::{JUDGED, VerdictRow};
use crate::render::tables;
use crate::select::{Arm, Run};
use crate::stats::verdict::VerdictConfig;

#[derive(Debug, Default, Serialize)]
pub struct MeasuredAA {
    /// The oldest first.
    pub campaigns: Vec<AACampaign>,
    pub n_compared: usize,
    /// Of those, the ones that had enough starts to be tested.
    pub n_tested: usize,
    pub n_false: usize,
}

/// One configuration of one campaign.
#[derive(Debug, Serialize)]
pub struct AACampaign {
    pub campaign: String,
    pub device: String,
    pub model: String,
    pub parent: String,
    pub quick: bool,
    /// Rounds that both arms ended.
    pub n_rounds: usize,
    pub n_compared: usize,
    pub n_tested: usize,
    /// "Better" or "worse".
    pub wrong: Vec<VerdictRow>,
    /// What runs say against themselves, for instance that the machine was busy.
    pub n_remarked: usize,
}

pub fn measured(records: &Records, config: VerdictConfig, lang: Lang) -> MeasuredAA {
    // Campaign, and the configuration with its engine.
    let mut pairs: BTreeMap<(&str, String), [Vec<Run<'_>>; 2]> = BTreeMap::new();
    for folder in &records.runs {
        let Some(record) = &folder.record else {
            continue;
        };
        let manifest = &record.manifest;
        let (Some(Derived::AA { parent, side }), Outcome::Complete) =
            (&manifest.derived, &folder.outcome)
        else {
            continue;
        };
        let name = match manifest.other_engine() {
            Some(engine) => records::manifest::arm_name(parent, &engine),
            None => parent.clone(),
        };
        let pair = pairs.entry((&manifest.campaign, name)).or_default();
        pair[usize::from(*side == Side::B)].push(Run { folder, record });
    }
    let campaigns: Vec<AACampaign> = pairs
        .into_iter()
        .filter_map(|((campaign, parent), [a, b])| {
            of_campaign(records, campaign, &parent, a, b, config, lang)
        })
        .collect();
    MeasuredAA {
        n_compared: campaigns.iter().map(|c| c.n_compared).sum(),
        n_tested: campaigns.iter().map(|c| c.n_tested).sum(),
        n_false: campaigns.iter().map(|c| c.wrong.len()).sum(),
        campaigns,
    }
}

fn of_campaign(
    records: &Records,
    campaign: &str,
    parent: &str,
    a: Vec<Run<'_>>,
    b: Vec<Run<'_>>,
    config: VerdictConfig,
    lang: Lang,
) -> Option<AACampaign> {
    let n_rounds = a
        .iter()
        .filter(|run| b.iter().any(|other| other.round() == run.round()))
        .count();
    let n_remarked = a
        .iter()
        .chain(&b)
        .filter(|run| run.folder.remark.is_some())
        .count();
    let first = a.first().filter(|_| !b.is_empty())?.record;
    let (device, model, quick) = (
        first.environment.device(),
        first.manifest.model.used.clone(),
        first.manifest.quick,
    );
    let arms = [(Side::A, a), (Side::B, b)].map(|(side, runs)| Arm {
        experiment: format!("{parent}-{}", side.word()),
        campaigns: vec![campaign.to_owned()],
        n_campaigns_seen: 1,
        campaigns_complete: true,
        runs,
        failed: Vec::new(),
    });
    // Each phase is a table of its own in the reports, too.
    let verdicts: Vec<VerdictRow> = JUDGED
        .iter()
        .flat_map(|&(phase, metrics)| {
            let phases = [(phase, metrics)];
            tables::rows(records, &arms, Some(&arms[0]), &phases, config, lang)
        })
        .flat_map(|row| row.verdicts)
        .collect();
    let is_wrong = |v: &&VerdictRow| ["faster", "slower"].contains(&v.verdict);
    Some(AACampaign {
        campaign: campaign.to_owned(),
        device,
        model,
        parent: parent.to_owned(),
        quick,
        n_rounds,
        n_compared: verdicts.len(),
        n_tested: verdicts.iter().filter(|v| v.p_adjusted.is_some()).count(),
        wrong: verdicts.iter().filter(is_wrong).cloned().collect(),
        n_remarked,
    })
}
