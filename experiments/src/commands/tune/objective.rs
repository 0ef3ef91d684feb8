//! What `tune` looks for, taken from a run's `summary.json`.

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::spec::Experiment;
use crate::spec::workload::heaviest_case;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// Output tokens a second
    Throughput,
    /// Median time to first token
    Ttft,
    /// Requests a second within the workload's limits
    Goodput,
}

/// A goal and the case of the workload that it is read from.
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    pub goal: Goal,
    pub case: String,
}

impl Objective {
    /// The case with the most load: most users, else the highest rate, else the last one.
    pub(crate) fn of(goal: Goal, experiment: &Experiment) -> Result<Self> {
        let workload = &experiment.workload;
        if goal == Goal::Goodput && workload.goodput.is_none() {
            bail!(
                "{}: --objective goodput needs limits, [workload.goodput] with ttft_ms, tpot_ms or e2el_ms",
                experiment.name
            );
        }
        match heaviest_case(workload) {
            Some(case) => Ok(Self {
                goal,
                case: case.name,
            }),
            None => bail!("{}: the workload has no case", experiment.name),
        }
    }

    /// Higher is better; `None` where the run has no such figure.
    pub fn score(&self, summary: &Value) -> Option<f64> {
        let cases = summary["cases"].as_array()?;
        let case = cases.iter().find(|case| case["case"] == *self.case)?;
        let value = case[self.key()].as_f64()?;
        Some(match self.goal {
            Goal::Ttft => -value,
            Goal::Throughput | Goal::Goodput => value,
        })
    }

    /// A score as it is read: with its unit, whatever is better.
    pub fn shown(&self, score: f64) -> String {
        match self.goal {
            Goal::Throughput => format!("{score:.2} tok/s"),
            Goal::Ttft => format!("{:.2} ms", -score),
            Goal::Goodput => format!("{score:.3} req/s"),
        }
    }

    pub fn title(&self) -> String {
        let name = match self.goal {
            Goal::Throughput => "output throughput",
            Goal::Ttft => "median time to first token",
            Goal::Goodput => "goodput",
        };
        format!("{name} of case {}", self.case)
    }

    /// For the new experiment's name.
    pub fn word(&self) -> &'static str {
        match self.goal {
            Goal::Throughput => "throughput",
            Goal::Ttft => "ttft",
            Goal::Goodput => "goodput",
        }
    }

    fn key(&self) -> &'static str {
        match self.goal {
            Goal::Throughput => "output_throughput",
            Goal::Ttft => "median_ttft_ms",
            Goal::Goodput => "request_goodput",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scores_are_read_from_the_case_and_higher_is_better() {
        let summary = json!({"cases": [
            {"case": "users-1", "output_throughput": 1.0},
            {"case": "users-20", "output_throughput": 30.0, "median_ttft_ms": 12.5, "request_goodput": null},
        ]});
        let objective = |goal| Objective {
            goal,
            case: "users-20".into(),
        };
        assert_eq!(objective(Goal::Throughput).score(&summary), Some(30.0));
        assert_eq!(objective(Goal::Ttft).score(&summary), Some(-12.5));
        assert_eq!(objective(Goal::Ttft).shown(-12.5), "12.50 ms");
        assert_eq!(objective(Goal::Goodput).score(&summary), None);
    }
}
