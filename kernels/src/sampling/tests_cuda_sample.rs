//! Sampling on the device against a plain sampler: sort, cut, walk.

#![allow(clippy::unwrap_used, reason = "a call that fails fails the test")]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::cmp::Ordering;

use gpu::{Buffer, Device, Stream};
use kernels::sampling::cuda::{
    LogprobOutputs, PenalizedToken, Sample, SampleArgs, SamplingRow, TokenError,
};
use rand::Rng;

/// u in [0, 1) of (seed, index): Philox4x32-10, 53 bits.
fn uniform(seed: u64, index: u64) -> f64 {
    let mut counter = [index as u32, (index >> 32) as u32, 0, 0];
    let mut key = [seed as u32, (seed >> 32) as u32];
    for _ in 0..10 {
        let left = 0xD251_1F53u64 * u64::from(counter[0]);
        let right = 0xCD9E_8D57u64 * u64::from(counter[2]);
        let high = |product: u64| (product >> 32) as u32;
        counter = [
            high(right) ^ counter[1] ^ key[0],
            right as u32,
            high(left) ^ counter[3] ^ key[1],
            left as u32,
        ];
        key = [
            key[0].wrapping_add(0x9E37_79B9),
            key[1].wrapping_add(0xBB67_AE85),
        ];
    }
    let bits = u64::from(counter[0]) | u64::from(counter[1]) << 32;
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Ids by rank.
fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|a, b| {
        logits[*b]
            .partial_cmp(&logits[*a])
            .unwrap_or(Ordering::Equal)
            .then(a.cmp(b))
    });
    ids
}

fn penalized(logits: &[f32], row: &SamplingRow, list: &[PenalizedToken]) -> Vec<f32> {
    let mut logits = logits.to_vec();
    for entry in list {
        let logit = &mut logits[entry.token as usize];
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

fn choose(logits: &[f32], row: &SamplingRow) -> usize {
    let ids = ranked(logits);
    if row.temperature == 0.0 {
        return ids[0];
    }
    let largest = logits[ids[0]];
    let weight = |id: usize| f64::from(((logits[id] - largest) * (1.0 / row.temperature)).exp());
    let mut kept = ids;
    if row.top_k > 0 {
        kept.truncate(row.top_k as usize);
    }
    if row.top_p < 1.0 {
        let target = f64::from(row.top_p) * kept.iter().map(|id| weight(*id)).sum::<f64>();
        let mut passed = 0.0;
        let n = kept.iter().take_while(|id| {
            let goes_on = passed < target;
            passed += weight(**id);
            goes_on
        });
        let n = n.count();
        kept.truncate(n);
    }
    kept.retain(|id| weight(*id) >= f64::from(row.min_p));
    kept.sort_unstable();
    let target =
        uniform(row.seed, row.output_index) * kept.iter().map(|id| weight(*id)).sum::<f64>();
    let mut passed = 0.0;
    for id in &kept {
        passed += weight(*id);
        if passed > target {
            return *id;
        }
    }
    kept[kept.len() - 1]
}

struct Outcome {
    tokens: Vec<i32>,
    next_ids: Vec<i32>,
    rows: Vec<SamplingRow>,
    lists: Vec<PenalizedToken>,
    logprob: Vec<f32>,
    top_ids: Vec<i32>,
    top_logprob: Vec<f32>,
}

const MAX_TOP: usize = 20;

fn run(
    device: &Device,
    stream: &Stream,
    logits: &[f32],
    vocab: usize,
    rows: &[SamplingRow],
    lists: &[PenalizedToken],
) -> Outcome {
    let n_rows = rows.len();
    let logits_on_device = Buffer::from_slice(stream, logits).unwrap();
    let rows = Buffer::from_slice(stream, rows).unwrap();
    let lists = Buffer::from_slice(stream, lists).unwrap();
    let next_ids = Buffer::<i32>::zeroed(stream, n_rows).unwrap();
    let history = Buffer::<i32>::zeroed(stream, n_rows).unwrap();
    let logprob = Buffer::<f32>::zeroed(stream, n_rows).unwrap();
    let top_ids = Buffer::<i32>::zeroed(stream, n_rows * MAX_TOP).unwrap();
    let top_logprob = Buffer::<f32>::zeroed(stream, n_rows * MAX_TOP).unwrap();
    Sample::new(device)
        .unwrap()
        .launch(
            stream,
            &SampleArgs {
                logits: logits_on_device.all(),
                vocab,
                stride: logits.len() / n_rows,
                rows: rows.all(),
                penalized: lists.all(),
                max_penalized: lists.len() / n_rows,
                next_ids: next_ids.all(),
                history: history.all(),
                step: None,
                n_rows,
                advance: None,
                logprobs: Some(LogprobOutputs {
                    logprob: logprob.all(),
                    top_ids: top_ids.all(),
                    top_logprob: top_logprob.all(),
                    max_top: MAX_TOP,
                }),
            },
        )
        .unwrap();
    Outcome {
        tokens: history.download(stream).unwrap(),
        next_ids: next_ids.download(stream).unwrap(),
        rows: rows.download(stream).unwrap(),
        lists: lists.download(stream).unwrap(),
        logprob: logprob.download(stream).unwrap(),
        top_ids: top_ids.download(stream).unwrap(),
        top_logprob: top_logprob.download(stream).unwrap(),
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn every_filter_chooses_what_the_plain_sampler_chooses() {
    let (device, stream) = common::open();
    let mut rng = common::rng(9);
    for vocab in [1, 7, 100, 1025, 32_000, 151_936] {
        let stride = vocab + 3;
        let mut rows = Vec::new();
        for temperature in [0.0, 0.05, 0.7, 1.0, 3.0] {
            for (top_k, top_p, min_p) in [
                (0, 1.0, 0.0),
                (1, 1.0, 0.0),
                (40, 1.0, 0.0),
                (0, 0.9, 0.0),
                (50, 0.8, 0.0),
                (0, 1.0, 0.1),
                (300, 0.99, 0.01),
                (0, 0.0001, 0.0),
            ] {
                let output_index = rng.random_range(0..1 << 40);
                let seed = rng.random();
                let row = SamplingRow {
                    seed,
                    output_index,
                    temperature,
                    ..SamplingRow::GREEDY
                };
                rows.push(SamplingRow {
                    top_k,
                    top_p,
                    min_p,
                    ..row
                });
            }
        }
        let mut logits = common::normals(&mut rng, rows.len() * stride, 3.0);
        for (index, row) in logits.chunks_mut(stride).enumerate() {
            row[vocab..].fill(f32::NAN); // after the row: never read
            match index % 4 {
                // Few distinct values, so that cuts fall among equals.
                1 => row[..vocab].iter_mut().for_each(|x| *x = x.round()),
                2 => row[..vocab]
                    .iter_mut()
                    .step_by(3)
                    .skip(1)
                    .for_each(|x| *x = f32::NEG_INFINITY),
                3 => row[..vocab]
                    .iter_mut()
                    .for_each(|x| *x = if *x > 0.0 { 0.0 } else { -0.0 }),
                _ => {}
            }
        }
        let lists = vec![
            PenalizedToken {
                token: -1,
                n_generated: 0,
                bias: 0.0,
                logit: 0.0
            };
            rows.len()
        ];
        let outcome = run(&device, &stream, &logits, vocab, &rows, &lists);
        for (index, row) in rows.iter().enumerate() {
            let logits = &logits[index * stride..][..vocab];
            let expected = choose(logits, row) as i32;
            assert_eq!(
                outcome.tokens[index], expected,
                "vocab {vocab} row {index}: {row:?}"
            );
            assert_eq!(outcome.next_ids[index], expected);
            let moved = SamplingRow {
                output_index: row.output_index + 1,
                ..*row
            };
            assert_eq!(outcome.rows[index], moved);
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn penalties_biases_and_log_probabilities() {
    let (device, stream) = common::open();
    let mut rng = common::rng(10);
    let (vocab, max_penalized, n_rows) = (32_000, 64, 12);
    let logits = common::normals(&mut rng, n_rows * vocab, 3.0);
    let unused = PenalizedToken {
        token: 0,
        n_generated: 0,
        bias: 0.0,
        logit: 0.0,
    };
    let mut lists = vec![unused; n_rows * max_penalized];
    let mut rows = Vec::new();
    for index in 0..n_rows {
        let best = ranked(&logits[index * vocab..][..vocab]);
        let n_penalized = 60;
        let list = &mut lists[index * max_penalized..][..n_penalized];
        for (i, entry) in list.iter_mut().enumerate() {
            // The most likely ones, so that the penalties change the choice.
            *entry = PenalizedToken {
                token: best[i * 2] as i32,
                n_generated: i as i32 % 5 - 1,
                bias: if i % 3 == 0 {
                    common::normal(&mut rng, 2.0)
                } else {
                    0.0
                },
                logit: 0.0,
            };
        }
        rows.push(SamplingRow {
            seed: 77 + index as u64,
            output_index: 5,
            temperature: if index % 3 == 0 { 0.0 } else { 0.8 },
            top_k: 30,
            top_p: 0.95,
            repetition_penalty: 1.3,
            presence_penalty: 0.4,
            frequency_penalty: 0.2,
            n_logprobs: [-1, 0, 5, 20][index % 4],
            n_penalized: n_penalized as i32,
            tracks_output: i32::from(index % 2 == 0),
            ..SamplingRow::GREEDY
        });
    }
    let outcome = run(&device, &stream, &logits, vocab, &rows, &lists);
    for (index, row) in rows.iter().enumerate() {
        let logits = &logits[index * vocab..][..vocab];
        let list = &lists[index * max_penalized..][..row.n_penalized as usize];
        let expected = choose(&penalized(logits, row, list), row);
        assert_eq!(
            outcome.tokens[index], expected as i32,
            "row {index}: {row:?}"
        );

        // The list has taken the token in.
        let after = &outcome.lists[index * max_penalized..][..max_penalized];
        let n_after = outcome.rows[index].n_penalized as usize;
        let before = list.iter().find(|entry| entry.token == expected as i32);
        let now = after[..n_after]
            .iter()
            .find(|entry| entry.token == expected as i32);
        if row.tracks_output == 0 {
            assert_eq!(n_after, list.len());
        } else {
            let n_before = before.map_or(0, |entry| entry.n_generated.max(0));
            assert_eq!(now.map(|entry| entry.n_generated), Some(n_before + 1));
            assert_eq!(n_after, list.len() + usize::from(before.is_none()));
        }

        if row.n_logprobs < 0 {
            continue;
        }
        let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        let logprob = |id: usize| f64::from(logits[id]) - total.ln();
        assert!((f64::from(outcome.logprob[index]) - logprob(expected)).abs() < 2e-6);
        let n_top = row.n_logprobs as usize;
        for (at, id) in ranked(logits)[..n_top].iter().enumerate() {
            let at = index * MAX_TOP + at;
            assert_eq!(outcome.top_ids[at], *id as i32, "row {index}");
            assert!((f64::from(outcome.top_logprob[at]) - logprob(*id)).abs() < 2e-6);
        }
    }
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn draws_follow_the_distribution_and_repeat_with_the_seed() {
    let (device, stream) = common::open();
    let n_rows = 20_000;
    let logits: Vec<f32> = (0..n_rows)
        .flat_map(|_| [0.5f32, 0.25, 0.125, 0.125].map(f32::ln))
        .collect();
    let rows: Vec<SamplingRow> = (0..n_rows)
        .map(|i| SamplingRow {
            seed: 1,
            output_index: i,
            temperature: 1.0,
            ..SamplingRow::GREEDY
        })
        .collect();
    let lists = vec![
        PenalizedToken {
            token: 0,
            n_generated: 0,
            bias: 0.0,
            logit: 0.0
        };
        rows.len()
    ];
    let outcome = run(&device, &stream, &logits, 4, &rows, &lists);
    let mut counts = [0.0f64; 4];
    outcome
        .tokens
        .iter()
        .for_each(|token| counts[*token as usize] += 1.0);
    let chi_square: f64 = [0.5, 0.25, 0.125, 0.125]
        .iter()
        .zip(counts)
        .map(|(share, count)| (count - share * n_rows as f64).powi(2) / (share * n_rows as f64))
        .sum();
    // 99.9 % point of chi-square with 3 degrees of freedom.
    assert!(chi_square < 16.3, "{counts:?}");
    let again = run(&device, &stream, &logits, 4, &rows, &lists);
    assert_eq!(outcome.tokens, again.tokens);
}

#[test]
#[cfg_attr(not(engine_test_cuda), ignore = "needs a GPU: run with --ignored")]
fn broken_rows_are_recorded_as_errors_and_wrong_shapes_refused() {
    let (device, stream) = common::open();
    let vocab = 2000;
    let mut logits = vec![0.0f32; 4 * vocab];
    logits[1999] = f32::NAN;
    logits[vocab + 5] = f32::INFINITY;
    logits[2 * vocab..3 * vocab].fill(f32::NEG_INFINITY);
    let mut rows = [SamplingRow::GREEDY; 4];
    rows[3].tracks_output = 1;
    rows[3].n_penalized = 1;
    let lists = [PenalizedToken {
        token: 9,
        n_generated: 0,
        bias: 0.0,
        logit: 0.0,
    }; 4];
    let outcome = run(&device, &stream, &logits, vocab, &rows, &lists);
    let found: Vec<_> = outcome
        .tokens
        .iter()
        .map(|entry| TokenError::token(*entry))
        .collect();
    assert_eq!(
        found,
        [
            TokenError::NotFinite,
            TokenError::NotFinite,
            TokenError::AllMasked,
            TokenError::ListFull
        ]
        .map(Err)
    );
    assert_eq!(TokenError::token(17), Ok(17));

    let sample = Sample::new(&device).unwrap();
    let floats = Buffer::<f32>::zeroed(&stream, 400).unwrap();
    let ints = Buffer::<i32>::zeroed(&stream, 4).unwrap();
    let rows = Buffer::from_slice(&stream, &rows).unwrap();
    let lists = Buffer::from_slice(&stream, &lists).unwrap();
    let outputs = LogprobOutputs {
        logprob: floats.all(),
        top_ids: ints.all(),
        top_logprob: floats.all(),
        max_top: 1,
    };
    let good = SampleArgs {
        logits: floats.all(),
        vocab: 100,
        stride: 100,
        rows: rows.all(),
        penalized: lists.all(),
        max_penalized: 1,
        next_ids: ints.all(),
        history: ints.all(),
        step: None,
        n_rows: 4,
        advance: None,
        logprobs: Some(outputs),
    };
    let launch = |args: &SampleArgs<'_>| {
        sample
            .launch(&stream, args)
            .map_err(|error| error.to_string())
    };
    launch(&good).unwrap();
    assert!(
        launch(&SampleArgs { n_rows: 5, ..good })
            .unwrap_err()
            .contains("length of logits")
    );
    let text = launch(&SampleArgs {
        max_penalized: 2,
        ..good
    })
    .unwrap_err();
    assert_eq!(text, "sample: length of penalized is 4, must be at least 8");
    let too_many = LogprobOutputs {
        max_top: 21,
        ..outputs
    };
    let text = launch(&SampleArgs {
        logprobs: Some(too_many),
        ..good
    })
    .unwrap_err();
    assert_eq!(text, "sample: max_top is 21, must be at most 20");
    stream.synchronize().unwrap();
}
