//! Several models in one server: their configurations, and their figures alone and next to the
//! others.
//!
//! A model is "alone" while the others are loaded and have nothing to do, and "together" while all
//! have a user of their own. Different models do different work, so a model is compared with itself
//! alone. Throughput is a request's own: its output tokens by the time from its sending to its end.

use std::collections::BTreeSet;

use records::sufficiency::least_requests;
use serde::Serialize;

use crate::load::Records;
use crate::load::requests::CaseSamples;
use crate::load::run_folder::RunFolder;
use crate::render::context::GroupContext;
use crate::select::{self, Group};
use crate::stats::describe::Sorted;

/// The phase of the cases that this is about.
const PHASE: &str = "models";

#[derive(Debug, Serialize)]
pub struct MultiModelContext {
    pub group: GroupContext,
    pub servers: Vec<MultiServer>,
}

/// One configuration of several models.
#[derive(Debug, Serialize)]
pub struct MultiServer {
    pub experiment: String,
    pub n_runs: usize,
    pub run_ids: Vec<String>,
    pub models: Vec<ModelRow>,
    /// By output length, the pooled ones last; models in the server's order.
    pub cases: Vec<ModelCaseRow>,
}

/// What a model has, and whether it runs.
#[derive(Debug, Serialize)]
pub struct ModelRow {
    pub name: String,
    pub source: Option<String>,
    pub mem_fraction: Option<f64>,
    pub memory_limit_bytes: Option<u64>,
    pub max_sequence_tokens: Option<u64>,
    pub weight_bytes: Option<u64>,
    pub kv_pool_bytes: Option<u64>,
    pub kv_pool_tokens: Option<u64>,
    /// Requests that succeeded, of those that were sent.
    pub n_alone: (u32, u32),
    pub n_together: (u32, u32),
    pub runs_alone: bool,
    pub runs_together: bool,
}

#[derive(Debug, Serialize)]
pub struct ModelCaseRow {
    pub model: String,
    /// None: all lengths together.
    pub max_tokens: Option<u32>,
    pub alone: Option<ModelStats>,
    pub together: Option<ModelStats>,
    /// Mean latency beside the others by mean latency alone.
    pub slowdown: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct ModelStats {
    pub n_requests: usize,
    pub mean_tok_per_s: f64,
    pub max_tok_per_s: f64,
    pub mean_ms: f64,
    pub p50_ms: f64,
    /// None of few requests.
    pub p95_ms: Option<f64>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Alone,
    Together,
}

impl Kind {
    /// As cases are named.
    fn prefix(self) -> &'static str {
        match self {
            Self::Alone => "alone-",
            Self::Together => "together-",
        }
    }
}

/// Groups whose servers have one model each, then those whose servers have several.
pub fn groups_apart(runs: &[RunFolder]) -> (Vec<Group<'_>>, Vec<Group<'_>>) {
    select::groups(runs)
        .into_iter()
        .partition(|group| !is_multi_model(group))
}

/// Whether a group's servers have several models, or were to have them.
fn is_multi_model(group: &Group<'_>) -> bool {
    group.all_runs().any(|run| {
        let record = run.record;
        !record.server.models.is_empty() || record.config.n_models > 0
    })
}

/// The configurations of a group that had several models.
pub fn servers_of(records: &Records, group: &Group<'_>) -> Vec<MultiServer> {
    group
        .arms
        .iter()
        .filter_map(|arm| {
            let run_ids: Vec<String> = arm.runs.iter().map(|r| r.folder.run_id.clone()).collect();
            let infos = &arm.runs.first()?.record.server.models;
            let cases: Vec<&CaseSamples> = records
                .cases
                .iter()
                .filter(|c| c.phase == PHASE && c.n_requests > 0 && run_ids.contains(&c.run_id))
                .collect();
            let lengths: BTreeSet<u32> = cases.iter().filter_map(|c| c.max_tokens).collect();
            let lengths = lengths.into_iter().map(Some).chain([None]);
            let models = infos.iter().map(|info| {
                let counts = |kind| counts_of(&of_model(&cases, &info.name, None, kind));
                let (n_alone, n_together) = (counts(Kind::Alone), counts(Kind::Together));
                let runs = |(n_good, n_sent): (u32, u32)| n_sent > 0 && n_good == n_sent;
                ModelRow {
                    name: info.name.clone(),
                    source: info.source.clone(),
                    mem_fraction: info.mem_fraction,
                    memory_limit_bytes: info.memory_limit_bytes,
                    max_sequence_tokens: info.max_sequence_tokens,
                    weight_bytes: info.weight_bytes,
                    kv_pool_bytes: info.kv_pool_bytes,
                    kv_pool_tokens: info.kv_pool_tokens,
                    n_alone,
                    n_together,
                    runs_alone: runs(n_alone),
                    runs_together: runs(n_together),
                }
            });
            Some(MultiServer {
                experiment: arm.experiment.clone(),
                n_runs: arm.runs.len(),
                models: models.collect(),
                cases: lengths
                    .flat_map(|length| infos.iter().map(move |info| (length, &info.name)))
                    .map(|(length, name)| case_row(&cases, name, length))
                    .collect(),
                run_ids,
            })
        })
        .collect()
}

fn case_row(cases: &[&CaseSamples], name: &str, max_tokens: Option<u32>) -> ModelCaseRow {
    let stats = |kind| stats_of(&of_model(cases, name, max_tokens, kind));
    let (alone, together) = (stats(Kind::Alone), stats(Kind::Together));
    let slowdown = match (&alone, &together) {
        (Some(alone), Some(together)) if alone.mean_ms > 0.0 => {
            Some(together.mean_ms / alone.mean_ms)
        }
        _ => None,
    };
    ModelCaseRow {
        model: name.to_owned(),
        max_tokens,
        alone,
        together,
        slowdown,
    }
}

fn of_model<'a>(
    cases: &[&'a CaseSamples],
    name: &str,
    max_tokens: Option<u32>,
    kind: Kind,
) -> Vec<&'a CaseSamples> {
    let is_of = |c: &&&CaseSamples| {
        c.model.as_deref() == Some(name)
            && c.case.starts_with(kind.prefix())
            && (max_tokens.is_none() || c.max_tokens == max_tokens)
    };
    cases.iter().filter(is_of).copied().collect()
}

/// Good ones and all.
fn counts_of(cases: &[&CaseSamples]) -> (u32, u32) {
    let all = cases.iter().map(|c| c.n_requests).sum();
    (cases.iter().map(|c| c.n_ok()).sum(), all)
}

fn stats_of(cases: &[&CaseSamples]) -> Option<ModelStats> {
    let pooled = |values: fn(&CaseSamples) -> &Sorted| {
        let all = cases.iter().flat_map(|c| values(c).values()).copied();
        Sorted::new(all.collect())
    };
    let (latency, tok_per_s) = (pooled(|c| &c.e2el_ms)?, pooled(|c| &c.tok_per_s)?);
    Some(ModelStats {
        n_requests: latency.n(),
        mean_tok_per_s: tok_per_s.mean()?,
        max_tok_per_s: tok_per_s.max()?,
        mean_ms: latency.mean()?,
        p50_ms: latency.median()?,
        p95_ms: (latency.n() >= least_requests(95))
            .then(|| latency.percentile(0.95))
            .flatten(),
    })
}
