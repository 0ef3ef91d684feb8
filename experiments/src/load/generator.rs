//! A case's requests, sent, and one row for each answer.
//!
//! Closed loop (N users, each sending when its last answer is complete) and open loop
//! (Poisson arrivals, sent whatever became of the earlier ones) are different experiments;
//! every row says which one it belongs to. A closed loop may have to last for some time: it goes on
//! with further prompts of the same draw. Users take their prompts from one draw, or have conversations
//! of their own, in which a turn waits for the answer to the one before. Times are seconds on the run's monotonic clock.
//! Deliberately absent: aggregation (see `summary`), retries (a failed request is a result).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rand::Rng;
use records::rows::RequestRow;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{JoinError, JoinSet};

use crate::load::exchange::{Answer, RunClock, Target};
use crate::load::prompts::{Content, Prompt, PromptSet, case_rng};
use crate::spec::workload::{Arrival, Case};

/// A request before it is sent.
#[derive(Debug, Clone)]
struct Planned {
    index: u32,
    prompt_id: String,
    prompt: Content,
    output_tokens: u32,
    /// After the case's begin; none where the arrival decides.
    at_s: Option<f64>,
    /// Sent to keep the server as busy as it was, for the sake of others.
    is_extra: bool,
}

impl Planned {
    fn of(index: u32, prompt: Prompt, case: &Case) -> Self {
        let of_trace = prompt.of_trace;
        let is_asked = |asked: &u32| *asked > 0;
        let asked = Some(case.output_tokens).filter(is_asked);
        Self {
            index,
            prompt_id: prompt.id,
            prompt: prompt.content,
            output_tokens: asked.or(of_trace.map(|t| t.output_tokens)).unwrap_or(1),
            at_s: of_trace.map(|t| t.at_s),
            is_extra: false,
        }
    }
}

/// Sends all requests of a case; every row goes to `rows` as soon as its response has ended.
///
/// A case that is done before its company goes on, its further rows flagged as warm-up, until all
/// are or one of them fails. So every measured request had all the others beside it. Dropping the
/// future cancels what is in flight; a panic in it is an error.
///
/// # Errors
///
/// If the task of a user or a request panicked. A request that failed is a row with its error.
pub async fn run_case(
    target: &Target,
    case: &Case,
    prompts: &PromptSet,
    seed: u64,
    clock: RunClock,
    rows: &UnboundedSender<RequestRow>,
    company: &Company,
) -> Result<(), JoinError> {
    let load = Load {
        target: Target {
            model: case.model.clone().unwrap_or_else(|| target.model.clone()),
            ..target.clone()
        },
        case: case.clone(),
        clock,
        rate_per_s: None,
        rows: rows.clone(),
    };
    let draw_name = case.draw_name();
    let planned: VecDeque<Planned> = (0..)
        .zip(prompts.draw(seed, &draw_name, case.n_requests as usize))
        .map(|(index, prompt)| Planned::of(index, prompt, case))
        .collect();
    let again = planned.clone();
    match case.arrival {
        Arrival::ClosedLoop { n_users } => {
            let until_s = case.least_s.map(|seconds| clock.now_s() + seconds);
            let waiting = |name: String, n_asked: u32, first: u32, stride: u32| Waiting {
                until_s,
                n_asked,
                n_drawn: 0,
                planned: VecDeque::new(),
                prompts: prompts.clone(),
                case: case.clone(),
                draw: (seed, name),
                index: (first, stride),
            };
            let queues: Vec<Queue> = if prompts.are_turns() {
                let n_each = case.n_requests.div_ceil(n_users.max(1));
                let of_user = |user: u32| {
                    let name = format!("{draw_name} user {user}");
                    Arc::new(Mutex::new(waiting(name, n_each, user, n_users)))
                };
                (0..n_users).map(of_user).collect()
            } else {
                let shared = Arc::new(Mutex::new(waiting(draw_name, case.n_requests, 0, 1)));
                vec![shared; n_users as usize]
            };
            closed_loop(&load, queues).await?;
        }
        Arrival::OpenLoop { rate_per_s } => {
            let gaps_s = poisson_gaps_s(seed, &case.name, rate_per_s, planned.len());
            let at_s = gaps_s.iter().scan(0.0, |at_s, gap_s| {
                *at_s += gap_s;
                Some(*at_s)
            });
            open_loop(&load, planned.into_iter().zip(at_s), Some(rate_per_s)).await?;
        }
        Arrival::Trace { speed } => {
            let at_s: Vec<f64> = planned
                .iter()
                .map(|planned| planned.at_s.unwrap_or(0.0) / speed)
                .collect();
            // As of Poisson arrivals: requests after the first, over the time until the last.
            let rate_per_s = at_s
                .last()
                .filter(|last_s| **last_s > 0.0)
                .map(|last_s| (at_s.len() - 1) as f64 / last_s);
            open_loop(&load, planned.into_iter().zip(at_s), rate_per_s).await?;
        }
    }
    company.one_is_done();
    keep_company(&load, again, company).await;
    Ok(())
}

/// Cases that run at the same time; each is done once.
#[derive(Debug)]
pub struct Company {
    n_busy: AtomicUsize,
}

impl Company {
    pub fn of(n_cases: usize) -> Self {
        Self {
            n_busy: AtomicUsize::new(n_cases),
        }
    }

    fn one_is_done(&self) {
        self.n_busy.fetch_sub(1, Ordering::AcqRel);
    }

    fn are_all_done(&self) -> bool {
        self.n_busy.load(Ordering::Acquire) == 0
    }
}

/// What the requests of a case have in common.
#[derive(Clone)]
struct Load {
    target: Target,
    case: Case,
    clock: RunClock,
    /// At which requests arrive; none in a closed loop.
    rate_per_s: Option<f64>,
    rows: UnboundedSender<RequestRow>,
}

/// What became of a request.
#[derive(PartialEq)]
enum Asked {
    Answered,
    Failed,
    /// The receiver is gone: the run was cancelled.
    RowDropped,
}

impl Load {
    async fn ask(&self, planned: Planned, user: Option<u32>, scheduled_s: f64) -> Asked {
        let n_tokens = planned.output_tokens;
        let answer = self.target.ask(self.clock, &planned.prompt, n_tokens).await;
        let row = row(self, planned, user, scheduled_s, answer);
        let has_failed = row.error.is_some();
        match self.rows.send(row) {
            Err(_) => Asked::RowDropped,
            Ok(()) if has_failed => Asked::Failed,
            Ok(()) => Asked::Answered,
        }
    }
}

/// The requests of a closed loop that no user has taken yet.
struct Waiting {
    planned: VecDeque<Planned>,
    /// Until then there are always more.
    until_s: Option<f64>,
    /// As many are sent however long they take.
    n_asked: u32,
    n_drawn: usize,
    prompts: PromptSet,
    case: Case,
    draw: (u64, String),
    /// Of the first request in its case, and from each to the next.
    index: (u32, u32),
}

/// All users have the same one, or each its own.
type Queue = Arc<Mutex<Waiting>>;

impl Waiting {
    fn next(&mut self, now_s: f64) -> Option<Planned> {
        let goes_on = self.until_s.is_some_and(|until_s| now_s < until_s);
        if self.planned.is_empty() && (goes_on || self.n_drawn < self.n_asked as usize) {
            // A longer draw begins with the shorter one.
            let n_before = self.n_drawn;
            self.n_drawn = (2 * n_before).max(self.n_asked as usize).max(1);
            let drawn = self
                .prompts
                .draw(self.draw.0, &self.draw.1, self.n_drawn)
                .into_iter();
            let further = (0..).zip(drawn).skip(n_before);
            self.planned
                .extend(further.map(|(index, prompt)| Planned::of(index, prompt, &self.case)));
        }
        let is_wanted = |next: &mut Planned| goes_on || next.index < self.n_asked;
        let next = self.planned.pop_front_if(is_wanted)?;
        let (first, stride) = self.index;
        Some(Planned {
            index: first + stride * next.index,
            ..next
        })
    }
}

async fn closed_loop(load: &Load, queues: Vec<Queue>) -> Result<(), JoinError> {
    let mut users = JoinSet::new();
    for (user, waiting) in (0..).zip(queues) {
        let load = load.clone();
        users.spawn(async move {
            loop {
                let next = waiting
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .next(load.clock.now_s());
                let Some(planned) = next else { return };
                let asked = load.ask(planned, Some(user), load.clock.now_s()).await;
                if asked == Asked::RowDropped {
                    return;
                }
            }
        });
    }
    join_all(users).await
}

/// `planned`: each with its time after the case's begin, in seconds. `rate_per_s`: for the rows.
async fn open_loop(
    load: &Load,
    planned: impl Iterator<Item = (Planned, f64)>,
    rate_per_s: Option<f64>,
) -> Result<(), JoinError> {
    let mut requests = JoinSet::new();
    let began_s = load.clock.now_s();
    for (planned, at_s) in planned {
        let scheduled_s = began_s + at_s;
        let load = Load {
            rate_per_s,
            ..load.clone()
        };
        requests.spawn(async move {
            tokio::time::sleep_until(load.clock.instant_at(scheduled_s).into()).await;
            load.ask(planned, None, scheduled_s).await;
        });
    }
    join_all(requests).await
}

/// One request after another, over and over. The first that fails is the last: a server that is
/// gone would be asked as fast as it refuses.
async fn keep_company(load: &Load, again: VecDeque<Planned>, company: &Company) {
    let mut extras = again.into_iter().cycle();
    while !company.are_all_done()
        && let Some(planned) = extras.next()
    {
        let planned = Planned {
            is_extra: true,
            ..planned
        };
        let asked = load.ask(planned, Some(0), load.clock.now_s()).await;
        if asked != Asked::Answered {
            return;
        }
    }
}

/// A panic in one ends the others.
async fn join_all(mut tasks: JoinSet<()>) -> Result<(), JoinError> {
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}

/// Exponential gaps of mean `1 / rate_per_s`; the first request is sent at once.
///
/// ```
/// use experiments::load::poisson_gaps_s;
///
/// let gaps_s = poisson_gaps_s(7, "rate-2", 2.0, 1_000);
/// assert_eq!(gaps_s, poisson_gaps_s(7, "rate-2", 2.0, 1_000));
/// assert_eq!(gaps_s[0], 0.0);
/// let mean_s = gaps_s.iter().sum::<f64>() / 999.0;
/// assert!((mean_s - 0.5).abs() < 0.1);
/// ```
pub fn poisson_gaps_s(seed: u64, case: &str, rate_per_s: f64, n_requests: usize) -> Vec<f64> {
    let mut rng = case_rng(seed, &format!("{case} arrivals"));
    // 1 - u lies in (0, 1], so that the logarithm is finite.
    let mut gap_s = || -(1.0 - rng.random::<f64>()).ln() / rate_per_s;
    (0..n_requests)
        .map(|index| if index == 0 { 0.0 } else { gap_s() })
        .collect()
}

fn row(
    load: &Load,
    planned: Planned,
    user: Option<u32>,
    scheduled_s: f64,
    answer: Answer,
) -> RequestRow {
    let case = &load.case;
    let n_users = match case.arrival {
        Arrival::ClosedLoop { n_users } => Some(n_users),
        Arrival::OpenLoop { .. } | Arrival::Trace { .. } => None,
    };
    RequestRow {
        case: case.name.clone(),
        phase: case.phase,
        warmup: case.warmup || planned.is_extra,
        model: case.model.clone(),
        index: planned.index,
        user,
        n_users,
        rate_per_s: load.rate_per_s,
        prompt_id: planned.prompt_id,
        max_tokens: planned.output_tokens,
        scheduled_s,
        sent_s: answer.sent_s,
        first_token_s: answer.token_s.first().copied(),
        token_s: answer.token_s,
        end_s: answer.end_s,
        prompt_tokens: answer.prompt_tokens,
        output_tokens: answer.output_tokens,
        cached_tokens: answer.cached_tokens,
        finish_reason: answer.finish_reason,
        error: answer.error,
    }
}

#[cfg(test)]
mod tests {
    use records::rows::implausible_usage;

    use super::*;

    #[test]
    fn usage_that_cannot_be_is_named() {
        for (prompt, output, cached, problem) in [
            (Some(5), Some(10), Some(5), None),
            (None, Some(0), Some(7), None),
            (Some(5), Some(11), None, Some("11 output tokens, but 10")),
            (
                Some(5),
                Some(1 << 63),
                None,
                Some("9223372036854775808 output"),
            ),
            (Some(1 << 40), Some(10), None, Some("1099511627776 prompt")),
            (Some(5), Some(10), Some(6), Some("6 of 5 prompt tokens")),
        ] {
            let found = implausible_usage(10, prompt, output, cached);
            let fits = match (&found, problem) {
                (Some(found), Some(problem)) => found.contains(problem),
                (found, problem) => found.is_none() && problem.is_none(),
            };
            assert!(fits, "{found:?}, not {problem:?}");
        }
    }

    #[test]
    fn arrivals_are_seeded_and_exponential() {
        let gaps = poisson_gaps_s(1, "rate-5", 5.0, 20_001);
        assert_eq!(gaps, poisson_gaps_s(1, "rate-5", 5.0, 20_001));
        assert_ne!(gaps, poisson_gaps_s(2, "rate-5", 5.0, 20_001));
        assert!(gaps[0].abs() < f64::EPSILON);
        // What the seed has always given: records are reproduced from it.
        let first = [gaps[1], gaps[2]].map(|gap| format!("{gap:.12}"));
        assert_eq!(first, ["0.411215854163", "0.151220666432"]);
        let gaps = &gaps[1..];
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // Mean 1/5, standard deviation the same: 3 % is over four standard errors.
        assert!((mean - 0.2).abs() < 0.006, "{mean}");
        assert!((variance.sqrt() - 0.2).abs() < 0.012, "{variance}");
    }
}
