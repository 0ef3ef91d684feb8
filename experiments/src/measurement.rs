//! The middle of a run: all cases sent, every row on disk, and what can be said of them.

use std::sync::Arc;

use anyhow::{Result, bail};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::loadgen::{self, Company, RequestRow, RunClock, Target};
use crate::progress::Progress;
use crate::prompts::PromptSet;
use crate::record::{RecordError, RunRecord};
use crate::spec::Experiment;
use crate::summary::Summary;

/// Runs the rounds one after the other; every row is in the record before the next is awaited.
pub async fn run_cases(
    experiment: &Experiment,
    target: &Target,
    prompts: &PromptSet,
    seed: u64,
    clock: RunClock,
    record: &mut RunRecord,
) -> Result<Vec<RequestRow>> {
    let mut all = Vec::new();
    for round in experiment.workload.rounds() {
        let name = round[0].round.as_ref().unwrap_or(&round[0].name);
        let n_requests = round.iter().map(|case| u64::from(case.n_requests)).sum();
        let progress = Progress::bar(name, n_requests);
        let (sender, mut rows) = mpsc::unbounded_channel();
        let send = async {
            let company = Arc::new(Company::of(round.len()));
            let mut cases = JoinSet::new();
            for case in round.clone() {
                let (target, prompts) = (target.clone(), prompts.clone());
                let (sender, company) = (sender.clone(), Arc::clone(&company));
                cases.spawn(async move {
                    loadgen::run_beside(&target, &case, &prompts, seed, clock, &sender, &company)
                        .await;
                });
            }
            while cases.join_next().await.is_some() {}
            drop(sender);
        };
        let mut n_failed = 0;
        let receive = async {
            while let Some(row) = rows.recv().await {
                n_failed += usize::from(row.error.is_some());
                record.append_request(&row)?;
                progress.advance(row.error.clone().unwrap_or_default());
                all.push(row);
            }
            Ok::<(), RecordError>(())
        };
        let ((), received) = tokio::join!(send, receive);
        received?;
        progress.finish(&format!("{n_requests} requests, {n_failed} failed"));
    }
    Ok(all)
}

/// What a finished run says about itself: an error if a case has nothing to show, a remark if
/// something went wrong on the way.
pub fn judge(summary: &Summary, rows: &[RequestRow], ignore_eos: bool) -> Result<Option<String>> {
    let measured: Vec<&RequestRow> = rows.iter().filter(|row| !row.warmup).collect();
    let first_error = measured
        .iter()
        .find_map(|row| row.error.as_deref())
        .unwrap_or("no error was reported");
    if let Some(case) = summary.cases.iter().find(|case| case.completed == 0) {
        bail!(
            "no request of case {} succeeded: {first_error}",
            case.case.name
        );
    }
    let mut remarks = Vec::new();
    let n_failed = measured.iter().filter(|row| row.error.is_some()).count();
    if n_failed > 0 {
        remarks.push(format!(
            "{n_failed} of {} requests failed: {first_error}",
            measured.len()
        ));
    }
    let is_odd = |row: &&&RequestRow| {
        row.error.is_none() && row.output_tokens != Some(u64::from(row.max_tokens))
    };
    let n_odd = measured.iter().filter(is_odd).count();
    if ignore_eos && n_odd > 0 {
        remarks.push(format!(
            "{n_odd} of {} requests did not return the tokens asked for",
            measured.len()
        ));
    }
    Ok((!remarks.is_empty()).then(|| remarks.join("; ")))
}
