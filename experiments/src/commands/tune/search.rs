//! Successive halving: many candidates with few server starts, then few with many. Pure; measuring
//! is a trait, so that the tests bring figures and a clock of their own.
//!
//! A rung gives every candidate that is left the same number of starts, interleaved by rounds, and
//! keeps the best of them (`keep_one_in`); the next rung multiplies the starts. Candidate 0, the
//! incumbent, is measured in every rung and never dropped: the winner has to beat it with as many
//! starts as itself. No start begins that could end after the budget.

use std::time::Duration;

use anyhow::Result;

#[derive(Debug, Clone, Copy)]
pub struct SearchConfig {
    pub keep_one_in: usize,
    /// Starts of a candidate in the last rung.
    pub most_starts: usize,
    pub budget: Duration,
}

/// One server start.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    pub run_id: String,
    /// Higher is better; `None`: it failed.
    pub score: Option<f64>,
    pub interrupted: bool,
}

pub trait Measure {
    /// Starts a candidate once. 0 is the incumbent, 1 the first challenger.
    fn measure(&mut self, candidate: usize, rung: usize) -> Result<Start>;
    /// Asked once, after the incumbent's first start: how many candidates there are beside it.
    fn n_challengers(&mut self) -> Result<usize>;
    /// Since the search began.
    fn elapsed(&self) -> Duration;
}

/// What one rung saw.
#[derive(Debug, Clone, PartialEq)]
pub struct Rung {
    /// Starts that every score is the median of, those of earlier rungs included.
    pub n_starts: usize,
    /// Best first.
    pub standings: Vec<Standing>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    pub candidate: usize,
    /// Median over its starts; `None`: a start failed, or time ran out before the first.
    pub score: Option<f64>,
    pub starts: Vec<Start>,
    pub kept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Finished,
    OutOfTime,
    Interrupted,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub rungs: Vec<Rung>,
    /// Best of the last rung; `None` where nothing was measured.
    pub winner: Option<usize>,
    pub stop: Stop,
    pub n_challengers: usize,
    /// How many of them the budget pays for.
    pub n_measured: usize,
}

pub(crate) fn search(config: SearchConfig, measure: &mut impl Measure) -> Result<Found> {
    let mut starts: Vec<Vec<Start>> = vec![Vec::new()];
    let mut alive: Vec<usize> = vec![0];
    let mut rungs = Vec::new();
    let mut longest = Duration::ZERO;
    let mut stop = None;
    let (mut n_challengers, mut n_measured) = (0, 0);
    for rung in 0.. {
        let n_starts = config
            .keep_one_in
            .saturating_pow(rung as u32)
            .min(config.most_starts);
        'rung: for round in 0..n_starts {
            // `alive` grows after the incumbent's first start.
            let mut next = 0;
            while let Some(&candidate) = alive.get(next) {
                next += 1;
                if starts[candidate].len() > round {
                    continue;
                }
                if measure.elapsed() + longest > config.budget {
                    stop = Some(Stop::OutOfTime);
                    break 'rung;
                }
                let began = measure.elapsed();
                let start = measure.measure(candidate, rung)?;
                longest = longest.max(measure.elapsed().saturating_sub(began));
                let interrupted = start.interrupted;
                starts[candidate].push(start);
                if interrupted {
                    stop = Some(Stop::Interrupted);
                    break 'rung;
                }
                if starts.len() == 1 {
                    n_challengers = measure.n_challengers()?;
                    n_measured = affordable(
                        n_challengers,
                        config,
                        longest,
                        config.budget.saturating_sub(measure.elapsed()),
                    );
                    alive.extend(1..=n_measured);
                    starts.resize(n_measured + 1, Vec::new());
                }
            }
        }
        let (n_common, standings, survivors) = rank(&alive, &starts, n_starts, config.keep_one_in);
        rungs.push(Rung {
            n_starts: n_common,
            standings,
        });
        alive = survivors;
        if stop.is_some() || n_starts == config.most_starts || alive == [0] {
            break;
        }
    }
    let last = rungs.last().map(|rung| rung.standings.as_slice());
    let winner = last
        .and_then(|standings| standings.first())
        .filter(|best| best.score.is_some())
        .map(|best| best.candidate);
    Ok(Found {
        rungs,
        winner,
        stop: stop.unwrap_or(Stop::Finished),
        n_challengers,
        n_measured,
    })
}

/// Over how many starts candidates are compared, equally many each: those that all of them had. Then
/// the standings, best first, and who goes on (in the order in which they were drawn).
fn rank(
    alive: &[usize],
    starts: &[Vec<Start>],
    n_starts: usize,
    keep_one_in: usize,
) -> (usize, Vec<Standing>, Vec<usize>) {
    let n_common = alive
        .iter()
        .map(|&candidate| starts[candidate].len())
        .filter(|&n| n > 0)
        .min()
        .unwrap_or(0)
        .min(n_starts);
    let mut standings: Vec<Standing> = alive
        .iter()
        .map(|&candidate| Standing {
            candidate,
            score: score(&starts[candidate], n_common),
            starts: starts[candidate].clone(),
            kept: false,
        })
        .collect();
    // Unmeasured and failed ones last; among equals the one drawn first, the incumbent before all.
    standings.sort_by(|a, b| match (a.score, b.score) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        (a, b) => b.is_some().cmp(&a.is_some()),
    });
    let n_kept = alive.len().saturating_sub(1).div_ceil(keep_one_in).max(1);
    let mut n_left = n_kept;
    for standing in &mut standings {
        let incumbent = standing.candidate == 0;
        standing.kept = incumbent || (standing.score.is_some() && n_left > 0);
        n_left -= usize::from(standing.kept && !incumbent);
    }
    let mut survivors: Vec<usize> = standings
        .iter()
        .filter(|standing| standing.kept)
        .map(|standing| standing.candidate)
        .collect();
    survivors.sort_unstable();
    (n_common, standings, survivors)
}

/// Median over the first `n` starts; `None` if any of them failed.
fn score(starts: &[Start], n: usize) -> Option<f64> {
    let mut scores: Vec<f64> = starts
        .get(..n)?
        .iter()
        .map(|s| s.score)
        .collect::<Option<_>>()?;
    scores.sort_by(f64::total_cmp);
    let middle = scores.len() / 2;
    match scores.len() {
        0 => None,
        n if n % 2 == 1 => Some(scores[middle]),
        _ => Some(f64::midpoint(scores[middle - 1], scores[middle])),
    }
}

/// The most challengers whose whole search fits into the time that is left; at least one.
fn affordable(n: usize, config: SearchConfig, start: Duration, left: Duration) -> usize {
    let fits = |n: &usize| {
        let n_starts = u32::try_from(n_starts_of_search(*n, config) - 1).unwrap_or(u32::MAX);
        start.saturating_mul(n_starts) <= left
    };
    (2..=n).rev().find(fits).unwrap_or(n.min(1))
}

/// Starts of a whole search with `n` challengers and the incumbent.
fn n_starts_of_search(n: usize, config: SearchConfig) -> usize {
    let (mut n_alive, mut n_before, mut total) = (n, 0, 0);
    for rung in 0.. {
        let n_starts = config
            .keep_one_in
            .saturating_pow(rung)
            .min(config.most_starts);
        total += (n_alive + 1) * (n_starts - n_before);
        n_before = n_starts;
        n_alive = n_alive.div_ceil(config.keep_one_in).max(1);
        if n_starts == config.most_starts {
            break;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Candidates with a true value each; a start takes ten seconds.
    struct Fake {
        values: Vec<f64>,
        /// Candidates that do not start.
        broken: Vec<usize>,
        interrupted_after: Option<usize>,
        calls: Vec<(usize, usize)>,
    }

    const START: Duration = Duration::from_secs(10);

    impl Fake {
        fn of(values: &[f64]) -> Self {
            Self {
                values: values.to_vec(),
                broken: Vec::new(),
                interrupted_after: None,
                calls: Vec::new(),
            }
        }
    }

    impl Measure for Fake {
        fn measure(&mut self, candidate: usize, rung: usize) -> Result<Start> {
            self.calls.push((candidate, rung));
            // A fixed wobble of up to ±2, so that single starts mislead and medians do not.
            let wobble = (self.calls.len() * 7 % 5) as f64 - 2.0;
            let works = !self.broken.contains(&candidate);
            Ok(Start {
                run_id: format!("run-{}", self.calls.len()),
                score: works.then_some(self.values[candidate] + wobble),
                interrupted: self.interrupted_after == Some(self.calls.len()),
            })
        }

        fn n_challengers(&mut self) -> Result<usize> {
            assert_eq!(self.calls, [(0, 0)]);
            Ok(self.values.len() - 1)
        }

        fn elapsed(&self) -> Duration {
            START * self.calls.len() as u32
        }
    }

    fn config(budget_s: u64) -> SearchConfig {
        SearchConfig {
            keep_one_in: 3,
            most_starts: 6,
            budget: Duration::from_secs(budget_s),
        }
    }

    fn kept(rung: &Rung) -> Vec<usize> {
        let mut kept: Vec<usize> = rung
            .standings
            .iter()
            .filter(|s| s.kept)
            .map(|s| s.candidate)
            .collect();
        kept.sort_unstable();
        kept
    }

    const VALUES: [f64; 10] = [
        100.0, 90.0, 80.0, 120.0, 70.0, 110.0, 60.0, 50.0, 105.0, 40.0,
    ];

    #[test]
    fn the_best_candidate_wins_and_the_incumbent_stays_to_the_end() {
        let mut fake = Fake::of(&VALUES);
        let found = search(config(100_000), &mut fake).expect("found");
        assert_eq!((found.winner, found.stop), (Some(3), Stop::Finished));
        let starts: Vec<usize> = found.rungs.iter().map(|rung| rung.n_starts).collect();
        assert_eq!(starts, [1, 3, 6]);
        assert_eq!(kept(&found.rungs[0]), [0, 3, 5, 8]);
        assert_eq!(kept(&found.rungs[1]), [0, 3]);
        let last = &found.rungs[2].standings;
        let starts: Vec<(usize, usize)> =
            last.iter().map(|s| (s.candidate, s.starts.len())).collect();
        assert_eq!(starts, [(3, 6), (0, 6)]);
        // 10 candidates once, 4 of them twice more, 2 of them three times more.
        assert_eq!(fake.calls.len(), 10 + 8 + 6);
        assert_eq!(n_starts_of_search(9, config(0)), fake.calls.len());
    }

    #[test]
    fn the_same_figures_give_the_same_search() {
        let run = || search(config(500), &mut Fake::of(&VALUES)).expect("found");
        assert_eq!(run(), run());
    }

    #[test]
    fn rounds_are_interleaved() {
        let mut fake = Fake::of(&[1.0, 2.0, 3.0, 4.0]);
        search(config(100_000), &mut fake).expect("found");
        let order: Vec<usize> = fake.calls.iter().map(|(candidate, _)| *candidate).collect();
        assert_eq!(order[..8], [0, 1, 2, 3, 0, 3, 0, 3]);
    }

    #[test]
    fn the_budget_decides_how_many_are_tried_and_is_never_exceeded() {
        let mut previous = 0;
        for budget_s in (20..400).step_by(10) {
            let mut fake = Fake::of(&VALUES);
            let found = search(config(budget_s), &mut fake).expect("found");
            assert!(
                fake.elapsed() <= Duration::from_secs(budget_s),
                "{budget_s}"
            );
            assert!(
                found.n_measured >= previous,
                "{budget_s}: fewer than with less time"
            );
            previous = found.n_measured;
            assert_eq!(found.n_challengers, 9);
            if found.n_measured >= 2 {
                assert_eq!(found.stop, Stop::Finished, "{budget_s}");
            }
        }
        assert_eq!(previous, 9);
    }

    #[test]
    fn out_of_time_still_names_the_best_of_equally_many_starts() {
        // Room for the incumbent, one challenger, and one start more.
        let mut fake = Fake::of(&[10.0, 50.0]);
        let found = search(config(30), &mut fake).expect("found");
        assert_eq!((found.winner, found.stop), (Some(1), Stop::OutOfTime));
        assert_eq!(fake.calls.len(), 3);
        let compared: Vec<usize> = found.rungs.iter().map(|rung| rung.n_starts).collect();
        assert_eq!(compared, [1, 1]);
        let found = search(config(5), &mut Fake::of(&[10.0, 50.0])).expect("found");
        assert_eq!((found.winner, found.stop), (Some(0), Stop::OutOfTime));
    }

    #[test]
    fn what_does_not_start_never_wins() {
        let mut fake = Fake::of(&VALUES);
        fake.broken = vec![3];
        let found = search(config(100_000), &mut fake).expect("found");
        assert_eq!(found.winner, Some(5));
        fake = Fake::of(&VALUES);
        fake.broken = (0..10).collect();
        let found = search(config(100_000), &mut fake).expect("found");
        assert_eq!((found.winner, found.rungs.len()), (None, 1));
    }

    #[test]
    fn an_interruption_ends_the_search_at_once() {
        let mut fake = Fake::of(&VALUES);
        fake.interrupted_after = Some(4);
        let found = search(config(100_000), &mut fake).expect("found");
        assert_eq!((found.stop, fake.calls.len()), (Stop::Interrupted, 4));
    }

    #[test]
    fn without_a_challenger_the_incumbent_wins_after_one_start() {
        let mut fake = Fake::of(&[1.0]);
        let found = search(config(100_000), &mut fake).expect("found");
        assert_eq!((found.winner, fake.calls.len()), (Some(0), 1));
    }
}
