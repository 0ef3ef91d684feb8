use super::*;

fn samples(better: Better, before: &[f64], after: &[f64]) -> MetricSamples {
    MetricSamples {
        metric: "m".into(),
        better,
        pair: "a, b".into(),
        before: before.to_vec(),
        after: after.to_vec(),
        rounds: Vec::new(),
    }
}

fn by_round(better: Better, rounds: &[(f64, f64)]) -> MetricSamples {
    let (before, after): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
    MetricSamples {
        rounds: rounds.to_vec(),
        ..samples(better, &before, &after)
    }
}

fn judge(better: Better, before: &[f64], after: &[f64]) -> Comparison {
    compare_family(&[samples(better, before, after)], VerdictConfig::default()).remove(0)
}

#[test]
fn clear_shifts_get_their_word_and_sign() {
    let slow = [100.0, 101.0, 99.0, 100.5, 99.5];
    let fast = [90.0, 90.9, 89.1, 90.4, 89.6];
    let got = judge(Better::Lower, &slow, &fast);
    assert_eq!(got.verdict, Verdict::Faster);
    assert!((got.improvement_percent.unwrap() - 10.0).abs() < 0.3);
    let (low, high) = got.interval_percent.unwrap();
    assert!(low < 10.0 && 10.0 < high && low > 8.0);
    assert_eq!(judge(Better::Lower, &fast, &slow).verdict, Verdict::Slower);
    assert_eq!(judge(Better::Higher, &slow, &fast).verdict, Verdict::Slower);
}

#[test]
fn tight_overlap_is_same_and_wide_overlap_is_undecided() {
    let a = [100.0, 100.2, 99.8, 100.1, 99.9, 100.05];
    let b = [100.1, 100.15, 99.85, 100.0, 99.95, 100.12];
    assert_eq!(judge(Better::Lower, &a, &b).verdict, Verdict::Same);
    let wide_a = [80.0, 120.0, 95.0, 105.0, 100.0];
    let wide_b = [85.0, 118.0, 99.0, 103.0, 90.0];
    let got = judge(Better::Lower, &wide_a, &wide_b);
    let (low, high) = got.interval_percent.unwrap();
    // If there is a difference, it is no larger than the interval's farther end.
    let below_percent = low.abs().max(high.abs());
    assert!(below_percent > 20.0);
    assert_eq!(
        got.verdict,
        Verdict::Undecided(Reason::NotSeen { below_percent })
    );
}

/// The widest difference of two starts lies outside of the margin, most of them inside.
#[test]
fn same_takes_more_evidence_in_a_large_family() {
    let a = [100.0, 100.1, 100.05, 99.95, 99.6];
    let b = [100.1, 100.15, 99.9, 100.0, 100.8];
    let one = samples(Better::Lower, &a, &b);
    let judged = |n: usize| {
        let family = vec![one.clone(); n];
        compare_family(&family, VerdictConfig::default()).remove(0)
    };
    assert_eq!(judged(1).verdict, Verdict::Same);
    let of_six = judged(6);
    assert!(matches!(
        of_six.verdict,
        Verdict::Undecided(Reason::NotSeen { .. })
    ));
    assert_eq!(of_six.interval_percent, judged(1).interval_percent);
}

#[test]
fn few_runs_stay_undecided_however_clear_they_look() {
    for n in 1..=3 {
        let got = judge(
            Better::Lower,
            &[100.0, 101.0, 102.0][..n],
            &[10.0, 11.0, 12.0][..n],
        );
        assert_eq!(
            got.verdict,
            Verdict::Undecided(Reason::TooFewRuns {
                n_needed: 4,
                n_more: 4 - n
            }),
            "n = {n}"
        );
    }
    assert_eq!(
        judge(Better::Lower, &[], &[1.0]).verdict,
        Verdict::Undecided(Reason::NoData)
    );
    assert_eq!(
        judge(Better::Lower, &[0.0], &[1.0]).verdict,
        Verdict::Undecided(Reason::NoData)
    );
}

/// Rounds that differ by half, arms by 3 %: hidden from a comparison of all with all, seen by
/// one round by round.
#[test]
fn rounds_uncover_what_the_spread_between_them_hides() {
    let rounds: Vec<(f64, f64)> = (0..8)
        .map(|r| {
            let base = 100.0 * (1.0 + 0.1 * f64::from(r * 5 % 8));
            let jitter = 1.0 + 0.001 * f64::from(r * 3 % 8);
            (base, 0.97 * base * jitter)
        })
        .collect();
    let paired = by_round(Better::Lower, &rounds);
    let unpaired = MetricSamples {
        rounds: Vec::new(),
        ..paired.clone()
    };
    let config = VerdictConfig::default();
    let got = compare_family(&[paired], config).remove(0);
    assert_eq!(got.method, Method::ByRound { n_rounds: 8 });
    assert_eq!(got.verdict, Verdict::Faster);
    assert!((got.improvement_percent.unwrap() - 2.66).abs() < 0.1);
    let (low, high) = got.interval_percent.unwrap();
    assert!(low > 2.0 && high <= 3.0, "{low} {high}");
    let got = compare_family(&[unpaired], config).remove(0);
    assert!(matches!(
        got.verdict,
        Verdict::Undecided(Reason::NotSeen { .. })
    ));
}

#[test]
fn rounds_too_few_for_any_verdict_are_compared_all_with_all() {
    let rounds = |n: i32| -> Vec<(f64, f64)> {
        (0..n)
            .map(|r| (100.0 + f64::from(r), 90.0 + f64::from(r)))
            .collect()
    };
    let judged = |n: i32| {
        let family = vec![by_round(Better::Lower, &rounds(n)); 3];
        let got = compare_family(&family, VerdictConfig::default()).remove(0);
        (got.method, got.verdict)
    };
    // 2 of 32 dealings of signs are more than 5 %, 2 of 64 are not, for however many metrics.
    assert_eq!(judged(5), (Method::Unpaired, Verdict::Faster));
    assert_eq!(
        judged(6),
        (Method::ByRound { n_rounds: 6 }, Verdict::Faster)
    );
}

/// Eight rounds of one pair beside two arms that were started once.
fn beside_single_starts(n_metrics: usize) -> Vec<MetricSamples> {
    let rounds: Vec<(f64, f64)> = (0..8)
        .map(|r| (100.0 + f64::from(r), 98.0 + 0.9 * f64::from(r)))
        .collect();
    let one = by_round(Better::Lower, &rounds);
    let mut family = vec![one.clone(); n_metrics];
    for pair in ["a, c", "a, d"] {
        family.extend(vec![
            MetricSamples {
                pair: pair.into(),
                after: vec![50.0],
                rounds: vec![(100.0, 50.0)],
                ..one.clone()
            };
            n_metrics
        ]);
    }
    family
}

#[test]
fn what_cannot_be_decided_takes_nothing_from_what_can() {
    for n_metrics in [1, 15] {
        let got = compare_family(&beside_single_starts(n_metrics), VerdictConfig::default());
        for judged in &got[..n_metrics] {
            assert_eq!(judged.verdict, Verdict::Faster);
            assert_eq!(judged.p_adjusted, Some(2.0 / 256.0));
        }
        for judged in &got[n_metrics..] {
            assert_eq!((judged.p, judged.p_adjusted), (None, None));
            // Three pairs take seven rounds (3 × 2 / 128 is below 5 %, 3 × 2 / 64 is not), or five
            // starts each, all with all: 3 × 2 / 252.
            let reason = Reason::TooFewRuns {
                n_needed: 5,
                n_more: 4,
            };
            assert_eq!(judged.verdict, Verdict::Undecided(reason));
        }
    }
}

#[test]
fn what_points_one_way_and_does_not_pass_says_how_many_starts_it_takes() {
    // Seven of eight rounds are better by 2 %, one is worse by 1 %.
    let mut rounds: Vec<(f64, f64)> = (0..8)
        .map(|r| (100.0, 98.0 + 0.02 * f64::from(r)))
        .collect();
    rounds[3].1 = 101.0;
    let one = by_round(Better::Lower, &rounds);
    let alone = compare_family(std::slice::from_ref(&one), VerdictConfig::default()).remove(0);
    assert_eq!(alone.verdict, Verdict::Faster);
    let family: Vec<MetricSamples> = ["b", "c", "d", "e"]
        .map(|pair| MetricSamples {
            pair: pair.into(),
            ..one.clone()
        })
        .to_vec();
    let got = compare_family(&family, VerdictConfig::default()).remove(0);
    // The outlier is small: 2 of 128 dealings are as far out. Its z is 2.42; corrected for four
    // pairs it takes 2.50: 8 × (2.50 / 2.42)², rounded up.
    assert_eq!(got.p, Some(2.0 / 128.0));
    let reason = Reason::TooFewRuns {
        n_needed: 9,
        n_more: 1,
    };
    assert_eq!(got.verdict, Verdict::Undecided(reason));
}

/// Campaigns of three equal arms and their baseline, fifteen figures of each start that have
/// half of their noise in common, eight rounds that differ more than arms do.
#[test]
fn equal_arms_are_rarely_told_apart_in_any_of_fifteen_figures() {
    const N_CAMPAIGNS: usize = 100;
    let mut rng = crate::stats::rng::SplitMix64::new(5);
    let mut noise = move || rng.below(2001) as f64 / 1e5 - 0.01;
    let mut n_false = 0;
    for _ in 0..N_CAMPAIGNS {
        let mut values = vec![vec![vec![0.0; 15]; 4]; 8];
        for round in &mut values {
            let of_round = 3.0 * noise();
            for arm in round.iter_mut() {
                let of_start = noise();
                for value in arm.iter_mut() {
                    *value = 100.0 * (1.0 + of_round + of_start + noise());
                }
            }
        }
        let family: Vec<MetricSamples> = (1..4)
            .flat_map(|arm| {
                let values = &values;
                (0..15).map(move |metric| {
                    let rounds: Vec<(f64, f64)> = values
                        .iter()
                        .map(|round| (round[0][metric], round[arm][metric]))
                        .collect();
                    MetricSamples {
                        pair: arm.to_string(),
                        ..by_round(Better::Lower, &rounds)
                    }
                })
            })
            .collect();
        let answers = compare_family(&family, VerdictConfig::default());
        let told_apart = |c: &Comparison| matches!(c.verdict, Verdict::Faster | Verdict::Slower);
        n_false += usize::from(answers.iter().any(told_apart));
    }
    // 5 % of 100 are 5; more than 11 would happen to one correct program in two hundred.
    assert!(n_false <= 11, "{n_false}");
}

/// Share of simulated campaigns (five starts an arm, three metrics of the same runs, noise of
/// 0.5 % between starts) in which any metric gets `word`, with a true change of `effect`.
fn share_with(word: Verdict, effect: f64, n_campaigns: usize) -> f64 {
    let mut rng = crate::stats::rng::SplitMix64::new(1);
    // Sum of twelve uniforms: near enough to normal, variance 1.
    let mut normal = move || {
        (0..12)
            .map(|_| rng.below(1 << 30) as f64 / f64::from(1 << 30))
            .sum::<f64>()
            - 6.0
    };
    let mut hits = 0;
    for _ in 0..n_campaigns {
        let mut arm = |factor: f64| -> Vec<f64> {
            (0..5)
                .map(|_| 1000.0 * factor * (1.0 + 0.005 * normal()))
                .collect()
        };
        let family: Vec<MetricSamples> = (0..3)
            .map(|_| samples(Better::Lower, &arm(1.0), &arm(1.0 - effect)))
            .collect();
        let answers = compare_family(&family, VerdictConfig::default());
        hits += usize::from(answers.iter().any(|c| c.verdict == word));
    }
    hits as f64 / n_campaigns as f64
}

#[test]
fn no_difference_is_rarely_called_one_and_three_per_cent_are_found() {
    let false_verdicts =
        share_with(Verdict::Faster, 0.0, 1000) + share_with(Verdict::Slower, 0.0, 1000);
    assert!(false_verdicts <= 0.05, "{false_verdicts}");
    let found = share_with(Verdict::Faster, 0.03, 1000);
    assert!(found >= 0.8, "{found}");
    assert!(share_with(Verdict::Same, 0.03, 1000) <= 0.05);
}

#[test]
fn more_arms_ask_for_more_evidence_and_more_metrics_do_not() {
    assert_eq!(starts_needed(1, 0.05), 4);
    assert_eq!(starts_needed(3, 0.05), 5);
    assert_eq!(rounds_needed(1, 0.05), 6);
    assert_eq!(rounds_needed(3, 0.05), 7);
    let (a, b) = (&[10.0, 11.0, 12.0, 13.0][..], &[20.0, 21.0, 22.0, 23.0][..]);
    let three = vec![samples(Better::Lower, a, b); 3];
    let got = compare_family(&three, VerdictConfig::default());
    assert!(got.iter().all(|c| c.verdict == Verdict::Slower));
    let of_three_arms: Vec<MetricSamples> = ["b", "c", "d"]
        .map(|pair| MetricSamples {
            pair: pair.into(),
            ..samples(Better::Lower, a, b)
        })
        .to_vec();
    let reason = Reason::TooFewRuns {
        n_needed: 5,
        n_more: 1,
    };
    let got = compare_family(&of_three_arms, VerdictConfig::default());
    assert!(got.iter().all(|c| c.verdict == Verdict::Undecided(reason)));
}
