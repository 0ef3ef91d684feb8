//! Verdicts on one campaign, printed: what `ablate` and `reproduce` end with.
//!
//! Both read records alone, so a table can be made again at any time. The replicate is a server
//! start here too, and all figures of a table are judged together. [`ablation`] serves the rendered
//! reports as well.

pub mod ablation;
pub mod reproduction;

use std::path::PathBuf;

use clap::Subcommand;
use records::store::Store;

use crate::ReportError;
use crate::load::Records;
use crate::load::requests::{CaseSamples, read_cases};
use crate::load::run_folder::{self, Outcome, RunFolder};
use crate::render::format;
use crate::stats::describe::median;
use crate::stats::verdict::{
    self, Better, Comparison, MetricSamples, Reason, Verdict, VerdictConfig,
};

#[derive(Debug, Subcommand)]
pub enum VerdictCommand {
    /// Print which flag did what in a campaign of `ablate`
    Ablation {
        /// Id of the campaign
        campaign: String,
        /// Folders of runs and campaigns [default: data/runs and data/campaigns of the repository]
        #[arg(long, value_name = "DIR")]
        runs_dir: Vec<PathBuf>,
    },
    /// Print whether a campaign of `reproduce` confirms the run it repeats
    Reproduction {
        /// Id of the campaign
        campaign: String,
        /// Folders of runs and campaigns [default: data/runs and data/campaigns of the repository]
        #[arg(long, value_name = "DIR")]
        runs_dir: Vec<PathBuf>,
    },
}

/// What is judged of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    OutputThroughput,
    Ttft,
    Tpot,
}

impl Figure {
    pub const ALL: [Self; 3] = [Self::OutputThroughput, Self::Ttft, Self::Tpot];

    pub fn title(self) -> &'static str {
        match self {
            Self::OutputThroughput => "throughput",
            Self::Ttft => "TTFT p50",
            Self::Tpot => "TPOT p50",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::OutputThroughput => "tok/s",
            Self::Ttft | Self::Tpot => "ms",
        }
    }

    pub fn better(self) -> Better {
        match self {
            Self::OutputThroughput => Better::Higher,
            Self::Ttft | Self::Tpot => Better::Lower,
        }
    }

    pub fn of(self, case: &CaseSamples) -> Option<f64> {
        match self {
            Self::OutputThroughput => case.output_tok_per_s(),
            Self::Ttft => case.ttft_ms.median(),
            Self::Tpot => case.tpot_ms.median(),
        }
    }
}

/// The readable runs of a campaign that `keep` wants, by round, and the cases of the complete ones.
pub struct Runs {
    pub folders: Vec<RunFolder>,
    pub cases: Vec<CaseSamples>,
}

impl Runs {
    /// The runs with a readable manifest that `keep` wants, and their cases.
    ///
    /// # Errors
    ///
    /// If the runs cannot be listed or a complete run's rows cannot be read.
    pub fn read(store: &Store, keep: impl Fn(&RunFolder) -> bool) -> Result<Self, ReportError> {
        let mut folders = run_folder::read_all(store)?;
        folders.retain(|run| run.record.is_some() && keep(run));
        folders.sort_by_key(|run| (replicate(run), run.run_id.clone()));
        let complete: Vec<&RunFolder> = folders
            .iter()
            .filter(|run| run.outcome == Outcome::Complete)
            .collect();
        let cases = read_cases(&complete)?;
        Ok(Self { folders, cases })
    }

    /// What was left out because its folder is broken, a line each.
    fn broken_lines(&self) -> String {
        let lines = self.folders.iter().filter_map(|run| match &run.outcome {
            Outcome::Broken { reason } => {
                Some(format!("left out: {} is broken ({reason})\n", run.run_id))
            }
            _ => None,
        });
        lines.collect()
    }

    /// Those of `records` that `keep` wants.
    pub fn of_records(records: &Records, keep: impl Fn(&RunFolder) -> bool) -> Self {
        let mut folders: Vec<RunFolder> = records
            .runs
            .iter()
            .filter(|run| run.record.is_some() && keep(run))
            .cloned()
            .collect();
        folders.sort_by_key(|run| (replicate(run), run.run_id.clone()));
        let is_kept = |c: &&CaseSamples| folders.iter().any(|run| run.run_id == c.run_id);
        let cases = records.cases.iter().filter(is_kept).cloned().collect();
        Self { folders, cases }
    }

    /// Both arms' values of one figure, by round. `pair` names the arms.
    pub fn samples(
        &self,
        (before, after): (&[&RunFolder], &[&RunFolder]),
        pair: &str,
        case: &str,
        figure: Figure,
    ) -> MetricSamples {
        MetricSamples {
            metric: figure.title().into(),
            better: figure.better(),
            pair: pair.into(),
            before: self.values(before, case, figure),
            after: self.values(after, case, figure),
            rounds: self.rounds((before, after), case, figure),
        }
    }

    /// The pairs of one campaign and replicate; runs of two campaigns share no rounds.
    fn rounds(
        &self,
        (before, after): (&[&RunFolder], &[&RunFolder]),
        case: &str,
        figure: Figure,
    ) -> Vec<(f64, f64)> {
        let round = |run: &RunFolder| {
            let manifest = &run.record.as_ref()?.manifest;
            Some((manifest.campaign.clone(), manifest.replicate))
        };
        before
            .iter()
            .filter_map(|b| {
                let a = after.iter().find(|a| round(a) == round(b))?;
                Some((self.value(b, case, figure)?, self.value(a, case, figure)?))
            })
            .collect()
    }

    /// One value a complete run of `runs`, in their order.
    pub fn values(&self, runs: &[&RunFolder], case: &str, figure: Figure) -> Vec<f64> {
        runs.iter()
            .filter_map(|run| self.value(run, case, figure))
            .collect()
    }

    fn value(&self, run: &RunFolder, case: &str, figure: Figure) -> Option<f64> {
        let wanted = |c: &&CaseSamples| c.run_id == run.run_id && c.case == case;
        figure.of(self.cases.iter().find(wanted)?)
    }
}

fn replicate(run: &RunFolder) -> u32 {
    run.record
        .as_ref()
        .map_or(0, |record| record.manifest.replicate)
}

/// The word, and the change with its interval where there are some.
fn phrase(answer: &Comparison) -> String {
    let word = match answer.verdict {
        Verdict::Faster => "better".to_owned(),
        Verdict::Slower => "worse".to_owned(),
        Verdict::Same => "same".to_owned(),
        Verdict::Undecided(Reason::NoData) => return "no data".into(),
        Verdict::Undecided(Reason::SourceUnknown) => "not judged".to_owned(),
        Verdict::Undecided(Reason::TooFewRuns { n_more, .. }) => {
            format!("too few starts, {n_more} more needed")
        }
        Verdict::Undecided(Reason::NotSeen { .. }) => "no difference to be seen".to_owned(),
    };
    let change = answer
        .improvement_percent
        .map(format::signed_percent)
        .unwrap_or_default();
    let interval = answer
        .interval_percent
        .map(|(low, high)| {
            format!(
                " [{}, {}]",
                format::signed_percent(low),
                format::signed_percent(high)
            )
        })
        .unwrap_or_default();
    format!("{change}{interval} {word}")
}

/// Median and range over the starts.
fn spread(values: &[f64], figure: Figure) -> String {
    let number = |value: f64| format::number(value, 2);
    let Some(middle) = median(values) else {
        return "–".into();
    };
    let (low, high) = range(values);
    format!(
        "{} {} [{}, {}]",
        number(middle),
        figure.unit(),
        number(low),
        number(high)
    )
}

fn range(values: &[f64]) -> (f64, f64) {
    values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(*value), high.max(*value))
        })
}

/// What the answers as a whole lack, if anything.
fn remark(answers: &[Comparison]) -> Option<String> {
    answers.iter().find_map(|answer| match answer.verdict {
        Verdict::Undecided(Reason::TooFewRuns { n_needed, .. }) => Some(format!(
            "{} against {} server starts do not decide every figure of this table; {n_needed} each, in common rounds, may",
            answer.n_before, answer.n_after,
        )),
        _ => None,
    })
}

/// The figures without a verdict where no one can say what ran.
fn without_verdict(answers: Vec<Comparison>) -> Vec<Comparison> {
    let answers = answers.into_iter();
    answers
        .map(|answer| Comparison {
            verdict: Verdict::Undecided(Reason::SourceUnknown),
            ..answer
        })
        .collect()
}

fn judge(family: &[MetricSamples]) -> Vec<Comparison> {
    verdict::compare_family(family, VerdictConfig::default())
}
