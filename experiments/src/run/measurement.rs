//! The middle of a run: all cases sent, every row on disk, and what can be said of them.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use records::run_folder::RunRecord;
use records::slo::SloOutcome;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::load::prompts::PromptSet;
use crate::load::{Company, RequestRow, RunClock, Target, run_case};
use crate::record::machine_load::LoadWatch;
use crate::record::summary::{CaseSummary, Summary};
use crate::run::progress::Progress;
use crate::run::slo::{self, Search};
use crate::spec::Experiment;
use crate::spec::workload::{Case, Phase};
use crate::terminal::say;

/// Who is asked, and when.
#[derive(Debug, Clone)]
pub struct Load {
    pub target: Target,
    pub prompts: PromptSet,
    pub seed: u64,
    pub clock: RunClock,
}

/// What was sent, and what a search among it found.
#[derive(Debug, Default)]
pub struct Measured {
    pub rows: Vec<RequestRow>,
    /// The trials of a search, which no workload lists.
    pub trials: Vec<Case>,
    pub slo: Option<SloOutcome>,
}

/// Runs the rounds one after the other, and then the search; every row is in the record before the next
/// is awaited.
pub async fn run_cases(
    experiment: &Experiment,
    load: &Load,
    record: &mut RunRecord,
    load_watch: &mut LoadWatch,
) -> Result<Measured> {
    let mut measured = Measured::default();
    for round in experiment.workload.rounds() {
        let rows = run_round(round, load, record, load_watch).await?;
        measured.rows.extend(rows);
    }
    if let Some(spec) = &experiment.workload.slo {
        let mut search = Search::new(spec);
        while let Some((at, case)) = search.next() {
            let rows = run_round(vec![case.clone()], load, record, load_watch).await?;
            search.take(at, &case, &rows);
            measured.rows.extend(rows);
            measured.trials.push(case);
        }
        let outcome = search.outcome();
        record.write_json(records::SLO, &outcome)?;
        say!("{}", slo::told(spec, &outcome));
        measured.slo = Some(outcome);
    }
    Ok(measured)
}

/// Cases that run at the same time.
async fn run_round(
    round: Vec<Case>,
    load: &Load,
    record: &mut RunRecord,
    load_watch: &mut LoadWatch,
) -> Result<Vec<RequestRow>> {
    let Load {
        target,
        prompts,
        seed,
        clock,
    } = load;
    let (seed, clock) = (*seed, *clock);
    let mut all = Vec::new();
    let name = round[0].round.as_ref().unwrap_or(&round[0].name);
    let n_requests = round.iter().map(|case| u64::from(case.n_requests)).sum();
    let progress = Progress::bar(name, n_requests);
    let (sender, mut rows) = mpsc::unbounded_channel();
    let began = load_watch.begin(clock.now_s());
    let send = async {
        let company = Arc::new(Company::of(round.len()));
        let mut cases = JoinSet::new();
        for case in round.clone() {
            let (target, prompts) = (target.clone(), prompts.clone());
            let (sender, company) = (sender.clone(), Arc::clone(&company));
            cases.spawn(async move {
                run_case(&target, &case, &prompts, seed, clock, &sender, &company).await
            });
        }
        drop(sender);
        join_cases(cases).await
    };
    let (mut n_asked, mut n_failed) = (0, 0);
    let receive = async {
        while let Some(row) = rows.recv().await {
            record.append_request(&row)?;
            if is_asked_for(&row, &round) {
                n_asked += 1;
                n_failed += usize::from(row.error.is_some());
                progress.advance(row.error.clone().unwrap_or_default());
            }
            all.push(row);
        }
        anyhow::Ok(())
    };
    tokio::try_join!(send, receive)?;
    let cases = round.iter().map(|case| case.name.clone()).collect();
    load_watch.end(cases, began, clock.now_s())?;
    progress.finish(&format!("{n_asked} requests, {n_failed} failed"));
    Ok(all)
}

/// Rows that were lost with a panic would be missing unnoticed: it ends the run.
async fn join_cases(mut cases: JoinSet<Result<(), JoinError>>) -> Result<()> {
    while let Some(ended) = cases.join_next().await {
        ended.and_then(|case| case).context("a case of the load")?;
    }
    Ok(())
}

/// Unlike those that a case sends to keep others company.
fn is_asked_for(row: &RequestRow, round: &[Case]) -> bool {
    round
        .iter()
        .any(|case| case.name == row.case && case.warmup == row.warmup)
}

/// What a finished run says about itself: an error if a case has nothing to show, a remark if
/// something went wrong in between.
pub fn judge(summary: &Summary, rows: &[RequestRow], ignore_eos: bool) -> Result<Option<String>> {
    // A trial that is too much is a result.
    let is_judged = |row: &&RequestRow| !row.warmup && row.phase != Phase::Slo;
    let measured: Vec<&RequestRow> = rows.iter().filter(is_judged).collect();
    let first_error = measured
        .iter()
        .find_map(|row| row.error.as_deref())
        .unwrap_or("no error was reported");
    let has_nothing = |case: &&CaseSummary| case.completed == 0 && case.case.phase != Phase::Slo;
    if let Some(case) = summary.cases.iter().find(has_nothing) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_case_is_an_error_and_ends_the_others() {
        let mut cases = JoinSet::new();
        cases.spawn(std::future::pending());
        cases.spawn(async { panic!("a case panics") });
        let error = join_cases(cases).await.expect_err("a panic");
        assert!(format!("{error:#}").contains("panicked"), "{error:#}");
        // One of its requests.
        let mut cases = JoinSet::new();
        cases.spawn(async { tokio::spawn(async { panic!("a request panics") }).await });
        assert!(join_cases(cases).await.is_err());
        let mut cases = JoinSet::new();
        cases.spawn(async { Ok(()) });
        assert!(join_cases(cases).await.is_ok());
    }
}
