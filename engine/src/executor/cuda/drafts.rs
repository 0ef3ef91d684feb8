//! Rows with drafts, as the GPU computes them: each draft is a decode row of its own.
//!
//! All rows of a request name the same pages, and each has its own position, context and place in
//! the random stream. In every layer the keys and values of all rows are written before any row
//! attends, so a row sees the drafts before it. The kernels are those of a decode batch of that
//! many rows, and rows with penalties have the drafts in their history.

use crate::kv::PageCopies;
use crate::step::{PlanRow, RowOutput, ScoreSpec, StepOutput, StepPlan};

/// The plan with a row for every draft, or `None` if it has no drafts.
pub(super) fn expand(plan: &StepPlan) -> Option<StepPlan> {
    if plan.rows.iter().all(|row| row.n_drafts == 0) {
        return None;
    }
    let mut rows = Vec::with_capacity(plan.rows.iter().map(|row| 1 + row.n_drafts).sum());
    // The new index of each row.
    let mut places = Vec::with_capacity(plan.rows.len());
    for row in &plan.rows {
        places.push(rows.len());
        if row.n_drafts == 0 {
            rows.push(row.clone());
        } else {
            rows.extend((0..=row.n_drafts).map(|n_before| after(row, n_before)));
        }
    }
    let place = |spec: &ScoreSpec| ScoreSpec {
        row: places.get(spec.row).copied().unwrap_or(rows.len()),
        ..spec.clone()
    };
    Some(StepPlan {
        scores: plan.scores.iter().map(place).collect(),
        rows,
        n_steps: plan.n_steps,
        lookahead_steps: 0,
        // They have begun.
        copies: PageCopies::default(),
    })
}

/// The row that computes the token after `n_before` drafts of `row`.
fn after(row: &PlanRow, n_before: usize) -> PlanRow {
    let mut one = PlanRow {
        request: row.request,
        tokens: vec![row.tokens[n_before]],
        n_drafts: 0,
        start: row.start + n_before,
        pages: row.pages.clone(),
        sample: row.sample.clone(),
    };
    if let Some(spec) = &mut one.sample {
        spec.output_index += n_before;
        if spec.params.needs_history() {
            spec.history.extend(&row.drafts()[..n_before]);
        }
    }
    one
}

/// The output for `plan`, from that of its expansion.
pub(super) fn verify(plan: &StepPlan, output: StepOutput) -> StepOutput {
    let mut parts = output.rows.into_iter();
    let rows = plan.rows.iter().map(|row| {
        if row.n_drafts == 0 {
            return parts.next().unwrap_or_default();
        }
        let mut made = RowOutput::default();
        for (n_before, part) in parts.by_ref().take(1 + row.n_drafts).enumerate() {
            let chosen = match part.error {
                Some(error) => Err(error),
                None => match part.tokens.into_iter().next() {
                    Some(token) => Ok(token),
                    None => continue,
                },
            };
            made.push_verified(row.drafts(), n_before, chosen);
        }
        made
    });
    StepOutput {
        rows: rows.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::kv::PageIdx;
    use crate::request::{RequestId, SampledToken, SamplingParams};
    use crate::sampler::SampleSpec;
    use crate::step::RowError;

    fn row(id: u64, tokens: &[u32], n_drafts: usize, presence_penalty: f32) -> PlanRow {
        let params = SamplingParams {
            presence_penalty,
            ..SamplingParams::default()
        };
        let history = if params.needs_history() {
            vec![1, 2, tokens[0]]
        } else {
            Vec::new()
        };
        PlanRow {
            request: RequestId(id),
            tokens: tokens.to_vec(),
            n_drafts,
            start: 2,
            pages: vec![PageIdx(id as u32)],
            sample: Some(SampleSpec {
                params: Arc::new(params),
                output_index: 1,
                history,
                n_prompt: 2,
            }),
        }
    }

    fn plan() -> StepPlan {
        StepPlan {
            rows: vec![
                row(1, &[3], 0, 0.0),
                row(2, &[4, 5, 6], 2, 0.5),
                row(3, &[7, 8], 1, 0.0),
            ],
            n_steps: 1,
            scores: vec![ScoreSpec {
                row: 2,
                targets: vec![1],
                n_top: 0,
            }],
            ..StepPlan::default()
        }
    }

    #[test]
    fn every_draft_is_a_row_at_its_own_place() {
        let flat = expand(&plan()).unwrap();
        let places: Vec<_> = flat
            .rows
            .iter()
            .map(|row| {
                let spec = row.sample.as_ref().unwrap();
                assert_eq!(row.n_drafts, 0);
                (
                    row.request.0,
                    row.tokens.clone(),
                    row.start,
                    spec.output_index,
                    spec.history.clone(),
                )
            })
            .collect();
        assert_eq!(
            places,
            [
                (1, vec![3], 2, 1, vec![]),
                (2, vec![4], 2, 1, vec![1, 2, 4]),
                (2, vec![5], 3, 2, vec![1, 2, 4, 5]),
                (2, vec![6], 4, 3, vec![1, 2, 4, 5, 6]),
                (3, vec![7], 2, 1, vec![]),
                (3, vec![8], 3, 2, vec![]),
            ]
        );
        assert_eq!(flat.scores[0].row, 4);
        let mut without = plan();
        without.rows.truncate(1);
        assert!(expand(&without).is_none());
    }

    #[test]
    fn rows_of_drafts_become_one_output() {
        let token = |token| {
            RowOutput::from(vec![SampledToken {
                token,
                logprob: None,
                top_logprobs: Vec::new(),
            }])
        };
        let broken = || RowOutput {
            error: Some(RowError::ListFull { limit: 1 }),
            ..RowOutput::default()
        };
        let kept = |rows: Vec<RowOutput>| -> Vec<(Vec<u32>, bool)> {
            let output = verify(&plan(), StepOutput { rows });
            let rows = output.rows.into_iter();
            rows.map(|row| {
                let tokens = row.tokens.iter().map(|t| t.token).collect();
                (tokens, row.has_failed())
            })
            .collect()
        };
        let made = [9, 5, 6, 7, 1, 2].map(token).to_vec();
        assert_eq!(
            kept(made),
            [(vec![9], false), (vec![5, 6, 7], false), (vec![1], false)]
        );
        let made = vec![broken(), token(5), broken(), token(7), token(0), broken()];
        assert_eq!(
            kept(made),
            [(vec![], true), (vec![5], true), (vec![0], false)]
        );
    }
}
