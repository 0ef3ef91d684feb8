//! Decode plans: every row has one token, and the GPU chooses the following ones itself.

use gpu::CudaError;

use super::super::ExecutorError;
use super::inputs::{MAX_ROWS, SequenceTokens};
use super::run_ahead::{Batch, Burst, advance_row};
use super::sampling::{DeviceSampler, Uploaded, host_reason, is_greedy};
use super::{CudaExecutor, DEVICE, MAX_BURST, graphs, step_error};
use crate::sampler::SampleSpec;
use crate::step::{PlanRow, RowError, RowOutput, StepOutput, StepPlan};

impl CudaExecutor {
    /// Whether the GPU can run this plan without the host between the steps.
    pub(super) fn is_decode_plan(&self, plan: &StepPlan) -> bool {
        let goes_on = |batch: &Batch| batch.is_continued_by(&plan.rows, plan.n_steps);
        if !plan.scores.is_empty() {
            return false;
        }
        self.batch.as_ref().is_some_and(goes_on)
            || plan.rows.iter().all(|row| {
                let spec = row.sample.as_ref();
                row.tokens.len() == 1 && spec.is_some_and(|s| self.is_for_card(s, plan.n_steps))
            })
    }

    pub(super) fn is_for_card(&self, spec: &SampleSpec, n_steps: usize) -> bool {
        is_greedy(spec) || (self.sampler.is_some() && host_reason(spec, n_steps).is_none())
    }

    /// Up to [`MAX_ROWS`] rows and [`MAX_BURST`] steps at a time.
    pub(super) fn decode(&mut self, plan: &StepPlan) -> Result<StepOutput, ExecutorError> {
        let is_one = plan.rows.len() <= MAX_ROWS;
        let mut output = StepOutput::default();
        for chunk in plan.rows.chunks(MAX_ROWS) {
            let mut made = vec![RowOutput::default(); chunk.len()];
            // A row without a token has nothing to continue from and leaves the batch.
            let mut going_on: Vec<usize> = (0..chunk.len()).collect();
            let mut n_made = 0;
            while n_made < plan.n_steps && !going_on.is_empty() {
                let n_steps = MAX_BURST.min(plan.n_steps - n_made);
                let n_left = plan.n_steps - n_made - n_steps;
                let lookahead_steps = match n_left {
                    0 if is_one => plan.lookahead_steps,
                    n_left => n_left.min(MAX_BURST),
                };
                let rows: Vec<PlanRow>;
                let rows = if n_made == 0 {
                    chunk
                } else {
                    let fed = |i: &usize| advance_row(&chunk[*i], &made[*i].tokens);
                    rows = going_on.iter().map(fed).collect();
                    &rows
                };
                let burst = self.decode_burst(rows, n_steps, lookahead_steps)?;
                for (i, row) in going_on.iter().zip(burst) {
                    made[*i].tokens.extend(row.tokens);
                    made[*i].error = row.error;
                }
                going_on.retain(|i| !made[*i].has_failed());
                n_made += n_steps;
            }
            output.rows.append(&mut made);
        }
        Ok(output)
    }

    /// The next `n_steps` tokens of each row. If the batch continues and `lookahead_steps` more are
    /// expected of it, those are queued before this call waits for its own.
    fn decode_burst(
        &mut self,
        rows: &[PlanRow],
        n_steps: usize,
        lookahead_steps: usize,
    ) -> Result<Vec<RowOutput>, ExecutorError> {
        let continued = self
            .batch
            .take()
            .filter(|batch| batch.is_continued_by(rows, n_steps));
        let goes_on = continued.is_some();
        let mut refused = Vec::new();
        let (mut batch, burst) = match (continued, self.ahead.take()) {
            // A burst longer than asked is usable: its first tokens are the same.
            (Some(batch), Some(burst)) if burst.n_steps >= n_steps => {
                self.counts.run_ahead_used += 1;
                (batch, burst)
            }
            (Some(mut batch), None) => {
                self.refresh(&mut batch, rows, 0).map_err(step_error)?;
                let burst = self.queue(&mut batch, n_steps).map_err(step_error)?;
                (batch, burst)
            }
            (_, ahead) => {
                self.counts.run_ahead_discarded += u64::from(ahead.is_some());
                let mut batch;
                (batch, refused) = self.begin(rows)?;
                let burst = self.queue(&mut batch, n_steps).map_err(step_error)?;
                (batch, burst)
            }
        };
        // After a burst longer than asked, the inputs on the GPU are too far advanced.
        let is_in_step = burst.n_steps == n_steps;
        if self.options.run_ahead && goes_on && is_in_step {
            let n_ahead = batch.steps_ahead(rows, n_steps, lookahead_steps);
            if n_ahead > 0 {
                self.refresh(&mut batch, rows, n_steps)
                    .map_err(step_error)?;
                self.ahead = Some(self.queue(&mut batch, n_ahead).map_err(step_error)?);
            }
        }
        let mut made = self.read(burst, rows, n_steps).map_err(step_error)?;
        for (i, error) in refused {
            made[i] = RowOutput {
                error: Some(error),
                ..RowOutput::default()
            };
        }
        if is_in_step {
            batch.advance(&made);
            self.batch = Some(batch);
        }
        Ok(made)
    }

    /// Call before the inputs on the GPU are used for something else, or if their state is unknown.
    pub(super) fn forget_batch(&mut self) {
        self.batch = None;
        self.counts.run_ahead_discarded += u64::from(self.ahead.take().is_some());
    }

    /// Uploads a new batch. Also returns the rows whose parameters are invalid.
    fn begin(
        &mut self,
        rows: &[PlanRow],
    ) -> Result<(Batch, Vec<(usize, RowError)>), ExecutorError> {
        let sequences: Vec<SequenceTokens<'_>> = rows
            .iter()
            .map(|row| SequenceTokens {
                tokens: &row.tokens,
                start: row.start,
                pages: &row.pages,
            })
            .collect();
        let graph = self.graphs.at_least(rows.len());
        let n_padded = graph.map_or(rows.len(), |(size, _)| size);
        let outputs: Vec<usize> = (0..n_padded).collect();
        self.inputs
            .upload(&self.stream, &sequences, n_padded, &outputs)
            .map_err(step_error)?;
        let specs: Vec<Option<&SampleSpec>> = rows.iter().map(|row| row.sample.as_ref()).collect();
        let mut uploaded = Uploaded::default();
        if !specs.iter().flatten().all(|spec| is_greedy(spec)) {
            let sampler = self.sampler.as_mut().ok_or_else(no_sampler)?;
            uploaded = sampler
                .upload(&self.stream, &specs, n_padded, self.vocab)
                .map_err(step_error)?;
        }
        let batch = Batch::new(rows, n_padded, uploaded.n_growing);
        Ok((batch, uploaded.refused))
    }

    /// Uploads pages that the GPU does not have yet. The inputs are then those of `n_steps` tokens
    /// after the rows, except for the ids, which only the GPU knows.
    fn refresh(
        &mut self,
        batch: &mut Batch,
        rows: &[PlanRow],
        n_steps: usize,
    ) -> Result<(), CudaError> {
        if !batch.take_pages(rows) {
            return Ok(());
        }
        let places = rows
            .iter()
            .map(|row| (row.start + n_steps, row.pages.as_slice()));
        self.inputs.refresh(&self.stream, places)
    }

    /// Queues the next steps of the batch and the copy of their tokens to the host.
    fn queue(&mut self, batch: &mut Batch, n_steps: usize) -> Result<Burst, CudaError> {
        let (stream, n_padded) = (&self.stream, batch.n_padded);
        let graph = self.graphs.at_least(n_padded);
        let sampler = self.sampler.as_ref().filter(|_| batch.is_sampled);
        for step in 0..n_steps {
            let value = self.step_values.view(step..step + 1)?;
            self.forward.step.all().copy_from(stream, value)?;
            match graph {
                Some((_, graph)) => graph.launch(stream)?,
                None => graphs::decode_step(stream, &self.forward, &self.inputs, n_padded)?,
            }
            // After argmax, whose choice it replaces.
            if let Some(sampler) = sampler {
                sampler.launch(stream, &self.forward, &self.inputs, n_padded, self.vocab)?;
            }
        }
        batch.grow(n_steps);
        let slot = self.next_slot;
        self.next_slot = (slot + 1) % self.results.len();
        let logprobs = sampler.filter(|_| batch.has_logprobs);
        self.results[slot].copy(
            stream,
            &self.forward.history,
            logprobs.map(DeviceSampler::logprobs),
            n_steps * n_padded,
        )?;
        Ok(Burst {
            n_steps,
            n_padded,
            slot,
        })
    }

    /// Waits for the burst and returns its first `n_steps` tokens of each row, up to the first
    /// failure.
    fn read(
        &self,
        burst: Burst,
        rows: &[PlanRow],
        n_steps: usize,
    ) -> Result<Vec<RowOutput>, CudaError> {
        let results = &self.results[burst.slot];
        rows.iter()
            .enumerate()
            .map(|(i, row)| {
                let mut made = RowOutput::default();
                let Some(spec) = &row.sample else {
                    return Ok(made);
                };
                for step in 0..n_steps {
                    made.push(results.token(step * burst.n_padded + i, spec)?);
                    if made.has_failed() {
                        break;
                    }
                }
                Ok(made)
            })
            .collect()
    }
}

pub(super) fn no_sampler() -> ExecutorError {
    let message = "rows to sample were sent to the GPU, but its sampler is off";
    ExecutorError::of_plan(DEVICE, message)
}
