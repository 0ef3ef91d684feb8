//! The runs of a campaign, one after the other.
//!
//! Replicates are interleaved (replicate 0 of every arm, then replicate 1 of every arm), so
//! that a machine that warms up or slows down does so for all arms alike.

use anyhow::Result;
use records::status::RunStatus;

use crate::run::campaign::{Arm, Campaign};
use crate::run::interrupts::Interrupts;
use crate::run::replicate::{RunEnd, run_replicate};
use crate::spec::Experiment;
use crate::terminal::note;

/// Replicate 0 of every arm, then replicate 1 of every arm, and so on, until the last one or an
/// interruption. Every other round runs backwards: what a place in the round does to a start (cold
/// caches, heat) is not one arm's alone. `after_each` names the experiments that have no further
/// start; an arm whose answers were wrong has none either.
pub async fn run_rounds(
    campaign: &Campaign,
    mut arms: Vec<Arm>,
    interrupts: &mut Interrupts,
    mut after_each: impl FnMut(&Experiment, &RunEnd) -> Vec<String>,
) -> Result<Vec<RunEnd>> {
    let mut ends: Vec<RunEnd> = Vec::new();
    for replicate in 0.. {
        arms.retain(|arm| replicate < arm.experiment.replicates);
        if arms.is_empty() {
            break;
        }
        let mut dropped: Vec<String> = Vec::new();
        let mut wrong: Vec<String> = Vec::new();
        for arm in order_of(&arms, replicate) {
            let experiment = &arm.experiment;
            if dropped.contains(&experiment.name) {
                continue;
            }
            let end = run_replicate(campaign, arm, replicate, interrupts).await?;
            if let (RunStatus::Failed | RunStatus::Wrong, Some(reason)) = (end.status, &end.reason)
            {
                note!("{} {}: {reason}", arm.name(), end.status.word());
            }
            if end.status == RunStatus::Wrong {
                wrong.push(arm.name());
            }
            dropped.extend(after_each(experiment, &end));
            let interrupted = end.interrupted;
            ends.push(end);
            if interrupted {
                return Ok(ends);
            }
        }
        arms.retain(|arm| !dropped.contains(&arm.experiment.name) && !wrong.contains(&arm.name()));
    }
    Ok(ends)
}

fn order_of<T>(arms: &[T], replicate: u32) -> Vec<&T> {
    let mut order: Vec<&T> = arms.iter().collect();
    if replicate % 2 == 1 {
        order.reverse();
    }
    order
}

/// How each run ended, a line each.
pub fn table_of(campaign: &Campaign, ends: &[RunEnd]) -> String {
    let mut lines = vec![format!("campaign {}", campaign.id)];
    lines.extend(ends.iter().map(|end| {
        let status = end.status.word();
        let reason = end
            .reason
            .as_deref()
            .and_then(|reason| reason.lines().next())
            .unwrap_or_default();
        format!(
            "  {status:<9} {} {reason}",
            campaign.repository.relative(&end.dir).display()
        )
    }));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_arm_has_one_place_in_all_rounds() {
        let order = |replicate| order_of(&['a', 'b', 'c'], replicate);
        assert_eq!(order(0), [&'a', &'b', &'c']);
        assert_eq!(order(1), [&'c', &'b', &'a']);
        assert_eq!(order(2), order(0));
    }
}
