use std::sync::Arc;

use proptest::prelude::*;

use super::*;

fn spec(params: SamplingParams) -> SampleSpec {
    SampleSpec {
        params: Arc::new(params),
        output_index: 0,
        history: Vec::new(),
        n_prompt: 0,
    }
}

fn at(params: &SamplingParams, output_index: usize) -> SampleSpec {
    SampleSpec {
        output_index,
        ..spec(params.clone())
    }
}

fn hot() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        ..SamplingParams::default()
    }
}

fn token(logits: &[f32], spec: &SampleSpec) -> u32 {
    sample(logits, spec, 0, &[]).unwrap().token
}

/// Frequency of each token in `n` draws with consecutive output indices.
fn counts(logits: &[f32], params: &SamplingParams, n: usize) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for output_index in 0..n {
        counts[token(logits, &at(params, output_index)) as usize] += 1.0;
    }
    counts
}

/// Pearson's statistic; tokens of probability zero must not have been drawn at all.
fn chi_square(counts: &[f64], probabilities: &[f64]) -> f64 {
    let n: f64 = counts.iter().sum();
    counts
        .iter()
        .zip(probabilities)
        .map(|(count, p)| {
            if *p == 0.0 {
                assert_eq!(*count, 0.0, "a removed token was drawn");
                return 0.0;
            }
            (count - n * p).powi(2) / (n * p)
        })
        .sum()
}

fn softmax(logits: &[f32], temperature: f64, keep: &[usize]) -> Vec<f64> {
    let weights: Vec<f64> = logits
        .iter()
        .enumerate()
        .map(|(i, l)| {
            if keep.contains(&i) {
                (f64::from(*l) / temperature).exp()
            } else {
                0.0
            }
        })
        .collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / total).collect()
}

const LOGITS: [f32; 6] = [1.0, 2.5, -0.5, 2.0, 0.0, -3.0];
const N_DRAWS: usize = 20_000;

/// 99.9 % points of chi-square by degrees of freedom 1 to 5.
const CRITICAL: [f64; 5] = [10.83, 13.82, 16.27, 18.47, 20.52];

fn assert_distribution(params: &SamplingParams, keep: &[usize]) {
    let expected = softmax(&LOGITS, f64::from(params.temperature), keep);
    let statistic = chi_square(&counts(&LOGITS, params, N_DRAWS), &expected);
    let critical = CRITICAL[keep.len().max(2) - 2];
    assert!(
        statistic < critical,
        "chi-square {statistic} for {params:?}"
    );
}

#[test]
fn draws_follow_the_softmax_at_each_temperature() {
    for temperature in [0.5, 1.0, 2.0] {
        let params = SamplingParams {
            temperature,
            seed: 3,
            ..hot()
        };
        assert_distribution(&params, &[0, 1, 2, 3, 4, 5]);
    }
}

#[test]
fn each_filter_keeps_its_tokens_and_renormalises() {
    // Softmax: token 1 0.51, 3 0.31, 0 0.11, 4 0.042, 2 0.025, 5 0.002.
    assert_distribution(&SamplingParams { top_k: 3, ..hot() }, &[0, 1, 3]);
    assert_distribution(
        &SamplingParams {
            top_p: 0.8,
            ..hot()
        },
        &[1, 3],
    );
    assert_distribution(
        &SamplingParams {
            top_p: 0.9,
            ..hot()
        },
        &[0, 1, 3],
    );
    // 0.31 / 0.51 = 0.61; 0.11 / 0.51 = 0.22.
    assert_distribution(
        &SamplingParams {
            min_p: 0.5,
            ..hot()
        },
        &[1, 3],
    );
    assert_distribution(
        &SamplingParams {
            min_p: 0.2,
            ..hot()
        },
        &[0, 1, 3],
    );
    // Among the top three, 1 and 3 have 0.88: top-p counts after top-k.
    assert_distribution(
        &SamplingParams {
            top_k: 3,
            top_p: 0.85,
            ..hot()
        },
        &[1, 3],
    );
    assert_distribution(
        &SamplingParams {
            top_p: 0.85,
            ..hot()
        },
        &[0, 1, 3],
    );
}

#[test]
fn extreme_filters_leave_the_likeliest() {
    for params in [
        SamplingParams { top_k: 1, ..hot() },
        SamplingParams {
            top_p: 1e-6,
            ..hot()
        },
        SamplingParams {
            min_p: 1.0,
            ..hot()
        },
        SamplingParams {
            temperature: f32::MIN_POSITIVE,
            ..hot()
        },
    ] {
        assert_eq!(counts(&LOGITS, &params, 200)[1], 200.0, "{params:?}");
    }
    // The highest temperature is uniform over what top-k keeps.
    let params = SamplingParams {
        temperature: f32::MAX,
        top_k: 2,
        ..hot()
    };
    let drawn = counts(&LOGITS, &params, 2000);
    assert!(drawn[1] > 900.0 && drawn[3] > 900.0, "{drawn:?}");
    // top_k beyond the vocabulary keeps everything.
    assert_distribution(
        &SamplingParams {
            top_k: 100,
            ..hot()
        },
        &[0, 1, 2, 3, 4, 5],
    );
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    assert_eq!(
        token(&[0.0, 3.0, 3.0, -1.0], &spec(SamplingParams::default())),
        1
    );
    assert_eq!(token(&[-0.0, 0.0], &spec(SamplingParams::default())), 0);
    let mut long = vec![1.0; 2000];
    long[1500] = 2.0;
    long[1999] = 2.0;
    assert_eq!(token(&long, &spec(SamplingParams::default())), 1500);
    assert_eq!(
        token(&long, &spec(SamplingParams { top_k: 1, ..hot() })),
        1500
    );
}

#[test]
fn penalties_and_bias_change_the_choice() {
    let logits = [2.0, 1.9, 1.0, -1.0];
    let with = |params: SamplingParams, history: &[u32], n_prompt: usize, extra: &[u32]| {
        let spec = SampleSpec {
            params: Arc::new(params),
            output_index: 0,
            history: history.to_vec(),
            n_prompt,
        };
        sample(&logits, &spec, 0, extra).unwrap().token
    };
    let default = SamplingParams::default;
    // Repetition counts the prompt: 2.0 / 1.1 < 1.9.
    assert_eq!(
        with(
            SamplingParams {
                repetition_penalty: 1.1,
                ..default()
            },
            &[0],
            1,
            &[]
        ),
        1
    );
    // Presence does not count the prompt, but does count output and this call's own tokens.
    let presence = || SamplingParams {
        presence_penalty: 0.2,
        ..default()
    };
    assert_eq!(with(presence(), &[0], 1, &[]), 0);
    assert_eq!(with(presence(), &[3, 0], 1, &[]), 1);
    assert_eq!(with(presence(), &[3], 1, &[0]), 1);
    // Frequency is per occurrence: 2.0 - 2 * 0.06 < 1.9, and once is not enough.
    let frequency = || SamplingParams {
        frequency_penalty: 0.06,
        ..default()
    };
    assert_eq!(with(frequency(), &[0], 0, &[]), 0);
    assert_eq!(with(frequency(), &[0], 0, &[0]), 1);
    let bias = |token, bias| SamplingParams {
        logit_bias: vec![(token, bias)],
        ..default()
    };
    assert_eq!(with(bias(3, 100.0), &[], 0, &[]), 3);
    assert_eq!(with(bias(0, -100.0), &[], 0, &[]), 1);
    assert_eq!(with(bias(0, f32::NEG_INFINITY), &[], 0, &[]), 1);
    // History ids outside the vocabulary (a client's prompt) are ignored.
    assert_eq!(with(presence(), &[9, 9], 1, &[]), 0);
}

#[test]
fn penalties_have_their_known_values() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        logit_bias: vec![(2, 1.0)],
        ..SamplingParams::default()
    };
    let spec = SampleSpec {
        params: Arc::new(params),
        output_index: 2,
        history: vec![0, 1, 2, 2],
        n_prompt: 2,
    };
    // 0: 4 / 2. 1: -2 * 2. 2: (3 + 1) / 2 - 0.5 - 2 * 0.25. 3: 1 / 2 - 0.5 - 0.25. 4: untouched.
    let adjusted = adjust(&[4.0, -2.0, 3.0, 1.0, 7.0], &spec, 0, &[3]).unwrap();
    assert_eq!(*adjusted, [2.0, -4.0, 1.0, -0.25, 7.0]);
}

#[test]
fn logprobs_are_of_the_raw_distribution() {
    let params = SamplingParams {
        n_logprobs: Some(3),
        temperature: 0.0,
        logit_bias: vec![(5, 50.0)],
        ..SamplingParams::default()
    };
    let sampled = sample(&LOGITS, &spec(params), 0, &[]).unwrap();
    let p = softmax(&LOGITS, 1.0, &[0, 1, 2, 3, 4, 5]);
    assert_eq!(sampled.token, 5);
    assert!((f64::from(sampled.logprob.unwrap()) - p[5].ln()).abs() < 1e-5);
    let top: Vec<u32> = sampled
        .top_logprobs
        .iter()
        .map(|(token, _)| *token)
        .collect();
    assert_eq!(top, [1, 3, 0]);
    for (token, logprob) in sampled.top_logprobs {
        assert!((f64::from(logprob) - p[token as usize].ln()).abs() < 1e-5);
    }
    // With zero requested, only the chosen token's; with more than exist, all of them.
    let sampled = |n| {
        let params = SamplingParams {
            n_logprobs: Some(n),
            ..SamplingParams::default()
        };
        sample(&LOGITS, &spec(params), 0, &[]).unwrap()
    };
    assert!(sampled(0).logprob.is_some() && sampled(0).top_logprobs.is_empty());
    assert_eq!(sampled(100).top_logprobs.len(), 6);
    assert_eq!(sample(&LOGITS, &spec(hot()), 0, &[]).unwrap().logprob, None);
}

#[test]
fn broken_logits_are_errors() {
    for params in [SamplingParams::default(), hot()] {
        let run = |logits: &[f32]| sample(logits, &spec(params.clone()), 0, &[]).unwrap_err();
        assert_eq!(run(&[]), SamplerError::Empty);
        let mut long = vec![0.0; 1000];
        long[700] = f32::NAN;
        assert!(matches!(
            run(&long),
            SamplerError::NotFinite { token: 700, .. }
        ));
        long[700] = f32::INFINITY;
        assert!(matches!(
            run(&long),
            SamplerError::NotFinite { token: 700, .. }
        ));
        assert_eq!(run(&[f32::NEG_INFINITY; 3]), SamplerError::AllMasked);
    }
    let masked = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY];
    assert_eq!(counts(&masked, &hot(), 100)[1], 100.0);
    let extreme = [f32::MAX, f32::MIN, 0.0];
    assert_eq!(counts(&extreme, &hot(), 100)[0], 100.0);
}

#[test]
fn bad_parameters_are_named() {
    let default = SamplingParams::default;
    for (params, name) in [
        (
            SamplingParams {
                temperature: -1.0,
                ..default()
            },
            "temperature",
        ),
        (
            SamplingParams {
                temperature: f32::NAN,
                ..default()
            },
            "temperature",
        ),
        (
            SamplingParams {
                top_p: -0.1,
                ..default()
            },
            "top_p",
        ),
        (
            SamplingParams {
                min_p: 1.5,
                ..default()
            },
            "min_p",
        ),
        (
            SamplingParams {
                repetition_penalty: 0.0,
                ..default()
            },
            "repetition_penalty",
        ),
        (
            SamplingParams {
                presence_penalty: f32::NAN,
                ..default()
            },
            "presence_penalty",
        ),
        (
            SamplingParams {
                frequency_penalty: f32::INFINITY,
                ..default()
            },
            "frequency_penalty",
        ),
        (
            SamplingParams {
                logit_bias: vec![(0, f32::NAN)],
                ..default()
            },
            "logit_bias",
        ),
    ] {
        let error = sample(&LOGITS, &spec(params), 0, &[]).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    let params = SamplingParams {
        logit_bias: vec![(6, 1.0)],
        ..default()
    };
    let error = sample(&LOGITS, &spec(params), 0, &[]).unwrap_err();
    assert_eq!(
        error,
        SamplerError::BiasToken {
            token: 6,
            n_vocab: 6
        }
    );
}

#[test]
fn a_step_inside_a_call_draws_as_the_same_output_index_alone() {
    let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
    let params = SamplingParams { seed: 11, ..hot() };
    for index in 0..100 {
        let alone = token(&logits, &at(&params, index));
        for step in 0..=index.min(3) {
            let in_call = sample(&logits, &at(&params, index - step), step, &[])
                .unwrap()
                .token;
            assert_eq!(in_call, alone);
        }
    }
}

#[test]
fn known_draws() {
    // Must never change: a record made with a seed must be reproducible.
    let params = SamplingParams { seed: 42, ..hot() };
    let logits = [0.0f32; 1000];
    let drawn: Vec<u32> = (0..4).map(|i| token(&logits, &at(&params, i))).collect();
    let expected: Vec<u32> = (0..4)
        .map(|i| (philox::uniform(42, i) * 1000.0) as u32)
        .collect();
    assert_eq!(drawn, expected);
}

proptest! {
    #[test]
    fn neutral_filters_are_no_ops(
        logits in proptest::collection::vec(-5.0f32..5.0, 2..80),
        seed in any::<u64>(),
        index in 0usize..1000,
    ) {
        let plain = SamplingParams { seed, ..hot() };
        let expected = token(&logits, &at(&plain, index));
        // Set, but without effect: all tokens pass the filters.
        for params in [
            SamplingParams { top_k: logits.len(), ..plain.clone() },
            SamplingParams { top_k: usize::MAX, ..plain.clone() },
            SamplingParams { min_p: 1e-12, ..plain.clone() },
            SamplingParams { logit_bias: vec![(0, 0.0)], ..plain.clone() },
            SamplingParams { n_logprobs: Some(5), ..plain.clone() },
        ] {
            prop_assert_eq!(token(&logits, &at(&params, index)), expected);
        }
    }

    #[test]
    fn a_filtered_draw_is_always_inside_the_filter(
        logits in proptest::collection::vec(-5.0f32..5.0, 2..300),
        k in 1usize..20,
        index in 0usize..1000,
    ) {
        let drawn = token(&logits, &at(&SamplingParams { top_k: k, ..hot() }, index));
        let n_better = logits.iter().enumerate().filter(|(i, l)| {
            **l > logits[drawn as usize] || (**l == logits[drawn as usize] && *i < drawn as usize)
        }).count();
        prop_assert!(n_better < k);
    }

    #[test]
    fn the_plain_sampler_makes_the_same_choices(
        logits in proptest::collection::vec(-5.0f32..5.0, 2..300),
        temperature in prop_oneof![Just(0.0f32), 0.2f32..2.0],
        top_k in 0usize..40,
        top_p in prop_oneof![Just(1.0f32), 0.05f32..0.999],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.5],
        penalty in prop_oneof![Just(0.0f32), -1.0f32..1.0],
        index in 0usize..1000,
    ) {
        let params = SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            presence_penalty: penalty,
            seed: 5,
            n_logprobs: Some(3),
            ..SamplingParams::default()
        };
        let spec = SampleSpec { history: vec![0, 1, 1], n_prompt: 1, ..at(&params, index) };
        let found = plain::sample(&logits, &spec, 2, &[1]);
        prop_assert_eq!(found, sample(&logits, &spec, 2, &[1]));
    }
}

#[test]
fn the_plain_sampler_ranks_ties_and_refuses_as_the_other_does() {
    let params = SamplingParams { top_k: 2, ..hot() };
    let tied = [1.0, 2.0, 2.0, 2.0];
    for index in 0..50 {
        let spec = at(&params, index);
        assert_eq!(
            plain::sample(&tied, &spec, 0, &[]),
            sample(&tied, &spec, 0, &[])
        );
    }
    for logits in [&[][..], &[f32::NEG_INFINITY; 3], &[0.0, f32::NAN]] {
        let found = plain::sample(logits, &spec(hot()), 0, &[]).map(|_| ());
        let expected = sample(logits, &spec(hot()), 0, &[]).map(|_| ());
        // NaN is not equal to itself.
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        assert!(found.is_err());
    }
}
