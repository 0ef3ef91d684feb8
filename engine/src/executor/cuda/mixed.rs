//! All other plans: prompts, prompts mixed with decode rows, and rows sampled on the host.

use std::borrow::Cow;

use gpu::CudaError;

use super::super::ExecutorError;
use super::CudaExecutor;
use super::decode::no_sampler;
use super::inputs::MAX_ROWS;
use super::passes::{Piece, passes, sampled, scored};
use super::run_ahead::advance_row;
use super::sampling::{host_reason, is_greedy};
use super::step_error;
use crate::request::{SampledToken, ScoredToken};
use crate::sampler::SampleSpec;
use crate::sampler::{self, SamplerError};
use crate::step::{PlanRow, RowError, RowOutput, StepOutput, StepPlan, Target};

/// One thread scores a row of logits in about the time that the GPU needs for one.
const MAX_SCORING_THREADS: usize = 16;

impl CudaExecutor {
    /// Runs the plan in passes of as many tokens as fit, with the head for rows that need tokens.
    pub(super) fn execute_mixed(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        let (rows, n_steps) = (plan.rows.as_slice(), plan.n_steps);
        let targets: Vec<Target> = plan.targets().collect();
        let mut made = vec![RowOutput::default(); rows.len()];
        for step in 0..n_steps {
            // The rows still running and their inputs for this step. A failed row stops.
            let going_on: Vec<usize> = (0..rows.len()).filter(|i| !made[*i].has_failed()).collect();
            let current: Cow<'_, [PlanRow]> = if step == 0 {
                rows.into()
            } else {
                let fed = |i: &usize| advance_row(&rows[*i], &made[*i].tokens);
                going_on.iter().map(fed).collect()
            };
            for pass in passes(&current, self.inputs.max_tokens()) {
                let (sampling, outputs) = sampled(&current, &pass);
                let size = self.upload(&current, &pass, &outputs).map_err(step_error)?;
                self.layers(size).map_err(step_error)?;
                let scored = scored(&pass, &targets);
                if !scored.is_empty() {
                    // A plan with scores has one step, so all its rows are in this pass.
                    self.score(&current, &pass, &scored, &mut made)
                        .map_err(step_error)?;
                    self.upload(&current, &pass, &outputs).map_err(step_error)?;
                }
                if outputs.is_empty() {
                    continue;
                }
                self.head(outputs.len()).map_err(step_error)?;
                let chosen = self.choose(&current, &sampling)?;
                for (row, chosen) in sampling.into_iter().zip(chosen) {
                    let made = &mut made[going_on[row]];
                    if !made.has_failed() {
                        made.push(chosen);
                    }
                }
            }
        }
        Ok(StepOutput { rows: made })
    }

    /// Copies the logits of a pass's scored tokens to the host in portions and scores them on all
    /// cores. Afterwards the GPU's output rows are those of the last portion.
    fn score(
        &mut self,
        rows: &[PlanRow],
        pass: &[Piece],
        scored: &[(usize, Target)],
        made: &mut [RowOutput],
    ) -> Result<(), CudaError> {
        for portion in scored.chunks(MAX_ROWS) {
            let outputs: Vec<usize> = portion.iter().map(|(i, _)| *i).collect();
            self.upload(rows, pass, &outputs)?;
            self.head(outputs.len())?;
            let n = outputs.len() * self.vocab;
            let logits = self.forward.logits().view(0..n)?.download(&self.stream)?;
            let scores = on_all_cores(portion, &logits, self.vocab);
            for ((_, target), score) in portion.iter().zip(scores) {
                made[target.row].push_score(score);
            }
        }
        Ok(())
    }

    /// A token, or a failure, for each of the first rows of the logits, which belong to
    /// `rows[chosen[i]]`: chosen on the GPU, except where only the host's sampler can do it.
    fn choose(
        &mut self,
        rows: &[PlanRow],
        chosen: &[usize],
    ) -> Result<Vec<Result<SampledToken, RowError>>, ExecutorError> {
        let specs: Vec<&SampleSpec> = chosen
            .iter()
            .filter_map(|row| rows[*row].sample.as_ref())
            .collect();
        let n = specs.len();
        let on_card: Vec<Option<&SampleSpec>> = specs
            .iter()
            .map(|spec| self.is_for_card(spec, 1).then_some(*spec))
            .collect();
        let first = self.step_values.view(0..1).map_err(step_error)?;
        let step = self.forward.step.all();
        step.copy_from(&self.stream, first).map_err(step_error)?;
        let (mut logprobs, mut refused) = (None, Vec::new());
        if on_card.iter().flatten().all(|spec| is_greedy(spec)) {
            self.forward
                .argmax(&self.stream, &self.inputs, n, false)
                .map_err(step_error)?;
        } else {
            let sampler = self.sampler.as_mut().ok_or_else(no_sampler)?;
            let uploaded = sampler
                .upload(&self.stream, &on_card, n, self.vocab)
                .map_err(step_error)?;
            refused = uploaded.refused;
            sampler
                .launch(&self.stream, &self.forward, &self.inputs, n, self.vocab)
                .map_err(step_error)?;
            logprobs = Some(sampler.logprobs());
        }
        let results = &mut self.results[0];
        results
            .copy(&self.stream, &self.forward.history, logprobs, n)
            .map_err(step_error)?;
        let mut tokens = Vec::with_capacity(n);
        for (i, spec) in specs.into_iter().enumerate() {
            let token = if on_card[i].is_some() {
                let token = self.results[0].token(i, spec).map_err(step_error)?;
                token.map_err(RowError::from)
            } else {
                if let Some(reason) = host_reason(spec, 1).filter(|_| self.sampler.is_some()) {
                    let request = rows[chosen[i]].request;
                    tracing::debug!(%request, %reason, "sampling this token on the host");
                }
                self.counts.host_sampled_tokens += 1;
                self.sample_on_host(i, spec).map_err(step_error)?
            };
            tokens.push(token);
        }
        for (i, error) in refused {
            tokens[i] = Err(error);
        }
        Ok(tokens)
    }

    /// Samples from row `i` of the logits, which the GPU's sampler leaves unchanged.
    fn sample_on_host(
        &self,
        i: usize,
        spec: &SampleSpec,
    ) -> Result<Result<SampledToken, RowError>, CudaError> {
        let logits = self.forward.logits();
        let row = logits.view(i * self.vocab..(i + 1) * self.vocab)?;
        let row = row.download(&self.stream)?;
        Ok(sampler::sample(&row, spec, 0, &[]).map_err(RowError::from))
    }
}

/// Scores `targets`, whose logits are `[targets.len(), vocab]`, in order.
fn on_all_cores(
    targets: &[(usize, Target)],
    logits: &[f32],
    vocab: usize,
) -> Vec<Result<ScoredToken, SamplerError>> {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let n_each = targets
        .len()
        .div_ceil(n_threads.min(MAX_SCORING_THREADS))
        .max(1);
    let score = &|targets: &[(usize, Target)], logits: &[f32]| -> Vec<_> {
        let rows = targets.iter().zip(logits.chunks_exact(vocab));
        rows.map(|((_, target), row)| sampler::score(row, target.token, target.n_top))
            .collect()
    };
    std::thread::scope(|scope| {
        let portions = targets.chunks(n_each).zip(logits.chunks(n_each * vocab));
        let threads: Vec<_> = portions
            .map(|(targets, logits)| (targets, logits, scope.spawn(move || score(targets, logits))))
            .collect();
        threads
            .into_iter()
            // The work of a thread that panicked is repeated here, where a panic ends the engine.
            .flat_map(|(targets, logits, thread)| {
                thread.join().unwrap_or_else(|_| score(targets, logits))
            })
            .collect()
    })
}
