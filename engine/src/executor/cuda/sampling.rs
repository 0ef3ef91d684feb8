//! Sampling on the GPU: which rows it handles, their parameters, and the results.
//!
//! The kernel follows the host's sampler step by step: same order, ranking and random numbers. It
//! differs in the last bits of exp and adds weights as integers of 2^-40 where the host adds f64,
//! so a draw differs only if it falls within about 1e-7 of a border between two tokens. Rows that
//! exceed the kernel's limits are sampled on the host.

use std::collections::{HashMap, HashSet};

use gpu::{Buffer, CudaError, Device, HostBuffer, Stream};
use kernels::sampling::cuda::{
    LogprobOutputs, MAX_TOP_LOGPROBS, PenalizedToken, Sample, SampleArgs, SamplingRow, TokenError,
};

use super::MAX_BURST;
use super::forward::Forward;
use super::inputs::{Inputs, MAX_ROWS};
use crate::request::SampledToken;
use crate::sampler;
use crate::sampler::SampleSpec;
use crate::step::RowError;

/// Maximum number of distinct tokens of one row with a penalty or a bias.
pub(super) const MAX_PENALIZED: usize = 4096;
const UNUSED: PenalizedToken = PenalizedToken {
    token: 0,
    n_generated: -1,
    bias: 0.0,
    logit: 0.0,
};

/// Why a row's token is sampled on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HostReason {
    #[error(
        "{asked} top log-probabilities are asked, the GPU reports at most {}",
        MAX_TOP_LOGPROBS
    )]
    TopLogprobs { asked: usize },
    #[error(
        "{n_tokens} tokens may have a penalty or a bias, the GPU has room for {}",
        MAX_PENALIZED
    )]
    Penalized { n_tokens: usize },
    #[error("the request is constrained by a grammar")]
    Guided,
    #[error("the request excludes tokens")]
    Excluded,
}

/// Whether the row only asks for the most likely token under the model's own distribution.
pub(super) fn is_greedy(spec: &SampleSpec) -> bool {
    let p = &spec.params;
    p.temperature == 0.0
        && p.logit_bias.is_empty()
        && p.n_logprobs.is_none()
        && !p.needs_history()
        && !p.exclusions.apply_at(spec.output_index)
        && !spec.is_guided()
}

/// Why the GPU cannot choose `n_steps` tokens of this row; `None` if it can.
pub(super) fn host_reason(spec: &SampleSpec, n_steps: usize) -> Option<HostReason> {
    let params = &spec.params;
    if spec.is_guided() {
        return Some(HostReason::Guided);
    }
    // An excluded token may become allowed later, but never the other way round.
    if params.exclusions.apply_at(spec.output_index) {
        return Some(HostReason::Excluded);
    }
    if let Some(asked) = params.n_logprobs.filter(|n| *n > MAX_TOP_LOGPROBS) {
        return Some(HostReason::TopLogprobs { asked });
    }
    let (history, n_new) = if params.needs_history() {
        (spec.history.as_slice(), n_steps)
    } else {
        (&[][..], 0)
    };
    if history.len() + params.logit_bias.len() + n_new <= MAX_PENALIZED {
        return None;
    }
    let biased = params.logit_bias.iter().map(|(token, _)| *token);
    let distinct: HashSet<u32> = history.iter().copied().chain(biased).collect();
    let n_tokens = distinct.len() + n_new;
    (n_tokens > MAX_PENALIZED).then_some(HostReason::Penalized { n_tokens })
}

/// Packs a row for the kernel; its tokens with a penalty or a bias go to the front of `list`.
/// Refuses what the host's sampler refuses.
pub(super) fn pack(
    spec: &SampleSpec,
    n_vocab: usize,
    list: &mut [PenalizedToken],
) -> Result<SamplingRow, RowError> {
    let params = &*spec.params;
    sampler::check(params)?;
    sampler::check_bias(params, n_vocab)?;
    let mut places: HashMap<u32, usize> = HashMap::new();
    for (token, bias) in &params.logit_bias {
        entry(&mut places, list, *token)?.bias += bias;
    }
    if params.needs_history() {
        let (prompt, output) = spec.history.split_at(spec.n_prompt.min(spec.history.len()));
        for token in prompt {
            let entry = entry(&mut places, list, *token)?;
            entry.n_generated = entry.n_generated.max(0);
        }
        for token in output {
            let entry = entry(&mut places, list, *token)?;
            entry.n_generated = entry.n_generated.max(0) + 1;
        }
    }
    Ok(SamplingRow {
        seed: params.seed,
        output_index: spec.output_index as u64,
        temperature: params.temperature,
        // A k that exceeds i32 is larger than every vocabulary: it keeps all tokens, as 0 does.
        top_k: i32::try_from(params.top_k).unwrap_or(0),
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        n_logprobs: params.n_logprobs.map_or(-1, |n| n as i32),
        n_penalized: places.len() as i32,
        tracks_output: i32::from(params.needs_history()),
    })
}

/// The entry of `token`; a new one if it has none.
fn entry<'a>(
    places: &mut HashMap<u32, usize>,
    list: &'a mut [PenalizedToken],
    token: u32,
) -> Result<&'a mut PenalizedToken, RowError> {
    let (n_listed, limit) = (places.len(), list.len());
    let place = *places.entry(token).or_insert(n_listed);
    let entry = list.get_mut(place).ok_or(RowError::ListFull { limit })?;
    if place == n_listed {
        let token = token as i32;
        *entry = PenalizedToken { token, ..UNUSED };
    }
    Ok(entry)
}

/// What was uploaded for a batch's rows.
#[derive(Debug, Default)]
pub(super) struct Uploaded {
    /// Length of the longest list that grows with the output.
    pub n_growing: usize,
    /// Rows with invalid parameters, by index in the batch.
    pub refused: Vec<(usize, RowError)>,
}

/// The kernel and its rows' state at fixed addresses.
pub(super) struct DeviceSampler {
    kernel: Sample,
    /// `[MAX_ROWS]`
    rows: Buffer<SamplingRow>,
    /// `[MAX_ROWS, MAX_PENALIZED]`
    penalized: Buffer<PenalizedToken>,
    host_rows: HostBuffer<SamplingRow>,
    host_penalized: HostBuffer<PenalizedToken>,
    logprobs: Logprobs,
}

/// Log-probabilities of a burst.
pub(super) struct Logprobs {
    /// `[n_steps, n_rows]`
    logprob: Buffer<f32>,
    /// `[n_steps, n_rows, MAX_TOP_LOGPROBS]`
    top_ids: Buffer<i32>,
    top_logprob: Buffer<f32>,
}

/// Device memory of a [`DeviceSampler`], in bytes.
pub(super) fn device_bytes() -> u64 {
    let rows = MAX_ROWS * (size_of::<SamplingRow>() + MAX_PENALIZED * size_of::<PenalizedToken>());
    let logprobs = MAX_BURST * MAX_ROWS * (4 + 8 * MAX_TOP_LOGPROBS);
    (rows + logprobs) as u64
}

impl DeviceSampler {
    pub fn new(stream: &Stream) -> Result<Self, CudaError> {
        let device = stream.device();
        let n = MAX_BURST * MAX_ROWS;
        Ok(Self {
            kernel: Sample::new(device)?,
            rows: Buffer::zeroed(stream, MAX_ROWS)?,
            penalized: Buffer::zeroed(stream, MAX_ROWS * MAX_PENALIZED)?,
            host_rows: HostBuffer::zeroed(device, MAX_ROWS)?,
            host_penalized: HostBuffer::zeroed(device, MAX_ROWS * MAX_PENALIZED)?,
            logprobs: Logprobs {
                logprob: Buffer::zeroed(stream, n)?,
                top_ids: Buffer::zeroed(stream, n * MAX_TOP_LOGPROBS)?,
                top_logprob: Buffer::zeroed(stream, n * MAX_TOP_LOGPROBS)?,
            },
        })
    }

    /// Uploads each row and pads with greedy ones up to `n_padded`. `None`: the row is sampled
    /// elsewhere. A refused row is greedy on the GPU; the caller replaces its token with the error.
    pub fn upload(
        &mut self,
        stream: &Stream,
        specs: &[Option<&SampleSpec>],
        n_padded: usize,
        n_vocab: usize,
    ) -> Result<Uploaded, CudaError> {
        let rows = self.host_rows.as_mut_slice()?;
        let lists = self.host_penalized.as_mut_slice()?;
        rows.fill(SamplingRow::GREEDY);
        let packed = rows.iter_mut().zip(lists.chunks_exact_mut(MAX_PENALIZED));
        let mut uploaded = Uploaded::default();
        let mut lengths = Vec::with_capacity(specs.len());
        for (i, (spec, (row, list))) in specs.iter().zip(packed).enumerate() {
            match spec.map(|spec| pack(spec, n_vocab, list)) {
                Some(Ok(packed)) => *row = packed,
                Some(Err(error)) => uploaded.refused.push((i, error)),
                None => {}
            }
            let n_listed = row.n_penalized as usize;
            lengths.push(n_listed);
            if row.tracks_output != 0 {
                uploaded.n_growing = uploaded.n_growing.max(n_listed);
            }
        }
        self.copy(stream, &lengths, n_padded)?;
        Ok(uploaded)
    }

    fn copy(&self, stream: &Stream, lengths: &[usize], n_padded: usize) -> Result<(), CudaError> {
        self.host_rows
            .copy_to(stream, self.rows.view(0..n_padded)?)?;
        for (row, n_listed) in lengths.iter().enumerate().filter(|(_, n)| **n > 0) {
            let start = row * MAX_PENALIZED;
            let list = start..start + n_listed;
            let to = self.penalized.view(list.clone())?;
            self.host_penalized.copy_range_to(stream, list, to)?;
        }
        Ok(())
    }

    /// Chooses a token for each of the first rows of the logits, writes it to `forward`'s history
    /// and the next step's ids, and advances the rows' random streams and lists.
    pub fn launch(
        &self,
        stream: &Stream,
        forward: &Forward,
        inputs: &Inputs,
        n_rows: usize,
        n_vocab: usize,
    ) -> Result<(), CudaError> {
        self.kernel.launch(
            stream,
            &SampleArgs {
                logits: forward.logits().all(),
                vocab: n_vocab,
                stride: n_vocab,
                rows: self.rows.all(),
                penalized: self.penalized.all(),
                max_penalized: MAX_PENALIZED,
                next_ids: inputs.ids()?,
                history: forward.history.all(),
                step: Some(forward.step.all()),
                n_rows,
                // The argmax before it has already advanced the rows.
                advance: None,
                logprobs: Some(LogprobOutputs {
                    logprob: self.logprobs.logprob.all(),
                    top_ids: self.logprobs.top_ids.all(),
                    top_logprob: self.logprobs.top_logprob.all(),
                    max_top: MAX_TOP_LOGPROBS,
                }),
            },
        )
    }

    pub fn logprobs(&self) -> &Logprobs {
        &self.logprobs
    }
}

/// Pinned memory for a burst's tokens.
pub(super) struct Results {
    tokens: HostBuffer<i32>,
    logprob: HostBuffer<f32>,
    top_ids: HostBuffer<i32>,
    top_logprob: HostBuffer<f32>,
}

impl Results {
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let n = MAX_BURST * MAX_ROWS;
        Ok(Self {
            tokens: HostBuffer::zeroed(device, n)?,
            logprob: HostBuffer::zeroed(device, n)?,
            top_ids: HostBuffer::zeroed(device, n * MAX_TOP_LOGPROBS)?,
            top_logprob: HostBuffer::zeroed(device, n * MAX_TOP_LOGPROBS)?,
        })
    }

    /// Queues the copy of the first `n` tokens of the history, `[n_steps, n_rows]`.
    pub fn copy(
        &mut self,
        stream: &Stream,
        history: &Buffer<i32>,
        logprobs: Option<&Logprobs>,
        n: usize,
    ) -> Result<(), CudaError> {
        self.tokens.copy_from(stream, history.view(0..n)?)?;
        let Some(from) = logprobs else { return Ok(()) };
        let n_top = n * MAX_TOP_LOGPROBS;
        self.logprob.copy_from(stream, from.logprob.view(0..n)?)?;
        self.top_ids
            .copy_from(stream, from.top_ids.view(0..n_top)?)?;
        self.top_logprob
            .copy_from(stream, from.top_logprob.view(0..n_top)?)
    }

    /// Entry `at` of the history after the copy, with the log-probabilities that the row wants. The
    /// inner error is the code that the GPU wrote instead of a token.
    pub fn token(
        &self,
        at: usize,
        spec: &SampleSpec,
    ) -> Result<Result<SampledToken, TokenError>, CudaError> {
        let token = match TokenError::token(self.tokens.as_slice()?[at]) {
            Ok(token) => token,
            Err(error) => return Ok(Err(error)),
        };
        let Some(n_top) = spec.params.n_logprobs else {
            return Ok(Ok(SampledToken {
                token,
                logprob: None,
                top_logprobs: Vec::new(),
            }));
        };
        let first = at * MAX_TOP_LOGPROBS;
        let top = first..first + n_top.min(MAX_TOP_LOGPROBS);
        let ids = &self.top_ids.as_slice()?[top.clone()];
        let logprobs = &self.top_logprob.as_slice()?[top];
        Ok(Ok(SampledToken {
            token,
            logprob: Some(self.logprob.as_slice()?[at]),
            top_logprobs: ids
                .iter()
                .zip(logprobs)
                .filter_map(|(id, logprob)| Some((u32::try_from(*id).ok()?, *logprob)))
                .collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::request::SamplingParams;
    use crate::request::exclusions::Exclusions;

    fn spec(params: SamplingParams, history: &[u32], n_prompt: usize) -> SampleSpec {
        SampleSpec {
            params: Arc::new(params),
            output_index: history.len() - n_prompt.min(history.len()),
            history: history.to_vec(),
            n_prompt,
        }
    }

    /// The kernel's formula for one list entry, in its order of operations.
    fn penalized(logits: &[f32], row: &SamplingRow, list: &[PenalizedToken]) -> Vec<f32> {
        let mut logits = logits.to_vec();
        for entry in &list[..row.n_penalized as usize] {
            let Some(logit) = logits.get_mut(entry.token as usize) else {
                continue;
            };
            *logit += entry.bias;
            if entry.n_generated >= 0 {
                if *logit > 0.0 {
                    *logit /= row.repetition_penalty;
                } else {
                    *logit *= row.repetition_penalty;
                }
            }
            if entry.n_generated > 0 {
                *logit -= row.presence_penalty + row.frequency_penalty * entry.n_generated as f32;
            }
        }
        logits
    }

    proptest! {
        #[test]
        fn packed_lists_change_the_logits_as_the_host_does(
            logits in proptest::collection::vec(-8.0f32..8.0, 12),
            // Ids outside the vocabulary of 12 may be in a history; they have no effect.
            history in proptest::collection::vec(0u32..14, 0..40),
            n_prompt in 0usize..45,
            biases in proptest::collection::btree_map(0u32..12, -3.0f32..3.0, 0..5),
            penalties in (0.5f32..2.0, -1.0f32..1.0, -1.0f32..1.0),
            is_penalised in any::<bool>(),
        ) {
            let (repetition_penalty, presence_penalty, frequency_penalty) = penalties;
            let mut params = SamplingParams {
                logit_bias: biases.into_iter().collect(),
                ..SamplingParams::default()
            };
            if is_penalised {
                params = SamplingParams {
                    repetition_penalty,
                    presence_penalty,
                    frequency_penalty,
                    ..params
                };
            }
            let spec = spec(params, &history, n_prompt);
            let mut list = [UNUSED; 64];
            let row = pack(&spec, logits.len(), &mut list).unwrap();
            let tokens: HashSet<i32> =
                list[..row.n_penalized as usize].iter().map(|entry| entry.token).collect();
            prop_assert_eq!(tokens.len(), row.n_penalized as usize, "a token is listed twice");
            let expected = sampler::adjust(&logits, &spec, 0, &[]).unwrap();
            prop_assert_eq!(penalized(&logits, &row, &list), expected.to_vec());
            prop_assert_eq!(row.tracks_output == 1, spec.params.needs_history());
        }
    }

    #[test]
    fn parameters_arrive_and_wrong_ones_are_refused_as_by_the_host() {
        let params = SamplingParams {
            temperature: 0.7,
            top_k: usize::MAX,
            top_p: 0.9,
            min_p: 0.05,
            seed: 77,
            n_logprobs: Some(3),
            ..SamplingParams::default()
        };
        let row = pack(&spec(params.clone(), &[5, 6, 7], 1), 10, &mut []).unwrap();
        assert_eq!((row.seed, row.output_index, row.top_k), (77, 2, 0));
        assert_eq!((row.n_logprobs, row.n_penalized), (3, 0));
        assert_eq!((row.temperature, row.top_p, row.min_p), (0.7, 0.9, 0.05));
        let bad = |params| {
            let spec = spec(params, &[], 0);
            let expected = sampler::sample(&[0.0; 10], &spec, 0, &[]).unwrap_err();
            let found = pack(&spec, 10, &mut [UNUSED; 4]).unwrap_err();
            // Compared as text: one of the invalid values is NaN, which equals nothing.
            let expected = RowError::Sampler(expected);
            assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        };
        bad(SamplingParams {
            top_p: 1.5,
            ..params.clone()
        });
        bad(SamplingParams {
            logit_bias: vec![(3, f32::NAN)],
            ..params.clone()
        });
        bad(SamplingParams {
            logit_bias: vec![(10, 1.0)],
            ..params.clone()
        });
        let biases = SamplingParams {
            logit_bias: vec![(1, 1.0), (2, 1.0), (1, 0.5)],
            ..params
        };
        let biased = spec(biases, &[], 0);
        let mut list = [UNUSED; 2];
        assert_eq!(pack(&biased, 10, &mut list).unwrap().n_penalized, 2);
        assert_eq!((list[0].token, list[0].bias), (1, 1.5));
        let full = pack(&biased, 10, &mut list[..1]).unwrap_err();
        assert_eq!(full, RowError::ListFull { limit: 1 });
    }

    #[test]
    fn what_the_card_has_no_room_for_goes_to_the_host() {
        let with = |n_logprobs, presence_penalty, history: &[u32], n_steps| {
            let params = SamplingParams {
                presence_penalty,
                n_logprobs,
                ..SamplingParams::default()
            };
            host_reason(&spec(params, history, 0), n_steps)
        };
        assert_eq!(with(Some(MAX_TOP_LOGPROBS), 0.0, &[], 1), None);
        let asked = MAX_TOP_LOGPROBS + 1;
        let reason = with(Some(asked), 0.0, &[], 1);
        assert_eq!(reason, Some(HostReason::TopLogprobs { asked }));
        let distinct: Vec<u32> = (0..MAX_PENALIZED as u32).collect();
        let few: Vec<u32> = (0..3 * MAX_PENALIZED as u32).map(|i| i % 7).collect();
        assert_eq!(with(None, 0.0, &distinct, 1), None, "no penalty");
        assert_eq!(with(None, 0.5, &few, 16), None, "few distinct tokens");
        assert_eq!(with(None, 0.5, &distinct[1..], 1), None, "just fits");
        let n_tokens = MAX_PENALIZED + 1;
        let reason = with(None, 0.5, &distinct[1..], 2);
        assert_eq!(reason, Some(HostReason::Penalized { n_tokens }));
    }

    #[test]
    fn a_row_that_excludes_tokens_goes_to_the_host_until_it_does_not() {
        let with = |exclusions: Exclusions, output_index: usize| {
            let params = SamplingParams {
                exclusions,
                ..SamplingParams::default()
            };
            SampleSpec {
                output_index,
                ..spec(params, &[], 0)
            }
        };
        let ends = |output_index| {
            let exclusions = Exclusions {
                min_tokens: 3,
                ends: Arc::from([2]),
                ..Exclusions::default()
            };
            with(exclusions, output_index)
        };
        assert!(!is_greedy(&ends(2)) && is_greedy(&ends(3)));
        assert_eq!(host_reason(&ends(2), 1), Some(HostReason::Excluded));
        assert_eq!(host_reason(&ends(3), 16), None);
        let allowed = Exclusions {
            allowed: Some(Arc::from([5])),
            ..Exclusions::default()
        };
        assert_eq!(
            host_reason(&with(allowed, 100), 1),
            Some(HostReason::Excluded)
        );
    }

    #[test]
    fn a_row_with_a_grammar_goes_to_the_host() {
        let params = SamplingParams {
            guide: Some(crate::structured::guide_of("a+")),
            ..SamplingParams::default()
        };
        let spec = spec(params, &[], 0);
        assert!(!is_greedy(&spec));
        assert_eq!(host_reason(&spec, 1), Some(HostReason::Guided));
    }
}
